//! Retries and deadlines against upstreams that misbehave: what is repeated, how often, and what is not done for nobody.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::Arc;
use std::time::Duration;

use remora_tests::client::http1::Http1Client;
use remora_tests::config::{Listener, cluster, cluster_http2, merge, to_cluster};
use remora_tests::proxy::Proxy;
use remora_tests::upstream::Upstream;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::upstream::http2::{self, Http2Upstream};
use remora_tests::wait::within;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A route to `origin` with a retry policy: three tries, and hardly a pause between them.
fn retrying(policy: Value) -> Value {
    let mut route = to_cluster("/", "origin");
    let pause = json!({ "base_interval": "0.001s", "max_interval": "0.002s" });
    merge(&mut route, json!({ "route": { "retry_policy": { "num_retries": 2, "retry_back_off": pause } } }));
    merge(&mut route, json!({ "route": { "retry_policy": policy } }));
    route
}

async fn proxy(upstream: &impl Upstream, route: Value) -> Proxy {
    let listener = Listener::http("ingress").route(route);
    Proxy::builder().listener(listener).upstream("origin", upstream).start().await
}

fn unavailable() -> Answer {
    Answer::status(503, "Service Unavailable", "no")
}

async fn grpc(proxy: &Proxy) -> remora_tests::client::http2::Outcome {
    let mut client = proxy.http2().await;
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/pkg.Service/Method"),
        (":authority", "a.example"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let stream = client.open(&fields, true).await;
    client.outcome(stream).await
}

const GRPC: (&str, &str) = ("content-type", "application/grpc");

#[tokio::test]
async fn a_grpc_status_behind_an_empty_body_is_retried() {
    let status = |code| http2::Answer::status(200).field(GRPC.0, GRPC.1).trailers(&[("grpc-status", code)]);
    let upstream = Http2Upstream::scripted(move |_, n| status(if n < 2 { "14" } else { "0" })).await;
    let proxy = proxy(&upstream, retrying(json!({ "retry_on": "unavailable" }))).await;
    let answer = grpc(&proxy).await.answer();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.trailers.get("grpc-status"), Some("0"));
    assert!(!answer.fields.has("x-remora-retries-exhausted"));
    assert_eq!(upstream.count(), 3);
}

#[tokio::test]
async fn a_grpc_message_is_not_held_back_and_its_status_changes_nothing() {
    let go = Arc::new(Notify::new());
    let permit = Arc::clone(&go);
    let answer = http2::Answer::status(200).field(GRPC.0, GRPC.1).data([0, 0, 0, 0, 0]).until(&permit);
    let upstream = Http2Upstream::answering(answer.trailers(&[("grpc-status", "14")])).await;
    let proxy = proxy(&upstream, retrying(json!({ "retry_on": "unavailable" }))).await;
    let mut client = proxy.http2().await;
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/pkg.Service/Method"),
        (":authority", "a.example"),
        ("content-type", "application/grpc"),
    ];
    let stream = client.open(&fields, true).await;
    client.until(stream, "the message, before the status", |stream| !stream.body.is_empty()).await;
    go.notify_one();
    let answer = client.outcome(stream).await.answer();
    assert_eq!((answer.body.len(), answer.trailers.get("grpc-status")), (5, Some("14")));
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn a_pause_that_is_longer_than_the_time_that_is_left_is_not_waited_for() {
    let upstream = Http1Upstream::answering(Answer::raw(
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 30\r\nContent-Length: 2\r\n\r\nno",
    ))
    .await;
    let mut route = retrying(json!({ "retry_on": "5xx" }));
    merge(&mut route, json!({ "route": { "timeout": "20s" } }));
    let proxy = proxy(&upstream, route).await;
    let start = Instant::now();
    let answer = proxy.http1().await.get("/").await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (503, "no"));
    assert!(start.elapsed() < Duration::from_secs(10), "it was waited for");
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn one_layer_retries_and_clients_outside_do_not_learn_it() {
    let upstream = Http1Upstream::answering(unavailable()).await;
    let inner = proxy(&upstream, retrying(json!({ "retry_on": "5xx" }))).await;
    let listener = |name: &str| Listener::http(name).route(retrying(json!({ "retry_on": "5xx" })));
    let outer = Proxy::builder()
        .listener(listener("ingress"))
        .listener(listener("edge").manager(json!({ "use_remote_address": true })))
        .cluster(cluster("origin", &[inner.address("ingress")]))
        .start()
        .await;
    let answer = outer.http1().await.get("/").await.unwrap();
    assert_eq!((answer.status, answer.fields.get("x-remora-retries-exhausted")), (503, Some("1")));
    assert_eq!(upstream.requests().len(), 3, "not nine");
    let answer = Http1Client::connect(outer.address("edge")).await.get("/").await.unwrap();
    assert_eq!((answer.status, answer.fields.get("x-remora-retries-exhausted")), (503, None));
    assert_eq!(upstream.requests().len(), 6);
}

