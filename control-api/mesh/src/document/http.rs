//! HTTPRoute.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{BackendRef, HttpFilter, ParentRef, SessionPersistence, Unsupported};
use crate::span::Span;

/// Gateway API `HTTPRoute`, attached to Services.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteSpec {
    /// The Services whose callers it routes.
    pub parent_refs: Vec<ParentRef>,
    /// There are no gateways.
    #[serde(default)]
    pub use_default_gateways: Option<Unsupported>,
    /// Only routes of gateways have host names: a Service is its own.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// What it does.
    #[serde(default)]
    pub rules: Vec<HttpRule>,
}

/// A rule of a route.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRule {
    /// Name, for people.
    #[serde(default)]
    pub name: Option<String>,
    /// Any of these; none is everything.
    #[serde(default)]
    pub matches: Vec<HttpMatch>,
    /// What is done to requests and responses.
    #[serde(default)]
    pub filters: Vec<HttpFilter>,
    /// Where requests go.
    #[serde(default)]
    pub backend_refs: Vec<BackendRef>,
    /// Time limits.
    #[serde(default)]
    pub timeouts: HttpTimeouts,
    /// What is tried again (GEP-1731).
    #[serde(default)]
    pub retry: Option<HttpRetry>,
    /// Its sessions stay with their endpoints.
    #[serde(default)]
    pub session_persistence: Option<SessionPersistence>,
}

/// What is tried again, besides what was certainly not processed (GEP-1731).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRetry {
    /// Statuses, 400 to 599.
    #[serde(default)]
    pub codes: Vec<u16>,
    /// Tries beyond the first; the policy's, or 2, when it is left out.
    #[serde(default)]
    pub attempts: Option<u32>,
    /// Least time between tries; 25 ms when it is left out. The most is ten times that.
    #[serde(default)]
    pub backoff: Option<Span>,
}

/// All of these must match.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpMatch {
    /// Path; every path when it is left out.
    #[serde(default)]
    pub path: PathMatch,
    /// Headers.
    #[serde(default)]
    pub headers: Vec<ValueMatch>,
    /// Query parameters.
    #[serde(default)]
    pub query_params: Vec<ValueMatch>,
    /// Method.
    #[serde(default)]
    pub method: Option<String>,
}

/// How a path is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum PathMatchType {
    /// The whole path.
    Exact,
    /// Whole segments: `/a` matches `/a` and `/a/b`, not `/ab`.
    #[default]
    PathPrefix,
    /// RE2 over the whole path.
    RegularExpression,
}

/// A path match.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathMatch {
    /// How.
    #[serde(default, rename = "type")]
    pub kind: PathMatchType,
    /// What.
    #[serde(default = "slash")]
    pub value: String,
}

impl HttpMatch {
    /// What a rule without matches stands for.
    pub(crate) const fn every() -> Self {
        // An empty prefix is that of every path, as / is.
        let path = PathMatch { kind: PathMatchType::PathPrefix, value: String::new() };
        Self { path, headers: Vec::new(), query_params: Vec::new(), method: None }
    }
}

fn slash() -> String {
    "/".into()
}

impl Default for PathMatch {
    fn default() -> Self {
        Self { kind: PathMatchType::default(), value: slash() }
    }
}

/// How a value is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum ValueMatchType {
    /// The whole value.
    #[default]
    Exact,
    /// RE2 over the whole value.
    RegularExpression,
}

/// A header or query parameter.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ValueMatch {
    /// How.
    #[serde(default, rename = "type")]
    pub kind: ValueMatchType,
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// Time limits of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpTimeouts {
    /// The whole request, retries included; 0s is none.
    #[serde(default)]
    pub request: Option<Span>,
    /// One try.
    #[serde(default)]
    pub backend_request: Option<Span>,
}
