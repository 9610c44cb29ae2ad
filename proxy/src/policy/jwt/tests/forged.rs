//! Forged, broken and good tokens: the classic attacks, each by its name.

use proptest::prelude::*;

use super::*;

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
