//! HTTP connection managers, protocol options and TCP proxies. Every value is set, also where it is Envoy's default.

use std::time::Duration;

use remora_xds::pb::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions, KeepaliveSettings,
};
use remora_xds::pb::envoy::config::listener::v3::Filter;
use remora_xds::pb::envoy::config::listener::v3::filter::ConfigType;
use remora_xds::pb::envoy::extensions::filters::http::router::v3::Router;
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, ForwardClientCertDetails, PathWithEscapedSlashesAction, ServerHeaderTransformation, SetCurrentClientCertDetails, UpgradeConfig,
};
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType as HttpConfigType;
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter,
};
use remora_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use remora_xds::pb::envoy::r#type::v3::HashPolicy;
use remora_xds::pb::envoy::r#type::v3::hash_policy::{PolicySpecifier, SourceIp};
use remora_xds::pb::google::protobuf::Any;

pub(super) use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
pub(super) use remora_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;

use super::parts::{self, flag, number, seconds};

/// Which side of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// In front of it.
    Inbound,
    /// Behind it.
    Outbound,
}

/// HTTP/2 on both sides: 256 streams, 256 KiB a stream, 1 MiB a connection, a PING every 10 s that waits 3 s.
pub(super) fn http2() -> Http2ProtocolOptions {
    Http2ProtocolOptions {
        max_concurrent_streams: number(256),
        initial_stream_window_size: number(256 * 1024),
        initial_connection_window_size: number(1024 * 1024),
        allow_connect: true,
        connection_keepalive: Some(KeepaliveSettings {
            interval: seconds(10),
            timeout: seconds(3),
            ..KeepaliveSettings::default()
        }),
        ..Http2ProtocolOptions::default()
    }
}

/// HTTP/1: trailers pass.
pub(super) fn http1() -> Http1ProtocolOptions {
    Http1ProtocolOptions { accept_http_10: true, enable_trailers: true, ..Http1ProtocolOptions::default() }
}

/// A filter of HTTP.
pub(super) fn http_filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.into(),
        config_type: Some(HttpConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    }
}

/// The filter that sends requests on. Between sidecars the time that is left of a request goes with it.
pub(super) fn router() -> HttpFilter {
    let router = Router { respect_expected_rq_timeout: true, ..Router::default() };
    http_filter("envoy.filters.http.router", parts::pack(&router))
}

/// The filter of an HTTP connection manager with `filters` before the router.
pub(super) fn connection_manager(
    name: &str,
    side: Side,
    routes: RouteSpecifier,
    filters: Vec<HttpFilter>,
) -> Filter {
    of_manager(&manager(name, side, routes, filters))
}

/// The filter that is `manager`.
pub(super) fn of_manager(manager: &HttpConnectionManager) -> Filter {
    filter("envoy.filters.network.http_connection_manager", parts::pack(manager))
}

/// An HTTP connection manager with `filters` before the router.
pub(super) fn manager(
    name: &str,
    side: Side,
    routes: RouteSpecifier,
    mut filters: Vec<HttpFilter>,
) -> HttpConnectionManager {
    filters.push(router());
    HttpConnectionManager {
        codec_type: CodecType::Auto.into(),
        stat_prefix: name.into(),
        http_filters: filters,
        common_http_protocol_options: Some(HttpProtocolOptions {
            idle_timeout: seconds(3600),
            max_headers_count: number(200),
            // Sidecars that came later get their share of the connections.
            max_connection_duration: if side == Side::Inbound { seconds(1800) } else { None },
            ..HttpProtocolOptions::default()
        }),
        http_protocol_options: Some(http1()),
        http2_protocol_options: Some(http2()),
        server_header_transformation: ServerHeaderTransformation::PassThrough.into(),
        max_request_headers_kb: number(64),
        stream_idle_timeout: seconds(300),
        request_headers_timeout: seconds(10),
        drain_timeout: seconds(5),
        delayed_close_timeout: seconds(1),
        use_remote_address: flag(false),
        // The program learns who called from x-forwarded-client-cert, which nobody else can set.
        forward_client_cert_details: match side {
            Side::Inbound => ForwardClientCertDetails::SanitizeSet,
            Side::Outbound => ForwardClientCertDetails::Sanitize,
        }
        .into(),
        set_current_client_cert_details: (side == Side::Inbound)
            .then(|| SetCurrentClientCertDetails { uri: true, ..SetCurrentClientCertDetails::default() }),
        proxy_100_continue: true,
        generate_request_id: flag(true),
        upgrade_configs: vec![UpgradeConfig { upgrade_type: "websocket".into(), ..UpgradeConfig::default() }],
        normalize_path: flag(true),
        merge_slashes: true,
        path_with_escaped_slashes_action: PathWithEscapedSlashesAction::RejectRequest.into(),
        route_specifier: Some(routes),
        ..HttpConnectionManager::default()
    }
}

/// A proxy of connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tcp<'a> {
    /// In its metrics.
    pub(super) name: &'a str,
    /// How long there may be no byte in either direction; an hour when it is left out, for ever when it is zero.
    pub(super) idle: Option<Duration>,
    /// So many endpoints are tried until one can be connected to.
    pub(super) tries: u32,
    /// Whether the client's address is hashed.
    pub(super) by_address: bool,
}

/// Opaque bytes to one or more clusters.
pub(super) fn tcp_proxy(tcp: Tcp<'_>, to: ClusterSpecifier) -> Filter {
    let proxy = TcpProxy {
        stat_prefix: tcp.name.into(),
        cluster_specifier: Some(to),
        idle_timeout: Some(parts::duration(tcp.idle.unwrap_or(Duration::from_secs(3600)))),
        max_connect_attempts: number(tcp.tries),
        hash_policy: if tcp.by_address { vec![source_ip()] } else { Vec::new() },
        ..TcpProxy::default()
    };
    filter("envoy.filters.network.tcp_proxy", parts::pack(&proxy))
}

fn source_ip() -> HashPolicy {
    HashPolicy { policy_specifier: Some(PolicySpecifier::SourceIp(SourceIp {})) }
}

fn filter(name: &str, config: Any) -> Filter {
    Filter { name: name.into(), config_type: Some(ConfigType::TypedConfig(config)) }
}
