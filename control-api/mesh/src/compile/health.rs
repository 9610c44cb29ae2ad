//! `healthChecks` of a cluster. Every value is set, also where it is Envoy's default.

use std::time::Duration;

use remora_xds::pb::envoy::config::core::v3 as pb;
use remora_xds::pb::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck, payload,
};
use remora_xds::pb::envoy::r#type::v3::{CodecClientType, Int64Range};

use super::parts::{duration, flag, number, seconds};
use crate::document::{AppProtocol, HealthCheck, HttpCheck, ServicePort, Statuses, TcpCheck};
use crate::span::Span;

/// Time between checks, and between those of a cluster that has no requests.
const INTERVAL: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(60);
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Every wait is up to so much longer, percent: callers do not ask all at the same time.
const JITTER: u32 = 10;

/// The check of a port; `host` is the Service's name, and `direct` says that the programs themselves are called.
pub(super) fn checks(
    said: &[HealthCheck],
    port: &ServicePort,
    host: &str,
    direct: bool,
) -> Vec<pb::HealthCheck> {
    let Some((_, check)) = HealthCheck::of(said, port) else { return Vec::new() };
    let checker = match (&check.http, &check.grpc) {
        (Some(http), _) => {
            let http1 = direct && port.speaks() == AppProtocol::Http;
            HealthChecker::HttpHealthCheck(request(http, host, http1))
        }
        (None, Some(grpc)) => HealthChecker::GrpcHealthCheck(GrpcHealthCheck {
            service_name: grpc.service.clone(),
            authority: host.to_owned(),
            ..GrpcHealthCheck::default()
        }),
        (None, None) => HealthChecker::TcpHealthCheck(connection(&check.tcp.clone().unwrap_or_default())),
    };
    let time = |said: Option<Span>, usual| said.map_or(usual, |span| span.0);
    let pause = time(check.interval, INTERVAL);
    let interval = Some(duration(pause));
    vec![pb::HealthCheck {
        timeout: Some(duration(time(check.timeout, TIMEOUT))),
        interval,
        initial_jitter: seconds(1),
        interval_jitter_percent: JITTER,
        unhealthy_threshold: number(check.unhealthy_threshold.unwrap_or(3)),
        healthy_threshold: number(check.healthy_threshold.unwrap_or(2)),
        reuse_connection: flag(true),
        no_traffic_interval: Some(duration(pause.max(IDLE))),
        unhealthy_interval: interval,
        unhealthy_edge_interval: interval,
        healthy_edge_interval: interval,
        health_checker: Some(checker),
        ..pb::HealthCheck::default()
    }]
}

fn request(said: &HttpCheck, host: &str, http1: bool) -> HttpHealthCheck {
    let range = |Statuses(range): &Statuses| Int64Range {
        start: i64::from(*range.start()),
        end: i64::from(*range.end()) + 1,
    };
    let expected = said.expected_statuses.iter().map(range);
    HttpHealthCheck {
        host: said.host.clone().unwrap_or_else(|| host.to_owned()),
        path: said.path.clone(),
        expected_statuses: expected.collect(),
        codec_client_type: if http1 { CodecClientType::Http1 } else { CodecClientType::Http2 }.into(),
        ..HttpHealthCheck::default()
    }
}

fn connection(said: &TcpCheck) -> TcpHealthCheck {
    let payload = |text: &str| {
        let payload = payload::Payload::Binary(text.as_bytes().to_vec());
        (!text.is_empty()).then_some(Payload { payload: Some(payload) })
    };
    TcpHealthCheck {
        send: payload(&said.send),
        receive: payload(&said.receive).into_iter().collect(),
        ..TcpHealthCheck::default()
    }
}
