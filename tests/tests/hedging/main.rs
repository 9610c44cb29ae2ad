//! Hedged requests: a try that is late is not given up, another one begins beside it, and the first good answer counts.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod kinds;
mod races;

use std::sync::Arc;
use std::time::Duration;

use remora_tests::client::http1::Response;
use remora_tests::config::{Listener, cluster, cluster_http2, merge, to_cluster};
use remora_tests::proxy::Proxy;
use remora_tests::upstream::Upstream;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::upstream::http2::{self, Http2Upstream};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);
const HEDGES: &str = "remora_upstream_hedges_total{cluster=\"origin\"}";
const DENIED: &str = "remora_upstream_retries_denied_total{cluster=\"origin\"}";

/// A route to `origin` that hedges after 100 ms, twice at most.
fn hedging(patch: Value) -> Value {
    let mut route = to_cluster("/", "origin");
    let pause = json!({ "base_interval": "0.001s", "max_interval": "0.002s" });
    let policy = json!({
        "retry_on": "5xx", "num_retries": 2, "per_try_timeout": "0.1s", "retry_back_off": pause,
    });
    let hedge = json!({ "hedge_on_per_try_timeout": true, "initial_requests": 1 });
    merge(&mut route, json!({ "route": { "retry_policy": policy, "hedge_policy": hedge } }));
    merge(&mut route, json!({ "route": patch }));
    route
}

async fn proxy(route: Value, origin: Value) -> Proxy {
    Proxy::builder().listener(Listener::http("ingress").route(route)).cluster(origin).start().await
}

fn origin(upstream: &impl Upstream) -> Value {
    cluster("origin", &[upstream.address()])
}

fn ok(text: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())
}

async fn post(proxy: &Proxy, body: &str, fields: &str) -> Response {
    let mut client = proxy.http1().await;
    let length = body.len();
    let head = format!("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {length}\r\n{fields}\r\n");
    client.send(head + body).await;
    client.response_to("POST").await.unwrap()
}

#[tokio::test]
async fn another_endpoint_answers_for_one_that_is_late() {
    let slow = Http1Upstream::scripted(|_, _| Answer::nothing().hang()).await;
    let fast = Http1Upstream::answering(Answer::ok("fast")).await;
    let previous =
        json!({ "retry_host_predicate": [{ "name": "envoy.retry_host_predicates.previous_hosts" }] });
    let proxy = proxy(
        hedging(json!({ "retry_policy": previous })),
        cluster("origin", &[slow.address(), fast.address()]),
    )
    .await;
    let mut client = proxy.http1().await;
    for _ in 0..4 {
        let start = Instant::now();
        assert_eq!(client.get("/").await.unwrap().text(), "fast");
        assert!(start.elapsed() < 5 * SECOND, "{:?}", start.elapsed());
    }
    let late = slow.requests().len();
    assert!(late >= 1, "none went to the slow one first");
    for connection in 0..late {
        slow.ended(connection).await;
    }
    proxy.counts(HEDGES, late as u64).await;
    proxy.counts("remora_upstream_retries_total{cluster=\"origin\"}", late as u64).await;
}

#[tokio::test]
async fn a_late_stream_of_http2_is_reset_when_another_one_answers() {
    let upstream = Http2Upstream::scripted(|_, n| match n {
        0 => http2::Answer::silence(),
        _ => http2::Answer::ok("second"),
    })
    .await;
    let proxy = proxy(hedging(json!({})), cluster_http2("origin", &[upstream.address()])).await;
    assert_eq!(proxy.http1().await.get("/").await.unwrap().text(), "second");
    upstream.request_with(0, "a reset", |request| request.reset.is_some()).await;
    assert_eq!((upstream.count(), upstream.open_connections()), (2, 1), "the connection stays");
}

#[tokio::test]
async fn the_late_try_may_still_win() {
    let go = Arc::new(Notify::new());
    let permit = Arc::clone(&go);
    let upstream = Http1Upstream::scripted(move |_, n| match n {
        0 => Answer::nothing().until(&permit).send(ok("first")),
        _ => Answer::nothing().hang(),
    })
    .await;
    let proxy = proxy(hedging(json!({ "retry_policy": { "num_retries": 1 } })), origin(&upstream)).await;
    let mut client = proxy.http1().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    upstream.request(1).await;
    go.notify_one();
    assert_eq!(client.response().await.unwrap().text(), "first");
    upstream.ended(1).await;
}

