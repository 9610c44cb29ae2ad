//! Open-loop traffic over endpoints of given latencies, in simulated time.

use super::*;
use crate::balance::context::Tick;
use crate::balance::ewma::PeakEwma;
use crate::upstream::endpoint::ActiveRequest;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

const ENDPOINTS: usize = 10;
/// Between two requests, in microseconds.
const INTERVAL: u64 = 1_000;
const REQUESTS: u64 = 60_000;
/// Latency of a healthy endpoint: 10 ms, a tenth more or less.
const HEALTHY: u64 = 10_000;

/// A request in flight: when it ends and when it began, in microseconds.
type Flight = Reverse<(u64, u64, usize)>;

struct Result {
    /// Latencies, sorted.
    latencies: Vec<u64>,
    /// Requests that the slow endpoint got.
    slow: usize,
}

impl Result {
    fn p99(&self) -> u64 {
        self.latencies[self.latencies.len() * 99 / 100]
    }
}

/// The last of ten endpoints answers `slowdown` times slower than the others.
fn run(policy: LbPolicy, slowdown: u64, seed: u64) -> Result {
    run_of(ENDPOINTS, policy, slowdown, seed)
}

fn run_of(endpoints: usize, policy: LbPolicy, slowdown: u64, seed: u64) -> Result {
    let set = set(&lb(policy), &vec![(1, 0, UP); endpoints]);
    let mut worker = Worker::new(seed);
    let mut noise = fastrand::Rng::with_seed(seed + 1);
    let (mut flights, mut active) = (BinaryHeap::<Flight>::new(), Vec::<Option<ActiveRequest>>::new());
    let mut result = Result { latencies: Vec::new(), slow: 0 };
    let mut land = |upto: u64, flights: &mut BinaryHeap<Flight>, active: &mut Vec<Option<ActiveRequest>>| {
        while flights.peek().is_some_and(|Reverse((end, ..))| *end <= upto) {
            let Some(Reverse((end, start, id))) = flights.pop() else { break };
            let done = active[id].take().unwrap();
            if let LbPolicy::PeakEwma(ewma) = policy {
                let took = Duration::from_micros(end - start);
                ewma.observe(done.endpoint().state.latency(), took, tick(end));
            }
            result.latencies.push(end - start);
        }
    };
    for i in 0..REQUESTS {
        let now = i * INTERVAL;
        land(now, &mut flights, &mut active);
        let context = LbContext { now: tick(now), ..LbContext::default() };
        let endpoint = set.pick(&mut worker.cursor, &mut worker.rng, &context).unwrap();
        let slow = usize::from(endpoint.spec.address.port()) == endpoints;
        result.slow += usize::from(slow);
        let took = HEALTHY * noise.u64(90..=110) / 100 * if slow { slowdown } else { 1 };
        flights.push(Reverse((now + took, now, active.len())));
        active.push(Some(endpoint.begin()));
    }
    land(u64::MAX, &mut flights, &mut active);
    result.latencies.sort_unstable();
    result
}

fn tick(micros: u64) -> Tick {
    Tick(u32::try_from(micros / 1_000 % u64::from(u32::MAX)).unwrap())
}

/// The acceptance of peak EWMA: the p99 with one slow endpoint is at most 1.5 times the p99 with none.
#[test]
fn peak_ewma_hides_an_endpoint_that_is_twenty_times_slower() {
    for seed in 0..5 {
        let healthy = run(EWMA, 1, seed);
        let slowed = run(EWMA, 20, seed);
        assert_eq!(healthy.latencies.len(), slowed.latencies.len());
        assert!(
            slowed.p99() * 2 <= healthy.p99() * 3,
            "seed {seed}: {} µs against {} µs, {} requests to the slow one",
            slowed.p99(),
            healthy.p99(),
            slowed.slow
        );
        // It is tried again from time to time all the same.
        assert!(slowed.slow > 1, "seed {seed}: {}", slowed.slow);
    }
}

/// Also of two or three: both that are compared are never the same one.
#[test]
fn peak_ewma_works_with_few_endpoints() {
    for endpoints in [2, 3] {
        let (healthy, slowed) = (run_of(endpoints, EWMA, 1, 1), run_of(endpoints, EWMA, 20, 1));
        assert!(slowed.p99() * 2 <= healthy.p99() * 3, "{endpoints}: {} µs", slowed.p99());
    }
}

#[test]
fn round_robin_does_not_and_least_request_does_in_part() {
    let (turn, least, ewma) = (run(LbPolicy::RoundRobin, 20, 7), run(LEAST, 20, 7), run(EWMA, 20, 7));
    assert_eq!(turn.slow, usize::try_from(REQUESTS).unwrap() / ENDPOINTS);
    assert!(turn.p99() > 15 * HEALTHY);
    assert!(least.slow * 3 < turn.slow && ewma.slow * 10 < least.slow, "{} {}", least.slow, ewma.slow);
}

/// Ten endpoints of equal latency get equal shares, also when one of them is new.
#[test]
fn equals_get_equal_shares() {
    let result = run(EWMA, 1, 3);
    let share = result.slow as f64 / REQUESTS as f64;
    assert!((0.08..0.12).contains(&share), "{share}");
}

#[test]
fn an_endpoint_that_refuses_at_once_gets_little() {
    let policy = PeakEwma { decay: Duration::from_secs(10), failure_penalty: Duration::from_secs(1) };
    let set = set(&lb(LbPolicy::PeakEwma(policy)), &[(1, 0, UP); 4]);
    let mut worker = Worker::new(5);
    let mut refused = 0;
    for i in 0..10_000_u64 {
        let now = tick(i * INTERVAL);
        let context = LbContext { now, ..LbContext::default() };
        let endpoint = set.pick(&mut worker.cursor, &mut worker.rng, &context).unwrap();
        let bad = endpoint.spec.address.port() == 4;
        refused += usize::from(bad);
        let took = if bad { Duration::from_micros(50) } else { Duration::from_millis(5) };
        if bad {
            policy.observe_failure(endpoint.state.latency(), took, now);
        } else {
            policy.observe(endpoint.state.latency(), took, now);
        }
    }
    assert!((1..20).contains(&refused), "{refused}");
}
