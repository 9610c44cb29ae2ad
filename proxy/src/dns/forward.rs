//! Questions that are not answered from the table: from the cache, or by name servers, once for all who wait.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::cache::{Cache, Found};
use super::reply::{Left, Reply};
use super::servers::SystemServers;
use super::stats::{Count, Stats};
use super::wire::Key;
use super::{ForwardSpec, exchange};

/// How long a client waits while there is something stale (RFC 8767 §5).
const PATIENCE: Duration = Duration::from_millis(1800);
/// The TTL of a stale answer (RFC 8767 §4).
const STALE_TTL: Duration = Duration::from_secs(30);

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
    asked: HashMap<Key, watch::Receiver<Outcome>>,
    waiting: usize,
    /// Counts up when the servers change: answers of those of before are not kept.
    servers: u64,
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
    answer: watch::Receiver<Outcome>,
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
        state.servers += 1;
        // Who waits gets what he waits for; who comes now asks anew.
        state.asked.clear();
    }

    /// What is known of `key`, and otherwise a question that is under way.
    #[must_use]
    pub fn look(self: &Arc<Self>, key: &Key, spec: &ForwardSpec, now: Instant) -> Looked {
        let mut state = self.state();
        let stale = match state.cache.get(key, now) {
            Found::Fresh(reply, age) => {
                self.stats.count(Count::CacheHits);
                return Looked::Now(Resolved::Answer(reply, Left::After(age)));
            }
            Found::Stale(reply, false) => {
                self.stats.count(Count::Stale);
                return Looked::Now(as_stale(reply));
            }
            Found::Stale(reply, true) => Some(reply),
            Found::Missing => None,
        };
        let known = state.asked.get(key).cloned();
        if state.waiting >= spec.max_pending || (known.is_none() && state.asked.len() >= spec.max_pending) {
            self.stats.count(Count::Overflow);
            return Looked::Now(self.instead(stale));
        }
        state.waiting += 1;
        let answer = if let Some(known) = known {
            self.stats.count(Count::Coalesced);
            known
        } else {
            let (tell, answer) = watch::channel(None);
            state.asked.insert(key.clone(), answer.clone());
            let asking =
                Asking { forwarder: Arc::clone(self), key: key.clone(), servers: state.servers, tell };
            tokio::spawn(asking.run(spec.clone()));
            answer
        };
        drop(state);
        Looked::Later(Waiting { forwarder: Arc::clone(self), answer, stale })
    }

    /// What a client gets when nobody answers.
    fn instead(&self, old: Option<Arc<Reply>>) -> Resolved {
        let Some(old) = old else { return Resolved::Failed };
        self.stats.count(Count::Stale);
        as_stale(old)
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
        // Without anything stale it is the question that ends by itself.
        let patience = if self.stale.is_some() { PATIENCE } else { Duration::from_secs(3600) };
        let told = self.answer.wait_for(Option::is_some);
        let outcome = match tokio::time::timeout(patience, told).await {
            Ok(Ok(outcome)) => (*outcome).clone().flatten(),
            // Too late, or the task that asked is gone.
            Ok(Err(_)) | Err(_) => None,
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

/// A question under way.
struct Asking {
    forwarder: Arc<Forwarder>,
    key: Key,
    servers: u64,
    tell: watch::Sender<Outcome>,
}

impl Asking {
    async fn run(self, spec: ForwardSpec) {
        let stats = &self.forwarder.stats;
        stats.count(Count::Asked);
        let servers = self.forwarder.servers(&spec);
        let reply = exchange::ask(&self.key, &spec, &servers).await.map(Arc::new);
        if reply.is_none() {
            stats.count(Count::Failed);
        }
        {
            let (mut state, now) = (self.forwarder.state(), Instant::now());
            if state.servers == self.servers {
                match &reply {
                    Some(reply) => state.cache.put(&self.key, reply, now),
                    None => state.cache.failed(&self.key, now),
                }
            }
        }
        // Kept before anybody is told: who comes in between finds it.
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
