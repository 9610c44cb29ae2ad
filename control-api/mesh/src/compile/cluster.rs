//! Clusters and their endpoints.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use remora_xds::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use remora_xds::pb::envoy::config::cluster::v3::circuit_breakers::thresholds::RetryBudget;
use remora_xds::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbPolicy,
};
use remora_xds::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster};
use remora_xds::pb::envoy::config::core::v3::{HttpProtocolOptions as CommonOptions, Metadata};
use remora_xds::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use remora_xds::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use remora_xds::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use remora_xds::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use remora_xds::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions,
};
use remora_xds::pb::envoy::r#type::v3::Percent;

use super::{Mesh, http, names, parts, tls};
use crate::document::{
    AppProtocol, Document, LoadBalancing, ServicePort, ServiceSpec, TrafficPolicySpec, WorkloadSpec,
};
use crate::files::FileKind;

/// Hard limits: a bound, not a policy.
const LIMIT: u32 = 10_000;

fn protocol(cluster: &mut Cluster, protocol: ProtocolConfig, idle_seconds: u64) {
    let options = HttpProtocolOptions {
        common_http_protocol_options: Some(CommonOptions {
            idle_timeout: parts::seconds(idle_seconds),
            max_headers_count: parts::number(200),
            ..CommonOptions::default()
        }),
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(protocol),
        })),
        ..HttpProtocolOptions::default()
    };
    cluster
        .typed_extension_protocol_options
        .insert("envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into(), parts::pack(&options));
}

fn services(service: &Document<ServiceSpec>) -> Metadata {
    let (namespace, name) = names::of(service);
    let one = parts::nested(parts::object([
        ("host", parts::text(names::host(namespace, name))),
        ("name", parts::text(name)),
        ("namespace", parts::text(namespace)),
    ]));
    parts::istio([("services", parts::list(vec![one]))])
}

fn breakers(policy: Option<&TrafficPolicySpec>) -> CircuitBreakers {
    let limits = policy.map(|p| p.connections).unwrap_or_default();
    let budget = policy.map(|p| p.retries.budget).unwrap_or_default();
    let limit = |value: Option<u32>| parts::number(value.unwrap_or(LIMIT));
    CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: limit(limits.max_connections),
            max_pending_requests: limit(limits.max_pending_requests),
            max_requests: limit(limits.max_requests),
            retry_budget: Some(RetryBudget {
                budget_percent: Some(Percent { value: f64::from(budget.percent.unwrap_or(20)) }),
                min_retry_concurrency: parts::number(budget.min_concurrency.unwrap_or(10)),
                ..RetryBudget::default()
            }),
            ..Thresholds::default()
        }],
        ..CircuitBreakers::default()
    }
}

fn base(name: String, discovery: DiscoveryType, connect: Duration) -> Cluster {
    Cluster {
        name,
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(discovery.into())),
        connect_timeout: Some(parts::duration(connect)),
        per_connection_buffer_limit_bytes: parts::number(64 * 1024),
        common_lb_config: Some(CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: 50.0 }),
            ..CommonLbConfig::default()
        }),
        ..Cluster::default()
    }
}

/// The program itself: 300 ms to connect; a kept-alive connection is not used when it is older than 3 s, before most servers close theirs.
pub(super) fn local(port: u16, speaks: AppProtocol, service: &Document<ServiceSpec>) -> Cluster {
    let mut cluster = base(names::local(port), DiscoveryType::Static, Duration::from_millis(300));
    let at = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    cluster.load_assignment = Some(assignment(cluster.name.clone(), vec![endpoint(at, None)]));
    cluster.lb_policy = LbPolicy::RoundRobin.into();
    cluster.circuit_breakers = Some(breakers(None));
    cluster.metadata = Some(services(service));
    match speaks {
        AppProtocol::Http => protocol(&mut cluster, ProtocolConfig::HttpProtocolOptions(http::http1()), 3),
        AppProtocol::Http2 | AppProtocol::Grpc => {
            protocol(&mut cluster, ProtocolConfig::Http2ProtocolOptions(http::http2()), 3);
        }
        AppProtocol::Tcp => {}
    }
    cluster
}

