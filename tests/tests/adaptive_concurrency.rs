//! Adaptive concurrency: who is refused when there are too many, and who has a place for how long. What the limit follows is tested where
//! it is made (`remora_proxy::resilience::concurrency`).
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::Arc;

use remora_tests::client::http1::{Http1Client, Response};
use remora_tests::config::{Listener, merge, to_cluster};
use remora_tests::proxy::Proxy;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::{eventually, eventually_async};
use serde_json::{Value, json};
use tokio::sync::Notify;

const TYPE: &str = "type.googleapis.com/envoy.extensions.filters.http.";

/// A limit that stays where it is.
fn limit(limit: u32) -> Value {
    json!({ "http_filters": [
        { "name": "limit", "typed_config": {
            "@type": format!("{TYPE}adaptive_concurrency.v3.AdaptiveConcurrency"),
            "gradient_controller_config": {
                "concurrency_limit_params": {
                    "max_concurrency_limit": limit,
                    "min_concurrency_limit": limit,
                    "concurrency_update_interval": "0.1s",
                },
                "min_rtt_calc_params": { "interval": "60s" },
            },
        } },
        { "name": "envoy.filters.http.router", "typed_config": { "@type": format!("{TYPE}router.v3.Router") } },
    ] })
}

async fn proxy(manager: Value, origin: &Http1Upstream) -> Proxy {
    let mut urgent = to_cluster("/urgent", "origin");
    merge(&mut urgent, json!({ "route": { "priority": "HIGH" } }));
    let listener = Listener::http("ingress").manager(manager).route(urgent).route(to_cluster("/", "origin"));
    Proxy::builder().listener(listener).upstream("origin", origin).start().await
}

async fn send(proxy: &Proxy, path: &str, lines: &str) -> Http1Client {
    let mut client = proxy.http1().await;
    client.send(format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n")).await;
    client
}

async fn get(proxy: &Proxy, path: &str, lines: &str) -> Response {
    send(proxy, path, lines).await.response().await.unwrap()
}

const BATCH: &str = "x-remora-priority: batch\r\n";
const CRITICAL: &str = "x-remora-priority: critical\r\n";

/// Waits until as many are on their way.
async fn in_flight(proxy: &Proxy, count: usize) {
    let there = async || {
        let page = proxy.admin("GET", "/stats/prometheus").await.unwrap().text();
        let mut lines = page.lines().filter(|line| line.starts_with("remora_concurrency_in_flight{"));
        lines.next().is_some_and(|line| line.ends_with(&format!(" {count}")))
    };
    eventually_async(&format!("{count} in flight"), there).await;
}

#[tokio::test]
async fn the_last_places_are_for_those_who_matter() {
    let origin = Http1Upstream::answering(Answer::nothing().hang()).await;
    let proxy = proxy(limit(20), &origin).await;
    let mut held = Vec::new();
    for (count, path, lines) in [(16, "/", BATCH), (3, "/", ""), (1, "/urgent", "")] {
        for _ in 0..count {
            held.push(send(&proxy, path, lines).await);
        }
        in_flight(&proxy, held.len()).await;
        let refused = get(&proxy, path, lines).await;
        assert_eq!((refused.status, refused.reason()), (503, Some("concurrency_limit")));
        assert_eq!(refused.text(), "reached concurrency limit");
    }
    assert_eq!(get(&proxy, "/", CRITICAL).await.status, 503);
    assert_eq!(get(&proxy, "/urgent", BATCH).await.status, 503);
    let of = |priority: &str, count: u64| format!("priority=\"{priority}\"}} {count}");
    let page = proxy.admin("GET", "/stats/prometheus").await.unwrap().text();
    for series in [of("batch", 2), of("default", 1), of("critical", 2)] {
        let found =
            page.lines().any(|l| l.starts_with("remora_concurrency_refused_total{") && l.ends_with(&series));
        assert!(found, "{series} in {page}");
    }
    // Whoever goes away gives its place back.
    held.pop().unwrap().reset();
    in_flight(&proxy, 19).await;
    held.push(send(&proxy, "/", CRITICAL).await);
    in_flight(&proxy, 20).await;
}

/// At an edge nobody from outside says how important he is, and nobody behind it is told.
#[tokio::test]
async fn strangers_are_not_critical() {
    let origin = Http1Upstream::answering(Answer::nothing().hang()).await;
    let mut manager = limit(20);
    merge(&mut manager, json!({ "use_remote_address": true }));
    let proxy = proxy(manager, &origin).await;
    let mut held = Vec::new();
    let outside = format!("X-Forwarded-For: 192.0.2.1\r\n{CRITICAL}");
    for _ in 0..19 {
        held.push(send(&proxy, "/", &outside).await);
    }
    in_flight(&proxy, 19).await;
    assert_eq!(get(&proxy, "/", &outside).await.status, 503);
    eventually("all are there", || origin.requests().len() == 19).await;
    assert!(origin.requests().iter().all(|request| request.fields().get("x-remora-priority").is_none()));
}

/// A stream has a place until its head comes, not for as long as it goes on.
#[tokio::test]
async fn streams_take_no_place() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let go = Arc::new(Notify::new());
    let answer = Answer::nothing().until(&go).send(head).hang();
    let origin = Http1Upstream::answering(answer).await;
    let proxy = proxy(limit(1), &origin).await;
    let mut stream = send(&proxy, "/", "").await;
    in_flight(&proxy, 1).await;
    assert_eq!(get(&proxy, "/", "").await.status, 503);
    go.notify_one();
    assert_eq!(stream.head("GET").await.unwrap().0.status, 200);
    in_flight(&proxy, 0).await;
    let mut second = send(&proxy, "/", "").await;
    go.notify_one();
    assert_eq!(second.head("GET").await.unwrap().0.status, 200);
}
