//! `HttpConnectionManager`.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3::{ApiVersion, ConfigSource as ConfigSourcePb, PathConfigSource};
use remora_xds::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, ForwardClientCertDetails, InternalAddressConfig, PathWithEscapedSlashesAction, RouteSpecifier, ServerHeaderTransformation,
    SetCurrentClientCertDetails, StripPortMode, UpgradeConfig,
};
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::{HttpConnectionManager, Rds};

use self::filters::check_overrides;
use super::protocol;
use crate::config::compile::Scope;
use crate::config::compile::access_log::compile_access_logs;
use crate::config::compile::common::{duration, unsupported};
use crate::config::compile::fields::{boolean, cidr, number, refuse, timeout};
use crate::config::compile::route::compile_route_table;
use crate::config::spec::{
    ClientCertHeader, ClientCertMode, Codec, ConfigSource, Direction, EscapedSlashes, HttpSpec, RdsSpec,
    RouteSource, ServerHeader, StripPort,
};

mod filters;

pub use filters::stray_override;

pub(super) fn compile(
    pb: &HttpConnectionManager,
    direction: Direction,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<HttpSpec> {
    refuse_unsupported(pb, at, scope);
    if pb.stat_prefix.is_empty() {
        scope.errors.report(&at.field("stat_prefix"), "is missing").fix("give it a name for metrics");
    }
    let common_at = at.field("common_http_protocol_options");
    let common = protocol::common(pb.common_http_protocol_options.as_ref(), &common_at, scope);
    let http1 = protocol::http1(pb.http_protocol_options.as_ref(), &at.field("http_protocol_options"), scope);
    let http2 =
        protocol::http2(pb.http2_protocol_options.as_ref(), &at.field("http2_protocol_options"), scope);
    let kb_at = at.field("max_request_headers_kb");
    let header_kb = number(pb.max_request_headers_kb.as_ref(), 1..=8192, &kb_at, scope);
    let times = times(pb, at, scope);
    let path = path(pb, at, scope);
    let via = header_value(&pb.via, &at.field("via"), scope);
    let server_header = server_header(pb, at, scope);
    let codec = codec(pb.codec_type, &at.field("codec_type"), scope);
    let upgrades = upgrades(&pb.upgrade_configs, &at.field("upgrade_configs"), scope);
    let access_log = compile_access_logs(&pb.access_log, &at.field("access_log"), scope);
    let filters = filters::compile(&pb.http_filters, &at.field("http_filters"), scope);
    let internal_addresses = internal_addresses(pb, &at.field("internal_address_config"), scope);
    let client_cert = client_cert(pb, at, scope);
    let routes = routes(pb.route_specifier.as_ref(), at, scope);
    let (filters, (routes, rds)) = filters.zip(routes)?;
    if let RouteSource::Inline(table) = &routes {
        check_overrides(table, &filters.list, &at.field("route_config"), scope);
    }
    Some(HttpSpec {
        stat_prefix: pb.stat_prefix.as_str().into(),
        direction,
        codec: codec?,
        routes,
        rds,
        http1,
        http2,
        max_header_bytes: header_kb.unwrap_or(60) as usize * 1024,
        max_header_count: common.max_header_count,
        idle_timeout: common.idle_timeout,
        max_connection_age: common.max_connection_age,
        max_requests: common.max_requests,
        max_stream_duration: common.max_stream_duration,
        stream_idle_timeout: times.stream_idle,
        headers_timeout: times.headers,
        request_timeout: times.request,
        drain_timeout: times.drain,
        delayed_close: times.delayed_close,
        server_header,
        use_remote_address: boolean(pb.use_remote_address.as_ref(), false),
        trusted_hops: pb.xff_num_trusted_hops,
        skip_xff_append: pb.skip_xff_append,
        via,
        generate_request_id: boolean(pb.generate_request_id.as_ref(), true),
        preserve_request_id: pb.preserve_external_request_id,
        echo_request_id: pb.always_set_request_id_in_response,
        normalize_path: path.normalize,
        merge_slashes: path.merge_slashes,
        escaped_slashes: path.escaped_slashes,
        underscores: common.underscores,
        upgrades,
        filters: filters.list,
        access_log,
        strip_host_port: strip_port(pb),
        strip_trailing_dot: pb.strip_trailing_host_dot,
        internal_addresses,
        client_cert,
        suppress_envoy_headers: filters.suppress_envoy_headers,
        respect_expected_timeout: filters.respect_expected_timeout,
    })
}

/// Takes the message apart: what is not named `_` here is refused; what is, is compiled elsewhere in this module.
#[expect(clippy::too_many_lines, reason = "a line for every field of the message")]
fn refuse_unsupported(pb: &HttpConnectionManager, at: &At<'_>, scope: &mut Scope<'_>) {
    #[expect(deprecated, reason = "deprecated fields are refused with the rest")]
    let HttpConnectionManager {
        codec_type: _,
        stat_prefix: _,
        http_filters: _,
        add_user_agent,
        tracing,
        common_http_protocol_options: _,
        // A connection that is too old always ends between two requests here.
        http1_safe_max_connection_duration: _,
        http_protocol_options: _,
        http2_protocol_options: _,
        http3_protocol_options,
        server_name: _,
        server_header_transformation: _,
        scheme_header_transformation,
        max_request_headers_kb: _,
        stream_idle_timeout: _,
        stream_flush_timeout,
        request_timeout: _,
        request_headers_timeout: _,
        drain_timeout: _,
        drain_timeout_jitter,
        delayed_close_timeout: _,
        access_log: _,
        access_log_flush_interval,
        flush_access_log_on_new_request,
        access_log_options,
        use_remote_address: _,
        xff_num_trusted_hops: _,
        original_ip_detection_extensions,
        early_header_mutation_extensions,
        internal_address_config: _,
        skip_xff_append: _,
        via: _,
        generate_request_id: _,
        preserve_external_request_id: _,
        always_set_request_id_in_response: _,
        forward_client_cert_details: _,
        set_current_client_cert_details: _,
        forward_client_cert_matcher,
        // Expect is always passed on (docs/differences-from-envoy.md).
        proxy_100_continue: _,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        upgrade_configs: _,
        normalize_path: _,
        merge_slashes: _,
        path_with_escaped_slashes_action: _,
        request_id_extension,
        local_reply_config,
        strip_matching_host_port: _,
        stream_error_on_invalid_http_message,
        path_normalization_options,
        strip_trailing_host_dot: _,
        proxy_status_config,
        typed_header_validation_config,
        append_x_forwarded_port,
        append_local_overload,
        add_proxy_protocol_connection_state,
        forward_proto_config,
        route_specifier: _,
        strip_port_mode: _,
    } = pb;
    refuse!(
        scope, at;
        add_user_agent,
        tracing,
        http3_protocol_options,
        scheme_header_transformation,
        stream_flush_timeout,
        drain_timeout_jitter,
        access_log_flush_interval,
        flush_access_log_on_new_request,
        access_log_options,
        original_ip_detection_extensions,
        early_header_mutation_extensions,
        forward_client_cert_matcher,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        request_id_extension,
        local_reply_config,
        stream_error_on_invalid_http_message,
        path_normalization_options,
        proxy_status_config,
        typed_header_validation_config,
        append_x_forwarded_port,
        append_local_overload,
        add_proxy_protocol_connection_state,
        forward_proto_config,
    );
}

struct Times {
    stream_idle: Option<Duration>,
    headers: Option<Duration>,
    request: Option<Duration>,
    drain: Duration,
    delayed_close: Duration,
}

fn times(pb: &HttpConnectionManager, at: &At<'_>, scope: &mut Scope<'_>) -> Times {
    const SECOND: Duration = Duration::from_secs(1);
    let mut off_by_zero =
        |value: &Option<_>, default, field| timeout(value.as_ref(), default, &at.field(field), scope);
    let stream_idle = off_by_zero(&pb.stream_idle_timeout, Some(300 * SECOND), "stream_idle_timeout");
    let headers = off_by_zero(&pb.request_headers_timeout, Some(10 * SECOND), "request_headers_timeout");
    let request = off_by_zero(&pb.request_timeout, None, "request_timeout");
    let drain = duration(pb.drain_timeout.as_ref(), &at.field("drain_timeout"), scope);
    let close = duration(pb.delayed_close_timeout.as_ref(), &at.field("delayed_close_timeout"), scope);
    Times {
        stream_idle,
        headers,
        request,
        drain: drain.unwrap_or(5 * SECOND),
        delayed_close: close.unwrap_or(SECOND),
    }
}

fn codec(value: i32, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Codec> {
    match CodecType::try_from(value) {
        Ok(CodecType::Auto) => Some(Codec::Auto),
        Ok(CodecType::Http1) => Some(Codec::Http1),
        Ok(CodecType::Http2) => Some(Codec::Http2),
        Ok(CodecType::Http3) | Err(_) => {
            scope.errors.report(at, "is not supported").fix("use AUTO, HTTP1 or HTTP2");
            None
        }
    }
}

struct PathRules {
    normalize: bool,
    merge_slashes: bool,
    escaped_slashes: EscapedSlashes,
}

/// Paths are normalised unless the file says `normalize_path: false`; then it is followed in all three.
fn path(pb: &HttpConnectionManager, at: &At<'_>, scope: &mut Scope<'_>) -> PathRules {
    let normalize = boolean(pb.normalize_path.as_ref(), true);
    let escaped_slashes = match PathWithEscapedSlashesAction::try_from(pb.path_with_escaped_slashes_action) {
        Ok(PathWithEscapedSlashesAction::ImplementationSpecificDefault) if normalize => {
            EscapedSlashes::Reject
        }
        Ok(
            PathWithEscapedSlashesAction::ImplementationSpecificDefault
            | PathWithEscapedSlashesAction::KeepUnchanged,
        ) => EscapedSlashes::Keep,
        Ok(PathWithEscapedSlashesAction::RejectRequest) => EscapedSlashes::Reject,
        Ok(PathWithEscapedSlashesAction::UnescapeAndRedirect) => EscapedSlashes::Redirect,
        Ok(PathWithEscapedSlashesAction::UnescapeAndForward) => EscapedSlashes::Unescape,
        Err(_) => {
            scope
                .errors
                .report(&at.field("path_with_escaped_slashes_action"), "is not a value of this field");
            EscapedSlashes::Reject
        }
    };
    PathRules { normalize, merge_slashes: normalize || pb.merge_slashes, escaped_slashes }
}

fn server_header(pb: &HttpConnectionManager, at: &At<'_>, scope: &mut Scope<'_>) -> ServerHeader {
    let name = header_value(&pb.server_name, &at.field("server_name"), scope);
    let name = name.unwrap_or(HeaderValue::from_static("remora"));
    match ServerHeaderTransformation::try_from(pb.server_header_transformation) {
        Ok(ServerHeaderTransformation::Overwrite) => ServerHeader::Overwrite(name),
        Ok(ServerHeaderTransformation::AppendIfAbsent) => ServerHeader::AppendIfAbsent(name),
        Ok(ServerHeaderTransformation::PassThrough) => ServerHeader::PassThrough,
        Err(_) => {
            scope.errors.report(&at.field("server_header_transformation"), "is not a value of this field");
            ServerHeader::PassThrough
        }
    }
}

fn header_value(text: &str, at: &At<'_>, scope: &mut Scope<'_>) -> Option<HeaderValue> {
    if text.is_empty() {
        return None;
    }
    match HeaderValue::from_str(text) {
        Ok(value) => Some(value),
        Err(_) => {
            scope.errors.report(at, "has characters that a header value cannot have");
            None
        }
    }
}

fn upgrades(list: &[UpgradeConfig], at: &At<'_>, scope: &mut Scope<'_>) -> Vec<Arc<str>> {
    let mut tokens: Vec<Arc<str>> = Vec::new();
    for (i, pb) in list.iter().enumerate() {
        let at = at.index(i);
        let UpgradeConfig { upgrade_type, filters, enabled } = pb;
        refuse!(scope, &at; filters);
        let token: Arc<str> = upgrade_type.to_ascii_lowercase().into();
        if token.is_empty() || tokens.contains(&token) {
            let message = if token.is_empty() { "is missing" } else { "is there twice" };
            scope.errors.report(&at.field("upgrade_type"), message);
        } else if boolean(enabled.as_ref(), true) {
            tokens.push(token);
        }
    }
    tokens
}

fn internal_addresses(pb: &HttpConnectionManager, at: &At<'_>, scope: &mut Scope<'_>) -> Vec<ipnet::IpNet> {
    let Some(InternalAddressConfig { unix_sockets, cidr_ranges }) = &pb.internal_address_config else {
        return Vec::new();
    };
    refuse!(scope, at; unix_sockets);
    let at = at.field("cidr_ranges");
    cidr_ranges.iter().enumerate().filter_map(|(i, range)| cidr(range, &at.index(i), scope)).collect()
}

fn client_cert(pb: &HttpConnectionManager, at: &At<'_>, scope: &mut Scope<'_>) -> ClientCertHeader {
    let mode = match ForwardClientCertDetails::try_from(pb.forward_client_cert_details) {
        Ok(ForwardClientCertDetails::Sanitize) => ClientCertMode::Sanitize,
        Ok(ForwardClientCertDetails::ForwardOnly) => ClientCertMode::Forward,
        Ok(ForwardClientCertDetails::AppendForward) => ClientCertMode::Append,
        Ok(ForwardClientCertDetails::SanitizeSet) => ClientCertMode::Set,
        Ok(ForwardClientCertDetails::AlwaysForwardOnly) => ClientCertMode::Always,
        Err(_) => {
            scope.errors.report(&at.field("forward_client_cert_details"), "is not a value of this field");
            ClientCertMode::Sanitize
        }
    };
    let mut header = ClientCertHeader { mode, ..ClientCertHeader::default() };
    if let Some(details) = &pb.set_current_client_cert_details {
        let SetCurrentClientCertDetails { subject, cert, chain, uri, dns, issuer, format } = details;
        refuse!(scope, &at.field("set_current_client_cert_details"); cert, chain, issuer, format);
        (header.subject, header.uri, header.dns) = (boolean(subject.as_ref(), false), *uri, *dns);
    }
    header
}

fn strip_port(pb: &HttpConnectionManager) -> StripPort {
    match pb.strip_port_mode {
        Some(StripPortMode::StripAnyHostPort(true)) => StripPort::Any,
        _ if pb.strip_matching_host_port => StripPort::Matching,
        _ => StripPort::Keep,
    }
}

fn routes(
    specifier: Option<&RouteSpecifier>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<(RouteSource, Option<RdsSpec>)> {
    match specifier {
        Some(RouteSpecifier::RouteConfig(pb)) => {
            let table = compile_route_table(pb, &at.field("route_config"), scope);
            Some((RouteSource::Inline(Arc::new(table)), None))
        }
        Some(RouteSpecifier::Rds(pb)) => {
            let rds = rds(pb, &at.field("rds"), scope)?;
            let id = scope.names.route_tables.intern(&rds.name);
            Some((RouteSource::Rds(id), Some(rds)))
        }
        Some(RouteSpecifier::ScopedRoutes(_)) => {
            unsupported(true, &at.field("scoped_routes"), scope);
            None
        }
        None => {
            scope.errors.report(at, "has no routes").fix("add route_config or rds");
            None
        }
    }
}

fn rds(pb: &Rds, at: &At<'_>, scope: &mut Scope<'_>) -> Option<RdsSpec> {
    let Rds { config_source, route_config_name } = pb;
    if route_config_name.is_empty() {
        scope.errors.report(&at.field("route_config_name"), "is missing");
        return None;
    }
    let at = at.field("config_source");
    let Some(source) = config_source else {
        scope.errors.report(&at, "is missing").fix("use ads: {} or path_config_source");
        return None;
    };
    let wait_at = at.field("initial_fetch_timeout");
    let wait = timeout(source.initial_fetch_timeout.as_ref(), Some(Duration::from_secs(15)), &wait_at, scope);
    let source = source_of(source, &at, scope)?;
    Some(RdsSpec { name: route_config_name.as_str().into(), source, initial_fetch_timeout: wait })
}

/// Where resources come from.
pub(in crate::config::compile) fn source_of(
    pb: &ConfigSourcePb,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<ConfigSource> {
    let ConfigSourcePb {
        authorities,
        initial_fetch_timeout: _, // `rds` keeps it
        resource_api_version,
        config_source_specifier,
    } = pb;
    refuse!(scope, at; authorities);
    if !matches!(ApiVersion::try_from(*resource_api_version), Ok(ApiVersion::Auto | ApiVersion::V3)) {
        scope.errors.report(&at.field("resource_api_version"), "is not supported").fix("use V3");
    }
    match config_source_specifier {
        Some(ConfigSourceSpecifier::Ads(_)) => Some(ConfigSource::Ads),
        Some(ConfigSourceSpecifier::PathConfigSource(source)) => {
            let at = at.field("path_config_source");
            let PathConfigSource { path, watched_directory, poll_interval } = source;
            refuse!(scope, &at; poll_interval);
            if path.is_empty() {
                scope.errors.report(&at.field("path"), "is missing");
                return None;
            }
            let watched = watched_directory.as_ref().map(|d| std::path::Path::new(&d.path).into());
            Some(ConfigSource::Path { path: std::path::Path::new(path).into(), watched })
        }
        _ => {
            scope
                .errors
                .report(at, "is not a source that is supported")
                .fix("use ads: {} or path_config_source");
            None
        }
    }
}
