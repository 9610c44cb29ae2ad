//! TrafficPolicies.

use std::sync::Arc;

use remora_xds::diag::At;
use remora_xds::nearest;

use super::policy::targets;
use super::report::Report;
use crate::compile::DECAY;
use crate::document::{Document, LbPolicy, LoadBalancing, Retries, Timeouts, TrafficPolicySpec};
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
    let root = At::root();
    let spec = root.field("spec");
    let later = [
        ("outlierDetection", document.spec.outlier_detection),
        ("healthChecks", document.spec.health_checks),
        ("circuitBreaker", document.spec.circuit_breaker),
    ];
    for (field, set) in later {
        if set.is_some() {
            report.unsupported(&spec.field(field), "is not supported yet").fix("remove it");
        }
    }
    retries(&document.spec.retries, document.spec.timeouts, &spec.field("retries"), report);
    load_balancing(&document.spec.load_balancing, &spec.field("loadBalancing"), report);
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
    } else if said.budget.percent == Some(0) && said.budget.min_concurrency == Some(0) {
        let text = "leaves no retry, with spec.retries.budget.minConcurrency, and retries are on";
        report.report(&percent, text).fix("raise one of the two, or switch retries off with num: 0");
    }
    if let (Some(per_try), Some(request)) = (said.per_try, timeouts.request)
        && !request.0.is_zero()
        && per_try > request
    {
        let text = "is longer than the whole request may take by spec.timeouts.request";
        report.report(&at.field("perTry"), text).fix("shorten it, or raise timeouts.request");
    }
}

fn load_balancing(said: &LoadBalancing, at: &At<'_>, report: &mut Report) {
    let of = |policies: &[LbPolicy]| said.policy.is_none_or(|policy| policies.contains(&policy));
    if said.decay.is_some() && !of(&[LbPolicy::PeakEwma]) {
        report.report(&at.field("decay"), "belongs to PeakEwma").fix("remove it, or policy: PeakEwma");
    }
    if said.decay.is_some_and(|decay| !DECAY.contains(&decay.0)) {
        report.report(&at.field("decay"), "must be from 1ms to 1h").fix("10s is usual");
    }
    let choices = at.field("choiceCount");
    if said.choice_count.is_some() && !of(&[LbPolicy::LeastRequest]) {
        report.report(&choices, "belongs to LeastRequest").fix("remove it, or policy: LeastRequest");
    }
    if said.choice_count.is_some_and(|count| !(2..=1000).contains(&count)) {
        report.report(&choices, "must be from 2 to 1000").fix("2 is usual");
    }
    if said.panic_threshold.is_some_and(|percent| percent > 100) {
        report.report(&at.field("panicThreshold"), "is more than 100");
    }
}
