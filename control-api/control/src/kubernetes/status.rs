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
    said: BTreeMap<Key, Said>,
    /// Those that were refused, until they are tried again.
    put_off: BTreeMap<Key, Instant>,
    resources: BTreeMap<What, ApiResource>,
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
        Self { client, registry, board, said, put_off, resources }
    }

    /// Says what has changed, of as many objects as one look takes.
    ///
    /// # Errors
    /// What went wrong. An object whose status is refused keeps back that of no other.
    async fn look(&mut self) -> Result<(), String> {
        let (standing, now) = (self.board.standing(), Instant::now());
        let (mut left, mut refused) = (AT_ONCE, Vec::new());
        let registry = Arc::clone(&self.registry);
        self.said.retain(|key, _| registry.get(key).is_some());
        self.put_off.retain(|_, until| now < *until);
        for what in kinds() {
            let Some(kind) = what.kind() else { continue };
            for record in registry.list(&Scope::Kind(kind.name.into())).1 {
                if !is_mirrored(&record) || self.put_off.contains_key(&record.key) {
                    continue;
                }
                let said = Said::of(&standing, &record);
                if self.said.get(&record.key) == Some(&said) {
                    continue;
                }
                if left == 0 {
                    return told(&refused);
                }
                left -= 1;
                match self.write(what, &record, &said).await {
                    Ok(true) => drop(self.said.insert(record.key.clone(), said)),
                    Ok(false) => {}
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

    /// False: somebody else was faster, or the object is another one by now; there will be another look.
    async fn write(&mut self, what: What, record: &Record, said: &Said) -> Result<bool, kube::Error> {
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
            let new = status(&old, said, &rfc3339(SystemTime::now()));
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::{fake, map};
    use super::*;
    use crate::kinds::Kind;
    use crate::registry::mirror::Wanted;

    fn condition(kind: &str, holds: &str, reason: &str) -> Value {
        json!({"type": kind, "status": holds, "reason": reason, "message": "", "observedGeneration": 1})
    }

    fn at(mut condition: Value, time: &str) -> Value {
        condition["lastTransitionTime"] = time.into();
        condition
    }

    #[test]
    fn a_condition_has_the_time_since_when_it_is_so() {
        let said = |programmed: Value| {
            Said::Conditions(json!([condition("Accepted", "True", "Accepted"), programmed]))
        };
        let pending = said(condition("Programmed", "False", "Pending"));
        let first = status(&Value::Null, &pending, "t1");
        assert_eq!(first["conditions"][0], at(condition("Accepted", "True", "Accepted"), "t1"));
        let programmed = said(condition("Programmed", "True", "Programmed"));
        let second = status(&first, &programmed, "t2");
        let expected = [
            at(condition("Accepted", "True", "Accepted"), "t1"),
            at(condition("Programmed", "True", "Programmed"), "t2"),
        ];
        assert_eq!(second["conditions"], json!(expected));
        assert_eq!(status(&second, &programmed, "t3"), second, "nothing to write");
    }

    #[test]
    fn a_route_has_a_status_for_each_service_beside_those_of_others() {
        let others = json!({"parentRef": {"name": "front"}, "controllerName": "example.com/gateway", "conditions": []});
        let stale = json!({"parentRef": {"name": "gone"}, "controllerName": CONTROLLER, "conditions": []});
        let web = json!({"group": "", "kind": "Service", "name": "web"});
        let said = json!([condition("Accepted", "False", "NoMatchingParent")]);
        let new =
            status(&json!({"parents": [others, stale]}), &Said::Parents(vec![(web.clone(), said)]), "t1");
        let conditions = [at(condition("Accepted", "False", "NoMatchingParent"), "t1")];
        let ours = json!({"parentRef": web, "controllerName": CONTROLLER, "conditions": conditions});
        assert_eq!(new, json!({"parents": [others, ours]}));
    }

    const GROUP: &str = "/apis/remora.dev/v1alpha1";

    /// An API server with two policies; it takes no status of the first.
    fn server(patched: &Arc<Mutex<Vec<String>>>) -> Client {
        let patched = Arc::clone(patched);
        fake::client(move |method, path, _| {
            if path == GROUP {
                let kind = json!({
                    "name": "trafficpolicies", "singularName": "", "namespaced": true, "kind": "TrafficPolicy", "verbs": [],
                });
                return (
                    200,
                    json!({
                        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "remora.dev/v1alpha1",
                        "resources": [kind],
                    }),
                );
            }
            let name = path.trim_end_matches("/status").rsplit('/').next().unwrap_or_default();
            if method == http::Method::PATCH {
                if name == "a" {
                    return fake::failure(403, "Forbidden", "not this one");
                }
                patched.lock().unwrap().push(name.to_owned());
            }
            let metadata = json!({"name": name, "namespace": "shop"});
            (200, json!({"apiVersion": "remora.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": metadata}))
        })
    }

    #[tokio::test]
    async fn a_status_that_is_refused_keeps_back_no_other() {
        let (registry, _folder) = fake::registry().await;
        let kind = Kind::named("TrafficPolicy").unwrap();
        let policy = |name: &str| {
            let object = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {"targetRefs": []}});
            (Key::new(kind.name, "shop", name), map::document(kind, &object))
        };
        registry.mirror(Wanted::from([policy("a"), policy("b")])).await;
        let patched = Arc::default();
        let mut writer = Writer::new(server(&patched), registry, Arc::default());
        let told = writer.look().await.unwrap_err();
        assert!(told.contains("TrafficPolicy shop/a: not this one"), "{told}");
        assert_eq!(*patched.lock().unwrap(), ["b"]);
        assert_eq!(writer.look().await, Ok(()), "it is put off");
        assert_eq!(patched.lock().unwrap().len(), 1, "nothing new is said");
    }
}
