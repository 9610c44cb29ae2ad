use super::*;
use crate::upstream::endpoint::{Assignment, EndpointSet, EndpointSpec, HealthStatus, Locality};
use proptest::prelude::*;
use std::collections::HashMap;
use std::net::SocketAddr;

mod simulator;
mod starts;

/// (weight, priority, health) of endpoint n; its port is n.
type Row = (u32, u32, HealthStatus);

const UP: HealthStatus = HealthStatus::Healthy;
const DOWN: HealthStatus = HealthStatus::Unhealthy;

fn spec(n: usize, (weight, priority, health): Row) -> EndpointSpec {
    let group = Arc::new(LocalityGroup { priority, ..LocalityGroup::default() });
    let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(n).unwrap()));
    EndpointSpec { weight, group, health, ..EndpointSpec::new(address) }
}

fn set(lb: &LbSpec, rows: &[Row]) -> EndpointSet {
    let specs: Vec<_> = rows.iter().enumerate().map(|(n, row)| spec(n + 1, *row)).collect();
    EndpointSet::update(&EndpointSet::empty(lb), &specs.into(), lb)
}

fn lb(policy: LbPolicy) -> LbSpec {
    LbSpec { policy, ..LbSpec::default() }
}

const LEAST: LbPolicy = LbPolicy::LeastRequest { choices: Choices::Random(2), bias: 1.0 };
const FULL: LbPolicy = LbPolicy::LeastRequest { choices: Choices::All, bias: 1.0 };
const EWMA: LbPolicy = LbPolicy::PeakEwma(PeakEwma {
    decay: std::time::Duration::from_secs(10),
    failure_penalty: std::time::Duration::from_secs(1),
});
const MAGLEV: LbPolicy = LbPolicy::ConsistentHash(ConsistentHash {
    table: consistent::HashTable::Maglev(1031),
    use_hostname: false,
    balance_factor: None,
});
const POLICIES: [LbPolicy; 6] = [LbPolicy::RoundRobin, LEAST, FULL, LbPolicy::Random, EWMA, MAGLEV];

struct Worker {
    cursor: WorkerCursor,
    rng: fastrand::Rng,
}

impl Worker {
    fn new(seed: u64) -> Self {
        Self { cursor: WorkerCursor::default(), rng: fastrand::Rng::with_seed(seed) }
    }

    fn pick(&mut self, set: &EndpointSet) -> Option<u16> {
        set.pick(&mut self.cursor, &mut self.rng, &LbContext::default()).map(|e| e.spec.address.port())
    }

    /// Picks by port.
    fn count(&mut self, set: &EndpointSet, picks: usize) -> HashMap<u16, usize> {
        let mut seen = HashMap::new();
        for _ in 0..picks {
            *seen.entry(self.pick(set).unwrap()).or_default() += 1;
        }
        seen
    }
}

#[test]
fn round_robin_goes_round_and_workers_start_at_different_places() {
    let set = set(&lb(LbPolicy::RoundRobin), &[(1, 0, UP); 4]);
    let mut firsts = std::collections::HashSet::new();
    for seed in 0..32 {
        let mut worker = Worker::new(seed);
        let turn: Vec<_> = (0..8).map(|_| worker.pick(&set).unwrap()).collect();
        for pair in turn.windows(2) {
            assert_eq!(pair[1], pair[0] % 4 + 1);
        }
        firsts.insert(turn[0]);
    }
    assert_eq!(firsts.len(), 4);
}

#[test]
fn weights_are_kept_by_every_policy() {
    let ewma = LbPolicy::PeakEwma(PeakEwma::default());
    for policy in [LbPolicy::RoundRobin, LEAST, FULL, LbPolicy::Random, ewma] {
        let set = set(&lb(policy), &[(1, 0, UP), (2, 0, UP), (7, 0, UP)]);
        let seen = Worker::new(7).count(&set, 20_000);
        for (port, share) in [(1, 0.1), (2, 0.2), (3, 0.7)] {
            let got = seen[&port] as f64 / 20_000.0;
            assert!((got - share).abs() < 0.02, "{policy:?}: {port} got {got}");
        }
    }
}

