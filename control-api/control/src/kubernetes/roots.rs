//! The ConfigMap by which sidecars believe the control plane at first, in every namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::json;
use tokio::time::MissedTickBehavior;
use tonic::codegen::tokio_stream::StreamExt;
use tracing::warn;

use crate::ca::Ca;
use crate::ca::authority::Authority;

/// Between looks at all of them: somebody may have removed one.
const LOOK: Duration = Duration::from_secs(300);
/// After a failure.
const RETRY: Duration = Duration::from_secs(2);
/// Who writes them, for Kubernetes.
const MANAGER: &str = "remora-control";
/// Namespaces of Kubernetes itself have no sidecars.
const SYSTEM: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

fn resource(kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: String::new(),
        version: "v1".into(),
        api_version: "v1".into(),
        kind: kind.into(),
        plural: plural.into(),
    }
}

/// The namespaces that there are, as far as they take anything: one that is going away takes nothing new.
#[derive(Debug, Default)]
struct Namespaces {
    all: BTreeSet<String>,
    /// Of those that are being listed, what was there so far.
    listed: BTreeSet<String>,
    /// What each has.
    written: BTreeMap<String, String>,
}

impl Namespaces {
    fn take(&mut self, event: Event<PartialObjectMeta<DynamicObject>>) {
        let (object, listing, gone) = match event {
            Event::Init => {
                self.listed.clear();
                return;
            }
            Event::InitDone => {
                self.all = std::mem::take(&mut self.listed);
                self.written.retain(|name, _| self.all.contains(name));
                return;
            }
            Event::InitApply(object) => (object, true, false),
            Event::Apply(object) => (object, false, false),
            Event::Delete(object) => (object, false, true),
        };
        let ends = gone || object.metadata.deletion_timestamp.is_some();
        match object.metadata.name {
            Some(name) if ends => self.gone(&name),
            Some(name) if listing => drop(self.listed.insert(name)),
            Some(name) => drop(self.all.insert(name)),
            None => {}
        }
    }

    fn gone(&mut self, name: &str) {
        self.all.remove(name);
        self.written.remove(name);
    }

    /// Those that do not have `roots`. Kubernetes' own have no sidecars.
    fn without(&self, roots: &str) -> Vec<String> {
        let own = |name: &&String| !SYSTEM.contains(&name.as_str());
        let stale = |name: &&String| self.written.get(*name).is_none_or(|has| has != roots);
        self.all.iter().filter(own).filter(stale).cloned().collect()
    }

    /// Writes `roots` where they are not. False: something has to be tried again.
    async fn write(&mut self, client: &Client, name: &str, roots: &str) -> bool {
        let mut done = true;
        for namespace in self.without(roots) {
            match write(client, &namespace, name, roots).await {
                Ok(()) => drop(self.written.insert(namespace, roots.to_owned())),
                // The watch says so, too, somewhat later.
                Err(error) if is_ending(&error) => self.gone(&namespace),
                Err(error) => {
                    warn!(namespace, %error, "the roots cannot be written; tried again");
                    done = false;
                }
            }
        }
        done
    }
}

/// Whether the namespace is going away, or has gone.
fn is_ending(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 404 || causes.any(|cause| cause.reason == "NamespaceTerminating")
}

/// Keeps them for ever. `name` is that of the ConfigMaps.
pub(crate) async fn keep(client: Client, ca: Arc<Ca>, name: String) {
    let api: Api<PartialObjectMeta<DynamicObject>> =
        Api::all_with(client.clone(), &resource("Namespace", "namespaces"));
    let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut changes = ca.changes();
    let mut namespaces = Namespaces::default();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failed = false;
    loop {
        tokio::select! {
            event = events.next() => match event {
                None => return,
                Some(Ok(event)) => namespaces.take(event),
                // `default_backoff` waits before the next attempt.
                Some(Err(error)) => warn!(%error, "namespaces cannot be watched; tried again"),
            },
            more = changes.next() => if !more { return },
            _ = looks.tick() => namespaces.written.clear(),
            () = tokio::time::sleep(RETRY), if failed => {}
        }
        let Ok(roots) = ca.read(Authority::trusted) else { continue };
        failed = !namespaces.write(&client, &name, &roots).await;
    }
}

async fn write(client: &Client, namespace: &str, name: &str, roots: &str) -> Result<(), kube::Error> {
    let api: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), namespace, &resource("ConfigMap", "configmaps"));
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": MANAGER}},
        "data": {"roots.pem": roots},
    });
    api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(map)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::Value;

    use super::super::fake;
    use super::*;

    fn namespace(name: &str, ends: bool) -> PartialObjectMeta<DynamicObject> {
        let mut metadata = json!({"name": name});
        if ends {
            metadata["deletionTimestamp"] = "2026-11-27T10:00:00Z".into();
        }
        let object =
            json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_namespace_that_is_going_away_takes_nothing_new() {
        let mut namespaces = Namespaces::default();
        let listed = [("shop", false), ("old", true), ("kube-system", false), ("bank", false)];
        namespaces.take(Event::Init);
        for (name, ends) in listed {
            namespaces.take(Event::InitApply(namespace(name, ends)));
        }
        namespaces.take(Event::InitDone);
        assert_eq!(namespaces.without("roots"), ["bank", "shop"]);
        namespaces.take(Event::Apply(namespace("bank", true)));
        namespaces.take(Event::Apply(namespace("new", false)));
        namespaces.take(Event::Delete(namespace("gone", false)));
        assert_eq!(namespaces.without("roots"), ["new", "shop"]);
        namespaces.written.insert("shop".into(), "roots".into());
        assert_eq!(namespaces.without("roots"), ["new"]);
        assert_eq!(namespaces.without("others"), ["new", "shop"]);
    }

    #[tokio::test]
    async fn one_that_refuses_because_it_is_going_away_is_asked_once() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let client = fake::client(move |_, path, body: &Value| {
            let name = path.split('/').nth(4).unwrap_or_default().to_owned();
            seen.lock().unwrap().push(name.clone());
            if name == "shop" {
                return (200, body.clone());
            }
            let (code, mut status) = fake::failure(403, "Forbidden", "it is being terminated");
            status["details"] =
                json!({"causes": [{"reason": "NamespaceTerminating", "message": "it is", "field": ""}]});
            (code, status)
        });
        let all = ["old", "shop"].map(str::to_owned).into();
        let mut namespaces = Namespaces { all, ..Namespaces::default() };
        for _ in 0..2 {
            assert!(namespaces.write(&client, "remora-roots", "roots").await, "nothing is to be tried again");
        }
        assert_eq!(*asked.lock().unwrap(), ["old", "shop"]);
    }
}
