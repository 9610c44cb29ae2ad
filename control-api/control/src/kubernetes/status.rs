//! What proxies make of objects, written where people look for it: in their status.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::ApiResource;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::watch::{What, served};
use crate::board::Board;
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
/// Characters of a message.
const MESSAGE: usize = 1024;

/// The kinds that have a status.
fn kinds() -> impl Iterator<Item = What> {
    let has = |what: &What| {
        what.kind().is_some_and(|kind| !matches!(kind.name, "Service" | "EndpointSlice" | "ReferenceGrant"))
    };
    What::all().filter(has)
}

struct Writer {
    client: Client,
    registry: Arc<Registry>,
    board: Arc<Board>,
    /// What was said last.
    said: BTreeMap<Key, Value>,
    resources: BTreeMap<What, ApiResource>,
}

/// Keeps the status of objects for ever.
pub(super) async fn keep(client: Client, registry: Arc<Registry>, board: Arc<Board>) {
    let mut writer = Writer { client, registry, board, said: BTreeMap::new(), resources: BTreeMap::new() };
    let mut told = String::new();
    loop {
        let began = Instant::now();
        match writer.look().await {
            Ok(()) => told.clear(),
            Err(error) => {
                let text = error.to_string();
                if told != text {
                    warn!(error = text, "the status of objects is not written; tried again");
                    told = text;
                }
            }
        }
        sleep(LOOK.max(began.elapsed() * REST)).await;
    }
}

impl Writer {
    async fn look(&mut self) -> Result<(), kube::Error> {
        let standing = self.board.standing();
        let mut left = AT_ONCE;
        let registry = Arc::clone(&self.registry);
        self.said.retain(|key, _| registry.get(key).is_some());
        for what in kinds() {
            let Some(kind) = what.kind() else { continue };
            for record in registry.list(&Scope::Kind(kind.name.into())).1 {
                if !is_mirrored(&record) {
                    continue;
                }
                let conditions = conditions(&standing.of(&record)["conditions"]);
                if self.said.get(&record.key) == Some(&conditions) {
                    continue;
                }
                if left == 0 {
                    return Ok(());
                }
                left -= 1;
                if self.write(what, &record, &conditions).await? {
                    self.said.insert(record.key.clone(), conditions);
                }
            }
        }
        Ok(())
    }

    /// False: somebody else was faster, or the object is another one by now; there will be another look.
    async fn write(&mut self, what: What, record: &Record, conditions: &Value) -> Result<bool, kube::Error> {
        let resource = match self.resources.get(&what) {
            Some(resource) => resource.clone(),
            None => {
                let Some(resource) = served(&self.client, what).await? else { return Ok(false) };
                self.resources.insert(what, resource.clone());
                resource
            }
        };
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &record.key.namespace, &resource);
        let written = async {
            let object = api.get_status(&record.key.name).await?;
            let old = object.data.get("status").cloned().unwrap_or_default();
            let spec = record.get("spec").unwrap_or_default();
            let new = status(&old, &spec, conditions, &rfc3339(SystemTime::now()));
            if new == old {
                return Ok(());
            }
            let patch =
                json!({"metadata": {"resourceVersion": object.metadata.resource_version}, "status": new});
            let patch = Patch::Merge(patch);
            api.patch_status(&record.key.name, &PatchParams::default(), &patch).await.map(drop)
        };
        match written.await {
            Ok(()) => Ok(true),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                self.resources.remove(&what);
                Ok(false)
            }
            Err(error) => Err(error),
        }
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
fn status(old: &Value, spec: &Value, conditions: &Value, now: &str) -> Value {
    let mut new = if old.is_object() { old.clone() } else { json!({}) };
    let Some(parents) = spec["parentRefs"].as_array() else {
        new["conditions"] = dated(&old["conditions"], conditions, now);
        return new;
    };
    let there: Vec<Value> = old["parents"].as_array().cloned().unwrap_or_default();
    let is_ours = |entry: &&Value| entry["controllerName"] == CONTROLLER;
    let mut all: Vec<Value> = there.iter().filter(|entry| !is_ours(entry)).cloned().collect();
    let conditions = of_route(conditions);
    for parent in parents {
        let before = there.iter().filter(is_ours).find(|entry| entry["parentRef"] == *parent);
        let before = before.map(|entry| entry["conditions"].clone()).unwrap_or_default();
        all.push(json!({
            "parentRef": parent, "controllerName": CONTROLLER, "conditions": dated(&before, &conditions, now),
        }));
    }
    new["parents"] = all.into();
    new
}

/// In the words of the Gateway API, which has `Accepted`; ours have our name.
fn of_route(conditions: &Value) -> Value {
    let all = conditions.as_array().into_iter().flatten().map(|condition| {
        let mut condition = condition.clone();
        if condition["type"] != "Accepted" {
            condition["type"] =
                format!("remora.dev/{}", condition["type"].as_str().unwrap_or_default()).into();
        } else if condition["status"] == "False" {
            condition["reason"] = "UnsupportedValue".into();
        }
        condition
    });
    all.collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(kind: &str, holds: &str, reason: &str) -> Value {
        json!({"type": kind, "status": holds, "reason": reason, "message": "", "observedGeneration": 1})
    }

    fn at(mut condition: Value, time: &str) -> Value {
        condition["lastTransitionTime"] = time.into();
        condition
    }

    #[test]
    fn a_condition_has_the_time_since_when_it_is_so() {
        let said =
            json!([condition("Accepted", "True", "Accepted"), condition("Programmed", "False", "Pending")]);
        let first = status(&Value::Null, &json!({}), &said, "t1");
        assert_eq!(first["conditions"][0], at(condition("Accepted", "True", "Accepted"), "t1"));
        let said =
            json!([condition("Accepted", "True", "Accepted"), condition("Programmed", "True", "Programmed")]);
        let second = status(&first, &json!({}), &said, "t2");
        let expected = [
            at(condition("Accepted", "True", "Accepted"), "t1"),
            at(condition("Programmed", "True", "Programmed"), "t2"),
        ];
        assert_eq!(second["conditions"], json!(expected));
        assert_eq!(status(&second, &json!({}), &said, "t3"), second, "nothing to write");
    }

    #[test]
    fn a_route_has_a_status_for_each_service_beside_those_of_others() {
        let others = json!({"parentRef": {"name": "front"}, "controllerName": "example.com/gateway", "conditions": []});
        let stale = json!({"parentRef": {"name": "gone"}, "controllerName": CONTROLLER, "conditions": []});
        let web = json!({"group": "", "kind": "Service", "name": "web"});
        let said = json!([
            condition("Accepted", "False", "Invalid"),
            condition("Programmed", "False", "NotAccepted")
        ]);
        let new = status(&json!({"parents": [others, stale]}), &json!({"parentRefs": [web]}), &said, "t1");
        let conditions = [
            at(condition("Accepted", "False", "UnsupportedValue"), "t1"),
            at(condition("remora.dev/Programmed", "False", "NotAccepted"), "t1"),
        ];
        let ours = json!({"parentRef": web, "controllerName": CONTROLLER, "conditions": conditions});
        assert_eq!(new, json!({"parents": [others, ours]}));
    }
}
