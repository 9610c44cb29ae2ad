//! Tokens (JWT) and the key sets that verify them, made for one test.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

/// An issuer with one RSA key, which it calls `one`.
#[derive(Debug)]
pub struct Issuer {
    key: EncodingKey,
    /// The public half of the key.
    pub jwk: Value,
    /// The same as SubjectPublicKeyInfo in PEM.
    pub public_pem: String,
}

impl Issuer {
    /// One with a fresh key.
    ///
    /// # Panics
    /// When a key cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("key");
        // PKCS #8 of a 2048-bit key: 26 bytes in front of PKCS #1.
        let key = EncodingKey::from_rsa_der(&pair.serialize_der()[26..]);
        let jwk = Jwk::from_encoding_key(&key, Algorithm::RS256).expect("public half");
        let mut jwk = serde_json::to_value(jwk).expect("JSON");
        jwk["kid"] = "one".into();
        jwk["alg"] = "RS256".into();
        Self { key, jwk, public_pem: pair.public_key_pem() }
    }

    /// Its key set.
    #[must_use]
    pub fn key_set(&self) -> String {
        json!({ "keys": [self.jwk] }).to_string()
    }

    /// A token with these claims.
    #[must_use]
    pub fn token(&self, claims: &Value) -> String {
        self.sign(&json!({ "alg": "RS256", "kid": "one" }), &claims.to_string())
    }

    /// This header and this payload, signed with the key whatever they say.
    ///
    /// # Panics
    /// When the crypto library refuses.
    #[must_use]
    pub fn sign(&self, header: &Value, payload: &str) -> String {
        sign(&self.key, Algorithm::RS256, header, payload)
    }
}

impl Default for Issuer {
    fn default() -> Self {
        Self::new()
    }
}

/// A token whose secret is these bytes (HS256).
///
/// # Panics
/// When the crypto library refuses.
#[must_use]
pub fn by_secret(secret: &[u8], header: &Value, payload: &str) -> String {
    sign(&EncodingKey::from_secret(secret), Algorithm::HS256, header, payload)
}

/// base64url without padding.
#[must_use]
pub fn encode(text: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(text)
}

fn sign(key: &EncodingKey, algorithm: Algorithm, header: &Value, payload: &str) -> String {
    let signed = format!("{}.{}", encode(header.to_string()), encode(payload));
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), key, algorithm).expect("signed");
    format!("{signed}.{signature}")
}
