//! A refusal names the rule that refused: to the operator by `/why` and `remora why`, to the caller only its reason.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::process::Command;

use remora_tests::authorizer::{Authorizer, Reply, deny};
use remora_tests::certs::Authority;
use remora_tests::client::http1::{Http1Client, Response};
use remora_tests::client::http2::request;
use remora_tests::config::{Listener, cluster, direct, merge, to_cluster};
use remora_tests::proxy::{Builder, Proxy, binary};
use remora_tests::tokens::Issuer;
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::eventually_async;
use serde_json::{Value, json};

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";
const HEAD: &str = "GET /orders/7?token=secret HTTP/1.1\r\nHost: shop.example\r\nX-User: guest\r\nX-Request-Id: r-1\r\n\
                    Authorization: Bearer secret\r\nCookie: secret\r\n\r\n";

/// Guests may not.
fn no_guests(kind: &str, principal: Value) -> Value {
    json!({ "name": format!("envoy.filters.{kind}.rbac"), "typed_config": {
        "@type": format!("{FILTERS}.{kind}.rbac.v3.RBAC"),
        "rules": { "action": "DENY", "policies": { "shop/no-guests:rules[0]": {
            "permissions": [{ "any": true }], "principals": [principal],
        } } },
    } })
}

fn guest() -> Value {
    json!({ "header": { "name": "x-user", "string_match": { "exact": "guest" } } })
}

/// A listener with this filter before the router.
fn filtered(filter: Value) -> Listener {
    let router = json!({ "name": "envoy.filters.http.router", "typed_config": { "@type": format!("{FILTERS}.http.router.v3.Router") } });
    Listener::http("ingress").manager(json!({ "http_filters": [filter, router] }))
}

/// `listener` with a network filter in front.
fn behind(mut listener: Value, mut filter: Value) -> Value {
    merge(&mut filter, json!({ "typed_config": { "stat_prefix": "net" } }));
    listener["filter_chains"][0]["filters"].as_array_mut().unwrap().insert(0, filter);
    listener
}

async fn origin() -> Http1Upstream {
    Http1Upstream::answering(Answer::ok("in")).await
}

async fn ask(proxy: &Proxy, head: &str) -> Response {
    let mut client = proxy.http1().await;
    client.send(head).await;
    client.response().await.unwrap()
}

async fn why(proxy: &Proxy, more: &str) -> Vec<Value> {
    let page = proxy.admin("GET", &format!("/why?format=json{more}")).await.unwrap();
    let mut page: Value = serde_json::from_slice(&page.body).unwrap();
    serde_json::from_value(page["stories"].take()).unwrap()
}

/// The newest story of this reason, once it is there.
async fn story_of(proxy: &Proxy, reason: &str) -> Value {
    let mut found = Value::Null;
    eventually_async(&format!("a story of {reason}"), async || {
        found = why(proxy, &format!("&reason={reason}")).await.first().cloned().unwrap_or_default();
        found.is_object()
    })
    .await;
    found
}

/// Whether the story has these facts.
fn says(story: &Value, facts: Value) {
    for (name, fact) in facts.as_object().unwrap() {
        assert_eq!(&story[name], fact, "{name} of {story:#}");
    }
}

fn judging(origin: &Http1Upstream) -> Builder {
    let listener = filtered(no_guests("http", guest())).route(to_cluster("/", "origin"));
    Proxy::builder().listener(listener).upstream("origin", origin)
}

#[tokio::test]
async fn a_refused_request_is_found_by_its_id_with_its_rule_and_without_secrets() {
    let origin = origin().await;
    let proxy = judging(&origin).start().await;
    let answer = ask(&proxy, HEAD).await;
    assert_eq!((answer.status, answer.reason()), (403, Some("rbac_denied")));
    assert!(!answer.fields.has("x-request-id"), "unless always_set_request_id_in_response");
    let told = format!("{:?} {}", answer.fields, answer.text());
    assert!(!told.contains("guests"), "the caller knows the reason alone: {told}");
    let story = story_of(&proxy, "rbac_denied").await;
    says(
        &story,
        json!({
            "party": "proxy", "status": 403, "rule": "shop/no-guests:rules[0]", "request_id": "r-1", "method": "GET",
            "host": "shop.example", "path": "/orders/7", "listener": "ingress", "virtual_host": "all", "attempts": 0,
            "details": "rbac_access_denied_matched_policy[shop/no-guests:rules[0]]",
        }),
    );
    for path in ["/why", "/why/r-1", "/why?id=r-1", "/why?format=json", "/why/r-1?format=json"] {
        let page = proxy.admin("GET", path).await.unwrap();
        assert_eq!(page.status, 200, "{path}");
        assert!(page.text().contains("shop/no-guests:rules[0]"), "{path}: {}", page.text());
        assert!(!page.text().contains("secret"), "{path}: {}", page.text());
    }
    let page = proxy.admin("GET", "/why/r-1").await.unwrap().text();
    assert!(page.contains("means: An access policy (RBAC) refuses it.\n"), "{page}");
    let by_number = format!("/why/{}", story["connection_id"]);
    assert!(proxy.admin("GET", &by_number).await.unwrap().text().contains("request_id: r-1\n"));
}

