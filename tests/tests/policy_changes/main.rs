//! Policy that changes while connections and streams are open: what is not allowed any more ends, everything else lives on.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod connections;
mod heads;
mod streams;

use std::net::SocketAddr;
use std::sync::Arc;

use remora_tests::client::http2::{Http2Client, request};
use remora_tests::config::{Listener, to_cluster};
use remora_tests::control_plane::ControlPlane;
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
    lds(guarded(rules).upgrade("websocket").route(to_cluster("/", "origin")))
}

/// The same without routes.
fn guarded(rules: &Value) -> Listener {
    let filters = json!([
        { "name": "envoy.filters.http.rbac", "typed_config": { "@type": HTTP_RBAC, "rules": rules } },
        { "name": "envoy.filters.http.router",
          "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } },
    ]);
    Listener::http("ingress").manager(json!({ "http_filters": filters, "access_log": log() }))
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

/// The same listener without any policy.
fn open_web() -> Resource {
    lds(Listener::http("ingress").upgrade("websocket").route(to_cluster("/", "origin")))
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
