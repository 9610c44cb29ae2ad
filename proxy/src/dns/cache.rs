//! Answers of name servers, kept for their TTL, and a day longer for when nobody answers (RFC 8767).
//!
//! A state machine that takes `now`. It is bounded in answers and in bytes; the one that was used least recently goes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::reply::Reply;
use super::wire::Key;

/// For how long after its end an answer may still be given.
const STALE: Duration = Duration::from_secs(86_400);
/// How long nobody is asked after a failure, if there is something stale. RFC 8767 §5 wants 30 s, for resolvers of many: this is one program's.
const RECHECK: Duration = Duration::from_secs(5);

/// How long a question that has failed fails at once, if there is nothing stale. RFC 9520 §3.2 wants a second at least.
const FAILED: Duration = Duration::from_secs(2);
/// So many of those are known.
const MOST_FAILED: usize = 1024;

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Answers.
    pub answers: usize,
    /// Bytes of them.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { answers: 4096, bytes: 4 << 20 }
    }
}

#[derive(Debug)]
struct Entry {
    reply: Arc<Reply>,
    ttl: Duration,
    at: Instant,
    /// The last failure to renew it.
    failed: Option<Instant>,
    /// Its place in `order`.
    used: u64,
}

/// What is known of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// An answer that holds, and how old it is.
    Fresh(Arc<Reply>, Duration),
    /// One that held once. With true it is time to ask for another.
    Stale(Arc<Reply>, bool),
    /// That nobody has had an answer a moment ago.
    Failed,
    /// Nothing.
    Missing,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Cache {
    limits: Limits,
    /// Others choose the names: the hash must be one that cannot be worked against.
    entries: HashMap<Arc<Key>, Entry>,
    order: BTreeMap<u64, Arc<Key>>,
    next: u64,
    bytes: usize,
    failures: Failures,
}

/// Questions that have failed, and when. All count equally long, so that the oldest goes.
#[derive(Debug, Default)]
struct Failures {
    at: HashMap<Arc<Key>, Instant>,
    order: VecDeque<(Instant, Arc<Key>)>,
}

impl Failures {
    fn has(&self, key: &Key, now: Instant) -> bool {
        self.at.get(key).is_some_and(|at| now.saturating_duration_since(*at) < FAILED)
    }

    fn add(&mut self, key: &Key, now: Instant) {
        let is_over = |at: Instant| now.saturating_duration_since(at) >= FAILED;
        while self.order.front().is_some_and(|(at, _)| is_over(*at) || self.order.len() >= MOST_FAILED) {
            // One that has failed again since is there a second time.
            if let Some((at, oldest)) = self.order.pop_front()
                && self.at.get(&oldest) == Some(&at)
            {
                self.at.remove(&oldest);
            }
        }
        let key = Arc::new(key.clone());
        self.order.push_back((now, Arc::clone(&key)));
        self.at.insert(key, now);
    }
}

/// What the book-keeping of an answer costs, besides its bytes.
const OVERHEAD: usize = 256;

fn cost(key: &Key, reply: &Reply) -> usize {
    OVERHEAD + key.name.len() + reply.size()
}

impl Cache {
    /// An empty one.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// What is known of `key`.
    pub fn get(&mut self, key: &Key, now: Instant) -> Found {
        let Some((own, entry)) = self.entries.get_key_value(key) else {
            return if self.failures.has(key, now) { Found::Failed } else { Found::Missing };
        };
        let age = now.saturating_duration_since(entry.at);
        if age >= entry.ttl + STALE {
            self.remove(key);
            return Found::Missing;
        }
        let found = if age < entry.ttl {
            Found::Fresh(Arc::clone(&entry.reply), age)
        } else {
            let waits = entry.failed.is_some_and(|at| now.saturating_duration_since(at) < RECHECK);
            Found::Stale(Arc::clone(&entry.reply), !waits)
        };
        let (own, before) = (Arc::clone(own), entry.used);
        self.order.remove(&before);
        self.order.insert(self.next, own);
        if let Some(entry) = self.entries.get_mut(key) {
            entry.used = self.next;
        }
        self.next += 1;
        found
    }

    /// Whether the last question for this answer failed.
    #[must_use]
    pub fn has_failed(&self, key: &Key) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.failed.is_some())
    }

    /// Keeps an answer for its TTL. One without takes the place of nothing; it says that what was there does not hold.
    pub fn put(&mut self, key: &Key, reply: &Arc<Reply>, now: Instant) {
        self.remove(key);
        let size = cost(key, reply);
        let Some(ttl) = reply.ttl.filter(|ttl| !ttl.is_zero()) else { return };
        if size > self.limits.bytes {
            return;
        }
        let key = Arc::new(key.clone());
        let entry = Entry { reply: Arc::clone(reply), ttl, at: now, failed: None, used: self.next };
        self.order.insert(self.next, Arc::clone(&key));
        self.entries.insert(key, entry);
        self.next += 1;
        self.bytes += size;
        while self.entries.len() > self.limits.answers || self.bytes > self.limits.bytes {
            let Some((_, oldest)) = self.order.first_key_value() else { return };
            let oldest = Arc::clone(oldest);
            self.remove(&oldest);
        }
    }

    /// Nobody has an answer: what is stale serves on, and in either case nobody is asked again at once.
    pub fn failed(&mut self, key: &Key, now: Instant) {
        match self.entries.get_mut(key) {
            Some(entry) => entry.failed = Some(now),
            None => self.failures.add(key, now),
        }
    }

    /// Forgets everything: other servers may answer differently.
    pub fn clear(&mut self) {
        *self = Self { limits: self.limits, ..Self::default() };
    }

    /// How many answers there are, and what they take.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.used);
            self.bytes -= cost(key, &entry.reply);
        }
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
