use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3 as tls;

use super::*;
use crate::config::names::Names;
use pb::envoy::config::cluster::v3::circuit_breakers::{self, thresholds};
use pb::envoy::config::cluster::v3::cluster::{
    CommonLbConfig, EdsClusterConfig, LbPolicy, LeastRequestLbConfig, RefreshRate, common_lb_config,
};
use pb::envoy::config::cluster::v3::{
    CircuitBreakers, LoadBalancingPolicy, UpstreamConnectionOptions, load_balancing_policy,
};
use pb::envoy::config::core::v3::address::Address as AddressKind;
use pb::envoy::config::core::v3::socket_address::PortSpecifier;
use pb::envoy::config::core::v3::socket_option::Value;
use pb::envoy::config::endpoint::v3 as ep;
use pb::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use pb::envoy::extensions::load_balancing_policies::wrr_locality::v3::WrrLocality;
use pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use pb::envoy::extensions::upstreams::http::v3::http_protocol_options as hpo;
use pb::google::protobuf::{Any, Duration as PbDuration, Struct, UInt32Value, Value as PbValue, value::Kind};
use proptest::prelude::*;
use prost::{Message, Name};
use remora_xds::diag::{Errors, SourceMap};

mod balancing;
mod discovery;

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

fn seconds(seconds: i64) -> Option<PbDuration> {
    Some(PbDuration { seconds, nanos: 0 })
}

fn address(host: &str, port: u32) -> core::Address {
    let port_specifier = Some(PortSpecifier::PortValue(port));
    let socket = core::SocketAddress { address: host.into(), port_specifier, ..Default::default() };
    core::Address { address: Some(AddressKind::SocketAddress(socket)) }
}

fn lb_endpoint(host: &str, port: u32) -> ep::LbEndpoint {
    let endpoint = ep::Endpoint { address: Some(address(host, port)), ..Default::default() };
    let host_identifier = Some(ep::lb_endpoint::HostIdentifier::Endpoint(endpoint));
    ep::LbEndpoint { host_identifier, ..Default::default() }
}

fn assignment(endpoints: Vec<ep::LbEndpoint>) -> ep::ClusterLoadAssignment {
    let locality = ep::LocalityLbEndpoints { lb_endpoints: endpoints, ..Default::default() };
    ep::ClusterLoadAssignment { cluster_name: "c".into(), endpoints: vec![locality], ..Default::default() }
}

fn cluster(kind: DiscoveryType) -> Cluster {
    let cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind as i32));
    Cluster { name: "c".into(), cluster_discovery_type, ..Default::default() }
}

fn statics(endpoints: Vec<ep::LbEndpoint>) -> Cluster {
    Cluster { load_assignment: Some(assignment(endpoints)), ..cluster(DiscoveryType::Static) }
}

fn run<T>(compile: impl FnOnce(&At<'_>, &mut Scope<'_>) -> Option<T>) -> Result<T, Vec<String>> {
    let mut errors = Errors::new("test", SourceMap::default());
    let mut names = Names::default();
    let done = compile(&At::root(), &mut Scope { errors: &mut errors, names: &mut names });
    let list: Vec<String> = errors.into_list().iter().map(|e| format!("{}: {}", e.path, e.message)).collect();
    match done {
        Some(done) if list.is_empty() => Ok(done),
        Some(_) => panic!("an answer beside {list:?}"),
        None => {
            assert!(!list.is_empty(), "refused without a word");
            Err(list)
        }
    }
}

fn compile(pb: &Cluster) -> Result<ClusterSpec, Vec<String>> {
    run(|at, scope| compile_cluster(pb, at, scope))
}

fn compile_eds(pb: &ep::ClusterLoadAssignment) -> Result<Assignment, Vec<String>> {
    run(|at, scope| {
        let compiled = compile_load_assignment(pb, at, scope);
        scope.errors.is_empty().then_some(compiled)
    })
}

fn errors(pb: &Cluster) -> Vec<String> {
    compile(pb).expect_err("must be refused")
}

#[test]
fn defaults_are_envoys() {
    insta::assert_debug_snapshot!(compile(&statics(vec![lb_endpoint("10.0.0.1", 80)])).unwrap());
}

fn http_options(options: hpo::UpstreamProtocolOptions) -> HttpProtocolOptions {
    HttpProtocolOptions { upstream_protocol_options: Some(options), ..Default::default() }
}

fn with_http(pb: Cluster, options: &HttpProtocolOptions) -> Cluster {
    let typed_extension_protocol_options = [(HttpProtocolOptions::full_name(), any(options))].into();
    Cluster { typed_extension_protocol_options, ..pb }
}

