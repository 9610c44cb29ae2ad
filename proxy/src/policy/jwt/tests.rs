//! Where tokens stand, what requirements ask, what is passed on. Whether a token is genuine is tested in [`forged`].

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Version};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::extract::{Location, default_locations};
use super::keys::KeySet;
use super::provider::Now;
use super::requirement::Leniency;
use super::token::Token;
use super::*;
use crate::error::Reason;
use crate::route::text::{Place, StringMatch};

mod forged;
mod remote;
mod several;

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

/// A moment for a worker that remembers nothing.
fn now() -> Now<'static> {
    Now { unix: NOW, instant: Instant::now(), signatures: Box::leak(Box::default()) }
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
    let own = filter(vec![Provider { locations: locations.into(), ..provider(&RSA) }]);
    let token = RSA.token(json!({}));
    assert_eq!(check(&own, &FIRST, &head("/", &[("x-jwt", &token)])), Ok(1));
    assert_eq!(check(&own, &FIRST, &head("/", &[("cookie", &format!("a=b; auth={token}"))])), Ok(1));
    assert_eq!(
        check(&own, &FIRST, &head("/", &[("authorization", &format!("Bearer {token}"))])),
        Err(Reason::JwtMissing)
    );
    let mut query = head("/", &[]);
    query.path = format!("/x?a=b&t={token}&c").parse().unwrap();
    let verified = FIRST.check(&own, &query, now()).unwrap();
    verified.into_iter().for_each(|v| drop(v.apply(&mut query)));
    assert_eq!(query.path, "/x?a=b&c");
    // What stands in the other places and is no token stays.
    let defaults = filter(vec![provider(&RSA)]);
    let mut basic = head("/", &[("authorization", "Basic dTpw")]);
    basic.path = format!("/?access_token={token}").parse().unwrap();
    let verified = FIRST.check(&defaults, &basic, now()).unwrap();
    verified.into_iter().for_each(|v| drop(v.apply(&mut basic)));
    assert_eq!((basic.path.as_str(), basic.headers.contains_key("authorization")), ("/", true));
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

/// What is remembered is that the signature is genuine, and nothing else.
#[test]
fn a_token_that_was_verified_expires_all_the_same() {
    let provider = provider(&RSA);
    let signatures = Default::default();
    let token = RSA.token(json!({ "exp": NOW }));
    let verify = |unix| {
        let now = Now { unix, instant: Instant::now(), signatures: &signatures };
        provider.verify(Token::parse(&token).unwrap(), None, now).map(|_| ())
    };
    assert_eq!((verify(NOW), verify(NOW + 60)), (Ok(()), Ok(())));
    assert!(signatures.borrow().knows(&token, key_set_id(&provider)));
    assert_eq!(verify(NOW + 61), Err(Reason::JwtExpired));
}

fn key_set_id(provider: &Provider) -> keys::KeySetId {
    match &provider.keys {
        Keys::Local(set) => set.id(),
        Keys::Remote(_) => unreachable!(),
    }
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
    // Providers share a place, and have others besides; one takes every issuer.
    let cookie = Location::Cookie("jwt".into());
    let everywhere: Vec<_> = default_locations().into_iter().chain([cookie]).collect();
    let wide = |issuer: Option<&str>| Provider {
        issuer: issuer.map(Into::into),
        locations: everywhere.clone().into(),
        ..provider(&RSA)
    };
    let of_second = head("/", &[("authorization", &format!("Bearer {two}"))]);
    for other in [Some("second"), None] {
        let filter = self::filter(vec![provider(&RSA), wide(other)]);
        assert_eq!(check(&filter, &optional(Leniency::Missing), &of_second), Ok(1), "{other:?}");
        assert_eq!(check(&filter, &optional(Leniency::Failed), &of_second), Ok(1), "{other:?}");
        assert_eq!(check(&filter, &optional(Leniency::Missing), &first), Ok(1), "{other:?}");
    }
    let audiences = Requirement::Provider { provider: 0, audiences: Some(["elsewhere".into()].into()) };
    assert_eq!(check(&filter, &audiences, &first), Err(Reason::JwtAudience));
}

