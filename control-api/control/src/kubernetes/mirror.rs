//! What was seen of Kubernetes, on its way to the registry.

mod own;
mod patience;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use remora_mesh::document::SIDECARS;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use patience::Patience;

use super::map;
use super::plain::{Plain, PlaintextTo};
use super::pods::{Pod, Selection};
use super::watch::{Seen, Told, What};
use crate::board::Board;
use crate::ca::keeper::NAMESPACE;
use crate::clock::rfc3339;
use crate::quota::Owner;
use crate::registry::instances::REGISTRATION;
use crate::registry::mirror::{KUBERNETES, ORIGIN, READER, Wanted, is_mirrored, without_version};
use crate::registry::{Position, Registry};
use crate::store::{Key, Scope, Write};

/// The kind that says what ports of a pod are asked for.
const SERVICE: &str = "Service";
/// The kind that says where they are.
const SLICE: &str = "EndpointSlice";
/// What has to be known before anything is said of the sidecars of a slice: pods and Workloads have them, Services select pods, other slices
/// have others, and policies keep plaintext away.
const NEEDED: [&str; 6] =
    [REGISTRATION, SERVICE, SLICE, "Workload", "AuthenticationPolicy", "AuthorizationPolicy"];
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
pub(super) type ByName<T> = BTreeMap<Arc<str>, BTreeMap<Arc<str>, T>>;

/// See the module.
#[derive(Debug)]
pub(super) struct Mirror {
    registry: Arc<Registry>,
    board: Arc<Board>,
    /// Who knows whether this control plane is the one that reads Kubernetes; None: it is.
    owner: Option<Arc<Owner>>,
    /// What has to hold for a write, and holds no more when another one is it.
    fence: Option<Write>,
    /// Of those that are being listed, what was there so far.
    listed: BTreeMap<What, BTreeSet<Key>>,
    /// What is there as far as it was told, whether the registry has it by now or not.
    there: BTreeMap<What, BTreeSet<Key>>,
    /// Of which kinds everything has been seen.
    complete: BTreeSet<What>,
    pods: ByName<Pod>,
    services: ByName<Selection>,
    plain: Plain,
    /// What was kept of slices is believed no more.
    late: bool,
    /// Slices that have to be told anew before anything is written: each once, however many pods of it changed.
    stale: BTreeSet<Key>,
    /// Up to where the registry was looked at.
    looked: Position,
    wanted: Wanted,
}

impl Mirror {
    pub(super) fn new(registry: Arc<Registry>, board: Arc<Board>) -> Self {
        Self {
            registry,
            board,
            owner: None,
            fence: None,
            listed: BTreeMap::new(),
            there: BTreeMap::new(),
            complete: BTreeSet::new(),
            pods: ByName::new(),
            services: ByName::new(),
            plain: Plain::default(),
            late: false,
            stale: BTreeSet::new(),
            looked: Position::default(),
            wanted: Wanted::new(),
        }
    }

    /// These Services may be called in plaintext while they are known to have no sidecars.
    pub(super) fn plaintext_to(self, to: Vec<PlaintextTo>) -> Self {
        Self { plain: Plain::new(to), ..self }
    }

    /// It writes only while `owner` has it that this is the control plane that reads Kubernetes.
    pub(super) fn led_by(self, owner: Arc<Owner>, fence: Option<Write>) -> Self {
        Self { owner: Some(owner), fence, ..self }
    }

    async fn write(&self, wanted: Wanted) {
        let owner = self.owner.as_ref();
        let leads = || owner.is_none_or(|owner| owner.opens(READER, Instant::now()).is_some());
        self.registry.mirror_while(wanted, leads, self.fence.as_ref()).await;
    }

