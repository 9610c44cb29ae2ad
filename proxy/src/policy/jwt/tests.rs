//! Forged, broken and good tokens.

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Version};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::extract::{Location, default_locations};
use super::keys::{Fetched, KeySet, RemoteKeys};
use super::provider::Now;
use super::requirement::Leniency;
use super::token::Token;
use super::*;
use crate::error::Reason;
use crate::route::text::{Place, StringMatch};

/// The time of every test.
const NOW: u64 = 1_700_000_000;

/// A signing key and the public half of it.
struct Signer {
    key: EncodingKey,
    algorithm: Algorithm,
    jwk: Value,
}

impl Signer {
    fn rsa() -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        // PKCS #8 of a 2048-bit key: 26 bytes in front of PKCS #1.
        let key = EncodingKey::from_rsa_der(&pair.serialize_der()[26..]);
        Self::new(key, Algorithm::RS256)
    }

    fn ec() -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        Self::new(EncodingKey::from_ec_der(&pair.serialize_der()), Algorithm::ES256)
    }

    fn new(key: EncodingKey, algorithm: Algorithm) -> Self {
        let jwk = serde_json::to_value(Jwk::from_encoding_key(&key, algorithm).unwrap()).unwrap();
        Self { key, algorithm, jwk }
    }

    /// The key set of this key as `kid`, which does not say its algorithm.
    fn set(&self, kid: &str) -> Vec<u8> {
        let mut jwk = self.jwk.clone();
        jwk["kid"] = kid.into();
        jwk.as_object_mut().unwrap().remove("alg");
        json!({ "keys": [jwk] }).to_string().into_bytes()
    }

    fn sign(&self, header: &Value, payload: &str) -> String {
        sign(&self.key, self.algorithm, header, payload)
    }

    /// A token that is good, with these claims besides.
    fn token(&self, claims: Value) -> String {
        let mut payload = json!({ "iss": "issuer", "aud": "shop", "sub": "ann", "exp": NOW + 600 });
        payload.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        self.sign(&json!({ "alg": format!("{:?}", self.algorithm), "kid": "one" }), &payload.to_string())
    }
}

fn encode(text: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(text)
}

fn sign(key: &EncodingKey, algorithm: Algorithm, header: &Value, payload: &str) -> String {
    let signed = format!("{}.{}", encode(header.to_string()), encode(payload));
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), key, algorithm).unwrap();
    format!("{signed}.{signature}")
}

static RSA: LazyLock<Signer> = LazyLock::new(Signer::rsa);
static EC: LazyLock<Signer> = LazyLock::new(Signer::ec);

fn provider(signer: &Signer) -> Provider {
    Provider {
        name: "main".into(),
        issuer: Some("issuer".into()),
        audiences: ["shop".into()].into(),
        subjects: None,
        require_expiration: false,
        max_lifetime: None,
        skew: 60,
        keys: Keys::Local(KeySet::parse(&signer.set("one")).unwrap()),
        locations: default_locations(),
        forward: false,
        payload_header: None,
        claim_headers: [].into(),
        metadata: Some("jwt".into()),
    }
}

fn now() -> Now {
    Now { unix: NOW, instant: Instant::now() }
}

fn verify(provider: &Provider, token: &str) -> Result<(), Reason> {
    provider.verify(Token::parse(token)?, None, now()).map(|_| ())
}

/// The verdict about a token of the RSA issuer.
fn verdict(token: &str) -> Result<(), Reason> {
    verify(&provider(&RSA), token)
}

fn head(path: &'static str, headers: &[(&'static str, &str)]) -> RequestHead {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, HeaderValue::from_str(value).unwrap());
    }
    RequestHead {
        method: Method::GET,
        scheme: Scheme::HTTP,
        authority: Some(Authority::from_static("shop.example")),
        path: PathAndQuery::from_static(path),
        version: Version::HTTP_11,
        headers: map,
        case: Default::default(),
    }
}

