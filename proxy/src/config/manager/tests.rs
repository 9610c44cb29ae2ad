use std::time::Duration;

use remora_xds::client::{Batch as Update, Incoming};
use remora_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use remora_xds::pb::google::protobuf::Any;
use remora_xds::{Named, any};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::warming::INIT_TIMEOUT;
use super::*;

mod addresses;
mod authz;
mod checks;
mod strays;
mod zones;

/// A manager with a control plane.
pub(super) fn manager() -> Manager {
    manager_with(json!([]))
}

/// The same, with these static secrets.
pub(super) fn manager_with(secrets: Value) -> Manager {
    let ads = json!({ "resource_api_version": "V3", "ads": {} });
    let text = json!({
        "node": { "id": "n" },
        "static_resources": { "clusters": [{ "name": "control", "type": "STATIC", "load_assignment": {
            "cluster_name": "control", "endpoints": [{ "lb_endpoints": [endpoint(1)] }],
        }}], "secrets": secrets },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "control" } }],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
    });
    let parsed = Schema::load().parse::<Bootstrap>(&text.to_string(), "boot").unwrap();
    Manager::new(&parsed.message, "boot", parsed.map, false).unwrap()
}

fn endpoint(port: u16) -> Value {
    json!({ "endpoint": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } } } })
}

pub(super) fn incoming<M: Named + remora_xds::wire::Wire>(schema: &Schema, value: &Value) -> Incoming {
    let message = schema.parse::<M>(&value.to_string(), "test").unwrap().message;
    let any = any::pack(&message);
    Incoming { name: Some(message.resource_name().into()), version: "1".into(), any }
}

pub(super) fn eds_cluster(schema: &Schema, name: &str) -> Incoming {
    let source = json!({ "eds_config": { "resource_api_version": "V3", "ads": {} } });
    let value = json!({ "name": name, "type": "EDS", "eds_cluster_config": source });
    incoming::<remora_xds::pb::envoy::config::cluster::v3::Cluster>(schema, &value)
}

fn assignment(schema: &Schema, name: &str, ports: std::ops::Range<u16>) -> Incoming {
    let endpoints: Vec<_> = ports.map(endpoint).collect();
    let value = json!({ "cluster_name": name, "endpoints": [{ "lb_endpoints": endpoints }] });
    incoming::<remora_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment>(schema, &value)
}

fn table(schema: &Schema, name: &str, cluster: &str) -> Incoming {
    let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": cluster } });
    let host = json!({ "name": "all", "domains": ["*"], "routes": [route] });
    let value = json!({ "name": name, "virtual_hosts": [host] });
    incoming::<remora_xds::pb::envoy::config::route::v3::RouteConfiguration>(schema, &value)
}

pub(super) fn apply(manager: &mut Manager, kind: Kind, resources: Vec<Incoming>) -> Applied {
    let applied = manager.apply_ads(&Update::restored(kind, resources), Instant::now());
    assert_eq!(applied.refused, []);
    applied
}

/// A change costs what it touches: everything else is shared with the snapshot before.
#[tokio::test]
async fn a_change_of_one_endpoint_touches_one_cluster() {
    const CLUSTERS: usize = 5000;
    let schema = Schema::load();
    let mut manager = manager();
    let name = |n: usize| format!("cluster-{n}");
    let clusters: Vec<_> = (0..CLUSTERS).map(|n| eds_cluster(&schema, &name(n))).collect();
    let endpoints: Vec<_> = (0..CLUSTERS).map(|n| assignment(&schema, &name(n), 1..11)).collect();
    let began = Instant::now();
    apply(&mut manager, Kind::Cluster, clusters.clone());
    apply(&mut manager, Kind::ClusterLoadAssignment, endpoints);
    let old = manager.snapshot();
    println!("{CLUSTERS} clusters with 10 endpoints each: {:?}", began.elapsed());

    let changed = assignment(&schema, &name(7), 1..12);
    let began = Instant::now();
    let applied = apply(&mut manager, Kind::ClusterLoadAssignment, vec![changed]);
    let new = manager.snapshot();
    println!("one endpoint: {:?}", began.elapsed());
    assert_eq!(applied.changes, Changes { snapshot: true, ..Changes::default() });
    assert!(Arc::ptr_eq(&old.cluster_ids, &new.cluster_ids));
    let differs = |n: &usize| {
        !Arc::ptr_eq(old.cluster_by_name(&name(*n)).unwrap(), new.cluster_by_name(&name(*n)).unwrap())
    };
    assert_eq!((0..CLUSTERS).filter(differs).collect::<Vec<_>>(), [7]);

    // The same clusters once more, as a control plane that was restarted may send them: nothing happens.
    let same = apply(&mut manager, Kind::Cluster, clusters);
    assert_eq!((same.accepted.len(), same.changes), (CLUSTERS, Changes::default()));
}

