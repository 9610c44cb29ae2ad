//! HTTP towards the endpoints: `typed_extension_protocol_options`, or the legacy fields of the cluster.

use remora_xds::diag::At;
use remora_xds::pb;

use super::common::{duration, header_name, is, percent, refuse, timeout, type_name, unpack};
use crate::config::compile::Scope;
use crate::config::spec::{Http1Spec, Http2Keepalive, Http2Spec};
use crate::upstream::cluster::{SniSpec, UpstreamHttp, UpstreamProtocol};
use pb::envoy::config::cluster::v3::Cluster;
use pb::envoy::config::cluster::v3::cluster::ClusterProtocolSelection;
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::core::v3::http1_protocol_options::header_key_format::HeaderFormat;
use pb::envoy::extensions::filters::http::upstream_codec::v3::UpstreamCodec;
use pb::envoy::extensions::filters::network::http_connection_manager::v3::{HttpFilter, http_filter};
use pb::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;
use pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    AutoHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
};

const TYPED: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Compiles the HTTP options of a cluster; `tls` says whether it has a transport socket that speaks ALPN.
pub(super) fn compile(pb: &Cluster, tls: bool, at: &At<'_>, scope: &mut Scope<'_>) -> UpstreamHttp {
    let mut http = UpstreamHttp::default();
    let map = at.field("typed_extension_protocol_options");
    let mut others: Vec<_> = pb.typed_extension_protocol_options.keys().filter(|k| *k != TYPED).collect();
    others.sort_unstable();
    for name in others {
        scope.errors.report(&map.field(name), "is not supported");
    }
    match pb.typed_extension_protocol_options.get(TYPED) {
        Some(any) => {
            let at = map.field(TYPED);
            refuse_legacy(pb, &map, scope);
            if !is::<HttpProtocolOptions>(any) {
                scope.errors.report(&at, format!("{} is not {TYPED}", type_name(any)));
            } else if let Some(options) = unpack::<HttpProtocolOptions>(any, &at, scope) {
                typed(&options, tls, &mut http, (&at, scope));
            }
        }
        None => legacy(pb, &mut http, at, scope),
    }
    http
}

/// Envoy ignores the legacy fields beside the typed ones; we say so.
#[expect(deprecated, reason = "Envoy still reads them")]
fn refuse_legacy(pb: &Cluster, typed: &At<'_>, scope: &mut Scope<'_>) {
    let legacy = [
        ("max_requests_per_connection", pb.max_requests_per_connection.is_some()),
        ("upstream_http_protocol_options", pb.upstream_http_protocol_options.is_some()),
        ("common_http_protocol_options", pb.common_http_protocol_options.is_some()),
        ("http_protocol_options", pb.http_protocol_options.is_some()),
        ("http2_protocol_options", pb.http2_protocol_options.is_some()),
        ("protocol_selection", pb.protocol_selection != 0),
    ];
    for (name, _) in legacy.into_iter().filter(|(_, given)| *given) {
        let message = format!("has no effect beside {TYPED}, which has {name} too");
        scope.errors.report(typed, message).fix(format!("move {name} there"));
    }
}

