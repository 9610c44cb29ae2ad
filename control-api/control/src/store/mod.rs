//! Where documents and registrations are kept: [`Store`], with [`redb`] in a file of this machine or [`etcd`] for several control planes.
//!
//! The model is etcd's: one revision for each write, compare-and-swap on the revision of a key, a listing with its revision, a watch
//! from a revision, leases whose keys go away with them. `tests/store.rs` is the conformance test that every implementation passes.

pub mod etcd;
pub mod key;
pub mod lease;
pub mod redb;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

pub use key::{Key, Scope};

/// Number of a write; 0 before the first.
pub type Revision = u64;

/// Largest value, in bytes, and most bytes of the values of a transaction: etcd refuses requests above 1.5 MiB.
pub const MAX_VALUE: usize = 1 << 20;
/// Most writes of a transaction: etcd's `--max-txn-ops`.
pub const MAX_WRITES: usize = 128;

/// A lease of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// A key and what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// The value.
    pub value: Bytes,
    /// The write that put it there.
    pub revision: Revision,
    /// The lease that it goes away with.
    pub lease: Option<LeaseId>,
}

/// Everything in a scope, as it was after `revision`.
#[derive(Debug, Clone)]
pub struct Listing {
    /// A watch from here misses nothing and repeats nothing.
    pub revision: Revision,
    /// In the order of their keys.
    pub entries: Vec<Entry>,
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A value was put.
    Put(Entry),
    /// A key went away: deleted, or its lease expired.
    Delete {
        /// The key.
        key: Key,
        /// The write that removed it.
        revision: Revision,
    },
}

impl Event {
    /// The key that changed.
    #[must_use]
    pub const fn key(&self) -> &Key {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The write that changed it.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        match self {
            Self::Put(entry) => entry.revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// What must hold for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// There is no such key.
    Absent,
    /// The key was put by this write.
    Revision(Revision),
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("anything"),
            Self::Absent => f.write_str("nothing"),
            Self::Revision(revision) => write!(f, "revision {revision}"),
        }
    }
}

/// A value to put.
#[derive(Debug, Clone)]
pub struct Put {
    /// Where.
    pub key: Key,
    /// What; at most [`MAX_VALUE`] bytes.
    pub value: Bytes,
    /// The condition.
    pub expect: Expect,
    /// The lease that it goes away with.
    pub lease: Option<LeaseId>,
}

/// A part of a transaction.
#[derive(Debug, Clone)]
pub enum Write {
    /// Puts a value.
    Put(Put),
    /// Removes a key. One that is not there is a [`StoreError::Conflict`].
    Delete {
        /// Where.
        key: Key,
        /// The condition.
        expect: Expect,
    },
    /// Changes nothing: what else the transaction writes is written only where this holds.
    Check {
        /// Where.
        key: Key,
        /// The condition.
        expect: Expect,
    },
}

impl Write {
    /// Where it writes, or looks.
    #[must_use]
    pub const fn key(&self) -> &Key {
        match self {
            Self::Put(put) => &put.key,
            Self::Delete { key, .. } | Self::Check { key, .. } => key,
        }
    }

    /// Its condition.
    #[must_use]
    pub const fn expect(&self) -> Expect {
        match self {
            Self::Put(put) => put.expect,
            Self::Delete { expect, .. } | Self::Check { expect, .. } => *expect,
        }
    }

    /// Whether it may happen where `current` is the revision of what is there.
    const fn may(&self, current: Option<Revision>) -> bool {
        match (self.expect(), current) {
            (Expect::Any, None) => !matches!(self, Self::Delete { .. }),
            (Expect::Any, Some(_)) | (Expect::Absent, None) => true,
            (Expect::Absent, Some(_)) | (Expect::Revision(_), None) => false,
            (Expect::Revision(expected), Some(current)) => expected == current,
        }
    }

    /// Whether it changes something.
    const fn is_change(&self) -> bool {
        !matches!(self, Self::Check { .. })
    }

    /// It may not.
    fn conflict(&self, current: Option<Revision>) -> StoreError {
        StoreError::Conflict { key: self.key().clone(), expected: self.expect(), current }
    }
}

