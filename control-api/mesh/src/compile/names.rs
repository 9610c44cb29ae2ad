//! Names of resources, as Istio gives them: tools and people know their shape.

use crate::document::{Document, Metadata, ServiceSpec, WorkloadSpec};

/// The secret with a node's own certificate (Istio's name).
pub const OWN_SECRET: &str = "default";
/// The secret with the certificates of the authorities (Istio's name).
pub const ROOTS_SECRET: &str = "ROOTCA";

/// The host name of a Service.
#[must_use]
pub fn host(namespace: &str, service: &str) -> String {
    format!("{service}.{namespace}.svc.cluster.local")
}

/// The names of a Service without a port, as gRPC libraries have them after `xds:///`.
#[must_use]
pub fn aliases(namespace: &str, service: &str) -> [String; 3] {
    [format!("{service}.{namespace}"), format!("{service}.{namespace}.svc"), host(namespace, service)]
}

/// The outbound listener and the route configuration of a Service's port.
#[must_use]
pub fn outbound(namespace: &str, service: &str, port: u16) -> String {
    format!("{}:{port}", host(namespace, service))
}

/// The cluster of a Service's port, and its endpoints.
#[must_use]
pub fn cluster(namespace: &str, service: &str, port: u16) -> String {
    format!("outbound|{port}||{}", host(namespace, service))
}

/// The cluster of the local program; `protocol` is empty unless the program speaks several on this port.
#[must_use]
pub fn local(port: u16, protocol: &str) -> String {
    format!("inbound|{port}||{protocol}")
}

/// The cluster of the server that has the key set of a rule.
#[must_use]
pub fn keys(host: &str, port: u16, rule: &str) -> String {
    format!("jwks|{port}|{rule}|{host}")
}

/// The cluster without endpoints, as Istio calls it.
pub const BLACK_HOLE: &str = "BlackHoleCluster";

/// The cluster of the control plane in the bootstrap of a sidecar.
pub const CONTROL_PLANE: &str = "remora-control";

/// The one inbound listener.
pub const INBOUND: &str = "inbound";

/// Takes what rules of the network namespace lead to the sidecar from outside (Istio's name).
pub const VIRTUAL_INBOUND: &str = "virtualInbound";

/// Takes what rules lead to the sidecar from the program (Istio's name).
pub const VIRTUAL_OUTBOUND: &str = "virtualOutbound";

/// Takes the DNS questions that rules lead to the sidecar.
pub const DNS: &str = "dns";

/// Connections go where they were going (Istio's name).
pub const PASSTHROUGH: &str = "PassthroughCluster";

/// The listener of a sidecar's HTTP proxy, and its routes.
pub const HTTP_PROXY: &str = "httpProxy";

/// Requests and tunnels of the HTTP proxy go to the address that they name.
pub const HTTP_PASSTHROUGH: &str = "HttpProxyPassthroughCluster";

/// The listener for calls to the pods of a Service's port, by their own addresses.
#[must_use]
pub fn pods(namespace: &str, service: &str, port: u16) -> String {
    format!("{}/pods", outbound(namespace, service, port))
}

/// The cluster of the pod that was called.
#[must_use]
pub fn pod(namespace: &str, service: &str, port: u16) -> String {
    format!("pod|{port}||{}", host(namespace, service))
}

/// The server name that a sidecar sends for a Service's port; the inbound listener finds the program's port by it.
#[must_use]
pub fn sni(namespace: &str, service: &str, port: u16) -> String {
    format!("outbound_.{port}_._.{}", host(namespace, service))
}

/// The identity of a service account.
#[must_use]
pub fn spiffe(trust_domain: &str, namespace: &str, account: &str) -> String {
    format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}")
}

/// `app` of a workload: its label, or its name.
#[must_use]
pub fn app(workload: &Document<WorkloadSpec>) -> &str {
    workload.metadata.labels.get("app").unwrap_or(&workload.metadata.name)
}

/// The version of what has none, as Istio calls it.
pub const LATEST: &str = "latest";

/// `version` of a workload: its label, or [`LATEST`].
#[must_use]
pub fn version(metadata: &Metadata) -> &str {
    metadata.labels.get("version").map_or(LATEST, String::as_str)
}

/// A port of a Service that a resource is named after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target<'a> {
    pub(super) namespace: &'a str,
    pub(super) service: &'a str,
    pub(super) port: u16,
}

/// What [`outbound`] and [`cluster`] make, read back.
pub(super) fn parse(name: &str) -> Option<Target<'_>> {
    let (host, port) = match name.strip_prefix("outbound|").and_then(|rest| rest.split_once("||")) {
        Some((port, host)) => (host, port),
        None => name.rsplit_once(':')?,
    };
    let (service, namespace) = host.strip_suffix(".svc.cluster.local")?.split_once('.')?;
    Some(Target { namespace, service, port: port.parse().ok()? })
}

pub(super) fn of(service: &Document<ServiceSpec>) -> (&str, &str) {
    (&service.metadata.namespace, &service.metadata.name)
}
