//! What the control planes of one store say of their proxies: a root signs when those of all of them trust it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use crate::ca::keeper::NAMESPACE;
use crate::document::Record;
use crate::registry::Registry;
use crate::store::{Expect, Key, LeaseId, Put, Scope, StoreError};

/// Kind of the keys of control planes.
pub(crate) const KIND: &str = "ControlPlane";
/// A control plane that says nothing for so long is gone, and its proxies are elsewhere.
const TTL: Duration = Duration::from_secs(10);
/// Proxies that one control plane names.
const NAMED: usize = 10;

/// What a control plane says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Vote {
    /// Version of the secret that it is about.
    version: String,
    /// Proxies that have another one in force.
    laggards: BTreeSet<String>,
}

/// This control plane among the others.
#[derive(Debug)]
pub(super) struct Votes {
    registry: Arc<Registry>,
    key: Key,
    /// What it said last, under which lease, and when that was confirmed.
    said: Option<(Vote, LeaseId, Instant)>,
}

impl Votes {
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        Self { registry, key: Key::new(KIND, NAMESPACE, &uuid::Uuid::new_v4().to_string()), said: None }
    }

    /// Says who of the own proxies lacks `version`, and answers who does at any control plane.
    pub(super) async fn laggards(
        &mut self,
        version: &str,
        own: Vec<String>,
    ) -> Result<Vec<String>, StoreError> {
        let named = own.iter().take(NAMED).cloned().collect();
        self.say(Vote { version: version.to_owned(), laggards: named }).await?;
        let mut all = own;
        for record in self.registry.list(&Scope::Kind(KIND.into())).1 {
            if record.key == self.key {
                continue;
            }
            match vote(&record) {
                Some(vote) if vote.version == version => all.extend(vote.laggards),
                _ => all.push(format!("those of the control plane {}", record.key.name)),
            }
        }
        Ok(all)
    }

    async fn say(&mut self, vote: Vote) -> Result<(), StoreError> {
        let store = self.registry.store();
        let lease = match self.said.take() {
            Some((said, lease, at)) if said == vote && at.elapsed() < TTL / 4 => {
                self.said = Some((said, lease, at));
                return Ok(());
            }
            Some((said, lease, _)) => match store.keep_alive(lease).await {
                Ok(()) if said == vote => {
                    self.said = Some((said, lease, Instant::now()));
                    return Ok(());
                }
                Ok(()) => lease,
                Err(StoreError::NoLease(_)) => store.grant(TTL).await?,
                Err(error) => return Err(error),
            },
            None => store.grant(TTL).await?,
        };
        let body = json!({
            "apiVersion": "remora.dev/v1alpha1", "kind": KIND,
            "metadata": {"name": *self.key.name, "namespace": NAMESPACE}, "spec": vote,
        });
        let value = body.to_string().into();
        store.put(Put { key: self.key.clone(), value, expect: Expect::Any, lease: Some(lease) }).await?;
        self.said = Some((vote, lease, Instant::now()));
        Ok(())
    }
}

fn vote(record: &Record) -> Option<Vote> {
    serde_json::from_value(record.get("spec")?).ok()
}
