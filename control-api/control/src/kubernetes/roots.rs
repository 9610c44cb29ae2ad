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

/// Keeps them for ever. `name` is that of the ConfigMaps.
pub(crate) async fn keep(client: Client, ca: Arc<Ca>, name: String) {
    let namespaces: Api<PartialObjectMeta<DynamicObject>> =
        Api::all_with(client.clone(), &resource("Namespace", "namespaces"));
    let mut events = pin!(watcher(namespaces, watcher::Config::default()).default_backoff());
    let mut changes = ca.changes();
    let (mut all, mut listed) = (BTreeSet::new(), BTreeSet::new());
    // What each has.
    let mut written: BTreeMap<String, String> = BTreeMap::new();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failed = false;
    loop {
        tokio::select! {
            event = events.next() => match event {
                None => return,
                Some(Ok(Event::Init)) => listed = BTreeSet::new(),
                Some(Ok(Event::InitApply(object))) => listed.extend(object.metadata.name),
                Some(Ok(Event::InitDone)) => all = std::mem::take(&mut listed),
                // One that is going away takes nothing new.
                Some(Ok(Event::Apply(object))) if object.metadata.deletion_timestamp.is_none() => {
                    all.extend(object.metadata.name);
                }
                Some(Ok(Event::Apply(object) | Event::Delete(object))) => {
                    if let Some(name) = object.metadata.name {
                        all.remove(&name);
                        written.remove(&name);
                    }
                }
                // `default_backoff` waits before the next attempt.
                Some(Err(error)) => warn!(%error, "namespaces cannot be watched; tried again"),
            },
            more = changes.next() => if !more { return },
            _ = looks.tick() => written.clear(),
            () = tokio::time::sleep(RETRY), if failed => {}
        }
        let Ok(roots) = ca.read(Authority::trusted) else { continue };
        failed = false;
        for namespace in all.iter().filter(|namespace| !SYSTEM.contains(&namespace.as_str())) {
            if written.get(namespace) == Some(&roots) {
                continue;
            }
            match write(&client, namespace, &name, &roots).await {
                Ok(()) => drop(written.insert(namespace.clone(), roots.clone())),
                Err(error) => {
                    warn!(namespace, %error, "the roots cannot be written; tried again");
                    failed = true;
                }
            }
        }
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
