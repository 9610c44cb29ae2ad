//! Of a listener that speaks HTTP: what the connection manager does.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Direction;
use crate::config::names::{ClusterId, RouteTableId};
use crate::http::session::SessionFilter;
use crate::policy::authz::AuthzFilter;
use crate::policy::jwt::JwtFilter;
use crate::policy::rbac::RbacFilter;
use crate::route::RouteTable;
use crate::telemetry::access_log::AccessLog;
use crate::traffic::compress::Compressor;
use crate::traffic::concurrency::ConcurrencyFilter;
use crate::traffic::fault::FaultFilter;
use crate::traffic::limit::LocalLimit;
use crate::traffic::limit::global::GlobalLimit;
use crate::traffic::limit::quota::QuotaFilter;

/// A compiled `HttpConnectionManager`.
#[derive(Debug)]
pub struct HttpSpec {
    /// `stat_prefix`.
    pub stat_prefix: Arc<str>,
    /// Inbound or outbound, from the listener.
    pub direction: Direction,
    /// `codec_type`.
    pub codec: Codec,
    /// `route_config` or `rds`.
    pub routes: RouteSource,
    /// `rds`: what to subscribe to. None with `route_config`.
    pub rds: Option<RdsSpec>,
    /// `http_protocol_options`.
    pub http1: Http1Spec,
    /// `http2_protocol_options`.
    pub http2: Http2Spec,
    /// `max_request_headers_kb`, default 60 KiB, in bytes.
    pub max_header_bytes: usize,
    /// `common_http_protocol_options.max_headers_count`, default 100; at most 256 on HTTP/1, and 8,192 on HTTP/2.
    pub max_header_count: usize,
    /// `common_http_protocol_options.idle_timeout`, default 1 h; None is off.
    pub idle_timeout: Option<Duration>,
    /// `common_http_protocol_options.max_connection_duration`.
    pub max_connection_age: Option<Duration>,
    /// `common_http_protocol_options.max_requests_per_connection`.
    pub max_requests: Option<u32>,
    /// `common_http_protocol_options.max_stream_duration`.
    pub max_stream_duration: Option<Duration>,
    /// `stream_idle_timeout`, default 5 min; None is off.
    pub stream_idle_timeout: Option<Duration>,
    /// `request_headers_timeout`, default 10 s here (Envoy: none).
    pub headers_timeout: Option<Duration>,
    /// `request_timeout`; None is off.
    pub request_timeout: Option<Duration>,
    /// `drain_timeout`, default 5 s.
    pub drain_timeout: Duration,
    /// `delayed_close_timeout`, default 1 s.
    pub delayed_close: Duration,
    /// `server_name`, default `remora`; None with PASS_THROUGH.
    pub server_header: ServerHeader,
    /// `use_remote_address`: this is an edge listener; X-Forwarded-For is appended from the peer's address.
    pub use_remote_address: bool,
    /// `xff_num_trusted_hops`.
    pub trusted_hops: u32,
    /// `skip_xff_append`.
    pub skip_xff_append: bool,
    /// `via`.
    pub via: Option<http::HeaderValue>,
    /// `generate_request_id`, default true.
    pub generate_request_id: bool,
    /// `preserve_external_request_id`.
    pub preserve_request_id: bool,
    /// `always_set_request_id_in_response`.
    pub echo_request_id: bool,
    /// `normalize_path`, default true here (Envoy: false).
    pub normalize_path: bool,
    /// `merge_slashes`, true here. With `normalize_path: false` written out, as the file says.
    pub merge_slashes: bool,
    /// `path_with_escaped_slashes_action`, default reject here; keep with `normalize_path: false` written out.
    pub escaped_slashes: EscapedSlashes,
    /// `common_http_protocol_options.headers_with_underscores_action`.
    pub underscores: Underscores,
    /// `upgrade_configs`: lower-case tokens that are passed through (`websocket`, `connect`, …).
    pub upgrades: Vec<Arc<str>>,
    /// `http_filters` in the order of the file. The router is last.
    pub filters: Vec<HttpFilter>,
    /// `access_log`.
    pub access_log: Vec<Arc<AccessLog>>,
    /// `strip_any_host_port` / `strip_matching_host_port`.
    pub strip_host_port: StripPort,
    /// `strip_trailing_host_dot`.
    pub strip_trailing_dot: bool,
    /// `internal_address_config.cidr_ranges`: no address is internal unless it is listed.
    pub internal_addresses: Vec<ipnet::IpNet>,
    /// `forward_client_cert_details` and `set_current_client_cert_details`.
    pub client_cert: ClientCertHeader,
    /// Router's `suppress_envoy_headers`.
    pub suppress_envoy_headers: bool,
    /// Router's `respect_expected_rq_timeout`.
    pub respect_expected_timeout: bool,
}