fn tls_socket(sni: &str) -> Option<core::TransportSocket> {
    // Nothing is verified here, which has to be said.
    let accept = tls::certificate_validation_context::TrustChainVerification::AcceptUntrusted as i32;
    let validation =
        tls::CertificateValidationContext { trust_chain_verification: accept, ..Default::default() };
    let common = tls::CommonTlsContext {
        validation_context_type: Some(tls::common_tls_context::ValidationContextType::ValidationContext(
            validation,
        )),
        ..Default::default()
    };
    let context =
        UpstreamTlsContext { sni: sni.into(), common_tls_context: Some(common), ..Default::default() };
    let config = any(&context);
    let config_type = Some(core::transport_socket::ConfigType::TypedConfig(config));
    Some(core::TransportSocket { name: "envoy.transport_sockets.tls".into(), config_type })
}

fn metadata(namespace: &str, key: &str, value: &str) -> Option<core::Metadata> {
    let value = PbValue { kind: Some(Kind::StringValue(value.into())) };
    let fields = Struct { fields: [(key.to_owned(), value)].into() };
    Some(core::Metadata { filter_metadata: [(namespace.to_owned(), fields)].into(), ..Default::default() })
}

fn all_http_options() -> HttpProtocolOptions {
    let h2 = core::Http2ProtocolOptions {
        max_concurrent_streams: number(100),
        initial_stream_window_size: number(65_536),
        connection_keepalive: Some(core::KeepaliveSettings {
            interval: seconds(30),
            timeout: seconds(5),
            ..Default::default()
        }),
        ..Default::default()
    };
    let explicit = hpo::ExplicitHttpConfig {
        protocol_config: Some(hpo::explicit_http_config::ProtocolConfig::Http2ProtocolOptions(h2)),
    };
    HttpProtocolOptions {
        common_http_protocol_options: Some(core::HttpProtocolOptions {
            idle_timeout: seconds(0),
            max_connection_duration: seconds(1800),
            max_requests_per_connection: number(1000),
            max_response_headers_kb: number(96),
            ..Default::default()
        }),
        upstream_http_protocol_options: Some(core::UpstreamHttpProtocolOptions {
            auto_sni: true,
            auto_san_validation: true,
            override_auto_sni_header: "X-Real-Host".into(),
        }),
        ..http_options(hpo::UpstreamProtocolOptions::ExplicitHttpConfig(explicit))
    }
}

#[test]
#[expect(deprecated, reason = "what files still say")]
fn everything_set() {
    let retry_budget = thresholds::RetryBudget {
        budget_percent: Some(pb::envoy::r#type::v3::Percent { value: 25.0 }),
        budget_interval: seconds(10),
        min_retry_concurrency: number(10),
    };
    let high = circuit_breakers::Thresholds {
        priority: 1,
        max_connections: number(u32::MAX),
        retry_budget: Some(retry_budget),
        track_remaining: true,
        ..Default::default()
    };
    let options = all_http_options();
    let user_timeout =
        core::SocketOption { level: 6, name: 18, value: Some(Value::IntValue(20_000)), ..Default::default() };
    let source = core::SocketAddress {
        address: "127.0.0.6".into(),
        port_specifier: Some(PortSpecifier::PortValue(0)),
        ..Default::default()
    };
    let pb = Cluster {
        alt_stat_name: "short".into(),
        connect_timeout: seconds(1),
        dns_refresh_rate: seconds(60),
        dns_jitter: seconds(2),
        dns_failure_refresh_rate: Some(RefreshRate { base_interval: seconds(1), max_interval: None }),
        respect_dns_ttl: true,
        dns_lookup_family: 4,
        load_assignment: Some(assignment(vec![lb_endpoint("db.test", 5432), lb_endpoint("::1", 5432)])),
        lb_policy: LbPolicy::LeastRequest as i32,
        lb_config: Some(LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
            choice_count: number(3),
            ..Default::default()
        })),
        common_lb_config: Some(CommonLbConfig {
            healthy_panic_threshold: Some(pb::envoy::r#type::v3::Percent { value: 0.0 }),
            close_connections_on_host_set_change: true,
            locality_config_specifier: Some(
                common_lb_config::LocalityConfigSpecifier::LocalityWeightedLbConfig(Default::default()),
            ),
            ..Default::default()
        }),
        circuit_breakers: Some(CircuitBreakers { thresholds: vec![high], ..Default::default() }),
        transport_socket: tls_socket("c.test"),
        upstream_connection_options: Some(UpstreamConnectionOptions {
            tcp_keepalive: Some(core::TcpKeepalive { keepalive_time: number(60), ..Default::default() }),
            ..Default::default()
        }),
        upstream_bind_config: Some(core::BindConfig {
            source_address: Some(source),
            socket_options: vec![user_timeout],
            ..Default::default()
        }),
        metadata: metadata("istio", "service", "db.prod"),
        per_connection_buffer_limit_bytes: number(32_768),
        ..with_http(cluster(DiscoveryType::StrictDns), &options)
    };
    // A hash is nobody's promise.
    let compiled = ClusterSpec { transport: 1, ..compile(&pb).unwrap() };
    insta::assert_debug_snapshot!(compiled);
}

