use prost::{Message, Name};
use remora_xds::diag::{Errors, SourceMap};
use remora_xds::pb::envoy::config::core::v3::address::Address as AddressKind;
use remora_xds::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use remora_xds::pb::envoy::config::core::v3::http1_protocol_options::{HeaderKeyFormat, header_key_format};
use remora_xds::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use remora_xds::pb::envoy::config::core::v3::socket_option::Value;
use remora_xds::pb::envoy::config::core::v3::transport_socket::ConfigType as SocketConfig;
use remora_xds::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, CidrRange, ConfigSource, Http1ProtocolOptions, Http2ProtocolOptions,
    HttpProtocolOptions, KeepaliveSettings, Metadata, PathConfigSource, SocketAddress, SocketOption, TcpKeepalive,
    TransportSocket,
};
use remora_xds::pb::envoy::config::listener::v3::{AdditionalAddress, Filter, FilterChain, FilterChainMatch};
use remora_xds::pb::envoy::config::listener::v3::ListenerFilterChainMatchPredicate;
use remora_xds::pb::envoy::config::listener::v3::filter;
use remora_xds::pb::envoy::config::listener::v3::listener_filter_chain_match_predicate::{MatchSet, Rule};
use remora_xds::pb::envoy::config::route::v3::RouteConfiguration;
use remora_xds::pb::envoy::extensions::filters::http::router::v3::Router;
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    RouteSpecifier, StripPortMode, UpgradeConfig,
};
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_filter,
};
use remora_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use remora_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::weighted_cluster::ClusterWeight;
use remora_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{ClusterSpecifier, WeightedCluster};
use remora_xds::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use remora_xds::pb::envoy::r#type::v3::Int32Range;
use remora_xds::pb::google::protobuf::{Any, BoolValue, Duration as DurationPb, UInt32Value};

use super::*;
use crate::config::names::Names;
use crate::config::spec::{HttpSpec, NetworkFilter, RouteSource, TcpSpec};
use crate::listener::chain_match::{ConnectionFacts, Transport};

mod refused;

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn seconds(seconds: i64) -> Option<DurationPb> {
    Some(DurationPb { seconds, nanos: 0 })
}

fn on() -> Option<BoolValue> {
    Some(BoolValue { value: true })
}

fn off() -> Option<BoolValue> {
    Some(BoolValue { value: false })
}

fn count(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

fn address(ip: &str, port: u32) -> Option<Address> {
    let socket = SocketAddress {
        address: ip.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(port)),
        ..SocketAddress::default()
    };
    Some(Address { address: Some(AddressKind::SocketAddress(socket)) })
}

fn chain_of<M: Message + Name>(filter: &M) -> FilterChain {
    let filter = Filter { name: "f".into(), config_type: Some(filter::ConfigType::TypedConfig(any(filter))) };
    FilterChain { filters: vec![filter], ..FilterChain::default() }
}

fn tcp() -> TcpProxy {
    TcpProxy {
        stat_prefix: "tcp".into(),
        cluster_specifier: Some(ClusterSpecifier::Cluster("orders".into())),
        ..TcpProxy::default()
    }
}

fn http_filter<M: Message + Name>(message: &M) -> HttpFilter {
    HttpFilter {
        name: "f".into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(message))),
        ..HttpFilter::default()
    }
}

fn hcm() -> HttpConnectionManager {
    let ads = ConfigSourceSpecifier::Ads(AggregatedConfigSource {});
    let source = ConfigSource { config_source_specifier: Some(ads), ..ConfigSource::default() };
    HttpConnectionManager {
        stat_prefix: "http".into(),
        http_filters: vec![http_filter(&Router::default())],
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(source),
            route_config_name: "routes".into(),
        })),
        ..HttpConnectionManager::default()
    }
}

fn listener(chains: Vec<FilterChain>) -> Listener {
    Listener {
        name: "in".into(),
        address: address("127.0.0.1", 8080),
        filter_chains: chains,
        ..Listener::default()
    }
}

