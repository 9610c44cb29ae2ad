//! Instances that register themselves, and how long they are believed to be there.
//!
//! Two leases stand behind each other. An instance says every half second that it is alive, to one control plane, which keeps
//! count in memory: an instance that is killed gets no traffic within two seconds, and a thousand living ones write nothing. What
//! a control plane has registered hangs on its own lease in the store: if it dies, its instances register at another one, and
//! what does not goes away with the lease.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::Registry;
use super::change::errors;
use crate::clock::rfc3339;
use crate::document::Record;
use crate::kinds::Kind;
use crate::store::lease::Leases;
use crate::store::{Expect, Key, LeaseId, Put, Scope, StoreError};

/// Kind of the keys of registrations.
pub const REGISTRATION: &str = "Registration";

/// How long an instance is believed without a word of it, when it does not say.
pub const TTL: Duration = Duration::from_millis(1500);
/// What it may say.
const TTL_RANGE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(300));
/// How long an instance that says nothing stays listed as dead, so that callers know how much of a Service is gone.
const DEAD_FOR: Duration = Duration::from_secs(60);
/// Of a control plane's own lease.
const STORE_TTL: Duration = Duration::from_secs(10);
/// Registrations that one control plane keeps count of.
const MOST: usize = 50_000;

/// Whether an instance gets requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Health {
    /// It does.
    #[default]
    Ready,
    /// It finishes what it has, and gets nothing new.
    Draining,
    /// It says nothing any more.
    Dead,
    /// A pod that is not ready.
    Absent,
}

/// What an instance says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Registration {
    /// Labels, as of a Workload.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Services of its namespace that it belongs to, besides those whose selectors match its labels.
    #[serde(default)]
    pub services: Vec<String>,
    /// The spec of a Workload: address, ports, …
    pub workload: Map<String, Value>,
    /// How long it is believed without a word of it, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
}

/// What an instance is told when it registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Terms {
    /// How long it is believed without a word of it.
    pub ttl_ms: u64,
    /// How often it should say that it is alive.
    pub renew_ms: u64,
}

/// Why an instance is not registered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refused {
    /// What it says of itself is wrong.
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
    /// It never registered here, or its time was over: it should register again.
    #[error("{0} is not registered here")]
    Unknown(Key),
    /// A Workload document has this name.
    #[error("a document of this name exists: {0}")]
    Documented(Key),
    /// It is a pod, of which Kubernetes tells.
    #[error("{0} is a pod: what Kubernetes says of it holds")]
    Mirrored(Key),
    /// There are too many.
    #[error("this control plane keeps count of {MOST} instances already")]
    Full,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The instances that registered at this control plane.
#[derive(Debug)]
pub struct Instances {
    registry: Arc<Registry>,
    sessions: Mutex<Leases<Key>>,
    /// Those that are dead, until they are forgotten.
    dead: Mutex<Leases<Key>>,
    lease: tokio::sync::Mutex<Option<LeaseId>>,
    changed: Notify,
}

