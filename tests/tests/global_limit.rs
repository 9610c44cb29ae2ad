//! A rate limit service is asked about requests: what it is told, what its answer does, and what happens without one.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use remora_tests::client::http1::{Http1Client, Response};
use remora_tests::config::{Listener, merge, to_cluster};
use remora_tests::proxy::{Builder, Proxy};
use remora_tests::rate_limiter::RateLimiter;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_xds::pb::envoy::config::core::v3::HeaderValue;
use remora_xds::pb::envoy::service::ratelimit::v3::RateLimitResponse;
use remora_xds::pb::envoy::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;
use remora_xds::pb::envoy::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus, RateLimit};
use remora_xds::pb::google::protobuf::Duration;
use serde_json::{Value, json};

const TYPE: &str = "type.googleapis.com/envoy.extensions.filters.http.";

/// The filter, with `patch` over it and a limit that no test that wants an answer reaches, before the router.
fn limit(patch: Value) -> Value {
    let mut typed = json!({
        "@type": format!("{TYPE}ratelimit.v3.RateLimit"),
        "domain": "shop",
        "timeout": "20s",
        "rate_limit_service": {
            "transport_api_version": "V3",
            "grpc_service": { "envoy_grpc": { "cluster_name": "limits" } },
        },
    });
    merge(&mut typed, patch);
    json!({ "http_filters": [
        { "name": "limit", "typed_config": typed },
        { "name": "envoy.filters.http.router", "typed_config": { "@type": format!("{TYPE}router.v3.Router") } },
    ] })
}

fn proxy(manager: Value, origin: &Http1Upstream, limiter: &RateLimiter) -> Builder {
    let mut route = to_cluster("/", "origin");
    let rules = json!([
        { "actions": [
            { "destination_cluster": {} },
            { "request_headers": { "header_name": "x-user", "descriptor_key": "user" } },
        ] },
        { "actions": [{ "generic_key": { "descriptor_value": "all" } }] },
        { "stage": 3, "actions": [{ "generic_key": { "descriptor_value": "another filter's" } }] },
    ]);
    merge(&mut route, json!({ "route": { "rate_limits": rules } }));
    Proxy::builder()
        .listener(Listener::http("ingress").manager(manager).route(route))
        .upstream("origin", origin)
        .upstream("limits", limiter)
}

async fn get(client: &mut Http1Client, lines: &str) -> Response {
    client.send(format!("GET / HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n")).await;
    client.response().await.unwrap()
}

async fn origin() -> Http1Upstream {
    Http1Upstream::answering(Answer::ok("in")).await
}

fn header(key: &str, value: &str) -> HeaderValue {
    HeaderValue { key: key.into(), value: value.into(), ..Default::default() }
}

fn answer(code: Code) -> RateLimitResponse {
    RateLimitResponse { overall_code: code as i32, ..Default::default() }
}

#[tokio::test]
async fn the_service_is_told_what_a_request_counts_as_and_may_add_headers() {
    let ok = RateLimitResponse {
        request_headers_to_add: vec![header("x-tier", "gold")],
        response_headers_to_add: vec![header("x-left", "7")],
        ..answer(Code::Ok)
    };
    let (origin, limiter) = (origin().await, RateLimiter::scripted(move |_| Some(ok.clone())).await);
    let proxy = proxy(limit(json!({})), &origin, &limiter).start().await;
    let answer = get(&mut proxy.http1().await, "x-user: ann\r\n").await;
    assert_eq!((answer.status, answer.fields.all("x-left")), (200, vec!["7"]));
    assert_eq!(origin.only_request().fields().all("x-tier"), ["gold"]);
    let [asked] = &limiter.asked()[..] else { panic!("one question") };
    assert_eq!(asked.domain, "shop");
    let text =
        |entry: &remora_xds::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry| {
            format!("{}={}", entry.key, entry.value)
        };
    let entries: Vec<Vec<String>> =
        asked.descriptors.iter().map(|one| one.entries.iter().map(text).collect()).collect();
    assert_eq!(entries, [vec!["destination_cluster=origin", "user=ann"], vec!["generic_key=all"]]);
}

#[tokio::test]
async fn too_many_requests_are_refused_in_the_words_of_the_service() {
    let over = RateLimitResponse {
        statuses: vec![DescriptorStatus {
            code: Code::OverLimit as i32,
            current_limit: Some(RateLimit {
                requests_per_unit: 5,
                unit: Unit::Minute as i32,
                ..Default::default()
            }),
            limit_remaining: 0,
            duration_until_reset: Some(Duration { seconds: 9, nanos: 0 }),
            ..Default::default()
        }],
        response_headers_to_add: vec![header("x-why", "five a minute")],
        raw_body: b"come back later".to_vec(),
        ..answer(Code::OverLimit)
    };
    let (origin, limiter) = (origin().await, RateLimiter::scripted(move |_| Some(over.clone())).await);
    let shown = json!({ "enable_x_ratelimit_headers": "DRAFT_VERSION_03" });
    let proxy = proxy(limit(shown), &origin, &limiter).start().await;
    let answer = get(&mut proxy.http1().await, "").await;
    assert_eq!((answer.status, answer.text().as_str()), (429, "come back later"));
    assert_eq!(answer.reason(), Some("rate_limited"));
    for (name, value) in [
        ("x-envoy-ratelimited", "true"),
        ("x-why", "five a minute"),
        ("x-ratelimit-limit", "5, 5;w=60"),
        ("x-ratelimit-remaining", "0"),
        ("x-ratelimit-reset", "9"),
    ] {
        assert_eq!(answer.fields.all(name), [value], "{name}");
    }
    assert!(origin.requests().is_empty());
}

#[tokio::test]
async fn without_an_answer_requests_go_on_unless_the_filter_says_otherwise() {
    for (deny, status) in [(false, 200), (true, 500)] {
        let (origin, limiter) = (origin().await, RateLimiter::scripted(|_| None).await);
        let settings = json!({ "timeout": "0.1s", "failure_mode_deny": deny });
        let proxy = proxy(limit(settings), &origin, &limiter).start().await;
        let answer = get(&mut proxy.http1().await, "").await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.reason(), deny.then_some("rate_limit_error"));
        assert_eq!(limiter.asked().len(), 1);
    }
}

/// An answer with what may not be changed is none.
#[tokio::test]
async fn an_answer_that_would_change_the_host_is_a_failure() {
    let bad = RateLimitResponse { request_headers_to_add: vec![header("host", "b")], ..answer(Code::Ok) };
    let (origin, limiter) = (origin().await, RateLimiter::scripted(move |_| Some(bad.clone())).await);
    let proxy = proxy(limit(json!({ "failure_mode_deny": true })), &origin, &limiter).start().await;
    assert_eq!(get(&mut proxy.http1().await, "").await.status, 500);
    assert!(origin.requests().is_empty());
}