fn filter(providers: Vec<Provider>) -> JwtFilter {
    JwtFilter {
        providers: providers.into(),
        rules: [].into(),
        named: BTreeMap::new(),
        bypass_cors_preflight: true,
        own_headers: [HeaderName::from_static("x-claims")].into(),
    }
}

const FIRST: Requirement = Requirement::Provider { provider: 0, audiences: None };

fn check(filter: &JwtFilter, requirement: &Requirement, head: &RequestHead) -> Result<usize, Reason> {
    requirement.check(filter, head, now()).map(|verified| verified.len())
}

#[test]
fn a_good_token_of_each_kind_of_key_is_good() {
    assert_eq!(verdict(&RSA.token(json!({}))), Ok(()));
    assert_eq!(verify(&provider(&EC), &EC.token(json!({}))), Ok(()));
}

#[test]
fn alg_none_is_no_algorithm_in_any_spelling() {
    let good = RSA.token(json!({}));
    let payload = good.split('.').nth(1).unwrap();
    for name in ["none", "NONE", "nOnE", "None", ""] {
        let header = encode(json!({ "alg": name, "kid": "one" }).to_string());
        assert_eq!(verdict(&format!("{header}.{payload}.")), Err(Reason::JwtAlgorithm), "{name}");
        let signature = good.rsplit('.').next().unwrap();
        assert_eq!(verdict(&format!("{header}.{payload}.{signature}")), Err(Reason::JwtAlgorithm), "{name}");
    }
}

#[test]
fn an_rsa_key_is_no_secret_for_hmac() {
    let jwk = &RSA.jwk;
    let payload = json!({ "iss": "issuer", "aud": "shop", "exp": NOW + 600 }).to_string();
    let header = json!({ "alg": "HS256", "kid": "one" });
    // What an attacker knows of the key: its set, and its modulus, in the forms that naive verifiers take for a secret.
    let public = [RSA.set("one"), jwk["n"].as_str().unwrap().into(), public_pem()];
    for secret in public {
        let token = sign(&EncodingKey::from_secret(&secret), Algorithm::HS256, &header, &payload);
        assert_eq!(verdict(&token), Err(Reason::JwtAlgorithm));
    }
}

/// The RSA key as SubjectPublicKeyInfo in PEM.
fn public_pem() -> Vec<u8> {
    let number = |name: &str| {
        let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(RSA.jwk[name].as_str().unwrap()).unwrap();
        if bytes[0] >= 0x80 {
            bytes.insert(0, 0);
        }
        der(2, &bytes)
    };
    let key = der(0x30, &[number("n"), number("e")].concat());
    let bits = der(3, &[&[0], &key[..]].concat());
    let algorithm = der(0x30, b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00");
    let whole = base64::prelude::BASE64_STANDARD.encode(der(0x30, &[algorithm, bits].concat()));
    format!("-----BEGIN PUBLIC KEY-----\n{whole}\n-----END PUBLIC KEY-----\n").into_bytes()
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[tag, 0x82], &length[..], content].concat()
}

#[test]
fn a_key_may_be_fixed_to_one_algorithm() {
    let mut set: Value = serde_json::from_slice(&RSA.set("one")).unwrap();
    set["keys"][0]["alg"] = "PS256".into();
    let only =
        Provider { keys: Keys::Local(KeySet::parse(set.to_string().as_bytes()).unwrap()), ..provider(&RSA) };
    assert_eq!(verify(&only, &RSA.token(json!({}))), Err(Reason::JwtAlgorithm));
    let payload = json!({ "iss": "issuer", "aud": "shop" }).to_string();
    let token = sign(&RSA.key, Algorithm::PS256, &json!({ "alg": "PS256", "kid": "one" }), &payload);
    assert_eq!(verify(&only, &token), Ok(()));
}

