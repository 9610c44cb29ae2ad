//! Questions that are not answered from the table: from the cache, or by name servers, once for all who wait.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::cache::{Cache, Found};
use super::exchange::Told;
use super::reply::{Left, Reply};
use super::servers::SystemServers;
use super::stats::{Count, Stats};
use super::wire::Key;
use super::{ForwardSpec, exchange};

/// How long a question may take before clients get what is stale (RFC 8767 §5).
const PATIENCE: Duration = Duration::from_millis(1800);
/// The TTL of a stale answer (RFC 8767 §4).
const STALE_TTL: Duration = Duration::from_secs(30);
/// How long servers that said nothing at all count as silent (the failure recheck timer of RFC 8767 §5): who has something stale waits for a
/// [`MOMENT`] at most. They are asked all the same, and one word of them ends it.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a client waits in such a silence, once for a name: the servers may be there, and only the name that was not answered is slow.
const MOMENT: Duration = Duration::from_millis(200);
/// Longer than any question takes: it ends by itself.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// The end of a question. None within: nobody has answered.
type Outcome = Option<Option<Arc<Reply>>>;

/// Asks for a listener.
#[derive(Debug)]
pub struct Forwarder {
    state: Mutex<State>,
    system: SystemServers,
    stats: Arc<Stats>,
    /// Where we listen ourselves: never asked.
    own: Vec<SocketAddr>,
}

#[derive(Debug, Default)]
struct State {
    cache: Cache,
    asked: HashMap<Key, Question>,
    waiting: usize,
    health: Health,
    /// Counts up when the servers change: answers of those of before are not kept.
    servers: u64,
}

impl State {
    /// How long a question may take for whose answer there is something stale.
    fn patience(&self, key: &Key, now: Instant) -> Duration {
        if !self.health.is_silent(now) {
            return PATIENCE;
        }
        // Nobody waits a second time for a name that was not answered.
        if self.cache.has_failed(key) { Duration::ZERO } else { MOMENT }
    }
}

/// A question under way.
#[derive(Debug, Clone)]
struct Question {
    begun: Instant,
    /// As in [`State`], at that time.
    servers: u64,
    answer: watch::Receiver<Outcome>,
}

/// Whether name servers say anything at all. One that has no answer to a question is there.
#[derive(Debug, Default)]
struct Health {
    heard: Option<Instant>,
    silent: Option<Instant>,
}

impl Health {
    fn heard(&mut self, now: Instant) {
        *self = Self { heard: Some(now), silent: None };
    }

    /// A question of `begun` was not answered.
    fn not_answered(&mut self, begun: Instant, now: Instant) {
        // One name that is slow is no reason to give stale answers for others.
        if self.heard.is_none_or(|heard| heard < begun) {
            self.silent = Some(now);
        }
    }

    fn is_silent(&self, now: Instant) -> bool {
        self.silent.is_some_and(|at| now.saturating_duration_since(at) < SILENCE)
    }
}

/// What a client gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// This, with these TTLs.
    Answer(Arc<Reply>, Left),
    /// SERVFAIL.
    Failed,
}

/// What there is of a question at once.
#[derive(Debug)]
pub enum Looked {
    /// Everything.
    Now(Resolved),
    /// It is being asked.
    Later(Waiting),
}

/// A client that waits.
#[derive(Debug)]
pub struct Waiting {
    forwarder: Arc<Forwarder>,
    question: Question,
    until: Instant,
    stale: Option<Arc<Reply>>,
}

