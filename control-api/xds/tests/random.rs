//! Random texts, bytes and messages.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::LazyLock;

use proptest::prelude::*;
use remora_xds::Schema;
use remora_xds::any;
use remora_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use remora_xds::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use remora_xds::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster, circuit_breakers};
use remora_xds::pb::envoy::config::core::v3::{Locality, Metadata};
use remora_xds::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints};
use remora_xds::pb::envoy::config::listener::v3::Listener;
use remora_xds::pb::envoy::config::route::v3::RouteConfiguration;
use remora_xds::pb::google::protobuf::{Any, Duration, ListValue, Struct, UInt32Value, Value, value::Kind};

static SCHEMA: LazyLock<Schema> = LazyLock::new(Schema::load);

fn kind() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "\\PC{0,10}",
        any::<String>(),
        prop::sample::select(vec!["yes", "1", "null", "1e5", "~", ""]).prop_map(str::to_owned)
    ];
    let leaf = prop_oneof![
        Just(Kind::NullValue(0)),
        any::<bool>().prop_map(Kind::BoolValue),
        (-1e17..1e17_f64).prop_map(Kind::NumberValue),
        any::<i32>().prop_map(|n| Kind::NumberValue(f64::from(n))),
        text.clone().prop_map(Kind::StringValue),
    ]
    .prop_map(|kind| Value { kind: Some(kind) });
    leaf.prop_recursive(4, 30, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4)
                .prop_map(|values| Value { kind: Some(Kind::ListValue(ListValue { values })) }),
            prop::collection::hash_map(text.clone(), inner, 0..4)
                .prop_map(|fields| Value { kind: Some(Kind::StructValue(Struct { fields })) }),
        ]
    })
}

fn number() -> impl Strategy<Value = Option<UInt32Value>> {
    prop::option::of(any::<u32>().prop_map(|value| UInt32Value { value }))
}

prop_compose! {
    fn cluster()(
        name in "\\PC{1,12}",
        seconds in 0_i64..1_000_000,
        nanos in 1_i32..1_000_000_000,
        discovery in prop::sample::select(vec![DiscoveryType::Static, DiscoveryType::Eds, DiscoveryType::StrictDns]),
        meta in prop::collection::hash_map("\\PC{1,8}", prop::collection::hash_map("\\PC{0,8}", kind(), 0..4), 0..3),
        (max_connections, max_retries) in (number(), number()),
        zones in prop::collection::vec(("\\PC{0,6}", 0_u32..128), 0..3),
        lb_policy in 0..2_i32,
    ) -> Cluster {
        let filter_metadata = meta.into_iter().map(|(k, fields)| (k, Struct { fields })).collect();
        let endpoints = zones.into_iter().map(|(zone, priority)| LocalityLbEndpoints {
            locality: Some(Locality { zone, ..Locality::default() }), priority, ..LocalityLbEndpoints::default()
        }).collect();
        Cluster {
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(discovery as i32)),
            connect_timeout: Some(Duration { seconds, nanos }),
            metadata: Some(Metadata { filter_metadata, ..Metadata::default() }),
            circuit_breakers: Some(CircuitBreakers {
                thresholds: vec![circuit_breakers::Thresholds { max_connections, max_retries, ..Default::default() }],
                ..CircuitBreakers::default()
            }),
            load_assignment: Some(ClusterLoadAssignment {
                cluster_name: name.clone(), endpoints, ..ClusterLoadAssignment::default()
            }),
            name, lb_policy,
            ..Cluster::default()
        }
    }
}

/// YAML that looks like a configuration, with random keys and values in it.
fn config_like() -> impl Strategy<Value = String> {
    let keys = vec![
        "static_resources",
        "listeners",
        "clusters",
        "filter_chains",
        "filters",
        "typed_config",
        "'@type'",
        "name",
        "address",
        "socket_address",
        "port_value",
        "load_assignment",
        "connect_timeout",
        "metadata",
        "filter_metadata",
        "route_config",
        "virtual_hosts",
        "routes",
        "match",
        "tracing",
        "x",
        "typed_extension_protocol_options",
        "thresholds",
        "<<",
    ];
    let values = vec![
        "1",
        "a",
        "1s",
        "null",
        "-1",
        "1e400",
        "true",
        "STATIC",
        "[]",
        "{}",
        "''",
        "&a {name: x}",
        "*a",
        "99999999999999999999",
        "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "type.googleapis.com/google.protobuf.Duration",
        "type.googleapis.com/google.protobuf.Any",
        "type.googleapis.com/google.protobuf.Struct",
        "type.googleapis.com/envoy.service.discovery.v3.DiscoveryResponse",
        ".nan",
    ];
    let leaf = prop::sample::select(values).prop_map(str::to_owned);
    leaf.prop_recursive(8, 60, 5, move |inner| {
        let key = prop::sample::select(keys.clone());
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(", "))),
            prop::collection::vec((key, inner), 0..5).prop_map(|entries| {
                let entries: Vec<_> = entries.into_iter().map(|(k, v)| format!("{k}: {v}")).collect();
                format!("{{{}}}", entries.join(", "))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn a_cluster_survives_yaml(cluster in cluster()) {
        let yaml = SCHEMA.to_yaml(&cluster);
        let read = SCHEMA.parse::<Cluster>(&yaml, "f");
        prop_assert!(read.is_ok(), "{:?}\n{}", read.err(), yaml);
        let read = read.unwrap().message;
        prop_assert_eq!(&read, &cluster, "{}", yaml);
        prop_assert_eq!(SCHEMA.to_yaml(&read), yaml);
    }

    #[test]
    fn any_text_is_safe(text in "\\PC{0,200}") {
        let _ = SCHEMA.parse::<Bootstrap>(&text, "f");
    }

    #[test]
    fn any_text_that_looks_like_a_configuration_is_safe_and_mistakes_have_a_line(text in config_like()) {
        for errors in [
            SCHEMA.parse::<Bootstrap>(&text, "f").err(),
            SCHEMA.parse::<Listener>(&text, "f").err(),
            SCHEMA.parse::<Cluster>(&text, "f").err(),
        ].into_iter().flatten() {
            prop_assert!(!errors.is_empty());
            prop_assert!(errors.iter().all(|e| e.position.is_some()), "{errors:?}");
        }
    }

    #[test]
    fn any_bytes_are_safe(value in prop::collection::vec(any::<u8>(), 0..200)) {
        for type_url in [
            any::type_url::<Listener>(), any::type_url::<RouteConfiguration>(), any::type_url::<Bootstrap>(),
            any::type_url::<Any>(), any::type_url::<Struct>(), any::type_url::<Duration>(), "x".into(), String::new(),
        ] {
            let any = Any { type_url, value: value.clone() };
            let _ = SCHEMA.check_any(&any, "s");
            let _ = SCHEMA.any_to_yaml(&any);
            let _ = SCHEMA.any_to_redacted_json(&any);
        }
    }

    #[test]
    fn bytes_of_a_changed_message_are_safe(cluster in cluster(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut any = any::pack(&cluster);
        let at = at.index(any.value.len());
        any.value[at] = byte;
        let _ = SCHEMA.check_any(&any, "s");
        let _ = SCHEMA.any_to_yaml(&any);
    }
}
