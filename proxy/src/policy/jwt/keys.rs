//! Key sets (RFC 7517): which keys there are, and which algorithms each of them may be used with.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::provider::Now;
use super::signatures::Signatures;
use super::token::Token;
use crate::error::Reason;

/// The largest key set, bytes.
pub const MAX_KEY_SET: usize = 1 << 20;

/// Most keys of a set: a token without `kid` may have to be tried with each of them.
const MAX_KEYS: usize = 64;

/// The keys of a provider.
#[derive(Debug)]
pub struct KeySet {
    id: KeySetId,
    keys: Vec<Key>,
}

/// The number of a key set: another one for each that is read, even if it says the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeySetId(u64);

impl KeySetId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

struct Key {
    id: Option<Box<str>>,
    /// What a token signed with it may say: fixed by the key, so that no token can have an RSA key taken for a secret.
    algorithms: &'static [Algorithm],
    key: DecodingKey,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

impl KeySet {
    /// Reads a key set. Keys that are not for signatures, or of a kind that is not known, are left out.
    ///
    /// # Errors
    /// It is no key set, or has no key that can be used.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let set: Value = serde_json::from_slice(text).map_err(|e| format!("is no JSON: {e}"))?;
        let list = set.get("keys").and_then(Value::as_array).ok_or("has no list `keys`")?;
        if list.len() > MAX_KEYS {
            return Err(format!("has {} keys, the limit is {MAX_KEYS}", list.len()));
        }
        let keys: Vec<Key> = list.iter().filter_map(Key::read).collect();
        if keys.is_empty() {
            return Err(
                "has no key that can be used: RSA from 2048 bits, P-256, P-384, Ed25519 or oct".into()
            );
        }
        Ok(Self { id: KeySetId::next(), keys })
    }

    /// Its number.
    #[must_use]
    pub const fn id(&self) -> KeySetId {
        self.id
    }

    /// Verifies the signature of a token, unless that was done before.
    fn verify_once(&self, token: &Token<'_>, signatures: &RefCell<Signatures>) -> Result<(), Reason> {
        if signatures.borrow().knows(token.text, self.id) {
            return Ok(());
        }
        self.verify(token)?;
        signatures.borrow_mut().remember(token.text, self.id);
        Ok(())
    }

    /// Verifies the signature of a token.
    ///
    /// # Errors
    /// [`Reason::JwtUnknownKey`], [`Reason::JwtAlgorithm`] or [`Reason::JwtBadSignature`].
    pub fn verify(&self, token: &Token<'_>) -> Result<(), Reason> {
        let algorithm = algorithm(&token.algorithm).ok_or(Reason::JwtAlgorithm)?;
        let named = |key: &&Key| match (&key.id, &token.key_id) {
            (Some(own), Some(wanted)) => **own == **wanted,
            _ => true,
        };
        let mut refusal = Reason::JwtUnknownKey;
        for key in self.keys.iter().filter(named) {
            if !key.algorithms.contains(&algorithm) {
                refusal = refusal.max(Reason::JwtAlgorithm);
                continue;
            }
            let verified =
                jsonwebtoken::crypto::verify(token.signature, token.signed.as_bytes(), &key.key, algorithm);
            if verified.is_ok_and(|genuine| genuine) {
                return Ok(());
            }
            refusal = Reason::JwtBadSignature;
        }
        Err(refusal)
    }
}

/// The algorithms that are known here. `none` is none of them, in no spelling.
fn algorithm(name: &str) -> Option<Algorithm> {
    name.parse().ok()
}

const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];
const HMAC: &[Algorithm] = &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];