#[tokio::test(start_paused = true)]
async fn the_schema_goes_when_no_resources_come() {
    let schema = Schema::load();
    let mut manager = manager();
    assert_eq!(manager.tidy_at(), None);
    apply(&mut manager, Kind::Cluster, vec![eds_cluster(&schema, "a")]);
    let at = manager.tidy_at().unwrap();
    assert!(!manager.tidy(at - Duration::from_millis(1)));
    assert_eq!(manager.tidy_at(), Some(at));
    assert!(manager.tidy(at) && !manager.tidy(at));
    assert_eq!(manager.tidy_at(), None, "or the alarm would ring for ever");
    apply(&mut manager, Kind::Cluster, vec![eds_cluster(&schema, "a"), eds_cluster(&schema, "b")]);
    assert!(manager.tidy_at().is_some());
}

/// Each response keeps the schema for longer.
#[tokio::test(start_paused = true)]
async fn what_came_is_packed_though_more_comes_all_the_time() {
    let schema = Schema::load();
    let (mut manager, began) = (manager(), Instant::now());
    let mut packed = Vec::new();
    for second in 0..100 {
        if second % 4 == 0 {
            apply(&mut manager, Kind::Cluster, vec![eds_cluster(&schema, "a")]);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        if manager.tidy_at().is_some_and(|at| at <= Instant::now()) && manager.tidy(Instant::now()) {
            packed.push(began.elapsed().as_secs());
        }
    }
    assert_eq!(packed, [60]);
}

#[tokio::test]
async fn the_schema_of_the_bootstrap_is_kept_where_resources_will_come() {
    let now = Instant::now();
    let mut asks = manager();
    asks.lend_schema(Schema::load(), now);
    let at = asks.tidy_at().unwrap();
    assert!(at > now);
    asks.tidy(at);
    assert_eq!(asks.tidy_at(), None);
    let mut alone = Manager::default();
    alone.lend_schema(Schema::load(), now);
    assert_eq!(alone.tidy_at(), None);
}

#[tokio::test(start_paused = true)]
async fn routes_wait_for_the_endpoints_of_their_clusters_but_not_for_ever() {
    let schema = Schema::load();
    let mut manager = manager();
    apply(&mut manager, Kind::Listener, vec![listener(&schema, "l", "r", "15s")]);
    apply(&mut manager, Kind::RouteConfiguration, vec![table(&schema, "r", "a")]);
    assert!(manager.route_tables.is_empty());
    apply(&mut manager, Kind::Cluster, vec![eds_cluster(&schema, "a")]);
    assert!(manager.route_tables.is_empty(), "it has no endpoints yet");
    let names = BTreeSet::from(["a".into()]);
    assert_eq!(manager.ads_wanted().get(&Kind::ClusterLoadAssignment), Some(&names));
    assert_eq!(manager.deadline(), Some(Instant::now() + INIT_TIMEOUT));
    tokio::time::advance(INIT_TIMEOUT).await;
    assert!(manager.promote(Instant::now()).snapshot);
    assert!(manager.route_tables.contains_key("r") && manager.listeners.contains_key("l"));
    assert_eq!(manager.deadline(), None);
}

fn table_of(manager: &mut Manager, schema: &Schema) -> Arc<RouteTable> {
    let mut errors = Errors::new("test", SourceMap::default());
    let mut batch = Batch::default();
    let mut scope = Scope { errors: &mut errors, names: &mut manager.names };
    batch.any(&table(schema, "r", "a").any, &At::root(), &mut scope);
    Arc::new(batch.route_tables.remove(0).1)
}

#[tokio::test(start_paused = true)]
async fn a_removed_cluster_stays_while_routes_name_it() {
    let schema = Schema::load();
    let mut manager = manager();
    let has = |manager: &mut Manager, name: &str| manager.snapshot().cluster_by_name(name).is_some();
    apply(&mut manager, Kind::Cluster, vec![eds_cluster(&schema, "a"), eds_cluster(&schema, "b")]);
    let held = Held { origin: Origin::Static, hash: 1, value: table_of(&mut manager, &schema) };
    manager.put_table(held);
    for name in ["a", "b"] {
        manager.retire_cluster(&name.into(), Instant::now());
    }
    manager.promote(Instant::now());
    assert!(has(&mut manager, "a") && !has(&mut manager, "b"));
    let shown = |manager: &Manager| manager.dump().of(Kind::Cluster).iter().any(|(name, _)| **name == *"a");
    assert!(!shown(&manager));
    // It comes back before it is gone.
    apply(&mut manager, Kind::Cluster, vec![eds_cluster(&schema, "a")]);
    assert!(shown(&manager), "the admin page and the disk have it again");
    tokio::time::advance(INIT_TIMEOUT + Duration::from_secs(1)).await;
    manager.promote(Instant::now());
    assert!(has(&mut manager, "a"));
    manager.retire_cluster(&"a".into(), Instant::now());
    tokio::time::advance(INIT_TIMEOUT).await;
    manager.promote(Instant::now());
    assert!(!has(&mut manager, "a"), "not for ever");
}

/// A control plane may take away a cluster before the listener whose routes name it.
#[tokio::test]
async fn all_of_a_service_goes_in_any_order() {
    let schema = Schema::load();
    for order in [[Kind::Cluster, Kind::Listener], [Kind::Listener, Kind::Cluster]] {
        let mut manager = manager();
        let other = eds_cluster(&schema, "other");
        apply(&mut manager, Kind::Cluster, vec![eds_cluster(&schema, "a"), other]);
        apply(&mut manager, Kind::ClusterLoadAssignment, vec![assignment(&schema, "a", 1..2)]);
        apply(
            &mut manager,
            Kind::Listener,
            vec![listener(&schema, "a", "r", "15s"), listener(&schema, "other", "s", "15s")],
        );
        apply(&mut manager, Kind::RouteConfiguration, vec![table(&schema, "r", "a")]);
        assert!(manager.route_tables.contains_key("r"));
        for kind in order {
            let mut update = Update::restored(kind, Vec::new());
            update.first = false;
            update.removed = vec!["a".into()];
            manager.apply_ads(&update, Instant::now());
        }
        assert!(manager.snapshot().cluster_by_name("a").is_none(), "{order:?}");
        let left = |kind| manager.dump().of(kind).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert!(left(Kind::ClusterLoadAssignment).is_empty(), "{order:?}");
        assert!(left(Kind::RouteConfiguration).is_empty(), "{order:?}");
    }
}

#[tokio::test]
async fn clusters_that_share_an_assignment_have_the_same_endpoints_whenever_they_come() {
    let schema = Schema::load();
    let mut manager = manager();
    let sharing = |name: &str| {
        let source =
            json!({ "service_name": "s", "eds_config": { "resource_api_version": "V3", "ads": {} } });
        let value = json!({ "name": name, "type": "EDS", "eds_cluster_config": source });
        incoming::<remora_xds::pb::envoy::config::cluster::v3::Cluster>(&schema, &value)
    };
    let ports = |manager: &mut Manager, name: &str| -> Vec<_> {
        let snapshot = manager.snapshot();
        let cluster = snapshot.cluster_by_name(name).unwrap();
        cluster.endpoints().endpoints().iter().map(|e| e.spec.address.port()).collect()
    };
    let clusters = Kind::Cluster;
    apply(&mut manager, clusters, vec![sharing("a")]);
    apply(&mut manager, Kind::ClusterLoadAssignment, vec![assignment(&schema, "s", 1..3)]);
    apply(&mut manager, clusters, vec![sharing("b")]);
    assert_eq!((ports(&mut manager, "a"), ports(&mut manager, "b")), (vec![1, 2], vec![1, 2]));
    // They leave, and the endpoints wait for the next one.
    manager.remove_cluster(&"a".into());
    manager.remove_cluster(&"b".into());
    assert_eq!(manager.parked.len(), 1);
    apply(&mut manager, clusters, vec![sharing("c")]);
    assert_eq!((ports(&mut manager, "c"), manager.parked.len()), (vec![1, 2], 0));
    apply(&mut manager, Kind::ClusterLoadAssignment, vec![assignment(&schema, "s", 4..6)]);
    assert_eq!(ports(&mut manager, "c"), [4, 5]);
}

#[tokio::test]
async fn a_resource_of_the_bootstrap_is_not_replaced() {
    let schema = Schema::load();
    let mut manager = manager();
    let update = Update::restored(Kind::Cluster, vec![eds_cluster(&schema, "control")]);
    let applied = manager.apply_ads(&update, Instant::now());
    assert_eq!(applied.refused[0].detail, "has the name of a resource of the bootstrap");
}

fn listener(schema: &Schema, name: &str, routes: &str, wait: &str) -> Incoming {
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "rds": { "route_config_name": routes, "config_source": {
            "resource_api_version": "V3", "ads": {}, "initial_fetch_timeout": wait,
        }},
        "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        }}],
    });
    let filter = json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager });
    let value = json!({
        "name": name,
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "filter_chains": [{ "filters": [filter] }],
    });
    incoming::<remora_xds::pb::envoy::config::listener::v3::Listener>(schema, &value)
}