#[test]
fn clusters_with_the_same_transport_socket_know_it() {
    let transport = |socket| {
        let pb = Cluster { transport_socket: socket, ..statics(vec![lb_endpoint("10.0.0.1", 80)]) };
        compile(&pb).unwrap().transport
    };
    let [a, b] = ["a.example", "b.example"].map(|sni| transport(tls_socket(sni)));
    assert_eq!(a, transport(tls_socket("a.example")));
    assert!(a != b && a != transport(None));
}

#[test]
fn an_assignment_with_localities() {
    let mut heavy = lb_endpoint("10.0.0.1", 8080);
    heavy.load_balancing_weight = number(7);
    heavy.health_status = 5;
    heavy.metadata = metadata("istio", "workload", "orders-v1;prod;orders;v1;c1");
    let mut same = lb_endpoint("fd00::1", 8080);
    same.metadata = heavy.metadata.clone();
    let near = ep::LocalityLbEndpoints {
        locality: Some(core::Locality { region: "eu".into(), zone: "a".into(), sub_zone: String::new() }),
        lb_endpoints: vec![heavy, same],
        load_balancing_weight: number(3),
        ..Default::default()
    };
    let far = ep::LocalityLbEndpoints {
        lb_endpoints: vec![ep::LbEndpoint { health_status: 3, ..lb_endpoint("10.0.1.1", 8080) }],
        priority: 1,
        ..Default::default()
    };
    let policy = ep::cluster_load_assignment::Policy {
        overprovisioning_factor: number(200),
        weighted_priority_health: true,
        ..Default::default()
    };
    let pb = ep::ClusterLoadAssignment {
        cluster_name: "orders".into(),
        endpoints: vec![near, far],
        policy: Some(policy),
        ..Default::default()
    };
    let compiled = compile_eds(&pb).unwrap();
    let [first, second, _] = &compiled.endpoints[..] else { panic!("three endpoints") };
    assert!(Arc::ptr_eq(first.labels.as_ref().unwrap(), second.labels.as_ref().unwrap()));
    insta::assert_debug_snapshot!(compiled);
}

#[test]
fn bad_endpoints_are_refused_with_their_path() {
    let mut named = lb_endpoint("10.0.0.1", 80);
    if let Some(ep::lb_endpoint::HostIdentifier::Endpoint(endpoint)) = &mut named.host_identifier
        && let Some(AddressKind::SocketAddress(socket)) =
            endpoint.address.as_mut().and_then(|a| a.address.as_mut())
    {
        socket.port_specifier = Some(PortSpecifier::NamedPort("http".into()));
        socket.protocol = 1;
    }
    let mut weightless = lb_endpoint("10.0.0.1", 80);
    weightless.load_balancing_weight = number(0);
    weightless.health_status = 77;
    let list = vec![
        lb_endpoint("db.test", 80),
        lb_endpoint("10.0.0.1", 0),
        lb_endpoint("10.0.0.1", 70_000),
        named,
        ep::LbEndpoint::default(),
        weightless,
        lb_endpoint("no such name!", 80),
        ep::LbEndpoint {
            host_identifier: Some(ep::lb_endpoint::HostIdentifier::EndpointName("x".into())),
            ..Default::default()
        },
    ];
    insta::assert_debug_snapshot!(errors(&statics(list)));
}

#[test]
fn weights_that_overflow_are_refused() {
    let heavy = || ep::LbEndpoint { load_balancing_weight: number(u32::MAX), ..lb_endpoint("10.0.0.1", 80) };
    let group = |priority, weight| ep::LocalityLbEndpoints {
        priority,
        load_balancing_weight: number(weight),
        ..Default::default()
    };
    let mut pb = assignment(vec![heavy(), heavy()]);
    pb.endpoints.extend([group(0, u32::MAX), group(1, 1), group(0, 1), group(129, 0)]);
    pb.cluster_name.clear();
    insta::assert_debug_snapshot!(compile_eds(&pb).unwrap_err());
}

