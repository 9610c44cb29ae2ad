//! What does nothing: rules that no request gets to, routes that others stand before, endpoints that nobody can call.

use std::collections::BTreeSet;
use std::sync::Arc;

use remora_xds::diag::{ConfigError, Position};
use remora_xds::pb::envoy::config::route::v3::RouteMatch;
use remora_xds::pb::envoy::config::route::v3::route_match::PathSpecifier;

use super::related;
use super::report::{Finding, Rule, Severity};
use crate::compile::route::{Attached, Candidate, Routes, candidates};
use crate::document::{AppProtocol, Document, MtlsMode, ServicePort, ServiceSpec};
use crate::kinds::{AnyDocument, Kind};
use crate::mesh::Mesh;
use crate::name::Key;

/// Most rules with their matches of one port that are compared with each other.
const MOST: usize = 1000;

/// Everything in `mesh` that does nothing, each thing once.
#[must_use]
pub(crate) fn warnings(mesh: &Mesh) -> Vec<Finding> {
    let mut list = Vec::new();
    for service in mesh.all_services() {
        for port in &service.spec.ports {
            let attached = Attached::to(mesh, service, port);
            for routes in attached.consumers.values().chain([&attached.producer]) {
                unreachable_rules(mesh, routes, port, &mut list);
                ignored_routes(mesh, routes, (service, port), &mut list);
            }
            strangers(mesh, service, port, &mut list);
        }
    }
    let mut seen: BTreeSet<(Arc<str>, Option<Position>, Rule)> = BTreeSet::new();
    list.retain(|finding| {
        seen.insert((Arc::clone(&finding.error.source), finding.error.position, finding.rule))
    });
    list
}

fn warning(document: &AnyDocument, path: String, rule: Rule, message: String) -> Finding {
    let position = document.map().position(&path);
    let error = ConfigError { source: Arc::clone(document.source()), position, path, message, fix: None };
    Finding { severity: Severity::Warning, ..Finding::mistake(rule, error) }
}

fn unreachable_rules(mesh: &Mesh, routes: &Routes, port: &ServicePort, list: &mut Vec<Finding>) {
    if port.speaks() == AppProtocol::Tcp {
        return;
    }
    let candidates = candidates(routes).unwrap_or_default();
    for (i, later) in candidates.iter().enumerate().take(MOST) {
        let Some(first) = candidates[..i].iter().find(|first| covers(&first.matched, &later.matched)) else {
            continue;
        };
        let (Some(document), Some(other)) = (mesh.document(&later.route), mesh.document(&first.route)) else {
            continue;
        };
        let text = "no request gets here: another rule matches all of them before";
        let mut finding = warning(&document, path(later), Rule::UnreachableRule, text.into());
        finding.related = Some(related(&other, &path(first), &format!("this one, of {}", first.route)));
        list.push(finding);
    }
}

fn path(candidate: &Candidate<'_>) -> String {
    format!("spec.rules[{}].matches[{}]", candidate.rule, candidate.number)
}

