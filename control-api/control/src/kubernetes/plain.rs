//! Which EndpointSlices have no endpoint with a sidecar. Those of Services to which plaintext is allowed ([`PlaintextTo`]) say so in the mesh,
//! where their Services are called in plaintext unless a policy says otherwise (docs/decisions/0020).
//!
//! A Service has sidecars as long as there is a pod with one that it selects, or that is in any slice of it: also one that has ended, is not
//! ready, or has no address yet. Then each of its slices says so, also one without endpoints. A slice that nobody here can read may have one.
//! A pod of which nobody has heard yet may have a sidecar, and is not called; nor is what is no pod, but for the API server. They stay in the
//! slice as endpoints that are not ready: the mesh looks whether one of them is an instance. Pods are told apart by their uid: the next one
//! of a name is another one. That an endpoint is the pod of its uid is believed where namespace, name and addresses are those of the pod, too:
//! whoever may write a slice may write any uid.
//!
//! A sidecar that a container starts by itself (`remora run`) is in no pod's spec. A pod of the namespace, name or address of which an instance
//! ever registered itself has one for as long as there is that pod: that the registration was lost does not mean that the sidecar was.

mod register;
mod slice;
#[cfg(test)]
mod tests;
mod to;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use remora_mesh::document::SIDECARS;
use serde_json::Value;

use super::mirror::{ByName, insert, remove};
use super::pods::Selection;
use super::{map, pods};
use crate::store::Key;

use slice::{Claim, Known, Slice, Uid, addresses, uid};

pub(super) use slice::address;
pub use to::PlaintextTo;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Plain {
    /// Of the slices of other Services nothing is said.
    to: Vec<PlaintextTo>,
    pods: ByName<Pod>,
    /// Those that are there, and those that a slice still has.
    known: BTreeMap<Uid, Known>,
    slices: BTreeMap<Key, Slice>,
    /// The slices of a Service.
    of: ByName<BTreeSet<Key>>,
    /// The slices that a pod is in.
    within: BTreeMap<Uid, BTreeSet<Key>>,
    /// Where instances are that registered themselves.
    registered: ByName<Vec<IpAddr>>,
    /// Pods that are or were one of those.
    seen: BTreeSet<Uid>,
    /// Which of them came (true) or went, and nobody has kept it yet.
    unsaved: BTreeMap<Uid, bool>,
}

#[derive(Debug)]
struct Pod {
    uid: Option<Uid>,
    /// Its labels, as JSON.
    labels: Box<str>,
    /// The same, of one that has a sidecar.
    sidecar: Option<Value>,
}

impl Plain {
    /// Knows of nothing. `to`: the Services that may be called in plaintext.
    pub(super) fn new(to: Vec<PlaintextTo>) -> Self {
        Self { to, ..Self::default() }
    }

    /// The Services that may be called in plaintext.
    pub(super) fn to(&self) -> &[PlaintextTo] {
        &self.to
    }

    /// Whether the Service of a slice is one of them.
    pub(super) fn is_allowed(&self, key: &Key) -> bool {
        let service = self.slices.get(key).map(|slice| &slice.service);
        service.is_some_and(|service| self.allows(&key.namespace, service))
    }

    fn allows(&self, namespace: &str, service: &str) -> bool {
        self.to.iter().any(|to| to.has(namespace, service))
    }

    /// A pod as it is now, or that it has gone. The answer is the slices that have to be told anew.
    pub(super) fn pod(
        &mut self,
        key: &Key,
        object: Option<&Value>,
        services: &ByName<Selection>,
    ) -> BTreeSet<Key> {
        let new = object.map(|object| self.read(key, object));
        let (now, labels) = match &new {
            Some(new) => (new.uid.clone(), new.sidecar.clone()),
            None => (None, None),
        };
        let old = match new {
            Some(new) => insert(&mut self.pods, key, new),
            None => remove(&mut self.pods, key),
        };
        let (before, had) = old.map(|old| (old.uid, old.sidecar)).unwrap_or_default();
        let mut told = BTreeSet::new();
        if had != labels {
            told.extend(
                [&had, &labels]
                    .into_iter()
                    .flatten()
                    .flat_map(|labels| self.selecting(key, labels, services)),
            );
        }
        if let Some(before) = before.filter(|before| now.as_ref() != Some(before)) {
            if let Some(known) = self.known.get_mut(&before) {
                known.there = false;
            }
            self.unmark(&before);
            self.forget(&before);
        }
        if let Some(now) = now {
            let addresses = object.map(addresses).unwrap_or_default();
            let known = Known { there: true, sidecar: labels.is_some(), key: key.clone(), addresses };
            let before = self.known.insert(Arc::clone(&now), known.clone());
            if before.as_ref().is_some_and(|before| before.sidecar) != known.sidecar {
                told.extend(self.beside(&now));
            } else if before != Some(known) {
                let within = self.within.get(&now).into_iter().flatten();
                told.extend(within.filter(|slice| self.is_allowed(slice)).cloned());
            }
        }
        told
    }

