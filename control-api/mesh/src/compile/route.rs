//! HTTPRoutes of a Service -> its route configuration.

mod action;
mod matches;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use remora_xds::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};

use super::names;
use crate::document::{
    BackendRef, Document, HttpMatch, HttpRouteSpec, HttpRule, PathMatchType, ServicePort, ServiceSpec,
};
use crate::mesh::Mesh;
use crate::name::{Key, Kind, Name};

/// The routes that hold for some callers of a Service's port, by name.
pub(super) type Routes<'a> = Vec<&'a Document<HttpRouteSpec>>;

/// All routes of a Service's port.
#[derive(Default)]
pub(super) struct Attached<'a> {
    /// Those of the Service's own namespace hold for everybody who has none of their own.
    pub(super) producer: Routes<'a>,
    /// Those of another namespace hold for callers from there, in place of the producer's (GEP-1426).
    pub(super) consumers: BTreeMap<&'a str, Routes<'a>>,
}

impl<'a> Attached<'a> {
    pub(super) fn to(mesh: &'a Mesh, service: &Document<ServiceSpec>, port: &ServicePort) -> Self {
        let mut all = Self::default();
        let (namespace, name) = names::of(service);
        for document in mesh.http_routes(service) {
            let own = document.metadata.namespace.as_str();
            let attached = document.spec.parent_refs.iter().any(|parent| {
                parent.name == name
                    && parent.namespace.as_deref().unwrap_or(own) == namespace
                    && parent.port.is_none_or(|wanted| wanted == port.port)
            });
            if !attached {
            } else if own == namespace {
                all.producer.push(document);
            } else {
                all.consumers.entry(own).or_default().push(document);
            }
        }
        all
    }
}

/// A route configuration, and what it is made of.
pub(super) struct Table {
    pub(super) routes: RouteConfiguration,
    /// The ports that it leads to.
    pub(super) backends: BTreeSet<(Name, u16)>,
    pub(super) documents: Vec<Key>,
}

/// A rule with one of its matches.
struct Candidate<'a> {
    document: &'a Document<HttpRouteSpec>,
    number: usize,
    rule: &'a HttpRule,
    matched: HttpMatch,
}

/// What calls to a Service's port lead to: by its HTTPRoutes or, when it has none, to its workloads.
pub(super) fn table(
    mesh: &Mesh,
    service: &Document<ServiceSpec>,
    port: &ServicePort,
    attached: &Routes<'_>,
) -> Table {
    let (namespace, name) = names::of(service);
    let policy = mesh.policy(service);
    let mut documents: Vec<_> = attached.iter().map(|d| Key::new(Kind::HttpRoute, d.name())).collect();
    documents.extend(policy.map(|p| Key::new(Kind::TrafficPolicy, p.name())));
    let mut actions = action::Actions { mesh, policy: policy.map(|p| &p.spec), backends: BTreeSet::new() };
    let routes = if attached.is_empty() {
        vec![actions.direct(namespace, name, port.port)]
    } else {
        candidates(attached).iter().flat_map(|candidate| actions.compile(candidate)).collect()
    };
    let all = names::outbound(namespace, name, port.port);
    let host = VirtualHost { name: all.clone(), domains: vec!["*".into()], routes, ..VirtualHost::default() };
    Table {
        routes: RouteConfiguration { name: all, virtual_hosts: vec![host], ..RouteConfiguration::default() },
        backends: actions.backends,
        documents,
    }
}

/// Every match of every rule, the one that holds first before the others.
fn candidates<'a>(attached: &[&'a Document<HttpRouteSpec>]) -> Vec<Candidate<'a>> {
    let mut candidates: Vec<Candidate<'a>> = Vec::new();
    for document in attached {
        for (number, rule) in document.spec.rules.iter().enumerate() {
            let every = [HttpMatch::default()];
            let matches = if rule.matches.is_empty() { &every[..] } else { &rule.matches };
            candidates.extend(matches.iter().cloned().map(|matched| Candidate {
                document,
                number,
                rule,
                matched,
            }));
        }
    }
    candidates.sort_by(|a, b| precedence(a).cmp(&precedence(b)));
    candidates
}

/// The Gateway API's order (HTTPRouteRule.matches): exact path, longer prefix, method, more headers, more query parameters, then the
/// older route, its name, and the order in it. Regular expressions stand between exact paths and prefixes, as in Istio.
fn precedence<'a>(c: &'a Candidate<'_>) -> impl Ord + 'a {
    let path = &c.matched.path;
    let kind = match path.kind {
        PathMatchType::Exact => 0,
        PathMatchType::RegularExpression => 1,
        PathMatchType::PathPrefix => 2,
    };
    let specific = (
        kind,
        Reverse(path.value.trim_end_matches('/').len()),
        Reverse(c.matched.method.is_some()),
        Reverse(c.matched.headers.len()),
        Reverse(c.matched.query_params.len()),
    );
    (specific, c.document.age(), c.number)
}

/// The port that a backend of a route in `namespace` means; None when there is none.
fn resolve(mesh: &Mesh, namespace: &str, backend: &BackendRef) -> Option<(Name, u16)> {
    let namespace = backend.namespace.as_deref().unwrap_or(namespace);
    let service = mesh.service(namespace, &backend.name)?;
    let known = service.spec.ports.iter().any(|port| port.port == backend.port);
    known.then(|| (service.name(), backend.port))
}
