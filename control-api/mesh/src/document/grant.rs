//! ReferenceGrant.

use schemars::JsonSchema;
use serde::Deserialize;

/// Gateway API `ReferenceGrant`: lets routes of other namespaces lead to Services of this one, and policies ask them.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReferenceGrantSpec {
    /// Which routes and policies.
    pub from: Vec<GrantFrom>,
    /// Which Services.
    pub to: Vec<GrantTo>,
}

/// Documents of one kind and namespace.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrantFrom {
    /// `gateway.networking.k8s.io`; `remora.dev` for policies.
    pub group: String,
    /// `HTTPRoute`, `GRPCRoute`, `TCPRoute`, `TLSRoute`, `TrafficPolicy`, `AuthorizationPolicy` or
    /// `RateLimitPolicy`.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
}

/// Services of this namespace.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrantTo {
    /// Empty: a Service is in the core group.
    pub group: String,
    /// `Service`.
    pub kind: String,
    /// One of them; all of them when it is left out.
    #[serde(default)]
    pub name: Option<String>,
}
