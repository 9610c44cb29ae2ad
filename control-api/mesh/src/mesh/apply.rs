//! Changes, and what they touch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Change, Instance, Mesh, Touched};
use crate::document::{Document, LimitScope, RateLimitPolicySpec, ServiceSpec, TargetRef};
use crate::kinds::{AnyDocument, Kind};
use crate::name::{Key, Name};

impl Mesh {
    /// Makes `change`, and answers what has to be compiled again.
    pub fn apply(&mut self, change: Change) -> Touched {
        match change {
            Change::Put(AnyDocument::Workload(workload)) => {
                let name = workload.name();
                self.tables.workloads.insert(name.clone(), Arc::clone(&workload));
                self.instance_changes(&name, Some(Arc::new(Instance::of(workload))), true)
            }
            Change::Remove(Key { kind: Kind::Workload, name }) => {
                self.tables.workloads.remove(&name);
                self.instance_changes(&name, None, true)
            }
            Change::Register(instance) => {
                self.instance_changes(&instance.workload.name(), Some(instance), false)
            }
            Change::Deregister(name) => self.instance_changes(&name, None, false),
            Change::Unreadable { name, documented } => {
                if documented {
                    self.tables.workloads.remove(&name);
                }
                let mut touched = self.replace_instance(&name, None, documented);
                touched.merge(self.read(&name, documented, false));
                touched
            }
            Change::Put(document) => self.replace(&document.key(), Some(document)),
            Change::Remove(key) => self.replace(&key, None),
        }
    }

    /// An instance came that can be read, or went.
    fn instance_changes(
        &mut self,
        name: &Name,
        instance: Option<Arc<Instance>>,
        documented: bool,
    ) -> Touched {
        let mut touched = self.read(name, documented, true);
        touched.merge(self.replace_instance(name, instance, documented));
        touched
    }

    /// Whether an instance can be read, if there is one.
    fn read(&mut self, name: &Name, documented: bool, is: bool) -> Touched {
        let known = self.unreadable.contains_key(&name.namespace);
        if is && !known {
            return Touched::default();
        }
        // Before the first, and after the last.
        let plain = |mesh: &Self| {
            let services = mesh.services(&name.namespace).filter(|service| mesh.has_no_sidecars(service));
            Touched { services: services.map(|service| service.name()).collect(), ..Touched::default() }
        };
        let mut touched = if known { Touched::default() } else { plain(self) };
        let all = self.unreadable.entry(Arc::clone(&name.namespace)).or_default();
        let it = (documented, Arc::clone(&name.name));
        if is {
            all.remove(&it);
        } else {
            all.insert(it);
        }
        if all.is_empty() {
            self.unreadable.remove(&name.namespace);
            touched = plain(self);
        }
        touched
    }

    /// The document of `key`.
    #[must_use]
    pub fn document(&self, key: &Key) -> Option<AnyDocument> {
        self.tables.get(key)
    }

    /// Puts `document` in the place of `key`, or nothing.
    fn replace(&mut self, key: &Key, document: Option<AnyDocument>) -> Touched {
        let mut touched = Touched::default();
        let old = self.document(key);
        let sliced: BTreeSet<Name> = old.iter().chain(&document).filter_map(service_of_slice).collect();
        let before = self.accounts_of(&sliced);
        if let Some(old) = &old {
            self.reach(old, &mut touched);
            self.index.document(old, false);
            self.tables.remove(key);
        }
        if let Some(new) = document.clone() {
            self.index.document(&new, true);
            self.tables.insert(new.clone());
            self.reach(&new, &mut touched);
        }
        if let (Some(AnyDocument::Service(old)), Some(AnyDocument::Service(new))) = (&old, &document)
            && old.spec == new.spec
        {
            touched.namespaces.clear();
        }
        let after = self.accounts_of(&sliced);
        for service in sliced {
            touched.endpoints_or_all(service, &before, &after);
        }
        touched
    }

