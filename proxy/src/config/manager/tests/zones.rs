//! Zone aware clusters follow the local cluster.

use super::*;
use crate::balance::WorkerCursor;
use crate::balance::context::LbContext;

fn cluster(name: &str, zones: &[&str], each: u16, common: &Value) -> Value {
    let groups = (0_u16..).zip(zones).map(|(i, zone)| {
        let endpoints: Vec<Value> = (1..=each).map(|n| endpoint(i * 100 + n)).collect();
        json!({ "locality": { "zone": zone }, "lb_endpoints": endpoints })
    });
    json!({
        "name": name, "connect_timeout": "1s", "common_lb_config": common,
        "load_assignment": { "cluster_name": name, "endpoints": groups.collect::<Vec<_>>() },
    })
}

/// A proxy in zone `a`; the local cluster has one in each of `proxies`, and `app` three endpoints in each of two zones.
fn in_zone_a(proxies: &[&str]) -> Manager {
    let app = cluster("app", &["a", "b"], 3, &json!({ "zone_aware_lb_config": {} }));
    let text = json!({
        "node": { "id": "n", "cluster": "n", "locality": { "zone": "a" } },
        "cluster_manager": { "local_cluster_name": "proxies" },
        "static_resources": { "clusters": [app, cluster("proxies", proxies, 1, &json!({}))] },
    });
    let parsed = Schema::load().parse::<Bootstrap>(&text.to_string(), "boot").unwrap();
    Manager::new(&parsed.message, "boot", parsed.map, false).unwrap()
}

#[test]
fn a_zone_aware_cluster_knows_the_local_cluster() {
    let mut manager = in_zone_a(&["a", "b"]);
    let snapshot = manager.snapshot();
    let app = snapshot.cluster_by_name("app").unwrap();
    let plain = snapshot.cluster_by_name("proxies").unwrap();
    assert!(app.endpoints().local_zones().is_some() && plain.endpoints().local_zones().is_none());
    let (mut cursor, mut rng) = (WorkerCursor::default(), fastrand::Rng::with_seed(1));
    for _ in 0..50 {
        let picked = app.pick(&mut cursor, &mut rng, &LbContext::default()).unwrap();
        assert_eq!(&*picked.spec.group.locality.zone, "a");
    }
}

#[test]
fn an_empty_local_cluster_tells_nothing() {
    let mut manager = in_zone_a(&[]);
    assert!(manager.snapshot().cluster_by_name("app").unwrap().endpoints().local_zones().is_none());
}
