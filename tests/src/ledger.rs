//! Who asked what, who executed what, and whether the two agree.
//!
//! Requests are made at a fixed rate, however slowly they are answered (open loop), and never again: what is lost stays lost.
//! Each has an id. An origin executes a request when it has read all of it; its answer names the request, so that no answer can be taken for another's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::client::http1::Http1Client;
use crate::http1::Broken;
use crate::upstream::http1::{self, Http1Upstream};
use crate::upstream::http2::{self, Http2Upstream};
use crate::wait::{eventually, poll_pause};

/// More requests than this at once, and the load itself would be the fault.
const MOST_AT_ONCE: usize = 4000;

/// No two requests of a process have the same id.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Whether each request is a GET or a POST.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// GET alone.
    Gets,
    /// GET and POST by turns.
    Both,
}

/// The load that is offered.
#[derive(Debug, Clone)]
pub struct Offer {
    address: SocketAddr,
    rate: f64,
    mix: Mix,
    fields: String,
}

impl Offer {
    /// So many GETs a second to the proxy at `address`.
    #[must_use]
    pub fn gets(address: SocketAddr, rate: u32) -> Self {
        Self { address, rate: f64::from(rate), mix: Mix::Gets, fields: String::new() }
    }

    /// So many requests a second, GET and POST by turns.
    #[must_use]
    pub fn both(address: SocketAddr, rate: u32) -> Self {
        Self { mix: Mix::Both, ..Self::gets(address, rate) }
    }

    /// Adds a header field.
    #[must_use]
    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.fields += &format!("{name}: {value}\r\n");
        self
    }

    /// Begins.
    #[must_use]
    pub fn start(self) -> Load {
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(offer(self, Arc::clone(&shared)));
        Load { shared, task }
    }

    /// Offers it for `time`, and waits for all answers.
    pub async fn during(self, time: Duration) -> Ledger {
        let load = self.start();
        load.lasts(time).await;
        load.end().await
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
    idle: Mutex<Vec<Http1Client>>,
    entries: Mutex<Vec<Entry>>,
}

