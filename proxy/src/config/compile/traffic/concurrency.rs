//! `envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency`.

use http::StatusCode;
use remora_xds::diag::At;
use remora_xds::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::adaptive_concurrency::ConcurrencyControllerConfig;
use remora_xds::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::gradient_controller_config::{
    ConcurrencyLimitCalculationParams, MinimumRttCalculationParams,
};
use remora_xds::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::{
    AdaptiveConcurrency, GradientControllerConfig,
};

use super::{flag, refusal_status};
use crate::config::compile::Scope;
use crate::config::compile::common::{duration, positive_duration};
use crate::config::compile::fields::{number, percent};
use crate::resilience::concurrency::MAX_SAMPLES;
use crate::resilience::concurrency::gradient::ConcurrencySpec;
use crate::traffic::concurrency::ConcurrencyFilter;

/// Envoy's defaults.
const MAX_LIMIT: u32 = 1000;
const MIN_LIMIT: u32 = 3;
const SAMPLES: u32 = 50;
const BUFFER: f64 = 25.0;

/// Compiles the filter. None when it has mistakes, which are in `scope.errors`.
pub(super) fn concurrency(
    pb: &AdaptiveConcurrency,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<ConcurrencyFilter> {
    let before = scope.errors.len();
    let AdaptiveConcurrency {
        enabled,
        concurrency_limit_exceeded_status: status,
        concurrency_controller_config: config,
    } = pb;
    let at_status = at.field("concurrency_limit_exceeded_status");
    let status = refusal_status(status.as_ref(), StatusCode::SERVICE_UNAVAILABLE, &at_status, scope);
    let at_gradient = at.field("gradient_controller_config");
    let Some(ConcurrencyControllerConfig::GradientControllerConfig(config)) = config else {
        scope.errors.report(&at_gradient, "is required");
        return None;
    };
    let spec = gradient(config, &at_gradient, scope)?;
    if scope.errors.len() > before {
        return None;
    }
    let controller = scope.names.controllers.of(format!("{at}"), spec);
    Some(ConcurrencyFilter { enabled: flag(enabled.as_ref()), controller, status })
}

fn gradient(pb: &GradientControllerConfig, at: &At<'_>, scope: &mut Scope<'_>) -> Option<ConcurrencySpec> {
    let GradientControllerConfig {
        sample_aggregate_percentile,
        concurrency_limit_params,
        min_rtt_calc_params,
    } = pb;
    // It has no effect: the average is what Little's law is about.
    percent(*sample_aggregate_percentile, 50.0, &at.field("sample_aggregate_percentile"), scope);
    let at_limit = at.field("concurrency_limit_params");
    if concurrency_limit_params.is_none() {
        scope.errors.report(&at_limit, "is required");
    }
    let at_rtt = at.field("min_rtt_calc_params");
    if min_rtt_calc_params.is_none() {
        scope.errors.report(&at_rtt, "is required");
    }
    let limit = concurrency_limit_params.as_ref()?;
    let rtt = unloaded(min_rtt_calc_params.as_ref()?, &at_rtt, scope);
    let ConcurrencyLimitCalculationParams {
        max_concurrency_limit,
        concurrency_update_interval,
        min_concurrency_limit,
    } = limit;
    let at_max = at_limit.field("max_concurrency_limit");
    let max = number(max_concurrency_limit.as_ref(), 1..=u32::MAX, &at_max, scope);
    let at_min = at_limit.field("min_concurrency_limit");
    let min = number(min_concurrency_limit.as_ref(), 1..=u32::MAX, &at_min, scope);
    let at_interval = at_limit.field("concurrency_update_interval");
    if concurrency_update_interval.is_none() {
        scope.errors.report(&at_interval, "is required");
    }
    let interval = positive_duration(concurrency_update_interval.as_ref(), &at_interval, scope)?;
    let max = max.unwrap_or(MAX_LIMIT);
    // What was said wins over what was not.
    let min = min.or(rtt.min).unwrap_or_else(|| MIN_LIMIT.min(max));
    if min > max {
        let message = format!("{min} contradicts a max_concurrency_limit of {max}");
        let at = if min_concurrency_limit.is_some() { at_min } else { at_rtt.field("min_concurrency") };
        scope.errors.report(&at, message);
    }
    Some(ConcurrencySpec { min, max, interval, samples: rtt.samples, buffer: rtt.buffer, fixed: rtt.fixed })
}

/// What `min_rtt_calc_params` says.
struct Unloaded {
    min: Option<u32>,
    samples: u32,
    buffer: f64,
    fixed: Option<std::time::Duration>,
}

fn unloaded(pb: &MinimumRttCalculationParams, at: &At<'_>, scope: &mut Scope<'_>) -> Unloaded {
    let MinimumRttCalculationParams { interval, fixed_value, request_count, jitter, min_concurrency, buffer } =
        pb;
    // When it is measured follows from the latency, not from a clock: interval and jitter have no effect.
    let at_interval = at.field("interval");
    let interval = duration(interval.as_ref(), &at_interval, scope);
    percent(*jitter, 15.0, &at.field("jitter"), scope);
    let at_fixed = at.field("fixed_value");
    let fixed = fixed_value.as_ref().and_then(|pb| positive_duration(Some(pb), &at_fixed, scope));
    if interval.is_none_or(|interval| interval.is_zero()) && fixed_value.is_none() {
        scope.errors.report(at, "needs interval or fixed_value");
    }
    let at_count = at.field("request_count");
    let samples = number(request_count.as_ref(), 1..=MAX_SAMPLES, &at_count, scope);
    let buffer = percent(*buffer, BUFFER, &at.field("buffer"), scope);
    let at_min = at.field("min_concurrency");
    Unloaded {
        min: number(min_concurrency.as_ref(), 1..=u32::MAX, &at_min, scope),
        samples: samples.unwrap_or(SAMPLES),
        buffer: buffer / 100.0,
        fixed,
    }
}
