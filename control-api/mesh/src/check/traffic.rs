//! TrafficPolicies.

use std::sync::Arc;

use remora_xds::diag::At;
use remora_xds::nearest;

use super::policy::{services, targets};
use super::report::Report;
use super::{balancing, breaker, health};
use crate::compile::{BASE_EJECTION, LONGEST_EJECTION};
use crate::document::{Document, OutlierDetection, Retries, Timeouts, TrafficPolicySpec};
use crate::kinds::AnyDocument;
use crate::mesh::Mesh;

/// Retry conditions that mean something for a mesh.
const RETRY_ON: [&str; 12] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "refused-stream",
    "retriable-4xx",
    "cancelled",
    "deadline-exceeded",
    "resource-exhausted",
    "internal",
    "unavailable",
];

/// A TrafficPolicy.
pub(super) fn check(mesh: &Mesh, document: &Arc<Document<TrafficPolicySpec>>, report: &mut Report) {
    let key = AnyDocument::TrafficPolicy(Arc::clone(document)).key();
    targets(mesh, &key, &document.spec.target_refs, report);
    let services = services(mesh, &key, &document.spec.target_refs);
    let root = At::root();
    let spec = root.field("spec");
    health::check(&document.spec.health_checks, &services, &spec.field("healthChecks"), report);
    if let Some(said) = &document.spec.circuit_breaker {
        breaker::check((mesh, &key), said, &services, &spec.field("circuitBreaker"), report);
    }
    retries(&document.spec.retries, document.spec.timeouts, &spec.field("retries"), report);
    balancing::check(&document.spec.load_balancing, &spec.field("loadBalancing"), report);
    outliers(&document.spec.outlier_detection, &spec.field("outlierDetection"), report);
    if document.spec.timeouts.connect.is_some_and(|t| t.0.is_zero()) {
        report.report(&spec.field("timeouts").field("connect"), "must be more than 0s");
    }
}

fn retries(said: &Retries, timeouts: Timeouts, at: &At<'_>, report: &mut Report) {
    let retry_on = at.field("retryOn");
    for (i, condition) in said.retry_on.iter().enumerate() {
        if !RETRY_ON.contains(&condition.as_str()) {
            let fix = nearest(condition, RETRY_ON.into_iter()).map_or_else(
                || format!("known are {}", RETRY_ON.join(", ")),
                |near| format!("did you mean {near}?"),
            );
            report.report(&retry_on.index(i), format!("{condition:?} is no retry condition")).fix(fix);
        }
    }
    let codes = at.field("statusCodes");
    for (i, code) in said.status_codes.iter().enumerate() {
        if !(400..600).contains(code) {
            report.report(&codes.index(i), format!("{code} is no status of a failure")).fix("400 to 599");
        }
    }
    let budget = at.field("budget");
    let percent = budget.field("percent");
    if said.budget.percent.is_some_and(|p| p > 100) {
        report.report(&percent, "is more than 100");
    }
    if said.num == Some(0) {
        let useless = [(&retry_on, !said.retry_on.is_empty()), (&codes, !said.status_codes.is_empty())];
        for (at, _) in useless.into_iter().filter(|(_, set)| *set) {
            let text = "says what is tried again, and spec.retries.num is 0: nothing is";
            report.report(at, text).fix("remove it, or raise num");
        }
    }
    // Whatever num is: rules may have attempts of their own.
    if said.budget.percent == Some(0) && said.budget.min_per_second == Some(0) {
        let text = "leaves no retry, with spec.retries.budget.minPerSecond";
        report.report(&percent, text).fix("raise one of the two, or switch retries off with num: 0 alone");
    }
    if said.budget.interval.is_some_and(|interval| interval.0.is_zero()) {
        report.report(&budget.field("interval"), "must be more than 0s").fix("10s is usual");
    }
    if said.all_methods && said.retry_on.is_empty() && said.status_codes.is_empty() {
        let text = "has no effect: what was not processed is tried again whatever its method";
        report.report(&at.field("allMethods"), text).fix("say retryOn or statusCodes, or remove it");
    }
    if let (Some(per_try), Some(request)) = (said.per_try, timeouts.request)
        && !request.0.is_zero()
        && per_try >= request
    {
        let text =
            "is not shorter than the whole request by spec.timeouts.request: no time is left for another try";
        report.report(&at.field("perTry"), text).fix("shorten it, or raise timeouts.request");
    }
}

fn outliers(said: &OutlierDetection, at: &At<'_>, report: &mut Report) {
    if !said.enabled {
        if *said != (OutlierDetection { enabled: false, ..OutlierDetection::default() }) {
            let text = "switches off what the other fields set";
            report.report(&at.field("enabled"), text).fix("remove it, or the other fields");
        }
        return;
    }
    let percents = [
        ("maxEjectionPercent", at, said.max_ejection_percent),
        ("threshold", &at.field("failurePercentage"), said.failure_percentage.and_then(|f| f.threshold)),
    ];
    for (field, at, percent) in percents {
        if percent.is_some_and(|percent| percent > 100) {
            report.report(&at.field(field), "is more than 100");
        }
    }
    if said.max_ejection_percent == Some(0) {
        let text = "lets nothing be ejected, and outlier detection is on";
        report.report(&at.field("maxEjectionPercent"), text).fix("raise it, or enabled: false");
    }
    for (field, time) in [
        ("interval", said.interval),
        ("baseEjectionTime", said.base_ejection_time),
        ("maxEjectionTime", said.max_ejection_time),
    ] {
        if time.is_some_and(|time| time.0.is_zero()) {
            report.report(&at.field(field), "must be more than 0s");
        }
    }
    let base = said.base_ejection_time.map_or(BASE_EJECTION, |time| time.0);
    let longest = said.max_ejection_time.map_or_else(|| LONGEST_EJECTION.max(base), |time| time.0);
    if longest < base {
        let text = format!("is shorter than spec.outlierDetection.baseEjectionTime, which is {base:?}");
        report.report(&at.field("maxEjectionTime"), text).fix("raise it, or shorten baseEjectionTime");
    }
    if said.consecutive_local_origin_failures.is_some() && !said.split_external_local_origin_errors {
        let text = "has no effect: failures of the way are counted with the others";
        report
            .report(&at.field("consecutiveLocalOriginFailures"), text)
            .fix("splitExternalLocalOriginErrors: true");
    }
}
