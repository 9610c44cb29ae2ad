//! Time limits hold whoever it is that takes so long: the upstream, the client, or a filter.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::Duration;

use remora_tests::client::Io;
use remora_tests::client::http1::Http1Client;
use remora_tests::client::http2::{Outcome, get};
use remora_tests::config::{Listener, cluster, merge, to_cluster};
use remora_tests::proxy::Proxy;
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::{eventually_async, within};
use serde_json::{Value, json};
use tokio::time::Instant;

async fn proxy(upstream: &Http1Upstream, action: Value, listener: Listener) -> Proxy {
    let mut route = to_cluster("/", "origin");
    merge(&mut route, json!({ "route": action }));
    let origin = cluster("origin", &[upstream.address()]);
    Proxy::builder().listener(listener.route(route)).cluster(origin).start().await
}

fn for_half_a_second() -> [Value; 2] {
    [
        json!({ "timeout": "0.5s" }),
        json!({ "timeout": "0s", "max_stream_duration": { "max_stream_duration": "0.5s" } }),
    ]
}

/// A proxy in front of an answer that is larger than what sockets and windows hold, and what its requests end with.
async fn endless(limit: Value) -> (Proxy, Http1Upstream, String) {
    let upstream = Http1Upstream::answering(Answer::ok(&"x".repeat(16 << 20))).await;
    let reason = if limit["timeout"] == "0s" { "max_stream_duration" } else { "upstream_request_timeout" };
    let ended = format!("remora_local_replies_total{{reason=\"{reason}\",party=\"proxy\"}}");
    (proxy(&upstream, limit, Listener::http("ingress")).await, upstream, ended)
}

#[tokio::test]
async fn a_client_that_does_not_read_buys_no_time() {
    for limit in for_half_a_second() {
        let (proxy, _upstream, ended) = endless(limit).await;
        let io = Io::tcp(proxy.address("ingress")).await;
        // Otherwise the sockets would take megabytes.
        socket2::SockRef::from(io.socket()).set_recv_buffer_size(4096).unwrap();
        let mut client = Http1Client::over(io);
        let began = Instant::now();
        client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
        eventually_async("the time is up", async || proxy.count(&ended).await == 1).await;
        assert!(began.elapsed() >= Duration::from_millis(500));
    }
}

#[tokio::test]
async fn nor_does_one_that_opens_no_window() {
    for limit in for_half_a_second() {
        let (proxy, _upstream, ended) = endless(limit).await;
        let mut client = proxy.http2().await;
        client.hold_windows();
        let began = Instant::now();
        let stream = client.open(&get("/"), true).await;
        eventually_async("the time is up", async || proxy.count(&ended).await == 1).await;
        assert!(began.elapsed() >= Duration::from_millis(500));
        let outcome = client.outcome(stream).await;
        assert!(matches!(outcome, Outcome::Reset(..)), "{outcome:?}");
    }
}

/// The head of the answer comes at once. The time counts from the end of the request all the same.
#[tokio::test]
async fn a_request_that_ends_behind_its_answer_has_a_time_limit() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
    let upstream = Http1Upstream::answering(Answer::raw(head).early().read_body().hang()).await;
    let proxy = proxy(&upstream, json!({ "timeout": "0.5s" }), Listener::http("ingress")).await;
    let mut client = proxy.http1().await;
    client.send("POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n0\r\n").await;
    let (_, mut reader) = client.head("POST").await.unwrap();
    while reader.body.is_empty() {
        assert!(!client.body_more(&mut reader).await.unwrap());
    }
    // The time of a request that is not complete does not run.
    let early = tokio::time::timeout(Duration::from_secs(1), client.body_more(&mut reader)).await;
    assert!(early.is_err(), "{early:?}");
    let began = Instant::now();
    client.send("0\r\n\r\n").await;
    let end = within("the end of the answer", client.body_more(&mut reader)).await;
    assert!(end.is_err(), "{end:?}");
    assert!(began.elapsed() >= Duration::from_millis(490), "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_upgrade_lasts_no_longer_than_its_stream() {
    let tunnel = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let upstream = Http1Upstream::answering(Answer::raw(tunnel).echo()).await;
    // Long enough for the first words on a busy machine.
    let [timeout, stream] = [
        json!({ "timeout": "2s" }),
        json!({ "timeout": "0s", "max_stream_duration": { "max_stream_duration": "2s" } }),
    ];
    let listener = || Listener::http("ingress").upgrade("websocket");
    let (patient, short) =
        (proxy(&upstream, timeout, listener()).await, proxy(&upstream, stream, listener()).await);
    let began = Instant::now();
    let mut clients = [patient.http1().await, short.http1().await];
    for client in &mut clients {
        let head =
            "GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi";
        client.send(head).await;
        assert_eq!(client.any_head().await.unwrap().word(1), "101");
        assert_eq!(client.raw(2).await.unwrap(), b"hi");
    }
    let [patient, short] = &mut clients;
    assert!(short.is_closed().await);
    assert!(began.elapsed() >= Duration::from_secs(2));
    patient.send("still").await;
    assert_eq!(patient.raw(5).await.unwrap(), b"still", "the route's timeout is not for tunnels");
}

/// A filter reads the whole request, which trickles in.
#[tokio::test]
async fn what_a_filter_waits_for_counts_too() {
    let upstream = Http1Upstream::answering(Answer::ok("x")).await;
    let typed = |kind: &str| format!("type.googleapis.com/envoy.extensions.filters.http.{kind}");
    let filters = json!({ "http_filters": [
        { "name": "buffer", "typed_config": { "@type": typed("buffer.v3.Buffer"), "max_request_bytes": 1000 } },
        { "name": "router", "typed_config": { "@type": typed("router.v3.Router") } },
    ] });
    let [_, stream] = for_half_a_second();
    let proxy = proxy(&upstream, stream, Listener::http("ingress").manager(filters)).await;
    let mut client = proxy.http1().await;
    client.send("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 100\r\n\r\nx").await;
    let answer = client.response_to("POST").await.unwrap();
    assert_eq!((answer.status, answer.reason()), (504, Some("max_stream_duration")));
    assert!(upstream.requests().is_empty());
}
