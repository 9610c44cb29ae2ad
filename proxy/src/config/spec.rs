//! What the compiler makes of a Listener: plain, immutable, indexed data with every default filled in.
//!
//! Specs hold no running state and no protobuf type. Route tables are in [`crate::route`], clusters in
//! [`crate::upstream::cluster`], TLS contexts in [`crate::tls`], access logs in [`crate::telemetry::access_log`].

mod http;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::balance::subset::LbMetadata;
use crate::config::names::{ChainId, ClusterId};
use crate::dns::DnsFilterSpec;
use crate::listener::chain_match::ChainMatcher;
use crate::policy::rbac::RbacFilter;
use crate::telemetry::access_log::AccessLog;
use crate::tls::server::ServerTls;

pub use http::{
    ClientCertHeader, ClientCertMode, Codec, ConfigSource, EscapedSlashes, Http1Spec, Http2Keepalive,
    Http2Spec, HttpFilter, HttpSpec, RdsSpec, RouteSource, ServerHeader, StripPort, Underscores,
};

/// A compiled `envoy.config.listener.v3.Listener`.
#[derive(Debug)]
pub struct ListenerSpec {
    /// `name`, or the address when it has none.
    pub name: Arc<str>,
    /// `address`; port 0 means any free port, read back through the admin page.
    pub address: SocketAddr,
    /// Further addresses (`additional_addresses`).
    pub additional: Vec<SocketAddr>,
    /// `bind_to_port`, default true. False: only reached through `use_original_dst` of another listener.
    pub bind: bool,
    /// `use_original_dst`: hand the connection to the listener that owns its original destination.
    pub use_original_dst: bool,
    /// `traffic_direction`.
    pub direction: Direction,
    /// Listener filter `envoy.filters.listener.tls_inspector` is there: SNI, ALPN and transport protocol are known before the match.
    pub inspect_tls: bool,
    /// Destination ports on which first bytes are not looked at (`filter_disabled`).
    pub uninspected: Uninspected,
    /// Listener filter `envoy.filters.listener.http_inspector` is there: `application_protocols` may be matched on plaintext.
    pub inspect_http: bool,
    /// Listener filter `envoy.filters.listener.original_dst` is there.
    pub original_dst: bool,
    /// Listener filter `envoy.filters.listener.original_src` is there: endpoints see the client's address. Its `mark`, 0 for none.
    pub original_src: Option<u32>,
    /// `listener_filters_timeout`, default 15 s; zero means no timeout.
    pub inspect_timeout: Duration,
    /// `continue_on_listener_filters_timeout`.
    pub continue_on_inspect_timeout: bool,
    /// Picks the chain of a connection.
    pub matcher: ChainMatcher,
    /// `filter_chains`, with `default_filter_chain` last when there is one.
    pub chains: Vec<Arc<FilterChain>>,
    /// Socket options.
    pub socket: SocketSpec,
    /// `per_connection_buffer_limit_bytes`, default 1 MiB.
    pub buffer_limit: usize,
    /// `access_log` of the listener: refused and chain-less connections.
    pub access_log: Vec<Arc<AccessLog>>,
    /// `protocol: UDP` with `dns_filter`: it answers DNS, by UDP and TCP, on the control runtime, and has no chains.
    pub dns: Option<Arc<DnsFilterSpec>>,
}

impl ListenerSpec {
    /// Whether it listens at this address. Its port 0 is any port.
    #[must_use]
    pub fn is_at(&self, address: SocketAddr) -> bool {
        let mut own = std::iter::once(&self.address).chain(&self.additional);
        own.any(|own| own.ip() == address.ip() && (own.port() == 0 || own.port() == address.port()))
    }
}

/// Destination ports on which a listener filter does not look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uninspected {
    /// The TLS inspector.
    pub tls: Ports,
    /// The HTTP inspector.
    pub http: Ports,
}

/// A set of ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ports(pub Vec<RangeInclusive<u16>>);

impl Ports {
    /// Whether `port` is one of them.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }
}

/// `core.v3.TrafficDirection`; the metric label `reporter` follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direction {
    /// Not said; counts as outbound in metrics.
    #[default]
    Unspecified,
    /// Towards the local application.
    Inbound,
    /// From the local application.
    Outbound,
}

/// Socket options of a listener.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SocketSpec {
    /// `tcp_backlog_size`, default 1024 (more than net.core.somaxconn is cut by the kernel).
    pub backlog: Option<u32>,
    /// `transparent`: IP_TRANSPARENT.
    pub transparent: bool,
    /// `freebind`: IP_FREEBIND.
    pub freebind: bool,
    /// `address.socket_address.ipv4_compat`: a listener on `::` takes IPv4 connections too.
    pub ipv4_compat: bool,
    /// TCP keepalive from `socket_options`/`tcp_keepalive`.
    pub keepalive: Option<Keepalive>,
}

/// `core.v3.TcpKeepalive`; None leaves the kernel's value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// `keepalive_probes`.
    pub probes: Option<u32>,
    /// `keepalive_time`.
    pub time: Option<Duration>,
    /// `keepalive_interval`.
    pub interval: Option<Duration>,
}

/// A compiled `FilterChain`.
#[derive(Debug)]
pub struct FilterChain {
    /// Stable number: open connections find the newest version of their chain by it.
    pub id: ChainId,
    /// `name`, or `listener/index`.
    pub name: Arc<str>,
    /// `transport_socket`; None is plaintext.
    pub tls: Option<Arc<ServerTls>>,
    /// `transport_socket_connect_timeout`, default 10 s here (Envoy: none): an idle handshake must end.
    pub tls_timeout: Duration,
    /// `envoy.filters.network.rbac`, as often and in the order as they stand there.
    pub policies: Vec<RbacFilter>,
    /// The network filter.
    pub filter: NetworkFilter,
}

/// The terminal network filter of a chain.
#[derive(Debug)]
pub enum NetworkFilter {
    /// `http_connection_manager`.
    Http(Arc<HttpSpec>),
    /// `tcp_proxy`.
    Tcp(Arc<TcpSpec>),
}

/// A compiled `TcpProxy`.
#[derive(Debug)]
pub struct TcpSpec {
    /// `stat_prefix`.
    pub stat_prefix: Arc<str>,
    /// Inbound or outbound, from the listener.
    pub direction: Direction,
    /// `cluster` or `weighted_clusters` (cluster, weight); weights are cumulative.
    pub clusters: Vec<(ClusterId, u32)>,
    /// `idle_timeout`, default 1 h; None is off.
    pub idle_timeout: Option<Duration>,
    /// `max_downstream_connection_duration`.
    pub max_duration: Option<Duration>,
    /// `max_connect_attempts`, default 1.
    pub max_connect_attempts: u32,
    /// `hash_policy` with `source_ip`.
    pub hash_source_ip: bool,
    /// `metadata_match` under `envoy.lb`: the subset of the cluster.
    pub subset: Option<Arc<LbMetadata>>,
    /// `access_log`.
    pub access_log: Vec<Arc<AccessLog>>,
}
