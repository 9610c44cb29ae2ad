//! gRPC: its trailers, its errors, its timeout.

use std::time::Duration;

use remora_tests::client::http2::request;
use remora_tests::config::{cluster, cluster_http2, direct, to_cluster};
use remora_tests::frame::Frame;
use remora_tests::proxy::Proxy;
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http2::{Answer, Http2Upstream};

fn grpc(path: &str) -> Vec<(&'static str, &str)> {
    let mut fields = request("POST", path).to_vec();
    fields.extend([("content-type", "application/grpc"), ("te", "trailers")]);
    fields
}

#[tokio::test]
async fn grpc_trailers_pass() {
    let answer = Answer::status(200)
        .field("content-type", "application/grpc")
        .data(b"\0\0\0\0\x02hi")
        .trailers(&[("grpc-status", "5"), ("grpc-message", "not%20here")]);
    let upstream = Http2Upstream::answering(answer).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    let stream = client.open(&grpc("/svc/method"), false).await;
    client.send(Frame::data(stream, b"\0\0\0\0\0", true)).await;
    let answer = client.outcome(stream).await.answer();
    assert_eq!(answer.trailers.get("grpc-status"), Some("5"));
    assert_eq!(answer.trailers.get("grpc-message"), Some("not%20here"));
    assert_eq!(upstream.request(0).await.field("te"), Some("trailers"));
}

#[tokio::test]
async fn grpc_trailers_only_stay_trailers_only() {
    let answer = Answer::status(200).field("content-type", "application/grpc").field("grpc-status", "7");
    let upstream = Http2Upstream::answering(answer).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    let stream = client.open(&grpc("/svc/method"), true).await;
    let answer = client.outcome(stream).await.answer();
    assert_eq!(answer.fields.get("grpc-status"), Some("7"));
    assert!(answer.head_only);
}

#[tokio::test]
async fn grpc_streams_in_both_directions_at_once() {
    let upstream =
        Http2Upstream::answering(Answer::status(200).field("content-type", "application/grpc").echo()).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    let stream = client.open(&grpc("/svc/chat"), false).await;
    for n in 1..=20 {
        client.send(Frame::data(stream, b"\0\0\0\0\x02hi", false)).await;
        client.until(stream, "echo", |s| s.body.len() == n * 7).await;
    }
    client.send(Frame::data(stream, b"", true)).await;
    assert_eq!(client.outcome(stream).await.answer().body.len(), 140);
}

/// Errors of the proxy itself, as gRPC: 200, trailers-only, `grpc-status`.
async fn proxy_made_grpc_error(proxy: &Proxy, path: &str, status: &str, reason: &str) {
    let mut client = proxy.http2().await;
    let stream = client.open(&grpc(path), true).await;
    let answer = client.outcome(stream).await.answer();
    assert_eq!((answer.status, answer.fields.get("grpc-status")), (200, Some(status)), "{answer:?}");
    assert_eq!(answer.fields.get("content-type"), Some("application/grpc"));
    assert!(answer.head_only, "trailers-only: {answer:?}");
    assert!(answer.fields.has("grpc-message"));
    if proxy.is_remora() && !reason.is_empty() {
        assert_eq!(answer.reason(), Some(reason));
    }
}

#[tokio::test]
async fn errors_of_the_proxy_are_grpc_to_grpc_clients() {
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let listener = remora_tests::config::Listener::http("ingress")
        .route(direct("/denied", 403, "no"))
        .route(to_cluster("/svc", "origin"))
        .route(to_cluster("/empty", "empty"));
    let proxy = Proxy::builder()
        .listener(listener)
        .cluster(cluster_http2("origin", &[nobody]))
        .cluster(cluster("empty", &[]))
        .start()
        .await;
    proxy_made_grpc_error(&proxy, "/svc/method", "14", "upstream_connect_failure").await;
    proxy_made_grpc_error(&proxy, "/empty", "14", "no_healthy_upstream").await;
    proxy_made_grpc_error(&proxy, "/nowhere", "12", "no_route").await;
    proxy_made_grpc_error(&proxy, "/denied", "7", "").await;
}

#[tokio::test]
async fn an_upstreams_http_error_is_not_rewritten_for_grpc() {
    let upstream = Http2Upstream::answering(Answer::status(502).data("from the origin")).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    let stream = client.open(&grpc("/svc/method"), true).await;
    assert_eq!(client.outcome(stream).await.answer().status, 502);
}

#[tokio::test]
async fn grpc_timeout_is_honoured() {
    let upstream = Http2Upstream::answering(Answer::silence()).await;
    let mut route = to_cluster("/", "origin");
    route["route"] = serde_json::json!({ "cluster": "origin", "max_stream_duration": { "grpc_timeout_header_max": "0s" } });
    let listener = remora_tests::config::Listener::http("ingress").route(route);
    let proxy = Proxy::builder()
        .listener(listener)
        .cluster(cluster_http2("origin", &[upstream.address()]))
        .start()
        .await;
    let mut client = proxy.http2().await;
    let mut fields = grpc("/svc/method");
    fields.push(("grpc-timeout", "200m"));
    let start = tokio::time::Instant::now();
    let stream = client.open(&fields, true).await;
    let answer = client.outcome(stream).await.answer();
    assert_eq!((answer.status, answer.fields.get("grpc-status")), (200, Some("4")), "{answer:?}");
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(190) && took < Duration::from_secs(2), "{took:?}");
}
