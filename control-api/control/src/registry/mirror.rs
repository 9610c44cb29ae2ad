//! Documents that somebody else keeps and checks, as they are there: Kubernetes' objects.
//!
//! They go to the store like all others, so that they have revisions, watches and a status, and so that a control plane that starts
//! while Kubernetes is away has them. They are not checked together before they are written: they are in force where they come from,
//! and what is wrong with one is its status.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use remora_mesh::document::SERVICE_NAME;
use serde_json::{Value, json};
use tracing::{info, warn};

use super::Registry;
use crate::document::Record;
use crate::quota::owner;
use crate::store::{Expect, Key, MAX_VALUE, MAX_WRITES, Put, StoreError, Write};

/// Documents that came from elsewhere say so.
pub const ORIGIN: &str = "remora.dev/origin";
/// Value of the annotation of those that were written as Kubernetes has them.
pub const KUBERNETES: &str = "kubernetes";
/// Between attempts while the store is away: it doubles from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The domain ([`owner::key`]) of the one control plane of a store that reads Kubernetes. Those of rate limits have a slash.
pub(crate) const READER: &str = "kubernetes";

/// Whether a document came from Kubernetes.
#[must_use]
pub fn is_mirrored(record: &Record) -> bool {
    origin(record).as_deref() == Some(KUBERNETES)
}

/// Where a document came from. None: people wrote it here.
#[must_use]
pub fn origin(record: &Record) -> Option<String> {
    Some(record.metadata().get("annotations")?.get(ORIGIN)?.as_str()?.to_owned())
}

/// What each document is to be: its whole body, or nothing.
pub type Wanted = BTreeMap<Key, Option<Value>>;

impl Registry {
    /// Says that this process reads Kubernetes, or would if no other one did.
    pub fn reads_kubernetes(&self) {
        self.reads_kubernetes.store(true, Ordering::Relaxed);
    }

    /// Whether a document is changed in Kubernetes, and not here: it came from there, and some control plane of this store reads there.
    /// When none does any more, it belongs to whoever wants to change or remove it.
    #[must_use]
    pub fn is_locked(&self, record: &Record) -> bool {
        let is_read =
            || self.reads_kubernetes.load(Ordering::Relaxed) || self.get(&owner::key(READER)).is_some();
        is_mirrored(record) && is_read()
    }

    /// The same without anybody else.
    #[cfg(test)]
    pub(crate) async fn mirror(&self, wanted: Wanted) -> usize {
        self.mirror_while(wanted, || true, None).await
    }

    /// Writes what is to be different from what is there, in as few transactions as the store takes. A document of the same name that
    /// somebody wrote here is replaced: Kubernetes' holds; one of theirs is not removed. Tries until it is done, and answers how many
    /// writes it took.
    ///
    /// It may write only while `leads`: that is asked before each attempt, and waited for. That somebody else was faster may mean that another
    /// control plane reads Kubernetes by now, and knows better. Where `fence` does not hold, nothing is written: an attempt may be on its way for
    /// long.
    pub(crate) async fn mirror_while(
        &self,
        mut wanted: Wanted,
        leads: impl Fn() -> bool,
        fence: Option<&Write>,
    ) -> usize {
        let (mut pause, mut done) = (RETRY.0, 0);
        loop {
            while !leads() {
                tokio::time::sleep(RETRY.0).await;
            }
            let writes = self.writes(&mut wanted);
            if writes.is_empty() {
                return done;
            }
            let keys: Vec<Key> = writes.iter().map(|write| write.key().clone()).collect();
            match self.store().transact(fence.cloned().into_iter().chain(writes).collect()).await {
                Ok(revisions) => {
                    done += keys.len();
                    pause = RETRY.0;
                    keys.iter().for_each(|key| drop(wanted.remove(key)));
                    self.seen(revisions.into_iter().max().unwrap_or(0)).await;
                    continue;
                }
                // Somebody else was faster: what is there now is another thing.
                Err(StoreError::Conflict { current, .. }) => {
                    self.seen(current.unwrap_or(0)).await;
                }
                Err(error) => warn!(%error, "what Kubernetes says cannot be kept; tried again"),
            }
            tokio::time::sleep(pause).await;
            pause = RETRY.1.min(pause * 2);
        }
    }