    /// Follows for ever.
    pub(super) async fn follow(mut self, mut events: mpsc::Receiver<Told>) {
        let mut all = false;
        let mut together = Vec::with_capacity(TOGETHER);
        let mut moves = self.registry.progress();
        let mut patience = Patience::new(Instant::now());
        loop {
            // Neither loses anything when the other one is first.
            let goes_on = tokio::select! {
                taken = events.recv_many(&mut together, TOGETHER) => taken > 0,
                moved = moves.changed() => moved.is_ok(),
                () = sleep_until(patience.ends()), if !self.late && self.unknown().next().is_some() => {
                    self.give_up();
                    true
                }
            };
            if !goes_on {
                return;
            }
            self.look();
            let ended = together.iter().any(|(_, seen)| matches!(seen, Seen::End));
            let goes_on = together.iter().any(|(what, seen)| self.goes_on(*what, seen));
            self.take_all(together.drain(..));
            let wanted = std::mem::take(&mut self.wanted);
            self.write(wanted).await;
            if goes_on {
                patience.goes_on(Instant::now());
            }
            if ended {
                self.tell();
                if self.complete.len() == What::all().count() && !std::mem::replace(&mut all, true) {
                    info!("Kubernetes has been read");
                    self.write(Wanted::from([(marker(), Some(mark()))])).await;
                }
            }
        }
    }

    /// Whether it is a step on the way to knowing who has a sidecar: a part of a list that is not complete.
    fn goes_on(&self, what: What, seen: &Seen) -> bool {
        let listed = matches!(seen, Seen::Listed(_) | Seen::End);
        listed && NEEDED.contains(&kind(what)) && !self.complete.contains(&what)
    }

    fn tell(&self) {
        let waits = What::all().filter(|what| !self.complete.contains(what)).map(What::name);
        let waits: Vec<_> = waits.collect();
        let unknown: Vec<_> = self.unknown().filter(|_| self.late).collect();
        let state = json!({
            "plaintextTo": self.plain.to().iter().map(ToString::to_string).collect::<Vec<_>>(),
            "synced": waits.is_empty(), "waitsFor": waits, "sidecarsWaitFor": unknown, "pods": self.pods.values().map(BTreeMap::len).sum::<usize>(),
            "at": rfc3339(SystemTime::now()),
        });
        self.board.set_kubernetes(state);
    }