    /// What depends on `document`.
    fn reach(&self, document: &AnyDocument, touched: &mut Touched) {
        let name = document.key().name;
        match document {
            AnyDocument::Service(service) => {
                for referrer in self.index.backends.linked(&name.namespace, &name.name) {
                    self.referrer(referrer, touched);
                }
                touched.workloads.extend(self.behind(service).into_iter().map(|i| i.workload.name()));
                for policy in self.together(service) {
                    self.behind_targets(&policy.name(), &policy.spec.target_refs, touched);
                }
                touched.namespaces.insert(Arc::clone(&name.namespace));
                touched.services.insert(name);
            }
            AnyDocument::HttpRoute(_)
            | AnyDocument::GrpcRoute(_)
            | AnyDocument::TcpRoute(_)
            | AnyDocument::TlsRoute(_) => self.referrer(&document.key(), touched),
            AnyDocument::ReferenceGrant(_) => {
                let leading_here = self.index.backends.namespace(&name.namespace).flat_map(|(_, keys)| keys);
                for referrer in leading_here.filter(|key| key.name.namespace != name.namespace) {
                    self.referrer(referrer, touched);
                }
            }
            AnyDocument::TrafficPolicy(policy) => targets(&name, &policy.spec.target_refs, touched),
            AnyDocument::AuthenticationPolicy(policy) => {
                targets(&name, &policy.spec.target_refs, touched);
                self.behind_targets(&name, &policy.spec.target_refs, touched);
                self.all_of(&name.namespace, policy.spec.of_all, touched);
            }
            AnyDocument::AuthorizationPolicy(policy) => {
                self.behind_targets(&name, &policy.spec.target_refs, touched);
                // Without one, callers would use plaintext.
                let refs = policy.spec.target_refs.iter();
                let services = refs.filter_map(|to| self.service(&name.namespace, &to.name));
                let plain = services.filter(|service| self.has_no_sidecars(service));
                touched.services.extend(plain.map(|service| service.name()));
                self.all_of(&name.namespace, policy.spec.all_but.is_some(), touched);
            }
            AnyDocument::RateLimitPolicy(policy) => {
                self.behind_targets(&name, &policy.spec.target_refs, touched);
            }
            AnyDocument::FaultPolicy(policy) => {
                self.behind_targets(&name, &policy.spec.target_refs, touched);
            }
            AnyDocument::EndpointSlice(slice) => {
                let named = slice.spec.endpoints.iter().filter_map(|e| e.target_ref.as_ref());
                touched.workloads.extend(named.map(|target| Name::new(&name.namespace, &target.name)));
                let service = service_of_slice(document).and_then(|name| self.tables.services.of(&name));
                for policy in service.into_iter().flat_map(|service| self.together(service)) {
                    self.behind_targets(&policy.name(), &policy.spec.target_refs, touched);
                }
            }
            // `replace_instance` has them.
            AnyDocument::Workload(_) => {}
        }
    }

    /// The workloads behind the Services that a policy is attached to.
    fn behind_targets(&self, policy: &Name, refs: &[TargetRef], touched: &mut Touched) {
        for target in refs {
            let service = self.service(&policy.namespace, &target.name);
            let behind = service.into_iter().flat_map(|service| self.behind(service));
            touched.workloads.extend(behind.map(|instance| instance.workload.name()));
        }
    }

    /// The Services of a namespace and the workloads behind them, if a policy is attached to all of them.
    fn all_of(&self, namespace: &str, is: bool, touched: &mut Touched) {
        for service in self.services(namespace).filter(|_| is) {
            touched.workloads.extend(self.behind(service).into_iter().map(|i| i.workload.name()));
            touched.services.insert(service.name());
        }
    }

    /// The policies with limits that the sidecars of a Service keep together with others.
    fn together(
        &self,
        service: &Document<ServiceSpec>,
    ) -> impl Iterator<Item = &Arc<Document<RateLimitPolicySpec>>> {
        let keys = self.policies(service).filter(|key| key.kind == Kind::RateLimitPolicy);
        let policies = keys.filter_map(|key| self.tables.rate_limits.of(&key.name));
        policies.filter(|policy| policy.spec.limits.iter().any(|limit| limit.scope == LimitScope::Mesh))
    }

    /// Of the policies of [`Self::together`], how many sidecars each has.
    fn sidecars_of(&self, services: &BTreeSet<Name>) -> BTreeMap<Name, u32> {
        let found = services.iter().filter_map(|name| self.tables.services.of(name));
        let policies = found.flat_map(|service| self.together(service));
        policies.map(|policy| (policy.name(), self.sidecars(policy))).collect()
    }

