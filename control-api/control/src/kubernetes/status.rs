//! What proxies make of objects, written where people look for it: in their status.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::ApiResource;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::parents;
use super::watch::{What, served};
use crate::board::{Board, Standing};
use crate::clock::rfc3339;
use crate::document::Record;
use crate::registry::Registry;
use crate::registry::mirror::is_mirrored;
use crate::store::{Key, Scope};

/// Who says it, among the controllers of a route.
const CONTROLLER: &str = "remora.dev/control";
/// Between looks, at least: what is on its way to proxies mostly is there by then.
const LOOK: Duration = Duration::from_secs(1);
/// And at least so many times as long as a look takes.
const REST: u32 = 20;
/// Objects that are written in one look.
const AT_ONCE: usize = 50;
/// Until an object whose status was refused is tried again.
const LATER: Duration = Duration::from_secs(60);
/// Until an object is looked at again of which nothing new is said: somebody else may have written its status.
const AGAIN: Duration = Duration::from_secs(300);
/// Of those, in one look.
const AGAIN_AT_ONCE: usize = 10;
/// Characters of a message.
const MESSAGE: usize = 1024;

/// The kinds that have a status.
fn kinds() -> impl Iterator<Item = What> {
    let has = |what: &What| {
        what.kind().is_some_and(|kind| !matches!(kind.name, "Service" | "EndpointSlice" | "ReferenceGrant"))
    };
    What::all().filter(has)
}

/// What is said of an object, without times.
#[derive(Debug, Clone, PartialEq)]
enum Said {
    /// Its conditions.
    Conditions(Value),
    /// Of a route: the conditions for each Service that it is attached to, by its `parentRef`.
    Parents(Vec<(Value, Value)>),
}

impl Said {
    fn of(standing: &Standing, record: &Record) -> Self {
        if !is_route(&record.key.kind) {
            return Self::Conditions(conditions(&standing.of(record)["conditions"]));
        }
        let ours = conditions(&standing.as_far_as_it_goes(record)["conditions"]);
        let spec = record.get("spec").unwrap_or_default();
        let parents = spec["parentRefs"].as_array().into_iter().flatten().enumerate();
        let flaws = standing.flaws(&record.key);
        let said = |number| conditions(&parents::conditions(&ours, flaws, number));
        Self::Parents(parents.map(|(number, parent)| (parent.clone(), said(number))).collect())
    }
}

fn is_route(kind: &str) -> bool {
    matches!(kind, "HTTPRoute" | "GRPCRoute" | "TLSRoute" | "TCPRoute")
}

struct Writer {
    client: Client,
    registry: Arc<Registry>,
    board: Arc<Board>,
    /// What was said last.
    said: BTreeMap<Key, Last>,
    again: Duration,
    /// Those that were refused, until they are tried again.
    put_off: BTreeMap<Key, Instant>,
    resources: BTreeMap<What, ApiResource>,
}

/// What was said last of an object.
struct Last {
    /// Which it was, of those that had its name.
    uid: Option<String>,
    said: Said,
    at: Instant,
}

/// What came of a status.
#[derive(Debug, PartialEq, Eq)]
enum Written {
    /// It is there.
    Done,
    /// Somebody else was faster, or there is no such kind: there will be another look.
    Later,
    /// There is no such object, or another one of its name.
    Gone,
}

fn uid(record: &Record) -> Option<String> {
    record.metadata().get("uid")?.as_str().map(str::to_owned)
}

/// Keeps the status of objects for ever.
pub(super) async fn keep(client: Client, registry: Arc<Registry>, board: Arc<Board>) {
    let mut writer = Writer::new(client, registry, board);
    let mut told = String::new();
    loop {
        let began = Instant::now();
        match writer.look().await {
            Ok(()) if writer.put_off.is_empty() => told.clear(),
            // Some were refused, and it was said.
            Ok(()) => {}
            Err(text) if text == told => {}
            Err(text) => {
                warn!(error = text, "the status of objects is not written; tried again");
                told = text;
            }
        }
        sleep(LOOK.max(began.elapsed() * REST)).await;
    }
}

impl Writer {
    fn new(client: Client, registry: Arc<Registry>, board: Arc<Board>) -> Self {
        let (said, put_off, resources) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { client, registry, board, said, again: AGAIN, put_off, resources }
    }

    /// Says what has changed, of as many objects as one look takes. Of what nobody has checked yet it says nothing.
    ///
    /// # Errors
    /// What went wrong. An object whose status is refused keeps back that of no other.
    async fn look(&mut self) -> Result<(), String> {
        let (standing, now) = (self.board.standing(), Instant::now());
        let (mut left, mut again, mut refused) = (AT_ONCE, AGAIN_AT_ONCE, Vec::new());
        let registry = Arc::clone(&self.registry);
        self.put_off.retain(|_, until| now < *until);
        self.left(&mut refused).await?;
        for what in kinds() {
            let Some(kind) = what.kind() else { continue };
            for record in registry.list(&Scope::Kind(kind.name.into())).1 {
                if !is_mirrored(&record)
                    || !standing.is_checked(&record)
                    || self.put_off.contains_key(&record.key)
                {
                    continue;
                }
                let (said, uid) = (Said::of(&standing, &record), uid(&record));
                if let Some(last) = self.said.get(&record.key)
                    && (&last.uid, &last.said) == (&uid, &said)
                {
                    if again == 0 || now < last.at + self.again {
                        continue;
                    }
                    again -= 1;
                }
                if left == 0 {
                    return told(&refused);
                }
                left -= 1;
                match self.write(what, &record.key, uid.as_deref(), &said).await {
                    Ok(Written::Done) => {
                        self.said.insert(record.key.clone(), Last { uid, said, at: now });
                    }
                    Ok(Written::Later | Written::Gone) => {}
                    Err(kube::Error::Api(status)) => {
                        self.put_off.insert(record.key.clone(), now + LATER);
                        refused.push(format!("{}: {}", record.key, status.message));
                    }
                    // Nobody answers: the others would wait in vain.
                    Err(error) => return Err(error.to_string()),
                }
            }
        }
        told(&refused)
    }

