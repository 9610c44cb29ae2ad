//! Picks among endpoints of equal standing.

use std::sync::Arc;

use tokio::time::Instant;

use super::consistent::{ConsistentHash, Entry, HashIndex};
use super::context::{LbContext, Tick};
use super::ewma::PeakEwma;
use super::slow_start::SlowStart;
use super::weights::{Alias, Schedule};
use super::{Choices, Filter, LbPolicy, LbSpec, WorkerCursor};
use crate::upstream::endpoint::Endpoint;

/// Endpoints of equal standing with the index that the policy needs.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Indices into the set; None when the bucket is the whole set.
    members: Option<Box<[u32]>>,
    len: u32,
    slot: u32,
    picker: Picker,
    slow: Option<Starts>,
}

/// How endpoints start, and when the first and the last of them did.
#[derive(Debug, Clone, Copy)]
struct Starts {
    slow: SlowStart,
    first: Tick,
    last: Tick,
}

impl Starts {
    /// The greatest share of any endpoint: where all start at once none of them waits for another. None: all have their whole weight.
    fn best(&self, now: Tick) -> Option<f64> {
        (self.slow.share(self.last, now) < 1.0).then(|| self.slow.share(self.first, now))
    }
}

/// One variant a policy.
#[derive(Debug)]
enum Picker {
    RoundRobin(Schedule),
    LeastRequest { choices: Choices, bias: f64, sample: Sample },
    Random(Sample),
    PeakEwma(PeakEwma, Sample),
    Hash(HashIndex),
}

/// A random entry, in proportion to the weights.
#[derive(Debug)]
enum Sample {
    Equal(u32),
    Weighted(Alias),
}

impl Sample {
    fn new(weights: &[u32]) -> Self {
        if weights.windows(2).all(|w| w[0] == w[1]) {
            Self::Equal(u32::try_from(weights.len()).unwrap_or(u32::MAX))
        } else {
            Self::Weighted(Alias::new(weights))
        }
    }

    fn draw(&self, rng: &mut fastrand::Rng) -> u32 {
        match self {
            Self::Equal(n) => rng.u32(0..*n),
            Self::Weighted(table) => table.draw(rng.u64(..)),
        }
    }
}

/// How often a policy that picks by chance tries before it looks at all endpoints in turn.
const TRIES: u32 = 4;

/// The same while some endpoints start slowly: most draws may fall on those.
const SLOW_TRIES: u32 = 16;

impl Bucket {
    /// The index over `members`, which is not empty, of any policy but consistent hashing.
    pub(super) fn build(lb: &LbSpec, endpoints: &[Arc<Endpoint>], members: Vec<u32>, slot: u32) -> Self {
        let all = || members.iter().filter_map(|i| endpoints.get(*i as usize));
        let weights: Vec<u32> = all().map(|e| e.spec.weight).collect();
        let picker = match &lb.policy {
            LbPolicy::LeastRequest { choices, bias } => {
                Picker::LeastRequest { choices: *choices, bias: *bias, sample: Sample::new(&weights) }
            }
            LbPolicy::Random => Picker::Random(Sample::new(&weights)),
            LbPolicy::PeakEwma(ewma) => Picker::PeakEwma(*ewma, Sample::new(&weights)),
            // A table needs shares: see `Self::hashed`.
            LbPolicy::RoundRobin | LbPolicy::ConsistentHash(_) => {
                Picker::RoundRobin(Schedule::rotation(&weights))
            }
        };
        let slow = lb.slow_start.map(|slow| {
            let now = Tick::at(Instant::now());
            let age = |since: &Tick| now.since(*since);
            let (first, last) = (
                all().map(|e| e.state.since()).max_by_key(age),
                all().map(|e| e.state.since()).min_by_key(age),
            );
            Starts { slow, first: first.unwrap_or_default(), last: last.unwrap_or_default() }
        });
        Self { slow, ..Self::with(picker, endpoints, members, slot) }
    }