    /// What is not known of all that it takes to say who has a sidecar.
    fn unknown(&self) -> impl Iterator<Item = &'static str> {
        NEEDED.into_iter().filter(move |name| !self.complete.iter().any(|what| kind(*what) == *name))
    }

    /// It takes too long until it is known who has a sidecar. No slice says any more that its endpoints have none: those may be others by now.
    fn give_up(&mut self) {
        self.late = true;
        let kinds = self.unknown().collect::<Vec<_>>().join(", ");
        if !self.plain.to().is_empty() {
            warn!(
                kinds,
                "cannot be read: Services without sidecars are not called in plaintext until they can"
            );
        }
        let listed: BTreeSet<_> = self.plain.slices().cloned().collect();
        for record in self.registry.list(&Scope::Kind(SLICE.into())).1 {
            if !is_mirrored(&record) || listed.contains(&record.key) {
                continue;
            }
            let mut body = without_version(&record);
            let annotations = body["metadata"]["annotations"].as_object_mut();
            let word = annotations.and_then(|said| said.remove(SIDECARS));
            if word.is_some_and(|word| word == "none") {
                self.wanted.insert(record.key.clone(), Some(body));
            }
        }
        self.stale.extend(listed);
        self.tell_slices();
        self.tell();
    }

    /// Takes what was seen, and tells anew what that touches.
    fn take_all(&mut self, seen: impl IntoIterator<Item = Told>) {
        seen.into_iter().for_each(|(what, seen)| self.take_one(what, seen));
        self.tell_slices();
    }

    fn take_one(&mut self, what: What, seen: Seen) {
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
                let first = self.complete.insert(what);
                if kind(what) == REGISTRATION {
                    self.plain.all_pods();
                    self.save();
                }
                if first && kind(what) == SERVICE {
                    let pods = self.pods.iter().flat_map(|(namespace, pods)| {
                        pods.keys().map(move |name| Key::new(REGISTRATION, namespace, name))
                    });
                    let pods: Vec<_> = pods.collect();
                    pods.into_iter().for_each(|key| self.tell_pod(key));
                }
                if first && NEEDED.contains(&kind(what)) {
                    let slices = self.plain.slices().filter(|slice| self.plain.is_allowed(slice));
                    self.stale.extend(slices.cloned());
                }
            }
        }
    }

    /// Takes what an object says. Its key, if it has one.
    fn put(&mut self, what: What, object: &Value) -> Option<Key> {
        let key = map::key(kind(what), object)?;
        self.there.entry(what).or_default().insert(key.clone());
        match what.kind() {
            None => {
                let slices = self.plain.pod(&key, Some(object), &self.services);
                self.stale.extend(slices);
                self.save();
                match Pod::of(object) {
                    Some(pod) => {
                        insert(&mut self.pods, &key, pod);
                        self.tell_pod(key.clone());
                    }
                    None => self.no_instance(key.clone()),
                }
            }
            Some(kind) => match map::document(kind, object) {
                document if kind.name == SLICE && map::service_of(object).is_some() => {
                    if document.is_none() {
                        self.wanted.insert(key.clone(), None);
                    }
                    let slices = self.plain.slice(&key, object, document.as_ref());
                    self.stale.extend(slices);
                }
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
        match kind(what) {
            REGISTRATION => {
                let slices = self.plain.pod(&key, None, &self.services);
                self.stale.extend(slices);
                self.save();
                return self.no_instance(key);
            }
            SERVICE => self.select(&key, None),
            SLICE => {
                let slices = self.plain.no_slice(&key);
                self.stale.extend(slices);
            }
            _ => {}
        }
        self.wanted.insert(key, None);
    }

    fn no_instance(&mut self, key: Key) {
        remove(&mut self.pods, &key);
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

    /// The slices of which something changed since the last time.
    fn tell_slices(&mut self) {
        std::mem::take(&mut self.stale).into_iter().for_each(|key| self.tell_slice(key));
    }

    /// A slice as it is now. Until all is known that it takes to say who has a sidecar, what was told of it earlier holds for the endpoints that it
    /// still has; for a while, and then nothing is said of sidecars. Of one of a Service to which plaintext is not allowed it never is.
    fn tell_slice(&mut self, key: Key) {
        let document = if self.unknown().next().is_none() || !self.plain.is_allowed(&key) {
            self.plain.document(&key, &self.services)
        } else if self.late {
            self.plain.meanwhile(&key, None, &self.services)
        } else {
            let kept = self.registry.get(&key).filter(|record| is_mirrored(record));
            kept.and_then(|kept| self.plain.meanwhile(&key, Some(&without_version(&kept)), &self.services))
        };
        if let Some(document) = document {
            self.wanted.insert(key, Some(document));
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
        self.stale.extend(self.plain.of(&service.namespace, &service.name).cloned());
        let pods = self.pods.get(&service.namespace).into_iter().flatten();
        let touched = pods.filter(|(_, pod)| [&old, &new].into_iter().flatten().any(|s| s.has(pod.labels())));
        let keys: Vec<_> =
            touched.map(|(name, _)| Key::new(REGISTRATION, &service.namespace, name)).collect();
        keys.into_iter().for_each(|key| self.tell_pod(key));
    }
}

/// Whether something of a kind is kept that came from Kubernetes.
pub(super) fn has(registry: &Registry, what: What) -> bool {
    registry.list(&Scope::Kind(kind(what).into())).1.iter().any(|record| is_mirrored(record))
}

/// The first part of keys.
fn kind(what: What) -> &'static str {
    what.kind().map_or(REGISTRATION, |kind| kind.name)
}

pub(super) fn insert<T>(map: &mut ByName<T>, key: &Key, value: T) -> Option<T> {
    map.entry(Arc::clone(&key.namespace)).or_default().insert(Arc::clone(&key.name), value)
}

pub(super) fn remove<T>(map: &mut ByName<T>, key: &Key) -> Option<T> {
    let names = map.get_mut(&key.namespace)?;
    let old = names.remove(&key.name);
    if names.is_empty() {
        map.remove(&key.namespace);
    }
    old
}
