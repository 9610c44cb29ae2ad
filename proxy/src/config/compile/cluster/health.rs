//! `health_checks`.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use prost::Message as _;
use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3 as pb;
use remora_xds::pb::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck, payload,
};
use remora_xds::pb::envoy::r#type::v3::{CodecClientType, Int64Range};
use remora_xds::pb::google::protobuf;

use super::common::{duration, header_name, positive, refuse};
use crate::config::compile::Scope;
use crate::config::compile::common::string_match;
use crate::resilience::health::Schedule;
use crate::upstream::cluster::Discovery;
use crate::upstream::health::HealthCheckSpec;
use crate::upstream::health::probe::{GrpcProbe, HttpProbe, MAX_BODY, ProbeSpec, TcpProbe};

/// Compiles `health_checks`, of which there may be one.
pub(super) fn compile(
    list: &[pb::HealthCheck],
    discovery: Option<&Discovery>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Arc<HealthCheckSpec>> {
    if matches!(discovery, Some(Discovery::OriginalDst(_))) && !list.is_empty() {
        scope.errors.report(at, "are not supported in a cluster of type ORIGINAL_DST");
    }
    if list.len() > 1 {
        scope.errors.report(&at.index(1), "only one health check is supported");
    }
    let pb = list.first()?;
    let at = at.index(0);
    #[expect(deprecated, reason = "refused by name")]
    let pb::HealthCheck {
        timeout: _,
        interval: _,
        initial_jitter: _,
        interval_jitter: _,
        interval_jitter_percent: _,
        unhealthy_threshold: _,
        healthy_threshold: _,
        alt_port,
        reuse_connection,
        no_traffic_interval: _,
        no_traffic_healthy_interval: _,
        unhealthy_interval: _,
        unhealthy_edge_interval: _,
        healthy_edge_interval: _,
        event_log_path,
        event_logger,
        event_service,
        always_log_health_check_failures,
        always_log_health_check_success,
        tls_options,
        transport_socket_match_criteria,
        health_checker,
    } = pb;
    refuse!(
        scope,
        at,
        [event_log_path, event_logger, event_service, tls_options, transport_socket_match_criteria]
    );
    let schedule = schedule(pb, &at, scope);
    let probe = match health_checker {
        Some(HealthChecker::HttpHealthCheck(http)) => http_probe(http, &at.field("http_health_check"), scope),
        Some(HealthChecker::GrpcHealthCheck(grpc)) => grpc_probe(grpc, &at.field("grpc_health_check"), scope),
        Some(HealthChecker::TcpHealthCheck(tcp)) => tcp_probe(tcp, &at.field("tcp_health_check"), scope),
        Some(HealthChecker::CustomHealthCheck(_)) => {
            scope.errors.report(&at.field("custom_health_check"), "is not supported");
            None
        }
        None => {
            scope.errors.report(&at, "needs http_health_check, grpc_health_check or tcp_health_check");
            None
        }
    };
    let port = alt_port.and_then(|port| self::port(port.value, &at.field("alt_port"), scope));
    Some(Arc::new(HealthCheckSpec {
        schedule: schedule?,
        probe: probe?,
        port,
        reuse: reuse_connection.is_none_or(|b| b.value),
        log_failures: *always_log_health_check_failures,
        log_successes: *always_log_health_check_success,
        fingerprint: fingerprint(pb),
    }))
}

/// Two of the same settings are the same check.
fn fingerprint(pb: &pb::HealthCheck) -> u64 {
    let mut hasher = DefaultHasher::new();
    pb.encode_to_vec().hash(&mut hasher);
    hasher.finish()
}

/// A port that is not 0.
pub(super) fn port(value: u32, at: &At<'_>, scope: &mut Scope<'_>) -> Option<u16> {
    let port = u16::try_from(value).ok().filter(|port| *port != 0);
    if port.is_none() {
        scope.errors.report(at, "must be from 1 to 65535");
    }
    port
}

fn schedule(pb: &pb::HealthCheck, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Schedule> {
    let mut required = |value: Option<protobuf::Duration>, name| {
        let at = at.field(name);
        if value.is_none() {
            scope.errors.report(&at, "is required");
        }
        positive(value, &at, scope)
    };
    let (timeout, interval) = (required(pb.timeout, "timeout"), required(pb.interval, "interval"));
    let mut threshold = |value: Option<protobuf::UInt32Value>, name| {
        if value.is_none() {
            scope.errors.report(&at.field(name), "is required");
        }
        value.map_or(1, |n| n.value).max(1)
    };
    let unhealthy_threshold = threshold(pb.unhealthy_threshold, "unhealthy_threshold");
    let healthy_threshold = threshold(pb.healthy_threshold, "healthy_threshold");
    let interval = interval?;
    let mut or = |value, name, default| positive(value, &at.field(name), scope).unwrap_or(default);
    let unhealthy_interval = or(pb.unhealthy_interval, "unhealthy_interval", interval);
    let no_traffic_interval = or(pb.no_traffic_interval, "no_traffic_interval", Duration::from_secs(60));
    let unhealthy_edge_interval =
        or(pb.unhealthy_edge_interval, "unhealthy_edge_interval", unhealthy_interval);
    let healthy_edge_interval = or(pb.healthy_edge_interval, "healthy_edge_interval", interval);
    let no_traffic_healthy_interval =
        or(pb.no_traffic_healthy_interval, "no_traffic_healthy_interval", no_traffic_interval);
    let mut jitter = |value: Option<_>, name| {
        value.and_then(|value| duration(value, &at.field(name), scope)).unwrap_or_default()
    };
    Some(Schedule {
        timeout: timeout?,
        interval,
        unhealthy_interval,
        unhealthy_edge_interval,
        healthy_edge_interval,
        no_traffic_interval,
        no_traffic_healthy_interval,
        initial_jitter: jitter(pb.initial_jitter, "initial_jitter"),
        interval_jitter: jitter(pb.interval_jitter, "interval_jitter"),
        interval_jitter_percent: pb.interval_jitter_percent,
        unhealthy_threshold,
        healthy_threshold,
    })
}

fn http_probe(pb: &HttpHealthCheck, at: &At<'_>, scope: &mut Scope<'_>) -> Option<ProbeSpec> {
    let HttpHealthCheck {
        host,
        path,
        send,
        receive,
        response_buffer_size,
        request_headers_to_add,
        request_headers_to_remove,
        expected_statuses,
        retriable_statuses,
        codec_client_type,
        service_name_matcher,
        method,
    } = pb;
    let path_at = at.field("path");
    let parsed = path.parse().ok().filter(|_| path.starts_with('/'));
    if parsed.is_none() {
        scope.errors.report(&path_at, "must be a path that begins with a slash");
    }
    let http2 = match CodecClientType::try_from(*codec_client_type) {
        Ok(CodecClientType::Http1) => false,
        Ok(CodecClientType::Http2) => true,
        _ => {
            scope.errors.report(&at.field("codec_client_type"), "must be HTTP1 or HTTP2");
            false
        }
    };
    let method = self::method(*method, &at.field("method"), scope);
    let without = at.field("request_headers_to_remove");
    let removed = request_headers_to_remove.iter().enumerate();
    let without: Vec<HeaderName> =
        removed.filter_map(|(i, name)| header_name(name, &without.index(i), scope)).collect();
    let service = service_name_matcher.as_ref();
    let probe = HttpProbe {
        host: authority(host, &at.field("host"), scope),
        path: parsed?,
        method: method?,
        http2,
        headers: headers(request_headers_to_add, &at.field("request_headers_to_add"), scope),
        without,
        body: send.as_ref().and_then(|p| bytes_of(p, &at.field("send"), scope)).unwrap_or_default(),
        receive: payloads(receive, &at.field("receive"), scope),
        buffer: response_buffer_size
            .map_or(1024, |n| usize::try_from(n.value).unwrap_or(usize::MAX))
            .min(MAX_BODY),
        expected: statuses(expected_statuses, &at.field("expected_statuses"), scope),
        retriable: statuses(retriable_statuses, &at.field("retriable_statuses"), scope),
        service: service.and_then(|m| string_match(m, &at.field("service_name_matcher"), scope)),
    };
    Some(ProbeSpec::Http(Box::new(probe)))
}

fn grpc_probe(pb: &GrpcHealthCheck, at: &At<'_>, scope: &mut Scope<'_>) -> Option<ProbeSpec> {
    let GrpcHealthCheck { service_name, authority: name, initial_metadata } = pb;
    Some(ProbeSpec::Grpc(GrpcProbe {
        service: service_name.clone(),
        authority: authority(name, &at.field("authority"), scope),
        metadata: headers(initial_metadata, &at.field("initial_metadata"), scope),
    }))
}

fn tcp_probe(pb: &TcpHealthCheck, at: &At<'_>, scope: &mut Scope<'_>) -> Option<ProbeSpec> {
    let TcpHealthCheck { send, receive, proxy_protocol_config } = pb;
    refuse!(scope, at, [proxy_protocol_config]);
    Some(ProbeSpec::Tcp(TcpProbe {
        send: send.as_ref().and_then(|p| bytes_of(p, &at.field("send"), scope)).unwrap_or_default(),
        receive: payloads(receive, &at.field("receive"), scope),
    }))
}

fn method(value: i32, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Method> {
    use pb::RequestMethod as M;
    match M::try_from(value) {
        Ok(M::MethodUnspecified | M::Get) => Some(Method::GET),
        Ok(M::Head) => Some(Method::HEAD),
        Ok(M::Post) => Some(Method::POST),
        Ok(M::Put) => Some(Method::PUT),
        Ok(M::Delete) => Some(Method::DELETE),
        Ok(M::Options) => Some(Method::OPTIONS),
        Ok(M::Patch) => Some(Method::PATCH),
        Ok(M::Connect | M::Trace) | Err(_) => {
            scope.errors.report(at, "is not a method that a check can have");
            None
        }
    }
}

/// A name that goes into Host or `:authority`; None when it is empty.
fn authority(text: &str, at: &At<'_>, scope: &mut Scope<'_>) -> Option<HeaderValue> {
    if text.is_empty() {
        return None;
    }
    let value = text.parse::<http::uri::Authority>().ok().and_then(|_| HeaderValue::from_str(text).ok());
    if value.is_none() {
        scope.errors.report(at, format!("{text:?} is not a host"));
    }
    value
}

fn headers(list: &[pb::HeaderValueOption], at: &At<'_>, scope: &mut Scope<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (i, option) in list.iter().enumerate() {
        let at = at.index(i);
        let at = at.field("header");
        let Some(pb::HeaderValue { key, value, raw_value }) = &option.header else {
            scope.errors.report(&at, "is required");
            continue;
        };
        let bytes = if raw_value.is_empty() { value.as_bytes() } else { raw_value };
        if bytes.contains(&b'%') {
            scope.errors.report(&at.field("value"), "operators (%) are not supported here");
        }
        let value = HeaderValue::from_bytes(bytes).ok();
        if value.is_none() {
            scope.errors.report(&at.field("value"), "is not a header value");
        }
        if let Some((name, value)) = header_name(key, &at.field("key"), scope).zip(value) {
            headers.append(name, value);
        }
    }
    headers
}

fn payloads(list: &[Payload], at: &At<'_>, scope: &mut Scope<'_>) -> Vec<Bytes> {
    list.iter().enumerate().filter_map(|(i, payload)| bytes_of(payload, &at.index(i), scope)).collect()
}

/// Text is hexadecimal, as in Envoy.
fn bytes_of(pb: &Payload, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Bytes> {
    let bytes = match &pb.payload {
        Some(payload::Payload::Binary(bytes)) => Some(Bytes::copy_from_slice(bytes)),
        Some(payload::Payload::Text(text)) => hex(text),
        None => None,
    };
    let bytes = bytes.filter(|bytes| !bytes.is_empty());
    if bytes.is_none() {
        scope.errors.report(at, "must be text of hexadecimal digits, or binary, and not empty");
    }
    bytes
}

fn hex(text: &str) -> Option<Bytes> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Half-open ranges.
fn statuses(list: &[Int64Range], at: &At<'_>, scope: &mut Scope<'_>) -> Vec<Range<u16>> {
    let mut ranges = Vec::with_capacity(list.len());
    for (i, range) in list.iter().enumerate() {
        let bounds = (u16::try_from(range.start), u16::try_from(range.end));
        match bounds {
            (Ok(start @ 100..), Ok(end @ ..=600)) if start < end => ranges.push(start..end),
            _ => {
                scope.errors.report(&at.index(i), "must be a range within 100 to 600, start below end");
            }
        }
    }
    ranges
}
