use super::*;
use crate::resilience::budget::BudgetSpec;
use crate::upstream::endpoint::EndpointSpec;

fn endpoints(ports: &[u16]) -> Assignment {
    let spec = |p: &u16| EndpointSpec::new(([127, 0, 0, 1], *p).into());
    ports.iter().map(spec).collect::<Vec<_>>().into()
}

pub(in crate::upstream) fn spec(discovery: Discovery) -> ClusterSpec {
    ClusterSpec {
        name: "orders".into(),
        stat_name: "orders".into(),
        discovery,
        connect: ConnectSpec::default(),
        lb: LbSpec::default(),
        http: UpstreamHttp::default(),
        tls: None,
        transport: 0,
        thresholds: [Thresholds::default(); 2],
        outlier: None,
        health_check: None,
        circuit: None,
        buffer_limit: 1 << 20,
        close_on_host_change: false,
        metadata: None,
    }
}

fn eds() -> Discovery {
    let initial_fetch_timeout = Duration::from_secs(15);
    Discovery::Eds(EdsSpec { service_name: "orders".into(), source: EdsSource::Ads, initial_fetch_timeout })
}

pub(in crate::upstream) fn statics(ports: &[u16]) -> Discovery {
    Discovery::Static(Arc::new(endpoints(ports)))
}

#[test]
fn a_cluster_warms_when_discovery_answers() {
    assert!(Cluster::new(Arc::new(spec(statics(&[])))).is_warm());
    let cold = Cluster::new(Arc::new(spec(eds())));
    assert!(!cold.is_warm());
    let warm = cold.with_assignment(&endpoints(&[]));
    assert!(warm.is_warm());
    assert_eq!(
        warm.pick(&mut WorkerCursor::default(), &mut fastrand::Rng::with_seed(1), &LbContext::default())
            .map(|e| e.key),
        None
    );
    assert_eq!((warm.state().failed_picks(), cold.state().failed_picks()), (1, 1));
}

#[test]
fn an_edit_keeps_endpoints_counters_and_permits() {
    let first = Cluster::new(Arc::new(spec(eds()))).with_assignment(&endpoints(&[1, 2]));
    let permit = first.try_acquire(Resource::Requests, RoutingPriority::Default).unwrap();
    let mut edited = spec(eds());
    edited.thresholds[0].max_requests = 1;
    let second = first.with_spec(Arc::new(edited));
    assert!(Arc::ptr_eq(first.endpoints(), second.endpoints()));
    assert!(second.try_acquire(Resource::Requests, RoutingPriority::Default).is_none());
    assert!(second.try_acquire(Resource::Requests, RoutingPriority::High).is_some());
    drop(permit);
    assert!(second.try_acquire(Resource::Requests, RoutingPriority::Default).is_some());
    // Another policy needs another index over the same endpoints.
    let mut edited = spec(eds());
    edited.lb.policy = LbPolicy::Random;
    let third = second.with_spec(Arc::new(edited));
    assert_eq!(first.endpoints().endpoints()[0].key, third.endpoints().endpoints()[0].key);
    // The endpoints of the old discovery serve until the new one answers.
    let fourth = Cluster::new(Arc::new(spec(statics(&[7])))).with_spec(Arc::new(spec(eds())));
    assert_eq!(fourth.endpoints().len(), 1);
}

#[test]
fn another_transport_socket_has_connections_of_its_own() {
    use crate::upstream::pool::Pools;
    use std::rc::Rc;
    let plain = Cluster::new(Arc::new(spec(eds()))).with_assignment(&endpoints(&[1]));
    let edited = plain.with_spec(Arc::new(ClusterSpec { buffer_limit: 1, ..spec(eds()) }));
    let secure = edited.with_spec(Arc::new(ClusterSpec { transport: 7, ..spec(eds()) }));
    let secure = secure.with_assignment(&endpoints(&[1, 2])).rebalanced();
    let endpoint = Arc::clone(&plain.endpoints().endpoints()[0]);
    assert_eq!(endpoint.key, secure.endpoints().endpoints()[0].key);
    let pools = Pools::default();
    let before = pools.of(&plain, &endpoint, None);
    assert!(Rc::ptr_eq(&before, &pools.of(&edited, &endpoint, None)), "another edit changes nothing");
    let after = pools.of(&secure, &endpoint, None);
    assert!(!Rc::ptr_eq(&before, &after));
    let late = pools.of(&edited, &endpoint, None);
    assert!(
        !Rc::ptr_eq(&late, &after) && !Rc::ptr_eq(&late, &before),
        "a request that began before the edit"
    );
    assert!(Rc::ptr_eq(&after, &pools.of(&secure, &endpoint, None)), "does not undo it");
}

#[test]
fn panic_picks_are_counted() {
    let cluster = Cluster::new(Arc::new(spec(statics(&[1, 2, 3]))));
    cluster.endpoints().endpoints()[..2].iter().for_each(|e| assert!(e.state.set_ejected(true)));
    let cluster = cluster.rebalanced();
    let mut cursor = WorkerCursor::default();
    let mut rng = fastrand::Rng::with_seed(1);
    assert!(cluster.endpoints().in_panic());
    assert!(cluster.pick(&mut cursor, &mut rng, &LbContext::default()).is_some());
    assert_eq!(cluster.state().panic_picks(), 1);
}

#[test]
fn retries_follow_the_budget_of_the_snapshot() {
    let mut with_budget = spec(statics(&[1]));
    let budget = BudgetSpec { percent: 50.0, min_concurrency: 0, interval: Duration::ZERO };
    with_budget.thresholds[0].retry_budget = Some(budget);
    let cluster = Cluster::new(Arc::new(with_budget));
    let now = tokio::time::Instant::now();
    assert!(cluster.try_retry(RoutingPriority::Default, true, now).is_none());
    let _requests: Vec<_> =
        (0..2).map(|_| cluster.try_acquire(Resource::Requests, RoutingPriority::Default).unwrap()).collect();
    let retry = cluster.try_retry(RoutingPriority::Default, true, now);
    assert!(retry.is_some());
    assert!(cluster.try_retry(RoutingPriority::Default, true, now).is_none());
    assert_eq!(cluster.state().breaker(RoutingPriority::Default).overflow(Resource::Retries), 2);
}

/// All requests have one key. Two endpoints, no slack: each gets half of them.
#[test]
fn a_bounded_load_is_that_of_the_whole_cluster() {
    use crate::balance::consistent::{ConsistentHash, HashTable};
    let mut bounded = spec(statics(&[1, 2]));
    bounded.lb.policy = LbPolicy::ConsistentHash(ConsistentHash {
        table: HashTable::Maglev(31),
        use_hostname: false,
        balance_factor: Some(100),
    });
    let cluster = Cluster::new(Arc::new(bounded));
    let (mut cursor, mut rng) = (WorkerCursor::default(), fastrand::Rng::with_seed(1));
    let context = LbContext { hash: Some(7), ..LbContext::default() };
    let mut running = Vec::new();
    for _ in 0..10 {
        let permit = cluster.try_acquire(Resource::Requests, RoutingPriority::Default).unwrap();
        running.push((permit, cluster.pick(&mut cursor, &mut rng, &context).unwrap().begin()));
    }
    assert!(cluster.endpoints().endpoints().iter().all(|e| e.state.active() == 5));
}
