//! Compiles `Listener`: addresses, sockets, listener filters, filter chains and their network filters.

mod chain;
mod dns;
mod hcm;
mod predicate;
mod protocol;
mod socket;
mod tcp;

pub(super) use self::hcm::source_of;
pub use self::hcm::stray_override;

use std::sync::Arc;
use std::time::Duration;

use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3::TrafficDirection;
use remora_xds::pb::envoy::config::listener::v3::listener_filter::ConfigType;
use remora_xds::pb::envoy::config::listener::v3::{Listener, ListenerFilter};
use remora_xds::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use remora_xds::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use remora_xds::pb::envoy::extensions::filters::listener::original_src::v3::OriginalSrc;
use remora_xds::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;

use super::Scope;
use super::access_log::compile_access_logs;
use super::common::{duration, unsupported};
use super::fields::{boolean, holds, number, refuse, unpack};
use crate::config::spec::{Direction, ListenerSpec, Ports, Uninspected};

/// Compiles a listener. None when it has mistakes, which are in `scope.errors`.
pub fn compile_listener(pb: &Listener, at: &At<'_>, scope: &mut Scope<'_>) -> Option<ListenerSpec> {
    let before = scope.errors.len();
    refuse_unsupported(pb, at, scope);
    let bound = socket::compile(pb, at, scope);
    let name: Arc<str> = match (pb.name.as_str(), &bound) {
        ("", Some(bound)) => bound.address.to_string().into(),
        (name, _) => name.into(),
    };
    let direction = match TrafficDirection::try_from(pb.traffic_direction) {
        Ok(TrafficDirection::Inbound) => Direction::Inbound,
        Ok(TrafficDirection::Outbound) => Direction::Outbound,
        Ok(TrafficDirection::Unspecified) => Direction::Unspecified,
        Err(_) => {
            let message = format!("{} is no traffic direction", pb.traffic_direction);
            scope.errors.report(&at.field("traffic_direction"), message);
            Direction::Unspecified
        }
    };
    let dns = dns::is_udp(pb).then(|| dns::compile(pb, at, scope));
    let (filters, chains) = if dns.is_some() {
        Default::default()
    } else {
        let filters = listener_filters(pb, &at.field("listener_filters"), scope);
        (filters, chain::compile(pb, &name, direction, at, scope))
    };
    let inspect_timeout =
        duration(pb.listener_filters_timeout.as_ref(), &at.field("listener_filters_timeout"), scope);
    let buffer_limit = number(
        pb.per_connection_buffer_limit_bytes.as_ref(),
        1..=u32::MAX,
        &at.field("per_connection_buffer_limit_bytes"),
        scope,
    );
    let access_log = compile_access_logs(&pb.access_log, &at.field("access_log"), scope);
    let dns = dns.flatten().map(Arc::new);
    // What listens for datagrams has none.
    let chains = chains.or_else(|| dns.is_some().then(chain::Chains::default));
    let (bound, chains) = bound.zip(chains)?;
    if scope.errors.len() > before {
        return None;
    }
    Some(ListenerSpec {
        name,
        address: bound.address,
        additional: bound.additional,
        bind: boolean(pb.bind_to_port.as_ref(), true),
        use_original_dst: boolean(pb.use_original_dst.as_ref(), false),
        direction,
        inspect_tls: filters.tls || chains.needs_tls_inspector,
        uninspected: filters.uninspected,
        inspect_http: filters.http,
        original_dst: filters.original_dst,
        original_src: filters.original_src,
        inspect_timeout: inspect_timeout.unwrap_or(Duration::from_secs(15)),
        continue_on_inspect_timeout: pb.continue_on_listener_filters_timeout,
        matcher: chains.matcher,
        chains: chains.list,
        socket: bound.socket,
        buffer_limit: buffer_limit.unwrap_or(1 << 20) as usize,
        access_log,
        dns,
    })
}