/// A cluster with endpoints, and a listener with routes to it, called `r`.
fn serving(schema: &Schema) -> Manager {
    let mut manager = manager();
    apply(&mut manager, Kind::Cluster, vec![eds_cluster(schema, "a")]);
    apply(&mut manager, Kind::ClusterLoadAssignment, vec![assignment(schema, "a", 1..2)]);
    apply(&mut manager, Kind::Listener, vec![listener(schema, "l", "r", "15s")]);
    apply(&mut manager, Kind::RouteConfiguration, vec![table(schema, "r", "a")]);
    assert!(manager.listeners.contains_key("l") && manager.route_tables.contains_key("r"));
    manager
}

/// Names that are gone, or never were.
fn gone(kind: Kind, name: &str) -> Update {
    let mut update = Update::restored(kind, vec![]);
    update.removed = vec![name.into()];
    update.first = false;
    update
}

/// All resources of a kind, as a state-of-the-world server sends them.
fn whole(kind: Kind, resources: Vec<Incoming>) -> Update {
    let mut update = Update::restored(kind, resources);
    update.complete = true;
    update
}

#[tokio::test]
async fn a_resource_that_cannot_be_read_takes_no_other_one_away() {
    let schema = Schema::load();
    let mut manager = serving(&schema);
    let broken = Incoming {
        name: None,
        any: Any { value: vec![0xff; 9], ..eds_cluster(&schema, "a").any },
        ..eds_cluster(&schema, "a")
    };
    let other = eds_cluster(&schema, "b");
    let wrapped = Incoming {
        any: Any { type_url: "type.googleapis.com/x.Y".into(), ..other.any.clone() },
        ..other.clone()
    };
    for bad in [broken, wrapped] {
        let applied =
            manager.apply_ads(&whole(Kind::Cluster, vec![bad, eds_cluster(&schema, "c")]), Instant::now());
        assert_eq!((applied.refused.len(), applied.removed), (1, vec![]));
        assert!(manager.clusters.contains_key("a") && manager.clusters.contains_key("c"));
    }
    let applied = manager.apply_ads(&whole(Kind::Cluster, vec![eds_cluster(&schema, "c")]), Instant::now());
    assert_eq!(applied.removed, ["a".into()]);
}

