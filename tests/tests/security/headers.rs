//! Headers that lie: about roles, hosts, schemes, callers, and which of them belong to one hop.

use remora_tests::client::http2::{Outcome, request};
use remora_tests::config::{Listener, to_cluster};
use remora_tests::proxy::Proxy;
use remora_tests::upstream::http1::{Answer, Forwarded, Http1Upstream};
use serde_json::json;

use crate::{any, header, judged, rbac, under};

struct Rig {
    origin: Http1Upstream,
    proxy: Proxy,
}

impl Rig {
    async fn new(listener: Listener) -> Self {
        let origin = Http1Upstream::answering(Answer::ok("hello")).await;
        let proxy = Proxy::builder()
            .listener(listener.route(to_cluster("/", "origin")))
            .upstream("origin", &origin)
            .start()
            .await;
        Self { origin, proxy }
    }

    /// Status and reason of a request with these lines on HTTP/1, and what the origin got.
    async fn http1(&self, target: &str, lines: &[&str]) -> (u16, Option<String>, Option<Forwarded>) {
        let before = self.origin.requests().len();
        let mut client = self.proxy.http1().await;
        client.send(format!("GET {target} HTTP/1.1\r\n{}\r\n\r\n", lines.join("\r\n"))).await;
        let answer = client.response().await.unwrap();
        let seen = self.origin.requests().get(before).cloned();
        (answer.status, answer.reason().map(Into::into), seen)
    }

    /// The status of the same on HTTP/2; None when the stream or the connection was ended instead.
    async fn http2(&self, path: &str, fields: &[(&str, &str)]) -> Option<u16> {
        let all: Vec<_> = request("GET", path).into_iter().chain(fields.iter().copied()).collect();
        self.raw_http2(&all).await
    }

    /// The status of a request on HTTP/2 with these fields and no others.
    async fn raw_http2(&self, fields: &[(&str, &str)]) -> Option<u16> {
        let mut client = self.proxy.http2().await;
        let stream = client.open(fields, true).await;
        match client.outcome(stream).await {
            Outcome::Answer(answer) => Some(answer.status),
            Outcome::Reset(..) | Outcome::ConnectionEnded(_) => None,
        }
    }
}

const HOST: &str = "Host: a.example";

/// CVE-2020-25017, CVE-2026-26308, CVE-2026-31838: a second value neither hides one that is denied nor lends one that is allowed.
#[tokio::test]
async fn a_header_of_several_values_is_denied_by_any_and_allowed_by_all() {
    for (action, role) in [("DENY", "admin"), ("ALLOW", "user")] {
        let rig = Rig::new(judged("ingress", rbac(action, any(), header("x-role", role)))).await;
        assert_eq!(rig.http2("/", &[("x-role", "user")]).await, Some(200), "{action}");
        assert_eq!(rig.http1("/", &[HOST, "X-Role: user", "x-role: user"]).await.0, 200, "{action}");
        for values in
            [&["admin"][..], &["user", "admin"], &["admin", "user"], &["user,admin"], &["user, admin"]]
        {
            let lines: Vec<String> = values.iter().map(|value| format!("x-role: {value}")).collect();
            let lines: Vec<&str> = [HOST].into_iter().chain(lines.iter().map(String::as_str)).collect();
            let (status, reason, seen) = rig.http1("/", &lines).await;
            assert_eq!((status, reason.as_deref()), (403, Some("rbac_denied")), "{action} {values:?}");
            assert!(seen.is_none());
            let fields: Vec<_> = values.iter().map(|value| ("x-role", *value)).collect();
            assert_eq!(rig.http2("/", &fields).await, Some(403), "{action} {values:?}");
        }
    }
}

/// Routing, too: a second line hides no value from a route, whichever comes first.
#[tokio::test]
async fn a_route_by_a_header_sees_all_its_values() {
    let staff = json!({
        "match": { "prefix": "/", "headers": [{ "name": "x-role", "string_match": { "exact": "staff" } }] },
        "direct_response": { "status": 204 },
    });
    let rig = Rig::new(Listener::http("ingress").route(staff)).await;
    assert_eq!(rig.http1("/", &[HOST, "x-role: staff"]).await.0, 204);
    for lines in [["x-role: user", "x-role: staff"], ["x-role: staff", "x-role: user"]] {
        assert_eq!(rig.http1("/", &[&[HOST][..], &lines].concat()).await.0, 204, "{lines:?}");
    }
    let seen = rig.http1("/", &[HOST, "x-role: user", "x-role: guest"]).await.2.unwrap();
    assert_eq!(seen.fields().all("x-role"), ["user", "guest"], "the origin gets both");
}

