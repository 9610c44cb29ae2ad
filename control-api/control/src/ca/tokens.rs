//! Join tokens: what a program on a machine without any identity gets its first certificate with.
//!
//! `remora-<id>-<secret>-<pin>`: the store has the SHA-256 of the secret alone; the pin is the SHA-256 of the root's public key, so that
//! whoever has the token can verify the control plane with nothing else.

use std::sync::Arc;

use remora_proxy::tls::identity::{SpiffeId, sha256};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::authority::Authority;
use super::keeper::{NAMESPACE, now};
use super::{Ca, Csr, Refused, Source, System, hex};
use crate::clock::rfc3339_of;
use crate::document::Record;
use crate::registry::Registry;
use crate::store::{Entry, Expect, Key, Put, Scope, StoreError};

/// Kind of the keys of tokens.
pub const KIND: &str = "JoinToken";
/// What their texts begin with.
pub(super) const PREFIX: &str = "remora-";
/// Tokens at one time.
const MOST: usize = 10_000;
/// How long a token may live, in seconds: 30 days.
const MOST_TTL: u64 = 30 * 24 * 3600;
/// Certificates of one token.
const MOST_USES: u32 = 10_000;
/// A token that has ended is told so for this long, in seconds; then it is unknown.
const REMEMBERED: u64 = 3600;
/// How often a token is tried again that is used at the same time.
const TRIES: u32 = 20;

/// What a token is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Terms {
    /// Namespace of the identity.
    pub namespace: String,
    /// Service account of the identity.
    pub service_account: String,
    /// How long it may be used, in seconds.
    #[serde(default = "an_hour")]
    pub ttl_seconds: u64,
    /// How many certificates it is good for.
    #[serde(default = "once")]
    pub uses: u32,
}

const fn an_hour() -> u64 {
    3600
}

const fn once() -> u32 {
    1
}

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// Its id, the second part of its text.
    pub id: String,
    /// The identity that it is for.
    pub identity: String,
    /// When it ends, RFC 3339.
    pub expires: String,
    /// How many more certificates it is good for.
    pub uses: u32,
}

/// What the store has of a token.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    namespace: String,
    service_account: String,
    /// SHA-256 of the secret.
    hash: String,
    /// In seconds since 1970.
    expires: u64,
    uses: u32,
    /// SHA-256 of the key that it was used for last: an answer that was lost may be asked for again.
    last_key: Option<String>,
}

/// A token as it was shown.
#[derive(Debug, Clone)]
pub struct Presented {
    /// Its id.
    pub id: String,
    hash: String,
}

impl Presented {
    /// Reads `remora-<id>-<secret>[-<pin>]`: the pin is for whoever shows it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix(PREFIX)?.split('-');
        let (id, secret, _pin) = (parts.next()?, parts.next()?, parts.next());
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let right = id.len() == 2 * ID && id.bytes().all(lower_hex) && parts.next().is_none();
        right.then(|| Self { id: id.to_owned(), hash: hex(&sha256(secret.as_bytes())) })
    }
}

/// Bytes of an id and of a secret.
const ID: usize = 8;
const SECRET: usize = 24;

/// The tokens of a mesh.
#[derive(Debug)]
pub struct Tokens {
    registry: Arc<Registry>,
    ca: Arc<Ca>,
}

fn key(id: &str) -> Key {
    Key::new(KIND, NAMESPACE, id)
}

impl Tokens {
    /// Those in the store of `registry`.
    #[must_use]
    pub const fn new(registry: Arc<Registry>, ca: Arc<Ca>) -> Self {
        Self { registry, ca }
    }

    /// Makes a token. Its text is nowhere but in the answer.
    ///
    /// # Errors
    /// [`Refused::TokenTerms`], [`Refused::TokensFull`], [`Refused::Identity`], or the store.
    pub async fn create(&self, terms: &Terms) -> Result<(String, Listed), Refused> {
        let wrong = |what: String| Err(Refused::TokenTerms(what));
        if !(1..=MOST_TTL).contains(&terms.ttl_seconds) {
            return wrong(format!("lives 1 s to {} days, not {} s", MOST_TTL / 86_400, terms.ttl_seconds));
        }
        if !(1..=MOST_USES).contains(&terms.uses) {
            return wrong(format!("is good for 1 to {MOST_USES} certificates, not {}", terms.uses));
        }
        let there = self.registry.list(&Scope::Kind(KIND.into())).1.len();
        if there >= MOST {
            return Err(Refused::TokensFull(there));
        }
        let identity = self.ca.identity(&terms.namespace, &terms.service_account)?;
        self.ca.begun().await;
        let pin = self.ca.read(|authority: &Authority| authority.signing()?.pin())??;
        let (mut id, mut secret) = ([0; ID], [0; SECRET]);
        System.fill(&mut id)?;
        System.fill(&mut secret)?;
        let (id, secret) = (hex(&id), hex(&secret));
        let spec = Spec {
            namespace: terms.namespace.clone(),
            service_account: terms.service_account.clone(),
            hash: hex(&sha256(secret.as_bytes())),
            expires: now() + terms.ttl_seconds,
            uses: terms.uses,
            last_key: None,
        };
        let put = Put { key: key(&id), value: value(&id, &spec).into(), expect: Expect::Absent, lease: None };
        let revision = self.registry.store().put(put).await?;
        self.registry.seen(revision).await;
        Ok((format!("{PREFIX}{id}-{secret}-{pin}"), listed(&id, &identity, &spec)))
    }

