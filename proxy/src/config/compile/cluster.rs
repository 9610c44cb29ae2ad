//! `envoy.config.cluster.v3.Cluster` and `ClusterLoadAssignment` -> [`ClusterSpec`] and endpoints.
//!
//! Messages are taken apart with exhaustive patterns, so that a field which a newer API adds has to be decided about before
//! this compiles; what is not supported is refused with its path.

mod assignment;
mod common;
mod connect;
mod dns;
mod health;
mod http;
mod lb;
mod outlier;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use remora_xds::diag::At;
use remora_xds::pb;

pub use assignment::compile_load_assignment;
pub(super) use assignment::lb_metadata;
pub(super) use dns::servers as compile_dns_servers;

use crate::config::compile::tls::compile_upstream_tls;
use crate::config::compile::{Scope, circuit};
use crate::resilience::circuit::Fallback;
use crate::tls::client::ClientTls;
use crate::upstream::cluster::{ClusterSpec, Discovery, EdsSource, EdsSpec};
use crate::upstream::dns::DnsKind;
use crate::upstream::endpoint::{Assignment, AssignmentPolicy, EndpointSpec};
use crate::upstream::original_dst::OriginalDstSpec;
use common::{duration, header_name, is, metadata, positive, refuse, type_name, unpack};
use pb::envoy::config::cluster::v3::Cluster;
use pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, LbConfig, OriginalDstLbConfig,
};
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use pb::envoy::extensions::clusters::dns::v3::DnsCluster;
use pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;

/// Compiles a cluster. None when it has mistakes; they are in `scope.errors`, with their paths under `at`.
pub fn compile_cluster(pb: &Cluster, at: &At<'_>, scope: &mut Scope<'_>) -> Option<ClusterSpec> {
    let before = scope.errors.len();
    refuse_unsupported(pb, at, scope);
    if pb.name.is_empty() {
        scope.errors.report(&at.field("name"), "must not be empty");
    }
    let name: Arc<str> = pb.name.as_str().into();
    let stat_name =
        if pb.alt_stat_name.is_empty() { Arc::clone(&name) } else { pb.alt_stat_name.as_str().into() };
    let discovery = discovery(pb, &name, at, scope);
    let connect = connect::compile(pb, at, scope);
    let (lb, close_on_host_change) = lb::compile(pb, at, scope);
    let tls = pb.transport_socket.as_ref().and_then(|t| tls(t, &at.field("transport_socket"), scope));
    let transport = pb.transport_socket.as_ref().map_or(0, hash_of_transport);
    let http = http::compile(pb, tls.is_some(), at, scope);
    let breakers = at.field("circuit_breakers");
    let thresholds = pb
        .circuit_breakers
        .as_ref()
        .map_or_else(Default::default, |c| connect::circuit_breakers(c, &breakers, scope));
    let outlier = pb
        .outlier_detection
        .as_ref()
        .map(|o| outlier::compile(o, discovery.as_ref(), &at.field("outlier_detection"), scope));
    let health_check =
        health::compile(&pb.health_checks, discovery.as_ref(), &at.field("health_checks"), scope);
    let buffer_limit = pb.per_connection_buffer_limit_bytes.map_or(1 << 20, |n| n.value as usize);
    if buffer_limit == 0 {
        scope.errors.report(
            &at.field("per_connection_buffer_limit_bytes"),
            "must be at least 1: every buffer is bounded",
        );
    }
    let circuit = circuit::compile(pb.metadata.as_ref(), &at.field("metadata"), scope);
    let own = scope.names.clusters.get(&name);
    if matches!(circuit.as_ref().and_then(|c| c.fallback.as_ref()), Some(Fallback::Cluster(id)) if Some(*id) == own)
    {
        scope.errors.report(&at.field("metadata"), "the fallback of a cluster cannot be the cluster itself");
    }
    let metadata = metadata(pb.metadata.as_ref(), &at.field("metadata"), scope);
    if scope.errors.len() > before {
        return None;
    }
    let circuit = circuit.map(|spec| scope.names.circuits.put(&format!("cluster/{name}"), spec));
    Some(ClusterSpec {
        name,
        stat_name,
        discovery: discovery?,
        connect,
        lb,
        http,
        tls,
        transport,
        thresholds,
        outlier,
        health_check,
        circuit,
        buffer_limit,
        close_on_host_change,
        metadata,
    })
}

