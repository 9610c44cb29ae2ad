//! Who asks for resources: what a node says of itself.

use std::collections::BTreeSet;
use std::net::IpAddr;

use remora_xds::pb::envoy::config::core::v3::Node;
use remora_xds::pb::google::protobuf::value::Kind as ValueKind;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeKind {
    /// Remora beside a program: inbound and outbound.
    Sidecar,
    /// Envoy, or Remora, on its own: outbound only, unless it names a Workload.
    Proxy,
    /// A gRPC library with `xds:///` targets: what it asks for by name.
    Grpc,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRequest {
    /// What it is.
    pub kind: NodeKind,
    /// Its namespace.
    pub namespace: String,
    /// Its Workload or registration, in this namespace.
    pub workload: Option<String>,
    /// Resources that it asked for by name, besides those that it gets anyway.
    pub wanted: BTreeSet<String>,
    /// Of a gRPC client: the certificate provider of its bootstrap file.
    pub certificate_provider: String,
    /// Its addresses, when rules lead its traffic to it.
    pub intercepted: Option<Vec<IpAddr>>,
    /// Programs see the addresses of their clients: rules lead connections to it unchanged (TPROXY), and it may pose as the client.
    pub shows_clients: bool,
    /// Rules lead DNS to it as well.
    pub captures_dns: bool,
}

/// A node that does not say who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadNode {
    /// What it said.
    pub id: String,
}

impl std::fmt::Display for BadNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "node id {:?} is not <kind>~<address>~<workload>.<namespace>~<domain>, and its metadata has no NAMESPACE",
            self.id
        )
    }
}

impl std::error::Error for BadNode {}

impl NodeRequest {
    /// A node of a namespace.
    #[must_use]
    pub fn new(kind: NodeKind, namespace: &str) -> Self {
        Self {
            kind,
            namespace: namespace.to_owned(),
            workload: None,
            wanted: BTreeSet::new(),
            certificate_provider: "default".into(),
            intercepted: None,
            shows_clients: false,
            captures_dns: false,
        }
    }

    /// With a Workload.
    #[must_use]
    pub fn with_workload(self, workload: String) -> Self {
        Self { workload: Some(workload), ..self }
    }

    /// Who a node says it is, by its metadata (`remora.workload` and `remora.namespace`, or Istio's `WORKLOAD_NAME` and `NAMESPACE`) or
    /// its id (`<kind>~<address>~<workload>.<namespace>~<domain>`, Istio's form). A gRPC library is known by its user agent; it
    /// belongs to `default` when it does not say otherwise. `INTERCEPTION_MODE: REDIRECT` says that rules lead its traffic to it, at
    /// `INSTANCE_IPS`; `TPROXY` the same, and that its program sees the addresses of its clients; and `DNS_CAPTURE: true` that they lead DNS
    /// to it, too (Istio's names).
    ///
    /// # Errors
    /// It says neither, and is no gRPC library.
    pub fn of(node: &Node) -> Result<Self, BadNode> {
        let said = |keys: [&str; 2]| keys.into_iter().find_map(|key| metadata(node, key));
        let parts: Vec<_> = node.id.split('~').collect();
        let (kind, place) = match parts[..] {
            [kind, _, place, _] => (Some(kind), place.rsplit_once('.')),
            _ => (None, None),
        };
        let grpc = node.user_agent_name.starts_with("gRPC")
            || kind == Some("grpc")
            || metadata(node, "remora.kind") == Some("grpc");
        let namespace =
            said(["remora.namespace", "NAMESPACE"]).or_else(|| place.map(|(_, namespace)| namespace));
        let Some(namespace) = namespace.or_else(|| grpc.then_some("default")) else {
            return Err(BadNode { id: node.id.clone() });
        };
        let workload =
            said(["remora.workload", "WORKLOAD_NAME"]).or_else(|| place.map(|(workload, _)| workload));
        let kind = match kind {
            _ if grpc => NodeKind::Grpc,
            Some("sidecar") => NodeKind::Sidecar,
            _ => NodeKind::Proxy,
        };
        let mut request = Self::new(kind, namespace);
        request.workload = workload.filter(|name| !name.is_empty()).map(ToOwned::to_owned);
        if let Some(provider) = metadata(node, "remora.certificateProvider") {
            provider.clone_into(&mut request.certificate_provider);
        }
        let mode = metadata(node, "INTERCEPTION_MODE");
        request.shows_clients = mode == Some("TPROXY");
        if request.shows_clients || mode == Some("REDIRECT") {
            request.intercepted = Some(addresses(node, parts.get(1).copied()));
            request.captures_dns = is_true(node, "DNS_CAPTURE");
        }
        Ok(request)
    }
}

/// `INSTANCE_IPS`, separated by commas as Istio's, or the address in the id.
fn addresses(node: &Node, in_id: Option<&str>) -> Vec<IpAddr> {
    let said = metadata(node, "INSTANCE_IPS").into_iter().flat_map(|text| text.split(','));
    said.chain(in_id).filter_map(|text| text.trim().parse().ok()).collect()
}

fn metadata<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    match &node.metadata.as_ref()?.fields.get(key)?.kind {
        Some(ValueKind::StringValue(text)) => Some(text),
        _ => None,
    }
}

/// Whether metadata say so, as YAML has it or as a text, as Istio has it.
fn is_true(node: &Node, key: &str) -> bool {
    let value = node.metadata.as_ref().and_then(|metadata| metadata.fields.get(key));
    match value.and_then(|value| value.kind.as_ref()) {
        Some(ValueKind::BoolValue(said)) => *said,
        Some(ValueKind::StringValue(text)) => text == "true",
        _ => false,
    }
}
