//! UDP listeners with `envoy.filters.udp.dns_filter` (decision 0021).

use std::net::IpAddr;
use std::time::Duration;

use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3::address::Address as AddressKind;
use remora_xds::pb::envoy::config::core::v3::socket_address::Protocol;
use remora_xds::pb::envoy::config::listener::v3::Listener;
use remora_xds::pb::envoy::config::listener::v3::listener_filter::ConfigType;
use remora_xds::pb::envoy::data::dns::v3::DnsTable;
use remora_xds::pb::envoy::data::dns::v3::dns_table::dns_endpoint::EndpointConfig;
use remora_xds::pb::envoy::data::dns::v3::dns_table::{DnsEndpoint, DnsVirtualDomain};
use remora_xds::pb::envoy::extensions::filters::udp::dns_filter::v3::DnsFilterConfig;
use remora_xds::pb::envoy::extensions::filters::udp::dns_filter::v3::dns_filter_config::server_context_config::ConfigSource;
use remora_xds::pb::envoy::extensions::filters::udp::dns_filter::v3::dns_filter_config::{
    ClientContextConfig, ServerContextConfig,
};

use crate::config::compile::Scope;
use crate::config::compile::cluster::compile_dns_servers;
use crate::config::compile::common::{duration, unsupported};
use crate::config::compile::fields::{holds, refuse, unpack};
use crate::dns::table::{Domain, Table};
use crate::dns::{DnsFilterSpec, ForwardSpec};

/// Envoy's defaults.
const TIMEOUT: Duration = Duration::from_millis(500);
const TTL: Duration = Duration::from_secs(300);

/// Whether a listener is for UDP.
pub(super) fn is_udp(pb: &Listener) -> bool {
    let kind = pb.address.as_ref().and_then(|address| address.address.as_ref());
    matches!(kind, Some(AddressKind::SocketAddress(socket)) if socket.protocol == Protocol::Udp as i32)
}

/// The one listener filter of a UDP listener.
pub(super) fn compile(pb: &Listener, at: &At<'_>, scope: &mut Scope<'_>) -> Option<DnsFilterSpec> {
    // What is there for connections alone.
    let Listener {
        filter_chains,
        use_original_dst,
        default_filter_chain,
        listener_filters_timeout,
        continue_on_listener_filters_timeout,
        tcp_keepalive,
        access_log,
        bind_to_port,
        ..
    } = pb;
    refuse!(
        scope, at;
        filter_chains,
        use_original_dst,
        default_filter_chain,
        listener_filters_timeout,
        continue_on_listener_filters_timeout,
        tcp_keepalive,
        access_log,
        bind_to_port,
    );
    let list = at.field("listener_filters");
    let [filter] = &pb.listener_filters[..] else {
        let error = scope.errors.report(&list, "a UDP listener has exactly one listener filter");
        error.fix("use envoy.filters.udp.dns_filter");
        return None;
    };
    let at = list.index(0);
    unsupported(filter.filter_disabled.is_some(), &at.field("filter_disabled"), scope);
    let at = at.field("typed_config");
    match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) if holds::<DnsFilterConfig>(any) => {
            let config = unpack::<DnsFilterConfig>(any, &at, scope)?;
            Some(dns_filter(&config, &at, scope))
        }
        _ => {
            let error = scope.errors.report(&at, "is not supported on a UDP listener");
            error.fix("use envoy.filters.udp.dns_filter");
            None
        }
    }
}