#[expect(deprecated, reason = "every field is named")]
fn refuse_unsupported(pb: &Cluster, at: &At<'_>, scope: &mut Scope<'_>) {
    #[rustfmt::skip]
    let Cluster {
        // Compiled.
        name: _, alt_stat_name: _, eds_cluster_config: _, connect_timeout: _, per_connection_buffer_limit_bytes: _,
        lb_policy: _, load_assignment: _, max_requests_per_connection: _, circuit_breakers: _,
        upstream_http_protocol_options: _, common_http_protocol_options: _, http_protocol_options: _,
        http2_protocol_options: _, typed_extension_protocol_options: _, dns_refresh_rate: _, dns_jitter: _,
        dns_failure_refresh_rate: _, respect_dns_ttl: _, dns_lookup_family: _, typed_dns_resolver_config: _,
        cleanup_interval: _, upstream_bind_config: _, common_lb_config: _, transport_socket: _, metadata: _,
        protocol_selection: _, upstream_connection_options: _, load_balancing_policy: _, cluster_discovery_type: _,
        lb_config: _, outlier_detection: _, health_checks: _,
        // A host that discovery removes is removed, whatever its health checks say.
        ignore_health_on_host_removal: _,
        // Not supported.
        transport_socket_matches, transport_socket_matcher, stats_matcher,
        per_connection_buffer_high_watermark_timeout, dns_resolvers, use_tcp_for_dns_lookups,
        dns_resolution_config, wait_for_warm_on_init, lb_subset_config: _,
        close_connections_on_host_health_failure, filters, lrs_server, lrs_report_endpoint_metrics,
        track_timeout_budgets, upstream_config, track_cluster_stats, preconnect_policy,
        connection_pool_per_downstream_connection, queuing_policies,
    } = pb;
    let no_wait = wait_for_warm_on_init.filter(|b| !b.value);
    if no_wait.is_some() {
        scope.errors.report(&at.field("wait_for_warm_on_init"), "must be true");
    }
    #[rustfmt::skip]
    refuse!(scope, at, [
        transport_socket_matches, transport_socket_matcher, stats_matcher,
        per_connection_buffer_high_watermark_timeout, dns_resolvers, use_tcp_for_dns_lookups,
        dns_resolution_config, close_connections_on_host_health_failure, filters,
        lrs_server, lrs_report_endpoint_metrics, track_timeout_budgets, upstream_config, track_cluster_stats,
        preconnect_policy, connection_pool_per_downstream_connection, queuing_policies,
    ]);
}

fn discovery(pb: &Cluster, name: &Arc<str>, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Discovery> {
    let kind = match &pb.cluster_discovery_type {
        // Unset is the enum's first value.
        None => DiscoveryType::Static,
        Some(ClusterDiscoveryType::Type(kind)) => {
            let Ok(known) = DiscoveryType::try_from(*kind) else {
                scope.errors.report(&at.field("type"), format!("{kind} is not a type"));
                return None;
            };
            known
        }
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            let type_at = at.field("cluster_type");
            let config_at = type_at.field("typed_config");
            let Some(any) = custom.typed_config.as_ref().filter(|any| is::<DnsCluster>(any)) else {
                let message = format!("{:?} is not supported", custom.name);
                scope.errors.report(&type_at, message).fix("use type, or envoy.clusters.dns");
                return None;
            };
            let spec = dns::compile_extension(pb, any, (at, &config_at), scope)?;
            return Some(Discovery::Dns(Arc::new(spec)));
        }
    };
    let dns = matches!(kind, DiscoveryType::StrictDns | DiscoveryType::LogicalDns);
    misplaced(pb, kind, dns, (at, scope));
    match kind {
        DiscoveryType::Static => {
            let at = at.field("load_assignment");
            let assignment = match &pb.load_assignment {
                None => Assignment::from(Vec::new()),
                Some(pb) => compile_load_assignment(pb, &at, scope),
            };
            Some(Discovery::Static(Arc::new(add_up(assignment))))
        }
        DiscoveryType::StrictDns => {
            Some(Discovery::Dns(Arc::new(dns::compile(pb, DnsKind::Strict, at, scope))))
        }
        DiscoveryType::LogicalDns => {
            Some(Discovery::Dns(Arc::new(dns::compile(pb, DnsKind::Logical, at, scope))))
        }
        DiscoveryType::Eds => eds(pb, name, at, scope).map(Discovery::Eds),
        DiscoveryType::OriginalDst => original_dst(pb, at, scope).map(Discovery::OriginalDst),
    }
}