/// What the budget of one layer denies, the layer above would retry: three shares of a fifth are three quarters.
#[tokio::test]
async fn what_a_budget_denies_is_not_retried_above() {
    let upstream = Http1Upstream::answering(unavailable()).await;
    let mut origin = cluster("origin", &[upstream.address()]);
    merge(&mut origin, remora_tests::config::budget(20, 0));
    let route = || retrying(json!({ "retry_on": "5xx" }));
    let inner =
        Proxy::builder().listener(Listener::http("ingress").route(route())).cluster(origin).start().await;
    let outer = Proxy::builder()
        .listener(Listener::http("ingress").route(route()))
        .cluster(cluster("origin", &[inner.address("ingress")]))
        .start()
        .await;
    let answer = outer.http1().await.get("/").await.unwrap();
    assert_eq!((answer.status, answer.fields.get("x-remora-retries-exhausted")), (503, Some("1")));
    assert_eq!(upstream.requests().len(), 1, "one request in flight has a share of nothing");
}

#[tokio::test]
async fn nothing_is_retried_for_a_client_that_has_gone() {
    let upstream = Http1Upstream::answering(Answer::raw(
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 2\r\n\r\nno",
    ))
    .await;
    let proxy = proxy(&upstream, retrying(json!({ "retry_on": "5xx" }))).await;
    let mut client = proxy.http1().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    upstream.request(0).await;
    client.reset();
    // Long before its pause is over the request is at its end.
    proxy.counts("remora_downstream_connections{listener=\"ingress\"}", 0).await;
    assert_eq!(proxy.http1().await.get("/other").await.unwrap().status, 503);
    let begun = upstream.requests();
    let of_the_first = begun.iter().filter(|request| request.target() == "/").count();
    assert_eq!(of_the_first, 1);
}

#[tokio::test]
async fn endpoints_that_were_tried_are_left_out() {
    let bad = [Http1Upstream::answering(unavailable()).await, Http1Upstream::answering(unavailable()).await];
    let good = Http1Upstream::answering(Answer::ok("here")).await;
    let endpoints = [bad[0].address(), bad[1].address(), good.address()];
    let policy = json!({
        "retry_on": "5xx",
        "retry_host_predicate": [{ "name": "envoy.retry_host_predicates.previous_hosts" }],
    });
    // By its hash a request would go to the same endpoint each time.
    let mut route = retrying(policy);
    merge(&mut route, json!({ "route": { "hash_policy": [{ "header": { "header_name": "x-user" } }] } }));
    let mut origin = cluster("origin", &endpoints);
    merge(&mut origin, json!({ "lb_policy": "RING_HASH" }));
    let proxy =
        Proxy::builder().listener(Listener::http("ingress").route(route)).cluster(origin).start().await;
    for user in 0..20 {
        let mut client = proxy.http1().await;
        client.send(format!("GET / HTTP/1.1\r\nHost: a.example\r\nX-User: {user}\r\n\r\n")).await;
        assert_eq!(client.response().await.unwrap().text(), "here");
    }
}

