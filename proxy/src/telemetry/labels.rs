//! The label sets of metrics. Label names stand here and nowhere else.
//!
//! Requests and TCP connections have Istio's labels (istio.io `reference/config/metrics`), so that existing boards
//! work. No label is ever made of a Host header or a path: values come from configuration and verified identities.

use std::sync::Arc;

use super::flags::ResponseFlags;
use crate::config::names::{ChainId, ClusterId};

/// The value of a label that nothing is known for, as in Istio.
pub const UNKNOWN: &str = "unknown";

/// A set of labels.
pub trait LabelSet: Clone + Eq + std::hash::Hash + Send + 'static {
    /// Names, in the order of [`Self::values`].
    const NAMES: &'static [&'static str];
    /// Appends one value for each name.
    fn values(&self, out: &mut Vec<String>);
}

/// Which side reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The client's sidecar: outbound listeners.
    Source,
    /// The server's sidecar: inbound listeners.
    Destination,
}

/// `request_protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestProtocol {
    /// HTTP/1 and HTTP/2.
    Http,
    /// gRPC.
    Grpc,
    /// Opaque bytes.
    Tcp,
}

/// `connection_security_policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SecurityPolicy {
    /// Not known: what the reporter at the source says.
    Unknown,
    /// Plaintext, or TLS without a client certificate.
    None,
    /// The peer's identity was verified.
    MutualTls,
}

/// One side of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerLabels {
    /// `*_workload`.
    pub workload: Arc<str>,
    /// `*_workload_namespace`.
    pub namespace: Arc<str>,
    /// `*_principal`: the SPIFFE ID.
    pub principal: Arc<str>,
    /// `*_app`.
    pub app: Arc<str>,
    /// `*_version`.
    pub version: Arc<str>,
    /// `*_canonical_service`.
    pub canonical_service: Arc<str>,
    /// `*_canonical_revision`.
    pub canonical_revision: Arc<str>,
    /// `*_cluster`: the Kubernetes cluster or site.
    pub cluster: Arc<str>,
}

impl PeerLabels {
    /// The same value everywhere.
    #[must_use]
    pub fn all(value: &str) -> Self {
        let value: Arc<str> = value.into();
        Self {
            workload: Arc::clone(&value),
            namespace: Arc::clone(&value),
            principal: Arc::clone(&value),
            app: Arc::clone(&value),
            version: Arc::clone(&value),
            canonical_service: Arc::clone(&value),
            canonical_revision: Arc::clone(&value),
            cluster: value,
        }
    }

    fn values(&self, out: &mut Vec<String>) {
        for value in [
            &self.workload,
            &self.namespace,
            &self.principal,
            &self.app,
            &self.version,
            &self.canonical_service,
            &self.canonical_revision,
            &self.cluster,
        ] {
            out.push(value.as_ref().to_owned());
        }
    }
}

impl Default for PeerLabels {
    fn default() -> Self {
        Self::all(UNKNOWN)
    }
}

/// The service that was called.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceLabels {
    /// `destination_service`: the host name that is configured, never the one that the client sent.
    pub host: Arc<str>,
    /// `destination_service_name`.
    pub name: Arc<str>,
    /// `destination_service_namespace`.
    pub namespace: Arc<str>,
}

impl Default for ServiceLabels {
    fn default() -> Self {
        let value: Arc<str> = UNKNOWN.into();
        Self { host: Arc::clone(&value), name: Arc::clone(&value), namespace: value }
    }
}

/// Number of a [`PeerLabels`]; see [`WorkerMetrics::peer`](super::metrics::WorkerMetrics::peer).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PeerId(pub(super) u32);

/// A peer with its number.
#[derive(Debug, Clone)]
pub struct Peer {
    /// For keys.
    pub id: PeerId,
    /// For labels.
    pub labels: Arc<PeerLabels>,
}

/// What the request path looks a series up by: a few words that decide every label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestKey {
    /// Filter chain: reporter, our own side.
    pub chain: ChainId,
    /// Cluster: the service; None when no route was found.
    pub cluster: Option<ClusterId>,
    /// The client.
    pub source: PeerId,
    /// The server.
    pub destination: PeerId,
    /// `response_code`.
    pub status: u16,
    /// `grpc_response_status`.
    pub grpc: Option<u8>,
    /// `response_flags`.
    pub flags: ResponseFlags,
    /// `request_protocol`.
    pub protocol: RequestProtocol,
    /// `connection_security_policy`.
    pub security: SecurityPolicy,
}

/// Labels of one series of requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestLabels {
    /// `reporter`.
    pub reporter: Reporter,
    /// `source_*`.
    pub source: Arc<PeerLabels>,
    /// `destination_*` of the workload.
    pub destination: Arc<PeerLabels>,
    /// `destination_service*`.
    pub service: Arc<ServiceLabels>,
    /// `response_code`; 0 when no response began.
    pub status: u16,
    /// `grpc_response_status`; empty for other requests.
    pub grpc: Option<u8>,
    /// `response_flags`.
    pub flags: ResponseFlags,
    /// `request_protocol`.
    pub protocol: RequestProtocol,
    /// `connection_security_policy`.
    pub security: SecurityPolicy,
}