/// The hop above would retry it, from a budget of its own.
#[tokio::test]
async fn what_the_budget_denied_says_so_when_the_time_is_up() {
    let upstream = Http1Upstream::scripted(|_, _| Answer::nothing().hang()).await;
    let mut origin = origin(&upstream);
    merge(&mut origin, json!({ "circuit_breakers": { "thresholds": [{ "max_retries": 0 }] } }));
    let proxy = proxy(hedging(json!({ "timeout": "0.5s" })), origin).await;
    let answer = proxy.http1().await.get("/").await.unwrap();
    assert_eq!((answer.status, answer.fields.get("x-remora-retries-exhausted")), (504, Some("1")));
    assert_eq!((upstream.requests().len(), proxy.count(DENIED).await), (1, 1));
}

#[tokio::test]
async fn a_bad_answer_waits_for_the_try_that_is_late() {
    let go = Arc::new(Notify::new());
    let permit = Arc::clone(&go);
    let upstream = Http1Upstream::scripted(move |_, n| match n {
        0 => Answer::nothing().until(&permit).send(ok("first")),
        _ => Answer::status(503, "Service Unavailable", "no"),
    })
    .await;
    let proxy = proxy(hedging(json!({})), origin(&upstream)).await;
    let mut client = proxy.http1().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    // The hedge is answered with an error, and so is the retry of that, which was the last one.
    upstream.request(2).await;
    go.notify_one();
    let answer = client.response().await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "first"));
    assert!(!answer.fields.has("x-remora-retries-exhausted"));
    assert_eq!(upstream.requests().len(), 3);
    proxy.counts(HEDGES, 1).await;
}

#[tokio::test]
async fn the_timeout_of_the_request_ends_all_tries() {
    let upstream = Http1Upstream::scripted(|_, _| Answer::nothing().hang()).await;
    let proxy = proxy(hedging(json!({ "timeout": "1s" })), origin(&upstream)).await;
    let answer = proxy.http1().await.get("/").await.unwrap();
    assert_eq!((answer.status, answer.reason()), (504, Some("upstream_request_timeout")));
    assert_eq!(answer.fields.get("x-remora-retries-exhausted"), Some("1"));
    for connection in 0..3 {
        upstream.ended(connection).await;
    }
    assert_eq!(upstream.requests().len(), 3);
}

#[tokio::test]
async fn what_may_have_been_processed_is_hedged_only_where_the_policy_lets_it_be_repeated() {
    let upstream = Http1Upstream::scripted(|request, n| match (request.fields().has("idempotency-key"), n) {
        (false, _) | (true, 2..) => Answer::nothing().pause(SECOND / 2).send(ok("own")),
        (true, _) => Answer::nothing().hang(),
    })
    .await;
    let only = json!({ "retriable_request_headers": [{ "name": "idempotency-key", "present_match": true }] });
    let proxy = proxy(hedging(json!({ "retry_policy": only })), origin(&upstream)).await;
    // It is late, and nothing happens: its own answer comes.
    assert_eq!(post(&proxy, "hi", "").await.text(), "own");
    assert_eq!((upstream.requests().len(), proxy.count(HEDGES).await), (1, 0));
    assert_eq!(post(&proxy, "hi", "Idempotency-Key: 1\r\n").await.text(), "own");
    let bodies: Vec<String> = upstream.requests().iter().skip(1).map(|request| request.text()).collect();
    assert!(bodies.len() >= 2 && bodies.iter().all(|body| body == "hi"), "{bodies:?}");
}

#[tokio::test]
async fn a_body_that_was_not_kept_is_not_hedged() {
    let upstream = Http1Upstream::scripted(|_, _| Answer::nothing().pause(SECOND / 2).send(ok("own"))).await;
    let proxy = proxy(hedging(json!({})), origin(&upstream)).await;
    let long = "x".repeat(70 << 10);
    assert_eq!(post(&proxy, &long, "").await.text(), "own");
    assert_eq!((upstream.requests().len(), proxy.count(HEDGES).await), (1, 0));
}

