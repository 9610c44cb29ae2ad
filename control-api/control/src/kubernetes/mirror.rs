//! What was seen of Kubernetes, on its way to the registry.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::info;

use super::map;
use super::pods::{Pod, Selection};
use super::watch::{Seen, Told, What};
use crate::board::Board;
use crate::ca::keeper::NAMESPACE;
use crate::clock::rfc3339;
use crate::registry::Registry;
use crate::registry::instances::REGISTRATION;
use crate::registry::mirror::{KUBERNETES, ORIGIN, Wanted, is_mirrored};
use crate::store::{Key, Scope};

/// The kind that says what ports of a pod are asked for.
const SERVICE: &str = "Service";
/// Events that are taken together.
const TOGETHER: usize = 512;

/// Kind of the key that says that Kubernetes was read.
pub(crate) const KIND: &str = "KubernetesSource";

/// There since everything that Kubernetes has was in the store once.
pub(super) fn marker() -> Key {
    Key::new(KIND, NAMESPACE, "read")
}

fn mark() -> Value {
    json!({
        "apiVersion": "remora.dev/v1alpha1", "kind": KIND,
        "metadata": {"name": "read", "namespace": NAMESPACE, "annotations": {ORIGIN: KUBERNETES}},
    })
}

/// By namespace and name.
type ByName<T> = BTreeMap<Arc<str>, BTreeMap<Arc<str>, T>>;

/// See the module.
#[derive(Debug)]
pub(super) struct Mirror {
    registry: Arc<Registry>,
    board: Arc<Board>,
    /// Of those that are being listed, what was there so far.
    listed: BTreeMap<What, BTreeSet<Key>>,
    /// What is there as far as it was told, whether the registry has it by now or not.
    there: BTreeMap<What, BTreeSet<Key>>,
    /// Of which kinds everything has been seen.
    complete: BTreeSet<What>,
    pods: ByName<Pod>,
    services: ByName<Selection>,
    wanted: Wanted,
}

impl Mirror {
    pub(super) fn new(registry: Arc<Registry>, board: Arc<Board>) -> Self {
        Self {
            registry,
            board,
            listed: BTreeMap::new(),
            there: BTreeMap::new(),
            complete: BTreeSet::new(),
            pods: ByName::new(),
            services: ByName::new(),
            wanted: Wanted::new(),
        }
    }

    /// Follows for ever.
    pub(super) async fn follow(mut self, mut events: mpsc::Receiver<Told>) {
        let mut all = false;
        let mut together = Vec::with_capacity(TOGETHER);
        while events.recv_many(&mut together, TOGETHER).await > 0 {
            let mut ended = false;
            for (what, seen) in together.drain(..) {
                ended |= matches!(seen, Seen::End);
                self.take(what, seen);
            }
            let wanted = std::mem::take(&mut self.wanted);
            self.registry.mirror(wanted).await;
            if ended {
                self.tell();
                if self.complete.len() == What::all().count() && !std::mem::replace(&mut all, true) {
                    info!("Kubernetes has been read");
                    self.registry.mirror(Wanted::from([(marker(), Some(mark()))])).await;
                }
            }
        }
    }

    fn tell(&self) {
        let waits = What::all().filter(|what| !self.complete.contains(what)).map(What::name);
        let waits: Vec<_> = waits.collect();
        let state = json!({
            "synced": waits.is_empty(), "waitsFor": waits, "pods": self.pods.values().map(BTreeMap::len).sum::<usize>(),
            "at": rfc3339(SystemTime::now()),
        });
        self.board.set_kubernetes(state);
    }

