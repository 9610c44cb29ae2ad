//! Text -> message, with all mistakes; and back.

#![allow(clippy::unwrap_used, reason = "tests")]

use remora_xds::any;
use remora_xds::diag::ConfigError;
use remora_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use remora_xds::pb::envoy::config::cluster::v3::Cluster;
use remora_xds::pb::envoy::config::core::v3::{DataSource, Metadata, data_source};
use remora_xds::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use remora_xds::pb::envoy::config::route::v3::RouteConfiguration;
use remora_xds::pb::envoy::extensions::filters::http::jwt_authn::v3::JwtProvider;
use remora_xds::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_provider::JwksSourceSpecifier;
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use remora_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::TlsCertificate;
use remora_xds::pb::envoy::service::discovery::v3::DiscoveryResponse;
use remora_xds::pb::google::protobuf::Any;
use remora_xds::wire::Wire;
use remora_xds::{Parsed, Schema};

const BOOTSTRAP: &str = include_str!("bootstrap.yaml");

fn show(errors: &[ConfigError]) -> String {
    errors.iter().map(|e| format!("{e}\n")).collect()
}

/// The mistakes of a text, one a line.
fn mistakes<M: Wire>(text: &str) -> String {
    Schema::load().parse::<M>(text, "f").err().map(|errors| show(&errors)).unwrap_or_default()
}

fn parsed<M: Wire>(text: &str) -> Parsed<M> {
    Schema::load().parse(text, "f").map_err(|errors| show(&errors)).unwrap()
}

#[test]
fn a_bootstrap_is_read_with_the_line_of_every_field() {
    let Parsed { message, map } = parsed::<Bootstrap>(BOOTSTRAP);
    let resources = message.static_resources.unwrap();
    let chain = &resources.listeners[0].filter_chains[0];
    let Some(filter::ConfigType::TypedConfig(config)) = &chain.filters[0].config_type else {
        panic!("no config")
    };
    let hcm: HttpConnectionManager = any::unpack(config).unwrap();
    assert_eq!(hcm.stat_prefix, "ingress");
    assert_eq!(hcm.stream_idle_timeout.unwrap().nanos, 500_000_000);
    assert_eq!(resources.clusters[0].connect_timeout.unwrap().seconds, 5);
    let line_of =
        |text: &str| BOOTSTRAP.lines().position(|l| l.trim_start().starts_with(text)).unwrap() as u32 + 1;
    let config = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config";
    for (path, text) in [
        ("admin", "admin:".to_owned()),
        (&format!("{config}.stat_prefix"), "stat_prefix: ingress".to_owned()),
        (&format!("{config}.route_config.virtual_hosts[0].routes[1]"), "- match: {prefix: /b".to_owned()),
        (
            &format!("{config}.route_config.virtual_hosts[0].routes[1].route.cluster"),
            "route: {cluster: app".to_owned(),
        ),
        ("static_resources.clusters[0].connect_timeout.nonsense[5].x", "connect_timeout".to_owned()),
    ] {
        assert_eq!(map.position(path).unwrap().line, line_of(&text), "{path}");
    }
}

#[test]
fn every_mistake_of_a_file_is_told_at_once() {
    insta::assert_snapshot!(mistakes::<Bootstrap>(include_str!("mistakes.yaml")));
}