#[expect(deprecated, reason = "Envoy still reads them")]
fn legacy(pb: &Cluster, http: &mut UpstreamHttp, at: &At<'_>, scope: &mut Scope<'_>) {
    http.max_requests = pb.max_requests_per_connection.map(|n| n.value).filter(|n| *n > 0);
    if let Some(pb) = &pb.common_http_protocol_options {
        common(pb, http, &at.field("common_http_protocol_options"), scope);
    }
    if let Some(pb) = &pb.upstream_http_protocol_options {
        http.sni = sni(pb, &at.field("upstream_http_protocol_options"), scope);
    }
    if let Some(pb) = &pb.http_protocol_options {
        http.http1 = http1(pb, &at.field("http_protocol_options"), scope);
    }
    if let Some(pb) = &pb.http2_protocol_options {
        http.http2 = http2(pb, &at.field("http2_protocol_options"), scope);
    }
    let configured = pb.protocol_selection == ClusterProtocolSelection::UseConfiguredProtocol as i32;
    if configured && pb.http_protocol_options.is_some() && pb.http2_protocol_options.is_some() {
        let message = "cannot be used beside http_protocol_options unless protocol_selection is USE_DOWNSTREAM_PROTOCOL";
        scope.errors.report(&at.field("http2_protocol_options"), message);
    }
    http.protocol = match (configured, &pb.http2_protocol_options) {
        (false, _) => UpstreamProtocol::Downstream,
        (true, Some(_)) => UpstreamProtocol::Http2,
        (true, None) => UpstreamProtocol::Http1,
    };
}

fn typed(
    pb: &HttpProtocolOptions,
    tls: bool,
    http: &mut UpstreamHttp,
    (at, scope): (&At<'_>, &mut Scope<'_>),
) {
    let HttpProtocolOptions {
        common_http_protocol_options,
        upstream_http_protocol_options,
        http_filters,
        header_validation_config,
        outlier_detection,
        request_mirror_policies,
        hash_policy,
        retry_policy,
        upstream_protocol_options,
    } = pb;
    refuse!(
        scope,
        at,
        [header_validation_config, outlier_detection, request_mirror_policies, hash_policy, retry_policy]
    );
    let only_codec = matches!(http_filters.as_slice(), [filter] if is_codec(filter));
    if !http_filters.is_empty() && !only_codec {
        let message = "only envoy.filters.http.upstream_codec is supported upstream";
        scope.errors.report(&at.field("http_filters"), message);
    }
    if let Some(pb) = common_http_protocol_options {
        common(pb, http, &at.field("common_http_protocol_options"), scope);
    }
    if let Some(pb) = upstream_http_protocol_options {
        http.sni = sni(pb, &at.field("upstream_http_protocol_options"), scope);
    }
    match upstream_protocol_options {
        None => {
            let message = "explicit_http_config, use_downstream_protocol_config or auto_config is required";
            scope.errors.report(at, message);
        }
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
            explicit_config(
                explicit.protocol_config.as_ref(),
                http,
                &at.field("explicit_http_config"),
                scope,
            );
        }
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(pb)) => {
            let at = at.field("use_downstream_protocol_config");
            let UseDownstreamHttpConfig {
                http_protocol_options,
                http2_protocol_options,
                http3_protocol_options,
            } = pb;
            refuse!(scope, at, [http3_protocol_options]);
            both(http_protocol_options.as_ref(), http2_protocol_options.as_ref(), http, (&at, scope));
            http.protocol = UpstreamProtocol::Downstream;
        }
        Some(UpstreamProtocolOptions::AutoConfig(pb)) => {
            let at = at.field("auto_config");
            let AutoHttpConfig {
                http_protocol_options,
                http2_protocol_options,
                http3_protocol_options,
                alternate_protocols_cache_options,
            } = pb;
            refuse!(scope, at, [http3_protocol_options, alternate_protocols_cache_options]);
            if !tls {
                scope.errors.report(&at, "needs a transport_socket that speaks ALPN, such as TLS");
            }
            both(http_protocol_options.as_ref(), http2_protocol_options.as_ref(), http, (&at, scope));
            http.protocol = UpstreamProtocol::Auto;
        }
    }
}

fn is_codec(filter: &HttpFilter) -> bool {
    matches!(&filter.config_type, Some(http_filter::ConfigType::TypedConfig(any)) if is::<UpstreamCodec>(any))
}