impl Key {
    fn read(jwk: &Value) -> Option<Self> {
        let text = |name| jwk.get(name).and_then(Value::as_str);
        if text("use").is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let bytes = |name| BASE64_URL_SAFE_NO_PAD.decode(text(name)?).ok();
        let (family, key): (&'static [Algorithm], _) = match (text("kty")?, text("crv")) {
            ("RSA", _) if bytes("n")?.len() >= 256 => {
                (RSA, DecodingKey::from_rsa_components(text("n")?, text("e")?).ok()?)
            }
            ("EC", Some("P-256")) if (bytes("x")?.len(), bytes("y")?.len()) == (32, 32) => {
                (&[Algorithm::ES256], DecodingKey::from_ec_components(text("x")?, text("y")?).ok()?)
            }
            ("EC", Some("P-384")) if (bytes("x")?.len(), bytes("y")?.len()) == (48, 48) => {
                (&[Algorithm::ES384], DecodingKey::from_ec_components(text("x")?, text("y")?).ok()?)
            }
            ("OKP", Some("Ed25519")) if bytes("x")?.len() == 32 => {
                (&[Algorithm::EdDSA], DecodingKey::from_ed_components(text("x")?).ok()?)
            }
            ("oct", _) if !bytes("k")?.is_empty() => (HMAC, DecodingKey::from_secret(&bytes("k")?)),
            _ => return None,
        };
        let algorithms = match text("alg") {
            None => family,
            Some(name) => {
                let only = algorithm(name)?;
                let at = family.iter().position(|a| *a == only)?;
                &family[at..=at]
            }
        };
        Some(Self { id: text("kid").map(Into::into), algorithms, key })
    }
}

/// Where the keys of a provider come from.
#[derive(Debug)]
pub enum Keys {
    /// `local_jwks`.
    Local(KeySet),
    /// `remote_jwks`.
    Remote(Arc<RemoteKeys>),
}

/// `remote_jwks`: fetched by the control runtime, read by workers.
#[derive(Debug)]
pub struct RemoteKeys {
    /// `http_uri.uri`.
    pub uri: http::Uri,
    /// `http_uri.cluster`.
    pub cluster: Arc<str>,
    /// `http_uri.timeout`.
    pub timeout: Duration,
    /// `cache_duration`, default 10 min: keys that could not be fetched again for so long are believed no more.
    pub cache: Duration,
    /// `async_fetch.failed_refetch_duration`, default 1 s.
    pub retry: Duration,
    /// What was fetched.
    pub state: KeyState,
}

/// The keys of a remote set, as they are now.
#[derive(Debug, Default)]
pub struct KeyState {
    current: ArcSwapOption<Fetched>,
    tried: watch::Sender<bool>,
    unknown: Arc<Notify>,
}

/// A key set, and until when it is believed.
#[derive(Debug)]
pub struct Fetched {
    /// The keys.
    pub keys: KeySet,
    /// End of `cache_duration`.
    pub until: Instant,
}

impl KeyState {
    /// An attempt to fetch the keys is over; None leaves those that are there.
    pub fn put(&self, fetched: Option<Arc<Fetched>>) {
        if fetched.is_some() {
            self.current.store(fetched);
        }
        self.tried.send_replace(true);
    }

    /// Whether there are keys, or the first attempt to fetch them failed.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.current.load().is_some() || *self.tried.borrow()
    }

    /// Told of tokens whose key is not known: the issuer may have a new one.
    #[must_use]
    pub const fn unknown(&self) -> &Arc<Notify> {
        &self.unknown
    }

    /// Waits for the end of the first attempt.
    pub async fn ready(&self) {
        // The sender lives as long as this.
        let _ = self.tried.subscribe().wait_for(|tried| *tried).await;
    }
}

impl Keys {
    /// Verifies the signature of a token.
    ///
    /// # Errors
    /// Those of [`KeySet::verify`], and [`Reason::JwtKeysUnavailable`].
    pub fn verify(&self, token: &Token<'_>, now: Now<'_>) -> Result<(), Reason> {
        match self {
            Self::Local(set) => set.verify_once(token, now.signatures),
            Self::Remote(remote) => match &*remote.state.current.load() {
                Some(fetched) if now.instant < fetched.until => {
                    let verified = fetched.keys.verify_once(token, now.signatures);
                    if verified == Err(Reason::JwtUnknownKey) {
                        remote.state.unknown.notify_one();
                    }
                    verified
                }
                _ => Err(Reason::JwtKeysUnavailable),
            },
        }
    }
}
