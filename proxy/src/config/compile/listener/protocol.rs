//! HTTP protocol options of a connection manager.

use std::time::Duration;

use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3::http_protocol_options::HeadersWithUnderscoresAction;
use remora_xds::pb::envoy::config::core::v3::http1_protocol_options::header_key_format::HeaderFormat;
use remora_xds::pb::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions, KeepaliveSettings,
};
use remora_xds::pb::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;

use crate::config::compile::Scope;
use crate::config::compile::common::duration;
use crate::config::compile::fields::{boolean, holds, number, refuse, timeout, unpack};
use crate::config::spec::{Http1Spec, Http2Keepalive, Http2Spec, Underscores};

/// `common_http_protocol_options`.
pub(super) struct Common {
    pub(super) idle_timeout: Option<Duration>,
    pub(super) max_connection_age: Option<Duration>,
    pub(super) max_header_count: usize,
    pub(super) max_stream_duration: Option<Duration>,
    pub(super) underscores: Underscores,
    pub(super) max_requests: Option<u32>,
}

pub(super) fn common(pb: Option<&HttpProtocolOptions>, at: &At<'_>, scope: &mut Scope<'_>) -> Common {
    let default = HttpProtocolOptions::default();
    let HttpProtocolOptions {
        idle_timeout,
        max_connection_duration,
        max_connection_duration_jitter,
        max_headers_count,
        max_response_headers_kb,
        max_stream_duration,
        headers_with_underscores_action,
        max_requests_per_connection,
    } = pb.unwrap_or(&default);
    refuse!(scope, at; max_connection_duration_jitter, max_response_headers_kb);
    let hour = Some(Duration::from_secs(3600));
    let mut time =
        |value: &Option<_>, default, field| timeout(value.as_ref(), default, &at.field(field), scope);
    let idle_timeout = time(idle_timeout, hour, "idle_timeout");
    let max_connection_age = time(max_connection_duration, None, "max_connection_duration");
    let max_stream_duration = time(max_stream_duration, None, "max_stream_duration");
    let underscores = match HeadersWithUnderscoresAction::try_from(*headers_with_underscores_action) {
        Ok(HeadersWithUnderscoresAction::RejectRequest) => Underscores::Reject,
        Ok(HeadersWithUnderscoresAction::DropHeader) => Underscores::Drop,
        Ok(HeadersWithUnderscoresAction::Allow) => Underscores::Allow,
        Err(_) => {
            scope.errors.report(&at.field("headers_with_underscores_action"), "is not a value of this field");
            Underscores::Reject
        }
    };
    let count = number(max_headers_count.as_ref(), 1..=u32::MAX, &at.field("max_headers_count"), scope);
    Common {
        idle_timeout,
        max_connection_age,
        max_header_count: count.unwrap_or(100) as usize,
        max_stream_duration,
        underscores,
        max_requests: max_requests_per_connection.as_ref().map(|n| n.value).filter(|n| *n > 0),
    }
}

pub(super) fn http1(pb: Option<&Http1ProtocolOptions>, at: &At<'_>, scope: &mut Scope<'_>) -> Http1Spec {
    let Some(pb) = pb else { return Http1Spec::default() };
    #[expect(deprecated, reason = "use_balsa_parser is refused with the rest")]
    let Http1ProtocolOptions {
        allow_absolute_url,
        // HTTP/1.0 and trailers are on here; protobuf cannot tell false from absent.
        accept_http_10: _,
        default_host_for_http_10,
        header_key_format,
        enable_trailers: _,
        allow_chunked_length,
        override_stream_error_on_invalid_http_message,
        send_fully_qualified_url,
        use_balsa_parser,
        // Any method that is a token is forwarded (RFC 9110 §9.1).
        allow_custom_methods: _,
        ignore_http_11_upgrade,
    } = pb;
    refuse!(
        scope, at;
        allow_chunked_length,
        override_stream_error_on_invalid_http_message,
        send_fully_qualified_url,
        use_balsa_parser,
        ignore_http_11_upgrade,
    );
    if !boolean(allow_absolute_url.as_ref(), true) {
        let error = scope.errors.report(&at.field("allow_absolute_url"), "false is not supported");
        error.fix("remove it: servers must accept absolute URIs (RFC 9112 §3.2.2)");
    }
    let mut spec = Http1Spec::default();
    if !default_host_for_http_10.is_empty() {
        spec.default_host = Some(default_host_for_http_10.as_str().into());
    }
    let format_at = at.field("header_key_format");
    match header_key_format.as_ref().and_then(|f| f.header_format.as_ref()) {
        None => {}
        Some(HeaderFormat::ProperCaseWords(_)) => (spec.proper_case, spec.preserve_case) = (true, false),
        Some(HeaderFormat::StatefulFormatter(extension)) => {
            let at = format_at.field("stateful_formatter");
            let at = at.field("typed_config");
            match extension.typed_config.as_ref().filter(|any| holds::<PreserveCaseFormatterConfig>(any)) {
                Some(any) => preserve_case(unpack(any, &at, scope).as_ref(), &at, scope),
                None => {
                    let error = scope.errors.report(&at, "this formatter is not supported");
                    error.fix("use PreserveCaseFormatterConfig");
                }
            }
        }
    }
    spec
}