    /// What we said of routes that the mesh has no more is taken back, once: they are there for somebody else, or have gone.
    async fn left(&mut self, refused: &mut Vec<String>) -> Result<(), String> {
        let gone: Vec<_> =
            self.said.keys().filter(|key| self.registry.get(key).is_none()).take(AT_ONCE).cloned().collect();
        for key in gone {
            let what = kinds().find(|what| what.kind().is_some_and(|kind| kind.name == &*key.kind));
            if let Some(what) = what.filter(|_| is_route(&key.kind)) {
                let uid = self.said.get(&key).and_then(|last| last.uid.clone());
                match self.write(what, &key, uid.as_deref(), &Said::Parents(Vec::new())).await {
                    Ok(Written::Later) => continue,
                    Ok(Written::Done | Written::Gone) => {}
                    Err(kube::Error::Api(status)) => refused.push(format!("{key}: {}", status.message)),
                    Err(error) => return Err(error.to_string()),
                }
            }
            self.said.remove(&key);
        }
        Ok(())
    }

    async fn write(
        &mut self,
        what: What,
        key: &Key,
        uid: Option<&str>,
        said: &Said,
    ) -> Result<Written, kube::Error> {
        let resource = match self.resources.get(&what) {
            Some(resource) => resource.clone(),
            None => {
                let Some(resource) = served(&self.client, what).await? else { return Ok(Written::Later) };
                self.resources.insert(what, resource.clone());
                resource
            }
        };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.namespace, &resource);
        let written = async {
            let object = api.get_status(&key.name).await?;
            if uid.is_some() && object.metadata.uid.as_deref().is_some_and(|there| Some(there) != uid) {
                return Ok(Written::Gone);
            }
            let old = object.data.get("status").cloned().unwrap_or_default();
            let new = status(&old, said, &rfc3339(SystemTime::now()));
            if new == old {
                return Ok(Written::Done);
            }
            let patch =
                json!({"metadata": {"resourceVersion": object.metadata.resource_version}, "status": new});
            let patch = Patch::Merge(patch);
            api.patch_status(&key.name, &PatchParams::default(), &patch).await.map(|_| Written::Done)
        };
        match written.await {
            Ok(written) => Ok(written),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                self.resources.remove(&what);
                Ok(if status.code == 404 { Written::Gone } else { Written::Later })
            }
            Err(error) => Err(error),
        }
    }
}

fn told(refused: &[String]) -> Result<(), String> {
    match refused {
        [] => Ok(()),
        [only] => Err(only.clone()),
        [first, ..] => Err(format!("{first}; and of {} more objects", refused.len() - 1)),
    }
}

/// Without times, and with messages that an API server takes.
fn conditions(all: &Value) -> Value {
    let all = all.as_array().into_iter().flatten();
    let short = |condition: &Value| {
        let mut condition = condition.clone();
        let message = condition["message"].as_str().unwrap_or_default();
        condition["message"] = message.chars().take(MESSAGE).collect::<String>().into();
        if let Some(condition) = condition.as_object_mut() {
            condition.remove("lastTransitionTime");
        }
        condition
    };
    all.map(short).collect()
}

/// The status of an object in the place of `old`. A route has one for each Service that it is attached to, beside those that other
/// controllers write.
fn status(old: &Value, said: &Said, now: &str) -> Value {
    let mut new = if old.is_object() { old.clone() } else { json!({}) };
    let parents = match said {
        Said::Conditions(conditions) => {
            new["conditions"] = dated(&old["conditions"], conditions, now);
            return new;
        }
        Said::Parents(parents) => parents,
    };
    let there: Vec<Value> = old["parents"].as_array().cloned().unwrap_or_default();
    let is_ours = |entry: &&Value| entry["controllerName"] == CONTROLLER;
    if parents.is_empty() && !there.iter().any(|entry| is_ours(&entry)) {
        return old.clone();
    }
    let mut all: Vec<Value> = there.iter().filter(|entry| !is_ours(entry)).cloned().collect();
    for (parent, conditions) in parents {
        let before = there.iter().filter(is_ours).find(|entry| entry["parentRef"] == *parent);
        let before = before.map(|entry| entry["conditions"].clone()).unwrap_or_default();
        all.push(json!({
            "parentRef": parent, "controllerName": CONTROLLER, "conditions": dated(&before, conditions, now),
        }));
    }
    new["parents"] = all.into();
    new
}

/// Each with the time since when it is so.
fn dated(old: &Value, new: &Value, now: &str) -> Value {
    let old = old.as_array().map(Vec::as_slice).unwrap_or_default();
    let all = new.as_array().into_iter().flatten().map(|condition| {
        let before = old.iter().find(|before| before["type"] == condition["type"]);
        let since = before.filter(|before| before["status"] == condition["status"]);
        let since = since.and_then(|before| before["lastTransitionTime"].as_str()).unwrap_or(now);
        let mut condition = condition.clone();
        condition["lastTransitionTime"] = since.into();
        condition
    });
    all.collect()
}