/// RFC 9112 §3.2.2, RFC 9113 §8.3.1: there is one host, for the rule and for the origin.
#[tokio::test]
async fn the_host_that_is_authorised_is_the_host_that_is_forwarded() {
    let rig = Rig::new(judged("ingress", rbac("ALLOW", any(), header(":authority", "a.example")))).await;
    let (status, _, seen) = rig.http1("http://a.example/x", &["Host: evil.example"]).await;
    assert_eq!((status, seen.unwrap().fields().all("host")), (200, vec!["a.example"]));
    let (status, reason, seen) = rig.http1("http://evil.example/x", &[HOST]).await;
    assert_eq!((status, reason.as_deref(), seen.is_none()), (403, Some("rbac_denied"), true));
    for lines in
        [&[HOST, "Host: evil.example"][..], &["Host: evil.example", HOST], &["Host: a.example,evil.example"]]
    {
        let (status, reason, _) = rig.http1("/", lines).await;
        assert_eq!((status, reason.as_deref()), (400, Some("bad_host")), "{lines:?}");
    }
    assert_eq!(rig.http2("/", &[]).await, Some(200));
    assert_ne!(rig.http2("/", &[("host", "evil.example")]).await, Some(200));
    assert_eq!(rig.origin.requests().len(), 2);
}

/// https is what the connection is, whatever its client says, in whatever case.
#[tokio::test]
async fn a_claimed_scheme_opens_no_rule_for_https() {
    let rig = Rig::new(judged("ingress", rbac("ALLOW", any(), header(":scheme", "https")))).await;
    for proto in ["https", "HTTPS", "http, https"] {
        assert_eq!(rig.http1("/", &[HOST, &format!("X-Forwarded-Proto: {proto}")]).await.0, 403, "{proto}");
        assert_ne!(rig.http1(&format!("{proto}://a.example/"), &[HOST]).await.0, 200, "{proto}");
        let fields = [(":method", "GET"), (":scheme", proto), (":authority", "a.example"), (":path", "/")];
        assert_ne!(rig.raw_http2(&fields).await, Some(200), "{proto}");
    }
    assert!(rig.origin.requests().is_empty());
}

/// At an edge: an address and a scheme that the caller writes are not believed, and passed on as what they are.
#[tokio::test]
async fn an_edge_believes_no_address_and_no_scheme_of_its_callers() {
    let inside = json!({ "remote_ip": { "address_prefix": "10.0.0.0", "prefix_len": 8 } });
    let edge = judged("ingress", rbac("DENY", under("/"), json!({ "not_id": inside })))
        .manager(json!({ "use_remote_address": true }));
    let rig = Rig::new(edge).await;
    for line in [
        "X-Forwarded-For: 10.0.0.1",
        "X-Forwarded-For: 10.0.0.1, 10.0.0.1",
        "X-Envoy-External-Address: 10.0.0.1",
    ] {
        assert_eq!(rig.http1("/", &[HOST, line]).await.1.as_deref(), Some("rbac_denied"), "{line}");
    }
    let rig = Rig::new(Listener::http("ingress").manager(json!({ "use_remote_address": true }))).await;
    let lines = [
        HOST,
        "X-Forwarded-For: 10.0.0.1",
        "X-Forwarded-Proto: https",
        "X-Envoy-Internal: true",
        "X-Envoy-External-Address: 10.0.0.1",
        "X-Envoy-Retry-On: 5xx",
    ];
    let seen = rig.http1("/", &lines).await.2.unwrap();
    let all = |name: &str| seen.fields().all(name);
    assert_eq!(all("x-forwarded-for"), ["10.0.0.1,127.0.0.1"]);
    assert_eq!(all("x-forwarded-proto"), ["http"]);
    assert_eq!(all("x-envoy-external-address"), ["127.0.0.1"]);
    assert!(all("x-envoy-internal").is_empty() && all("x-envoy-retry-on").is_empty());
}

const CLAIMS: [&str; 5] = [
    "Forwarded: for=10.0.0.1;host=evil.example;proto=https",
    "X-Forwarded-Host: evil.example",
    "X-Forwarded-Port: 666",
    "X-Forwarded-Prefix: /evil",
    "X-Forwarded-Ssl: on",
];

