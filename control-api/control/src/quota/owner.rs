//! Which domains this control plane shares among sidecars: of several with one store, the one that holds the domain's key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::pool::{GRACE, TTL};
use crate::ca::keeper::NAMESPACE;
use crate::registry::Registry;
use crate::store::{Expect, Key, LeaseId, Put, StoreError, Write};

/// Kind of the keys of domains.
pub const KIND: &str = "QuotaDomain";
/// A control plane that says nothing for so long has none.
const LEASE: Duration = Duration::from_secs(10);

/// Why a domain is not this control plane's.
#[derive(Debug, thiserror::Error)]
pub enum NotOwner {
    /// It is another one's.
    #[error("another control plane shares {0}; connect to another one")]
    Another(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The domains of this control plane.
#[derive(Debug)]
pub struct Owner {
    registry: Arc<Registry>,
    /// Others may have the store open, too.
    shared: bool,
    started: Instant,
    held: Mutex<Held>,
    /// One asks the store at a time.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Held {
    /// Under which all keys are, and when the store was asked that confirmed it last.
    lease: Option<(LeaseId, Instant)>,
    /// Domains, and from when on shares of them are given.
    domains: HashMap<String, Instant>,
}

impl Held {
    fn confirmed(&self, now: Instant) -> Option<LeaseId> {
        self.lease.filter(|(_, at)| now < *at + LEASE).map(|(lease, _)| lease)
    }
}

impl Owner {
    /// None yet.
    #[must_use]
    pub fn new(registry: Arc<Registry>, started: Instant) -> Self {
        let shared = registry.store().is_shared();
        Self { registry, shared, started, held: Mutex::default(), asking: tokio::sync::Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From when on shares of `domain` may be given, if it is this control plane's at `now`: whatever anybody else gave is over then.
    #[must_use]
    pub fn opens(&self, domain: &str, now: Instant) -> Option<Instant> {
        if !self.shared {
            return Some(self.started + TTL + GRACE);
        }
        let held = self.held();
        held.confirmed(now)?;
        held.domains.get(domain).copied()
    }

    /// Takes `domain`, if nobody has it.
    ///
    /// # Errors
    /// See [`NotOwner`].
    pub async fn take(&self, domain: &str) -> Result<(), NotOwner> {
        let _asking = self.asking.lock().await;
        if self.opens(domain, Instant::now()).is_some() {
            return Ok(());
        }
        let (lease, key, store) = (self.lease().await?, key(domain), self.registry.store());
        let value = value(&key).into();
        let put = Put { key: key.clone(), value, expect: Expect::Absent, lease: Some(lease) };
        match store.put(put).await {
            Ok(_) => {}
            Err(StoreError::Conflict { .. }) => {
                // It may be our own, when the answer to the write was lost.
                let there = store.get(&key).await?;
                if there.is_none_or(|there| there.lease != Some(lease)) {
                    return Err(NotOwner::Another(domain.to_owned()));
                }
            }
            Err(error) => return Err(error.into()),
        }
        self.held().domains.insert(domain.to_owned(), Instant::now() + TTL + GRACE);
        Ok(())
    }

    /// What makes a transaction one that only the owner of `domain` can make: after its lease has ended, none of its writes that is still on its
    /// way is made. The registry has what was written before the domain was taken. None: nobody else has the store open.
    ///
    /// # Errors
    /// The domain is not this control plane's, or see [`NotOwner::Store`].
    pub async fn fence(&self, domain: &str) -> Result<Option<Write>, NotOwner> {
        if !self.shared {
            return Ok(None);
        }
        let key = key(domain);
        let lease = self.held().confirmed(Instant::now());
        let there = self.registry.store().get(&key).await?;
        let Some(there) = there.filter(|there| lease.is_some() && there.lease == lease) else {
            return Err(NotOwner::Another(domain.to_owned()));
        };
        if !self.registry.seen(there.revision).await {
            let text = "what others wrote last has not been seen yet".to_owned();
            return Err(StoreError::Unavailable(text).into());
        }
        Ok(Some(Write::Check { key, expect: Expect::Revision(there.revision) }))
    }

    /// The lease; another one when it was lost, and everything with it.
    async fn lease(&self) -> Result<LeaseId, StoreError> {
        let now = Instant::now();
        if let Some(lease) = self.held().confirmed(now) {
            return Ok(lease);
        }
        let lease = self.registry.store().grant(LEASE).await?;
        *self.held() = Held { lease: Some((lease, now)), domains: HashMap::new() };
        Ok(lease)
    }

    /// Keeps what is held, for ever.
    pub async fn keep(&self) {
        let mut ticks = interval(LEASE / 5);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.renew().await;
        }
    }

    /// Does not wait for those who ask for domains: behind many of them the lease would end.
    async fn renew(&self) {
        let now = Instant::now();
        let Some((lease, _)) = self.held().lease else { return };
        let kept = self.registry.store().keep_alive(lease).await;
        let mut held = self.held();
        if held.lease.is_none_or(|(own, _)| own != lease) {
            // Meanwhile another one was granted, of which this says nothing.
            return;
        }
        match kept {
            Ok(()) => held.lease = Some((lease, now)),
            Err(StoreError::NoLease(_)) => *held = Held::default(),
            Err(error) => tracing::warn!(%error, "the domains of rate limits are not confirmed; tried again"),
        }
    }
}

/// What is there while somebody has a domain, in a store that several may have open. A domain may be any text, and a name of the store
/// has no slash.
pub(crate) fn key(domain: &str) -> Key {
    let name = percent_encoding::utf8_percent_encode(domain, percent_encoding::NON_ALPHANUMERIC);
    Key::new(KIND, NAMESPACE, &name.to_string())
}

fn value(key: &Key) -> String {
    let metadata = json!({ "name": *key.name, "namespace": NAMESPACE });
    json!({ "apiVersion": "remora.dev/v1alpha1", "kind": KIND, "metadata": metadata }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store;

    async fn behind(folder: &tempfile::TempDir) -> Arc<Registry> {
        let store = store::open(&format!("redb:{}", folder.path().join("remora.redb").display())).await;
        Arc::new(Registry::new(store.unwrap()))
    }

    async fn registry(folder: &tempfile::TempDir) -> Arc<Registry> {
        let registry = behind(folder).await;
        tokio::spawn(crate::registry::follow(Arc::clone(&registry)));
        registry
    }

    fn one_of_several(registry: &Arc<Registry>) -> Owner {
        Owner { shared: true, ..Owner::new(Arc::clone(registry), Instant::now()) }
    }

    #[tokio::test]
    async fn a_domain_has_one_owner_and_another_one_when_its_lease_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let registry = registry(&folder).await;
        let (one, two) = (one_of_several(&registry), one_of_several(&registry));
        assert_eq!(one.opens("a/b", Instant::now()), None);
        one.take("a/b").await.unwrap();
        one.take("a/b").await.unwrap();
        assert!(matches!(two.take("a/b").await, Err(NotOwner::Another(_))));
        two.take("other").await.unwrap();
        let now = Instant::now();
        assert!(one.opens("a/b", now).is_some_and(|opens| opens > now), "others' shares may be in use");
        assert_eq!(two.opens("a/b", now), None);
        assert_eq!(one.opens("a/b", now + LEASE), None, "it was not confirmed in time");

        // The answer to its write was lost.
        one.held().domains.clear();
        one.take("a/b").await.unwrap();
        assert!(one.opens("a/b", now).is_some());

        let fence = one.fence("a/b").await.unwrap().unwrap();
        assert!(matches!(two.fence("a/b").await, Err(NotOwner::Another(_))));
        let writes = |name: &str| {
            let key = Key::new("Test", "default", name);
            vec![fence.clone(), Write::Put(Put { key, value: "{}".into(), expect: Expect::Any, lease: None })]
        };
        registry.store().transact(writes("x")).await.unwrap();

        let (lease, _) = one.held().lease.unwrap();
        registry.store().revoke(lease).await.unwrap();
        assert!(matches!(one.fence("a/b").await, Err(NotOwner::Another(_))));
        one.renew().await;
        assert_eq!(one.opens("a/b", now), None);
        two.take("a/b").await.unwrap();
        assert!(matches!(one.take("a/b").await, Err(NotOwner::Another(_))));
        let late = registry.store().transact(writes("y")).await;
        assert!(matches!(late, Err(StoreError::Conflict { .. })), "it was on its way: {late:?}");
    }

    /// What the owner before wrote last might be written over with what was before it.
    #[tokio::test]
    async fn whoever_has_not_seen_what_was_written_before_does_not_begin() {
        let folder = tempfile::tempdir().unwrap();
        let registry = behind(&folder).await;
        let owner = one_of_several(&registry);
        owner.take("a/b").await.unwrap();
        let fence = owner.fence("a/b").await;
        assert!(matches!(&fence, Err(NotOwner::Store(StoreError::Unavailable(_)))), "{fence:?}");
        tokio::spawn(crate::registry::follow(Arc::clone(&registry)));
        assert!(owner.fence("a/b").await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_store_of_one_process_needs_no_keys() {
        let folder = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let owner = Owner::new(registry(&folder).await, start);
        owner.take("a").await.unwrap();
        assert_eq!(owner.opens("a", start), Some(start + TTL + GRACE));
        assert!(owner.held().lease.is_none());
    }
}
