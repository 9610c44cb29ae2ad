//! STRICT_DNS, LOGICAL_DNS, and `cluster_type` `envoy.clusters.dns`, which is the same in newer words.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use remora_xds::diag::At;
use remora_xds::pb;

use super::assignment::compile_dns_targets;
use super::common::{Host, host_port, is, positive, refuse, type_name, unpack};
use crate::config::compile::Scope;
use crate::upstream::dns::{DnsKind, DnsSpec, LookupFamily, RefreshSpec, ServerSpec};
use pb::envoy::config::cluster::v3::Cluster;
use pb::envoy::config::cluster::v3::cluster::DnsLookupFamily;
use pb::envoy::config::core::v3::{DnsResolverOptions, TypedExtensionConfig};
use pb::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily as NewFamily;
use pb::envoy::extensions::clusters::dns::v3::DnsCluster;
use pb::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use pb::google::protobuf;

/// A cluster of type STRICT_DNS or LOGICAL_DNS.
#[expect(deprecated, reason = "Envoy still reads them")]
pub(super) fn compile(pb: &Cluster, kind: DnsKind, at: &At<'_>, scope: &mut Scope<'_>) -> DnsSpec {
    let rate = positive(pb.dns_refresh_rate, &at.field("dns_refresh_rate"), scope);
    let failure = pb.dns_failure_refresh_rate.and_then(|f| {
        let intervals = (f.base_interval, f.max_interval);
        failure(intervals, &at.field("dns_failure_refresh_rate"), scope)
    });
    let default = RefreshSpec::default();
    let refresh = RefreshSpec {
        rate: rate.unwrap_or(default.rate),
        respect_ttl: pb.respect_dns_ttl,
        min_rate: default.min_rate,
        failure,
        jitter: pb.dns_jitter.and_then(|j| super::common::duration(j, &at.field("dns_jitter"), scope)),
    };
    let family = match DnsLookupFamily::try_from(pb.dns_lookup_family) {
        Ok(DnsLookupFamily::Auto) => LookupFamily::Auto,
        Ok(DnsLookupFamily::V4Only) => LookupFamily::V4Only,
        Ok(DnsLookupFamily::V6Only) => LookupFamily::V6Only,
        Ok(DnsLookupFamily::V4Preferred) => LookupFamily::V4Preferred,
        Ok(DnsLookupFamily::All) => LookupFamily::All,
        Err(_) => unknown_family(pb.dns_lookup_family, at, scope),
    };
    let servers = servers(pb.typed_dns_resolver_config.as_ref(), at, scope);
    finish(pb, (kind, family, servers, refresh), at, scope)
}

/// A cluster of type `envoy.clusters.dns`; `at` is the cluster, `config_at` its `typed_config`.
pub(super) fn compile_extension(
    pb: &Cluster,
    config: &protobuf::Any,
    (at, config_at): (&At<'_>, &At<'_>),
    scope: &mut Scope<'_>,
) -> Option<DnsSpec> {
    let DnsCluster {
        dns_refresh_rate,
        dns_failure_refresh_rate,
        respect_dns_ttl,
        dns_jitter,
        typed_dns_resolver_config,
        dns_lookup_family,
        all_addresses_in_single_endpoint,
        dns_min_refresh_rate,
    } = unpack::<DnsCluster>(config, config_at, scope)?;
    let default = RefreshSpec::default();
    let refresh = RefreshSpec {
        rate: positive(dns_refresh_rate, &config_at.field("dns_refresh_rate"), scope).unwrap_or(default.rate),
        respect_ttl: respect_dns_ttl,
        min_rate: positive(dns_min_refresh_rate, &config_at.field("dns_min_refresh_rate"), scope)
            .unwrap_or(default.min_rate),
        failure: dns_failure_refresh_rate.and_then(|f| {
            let intervals = (f.base_interval, f.max_interval);
            failure(intervals, &config_at.field("dns_failure_refresh_rate"), scope)
        }),
        jitter: dns_jitter.and_then(|j| super::common::duration(j, &config_at.field("dns_jitter"), scope)),
    };
    let family = match NewFamily::try_from(dns_lookup_family) {
        Ok(NewFamily::Unspecified | NewFamily::Auto) => LookupFamily::Auto,
        Ok(NewFamily::V4Only) => LookupFamily::V4Only,
        Ok(NewFamily::V6Only) => LookupFamily::V6Only,
        Ok(NewFamily::V4Preferred) => LookupFamily::V4Preferred,
        Ok(NewFamily::All) => LookupFamily::All,
        Err(_) => unknown_family(dns_lookup_family, config_at, scope),
    };
    let kind = if all_addresses_in_single_endpoint { DnsKind::Logical } else { DnsKind::Strict };
    let servers = servers(typed_dns_resolver_config.as_ref(), config_at, scope);
    Some(finish(pb, (kind, family, servers, refresh), at, scope))
}

