//! One control plane's hold of the authority, which is one value of the store.

mod acts;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rcgen::SanType;
use remora_proxy::tls::identity::SpiffeId;
use remora_xds::Resource;
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::authority::{Authority, Issued, Order, Overlap, Step};
use super::{Bundles, Csr, Refused, Root, System, secret};
use crate::clock::unix;
use crate::document::Record;
use crate::registry::Registry;
use crate::store::{Entry, Expect, Key, Put, Revision, StoreError};

/// Kind of the key of the authority.
pub const KIND: &str = "CertificateAuthority";
/// The namespace of what belongs to the control plane itself.
pub const NAMESPACE: &str = "remora-system";
/// The service account of control planes.
const SERVICE_ACCOUNT: &str = "remora-control";
/// How often a change is tried again that somebody else made at the same time.
const TRIES: u32 = 10;
/// Between attempts to make the first root.
const RETRY: Duration = Duration::from_secs(1);
/// How long it is waited for by who needs it.
const BEGINS: Duration = Duration::from_secs(5);

/// How an authority behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Of all identities.
    pub trust_domain: String,
    /// Life of a certificate whose request does not say how long.
    pub ttl: Duration,
    /// Longest life of a certificate.
    pub most_ttl: Duration,
    /// How long a root is announced.
    pub overlap: Overlap,
    /// The root of `--ca-cert`; without one it is made here.
    pub given: Option<Box<Root>>,
}

/// The authority as it is at a revision.
#[derive(Debug)]
struct Current {
    revision: Revision,
    authority: Authority,
    secret: Arc<Resource>,
}

/// See the module.
#[derive(Debug)]
pub struct Ca {
    registry: Arc<Registry>,
    settings: Settings,
    current: watch::Sender<Option<Arc<Current>>>,
    /// Of other trust domains.
    bundles: Mutex<Bundles>,
    /// Nodes that were said to lack the secret, the last time.
    laggards: watch::Sender<Vec<String>>,
}

fn key() -> Key {
    Key::new(KIND, NAMESPACE, "mesh")
}

pub(super) fn now() -> u64 {
    unix(SystemTime::now())
}

impl Ca {
    /// One that has not been read yet.
    #[must_use]
    pub fn new(registry: Arc<Registry>, settings: Settings) -> Self {
        Self {
            registry,
            settings,
            current: watch::Sender::new(None),
            bundles: Mutex::default(),
            laggards: watch::Sender::default(),
        }
    }

