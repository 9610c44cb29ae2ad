//! A store whose writes can be held up, or refused.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use remora_control::registry::{self, Registry};
use remora_control::store::{
    Entry, Key, LeaseId, Listing, Revision, Scope, Store, StoreError, Watch, Write, open,
};
use tokio::sync::watch;

/// What becomes of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    Open,
    /// Those that mark something dead wait.
    HoldsDead,
    /// Those of one write only are refused.
    RefusesSingle,
}

#[derive(Debug)]
struct Gated {
    store: Arc<dyn Store>,
    gate: watch::Receiver<Gate>,
    /// How many wait.
    waiting: watch::Sender<usize>,
}

pub(crate) struct Rigged {
    pub(crate) registry: Arc<Registry>,
    pub(crate) gate: watch::Sender<Gate>,
    pub(crate) waiting: watch::Receiver<usize>,
    _folder: tempfile::TempDir,
}

/// A registry that follows such a store.
pub(crate) async fn gated() -> Rigged {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&format!("redb:{}", folder.path().join("remora.redb").display())).await.unwrap();
    let (gate, seen) = watch::channel(Gate::Open);
    let (waits, waiting) = watch::channel(0);
    let registry = Arc::new(Registry::new(Arc::new(Gated { store, gate: seen, waiting: waits })));
    tokio::spawn(registry::follow(Arc::clone(&registry)));
    registry.filled().await;
    Rigged { registry, gate, waiting, _folder: folder }
}

fn is_dead(write: &Write) -> bool {
    matches!(write, Write::Put(put) if put.value.windows(6).any(|part| part == b"\"Dead\""))
}

#[async_trait]
impl Store for Gated {
    async fn transact(&self, writes: Vec<Write>) -> Result<Vec<Revision>, StoreError> {
        let mut gate = self.gate.clone();
        if *gate.borrow() == Gate::RefusesSingle && writes.len() == 1 {
            return Err(StoreError::Unavailable("the gate is shut".into()));
        }
        if writes.iter().any(is_dead) {
            self.waiting.send_modify(|waiting| *waiting += 1);
            gate.wait_for(|gate| *gate != Gate::HoldsDead).await.unwrap();
            self.waiting.send_modify(|waiting| *waiting -= 1);
        }
        self.store.transact(writes).await
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn list(&self, scope: &Scope) -> Result<Listing, StoreError> {
        self.store.list(scope).await
    }

    async fn watch(&self, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.store.watch(after).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }

    fn describe(&self) -> String {
        self.store.describe()
    }
}
