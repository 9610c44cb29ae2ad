//! Faults, local limits and bodies read ahead, where more than one request or connection counts. Single requests are compared with
//! Envoy in tests/oracle (53 to 55, 105 to 129).
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use remora_tests::client::http1::Http1Client;
use remora_tests::config::{Listener, merge, to_cluster};
use remora_tests::proxy::{Builder, Proxy};
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::eventually_async;
use serde_json::{Value, json};

const TYPE: &str = "type.googleapis.com/envoy.extensions.filters.http.";

/// A filter of that type, before the router.
fn filter(kind: &str, settings: Value) -> Value {
    let mut typed = json!({ "@type": format!("{TYPE}{kind}") });
    merge(&mut typed, settings);
    json!({ "http_filters": [
        { "name": "filter", "typed_config": typed },
        { "name": "envoy.filters.http.router", "typed_config": { "@type": format!("{TYPE}router.v3.Router") } },
    ] })
}

fn limit(settings: Value) -> Value {
    let all = json!({ "default_value": { "numerator": 100 } });
    let mut typed = json!({ "stat_prefix": "limit", "filter_enabled": all, "filter_enforced": all });
    merge(&mut typed, settings);
    filter("local_ratelimit.v3.LocalRateLimit", typed)
}

fn proxy(manager: Value, route: Value, origin: &Http1Upstream) -> Builder {
    Proxy::builder()
        .listener(Listener::http("ingress").manager(manager).route(route))
        .upstream("origin", origin)
}

async fn origin() -> Http1Upstream {
    Http1Upstream::answering(Answer::ok("in")).await
}

async fn get(client: &mut Http1Client, lines: &str) -> u16 {
    client.send(format!("GET / HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n")).await;
    client.response().await.unwrap().status
}

/// A bucket is one for all workers: of many requests on many connections exactly as many pass as there are tokens.
#[tokio::test]
async fn a_bucket_is_exact_on_all_workers_together() {
    let origin = origin().await;
    let bucket = json!({ "token_bucket": { "max_tokens": 37, "fill_interval": "600s" } });
    let proxy = proxy(limit(bucket), to_cluster("/", "origin"), &origin).start().await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(proxy.http1().await);
    }
    let tasks = clients.into_iter().map(|mut client| async move {
        let mut passed = 0;
        for _ in 0..10 {
            passed += usize::from(get(&mut client, "").await == 200);
        }
        passed
    });
    let tasks: Vec<_> = tasks.map(tokio::spawn).collect();
    let mut passed = 0;
    for task in tasks {
        passed += task.await.unwrap();
    }
    assert_eq!(passed, 37);
    assert_eq!(origin.requests().len(), 37);
}

#[tokio::test]
async fn each_connection_and_each_client_has_its_own_bucket() {
    let origin = origin().await;
    let own = json!({
        "token_bucket": { "max_tokens": 1, "fill_interval": "600s" },
        "local_rate_limit_per_downstream_connection": true,
    });
    let by_connection = proxy(limit(own), to_cluster("/", "origin"), &origin).start().await;
    for _ in 0..3 {
        let mut client = by_connection.http1().await;
        assert_eq!(get(&mut client, "").await, 200);
        assert_eq!(get(&mut client, "").await, 429);
    }
    let by_client = json!({
        "descriptors": [{
            "entries": [{ "key": "remote_address" }],
            "token_bucket": { "max_tokens": 1, "fill_interval": "600s" },
        }],
    });
    let mut manager = limit(by_client);
    merge(&mut manager, json!({ "use_remote_address": false, "xff_num_trusted_hops": 0 }));
    let mut route = to_cluster("/", "origin");
    merge(&mut route, json!({ "route": { "rate_limits": [{ "actions": [{ "remote_address": {} }] }] } }));
    let proxy = proxy(manager, route, &origin).start().await;
    let mut client = proxy.http1().await;
    for address in ["10.0.0.1", "10.0.0.2"] {
        let from = format!("X-Forwarded-For: {address}\r\n");
        assert_eq!(get(&mut client, &from).await, 200);
        assert_eq!(get(&mut client, &from).await, 429);
    }
}

/// A client that goes away takes its delay with it: the fault is not counted any more.
#[tokio::test]
async fn a_delay_ends_with_its_client() {
    let origin = origin().await;
    let delay = json!({
        "delay": { "header_delay": {}, "percentage": { "numerator": 100 } },
        "abort": { "http_status": 418, "percentage": { "numerator": 100 } },
        "max_active_faults": 1,
    });
    let proxy = proxy(filter("fault.v3.HTTPFault", delay), to_cluster("/", "origin"), &origin).start().await;
    let mut stuck = proxy.http1().await;
    stuck.send("GET / HTTP/1.1\r\nHost: a.example\r\nx-envoy-fault-delay-request: 600000\r\n\r\n").await;
    let mut other = proxy.http1().await;
    // While one waits there may be no other fault.
    eventually_async("the delay counts", async || get(&mut other, "").await == 200).await;
    stuck.reset();
    eventually_async("the delay does not count any more", async || get(&mut other, "").await == 418).await;
}

/// The time that a stream may last goes on during a delay.
#[tokio::test]
async fn a_delay_is_no_longer_than_the_stream_may_last() {
    let origin = origin().await;
    let delay = json!({ "delay": { "fixed_delay": "600s", "percentage": { "numerator": 100 } } });
    let mut route = to_cluster("/", "origin");
    merge(&mut route, json!({ "route": { "max_stream_duration": { "max_stream_duration": "0.2s" } } }));
    let proxy = proxy(filter("fault.v3.HTTPFault", delay), route, &origin).start().await;
    let mut client = proxy.http1().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    let answer = client.response().await.unwrap();
    assert_eq!((answer.status, answer.reason()), (504, Some("max_stream_duration")));
    assert!(origin.requests().is_empty());
}

/// Too much of a body is refused before anything of it goes on, whether its length was told or not.
#[tokio::test]
async fn a_body_over_the_limit_reaches_nobody() {
    let origin = origin().await;
    let limit = json!({ "max_request_bytes": 10 });
    let proxy = proxy(filter("buffer.v3.Buffer", limit), to_cluster("/", "origin"), &origin).start().await;
    for body in [
        "Content-Length: 11\r\n\r\nhello world",
        "Transfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\n\r\n",
    ] {
        let mut client = proxy.http1().await;
        client.send(format!("POST / HTTP/1.1\r\nHost: a.example\r\n{body}")).await;
        let answer = client.response().await.unwrap();
        assert_eq!((answer.status, answer.reason()), (413, Some("request_body_too_large")));
    }
    let mut client = proxy.http1().await;
    client
        .send("POST / HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
        .await;
    assert_eq!(client.any_head().await.unwrap().word(1), "100");
    client.send("hello worl").await;
    assert_eq!(client.response().await.unwrap().status, 200);
    assert_eq!(origin.only_request().text(), "hello worl");
}