fn run(pb: &Listener) -> (Option<ListenerSpec>, Vec<String>, Names) {
    let mut errors = Errors::new("test", SourceMap::default());
    let mut names = Names::default();
    let made = compile_listener(pb, &At::root(), &mut Scope { errors: &mut errors, names: &mut names });
    let errors: Vec<_> = errors.into_list().iter().map(ToString::to_string).collect();
    assert_eq!(made.is_none(), !errors.is_empty(), "{errors:?}");
    (made, errors, names)
}

fn compiled(pb: &Listener) -> ListenerSpec {
    let (made, errors, _) = run(pb);
    made.unwrap_or_else(|| panic!("{errors:?}"))
}

fn errors(pb: &Listener) -> String {
    run(pb).1.join("\n")
}

fn http(pb: &HttpConnectionManager) -> Arc<HttpSpec> {
    match &compiled(&listener(vec![chain_of(pb)])).chains[0].filter {
        NetworkFilter::Http(spec) => Arc::clone(spec),
        NetworkFilter::Tcp(_) => panic!("not HTTP"),
    }
}

fn tcp_spec(pb: &TcpProxy) -> Arc<TcpSpec> {
    match &compiled(&listener(vec![chain_of(pb)])).chains[0].filter {
        NetworkFilter::Tcp(spec) => Arc::clone(spec),
        NetworkFilter::Http(_) => panic!("not TCP"),
    }
}

/// A table that is full ends the process at the next header that it gets, which is ours.
#[test]
fn however_many_headers_are_permitted_a_request_over_http2_never_fills_the_table() {
    let common = HttpProtocolOptions { max_headers_count: count(u32::MAX), ..HttpProtocolOptions::default() };
    let pb = HttpConnectionManager { common_http_protocol_options: Some(common), ..hcm() };
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.extensions.insert(h2::ext::Protocol::from_static("websocket"));
    let name = |n: u32| http::HeaderName::try_from(format!("x-{n}")).unwrap();
    parts.headers.extend((0..24_576).map(|n| (name(n), http::HeaderValue::from_static(""))));
    let refused = crate::http::h2::convert::request(parts, &http(&pb), false).unwrap_err();
    assert_eq!(refused, crate::http::h2::convert::Refused::Reply(crate::error::Reason::HeadersTooLarge));
}

#[test]
fn a_listener_that_says_little_has_the_defaults() {
    let (spec, _, names) = run(&listener(vec![chain_of(&tcp())]));
    let spec = spec.unwrap();
    assert_eq!((&*spec.name, spec.address.to_string().as_str()), ("in", "127.0.0.1:8080"));
    assert_eq!((spec.bind, spec.use_original_dst, spec.direction), (true, false, Direction::Unspecified));
    assert_eq!((spec.inspect_tls, spec.inspect_http, spec.original_dst), (false, false, false));
    assert_eq!((spec.inspect_timeout, spec.buffer_limit), (Duration::from_secs(15), 1 << 20));
    assert_eq!(spec.socket, crate::config::spec::SocketSpec::default());
    let chain = &spec.chains[0];
    assert_eq!((&*chain.name, chain.tls_timeout), ("in/0", Duration::from_secs(10)));
    assert_eq!(names.chains.name(chain.id).map(|n| &**n), Some("in/*"));
    let NetworkFilter::Tcp(tcp) = &chain.filter else { panic!("not TCP") };
    assert_eq!(names.clusters.name(tcp.clusters[0].0).map(|n| &**n), Some("orders"));
    insta::assert_debug_snapshot!(tcp);
}

#[test]
fn a_connection_manager_that_says_little_has_the_defaults() {
    insta::assert_debug_snapshot!(http(&hcm()));
}