fn finish(
    pb: &Cluster,
    (kind, family, servers, refresh): (DnsKind, LookupFamily, ServerSpec, RefreshSpec),
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> DnsSpec {
    let at = at.field("load_assignment");
    let (mut targets, policy) = match &pb.load_assignment {
        Some(pb) => compile_dns_targets(pb, &at, scope),
        None => {
            scope.errors.report(&at, "is required");
            Default::default()
        }
    };
    if kind == DnsKind::Logical {
        if pb.load_assignment.is_some() && targets.len() != 1 {
            scope
                .errors
                .report(&at.field("endpoints"), "a LOGICAL_DNS cluster must have exactly one endpoint");
        }
        targets.iter_mut().for_each(|t| t.template.logical = true);
    }
    DnsSpec { kind, targets, policy, family, servers: Arc::new(servers), refresh }
}

fn unknown_family(pb: i32, at: &At<'_>, scope: &mut Scope<'_>) -> LookupFamily {
    scope.errors.report(&at.field("dns_lookup_family"), format!("{pb} is not a lookup family"));
    LookupFamily::Auto
}

fn failure(
    (base, max): (Option<protobuf::Duration>, Option<protobuf::Duration>),
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<(Duration, Duration)> {
    if base.is_none() {
        scope.errors.report(&at.field("base_interval"), "is required");
    }
    let base = positive(base, &at.field("base_interval"), scope)?;
    let limit = positive(max, &at.field("max_interval"), scope).unwrap_or_else(|| base.saturating_mul(10));
    if limit < base {
        scope.errors.report(&at.field("max_interval"), "must not be less than base_interval");
    }
    Some((base, limit))
}

/// Whom to ask; `at` is the message that has the field `typed_dns_resolver_config`.
pub(in crate::config::compile) fn servers(
    pb: Option<&TypedExtensionConfig>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> ServerSpec {
    let mut spec = ServerSpec::default();
    let Some(pb) = pb else { return spec };
    let at = at.field("typed_dns_resolver_config");
    let at = at.field("typed_config");
    let Some(any) = &pb.typed_config else {
        scope.errors.report(&at, "is required");
        return spec;
    };
    if !is::<CaresDnsResolverConfig>(any) {
        let message = format!("{} is not supported", type_name(any));
        scope.errors.report(&at, message).fix("envoy.network.dns_resolver.cares is");
        return spec;
    }
    let Some(config) = unpack::<CaresDnsResolverConfig>(any, &at, scope) else { return spec };
    let CaresDnsResolverConfig {
        resolvers,
        use_resolvers_as_fallback,
        filter_unroutable_families,
        dns_resolver_options,
        udp_max_queries,
        query_timeout_seconds,
        query_tries,
        rotate_nameservers,
        edns0_max_payload_size,
        max_udp_channel_duration,
        reinit_channel_on_timeout,
        qcache_max_ttl,
    } = config;
    refuse!(
        scope,
        at,
        [
            use_resolvers_as_fallback,
            filter_unroutable_families,
            udp_max_queries,
            query_timeout_seconds,
            query_tries,
            rotate_nameservers,
            edns0_max_payload_size,
            max_udp_channel_duration,
            reinit_channel_on_timeout,
            qcache_max_ttl,
        ]
    );
    let DnsResolverOptions { use_tcp_for_dns_lookups, no_default_search_domain } =
        dns_resolver_options.unwrap_or_default();
    (spec.tcp, spec.no_search) = (use_tcp_for_dns_lookups, no_default_search_domain);
    let list = at.field("resolvers");
    for (i, address) in resolvers.iter().enumerate() {
        match host_port(Some(address), &list.index(i), scope) {
            Some((Host::Ip(ip), port)) => {
                spec.servers.push(SocketAddr::new(ip, if port == 0 { 53 } else { port }));
            }
            Some((Host::Name(name), _)) => {
                scope.errors.report(&list.index(i), format!("{name:?} is not an IP address"));
            }
            None => {}
        }
    }
    spec
}
