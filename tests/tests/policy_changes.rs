//! Policy that changes while connections and streams are open: what is not allowed any more ends, everything else lives on.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;

use remora_tests::client::http1::Http1Client;
use remora_tests::client::http2::{Http2Client, Outcome, request};
use remora_tests::config::{Listener, to_cluster};
use remora_tests::control_plane::ControlPlane;
use remora_tests::http1::Broken;
use remora_tests::proxy::Proxy;
use remora_tests::resources::{cds, eds, eds_cluster, lds, under};
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::eventually_async;
use remora_xds::Resource;
use serde_json::{Value, json};
use tokio::sync::Notify;

const HTTP_RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
const NETWORK_RBAC: &str = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";

/// Only these users may.
fn only(users: &[&str]) -> Value {
    let ids: Vec<Value> = users
        .iter()
        .map(|u| json!({ "header": { "name": "x-user", "string_match": { "exact": u } } }))
        .collect();
    json!({ "action": "ALLOW", "policies": { "users": { "permissions": [{ "any": true }], "principals": ids } } })
}

/// Nobody may, or everybody.
fn everybody(may: bool) -> Value {
    let all = json!([{ "any": true }]);
    let policies = json!({ "all": { "permissions": all, "principals": all } });
    json!({ "action": if may { "ALLOW" } else { "DENY" }, "policies": policies })
}

/// An access log on stderr: why, and by which policy.
fn log() -> Value {
    json!([{ "name": "stderr", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog",
        "log_format": { "text_format_source": {
            "inline_string": "LOG %RESPONSE_CODE_DETAILS% %REMORA_REASON% %REMORA_SHADOW%\n",
        } },
    } }])
}

/// An HTTP listener that judges requests by `rules`.
fn web(rules: &Value) -> Resource {
    let filters = json!([
        { "name": "envoy.filters.http.rbac", "typed_config": { "@type": HTTP_RBAC, "rules": rules } },
        { "name": "envoy.filters.http.router",
          "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } },
    ]);
    let manager = json!({ "http_filters": filters, "access_log": log() });
    lds(Listener::http("ingress").upgrade("websocket").manager(manager).route(to_cluster("/", "origin")))
}

/// `listener` with a network filter that judges connections by `rules`.
fn judged(mut listener: Value, rules: &Value) -> Resource {
    let filter = json!({
        "name": "envoy.filters.network.rbac",
        "typed_config": { "@type": NETWORK_RBAC, "stat_prefix": "net", "rules": rules },
    });
    listener["filter_chains"][0]["filters"].as_array_mut().unwrap().insert(0, filter);
    lds(listener)
}

struct Rig {
    plane: ControlPlane,
    origin: Vec<Resource>,
}

impl Rig {
    async fn new(origin: SocketAddr) -> Self {
        let origin = vec![cds(&eds_cluster("origin")), eds("origin", &[origin])];
        Self { plane: ControlPlane::start().await, origin }
    }

    fn publish(&self, listeners: impl IntoIterator<Item = Resource>) {
        self.plane.publish(self.origin.iter().cloned().chain(listeners));
    }

    async fn start(&self) -> Proxy {
        under(&[self.plane.address]).start().await
    }
}

/// A first piece, and the rest when the test says so.
fn slow(rest: &Arc<Notify>) -> Answer {
    Answer::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        .until(rest)
        .send("4\r\nlast\r\n0\r\n\r\n")
}

async fn refuses(proxy: &Proxy, user: &str) {
    let head = format!("GET / HTTP/1.1\r\nHost: a.example\r\nX-User: {user}\r\n\r\n");
    eventually_async("the new rules are in force", async || {
        let mut client = proxy.http1().await;
        client.send(&head).await;
        client.response().await.is_ok_and(|answer| answer.reason() == Some("rbac_denied"))
    })
    .await;
}

/// A stream for each user, of which the first piece has come.
async fn begun_by<const N: usize>(users: [&str; N], client: &mut Http2Client) -> [u32; N] {
    let mut open = [0; N];
    for (user, stream) in users.into_iter().zip(&mut open) {
        let fields: Vec<_> = request("GET", "/").into_iter().chain([("x-user", user)]).collect();
        *stream = client.open(&fields, true).await;
        client.until(*stream, "the first piece", |s| s.body == b"first").await;
    }
    open
}

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

/// The same listener without any policy.
fn open_web() -> Resource {
    lds(Listener::http("ingress").upgrade("websocket").route(to_cluster("/", "origin")))
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

/// Tokens may be missing, `x-user` must be one of `users`, and then a service says who the client is to the origin.
fn before_a_service(users: &[&str]) -> Resource {
    let keys = r#"{"keys":[{"kty":"oct","kid":"one","alg":"HS256","k":"dGVzdCBzZWNyZXQ"}]}"#;
    let filters = json!([
        { "name": "envoy.filters.http.jwt_authn", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            "providers": { "test": { "issuer": "test", "local_jwks": { "inline_string": keys } } },
            "rules": [{ "match": { "prefix": "/" }, "requires": { "allow_missing": {} } }],
        } },
        { "name": "envoy.filters.http.rbac", "typed_config": { "@type": HTTP_RBAC, "rules": only(users) } },
        { "name": "authz", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
            "transport_api_version": "V3",
            "http_service": {
                "server_uri": { "uri": "http://auth.example", "cluster": "auth", "timeout": "20s" },
                "authorization_response": { "allowed_upstream_headers": {
                    "patterns": [{ "exact": "authorization" }, { "exact": "x-user" }],
                } },
            },
        } },
        { "name": "envoy.filters.http.router",
          "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } },
    ]);
    let manager = json!({ "http_filters": filters });
    lds(Listener::http("ingress").manager(manager).route(to_cluster("/", "origin")))
}

/// What a service writes into a request neither ends it nor saves it from filters that never saw that.
#[tokio::test]
async fn filters_before_a_service_judge_what_they_saw() {
    let rest = Arc::new(Notify::new());
    let answer = rest.clone();
    let origin = Http1Upstream::scripted(move |_, _| slow(&answer)).await;
    let said = "HTTP/1.1 200 OK\r\nAuthorization: Bearer none\r\nX-User: ann\r\nContent-Length: 0\r\n\r\n";
    let auth = Http1Upstream::answering(Answer::raw(said)).await;
    let mut rig = Rig::new(origin.address()).await;
    rig.origin.extend([cds(&eds_cluster("auth")), eds("auth", &[auth.address()])]);
    rig.publish([before_a_service(&["ann", "bob"])]);
    let proxy = rig.start().await;
    let mut client = proxy.http2().await;
    let open = begun_by(["ann", "bob"], &mut client).await;
    rig.publish([before_a_service(&["ann"])]);
    assert!(matches!(client.outcome(open[1]).await, Outcome::Reset(..)), "the service called bob ann");
    rest.notify_waiters();
    assert_eq!(client.outcome(open[0]).await.answer().text(), "firstlast");
}

#[tokio::test]
async fn rules_see_an_upgrade_over_both_protocols() {
    let tunnel = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let origin = Http1Upstream::answering(Answer::raw(tunnel).echo()).await;
    let rig = Rig::new(origin.address()).await;
    let header = |name, value| json!({ "header": { "name": name, "string_match": { "exact": value } } });
    let both = json!({ "and_rules": { "rules": [header("upgrade", "websocket"), header("connection", "upgrade")] } });
    let deny = json!({ "action": "DENY", "policies": { "no-upgrades": {
        "permissions": [both], "principals": [{ "header": { "name": "x-user", "string_match": { "exact": "bob" } } }],
    } } });
    let manager = json!({ "http2_protocol_options": { "allow_connect": true }, "http_filters": [
        { "name": "envoy.filters.http.rbac", "typed_config": { "@type": HTTP_RBAC, "rules": deny } },
        { "name": "envoy.filters.http.router",
          "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } },
    ] });
    let listener = Listener::http("ingress").upgrade("websocket").manager(manager);
    rig.publish([lds(listener.route(to_cluster("/", "origin")))]);
    let proxy = rig.start().await;
    for (user, status) in [("bob", 403), ("ann", 101)] {
        let mut client = proxy.http1().await;
        let head = "GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
        client.send(format!("{head}X-User: {user}\r\n\r\n")).await;
        assert_eq!(client.any_head().await.unwrap().word(1), status.to_string(), "{user}");
    }
    let mut client = proxy.http2().await;
    for (user, status) in [("bob", 403), ("ann", 200)] {
        let fields = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":path", "/chat"),
            (":authority", "a.example"),
            ("x-user", user),
        ];
        let stream = client.open(&fields, false).await;
        let head = client.until(stream, "an answer", |stream| stream.status().is_some()).await;
        assert_eq!(head.status(), Some(status), "{user}");
    }
}

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
    for client in [&mut asks, &mut idle, &mut chats, &mut opaque] {
        assert!(client.is_closed().await);
    }
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