impl HttpSpec {
    /// The clusters that its filters ask (`ext_authz`, `ratelimit`, `rate_limit_quota`). Routes name no others: `service_override` is refused.
    pub fn authz_clusters(&self) -> impl Iterator<Item = ClusterId> {
        self.filters.iter().filter_map(|filter| match filter {
            HttpFilter::Authz(_, filter) => Some(filter.cluster),
            HttpFilter::GlobalLimit(_, filter) => Some(filter.cluster),
            HttpFilter::Quota(_, filter) => Some(filter.cluster),
            _ => None,
        })
    }
}

/// What becomes of `x-forwarded-client-cert`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientCertHeader {
    /// `forward_client_cert_details`.
    pub mode: ClientCertMode,
    /// `set_current_client_cert_details.subject`.
    pub subject: bool,
    /// `set_current_client_cert_details.uri`.
    pub uri: bool,
    /// `set_current_client_cert_details.dns`.
    pub dns: bool,
}

/// `forward_client_cert_details`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientCertMode {
    /// SANITIZE (default): removed.
    #[default]
    Sanitize,
    /// FORWARD_ONLY: kept from a peer that showed a certificate, removed from others.
    Forward,
    /// APPEND_FORWARD: the peer's certificate is appended.
    Append,
    /// SANITIZE_SET: replaced by the peer's certificate.
    Set,
    /// ALWAYS_FORWARD_ONLY: kept.
    Always,
}

/// HTTP filters: a closed set, compiled from `http_filters`.
#[derive(Debug)]
pub enum HttpFilter {
    /// `envoy.filters.http.rbac`, with its name: routes say something about it by that.
    Rbac(Arc<str>, Box<RbacFilter>),
    /// `envoy.filters.http.jwt_authn`, with its name.
    Jwt(Arc<str>, Box<JwtFilter>),
    /// `envoy.filters.http.ext_authz`, with its name.
    Authz(Arc<str>, Box<AuthzFilter>),
    /// `envoy.filters.http.stateful_session`, with its name.
    Session(Arc<str>, Arc<SessionFilter>),
    /// `envoy.filters.http.cors`, with its name: what it allows routes say.
    Cors(Arc<str>),
    /// `envoy.filters.http.fault`, with its name.
    Fault(Arc<str>, Box<FaultFilter>),
    /// `envoy.filters.http.buffer`, with its name: `max_request_bytes`.
    Buffer(Arc<str>, usize),
    /// `envoy.filters.http.local_ratelimit`, with its name.
    LocalLimit(Arc<str>, Arc<LocalLimit>),
    /// `envoy.filters.http.compressor`, with its name.
    Compressor(Arc<str>, Arc<Compressor>),
    /// `envoy.filters.http.ratelimit`, with its name.
    GlobalLimit(Arc<str>, Box<GlobalLimit>),
    /// `envoy.filters.http.adaptive_concurrency`, with its name.
    Concurrency(Arc<str>, Box<ConcurrencyFilter>),
    /// `envoy.filters.http.rate_limit_quota`, with its name.
    Quota(Arc<str>, Box<QuotaFilter>),
    /// `envoy.filters.http.router`.
    Router,
}

impl HttpFilter {
    /// The verdict of an RBAC filter in front, by its key, that decides whether this filter does anything.
    #[must_use]
    pub fn awaits(&self) -> Option<&Arc<str>> {
        match self {
            Self::Authz(_, filter) => filter.condition.as_ref()?.verdict(),
            _ => None,
        }
    }

    /// Whether it may wait for something: a service, the rest of a body, a time.
    #[must_use]
    pub const fn may_wait(&self) -> bool {
        matches!(
            self,
            Self::Jwt(..) | Self::Authz(..) | Self::Fault(..) | Self::Buffer(..) | Self::GlobalLimit(..)
        )
    }

