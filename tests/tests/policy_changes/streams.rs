//! Requests, streams and tunnels that are running.

use std::sync::Arc;

use remora_tests::client::http2::{Outcome, request};
use remora_tests::config::{Listener, to_cluster};
use remora_tests::http1::Broken;
use remora_tests::resources::lds;
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::eventually_async;
use remora_xds::Resource;
use serde_json::json;
use tokio::sync::Notify;

use super::{Rig, begun_by, everybody, judged, only, open_web, slow, web};

#[tokio::test]
async fn a_stream_that_is_not_allowed_any_more_is_reset_and_the_others_on_its_connection_end_well() {
    let rest = Arc::new(Notify::new());
    let answer = rest.clone();
    let origin = Http1Upstream::scripted(move |_, _| slow(&answer)).await;
    let rig = Rig::new(origin.address()).await;
    rig.publish([web(&only(&["ann", "bob"]))]);
    let proxy = rig.start().await;
    let mut client = proxy.http2().await;
    let open = begun_by(["ann", "bob"], &mut client).await;
    let mut old = proxy.http1().await;
    old.send("GET / HTTP/1.1\r\nHost: a.example\r\nX-User: bob\r\n\r\n").await;
    let (head, mut body) = old.head("GET").await.unwrap();
    assert_eq!(head.status, 200);

    rig.publish([web(&only(&["ann"]))]);
    match client.outcome(open[1]).await {
        Outcome::Reset(_, so_far) => assert_eq!(so_far.body, b"first"),
        other => panic!("bob goes on: {other:?}"),
    }
    let broken = loop {
        match old.body_more(&mut body).await {
            Ok(complete) => assert!(!complete, "on HTTP/1 the body breaks off"),
            Err(broken) => break broken,
        }
    };
    assert!(matches!(broken, Broken::Closed | Broken::Reset(_)), "{broken:?}");
    let line = "LOG rbac_access_denied_matched_policy[none] rbac_denied";
    eventually_async("the policy is in the log", async || proxy.stderr().matches(line).count() == 2).await;
    rest.notify_waiters();
    assert_eq!(client.outcome(open[0]).await.answer().text(), "firstlast", "ann's stream was not touched");
    assert!(client.goaways().is_empty());
}

#[tokio::test]
async fn a_tunnel_and_a_request_that_waits_are_judged_again_too() {
    let tunnel = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let origin = Http1Upstream::scripted(move |seen, _| match seen.target() {
        "/chat" => Answer::raw(tunnel).echo(),
        _ => Answer::nothing().hang(),
    })
    .await;
    let rig = Rig::new(origin.address()).await;
    rig.publish([web(&only(&["ann", "bob"]))]);
    let proxy = rig.start().await;
    let mut tunnels = Vec::new();
    for user in ["ann", "bob"] {
        let mut client = proxy.http1().await;
        let head = "GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
        client.send(format!("{head}X-User: {user}\r\n\r\nhello")).await;
        assert_eq!(client.any_head().await.unwrap().word(1), "101");
        assert_eq!(client.raw(5).await.unwrap(), b"hello");
        tunnels.push(client);
    }
    let mut waits = proxy.http1().await;
    waits.send("GET /wait HTTP/1.1\r\nHost: a.example\r\nX-User: bob\r\n\r\n").await;
    origin.request(2).await;

    rig.publish([web(&only(&["ann"]))]);
    let answer = waits.response().await.unwrap();
    assert_eq!((answer.status, answer.reason()), (403, Some("rbac_denied")));
    assert!(tunnels[1].is_closed().await, "bob's tunnel");
    tunnels[0].send("again").await;
    assert_eq!(tunnels[0].raw(5).await.unwrap(), b"again", "ann's");
}

#[tokio::test]
async fn the_first_policy_of_a_listener_finds_the_tunnels_that_were_there_before() {
    let tunnel = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let origin = Http1Upstream::answering(Answer::raw(tunnel).echo()).await;
    let rig = Rig::new(origin.address()).await;
    rig.publish([open_web()]);
    let proxy = rig.start().await;
    let mut client = proxy.http1().await;
    let head = "GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.send(head).await;
    assert_eq!(client.any_head().await.unwrap().word(1), "101");
    rig.publish([web(&only(&["ann"]))]);
    assert!(client.is_closed().await);
}

