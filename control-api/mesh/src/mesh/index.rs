//! Which documents refer to which.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::Instance;
use crate::document::{Document, EndpointSliceSpec, ServiceSpec, TargetRef};
use crate::kinds::AnyDocument;
use crate::name::{ByName, Key, Name};

/// Everything is by the namespace and name of what is referred to.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    /// Instances by namespace and `label=value`.
    pub(super) labelled: ByName<BTreeSet<Arc<str>>>,
    /// Services by namespace and the first `label=value` of their selectors.
    pub(super) selectors: ByName<BTreeSet<Arc<str>>>,
    /// Instances by Services that they registered for.
    pub(super) registered: ByName<BTreeSet<Arc<str>>>,
    /// Routes by Services that they are attached to.
    pub(super) routes: ByName<BTreeSet<Key>>,
    /// Routes by Services that they lead to, and policies by Services that they ask.
    pub(super) backends: ByName<BTreeSet<Key>>,
    /// Policies by their targets.
    pub(super) policies: ByName<BTreeSet<Key>>,
    /// Policies by the namespace of whose Services they are attached to all.
    pub(super) policies_of_all: BTreeMap<Arc<str>, BTreeSet<Key>>,
    /// EndpointSlices by Service.
    pub(super) slices: ByName<BTreeSet<Arc<str>>>,
    /// EndpointSlices by the instances that are in them.
    pub(super) sliced: ByName<BTreeSet<Arc<str>>>,
    /// EndpointSlices by the addresses of endpoints that are said to have no sidecar.
    pub(super) plain: BTreeMap<IpAddr, BTreeSet<Name>>,
    /// Instances by each of their addresses.
    pub(super) addresses: BTreeMap<IpAddr, BTreeSet<Name>>,
}

/// One label of a selector or of an instance.
pub(super) fn label(name: &str, value: &str) -> String {
    format!("{name}={value}")
}

/// The pair of a selector by which it is found.
pub(super) fn pivot(selector: &BTreeMap<String, String>) -> Option<String> {
    selector.first_key_value().map(|(name, value)| label(name, value))
}

impl Index {
    /// Adds what `document` refers to, or takes it out.
    pub(super) fn document(&mut self, document: &AnyDocument, add: bool) {
        let key = document.key();
        let own = &key.name.namespace;
        for parent in document.parents() {
            let to = Name::new(parent.namespace.as_deref().unwrap_or(own), &parent.name);
            set(&mut self.routes, to, key.clone(), add);
        }
        for backend in document.backends() {
            let to = Name::new(backend.namespace.unwrap_or(own), backend.name);
            set(&mut self.backends, to, key.clone(), add);
        }
        match document {
            AnyDocument::Service(service) => self.service(service, add),
            AnyDocument::EndpointSlice(slice) => self.slice(slice, add),
            AnyDocument::TrafficPolicy(policy) => self.policy(&key, &policy.spec.target_refs, add),
            AnyDocument::AuthenticationPolicy(policy) => {
                self.policy(&key, &policy.spec.target_refs, add);
                self.policy_of_all(&key, policy.spec.of_all && add);
            }
            AnyDocument::AuthorizationPolicy(policy) => {
                self.policy(&key, &policy.spec.target_refs, add);
                self.policy_of_all(&key, policy.spec.all_but.is_some() && add);
            }
            AnyDocument::RateLimitPolicy(policy) => self.policy(&key, &policy.spec.target_refs, add),
            AnyDocument::FaultPolicy(policy) => self.policy(&key, &policy.spec.target_refs, add),
            // Workloads are indexed as instances, routes are done, and grants are few in each namespace.
            _ => {}
        }
    }

    fn service(&mut self, service: &Document<ServiceSpec>, add: bool) {
        let name = service.name();
        if let Some(pivot) = pivot(&service.spec.selector) {
            set(&mut self.selectors, Name::new(&name.namespace, &pivot), name.name, add);
        }
    }

    fn policy(&mut self, key: &Key, targets: &[TargetRef], add: bool) {
        for target in targets {
            set(&mut self.policies, Name::new(&key.name.namespace, &target.name), key.clone(), add);
        }
    }

    fn policy_of_all(&mut self, key: &Key, is: bool) {
        let namespace = &key.name.namespace;
        if is {
            self.policies_of_all.entry(Arc::clone(namespace)).or_default().insert(key.clone());
        } else if let Some(keys) = self.policies_of_all.get_mut(namespace) {
            keys.remove(key);
            if keys.is_empty() {
                self.policies_of_all.remove(namespace);
            }
        }
    }

    fn slice(&mut self, slice: &Document<EndpointSliceSpec>, add: bool) {
        let name = slice.name();
        if let Some(service) = slice.service() {
            set(&mut self.slices, Name::new(&name.namespace, service), Arc::clone(&name.name), add);
        }
        for instance in slice.spec.endpoints.iter().filter_map(|e| e.target_ref.as_ref()) {
            set(&mut self.sliced, Name::new(&name.namespace, &instance.name), Arc::clone(&name.name), add);
        }
        for address in slice.plain() {
            at(&mut self.plain, address, &name, add);
        }
    }

    /// Adds labels and registrations of `instance`, or takes them out.
    pub(super) fn instance(&mut self, instance: &Instance, add: bool) {
        let name = instance.workload.name();
        for (key, value) in &instance.workload.metadata.labels {
            let to = Name::new(&name.namespace, &label(key, value));
            set(&mut self.labelled, to, Arc::clone(&name.name), add);
        }
        for service in &instance.services {
            let to = Name::new(&name.namespace, service);
            set(&mut self.registered, to, Arc::clone(&name.name), add);
        }
        for address in instance.workload.spec.all_addresses() {
            at(&mut self.addresses, address, &name, add);
        }
    }
}

fn at(all: &mut BTreeMap<IpAddr, BTreeSet<Name>>, address: IpAddr, name: &Name, add: bool) {
    if add {
        all.entry(address).or_default().insert(name.clone());
    } else if let Some(names) = all.get_mut(&address) {
        names.remove(name);
        if names.is_empty() {
            all.remove(&address);
        }
    }
}

fn set<T: Ord>(sets: &mut ByName<BTreeSet<T>>, to: Name, item: T, add: bool) {
    if add {
        sets.link(to, item);
    } else {
        sets.unlink(&to, &item);
    }
}