/// A canary: requests that come one by one do not all go to it because it is a little quicker.
#[test]
fn a_quicker_endpoint_of_little_weight_stays_one() {
    let set = set(&lb(EWMA), &[(99, 0, UP), (1, 0, UP)]);
    for (endpoint, micros) in set.endpoints().iter().zip([1000, 990]) {
        let took = std::time::Duration::from_micros(micros);
        PeakEwma::default().observe(endpoint.state.latency(), took, context::Tick(0));
    }
    let seen = Worker::new(7).count(&set, 20_000);
    assert!(seen[&2] < 20_000 * 3 / 100, "{seen:?}");
}

/// Round robin of a set that grows goes on and does not favour the first endpoints.
#[test]
fn a_cursor_outlives_its_set() {
    let spec = lb(LbPolicy::RoundRobin);
    let mut worker = Worker::new(1);
    let mut seen: HashMap<u16, usize> = HashMap::new();
    for round in 0..600 {
        let set = set(&spec, &vec![(1, 0, UP); 3 + round / 10 % 2]);
        *seen.entry(worker.pick(&set).unwrap()).or_default() += 1;
    }
    assert!(seen[&1] < 2 * seen[&2] && seen[&2] < 2 * seen[&1], "{seen:?}");
}

/// Requests arrive at a fixed rate; one of ten endpoints is twenty times slower. Least request gives it far less than its share;
/// round robin cannot.
#[test]
fn least_request_avoids_a_slow_endpoint() {
    let share = |policy| {
        let set = set(&lb(policy), &[(1, 0, UP); 10]);
        let mut worker = Worker::new(3);
        let mut running: Vec<(u32, crate::upstream::endpoint::ActiveRequest)> = Vec::new();
        let mut slow = 0;
        for tick in 0..20_000_u32 {
            running.retain(|(end, _)| *end > tick);
            let endpoint = set.pick(&mut worker.cursor, &mut worker.rng, &LbContext::default()).unwrap();
            let is_slow = endpoint.spec.address.port() == 10;
            slow += u32::from(is_slow);
            running.push((tick + if is_slow { 200 } else { 10 }, endpoint.begin()));
        }
        drop(running);
        assert!(set.endpoints().iter().all(|e| e.state.active() == 0));
        f64::from(slow) / 20_000.0
    };
    assert!((share(LbPolicy::RoundRobin) - 0.1).abs() < 0.001);
    assert!(share(LEAST) < 0.04, "{}", share(LEAST));
    assert!(share(FULL) < 0.02, "{}", share(FULL));
}

#[test]
fn the_bias_says_how_much_load_counts() {
    let busy_share = |bias| {
        let policy = LbPolicy::LeastRequest { choices: Choices::Random(2), bias };
        let set = set(&lb(policy), &[(1, 0, UP), (2, 0, UP)]);
        let _busy: Vec<_> = (0..10).map(|_| set.endpoints()[1].begin()).collect();
        let seen = Worker::new(5).count(&set, 3_000);
        seen.get(&2).copied().unwrap_or(0) as f64 / 3_000.0
    };
    assert!((busy_share(0.0) - 0.667).abs() < 0.03);
    assert!((busy_share(1.0) - 0.444).abs() < 0.03);
}

#[test]
fn retries_go_elsewhere_as_long_as_there_is_an_elsewhere() {
    for policy in POLICIES {
        let set = set(&lb(policy), &[(1, 0, UP), (5, 0, UP), (1, 1, UP)]);
        let mut worker = Worker::new(11);
        let keys: Vec<_> = set.endpoints().iter().map(|e| e.key).collect();
        for _ in 0..200 {
            let mut pick = |exclude: &[EndpointKey]| {
                set.pick(&mut worker.cursor, &mut worker.rng, &LbContext::avoiding(exclude))
                    .map(|e| e.spec.address.port())
            };
            assert_eq!(pick(&[keys[1]]), Some(1));
            assert_eq!(pick(&[keys[0]]), Some(2));
            // Everybody of the priority failed: better one of them than nobody.
            assert!(matches!(pick(&[keys[0], keys[1]]), Some(1 | 2)));
        }
    }
}

