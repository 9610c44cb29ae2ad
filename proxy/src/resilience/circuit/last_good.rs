//! The last good answers of a destination, for GET and HEAD while its circuit breaker is open.
//!
//! What may be kept and given again is what RFC 9111 lets a shared cache keep ([`rules`]). Each worker has answers of its own, so that
//! nothing here is shared or locked; how many bytes they take together is bounded, those on their way to be kept included.

pub mod rules;
pub mod shelves;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use foldhash::HashMap;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use tokio::time::Instant;

use self::rules::{Terms, Vary, Wish};

/// `fallback.last_good`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastGoodSpec {
    /// `max_age`: an older answer is not given. What the answer itself allows may be less.
    pub max_age: Duration,
    /// `max_body_bytes`: an answer with a longer body is not kept.
    pub max_body_bytes: usize,
    /// `max_bytes` of all answers of one worker, with their headers and what it takes to find them.
    pub max_bytes: usize,
}

impl Default for LastGoodSpec {
    fn default() -> Self {
        Self { max_age: Duration::from_secs(300), max_body_bytes: 64 * 1024, max_bytes: 8 * 1024 * 1024 }
    }
}

/// What an answer may take besides its body: more than the headers of most.
const HEAD: usize = 4096;
/// The part of all bytes that those on their way may take.
const COMING: usize = 4;

impl LastGoodSpec {
    /// The least `max_bytes` that goes with a `max_body_bytes`: the longest answer is kept, and the next one is on its way.
    #[must_use]
    pub const fn least(max_body_bytes: usize) -> usize {
        max_body_bytes.saturating_add(HEAD).saturating_mul(2)
    }

    /// What all that are on their way may take: a quarter, or one of the longest.
    const fn coming(&self) -> usize {
        let (share, one) = (self.max_bytes / COMING, self.max_body_bytes.saturating_add(HEAD));
        let most = if share > one { share } else { one };
        if most < self.max_bytes / 2 { most } else { self.max_bytes / 2 }
    }

    /// What all that are kept may take: the rest.
    const fn kept(&self) -> usize {
        self.max_bytes - self.coming()
    }
}

/// What an answer takes besides what is counted byte by byte: its places in the maps.
const OVERHEAD: usize = 512;
/// The same of one of its headers.
const FIELD_OVERHEAD: usize = size_of::<(HeaderName, HeaderValue)>() + 16;
/// Answers to requests for one thing that differ by headers (`Vary`).
const MAX_VARIANTS: usize = 16;

/// An answer whose head came and may be kept, if its body ends well.
#[derive(Debug)]
pub struct Draft {
    key: Arc<str>,
    cluster: Arc<str>,
    vary: Vary,
    fields: Box<[(HeaderName, HeaderValue)]>,
    terms: Terms,
    at: Instant,
}

impl Draft {
    /// The answer of a cluster to a GET for `key` whose head is complete at `now`, on the `terms` that [`rules::terms`] found.
    ///
    /// Everything is copied: what a message came in is larger than what is counted, and would live as long as the copy.
    #[must_use]
    pub fn new(
        (key, cluster): (&Arc<str>, &Arc<str>),
        terms: Terms,
        vary: Vary,
        answer: &HeaderMap,
        now: Instant,
    ) -> Self {
        let fields = answer.iter().filter(|(name, _)| rules::is_kept(name));
        let fields = fields.filter_map(|(name, value)| {
            let mut copy = HeaderValue::from_bytes(value.as_bytes()).ok()?;
            copy.set_sensitive(value.is_sensitive());
            Some((name.clone(), copy))
        });
        let (key, cluster) = (Arc::clone(key), Arc::clone(cluster));
        Self { key, cluster, vary, fields: fields.collect(), terms, at: now }
    }

    /// What it is an answer to a GET for.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Bytes that it takes without its body.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let fields: usize =
            self.fields.iter().map(|(name, value)| FIELD_OVERHEAD + name.as_str().len() + value.len()).sum();
        OVERHEAD + self.key.len() + self.vary.bytes() + fields
    }

    /// Whether both are answers to the same request.
    fn is_like(&self, other: &Self) -> bool {
        self.cluster == other.cluster && self.vary == other.vary
    }

    fn age(&self, now: Instant) -> Duration {
        self.terms.age + now.saturating_duration_since(self.at)
    }
}

/// An answer that is kept.
#[derive(Debug)]
struct Kept {
    draft: Draft,
    body: Bytes,
}

impl Kept {
    fn bytes(&self) -> usize {
        self.draft.bytes() + self.body.len()
    }

    fn is_over(&self, now: Instant) -> bool {
        self.draft.age(now) > self.draft.terms.limit
    }
}

/// An answer that is given again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Again {
    /// Its headers, with `age` and `content-length`.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// The answers that one worker keeps of one destination. The one that was kept first makes room: an answer that is asked for while all is