/// Who waits for a connection while nobody reads the request waits no longer than the route allows, and gives its place back.
#[tokio::test]
async fn a_request_leaves_the_queue_when_its_time_is_up() {
    let release = Arc::new(Notify::new());
    let permit = Arc::clone(&release);
    let upstream = Http1Upstream::scripted(move |request, _| match request.target() {
        "/first" => Answer::nothing().until(&permit).send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        _ => Answer::ok("late"),
    })
    .await;
    let mut origin = cluster("origin", &[upstream.address()]);
    let limits = json!([{ "max_connections": 1, "max_pending_requests": 1 }]);
    merge(&mut origin, json!({ "circuit_breakers": { "thresholds": limits } }));
    let mut patient = to_cluster("/first", "origin");
    merge(&mut patient, json!({ "route": { "timeout": "0s" } }));
    let mut short = to_cluster("/", "origin");
    merge(&mut short, json!({ "route": { "timeout": "0.3s" } }));
    let listener = Listener::http("ingress").route(patient).route(short);
    let proxy = Proxy::builder().listener(listener).cluster(origin).start().await;
    let mut first = proxy.http1().await;
    first.send("GET /first HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    upstream.request(0).await;
    for _ in 0..3 {
        let mut queued = proxy.http1().await;
        queued.send("POST /queued HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000000\r\n\r\nx").await;
        let answer = queued.response_to("POST").await.unwrap();
        assert_eq!((answer.status, answer.reason()), (504, Some("upstream_request_timeout")));
    }
    release.notify_one();
    assert_eq!(first.response().await.unwrap().status, 200);
    assert_eq!(upstream.requests().len(), 1, "those who waited in vain were not forwarded");
    assert_eq!(proxy.http1().await.get("/after").await.unwrap().text(), "late");
}

/// What a caller's proxy waits is what this one waits, and what the next one is told is what is left of that.
#[tokio::test]
async fn a_deadline_is_carried_over_hops() {
    let upstream = Http1Upstream::scripted(|_, n| match n {
        0 => Answer::nothing()
            .pause(Duration::from_millis(300))
            .send("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"),
        1 => Answer::ok("in time"),
        _ => Answer::nothing().hang(),
    })
    .await;
    let router = json!({ "http_filters": [{
        "name": "envoy.filters.http.router",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            "respect_expected_rq_timeout": true,
        },
    }]});
    let inner_listener =
        Listener::http("ingress").manager(router).route(retrying(json!({ "retry_on": "5xx" })));
    let inner = Proxy::builder().listener(inner_listener).upstream("origin", &upstream).start().await;
    let mut route = to_cluster("/", "inner");
    merge(&mut route, json!({ "route": { "timeout": "2s" } }));
    let outer = Proxy::builder()
        .listener(Listener::http("ingress").route(route))
        .cluster(cluster("inner", &[inner.address("ingress")]))
        .start()
        .await;
    assert_eq!(outer.http1().await.get("/").await.unwrap().text(), "in time");
    let told: Vec<u64> = upstream
        .requests()
        .iter()
        .map(|r| r.fields().get("x-envoy-expected-rq-timeout-ms").unwrap().parse().unwrap())
        .collect();
    assert!(told[0] <= 2000 && told[1] <= told[0] - 300, "{told:?}");
    // The route of the inner proxy would wait for 15 s.
    let start = Instant::now();
    let mut direct = inner.http1().await;
    direct.send("GET / HTTP/1.1\r\nHost: a.example\r\nx-envoy-expected-rq-timeout-ms: 300\r\n\r\n").await;
    assert_eq!(direct.response().await.unwrap().status, 504);
    assert!(start.elapsed() < Duration::from_secs(10));
}

/// Reads and drops whatever comes.
struct Sink(std::net::SocketAddr);

impl Upstream for Sink {
    fn address(&self) -> std::net::SocketAddr {
        self.0
    }
}

#[tokio::test]
async fn a_gigabyte_is_not_kept_for_retries() {
    const PIECE: usize = 1 << 20;
    const PIECES: u64 = 1024;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sink = Sink(listener.local_addr().unwrap());
    let read = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut buffer = vec![0; PIECE];
        let mut all = 0_u64;
        while all < PIECES * PIECE as u64 {
            all += socket.read(&mut buffer).await.unwrap() as u64;
        }
        socket
    });
    let policy = json!({ "retry_on": "5xx,reset,connect-failure", "per_try_idle_timeout": "30s" });
    let mut route = retrying(policy);
    merge(&mut route, json!({ "route": { "timeout": "0s" } }));
    let proxy = proxy(&sink, route).await;
    let before = proxy.rss();
    let mut client = proxy.http1().await;
    let length = PIECES * PIECE as u64;
    client.send(format!("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {length}\r\n\r\n")).await;
    let piece = vec![b'x'; PIECE];
    let mut most = 0;
    for _ in 0..PIECES {
        within("a mebibyte", client.try_send(&piece)).await.unwrap();
        most = most.max(proxy.rss());
    }
    // It broke off after all of it: nothing is left to send again.
    drop(read.await.unwrap());
    let answer = client.response_to("POST").await.unwrap();
    assert_eq!(answer.status, 503);
    assert!(!answer.fields.has("x-remora-retries-exhausted"));
    let grown = most.saturating_sub(before);
    assert!(grown < 32 << 20, "{} MiB of a gigabyte were kept", grown >> 20);
}