/// Whether everything that `later` matches is matched by `first`. Of regular expressions only equal ones and those of every path are known.
fn covers(first: &RouteMatch, later: &RouteMatch) -> bool {
    let path = match (&first.path_specifier, &later.path_specifier) {
        (Some(a), Some(b)) if a == b => true,
        (Some(PathSpecifier::Prefix(a)), Some(PathSpecifier::Prefix(b) | PathSpecifier::Path(b))) => {
            b.starts_with(a)
        }
        (Some(PathSpecifier::Prefix(a)), _) => a == "/",
        (
            Some(PathSpecifier::PathSeparatedPrefix(a)),
            Some(PathSpecifier::PathSeparatedPrefix(b) | PathSpecifier::Path(b)),
        ) => b.strip_prefix(a.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        (Some(PathSpecifier::SafeRegex(regex)), _) => matches!(regex.regex.as_str(), ".*" | "/.*"),
        _ => false,
    };
    path && first.headers.iter().all(|header| later.headers.contains(header))
        && first.query_parameters.iter().all(|query| later.query_parameters.contains(query))
}

/// Routes of a kind that does not hold on a port.
fn ignored_routes(
    mesh: &Mesh,
    routes: &Routes,
    (service, port): (&Document<ServiceSpec>, &ServicePort),
    list: &mut Vec<Finding>,
) {
    let keys = |kind: Kind| -> Vec<Key> {
        let names = match kind {
            Kind::HttpRoute => routes.http.iter().map(|d| d.name()).collect::<Vec<_>>(),
            Kind::GrpcRoute => routes.grpc.iter().map(|d| d.name()).collect(),
            Kind::TcpRoute => routes.tcp.iter().map(|d| d.name()).collect(),
            _ => routes.tls.iter().map(|d| d.name()).collect(),
        };
        names.into_iter().map(|name| Key::new(kind, name)).collect()
    };
    let tcp = port.speaks() == AppProtocol::Tcp;
    // A route for all ports does what it can: it is no mistake that one of them is of another protocol.
    let useful = |document: &AnyDocument| {
        let mut others = service.spec.ports.iter().filter(|p| (p.speaks() == AppProtocol::Tcp) != tcp);
        let own = document.key().name.namespace;
        let parents = document.parents().iter().filter(|parent| {
            parent.name == service.metadata.name
                && parent.namespace.as_deref().unwrap_or(&own) == service.metadata.namespace
        });
        others.any(|p| parents.clone().any(|parent| parent.covers(p)))
    };
    let at = format!("port {} of {}", port.port, service.name());
    let mut ignore = |keys: Vec<Key>, why: &str, protocol: bool| {
        let documents = keys.iter().filter_map(|key| mesh.document(key));
        for document in documents.filter(|document| !protocol || !useful(document)) {
            let text = format!("does nothing on {at}: {why}");
            list.push(warning(&document, "spec.parentRefs".into(), Rule::IgnoredRoute, text));
        }
    };
    if tcp {
        let why = "its protocol is not HTTP (appProtocol, or the beginning of its name, says it)";
        ignore(keys(Kind::HttpRoute), why, true);
        ignore(keys(Kind::GrpcRoute), why, true);
        if !routes.tls.is_empty() {
            ignore(keys(Kind::TcpRoute), "TLSRoutes hold before TCPRoutes", false);
        } else if let Some(oldest) = routes.tcp.iter().min_by(|a, b| a.age().cmp(&b.age())) {
            let others = keys(Kind::TcpRoute).into_iter().filter(|key| key.name != oldest.name());
            ignore(others.collect(), &format!("TCPRoute {} is older", oldest.name()), false);
        }
    } else {
        let why = "its protocol is HTTP";
        ignore(keys(Kind::TcpRoute), why, true);
        ignore(keys(Kind::TlsRoute), why, true);
        if !routes.grpc.is_empty() {
            ignore(keys(Kind::HttpRoute), "GRPCRoutes hold before HTTPRoutes", false);
        }
    }
}

/// Endpoints without identity behind a Service that demands one.
fn strangers(mesh: &Mesh, service: &Document<ServiceSpec>, port: &ServicePort, list: &mut Vec<Finding>) {
    if mesh.mtls(service, port.port) == MtlsMode::Disabled || mesh.strangers(service, port).next().is_none() {
        return;
    }
    for slice in mesh.slices(service) {
        let document = AnyDocument::EndpointSlice(Arc::clone(slice));
        let known = |name: &str| mesh.instance(&slice.metadata.namespace, name).is_some();
        for (i, endpoint) in slice.spec.endpoints.iter().enumerate().filter(|(_, e)| slice.calls(e)) {
            if endpoint.target_ref.as_ref().is_some_and(|target| known(&target.name)) {
                continue;
            }
            let text = format!("is no Workload, and callers of {} want to see its identity", service.name());
            let path = format!("endpoints[{i}]");
            let mut finding = warning(&document, path, Rule::UnreachableEndpoint, text);
            finding
                .error
                .fix("a Workload and a targetRef to it, or an AuthenticationPolicy with mtls.mode: Disabled");
            list.push(finding);
        }
    }
}
