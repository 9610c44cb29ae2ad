//! HTTPRoutes of a Service -> its route configuration.

mod action;
mod matches;

use std::cmp::Reverse;

use remora_xds::pb::envoy::config::route::v3::route::Action;
use remora_xds::pb::envoy::config::route::v3::{Route, RouteConfiguration, VirtualHost};

use super::{Mesh, names};
use crate::document::{
    BackendRef, Document, HttpMatch, HttpRouteSpec, HttpRule, HttpTimeouts, PathMatchType, ServicePort,
    ServiceSpec,
};

/// The routes of a Service's port, and the Services that they lead to.
pub(super) struct Table<'a> {
    pub(super) routes: RouteConfiguration,
    pub(super) backends: Vec<(&'a Document<ServiceSpec>, &'a ServicePort)>,
}

/// A rule with one of its matches.
struct Candidate<'a> {
    document: &'a Document<HttpRouteSpec>,
    number: usize,
    rule: &'a HttpRule,
    matched: HttpMatch,
}

/// What calls to a Service's port lead to: by its HTTPRoutes or, when it has none, to its workloads.
pub(super) fn table<'a>(
    mesh: &Mesh<'a>,
    service: &'a Document<ServiceSpec>,
    port: &'a ServicePort,
) -> Table<'a> {
    let (namespace, name) = names::of(service);
    let mut candidates: Vec<Candidate<'a>> = Vec::new();
    let attached: Vec<_> = mesh.documents.routes.iter().filter(|d| attached(d, service, port)).collect();
    for document in &attached {
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
    let policy = mesh.documents.policy(service);
    let routes = if attached.is_empty() {
        let own = BackendRef {
            group: None,
            kind: None,
            name: name.into(),
            namespace: Some(namespace.into()),
            port: port.port,
            weight: 1,
            filters: Vec::new(),
        };
        let action = action::forward(namespace, &[own], HttpTimeouts::default(), policy);
        vec![Route {
            name: "default".into(),
            r#match: Some(matches::compile(&HttpMatch::default())),
            action: Some(Action::Route(action)),
            ..Route::default()
        }]
    } else {
        candidates.iter().map(|c| route(c, policy)).collect()
    };
    let mut backends = Vec::new();
    for document in attached {
        let own = &document.metadata.namespace;
        for backend in document.spec.rules.iter().flat_map(|r| &r.backend_refs).filter(|b| b.weight > 0) {
            let namespace = backend.namespace.as_ref().unwrap_or(own);
            let Some(service) = mesh.documents.service(namespace, &backend.name) else { continue };
            backends
                .extend(service.spec.ports.iter().filter(|p| p.port == backend.port).map(|p| (service, p)));
        }
    }
    let all = names::outbound(namespace, name, port.port);
    let host = VirtualHost { name: all.clone(), domains: vec!["*".into()], routes, ..VirtualHost::default() };
    Table {
        routes: RouteConfiguration { name: all, virtual_hosts: vec![host], ..RouteConfiguration::default() },
        backends,
    }
}

fn attached(document: &Document<HttpRouteSpec>, service: &Document<ServiceSpec>, port: &ServicePort) -> bool {
    let (namespace, name) = names::of(service);
    document.spec.parent_refs.iter().any(|parent| {
        parent.name == name
            && parent.namespace.as_ref().unwrap_or(&document.metadata.namespace) == namespace
            && parent.port.is_none_or(|wanted| wanted == port.port)
    })
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
    let metadata = &c.document.metadata;
    let specific = (
        kind,
        Reverse(path.value.trim_end_matches('/').len()),
        Reverse(c.matched.method.is_some()),
        Reverse(c.matched.headers.len()),
        Reverse(c.matched.query_params.len()),
    );
    // A route without a time is a file's; it is newer than any that has one.
    let age = (metadata.creation_timestamp.is_none(), metadata.creation_timestamp.as_deref());
    (specific, age, metadata.namespace.as_str(), metadata.name.as_str(), c.number)
}

fn route(candidate: &Candidate<'_>, policy: Option<&crate::document::TrafficPolicySpec>) -> Route {
    let metadata = &candidate.document.metadata;
    let mut route = Route {
        name: format!("{}.{}.{}", metadata.namespace, metadata.name, candidate.number),
        r#match: Some(matches::compile(&candidate.matched)),
        ..Route::default()
    };
    action::compile(&mut route, &metadata.namespace, candidate.rule, &candidate.matched, policy);
    route
}