    /// As many of the writes as one transaction takes. What is as it should be is taken out of `wanted`.
    fn writes(&self, wanted: &mut Wanted) -> Vec<Write> {
        let (mut writes, mut bytes, mut settled) = (Vec::new(), 0, Vec::new());
        for (key, body) in &*wanted {
            let Some(write) = self.write_of(key, body.as_ref()) else {
                settled.push(key.clone());
                continue;
            };
            bytes += if let Write::Put(put) = &write { put.value.len() } else { 0 };
            if !writes.is_empty() && bytes > MAX_VALUE {
                break;
            }
            writes.push(write);
            // One is the fence.
            if writes.len() == MAX_WRITES - 1 {
                break;
            }
        }
        settled.iter().for_each(|key| drop(wanted.remove(key)));
        writes
    }

    /// What makes `body` of what is at `key`. None: there is nothing to do, or nothing that can be done.
    fn write_of(&self, key: &Key, body: Option<&Value>) -> Option<Write> {
        let old = self.get(key);
        let expect = old.as_ref().map_or(Expect::Absent, |old| Expect::Revision(old.revision));
        let ours = old.as_ref().is_some_and(|old| is_mirrored(old));
        let Some(body) = body else { return ours.then(|| Write::Delete { key: key.clone(), expect }) };
        if old.as_ref().is_some_and(|old| without_version(old) == *body) {
            return None;
        }
        if old.is_some() && !ours {
            info!(%key, "Kubernetes has a document of this name: it takes the place of the one here");
        }
        let mut value = body.to_string();
        if value.len() > MAX_VALUE {
            let outline = outline(body, value.len());
            warn!(%key, bytes = value.len(), kept = outline.is_some(), "is larger than a document may be, and left out");
            let outline =
                outline.filter(|outline| old.is_none_or(|old| without_version(&old) != *outline))?;
            value = outline.to_string();
        }
        Some(Write::Put(Put { key: key.clone(), value: value.into(), expect, lease: None }))
    }
}

/// What is kept of a document that is too large: whom it is about, and a field that nobody can read. Then holds what holds of documents that
/// cannot be read, and nobody takes it for one that is not there. None: it is of a kind of which that may be.
fn outline(body: &Value, bytes: usize) -> Option<Value> {
    let (metadata, spec) = (&body["metadata"], &body["spec"]);
    let mut kept = json!({"apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": {}});
    for field in ["name", "namespace", "creationTimestamp", "uid", "generation"] {
        if let Some(value) = metadata.get(field) {
            kept["metadata"][field] = value.clone();
        }
    }
    kept["metadata"]["annotations"] = json!({ORIGIN: KUBERNETES});
    match body["kind"].as_str()? {
        "EndpointSlice" => {
            kept["metadata"]["labels"] = json!({SERVICE_NAME: metadata["labels"][SERVICE_NAME]});
            kept["tooLarge"] = bytes.into();
        }
        "AuthenticationPolicy" | "AuthorizationPolicy" => {
            kept["spec"] = json!({"tooLarge": bytes});
            let fits = |value: &&Value| value.to_string().len() < MAX_VALUE / 4;
            for field in ["targetRef", "targetRefs", "dryRun"] {
                if let Some(value) = spec.get(field).filter(fits) {
                    kept["spec"][field] = value.clone();
                }
            }
        }
        _ => return None,
    }
    Some(kept)
}

/// The body that was wanted of a record.
pub(crate) fn without_version(record: &Record) -> Value {
    let mut body = record.to_value(None);
    if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    body
}
