//! What is judged again is what was judged first, whatever became of the request since.

use std::sync::Arc;

use remora_tests::client::http2::{Outcome, request};
use remora_tests::config::{Listener, to_cluster};
use remora_tests::resources::{cds, eds, eds_cluster, lds};
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_xds::Resource;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{HTTP_RBAC, Rig, begun_by, guarded, only, slow};

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

fn present(name: &str) -> Value {
    json!({ "header": { "name": name, "present_match": true } })
}

/// `users` may, if these headers are there and those are not.
fn only_with(users: &[&str], there: &[&str], absent: &[&str]) -> Value {
    let mut all: Vec<Value> = there.iter().map(|name| present(name)).collect();
    all.extend(absent.iter().map(|name| json!({ "not_rule": present(name) })));
    let mut rules = only(users);
    rules["policies"]["users"]["permissions"] = json!([{ "and_rules": { "rules": all } }]);
    rules
}

/// Forwarding rewrites path and host, says how long it waits, and takes away what steers it. Rules see nothing of that, whether the client
/// sent such headers or not.
#[tokio::test]
async fn what_forwarding_writes_and_takes_away_is_not_judged() {
    const WRITTEN: [&str; 3] =
        ["x-envoy-expected-rq-timeout-ms", "x-envoy-original-path", "x-envoy-original-host"];
    let rest = Arc::new(Notify::new());
    let answer = rest.clone();
    let origin = Http1Upstream::scripted(move |_, _| slow(&answer)).await;
    let rig = Rig::new(origin.address()).await;
    let sent: [(&str, &[(&str, &str)]); 3] = [
        ("x-nothing", &[]),
        ("x-envoy-max-retries", &[("x-forwarded-for", "10.0.0.1"), ("x-envoy-max-retries", "1")]),
        ("x-envoy-original-path", &[("x-envoy-original-path", "/before")]),
    ];
    for (name, fields) in sent {
        let listener = |users: &[&str]| {
            let there = if fields.is_empty() { vec![] } else { vec![name] };
            let absent: Vec<&str> = WRITTEN.into_iter().filter(|written| *written != name).collect();
            let route = json!({ "match": { "prefix": "/" }, "route": {
                "cluster": "origin", "timeout": "20s", "prefix_rewrite": "/x/", "host_rewrite_literal": "b.example",
            } });
            let ranges = json!({ "cidr_ranges": [{ "address_prefix": "10.0.0.0", "prefix_len": 8 }] });
            let manager = json!({ "internal_address_config": ranges });
            lds(guarded(&only_with(users, &there, &absent)).manager(manager).route(route))
        };
        rig.publish([listener(&["ann", "bob"])]);
        let proxy = rig.start().await;
        let mut client = proxy.http2().await;
        let mut open = Vec::new();
        for user in ["ann", "bob"] {
            let all = [&request("GET", "/")[..], &[("x-user", user)], fields].concat();
            let stream = client.open(&all, true).await;
            client.until(stream, "the first piece", |s| s.body == b"first").await;
            open.push(stream);
        }
        rig.publish([listener(&["ann"])]);
        assert!(matches!(client.outcome(open[1]).await, Outcome::Reset(..)), "{name}");
        rest.notify_waiters();
        assert_eq!(client.outcome(open[0]).await.answer().text(), "firstlast", "{name}");
    }
}

/// Rules, then a service that is not there, which lets pass what it is asked about with its body.
fn before_nobody(users: &[&str]) -> Resource {
    let rules = only_with(users, &["expect"], &["x-envoy-auth-failure-mode-allowed"]);
    let filters = json!([
        { "name": "envoy.filters.http.rbac", "typed_config": { "@type": HTTP_RBAC, "rules": rules } },
        { "name": "authz", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
            "transport_api_version": "V3",
            "failure_mode_allow": true,
            "failure_mode_allow_header_add": true,
            "with_request_body": { "max_request_bytes": 100, "allow_partial_message": true },
            "http_service": { "server_uri": { "uri": "http://auth.example", "cluster": "auth", "timeout": "20s" } },
        } },
        { "name": "envoy.filters.http.router",
          "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } },
    ]);
    lds(Listener::http("ingress")
        .manager(json!({ "http_filters": filters }))
        .route(to_cluster("/", "origin")))
}

/// Reading the body ahead answers `Expect`, and failing open marks the request: the rules in front see neither.
#[tokio::test]
async fn what_a_service_that_fails_open_leaves_behind_is_not_judged() {
    let rest = Arc::new(Notify::new());
    let answer = rest.clone();
    let origin = Http1Upstream::scripted(move |_, _| slow(&answer)).await;
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut rig = Rig::new(origin.address()).await;
    rig.origin.extend([cds(&eds_cluster("auth")), eds("auth", &[gone])]);
    rig.publish([before_nobody(&["ann", "bob"])]);
    let proxy = rig.start().await;
    let mut open = Vec::new();
    for user in ["ann", "bob"] {
        let mut client = proxy.http1().await;
        let head = "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\nExpect: 100-continue\r\n";
        client.send(format!("{head}X-User: {user}\r\n\r\n")).await;
        assert_eq!(client.any_head().await.unwrap().word(1), "100");
        client.send("hello").await;
        let (answer, body) = client.head("POST").await.unwrap();
        assert_eq!(answer.status, 200);
        open.push((client, body));
    }
    assert_eq!(origin.request(0).await.fields().get("x-envoy-auth-failure-mode-allowed"), Some("true"));
    rig.publish([before_nobody(&["ann"])]);
    let (client, body) = &mut open[1];
    while let Ok(complete) = client.body_more(body).await {
        assert!(!complete, "bob's breaks off");
    }
    rest.notify_waiters();
    let (client, body) = &mut open[0];
    while !client.body_more(body).await.unwrap() {}
}