    /// All that have not been forgotten, by id.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        let (_, records) = self.registry.list(&Scope::Kind(KIND.into()));
        let one = |record: &Arc<Record>| {
            let spec = spec(record)?;
            let identity = self.ca.identity(&spec.namespace, &spec.service_account).ok()?;
            Some(listed(&record.key.name, &identity, &spec))
        };
        records.iter().filter_map(one).collect()
    }

    /// Removes a token. False: there is none of this id.
    ///
    /// # Errors
    /// The store.
    pub async fn delete(&self, id: &str) -> Result<bool, Refused> {
        match self.registry.store().delete(&key(id), Expect::Any).await {
            Ok(revision) => {
                self.registry.seen(revision).await;
                Ok(true)
            }
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The identity that a token is for, if it may be used for the key of `csr` now.
    ///
    /// # Errors
    /// [`Refused::TokenUnknown`], [`Refused::TokenExpired`], [`Refused::TokenUsed`], or the store.
    pub async fn check(&self, token: &Presented, csr: &Csr) -> Result<SpiffeId, Refused> {
        let (_, spec) = self.valid(token, csr).await?;
        self.ca.identity(&spec.namespace, &spec.service_account)
    }

    /// Whether a token is known here, without a question to the store.
    #[must_use]
    pub fn knows(&self, token: &Presented) -> bool {
        let spec = self.registry.get(&key(&token.id)).and_then(|record| spec(&record));
        spec.is_some_and(|spec| same(&spec.hash, &token.hash))
    }

    /// Uses a token for the key of `csr`. The same key may use it again as long as it is the last that did.
    ///
    /// # Errors
    /// See [`Self::check`].
    pub async fn spend(&self, token: &Presented, csr: &Csr) -> Result<(), Refused> {
        for _ in 0..TRIES {
            let (entry, mut spec) = self.valid(token, csr).await?;
            let used = Some(hex(&csr.fingerprint));
            if spec.last_key == used {
                return Ok(());
            }
            (spec.uses, spec.last_key) = (spec.uses - 1, used);
            let expect = Expect::Revision(entry.revision);
            let put = Put { key: entry.key, value: value(&token.id, &spec).into(), expect, lease: None };
            match self.registry.store().put(put).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Refused::Store(StoreError::Busy))
    }

    /// The store itself is asked: what is seen here may be a moment old, and a token must not be used twice.
    async fn valid(&self, token: &Presented, csr: &Csr) -> Result<(Entry, Spec), Refused> {
        let entry = self.registry.store().get(&key(&token.id)).await?.ok_or(Refused::TokenUnknown)?;
        let spec = spec(&Record::of(&entry)?).ok_or(Refused::TokenUnknown)?;
        if !same(&spec.hash, &token.hash) {
            return Err(Refused::TokenUnknown);
        }
        if spec.expires <= now() {
            return Err(Refused::TokenExpired(rfc3339_of(spec.expires)));
        }
        if spec.uses == 0 && spec.last_key != Some(hex(&csr.fingerprint)) {
            return Err(Refused::TokenUsed);
        }
        Ok((entry, spec))
    }

    /// Removes tokens that ended a while ago.
    ///
    /// # Errors
    /// The store.
    pub async fn sweep(&self) -> Result<(), Refused> {
        for record in self.registry.list(&Scope::Kind(KIND.into())).1 {
            let over = spec(&record).is_none_or(|spec| spec.expires.saturating_add(REMEMBERED) < now());
            if over {
                match self.registry.store().delete(&record.key, Expect::Revision(record.revision)).await {
                    // Another control plane was faster.
                    Ok(_) | Err(StoreError::Conflict { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

/// Takes as long for strings that differ at the beginning as for those that differ at the end.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

fn spec(record: &Record) -> Option<Spec> {
    serde_json::from_value(record.get("spec")?).ok()
}

fn listed(id: &str, identity: &SpiffeId, spec: &Spec) -> Listed {
    let expires = rfc3339_of(spec.expires);
    Listed { id: id.to_owned(), identity: identity.to_string(), expires, uses: spec.uses }
}

fn value(id: &str, spec: &Spec) -> String {
    let metadata = json!({"name": id, "namespace": NAMESPACE});
    json!({"apiVersion": "remora.dev/v1alpha1", "kind": KIND, "metadata": metadata, "spec": spec}).to_string()
}