    /// The index of consistent hashing over members with these shares. None when there is none.
    pub(super) fn hashed(
        spec: &ConsistentHash,
        endpoints: &[Arc<Endpoint>],
        members: Vec<u32>,
        shares: &[f64],
    ) -> Option<Self> {
        let named = members.iter().filter_map(|i| endpoints.get(*i as usize)).zip(shares);
        let entries: Vec<_> = named.map(|(e, share)| Entry::new(e, *share, spec.use_hostname)).collect();
        if entries.is_empty() {
            return None;
        }
        let picker = Picker::Hash(HashIndex::build(spec, &entries));
        Some(Self::with(picker, endpoints, members, 0))
    }

    fn with(picker: Picker, endpoints: &[Arc<Endpoint>], members: Vec<u32>, slot: u32) -> Self {
        let len = u32::try_from(members.len()).unwrap_or(u32::MAX);
        let members = (members.len() != endpoints.len()).then(|| members.into());
        Self { members, len, slot, picker, slow: None }
    }

    /// An endpoint that `filter` allows, if the bucket has one.
    pub(super) fn pick<'e>(
        &self,
        endpoints: &'e [Arc<Endpoint>],
        cursor: &mut WorkerCursor,
        rng: &mut fastrand::Rng,
        filter: Filter<'_>,
    ) -> Option<&'e Arc<Endpoint>> {
        let now = filter.context.now;
        let slow = self.slow.and_then(|starts| Some((starts.slow, starts.best(now)?)));
        let set = Members { bucket: self, endpoints, filter, slow };
        let picked = self.choose(&set, cursor, rng);
        if picked.is_none() && slow.is_some() {
            return self.choose(&Members { slow: None, ..set }, cursor, rng);
        }
        picked
    }

    fn choose<'e>(
        &self,
        set: &Members<'_, 'e>,
        cursor: &mut WorkerCursor,
        rng: &mut fastrand::Rng,
    ) -> Option<&'e Arc<Endpoint>> {
        match &self.picker {
            Picker::RoundRobin(schedule) => self.in_turn(set, schedule, cursor, rng),
            Picker::LeastRequest { choices: Choices::Random(k), bias, sample } => {
                let mut best: Option<&Arc<Endpoint>> = None;
                for _ in 0..*k {
                    if let Some(other) = set.draw(sample, rng) {
                        best = Some(lighter(best, other, sample, *bias));
                    }
                }
                best.or_else(|| set.scan(rng.u32(0..self.len)))
            }
            Picker::LeastRequest { choices: Choices::All, bias, sample } => {
                let first = set.draw(sample, rng);
                // From anywhere, so that of equals not always the same one is the first.
                let start = rng.u32(0..self.len);
                let all = (0..self.len).filter_map(|i| set.admitted((start + i) % self.len, rng));
                all.fold(first, |best, other| Some(lighter(best, other, sample, *bias)))
            }
            Picker::Random(sample) => (0..TRIES)
                .find_map(|_| set.allowed(sample.draw(rng)))
                .or_else(|| set.scan(rng.u32(0..self.len))),
            Picker::PeakEwma(ewma, sample) => match set.two(sample, rng) {
                (Some(one), Some(other)) => Some(quicker(one, other, ewma, set.filter.context.now)),
                (one, other) => one.or(other).or_else(|| set.scan(rng.u32(0..self.len))),
            },
            Picker::Hash(index) => {
                let LbContext { hash, active, .. } = *set.filter.context;
                index.pick(hash.unwrap_or_default(), active, self.len, |entry| set.allowed(entry))
            }
        }
    }

    fn in_turn<'e>(
        &self,
        set: &Members<'_, 'e>,
        schedule: &Schedule,
        cursor: &mut WorkerCursor,
        rng: &mut fastrand::Rng,
    ) -> Option<&'e Arc<Endpoint>> {
        let position = cursor.next(self.slot, rng);
        if let Some(endpoint) = set.admitted(schedule.at(position), rng) {
            return Some(endpoint);
        }
        for step in 1..schedule.period().unwrap_or(TRIES) {
            if let Some(endpoint) = set.admitted(schedule.at(position.wrapping_add(step)), rng) {
                cursor.skip(self.slot, step);
                return Some(endpoint);
            }
        }
        if schedule.period().is_some() { None } else { set.scan(rng.u32(0..self.len)) }
    }
}

