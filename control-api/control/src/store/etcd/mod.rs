//! A store in etcd, for several control planes: keys under a prefix, transactions, watches and leases are etcd's own.
//!
//! Compaction is left to whoever runs etcd (`--auto-compaction-retention`): it is the whole cluster's, not this prefix's.

mod call;
mod wire;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tonic::Streaming;

use self::call::Caller;
use self::wire::{
    Compare, CompareResult, CompareTarget, CompareTo, DeleteRangeRequest, EventType, KeyValue,
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveResponse, LeaseRequest, LeaseRevokeResponse,
    Operation, Outcome, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseOp, TxnRequest,
    TxnResponse, WatchCreateRequest, WatchEvent, WatchRequest, WatchResponse,
};
use super::{
    Entry, Event, Expect, Key, LeaseId, Listing, MAX_VALUE, Revision, Scope, Store, StoreError, Watch, Write,
};

/// Entries of one page of a listing.
const PAGE: i64 = 200;
/// Where keys are when the address names no prefix.
const PREFIX: &str = "remora";

const KV_RANGE: &str = "/etcdserverpb.KV/Range";
const KV_TXN: &str = "/etcdserverpb.KV/Txn";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
const LEASE_GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const LEASE_REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
const LEASE_KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

/// A store in etcd.
#[derive(Debug)]
pub struct EtcdStore {
    caller: Caller,
    /// `remora/`.
    prefix: String,
    name: String,
}

impl EtcdStore {
    /// Connects to `HOST:PORT[,HOST:PORT…][/PREFIX]`, and makes sure that somebody answers.
    ///
    /// # Errors
    /// The address is none, or nobody answers.
    pub async fn connect(address: &str) -> Result<Self, StoreError> {
        let (hosts, prefix) = address.split_once('/').unwrap_or((address, PREFIX));
        let prefix = prefix.trim_matches('/');
        let store = Self {
            caller: Caller::new(hosts)?,
            prefix: format!("{}/", if prefix.is_empty() { PREFIX } else { prefix }),
            name: format!("etcd {address}"),
        };
        store.revision().await?;
        Ok(store)
    }

    fn path(&self, key: &Key) -> Vec<u8> {
        format!("{}{}", self.prefix, key.path()).into_bytes()
    }

    /// Of the cluster.
    async fn revision(&self) -> Result<Revision, StoreError> {
        let request =
            RangeRequest { key: self.prefix.clone().into_bytes(), limit: 1, ..RangeRequest::default() };
        let answer: RangeResponse = self.caller.unary(KV_RANGE, request).await?;
        Ok(revision_of(&answer))
    }

    fn entry(&self, kv: &KeyValue) -> Result<Entry, StoreError> {
        Ok(Entry {
            key: key_of(&self.prefix, &kv.key)?,
            value: kv.value.clone(),
            revision: unsigned(kv.mod_revision),
            lease: (kv.lease != 0).then(|| LeaseId(kv.lease.cast_unsigned())),
        })
    }

    /// What must hold, and what is then done.
    fn operation(&self, write: &Write) -> (Option<Compare>, Operation) {
        let key = self.path(write.key());
        let compare = match (write.expect(), write) {
            // A key that is not there cannot be deleted.
            (Expect::Any, Write::Delete { .. }) => Some(Compare {
                result: CompareResult::Greater.into(),
                target: CompareTarget::Version.into(),
                key: key.clone(),
                to: Some(CompareTo::Version(0)),
            }),
            (Expect::Any, Write::Put(_) | Write::Check { .. }) => None,
            (Expect::Absent, _) => Some(put_by(key.clone(), 0)),
            (Expect::Revision(revision), _) => Some(put_by(key.clone(), revision)),
        };
        let operation = match write {
            Write::Put(put) => Operation::Put(PutRequest {
                key,
                value: put.value.clone(),
                lease: put.lease.map_or(0, |lease| lease.0.cast_signed()),
            }),
            Write::Delete { .. } => Operation::DeleteRange(DeleteRangeRequest { key }),
            Write::Check { .. } => Operation::Range(RangeRequest { key, ..RangeRequest::default() }),
        };
        (compare, operation)
    }
}

