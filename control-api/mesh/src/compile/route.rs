//! Routes of a Service's port -> its route configuration.

mod action;
mod attached;
mod candidate;
mod cors;
mod matches;

use std::collections::BTreeSet;

use remora_xds::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;

use super::{key_of, names, session};
use crate::document::{Document, ServicePort, ServiceSpec, Session, SessionPersistence};
use crate::kinds::Kind;
use crate::mesh::Mesh;
use crate::name::{Key, Name};

pub(crate) use attached::{Attached, Routes};
pub(crate) use candidate::{Candidate, candidates};
pub(super) use matches::conditions;

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
    let candidates = candidates(attached);
    let mut actions = action::Actions {
        mesh,
        policy: policy.map(|p| &p.spec),
        sessions: candidates.iter().flatten().any(|candidate| candidate.session.is_some()),
        backends: BTreeSet::new(),
    };
    let routes = match candidates {
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

/// The filters that routes of a port say something to, first those that stand first.
pub(super) fn filters(attached: &Routes, session: Option<&Session>) -> Vec<HttpFilter> {
    let candidates = candidates(attached).unwrap_or_default();
    let mut filters = candidates.iter().flat_map(|candidate| candidate.filters);
    let cors = filters.any(|filter| filter.cors.is_some()).then(cors::filter);
    let own = candidates.iter().find_map(|candidate| candidate.session).map(SessionPersistence::session);
    let session = session.or(own.as_ref()).and_then(session::filter);
    cors.into_iter().chain(session).collect()
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