/// A fifth of the requests that go well, whatever fails how fast.
#[tokio::test]
async fn a_budget_with_an_interval_bounds_retries_of_an_outage() {
    let upstream = Http1Upstream::scripted(|request, _| match request.target() {
        "/well" => Answer::ok("well"),
        _ => unavailable(),
    })
    .await;
    let mut origin = cluster("origin", &[upstream.address()]);
    let budget =
        json!({ "budget_percent": { "value": 20 }, "min_retry_concurrency": 5, "budget_interval": "60s" });
    merge(&mut origin, json!({ "circuit_breakers": { "thresholds": [{ "retry_budget": budget }] } }));
    let listener = Listener::http("ingress").route(retrying(json!({ "retry_on": "5xx" })));
    let proxy = Proxy::builder().listener(listener).cluster(origin).start().await;
    let mut client = proxy.http1().await;
    for _ in 0..100 {
        assert_eq!(client.get("/").await.unwrap().status, 503);
    }
    assert_eq!(upstream.requests().len(), 105, "five, and no share of nothing");
    for _ in 0..100 {
        assert_eq!(client.get("/well").await.unwrap().status, 200);
        assert_eq!(client.get("/").await.unwrap().status, 503);
    }
    assert_eq!(upstream.requests().len(), 305 + 15, "twenty of the hundred that went well");
    let denied = proxy.count("remora_upstream_retries_denied_total{cluster=\"origin\"}").await;
    assert!(denied >= 80, "{denied}");
}

/// Half of the requests that asked for no retry: one that asks twice is one that asked.
#[tokio::test]
async fn a_request_counts_once_in_the_budget_however_often_it_asks() {
    let upstream = Http1Upstream::scripted(|request, n| match (request.target(), n) {
        ("/well", _) | (_, 6..) => Answer::ok("well"),
        _ => unavailable(),
    })
    .await;
    let mut origin = cluster("origin", &[upstream.address()]);
    let budget =
        json!({ "budget_percent": { "value": 50 }, "min_retry_concurrency": 1, "budget_interval": "60s" });
    merge(&mut origin, json!({ "circuit_breakers": { "thresholds": [{ "retry_budget": budget }] } }));
    let listener = Listener::http("ingress").route(retrying(json!({ "retry_on": "5xx", "num_retries": 2 })));
    let proxy = Proxy::builder().listener(listener).cluster(origin).start().await;
    let mut client = proxy.http1().await;
    for path in ["/well", "/well", "/well", "/well", "/bad"] {
        assert_eq!(client.get(path).await.unwrap().text(), "well");
    }
    assert_eq!(upstream.requests().len(), 7);
}

#[tokio::test]
async fn http2_upstreams_that_refuse_streams_are_asked_again_whatever_the_method() {
    let upstream = Http2Upstream::scripted(|_, n| match n {
        0 => http2::Answer::refuse(h2::Reason::REFUSED_STREAM),
        _ => http2::Answer::ok("done"),
    })
    .await;
    let policy = json!({
        "retry_on": "5xx,refused-stream",
        "retriable_request_headers": [{ "name": "idempotency-key", "present_match": true }],
    });
    let listener = Listener::http("ingress").route(retrying(policy));
    let origin = cluster_http2("origin", &[upstream.address()]);
    let proxy = Proxy::builder().listener(listener).cluster(origin).start().await;
    let mut client = proxy.http1().await;
    client.send("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\nhi").await;
    assert_eq!(client.response_to("POST").await.unwrap().text(), "done");
    assert_eq!(upstream.count(), 2);
}
