//! EndpointSlice.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{AppProtocol, Document, Kept, Metadata, Transport, port};

/// The label that says which Service a slice belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The annotation that says which endpoints have a sidecar: none of those that are called, where it is `none`; with any other word there are
/// such, whether they are in the list or not.
pub const SIDECARS: &str = "remora.dev/sidecars";

/// `discovery.k8s.io/v1` EndpointSlice: endpoints of a Service that somebody else knows of.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointSliceSpec {
    /// `IPv4` or `IPv6`.
    pub address_type: String,
    /// Endpoints.
    pub endpoints: Vec<SliceEndpoint>,
    /// Ports of each of them.
    pub ports: Vec<SlicePort>,
}

impl Document<EndpointSliceSpec> {
    /// The Service that the slice belongs to, in its namespace.
    #[must_use]
    pub fn service(&self) -> Option<&str> {
        self.metadata.labels.get(SERVICE_NAME).map(String::as_str)
    }

    /// Whether somebody who knows says that none of the endpoints has a sidecar.
    #[must_use]
    pub fn has_no_sidecars(&self) -> bool {
        self.metadata.annotations.get(SIDECARS).is_some_and(|which| which == "none")
    }

    /// Whether it is said that there are endpoints with a sidecar, or something that nobody here understands.
    pub(crate) fn has_sidecars(&self) -> bool {
        self.metadata.annotations.get(SIDECARS).is_some_and(|which| which != "none")
    }

    /// The addresses of endpoints of a slice of which that is said, called or not.
    pub(crate) fn plain(&self) -> impl Iterator<Item = IpAddr> {
        let endpoints = self.has_no_sidecars().then_some(&self.spec.endpoints);
        endpoints
            .into_iter()
            .flatten()
            .flat_map(|endpoint| endpoint.addresses.iter().map(IpAddr::to_canonical))
    }

    /// Whether an endpoint of the list is one. Where it is said that none of those that are called has a sidecar, the ones that are not ready are
    /// none: they are in the list so that an instance which is one of them, or is where one is, is not overlooked.
    pub(crate) fn calls(&self, endpoint: &SliceEndpoint) -> bool {
        let Conditions { ready, serving, terminating } = endpoint.conditions;
        let finishes = serving != Some(false) && terminating == Some(true);
        !self.has_no_sidecars() || ready != Some(false) || finishes
    }

    /// The endpoints that are.
    pub(crate) fn called(&self) -> impl Iterator<Item = &SliceEndpoint> {
        self.spec.endpoints.iter().filter(move |endpoint| self.calls(endpoint))
    }
}

/// The whole text of an EndpointSlice, which has no `spec`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SliceEnvelope {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    pub(crate) metadata: Metadata,
    address_type: String,
    #[serde(default)]
    endpoints: Vec<SliceEndpoint>,
    #[serde(default)]
    ports: Vec<SlicePort>,
}

impl SliceEnvelope {
    /// Its parts.
    pub(crate) fn into_parts(self) -> (Metadata, EndpointSliceSpec) {
        let Self { metadata, address_type, endpoints, ports, .. } = self;
        (metadata, EndpointSliceSpec { address_type, endpoints, ports })
    }
}

/// An endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SliceEndpoint {
    /// The first one counts, as in Kubernetes.
    pub addresses: Vec<IpAddr>,
    /// How it is.
    #[serde(default)]
    pub conditions: Conditions,
    /// Zone of its node.
    #[serde(default)]
    pub zone: Option<String>,
    /// The Workload or Pod that it is. A Workload of this name says where its sidecar is, and its identity.
    #[serde(default)]
    pub target_ref: Option<ObjectRef>,
    #[serde(default, rename = "hostname")]
    _hostname: Kept,
    #[serde(default, rename = "nodeName")]
    _node_name: Kept,
    #[serde(default, rename = "hints")]
    _hints: Kept,
    #[serde(default, rename = "deprecatedTopology")]
    _topology: Kept,
}

/// How an endpoint is. What is left out is unknown and counts as ready, as in Kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Conditions {
    /// It gets requests.
    #[serde(default)]
    pub ready: Option<bool>,
    /// It would answer.
    #[serde(default)]
    pub serving: Option<bool>,
    /// It is about to end.
    #[serde(default)]
    pub terminating: Option<bool>,
}

/// A reference to what an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectRef {
    /// `Pod` or `Workload`.
    #[serde(default)]
    pub kind: Option<String>,
    /// Name.
    pub name: String,
    #[serde(default, rename = "namespace")]
    _namespace: Kept,
    #[serde(default, rename = "uid")]
    _uid: Kept,
    #[serde(default, rename = "apiVersion")]
    _api_version: Kept,
    #[serde(default, rename = "resourceVersion")]
    _resource_version: Kept,
    #[serde(default, rename = "fieldPath")]
    _field_path: Kept,
}

/// A port of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SlicePort {
    /// The name of the Service's port; empty or left out for one without a name.
    #[serde(default)]
    pub name: Option<String>,
    /// Where the endpoints listen.
    #[serde(deserialize_with = "port")]
    pub port: u16,
    /// Only TCP.
    #[serde(default)]
    pub protocol: Transport,
    /// The Service's port says it.
    #[serde(default)]
    pub app_protocol: Option<AppProtocol>,
}
