//! How connections to a cluster are opened, and how many there may be.

use std::net::SocketAddr;
use std::time::Duration;

use remora_xds::diag::At;
use remora_xds::pb;

use super::common::{duration, ip_port, percent, positive, refuse};
use crate::config::compile::Scope;
use crate::config::spec::Keepalive;
use crate::resilience::breaker::Thresholds;
use crate::resilience::budget::BudgetSpec;
use crate::upstream::connect::ConnectSpec;
use pb::envoy::config::cluster::v3::circuit_breakers::{self, thresholds};
use pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster, UpstreamConnectionOptions};
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::core::v3::socket_option::Value;

/// `connect_timeout`, `upstream_connection_options` and `upstream_bind_config`.
pub(super) fn compile(pb: &Cluster, at: &At<'_>, scope: &mut Scope<'_>) -> ConnectSpec {
    let mut spec = ConnectSpec::default();
    if let Some(timeout) = positive(pb.connect_timeout, &at.field("connect_timeout"), scope) {
        spec.timeout = timeout;
    }
    if let Some(options) = &pb.upstream_connection_options {
        let at = at.field("upstream_connection_options");
        let UpstreamConnectionOptions {
            tcp_keepalive,
            set_local_interface_name_on_upstream_connections,
            happy_eyeballs_config,
        } = options;
        refuse!(scope, at, [set_local_interface_name_on_upstream_connections, happy_eyeballs_config]);
        spec.keepalive = tcp_keepalive.as_ref().and_then(|k| keepalive(k, &at.field("tcp_keepalive"), scope));
    }
    if let Some(bind) = &pb.upstream_bind_config {
        bind_config(bind, &mut spec, &at.field("upstream_bind_config"), scope);
    }
    spec
}

fn keepalive(pb: &core::TcpKeepalive, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Keepalive> {
    let core::TcpKeepalive { keepalive_probes, keepalive_time, keepalive_interval } = pb;
    let fields = [
        ("keepalive_probes", keepalive_probes, 127),
        ("keepalive_time", keepalive_time, 32_767),
        ("keepalive_interval", keepalive_interval, 32_767),
    ];
    // "Setting this to 0 disables TCP keepalive."
    if fields.iter().any(|(_, value, _)| value.is_some_and(|v| v.value == 0)) {
        return None;
    }
    for (name, value, max) in fields {
        if value.is_some_and(|v| !(1..=max).contains(&v.value)) {
            scope.errors.report(&at.field(name), format!("must be from 1 to {max}, the kernel's limit"));
        }
    }
    let seconds =
        |v: &Option<pb::google::protobuf::UInt32Value>| v.map(|v| Duration::from_secs(v.value.into()));
    Some(Keepalive {
        probes: keepalive_probes.map(|v| v.value),
        time: seconds(keepalive_time),
        interval: seconds(keepalive_interval),
    })
}

fn bind_config(pb: &core::BindConfig, spec: &mut ConnectSpec, at: &At<'_>, scope: &mut Scope<'_>) {
    #[expect(deprecated, reason = "refused by name")]
    let core::BindConfig {
        source_address,
        freebind,
        socket_options,
        extra_source_addresses,
        additional_source_addresses,
        local_address_selector,
        validate_network_namespaces,
    } = pb;
    let freebind = freebind.filter(|b| b.value);
    #[rustfmt::skip]
    refuse!(scope, at, [
        freebind, extra_source_addresses, additional_source_addresses, local_address_selector,
        validate_network_namespaces,
    ]);
    spec.source = source_address
        .as_ref()
        .and_then(|pb| ip_port(pb, &at.field("source_address"), scope))
        .filter(|source| *source != SocketAddr::new(source.ip(), 0) || !source.ip().is_unspecified());
    let list = at.field("socket_options");
    for (i, option) in socket_options.iter().enumerate() {
        const TCP_NODELAY: (i64, i64) = (6, 1);
        const TCP_USER_TIMEOUT: (i64, i64) = (6, 18);
        match ((option.level, option.name), &option.value) {
            (TCP_NODELAY, Some(Value::IntValue(1))) => {}
            (TCP_USER_TIMEOUT, Some(Value::IntValue(ms))) if u32::try_from(*ms).is_ok_and(|ms| ms > 0) => {
                spec.user_timeout = u64::try_from(*ms).ok().map(Duration::from_millis);
            }
            _ => {
                let message = format!("level {} name {} is not supported", option.level, option.name);
                scope.errors.report(&list.index(i), message).fix("TCP_USER_TIMEOUT is level 6 name 18");
            }
        }
    }
}

/// `circuit_breakers`, for DEFAULT and HIGH.
pub(super) fn circuit_breakers(pb: &CircuitBreakers, at: &At<'_>, scope: &mut Scope<'_>) -> [Thresholds; 2] {
    let CircuitBreakers { thresholds, per_host_thresholds } = pb;
    refuse!(scope, at, [per_host_thresholds]);
    let mut compiled = [None, None];
    let list = at.field("thresholds");
    for (i, pb) in thresholds.iter().enumerate() {
        let at = list.index(i);
        let slot = usize::try_from(pb.priority).ok().and_then(|p| compiled.get_mut(p));
        match slot {
            Some(slot @ None) => *slot = Some(threshold(pb, &at, scope)),
            Some(Some(_)) => drop(
                scope.errors.report(&at.field("priority"), "there is a threshold of this priority already"),
            ),
            None => drop(scope.errors.report(&at.field("priority"), "must be DEFAULT or HIGH")),
        }
    }
    compiled.map(Option::unwrap_or_default)
}

fn threshold(pb: &circuit_breakers::Thresholds, at: &At<'_>, scope: &mut Scope<'_>) -> Thresholds {
    let circuit_breakers::Thresholds {
        priority: _,
        max_connections,
        max_pending_requests,
        max_requests,
        max_retries,
        retry_budget,
        track_remaining,
        max_connection_pools,
    } = pb;
    refuse!(scope, at, [max_connection_pools]);
    let budget = |pb: &thresholds::RetryBudget| {
        let at = at.field("retry_budget");
        let thresholds::RetryBudget { budget_percent, budget_interval, min_retry_concurrency } = pb;
        let default = BudgetSpec::default();
        let interval = budget_interval.and_then(|d| duration(d, &at.field("budget_interval"), scope));
        let nothing = budget_percent.is_some_and(|p| p.value == 0.0);
        if nothing && min_retry_concurrency.is_some_and(|n| n.value == 0) {
            let message =
                format!("is zero, and so is {}: there could be no retry", at.field("min_retry_concurrency"));
            let fix = "raise one of them, or take the retry policies of the routes away";
            scope.errors.report(&at.field("budget_percent"), message).fix(fix);
        }
        BudgetSpec {
            percent: percent(*budget_percent, default.percent, &at.field("budget_percent"), scope),
            min_concurrency: min_retry_concurrency.map_or(default.min_concurrency, |n| n.value),
            interval: interval.unwrap_or_default(),
        }
    };
    let default = Thresholds::default();
    Thresholds {
        max_connections: max_connections.map_or(default.max_connections, |n| n.value),
        max_pending: max_pending_requests.map_or(default.max_pending, |n| n.value),
        max_requests: max_requests.map_or(default.max_requests, |n| n.value),
        max_retries: max_retries.map_or(default.max_retries, |n| n.value),
        retry_budget: retry_budget.as_ref().map(budget),
        track_remaining: *track_remaining,
    }
}