#[test]
fn single_mistakes() {
    for (text, said) in [
        (
            "name: a\nconnect_timeout: 5",
            "f:2:1: connect_timeout: must be a duration in seconds, such as 1.5s, not 5 (write 5s)\n",
        ),
        ("name: 5", "f:1:1: name: must be a string, not 5 (write \"5\")\n"),
        ("{}", "f:1:1: name: must not be empty\n"),
        ("[]", "f:1:1: must be a mapping, not a list\nf:1:1: name: must not be empty\n"),
        ("name: a\nname: b", "f:2:1: name: this key occurs twice\n"),
        (
            "name: a\nalt_stat_name: b\naltStatName: c",
            "f:3:1: alt_stat_name: occurs twice, as alt_stat_name and as altStatName\n",
        ),
        (
            "name: a\nlb_policy: ROUND_ROBBIN",
            "f:2:1: lb_policy: must be a value of LbPolicy, not \"ROUND_ROBBIN\" (did you mean ROUND_ROBIN?)\n",
        ),
        (
            "name: a\neds_cluster_config:\n  eds_config:\n    ads: {}\n    resource_api_version: V2",
            "f:5:5: eds_cluster_config.eds_config.resource_api_version: V2 is not supported by Remora (supported: V3)\n",
        ),
        (
            "name: a\nlb_policy: 17",
            "f:2:1: lb_policy: must be a value of LbPolicy, not 17 (one of ROUND_ROBIN, LEAST_REQUEST, RING_HASH, RANDOM, MAGLEV, CLUSTER_PROVIDED, LOAD_BALANCING_POLICY_CONFIG)\n",
        ),
        (
            "name: a\ndns_resolvers: [{}]",
            "f:2:1: dns_resolvers: not supported by Remora (use typed_dns_resolver_config)\n",
        ),
        (
            "name: a\ntype: EDS\ncluster_type: {name: x}",
            "f:3:1: cluster_type: not supported by Remora (use type)\n",
        ),
        (
            "name: a\nconect_timeout: 1s",
            "f:2:1: conect_timeout: envoy.config.cluster.v3.Cluster has no such field (did you mean connect_timeout?)\n",
        ),
        (
            "name: a\nper_connection_buffer_limit_bytes: -1",
            "f:2:1: per_connection_buffer_limit_bytes: must be a whole number from 0 to 4294967295, not -1\n",
        ),
        (
            "name: a\nrespect_dns_ttl: \"true\"",
            "f:2:1: respect_dns_ttl: must be true or false, not \"true\" (write true, without quotes)\n",
        ),
        ("name: a\nconnect_timeout: 0s", "f:2:1: connect_timeout: must be greater than 0s, not 0s\n"),
        (
            "name: a\ntransport_socket: {name: x, typed_config: {}}",
            "f:2:29: transport_socket.typed_config: needs the key \"@type\", which says what it holds (write \"@type\": type.googleapis.com/…)\n",
        ),
        (
            "name: a\nmetadata: {filter_metadata: {x: [1]}}",
            "f:2:30: metadata.filter_metadata.x: must be a mapping, not a list\n",
        ),
        (
            "name: a\ncircuit_breakers: {thresholds: [null, {max_retries: x}]}",
            "f:2:33: circuit_breakers.thresholds[0]: is empty\nf:2:40: circuit_breakers.thresholds[1].max_retries: must be a whole number from 0 to 4294967295, not \"x\"\n",
        ),
        (
            "name: a\ncircuit_breakers: {thresholds: {}}",
            "f:2:20: circuit_breakers.thresholds: must be a list, not a mapping\n",
        ),
        (
            "\"@type\": type.googleapis.com/envoy.config.listener.v3.Listener\nname: a",
            "f:1:1: @type: must be type.googleapis.com/envoy.config.cluster.v3.Cluster\n",
        ),
    ] {
        assert_eq!(mistakes::<Cluster>(text), said, "{text}");
    }
}

#[test]
fn types_of_anys() {
    let socket =
        |url: &str| format!("name: a\ntransport_socket:\n  name: t\n  typed_config:\n    \"@type\": {url}\n");
    let path = "f:5:5: transport_socket.typed_config.@type";
    for (url, said) in [
        (
            "type.googleapis.com/envoy.extensions.transport_sockets.quic.v3.QuicUpstreamTransport",
            "envoy.extensions.transport_sockets.quic.v3.QuicUpstreamTransport is not supported by Remora",
        ),
        (
            "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContex",
            "\"envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContex\" is no type of the Envoy v3 API (did you mean type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext?)",
        ),
        (
            "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
            "\"envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer\" is no type URL (write type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer)",
        ),
        ("[x]", "must be a type URL, not a list"),
    ] {
        assert_eq!(mistakes::<Cluster>(&socket(url)), format!("{path}: {said}\n"), "{url}");
    }
    let good = socket("type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer");
    assert_eq!(mistakes::<Cluster>(&good), "");
    let typo = format!("{good}    tls: 1\n");
    assert_eq!(
        mistakes::<Cluster>(&typo),
        "f:6:5: transport_socket.typed_config.tls: envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer has no such field\n"
    );
}

#[test]
fn oneofs() {
    let route = |route: &str| {
        format!("name: r\nvirtual_hosts: [{{name: v, domains: [\"*\"], routes: [{{{route}}}]}}]")
    };
    for (text, said) in [
        (
            "match: {prefix: /, path: /a}, direct_response: {status: 200}",
            "f:2:74: virtual_hosts[0].routes[0].match.path: cannot stand beside prefix: only one of the two may be set\n",
        ),
        (
            "match: {}, direct_response: {status: 200}",
            "f:2:58: virtual_hosts[0].routes[0].match: one of prefix, path, safe_regex, connect_matcher, path_separated_prefix is required\n",
        ),
        (
            "match: {path_match_policy: {name: x}}, direct_response: {status: 200}",
            "f:2:66: virtual_hosts[0].routes[0].match.path_match_policy: not supported by Remora\n",
        ),
        (
            "match: {perfix: /}, direct_response: {status: 200}",
            "f:2:66: virtual_hosts[0].routes[0].match.perfix: envoy.config.route.v3.RouteMatch has no such field (did you mean prefix?)\n",
        ),
        (
            "match: {prefix: 5}, direct_response: {status: 200}",
            "f:2:66: virtual_hosts[0].routes[0].match.prefix: must be a string, not 5 (write \"5\")\n",
        ),
        (
            "match: {prefix: /}, direct_response: {status: 99}",
            "f:2:96: virtual_hosts[0].routes[0].direct_response.status: must be at least 200 and less than 600, not 99\n",
        ),
    ] {
        let text = route(text);
        let found = mistakes::<RouteConfiguration>(&text);
        // Columns are those of the key in the flow mapping: compared without them, and checked for being there.
        let strip = |s: &str| s.split_once(": ").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        assert_eq!(strip(&found), strip(said), "{text}\n{found}");
        assert!(found.starts_with("f:2:"), "{found}");
    }
}

