//! Tokens (JWT): every classic forgery, each answered and counted by its own reason, and none forwarded.

use std::time::{SystemTime, UNIX_EPOCH};

use remora_tests::client::http1::Response;
use remora_tests::config::to_cluster;
use remora_tests::proxy::Proxy;
use remora_tests::tokens::{Issuer, by_secret, encode};
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use serde_json::{Value, json};

use crate::judged;

/// The filter `envoy.filters.http.jwt_authn`: one issuer, one audience, on every path.
fn required(keys: &str) -> Value {
    json!({ "name": "envoy.filters.http.jwt_authn", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "providers": { "main": {
            "issuer": "https://issuer.example",
            "audiences": ["shop"],
            "local_jwks": { "inline_string": keys },
        } },
        "rules": [{ "match": { "prefix": "/" }, "requires": { "provider_name": "main" } }],
    } })
}

struct Rig {
    issuer: Issuer,
    origin: Http1Upstream,
    proxy: Proxy,
    now: u64,
}

impl Rig {
    async fn new() -> Self {
        let issuer = Issuer::new();
        let origin = Http1Upstream::answering(Answer::ok("in")).await;
        let listener = judged("ingress", required(&issuer.key_set())).route(to_cluster("/", "origin"));
        let proxy = Proxy::builder().listener(listener).upstream("origin", &origin).start().await;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        Self { issuer, origin, proxy, now }
    }

    /// Claims that are good, with these instead; null takes one away.
    fn claims(&self, other: Value) -> Value {
        let mut all =
            json!({ "iss": "https://issuer.example", "aud": "shop", "sub": "ann", "exp": self.now + 600 });
        let map = all.as_object_mut().unwrap();
        for (name, value) in other.as_object().unwrap() {
            match value {
                Value::Null => drop(map.remove(name)),
                value => drop(map.insert(name.clone(), value.clone())),
            }
        }
        all
    }

    fn with(&self, other: Value) -> String {
        self.issuer.token(&self.claims(other))
    }

    /// A good token's claims under this header, signed with the issuer's own key.
    fn under(&self, header: Value) -> String {
        self.issuer.sign(&header, &self.claims(json!({})).to_string())
    }

    async fn ask(&self, target: &str, lines: &[String]) -> Response {
        let mut client = self.proxy.http1().await;
        let head: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: a.example\r\n{head}\r\n")).await;
        client.response().await.unwrap()
    }

    /// The token is refused for this reason, and counted under it alone.
    async fn refuses(&self, what: &str, token: &str, reason: &str) {
        let series = format!("remora_local_replies_total{{reason=\"{reason}\",party=\"proxy\"}}");
        let before = self.proxy.count(&series).await;
        let answer = self.ask("/", &[format!("Authorization: Bearer {token}")]).await;
        let status = if reason == "jwt_audience" { 403 } else { 401 };
        assert_eq!((answer.status, answer.reason()), (status, Some(reason)), "{what}");
        self.proxy.counts(&series, before + 1).await;
    }
}

/// `alg` is not the sender's to choose: none in any spelling, and an RSA key is no secret for HMAC.
#[tokio::test]
async fn a_token_does_not_choose_its_algorithm() {
    let rig = Rig::new().await;
    let good = rig.with(json!({}));
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let payload = signed.split_once('.').unwrap().1;
    for name in ["none", "NONE", "nOnE", "None"] {
        let header = encode(json!({ "alg": name, "kid": "one" }).to_string());
        rig.refuses(name, &format!("{header}.{payload}."), "jwt_algorithm").await;
        rig.refuses(name, &format!("{header}.{payload}.{signature}"), "jwt_algorithm").await;
    }
    let claims = rig.claims(json!({})).to_string();
    let modulus = rig.issuer.jwk["n"].as_str().unwrap();
    for secret in
        [rig.issuer.public_pem.as_str(), rig.issuer.public_pem.trim_end(), &rig.issuer.key_set(), modulus, ""]
    {
        let token = by_secret(secret.as_bytes(), &json!({ "alg": "HS256", "kid": "one" }), &claims);
        rig.refuses("HS256 with what is public", &token, "jwt_algorithm").await;
    }
    assert!(rig.origin.requests().is_empty());
    assert_eq!(rig.ask("/", &[format!("Authorization: Bearer {good}")]).await.text(), "in");
}

