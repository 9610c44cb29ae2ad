//! `RetryPolicy` of a route or virtual host.

use std::time::Duration;

use http::StatusCode;
use remora_xds::diag::At;
use remora_xds::pb::envoy::config::route::v3 as pb;
use remora_xds::pb::envoy::config::route::v3::retry_policy::retry_host_predicate::ConfigType;
use remora_xds::pb::envoy::config::route::v3::retry_policy::{
    RateLimitedRetryBackOff, ResetHeader, ResetHeaderFormat, RetryBackOff, RetryHostPredicate,
};

use crate::config::compile::Scope;
use crate::config::compile::common::{
    duration, enumeration, header_matches, header_name, positive_duration, unsupported,
};
use crate::resilience::backoff::Backoff;
use crate::resilience::retry::{RateLimitedBackoff, ResetFormat, RetryOn, RetryPolicy};

/// Compiles a `HedgePolicy`: whether another try begins beside one that is late. Envoy has no more of it either, and says nothing.
pub fn compile_hedge_policy(pb: &pb::HedgePolicy, at: &At<'_>, scope: &mut Scope<'_>) -> bool {
    let pb::HedgePolicy { initial_requests, additional_request_chance, hedge_on_per_try_timeout } = pb;
    if initial_requests.as_ref().is_some_and(|n| n.value != 1) {
        let message = "a request begins with one try (Envoy ignores other numbers)";
        scope.errors.report(&at.field("initial_requests"), message).fix("remove it, or set 1");
    }
    unsupported(additional_request_chance.is_some(), &at.field("additional_request_chance"), scope);
    *hedge_on_per_try_timeout
}

/// Compiles a `RetryPolicy`.
pub fn compile_retry_policy(pb: &pb::RetryPolicy, at: &At<'_>, scope: &mut Scope<'_>) -> RetryPolicy {
    let pb::RetryPolicy {
        retry_on,
        num_retries,
        per_try_timeout,
        per_try_idle_timeout,
        retry_priority,
        retry_host_predicate,
        retry_options_predicates,
        host_selection_retry_max_attempts,
        retriable_status_codes,
        retry_back_off,
        rate_limited_retry_back_off,
        retriable_headers,
        retriable_request_headers,
        refresh_cluster_on_retry,
    } = pb;
    unsupported(retry_priority.is_some(), &at.field("retry_priority"), scope);
    unsupported(!retry_options_predicates.is_empty(), &at.field("retry_options_predicates"), scope);
    unsupported(*refresh_cluster_on_retry, &at.field("refresh_cluster_on_retry"), scope);
    let on = conditions(retry_on, &at.field("retry_on"), scope);
    let attempts_at = at.field("host_selection_retry_max_attempts");
    let attempts = u32::try_from(*host_selection_retry_max_attempts);
    if attempts.is_err() {
        scope.errors.report(&attempts_at, "must be from 0 to 4294967295");
    }
    RetryPolicy {
        on,
        num_retries: num_retries.as_ref().map_or(1, |n| n.value),
        per_try_timeout: non_zero(duration(per_try_timeout.as_ref(), &at.field("per_try_timeout"), scope)),
        per_try_idle_timeout: non_zero(duration(
            per_try_idle_timeout.as_ref(),
            &at.field("per_try_idle_timeout"),
            scope,
        )),
        backoff: retry_back_off
            .as_ref()
            .map_or_else(Backoff::default, |b| backoff(b, &at.field("retry_back_off"), scope)),
        rate_limited: rate_limited_retry_back_off
            .as_ref()
            .map(|b| rate_limited(b, &at.field("rate_limited_retry_back_off"), scope)),
        status_codes: status_codes(retriable_status_codes, &at.field("retriable_status_codes"), scope),
        headers: header_matches(retriable_headers, &at.field("retriable_headers"), scope),
        request_headers: header_matches(
            retriable_request_headers,
            &at.field("retriable_request_headers"),
            scope,
        ),
        avoid_previous_hosts: avoid_previous_hosts(
            retry_host_predicate,
            &at.field("retry_host_predicate"),
            scope,
        ),
        host_selection_attempts: attempts.unwrap_or(0).max(1),
    }
}