/// A listener that wants tokens of issuer `test`, whose key is `test secret, in no way secret`.
fn with_tokens() -> Resource {
    let keys =
        r#"{"keys":[{"kty":"oct","kid":"one","alg":"HS256","k":"dGVzdCBzZWNyZXQsIGluIG5vIHdheSBzZWNyZXQ"}]}"#;
    let filters = json!([
        { "name": "envoy.filters.http.jwt_authn", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            "providers": { "test": { "issuer": "test", "local_jwks": { "inline_string": keys } } },
            "rules": [{ "match": { "prefix": "/" }, "requires": { "provider_name": "test" } }],
        } },
        { "name": "envoy.filters.http.router",
          "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } },
    ]);
    let manager = json!({ "http_filters": filters });
    lds(Listener::http("ingress").upgrade("websocket").manager(manager).route(to_cluster("/", "origin")))
}

/// Issuer `test`, until 2100.
const TOKEN: &str = "eyJhbGciOiAiSFMyNTYiLCAia2lkIjogIm9uZSJ9.eyJpc3MiOiAidGVzdCIsICJleHAiOiA0MTAyNDQ0ODAwfQ.a-PLEr4uR7IIfu-vMnd2Do-0XfVEAQNfKdsYYGzc9WU";

/// Streams that began without policy, as `good` and `bad` clients; `policy` comes, and ends those of the latter alone.
async fn the_first_policy_ends_streams(policy: Resource, good: (&str, &str), bad: (&str, &str)) {
    let rest = Arc::new(Notify::new());
    let answer = rest.clone();
    let origin = Http1Upstream::scripted(move |seen, _| match seen.target() {
        "/wait" => Answer::nothing().hang(),
        _ => slow(&answer),
    })
    .await;
    let rig = Rig::new(origin.address()).await;
    rig.publish([open_web()]);
    let proxy = rig.start().await;
    let mut client = proxy.http2().await;
    let mut open = Vec::new();
    for field in [good, bad] {
        let fields: Vec<_> = request("GET", "/").into_iter().chain([field]).collect();
        let stream = client.open(&fields, true).await;
        client.until(stream, "the first piece", |s| s.body == b"first").await;
        open.push(stream);
    }
    let (name, value) = bad;
    let mut old = proxy.http1().await;
    old.send(format!("GET / HTTP/1.1\r\nHost: a.example\r\n{name}: {value}\r\n\r\n")).await;
    let (_, mut body) = old.head("GET").await.unwrap();
    let mut waits = proxy.http1().await;
    waits.send(format!("GET /wait HTTP/1.1\r\nHost: a.example\r\n{name}: {value}\r\n\r\n")).await;
    origin.request(3).await;

    rig.publish([policy]);
    assert!(matches!(client.outcome(open[1]).await, Outcome::Reset(..)));
    while let Ok(complete) = old.body_more(&mut body).await {
        assert!(!complete, "on HTTP/1 the body breaks off");
    }
    let refused = waits.response().await.unwrap();
    assert!(matches!(refused.status, 401 | 403), "{}", refused.status);
    rest.notify_waiters();
    assert_eq!(client.outcome(open[0]).await.answer().text(), "firstlast");
}

#[tokio::test]
async fn the_first_rules_of_a_listener_find_the_streams_that_were_there_before() {
    the_first_policy_ends_streams(web(&only(&["ann"])), ("x-user", "ann"), ("x-user", "bob")).await;
}

#[tokio::test]
async fn tokens_that_are_wanted_from_now_on_are_wanted_of_open_streams() {
    let bearer = format!("Bearer {TOKEN}");
    let good = ("authorization", bearer.as_str());
    the_first_policy_ends_streams(with_tokens(), good, ("authorization", "Bearer none")).await;
}

/// A tunnel whose token was verified, and taken away, when it began goes on as long as its provider is there.
#[tokio::test]
async fn a_token_that_was_verified_is_not_asked_for_again() {
    let rest = Arc::new(Notify::new());
    let answer = rest.clone();
    let origin = Http1Upstream::scripted(move |_, _| slow(&answer)).await;
    let rig = Rig::new(origin.address()).await;
    rig.publish([with_tokens()]);
    let proxy = rig.start().await;
    let mut client = proxy.http2().await;
    let bearer = format!("Bearer {TOKEN}");
    let fields: Vec<_> = request("GET", "/").into_iter().chain([("authorization", &*bearer)]).collect();
    let stream = client.open(&fields, true).await;
    client.until(stream, "the first piece", |s| s.body == b"first").await;
    rig.publish([with_tokens(), judged(Listener::tcp("other", "origin"), &everybody(true))]);
    rig.plane.accepted(remora_xds::Kind::Listener, "other").await;
    rest.notify_waiters();
    assert_eq!(client.outcome(stream).await.answer().text(), "firstlast");
}
