//! Changes, and what they touch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{AnyDocument, Change, Instance, Mesh, Touched};
use crate::name::{Key, Kind, Name};

impl Mesh {
    /// Makes `change`, and answers what has to be compiled again.
    pub fn apply(&mut self, change: Change) -> Touched {
        match change {
            Change::Put(AnyDocument::Workload(workload)) => {
                let name = workload.name();
                self.replace_instance(&name, Some(Arc::new(Instance::of(workload))), true)
            }
            Change::Remove(Key { kind: Kind::Workload, name }) => self.replace_instance(&name, None, true),
            Change::Register(instance) => {
                self.replace_instance(&instance.workload.name(), Some(instance), false)
            }
            Change::Deregister(name) => self.replace_instance(&name, None, false),
            Change::Put(document) => self.replace(&document.key(), Some(document)),
            Change::Remove(key) => self.replace(&key, None),
        }
    }

    /// Puts `document` in the place of `key`, or nothing.
    fn replace(&mut self, key: &Key, document: Option<AnyDocument>) -> Touched {
        let mut touched = Touched::default();
        let old = self.document(key);
        if let Some(old) = &old {
            self.reach(old, &mut touched);
            self.take(key);
        }
        if let Some(new) = &document {
            self.put(new.clone());
            self.reach(new, &mut touched);
        }
        if let (Some(AnyDocument::Service(old)), Some(AnyDocument::Service(new))) = (&old, &document)
            && old.spec == new.spec
        {
            touched.namespaces.clear();
        }
        touched
    }

    /// The document of `key`.
    #[must_use]
    pub fn document(&self, key: &Key) -> Option<AnyDocument> {
        let name = &key.name;
        match key.kind {
            Kind::Service => self.services.of(name).cloned().map(AnyDocument::Service),
            Kind::Workload => self.workloads.of(name).map(|i| AnyDocument::Workload(Arc::clone(&i.workload))),
            Kind::HttpRoute => self.http_routes.of(name).cloned().map(AnyDocument::HttpRoute),
            Kind::TrafficPolicy => self.policies.of(name).cloned().map(AnyDocument::TrafficPolicy),
        }
    }

    fn take(&mut self, key: &Key) {
        let Some(old) = self.document(key) else { return };
        self.index.document(&old, false);
        match key.kind {
            Kind::Service => drop(self.services.remove(&key.name)),
            Kind::HttpRoute => drop(self.http_routes.remove(&key.name)),
            Kind::TrafficPolicy => drop(self.policies.remove(&key.name)),
            // `replace_instance` has them.
            Kind::Workload => {}
        }
    }

    fn put(&mut self, document: AnyDocument) {
        self.index.document(&document, true);
        let name = document.key().name;
        match document {
            AnyDocument::Service(d) => drop(self.services.insert(name, d)),
            AnyDocument::HttpRoute(d) => drop(self.http_routes.insert(name, d)),
            AnyDocument::TrafficPolicy(d) => drop(self.policies.insert(name, d)),
            AnyDocument::Workload(_) => {}
        }
    }

    /// What depends on `document`.
    fn reach(&self, document: &AnyDocument, touched: &mut Touched) {
        match document {
            AnyDocument::Service(service) => {
                let name = service.name();
                for route in self.index.backends.linked(&name.namespace, &name.name) {
                    self.parents(route, touched);
                }
                touched.workloads.extend(self.behind(service).into_iter().map(|i| i.workload.name()));
                touched.namespaces.insert(Arc::clone(&name.namespace));
                touched.services.insert(name);
            }
            AnyDocument::HttpRoute(_) => self.parents(&document.key(), touched),
            AnyDocument::TrafficPolicy(policy) => {
                let targets = policy.spec.target_refs.iter();
                let namespace = &policy.metadata.namespace;
                touched.services.extend(targets.map(|target| Name::new(namespace, &target.name)));
            }
            AnyDocument::Workload(_) => {}
        }
    }

    /// The Services that a route is attached to.
    fn parents(&self, route: &Key, touched: &mut Touched) {
        let Some(document) = self.http_routes.of(&route.name) else { return };
        let own = &document.metadata.namespace;
        let parents = document.spec.parent_refs.iter();
        touched.services.extend(parents.map(|p| Name::new(p.namespace.as_ref().unwrap_or(own), &p.name)));
    }

    /// Puts `instance` in the place of `name`, or nothing, among those of documents or of the registry.
    fn replace_instance(
        &mut self,
        name: &Name,
        instance: Option<Arc<Instance>>,
        documented: bool,
    ) -> Touched {
        let old = self.instance(&name.namespace, &name.name).cloned();
        let new = if documented {
            instance.clone().or_else(|| self.registered.of(name).cloned())
        } else {
            self.workloads.of(name).or(instance.as_ref()).cloned()
        };
        let both: Vec<_> = old.iter().chain(&new).cloned().collect();
        let around = |mesh: &Self| -> BTreeSet<Name> {
            let services = both.iter().flat_map(|instance| mesh.services_of(instance));
            services.map(|service| service.name()).collect()
        };
        let services = around(self);
        // What is in clusters of an instance is its account. Most changes leave all of that alone.
        let alike = matches!(&both[..], [a, b] if a.answers_like(b));
        let before = if alike { BTreeMap::new() } else { self.accounts_of(&services) };

        let table = if documented { &mut self.workloads } else { &mut self.registered };
        match instance {
            Some(instance) => drop(table.insert(name.clone(), instance)),
            None => drop(table.remove(name)),
        }
        for (instance, add) in [(&old, false), (&new, true)] {
            if let Some(instance) = instance {
                self.index.instance(instance, add);
            }
        }

        let after = if alike { BTreeMap::new() } else { self.accounts_of(&services) };
        let mut touched = Touched::default();
        let spec = |instance: &Option<Arc<Instance>>| instance.as_ref().map(|i| i.workload.spec.clone());
        if !alike || spec(&old) != spec(&new) {
            touched.workloads.insert(name.clone());
        }
        for service in services {
            let changed = before.get(&service) != after.get(&service);
            let list = if changed { &mut touched.services } else { &mut touched.endpoints };
            list.insert(service);
        }
        touched
    }

    /// The accounts of each of `services`, with the ports that they answer for.
    fn accounts_of(&self, services: &BTreeSet<Name>) -> BTreeMap<Name, BTreeSet<(u16, String)>> {
        let found = services.iter().filter_map(|name| self.services.of(name));
        found
            .map(|service| {
                let ports = service.spec.ports.iter();
                let each = ports.flat_map(|port| {
                    self.accounts(service, port).into_iter().map(|a| (port.port, a.to_owned()))
                });
                (service.name(), each.collect())
            })
            .collect()
    }
}