/// A load that runs.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Load {
    /// Lets it run for `time`.
    pub async fn lasts(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.task.is_finished() {
            poll_pause().await;
        }
    }

    /// Waits for so many more requests to be sent.
    pub async fn sends(&self, more: u64) {
        let before = self.shared.sent.load(Ordering::Relaxed);
        eventually("load", || self.shared.sent.load(Ordering::Relaxed) >= before + more).await;
    }

    /// How many requests were sent and how many of them were answered well so far.
    #[must_use]
    pub fn so_far(&self) -> (u64, usize) {
        let answered = lock(&self.shared.entries).iter().filter(|e| e.is_answered()).count();
        (self.shared.sent.load(Ordering::Relaxed), answered)
    }

    /// Waits until nothing that was sent after now was lost for `calm`; gives the time from now to the first of those requests.
    ///
    /// # Panics
    /// When that does not happen within `limit`.
    pub async fn recovers(&self, calm: Duration, limit: Duration) -> Duration {
        let from = Instant::now();
        loop {
            let last = {
                let entries = lock(&self.shared.entries);
                entries.iter().filter(|e| !e.is_answered()).map(|e| e.sent).max()
            };
            let good_since = last.filter(|last| *last > from).unwrap_or(from);
            if good_since.elapsed() >= calm {
                return good_since.duration_since(from);
            }
            assert!(from.elapsed() < limit + calm, "no recovery within {limit:?}");
            poll_pause().await;
        }
    }

    /// Stops sending, and waits for all answers.
    ///
    /// # Panics
    /// When the load itself did.
    pub async fn end(self) -> Ledger {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the load");
        let mut entries = std::mem::take(&mut *lock(&self.shared.entries));
        entries.sort_by_key(|entry| entry.id);
        Ledger { entries, executed: BTreeMap::new(), forged: Vec::new() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

async fn offer(offer: Offer, shared: Arc<Shared>) {
    let began = Instant::now();
    let mut requests = JoinSet::new();
    let mut turn = 0_u32;
    while !shared.stop.load(Ordering::Relaxed) {
        let due = began.elapsed().as_secs_f64() * offer.rate;
        while f64::from(turn) <= due {
            assert!(requests.len() < MOST_AT_ONCE, "{MOST_AT_ONCE} requests without an answer");
            let post = offer.mix == Mix::Both && turn % 2 == 1;
            turn += 1;
            shared.sent.fetch_add(1, Ordering::Relaxed);
            requests.spawn(one(offer.address, post, offer.fields.clone(), Arc::clone(&shared)));
        }
        while requests.try_join_next().is_some() {}
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    while requests.join_next().await.is_some() {}
}

async fn one(address: SocketAddr, post: bool, fields: String, shared: Arc<Shared>) {
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let sent = Instant::now();
    let outcome = exchange(address, id, post, &fields, &shared).await;
    let entry = Entry { id, post, sent, took: sent.elapsed(), outcome };
    lock(&shared.entries).push(entry);
}

async fn exchange(address: SocketAddr, id: u64, post: bool, fields: &str, shared: &Shared) -> Outcome {
    let waiting = lock(&shared.idle).pop();
    let mut client = match waiting {
        Some(client) => client,
        None => match Http1Client::try_connect(address).await {
            Ok(client) => client,
            Err(error) => return Outcome::Broken(Broken::Reset(format!("connect: {error}"))),
        },
    };
    let target = target(id);
    let head = format!("{} {target} HTTP/1.1\r\nHost: a.example\r\n{fields}", method(post));
    let body = if post { body(&target) } else { String::new() };
    let length = if post { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
    client.send(format!("{head}{length}\r\n{body}")).await;
    match client.response().await {
        Err(broken) => Outcome::Broken(broken),
        Ok(response) => {
            if response.keeps_alive() && client.leftover().is_empty() {
                lock(&shared.idle).push(client);
            }
            match response.status {
                200 if response.text() == receipt(method(post), &target) => Outcome::Answered,
                200 => Outcome::Wrong(response.text()),
                status => Outcome::Refused(status, response.reason().unwrap_or_default().to_owned()),
            }
        }
    }
}

fn method(post: bool) -> &'static str {
    if post { "POST" } else { "GET" }
}

fn target(id: u64) -> String {
    format!("/request/{id}")
}

/// The body of a POST to `target`.
#[must_use]
pub fn body(target: &str) -> String {
    format!("body of {target}")
}

/// The text that an origin answers to a request that it executed.
#[must_use]
pub fn receipt(method: &str, target: &str) -> String {
    format!("receipt for {method} {target}")
}

/// The right answer of an HTTP/1 origin.
#[must_use]
pub fn answer(request: &http1::Forwarded) -> http1::Answer {
    http1::Answer::ok(&receipt(request.method(), request.target()))
}

/// The right answer of an HTTP/2 origin.
#[must_use]
pub fn answer2(request: &http2::Forwarded) -> http2::Answer {
    http2::Answer::ok(&receipt(request.head.method.as_str(), request.head.uri.path()))
}

/// An HTTP/1 origin that answers right, after `work`.
pub async fn origin(work: Duration) -> Http1Upstream {
    Http1Upstream::scripted(move |request, _| {
        let text = receipt(request.method(), request.target());
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
        if work.is_zero() { answer(request) } else { http1::Answer::nothing().pause(work).send(head) }
    })
    .await
}

/// An HTTP/2 origin that answers right.
pub async fn origin2() -> Http2Upstream {
    Http2Upstream::scripted(|request, _| answer2(request)).await
}

/// A request that an origin has read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Execution {
    /// Its method.
    pub method: String,
    /// Its target.
    pub target: String,
    /// Its body.
    pub body: String,
}

/// What an HTTP/1 origin executed.
#[must_use]
pub fn executed(origin: &Http1Upstream) -> Vec<Execution> {
    let all = origin.requests().into_iter().filter(|r| r.complete);
    all.map(|r| Execution { method: r.method().into(), target: r.target().into(), body: r.text() }).collect()
}

/// What an HTTP/2 origin executed.
#[must_use]
pub fn executed2(origin: &Http2Upstream) -> Vec<Execution> {
    let all = origin.requests().into_iter().filter(|r| r.complete);
    all.map(|r| Execution {
        method: r.head.method.to_string(),
        target: r.head.uri.path().into(),
        body: crate::http1::latin1(&r.body),
    })
    .collect()
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With its own answer.
    Answered,
    /// With 200 and something else.
    Wrong(String),
    /// With another status, and the proxy's reason if it gave one.
    Refused(u16, String),
    /// With nothing that is a whole answer.
    Broken(Broken),
}

/// One request of the load.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its id.
    pub id: u64,
    /// Whether it is a POST, otherwise a GET.
    pub post: bool,
    /// When it was due.
    pub sent: Instant,
    /// From then to its end.
    pub took: Duration,
    /// Its end.
    pub outcome: Outcome,
}

impl Entry {
    /// Whether it got its own answer.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.outcome == Outcome::Answered
    }
}

