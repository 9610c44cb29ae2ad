//! TCPRoute and TLSRoute.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{BackendRef, ParentRef, Unsupported};

/// Gateway API `TCPRoute`, attached to Services: where their connections go.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRouteSpec {
    /// The Services whose callers it routes.
    pub parent_refs: Vec<ParentRef>,
    /// There are no gateways.
    #[serde(default)]
    pub use_default_gateways: Option<Unsupported>,
    /// Exactly one.
    #[serde(default)]
    pub rules: Vec<TcpRule>,
}

/// Gateway API `TLSRoute`, attached to Services: where connections go that the programs themselves speak TLS on, by the server
/// name that the client asks for. Where one is attached, TCPRoutes of the same port do nothing (GEP-1426).
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsRouteSpec {
    /// The Services whose callers it routes.
    pub parent_refs: Vec<ParentRef>,
    /// There are no gateways.
    #[serde(default)]
    pub use_default_gateways: Option<Unsupported>,
    /// Server names; `*.example.com` stands for all names under it.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// Exactly one.
    #[serde(default)]
    pub rules: Vec<TcpRule>,
}

/// A rule of a route.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRule {
    /// Name, for people.
    #[serde(default)]
    pub name: Option<String>,
    /// Where connections go, by weight. They have no filters.
    #[serde(default)]
    pub backend_refs: Vec<BackendRef>,
}
