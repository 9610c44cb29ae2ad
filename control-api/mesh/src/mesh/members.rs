//! Which instances stand behind which Services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use super::index::{label, pivot};
use super::{Health, Instance, Mesh};
use crate::check::MAX_WEIGHT;
use crate::document::{Document, Locality, ServicePort, ServiceSpec, TargetPort, WorkloadSpec};

/// An endpoint of a Service's port: the sidecar of an instance.
#[derive(Debug, Clone)]
pub(crate) struct Member<'a> {
    pub(crate) at: SocketAddr,
    pub(crate) workload: &'a Document<WorkloadSpec>,
    pub(crate) health: Health,
    pub(crate) locality: &'a Locality,
    pub(crate) weight: u32,
}

impl Mesh {
    /// The instances behind a Service, by name.
    pub(crate) fn behind(&self, service: &Document<ServiceSpec>) -> Vec<&Arc<Instance>> {
        let namespace = service.metadata.namespace.as_str();
        let selector = &service.spec.selector;
        let mut names: BTreeSet<&str> = BTreeSet::new();
        // The rarest of the labels has the fewest candidates.
        let candidates = selector.iter().map(|(k, v)| self.index.labelled.get(namespace, &label(k, v)));
        let rarest = candidates.min_by_key(|set| set.map_or(0, BTreeSet::len)).flatten();
        for name in rarest.into_iter().flatten() {
            let instance = self.instance(namespace, name);
            if instance.is_some_and(|i| selects(service, &i.workload.metadata.labels)) {
                names.insert(name);
            }
        }
        let registered = self.index.registered.linked(namespace, &service.metadata.name);
        names.extend(registered.map(AsRef::as_ref));
        names.into_iter().filter_map(|name| self.instance(namespace, name)).collect()
    }

    /// The Services that `instance` stands behind, by name.
    pub(crate) fn services_of(&self, instance: &Instance) -> Vec<&Arc<Document<ServiceSpec>>> {
        let metadata = &instance.workload.metadata;
        let namespace = metadata.namespace.as_str();
        let mut names: BTreeSet<&str> = BTreeSet::new();
        for (key, value) in &metadata.labels {
            let candidates = self.index.selectors.linked(namespace, &label(key, value));
            let selected = candidates.filter(|name| {
                self.service(namespace, name).is_some_and(|service| selects(service, &metadata.labels))
            });
            names.extend(selected.map(AsRef::as_ref));
        }
        names.extend(instance.services.iter().map(String::as_str));
        names.into_iter().filter_map(|name| self.service(namespace, name)).collect()
    }

    /// The endpoints of a Service's port, by address. Of two instances at one address the healthier one holds: the other is what
    /// is left of one that ran there before.
    pub(crate) fn members<'a>(
        &'a self,
        service: &Document<ServiceSpec>,
        port: &ServicePort,
    ) -> BTreeMap<SocketAddr, Member<'a>> {
        let mut members: BTreeMap<SocketAddr, Member<'a>> = BTreeMap::new();
        for instance in self.behind(service) {
            let workload = &instance.workload;
            if target(port, workload).is_none() {
                continue;
            }
            let at = SocketAddr::new(workload.spec.address, workload.spec.inbound_port);
            if members.get(&at).is_some_and(|other| other.health <= instance.health) {
                continue;
            }
            let (locality, weight) = (&workload.spec.locality, workload.spec.weight.clamp(1, MAX_WEIGHT));
            members.insert(at, Member { at, workload, health: instance.health, locality, weight });
        }
        members
    }

    /// The service accounts that may answer for a Service's port.
    pub(crate) fn accounts(&self, service: &Document<ServiceSpec>, port: &ServicePort) -> BTreeSet<&str> {
        let behind = self.behind(service).into_iter().filter(|i| target(port, &i.workload).is_some());
        behind.map(|instance| instance.workload.spec.service_account.as_str()).collect()
    }
}

/// Whether a Service's selector matches `labels`. An empty one matches nothing.
fn selects(service: &Document<ServiceSpec>, labels: &BTreeMap<String, String>) -> bool {
    pivot(&service.spec.selector).is_some()
        && service.spec.selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// Where the program of `workload` serves `port` of a Service; None when it does not.
pub(crate) fn target(port: &ServicePort, workload: &Document<WorkloadSpec>) -> Option<u16> {
    let ports = &workload.spec.ports;
    let named = |name: &str| ports.iter().find(|p| p.name.as_deref() == Some(name));
    let found = match &port.target_port {
        Some(TargetPort::Name(name)) => named(name),
        Some(TargetPort::Number(number)) => ports.iter().find(|p| p.port == *number),
        None => ports.iter().find(|p| p.port == port.port),
    };
    found.map(|p| p.port)
}