fn dns_filter(pb: &DnsFilterConfig, at: &At<'_>, scope: &mut Scope<'_>) -> DnsFilterSpec {
    // Case of letters never counts.
    let DnsFilterConfig { stat_prefix, server_config, client_config, access_log, case_insensitive: _ } = pb;
    refuse!(scope, at; access_log);
    let (mut table, mut retries) = (Table::default(), 0);
    if let Some(ServerContextConfig { config_source }) = server_config {
        let at = at.field("server_config");
        match config_source {
            Some(ConfigSource::InlineDnsTable(pb)) => {
                retries = dns_table(pb, &mut table, &at.field("inline_dns_table"), scope);
            }
            Some(ConfigSource::ExternalDnsTable(_)) => {
                unsupported(true, &at.field("external_dns_table"), scope);
            }
            None => {
                scope.errors.report(&at, "needs inline_dns_table");
            }
        }
    }
    let forward = client_config.as_ref().map(|pb| forward(pb, retries, &at.field("client_config"), scope));
    DnsFilterSpec { stat_prefix: stat_prefix.as_str().into(), table, forward }
}

/// Fills the table; answers `external_retry_count`.
fn dns_table(pb: &DnsTable, table: &mut Table, at: &At<'_>, scope: &mut Scope<'_>) -> u32 {
    #[expect(deprecated, reason = "it is refused")]
    let DnsTable { external_retry_count, virtual_domains, known_suffixes } = pb;
    refuse!(scope, at; known_suffixes);
    let list = at.field("virtual_domains");
    for (i, pb) in virtual_domains.iter().enumerate() {
        let at = list.index(i);
        let domain = virtual_domain(pb, &at, scope);
        if let Err(mistake) = table.insert(&pb.name, domain) {
            scope.errors.report(&at.field("name"), format!("`{}` {mistake}", pb.name));
        }
    }
    *external_retry_count
}

fn virtual_domain(pb: &DnsVirtualDomain, at: &At<'_>, scope: &mut Scope<'_>) -> Domain {
    let DnsVirtualDomain { name: _, endpoint, answer_ttl } = pb;
    let ttl = duration(answer_ttl.as_ref(), &at.field("answer_ttl"), scope).unwrap_or(TTL);
    let mut domain = Domain { ttl, ..Domain::default() };
    let at = at.field("endpoint");
    let list = match endpoint {
        Some(DnsEndpoint { endpoint_config: Some(EndpointConfig::AddressList(list)) }) => list,
        Some(DnsEndpoint { endpoint_config: Some(EndpointConfig::ClusterName(_)) }) => {
            unsupported(true, &at.field("cluster_name"), scope);
            return domain;
        }
        Some(DnsEndpoint { endpoint_config: Some(EndpointConfig::ServiceList(_)) }) => {
            unsupported(true, &at.field("service_list"), scope);
            return domain;
        }
        Some(DnsEndpoint { endpoint_config: None }) | None => {
            scope.errors.report(&at, "needs address_list");
            return domain;
        }
    };
    let at = at.field("address_list");
    let at = at.field("address");
    for (i, text) in list.address.iter().enumerate() {
        match text.parse::<IpAddr>() {
            Ok(ip @ IpAddr::V4(_)) => domain.v4.push(ip),
            Ok(ip @ IpAddr::V6(_)) => domain.v6.push(ip),
            Err(_) => {
                scope.errors.report(&at.index(i), format!("`{text}` is not an IP address"));
            }
        }
    }
    domain
}

fn forward(pb: &ClientContextConfig, retries: u32, at: &At<'_>, scope: &mut Scope<'_>) -> ForwardSpec {
    #[expect(deprecated, reason = "they are refused")]
    let ClientContextConfig {
        resolver_timeout,
        upstream_resolvers,
        dns_resolution_config,
        typed_dns_resolver_config,
        max_pending_lookups,
    } = pb;
    refuse!(scope, at; upstream_resolvers, dns_resolution_config);
    let timeout = duration(resolver_timeout.as_ref(), &at.field("resolver_timeout"), scope);
    let max_pending = usize::try_from(*max_pending_lookups).unwrap_or(usize::MAX);
    if max_pending == 0 {
        scope.errors.report(&at.field("max_pending_lookups"), "must be at least 1").fix("256 is usual");
    }
    ForwardSpec {
        servers: compile_dns_servers(typed_dns_resolver_config.as_ref(), at, scope),
        timeout: timeout.unwrap_or(TIMEOUT),
        retries,
        max_pending,
    }
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