    /// The name that routes know it by.
    #[must_use]
    pub const fn name(&self) -> Option<&Arc<str>> {
        match self {
            Self::Rbac(name, _)
            | Self::Jwt(name, _)
            | Self::Authz(name, _)
            | Self::Session(name, _)
            | Self::Cors(name)
            | Self::Fault(name, _)
            | Self::Buffer(name, _)
            | Self::Compressor(name, _)
            | Self::GlobalLimit(name, _)
            | Self::Concurrency(name, _)
            | Self::Quota(name, _)
            | Self::LocalLimit(name, _) => Some(name),
            Self::Router => None,
        }
    }
}

/// `server_header_transformation` and `server_name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerHeader {
    /// OVERWRITE (default): always ours.
    Overwrite(http::HeaderValue),
    /// APPEND_IF_ABSENT.
    AppendIfAbsent(http::HeaderValue),
    /// PASS_THROUGH.
    PassThrough,
}

/// `codec_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// By ALPN, else by the first bytes.
    Auto,
    /// HTTP/1 only.
    Http1,
    /// HTTP/2 only.
    Http2,
}

/// Where the routes of a connection manager come from.
#[derive(Debug, Clone)]
pub enum RouteSource {
    /// `route_config`.
    Inline(Arc<RouteTable>),
    /// `rds`: looked up in the snapshot of each request.
    Rds(RouteTableId),
}

/// `rds`: the route configuration that a connection manager subscribes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RdsSpec {
    /// `route_config_name`.
    pub name: Arc<str>,
    /// `config_source`.
    pub source: ConfigSource,
    /// `config_source.initial_fetch_timeout`, default 15 s: how long to hold back for the first answer. None is for
    /// as long as it takes.
    pub initial_fetch_timeout: Option<Duration>,
}

/// `core.v3.ConfigSource`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConfigSource {
    /// `ads`: the one stream of the bootstrap.
    Ads,
    /// `path_config_source`: a file that is watched.
    Path {
        /// `path`.
        path: Arc<Path>,
        /// `watched_directory`: reload when something is moved here, too.
        watched: Option<Arc<Path>>,
    },
}

/// `path_with_escaped_slashes_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// KEEP_UNCHANGED.
    Keep,
    /// REJECT_REQUEST.
    Reject,
    /// UNESCAPE_AND_REDIRECT.
    Redirect,
    /// UNESCAPE_AND_FORWARD.
    Unescape,
}

/// `headers_with_underscores_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Underscores {
    /// ALLOW.
    Allow,
    /// REJECT_REQUEST.
    Reject,
    /// DROP_HEADER.
    Drop,
}

/// `strip_port_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StripPort {
    /// Host is forwarded as it came.
    Keep,
    /// `strip_matching_host_port`: only the listener's own port.
    Matching,
    /// `strip_any_host_port`.
    Any,
}

/// `Http1ProtocolOptions`, both directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http1Spec {
    /// `accept_http_10`, default true here (Envoy: false).
    pub accept_http_10: bool,
    /// `default_host_for_http_10`.
    pub default_host: Option<Arc<str>>,
    /// `enable_trailers`, default true here (Envoy: false).
    pub trailers: bool,
    /// `header_key_format`: keep the peer's spelling. Default true here (Envoy: lower-case).
    pub preserve_case: bool,
    /// `header_key_format.proper_case_words`.
    pub proper_case: bool,
}

impl Default for Http1Spec {
    fn default() -> Self {
        Self {
            accept_http_10: true,
            default_host: None,
            trailers: true,
            preserve_case: true,
            proper_case: false,
        }
    }
}

/// `Http2ProtocolOptions`, both directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http2Spec {
    /// `max_concurrent_streams`; default 1024 (Envoy 1.40).
    pub max_streams: u32,
    /// `initial_stream_window_size`; default 16 MiB (Envoy 1.40).
    pub stream_window: u32,
    /// `initial_connection_window_size`; default 24 MiB (Envoy 1.40).
    pub connection_window: u32,
    /// `hpack_table_size`; default 4096.
    pub hpack_table: u32,
    /// `allow_connect`: extended CONNECT (RFC 8441).
    pub allow_connect: bool,
    /// `connection_keepalive`.
    pub keepalive: Option<Http2Keepalive>,
}

impl Default for Http2Spec {
    fn default() -> Self {
        Self {
            max_streams: 1024,
            stream_window: 16 << 20,
            connection_window: 24 << 20,
            hpack_table: 4096,
            allow_connect: false,
            keepalive: None,
        }
    }
}

/// `KeepaliveSettings`: PING on a quiet connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2Keepalive {
    /// `interval`.
    pub interval: Duration,
    /// `timeout`.
    pub timeout: Duration,
}