fn explicit_config(pb: Option<&ProtocolConfig>, http: &mut UpstreamHttp, at: &At<'_>, scope: &mut Scope<'_>) {
    match pb {
        Some(ProtocolConfig::HttpProtocolOptions(pb)) => {
            http.http1 = http1(pb, &at.field("http_protocol_options"), scope);
            http.protocol = UpstreamProtocol::Http1;
        }
        Some(ProtocolConfig::Http2ProtocolOptions(pb)) => {
            http.http2 = http2(pb, &at.field("http2_protocol_options"), scope);
            http.protocol = UpstreamProtocol::Http2;
        }
        Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
            scope.errors.report(&at.field("http3_protocol_options"), "is not supported");
        }
        None => {
            scope.errors.report(at, "http_protocol_options or http2_protocol_options is required");
        }
    }
}

fn both(
    pb1: Option<&core::Http1ProtocolOptions>,
    pb2: Option<&core::Http2ProtocolOptions>,
    http: &mut UpstreamHttp,
    (at, scope): (&At<'_>, &mut Scope<'_>),
) {
    if let Some(pb) = pb1 {
        http.http1 = http1(pb, &at.field("http_protocol_options"), scope);
    }
    if let Some(pb) = pb2 {
        http.http2 = http2(pb, &at.field("http2_protocol_options"), scope);
    }
}

fn common(pb: &core::HttpProtocolOptions, http: &mut UpstreamHttp, at: &At<'_>, scope: &mut Scope<'_>) {
    let core::HttpProtocolOptions {
        idle_timeout,
        max_connection_duration,
        max_connection_duration_jitter,
        max_headers_count,
        max_response_headers_kb,
        max_stream_duration,
        headers_with_underscores_action,
        max_requests_per_connection,
    } = pb;
    // Envoy: "does not have any impact if added to cluster config".
    refuse!(scope, at, [headers_with_underscores_action]);
    http.idle_timeout = timeout(*idle_timeout, http.idle_timeout, &at.field("idle_timeout"), scope);
    http.max_connection_age =
        timeout(*max_connection_duration, None, &at.field("max_connection_duration"), scope);
    let jitter = at.field("max_connection_duration_jitter");
    http.max_connection_age_jitter = percent(*max_connection_duration_jitter, 0.0, &jitter, scope);
    http.max_stream_duration = timeout(*max_stream_duration, None, &at.field("max_stream_duration"), scope);
    if let Some(count) = max_headers_count {
        if count.value == 0 {
            scope.errors.report(&at.field("max_headers_count"), "must be at least 1");
        }
        http.max_header_count = count.value as usize;
    }
    if let Some(kb) = max_response_headers_kb {
        if !(1..=8192).contains(&kb.value) {
            scope.errors.report(&at.field("max_response_headers_kb"), "must be from 1 to 8192");
        }
        http.max_header_bytes = Some(kb.value as usize * 1024);
    }
    if let Some(max) = max_requests_per_connection {
        http.max_requests = Some(max.value).filter(|n| *n > 0);
    }
}

fn sni(pb: &core::UpstreamHttpProtocolOptions, at: &At<'_>, scope: &mut Scope<'_>) -> SniSpec {
    let core::UpstreamHttpProtocolOptions { auto_sni, auto_san_validation, override_auto_sni_header } = pb;
    let header = (!override_auto_sni_header.is_empty())
        .then(|| header_name(override_auto_sni_header, &at.field("override_auto_sni_header"), scope))
        .flatten();
    SniSpec { auto: *auto_sni, auto_san: *auto_san_validation, header }
}

