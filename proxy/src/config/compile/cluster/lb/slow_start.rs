//! `slow_start_config`, which Envoy's API has twice.

use remora_xds::diag::At;
use remora_xds::pb;

use super::super::common::{percent, positive};
use crate::balance::slow_start::SlowStart;
use crate::config::compile::Scope;
use pb::envoy::config::cluster::v3::cluster::SlowStartConfig as OfCluster;
use pb::envoy::config::core::v3::RuntimeDouble;
use pb::envoy::extensions::load_balancing_policies::common::v3::SlowStartConfig as OfPolicy;
use pb::envoy::r#type::v3::Percent;
use pb::google::protobuf::Duration;

type Fields = (Option<Duration>, Option<RuntimeDouble>, Option<Percent>);

/// Of `round_robin_lb_config` and `least_request_lb_config`.
pub(super) fn of_cluster(pb: Option<&OfCluster>, at: &At<'_>, scope: &mut Scope<'_>) -> Option<SlowStart> {
    let OfCluster { slow_start_window, aggression, min_weight_percent } = pb.cloned()?;
    fields((slow_start_window, aggression, min_weight_percent), at, scope)
}

/// Of a policy of `load_balancing_policy`.
pub(super) fn of_policy(pb: Option<&OfPolicy>, at: &At<'_>, scope: &mut Scope<'_>) -> Option<SlowStart> {
    let OfPolicy { slow_start_window, aggression, min_weight_percent } = pb.cloned()?;
    fields((slow_start_window, aggression, min_weight_percent), at, scope)
}

/// Without a window there is no slow start, as in Envoy; but then the other fields do nothing, which is a mistake.
fn fields((window, aggression, min): Fields, at: &At<'_>, scope: &mut Scope<'_>) -> Option<SlowStart> {
    let at = at.field("slow_start_config");
    if window.is_none() {
        scope.errors.report(&at.field("slow_start_window"), "is required: without it nothing starts slowly");
    }
    let aggression = aggression.map_or(1.0, |pb| pb.default_value);
    if !(aggression > 0.0 && aggression.is_finite()) {
        let at = at.field("aggression");
        scope.errors.report(&at.field("default_value"), "must be more than 0");
    }
    let min = percent(min, 10.0, &at.field("min_weight_percent"), scope) / 100.0;
    let window = positive(window, &at.field("slow_start_window"), scope)?;
    Some(SlowStart { window, aggression, min })
}