#[test]
fn an_ejected_endpoint_is_avoided_before_the_set_is_rebuilt() {
    for policy in POLICIES {
        let spec = lb(policy);
        let set = set(&spec, &[(1, 0, UP), (1, 0, UP), (3, 0, UP)]);
        assert!(set.endpoints()[2].state.set_ejected(true));
        let seen = Worker::new(13).count(&set, 300);
        assert!(!seen.contains_key(&3) && seen.len() == 2, "{policy:?} {seen:?}");
        // All out: panic mode, even before the rebuild; none when panic mode is off.
        set.endpoints().iter().for_each(|e| assert!(e.state.set_failed_health_check(true)));
        assert_eq!(Worker::new(13).count(&set, 300).len(), 3);
        let strict = set.rebalance(&LbSpec { panic_threshold: 0, ..spec.clone() });
        assert_eq!(Worker::new(13).pick(&strict), None);
    }
}

#[test]
fn unhealthy_endpoints_are_used_only_in_panic_mode() {
    let spec = LbSpec::default();
    let third_down = set(&spec, &[(1, 0, UP), (1, 0, UP), (1, 0, DOWN)]);
    assert!(!third_down.in_panic());
    assert_eq!(Worker::new(1).count(&third_down, 100).len(), 2);
    let most_down = set(&spec, &[(1, 0, UP), (1, 0, DOWN), (1, 0, HealthStatus::Draining)]);
    assert!(most_down.in_panic());
    assert_eq!(Worker::new(1).count(&most_down, 100).len(), 3);
    let strict = most_down.rebalance(&LbSpec { panic_threshold: 0, ..spec.clone() });
    assert_eq!(Worker::new(1).count(&strict, 100).len(), 1);
    let failing = most_down.rebalance(&LbSpec { fail_on_panic: true, ..spec.clone() });
    assert_eq!(Worker::new(1).pick(&failing), None);
    assert_eq!(Worker::new(1).pick(&set(&spec, &[])), None);
}

#[test]
fn traffic_spills_to_the_next_priority_by_health() {
    // Half of P0 is healthy: 50 % * 1.4 = 70 % of the traffic.
    let rows: Vec<Row> = [[(1, 0, UP); 5], [(1, 0, DOWN); 5], [(1, 1, UP); 5]].concat();
    let seen = Worker::new(17).count(&set(&LbSpec::default(), &rows), 10_000);
    let first: usize = (1..=5).map(|p| seen[&p]).sum();
    assert!((first as f64 / 10_000.0 - 0.7).abs() < 0.02, "{first}");
    assert!((6..=10).all(|p| !seen.contains_key(&p)));
}

#[test]
fn degraded_endpoints_help_out() {
    let rows = [(1, 0, UP), (1, 0, HealthStatus::Degraded), (1, 0, DOWN), (1, 0, DOWN)];
    // 35 % + 35 % of 70 %: half each.
    let seen = Worker::new(19).count(&set(&LbSpec { panic_threshold: 0, ..LbSpec::default() }, &rows), 4_000);
    assert!((seen[&1] as f64 / 4_000.0 - 0.5).abs() < 0.03, "{seen:?}");
    assert_eq!(seen.len(), 2);
}

fn localities(rows: &[(&str, Option<u32>, HealthStatus)]) -> Assignment {
    let specs = rows.iter().enumerate().map(|(n, (zone, weight, health))| {
        let locality = Locality { zone: (*zone).into(), ..Locality::default() };
        let group = Arc::new(LocalityGroup { locality, priority: 0, weight: *weight });
        EndpointSpec { group, ..spec(n + 1, (1, 0, *health)) }
    });
    specs.collect::<Vec<_>>().into()
}