/// RFC 7239: Spring and others believe `Forwarded` more than X-Forwarded-For, and build links by the others.
#[tokio::test]
async fn an_edge_passes_on_no_claim_of_its_callers() {
    let edge = |hops: u32| {
        Listener::http("ingress").manager(json!({ "use_remote_address": true, "xff_num_trusted_hops": hops }))
    };
    let rig = Rig::new(edge(0)).await;
    let again = ["forwarded: for=10.0.0.2", "Forwarded: for=\"10.0.0.3", "Forwarded: gibberish"];
    let lines = [&[HOST][..], &CLAIMS, &again].concat();
    let seen = rig.http1("/", &lines).await.2.unwrap();
    for name in ["forwarded", "x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix", "x-forwarded-ssl"]
    {
        assert!(!seen.fields().has(name), "{name}: {seen:#?}");
    }
    assert_eq!(rig.http2("/", &[("forwarded", "for=10.0.0.1")]).await, Some(200));
    assert!(!rig.origin.requests()[1].fields().has("forwarded"));

    // Behind a proxy that is trusted, what that one wrote is kept; what its own caller wrote before it, or broke, is not.
    let rig = Rig::new(edge(1)).await;
    let own = "for=203.0.113.7;proto=https";
    let claimed = "Forwarded: for=10.0.0.1, for=\"[2001:db8::1]\"";
    for lines in [
        vec![HOST.to_owned(), format!("Forwarded: {own}")],
        vec![HOST.to_owned(), format!("{claimed}, {own}")],
        vec![HOST.to_owned(), claimed.to_owned(), format!("Forwarded: {own}")],
    ] {
        let lines: Vec<_> =
            lines.iter().map(String::as_str).chain(["X-Forwarded-Host: shop.example"]).collect();
        let seen = rig.http1("/", &lines).await.2.unwrap();
        assert_eq!(seen.fields().all("forwarded"), [own], "{lines:?}");
        assert_eq!(seen.fields().all("x-forwarded-host"), ["shop.example"]);
    }
    for broken in ["for=\"10.0.0.1", "for=10.0.0.1\"", "for=a b", "for", ";", "for=a;for=b"] {
        let line = format!("Forwarded: {broken}, {own}");
        let seen = rig.http1("/", &[HOST, &line]).await.2.unwrap();
        assert!(!seen.fields().has("forwarded"), "{line}: {seen:#?}");
    }

    // Inside, everything comes from the edge.
    let rig = Rig::new(Listener::http("ingress")).await;
    let seen = rig.http1("/", &[&[HOST][..], &CLAIMS].concat()).await.2.unwrap();
    for line in CLAIMS {
        let (name, value) = line.split_once(": ").unwrap();
        assert_eq!(seen.fields().all(&name.to_ascii_lowercase()), [value]);
    }
}

/// `Connection` names what ends at this hop: never what frames, routes or guards the message.
#[tokio::test]
async fn connection_takes_away_no_header_that_frames_routes_or_guards() {
    let rig = Rig::new(Listener::http("ingress")).await;
    let lines = [
        HOST,
        "Connection: close, host, content-length, authorization, cookie, x-forwarded-for, x-forwarded-proto, x-request-id, x-own",
        "Content-Length: 0",
        "Authorization: Bearer t",
        "Cookie: a=b",
        "X-Forwarded-For: 192.0.2.1",
        "X-Forwarded-Proto: https",
        "X-Request-Id: r",
        "X-Own: 1",
    ];
    let (status, _, seen) = rig.http1("/", &lines).await;
    let seen = seen.unwrap();
    let got = |name: &str| seen.fields().get(name);
    assert_eq!((status, got("host"), got("authorization")), (200, Some("a.example"), Some("Bearer t")));
    assert_eq!((got("cookie"), got("x-forwarded-for")), (Some("a=b"), Some("192.0.2.1")));
    assert_eq!((got("x-forwarded-proto"), got("x-request-id")), (Some("https"), Some("r")));
    assert_eq!((got("content-length"), got("x-own")), (Some("0"), None));
    // A header that a rule wants and that ends here is not there for the rule either.
    let rig = Rig::new(judged("ingress", rbac("ALLOW", any(), header("x-role", "user")))).await;
    assert_eq!(rig.http1("/", &[HOST, "x-role: user"]).await.0, 200);
    assert_eq!(rig.http1("/", &[HOST, "x-role: user", "Connection: x-role"]).await.0, 403);
}

/// `X_Role` is `X-Role` to programs behind CGI and its heirs. An edge refuses or removes it; policy then sees what they see.
#[tokio::test]
async fn an_underscore_spells_no_header_past_a_rule() {
    let listener = |action: &str| {
        judged("ingress", rbac("DENY", any(), header("x-role", "admin")))
            .manager(json!({ "common_http_protocol_options": { "headers_with_underscores_action": action } }))
    };
    let lines = [HOST, "X_Role: admin", "Content_Length: 3", "X-Role: user"];
    let rig = Rig::new(listener("REJECT_REQUEST")).await;
    let (status, reason, seen) = rig.http1("/", &lines).await;
    assert_eq!((status, reason.as_deref(), seen.is_none()), (400, Some("bad_header"), true));
    assert_ne!(rig.http2("/", &[("x_role", "admin")]).await, Some(200));
    let rig = Rig::new(listener("DROP_HEADER")).await;
    let seen = rig.http1("/", &lines).await.2.unwrap();
    assert!(!seen.fields().has("x_role") && !seen.fields().has("content_length"), "{seen:#?}");
    assert_eq!(seen.fields().get("x-role"), Some("user"));
    assert_eq!(rig.http2("/", &[("x_role", "admin")]).await, Some(200));
    assert!(!rig.origin.requests()[1].fields().has("x_role"));
}