/// Both sides of the account.
#[derive(Debug)]
pub struct Ledger {
    /// What the client knows, by id.
    pub entries: Vec<Entry>,
    executed: BTreeMap<String, Vec<String>>,
    forged: Vec<Execution>,
}

impl Ledger {
    /// Adds what an origin executed. Requests of other loads are none of this ledger's business.
    #[must_use]
    pub fn with(mut self, executions: impl IntoIterator<Item = Execution>) -> Self {
        let own: BTreeMap<_, _> = self.entries.iter().map(|e| (target(e.id), e.post)).collect();
        for execution in executions {
            let Some(post) = own.get(&execution.target) else { continue };
            let text = if *post { body(&execution.target) } else { String::new() };
            if execution.method != method(*post) || execution.body != text {
                self.forged.push(execution);
                continue;
            }
            self.executed.entry(execution.target).or_default().push(execution.method);
        }
        self
    }

    /// What was not answered as it should be; `posts` says of which method.
    #[must_use]
    pub fn lost(&self, posts: bool) -> Vec<&Entry> {
        self.entries.iter().filter(|e| e.post == posts && !e.is_answered()).collect()
    }

    /// How many requests got the answer of another one, or reached an origin as something else.
    #[must_use]
    pub fn wrong(&self) -> usize {
        let answers = self.entries.iter().filter(|e| matches!(e.outcome, Outcome::Wrong(_))).count();
        answers + self.forged.len()
    }

    /// How many POSTs were executed more than once.
    #[must_use]
    pub fn repeated(&self) -> usize {
        self.executed.values().filter(|all| all.len() > 1 && all[0] == "POST").count()
    }

    /// How often a request was executed.
    #[must_use]
    pub fn executions(&self, entry: &Entry) -> usize {
        self.executed.get(&target(entry.id)).map_or(0, Vec::len)
    }

    /// The time within which a share of the requests ended.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        quantile(self.entries.iter().map(|e| e.took).collect(), share)
    }

    /// The longest time in which no request was answered well.
    #[must_use]
    pub fn gap(&self) -> Duration {
        let mut ends: Vec<_> =
            self.entries.iter().filter(|e| e.is_answered()).map(|e| e.sent + e.took).collect();
        ends.sort_unstable();
        ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(Duration::MAX)
    }

    /// Asserts what holds in every row: no answer of another request, and no POST twice. Prints the account.
    ///
    /// # Panics
    /// When it does not hold.
    pub fn sound(&self, row: &str) {
        println!(
            "{row}: {} requests, lost {} GET and {} POST, wrong {}, repeated {}; p50 {:.1?}, p99 {:.1?}, longest {:.1?}",
            self.entries.len(),
            self.lost(false).len(),
            self.lost(true).len(),
            self.wrong(),
            self.repeated(),
            self.quantile(0.5),
            self.quantile(0.99),
            self.quantile(1.0),
        );
        let wrong = self.entries.iter().find(|e| matches!(e.outcome, Outcome::Wrong(_)));
        assert_eq!(self.wrong(), 0, "{row}: {wrong:?} {:?}", self.forged.first());
        assert_eq!(self.repeated(), 0, "{row}: a POST was executed twice");
        assert!(self.entries.len() >= 10, "{row}: hardly any load");
    }

    /// Asserts [`Ledger::sound`], and that no GET was lost.
    ///
    /// # Panics
    /// When it does not hold.
    pub fn no_get_lost(&self, row: &str) {
        self.sound(row);
        let lost = self.lost(false);
        assert!(lost.is_empty(), "{row}: lost {:?}", &lost[..lost.len().min(5)]);
    }

    /// Asserts [`Ledger::sound`], and that nothing was lost.
    ///
    /// # Panics
    /// When it does not hold.
    pub fn nothing_lost(&self, row: &str) {
        self.no_get_lost(row);
        let lost = self.lost(true);
        assert!(lost.is_empty(), "{row}: lost {:?}", &lost[..lost.len().min(5)]);
    }
}

/// The time within which a share of `times` lies.
#[must_use]
pub fn quantile(mut times: Vec<Duration>, share: f64) -> Duration {
    times.sort_unstable();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index"
    )]
    let at = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len().max(1)) - 1;
    times.get(at).copied().unwrap_or_default()
}
