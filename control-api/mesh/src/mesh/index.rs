//! Which documents refer to which.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{AnyDocument, Instance};
use crate::document::{Document, ServiceSpec};
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
    /// Routes by Services that they lead to.
    pub(super) backends: ByName<BTreeSet<Key>>,
    /// TrafficPolicies by their targets.
    pub(super) policies: ByName<BTreeSet<Name>>,
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
        match document {
            AnyDocument::Service(service) => self.service(service, add),
            // They are indexed as instances.
            AnyDocument::Workload(_) => {}
            AnyDocument::HttpRoute(route) => {
                let (key, own) = (document.key(), &route.metadata.namespace);
                for parent in &route.spec.parent_refs {
                    let to = Name::new(parent.namespace.as_ref().unwrap_or(own), &parent.name);
                    set(&mut self.routes, to, key.clone(), add);
                }
                for backend in route.spec.rules.iter().flat_map(|rule| &rule.backend_refs) {
                    let to = Name::new(backend.namespace.as_ref().unwrap_or(own), &backend.name);
                    set(&mut self.backends, to, key.clone(), add);
                }
            }
            AnyDocument::TrafficPolicy(policy) => {
                let name = policy.name();
                for target in &policy.spec.target_refs {
                    let to = Name::new(&name.namespace, &target.name);
                    set(&mut self.policies, to, name.clone(), add);
                }
            }
        }
    }

    fn service(&mut self, service: &Document<ServiceSpec>, add: bool) {
        let name = service.name();
        if let Some(pivot) = pivot(&service.spec.selector) {
            set(&mut self.selectors, Name::new(&name.namespace, &pivot), name.name, add);
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
    }
}

fn set<T: Ord>(sets: &mut ByName<BTreeSet<T>>, to: Name, item: T, add: bool) {
    if add {
        sets.link(to, item);
    } else {
        sets.unlink(&to, &item);
    }
}
