//! Sidecars that come and go, with answers that are late and lost: what they let through together, by the data plane's own buckets.

use std::sync::Arc;

use proptest::prelude::*;
use remora_proxy::traffic::limit::bucket::BucketSpec;
use remora_proxy::traffic::limit::quota::{Lead, Meter, MeterKey, Strategy as Rule, Tracker, Usage};
use tokio::time::Instant;

use super::pool::{Answer, Demand, GRACE, Id, Pool};
use super::*;

const STEP: Duration = Duration::from_millis(20);

struct Sidecar {
    id: Id,
    tracker: Tracker,
    /// An answer, and when it comes.
    on_its_way: Vec<(Instant, Answer)>,
}

impl Sidecar {
    fn new(id: Id, now: Instant) -> Self {
        let key = MeterKey {
            cluster: "control".into(),
            authority: "control".into(),
            domain: "shop".into(),
            bucket: BucketKey::new(),
        };
        let lead = Lead { interval: Duration::from_secs(1), unassigned: Rule::DenyAll, expired: None };
        let meter = Arc::new(Meter::new(key, &lead, now));
        Self { id, tracker: Tracker::new(meter, Arc::new(lead), now), on_its_way: Vec::new() }
    }

    /// One step: how many of `requests` go on.
    fn step(&mut self, requests: u32, now: Instant) -> u32 {
        let (come, later) = self.on_its_way.drain(..).partition(|(at, _)| *at <= now);
        self.on_its_way = later;
        let come: Vec<(Instant, Answer)> = come;
        for (_, answer) in come {
            match answer {
                Answer::Abandon => self.tracker.abandon(now),
                Answer::Use(share) if share.max == 0 => {
                    self.tracker.assign(Rule::DenyAll, Some(pool::TTL), now);
                }
                Answer::Use(share) => {
                    let spec =
                        BucketSpec { max: share.max, per_fill: share.per_fill, interval: share.interval };
                    self.tracker.assign(Rule::Tokens(spec), Some(pool::TTL), now);
                }
            }
        }
        self.tracker.turn(now);
        (0..requests).map(|_| u32::from(self.tracker.meter().take(now))).sum()
    }

    /// Reports, if it is time: the answer comes within the grace, or never.
    fn report(&mut self, pool: &mut Pool, rng: &mut Rng, now: Instant) {
        self.tracker.turn(now);
        let Some(Usage { elapsed, allowed, denied }) = self.tracker.report(now) else { return };
        let answer = pool.report(self.id, Demand { requests: allowed + denied, elapsed }, now);
        if let Some(answer) = answer
            && rng.below(10) > 0
        {
            let most = u64::try_from((GRACE - STEP).as_millis()).unwrap_or(u64::MAX);
            self.on_its_way.push((now + Duration::from_millis(rng.below(most)), answer));
        }
    }
}

/// Numbers that look random (SplitMix64).
struct Rng(u64);

impl Rng {
    const fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)) % most
    }
}

/// The most that goes on beyond the limit in any span of time, and all that goes on. With `calm` 1 a sidecar comes or goes every three
/// seconds, and each changes what it wants every eight.
fn simulated(limit: Limit, seed: u64, steps: u32, calm: u64) -> (f64, u64) {
    let (start, mut rng) = (Instant::now(), Rng(seed));
    let mut pool = Pool::new(limit, start);
    let mut sidecars: Vec<Sidecar> = Vec::new();
    let (mut next, mut over, mut most, mut all) = (0, 0.0_f64, 0.0_f64, 0);
    let rate = f64::from(limit.requests) / limit.per.as_secs_f64();
    for step in 0..steps {
        let now = start + STEP * step;
        if sidecars.len() < 6 && rng.below(40 * calm) == 0 || sidecars.is_empty() {
            sidecars.push(Sidecar::new(next, now));
            next += 1;
        }
        if rng.below(150 * calm) == 0 {
            let gone = sidecars.swap_remove(usize::try_from(rng.below(sidecars.len() as u64)).unwrap());
            pool.leave(gone.id, now);
        }
        let mut passed = 0;
        for sidecar in &mut sidecars {
            // Each has its times of many requests, and of none.
            let busy = (u64::from(step) / (400 * calm) + sidecar.id).is_multiple_of(3);
            let requests = if busy { rng.below(8) } else { rng.below(40) / 39 };
            passed += sidecar.step(u32::try_from(requests).unwrap(), now);
            sidecar.report(&mut pool, &mut rng, now);
        }
        over = (over - rate * STEP.as_secs_f64()).max(0.0) + f64::from(passed);
        (most, all) = (most.max(over), all + u64::from(passed));
    }
    (most, all)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In any span no more goes on than the limit, one interval's burst, and a request of each that may be there: buckets hold one at least.
    #[test]
    fn together_they_stay_within_the_limit_at_any_time(requests in 1u32..200, seconds in 1u64..4, seed: u64) {
        let limit = Limit { requests, per: Duration::from_secs(seconds) };
        let (most, _) = simulated(limit, seed, 2000, 1);
        prop_assert!(most <= f64::from(requests) + 6.0 + 1e-6, "{most} at once of {limit:?}");
    }
}

#[test]
fn most_of_the_limit_is_used() {
    let limit = Limit { requests: 100, per: Duration::from_secs(1) };
    let used: Vec<u64> = (0..8).map(|seed| simulated(limit, seed, 10_000, 10).1).collect();
    // Of 20,000 in 200 s. Nobody wants them in some of these, and one answer of ten is lost.
    assert!(used.iter().all(|used| *used > 12_000), "{used:?}");
}
