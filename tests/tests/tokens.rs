//! Tokens whose keys are fetched: before they are needed, over a cluster, and never believed for too long.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use remora_tests::client::http1::{Http1Client, Response};
use remora_tests::config::{Listener, cluster, direct, to_cluster};
use remora_tests::control_plane::ControlPlane;
use remora_tests::proxy::{Builder, Proxy};
use remora_tests::resources::{cds, lds, under};
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::eventually_async;
use serde_json::{Value, json};

/// A key set with one secret, and a token that is signed with it. The secret is `test secret, in no way secret`.
const KEYS: &str =
    r#"{"keys":[{"kty":"oct","kid":"one","alg":"HS256","k":"dGVzdCBzZWNyZXQsIGluIG5vIHdheSBzZWNyZXQ"}]}"#;
/// Claims: issuer `test`, expires in 2100.
const TOKEN: &str = "eyJhbGciOiAiSFMyNTYiLCAia2lkIjogIm9uZSJ9.eyJpc3MiOiAidGVzdCIsICJleHAiOiA0MTAyNDQ0ODAwfQ.a-PLEr4uR7IIfu-vMnd2Do-0XfVEAQNfKdsYYGzc9WU";
/// The same key set after a rotation: another secret.
const ROTATED: &str =
    r#"{"keys":[{"kty":"oct","kid":"one","alg":"HS256","k":"YW5vdGhlciB0ZXN0IHNlY3JldA"}]}"#;

