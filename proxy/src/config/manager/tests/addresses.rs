//! Which listener a connection is handed over to.

use super::*;

/// TCP, on these addresses; bound or not.
fn at(schema: &Schema, name: &str, addresses: &[&str], more: &Value) -> Incoming {
    let socket = |text: &&str| {
        let at: SocketAddr = text.parse().unwrap();
        json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } })
    };
    let filter = json!({ "name": "tcp", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": name, "cluster": "control",
    } });
    let others: Vec<_> = addresses[1..].iter().map(|a| json!({ "address": socket(a) })).collect();
    let value = json!({
        "name": name, "address": socket(&addresses[0]), "additional_addresses": others,
        "use_original_dst": more["hands_over"] == true, "bind_to_port": more["bound"] == true,
        "filter_chains": [{ "filters": [filter] }],
    });
    incoming::<remora_xds::pb::envoy::config::listener::v3::Listener>(schema, &value)
}

#[tokio::test]
async fn connections_are_handed_over_by_address() {
    let schema = Schema::load();
    let mut manager = manager();
    apply(
        &mut manager,
        Kind::Listener,
        vec![
            at(&schema, "catch-all", &["127.0.0.1:15001"], &json!({ "hands_over": true, "bound": true })),
            at(&schema, "pods", &["10.0.0.1:80", "10.0.0.2:80", "[fd00::1]:80"], &json!({})),
            at(&schema, "pods-of-another", &["10.0.0.2:80", "10.0.0.3:80"], &json!({})),
            at(&schema, "every", &["0.0.0.0:80"], &json!({})),
            at(&schema, "ipv6", &["[::]:9081"], &json!({})),
        ],
    );
    let snapshot = manager.snapshot();
    let found = |text: &str| snapshot.listener_at(text.parse().unwrap()).map(|listener| &*listener.name);
    assert_eq!(found("10.0.0.1:80"), Some("pods"));
    assert_eq!(found("[fd00::1]:80"), Some("pods"));
    assert_eq!(found("10.0.0.2:80"), Some("pods"), "of two the first by name");
    assert_eq!(found("10.0.0.3:80"), Some("pods-of-another"));
    assert_eq!(found("10.0.0.4:80"), Some("every"));
    assert_eq!((found("[fd00::2]:80"), found("10.0.0.1:81")), (None, None));
    assert_eq!((found("10.0.0.1:9081"), found("[fd00::2]:9081")), (None, Some("ipv6")));
}

#[tokio::test]
async fn a_name_server_is_not_handed_connections() {
    let schema = Schema::load();
    let mut manager = manager();
    let dns = json!({
        "name": "dns",
        "address": { "socket_address": { "protocol": "UDP", "address": "127.0.0.1", "port_value": 15053 } },
        "listener_filters": [{ "name": "dns", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig",
            "stat_prefix": "dns",
        } }],
    });
    let dns = incoming::<remora_xds::pb::envoy::config::listener::v3::Listener>(&schema, &dns);
    let catch_all =
        at(&schema, "catch-all", &["127.0.0.1:15001"], &json!({ "hands_over": true, "bound": true }));
    apply(&mut manager, Kind::Listener, vec![catch_all, dns]);
    let snapshot = manager.snapshot();
    assert!(snapshot.listener("dns").is_some_and(|listener| listener.dns.is_some()));
    assert!(snapshot.listener_at("127.0.0.1:15001".parse().unwrap()).is_some());
    assert!(snapshot.listener_at("127.0.0.1:15053".parse().unwrap()).is_none());
}

#[tokio::test]
async fn a_listener_that_is_taken_back_is_not_handed_anything() {
    let schema = Schema::load();
    let mut manager = manager();
    let catch_all =
        at(&schema, "catch-all", &["127.0.0.1:15001"], &json!({ "hands_over": true, "bound": true }));
    apply(&mut manager, Kind::Listener, vec![catch_all.clone()]);
    apply(&mut manager, Kind::Listener, vec![catch_all, at(&schema, "new", &["10.0.0.1:80"], &json!({}))]);
    let to = "10.0.0.1:80".parse().unwrap();
    assert!(manager.snapshot().listener_at(to).is_some());
    assert!(manager.take_back(&"new".into()));
    assert!(manager.snapshot().listener_at(to).is_none());
}
