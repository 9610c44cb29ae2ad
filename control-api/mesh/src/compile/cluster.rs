//! Clusters and their endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use remora_xds::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use remora_xds::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbConfig, LbPolicy,
    OriginalDstLbConfig,
};
use remora_xds::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster};
use remora_xds::pb::envoy::config::core::v3::{
    Address, HealthStatus, HttpProtocolOptions as CommonOptions, Locality as PbLocality, Metadata,
};
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

use super::route::behind;
use super::{Scope, balancing, breaker, health, http, key_of, names, outlier, parts, retry, tls};
use crate::document::{
    AppProtocol, Document, INBOUND_PORT, Locality, MtlsMode, ServicePort, ServiceSpec, TrafficPolicySpec,
    WorkloadSpec,
};
use crate::kinds::Kind;
use crate::mesh::{Health, Member};
use crate::name::Key;
use crate::resource::Resource;

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

pub(super) fn service_of(service: &Document<ServiceSpec>) -> Metadata {
    let (namespace, name) = names::of(service);
    parts::service(names::host(namespace, name), namespace, name)
}

pub(super) fn breakers(policy: Option<&TrafficPolicySpec>) -> CircuitBreakers {
    let limits = policy.map(|p| p.connections).unwrap_or_default();
    let budget = policy.map(|p| p.retries.budget).unwrap_or_default();
    let limit = |value: Option<u32>| parts::number(value.unwrap_or(LIMIT));
    CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: limit(limits.max_connections),
            max_pending_requests: limit(limits.max_pending_requests),
            max_requests: limit(limits.max_requests),
            retry_budget: Some(retry::budget(budget)),
            ..Thresholds::default()
        }],
        ..CircuitBreakers::default()
    }
}

