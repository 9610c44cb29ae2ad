//! How callers treat a Service.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{CircuitBreaker, HealthCheck, LoadBalancing, OutlierDetection, TargetRef};
use crate::span::Span;

/// `remora.dev/v1alpha1` TrafficPolicy: how callers treat a Service.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicySpec {
    /// The Services (GEP-713). A Service has at most one TrafficPolicy.
    pub target_refs: Vec<TargetRef>,
    /// Retries.
    #[serde(default)]
    pub retries: Retries,
    /// Time limits.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Limits.
    #[serde(default)]
    pub connections: Connections,
    /// How an endpoint is chosen.
    #[serde(default)]
    pub load_balancing: LoadBalancing,
    /// Which endpoints are left out for a while.
    #[serde(default)]
    pub outlier_detection: OutlierDetection,
    /// Which endpoints are healthy.
    #[serde(default)]
    pub health_checks: Vec<HealthCheck>,
    /// When the Service is not called for a while; always called when it is left out.
    #[serde(default)]
    pub circuit_breaker: Option<CircuitBreaker>,
}

/// Retries.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retries {
    /// Envoy's conditions (`5xx`, `reset`, …), besides those that are always safe: the request was not processed.
    #[serde(default)]
    pub retry_on: Vec<String>,
    /// Whether `retryOn` and `statusCodes` are for every request. Otherwise they are for those that may be repeated: by their method, or
    /// because they have an `Idempotency-Key`.
    #[serde(default)]
    pub all_methods: bool,
    /// Statuses that are tried again.
    #[serde(default)]
    pub status_codes: Vec<u16>,
    /// Tries beyond the first, 2 when it is left out; 0 switches retries off.
    #[serde(default)]
    pub num: Option<u32>,
    /// Time limit of each try.
    #[serde(default)]
    pub per_try: Option<Span>,
    /// How long a try may have no byte in either direction.
    #[serde(default)]
    pub per_try_idle: Option<Span>,
    /// How many retries there may be.
    #[serde(default)]
    pub budget: RetryBudget,
}

/// Retries that may begin: a share of the requests of an interval, or so many a second if that is more.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBudget {
    /// Percent; 20 when it is left out.
    #[serde(default)]
    pub percent: Option<u32>,
    /// 10 when it is left out.
    #[serde(default)]
    pub min_per_second: Option<u32>,
    /// 10 seconds when it is left out.
    #[serde(default)]
    pub interval: Option<Span>,
}

/// Time limits of a policy. A rule's own hold before these.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// The whole request, retries included; none when it is left out.
    #[serde(default)]
    pub request: Option<Span>,
    /// No byte in either direction; 5 minutes when it is left out.
    #[serde(default)]
    pub idle: Option<Span>,
    /// Connecting to an endpoint, TLS included; 1 second when it is left out.
    #[serde(default)]
    pub connect: Option<Span>,
}

/// Limits towards a Service, for each caller's sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Connections {
    /// Connections; 10,000 when it is left out.
    #[serde(default)]
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection; 10,000 when it is left out.
    #[serde(default)]
    pub max_pending_requests: Option<u32>,
    /// Requests in flight; 10,000 when it is left out.
    #[serde(default)]
    pub max_requests: Option<u32>,
}