#[tokio::test]
async fn where_no_policy_matched_those_that_would_have_given_access_are_named() {
    let origin = origin().await;
    let policy = |user: &str| {
        let is = json!({ "header": { "name": "x-user", "string_match": { "exact": user } } });
        json!({ "permissions": [{ "any": true }], "principals": [is] })
    };
    let rules = |kind: &str, policies: Value| {
        json!({ "name": kind, "typed_config": {
        "@type": format!("{FILTERS}.{kind}.rbac.v3.RBAC"), "rules": { "action": "ALLOW", "policies": policies },
    } })
    };
    let some = rules("http", json!({ "ann": policy("ann"), "bob": policy("bob") }));
    let proxy = Proxy::builder()
        .listener(filtered(some).route(to_cluster("/", "origin")))
        .listener(behind(Listener::tcp("opaque", "origin"), rules("network", json!({}))))
        .upstream("origin", &origin)
        .start()
        .await;
    assert_eq!(ask(&proxy, HEAD).await.reason(), Some("rbac_denied"));
    says(&story_of(&proxy, "rbac_denied").await, json!({ "rule": "none of ann, bob" }));
    assert!(Http1Client::connect(proxy.address("opaque")).await.is_closed().await);
    eventually_async("the story of the connection", async || {
        why(&proxy, "&reason=rbac_denied").await[0]["rule"] == "none: there is no policy"
    })
    .await;
}

#[tokio::test]
async fn what_is_not_known_is_said_and_what_went_well_is_not_kept() {
    let origin = origin().await;
    let proxy = judging(&origin).start().await;
    assert_eq!(ask(&proxy, &HEAD.replace("guest", "ann")).await.text(), "in");
    assert_eq!(ask(&proxy, &HEAD.replace("r-1", "r-2")).await.status, 403);
    story_of(&proxy, "rbac_denied").await;
    assert_eq!(why(&proxy, "").await.len(), 1);
    let page = proxy.admin("GET", "/why/r-1").await.unwrap();
    assert_eq!(page.status, 404);
    assert!(page.text().starts_with("not refused here, or pushed out by newer ones"), "{}", page.text());
    for wrong in ["/why?reason=nonsense", "/why?what=r-1", "/why/r-1?id=r-2"] {
        assert_eq!(proxy.admin("GET", wrong).await.unwrap().status, 400, "{wrong}");
    }
    assert_eq!(proxy.admin("POST", "/why/r-1").await.unwrap().status, 405);
}

#[tokio::test]
async fn refused_connections_name_the_policy_whatever_they_carry() {
    let origin = origin().await;
    let all = || no_guests("network", json!({ "any": true }));
    let http = Listener::http("ingress").route(to_cluster("/", "origin"));
    let proxy = Proxy::builder()
        .listener(behind(http.into(), all()))
        .listener(behind(Listener::tcp("opaque", "origin"), all()))
        .upstream("origin", &origin)
        .start()
        .await;
    for (listener, cluster) in [("ingress", Value::Null), ("opaque", json!("origin"))] {
        assert!(Http1Client::connect(proxy.address(listener)).await.is_closed().await);
        eventually_async("its story", async || {
            why(&proxy, "&reason=rbac_denied")
                .await
                .first()
                .is_some_and(|story| story["listener"] == listener)
        })
        .await;
        let story = story_of(&proxy, "rbac_denied").await;
        says(
            &story,
            json!({ "rule": "shop/no-guests:rules[0]", "party": "proxy", "cluster": cluster, "method": null }),
        );
        let number = format!("&id={}", story["connection_id"]);
        assert_eq!(why(&proxy, &number).await, [story]);
    }
}