    /// Where it is read from.
    #[must_use]
    pub const fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// How it behaves.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    fn current(&self) -> Result<Arc<Current>, Refused> {
        self.current.borrow().clone().ok_or(Refused::NotReady)
    }

    /// Waits until it has begun, for 5 s at most: a control plane answers from the first moment on, which may be a moment before.
    pub async fn begun(&self) {
        let mut current = self.current.subscribe();
        // Who finds it not ready is told so. The sender is our own.
        let _ = tokio::time::timeout(BEGINS, current.wait_for(Option::is_some)).await;
    }

    /// The authority as it is seen here.
    ///
    /// # Errors
    /// [`Refused::NotReady`].
    pub fn read<T>(&self, read: impl FnOnce(&Authority) -> T) -> Result<T, Refused> {
        Ok(read(&self.current()?.authority))
    }

    /// The secret [`secret::ROOTCA`].
    ///
    /// # Errors
    /// [`Refused::NotReady`].
    pub fn secret(&self) -> Result<Arc<Resource>, Refused> {
        Ok(Arc::clone(&self.current()?.secret))
    }

    /// Told when it changes.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes(self.current.subscribe())
    }

    /// The identity of a service account.
    ///
    /// # Errors
    /// [`Refused::Identity`]: the names are none.
    pub fn identity(&self, namespace: &str, service_account: &str) -> Result<SpiffeId, Refused> {
        let text = format!("spiffe://{}/ns/{namespace}/sa/{service_account}", self.settings.trust_domain);
        let id = SpiffeId::parse(&text).map_err(|e| Refused::Identity(format!("{text}: {e}")))?;
        match id.service_account() {
            Some((NAMESPACE, SERVICE_ACCOUNT)) => Err(Refused::Identity(format!(
                "{text} is the control plane's own: no workload has it, and nothing revokes it"
            ))),
            Some(parts) if parts == (namespace, service_account) => Ok(id),
            _ => Err(Refused::Identity(format!("{text}: a namespace and a service account have no slash"))),
        }
    }

    /// An identity of this trust domain as it is written.
    ///
    /// # Errors
    /// [`Refused::Identity`].
    pub fn parse(&self, text: &str) -> Result<SpiffeId, Refused> {
        let id = SpiffeId::parse(text).map_err(|e| Refused::Identity(format!("{text}: {e}")))?;
        if id.trust_domain() == self.settings.trust_domain
            && let Some((namespace, service_account)) = id.service_account()
        {
            return self.identity(namespace, service_account);
        }
        let domain = &self.settings.trust_domain;
        Err(Refused::Identity(format!(
            "{text}: write it as spiffe://{domain}/ns/NAMESPACE/sa/SERVICE-ACCOUNT"
        )))
    }

    /// No certificate that is signed now ends after this, in seconds since 1970.
    #[must_use]
    pub fn latest_end(&self) -> u64 {
        now() + self.settings.most_ttl.as_secs()
    }

    /// The identity of control planes.
    ///
    /// # Errors
    /// [`Refused::Identity`]: the trust domain is none.
    pub fn own_identity(&self) -> Result<SpiffeId, Refused> {
        let text = format!("spiffe://{}/ns/{NAMESPACE}/sa/{SERVICE_ACCOUNT}", self.settings.trust_domain);
        SpiffeId::parse(&text).map_err(|e| Refused::Identity(format!("{text}: {e}")))
    }

    /// Takes the authority from the registry, which has been read, or makes the first root. Tries until it has it.
    pub async fn begin(&self) {
        self.look();
        while self.current().is_err() {
            if let Err(error) = self.found().await {
                error!(%error, "the certificate authority cannot begin; tried again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Makes the first root, unless somebody else was faster.
    async fn found(&self) -> Result<(), Refused> {
        let mut root = match &self.settings.given {
            Some(given) => Some(Root::clone(given)),
            None => Some(Root::make(&self.settings.trust_domain, now(), &mut System)?),
        };
        self.change(|authority, _| {
            if authority.roots().is_empty()
                && let Some(root) = root.take()
            {
                info!(root = root.short(), "a new certificate authority");
                *authority = Authority::new(root);
            }
            Ok(())
        })
        .await
    }

    /// Announces the root of `--ca-cert` if it is a new one, and takes its certificate if that is one.
    async fn adopt(&self) -> Result<(), Refused> {
        let Some(given) = self.settings.given.as_deref() else { return Ok(()) };
        let older = |root: &Root| root.id == given.id && root.not_after < given.not_after;
        if self.read(|authority| authority.roots().iter().any(older))?
            && self.change(|authority, _| authority.renew(given)).await?
        {
            info!(root = given.short(), "the certificate of --ca-cert is a newer one of its root");
        }
        let waits = |authority: &Authority| authority.announced().is_none() && !authority.has_had(given);
        if self.read(waits)? {
            self.change(|authority, now| {
                if waits(authority) { authority.announce(given.clone(), now, &mut System) } else { Ok(()) }
            })
            .await?;
            info!(root = given.short(), "the root of --ca-cert is announced");
        }
        Ok(())
    }

    /// Follows the registry for ever.
    pub async fn follow(self: Arc<Self>) {
        let mut moves = self.registry.progress();
        loop {
            self.look();
            if moves.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes what the registry has, when it is newer.
    fn look(&self) {
        let Some(record) = self.registry.get(&key()) else { return };
        if self.current.borrow().as_ref().is_some_and(|current| current.revision >= record.revision) {
            return;
        }
        match parse(&record) {
            Ok(authority) => self.take(record.revision, authority),
            Err(error) => error!(%error, "the authority stays as it was"),
        }
    }

    fn take(&self, revision: Revision, authority: Authority) {
        self.current.send_if_modified(|current| {
            let newer = current.as_ref().is_none_or(|current| current.revision < revision);
            if newer {
                let secret = self.secret_of(&authority);
                *current = Some(Arc::new(Current { revision, authority, secret }));
            }
            newer
        });
    }

    /// Everybody trusts these other domains from now on. Whether that is something new.
    pub fn federate(&self, bundles: Bundles) -> bool {
        let mut known = self.bundles.lock().unwrap_or_else(PoisonError::into_inner);
        if *known == bundles {
            return false;
        }
        *known = bundles;
        // Whoever takes an authority from here on reads the new ones.
        drop(known);
        self.current.send_if_modified(|current| {
            let Some(old) = current else { return false };
            let (revision, authority) = (old.revision, old.authority.clone());
            let secret = self.secret_of(&authority);
            *current = Some(Arc::new(Current { revision, authority, secret }));
            true
        });
        true
    }

    fn secret_of(&self, authority: &Authority) -> Arc<Resource> {
        let bundles = self.bundles.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::new(secret::of(authority, &self.settings.trust_domain, &bundles))
    }

    /// Changes the authority, as often as somebody else changes it meanwhile.
    async fn change<T>(
        &self,
        mut change: impl FnMut(&mut Authority, u64) -> Result<T, Refused>,
    ) -> Result<T, Refused> {
        for _ in 0..TRIES {
            let entry = self.registry.store().get(&key()).await?;
            let old = entry.as_ref().map(of_entry).transpose()?.unwrap_or_default();
            let mut new = old.clone();
            let done = change(&mut new, now())?;
            if new == old {
                entry.into_iter().for_each(|entry| self.take(entry.revision, new.clone()));
                return Ok(done);
            }
            let expect = entry.as_ref().map_or(Expect::Absent, |entry| Expect::Revision(entry.revision));
            let put = Put { key: key(), value: value(&new).into(), expect, lease: None };
            match self.registry.store().put(put).await {
                Ok(revision) => {
                    self.take(revision, new);
                    return Ok(done);
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Refused::Store(StoreError::Busy))
    }

    /// How long a certificate holds whose request says `asked`; zero or less is no wish.
    #[must_use]
    pub fn ttl(&self, asked: i64) -> Duration {
        let wish = u64::try_from(asked).ok().filter(|seconds| *seconds > 0);
        wish.map_or(self.settings.ttl, Duration::from_secs).min(self.settings.most_ttl)
    }

    /// The authority with room for certificates of `ttl`: the store knows that its root signs for so long.
    ///
    /// # Errors
    /// The store.
    pub async fn signer(&self, ttl: Duration) -> Result<Signer, Refused> {
        for _ in 0..TRIES {
            let current = self.current()?;
            if !current.authority.clone().reserve(ttl, now())? {
                return Ok(Signer(current, ttl));
            }
            self.change(|authority, now| authority.reserve(ttl, now)).await?;
        }
        Err(Refused::Store(StoreError::Busy))
    }

    /// A certificate of this control plane for its own ports, with its key, in PEM.
    ///
    /// # Errors
    /// The store, or a name that is none.
    pub async fn issue_own(&self, names: &[SanType]) -> Result<(Issued, String), Refused> {
        let identity = self.own_identity()?;
        let Signer(current, ttl) = self.signer(self.ttl(0)).await?;
        current.authority.issue_own(Order { identity: &identity, names, ttl }, now(), &mut System)
    }

    /// The nodes that an announced root waits for.
    #[must_use]
    pub fn waits_for(&self) -> Vec<String> {
        let announced = self.read(|authority| authority.announced().is_some()).unwrap_or(false);
        if announced { self.laggards.borrow().clone() } else { Vec::new() }
    }

    /// Moves what is due; `laggards` are the nodes that have not taken `secret`. When the authority has changed since then, nothing is: a
    /// root that was announced meanwhile is not in `secret`.
    ///
    /// # Errors
    /// The store; or the root of `--ca-cert` cannot be announced.
    pub async fn advance(&self, secret: &Resource, laggards: &[String]) -> Result<(), Refused> {
        let adopted = self.adopt().await;
        // What is there has to go on all the same: a root that goes makes room.
        self.step(secret, laggards).await.and(adopted)
    }

    async fn step(&self, secret: &Resource, laggards: &[String]) -> Result<(), Refused> {
        let current = self.current()?;
        if current.secret.version() != secret.version() {
            return Ok(());
        }
        self.laggards.send_replace(laggards.to_vec());
        let (domain, overlap) = (&self.settings.trust_domain, self.settings.overlap);
        let mut moved = current.authority.clone();
        moved.advance(domain, laggards, overlap, now(), &mut System)?;
        if moved == current.authority {
            return Ok(());
        }
        let known = current.authority.announced().map(|root| &root.id);
        let steps = self.change(|authority, now| {
            if authority.announced().map(|root| &root.id) != known {
                return Ok(Vec::new());
            }
            authority.advance(domain, laggards, overlap, now, &mut System)
        });
        let steps = steps.await?;
        for step in steps {
            match step {
                Step::Signs(root, laggards) if laggards.is_empty() => info!(root, "a new root signs"),
                Step::Signs(root, laggards) => {
                    warn!(
                        root,
                        ?laggards,
                        "a new root signs, and these proxies have not said that they trust it"
                    );
                }
                Step::Gone(root) => info!(root, "a root is no longer trusted: what it signed has ended"),
                Step::Announced(root) => {
                    info!(root, "the root that signs ends in a while: a new one is announced")
                }
            }
        }
        Ok(())
    }
}

/// The authority at a moment. What it signs holds, whatever the authority has become since then.
#[derive(Debug)]
pub struct Signer(Arc<Current>, Duration);

impl Signer {
    /// Signs the key of `csr` for `identity`.
    ///
    /// # Errors
    /// See [`Authority::issue`].
    pub fn issue(&self, csr: &Csr, identity: &SpiffeId) -> Result<Issued, Refused> {
        let order = Order { identity, names: &[], ttl: self.1 };
        self.0.authority.issue(csr, order, now(), &mut System)
    }
}

/// Told when the authority changes.
#[derive(Debug)]
pub struct Changes(watch::Receiver<Option<Arc<Current>>>);

impl Changes {
    /// Waits for a change. False: there will be none any more.
    pub async fn next(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

fn parse(record: &Record) -> Result<Authority, Refused> {
    let spec = record.get("spec").unwrap_or_default();
    serde_json::from_value(spec).map_err(|e| Refused::Corrupt(e.to_string()))
}

fn of_entry(entry: &Entry) -> Result<Authority, Refused> {
    parse(&Record::of(entry)?)
}

/// As it is kept: what the store holds are documents, and this is one that nobody writes but control planes.
fn value(authority: &Authority) -> String {
    let body: Value = json!({
        "apiVersion": "remora.dev/v1alpha1", "kind": KIND,
        "metadata": {"name": "mesh", "namespace": NAMESPACE}, "spec": authority,
    });
    body.to_string()
}
