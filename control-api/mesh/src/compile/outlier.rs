//! `outlier_detection` of a cluster. Every value is set, also where it is Envoy's default.

use std::time::Duration;

use remora_xds::pb::envoy::config::cluster::v3 as pb;

use super::parts::{duration, flag, number, seconds};
use crate::document::OutlierDetection;
use crate::span::Span;

/// How long the first ejection takes.
pub(crate) const BASE: Duration = Duration::from_secs(30);
/// How long the longest one takes.
pub(crate) const LONGEST: Duration = Duration::from_secs(300);

/// None when documents switch it off.
pub(super) fn detection(said: &OutlierDetection) -> Option<pb::OutlierDetection> {
    if !said.enabled {
        return None;
    }
    let time = |said: Option<Span>, usual| Some(duration(said.map_or(usual, |span| span.0)));
    let count = |said: Option<u32>, usual| number(said.unwrap_or(usual));
    // Nothing in a row is never. The number itself must not be zero.
    let in_a_row = |said: Option<u32>| number(said.unwrap_or(5).max(1));
    let enforced = |yes: bool| number(if yes { 100 } else { 0 });
    let rate = said.success_rate;
    let percentage = said.failure_percentage.unwrap_or_default();
    let split = said.split_external_local_origin_errors;
    Some(pb::OutlierDetection {
        consecutive_5xx: in_a_row(said.consecutive_5xx_errors),
        enforcing_consecutive_5xx: enforced(said.consecutive_5xx_errors != Some(0)),
        consecutive_gateway_failure: in_a_row(said.consecutive_gateway_errors),
        enforcing_consecutive_gateway_failure: enforced(
            said.consecutive_gateway_errors.is_some_and(|errors| errors > 0),
        ),
        split_external_local_origin_errors: split,
        consecutive_local_origin_failure: in_a_row(said.consecutive_local_origin_failures),
        enforcing_consecutive_local_origin_failure: enforced(
            split && said.consecutive_local_origin_failures != Some(0),
        ),
        interval: time(said.interval, Duration::from_secs(10)),
        base_ejection_time: time(said.base_ejection_time, BASE),
        max_ejection_time: time(
            said.max_ejection_time,
            LONGEST.max(said.base_ejection_time.map_or(BASE, |t| t.0)),
        ),
        max_ejection_time_jitter: seconds(0),
        max_ejection_percent: count(said.max_ejection_percent, 50),
        enforcing_success_rate: enforced(true),
        enforcing_local_origin_success_rate: enforced(split),
        success_rate_minimum_hosts: count(rate.minimum_hosts, 5),
        success_rate_request_volume: count(rate.request_volume, 100),
        success_rate_stdev_factor: count(rate.stdev_factor, 1900),
        enforcing_failure_percentage: enforced(said.failure_percentage.is_some()),
        enforcing_failure_percentage_local_origin: enforced(split && said.failure_percentage.is_some()),
        failure_percentage_threshold: count(percentage.threshold, 85),
        failure_percentage_minimum_hosts: count(percentage.minimum_hosts, 5),
        failure_percentage_request_volume: count(percentage.request_volume, 50),
        successful_active_health_check_uneject_host: flag(true),
        ..pb::OutlierDetection::default()
    })
}