/// The one with less load for its weight; the first when they are equal, so that idle endpoints are picked in
/// proportion to their weights.
fn lighter<'e>(
    best: Option<&'e Arc<Endpoint>>,
    other: &'e Arc<Endpoint>,
    sample: &Sample,
    bias: f64,
) -> &'e Arc<Endpoint> {
    let Some(best) = best else { return other };
    let (left, right) = (best.state.active(), other.state.active());
    let less = match sample {
        Sample::Equal(_) => right < left,
        Sample::Weighted(_) => {
            let cost = |active: u32, weight: u32| {
                let active = f64::from(active);
                (if bias == 1.0 { active } else { active.powf(bias) }) / f64::from(weight.max(1))
            };
            // With no bias the load does not count at all, and the sample has followed the weights already.
            bias > 0.0 && cost(right, other.spec.weight) < cost(left, best.spec.weight)
        }
    };
    if less { other } else { best }
}

/// The one with the lower latency times load. One of which nothing is known is taken to be as quick as the other: it gets its share
/// as long as its answers come, and no more than that.
fn quicker<'e>(
    one: &'e Arc<Endpoint>,
    other: &'e Arc<Endpoint>,
    ewma: &PeakEwma,
    now: Tick,
) -> &'e Arc<Endpoint> {
    let latency = |e: &Endpoint| ewma.estimate(e.state.latency(), now);
    let (left, right) = match (latency(one), latency(other)) {
        (Some(left), Some(right)) => (f64::from(left), f64::from(right)),
        _ => (1.0, 1.0),
    };
    // They were drawn by weight: what is idle keeps that order.
    let cost = |latency: f64, e: &Endpoint| {
        latency * (f64::from(e.state.active()) / f64::from(e.spec.weight.max(1)) + 1.0)
    };
    if cost(right, other) < cost(left, one) { other } else { one }
}

/// The members of a bucket as the filter shows them.
struct Members<'b, 'e> {
    bucket: &'b Bucket,
    endpoints: &'e [Arc<Endpoint>],
    filter: Filter<'b>,
    /// Some of them start slowly; the share of the one that is furthest.
    slow: Option<(SlowStart, f64)>,
}

impl<'e> Members<'_, 'e> {
    fn allowed(&self, entry: u32) -> Option<&'e Arc<Endpoint>> {
        let index = match &self.bucket.members {
            None => entry,
            Some(members) => *members.get(entry as usize)?,
        };
        let endpoint = self.endpoints.get(index as usize)?;
        self.filter.allows(endpoint).then_some(endpoint)
    }

    /// A member that is allowed and, while it starts, whose turn it is as often as its share of the moment says, beside the greatest one.
    fn admitted(&self, entry: u32, rng: &mut fastrand::Rng) -> Option<&'e Arc<Endpoint>> {
        let endpoint = self.allowed(entry)?;
        let Some((slow, best)) = &self.slow else { return Some(endpoint) };
        let share = slow.share(endpoint.state.since(), self.filter.context.now);
        (share >= *best || rng.f64() * best < share).then_some(endpoint)
    }

    /// A random member, if it is admitted.
    fn draw(&self, sample: &Sample, rng: &mut fastrand::Rng) -> Option<&'e Arc<Endpoint>> {
        let tries = if self.slow.is_some() { SLOW_TRIES } else { 1 };
        (0..tries).find_map(|_| self.admitted(sample.draw(rng), rng))
    }

    /// Two random members, another one each if there are two.
    fn two(
        &self,
        sample: &Sample,
        rng: &mut fastrand::Rng,
    ) -> (Option<&'e Arc<Endpoint>>, Option<&'e Arc<Endpoint>>) {
        let first = sample.draw(rng);
        let other = |step: u32| (first + step) % self.bucket.len;
        let second = match (self.bucket.len, sample) {
            (0 | 1, _) => return (self.allowed(first), None),
            (n, Sample::Equal(_)) => other(rng.u32(1..n)),
            // It may be the same: with weights, whom everybody is compared with would be the quickest whatever its weight.
            (_, Sample::Weighted(_)) => sample.draw(rng),
        };
        (self.allowed(first), self.allowed(second))
    }

    fn scan(&self, start: u32) -> Option<&'e Arc<Endpoint>> {
        let n = self.bucket.len;
        (0..n)
            .find_map(|i| self.allowed(u32::try_from((u64::from(start) + u64::from(i)) % u64::from(n)).ok()?))
    }
}