impl Instances {
    /// None yet.
    #[must_use]
    pub fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            sessions: Mutex::default(),
            dead: Mutex::default(),
            lease: tokio::sync::Mutex::default(),
            changed: Notify::new(),
        }
    }

    fn sessions(&self) -> MutexGuard<'_, Leases<Key>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dead(&self) -> MutexGuard<'_, Leases<Key>> {
        self.dead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers an instance, or what it says of itself now.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn register(&self, namespace: &str, name: &str, said: &Registration) -> Result<Terms, Refused> {
        let key = Key::new(REGISTRATION, namespace, name);
        let ttl = said.ttl_ms.map_or(TTL, Duration::from_millis).clamp(TTL_RANGE.0, TTL_RANGE.1);
        let document = Key::new("Workload", namespace, name);
        if self.registry.get(&document).is_some() {
            return Err(Refused::Documented(document));
        }
        if !self.sessions().has(&key) && self.sessions().len() >= MOST {
            return Err(Refused::Full);
        }
        self.check(namespace, name, said)?;
        self.own(&key)?;
        let old = self.registry.get(&key);
        let body = body(&key, said, Health::Ready, old.as_deref());
        self.put(&key, &body, old.as_deref(), Expect::Any).await?;
        self.dead().revoke(&key);
        self.sessions().grant(key, ttl, Instant::now());
        self.changed.notify_one();
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Ok(Terms { ttl_ms: millis(ttl), renew_ms: millis(ttl / 3) })
    }

    /// The instance is alive.
    ///
    /// # Errors
    /// [`Refused::Unknown`]: it must register again.
    pub fn renew(&self, namespace: &str, name: &str) -> Result<(), Refused> {
        let key = Key::new(REGISTRATION, namespace, name);
        // The store may have lost it with a lease of this control plane, or a word that it is dead may have come after its last
        // registration: that was on its way, or another control plane wrote it.
        let lives = self.registry.get(&key).is_some_and(|record| health(&record) != Health::Dead);
        if lives && self.sessions().renew(&key, Instant::now()) { Ok(()) } else { Err(Refused::Unknown(key)) }
    }

    /// The instance finishes what it has, and is to get nothing new.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn drain(&self, namespace: &str, name: &str) -> Result<(), Refused> {
        let key = Key::new(REGISTRATION, namespace, name);
        self.own(&key)?;
        let old = self.registry.get(&key).filter(|_| self.sessions().has(&key));
        let old = old.ok_or_else(|| Refused::Unknown(key.clone()))?;
        self.put(&key, &with_health(&old, Health::Draining), Some(&old), Expect::Any).await
    }

    /// The instance is no longer there.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn deregister(&self, namespace: &str, name: &str) -> Result<(), Refused> {
        let key = Key::new(REGISTRATION, namespace, name);
        self.own(&key)?;
        let (lived, was_dead) = (self.sessions().revoke(&key), self.dead().revoke(&key));
        if !lived && !was_dead && self.registry.get(&key).is_none() {
            return Err(Refused::Unknown(key));
        }
        match self.registry.store().delete(&key, Expect::Any).await {
            Ok(revision) => drop(self.registry.seen(revision).await),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// That `key` is not of Kubernetes.
    fn own(&self, key: &Key) -> Result<(), Refused> {
        match self.registry.get(key) {
            Some(record) if self.registry.is_locked(&record) => Err(Refused::Mirrored(key.clone())),
            _ => Ok(()),
        }
    }

    /// All that are registered, at any control plane.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Record>> {
        self.registry.list(&Scope::Kind(REGISTRATION.into())).1
    }

    /// As the Workload that it is, without other Services than those that it names.
    fn check(&self, namespace: &str, name: &str, said: &Registration) -> Result<(), Refused> {
        let workload = json!({
            "apiVersion": Kind::named("Workload").map(Kind::api_version),
            "kind": "Workload",
            "metadata": {"name": name, "namespace": namespace, "labels": said.labels},
            "spec": said.workload,
        });
        let egress = said.workload.get("egress").and_then(Value::as_array).into_iter().flatten();
        let called = egress.filter_map(|item| {
            let of = item.get("namespace").and_then(Value::as_str).unwrap_or(namespace);
            self.registry.get(&Key::new("Service", of, item.get("service")?.as_str()?))
        });
        let own = "registration".to_owned();
        let texts: BTreeMap<String, String> =
            called.map(|record| (record.key.path(), record.text())).collect();
        let wrong: Vec<_> = errors(texts.into_iter().chain([(own.clone(), workload.to_string())]))
            .filter(|error| *error.source == *own)
            .map(|error| {
                let fix = error.fix.map(|fix| format!(" ({fix})")).unwrap_or_default();
                format!("{}: {}{fix}", error.path.replacen("spec", "workload", 1), error.message)
            })
            .collect();
        if wrong.is_empty() { Ok(()) } else { Err(Refused::Invalid(wrong)) }
    }

    async fn put(
        &self,
        key: &Key,
        body: &Value,
        old: Option<&Record>,
        expect: Expect,
    ) -> Result<(), Refused> {
        // The second time with a new lease, when the old one was lost.
        for attempt in 0..2 {
            let lease = self.lease().await?;
            if old.is_some_and(|old| old.lease == Some(lease) && old.to_value(None) == versioned(body, old)) {
                return Ok(());
            }
            let put = Put { key: key.clone(), value: body.to_string().into(), expect, lease: Some(lease) };
            match self.registry.store().put(put).await {
                Err(StoreError::NoLease(_)) if attempt == 0 => *self.lease.lock().await = None,
                Err(error) => return Err(error.into()),
                Ok(revision) => {
                    self.registry.seen(revision).await;
                    break;
                }
            }
        }
        Ok(())
    }

    /// This control plane's own lease in the store.
    async fn lease(&self) -> Result<LeaseId, StoreError> {
        let mut lease = self.lease.lock().await;
        if let Some(lease) = *lease {
            return Ok(lease);
        }
        let granted = self.registry.store().grant(STORE_TTL).await?;
        *lease = Some(granted);
        Ok(granted)
    }

    /// Keeps count, for ever.
    pub async fn keep(self: Arc<Self>) {
        let mut confirm = tokio::time::interval(STORE_TTL / 4);
        confirm.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let (ends, forgets) = (self.sessions().next_end(), self.dead().next_end());
            tokio::select! {
                () = self.changed.notified() => {}
                () = at(ends) => self.expire().await,
                () = at(forgets) => self.forget().await,
                _ = confirm.tick() => self.confirm().await,
            }
        }
    }

    async fn expire(&self) {
        let over = self.sessions().expire(Instant::now());
        for key in over {
            // Writes take time: it may have registered again while those before it were marked.
            if self.sessions().has(&key) {
                continue;
            }
            let lease = *self.lease.lock().await;
            // Whoever has registered it since then keeps count of it.
            let Some(old) = self.registry.get(&key).filter(|old| old.lease == lease) else { continue };
            info!(%key, "an instance says nothing any more");
            self.dead().grant(key.clone(), DEAD_FOR, Instant::now());
            let body = with_health(&old, Health::Dead);
            if let Err(error) = self.put(&key, &body, Some(&old), Expect::Revision(old.revision)).await {
                warn!(%key, %error, "cannot mark it dead; tried again");
                let mut sessions = self.sessions();
                if !sessions.has(&key) {
                    sessions.grant(key, TTL, Instant::now());
                }
            }
        }
    }

    async fn forget(&self) {
        let over = self.dead().expire(Instant::now());
        for key in over {
            let Some(old) = self.registry.get(&key).filter(|old| health(old) == Health::Dead) else {
                continue;
            };
            match self.registry.store().delete(&key, Expect::Revision(old.revision)).await {
                Ok(_) | Err(StoreError::Conflict { .. }) => {}
                Err(error) => {
                    warn!(%key, %error, "cannot forget it; tried again");
                    self.dead().grant(key, DEAD_FOR, Instant::now());
                }
            }
        }
    }

    /// This control plane is alive. When its lease was lost, everything that it keeps count of is registered again.
    async fn confirm(&self) {
        let Some(lease) = *self.lease.lock().await else { return };
        match self.registry.store().keep_alive(lease).await {
            Ok(()) => return,
            Err(StoreError::NoLease(_)) => {
                warn!("the lease of this control plane was lost; registering again")
            }
            Err(error) => return warn!(%error, "cannot confirm the lease of this control plane"),
        }
        let mine: Vec<_> = self.list().into_iter().filter(|record| record.lease == Some(lease)).collect();
        *self.lease.lock().await = None;
        for old in mine {
            let body = with_health(&old, health(&old));
            if let Err(error) = self.put(&old.key, &body, Some(&old), Expect::Any).await {
                warn!(key = %old.key, %error, "cannot register it again");
            }
        }
    }
}