/// An issuer that answers with what the test puts there; None is a 503.
struct Issuer {
    server: Http1Upstream,
    keys: Arc<Mutex<Option<&'static str>>>,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    async fn with(keys: Option<&'static str>) -> Self {
        let (keys, asked) = (Arc::new(Mutex::new(keys)), Arc::new(AtomicUsize::new(0)));
        let (answer, count) = (keys.clone(), asked.clone());
        let server = Http1Upstream::scripted(move |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
            match *answer.lock().unwrap() {
                Some(keys) => Answer::ok(keys),
                None => Answer::status(503, "Unavailable", ""),
            }
        })
        .await;
        Self { server, keys, asked }
    }

    fn set(&self, keys: Option<&'static str>) {
        *self.keys.lock().unwrap() = keys;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn filters(cache: &str) -> Value {
    json!({ "http_filters": [
        { "name": "envoy.filters.http.jwt_authn", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            "providers": { "test": {
                "issuer": "test",
                "remote_jwks": {
                    "http_uri": { "uri": "http://issuer.example/keys?v=1", "cluster": "issuer", "timeout": "5s" },
                    "cache_duration": cache,
                    "async_fetch": { "failed_refetch_duration": "0.05s" },
                },
            } },
            "rules": [{ "match": { "prefix": "/" }, "requires": { "provider_name": "test" } }],
        } },
        { "name": "envoy.filters.http.router",
          "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } },
    ] })
}

fn proxy(issuer: &Issuer, origin: &Http1Upstream, cache: &str) -> Builder {
    Proxy::builder()
        .listener(Listener::http("ingress").manager(filters(cache)).route(to_cluster("/", "origin")))
        .upstream("origin", origin)
        .upstream("issuer", &issuer.server)
}

async fn ask(client: &mut Http1Client, token: &str) -> Response {
    client.send(format!("GET / HTTP/1.1\r\nHost: a.example\r\nAuthorization: Bearer {token}\r\n\r\n")).await;
    client.response().await.unwrap()
}

#[tokio::test]
async fn keys_are_fetched_over_their_cluster_and_the_first_request_waits_for_them() {
    let issuer = Issuer::with(Some(KEYS)).await;
    let origin = Http1Upstream::answering(Answer::ok("in")).await;
    let proxy = proxy(&issuer, &origin, "600s").start().await;
    let mut client = proxy.http1().await;
    assert_eq!(ask(&mut client, TOKEN).await.text(), "in");
    let forged = TOKEN.replace('.', ".A");
    let refused = ask(&mut client, &forged).await;
    assert_eq!((refused.status, refused.reason()), (401, Some("jwt_malformed")));
    let fetched = issuer.server.request(0).await;
    assert_eq!((fetched.target(), fetched.fields().get("host")), ("/keys?v=1", Some("issuer.example")));
    assert_eq!(issuer.asked(), 1, "one set of keys serves all requests");
    assert!(origin.requests().iter().all(|seen| !seen.fields().has("authorization")), "tokens stay here");
}

#[tokio::test]
async fn a_rotation_is_seen_and_an_issuer_that_stays_away_closes_the_door() {
    let issuer = Issuer::with(None).await;
    let origin = Http1Upstream::answering(Answer::ok("in")).await;
    let proxy = proxy(&issuer, &origin, "0.4s").start().await;
    let mut client = proxy.http1().await;
    // CVE-2025-64527: several requests while fetching fails.
    for _ in 0..3 {
        assert_eq!(ask(&mut client, TOKEN).await.reason(), Some("jwt_keys_unavailable"));
    }
    let mut until = async |what: &str, reason: Option<&str>| {
        eventually_async(what, async || ask(&mut client, TOKEN).await.reason() == reason).await;
    };
    issuer.set(Some(KEYS));
    until("the keys come", None).await;
    issuer.set(Some(ROTATED));
    until("the old key is gone", Some("jwt_bad_signature")).await;
    issuer.set(Some(KEYS));
    until("and back", None).await;
    issuer.set(None);
    until("the cache is over", Some("jwt_keys_unavailable")).await;
    issuer.set(Some("no keys"));
    let asked = issuer.asked();
    eventually_async("it is asked again and again", async || issuer.asked() > asked + 2).await;
    until("what is no key set changes nothing", Some("jwt_keys_unavailable")).await;
    assert!(proxy.stderr().contains("a key set cannot be fetched"));
}

/// CVE-2025-64527: tokens of two issuers in one request, and many such requests at once, while no fetch comes to an end well.
#[tokio::test]
async fn two_tokens_whose_keys_cannot_be_fetched_are_two_refusals_and_no_crash() {
    let issuer =
        Http1Upstream::answering(Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{").reset()).await;
    let origin = Http1Upstream::answering(Answer::ok("in")).await;
    let remote = |path: &str| {
        json!({
            "http_uri": { "uri": format!("http://issuer.example{path}"), "cluster": "issuer", "timeout": "1s" },
            "async_fetch": { "failed_refetch_duration": "0.05s" },
        })
    };
    let both = json!([{ "provider_name": "test" }, { "provider_name": "second" }]);
    let any = json!([{ "requires_any": { "requirements": both } }, { "allow_missing_or_failed": {} }]);
    let mut filters = filters("600s");
    let config = &mut filters["http_filters"][0]["typed_config"];
    config["providers"] = json!({
        "test": { "issuer": "test", "remote_jwks": remote("/a") },
        "second": { "issuer": "test", "remote_jwks": remote("/b"), "from_headers": [{ "name": "x-second" }] },
    });
    config["rules"] = json!([
        { "match": { "prefix": "/lenient" }, "requires": { "requires_any": { "requirements": any } } },
        { "match": { "prefix": "/" }, "requires": { "requires_all": { "requirements": both } } },
    ]);
    let proxy = Proxy::builder()
        .listener(Listener::http("ingress").manager(filters).route(to_cluster("/", "origin")))
        .upstream("origin", &origin)
        .upstream("issuer", &issuer)
        .start()
        .await;
    let mut clients = Vec::new();
    for path in ["/lenient", "/strict"].repeat(8) {
        let mut client = proxy.http1().await;
        client
            .send(format!(
                "GET {path} HTTP/1.1\r\nHost: a.example\r\nAuthorization: Bearer {TOKEN}\r\nX-Second: {TOKEN}\r\n\r\n"
            ))
            .await;
        clients.push((path, client));
    }
    for (path, mut client) in clients {
        let answer = client.response().await.unwrap();
        match path {
            "/lenient" => assert_eq!(answer.text(), "in"),
            _ => assert_eq!((answer.status, answer.reason()), (401, Some("jwt_keys_unavailable"))),
        }
    }
    issuer.request(3).await;
    assert_eq!(proxy.http1().await.get("/").await.unwrap().reason(), Some("jwt_missing"));
}

/// Each version of a listener goes on with what the one before it knew.
#[tokio::test]
async fn a_listener_that_changes_often_does_not_ask_for_its_keys_again() {
    let issuer = Issuer::with(Some(KEYS)).await;
    let origin = Http1Upstream::answering(Answer::ok("in")).await;
    let plane = ControlPlane::start().await;
    let publish = |version: u32| {
        let clusters = [("origin", origin.address()), ("issuer", issuer.server.address())];
        let clusters = clusters.into_iter().map(|(name, address)| cds(&cluster(name, &[address])));
        let versions = format!("/version/{version}");
        let listener = Listener::http("ingress").manager(filters("600s"));
        let listener = listener.route(direct(&versions, 200, "now")).route(to_cluster("/", "origin"));
        plane.publish(clusters.chain([lds(listener)]));
    };
    publish(0);
    let proxy = under(&[plane.address]).start().await;
    let mut client = proxy.http1().await;
    assert_eq!(ask(&mut client, TOKEN).await.text(), "in");
    for version in 1..=20 {
        publish(version);
        let head = format!(
            "GET /version/{version} HTTP/1.1\r\nHost: a.example\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        );
        eventually_async("the next version", async || {
            client.send(&head).await;
            client.response().await.unwrap().text() == "now"
        })
        .await;
    }
    assert_eq!(issuer.asked(), 1);
}
