//! All series of one kind: who has which shard, the cap, the expiry.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use foldhash::{HashMap, HashSet};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::lock;
use super::shard::{Shard, add_all};
use crate::telemetry::labels::LabelSet;

/// Series with labels `L` and `N` counters each.
pub(super) struct Family<L, const N: usize> {
    max: usize,
    idle: Duration,
    /// Whether a series stands for something that exists now, such as an open connection, and must not expire.
    in_use: fn(&[u64; N]) -> bool,
    inner: Mutex<Inner<L, N>>,
    /// Goes up when series expire: what was refused may be tried again, and there are retired shards to drop.
    expiries: AtomicU64,
    /// Label sets that were refused.
    refused: AtomicU64,
}

struct Inner<L, const N: usize> {
    series: HashMap<L, Series<N>>,
    other: Series<N>,
    retired: Vec<Retired<L, N>>,
}

struct Series<const N: usize> {
    /// One for each worker that knows this series.
    shards: Vec<(u32, Arc<Shard<N>>)>,
    /// Counts from shards that were retired.
    base: [u64; N],
    /// At the last scrape.
    last: [u64; N],
    changed: Option<Instant>,
}

/// A shard of an expired series that its worker still holds. What it counts after all goes into a new series.
struct Retired<L, const N: usize> {
    labels: L,
    shard: Arc<Shard<N>>,
    counted: [u64; N],
}

impl<const N: usize> Default for Series<N> {
    fn default() -> Self {
        Self { shards: Vec::new(), base: [0; N], last: [0; N], changed: None }
    }
}

impl<const N: usize> Series<N> {
    fn shard(&mut self, worker: u32) -> Arc<Shard<N>> {
        if let Some((_, shard)) = self.shards.iter().find(|(w, _)| *w == worker) {
            return Arc::clone(shard);
        }
        let shard = Arc::new(Shard::default());
        self.shards.push((worker, Arc::clone(&shard)));
        shard
    }

    fn sum(&self) -> [u64; N] {
        let mut sum = self.base;
        for (_, shard) in &self.shards {
            add_all(&mut sum, &shard.read());
        }
        sum
    }
}

impl<L: LabelSet, const N: usize> Family<L, N> {
    pub(super) fn new(max: usize, idle: Duration, in_use: fn(&[u64; N]) -> bool) -> Self {
        let inner = Inner { series: HashMap::default(), other: Series::default(), retired: Vec::new() };
        Self {
            max,
            idle,
            in_use,
            inner: Mutex::new(inner),
            expiries: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// The shard of `worker` for `labels`; None when there are too many series.
    fn shard(&self, worker: u32, labels: L) -> Option<Arc<Shard<N>>> {
        let mut inner = lock(&self.inner);
        let len = inner.series.len();
        match inner.series.entry(labels) {
            std::collections::hash_map::Entry::Occupied(series) => Some(series.into_mut().shard(worker)),
            std::collections::hash_map::Entry::Vacant(new) if len < self.max => {
                Some(new.insert(Series::default()).shard(worker))
            }
            std::collections::hash_map::Entry::Vacant(_) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// Shows every series to `show`: its labels (None is the series `other`) and its sums. Series that did not change
    /// since `now - idle` are shown no more.
    pub(super) fn scrape(&self, now: Instant, mut show: impl FnMut(Option<&L>, &[u64; N])) {
        let mut inner = lock(&self.inner);
        inner.take_late_counts();
        let Inner { series, other, retired } = &mut *inner;
        let before = series.len();
        series.retain(|labels, series| {
            let reads: SmallVec<[[u64; N]; 4]> =
                series.shards.iter().map(|(_, shard)| shard.read()).collect();
            let mut sum = series.base;
            for read in &reads {
                add_all(&mut sum, read);
            }
            if sum != series.last || series.changed.is_none() {
                series.last = sum;
                series.changed = Some(now);
            }
            let quiet = series.changed.is_some_and(|at| now.saturating_duration_since(at) >= self.idle);
            if !quiet || (self.in_use)(&sum) {
                show(Some(labels), &sum);
                return true;
            }
            for ((_, shard), counted) in series.shards.drain(..).zip(reads) {
                // A worker that has not seen the mark yet may still count: the next scrape finds it.
                shard.retire();
                retired.push(Retired { labels: labels.clone(), shard, counted });
            }
            false
        });
        if series.len() < before {
            self.expiries.fetch_add(1, Ordering::Relaxed);
        }
        let sum = other.sum();
        if sum != [0; N] {
            show(None, &sum);
        }
    }

    /// How many label sets were refused.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl<L: LabelSet, const N: usize> Inner<L, N> {
    fn take_late_counts(&mut self) {
        let Self { series, retired, .. } = self;
        retired.retain_mut(|old| {
            let held = Arc::strong_count(&old.shard) > 1;
            // Whoever let go of the shard wrote to it before.
            fence(Ordering::Acquire);
            let now = old.shard.read();
            if now != old.counted {
                let mut late = now;
                for (late, counted) in late.iter_mut().zip(&old.counted) {
                    *late = late.wrapping_sub(*counted);
                }
                add_all(&mut series.entry(old.labels.clone()).or_default().base, &late);
                old.counted = now;
            }
            held
        });
    }
}

/// The series that one worker knows, by key.
pub(super) struct Handles<K, const N: usize> {
    worker: u32,
    known: HashMap<K, Arc<Shard<N>>>,
    /// Keys that the registry had no room for.
    refused: HashSet<K>,
    other: Option<Arc<Shard<N>>>,
    expiries: u64,
}

impl<K: Copy + Eq + std::hash::Hash, const N: usize> Handles<K, N> {
    pub(super) fn new(worker: u32) -> Self {
        Self { worker, known: HashMap::default(), refused: HashSet::default(), other: None, expiries: 0 }
    }

    /// The shard for `key` if this worker has it: the fast way.
    pub(super) fn get<L: LabelSet>(&self, key: &K, family: &Family<L, N>) -> Option<&Arc<Shard<N>>> {
        if let Some(shard) = self.known.get(key) {
            return (!shard.is_retired()).then_some(shard);
        }
        let other = self.other.as_ref()?;
        let current = self.expiries == family.expiries.load(Ordering::Relaxed);
        (current && self.refused.contains(key)).then_some(other)
    }

    /// The shard for `key`, whose labels are `labels`: the slow way, with the registry's lock.
    pub(super) fn resolve<L: LabelSet>(&mut self, key: K, labels: L, family: &Family<L, N>) -> Arc<Shard<N>> {
        let expiries = family.expiries.load(Ordering::Relaxed);
        if self.expiries != expiries {
            self.expiries = expiries;
            self.refused.clear();
            self.known.retain(|_, shard| !shard.is_retired());
        }
        // Several keys may have the same labels; this keeps the map in proportion to the series all the same.
        if self.known.len() >= 4 * family.max.max(1) || self.refused.len() >= family.max.max(1) {
            self.forget();
        }
        if let Some(shard) = family.shard(self.worker, labels) {
            self.known.insert(key, Arc::clone(&shard));
            return shard;
        }
        self.refused.insert(key);
        let worker = self.worker;
        Arc::clone(self.other.get_or_insert_with(|| lock(&family.inner).other.shard(worker)))
    }

    /// Forgets all keys: what they stand for may have changed.
    pub(super) fn forget(&mut self) {
        self.known.clear();
        self.refused.clear();
    }
}