#[tokio::test]
async fn a_hedge_takes_a_place_in_the_retry_budget_or_does_not_begin() {
    let go = Arc::new(Notify::new());
    let permit = Arc::clone(&go);
    let upstream =
        Http1Upstream::scripted(move |_, _| Answer::nothing().until(&permit).send(ok("own"))).await;
    let mut origin = origin(&upstream);
    merge(&mut origin, json!({ "circuit_breakers": { "thresholds": [{ "max_retries": 0 }] } }));
    let proxy = proxy(hedging(json!({})), origin).await;
    let mut client = proxy.http1().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    proxy.counts(DENIED, 1).await;
    go.notify_one();
    assert_eq!(client.response().await.unwrap().text(), "own");
    assert_eq!((upstream.requests().len(), proxy.count(HEDGES).await), (1, 0));
}

/// Each of two hedges holds its own place: the second one is denied while the first has no answer.
#[tokio::test]
async fn hedges_hold_their_places_until_they_are_answered() {
    let go = Arc::new(Notify::new());
    let permit = Arc::clone(&go);
    let upstream =
        Http1Upstream::scripted(move |_, _| Answer::nothing().until(&permit).send(ok("own"))).await;
    let mut origin = origin(&upstream);
    merge(&mut origin, json!({ "circuit_breakers": { "thresholds": [{ "max_retries": 1 }] } }));
    let proxy = proxy(hedging(json!({})), origin).await;
    let mut client = proxy.http1().await;
    for round in 1..3 {
        client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
        proxy.counts(DENIED, round).await;
        assert_eq!((upstream.requests().len() as u64, proxy.count(HEDGES).await), (2 * round, round));
        go.notify_waiters();
        assert_eq!(client.response().await.unwrap().text(), "own");
    }
}

#[tokio::test]
async fn an_internal_request_may_switch_it_on_and_off() {
    let upstream = Http1Upstream::scripted(|_, n| match n {
        0 => Answer::nothing().hang(),
        1 => Answer::ok("hedged"),
        _ => Answer::nothing().pause(SECOND / 2).send(ok("alone")),
    })
    .await;
    let off = json!({ "hedge_policy": { "hedge_on_per_try_timeout": false }, "retry_policy": { "num_retries": 0 } });
    let inside = json!({ "cidr_ranges": [{ "address_prefix": "10.0.0.0", "prefix_len": 8 }] });
    let listener =
        Listener::http("ingress").manager(json!({ "internal_address_config": inside })).route(hedging(off));
    let proxy = Proxy::builder().listener(listener).cluster(origin(&upstream)).start().await;
    let mut client = proxy.http1().await;
    let ask = |hedge: &str| {
        format!(
            "GET / HTTP/1.1\r\nHost: a.example\r\nx-forwarded-for: 10.0.0.1\r\nx-envoy-max-retries: 1\r\n\
             x-envoy-hedge-on-per-try-timeout: {hedge}\r\n\r\n"
        )
    };
    client.send(ask("true")).await;
    assert_eq!(client.response().await.unwrap().text(), "hedged");
    client.send(ask("false")).await;
    let answer = client.response().await.unwrap();
    assert_eq!((answer.status, answer.reason()), (504, Some("upstream_per_try_timeout")));
    assert!(upstream.requests().iter().all(|r| !r.fields().has("x-envoy-hedge-on-per-try-timeout")));
}

#[tokio::test]
async fn more_requests_at_first_are_refused_as_nobody_has_them() {
    for (field, value) in
        [("initial_requests", json!(2)), ("additional_request_chance", json!({ "numerator": 10 }))]
    {
        let route = hedging(json!({ "hedge_policy": { field: value } }));
        let listener = Listener::http("ingress").route(route);
        let upstream = cluster("origin", &["127.0.0.1:1".parse().unwrap()]);
        let (_, said) = Proxy::builder().listener(listener).cluster(upstream).refuse().await;
        assert!(said.contains(&format!("hedge_policy.{field}")) && said.contains("remove it"), "{said}");
    }
}