    /// The Services that a route or policy is attached to, or the workloads that a policy asks for.
    fn referrer(&self, key: &Key, touched: &mut Touched) {
        let Some(document) = self.document(key) else { return };
        match &document {
            AnyDocument::TrafficPolicy(policy) => targets(&key.name, &policy.spec.target_refs, touched),
            AnyDocument::AuthorizationPolicy(policy) => {
                self.behind_targets(&key.name, &policy.spec.target_refs, touched);
            }
            AnyDocument::RateLimitPolicy(policy) => {
                self.behind_targets(&key.name, &policy.spec.target_refs, touched);
            }
            _ => {}
        }
        let own = &key.name.namespace;
        let parents = document.parents().iter();
        touched.services.extend(parents.map(|p| Name::new(p.namespace.as_deref().unwrap_or(own), &p.name)));
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
        let services = both.iter().flat_map(|instance| self.services_of(instance));
        let mut services: BTreeSet<Name> = services.map(|service| service.name()).collect();
        let plain: Vec<Name> = both.iter().flat_map(|instance| self.plain_at(instance)).collect();
        // What is in clusters of an instance is its account. Most changes leave all of that alone.
        let stays = |a: &Instance, b: &Instance| {
            plain.is_empty()
                || a.reported == b.reported
                    && a.workload.spec.all_addresses() == b.workload.spec.all_addresses()
        };
        let alike = matches!(&both[..], [a, b] if a.answers_like(b) && stays(a, b));
        services.extend(plain);
        let before = if alike { BTreeMap::new() } else { self.accounts_of(&services) };
        let sidecars = self.sidecars_of(&services);

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
        for (policy, now) in self.sidecars_of(&services) {
            if let Some(document) = self.tables.rate_limits.of(&policy)
                && sidecars.get(&policy) != Some(&now)
            {
                self.behind_targets(&policy, &document.spec.target_refs, &mut touched);
            }
        }
        for service in services {
            touched.endpoints_or_all(service, &before, &after);
        }
        touched
    }

    /// The Services of which slices say that nobody with a sidecar is where `instance` is.
    fn plain_at(&self, instance: &Instance) -> impl Iterator<Item = Name> {
        let all = instance.workload.spec.all_addresses().into_iter();
        let slices = all.flat_map(|address| self.index.plain.get(&address).into_iter().flatten());
        slices.filter_map(|name| Some(Name::new(&name.namespace, self.tables.slices.of(name)?.service()?)))
    }

    /// Who answers for each of `services`.
    fn accounts_of(&self, services: &BTreeSet<Name>) -> Accounts {
        let found = services.iter().filter_map(|name| self.tables.services.of(name));
        found
            .map(|service| {
                let ports = service.spec.ports.iter();
                let each = ports.flat_map(|port| {
                    let accounts = self.accounts(service, port).into_iter();
                    accounts.map(|a| (port.port, a.trust_domain.map(str::to_owned), a.name.to_owned()))
                });
                let mtls = !self.has_no_sidecars(service);
                (service.name(), Answering { mtls, accounts: each.collect() })
            })
            .collect()
    }
}

/// By Service.
type Accounts = BTreeMap<Name, Answering>;

/// Who answers for a Service.
#[derive(Debug, PartialEq, Eq)]
struct Answering {
    /// Some of them may have a sidecar.
    mtls: bool,
    /// Ports, and trust domain and name of each account behind them.
    accounts: BTreeSet<(u16, Option<String>, String)>,
}

impl Touched {
    /// The endpoints of a Service changed, and everything if others may answer for it than before.
    fn endpoints_or_all(&mut self, service: Name, before: &Accounts, after: &Accounts) {
        let changed = before.get(&service) != after.get(&service);
        if changed {
            self.services.insert(service);
        } else if !self.services.contains(&service) {
            self.endpoints.insert(service);
        }
    }
}

fn targets(policy: &Name, refs: &[TargetRef], touched: &mut Touched) {
    touched.services.extend(refs.iter().map(|target| Name::new(&policy.namespace, &target.name)));
}

fn service_of_slice(document: &AnyDocument) -> Option<Name> {
    match document {
        AnyDocument::EndpointSlice(slice) => Some(Name::new(&slice.metadata.namespace, slice.service()?)),
        _ => None,
    }
}
