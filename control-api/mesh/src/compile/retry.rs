//! Retry policies.

use std::collections::BTreeSet;

use remora_xds::pb::envoy::config::route::v3::RetryPolicy;
use remora_xds::pb::envoy::config::route::v3::retry_policy::retry_host_predicate::ConfigType;
use remora_xds::pb::envoy::config::route::v3::retry_policy::{RetryBackOff, RetryHostPredicate};
use remora_xds::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;

use super::parts;
use crate::document::{HttpTimeouts, Retries};

/// Conditions under which the request was certainly not processed.
const UNPROCESSED: [&str; 3] = ["connect-failure", "refused-stream", "reset-before-request"];

/// Tries beyond the first.
const RETRIES: u32 = 2;

/// Twice, and only what was not processed.
pub(super) fn unprocessed() -> RetryPolicy {
    policy(&Retries::default(), HttpTimeouts::default())
}

/// As a TrafficPolicy and the timeouts of a rule say.
pub(super) fn policy(retries: &Retries, timeouts: HttpTimeouts) -> RetryPolicy {
    let mut on: BTreeSet<&str> = UNPROCESSED.into_iter().collect();
    on.extend(retries.on.iter().map(String::as_str));
    if !retries.status_codes.is_empty() {
        on.insert("retriable-status-codes");
    }
    let per_try = timeouts.backend_request.or(retries.per_try);
    let elsewhere = RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".into(),
        config_type: Some(ConfigType::TypedConfig(parts::pack(&PreviousHostsPredicate {}))),
    };
    RetryPolicy {
        retry_on: on.into_iter().collect::<Vec<_>>().join(","),
        num_retries: parts::number(retries.num.unwrap_or(RETRIES)),
        per_try_timeout: per_try.filter(|t| !t.0.is_zero()).map(|t| parts::duration(t.0)),
        retry_host_predicate: vec![elsewhere],
        host_selection_retry_max_attempts: 5,
        retriable_status_codes: retries.status_codes.iter().map(|c| u32::from(*c)).collect(),
        retry_back_off: Some(RetryBackOff {
            base_interval: Some(parts::duration(std::time::Duration::from_millis(25))),
            max_interval: Some(parts::duration(std::time::Duration::from_millis(250))),
        }),
        ..RetryPolicy::default()
    }
}
