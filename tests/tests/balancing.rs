//! Balancing by what endpoints do, and sessions, through a whole proxy.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use remora_tests::config::{Listener, cluster, merge, to_cluster};
use remora_tests::proxy::Proxy;
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use serde_json::{Value, json};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn peak_ewma() -> Value {
    json!({ "load_balancing_policy": { "policies": [{ "typed_extension_config": {
        "name": "remora.load_balancing_policies.peak_ewma",
        "typed_config": {
            "@type": "type.googleapis.com/xds.type.v3.TypedStruct",
            "type_url": "type.googleapis.com/remora.load_balancing_policies.peak_ewma",
            "value": { "decay": "60s", "failure_penalty": "1s" },
        },
    } }] } })
}

/// Sessions by a cookie.
fn sessions(strict: bool) -> Value {
    json!({ "http_filters": [
        { "name": "session", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.stateful_session.v3.StatefulSession",
            "strict": strict,
            "session_state": { "name": "cookie", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState",
                "cookie": { "name": "sticky", "path": "/", "ttl": "60s" },
            } },
        } },
        { "name": "router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        } },
    ] })
}

async fn proxy(endpoints: &[SocketAddr], patch: Value, listener: Listener) -> Proxy {
    let mut app = cluster("app", endpoints);
    merge(&mut app, patch);
    Proxy::builder().listener(listener.route(to_cluster("/", "app"))).cluster(app).start().await
}

/// How many of 200 requests go to an endpoint beside one that answers at once.
async fn requests_to(answer: Answer) -> usize {
    let quick = Http1Upstream::answering(Answer::ok("ok")).await;
    let other = Http1Upstream::answering(answer).await;
    let endpoints = [quick.address(), other.address()];
    let proxy = proxy(&endpoints, peak_ewma(), Listener::http("ingress")).await;
    let mut client = proxy.http1().await;
    for _ in 0..200 {
        let _ = client.get("/").await.unwrap();
    }
    assert_eq!(quick.requests().len() + other.requests().len(), 200);
    other.requests().len()
}

/// It is asked once, and then left alone for about as long as the latencies are remembered.
#[tokio::test]
async fn peak_ewma_leaves_a_slow_endpoint_alone() {
    let slow = Answer::nothing().pause(Duration::from_millis(250)).send(OK);
    let asked = requests_to(slow).await;
    assert!((1..=5).contains(&asked), "{asked}");
}

#[tokio::test]
async fn peak_ewma_leaves_an_endpoint_alone_that_fails_at_once() {
    let asked = requests_to(Answer::status(503, "Unavailable", "no")).await;
    assert!((1..=5).contains(&asked), "{asked}");
}

#[tokio::test]
async fn a_session_stays_with_its_endpoint_until_that_is_gone() {
    let first = Http1Upstream::answering(Answer::ok("first")).await;
    let second = Http1Upstream::answering(Answer::ok("second")).await;
    let endpoints = [first.address(), second.address()];
    let proxy = proxy(&endpoints, json!({}), Listener::http("ingress").manager(sessions(false))).await;
    let mut client = proxy.http1().await;
    for _ in 0..4 {
        let met = client.get("/").await.unwrap();
        let cookie = met.fields.get("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        for _ in 0..6 {
            client.send(format!("GET / HTTP/1.1\r\nHost: a.example\r\nCookie: {cookie}\r\n\r\n")).await;
            let again = client.response().await.unwrap();
            assert_eq!(again.text(), met.text());
            assert!(!again.fields.has("set-cookie"), "it is known");
        }
    }
    assert!(first.requests().len() >= 7 && second.requests().len() >= 7, "round robin meets both");
}

/// The endpoint closes a kept-alive connection when the next request of the session comes: that says nothing about the endpoint, and there is
/// no other one for a strict session.
#[tokio::test]
async fn a_session_outlives_a_connection_that_has_gone_stale() {
    let script = |name: &'static str| {
        Http1Upstream::scripted(move |_, n| if n == 1 { Answer::nothing().close() } else { Answer::ok(name) })
    };
    for retry_on in ["connect-failure", "reset"] {
        let (first, second) = (script("first").await, script("second").await);
        let endpoints = [first.address(), second.address()];
        let mut route = to_cluster("/", "app");
        let policy = json!({
            "retry_on": retry_on,
            "retry_host_predicate": [{ "name": "envoy.retry_host_predicates.previous_hosts" }],
        });
        merge(&mut route, json!({ "route": { "retry_policy": policy } }));
        let listener = Listener::http("ingress").manager(sessions(true)).route(route);
        let proxy = Proxy::builder().listener(listener).cluster(cluster("app", &endpoints)).start().await;
        let mut client = proxy.http1().await;
        let met = client.get("/").await.unwrap();
        let cookie = met.fields.get("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        client.send(format!("GET / HTTP/1.1\r\nHost: a.example\r\nCookie: {cookie}\r\n\r\n")).await;
        let again = client.response().await.unwrap();
        assert_eq!((again.status, again.text()), (200, met.text()), "{retry_on}");
    }
}