    fn take(&mut self, what: What, seen: Seen) {
        match seen {
            Seen::Begin => drop(self.listed.insert(what, BTreeSet::new())),
            Seen::Listed(object) => {
                if let Some(key) = self.put(what, &object)
                    && let Some(listed) = self.listed.get_mut(&what)
                {
                    listed.insert(key);
                }
            }
            Seen::Changed(object) => drop(self.put(what, &object)),
            Seen::Gone(object) => {
                if let Some(key) = map::key(kind(what), &object) {
                    self.gone(what, key);
                }
            }
            Seen::End => {
                let listed = self.listed.remove(&what).unwrap_or_default();
                // What an earlier control plane wrote, and what was told before this list: it may be on its way to the registry.
                let kept = self.registry.list(&Scope::Kind(kind(what).into())).1;
                let kept = kept.iter().filter(|record| is_mirrored(record)).map(|record| record.key.clone());
                let mut gone: BTreeSet<_> =
                    kept.chain(self.there.remove(&what).unwrap_or_default()).collect();
                gone.retain(|key| !listed.contains(key));
                gone.into_iter().for_each(|key| self.gone(what, key));
                self.there.insert(what, listed);
                if self.complete.insert(what) && kind(what) == SERVICE {
                    let pods = self.pods.iter().flat_map(|(namespace, pods)| {
                        pods.keys().map(move |name| Key::new(REGISTRATION, namespace, name))
                    });
                    let pods: Vec<_> = pods.collect();
                    pods.into_iter().for_each(|key| self.tell_pod(key));
                }
            }
        }
    }

    /// Takes what an object says. Its key, if it has one.
    fn put(&mut self, what: What, object: &Value) -> Option<Key> {
        let key = map::key(kind(what), object)?;
        self.there.entry(what).or_default().insert(key.clone());
        match what.kind() {
            None => match Pod::of(object) {
                Some(pod) => {
                    insert(&mut self.pods, &key, pod);
                    self.tell_pod(key.clone());
                }
                None => self.gone(what, key.clone()),
            },
            Some(kind) => match map::document(kind, object) {
                Some(document) => {
                    if kind.name == SERVICE {
                        self.select(&key, Selection::of(&document));
                    }
                    self.wanted.insert(key.clone(), Some(document));
                }
                None => self.gone(what, key.clone()),
            },
        }
        Some(key)
    }

    fn gone(&mut self, what: What, key: Key) {
        self.there.get_mut(&what).map(|there| there.remove(&key));
        match what.kind() {
            None => drop(remove(&mut self.pods, &key)),
            Some(kind) if kind.name == SERVICE => self.select(&key, None),
            Some(_) => {}
        }
        self.wanted.insert(key, None);
    }

    /// A pod as it is now. Its ports are known when all Services are: until then what was told of it earlier holds.
    fn tell_pod(&mut self, key: Key) {
        let known = self.complete.iter().any(|what| kind(*what) == SERVICE);
        let pod = self.pods.get(&key.namespace).and_then(|pods| pods.get(&key.name)).filter(|_| known);
        if let Some(pod) = pod {
            let body = pod.registration(self.services_of(&key.namespace));
            self.wanted.insert(key, Some(body));
        }
    }

    fn services_of(&self, namespace: &str) -> impl Iterator<Item = &Selection> + Clone {
        self.services.get(namespace).into_iter().flat_map(BTreeMap::values)
    }

    /// A Service selects other pods than before, or leads to other ports of them: those pods are told anew.
    fn select(&mut self, service: &Key, new: Option<Selection>) {
        let old = match new.clone() {
            Some(new) => insert(&mut self.services, service, new),
            None => remove(&mut self.services, service),
        };
        if old == new {
            return;
        }
        let pods = self.pods.get(&service.namespace).into_iter().flatten();
        let touched = pods.filter(|(_, pod)| [&old, &new].into_iter().flatten().any(|s| s.has(pod)));
        let keys: Vec<_> =
            touched.map(|(name, _)| Key::new(REGISTRATION, &service.namespace, name)).collect();
        keys.into_iter().for_each(|key| self.tell_pod(key));
    }
}

/// The first part of keys.
fn kind(what: What) -> &'static str {
    what.kind().map_or(REGISTRATION, |kind| kind.name)
}

fn insert<T>(map: &mut ByName<T>, key: &Key, value: T) -> Option<T> {
    map.entry(Arc::clone(&key.namespace)).or_default().insert(Arc::clone(&key.name), value)
}

fn remove<T>(map: &mut ByName<T>, key: &Key) -> Option<T> {
    let names = map.get_mut(&key.namespace)?;
    let old = names.remove(&key.name);
    if names.is_empty() {
        map.remove(&key.namespace);
    }
    old
}