    fn read(&mut self, key: &Key, object: &Value) -> Pod {
        let (uid, labels) = (uid(&object["metadata"]), &object["metadata"]["labels"]);
        let sidecar =
            pods::has_sidecar(object) || uid.as_ref().is_some_and(|uid| self.has_own(key, uid, object));
        Pod { uid, labels: labels.to_string().into(), sidecar: sidecar.then(|| labels.clone()) }
    }

    /// The slices of the Services that select a pod with these labels.
    fn selecting(&self, pod: &Key, labels: &Value, services: &ByName<Selection>) -> BTreeSet<Key> {
        let services = services.get(&pod.namespace).into_iter().flatten();
        let selecting = services.filter(|(_, service)| service.has(labels));
        selecting.flat_map(|(service, _)| self.of(&pod.namespace, service)).cloned().collect()
    }

    /// All slices of each Service that a pod is in a slice of.
    fn beside(&self, pod: &Uid) -> BTreeSet<Key> {
        let within = self.within.get(pod).into_iter().flatten();
        let services = within.filter_map(|key| Some((&*key.namespace, &*self.slices.get(key)?.service)));
        services.flat_map(|(namespace, service)| self.of(namespace, service)).cloned().collect()
    }

    /// A slice as it is now: the object, and the document that it becomes; None: nobody here can read it. The answer is the slices that have to
    /// be told anew.
    pub(super) fn slice(&mut self, key: &Key, object: &Value, document: Option<&Value>) -> BTreeSet<Key> {
        let new = Slice::of(key, object, document);
        let pods = new.pods();
        for pod in &pods {
            self.within.entry(Arc::clone(pod)).or_default().insert(key.clone());
        }
        let service = Arc::clone(&new.service);
        let of = self.of.entry(Arc::clone(&key.namespace)).or_default();
        of.entry(Arc::clone(&service)).or_default().insert(key.clone());
        let shows = self.shows(&new);
        let mut told = BTreeSet::from([key.clone()]);
        let old = self.slices.insert(key.clone(), new);
        let (showed, before) = match &old {
            Some(old) => (self.shows(old), Arc::clone(&old.service)),
            None => (false, Arc::clone(&service)),
        };
        if let Some(old) = old {
            old.pods().difference(&pods).for_each(|pod| self.leaves(pod, key));
        }
        if before != service {
            self.not_of(&before, key);
        }
        if showed {
            told.extend(self.of(&key.namespace, &before).cloned());
        }
        if shows {
            told.extend(self.of(&key.namespace, &service).cloned());
        }
        told
    }

    /// All slices.
    pub(super) fn slices(&self) -> impl Iterator<Item = &Key> {
        self.slices.keys()
    }

    /// Those of a Service, if what they say may be about all of it.
    pub(super) fn of(&self, namespace: &str, service: &str) -> impl Iterator<Item = &Key> {
        let services = self.of.get(namespace).filter(|_| self.allows(namespace, service));
        services.and_then(|services| services.get(service)).into_iter().flatten()
    }

    /// The document of a slice, with what is known of sidecars.
    pub(super) fn document(&self, key: &Key, services: &ByName<Selection>) -> Option<Value> {
        let slice = self.slices.get(key)?;
        let mut document: Value = serde_json::from_str(slice.json.as_ref()?).ok()?;
        if !self.is_allowed(key) {
            return Some(document);
        }
        if self.has_sidecars(&key.namespace, &slice.service, services) {
            document["metadata"]["annotations"][SIDECARS] = "some".into();
            return Some(document);
        }
        let (mut endpoints, mut left_out, mut unclear) = (Vec::new(), Vec::new(), false);
        for (endpoint, pod) in document["endpoints"].as_array().into_iter().flatten().zip(&slice.behind) {
            let known = pod.as_ref().map(|claim: &Claim| (claim, self.known.get(&claim.uid)));
            if known.is_none_or(|(claim, pod)| pod.is_some_and(|pod| claim.is(key, pod))) {
                endpoints.push(endpoint.clone());
            } else {
                unclear |= known.is_some_and(|(claim, pod)| !claim.may_come(key, pod));
                left_out.push(map::not_ready(endpoint.clone()));
            }
        }
        if endpoints.is_empty() && unclear {
            // Of nobody who is called it is known, nor will it be. Pods that nobody has heard of yet are no reason: other slices of the Service
            // hold, as they do where such a pod is in one of them.
            return Some(document);
        }
        endpoints.append(&mut left_out);
        let mut rest: Vec<Value> = serde_json::from_str(&slice.rest).ok()?;
        endpoints.append(&mut rest);
        if !endpoints.is_empty() {
            document["endpoints"] = endpoints.into();
            document["metadata"]["annotations"][SIDECARS] = "none".into();
        }
        Some(document)
    }