/// Requirement M8: the operator finds the policy by its name, the caller is not told.
#[tokio::test]
async fn the_refusing_policy_is_in_the_log_and_in_a_metric_and_not_in_the_answer() {
    let origin = Http1Upstream::answering(Answer::ok("x")).await;
    let rig = Rig::new(origin.address()).await;
    let deny = json!({ "action": "DENY", "policies": { "no-guests": {
        "permissions": [{ "any": true }],
        "principals": [{ "header": { "name": "x-user", "string_match": { "exact": "guest" } } }],
    } } });
    let rules = json!({ "@type": HTTP_RBAC, "rules": deny, "rules_stat_prefix": "shop", "shadow_rules": only(&["ann"]) });
    let manager = json!({ "access_log": log(), "http_filters": [
        { "name": "envoy.filters.http.rbac", "typed_config": rules },
        { "name": "envoy.filters.http.router",
          "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } },
    ] });
    rig.publish([lds(Listener::http("ingress").manager(manager).route(to_cluster("/", "origin")))]);
    let proxy = rig.start().await;
    refuses(&proxy, "guest").await;
    let mut client = proxy.http1().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\nX-User: guest\r\n\r\n").await;
    let answer = client.response().await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (403, "RBAC: access denied"));
    let told = |text: &str| text.contains("no-guests");
    assert!(!answer.fields.0.iter().any(|(_, value)| told(value)) && !told(&answer.text()));
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\nX-User: bob\r\n\r\n").await;
    assert_eq!(client.response().await.unwrap().status, 200, "shadow rules refuse nobody");
    let metrics = proxy.admin("GET", "/stats/prometheus").await.unwrap().text();
    for line in [
        "{listener=\"ingress\",stat_prefix=\"shop\",policy=\"no-guests\",decision=\"denied\"} 2",
        "{listener=\"ingress\",stat_prefix=\"shop\",policy=\"none\",decision=\"allowed\"} 1",
        "{listener=\"ingress\",stat_prefix=\"\",policy=\"none\",decision=\"shadow_denied\"} 3",
    ] {
        assert!(metrics.contains(&format!("remora_policy_decisions_total{line}")), "{line}\n{metrics}");
    }
    let shadow = "rbac_access_denied_matched_policy[none]";
    let denied = format!("LOG rbac_access_denied_matched_policy[no-guests] rbac_denied {shadow}");
    let allowed = format!("LOG via_upstream - {shadow}");
    eventually_async("both lines", async || {
        let log = proxy.stderr();
        log.contains(&denied) && log.contains(&allowed)
    })
    .await;
}