/// A Service's port: the sidecars of its workloads, over mTLS.
pub(super) fn outbound(mesh: &Mesh<'_>, service: &Document<ServiceSpec>, port: &ServicePort) -> Cluster {
    let (namespace, name) = names::of(service);
    let policy = mesh.documents.policy(service);
    let connect = policy.and_then(|p| p.timeouts.connect).map_or(Duration::from_secs(1), |t| t.0);
    let mut cluster = base(names::cluster(namespace, name, port.port), DiscoveryType::Eds, connect);
    cluster.eds_cluster_config = Some(EdsClusterConfig {
        eds_config: Some(parts::source(&mesh.sidecar.delivery, FileKind::Endpoints)),
        ..EdsClusterConfig::default()
    });
    cluster.lb_policy = match policy.map(|p| p.load_balancing).unwrap_or_default() {
        LoadBalancing::LeastRequest => LbPolicy::LeastRequest,
        LoadBalancing::RoundRobin => LbPolicy::RoundRobin,
        LoadBalancing::Random => LbPolicy::Random,
    }
    .into();
    cluster.circuit_breakers = Some(breakers(policy));
    cluster.metadata = Some(services(service));
    let mut identities: BTreeSet<String> = BTreeSet::new();
    for (workload, _) in mesh.documents.backing(service, port) {
        let account = &workload.spec.service_account;
        identities.insert(names::spiffe(&mesh.sidecar.trust_domain, namespace, account));
    }
    // Without workloads nobody may answer for the Service; an empty list would mean everybody.
    if identities.is_empty() {
        identities.insert(names::spiffe(&mesh.sidecar.trust_domain, namespace, "-nobody-"));
    }
    let tcp = port.speaks() == AppProtocol::Tcp;
    let alpn: &[&str] = if tcp { &[] } else { &["h2"] };
    let sni = names::sni(namespace, name, port.port);
    cluster.transport_socket = Some(tls::upstream(mesh.sidecar, identities.into_iter().collect(), sni, alpn));
    if !tcp {
        protocol(&mut cluster, ProtocolConfig::Http2ProtocolOptions(http::http2()), 55);
    }
    cluster
}

/// The endpoints of a Service's port: inbound listeners of sidecars.
pub(super) fn endpoints(
    mesh: &Mesh<'_>,
    service: &Document<ServiceSpec>,
    port: &ServicePort,
) -> ClusterLoadAssignment {
    let (namespace, name) = names::of(service);
    let members = mesh.documents.backing(service, port).map(|(workload, _)| {
        let at = SocketAddr::new(workload.spec.address, workload.spec.inbound_port);
        endpoint(at, Some(labels(workload)))
    });
    assignment(names::cluster(namespace, name, port.port), members.collect())
}

/// `workload;namespace;canonical service;canonical revision;cluster`.
fn labels(workload: &Document<WorkloadSpec>) -> Metadata {
    let metadata = &workload.metadata;
    let text = format!(
        "{};{};{};{};",
        metadata.name,
        metadata.namespace,
        names::app(workload),
        names::version(metadata)
    );
    parts::istio([("workload", parts::text(text))])
}

fn endpoint(at: SocketAddr, metadata: Option<Metadata>) -> LbEndpoint {
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(parts::address(at)),
            ..Endpoint::default()
        })),
        metadata,
        ..LbEndpoint::default()
    }
}

fn assignment(cluster_name: String, lb_endpoints: Vec<LbEndpoint>) -> ClusterLoadAssignment {
    let endpoints = if lb_endpoints.is_empty() {
        Vec::new()
    } else {
        vec![LocalityLbEndpoints { lb_endpoints, ..LocalityLbEndpoints::default() }]
    };
    ClusterLoadAssignment { cluster_name, endpoints, ..ClusterLoadAssignment::default() }
}
