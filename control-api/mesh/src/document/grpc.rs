//! GRPCRoute.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{BackendRef, HttpFilter, ParentRef, Unsupported, ValueMatch, ValueMatchType};

/// Gateway API `GRPCRoute`, attached to Services. Where one is attached, HTTPRoutes of the same port do nothing (GEP-1426).
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteSpec {
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
    pub rules: Vec<GrpcRule>,
}

/// A rule of a route.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRule {
    /// Name, for people.
    #[serde(default)]
    pub name: Option<String>,
    /// Any of these; none is everything.
    #[serde(default)]
    pub matches: Vec<GrpcMatch>,
    /// What is done to requests and responses; header modifiers only.
    #[serde(default)]
    pub filters: Vec<HttpFilter>,
    /// Where requests go.
    #[serde(default)]
    pub backend_refs: Vec<BackendRef>,
    /// Not supported yet.
    #[serde(default)]
    pub session_persistence: Option<Unsupported>,
}

/// All of these must match.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcMatch {
    /// gRPC service and method; all of them when it is left out.
    #[serde(default)]
    pub method: Option<GrpcMethod>,
    /// Headers (metadata).
    #[serde(default)]
    pub headers: Vec<ValueMatch>,
}

impl GrpcMatch {
    /// What a rule without matches stands for.
    pub(crate) const fn every() -> Self {
        Self { method: None, headers: Vec::new() }
    }
}

/// A gRPC service, a method, or both.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcMethod {
    /// How both are compared.
    #[serde(default, rename = "type")]
    pub kind: ValueMatchType,
    /// Fully qualified name of the service; every one when it is left out.
    #[serde(default)]
    pub service: Option<String>,
    /// Name of the method; every one when it is left out.
    #[serde(default)]
    pub method: Option<String>,
}