/// Why a store did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The condition of a write does not hold.
    #[error("{key}: expected {expected}, found {}", found(*current))]
    Conflict {
        /// Where.
        key: Key,
        /// The condition.
        expected: Expect,
        /// The revision that is there.
        current: Option<Revision>,
    },
    /// The changes after the revision that a watch should begin with are no longer kept: list again.
    #[error("the changes before revision {oldest} are compacted: list again")]
    Compacted {
        /// The oldest revision that a watch may begin with.
        oldest: Revision,
    },
    /// The lease has expired, was revoked or never existed.
    #[error("lease {0:?} is gone")]
    NoLease(LeaseId),
    /// The value is too large.
    #[error("{bytes} bytes are more than the {MAX_VALUE} that a value may have")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// More writes wait than the store takes.
    #[error("too many writes are waiting; try again")]
    Busy,
    /// There is no space left for a write.
    #[error("the store is full: {0}")]
    Full(String),
    /// What is kept cannot be read.
    #[error("the store is corrupt: {0}")]
    Corrupt(String),
    /// The store was written by another version of this program.
    #[error("the store has schema {found}, this program reads {known}")]
    Schema {
        /// In the store.
        found: u64,
        /// In this program.
        known: u64,
    },
    /// Another process has the store open.
    #[error("another process has {0} open")]
    Locked(String),
    /// The store cannot be reached, or answered with an error of its own.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
}

fn found(current: Option<Revision>) -> String {
    current.map_or_else(|| "nothing".to_owned(), |revision| format!("revision {revision}"))
}

/// A durable map from keys to values. A write that was answered survives the death of this process.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// What is at `key`.
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError>;

    /// Everything in `scope`.
    async fn list(&self, scope: &Scope) -> Result<Listing, StoreError>;

    /// Makes all of these writes when the conditions of all hold, or else none. The answer is the revision of each that is no
    /// [`Write::Check`]. At most [`MAX_WRITES`], and no key twice.
    async fn transact(&self, writes: Vec<Write>) -> Result<Vec<Revision>, StoreError>;

    /// Puts a value when its condition holds, and answers the revision of this write.
    async fn put(&self, put: Put) -> Result<Revision, StoreError> {
        one(self.transact(vec![Write::Put(put)]).await)
    }

    /// Removes a key when the condition holds. A key that is not there is a [`StoreError::Conflict`].
    async fn delete(&self, key: &Key, expect: Expect) -> Result<Revision, StoreError> {
        one(self.transact(vec![Write::Delete { key: key.clone(), expect }]).await)
    }

    /// Every change after revision `after`, in order.
    async fn watch(&self, after: Revision) -> Result<Box<dyn Watch>, StoreError>;

    /// A new lease. It expires when it is not kept alive for `ttl`, or later by as much as the store's clock is coarse (etcd: seconds).
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Gives a lease its whole time again.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease and removes its keys.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Whether other processes may write it, too.
    fn is_shared(&self) -> bool {
        true
    }

    /// What this is, for people: `redb ./remora-data/remora.redb`.
    fn describe(&self) -> String;
}

/// The revision of a transaction of one write.
fn one(done: Result<Vec<Revision>, StoreError>) -> Result<Revision, StoreError> {
    done.map(|revisions| revisions.first().copied().unwrap_or_default())
}

/// A sequence of changes.
#[async_trait]
pub trait Watch: Send {
    /// The next changes, at least one. After an error the watch is over: begin again, after [`StoreError::Compacted`] with a listing.
    async fn next(&mut self) -> Result<Vec<Event>, StoreError>;
}

/// A store by its address: `redb:PATH` or `etcd://HOST:PORT[,HOST:PORT…][/PREFIX]`.
///
/// # Errors
/// The address is none, or the store cannot be opened.
pub async fn open(address: &str) -> Result<Arc<dyn Store>, StoreError> {
    if let Some(rest) = address.strip_prefix("etcd://") {
        return Ok(Arc::new(etcd::EtcdStore::connect(rest).await?));
    }
    if let Some(path) = address.strip_prefix("redb:") {
        return Ok(Arc::new(redb::RedbStore::open(path.as_ref(), redb::Options::default()).await?));
    }
    Err(StoreError::Unavailable(format!(
        "{address:?} is no address of a store: redb:PATH or etcd://HOST:PORT"
    )))
}
