//! Which endpoints stand behind which Services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use super::index::{label, pivot};
use super::{Health, Instance, Mesh};
use crate::check::MAX_WEIGHT;
use crate::document::{
    Conditions, Document, EndpointSliceSpec, Locality, MtlsMode, ServicePort, ServiceSpec, SliceEndpoint,
    TargetPort, WorkloadSpec,
};

/// An endpoint of a Service's port: the sidecar of an instance, or without mTLS a program.
#[derive(Debug, Clone)]
pub(crate) struct Member<'a> {
    pub(crate) at: SocketAddr,
    /// None: only an EndpointSlice knows of it.
    pub(crate) workload: Option<&'a Document<WorkloadSpec>>,
    pub(crate) health: Health,
    pub(crate) locality: Locality,
    pub(crate) weight: u32,
}

impl Mesh {
    /// The instances behind a Service, by name: those that its selector matches, that registered for it, or that its
    /// EndpointSlices name.
    pub(crate) fn behind(&self, service: &Document<ServiceSpec>) -> Vec<&Arc<Instance>> {
        let (namespace, name) = (service.metadata.namespace.as_str(), service.metadata.name.as_str());
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
        names.extend(self.index.registered.linked(namespace, name).map(AsRef::as_ref));
        for slice in self.slices(service) {
            let targets = slice.spec.endpoints.iter().filter_map(|e| e.target_ref.as_ref());
            names.extend(targets.map(|target| target.name.as_str()));
        }
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
        for slice in self.index.sliced.linked(namespace, &metadata.name) {
            let slice = self.tables.slices.get(namespace, slice);
            names.extend(slice.and_then(|slice| slice.service()));
        }
        names.into_iter().filter_map(|name| self.service(namespace, name)).collect()
    }

    /// The EndpointSlices of a Service, by name.
    pub(crate) fn slices(
        &self,
        service: &Document<ServiceSpec>,
    ) -> impl Iterator<Item = &Arc<Document<EndpointSliceSpec>>> {
        let namespace = service.metadata.namespace.as_str();
        let names = self.index.slices.linked(namespace, &service.metadata.name);
        names.filter_map(move |name| self.tables.slices.get(namespace, name))
    }

    /// The endpoints of a Service's port, by address. Of two at one address the healthier one holds: the other is what is left of
    /// one that ran there before.
    pub(crate) fn members(
        &self,
        service: &Document<ServiceSpec>,
        port: &ServicePort,
    ) -> BTreeMap<SocketAddr, Member<'_>> {
        let direct = self.mtls(service, port.port) == MtlsMode::Disabled;
        let conditions: BTreeMap<&str, Health> = self
            .slices(service)
            .flat_map(|slice| &slice.spec.endpoints)
            .filter_map(|e| Some((e.target_ref.as_ref()?.name.as_str(), health(e.conditions))))
            .collect();
        let mut members = BTreeMap::new();
        for instance in self.behind(service) {
            let workload = &instance.workload;
            let Some(target) = target(port, workload).filter(|_| instance.health != Health::Absent) else {
                continue;
            };
            let number = if direct { target } else { workload.spec.inbound_port };
            let said = conditions.get(workload.metadata.name.as_str()).copied().unwrap_or_default();
            let member = Member {
                at: SocketAddr::new(workload.spec.address, number),
                workload: Some(workload),
                health: instance.health.max(said),
                locality: workload.spec.locality.clone(),
                weight: workload.spec.weight.clamp(1, MAX_WEIGHT),
            };
            healthier(&mut members, member);
        }
        // Nobody knows the identity of other endpoints, so that they cannot be called over mTLS.
        for (endpoint, number) in self.strangers(service, port).filter(|_| direct) {
            let Some(ip) = endpoint.addresses.first() else { continue };
            let zone = endpoint.zone.clone().unwrap_or_default();
            let member = Member {
                at: SocketAddr::new(*ip, number),
                workload: None,
                health: health(endpoint.conditions),
                locality: Locality { zone, ..Locality::default() },
                weight: 1,
            };
            healthier(&mut members, member);
        }
        members
    }

    /// Endpoints of slices that are called and are no known instances, with the number of their port.
    pub(crate) fn strangers(
        &self,
        service: &Document<ServiceSpec>,
        port: &ServicePort,
    ) -> impl Iterator<Item = (&SliceEndpoint, u16)> {
        let wanted = port.name.clone().unwrap_or_default();
        let namespace = service.metadata.namespace.clone();
        self.slices(service).flat_map(move |slice| {
            let number = slice.spec.ports.iter().find(|p| p.name.as_deref().unwrap_or_default() == wanted);
            let namespace = namespace.clone();
            let stranger = move |endpoint: &&SliceEndpoint| {
                let target = endpoint.target_ref.as_ref();
                target.is_none_or(|target| self.instance(&namespace, &target.name).is_none())
            };
            let endpoints = slice.called().filter(stranger);
            endpoints.filter_map(move |endpoint| Some((endpoint, number?.port)))
        })
    }

    /// Who may answer for a Service's port.
    pub(crate) fn accounts(
        &self,
        service: &Document<ServiceSpec>,
        port: &ServicePort,
    ) -> BTreeSet<Account<'_>> {
        let behind = self.behind(service).into_iter().filter(|i| target(port, &i.workload).is_some());
        behind.map(|instance| Account::of(&instance.workload.spec)).collect()
    }
}

/// Whose identity a workload of a namespace has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Account<'a> {
    /// None: the mesh's own.
    pub(crate) trust_domain: Option<&'a str>,
    /// Its service account.
    pub(crate) name: &'a str,
}

impl<'a> Account<'a> {
    pub(super) fn of(spec: &'a WorkloadSpec) -> Self {
        Self { trust_domain: spec.trust_domain.as_deref(), name: &spec.service_account }
    }
}

fn healthier<'a>(members: &mut BTreeMap<SocketAddr, Member<'a>>, member: Member<'a>) {
    if members.get(&member.at).is_none_or(|other| member.health < other.health) {
        members.insert(member.at, member);
    }
}

/// What the conditions of an EndpointSlice mean.
fn health(conditions: Conditions) -> Health {
    let Conditions { ready, serving, terminating } = conditions;
    match (ready, terminating) {
        (None | Some(true), _) => Health::Ready,
        (Some(false), Some(true)) if serving != Some(false) => Health::Draining,
        (Some(false), _) => Health::Dead,
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