#[test]
fn a_connection_manager_that_says_everything() {
    let path = PathConfigSource { path: "/etc/routes.yaml".into(), ..PathConfigSource::default() };
    let source = ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::PathConfigSource(path)),
        initial_fetch_timeout: seconds(0),
        resource_api_version: 2,
        ..ConfigSource::default()
    };
    let router =
        Router { suppress_envoy_headers: true, respect_expected_rq_timeout: true, ..Router::default() };
    let upgrade = |name: &str, enabled| UpgradeConfig {
        upgrade_type: name.into(),
        enabled,
        ..UpgradeConfig::default()
    };
    let pb = HttpConnectionManager {
        codec_type: 2,
        http_filters: vec![http_filter(&router)],
        common_http_protocol_options: Some(HttpProtocolOptions {
            idle_timeout: seconds(0),
            max_connection_duration: seconds(1800),
            max_headers_count: count(200),
            max_stream_duration: seconds(60),
            headers_with_underscores_action: 1,
            max_requests_per_connection: count(1000),
            ..HttpProtocolOptions::default()
        }),
        http_protocol_options: Some(Http1ProtocolOptions {
            default_host_for_http_10: "shop.example".into(),
            header_key_format: Some(HeaderKeyFormat {
                header_format: Some(header_key_format::HeaderFormat::ProperCaseWords(
                    header_key_format::ProperCaseWords {},
                )),
            }),
            ..Http1ProtocolOptions::default()
        }),
        http2_protocol_options: Some(Http2ProtocolOptions {
            max_concurrent_streams: count(100),
            initial_stream_window_size: count(65536),
            initial_connection_window_size: count(1 << 20),
            hpack_table_size: count(0),
            allow_connect: true,
            connection_keepalive: Some(KeepaliveSettings {
                interval: seconds(10),
                timeout: seconds(3),
                ..KeepaliveSettings::default()
            }),
            ..Http2ProtocolOptions::default()
        }),
        server_name: "shop".into(),
        server_header_transformation: 1,
        max_request_headers_kb: count(96),
        stream_idle_timeout: seconds(0),
        request_timeout: seconds(30),
        request_headers_timeout: seconds(0),
        drain_timeout: seconds(0),
        delayed_close_timeout: seconds(2),
        use_remote_address: on(),
        xff_num_trusted_hops: 1,
        skip_xff_append: true,
        via: "remora".into(),
        generate_request_id: off(),
        preserve_external_request_id: true,
        always_set_request_id_in_response: true,
        upgrade_configs: vec![upgrade("WebSocket", None), upgrade("connect", off()), upgrade("foo", on())],
        normalize_path: off(),
        strip_port_mode: Some(StripPortMode::StripAnyHostPort(true)),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(source),
            route_config_name: "routes".into(),
        })),
        ..hcm()
    };
    insta::assert_debug_snapshot!(http(&pb));
}

#[test]
fn inline_routes_have_no_subscription() {
    let route_specifier = Some(RouteSpecifier::RouteConfig(RouteConfiguration::default()));
    let spec = http(&HttpConnectionManager { route_specifier, ..hcm() });
    assert!(matches!(spec.routes, RouteSource::Inline(_)) && spec.rds.is_none());
}

#[test]
fn weights_are_cumulative() {
    let weight = |name: &str, weight| ClusterWeight { name: name.into(), weight, metadata_match: None };
    let clusters = vec![weight("a", 90), weight("b", 10), weight("a", 1)];
    let pb = TcpProxy {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(WeightedCluster { clusters })),
        idle_timeout: seconds(0),
        max_connect_attempts: count(3),
        ..tcp()
    };
    let spec = tcp_spec(&pb);
    let id = crate::config::names::ClusterId::from_index;
    assert_eq!(spec.clusters, [(id(0), 90), (id(1), 100), (id(0), 101)]);
    assert_eq!((spec.idle_timeout, spec.max_connect_attempts), (None, 3));
}

