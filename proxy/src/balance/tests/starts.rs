//! Slow start, sessions, and hashes through lanes.

use super::*;
use crate::balance::context::{OverrideHost, Tick};
use crate::balance::slow_start::SlowStart;
use std::time::Duration;

const WINDOW: Duration = Duration::from_secs(100);

fn slow(policy: LbPolicy) -> LbSpec {
    LbSpec { slow_start: Some(SlowStart { window: WINDOW, aggression: 1.0, min: 0.1 }), ..lb(policy) }
}

fn share_of(set: &EndpointSet, port: u16, now: Tick) -> f64 {
    let mut worker = Worker::new(9);
    let context = LbContext { now, ..LbContext::default() };
    let picks = (0..20_000).filter_map(|_| set.pick(&mut worker.cursor, &mut worker.rng, &context));
    picks.filter(|e| e.spec.address.port() == port).count() as f64 / 20_000.0
}

/// Two endpoints of the same age and a third that is `age` ms old when the others have been there for a long time.
fn with_a_new_one(policy: LbPolicy) -> (EndpointSet, Tick) {
    let set = set(&slow(policy), &[(1, 0, UP); 3]);
    let born = set.endpoints()[2].state.since();
    for old in &set.endpoints()[..2] {
        old.state.starts(Tick(born.0.wrapping_sub(1_000_000)));
    }
    (set.rebalance(&slow(policy)), born)
}

#[test]
fn a_new_endpoint_gets_its_share_little_by_little() {
    for policy in [LbPolicy::RoundRobin, LEAST, FULL] {
        let (set, born) = with_a_new_one(policy);
        let share = |ms: u32| share_of(&set, 3, Tick(born.0.wrapping_add(ms)));
        let (first, half, whole) = (share(0), share(50_000), share(100_000));
        // A tenth of a weight beside two whole ones, half of one, a whole one.
        assert!((first - 0.1 / 2.1).abs() < 0.02, "{policy:?}: {first}");
        assert!((half - 0.5 / 2.5).abs() < 0.02, "{policy:?}: {half}");
        assert!((whole - 1.0 / 3.0).abs() < 0.02, "{policy:?}: {whole}");
    }
}

#[test]
fn endpoints_that_all_are_new_share_as_usual() {
    for policy in [LbPolicy::RoundRobin, LEAST, FULL] {
        let set = set(&slow(policy), &[(1, 0, UP); 4]);
        let now = set.endpoints()[0].state.since();
        for port in 1..=4 {
            let share = share_of(&set, port, now);
            assert!((share - 0.25).abs() < 0.03, "{policy:?}: {port} got {share}");
            // None of them waits for another: turns are turns.
            assert!(policy != LbPolicy::RoundRobin || share == 0.25, "{share}");
        }
    }
}

#[test]
fn who_is_healthy_again_starts_again() {
    let set = set(&slow(LbPolicy::RoundRobin), &[(1, 0, UP); 2]);
    let state = &set.endpoints()[0].state;
    state.starts(Tick(state.since().0.wrapping_sub(1_000_000)));
    let before = state.since();
    state.set_ejected(true);
    state.set_failed_health_check(true);
    state.set_ejected(false);
    assert_eq!(state.since(), before, "it is still out");
    state.set_failed_health_check(false);
    assert!(state.since().since(before) >= 1_000_000);
}

#[test]
fn a_session_goes_to_its_endpoint_while_that_is_healthy() {
    let set = set(&LbSpec::default(), &[(1, 0, UP), (1, 0, UP), (1, 1, UP), (1, 0, DOWN)]);
    let mut worker = Worker::new(1);
    let mut pick = |port: u16, strict, exclude: &[EndpointKey]| {
        let host = Some(OverrideHost { address: SocketAddr::from(([127, 0, 0, 1], port)), strict });
        let context = LbContext { host, ..LbContext::avoiding(exclude) };
        set.pick(&mut worker.cursor, &mut worker.rng, &context).map(|e| e.spec.address.port())
    };
    for _ in 0..20 {
        assert_eq!(pick(2, false, &[]), Some(2));
        assert_eq!(pick(3, false, &[]), Some(3), "whatever its priority");
        assert!(matches!(pick(4, false, &[]), Some(1..=3)), "unhealthy");
        assert!(matches!(pick(9, false, &[]), Some(1..=3)), "gone");
        assert!(matches!(pick(1, false, &[set.endpoints()[0].key]), Some(2 | 3)), "it failed there");
    }
    assert_eq!(pick(2, true, &[]), Some(2));
    assert_eq!((pick(4, true, &[]), pick(9, true, &[])), (None, None));
}