/// The first write that may not happen where `found` is what etcd found at the keys of all.
fn first_conflict(writes: &[Write], found: Vec<ResponseOp>) -> StoreError {
    let mut currents = found.into_iter().map(|op| match op.response {
        Some(Outcome::Range(range)) => range.kvs.first().map(|kv| unsigned(kv.mod_revision)),
        None => None,
    });
    let conflict = writes.iter().find_map(|write| {
        let current = currents.next().flatten();
        (!write.may(current)).then(|| write.conflict(current))
    });
    conflict.unwrap_or_else(|| StoreError::Unavailable("etcd refused a write and says no reason".into()))
}

/// `key` was put by this write.
fn put_by(key: Vec<u8>, revision: Revision) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::ModRevision.into(),
        key,
        to: Some(CompareTo::ModRevision(revision.cast_signed())),
    }
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

fn revision_of(answer: &RangeResponse) -> Revision {
    answer.header.as_ref().map_or(0, |header| unsigned(header.revision))
}

fn key_of(prefix: &str, path: &[u8]) -> Result<Key, StoreError> {
    let text = std::str::from_utf8(path).ok();
    let key = text.and_then(|text| text.strip_prefix(prefix)).and_then(Key::parse);
    key.ok_or_else(|| StoreError::Corrupt(format!("{:?} is no key", String::from_utf8_lossy(path))))
}

