//! RateLimitPolicy.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{BackendObjectReference, HttpMatch, TargetRef};
use crate::span::Span;

/// `remora.dev/v1alpha1` RateLimitPolicy: how many requests a Service takes, counted in front of its programs.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitPolicySpec {
    /// The Services (GEP-713). A Service has at most one RateLimitPolicy.
    pub target_refs: Vec<TargetRef>,
    /// Limits that each sidecar counts by itself, or all of them together.
    #[serde(default)]
    pub limits: Vec<Limit>,
    /// Most values of `by` that a sidecar remembers, of all limits together; 10,000 when it is left out.
    #[serde(default)]
    pub max_buckets: Option<u32>,
    /// Limits that a service counts for all sidecars.
    #[serde(default)]
    pub global: Option<GlobalLimits>,
    /// Requests over a limit are counted, and not refused.
    #[serde(default)]
    pub dry_run: bool,
}

/// So many requests in a time.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limit {
    /// Name: a limit with a name keeps its state wherever it stands in the list.
    #[serde(default)]
    pub name: Option<String>,
    /// Who counts.
    #[serde(default)]
    pub scope: LimitScope,
    /// So many requests
    pub requests: u32,
    /// in this time; one comes free after the other.
    pub per: Span,
    /// So many at once after a pause; as many as `requests` when it is left out.
    #[serde(default)]
    pub burst: Option<u32>,
    /// Which requests; all of them when it is left out.
    #[serde(default, rename = "match")]
    pub matched: Option<HttpMatch>,
    /// Requests that have all of this in common are counted together; all of them are when it is left out.
    #[serde(default)]
    pub by: Vec<LimitBy>,
}

/// Who counts the requests of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum LimitScope {
    /// Each sidecar by itself.
    #[default]
    Sidecar,
    /// All sidecars of `targetRefs` together: the control plane leases each a share of the limit.
    Mesh,
}

/// What requests have in common: one of the fields. Those that do not have it have that in common.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitBy {
    /// The workload that calls, by its certificate.
    #[serde(default)]
    pub client: bool,
    /// The value of a header.
    #[serde(default)]
    pub header: Option<String>,
    /// The value of a query parameter.
    #[serde(default)]
    pub query_parameter: Option<String>,
}

/// Limits that a service counts (`envoy.service.ratelimit.v3.RateLimitService`).
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GlobalLimits {
    /// The service. It speaks gRPC.
    pub backend_ref: BackendObjectReference,
    /// Which of its sets of limits.
    pub domain: String,
    /// How long an answer may take; 20 ms when it is left out.
    #[serde(default)]
    pub timeout: Option<Span>,
    /// Whether requests go on without an answer. Otherwise they are refused with 500.
    #[serde(default = "yes")]
    pub fail_open: bool,
    /// What the service is asked about.
    pub descriptors: Vec<Descriptor>,
}

/// What a request is, in the words of the service. It is not asked about a request that lacks one of the entries.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Descriptor {
    /// In this order.
    pub entries: Vec<Entry>,
}

/// A key and its value: one of `value`, `header` and `queryParameter`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Entry {
    /// Key.
    pub key: String,
    /// Always the same.
    #[serde(default)]
    pub value: Option<String>,
    /// The value of a header.
    #[serde(default)]
    pub header: Option<String>,
    /// The value of a query parameter.
    #[serde(default)]
    pub query_parameter: Option<String>,
    /// Of `value`: only requests that match have it.
    #[serde(default, rename = "match")]
    pub matched: Option<HttpMatch>,
}

const fn yes() -> bool {
    true
}