#[tokio::test(start_paused = true)]
async fn routes_of_a_removed_listener_stay_as_long_as_its_connections() {
    let schema = Schema::load();
    let mut manager = serving(&schema);
    let connection = manager.snapshot().listeners[0].clone();
    let table = manager.names.route_tables.get("r").unwrap();
    let removed = gone(Kind::Listener, "l");
    assert_eq!(manager.apply_ads(&removed, Instant::now()).removed, ["l".into()]);
    tokio::time::advance(Duration::from_secs(600)).await;
    manager.promote(Instant::now());
    assert!(manager.snapshot().listeners.is_empty());
    assert!(manager.snapshot().route_table(table).is_some(), "the connection still needs them");
    drop(connection);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert!(manager.promote(Instant::now()).snapshot);
    assert!(manager.snapshot().route_table(table).is_none());
    assert_eq!(manager.deadline(), None);
}

/// Connections of a chain that is still there follow it.
#[tokio::test]
async fn routes_that_a_listener_no_longer_names_go() {
    let schema = Schema::load();
    let mut manager = serving(&schema);
    let _connection = manager.snapshot().listeners[0].clone();
    apply(&mut manager, Kind::Listener, vec![listener(&schema, "l", "s", "15s")]);
    assert!(manager.route_tables.contains_key("r"), "the new listener waits for its routes");
    apply(&mut manager, Kind::RouteConfiguration, vec![table(&schema, "s", "a")]);
    assert_eq!(manager.route_tables.keys().map(|name| &**name).collect::<Vec<_>>(), ["s"]);
}

