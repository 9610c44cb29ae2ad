//! A document as it is kept.

use std::time::SystemTime;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::Incoming;
use crate::clock::rfc3339;
use crate::store::{Entry, Key, LeaseId, Revision, StoreError};

/// A document of a store.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Who it is.
    pub key: Key,
    /// The write that put it there; `metadata.resourceVersion`.
    pub revision: Revision,
    /// The lease that it goes away with.
    pub lease: Option<LeaseId>,
    /// Everything but `resourceVersion` and `status`, as JSON: a tenth of what it takes when it is parsed, which it seldom has to be.
    json: Box<[u8]>,
}

impl Record {
    /// What is in a store.
    ///
    /// # Errors
    /// It is no document.
    pub fn of(entry: &Entry) -> Result<Self, StoreError> {
        let body: Map<String, Value> = serde_json::from_slice(&entry.value)
            .map_err(|e| StoreError::Corrupt(format!("{}: {e}", entry.key)))?;
        if !body.get("metadata").is_some_and(Value::is_object) {
            return Err(StoreError::Corrupt(format!("{}: no metadata", entry.key)));
        }
        let json = entry.value[..].into();
        Ok(Self { key: entry.key.clone(), revision: entry.revision, lease: entry.lease, json })
    }

    fn body(&self) -> Map<String, Value> {
        // `of` refuses what is no JSON.
        serde_json::from_slice(&self.json).unwrap_or_default()
    }

    /// What `incoming` is kept as, in the place of `old`. None: it says what `old` says.
    #[must_use]
    pub fn replace(incoming: &Incoming, old: Option<&Self>, now: SystemTime) -> Option<Bytes> {
        let mut body = incoming.body.clone();
        let Some(Value::Object(metadata)) = body.get_mut("metadata") else { return None };
        let old = old.map(Self::body);
        let kept = |field: &str| old.as_ref().and_then(|old| old.get("metadata")?.get(field)).cloned();
        let same_spec = old.as_ref().is_some_and(|old| old.get("spec") == incoming.body.get("spec"));
        let generation = kept("generation").and_then(|v| v.as_u64()).unwrap_or(0) + u64::from(!same_spec);
        metadata.insert("generation".into(), generation.into());
        let uid = kept("uid").unwrap_or_else(|| uuid::Uuid::new_v4().to_string().into());
        metadata.insert("uid".into(), uid);
        let created = kept("creationTimestamp").unwrap_or_else(|| rfc3339(now).into());
        metadata.insert("creationTimestamp".into(), created);
        if old.is_some_and(|old| old == body) {
            return None;
        }
        Some(Value::Object(body).to_string().into())
    }

    /// `metadata`.
    #[must_use]
    pub fn metadata(&self) -> Map<String, Value> {
        match self.get("metadata") {
            Some(Value::Object(metadata)) => metadata,
            // `of` refuses records without.
            _ => Map::new(),
        }
    }

    /// `metadata.generation`: the number of different specs so far.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.metadata().get("generation").and_then(Value::as_u64).unwrap_or(0)
    }

    /// A part of the body, such as `spec`.
    #[must_use]
    pub fn get(&self, field: &str) -> Option<Value> {
        self.body().remove(field)
    }

    /// As clients get it, with its version and a status.
    #[must_use]
    pub fn to_value(&self, status: Option<Value>) -> Value {
        let mut body = self.body();
        if let Some(Value::Object(metadata)) = body.get_mut("metadata") {
            metadata.insert("resourceVersion".into(), self.revision.to_string().into());
        }
        if let Some(status) = status {
            body.insert("status".into(), status);
        }
        Value::Object(body)
    }

    /// As the compiler of documents reads it.
    #[must_use]
    pub fn text(&self) -> String {
        text(self.body())
    }
}

impl Incoming {
    /// As the compiler of documents reads it.
    #[must_use]
    pub fn text(&self) -> String {
        text(self.body.clone())
    }
}

impl Incoming {
    /// Bytes that it takes in a store, with some for what a server adds.
    #[must_use]
    pub fn size(&self) -> usize {
        const ADDED: usize = 256;
        self.text().len() + ADDED
    }
}

fn text(mut body: Map<String, Value>) -> String {
    if let Some(Value::Object(metadata)) = body.get_mut("metadata") {
        metadata.remove("uid");
        metadata.remove("generation");
    }
    Value::Object(body).to_string()
}