#[test]
fn a_key_in_the_token_or_at_an_address_in_it_is_not_used() {
    let payload = json!({ "iss": "issuer", "aud": "shop", "exp": NOW + 600 }).to_string();
    for extra in [
        json!({ "jwk": EC.jwk }),
        json!({ "jku": "http://127.0.0.1:1/jwks.json" }),
        json!({ "x5u": "http://127.0.0.1:1/cert.pem" }),
        json!({ "x5c": ["MIIB"] }),
    ] {
        let mut header = json!({ "alg": "ES256", "kid": "one" });
        header.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        // Signed by a stranger: the issuer has another key of the same kind.
        let stranger = Signer::ec();
        assert_eq!(verify(&provider(&EC), &stranger.sign(&header, &payload)), Err(Reason::JwtBadSignature));
        // Where the issuer's own key signed it, such headers do no harm.
        assert_eq!(verify(&provider(&EC), &EC.sign(&header, &payload)), Ok(()));
    }
}

#[test]
fn kid_only_picks_among_the_issuers_keys() {
    let payload = json!({ "iss": "issuer", "aud": "shop" }).to_string();
    for kid in ["two", "../../../../dev/null", "/etc/passwd", "one\u{0}", "' OR 1=1 --", ""] {
        let token = RSA.sign(&json!({ "alg": "RS256", "kid": kid }), &payload);
        assert_eq!(verdict(&token), Err(Reason::JwtUnknownKey), "{kid:?}");
    }
    assert_eq!(verdict(&RSA.sign(&json!({ "alg": "RS256" }), &payload)), Ok(()), "without one all are tried");
    assert_eq!(verdict(&RSA.sign(&json!({ "alg": "RS256", "kid": 1 }), &payload)), Err(Reason::JwtMalformed));
}

