//! Routes of a Service's port -> its route configuration.

mod action;
mod attached;
mod candidate;
mod matches;

use std::collections::BTreeSet;

use remora_xds::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};

use super::{key_of, names};
use crate::document::{Document, ServicePort, ServiceSpec};
use crate::kinds::Kind;
use crate::mesh::Mesh;
use crate::name::{Key, Name};

pub(crate) use attached::{Attached, Routes};
pub(crate) use candidate::{Candidate, candidates};

/// A route configuration, and what it is made of.
pub(super) struct Table {
    pub(super) routes: RouteConfiguration,
    /// The ports that it leads to.
    pub(super) backends: BTreeSet<(Name, u16)>,
    pub(super) documents: Vec<Key>,
}

/// What calls to a Service's port lead to: by its GRPCRoutes or HTTPRoutes or, when it has none, to its workloads.
pub(super) fn table(
    mesh: &Mesh,
    service: &Document<ServiceSpec>,
    port: &ServicePort,
    attached: &Routes,
) -> Table {
    let (namespace, name) = names::of(service);
    let policy = mesh.policy(service);
    let keys = attached.http_keys();
    let behind = behind(mesh, &keys);
    let mut documents = keys;
    documents.extend(policy.map(|p| Key::new(Kind::TrafficPolicy, p.name())));
    let mut actions = action::Actions { mesh, policy: policy.map(|p| &p.spec), backends: BTreeSet::new() };
    let routes = match candidates(attached) {
        None => {
            actions.backends.insert((service.name(), port.port));
            vec![actions.direct(namespace, name, port.port)]
        }
        Some(candidates) => candidates.iter().flat_map(|candidate| actions.compile(candidate)).collect(),
    };
    let all = names::outbound(namespace, name, port.port);
    let host = VirtualHost { name: all.clone(), domains: vec!["*".into()], routes, ..VirtualHost::default() };
    documents.extend(behind.into_iter().filter(|key| *key != key_of(service)));
    Table {
        routes: RouteConfiguration { name: all, virtual_hosts: vec![host], ..RouteConfiguration::default() },
        backends: actions.backends,
        documents,
    }
}

/// The Services that `routes` lead to, or policies ask, and the ReferenceGrants that let them.
pub(super) fn behind(mesh: &Mesh, routes: &[Key]) -> BTreeSet<Key> {
    let mut found = BTreeSet::new();
    for route in routes {
        let Some(document) = mesh.document(route) else { continue };
        for backend in document.backends() {
            let Some((service, _)) = mesh.backend(route, backend) else { continue };
            if service.namespace != route.name.namespace {
                let grants = mesh.grants(route, &service.namespace, &service.name);
                found.extend(grants.map(|grant| Key::new(Kind::ReferenceGrant, grant.name())));
            }
            found.insert(Key::new(Kind::Service, service));
        }
    }
    found
}