/// The end of the range of keys that begin with `prefix`: the same with its last byte one higher. Prefixes end with a slash.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        let request = RangeRequest { key: self.path(key), ..RangeRequest::default() };
        let answer: RangeResponse = self.caller.unary(KV_RANGE, request).await?;
        answer.kvs.first().map(|kv| self.entry(kv)).transpose()
    }

    async fn list(&self, scope: &Scope) -> Result<Listing, StoreError> {
        let prefix = format!("{}{}", self.prefix, scope.prefix());
        let (mut key, mut revision, mut entries) = (prefix.clone().into_bytes(), 0_u64, Vec::new());
        loop {
            let request = RangeRequest {
                key,
                range_end: end_of(&prefix),
                limit: PAGE,
                revision: revision.cast_signed(),
            };
            let answer: RangeResponse = self.caller.unary(KV_RANGE, request).await?;
            // All pages are of the moment of the first one.
            if revision == 0 {
                revision = revision_of(&answer);
            }
            for kv in &answer.kvs {
                entries.push(self.entry(kv)?);
            }
            let Some(last) = answer.kvs.last().filter(|_| answer.more) else {
                return Ok(Listing { revision, entries });
            };
            key = [last.key.as_ref(), b"\0"].concat();
        }
    }

    async fn transact(&self, writes: Vec<Write>) -> Result<Vec<Revision>, StoreError> {
        let puts = writes.iter().filter_map(|write| match write {
            Write::Put(put) => Some(put),
            Write::Delete { .. } | Write::Check { .. } => None,
        });
        if let Some(put) = puts.clone().find(|put| put.value.len() > MAX_VALUE) {
            return Err(StoreError::TooLarge { bytes: put.value.len() });
        }
        let lease = puts.clone().find_map(|put| put.lease);
        let (compare, operations): (Vec<_>, Vec<_>) =
            writes.iter().map(|write| self.operation(write)).unzip();
        let look = |write| {
            Operation::Range(RangeRequest { key: self.path(Write::key(write)), ..RangeRequest::default() })
        };
        let requests = |operations: Vec<Operation>| {
            operations.into_iter().map(|request| RequestOp { request: Some(request) }).collect()
        };
        let request = TxnRequest {
            compare: compare.into_iter().flatten().collect(),
            success: requests(operations),
            failure: requests(writes.iter().map(look).collect()),
        };
        let answer: TxnResponse = match (self.caller.unary(KV_TXN, request).await, lease) {
            (Err(StoreError::NoLease(_)), Some(lease)) => return Err(StoreError::NoLease(lease)),
            (answer, _) => answer?,
        };
        if !answer.succeeded {
            return Err(first_conflict(&writes, answer.responses));
        }
        let revision = answer.header.map_or(0, |header| unsigned(header.revision));
        Ok(vec![revision; writes.iter().filter(|write| write.is_change()).count()])
    }

    async fn watch(&self, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let now = self.revision().await?;
        // From the future: of another cluster, or of this one before a backup was restored.
        if after > now {
            return Err(StoreError::Compacted { oldest: now });
        }
        let create = WatchCreateRequest {
            key: self.prefix.clone().into_bytes(),
            range_end: end_of(&self.prefix),
            start_revision: after.cast_signed() + 1,
        };
        let request = WatchRequest { create_request: Some(create) };
        let changes = self.caller.stream(WATCH, request).await?;
        let mut watch = EtcdWatch { changes, prefix: self.prefix.clone() };
        // The first answer says that the watch is there; what is compacted shows in the next.
        let created = watch.message().await?;
        if !created.created {
            return Err(StoreError::Unavailable(format!("etcd made no watch: {}", created.cancel_reason)));
        }
        Ok(Box::new(watch))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let request = LeaseGrantRequest { ttl: seconds.max(1).cast_signed() };
        let answer: LeaseGrantResponse = self.caller.unary(LEASE_GRANT, request).await?;
        Ok(LeaseId(answer.id.cast_unsigned()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let request = LeaseRequest { id: lease.0.cast_signed() };
        let mut answers: Streaming<LeaseKeepAliveResponse> =
            self.caller.stream(LEASE_KEEP_ALIVE, request).await?;
        match self.caller.in_time(answers.message()).await? {
            Some(answer) if answer.ttl > 0 => Ok(()),
            _ => Err(StoreError::NoLease(lease)),
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let request = LeaseRequest { id: lease.0.cast_signed() };
        let done: Result<LeaseRevokeResponse, _> = self.caller.unary(LEASE_REVOKE, request).await;
        match done {
            Err(StoreError::NoLease(_)) => Err(StoreError::NoLease(lease)),
            done => done.map(drop),
        }
    }

    fn describe(&self) -> String {
        self.name.clone()
    }
}

struct EtcdWatch {
    changes: Streaming<WatchResponse>,
    prefix: String,
}

impl EtcdWatch {
    async fn message(&mut self) -> Result<WatchResponse, StoreError> {
        let message = self.changes.message().await.map_err(call::failed)?;
        let message = message.ok_or_else(|| StoreError::Unavailable("etcd ended the watch".into()))?;
        if message.compact_revision > 0 {
            return Err(StoreError::Compacted { oldest: unsigned(message.compact_revision) });
        }
        if message.canceled {
            return Err(StoreError::Unavailable(format!("etcd ended the watch: {}", message.cancel_reason)));
        }
        Ok(message)
    }

    fn event(&self, event: &WatchEvent) -> Result<Event, StoreError> {
        let kv = event.kv.as_ref().ok_or_else(|| StoreError::Corrupt("an event without a key".into()))?;
        let (key, revision) = (key_of(&self.prefix, &kv.key)?, unsigned(kv.mod_revision));
        if event.r#type == i32::from(EventType::Delete) {
            return Ok(Event::Delete { key, revision });
        }
        let lease = (kv.lease != 0).then(|| LeaseId(kv.lease.cast_unsigned()));
        Ok(Event::Put(Entry { key, value: Bytes::clone(&kv.value), revision, lease }))
    }
}

#[async_trait]
impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<Vec<Event>, StoreError> {
        loop {
            let message = self.message().await?;
            if !message.events.is_empty() {
                return message.events.iter().map(|event| self.event(event)).collect();
            }
        }
    }
}