fn http1(pb: &core::Http1ProtocolOptions, at: &At<'_>, scope: &mut Scope<'_>) -> Http1Spec {
    #[expect(deprecated, reason = "every field is named")]
    let core::Http1ProtocolOptions {
        // Of a server only, and the values that this client has anyway.
        allow_absolute_url: _,
        accept_http_10: _,
        default_host_for_http_10: _,
        header_key_format,
        // On in any case (see Http1Spec).
        enable_trailers: _,
        allow_chunked_length,
        override_stream_error_on_invalid_http_message,
        send_fully_qualified_url,
        use_balsa_parser: _,
        // Any token is a method here.
        allow_custom_methods: _,
        ignore_http_11_upgrade,
    } = pb;
    refuse!(
        scope,
        at,
        [
            allow_chunked_length,
            override_stream_error_on_invalid_http_message,
            send_fully_qualified_url,
            ignore_http_11_upgrade,
        ]
    );
    let mut spec = Http1Spec::default();
    match header_key_format.as_ref().and_then(|f| f.header_format.as_ref()) {
        None => {}
        Some(HeaderFormat::ProperCaseWords(_)) => spec.proper_case = true,
        Some(HeaderFormat::StatefulFormatter(config)) => {
            let preserve = config.typed_config.as_ref().filter(|any| is::<PreserveCaseFormatterConfig>(any));
            if preserve.is_none() {
                let at = at.field("header_key_format");
                scope.errors.report(&at.field("stateful_formatter"), "only preserve_case is supported");
            }
        }
    }
    spec
}

fn http2(pb: &core::Http2ProtocolOptions, at: &At<'_>, scope: &mut Scope<'_>) -> Http2Spec {
    #[expect(deprecated, reason = "refused by name")]
    let core::Http2ProtocolOptions {
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
        use_oghttp2_codec: _,
        max_metadata_size,
        enable_huffman_encoding,
        max_header_field_size_kb,
        disallow_obs_text,
        stream_reset_burst,
        stream_reset_rate,
    } = pb;
    refuse!(
        scope,
        at,
        [
            allow_metadata,
            max_outbound_frames,
            max_outbound_control_frames,
            max_consecutive_inbound_frames_with_empty_payload,
            max_inbound_priority_frames_per_stream,
            max_inbound_window_update_frames_per_data_frame_sent,
            stream_error_on_invalid_http_messaging,
            override_stream_error_on_invalid_http_message,
            custom_settings_parameters,
            max_metadata_size,
            enable_huffman_encoding,
            max_header_field_size_kb,
            disallow_obs_text,
            stream_reset_burst,
            stream_reset_rate,
        ]
    );
    let default = Http2Spec::default();
    let mut number =
        |pb: &Option<pb::google::protobuf::UInt32Value>, name: &str, range: (u32, u32), default| {
            let Some(pb) = pb else { return default };
            if !(range.0..=range.1).contains(&pb.value) {
                let message = format!("must be from {} to {}", range.0, range.1);
                scope.errors.report(&at.field(name), message);
            }
            pb.value
        };
    const MAX: u32 = 0x7fff_ffff;
    let window = (65_535, MAX);
    Http2Spec {
        max_streams: number(max_concurrent_streams, "max_concurrent_streams", (1, MAX), default.max_streams),
        stream_window: number(
            initial_stream_window_size,
            "initial_stream_window_size",
            window,
            default.stream_window,
        ),
        connection_window: number(
            initial_connection_window_size,
            "initial_connection_window_size",
            window,
            default.connection_window,
        ),
        hpack_table: number(hpack_table_size, "hpack_table_size", (0, u32::MAX), default.hpack_table),
        allow_connect: *allow_connect,
        keepalive: connection_keepalive
            .as_ref()
            .and_then(|pb| keepalive(pb, &at.field("connection_keepalive"), scope)),
    }
}

fn keepalive(pb: &core::KeepaliveSettings, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Http2Keepalive> {
    let core::KeepaliveSettings { interval, timeout, interval_jitter, connection_idle_interval } = pb;
    refuse!(scope, at, [interval_jitter, connection_idle_interval]);
    let Some(timeout) = timeout else {
        scope.errors.report(&at.field("timeout"), "is required");
        return None;
    };
    let timeout = duration(*timeout, &at.field("timeout"), scope)?;
    let interval = duration((*interval)?, &at.field("interval"), scope)?;
    (!interval.is_zero()).then_some(Http2Keepalive { interval, timeout })
}