#[test]
fn a_hash_decides_about_everything() {
    let rows: Vec<Row> = [[(1, 0, UP); 3], [(1, 0, DOWN); 3], [(1, 1, UP); 3]].concat();
    let set = set(&lb(MAGLEV), &rows);
    let mut ports = std::collections::HashSet::new();
    for n in 0..300_u64 {
        let hash = Some(hash::xx(&n.to_le_bytes()));
        let context = LbContext { hash, ..LbContext::default() };
        let pick = |seed| {
            let mut worker = Worker::new(seed);
            set.pick(&mut worker.cursor, &mut worker.rng, &context).map(|e| e.spec.address.port()).unwrap()
        };
        assert_eq!(pick(1), pick(2));
        ports.insert(pick(1));
    }
    assert_eq!(ports.len(), 6, "both priorities, healthy endpoints only: {ports:?}");
}

/// Without a hash policy requests spread over everybody.
#[test]
fn a_request_without_a_hash_goes_anywhere() {
    let set = set(&lb(MAGLEV), &[(1, 0, UP); 5]);
    assert_eq!(Worker::new(1).count(&set, 500).len(), 5);
}

#[test]
fn an_ejected_endpoint_moves_only_its_own_keys() {
    let set = set(&lb(MAGLEV), &[(1, 0, UP); 8]);
    let owners = |set: &EndpointSet| -> Vec<u16> {
        let mut worker = Worker::new(1);
        let mut owner = |n: u64| {
            let context = LbContext { hash: Some(hash::xx(&n.to_le_bytes())), ..LbContext::default() };
            set.pick(&mut worker.cursor, &mut worker.rng, &context).map(|e| e.spec.address.port()).unwrap()
        };
        (0..2_000).map(&mut owner).collect()
    };
    let before = owners(&set);
    set.endpoints()[4].state.set_ejected(true);
    for (was, is) in before.iter().zip(owners(&set)) {
        assert!(is != 5 && (is == *was || *was == 5), "{was} became {is}");
    }
}

/// One endpoint in each of two localities, with weights 1 and 3: shares of the table follow them.
#[test]
fn localities_have_their_share_of_a_table() {
    let weighted = LbSpec { locality_weighted: true, ..lb(MAGLEV) };
    let rows = [("a", Some(1), UP), ("b", Some(3), UP), ("b", Some(3), UP), ("c", None, UP)];
    let set = EndpointSet::update(&EndpointSet::empty(&weighted), &localities(&rows), &weighted);
    let seen = Worker::new(3).count(&set, 20_000);
    assert!((seen[&1] as f64 / 20_000.0 - 0.25).abs() < 0.02, "{seen:?}");
    assert!((seen[&2] as f64 / 20_000.0 - 0.375).abs() < 0.02, "{seen:?}");
    assert!(!seen.contains_key(&4));
}

/// Two zones of four endpoints; half of the proxies are in each. This one is in `a`.
#[test]
fn requests_stay_in_the_zone_while_it_can_take_them() {
    let aware = LbSpec { zone: Some(ZoneAware { enabled: 100.0, min_endpoints: 6 }), ..LbSpec::default() };
    let proxies = [("a", None, UP), ("b", None, UP)];
    let proxies = EndpointSet::update(&EndpointSet::empty(&aware), &localities(&proxies), &aware);
    let own = Locality { zone: "a".into(), ..Locality::default() };
    let local = LocalZones::new(own, &proxies).map(Arc::new);
    let rows: Vec<_> = (0..8).map(|i| (if i < 4 { "a" } else { "b" }, None, UP)).collect();
    let unaware = EndpointSet::update(&EndpointSet::empty(&aware), &localities(&rows), &aware);
    assert_eq!(Worker::new(1).count(&unaware, 800).len(), 8, "nothing is known of zones");
    let set = unaware.in_zones(&aware, local);
    assert_eq!(Worker::new(1).count(&set, 800).len(), 4);
    // Two of four are gone: a third of the endpoints for half of the requests.
    set.endpoints()[..2].iter().for_each(|e| assert!(e.state.set_ejected(true)));
    let seen = Worker::new(1).count(&set.rebalance(&aware), 9_000);
    let near: usize = [3, 4].iter().map(|port| seen[port]).sum();
    assert!((near as f64 / 9_000.0 - 0.667).abs() < 0.02, "{seen:?}");
    // All of them, before the index knows: nobody is asked who is out.
    set.endpoints()[..4].iter().for_each(|e| assert!(e.state.set_ejected(true) || e.spec.address.port() < 3));
    assert!(Worker::new(1).count(&set, 100).keys().all(|port| *port > 4));
}
