//! Pods whose sidecars registered themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value;

use super::Plain;
use super::slice::{Uid, addresses};
use crate::kubernetes::mirror::{ByName, insert, remove};
use crate::kubernetes::pods::Selection;
use crate::store::Key;

impl Plain {
    /// Where an instance says that it is, or that it is registered no more. The answer is the slices that have to be told anew.
    pub(in crate::kubernetes) fn registration(
        &mut self,
        key: &Key,
        at: Option<Vec<IpAddr>>,
        services: &ByName<Selection>,
    ) -> BTreeSet<Key> {
        let Some(at) = at else {
            remove(&mut self.registered, key);
            return BTreeSet::new();
        };
        let pods = self.pods.get(&key.namespace).into_iter().flatten();
        let is = |name: &Arc<str>, uid: &Uid| {
            *name == key.name
                || self.known.get(uid).is_some_and(|pod| at.iter().any(|ip| pod.addresses.contains(ip)))
        };
        let marked: Vec<Uid> =
            pods.filter_map(|(name, pod)| pod.uid.clone().filter(|uid| is(name, uid))).collect();
        insert(&mut self.registered, key, at);
        marked.into_iter().flat_map(|uid| self.mark(&uid, services)).collect()
    }

    /// A pod has a sidecar from now on. The answer is the slices that have to be told anew.
    pub(in crate::kubernetes) fn mark(&mut self, uid: &Uid, services: &ByName<Selection>) -> BTreeSet<Key> {
        if !self.seen.insert(Arc::clone(uid)) {
            return BTreeSet::new();
        }
        self.unsaved.insert(Arc::clone(uid), true);
        let Some(known) = self.known.get_mut(uid).filter(|known| !known.sidecar) else {
            return BTreeSet::new();
        };
        known.sidecar = true;
        let key = known.key.clone();
        let mut told = self.beside(uid);
        let pods = self.pods.get_mut(&key.namespace);
        let pod = pods.and_then(|pods| pods.get_mut(&key.name)).filter(|pod| pod.uid.as_ref() == Some(uid));
        if let Some(pod) = pod {
            let labels: Value = serde_json::from_str(&pod.labels).unwrap_or_default();
            pod.sidecar = Some(labels.clone());
            told.extend(self.selecting(&key, &labels, services));
        }
        told
    }

    /// The pod has gone.
    pub(super) fn unmark(&mut self, uid: &Uid) {
        if self.seen.remove(uid) {
            self.unsaved.insert(Arc::clone(uid), false);
        }
    }

    /// All pods have been told: others that were marked have gone.
    pub(in crate::kubernetes) fn all_pods(&mut self) {
        let there = |uid: &&Uid| self.known.get(*uid).is_some_and(|pod| pod.there);
        let gone: Vec<Uid> = self.seen.iter().filter(|uid| !there(uid)).cloned().collect();
        gone.iter().for_each(|uid| self.unmark(uid));
    }

    /// Whether the pod is or was where an instance registered itself.
    pub(super) fn has_own(&mut self, key: &Key, uid: &Uid, object: &Value) -> bool {
        let at = addresses(object);
        let registered = self.registered.get(&key.namespace).is_some_and(|names| {
            names.contains_key(&key.name) || names.values().flatten().any(|ip| at.contains(ip))
        });
        if registered && self.seen.insert(Arc::clone(uid)) {
            self.unsaved.insert(Arc::clone(uid), true);
        }
        self.seen.contains(uid)
    }

    /// Instances that registered themselves.
    pub(in crate::kubernetes) fn registered(&self, kind: &str) -> Vec<Key> {
        let all = self.registered.iter();
        all.flat_map(|(namespace, names)| names.keys().map(move |name| Key::new(kind, namespace, name)))
            .collect()
    }

    /// Which pods were marked (true) or have gone since the last time.
    pub(in crate::kubernetes) fn unsaved(&mut self) -> BTreeMap<Uid, bool> {
        std::mem::take(&mut self.unsaved)
    }
}
