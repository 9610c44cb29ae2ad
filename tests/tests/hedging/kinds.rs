//! Hedging of clusters and requests of particular kinds.

use remora_tests::wait::within;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::*;

const CONNECT: &str = "CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\r\n";

/// A tunnel that opens late is the only one.
#[tokio::test]
async fn connect_is_not_hedged() {
    let upstream = Http1Upstream::scripted(|_, _| {
        Answer::nothing().pause(SECOND / 2).send("HTTP/1.1 200 OK\r\n\r\n").echo()
    })
    .await;
    let mut route = hedging(json!({ "retry_policy": { "num_retries": 2 } }));
    route["match"] = json!({ "connect_matcher": {} });
    let listener = Listener::http("ingress").upgrade("CONNECT").route(route);
    let proxy = Proxy::builder().listener(listener).cluster(origin(&upstream)).start().await;
    let mut client = proxy.http1().await;
    client.send(CONNECT).await;
    let answer = client.response_to("CONNECT").await.unwrap();
    // Its per-try timeout ends a try, as without hedging.
    assert_eq!((answer.status, answer.reason()), (504, Some("upstream_per_try_timeout")));
    assert_eq!(proxy.count(HEDGES).await, 0);
}

/// Not when it ends here either, and not when its headers ask for it.
#[tokio::test]
async fn a_connect_that_ends_here_is_not_hedged() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ends = json!({ "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }] });
    let mut route = hedging(ends);
    route["match"] = json!({ "connect_matcher": {} });
    let inside = json!({ "cidr_ranges": [{ "address_prefix": "10.0.0.0", "prefix_len": 8 }] });
    let manager = json!({ "internal_address_config": inside });
    let listening = Listener::http("ingress").manager(manager).upgrade("CONNECT").route(route);
    let origin = cluster("origin", &[listener.local_addr().unwrap()]);
    let proxy = Proxy::builder().listener(listening).cluster(origin).start().await;
    let mut client = proxy.http1().await;
    client
        .send(
            "CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80\r\nx-forwarded-for: 10.0.0.1\r\n\
             x-envoy-hedge-on-per-try-timeout: true\r\n\r\n",
        )
        .await;
    let (mut server, _) = within("a tunnel", listener.accept()).await.unwrap();
    assert_eq!(client.any_head().await.unwrap().word(1), "200");
    server.write_all(b"hello").await.unwrap();
    assert_eq!(client.raw(5).await.unwrap(), b"hello", "the endpoint was not sent a request");
    assert_eq!(proxy.count(HEDGES).await, 0);
}

/// There is one endpoint, where the client wanted to go: the hedge goes there, too.
#[tokio::test]
async fn an_original_destination_is_asked_again_beside_itself() {
    let (wanted, other) = (
        Http1Upstream::scripted(|_, n| match n {
            0 => Answer::nothing().hang(),
            _ => Answer::ok("hedge"),
        })
        .await,
        Http1Upstream::answering(Answer::ok("other")).await,
    );
    let cluster = json!({
        "name": "origin", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "5s",
        "original_dst_lb_config": { "use_http_header": true },
    });
    let previous =
        json!({ "retry_host_predicate": [{ "name": "envoy.retry_host_predicates.previous_hosts" }] });
    let proxy = proxy(hedging(json!({ "retry_policy": previous })), cluster).await;
    let mut client = proxy.http1().await;
    let to = wanted.address();
    client
        .send(format!("GET / HTTP/1.1\r\nHost: a.example\r\nx-envoy-original-dst-host: {to}\r\n\r\n"))
        .await;
    assert_eq!(client.response().await.unwrap().text(), "hedge");
    wanted.ended(0).await;
    assert_eq!((wanted.requests().len(), other.requests().len()), (2, 0));
    proxy.counts(HEDGES, 1).await;
}

/// The hedge goes to another endpoint of the subset, and to none without.
#[tokio::test]
async fn a_hedge_stays_within_the_subset() {
    let slow = Http1Upstream::scripted(|_, _| Answer::nothing().hang()).await;
    let (fast, outside) = (
        Http1Upstream::answering(Answer::ok("fast")).await,
        Http1Upstream::answering(Answer::ok("outside")).await,
    );
    let mut origin = cluster("origin", &[slow.address(), fast.address(), outside.address()]);
    for (at, version) in ["1", "1", "2"].into_iter().enumerate() {
        origin["load_assignment"]["endpoints"][0]["lb_endpoints"][at]["metadata"] =
            json!({ "filter_metadata": { "envoy.lb": { "version": version } } });
    }
    merge(
        &mut origin,
        json!({ "lb_subset_config": { "fallback_policy": "NO_FALLBACK", "subset_selectors": [{ "keys": ["version"] }] } }),
    );
    let route = hedging(json!({
        "metadata_match": { "filter_metadata": { "envoy.lb": { "version": "1" } } },
        "retry_policy": { "retry_host_predicate": [{ "name": "envoy.retry_host_predicates.previous_hosts" }] },
    }));
    let proxy = proxy(route, origin).await;
    let mut client = proxy.http1().await;
    for _ in 0..6 {
        assert_eq!(client.get("/").await.unwrap().text(), "fast");
    }
    assert!(!slow.requests().is_empty(), "none went to the slow one first");
    assert_eq!(outside.requests().len(), 0);
    proxy.counts(HEDGES, slow.requests().len() as u64).await;
}

/// Half of the requests that asked for no retry: one that asks twice is one that asked.
#[tokio::test]
async fn a_request_counts_once_in_the_budget_however_often_it_is_hedged() {
    let upstream = Http1Upstream::scripted(|request, n| match (request.target(), n) {
        ("/well", _) | (_, 6..) => Answer::ok("well"),
        _ => Answer::nothing().hang(),
    })
    .await;
    let mut origin = origin(&upstream);
    let budget =
        json!({ "budget_percent": { "value": 50 }, "min_retry_concurrency": 1, "budget_interval": "60s" });
    merge(&mut origin, json!({ "circuit_breakers": { "thresholds": [{ "retry_budget": budget }] } }));
    let proxy = proxy(hedging(json!({})), origin).await;
    let mut client = proxy.http1().await;
    for path in ["/well", "/well", "/well", "/well", "/late"] {
        assert_eq!(client.get(path).await.unwrap().text(), "well");
    }
    assert_eq!((upstream.requests().len(), proxy.count(DENIED).await), (7, 0));
}