#[test]
fn original_dst_clusters() {
    let config = OriginalDstLbConfig {
        use_http_header: true,
        upstream_port_override: number(8080),
        ..Default::default()
    };
    let pb = Cluster {
        lb_policy: LbPolicy::ClusterProvided as i32,
        lb_config: Some(LbConfig::OriginalDstLbConfig(config)),
        cleanup_interval: seconds(60),
        ..cluster(DiscoveryType::OriginalDst)
    };
    let Ok(ClusterSpec { discovery: Discovery::OriginalDst(spec), .. }) = compile(&pb) else {
        panic!("original dst")
    };
    let header = Some(::http::HeaderName::from_static("x-envoy-original-dst-host"));
    assert_eq!(spec, OriginalDstSpec { header, port: Some(8080), cleanup: Duration::from_secs(60) });
    let wrong = Cluster { load_assignment: Some(assignment(vec![])), ..cluster(DiscoveryType::OriginalDst) };
    insta::assert_debug_snapshot!(errors(&wrong));
    let wrong = Cluster { cluster_discovery_type: statics(vec![]).cluster_discovery_type, ..pb };
    insta::assert_debug_snapshot!(errors(&wrong));
}

#[test]
#[expect(deprecated, reason = "what files still say")]
fn unsupported_fields_are_refused_with_their_path() {
    let h2 = core::Http2ProtocolOptions {
        initial_stream_window_size: number(1),
        stream_reset_burst: Some(Default::default()),
        connection_keepalive: Some(core::KeepaliveSettings { interval: seconds(1), ..Default::default() }),
        ..Default::default()
    };
    let pb = Cluster {
        name: String::new(),
        connect_timeout: seconds(0),
        lb_policy: LbPolicy::RingHash as i32,
        track_timeout_budgets: true,
        health_checks: vec![Default::default(), Default::default()],
        http2_protocol_options: Some(h2),
        dns_refresh_rate: seconds(-1),
        per_connection_buffer_limit_bytes: number(0),
        common_lb_config: Some(CommonLbConfig {
            healthy_panic_threshold: Some(pb::envoy::r#type::v3::Percent { value: f64::NAN }),
            locality_config_specifier: Some(common_lb_config::LocalityConfigSpecifier::ZoneAwareLbConfig(
                Default::default(),
            )),
            ..Default::default()
        }),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![
                Default::default(),
                Default::default(),
                circuit_breakers::Thresholds { priority: 9, ..Default::default() },
            ],
            per_host_thresholds: vec![Default::default()],
        }),
        typed_extension_protocol_options: [("my.Options".to_owned(), Any::default())].into(),
        transport_socket: Some(core::TransportSocket {
            name: "x".into(),
            config_type: Some(core::transport_socket::ConfigType::TypedConfig(Any {
                type_url: "type.googleapis.com/my.Socket".into(),
                value: Vec::new(),
            })),
        }),
        upstream_bind_config: Some(core::BindConfig {
            socket_options: vec![core::SocketOption { level: 1, name: 2, ..Default::default() }],
            ..Default::default()
        }),
        ..statics(vec![])
    };
    insta::assert_debug_snapshot!(errors(&pb));
}

proptest! {
    /// Any bytes that decode as a cluster either compile or are refused with a message; `run` checks which.
    #[test]
    fn no_cluster_panics(
        bytes in prop::collection::vec(any_byte(), 0..200), kind in -1_i32..6, policy in -1_i32..9,
        weights in prop::collection::vec(proptest::num::u32::ANY, 0..5), port: u32, nanos: i32, secs: i64, family in -1_i32..7,
    ) {
        let mut pb = Cluster::decode(bytes.as_slice()).unwrap_or_default();
        pb.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind));
        pb.lb_policy = policy;
        pb.dns_lookup_family = family;
        pb.connect_timeout = Some(PbDuration { seconds: secs, nanos });
        let endpoint = |w: &u32| ep::LbEndpoint { load_balancing_weight: number(*w), ..lb_endpoint("10.0.0.1", port) };
        pb.load_assignment = Some(assignment(weights.iter().map(endpoint).collect()));
        let _ = compile(&pb);
        // The same with the parts that make most of these refusable made right.
        pb.connect_timeout = seconds(1);
        if let Ok(spec) = compile(&pb) {
            let cluster = crate::upstream::cluster::Cluster::new(Arc::new(spec));
            let mut rng = fastrand::Rng::with_seed(1);
            let _ = cluster.pick(&mut crate::balance::WorkerCursor::default(), &mut rng, &crate::balance::context::LbContext::default());
        }
    }
}

fn any_byte() -> impl Strategy<Value = u8> {
    // Field tags of the low numbers are likelier to decode.
    prop_oneof![0_u8..=130, Just(0), any_u8()]
}

fn any_u8() -> impl Strategy<Value = u8> {
    proptest::num::u8::ANY
}