#[tokio::test]
async fn a_token_names_the_providers_that_were_asked_for() {
    let (origin, keys) = (origin().await, Issuer::new().key_set());
    let provider = |issuer: &str| json!({ "issuer": issuer, "local_jwks": { "inline_string": keys } });
    let any = json!([{ "provider_name": "staff" }, { "provider_name": "partners" }]);
    let filter = json!({ "name": "envoy.filters.http.jwt_authn", "typed_config": {
        "@type": format!("{FILTERS}.http.jwt_authn.v3.JwtAuthentication"),
        "providers": { "staff": provider("https://a.example"), "partners": provider("https://b.example") },
        "rules": [{ "match": { "prefix": "/" }, "requires": { "requires_any": { "requirements": any } } }],
    } });
    let listener = filtered(filter).route(to_cluster("/", "origin"));
    let proxy = Proxy::builder().listener(listener).upstream("origin", &origin).start().await;
    assert_eq!(ask(&proxy, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.reason(), Some("jwt_missing"));
    let facts = json!({ "rule": "any of staff, partners", "details": "jwt_authn_access_denied{Jwt_is_missing}", "status": 401 });
    says(&story_of(&proxy, "jwt_missing").await, facts);
}

#[tokio::test]
async fn a_service_that_refuses_or_fails_names_the_filter_that_asked() {
    let origin = origin().await;
    for (reply, reason, details) in [
        (deny(401, vec![], "who are you"), "ext_authz_denied", Value::Null),
        (
            Reply::Fail(tonic::Status::internal("down")),
            "ext_authz_error",
            json!("ext_authz_error{grpc_status}"),
        ),
    ] {
        let auth = Authorizer::answering(reply).await;
        let filter = json!({ "name": "door", "typed_config": {
            "@type": format!("{FILTERS}.http.ext_authz.v3.ExtAuthz"), "transport_api_version": "V3",
            "grpc_service": { "envoy_grpc": { "cluster_name": "auth" }, "timeout": "20s" },
        } });
        let listener = filtered(filter).route(to_cluster("/", "origin"));
        let proxy = Proxy::builder()
            .listener(listener)
            .upstream("origin", &origin)
            .upstream("auth", &auth)
            .start()
            .await;
        let answer = ask(&proxy, HEAD).await;
        assert_eq!(answer.reason(), Some(reason));
        let facts =
            json!({ "rule": "door", "details": details, "status": answer.status, "request_id": "r-1" });
        says(&story_of(&proxy, reason).await, facts);
    }
}

#[tokio::test]
async fn a_handshake_that_fails_is_told_with_what_tls_says() {
    const WEB: &str = "spiffe://mesh.test/ns/shop/sa/web";
    let (origin, authority) = (origin().await, Authority::new());
    let own = authority.issue(&["a.example"]);
    let listener = Listener::http("ingress").mutual_tls(&own, &authority, WEB);
    let listener = listener.route(to_cluster("/shop", "origin"));
    let proxy = Proxy::builder().listener(listener).upstream("origin", &origin).start().await;
    let nobody = authority.client("a.example", &["http/1.1"], None);
    let answer = match Http1Client::connect_tls(proxy.address("ingress"), &nobody).await {
        Ok(mut client) => client.get("/").await.ok(),
        Err(_) => None,
    };
    assert!(answer.is_none());
    let story = story_of(&proxy, "tls_no_client_certificate").await;
    says(
        &story,
        json!({ "party": "downstream", "listener": "ingress", "filter_chain": "ingress/0", "status": null }),
    );
    assert!(story["details"].as_str().unwrap().contains("no certificates"), "{story}");
    assert!(story["downstream"].as_str().unwrap().starts_with("127.0.0.1:"), "{story}");
    let web = authority.client("a.example", &["http/1.1"], Some(&authority.issue(&[WEB])));
    assert_eq!(proxy.https1(&web).await.get("/").await.unwrap().reason(), Some("no_route"));
    says(&story_of(&proxy, "no_route").await, json!({ "peer": WEB, "server_name": "a.example" }));
}

#[tokio::test]
async fn what_has_no_route_or_no_endpoint_is_told_with_how_far_it_came() {
    let gone = origin().await.address();
    let proxy = Proxy::builder()
        .listener(Listener::http("ingress").route(to_cluster("/shop", "origin")))
        .cluster(cluster("origin", &[gone]))
        .start()
        .await;
    assert_eq!(ask(&proxy, HEAD).await.reason(), Some("no_route"));
    says(
        &story_of(&proxy, "no_route").await,
        json!({ "status": 404, "details": "route_not_found", "virtual_host": "all", "path": "/orders/7", "rule": null }),
    );
    assert_eq!(ask(&proxy, &HEAD.replace("/orders", "/shop")).await.status, 503);
    says(
        &story_of(&proxy, "upstream_connect_failure").await,
        json!({ "status": 503, "party": "upstream", "virtual_host": "all", "cluster": "origin", "path": "/shop/7", "attempts": 1 }),
    );
}

#[tokio::test]
async fn what_could_not_be_read_has_no_path_and_answers_of_the_proxy_have_their_status() {
    let origin = origin().await;
    let manager = json!({ "request_timeout": "0.2s" });
    let proxy = Proxy::builder()
        .listener(Listener::http("ingress").manager(manager).route(to_cluster("/", "origin")))
        .upstream("origin", &origin)
        .start()
        .await;
    assert_eq!(ask(&proxy, "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n").await.status, 400);
    says(
        &story_of(&proxy, "bad_content_length").await,
        json!({ "status": 400, "party": "downstream", "method": null, "path": null }),
    );
    let mut client = proxy.http2().await;
    let stream = client.open(&request("POST", "/slow"), false).await;
    assert_eq!(client.outcome(stream).await.answer().status, 408);
    says(
        &story_of(&proxy, "request_timeout").await,
        json!({ "status": 408, "method": "POST", "path": "/slow" }),
    );
}

#[tokio::test]
async fn a_loud_refusal_does_not_push_out_a_rare_one_and_what_went_well_is_not_kept() {
    let origin = origin().await;
    let empty = Listener::http("empty").route(direct("/there", 200, "x"));
    let proxy = judging(&origin).listener(empty).start().await;
    assert_eq!(ask(&proxy, HEAD).await.reason(), Some("rbac_denied"));
    let mut client = Http1Client::connect(proxy.address("empty")).await;
    for _ in 0..300 {
        assert_eq!(client.get("/nowhere").await.unwrap().reason(), Some("no_route"));
        assert_eq!(client.get("/there").await.unwrap().reason(), Some("direct_response"));
    }
    assert_eq!(why(&proxy, "").await.len(), 128);
    assert_eq!(why(&proxy, "&reason=no_route").await.len(), 127);
    assert_eq!(story_of(&proxy, "rbac_denied").await["request_id"], "r-1");
}

fn remora(proxy: Option<&Proxy>, args: &[&str]) -> (Option<i32>, String, String) {
    // Nobody listens on port 1.
    let admin = proxy.map_or_else(|| "127.0.0.1:1".to_owned(), |proxy| proxy.admin.to_string());
    let output = Command::new(binary().0).arg("why").args(args).env("REMORA_ADMIN", admin).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn remora_why_tells_the_last_refusals_one_of_them_or_what_a_reason_means() {
    let origin = origin().await;
    let proxy = judging(&origin).start().await;
    let (code, out, _) = remora(Some(&proxy), &[]);
    assert_eq!(
        (code, out.as_str()),
        (Some(0), "Nothing is kept: not met with here, or pushed out by newer ones.\n")
    );
    assert_eq!(ask(&proxy, HEAD).await.status, 403);
    story_of(&proxy, "rbac_denied").await;

    let (code, out, error) = remora(Some(&proxy), &[]);
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((code, error.as_str()), (Some(0), ""));
    assert_eq!(lines[0], ["AGE", "REASON", "STATUS", "RULE", "WHAT", "ID"]);
    let row = ["rbac_denied", "403", "shop/no-guests:rules[0]", "GET", "shop.example/orders/7", "r-1"];
    assert_eq!(lines[1][1..], row);
    assert!(!out.contains('\u{1b}'), "no colours in a pipe");

    let (code, out, _) = remora(Some(&proxy), &["r-1"]);
    assert_eq!(code, Some(0));
    for line in ["An access policy (RBAC) refuses it.", "shop/no-guests:rules[0]", "To do"] {
        assert!(out.contains(line), "{line}: {out}");
    }
    let (code, out, _) = remora(Some(&proxy), &["rbac_denied"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("HTTP 403, gRPC 7 PermissionDenied") && out.contains("r-1"), "{out}");
    let json = |args: &[&str]| serde_json::from_str::<Value>(&remora(Some(&proxy), args).1).unwrap();
    assert_eq!(json(&["-o", "json"])["stories"][0]["request_id"], "r-1");
    assert_eq!(json(&["r-1", "-o", "json"])["stories"][0]["rule"], "shop/no-guests:rules[0]");
    let told = json(&["rbac_denied", "-o", "json"]);
    assert_eq!((&told["reason"]["http_status"], told["stories"].as_array().unwrap().len()), (&json!(403), 1));

    let (code, out, error) = remora(Some(&proxy), &["r-2"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(error.contains("knows nothing of r-2"), "{error}");
}

#[tokio::test]
async fn remora_why_explains_a_reason_without_a_proxy_and_nothing_else() {
    let (code, out, _) = remora(None, &["tls_no_client_certificate"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("Give the client a certificate") && out.contains("No proxy was asked"), "{out}");
    for args in [&[][..], &["r-1"]] {
        let (code, out, error) = remora(None, args);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{args:?}");
        assert!(
            error.contains("the proxy at 127.0.0.1:1 (--admin, REMORA_ADMIN) cannot be asked"),
            "{error}"
        );
    }
    assert_eq!(remora(None, &["a", "b"]).0, Some(2));
}