    /// The document of a slice while it is not known who has a sidecar: what was kept of it goes on for those of its endpoints that are still
    /// there, and of new ones nobody hears yet. Without what was kept, nothing is said of sidecars.
    pub(super) fn meanwhile(
        &self,
        key: &Key,
        kept: Option<&Value>,
        services: &ByName<Selection>,
    ) -> Option<Value> {
        let slice = self.slices.get(key)?;
        if self.has_sidecars(&key.namespace, &slice.service, services) {
            return self.document(key, services);
        }
        let mut document: Value = serde_json::from_str(slice.json.as_ref()?).ok()?;
        let Some(kept) = kept.filter(|kept| map::service_of(kept) == Some(&*slice.service)) else {
            return Some(document);
        };
        let rest: Vec<Value> = serde_json::from_str(&slice.rest).ok()?;
        let still = |old: &Value| {
            let is =
                |new: &&Value| new["addresses"] == old["addresses"] && new["targetRef"] == old["targetRef"];
            match document["endpoints"].as_array()?.iter().find(is) {
                // That it is not to be called was said because nobody knows it.
                Some(_) if !map::is_called(old) => Some(old.clone()),
                Some(new) => Some(new.clone()),
                None => rest.iter().find(is).cloned(),
            }
        };
        let endpoints: Value = kept["endpoints"].as_array().into_iter().flatten().filter_map(still).collect();
        document["endpoints"] = endpoints;
        if let Some(said) = kept["metadata"]["annotations"].get(SIDECARS) {
            document["metadata"]["annotations"][SIDECARS] = said.clone();
        }
        Some(document)
    }

    /// Whether there is a pod with a sidecar that a Service selects, or a slice of it that shows one.
    fn has_sidecars(&self, namespace: &str, service: &str, services: &ByName<Selection>) -> bool {
        let selection = services.get(namespace).and_then(|services| services.get(service));
        let pods = self.pods.get(namespace).into_iter().flat_map(BTreeMap::values);
        let mut labels = pods.filter_map(|pod| pod.sidecar.as_ref());
        let selected = selection.is_some_and(|selection| labels.any(|labels| selection.has(labels)));
        let mut slices = self.of(namespace, service).filter_map(|key| self.slices.get(key));
        selected || slices.any(|slice| self.shows(slice))
    }

    /// Whether a pod with a sidecar is in a slice, or may be because nobody can read it.
    fn shows(&self, slice: &Slice) -> bool {
        let mut named = slice.named();
        slice.json.is_none() || named.any(|pod| self.known.get(pod).is_some_and(|known| known.sidecar))
    }

    /// The slice has gone. The answer is the slices that have to be told anew.
    pub(super) fn no_slice(&mut self, key: &Key) -> BTreeSet<Key> {
        let Some(slice) = self.slices.remove(key) else { return BTreeSet::new() };
        let showed = self.shows(&slice);
        slice.pods().iter().for_each(|pod| self.leaves(pod, key));
        self.not_of(&slice.service, key);
        if showed { self.of(&key.namespace, &slice.service).cloned().collect() } else { BTreeSet::new() }
    }

    fn not_of(&mut self, service: &str, slice: &Key) {
        let Some(services) = self.of.get_mut(&slice.namespace) else { return };
        if let Some(slices) = services.get_mut(service) {
            slices.remove(slice);
            if slices.is_empty() {
                services.remove(service);
            }
        }
        if services.is_empty() {
            self.of.remove(&slice.namespace);
        }
    }

    fn leaves(&mut self, pod: &Uid, slice: &Key) {
        if let Some(within) = self.within.get_mut(pod) {
            within.remove(slice);
            if within.is_empty() {
                self.within.remove(pod);
                self.forget(pod);
            }
        }
    }

    /// A pod that has gone is known as long as a slice has it: what is left there of it must not look like somebody unknown.
    fn forget(&mut self, pod: &Uid) {
        if self.known.get(pod).is_some_and(|known| !known.there) && !self.within.contains_key(pod) {
            self.known.remove(pod);
        }
    }
}
