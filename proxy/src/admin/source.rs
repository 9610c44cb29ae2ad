//! What the admin pages are told by the rest of the proxy.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use crate::resilience::circuit::View;

/// The rest of the proxy, as the admin server sees it. Called on a blocking thread, never on a worker.
pub trait AdminSource: Send + Sync + 'static {
    /// The entries of `configs`: one object for each kind (`envoy.admin.v3.ListenersConfigDump`, …), with `@type`.
    fn config_dump(&self) -> Vec<Value>;
    /// All clusters.
    fn clusters(&self) -> Vec<ClusterStatus>;
    /// All circuit breakers (`remora.circuit_breaker`).
    fn circuits(&self) -> Vec<CircuitStatus>;
    /// Sets one to a state. False: there is none of this name.
    ///
    /// # Errors
    /// There is no such state.
    fn set_circuit(&self, name: &str, state: &str) -> Result<bool, &'static str>;
    /// All listeners.
    fn listeners(&self) -> Vec<ListenerStatus>;
    /// All certificates in use.
    fn certificates(&self) -> Vec<Certificate>;
    /// What this process is.
    fn server_info(&self) -> ServerInfo;
    /// Stops accepting.
    fn drain_listeners(&self, request: DrainListeners);
}

/// `POST /drain_listeners`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainListeners {
    /// Ask clients to go first.
    pub graceful: bool,
    /// Only inbound listeners.
    pub inbound_only: bool,
}

/// `envoy.admin.v3.ServerInfo`, without what the server knows itself.
#[derive(Debug, Clone, Default)]
pub struct ServerInfo {
    /// Version.
    pub version: String,
    /// Time since the start.
    pub uptime: Duration,
    /// `node` of the bootstrap.
    pub node: Value,
    /// Options of the command line.
    pub command_line_options: Value,
}

/// A circuit breaker.
#[derive(Debug, Clone)]
pub struct CircuitStatus {
    /// `cluster/NAME` or `route/TABLE/VIRTUAL HOST/NAME`.
    pub name: String,
    /// State and window.
    pub view: View,
}

/// A listener.
#[derive(Debug, Clone, Default)]
pub struct ListenerStatus {
    /// Name.
    pub name: String,
    /// Bound addresses, port 0 resolved.
    pub addresses: Vec<SocketAddr>,
}

/// A cluster.
#[derive(Debug, Clone, Default)]
pub struct ClusterStatus {
    /// Name.
    pub name: String,
    /// `alt_stat_name`, or the name.
    pub observability_name: String,
    /// Came by CDS.
    pub added_via_api: bool,
    /// Circuit breaker limits: default priority, high priority.
    pub thresholds: [Thresholds; 2],
    /// Endpoints.
    pub hosts: Vec<HostStatus>,
}

/// Circuit breaker limits.
#[derive(Debug, Clone, Copy, Default)]
pub struct Thresholds {
    /// `max_connections`.
    pub connections: u32,
    /// `max_pending_requests`.
    pub pending_requests: u32,
    /// `max_requests`.
    pub requests: u32,
    /// `max_retries`.
    pub retries: u32,
}

/// An endpoint.
#[derive(Debug, Clone)]
pub struct HostStatus {
    /// Address.
    pub address: SocketAddr,
    /// Name that it was resolved from, or empty.
    pub hostname: String,
    /// Counters.
    pub stats: HostStats,
    /// What keeps it from getting traffic.
    pub health: HealthFlags,
    /// Health that the control plane says.
    pub eds_health: EdsHealth,
    /// Weight.
    pub weight: u32,
    /// Locality.
    pub locality: Locality,
    /// Priority.
    pub priority: u32,
    /// Success rate of outlier detection in percent, when there was enough traffic.
    pub success_rate: Option<f64>,
    /// The same of what does not come from the endpoint (connecting, time limits).
    pub local_origin_success_rate: Option<f64>,
}

/// Counters of an endpoint.
#[derive(Debug, Clone, Copy, Default)]
#[expect(missing_docs, reason = "the names are Envoy's")]
pub struct HostStats {
    pub cx_active: u64,
    pub cx_connect_fail: u64,
    pub cx_total: u64,
    pub rq_active: u64,
    pub rq_error: u64,
    pub rq_success: u64,
    pub rq_timeout: u64,
    pub rq_total: u64,
}

/// Why an endpoint gets no traffic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HealthFlags {
    /// Active health checks fail.
    pub failed_active_hc: bool,
    /// Outlier detection ejected it.
    pub failed_outlier_check: bool,
    /// The control plane says that it is unhealthy.
    pub failed_eds_health: bool,
    /// It left the configuration, and connections to it are still open.
    pub pending_dynamic_removal: bool,
}

/// `core.v3.HealthStatus`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are Envoy's")]
pub enum EdsHealth {
    Unknown,
    #[default]
    Healthy,
    Unhealthy,
    Draining,
    Timeout,
    Degraded,
}

impl EdsHealth {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Healthy => "HEALTHY",
            Self::Unhealthy => "UNHEALTHY",
            Self::Draining => "DRAINING",
            Self::Timeout => "TIMEOUT",
            Self::Degraded => "DEGRADED",
        }
    }
}

/// `core.v3.Locality`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are Envoy's")]
pub struct Locality {
    pub region: String,
    pub zone: String,
    pub sub_zone: String,
}

/// `envoy.admin.v3.Certificate`: one certificate and, when it is ours, its chain.
#[derive(Debug, Clone, Default)]
pub struct Certificate {
    /// True: trusted root; false: our own chain.
    pub is_ca: bool,
    /// File or secret that it came from.
    pub path: String,
    /// Serial number, hexadecimal.
    pub serial_number: String,
    /// URI SANs.
    pub uris: Vec<String>,
    /// DNS SANs.
    pub dns: Vec<String>,
    /// Whole days until it expires; 0 when it has.
    pub days_until_expiration: u64,
    /// RFC 3339.
    pub valid_from: String,
    /// RFC 3339.
    pub expiration_time: String,
}