/// A token that expired since the request began ends nothing; one that nobody looked at does.
#[test]
fn what_was_verified_is_not_verified_again() {
    let second = Provider {
        name: "second".into(),
        issuer: Some("second".into()),
        locations: [Location::Header { name: HeaderName::from_static("x-jwt"), prefix: "".into() }].into(),
        ..provider(&RSA)
    };
    let filter = filter(vec![provider(&RSA), second]);
    let late = format!("Bearer {}", RSA.token(json!({ "exp": 1 })));
    let of_second = RSA.token(json!({ "iss": "second" }));
    let (none, one) = (head("/", &[]), head("/", &[("authorization", &late)]));
    let both = head("/", &[("authorization", &late), ("x-jwt", &of_second)]);
    let bad = head("/", &[("authorization", &late), ("x-jwt", &late)]);
    let (known, nobody): (&[std::sync::Arc<str>], _) = (&["main".into()], &[][..]);
    let again = |asked: &Requirement, head, known| asked.check_again(&filter, head, now(), known);
    let optional = Requirement::Optional(Leniency::Missing);
    let other = Requirement::Provider { provider: 1, audiences: None };
    assert_eq!(again(&optional, &one, known), Ok(()));
    assert_eq!(again(&optional, &both, known), Ok(()));
    assert_eq!(again(&optional, &one, nobody), Err(Reason::JwtExpired));
    assert_eq!(again(&optional, &bad, known), Err(Reason::JwtMalformed));
    let all = Requirement::All([FIRST, optional, other.clone()].into());
    assert_eq!(again(&all, &both, known), Ok(()));
    assert_eq!(again(&all, &one, known), Err(Reason::JwtMissing));
    let any = Requirement::Any([FIRST, other].into(), Leniency::Missing);
    assert_eq!(again(&any, &one, known), Ok(()));
    assert_eq!(again(&any, &one, nobody), Err(Reason::JwtExpired));
    assert_eq!(again(&any, &none, nobody), Ok(()));
}

/// Two rules about one issuer, and issuers whose tokens stand in some of the same places.
#[test]
fn a_token_is_verified_by_whoever_looks_for_it_there() {
    let cookie = Location::Cookie("session".into());
    let partner = Provider { issuer: Some("partner".into()), audiences: [].into(), ..provider(&RSA) };
    let everywhere = Provider {
        issuer: Some("partner".into()),
        audiences: ["back".into()].into(),
        locations: default_locations().into_iter().chain([cookie]).collect(),
        ..provider(&RSA)
    };
    let missing = Requirement::Optional(Leniency::Missing);
    let bearer = |claims| format!("Bearer {}", RSA.token(claims));
    let of_partner = bearer(json!({ "iss": "partner", "aud": "back" }));
    let filter_of_two = filter(vec![provider(&RSA), everywhere]);
    assert_eq!(check(&filter_of_two, &missing, &head("/", &[("authorization", &of_partner)])), Ok(1));
    let in_cookie = format!("session={}", RSA.token(json!({ "iss": "issuer" })));
    let astray = check(&filter_of_two, &missing, &head("/", &[("cookie", &in_cookie)]));
    assert_eq!(astray, Err(Reason::JwtUnknownIssuer));

    let strict = Provider { audiences: ["elsewhere".into()].into(), ..provider(&RSA) };
    let filter = filter(vec![strict, provider(&RSA), partner]);
    let of_issuer = bearer(json!({}));
    assert_eq!(check(&filter, &missing, &head("/", &[("authorization", &of_issuer)])), Ok(1));
    let of_nobody = bearer(json!({ "aud": "nowhere" }));
    let refused = check(&filter, &missing, &head("/", &[("authorization", &of_nobody)]));
    assert_eq!(refused, Err(Reason::JwtAudience));
}