#[test]
fn sockets_and_listener_filters() {
    let keepalive =
        TcpKeepalive { keepalive_probes: count(3), keepalive_time: count(60), keepalive_interval: count(5) };
    let option = |level, name, value| SocketOption {
        level,
        name,
        value: Some(Value::IntValue(value)),
        ..SocketOption::default()
    };
    let typed =
        |any| ListenerFilter { config_type: Some(ConfigType::TypedConfig(any)), ..ListenerFilter::default() };
    let mut any_address = address("::", 0);
    if let Some(AddressKind::SocketAddress(a)) = any_address.as_mut().and_then(|a| a.address.as_mut()) {
        a.ipv4_compat = true;
    }
    let pb = Listener {
        name: String::new(),
        address: any_address,
        additional_addresses: vec![AdditionalAddress {
            address: address("10.0.0.1", 81),
            ..Default::default()
        }],
        traffic_direction: 2,
        use_original_dst: on(),
        bind_to_port: off(),
        transparent: on(),
        tcp_backlog_size: count(4096),
        tcp_keepalive: Some(keepalive),
        socket_options: vec![option(6, 4, 30), option(0, 15, 1), option(6, 1, 1)],
        listener_filters: vec![
            typed(any(&OriginalSrc { mark: 1337, ..OriginalSrc::default() })),
            typed(any(&OriginalDst::default())),
            typed(any(&TlsInspector::default())),
            typed(any(&HttpInspector::default())),
        ],
        listener_filters_timeout: seconds(0),
        continue_on_listener_filters_timeout: true,
        per_connection_buffer_limit_bytes: count(32768),
        metadata: Some(Metadata::default()),
        ..listener(vec![chain_of(&tcp())])
    };
    let spec = compiled(&pb);
    assert_eq!(&*spec.name, "[::]:0");
    assert!(
        spec.inspect_tls && spec.inspect_http && spec.original_dst && spec.use_original_dst && !spec.bind
    );
    assert_eq!(spec.original_src, Some(1337));
    assert!(spec.inspect_timeout.is_zero() && spec.continue_on_inspect_timeout);
    assert_eq!((spec.direction, spec.buffer_limit), (Direction::Outbound, 32768));
    assert_eq!(spec.additional, ["10.0.0.1:81".parse().unwrap()]);
    insta::assert_debug_snapshot!(spec.socket);
}

#[test]
fn inspectors_are_off_on_some_ports() {
    let range = |start, end| ListenerFilterChainMatchPredicate {
        rule: Some(Rule::DestinationPortRange(Int32Range { start, end })),
    };
    let any_of = |rules| ListenerFilterChainMatchPredicate { rule: Some(Rule::OrMatch(MatchSet { rules })) };
    let with = |predicate| {
        let config_type = Some(ConfigType::TypedConfig(any(&TlsInspector::default())));
        let mut filter = ListenerFilter { config_type, ..ListenerFilter::default() };
        filter.filter_disabled = Some(predicate);
        Listener { listener_filters: vec![filter], ..listener(vec![chain_of(&tcp())]) }
    };
    let spec = compiled(&with(any_of(vec![range(3306, 3307), range(25, 30)])));
    let blind = [24, 25, 29, 30, 3306, 3307].map(|port| spec.uninspected.tls.contains(port));
    assert_eq!(blind, [false, true, true, false, true, false], "the end is not meant, as in Envoy");
    assert!(spec.inspect_tls && !spec.uninspected.http.contains(3306));
    let every = ListenerFilterChainMatchPredicate { rule: Some(Rule::AnyMatch(true)) };
    assert!(compiled(&with(every.clone())).uninspected.tls.contains(1));
    for (predicate, said) in [
        (range(30, 30), "30 to 30 is no range of ports"),
        (range(1, 70_000), "1 to 70000 is no range of ports"),
        (ListenerFilterChainMatchPredicate { rule: Some(Rule::NotMatch(Box::new(every))) }, "not_match"),
    ] {
        let found = errors(&with(predicate));
        assert!(found.contains(said), "{found}");
    }
}