#[test]
fn refused_fields_may_say_their_default() {
    let text = "name: a\ndrain_type: DEFAULT\nstat_prefix: \"\"\ntransparent: null\nsocket_options: []\nenable_mptcp: false\nudp_listener_config: null";
    assert_eq!(mistakes::<Listener>(text), "");
    assert_eq!(
        mistakes::<Listener>("name: a\nenable_reuse_port: false\nenable_mptcp: true"),
        "f:2:1: enable_reuse_port: false is not supported by Remora (supported: true)\nf:3:1: enable_mptcp: not supported by Remora\n"
    );
}

#[test]
fn bytes_are_checked_like_text() {
    let schema = Schema::load();
    let check =
        |listener: &Listener| schema.check(listener, "lds/a").map_err(|e| show(&e)).err().unwrap_or_default();
    let filter = |config: Any| Listener {
        name: "a".into(),
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: "f".into(),
                config_type: Some(filter::ConfigType::TypedConfig(config)),
            }],
            ..FilterChain::default()
        }],
        ..Listener::default()
    };
    let good = TcpProxy {
        stat_prefix: "s".into(),
        cluster_specifier: Some(
            remora_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier::Cluster("c".into()),
        ),
        ..TcpProxy::default()
    };
    assert_eq!(check(&filter(any::pack(&good))), "");
    let bad = TcpProxy { stat_prefix: String::new(), hash_policy: vec![Default::default()], ..good };
    let at = "lds/a: filter_chains[0].filters[0].typed_config";
    assert_eq!(
        check(&filter(any::pack(&bad))),
        format!("{at}.stat_prefix: must not be empty\n{at}.hash_policy[0]: source_ip is required\n")
    );
    let broken = Any { value: vec![0xff, 0xff], ..any::pack(&bad) };
    assert!(
        check(&filter(broken))
            .starts_with(&format!("{at}: the bytes are no valid envoy.extensions.filters.network.tcp"))
    );
    let future = Any { value: vec![0xf8, 0xff, 0x01, 0x01], type_url: any::type_url::<Cluster>() };
    let errors = schema.check_any(&future, "x").unwrap_err();
    assert!(show(&errors).contains("has a field number 4095"), "{}", show(&errors));
}

#[test]
fn anys_inside_of_anys_end_somewhere() {
    let schema = Schema::load();
    let mut any = any::pack(&DiscoveryResponse::default());
    for _ in 0..40_000 {
        // By hand: encoding 40,000 levels as messages would copy them 40,000 times.
        if any.value.len() > 1 << 16 {
            break;
        }
        any = any::pack(&DiscoveryResponse { resources: vec![any], ..DiscoveryResponse::default() });
    }
    let errors = schema.check_any(&any, "x").unwrap_err();
    assert!(show(&errors).contains("more than 16 messages of type Any"), "{}", show(&errors));
    let _ = schema.any_to_json(&any);
}

#[test]
fn a_file_of_resources_is_read() {
    let text = "resources:\n- \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: a\n  \
                connect_timeout: 0s\n- \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: b\n";
    assert_eq!(
        mistakes::<DiscoveryResponse>(text),
        "f:4:3: resources[0].connect_timeout: must be greater than 0s, not 0s\n"
    );
    let response = parsed::<DiscoveryResponse>(&text.replace("0s", "1s")).message;
    assert_eq!(any::unpack::<Cluster>(&response.resources[1]).unwrap().name, "b");
}

#[test]
fn a_type_outside_the_table_is_refused() {
    let tap = any::pack(&remora_xds::pb::envoy::config::tap::v3::TapConfig::default());
    let errors = Schema::load().check_any(&tap, "f").unwrap_err();
    assert_eq!(show(&errors), "f: envoy.config.tap.v3.TapConfig is not supported by Remora\n");
}

