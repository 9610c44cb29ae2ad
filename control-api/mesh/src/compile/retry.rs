//! Retry policies.

use std::collections::BTreeSet;
use std::time::Duration;

use remora_xds::pb::envoy::config::cluster::v3::circuit_breakers::thresholds::RetryBudget as PbBudget;
use remora_xds::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use remora_xds::pb::envoy::config::route::v3::retry_policy::retry_host_predicate::ConfigType;
use remora_xds::pb::envoy::config::route::v3::retry_policy::{
    RateLimitedRetryBackOff, ResetHeader, ResetHeaderFormat, RetryBackOff, RetryHostPredicate,
};
use remora_xds::pb::envoy::config::route::v3::{HeaderMatcher, RetryPolicy};
use remora_xds::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use remora_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use remora_xds::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};
use remora_xds::pb::envoy::r#type::v3::Percent;

use super::parts;
use crate::document::{HttpRetry, HttpTimeouts, Retries, RetryBudget};
use crate::span::Span;

/// Conditions under which the request was certainly not processed.
const UNPROCESSED: [&str; 3] = ["connect-failure", "refused-stream", "reset-before-request"];

/// Tries beyond the first.
const RETRIES: u32 = 2;

/// Least time between tries. The most is ten times that.
const BACK_OFF: Duration = Duration::from_millis(25);

/// Endpoints that a connection may be tried at: nothing was sent before it is there.
pub(super) fn connects(retries: Option<&Retries>) -> u32 {
    retries.and_then(|retries| retries.num).unwrap_or(RETRIES).saturating_add(1)
}

/// As [`connects`], of a route.
pub(super) fn of_connections(retries: Option<&Retries>) -> RetryPolicy {
    let num = retries.and_then(|retries| retries.num);
    policy(&Retries { num, ..Retries::default() }, HttpTimeouts::default(), None)
}

/// Twice, and only what was not processed.
pub(super) fn unprocessed() -> RetryPolicy {
    policy(&Retries::default(), HttpTimeouts::default(), None)
}

/// As a TrafficPolicy and a rule with its timeouts say. What the rule says holds before the policy; a try that would be longer than the
/// whole request, `timeouts.request`, is as long as that: one of the two may be the policy's.
pub(super) fn policy(retries: &Retries, timeouts: HttpTimeouts, rule: Option<&HttpRetry>) -> RetryPolicy {
    let codes = rule.map(|r| &r.codes).filter(|codes| !codes.is_empty()).unwrap_or(&retries.status_codes);
    let mut on: BTreeSet<&str> = UNPROCESSED.into_iter().collect();
    on.extend(retries.retry_on.iter().map(String::as_str));
    if !codes.is_empty() {
        on.insert("retriable-status-codes");
    }
    let more = on.len() > UNPROCESSED.len();
    let request = timeouts.request.filter(|t| !t.0.is_zero());
    let shorter = |own: Span| request.map_or(own, |request| own.min(request));
    let per_try = timeouts.backend_request.or(retries.per_try).map(shorter);
    let elsewhere = RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".into(),
        config_type: Some(ConfigType::TypedConfig(parts::pack(&PreviousHostsPredicate {}))),
    };
    let attempts = rule.and_then(|r| r.attempts).or(retries.num).unwrap_or(RETRIES);
    let base = rule.and_then(|r| r.backoff).map_or(BACK_OFF, |b| b.0.max(Duration::from_millis(1)));
    RetryPolicy {
        retry_on: on.into_iter().collect::<Vec<_>>().join(","),
        num_retries: parts::number(attempts),
        per_try_timeout: per_try.filter(|t| !t.0.is_zero()).map(|t| parts::duration(t.0)),
        retry_host_predicate: vec![elsewhere],
        host_selection_retry_max_attempts: 5,
        per_try_idle_timeout: retries.per_try_idle.map(|t| parts::duration(t.0)),
        retriable_request_headers: if more && !retries.all_methods { repeatable() } else { Vec::new() },
        rate_limited_retry_back_off: Some(rate_limited()),
        retriable_status_codes: codes.iter().map(|c| u32::from(*c)).collect(),
        retry_back_off: Some(RetryBackOff {
            base_interval: Some(parts::duration(base)),
            max_interval: Some(parts::duration(base.saturating_mul(10))),
        }),
        ..RetryPolicy::default()
    }
}

/// Requests that may be repeated although they may have been processed: by their method (RFC 9110, 9.2.2), or because the program
/// knows them again. The others are still tried again when they were certainly not processed.
fn repeatable() -> Vec<HeaderMatcher> {
    let regex = RegexMatcher { regex: "GET|HEAD|OPTIONS|PUT|DELETE".into(), ..RegexMatcher::default() };
    let pattern = Some(MatchPattern::SafeRegex(regex));
    let method = StringMatcher { match_pattern: pattern, ..StringMatcher::default() };
    let header = |name: &str, specifier| HeaderMatcher {
        name: name.into(),
        header_match_specifier: Some(specifier),
        ..HeaderMatcher::default()
    };
    vec![
        header(":method", HeaderMatchSpecifier::StringMatch(method)),
        header("idempotency-key", HeaderMatchSpecifier::PresentMatch(true)),
    ]
}

/// What an endpoint says with `Retry-After`, up to a minute.
fn rate_limited() -> RateLimitedRetryBackOff {
    let header = ResetHeader { name: "retry-after".into(), format: ResetHeaderFormat::Seconds.into() };
    RateLimitedRetryBackOff { reset_headers: vec![header], max_interval: parts::seconds(60) }
}

/// The retries that all callers of a sidecar together may begin.
pub(super) fn budget(said: RetryBudget) -> PbBudget {
    let interval = said.interval.map_or(Duration::from_secs(10), |interval| interval.0);
    let least = f64::from(said.min_per_second.unwrap_or(10)) * interval.as_secs_f64();
    PbBudget {
        budget_percent: Some(Percent { value: f64::from(said.percent.unwrap_or(20)) }),
        // `as` saturates.
        min_retry_concurrency: parts::number(least.ceil() as u32),
        budget_interval: Some(parts::duration(interval)),
    }
}