fn preserve_case(pb: Option<&PreserveCaseFormatterConfig>, at: &At<'_>, scope: &mut Scope<'_>) {
    let Some(PreserveCaseFormatterConfig { forward_reason_phrase: _, formatter_type_on_envoy_headers }) = pb
    else {
        return;
    };
    // Reason phrases are always forwarded.
    refuse!(scope, at; formatter_type_on_envoy_headers);
}

pub(super) fn http2(pb: Option<&Http2ProtocolOptions>, at: &At<'_>, scope: &mut Scope<'_>) -> Http2Spec {
    let Some(pb) = pb else { return Http2Spec::default() };
    #[expect(deprecated, reason = "deprecated fields are refused with the rest")]
    let Http2ProtocolOptions {
        hpack_table_size,
        max_concurrent_streams,
        initial_stream_window_size,
        initial_connection_window_size,
        allow_connect,
        allow_metadata,
        max_outbound_frames,
        max_outbound_control_frames,
        max_consecutive_inbound_frames_with_empty_payload,
        max_inbound_priority_frames_per_stream,
        max_inbound_window_update_frames_per_data_frame_sent,
        stream_error_on_invalid_http_messaging,
        override_stream_error_on_invalid_http_message,
        custom_settings_parameters,
        connection_keepalive,
        use_oghttp2_codec,
        max_metadata_size,
        enable_huffman_encoding,
        max_header_field_size_kb,
        disallow_obs_text,
        stream_reset_burst,
        stream_reset_rate,
    } = pb;
    refuse!(
        scope, at;
        allow_metadata,
        max_outbound_frames,
        max_outbound_control_frames,
        max_consecutive_inbound_frames_with_empty_payload,
        max_inbound_priority_frames_per_stream,
        max_inbound_window_update_frames_per_data_frame_sent,
        stream_error_on_invalid_http_messaging,
        override_stream_error_on_invalid_http_message,
        custom_settings_parameters,
        use_oghttp2_codec,
        max_metadata_size,
        enable_huffman_encoding,
        max_header_field_size_kb,
        disallow_obs_text,
        stream_reset_burst,
        stream_reset_rate,
    );
    const MAX: u32 = i32::MAX.unsigned_abs();
    let default = Http2Spec::default();
    let mut within = |value: &Option<_>, range, field| number(value.as_ref(), range, &at.field(field), scope);
    let streams = within(max_concurrent_streams, 1..=MAX, "max_concurrent_streams");
    let window = within(initial_stream_window_size, 65535..=MAX, "initial_stream_window_size");
    let all = within(initial_connection_window_size, 65535..=MAX, "initial_connection_window_size");
    // RFC 7541 sets no limit; 64 KiB bounds the memory of a connection.
    let table = within(hpack_table_size, 0..=65536, "hpack_table_size");
    Http2Spec {
        max_streams: streams.unwrap_or(default.max_streams),
        stream_window: window.unwrap_or(default.stream_window),
        connection_window: all.unwrap_or(default.connection_window),
        hpack_table: table.unwrap_or(default.hpack_table),
        allow_connect: *allow_connect,
        keepalive: connection_keepalive
            .as_ref()
            .and_then(|pb| keepalive(pb, &at.field("connection_keepalive"), scope)),
    }
}

fn keepalive(pb: &KeepaliveSettings, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Http2Keepalive> {
    let KeepaliveSettings { interval, timeout, interval_jitter, connection_idle_interval } = pb;
    refuse!(scope, at; interval_jitter, connection_idle_interval);
    let mut needed = |value: Option<&_>, field| {
        let at = at.field(field);
        let found = duration(value, &at, scope);
        if found.is_none_or(|d| d < Duration::from_millis(1)) {
            scope.errors.report(&at, "must be 1ms or more");
            return None;
        }
        found
    };
    let interval = needed(interval.as_ref(), "interval");
    let timeout = needed(timeout.as_ref(), "timeout");
    Some(Http2Keepalive { interval: interval?, timeout: timeout? })
}
