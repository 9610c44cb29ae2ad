//! Connections, by the network filters of their chains, and chains that go.

use remora_tests::client::http1::Http1Client;
use remora_tests::client::http2::{Outcome, request};
use remora_tests::config::{Listener, to_cluster};
use remora_tests::http1::Broken;
use remora_tests::resources::{lds, under};
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::eventually_async;
use remora_xds::Resource;
use serde_json::{Value, json};

use super::{Rig, everybody, judged, log};

/// `listener` with its filter chain under another name: for open connections theirs is gone.
fn in_chain(name: &str, listener: impl Into<Value>) -> Resource {
    let mut listener = listener.into();
    listener["filter_chains"][0]["name"] = name.into();
    lds(listener)
}

#[tokio::test]
async fn connections_of_a_filter_chain_that_was_removed_drain() {
    let tunnel = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let origin = Http1Upstream::scripted(move |seen, _| match seen.target() {
        "/chat" => Answer::raw(tunnel).echo(),
        _ => Answer::ok("x"),
    })
    .await;
    let rig = Rig::new(origin.address()).await;
    let web = || Listener::http("ingress").upgrade("websocket").route(to_cluster("/", "origin"));
    let publish =
        |chain| rig.publish([in_chain(chain, web()), in_chain(chain, Listener::tcp("raw", "origin"))]);
    publish("before");
    let proxy = under(&[rig.plane.address]).argument("--drain-time-s=2").start().await;
    let (mut asks, mut idle, mut chats) = (proxy.http1().await, proxy.http1().await, proxy.http1().await);
    let (mut streams, mut opaque) = (proxy.http2().await, Http1Client::connect(proxy.address("raw")).await);
    for client in [&mut asks, &mut idle, &mut opaque] {
        assert!(client.get("/").await.unwrap().keeps_alive());
    }
    assert_eq!(streams.get("/").await.answer().text(), "x");
    chats
        .send("GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    assert_eq!(chats.any_head().await.unwrap().word(1), "101");

    publish("after");
    streams.until_goaway().await;
    assert!(!asks.get("/").await.unwrap().keeps_alive(), "the last answer says so");
    chats.send("still").await;
    assert_eq!(chats.raw(5).await.unwrap(), b"still", "what is open may finish");
    assert!(opaque.get("/").await.unwrap().keeps_alive(), "of opaque bytes nothing is known");
    for client in [&mut asks, &mut idle, &mut opaque] {
        assert!(client.is_closed().await);
    }
    assert!(matches!(chats.raw(1).await, Err(Broken::Reset(_))), "a tunnel is broken off");
    assert!(proxy.http1().await.get("/").await.unwrap().keeps_alive());
}

#[tokio::test]
async fn an_opaque_connection_that_is_not_allowed_any_more_is_closed_and_one_elsewhere_is_not() {
    let origin = Http1Upstream::answering(Answer::ok("x").echo()).await;
    let rig = Rig::new(origin.address()).await;
    let tcp = |name| Listener::tcp(name, "origin");
    rig.publish([judged(tcp("ingress"), &everybody(true)), judged(tcp("other"), &everybody(true))]);
    let proxy = rig.start().await;
    let mut clients = Vec::new();
    for listener in ["ingress", "other"] {
        let mut client = Http1Client::connect(proxy.address(listener)).await;
        assert_eq!(client.get("/").await.unwrap().text(), "x");
        clients.push(client);
    }
    rig.publish([judged(tcp("ingress"), &everybody(false)), judged(tcp("other"), &everybody(true))]);
    assert!(clients[0].is_closed().await);
    clients[1].send("ping").await;
    assert_eq!(clients[1].raw(4).await.unwrap(), b"ping");
    assert!(Http1Client::connect(proxy.address("ingress")).await.is_closed().await, "a new one is refused");
    let metrics = proxy.admin("GET", "/stats/prometheus").await.unwrap().text();
    let line = "remora_policy_decisions_total{listener=\"ingress\",stat_prefix=\"net\",policy=\"all\",decision=\"denied\"} 2";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test]
async fn an_http_connection_is_closed_with_its_requests_when_its_peer_may_not_connect_any_more() {
    let origin = Http1Upstream::scripted(|_, _| Answer::nothing().hang()).await;
    let rig = Rig::new(origin.address()).await;
    let http = |may| {
        let listener = Listener::http("ingress").manager(json!({ "access_log": log() }));
        judged(listener.route(to_cluster("/", "origin")).into(), &everybody(may))
    };
    rig.publish([http(true)]);
    let proxy = rig.start().await;
    let (mut one, mut two) = (proxy.http1().await, proxy.http2().await);
    one.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    let stream = two.open(&request("GET", "/"), true).await;
    origin.request(1).await;
    rig.publish([http(false)]);
    assert!(one.is_closed().await);
    assert!(matches!(two.outcome(stream).await, Outcome::ConnectionEnded(_) | Outcome::Reset(..)));
    let metrics = proxy.admin("GET", "/stats/prometheus").await.unwrap().text();
    assert!(metrics.contains("remora_downstream_rejected_total{reason=\"unauthorized\"} 2"), "{metrics}");
    let line = "LOG rbac_access_denied_matched_policy[all] rbac_denied";
    eventually_async("the policy is in the log", async || proxy.stderr().matches(line).count() == 2).await;
}

/// What a tunnel carried until then is counted, also when nobody asks it how it ended.
#[tokio::test]
async fn the_bytes_of_a_tunnel_whose_peer_may_not_connect_any_more_are_counted() {
    let hello = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello";
    let origin = Http1Upstream::scripted(move |_, _| Answer::raw(hello).echo()).await;
    let rig = Rig::new(origin.address()).await;
    let mut bytes = log();
    bytes[0]["typed_config"]["log_format"]["text_format_source"]["inline_string"] =
        "LOG %BYTES_RECEIVED% %BYTES_SENT% %REMORA_REASON%\n".into();
    let http = |may| {
        let listener = Listener::http("ingress").upgrade("websocket").manager(json!({ "access_log": bytes }));
        judged(listener.route(to_cluster("/", "origin")).into(), &everybody(may))
    };
    rig.publish([http(true)]);
    let proxy = rig.start().await;
    let mut client = proxy.http1().await;
    client
        .send("GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    assert_eq!(client.any_head().await.unwrap().word(1), "101");
    client.send("now").await;
    assert_eq!(client.raw(8).await.unwrap(), b"hellonow");
    rig.publish([http(false)]);
    assert!(matches!(client.raw(1).await, Err(Broken::Reset(_))), "a tunnel is broken off");
    eventually_async("a line of the log", async || proxy.stderr().contains("LOG ")).await;
    let log = proxy.stderr();
    assert!(log.contains("LOG 3 8 rbac_denied"), "{log}");
    let metrics = proxy.admin("GET", "/stats/prometheus").await.unwrap().text();
    for (metric, bytes) in [("request_bytes_sum", 3), ("response_bytes_sum", 8), ("tcp_sent_bytes_total", 8)]
    {
        let line = |line: &str| {
            line.starts_with(&format!("remora_{metric}{{")) && line.ends_with(&format!(" {bytes}"))
        };
        assert!(metrics.lines().any(line), "{metric}: {metrics}");
    }
}