/// Takes the message apart: what is not named `_` here is refused; what is, is compiled elsewhere in this module.
fn refuse_unsupported(pb: &Listener, at: &At<'_>, scope: &mut Scope<'_>) {
    #[expect(deprecated, reason = "deprecated fields are refused with the rest")]
    let Listener {
        name: _,
        address: _,
        additional_addresses: _,
        stat_prefix,
        stats_matcher,
        filter_chains: _,
        fcds_config,
        filter_chain_matcher,
        use_original_dst: _,
        default_filter_chain: _,
        per_connection_buffer_limit_bytes: _,
        per_connection_buffer_high_watermark_timeout,
        // Metadata says something to control planes and to filters that we do not have; it has no effect of its own.
        metadata: _,
        deprecated_v1,
        drain_type,
        listener_filters: _,
        listener_filters_timeout: _,
        continue_on_listener_filters_timeout: _,
        transparent: _,
        freebind: _,
        socket_options: _,
        tcp_fast_open_queue_length,
        traffic_direction: _,
        udp_listener_config,
        api_listener,
        connection_balance_config,
        reuse_port: _,
        enable_reuse_port,
        access_log: _,
        tcp_backlog_size: _,
        max_connections_to_accept_per_socket_event,
        bind_to_port: _,
        enable_mptcp,
        ignore_global_conn_limit,
        bypass_overload_manager,
        tcp_keepalive: _,
        listener_specifier,
    } = pb;
    refuse!(
        scope, at;
        stat_prefix,
        stats_matcher,
        fcds_config,
        filter_chain_matcher,
        per_connection_buffer_high_watermark_timeout,
        deprecated_v1,
        drain_type,
        tcp_fast_open_queue_length,
        udp_listener_config,
        api_listener,
        connection_balance_config,
        max_connections_to_accept_per_socket_event,
        enable_mptcp,
        ignore_global_conn_limit,
        bypass_overload_manager,
    );
    if !boolean(enable_reuse_port.as_ref(), true) {
        let at = at.field("enable_reuse_port");
        scope.errors.report(&at, "false is not supported: each worker has its own socket").fix("remove it");
    }
    if listener_specifier.is_some() {
        unsupported(true, &at.field("internal_listener"), scope);
    }
}

#[derive(Default)]
struct ListenerFilters {
    tls: bool,
    http: bool,
    original_dst: bool,
    original_src: Option<u32>,
    uninspected: Uninspected,
}

fn listener_filters(pb: &Listener, at: &At<'_>, scope: &mut Scope<'_>) -> ListenerFilters {
    let mut found = ListenerFilters::default();
    for (i, filter) in pb.listener_filters.iter().enumerate() {
        let at = at.index(i);
        let ListenerFilter { name, filter_disabled, config_type } = filter;
        let disabled = predicate::ports(filter_disabled.as_ref(), &at.field("filter_disabled"), scope);
        let any = match config_type {
            Some(ConfigType::TypedConfig(any)) => any,
            Some(ConfigType::ConfigDiscovery(_)) => {
                unsupported(true, &at.field("config_discovery"), scope);
                continue;
            }
            None => {
                let message = format!("`{name}` has no typed_config");
                scope.errors.report(&at, message).fix("add typed_config with the filter's @type");
                continue;
            }
        };
        let at = at.field("typed_config");
        if holds::<TlsInspector>(any) {
            found.tls = true;
            found.uninspected.tls = disabled;
            tls_inspector(unpack(any, &at, scope), &at, scope);
        } else if holds::<HttpInspector>(any) {
            found.http = true;
            found.uninspected.http = disabled;
        } else if holds::<OriginalDst>(any) {
            found.original_dst = true;
            if disabled != Ports::default() {
                // Which port it is, only it knows.
                unsupported(true, &at.field("filter_disabled"), scope);
            }
        } else if holds::<OriginalSrc>(any) {
            found.original_src = original_src(unpack(any, &at, scope), &at, scope);
            // It is for the whole connection.
            if disabled != Ports::default() {
                unsupported(true, &at.field("filter_disabled"), scope);
            }
        } else {
            let message = format!("the listener filter `{}` is not supported", any.type_url);
            let fix = "use tls_inspector, http_inspector, original_dst or original_src";
            scope.errors.report(&at, message).fix(fix);
        }
    }
    found
}

/// Its mark.
fn original_src(pb: Option<OriginalSrc>, at: &At<'_>, scope: &mut Scope<'_>) -> Option<u32> {
    let OriginalSrc { bind_port, mark } = pb?;
    // One client's connection would take the port of another one.
    unsupported(bind_port, &at.field("bind_port"), scope);
    Some(mark)
}

fn tls_inspector(pb: Option<TlsInspector>, at: &At<'_>, scope: &mut Scope<'_>) {
    let Some(pb) = pb else { return };
    let TlsInspector {
        enable_ja3_fingerprinting,
        enable_ja4_fingerprinting,
        initial_read_buffer_size,
        close_connection_on_client_hello_parsing_errors,
        max_client_hello_size,
    } = &pb;
    refuse!(
        scope, at;
        initial_read_buffer_size, close_connection_on_client_hello_parsing_errors, max_client_hello_size,
    );
    for (field, value) in [
        ("enable_ja3_fingerprinting", enable_ja3_fingerprinting),
        ("enable_ja4_fingerprinting", enable_ja4_fingerprinting),
    ] {
        if boolean(value.as_ref(), false) {
            unsupported(true, &at.field(field), scope);
        }
    }
}

#[cfg(test)]
mod tests;