async fn at(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => pending().await,
    }
}

/// How an instance is.
#[must_use]
pub fn health(record: &Record) -> Health {
    let said = record.get("spec").and_then(|mut spec| Some(spec.get_mut("health")?.take()));
    said.and_then(|health| serde_json::from_value(health).ok()).unwrap_or_default()
}

fn body(key: &Key, said: &Registration, health: Health, old: Option<&Record>) -> Value {
    let created = old.and_then(|old| old.metadata().remove("creationTimestamp"));
    json!({
        "apiVersion": "remora.dev/v1alpha1",
        "kind": REGISTRATION,
        "metadata": {
            "name": *key.name, "namespace": *key.namespace, "labels": said.labels,
            "creationTimestamp": created.unwrap_or_else(|| rfc3339(SystemTime::now()).into()),
        },
        "spec": {"services": said.services, "workload": said.workload, "health": health},
    })
}

fn with_health(old: &Record, health: Health) -> Value {
    let mut body = old.to_value(None);
    if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    if let Some(spec) = body.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("health".into(), json!(health));
    }
    body
}

/// `body` with the version of `old`, to compare the two.
fn versioned(body: &Value, old: &Record) -> Value {
    let mut body = body.clone();
    if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".into(), old.revision.to_string().into());
    }
    body
}