/// Fields that mean nothing for the type of the cluster.
#[expect(deprecated, reason = "Envoy still reads them")]
fn misplaced(pb: &Cluster, kind: DiscoveryType, dns: bool, (at, scope): (&At<'_>, &mut Scope<'_>)) {
    let eds = kind == DiscoveryType::Eds;
    let original_dst = kind == DiscoveryType::OriginalDst;
    let fields = [
        ("eds_cluster_config", pb.eds_cluster_config.is_some() && !eds),
        ("load_assignment", pb.load_assignment.is_some() && (eds || original_dst)),
        ("cleanup_interval", pb.cleanup_interval.is_some() && !original_dst),
        ("dns_refresh_rate", pb.dns_refresh_rate.is_some() && !dns),
        ("dns_failure_refresh_rate", pb.dns_failure_refresh_rate.is_some() && !dns),
        ("dns_jitter", pb.dns_jitter.is_some() && !dns),
        ("respect_dns_ttl", pb.respect_dns_ttl && !dns),
        ("typed_dns_resolver_config", pb.typed_dns_resolver_config.is_some() && !dns),
    ];
    for (name, _) in fields.into_iter().filter(|(_, wrong)| *wrong) {
        let message = format!("has no effect in a cluster of type {}", kind.as_str_name());
        scope.errors.report(&at.field(name), message);
    }
}

/// An endpoint that a STATIC cluster lists twice gets twice the load, as with Envoy.
fn add_up(assignment: Assignment) -> Assignment {
    let mut index = foldhash::HashMap::default();
    let mut endpoints: Vec<EndpointSpec> = Vec::with_capacity(assignment.endpoints.len());
    for spec in assignment.endpoints {
        let key = (spec.address, spec.hostname.clone());
        let first = *index.entry(key).or_insert(endpoints.len());
        match endpoints.get_mut(first) {
            Some(same) => same.weight = same.weight.saturating_add(spec.weight),
            None => endpoints.push(spec),
        }
    }
    let policy: AssignmentPolicy = assignment.policy;
    Assignment { endpoints, policy }
}

fn eds(pb: &Cluster, name: &Arc<str>, at: &At<'_>, scope: &mut Scope<'_>) -> Option<EdsSpec> {
    let at = at.field("eds_cluster_config");
    let Some(config) = &pb.eds_cluster_config else {
        scope.errors.report(&at, "is required in a cluster of type EDS");
        return None;
    };
    let same = config.service_name.is_empty() || *config.service_name == **name;
    let service_name = if same { Arc::clone(name) } else { config.service_name.as_str().into() };
    let at = at.field("eds_config");
    let Some(source) = &config.eds_config else {
        scope.errors.report(&at, "is required");
        return None;
    };
    let core::ConfigSource {
        authorities,
        initial_fetch_timeout,
        resource_api_version,
        config_source_specifier,
    } = source;
    refuse!(scope, at, [authorities]);
    let version = core::ApiVersion::try_from(*resource_api_version);
    if !matches!(version, Ok(core::ApiVersion::Auto | core::ApiVersion::V3)) {
        scope.errors.report(&at.field("resource_api_version"), "must be V3");
    }
    let initial_fetch_timeout = match initial_fetch_timeout {
        None => Duration::from_secs(15),
        Some(pb) => duration(*pb, &at.field("initial_fetch_timeout"), scope)?,
    };
    let source = match config_source_specifier {
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => EdsSource::Ads,
        Some(ConfigSourceSpecifier::PathConfigSource(pb)) => {
            file(pb, &at.field("path_config_source"), scope)?
        }
        #[expect(deprecated, reason = "Envoy still reads it")]
        Some(ConfigSourceSpecifier::Path(path)) => {
            EdsSource::File { path: path.as_str().into(), watched_directory: None }
        }
        Some(ConfigSourceSpecifier::ApiConfigSource(_)) => {
            scope.errors.report(&at.field("api_config_source"), "is not supported").fix("use ads");
            return None;
        }
        None => {
            scope.errors.report(&at, "names no source").fix("ads: {}");
            return None;
        }
    };
    Some(EdsSpec { service_name, source, initial_fetch_timeout })
}