fn non_zero(d: Option<Duration>) -> Option<Duration> {
    d.filter(|d| !d.is_zero())
}

fn conditions(text: &str, at: &At<'_>, scope: &mut Scope<'_>) -> RetryOn {
    let mut on = RetryOn::default();
    for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
        match RetryOn::parse(word) {
            Some(condition) => on = on.union(condition),
            None => {
                let known: Vec<_> = RetryOn::names().collect();
                let message = match word {
                    "http3-post-connect-failure" => format!("{word:?}: HTTP/3 is not spoken"),
                    _ => format!("{word:?} is not a retry condition"),
                };
                scope.errors.report(at, message).fix(format!("use one of {}", known.join(", ")));
            }
        }
    }
    on
}

fn backoff(pb: &RetryBackOff, at: &At<'_>, scope: &mut Scope<'_>) -> Backoff {
    let RetryBackOff { base_interval, max_interval } = pb;
    if base_interval.is_none() {
        scope.errors.report(&at.field("base_interval"), "is required");
    }
    let base = positive_duration(base_interval.as_ref(), &at.field("base_interval"), scope);
    let max = positive_duration(max_interval.as_ref(), &at.field("max_interval"), scope);
    if let (Some(base), Some(max)) = (base, max)
        && max < base
    {
        scope.errors.report(&at.field("max_interval"), "must not be shorter than base_interval");
    }
    base.map_or_else(Backoff::default, |base| Backoff::new(base, max))
}

fn rate_limited(pb: &RateLimitedRetryBackOff, at: &At<'_>, scope: &mut Scope<'_>) -> RateLimitedBackoff {
    const MAX: Duration = Duration::from_secs(300);
    let RateLimitedRetryBackOff { reset_headers, max_interval } = pb;
    let headers_at = at.field("reset_headers");
    if reset_headers.is_empty() {
        scope.errors.report(&headers_at, "must not be empty");
    }
    let headers = reset_headers.iter().enumerate().filter_map(|(i, h)| {
        let at = headers_at.index(i);
        let ResetHeader { name, format } = h;
        let name = header_name(name, &at.field("name"), scope);
        let format = match enumeration(*format, &at.field("format"), scope)? {
            ResetHeaderFormat::Seconds => ResetFormat::Seconds,
            ResetHeaderFormat::UnixTimestamp => ResetFormat::UnixTimestamp,
        };
        Some((name?, format))
    });
    let headers = headers.collect();
    let max = positive_duration(max_interval.as_ref(), &at.field("max_interval"), scope).unwrap_or(MAX);
    RateLimitedBackoff { headers, max }
}

fn status_codes(list: &[u32], at: &At<'_>, scope: &mut Scope<'_>) -> Box<[StatusCode]> {
    let mut out = Vec::with_capacity(list.len());
    for (i, code) in list.iter().enumerate() {
        match u16::try_from(*code).ok().and_then(|c| StatusCode::from_u16(c).ok()) {
            Some(code) => out.push(code),
            None => {
                scope.errors.report(&at.index(i), format!("{code} is not an HTTP status"));
            }
        }
    }
    out.into()
}

/// `previous_hosts` is the only predicate. What a typed configuration is, its type says; else the name does.
fn avoid_previous_hosts(list: &[RetryHostPredicate], at: &At<'_>, scope: &mut Scope<'_>) -> bool {
    const NAME: &str = "envoy.retry_host_predicates.previous_hosts";
    const TYPE: &str = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
    for (i, RetryHostPredicate { name, config_type }) in list.iter().enumerate() {
        let known = match config_type {
            Some(ConfigType::TypedConfig(any)) => any.type_url.rsplit('/').next() == Some(TYPE),
            None => name == NAME,
        };
        if !known {
            let message = format!("retry host predicate {name:?} is not supported");
            scope.errors.report(&at.index(i), message).fix(format!("use {NAME} or remove it"));
        }
    }
    !list.is_empty()
}