#[test]
fn locality_weights_decide_before_endpoints_do() {
    let weighted = LbSpec { locality_weighted: true, ..LbSpec::default() };
    // One endpoint in zone a, three in b; a has four times the weight; c has no weight and gets nothing.
    let rows =
        [("a", Some(4), UP), ("b", Some(1), UP), ("b", Some(1), UP), ("b", Some(1), UP), ("c", None, UP)];
    let plain = EndpointSet::update(&EndpointSet::empty(&weighted), &localities(&rows), &weighted);
    let seen = Worker::new(23).count(&plain, 1_000);
    assert_eq!(seen[&1], 800);
    assert!(!seen.contains_key(&5));
    // Without locality_weighted_lb_config the weights mean nothing.
    let seen = Worker::new(23).count(&plain.rebalance(&LbSpec::default()), 1_000);
    assert_eq!(seen[&1], 200);
    // Half of zone a is down: its weight falls to 4 * 0.5 * 1.4 = 2.8.
    let mut rows = rows.to_vec();
    rows.push(("a", Some(4), DOWN));
    let half = EndpointSet::update(&EndpointSet::empty(&weighted), &localities(&rows), &weighted);
    let seen = Worker::new(23).count(&half, 3_800);
    assert!((2_798..=2_802).contains(&seen[&1]), "{seen:?}");
}

prop_compose! {
    fn rows()(
        rows in prop::collection::vec((1_u32..20, 0_u32..3, prop_oneof![Just(UP), Just(UP), Just(DOWN), Just(HealthStatus::Degraded)]), 0..30)
    ) -> Vec<Row> {
        rows
    }
}

proptest! {
    #[test]
    fn a_pick_finds_somebody_whenever_there_is_somebody(
        rows in rows(), policy in 0_usize..POLICIES.len(), seed: u64, threshold in 0_u32..=100,
        out in prop::collection::vec(0_usize..30, 0..5), exclude in prop::collection::vec(0_usize..30, 0..4),
    ) {
        let spec = LbSpec { policy: POLICIES[policy], panic_threshold: threshold, ..LbSpec::default() };
        let set = set(&spec, &rows);
        let listed = |n: &usize| set.endpoints().get(*n);
        out.iter().filter_map(listed).for_each(|e| {
            e.state.set_ejected(true);
        });
        let exclude: Vec<_> = exclude.iter().filter_map(listed).map(|e| e.key).collect();
        let usable = |e: &Endpoint| e.health() != Health::Unhealthy;
        let mut worker = Worker::new(seed);
        for _ in 0..20 {
            let picked = set.pick(&mut worker.cursor, &mut worker.rng, &LbContext::avoiding(&exclude));
            if threshold > 0 {
                prop_assert_eq!(picked.is_some(), !rows.is_empty());
            } else {
                prop_assert!(picked.is_none_or(|e| usable(e)));
            }
        }
        // A rebuilt set knows the health exactly.
        let rebuilt = set.rebalance(&spec);
        let picked = rebuilt.pick(&mut worker.cursor, &mut worker.rng, &LbContext::avoiding(&exclude));
        let anybody = rebuilt.endpoints().iter().any(|e| usable(e));
        prop_assert!(picked.is_some() || !anybody);
        if let Some(picked) = picked.filter(|_| !rebuilt.in_panic()) {
            prop_assert!(usable(picked));
        }
    }

    #[test]
    fn round_robin_is_exact_over_a_turn(weights in prop::collection::vec(1_u32..30, 1..20), seed: u64) {
        let rows: Vec<Row> = weights.iter().map(|w| (*w, 0, UP)).collect();
        let set = set(&lb(LbPolicy::RoundRobin), &rows);
        let total: u32 = weights.iter().sum();
        let seen = Worker::new(seed).count(&set, total as usize);
        for (n, weight) in weights.iter().enumerate() {
            let got = seen.get(&u16::try_from(n + 1).unwrap()).copied().unwrap_or(0);
            prop_assert_eq!(got, *weight as usize);
        }
    }
}