/// Keys come from the issuer's set: not from the token, not from an address in it, and `kid` is no path.
#[tokio::test]
async fn a_token_does_not_bring_its_key() {
    let rig = Rig::new().await;
    let stranger = Issuer::new();
    let claims = rig.claims(json!({})).to_string();
    // Nobody may ask there: the test would see it.
    let trap = Http1Upstream::answering(Answer::ok(&stranger.key_set())).await;
    let there = format!("http://{}/keys", remora_tests::upstream::Upstream::address(&trap));
    for extra in [
        json!({ "jwk": stranger.jwk }),
        json!({ "jku": there }),
        json!({ "x5u": there }),
        json!({ "x5c": ["MIIB"] }),
    ] {
        let mut header = json!({ "alg": "RS256", "kid": "one" });
        header.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        rig.refuses("a key of its own", &stranger.sign(&header, &claims), "jwt_bad_signature").await;
    }
    for kid in ["two", "../../../../dev/null", "/dev/null", "one\u{0}", "one\u{0}/../../x", "' OR '1'='1", ""]
    {
        rig.refuses(kid, &rig.under(json!({ "alg": "RS256", "kid": kid })), "jwt_unknown_key").await;
    }
    rig.refuses("kid is a number", &rig.under(json!({ "alg": "RS256", "kid": 1 })), "jwt_malformed").await;
    rig.refuses(
        "crit",
        &rig.under(json!({ "alg": "RS256", "kid": "one", "crit": ["exp"] })),
        "jwt_malformed",
    )
    .await;
    assert!(rig.origin.requests().is_empty() && trap.requests().is_empty());
}

/// What two readers could read in two ways is no token.
#[tokio::test]
async fn an_ambiguous_token_is_none() {
    let rig = Rig::new().await;
    let good = rig.with(json!({}));
    let parts: Vec<&str> = good.split('.').collect();
    for token in [
        format!("{}.{}", parts[0], parts[1]),
        parts[0].to_owned(),
        format!("{good}.{}", parts[2]),
        format!("{good}="),
        format!("{}.{}.!", parts[0], parts[1]),
        "a".repeat(40_000),
    ] {
        rig.refuses("segments", &token, "jwt_malformed").await;
    }
    let header = json!({ "alg": "RS256", "kid": "one" });
    let claims = rig.claims(json!({})).to_string();
    for twice in [r#""sub":"admin""#, r#""exp":99999999999"#, r#""realm":{"a":1,"a":2}"#] {
        let payload = format!("{},{twice}}}", claims.strip_suffix('}').unwrap());
        rig.refuses(twice, &rig.issuer.sign(&header, &payload), "jwt_malformed").await;
    }
    let twice = encode(r#"{"alg":"RS256","kid":"one","alg":"none"}"#);
    rig.refuses("alg twice", &format!("{twice}.{}.{}", parts[1], parts[2]), "jwt_malformed").await;
    let bearer = |token: &str| format!("Authorization: Bearer {token}");
    let other = rig.with(json!({ "sub": "bob" }));
    for (target, lines) in [
        ("/".to_owned(), vec![bearer(&good), bearer(&other)]),
        ("/".to_owned(), vec![format!("{}, {}", bearer(&good), bearer(&other))]),
        (format!("/?access_token={other}"), vec![bearer(&good)]),
        (format!("/?access_token={good}&access_token={other}"), vec![]),
    ] {
        let answer = rig.ask(&target, &lines).await;
        assert_eq!((answer.status, answer.reason()), (401, Some("jwt_malformed")), "{lines:?}");
    }
    // More than a request's headers may hold: it does not even come to the token.
    let answer = rig.ask("/", &[bearer(&"a".repeat(1 << 20))]).await;
    assert_eq!((answer.status, answer.reason()), (431, Some("request_headers_too_large")));
    assert!(rig.origin.requests().is_empty());
}

/// Claims: a skew of 60 s and not more, the audience, the issuer to the letter.
#[tokio::test]
async fn claims_are_judged_each_by_its_own_reason() {
    let rig = Rig::new().await;
    let now = rig.now;
    for (claims, reason) in [
        (json!({ "exp": now - 90 }), "jwt_expired"),
        (json!({ "exp": 0 }), "jwt_expired"),
        (json!({ "nbf": now + 120 }), "jwt_not_yet_valid"),
        (json!({ "exp": "tomorrow" }), "jwt_malformed"),
        (json!({ "exp": -1 }), "jwt_malformed"),
        (json!({ "aud": "shop2" }), "jwt_audience"),
        (json!({ "aud": ["other", "sho"] }), "jwt_audience"),
        (json!({ "aud": [] }), "jwt_audience"),
        (json!({ "aud": null }), "jwt_audience"),
        (json!({ "aud": ["shop", 1] }), "jwt_malformed"),
        (json!({ "iss": null }), "jwt_unknown_issuer"),
        (json!({ "iss": "https://issuer.example.evil" }), "jwt_unknown_issuer"),
        (json!({ "iss": "https://issuer.exampl" }), "jwt_unknown_issuer"),
        (json!({ "iss": "HTTPS://issuer.example" }), "jwt_unknown_issuer"),
        (json!({ "iss": ["https://issuer.example"] }), "jwt_malformed"),
    ] {
        rig.refuses(&claims.to_string(), &rig.with(claims.clone()), reason).await;
    }
    assert!(rig.origin.requests().is_empty());
    for claims in
        [json!({ "exp": now - 30 }), json!({ "nbf": now + 30 }), json!({ "aud": ["other", "shop"] })]
    {
        let answer = rig.ask("/", &[format!("Authorization: Bearer {}", rig.with(claims.clone()))]).await;
        assert_eq!(answer.text(), "in", "{claims}");
    }
    assert_eq!(rig.ask("/", &[]).await.reason(), Some("jwt_missing"));
}
