//! The API's messages out of their protobuf bytes.
//!
//! Decoding is generic code, and generic code is compiled where it is used: with the optimisation of the data plane, for
//! messages that are read once. The messages named here are compiled in this crate, for size.

use prost::{DecodeError, Message, Name};

use crate::pb::envoy as pb;

/// A message that is read from bytes.
pub trait Wire: Message + Name + Default {
    /// The message in `bytes`.
    ///
    /// # Errors
    /// They are no such message.
    fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError>;
}

macro_rules! wire {
    ($($message:ty,)*) => { $(
        impl Wire for $message {
            fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
                <Self as Message>::decode(bytes)
            }
        }
    )* };
}

wire! {
    crate::typed_struct::TypedStruct,
    pb::config::bootstrap::v3::Bootstrap,
    pb::service::auth::v3::CheckResponse,
    pb::service::ratelimit::v3::RateLimitResponse,
    pb::service::discovery::v3::DiscoveryResponse,
    pb::service::discovery::v3::ResourceError,
    pb::config::listener::v3::Listener,
    pb::config::route::v3::RouteConfiguration,
    pb::config::cluster::v3::Cluster,
    pb::config::cluster::v3::cluster::LbSubsetConfig,
    pb::config::endpoint::v3::ClusterLoadAssignment,
    pb::extensions::access_loggers::file::v3::FileAccessLog,
    pb::extensions::access_loggers::stream::v3::StderrAccessLog,
    pb::extensions::access_loggers::stream::v3::StdoutAccessLog,
    pb::extensions::clusters::dns::v3::DnsCluster,
    pb::extensions::compression::brotli::compressor::v3::Brotli,
    pb::extensions::compression::gzip::compressor::v3::Gzip,
    pb::extensions::compression::zstd::compressor::v3::Zstd,
    pb::config::route::v3::FilterConfig,
    pb::extensions::filters::http::adaptive_concurrency::v3::AdaptiveConcurrency,
    pb::extensions::filters::http::buffer::v3::Buffer,
    pb::extensions::filters::http::buffer::v3::BufferPerRoute,
    pb::extensions::filters::http::compressor::v3::Compressor,
    pb::extensions::filters::http::compressor::v3::CompressorPerRoute,
    pb::extensions::filters::http::cors::v3::Cors,
    pb::extensions::filters::http::cors::v3::CorsPolicy,
    pb::extensions::filters::http::ext_authz::v3::ExtAuthz,
    pb::extensions::filters::http::ext_authz::v3::ExtAuthzPerRoute,
    pb::extensions::filters::http::fault::v3::HttpFault,
    pb::extensions::filters::http::jwt_authn::v3::JwtAuthentication,
    pb::extensions::filters::http::jwt_authn::v3::PerRouteConfig,
    pb::extensions::filters::http::local_ratelimit::v3::LocalRateLimit,
    pb::extensions::filters::http::ratelimit::v3::RateLimit,
    pb::extensions::filters::http::ratelimit::v3::RateLimitPerRoute,
    pb::extensions::filters::http::rate_limit_quota::v3::RateLimitQuotaBucketSettings,
    pb::extensions::filters::http::rate_limit_quota::v3::RateLimitQuotaFilterConfig,
    pb::extensions::filters::http::rbac::v3::Rbac,
    pb::extensions::filters::http::rbac::v3::RbacPerRoute,
    pb::extensions::filters::http::router::v3::Router,
    pb::extensions::filters::http::stateful_session::v3::StatefulSession,
    pb::extensions::filters::http::stateful_session::v3::StatefulSessionPerRoute,
    pb::extensions::filters::listener::http_inspector::v3::HttpInspector,
    pb::extensions::filters::listener::original_dst::v3::OriginalDst,
    pb::extensions::filters::listener::original_src::v3::OriginalSrc,
    pb::extensions::filters::listener::tls_inspector::v3::TlsInspector,
    pb::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager,
    pb::extensions::filters::network::rbac::v3::Rbac,
    pb::extensions::filters::network::tcp_proxy::v3::TcpProxy,
    pb::extensions::filters::udp::dns_filter::v3::DnsFilterConfig,
    pb::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig,
    pb::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState,
    pb::extensions::http::stateful_session::header::v3::HeaderBasedSessionState,
    pb::extensions::load_balancing_policies::least_request::v3::LeastRequest,
    pb::extensions::load_balancing_policies::maglev::v3::Maglev,
    pb::extensions::load_balancing_policies::random::v3::Random,
    pb::extensions::load_balancing_policies::ring_hash::v3::RingHash,
    pb::extensions::load_balancing_policies::round_robin::v3::RoundRobin,
    pb::extensions::load_balancing_policies::subset::v3::Subset,
    pb::extensions::load_balancing_policies::wrr_locality::v3::WrrLocality,
    pb::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig,
    pb::extensions::resource_monitors::cgroup_memory::v3::CgroupMemoryConfig,
    pb::extensions::resource_monitors::downstream_connections::v3::DownstreamConnectionsConfig,
    pb::extensions::resource_monitors::fixed_heap::v3::FixedHeapConfig,
    pb::extensions::transport_sockets::raw_buffer::v3::RawBuffer,
    pb::extensions::transport_sockets::tls::v3::DownstreamTlsContext,
    pb::extensions::transport_sockets::tls::v3::Secret,
    pb::extensions::transport_sockets::tls::v3::SpiffeCertValidatorConfig,
    pb::extensions::transport_sockets::tls::v3::UpstreamTlsContext,
    pb::extensions::upstreams::http::v3::HttpProtocolOptions,
    pb::r#type::matcher::v3::HttpRequestHeaderMatchInput,
}