impl Forwarder {
    /// One that counts in `stats`, for the listener at `own`.
    #[must_use]
    pub fn new(stats: Arc<Stats>, own: Vec<SocketAddr>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), system: SystemServers::default(), stats, own })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Poisoning means that a panic happened here; nothing is half-done that matters.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other servers are asked from now on: forgets what those of before said.
    pub fn forget(&self) {
        let mut state = self.state();
        state.cache.clear();
        state.health = Health::default();
        state.servers += 1;
        // Who waits gets what he waits for; who comes now asks anew.
        state.asked.clear();
    }

    /// What is known of `key`, and otherwise a question that is under way.
    #[must_use]
    pub fn look(self: &Arc<Self>, key: &Key, spec: &ForwardSpec, now: Instant) -> Looked {
        if spec.servers.servers.is_empty() && self.system.check(now) {
            self.forget();
        }
        let (looked, asking) = self.decide(key, spec.max_pending, now);
        // Not under the lock, which it takes.
        if let Some(asking) = asking {
            tokio::spawn(asking.run(spec.clone()));
        }
        looked
    }

    /// What a client gets, and what is to be asked for him, or behind him.
    fn decide(self: &Arc<Self>, key: &Key, most: usize, now: Instant) -> (Looked, Option<Asking>) {
        let mut state = self.state();
        let stale = match state.cache.get(key, now) {
            Found::Fresh(reply, age) => {
                self.stats.count(Count::CacheHits);
                return (Looked::Now(Resolved::Answer(reply, Left::After(age))), None);
            }
            Found::Stale(reply, false) => {
                self.stats.count(Count::Stale);
                return (Looked::Now(as_stale(reply)), None);
            }
            Found::Failed => {
                self.stats.count(Count::FailedAgain);
                return (Looked::Now(Resolved::Failed), None);
            }
            Found::Stale(reply, true) => Some(reply),
            Found::Missing => None,
        };
        let known = state.asked.get(key).cloned();
        let begun = known.as_ref().map_or(now, |question| question.begun);
        // The question has this time, not each of its clients.
        let until = if stale.is_some() { begun + state.patience(key, now) } else { now + FOR_EVER };
        let waits = until > now;
        let is_full = |number: usize| number >= most;
        if waits && is_full(state.waiting) || known.is_none() && is_full(state.asked.len()) {
            self.stats.count(Count::Overflow);
            return (Looked::Now(self.instead(stale)), None);
        }
        let (question, asking) = match known {
            Some(question) => (question, None),
            None => {
                let (tell, answer) = watch::channel(None);
                let question = Question { begun, servers: state.servers, answer };
                state.asked.insert(key.clone(), question.clone());
                let (forwarder, key, servers) = (Arc::clone(self), key.clone(), state.servers);
                (question, Some(Asking { forwarder, key, begun, servers, tell }))
            }
        };
        if !waits {
            return (Looked::Now(self.instead(stale)), asking);
        }
        if asking.is_none() {
            self.stats.count(Count::Coalesced);
        }
        state.waiting += 1;
        (Looked::Later(Waiting { forwarder: Arc::clone(self), question, until, stale }), asking)
    }

    /// What a client gets when nobody answers.
    fn instead(&self, old: Option<Arc<Reply>>) -> Resolved {
        let Some(old) = old else { return Resolved::Failed };
        self.stats.count(Count::Stale);
        as_stale(old)
    }

    /// A question has had its time, and goes on.
    fn late(&self, begun: Instant, servers: u64) {
        let mut state = self.state();
        if state.servers == servers {
            state.health.not_answered(begun, Instant::now());
        }
    }

    /// A server has said something.
    fn heard(&self, servers: u64) {
        let mut state = self.state();
        if state.servers == servers {
            state.health.heard(Instant::now());
        }
    }

    fn servers(&self, spec: &ForwardSpec) -> Vec<SocketAddr> {
        let mut servers =
            if spec.servers.servers.is_empty() { self.system.get() } else { spec.servers.servers.clone() };
        servers.retain(|server| !self.own.contains(server));
        servers
    }
}

fn as_stale(reply: Arc<Reply>) -> Resolved {
    Resolved::Answer(reply, Left::Fixed(STALE_TTL))
}

impl Waiting {
    /// The answer: at the latest when the servers have had their time.
    pub async fn answer(mut self) -> Resolved {
        let told = self.question.answer.wait_for(Option::is_some);
        let outcome = match tokio::time::timeout_at(self.until, told).await {
            Ok(Ok(outcome)) => (*outcome).clone().flatten(),
            // The task that asked is gone.
            Ok(Err(_)) => None,
            Err(_) => {
                self.forwarder.late(self.question.begun, self.question.servers);
                None
            }
        };
        match outcome {
            Some(reply) => Resolved::Answer(reply, Left::After(Duration::ZERO)),
            None => self.forwarder.instead(self.stale.take()),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.forwarder.state().waiting -= 1;
    }
}

/// A question that is to be asked.
struct Asking {
    forwarder: Arc<Forwarder>,
    key: Key,
    begun: Instant,
    servers: u64,
    tell: watch::Sender<Outcome>,
}

impl Asking {
    async fn run(self, spec: ForwardSpec) {
        self.forwarder.stats.count(Count::Asked);
        let servers = self.forwarder.servers(&spec);
        let heard = || self.forwarder.heard(self.servers);
        let told = exchange::ask(&self.key, &spec, &servers, &self.forwarder.stats, &heard).await;
        self.end(told, Instant::now());
    }

    /// Keeps what came of it, then tells who waits: who comes in between finds it.
    fn end(&self, told: Told, now: Instant) {
        let is_silence = told == Told::Silence;
        let reply = match told {
            Told::Answer(reply) => Some(Arc::new(reply)),
            Told::Failed | Told::Silence => None,
        };
        if reply.is_none() {
            self.forwarder.stats.count(Count::Failed);
        }
        {
            let mut state = self.forwarder.state();
            if state.servers == self.servers {
                if is_silence {
                    state.health.not_answered(self.begun, now);
                }
                match &reply {
                    Some(reply) => state.cache.put(&self.key, reply, now),
                    None => state.cache.failed(&self.key, now),
                }
            }
        }
        self.tell.send_replace(Some(reply));
    }
}

/// However it ends, also by a panic, the next client asks anew.
impl Drop for Asking {
    fn drop(&mut self) {
        let mut state = self.forwarder.state();
        if state.servers == self.servers {
            state.asked.remove(&self.key);
        }
    }
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
