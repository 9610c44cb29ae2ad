//! Clusters that `ext_authz` filters ask, and those of `tcp_proxy`, are named by their listener, as those that its routes name.

use super::*;

const MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// A listener that asks cluster `auth`. With `rds`, its routes come from the control plane.
fn asking(rds: bool) -> Value {
    let typed = |name: &str, kind: &str, config: Value| {
        let mut typed = config;
        typed["@type"] = format!("type.googleapis.com/envoy.extensions.filters.http.{kind}").into();
        json!({ "name": name, "typed_config": typed })
    };
    let service = json!({ "envoy_grpc": { "cluster_name": "auth" } });
    let ask = json!({ "transport_api_version": "V3", "grpc_service": service });
    let mut manager = json!({ "@type": MANAGER, "stat_prefix": "l", "http_filters": [
        typed("authz", "ext_authz.v3.ExtAuthz", ask),
        typed("router", "router.v3.Router", json!({})),
    ]});
    if rds {
        let source = json!({ "resource_api_version": "V3", "ads": {} });
        manager["rds"] = json!({ "route_config_name": "r", "config_source": source });
    } else {
        let route = json!({ "match": { "prefix": "/" }, "direct_response": { "status": 204 } });
        let host = json!({ "name": "all", "domains": ["*"], "routes": [route] });
        manager["route_config"] = json!({ "name": "inline", "virtual_hosts": [host] });
    }
    json!({
        "name": "l",
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "filter_chains": [{ "filters": [{ "name": "http", "typed_config": manager }] }],
    })
}

fn arrives(schema: &Schema, manager: &mut Manager, rds: bool) {
    let listener = incoming::<remora_xds::pb::envoy::config::listener::v3::Listener>(schema, &asking(rds));
    apply(manager, Kind::Listener, vec![listener]);
    if rds {
        let direct = json!({ "match": { "prefix": "/" }, "direct_response": { "status": 204 } });
        let host = json!({ "name": "all", "domains": ["*"], "routes": [direct] });
        let table = json!({ "name": "r", "virtual_hosts": [host] });
        let table = incoming::<remora_xds::pb::envoy::config::route::v3::RouteConfiguration>(schema, &table);
        apply(manager, Kind::RouteConfiguration, vec![table]);
        assert!(manager.route_tables.contains_key("r"), "nothing else is missing");
    }
}

#[tokio::test(start_paused = true)]
async fn a_listener_waits_for_the_cluster_that_it_asks_but_not_for_ever() {
    let schema = Schema::load();
    for rds in [false, true] {
        let in_force = |manager: &Manager| manager.listeners.contains_key("l");
        let mut manager = manager();
        arrives(&schema, &mut manager, rds);
        assert!(!in_force(&manager), "there is no such cluster");
        apply(&mut manager, Kind::Cluster, vec![eds_cluster(&schema, "auth")]);
        assert!(!in_force(&manager), "it has no endpoints");
        apply(&mut manager, Kind::ClusterLoadAssignment, vec![assignment(&schema, "auth", 1..2)]);
        assert!(in_force(&manager), "rds: {rds}");

        let mut manager = super::manager();
        arrives(&schema, &mut manager, rds);
        tokio::time::advance(INIT_TIMEOUT).await;
        manager.promote(Instant::now());
        assert!(in_force(&manager), "rds: {rds}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_removed_cluster_stays_while_a_listener_asks_it() {
    let schema = Schema::load();
    for rds in [false, true] {
        let has = |manager: &mut Manager| manager.snapshot().cluster_by_name("auth").is_some();
        let mut manager = manager();
        apply(&mut manager, Kind::Cluster, vec![eds_cluster(&schema, "auth")]);
        apply(&mut manager, Kind::ClusterLoadAssignment, vec![assignment(&schema, "auth", 1..2)]);
        arrives(&schema, &mut manager, rds);
        assert!(manager.listeners.contains_key("l"));
        manager.apply_ads(&gone(Kind::Cluster, "auth"), Instant::now());
        manager.promote(Instant::now());
        assert!(has(&mut manager), "rds: {rds}");
        manager.apply_ads(&gone(Kind::Listener, "l"), Instant::now());
        manager.promote(Instant::now());
        assert!(!has(&mut manager), "rds: {rds}");
    }
}

#[test]
fn a_file_that_stands_alone_has_the_clusters_that_its_listeners_name() {
    let tcp = json!({ "name": "tcp", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "t",
        "weighted_clusters": { "clusters": [{ "name": "good", "weight": 1 }, { "name": "auth", "weight": 1 }] },
    }});
    let address = json!({ "socket_address": { "address": "127.0.0.1", "port_value": 0 } });
    let tcp = json!({ "name": "l", "address": address, "filter_chains": [{ "filters": [tcp] }] });
    for (listener, says) in [
        (asking(false), "asks cluster \"auth\" (ext_authz), which does not exist"),
        (tcp, "connects to cluster \"auth\" (tcp_proxy), which does not exist"),
    ] {
        let with = |cluster: &str| {
            let clusters = ["good", cluster].map(|name| json!({ "name": name, "type": "STATIC" }));
            let statics = json!({ "listeners": [listener], "clusters": clusters });
            let text = json!({ "static_resources": statics }).to_string();
            let parsed = Schema::load().parse::<Bootstrap>(&text, "boot").unwrap();
            Manager::new(&parsed.message, "boot", parsed.map, false).map_err(|errors| errors[0].to_string())
        };
        assert!(with("auth").is_ok());
        let error = with("other").unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}