/// What the TCP path looks a series up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TcpKey {
    /// Filter chain.
    pub chain: ChainId,
    /// Cluster.
    pub cluster: Option<ClusterId>,
    /// The client.
    pub source: PeerId,
    /// The server.
    pub destination: PeerId,
    /// `response_flags`.
    pub flags: ResponseFlags,
    /// `connection_security_policy`.
    pub security: SecurityPolicy,
}

/// Labels of one series of TCP connections.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TcpLabels {
    /// `reporter`.
    pub reporter: Reporter,
    /// `source_*`.
    pub source: Arc<PeerLabels>,
    /// `destination_*` of the workload.
    pub destination: Arc<PeerLabels>,
    /// `destination_service*`.
    pub service: Arc<ServiceLabels>,
    /// `response_flags`.
    pub flags: ResponseFlags,
    /// `connection_security_policy`.
    pub security: SecurityPolicy,
}

macro_rules! istio_names {
    ($($more:literal),*) => {
        &[
            "reporter",
            "source_workload",
            "source_workload_namespace",
            "source_principal",
            "source_app",
            "source_version",
            "source_canonical_service",
            "source_canonical_revision",
            "source_cluster",
            "destination_workload",
            "destination_workload_namespace",
            "destination_principal",
            "destination_app",
            "destination_version",
            "destination_canonical_service",
            "destination_canonical_revision",
            "destination_cluster",
            "destination_service",
            "destination_service_name",
            "destination_service_namespace",
            "request_protocol",
            "response_flags",
            "connection_security_policy",
            $($more,)*
        ]
    };
}

struct Common<'a> {
    reporter: Reporter,
    source: &'a PeerLabels,
    destination: &'a PeerLabels,
    service: &'a ServiceLabels,
    protocol: RequestProtocol,
    flags: ResponseFlags,
    security: SecurityPolicy,
}

impl Common<'_> {
    fn values(&self, out: &mut Vec<String>) {
        out.push(
            match self.reporter {
                Reporter::Source => "source",
                Reporter::Destination => "destination",
            }
            .to_owned(),
        );
        self.source.values(out);
        self.destination.values(out);
        for value in [&self.service.host, &self.service.name, &self.service.namespace] {
            out.push(value.as_ref().to_owned());
        }
        let protocol = match self.protocol {
            RequestProtocol::Http => "http",
            RequestProtocol::Grpc => "grpc",
            RequestProtocol::Tcp => "tcp",
        };
        out.push(protocol.to_owned());
        out.push(self.flags.to_string());
        let security = match self.security {
            SecurityPolicy::Unknown => UNKNOWN,
            SecurityPolicy::None => "none",
            SecurityPolicy::MutualTls => "mutual_tls",
        };
        out.push(security.to_owned());
    }
}

impl LabelSet for RequestLabels {
    const NAMES: &'static [&'static str] = istio_names!("response_code", "grpc_response_status");

    fn values(&self, out: &mut Vec<String>) {
        let Self { reporter, source, destination, service, status, grpc, flags, protocol, security } = self;
        let (reporter, protocol, flags, security) = (*reporter, *protocol, *flags, *security);
        Common { reporter, source, destination, service, protocol, flags, security }.values(out);
        out.push(status.to_string());
        out.push(grpc.map_or_else(String::new, |code| code.to_string()));
    }
}

impl LabelSet for TcpLabels {
    const NAMES: &'static [&'static str] = istio_names!();

    fn values(&self, out: &mut Vec<String>) {
        let Self { reporter, source, destination, service, flags, security } = self;
        let (reporter, protocol, flags, security) = (*reporter, RequestProtocol::Tcp, *flags, *security);
        Common { reporter, source, destination, service, protocol, flags, security }.values(out);
    }
}

/// `cluster`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClusterLabel(pub Arc<str>);

impl LabelSet for ClusterLabel {
    const NAMES: &'static [&'static str] = &["cluster"];
    fn values(&self, out: &mut Vec<String>) {
        out.push(self.0.as_ref().to_owned());
    }
}

/// `listener`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListenerLabel(pub Arc<str>);

impl LabelSet for ListenerLabel {
    const NAMES: &'static [&'static str] = &["listener"];
    fn values(&self, out: &mut Vec<String>) {
        out.push(self.0.as_ref().to_owned());
    }
}

/// `listener`, `stat_prefix`, `policy`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PolicyLabels {
    /// The listener.
    pub listener: Arc<str>,
    /// Prefix of the statistics of the rules.
    pub stat_prefix: Arc<str>,
    /// The policy; `none` where none matched.
    pub policy: Arc<str>,
}

impl LabelSet for PolicyLabels {
    const NAMES: &'static [&'static str] = &["listener", "stat_prefix", "policy"];
    fn values(&self, out: &mut Vec<String>) {
        let Self { listener, stat_prefix, policy } = self;
        out.extend([listener, stat_prefix, policy].map(|value| value.as_ref().to_owned()));
    }
}