#[test]
fn json_is_a_language_too() {
    let text = r#"{"name": "a", "connectTimeout": "0.25s", "lbPolicy": 1, "circuitBreakers": {"thresholds": [{"maxRetries": "7"}]}}"#;
    let cluster = parsed::<Cluster>(text).message;
    assert_eq!(cluster.connect_timeout.unwrap().nanos, 250_000_000);
    assert_eq!(cluster.circuit_breakers.unwrap().thresholds[0].max_retries.unwrap().value, 7);
}

#[test]
fn what_is_written_is_read_again_and_secrets_are_kept_back() {
    let schema = Schema::load();
    let message = parsed::<Bootstrap>(BOOTSTRAP).message;
    let yaml = schema.to_yaml(&message);
    assert_eq!(
        schema.parse::<Bootstrap>(&yaml, "again").map_err(|e| show(&e)).unwrap().message,
        message,
        "{yaml}"
    );
    let json = serde_json::to_string(&schema.to_json(&message)).unwrap();
    assert_eq!(schema.parse::<Bootstrap>(&json, "again").map_err(|e| show(&e)).unwrap().message, message);
    insta::assert_snapshot!(yaml);

    let secret = |s: &str| {
        Some(DataSource {
            specifier: Some(data_source::Specifier::InlineString(s.into())),
            ..DataSource::default()
        })
    };
    let certificate = TlsCertificate {
        certificate_chain: secret("chain"),
        private_key: secret("key"),
        pkcs12: secret("store"),
        password: secret("word"),
        ..TlsCertificate::default()
    };
    let any = any::pack(&certificate);
    let (whole, redacted) =
        (schema.any_to_json(&any).to_string(), schema.any_to_redacted_json(&any).to_string());
    assert!(redacted.contains("chain") && redacted.contains("[redacted]"), "{redacted}");
    for secret in ["\"key\"", "\"store\"", "\"word\""] {
        assert!(whole.contains(secret) && !redacted.contains(secret), "{secret}: {redacted}");
    }
    // What the API does not call a secret, and may be one: a key set with keys of kind oct.
    let provider = JwtProvider {
        issuer: "login".into(),
        jwks_source_specifier: secret("keys").map(JwksSourceSpecifier::LocalJwks),
        ..JwtProvider::default()
    };
    let redacted = schema.any_to_redacted_json(&any::pack(&provider)).to_string();
    assert!(redacted.contains("login") && !redacted.contains("keys"), "{redacted}");
}

#[test]
fn values_of_any_shape_survive_the_round_trip() {
    let schema = Schema::load();
    let text = "name: a\nmetadata:\n  filter_metadata:\n    x: {n: null, b: on, i: -3, f: 1.5, big: 1e300, s: \"on\", l: [[], {}, \"\"], o: {p: {}}}\n";
    let cluster = parsed::<Cluster>(text).message;
    let Some(Metadata { filter_metadata, .. }) = &cluster.metadata else { panic!("no metadata") };
    assert_eq!(filter_metadata["x"].fields.len(), 8);
    let yaml = schema.to_yaml(&cluster);
    assert_eq!(parsed::<Cluster>(&yaml).message, cluster, "{yaml}");
}

#[test]
fn lists_keep_their_order_and_their_neighbours() {
    let text = "static_resources:\n  clusters: [{name: a}, {name: b}, {name: c}]\n  listeners: [{name: l}, {name: m}]\nadmin: {}\nnode: {id: n}\n";
    let Parsed { message, map } = parsed::<Bootstrap>(text);
    let resources = message.static_resources.unwrap();
    let clusters: Vec<_> = resources.clusters.iter().map(|c| c.name.as_str()).collect();
    let listeners: Vec<_> = resources.listeners.iter().map(|l| l.name.as_str()).collect();
    assert_eq!((clusters, listeners), (vec!["a", "b", "c"], vec!["l", "m"]));
    assert!(message.admin.is_some());
    assert_eq!(message.node.unwrap().id, "n");
    assert_eq!(map.position("static_resources.clusters[1].name").unwrap().column, 26);
    let errors = mistakes::<Bootstrap>("static_resources: {clusters: [{name: a}, 5, {name: \"\"}]}");
    assert_eq!(
        errors,
        "f:1:42: static_resources.clusters[1]: must be a mapping, not 5\nf:1:46: static_resources.clusters[2].name: must not be empty\n"
    );
}

#[test]
fn the_deepest_nesting_is_read_or_refused() {
    for depth in [10, 30, 60, 95, 200] {
        let text = format!(
            "name: a\nmetadata: {{filter_metadata: {{x: {}{}}}}}",
            "{a: ".repeat(depth),
            "}".repeat(depth)
        );
        let said = mistakes::<Cluster>(&text);
        assert_eq!(said.is_empty(), depth <= 30, "{depth}: {said}");
    }
}