#[test]
fn what_does_not_have_three_sections_of_base64_and_json_is_no_token() {
    let good = RSA.token(json!({}));
    let parts: Vec<&str> = good.split('.').collect();
    let list = encode("[]");
    for bad in [
        String::new(),
        ".".into(),
        "..".into(),
        format!("{}.{}", parts[0], parts[1]),
        format!("{good}.{}", parts[2]),
        format!("{good}="),
        format!("{} .{}.{}", parts[0], parts[1], parts[2]),
        format!("{}.{}.!", parts[0], parts[1]),
        format!("{list}.{}.{}", parts[0], parts[2]),
        format!("{}.{list}.{}", parts[0], parts[2]),
        format!("{}.{}.{}", encode("{}"), parts[1], parts[2]),
        format!("{}.{}.{}", encode(r#"{"alg":5}"#), parts[1], parts[2]),
        "a".repeat(1 << 20),
        format!("{}.{}.{}", parts[0], "a".repeat(1 << 20), parts[2]),
    ] {
        assert_eq!(verdict(&bad), Err(Reason::JwtMalformed), "{:.60}", bad);
    }
}

#[test]
fn a_claim_that_is_there_twice_makes_the_token_ambiguous() {
    for payload in [
        r#"{"iss":"issuer","aud":"shop","sub":"guest","sub":"admin"}"#,
        r#"{"iss":"issuer","aud":"shop","exp":1,"exp":99999999999}"#,
        r#"{"iss":"issuer","aud":"shop","realm":{"role":"a","role":"b"}}"#,
    ] {
        assert_eq!(verdict(&RSA.sign(&json!({ "alg": "RS256" }), payload)), Err(Reason::JwtMalformed));
    }
    let header = encode(r#"{"alg":"RS256","alg":"none"}"#);
    let good = RSA.token(json!({}));
    let rest = good.split_once('.').unwrap().1;
    assert_eq!(verdict(&format!("{header}.{rest}")), Err(Reason::JwtMalformed));
}

#[test]
fn an_extension_that_must_be_understood_is_not() {
    let header = json!({ "alg": "RS256", "crit": ["exp"] });
    assert_eq!(verdict(&RSA.sign(&header, r#"{"iss":"issuer","aud":"shop"}"#)), Err(Reason::JwtMalformed));
}

#[test]
fn times_hold_to_the_second_of_the_skew() {
    for (claims, want) in [
        (json!({ "exp": NOW - 60 }), Ok(())),
        (json!({ "exp": NOW - 61 }), Err(Reason::JwtExpired)),
        (json!({ "exp": 0 }), Err(Reason::JwtExpired)),
        (json!({ "exp": u64::MAX }), Ok(())),
        (json!({ "exp": 1e300 }), Ok(())),
        (json!({ "exp": (NOW - 61) as f64 + 0.5 }), Err(Reason::JwtExpired)),
        (json!({ "exp": -1 }), Err(Reason::JwtMalformed)),
        (json!({ "exp": "1" }), Err(Reason::JwtMalformed)),
        (json!({ "exp": null }), Err(Reason::JwtMalformed)),
        (json!({ "nbf": NOW + 60 }), Ok(())),
        (json!({ "nbf": NOW + 61 }), Err(Reason::JwtNotYetValid)),
        (json!({ "nbf": u64::MAX }), Err(Reason::JwtNotYetValid)),
        (json!({ "iat": NOW + 100_000 }), Ok(())),
    ] {
        assert_eq!(verdict(&RSA.token(claims.clone())), want, "{claims}");
    }
}

#[test]
fn expiration_may_be_required_and_bounded() {
    let header = json!({ "alg": "RS256" });
    let endless = RSA.sign(&header, r#"{"iss":"issuer","aud":"shop"}"#);
    assert_eq!(verdict(&endless), Ok(()));
    let required = Provider { require_expiration: true, ..provider(&RSA) };
    assert_eq!(verify(&required, &endless), Err(Reason::JwtLifetime));
    let short = Provider { max_lifetime: Some(Duration::from_secs(600)), ..provider(&RSA) };
    assert_eq!(verify(&short, &endless), Err(Reason::JwtLifetime));
    assert_eq!(verify(&short, &RSA.token(json!({ "exp": NOW + 600 }))), Ok(()));
    assert_eq!(verify(&short, &RSA.token(json!({ "exp": NOW + 601 }))), Err(Reason::JwtLifetime));
}

#[test]
fn one_of_the_audiences_is_enough_and_none_is_not() {
    for (aud, want) in [
        (json!("shop"), Ok(())),
        (json!(["other", "shop"]), Ok(())),
        (json!("https://shop/"), Ok(())),
        (json!("shop2"), Err(Reason::JwtAudience)),
        (json!("sho"), Err(Reason::JwtAudience)),
        (json!(["other"]), Err(Reason::JwtAudience)),
        (json!([]), Err(Reason::JwtAudience)),
        (json!(["shop", 1]), Err(Reason::JwtMalformed)),
        (json!({ "shop": 1 }), Err(Reason::JwtMalformed)),
        (json!(null), Err(Reason::JwtMalformed)),
    ] {
        assert_eq!(verdict(&RSA.token(json!({ "aud": aud }))), want, "{aud}");
    }
    let missing = RSA.sign(&json!({ "alg": "RS256" }), r#"{"iss":"issuer"}"#);
    assert_eq!(verdict(&missing), Err(Reason::JwtAudience));
}

#[test]
fn an_issuer_is_compared_whole() {
    for iss in ["issuer2", "issue", "ISSUER", "issuer/", "", "issuer\u{0}"] {
        assert_eq!(verdict(&RSA.token(json!({ "iss": iss }))), Err(Reason::JwtUnknownIssuer), "{iss}");
    }
    assert_eq!(verdict(&RSA.token(json!({ "iss": ["issuer"] }))), Err(Reason::JwtMalformed));
}

#[test]
fn an_issuer_vouches_only_for_its_subjects() {
    let subjects = Some(StringMatch::text(Place::Prefix, "an", false));
    let provider = Provider { subjects, ..provider(&RSA) };
    assert_eq!(verify(&provider, &RSA.token(json!({}))), Ok(()));
    assert_eq!(verify(&provider, &RSA.token(json!({ "sub": "bob" }))), Err(Reason::JwtSubject));
    let nobody = RSA.sign(&json!({ "alg": "RS256" }), r#"{"iss":"issuer","aud":"shop"}"#);
    assert_eq!(verify(&provider, &nobody), Err(Reason::JwtSubject));
}

#[test]
fn a_changed_byte_anywhere_breaks_the_token() {
    let good = RSA.token(json!({}));
    for at in (0..good.len()).step_by(7).filter(|at| good.as_bytes()[*at] != b'.') {
        let mut bytes = good.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        assert!(verdict(std::str::from_utf8(&bytes).unwrap()).is_err(), "{at}");
    }
}

#[test]
fn two_tokens_are_one_too_many_unless_they_are_the_same() {
    let filter = filter(vec![provider(&RSA)]);
    let (one, two) = (RSA.token(json!({})), RSA.token(json!({ "sub": "bob" })));
    let (first, second) = (format!("Bearer {one}"), format!("Bearer {two}"));
    let ask = |headers: &[(&'static str, &str)]| check(&filter, &FIRST, &head("/", headers));
    assert_eq!(ask(&[("authorization", &first)]), Ok(1));
    assert_eq!(ask(&[("authorization", &first), ("authorization", &second)]), Err(Reason::JwtMalformed));
    assert_eq!(ask(&[("authorization", &first), ("authorization", &first)]), Err(Reason::JwtMalformed));
    assert_eq!(ask(&[("authorization", &format!("{first}, {second}"))]), Err(Reason::JwtMalformed));
    let mut both = head("/", &[("authorization", &first)]);
    both.path = format!("/?access_token={two}").parse().unwrap();
    assert_eq!(check(&filter, &FIRST, &both), Err(Reason::JwtMalformed));
    both.path = format!("/?access_token={one}").parse().unwrap();
    assert_eq!(check(&filter, &FIRST, &both), Ok(1));
    both.path = format!("/?access_token={one}&access_token={two}").parse().unwrap();
    assert_eq!(check(&filter, &FIRST, &both), Err(Reason::JwtMalformed));
}

#[test]
fn without_a_bearer_there_is_no_token() {
    let filter = filter(vec![provider(&RSA)]);
    for value in ["Basic dTpw", "bearer x", "Bearer", "Bearer ", ""] {
        let head = head("/", &[("authorization", value)]);
        assert_eq!(check(&filter, &FIRST, &head), Err(Reason::JwtMissing), "{value}");
    }
}

#[test]
fn tokens_stand_in_headers_parameters_and_cookies() {
    let locations = [
        Location::Header { name: HeaderName::from_static("x-jwt"), prefix: "".into() },
        Location::Param("t".into()),
        Location::Cookie("auth".into()),
    ];
    let filter = filter(vec![Provider { locations: locations.into(), ..provider(&RSA) }]);
    let token = RSA.token(json!({}));
    assert_eq!(check(&filter, &FIRST, &head("/", &[("x-jwt", &token)])), Ok(1));
    assert_eq!(check(&filter, &FIRST, &head("/", &[("cookie", &format!("a=b; auth={token}"))])), Ok(1));
    assert_eq!(
        check(&filter, &FIRST, &head("/", &[("authorization", &format!("Bearer {token}"))])),
        Err(Reason::JwtMissing)
    );
    let mut query = head("/", &[]);
    query.path = format!("/x?a=b&t={token}&c").parse().unwrap();
    let verified = FIRST.check(&filter, &query, now()).unwrap();
    verified.into_iter().for_each(|v| drop(v.apply(&mut query)));
    assert_eq!(query.path, "/x?a=b&c");
}

#[test]
fn what_is_known_is_passed_on_and_the_token_is_not() {
    let claim = |header: &'static str, path: &[&str]| {
        (HeaderName::from_static(header), path.iter().map(|p| (*p).into()).collect())
    };
    let provider = Provider {
        payload_header: Some((HeaderName::from_static("x-payload"), true)),
        claim_headers: [
            claim("x-sub", &["sub"]),
            claim("x-level", &["realm", "level"]),
            claim("x-groups", &["groups"]),
            claim("x-absent", &["absent"]),
        ]
        .into(),
        ..provider(&RSA)
    };
    let filter = filter(vec![provider]);
    let token = RSA.token(json!({ "realm": { "level": 3 }, "groups": ["a"] }));
    let mut head = head("/", &[("authorization", &format!("Bearer {token}"))]);
    let verified = FIRST.check(&filter, &head, now()).unwrap().remove(0);
    let claims = verified.apply(&mut head).unwrap();
    assert_eq!((&*claims.key, claims.payload["sub"].as_str()), ("jwt", Some("ann")));
    let value = |name: &str| head.headers.get(name).map(|v| v.to_str().unwrap());
    assert_eq!((value("authorization"), value("x-sub"), value("x-level")), (None, Some("ann"), Some("3")));
    assert_eq!((value("x-groups"), value("x-absent")), (Some("WyJhIl0="), None));
    let payload = value("x-payload").unwrap();
    assert_eq!(payload.len() % 4, 0);
    assert!(payload.starts_with(token.split('.').nth(1).unwrap()));
}

#[test]
fn clients_do_not_write_the_filters_headers() {
    let mut head = head("/", &[("x-claims", "admin"), ("x-other", "1")]);
    filter(vec![]).sanitize(&mut head.headers);
    assert!(!head.headers.contains_key("x-claims") && head.headers.contains_key("x-other"));
}

#[test]
fn a_preflight_may_pass() {
    let lenient = filter(vec![]);
    let mut ask = head("/", &[("origin", "http://a"), ("access-control-request-method", "PUT")]);
    assert!(!lenient.lets_pass(&ask));
    ask.method = Method::OPTIONS;
    assert!(lenient.lets_pass(&ask));
    let strict = JwtFilter { bypass_cors_preflight: false, ..filter(vec![]) };
    assert!(!strict.lets_pass(&ask));
    ask.headers.remove("access-control-request-method");
    assert!(!lenient.lets_pass(&ask));
}

#[test]
fn requirements_combine() {
    let second = Provider {
        issuer: Some("second".into()),
        locations: [Location::Header { name: HeaderName::from_static("x-jwt"), prefix: "".into() }].into(),
        ..provider(&RSA)
    };
    let filter = filter(vec![provider(&RSA), second]);
    let other = Requirement::Provider { provider: 1, audiences: None };
    let any = |leniency| Requirement::Any([FIRST, other.clone()].into(), leniency);
    let all = Requirement::All([FIRST, other.clone()].into());
    let (one, two) = (RSA.token(json!({})), RSA.token(json!({ "iss": "second" })));
    let bearer = format!("Bearer {one}");
    let (none, first, both) = (
        head("/", &[]),
        head("/", &[("authorization", &bearer)]),
        head("/", &[("authorization", &bearer), ("x-jwt", &two)]),
    );
    let bad = head("/", &[("x-jwt", &RSA.token(json!({ "iss": "second", "exp": 1 })))]);
    assert_eq!(check(&filter, &all, &both), Ok(2));
    assert_eq!(check(&filter, &all, &first), Err(Reason::JwtMissing));
    assert_eq!(check(&filter, &any(Leniency::Strict), &first), Ok(1));
    assert_eq!(check(&filter, &any(Leniency::Strict), &none), Err(Reason::JwtMissing));
    assert_eq!(check(&filter, &any(Leniency::Strict), &bad), Err(Reason::JwtExpired));
    assert_eq!(check(&filter, &any(Leniency::Missing), &none), Ok(0));
    assert_eq!(check(&filter, &any(Leniency::Missing), &bad), Err(Reason::JwtExpired));
    assert_eq!(check(&filter, &any(Leniency::Failed), &bad), Ok(0));
    let optional = Requirement::Optional;
    assert_eq!(check(&filter, &optional(Leniency::Missing), &none), Ok(0));
    assert_eq!(check(&filter, &optional(Leniency::Missing), &both), Ok(2));
    assert_eq!(check(&filter, &optional(Leniency::Missing), &bad), Err(Reason::JwtExpired));
    assert_eq!(check(&filter, &optional(Leniency::Failed), &bad), Ok(0));
    let stranger = head("/", &[("x-jwt", &RSA.token(json!({ "iss": "stranger" })))]);
    assert_eq!(check(&filter, &optional(Leniency::Missing), &stranger), Err(Reason::JwtUnknownIssuer));
    // A good token in a place that is not its issuer's does not count.
    let astray = head("/", &[("x-jwt", &one)]);
    assert_eq!(check(&filter, &optional(Leniency::Missing), &astray), Err(Reason::JwtUnknownIssuer));
    let audiences = Requirement::Provider { provider: 0, audiences: Some(["elsewhere".into()].into()) };
    assert_eq!(check(&filter, &audiences, &first), Err(Reason::JwtAudience));
}

#[test]
fn remote_keys_count_from_the_fetch_to_the_end_of_their_cache() {
    let remote = std::sync::Arc::new(RemoteKeys {
        uri: "http://issuer/keys".parse().unwrap(),
        cluster: "issuer".into(),
        timeout: Duration::from_secs(1),
        cache: Duration::from_secs(600),
        retry: Duration::from_secs(1),
        state: Default::default(),
    });
    let provider = Provider { keys: Keys::Remote(remote.clone()), ..provider(&RSA) };
    let token = RSA.token(json!({}));
    assert_eq!(verify(&provider, &token), Err(Reason::JwtKeysUnavailable));
    let now = Instant::now();
    let keys = KeySet::parse(&RSA.set("one")).unwrap();
    remote.state.put(Some(std::sync::Arc::new(Fetched { keys, until: now + Duration::from_secs(600) })));
    let at = |seconds| Now { unix: NOW, instant: now + Duration::from_secs(seconds) };
    let verify = |seconds| provider.verify(Token::parse(&token).unwrap(), None, at(seconds)).map(|_| ());
    assert_eq!(verify(599), Ok(()));
    remote.state.put(None);
    assert_eq!(verify(599), Ok(()), "an attempt that failed takes nothing away");
    assert_eq!(verify(600), Err(Reason::JwtKeysUnavailable), "closed, not open");
}

#[test]
fn key_sets_without_a_key_are_refused() {
    let short = json!({ "kty": "RSA", "n": encode([0xff; 128]), "e": "AQAB" });
    let purpose = json!({ "kty": "RSA", "n": encode([0xff; 256]), "e": "AQAB", "use": "enc" });
    for (text, word) in [
        ("nonsense".to_owned(), "JSON"),
        ("{}".into(), "keys"),
        (json!({ "keys": [] }).to_string(), "no key"),
        (json!({ "keys": [{ "kty": "oct", "k": "" }] }).to_string(), "no key"),
        (json!({ "keys": [short] }).to_string(), "no key"),
        (json!({ "keys": [purpose] }).to_string(), "no key"),
        (json!({ "keys": vec![json!({}); 65] }).to_string(), "limit"),
    ] {
        let error = KeySet::parse(text.as_bytes()).unwrap_err();
        assert!(error.contains(word), "{error}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "[A-Za-z0-9._=-]{0,80}") {
        let _ = verdict(&text);
    }

    #[test]
    fn no_json_panics(header in ".{0,40}", payload in ".{0,40}") {
        let _ = verdict(&format!("{}.{}.{}", encode(header), encode(payload), encode("x")));
    }
}
