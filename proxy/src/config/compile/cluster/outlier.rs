//! `outlier_detection`.

use std::time::Duration;

use remora_xds::diag::At;
use remora_xds::pb::envoy::config::cluster::v3::OutlierDetection;
use remora_xds::pb::google::protobuf::UInt32Value;

use super::common::{duration, positive, refuse};
use crate::config::compile::Scope;
use crate::resilience::outlier::{Cause, OutlierSpec};
use crate::upstream::cluster::Discovery;

/// Compiles `outlier_detection` of a cluster that finds its endpoints by `discovery`.
pub(super) fn compile(
    pb: &OutlierDetection,
    discovery: Option<&Discovery>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> OutlierSpec {
    #[rustfmt::skip]
    let OutlierDetection {
        consecutive_5xx, interval, base_ejection_time, max_ejection_percent, enforcing_consecutive_5xx: _,
        enforcing_success_rate: _, success_rate_minimum_hosts, success_rate_request_volume, success_rate_stdev_factor,
        consecutive_gateway_failure, enforcing_consecutive_gateway_failure: _, split_external_local_origin_errors,
        consecutive_local_origin_failure, enforcing_consecutive_local_origin_failure: _,
        enforcing_local_origin_success_rate: _, failure_percentage_threshold, enforcing_failure_percentage: _,
        enforcing_failure_percentage_local_origin: _, failure_percentage_minimum_hosts,
        failure_percentage_request_volume, max_ejection_time, max_ejection_time_jitter,
        successful_active_health_check_uneject_host, monitors, always_eject_one_host, detect_degraded_hosts,
    } = pb;
    let detect_degraded_hosts = detect_degraded_hosts.filter(|b| b.value);
    refuse!(scope, at, [monitors, detect_degraded_hosts]);
    if matches!(discovery, Some(Discovery::OriginalDst(_))) {
        scope.errors.report(at, "is not supported in a cluster of type ORIGINAL_DST");
    }
    let default = OutlierSpec::default();
    let number = |value: &Option<UInt32Value>, default: u32| value.map_or(default, |n| n.value);
    let hosts = |value: &Option<UInt32Value>, default: usize| value.map_or(default, |n| n.value as usize);
    let enforcing = enforcing(pb, at, scope);
    let mut time = |value, name, default| positive(value, &at.field(name), scope).unwrap_or(default);
    let interval = time(*interval, "interval", default.interval);
    let base_ejection_time = time(*base_ejection_time, "base_ejection_time", default.base_ejection_time);
    let longest = default.max_ejection_time.max(base_ejection_time);
    let max_ejection_time = time(*max_ejection_time, "max_ejection_time", longest);
    let jitter =
        max_ejection_time_jitter.and_then(|d| duration(d, &at.field("max_ejection_time_jitter"), scope));
    let percent = |value, default, name, scope: &mut Scope<'_>| share(value, default, &at.field(name), scope);
    OutlierSpec {
        consecutive_5xx: number(consecutive_5xx, default.consecutive_5xx),
        consecutive_gateway_failure: number(consecutive_gateway_failure, default.consecutive_gateway_failure),
        consecutive_local_origin_failure: number(
            consecutive_local_origin_failure,
            default.consecutive_local_origin_failure,
        ),
        enforcing,
        interval,
        base_ejection_time,
        max_ejection_time,
        jitter: jitter.unwrap_or(Duration::ZERO),
        max_ejection_percent: percent(
            *max_ejection_percent,
            default.max_ejection_percent,
            "max_ejection_percent",
            scope,
        ),
        always_eject_one: always_eject_one_host.is_some_and(|b| b.value),
        success_rate_minimum_hosts: hosts(success_rate_minimum_hosts, default.success_rate_minimum_hosts),
        success_rate_request_volume: number(success_rate_request_volume, default.success_rate_request_volume),
        success_rate_stdev_factor: number(success_rate_stdev_factor, default.success_rate_stdev_factor),
        failure_percentage_threshold: percent(
            *failure_percentage_threshold,
            default.failure_percentage_threshold,
            "failure_percentage_threshold",
            scope,
        ),
        failure_percentage_minimum_hosts: hosts(
            failure_percentage_minimum_hosts,
            default.failure_percentage_minimum_hosts,
        ),
        failure_percentage_request_volume: number(
            failure_percentage_request_volume,
            default.failure_percentage_request_volume,
        ),
        split: *split_external_local_origin_errors,
        uneject_on_health_check: successful_active_health_check_uneject_host.is_none_or(|b| b.value),
    }
}

/// A whole percentage.
fn share(value: Option<UInt32Value>, default: u32, at: &At<'_>, scope: &mut Scope<'_>) -> u32 {
    let value = value.map_or(default, |n| n.value);
    if value > 100 {
        scope.errors.report(at, "must be from 0 to 100");
    }
    value
}

/// How many of a hundred findings of each cause are followed by ejection.
fn enforcing(pb: &OutlierDetection, at: &At<'_>, scope: &mut Scope<'_>) -> [u32; Cause::ALL.len()] {
    let mut shares = OutlierSpec::default().enforcing;
    for (cause, name, value) in [
        (Cause::Consecutive5xx, "enforcing_consecutive_5xx", &pb.enforcing_consecutive_5xx),
        (
            Cause::ConsecutiveGatewayFailure,
            "enforcing_consecutive_gateway_failure",
            &pb.enforcing_consecutive_gateway_failure,
        ),
        (
            Cause::ConsecutiveLocalOriginFailure,
            "enforcing_consecutive_local_origin_failure",
            &pb.enforcing_consecutive_local_origin_failure,
        ),
        (Cause::SuccessRate, "enforcing_success_rate", &pb.enforcing_success_rate),
        (
            Cause::SuccessRateLocalOrigin,
            "enforcing_local_origin_success_rate",
            &pb.enforcing_local_origin_success_rate,
        ),
        (Cause::FailurePercentage, "enforcing_failure_percentage", &pb.enforcing_failure_percentage),
        (
            Cause::FailurePercentageLocalOrigin,
            "enforcing_failure_percentage_local_origin",
            &pb.enforcing_failure_percentage_local_origin,
        ),
    ] {
        let place = &mut shares[cause as usize];
        *place = share(*value, *place, &at.field(name), scope);
    }
    shares
}