#[tokio::test(start_paused = true)]
async fn what_replaces_something_that_waits_has_waited_with_it() {
    let schema = Schema::load();
    let mut manager = serving(&schema);
    apply(&mut manager, Kind::Listener, vec![listener(&schema, "m", "s", "4s")]);
    let deadline = manager.deadline();
    assert_eq!(deadline, Some(Instant::now() + Duration::from_secs(4)), "initial_fetch_timeout");
    tokio::time::advance(Duration::from_secs(3)).await;
    apply(&mut manager, Kind::Listener, vec![listener(&schema, "m", "t", "4s")]);
    assert_eq!(manager.deadline(), deadline);
    for (wait, seconds) in [("0s", 15), ("100s", 15)] {
        apply(&mut manager, Kind::Listener, vec![listener(&schema, wait, "none", wait)]);
        let waiting = &manager.dynamic.warming.listeners[wait];
        assert_eq!(waiting.until, Instant::now() + Duration::from_secs(seconds), "{wait}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_comes_back_is_in_the_dump_again() {
    let schema = Schema::load();
    let mut manager = serving(&schema);
    let removed = gone(Kind::Cluster, "a");
    manager.apply_ads(&removed, Instant::now());
    let dumped = |manager: &Manager| {
        let all = manager.dump().of(Kind::Cluster);
        all.into_iter()
            .find(|(name, _)| **name == *"a")
            .map(|(_, dumped)| dumped.version.unwrap().to_string())
    };
    assert_eq!(dumped(&manager), None);
    apply(&mut manager, Kind::Cluster, vec![eds_cluster(&schema, "a")]);
    assert_eq!(dumped(&manager).as_deref(), Some("1"));
    apply(&mut manager, Kind::Cluster, vec![Incoming { version: "2".into(), ..eds_cluster(&schema, "a") }]);
    assert_eq!(dumped(&manager).as_deref(), Some("2"), "the same bytes under another version");
}

#[tokio::test]
async fn what_was_not_asked_for_is_not_kept_and_what_is_absent_is_not_waited_for() {
    let schema = Schema::load();
    let mut manager = serving(&schema);
    let names = manager.names.route_tables.len();
    let push = Update::restored(Kind::RouteConfiguration, vec![table(&schema, "unasked", "a")]);
    let applied = manager.apply_ads(&push, Instant::now());
    assert_eq!((applied.accepted, applied.refused), (vec![], vec![]));
    let push = Update::restored(Kind::ClusterLoadAssignment, vec![assignment(&schema, "unasked", 1..3)]);
    manager.apply_ads(&push, Instant::now());
    assert!(manager.assignments.len() == 1 && manager.names.route_tables.len() == names);

    apply(&mut manager, Kind::Cluster, vec![eds_cluster(&schema, "b")]);
    assert!(!manager.is_warm());
    let absent = gone(Kind::ClusterLoadAssignment, "b");
    assert!(manager.apply_ads(&absent, Instant::now()).changes.snapshot);
    assert!(manager.is_warm());
}
