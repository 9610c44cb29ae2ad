//! References to Services.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{HttpFilter, one, port, some_port};

/// What a route is attached to.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentRef {
    /// Must be empty or `core`.
    #[serde(default)]
    pub group: Option<String>,
    /// Must be `Service`.
    #[serde(default)]
    pub kind: Option<String>,
    /// Name.
    pub name: String,
    /// Namespace; the route's when it is left out.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Name of a port of the Service; all of them when it is left out.
    #[serde(default)]
    pub section_name: Option<String>,
    /// One port; all of them when it is left out.
    #[serde(default, deserialize_with = "some_port")]
    pub port: Option<u16>,
}

/// A port of a Service (`BackendObjectReference` of the Gateway API).
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendObjectReference {
    /// Must be empty or `core`.
    #[serde(default)]
    pub group: Option<String>,
    /// Must be `Service`.
    #[serde(default)]
    pub kind: Option<String>,
    /// Name.
    pub name: String,
    /// Namespace; the document's when it is left out.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Port of the Service.
    #[serde(deserialize_with = "port")]
    pub port: u16,
}

/// A port of a Service, whichever document refers to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PortRef<'a> {
    pub(crate) group: Option<&'a str>,
    pub(crate) kind: Option<&'a str>,
    pub(crate) name: &'a str,
    pub(crate) namespace: Option<&'a str>,
    pub(crate) port: u16,
}

impl PortRef<'_> {
    /// Whether it is a Service that it refers to.
    pub(crate) fn is_service(&self) -> bool {
        matches!(self.group, None | Some("" | "core")) && self.kind.is_none_or(|kind| kind == "Service")
    }
}

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRef {
    /// Must be empty or `core`.
    #[serde(default)]
    pub group: Option<String>,
    /// Must be `Service`.
    #[serde(default)]
    pub kind: Option<String>,
    /// Name.
    pub name: String,
    /// Namespace; the route's when it is left out.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Port of the Service.
    #[serde(deserialize_with = "port")]
    pub port: u16,
    /// Share of the requests.
    #[serde(default = "one")]
    pub weight: u32,
    /// For the requests that go here; header modifiers only.
    #[serde(default)]
    pub filters: Vec<HttpFilter>,
}

impl BackendRef {
    pub(crate) fn to(&self) -> PortRef<'_> {
        let Self { group, kind, name, namespace, port, .. } = self;
        PortRef {
            group: group.as_deref(),
            kind: kind.as_deref(),
            name,
            namespace: namespace.as_deref(),
            port: *port,
        }
    }
}

impl BackendObjectReference {
    pub(crate) fn to(&self) -> PortRef<'_> {
        let Self { group, kind, name, namespace, port } = self;
        PortRef {
            group: group.as_deref(),
            kind: kind.as_deref(),
            name,
            namespace: namespace.as_deref(),
            port: *port,
        }
    }
}

impl ParentRef {
    /// Whether it means this port of a Service that it names.
    #[must_use]
    pub fn covers(&self, port: &super::ServicePort) -> bool {
        self.port.is_none_or(|wanted| wanted == port.port)
            && self.section_name.as_deref().is_none_or(|wanted| port.name.as_deref() == Some(wanted))
    }
}