fn file(pb: &core::PathConfigSource, at: &At<'_>, scope: &mut Scope<'_>) -> Option<EdsSource> {
    let core::PathConfigSource { path, watched_directory, poll_interval } = pb;
    refuse!(scope, at, [poll_interval]);
    if path.is_empty() {
        scope.errors.report(&at.field("path"), "must not be empty");
        return None;
    }
    let watched_directory = watched_directory.as_ref().map(|d| d.path.as_str().into());
    Some(EdsSource::File { path: path.as_str().into(), watched_directory })
}

fn original_dst(pb: &Cluster, at: &At<'_>, scope: &mut Scope<'_>) -> Option<OriginalDstSpec> {
    use pb::envoy::config::cluster::v3::cluster::LbPolicy;
    if pb.lb_policy != LbPolicy::ClusterProvided as i32 && pb.load_balancing_policy.is_none() {
        scope
            .errors
            .report(&at.field("lb_policy"), "must be CLUSTER_PROVIDED in a cluster of type ORIGINAL_DST");
    }
    let cleanup = positive(pb.cleanup_interval, &at.field("cleanup_interval"), scope);
    let mut spec =
        OriginalDstSpec { header: None, port: None, cleanup: cleanup.unwrap_or(Duration::from_secs(5)) };
    let Some(LbConfig::OriginalDstLbConfig(config)) = &pb.lb_config else { return Some(spec) };
    let at = at.field("original_dst_lb_config");
    let OriginalDstLbConfig { use_http_header, http_header_name, upstream_port_override, metadata_key } =
        config;
    refuse!(scope, at, [metadata_key]);
    if *use_http_header {
        let name = if http_header_name.is_empty() { "x-envoy-original-dst-host" } else { http_header_name };
        spec.header = header_name(name, &at.field("http_header_name"), scope);
    } else if !http_header_name.is_empty() {
        scope.errors.report(&at.field("http_header_name"), "has no effect without use_http_header");
    }
    if let Some(port) = upstream_port_override {
        spec.port = u16::try_from(port.value).ok().filter(|p| *p != 0);
        if spec.port.is_none() {
            scope.errors.report(&at.field("upstream_port_override"), "must be from 1 to 65535");
        }
    }
    Some(spec)
}

/// The name says nothing about connections.
fn hash_of_transport(pb: &core::TransportSocket) -> u64 {
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &pb.config_type else { return 0 };
    let mut hasher = DefaultHasher::new();
    (&any.type_url, &any.value).hash(&mut hasher);
    hasher.finish()
}

fn tls(pb: &core::TransportSocket, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Arc<ClientTls>> {
    let at = at.field("typed_config");
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &pb.config_type else {
        scope.errors.report(&at, "is required");
        return None;
    };
    if is::<RawBuffer>(any) {
        return None;
    }
    if !is::<UpstreamTlsContext>(any) {
        let message = format!("{} is not supported", type_name(any));
        scope.errors.report(&at, message).fix("UpstreamTlsContext and RawBuffer are");
        return None;
    }
    let context = unpack::<UpstreamTlsContext>(any, &at, scope)?;
    compile_upstream_tls(&context, &at, scope)
}

#[cfg(test)]
mod tests;