#[test]
fn chains_are_matched_and_named() {
    let with = |name: &str, m: FilterChainMatch| FilterChain {
        name: name.into(),
        filter_chain_match: Some(m),
        ..chain_of(&tcp())
    };
    let tls = FilterChainMatch { server_names: vec!["*.Shop.example".into()], ..FilterChainMatch::default() };
    let net = CidrRange { address_prefix: "10.1.2.3".into(), prefix_len: count(8) };
    let inside = FilterChainMatch { prefix_ranges: vec![net], ..FilterChainMatch::default() };
    let pb = Listener {
        default_filter_chain: Some(chain_of(&tcp())),
        ..listener(vec![
            with("tls", tls),
            with("tls", inside),
            with("", FilterChainMatch { destination_port: count(9000), ..FilterChainMatch::default() }),
        ])
    };
    let (spec, _, names) = run(&pb);
    let spec = spec.unwrap();
    assert!(spec.inspect_tls, "a server name needs the TLS inspector");
    let shown: Vec<_> = spec.chains.iter().map(|c| c.name.to_string()).collect();
    assert_eq!(shown, ["tls", "tls", "in/2", "in/default"]);
    let ids: Vec<_> = spec.chains.iter().map(|c| names.chains.name(c.id).unwrap().to_string()).collect();
    assert!(
        ids[0] == "in/tls"
            && ids[1] == "in/tls/1"
            && ids[2].starts_with("in/match ")
            && ids[3] == "in/default"
    );
    // Its place does not make it another chain.
    let alone = listener(vec![pb.filter_chains[2].clone()]);
    let (only, _, names) = run(&alone);
    assert_eq!(names.chains.name(only.unwrap().chains[0].id).map(|n| n.to_string()), Some(ids[2].clone()));
    let facts = ConnectionFacts {
        destination: "127.0.0.1:1".parse().unwrap(),
        source: "192.0.2.1:2".parse().unwrap(),
        direct_source: "192.0.2.1:2".parse().unwrap(),
        transport: Transport::Tls,
        server_name: Some("www.shop.example"),
        application_protocols: &[],
    };
    assert_eq!(spec.matcher.find(&facts), Some(0));
    let inside = ConnectionFacts { destination: "10.9.9.9:1".parse().unwrap(), ..facts };
    assert_eq!(spec.matcher.find(&inside), Some(1));
    assert_eq!(spec.matcher.find(&ConnectionFacts { server_name: None, ..facts }), Some(3));
}

#[test]
fn a_plaintext_match_needs_no_tls_inspector() {
    let raw = FilterChainMatch {
        transport_protocol: "raw_buffer".into(),
        application_protocols: vec!["http/1.1".into()],
        ..FilterChainMatch::default()
    };
    let chain = FilterChain { filter_chain_match: Some(raw), ..chain_of(&tcp()) };
    assert!(!compiled(&listener(vec![chain])).inspect_tls);
}

#[test]
fn transport_sockets() {
    let with = |any| FilterChain {
        transport_socket: Some(TransportSocket {
            name: "s".into(),
            config_type: Some(SocketConfig::TypedConfig(any)),
        }),
        transport_socket_connect_timeout: seconds(3),
        ..chain_of(&tcp())
    };
    let plain = compiled(&listener(vec![with(any(&RawBuffer::default()))]));
    assert!(plain.chains[0].tls.is_none());
    assert_eq!(plain.chains[0].tls_timeout, Duration::from_secs(3));
    let text = errors(&listener(vec![with(any(&DownstreamTlsContext::default()))]));
    assert!(
        text.contains("filter_chains[0].transport_socket.typed_config.common_tls_context.tls_certificates"),
        "{text}"
    );
    let text = errors(&listener(vec![with(any(&Router::default()))]));
    assert!(text.contains("filter_chains[0].transport_socket.typed_config: the transport socket"), "{text}");
}
