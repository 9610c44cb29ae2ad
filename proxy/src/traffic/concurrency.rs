//! `envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency`.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, StatusCode};

use crate::resilience::breaker::RoutingPriority;
use crate::resilience::concurrency::{Controller, Priority};

/// How much a request matters, in the words of [`Priority::as_str`]. Programs pass it on to what they call in turn.
pub static PRIORITY: HeaderName = HeaderName::from_static("x-remora-priority");

/// A compiled `AdaptiveConcurrency`.
#[derive(Debug)]
pub struct ConcurrencyFilter {
    /// `enabled`, default true.
    pub enabled: bool,
    /// `gradient_controller_config`.
    pub controller: Arc<Controller>,
    /// `concurrency_limit_exceeded_status`, default 503.
    pub status: StatusCode,
}

/// How much a request on a route of `route`'s priority matters: it may say so itself, and knows better. What it says from outside of the
/// mesh was taken away where it came in.
#[must_use]
pub fn priority(headers: &HeaderMap, route: RoutingPriority) -> Priority {
    let said = headers.get(&PRIORITY).and_then(|value| Priority::by_name(value.as_bytes()));
    said.unwrap_or(match route {
        RoutingPriority::High => Priority::Critical,
        RoutingPriority::Default => Priority::Default,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_knows_better_than_its_route() {
        let of = |said: Option<&str>, route| {
            let headers = said.map(|said| (PRIORITY.clone(), said.parse().unwrap()));
            priority(&headers.into_iter().collect(), route)
        };
        assert_eq!(of(None, RoutingPriority::Default), Priority::Default);
        assert_eq!(of(None, RoutingPriority::High), Priority::Critical);
        assert_eq!(of(Some("batch"), RoutingPriority::High), Priority::Batch);
        assert_eq!(of(Some("critical"), RoutingPriority::Default), Priority::Critical);
        assert_eq!(of(Some("Critical"), RoutingPriority::Default), Priority::Default);
    }
}