/// well is kept anew each time, so that it is also the one that was asked for least recently.
#[derive(Debug)]
pub struct Store {
    spec: LastGoodSpec,
    kept: BTreeMap<u64, Kept>,
    /// Numbers in `kept`, the newest last.
    by_key: HashMap<Arc<str>, VecDeque<u64>>,
    next: u64,
    bytes: usize,
    coming: usize,
}

impl Store {
    /// An empty one.
    #[must_use]
    pub fn new(spec: LastGoodSpec) -> Self {
        Self { spec, kept: BTreeMap::new(), by_key: HashMap::default(), next: 0, bytes: 0, coming: 0 }
    }

    /// What the configuration says.
    #[must_use]
    pub const fn spec(&self) -> &LastGoodSpec {
        &self.spec
    }

    /// Bytes of what is kept, and of what is on its way to be.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes + self.coming
    }

    /// Answers that are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Takes `more` bytes for an answer that comes. False: too much comes already. What is kept stays, because what comes may never be
    /// complete.
    pub const fn reserve(&mut self, more: usize) -> bool {
        let coming = self.coming.saturating_add(more);
        let fits = coming <= self.spec.coming();
        if fits {
            self.coming = coming;
        }
        fits
    }

    /// Gives bytes back that [`Self::reserve`] took.
    pub const fn release(&mut self, less: usize) {
        self.coming = self.coming.saturating_sub(less);
    }

    /// Keeps an answer that is complete, in the place of an older one to the same request. Its bytes are reserved no longer. One that is
    /// larger than everything is not kept.
    pub fn keep(&mut self, draft: Draft, body: Bytes, now: Instant) {
        let kept = Kept { draft, body };
        self.sweep(now);
        if kept.bytes() > self.spec.kept() {
            return;
        }
        let numbers = self.by_key.entry(Arc::clone(&kept.draft.key)).or_default();
        let same = numbers
            .iter()
            .position(|number| self.kept.get(number).is_some_and(|old| old.draft.is_like(&kept.draft)));
        let leaves = same.or_else(|| (numbers.len() >= MAX_VARIANTS).then_some(0));
        if let Some(old) =
            leaves.and_then(|at| numbers.remove(at)).and_then(|number| self.kept.remove(&number))
        {
            self.bytes -= old.bytes();
        }
        numbers.push_back(self.next);
        self.bytes += kept.bytes();
        self.kept.insert(self.next, kept);
        self.next += 1;
        while self.bytes > self.spec.kept() {
            let Some((_, oldest)) = self.kept.pop_first() else { break };
            self.unlink(&oldest);
        }
    }

    /// The last good answer of `cluster` to a request with `headers` for `key`, at `now`.
    #[must_use]
    pub fn find(
        &self,
        (key, cluster): (&str, &str),
        headers: &HeaderMap,
        wish: &Wish,
        now: Instant,
    ) -> Option<Again> {
        let numbers = self.by_key.get(key)?.iter().rev();
        let kept = numbers.filter_map(|number| self.kept.get(number)).find(|kept| {
            let draft = &kept.draft;
            *draft.cluster == *cluster
                && draft.vary.matches(headers)
                && (draft.terms.shared || !rules::tells_who(headers, &draft.vary))
                && !kept.is_over(now)
                && wish.max_age.is_none_or(|max| draft.age(now) <= max)
        })?;
        let mut all = HeaderMap::with_capacity(kept.draft.fields.len() + 3);
        for (name, value) in &kept.draft.fields {
            all.append(name.clone(), value.clone());
        }
        all.insert(header::AGE, HeaderValue::from(kept.draft.age(now).as_secs()));
        all.insert(header::CONTENT_LENGTH, HeaderValue::from(kept.body.len()));
        Some(Again { headers: all, body: kept.body.clone() })
    }

    /// Forgets what is kept for `key`, of all clusters: it has changed, or is gone.
    pub fn forget(&mut self, key: &str) {
        for number in self.by_key.remove(key).unwrap_or_default() {
            if let Some(old) = self.kept.remove(&number) {
                self.bytes -= old.bytes();
            }
        }
    }

    /// Throws away what was kept first and may not be given any more.
    fn sweep(&mut self, now: Instant) {
        while let Some(first) = self.kept.first_entry()
            && first.get().is_over(now)
        {
            let oldest = first.remove();
            self.unlink(&oldest);
        }
    }

    /// `oldest` of all, so also of those for its key, is kept no longer.
    fn unlink(&mut self, oldest: &Kept) {
        self.bytes -= oldest.bytes();
        if let Some(numbers) = self.by_key.get_mut(&oldest.draft.key) {
            numbers.pop_front();
            if numbers.is_empty() {
                self.by_key.remove(&oldest.draft.key);
            }
        }
    }
}

#[cfg(test)]
mod tests;