pub(super) fn base(name: String, discovery: DiscoveryType, connect: Duration) -> Cluster {
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
pub(super) fn local(
    (port, protocol): (u16, &str),
    speaks: AppProtocol,
    service: &Document<ServiceSpec>,
) -> Arc<Resource> {
    let mut cluster = base(names::local(port, protocol), DiscoveryType::Static, Duration::from_millis(300));
    let at = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let group = LocalityLbEndpoints {
        lb_endpoints: vec![endpoint(parts::address(at), String::new())],
        ..LocalityLbEndpoints::default()
    };
    cluster.load_assignment = Some(ClusterLoadAssignment {
        cluster_name: cluster.name.clone(),
        endpoints: vec![group],
        ..ClusterLoadAssignment::default()
    });
    cluster.lb_policy = LbPolicy::RoundRobin.into();
    cluster.circuit_breakers = Some(breakers(None));
    speak(&mut cluster, speaks, 3);
    cluster.metadata = Some(service_of(service));
    Resource::cluster(&cluster, vec![key_of(service)])
}

/// A cluster without endpoints: connections to it are closed.
pub(super) fn black_hole(about: Key) -> Arc<Resource> {
    let mut cluster = base(names::BLACK_HOLE.into(), DiscoveryType::Static, Duration::from_millis(300));
    cluster.load_assignment = Some(ClusterLoadAssignment {
        cluster_name: cluster.name.clone(),
        ..ClusterLoadAssignment::default()
    });
    Resource::cluster(&cluster, vec![about])
}

/// HTTP as the program or the sidecar before it speaks it.
fn speak(cluster: &mut Cluster, speaks: AppProtocol, idle_seconds: u64) {
    let config = match speaks {
        AppProtocol::Http => ProtocolConfig::HttpProtocolOptions(http::http1()),
        AppProtocol::Http2 | AppProtocol::Grpc => ProtocolConfig::Http2ProtocolOptions(http::http2()),
        AppProtocol::Tcp => return,
    };
    protocol(cluster, config, idle_seconds);
}

/// A Service's port: the sidecars of its workloads, over mTLS.
pub(super) fn outbound(
    scope: Scope<'_>,
    service: &Document<ServiceSpec>,
    port: &ServicePort,
) -> Arc<Resource> {
    let (namespace, name) = names::of(service);
    let spec = scope.mesh.policy(service).map(|document| &document.spec);
    let connect = spec.and_then(|p| p.timeouts.connect).map_or(Duration::from_secs(1), |t| t.0);
    let mut cluster = base(names::cluster(namespace, name, port.port), DiscoveryType::Eds, connect);
    cluster.eds_cluster_config =
        Some(EdsClusterConfig { eds_config: Some(parts::ads()), ..EdsClusterConfig::default() });
    let chosen = spec.map(|p| p.load_balancing.clone()).unwrap_or_default();
    balancing::of(&mut cluster, &chosen, port.speaks() != AppProtocol::Tcp);
    cluster.circuit_breakers = Some(breakers(spec));
    cluster.outlier_detection = outlier::detection(&spec.map(|p| p.outlier_detection).unwrap_or_default());
    let mtls = scope.mesh.mtls(service, port.port);
    if let Some(spec) = spec {
        let host = names::host(namespace, name);
        let direct = mtls == MtlsMode::Disabled;
        cluster.health_checks = health::checks(&spec.health_checks, port, &host, direct);
    }
    secure(&mut cluster, scope, (service, port), mtls);
    let mut metadata = service_of(service);
    if let Some(said) = spec.and_then(|p| p.circuit_breaker.as_ref()) {
        let fallback = breaker::fallback(scope.mesh, service, port);
        let settings = breaker::settings(said, port.speaks() != AppProtocol::Tcp, fallback.as_ref());
        metadata.filter_metadata.insert(breaker::NAME.into(), settings);
    }
    cluster.metadata = Some(metadata);
    Resource::cluster(&cluster, documents(scope, service))
}

/// To the sidecars of a Service's port, or without mTLS to the programs themselves.
fn secure(
    cluster: &mut Cluster,
    scope: Scope<'_>,
    (service, port): (&Document<ServiceSpec>, &ServicePort),
    mtls: MtlsMode,
) {
    let speaks = port.speaks();
    if mtls == MtlsMode::Disabled {
        return speak(cluster, speaks, 3);
    }
    let (namespace, name) = names::of(service);
    let tcp = speaks == AppProtocol::Tcp;
    let alpn: &[&str] = if tcp { &[] } else { &["h2"] };
    let (sni, peers) = (names::sni(namespace, name, port.port), identities(scope, service, port));
    cluster.transport_socket = Some(tls::upstream(scope.profile, peers, sni, alpn));
    if !tcp {
        speak(cluster, AppProtocol::Http2, 55);
    }
}

/// A Service's port at the pod that was called.
pub(super) fn pod(scope: Scope<'_>, service: &Document<ServiceSpec>, port: &ServicePort) -> Arc<Resource> {
    let (namespace, name) = names::of(service);
    let spec = scope.mesh.policy(service).map(|document| &document.spec);
    let mut cluster = to_destination(
        names::pod(namespace, name, port.port),
        spec.and_then(|p| p.timeouts.connect).map(|t| t.0),
    );
    // Whoever is called here has a sidecar.
    let mtls = scope.mesh.demanded(service, port.port);
    if mtls != MtlsMode::Disabled {
        cluster.lb_config = Some(LbConfig::OriginalDstLbConfig(OriginalDstLbConfig {
            upstream_port_override: parts::number(INBOUND_PORT.into()),
            ..OriginalDstLbConfig::default()
        }));
    }
    cluster.circuit_breakers = Some(breakers(spec));
    secure(&mut cluster, scope, (service, port), mtls);
    cluster.metadata = Some(service_of(service));
    Resource::cluster(&cluster, documents(scope, service))
}

/// Connections go where they were going, as they are.
pub(super) fn passthrough(about: Key) -> Arc<Resource> {
    let mut cluster = to_destination(names::PASSTHROUGH.into(), Some(Duration::from_secs(10)));
    cluster.circuit_breakers = Some(breakers(None));
    Resource::cluster(&cluster, vec![about])
}

/// Requests go to the address that [`super::http_proxy`] put into a header of them.
pub(super) fn by_authority(about: Key) -> Arc<Resource> {
    let mut cluster = to_destination(names::HTTP_PASSTHROUGH.into(), Some(Duration::from_secs(10)));
    cluster.lb_config = Some(LbConfig::OriginalDstLbConfig(OriginalDstLbConfig {
        use_http_header: true,
        ..OriginalDstLbConfig::default()
    }));
    cluster.circuit_breakers = Some(breakers(None));
    speak(&mut cluster, AppProtocol::Http, 3);
    Resource::cluster(&cluster, vec![about])
}

fn to_destination(name: String, connect: Option<Duration>) -> Cluster {
    let mut cluster = base(name, DiscoveryType::OriginalDst, connect.unwrap_or(Duration::from_secs(1)));
    cluster.lb_policy = LbPolicy::ClusterProvided.into();
    cluster
}

/// What the cluster of a Service's port is made of.
pub(super) fn documents(scope: Scope<'_>, service: &Document<ServiceSpec>) -> Vec<Key> {
    let traffic = scope.mesh.policy(service).map(|p| Key::new(Kind::TrafficPolicy, p.name()));
    let authentication =
        scope.mesh.authentication(service).map(|p| Key::new(Kind::AuthenticationPolicy, p.name()));
    let instead = behind(scope.mesh, traffic.as_slice()).into_iter().filter(|key| *key != key_of(service));
    std::iter::once(key_of(service)).chain(traffic).chain(authentication).chain(instead).collect()
}

/// Who may answer for a Service's port.
pub(super) fn identities(
    scope: Scope<'_>,
    service: &Document<ServiceSpec>,
    port: &ServicePort,
) -> Vec<String> {
    let own = &*scope.profile.trust_domain;
    let identity =
        |domain: Option<&str>, name| names::spiffe(domain.unwrap_or(own), &service.metadata.namespace, name);
    let accounts = scope.mesh.accounts(service, port);
    if accounts.is_empty() {
        // Without workloads nobody may answer for the Service; an empty list would mean everybody.
        return vec![identity(None, "-nobody-")];
    }
    accounts.into_iter().map(|account| identity(account.trust_domain, account.name)).collect()
}

/// The endpoints of a Service's port: inbound listeners of sidecars.
pub(super) fn endpoints(
    scope: Scope<'_>,
    service: &Document<ServiceSpec>,
    port: &ServicePort,
) -> Arc<Resource> {
    let (namespace, name) = names::of(service);
    let mut groups: BTreeMap<Locality, Vec<LbEndpoint>> = BTreeMap::new();
    let slices = scope.mesh.slices(service).map(|slice| Key::new(Kind::EndpointSlice, slice.name()));
    let mut documents: BTreeSet<Key> = slices.collect();
    for member in scope.mesh.members(service, port).into_values() {
        // A registered instance is no document.
        let workload = member.workload.map(|workload| Key::new(Kind::Workload, workload.name()));
        documents.extend(workload.filter(|key| scope.mesh.document(key).is_some()));
        let endpoint = lb_endpoint(service, &member);
        groups.entry(member.locality).or_default().push(endpoint);
    }
    let assignment = ClusterLoadAssignment {
        cluster_name: names::cluster(namespace, name, port.port),
        endpoints: groups.into_iter().map(|(locality, members)| group(&locality, members)).collect(),
        ..ClusterLoadAssignment::default()
    };
    Resource::endpoints(&assignment, std::iter::once(key_of(service)).chain(documents).collect())
}

/// The endpoints of a place, which weighs as much as they do together. gRPC libraries leave out a place without a name or a weight.
fn group(locality: &Locality, lb_endpoints: Vec<LbEndpoint>) -> LocalityLbEndpoints {
    let weight = |e: &LbEndpoint| e.load_balancing_weight.map_or(1, |weight| weight.value);
    let weight = lb_endpoints.iter().map(weight).fold(0, u32::saturating_add);
    LocalityLbEndpoints {
        locality: Some(PbLocality {
            region: locality.region.clone(),
            zone: locality.zone.clone(),
            sub_zone: locality.sub_zone.clone(),
        }),
        lb_endpoints,
        load_balancing_weight: parts::number(weight),
        ..LocalityLbEndpoints::default()
    }
}

fn lb_endpoint(service: &Document<ServiceSpec>, member: &Member<'_>) -> LbEndpoint {
    let who = member.workload.map(|workload| observability_name(service, workload));
    LbEndpoint {
        health_status: match member.health {
            Health::Ready => HealthStatus::Healthy,
            Health::Draining => HealthStatus::Draining,
            // The latter is no member.
            Health::Dead | Health::Absent => HealthStatus::Unhealthy,
        }
        .into(),
        load_balancing_weight: parts::number(member.weight).filter(|weight| weight.value != 1),
        ..endpoint(parts::address(member.at), who.unwrap_or_default())
    }
}

/// What metrics say of an endpoint: `workload;namespace;canonical service;canonical revision`, as Istio has it in metadata. What is
/// the Service's own, or usual, is left empty, and left out at the end: a change of one endpoint sends all of them.
fn observability_name(service: &Document<ServiceSpec>, workload: &Document<WorkloadSpec>) -> String {
    fn unless<'a>(usual: &str, own: &'a str) -> &'a str {
        if own == usual { "" } else { own }
    }
    let metadata = &workload.metadata;
    let namespace = unless(&service.metadata.namespace, &metadata.namespace);
    let app = unless(&service.metadata.name, names::app(workload));
    let version = unless(names::LATEST, names::version(metadata));
    let text = format!("{};{namespace};{app};{version}", metadata.name);
    text.trim_end_matches(';').to_owned()
}

pub(super) fn endpoint(at: Address, observability_name: String) -> LbEndpoint {
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(at),
            observability_name,
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    }
}
