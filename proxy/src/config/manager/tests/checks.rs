//! Clusters whose endpoints are checked.

use super::*;
use crate::upstream::cluster::Cluster;

fn checked(schema: &Schema, fetch: &str) -> Incoming {
    let source = json!({ "resource_api_version": "V3", "ads": {}, "initial_fetch_timeout": fetch });
    let value = json!({
        "name": "a", "type": "EDS", "eds_cluster_config": { "eds_config": source },
        "health_checks": [{
            "timeout": "1s", "interval": "1s", "unhealthy_threshold": 1, "healthy_threshold": 1,
            "tcp_health_check": {},
        }],
    });
    incoming::<remora_xds::pb::envoy::config::cluster::v3::Cluster>(schema, &value)
}

fn cluster(manager: &Manager) -> &Arc<Cluster> {
    &manager.clusters["a"].value
}

#[tokio::test(start_paused = true)]
async fn routes_wait_for_the_first_check_of_each_endpoint_of_their_clusters() {
    let schema = Schema::load();
    let mut manager = manager();
    apply(&mut manager, Kind::Cluster, vec![checked(&schema, "2s")]);
    apply(&mut manager, Kind::Listener, vec![listener(&schema, "l", "r", "15s")]);
    apply(&mut manager, Kind::ClusterLoadAssignment, vec![assignment(&schema, "a", 1..3)]);
    apply(&mut manager, Kind::RouteConfiguration, vec![table(&schema, "r", "a")]);
    assert!(manager.route_tables.is_empty() && !cluster(&manager).is_warm());
    assert_eq!(manager.deadline(), Some(Instant::now() + INIT_TIMEOUT), "endpoints have come");

    let all = cluster(&manager).endpoints().endpoints().to_vec();
    assert!(!cluster(&manager).was_checked(&all[0]));
    assert!(!manager.promote(Instant::now()).snapshot);
    assert!(cluster(&manager).was_checked(&all[1]), "the last one");
    assert!(manager.promote(Instant::now()).snapshot);
    assert!(manager.route_tables.contains_key("r") && cluster(&manager).is_warm());

    apply(&mut manager, Kind::ClusterLoadAssignment, vec![assignment(&schema, "a", 1..4)]);
    assert!(cluster(&manager).is_warm(), "an endpoint that comes later is only not used before its check");
    apply(&mut manager, Kind::RouteConfiguration, vec![table(&schema, "s", "a")]);
    assert_eq!(manager.deadline(), None);

    cluster(&manager).checks_ended(&all[0]);
    assert!(!all[0].state.standing().was_checked() && !cluster(&manager).is_warm(), "they begin anew");
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_have_served_are_not_waited_for() {
    let schema = Schema::load();
    let mut manager = manager();
    apply(&mut manager, Kind::Cluster, vec![eds_cluster(&schema, "a")]);
    apply(&mut manager, Kind::ClusterLoadAssignment, vec![assignment(&schema, "a", 1..2)]);
    let endpoint = Arc::clone(&cluster(&manager).endpoints().endpoints()[0]);
    drop(endpoint.begin());
    apply(&mut manager, Kind::Cluster, vec![checked(&schema, "15s")]);
    assert!(cluster(&manager).is_warm());
}

#[tokio::test(start_paused = true)]
async fn checks_that_do_not_end_are_not_waited_for_for_ever() {
    let schema = Schema::load();
    let mut manager = manager();
    apply(&mut manager, Kind::Cluster, vec![checked(&schema, "2s")]);
    apply(&mut manager, Kind::Listener, vec![listener(&schema, "l", "r", "15s")]);
    apply(&mut manager, Kind::ClusterLoadAssignment, vec![assignment(&schema, "a", 1..2)]);
    apply(&mut manager, Kind::RouteConfiguration, vec![table(&schema, "r", "a")]);
    assert!(!manager.promote(Instant::now()).snapshot);
    tokio::time::advance(INIT_TIMEOUT).await;
    assert!(manager.promote(Instant::now()).snapshot && manager.route_tables.contains_key("r"));
}

/// From nothing to one, and when the checks are taken away and come back.
#[tokio::test(start_paused = true)]
async fn a_cluster_that_was_warm_does_not_wait_for_endpoints_that_come_later() {
    let schema = Schema::load();
    let mut manager = manager();
    apply(&mut manager, Kind::Cluster, vec![checked(&schema, "15s")]);
    apply(&mut manager, Kind::ClusterLoadAssignment, vec![assignment(&schema, "a", 1..1)]);
    assert!(cluster(&manager).is_warm());
    apply(&mut manager, Kind::ClusterLoadAssignment, vec![assignment(&schema, "a", 1..2)]);
    assert!(cluster(&manager).is_warm());
}
