//! What routes have in common, TCPRoutes, TLSRoutes and ReferenceGrants.

use std::sync::Arc;

use remora_xds::diag::At;

use super::names::{need_kind, need_port, need_service};
use super::report::{Lack, Report};
use crate::document::{
    BackendRef, Document, ParentRef, PortRef, ReferenceGrantSpec, ServiceSpec, TcpRouteSpec, TcpRule,
    TlsRouteSpec, Unsupported,
};
use crate::kinds::{AnyDocument, Kind};
use crate::mesh::Mesh;
use crate::name::{Key, Name};

/// A route is attached to Services that exist, and to no gateways.
pub(super) fn parents(
    mesh: &Mesh,
    route: &Key,
    (list, gateways): (&[ParentRef], Option<Unsupported>),
    report: &mut Report,
) {
    let root = At::root();
    let spec = root.field("spec");
    if gateways.is_some() {
        report.unsupported(
            &spec.field("useDefaultGateways"),
            "is not supported: routes are attached to Services",
        );
    }
    let parents = spec.field("parentRefs");
    if list.is_empty() {
        report.report(&parents, "must not be empty").fix("parentRefs: [{kind: Service, name: …}]");
    }
    report.at_most(32, list.len(), &parents);
    for (i, parent) in list.iter().enumerate() {
        let at = parents.index(i);
        need_kind(parent.group.as_deref(), Some(parent.kind.as_deref().unwrap_or("Gateway")), &at, report);
        let namespace = parent.namespace.as_deref().unwrap_or(&route.name.namespace);
        let Some(service) = need_service(mesh, namespace, &parent.name, &at.field("name"), report) else {
            continue;
        };
        need_port(service, parent.port, &at.field("port"), report);
        if let Some(wanted) = &parent.section_name
            && !service.spec.ports.iter().any(|port| port.name.as_ref() == Some(wanted))
        {
            let text = format!("Service {:?} has no port named {wanted:?}", parent.name);
            report.lacking(&at.field("sectionName"), Lack::Port(service.name()), text);
        }
    }
}

/// Backends are ports of Services that the route may lead to.
pub(super) fn backends(mesh: &Mesh, route: &Key, list: &[BackendRef], at: &At<'_>, report: &mut Report) {
    report.at_most(16, list.len(), at);
    for (i, backend) in list.iter().enumerate() {
        let at = at.index(i);
        reference(mesh, route, backend.to(), &at, report);
        if backend.weight > 1_000_000 {
            report.report(&at.field("weight"), "is more than 1000000");
        }
    }
    if !list.is_empty() && list.iter().all(|backend| backend.weight == 0) {
        report
            .report(at, "has weights that sum to zero: nothing would be sent anywhere")
            .fix("raise one of them");
    }
}

/// A port of a Service that `from` may refer to. Of a Service of a namespace that does not let it, nothing is said.
pub(super) fn reference<'m>(
    mesh: &'m Mesh,
    from: &Key,
    to: PortRef<'_>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<&'m Document<ServiceSpec>> {
    need_kind(to.group, to.kind, at, report);
    let own = &*from.name.namespace;
    let namespace = to.namespace.unwrap_or(own);
    // What is in a namespace that does not grant it is nobody's business.
    if namespace != own && !mesh.granted(from, namespace, to.name) {
        let may = match from.kind {
            Kind::AuthorizationPolicy | Kind::RateLimitPolicy => "policy ask",
            Kind::TrafficPolicy => "policy lead to",
            _ => "route lead to",
        };
        let text = format!("no ReferenceGrant of {namespace} lets this {may} {}", to.name);
        let fix = format!(
            "in {namespace}: from: [{{group: {}, kind: {}, namespace: {own}}}], to: [{{group: \"\", kind: Service}}]",
            from.kind.group(),
            from.kind
        );
        let lack = Lack::Grant(Name::new(namespace, to.name));
        report.lacking(&at.field("namespace"), lack, text).fix(fix);
        return None;
    }
    let service = need_service(mesh, namespace, to.name, &at.field("name"), report)?;
    need_port(service, Some(to.port), &at.field("port"), report);
    Some(service)
}

/// Host names belong to gateways: in a mesh the Service is the host.
pub(super) fn no_hostnames(hostnames: &[String], report: &mut Report) {
    if !hostnames.is_empty() {
        let root = At::root();
        let spec = root.field("spec");
        report
            .unsupported(&spec.field("hostnames"), "means nothing on a route that is attached to a Service")
            .fix("remove it");
    }
}

/// A TCPRoute.
pub(super) fn tcp(mesh: &Mesh, document: &Arc<Document<TcpRouteSpec>>, report: &mut Report) {
    let route = AnyDocument::TcpRoute(Arc::clone(document)).key();
    parents(mesh, &route, (&document.spec.parent_refs, document.spec.use_default_gateways), report);
    one_rule(mesh, &route, &document.spec.rules, report);
}

/// A TLSRoute.
pub(super) fn tls(mesh: &Mesh, document: &Arc<Document<TlsRouteSpec>>, report: &mut Report) {
    let route = AnyDocument::TlsRoute(Arc::clone(document)).key();
    parents(mesh, &route, (&document.spec.parent_refs, document.spec.use_default_gateways), report);
    let root = At::root();
    let spec = root.field("spec");
    let hostnames = spec.field("hostnames");
    report.at_most(16, document.spec.hostnames.len(), &hostnames);
    for (i, name) in document.spec.hostnames.iter().enumerate() {
        let rest = name.strip_prefix("*.").unwrap_or(name);
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
        if rest.is_empty() || rest.len() > 253 || !rest.bytes().all(inner) {
            let fix = "lower-case letters, digits, - and ., with *. before it for all names under it";
            report.report(&hostnames.index(i), format!("{name:?} is no host name")).fix(fix);
        } else if document.spec.hostnames[..i].contains(name) {
            report.report(&hostnames.index(i), format!("{name:?} occurs twice"));
        }
    }
    one_rule(mesh, &route, &document.spec.rules, report);
}

fn one_rule(mesh: &Mesh, route: &Key, list: &[TcpRule], report: &mut Report) {
    let root = At::root();
    let spec = root.field("spec");
    let rules = spec.field("rules");
    if list.len() != 1 {
        report.report(&rules, "must have exactly one rule: connections have nothing to match");
    }
    for (i, rule) in list.iter().enumerate() {
        let at = rules.index(i);
        let refs = at.field("backendRefs");
        backends(mesh, route, &rule.backend_refs, &refs, report);
        for (i, backend) in rule.backend_refs.iter().enumerate() {
            if !backend.filters.is_empty() {
                report.report(&refs.index(i).field("filters"), "belongs to HTTP");
            }
        }
    }
}

/// A ReferenceGrant.
pub(super) fn grant(document: &Document<ReferenceGrantSpec>, report: &mut Report) {
    const REFERRERS: [Kind; 7] = [
        Kind::HttpRoute,
        Kind::GrpcRoute,
        Kind::TcpRoute,
        Kind::TlsRoute,
        Kind::TrafficPolicy,
        Kind::AuthorizationPolicy,
        Kind::RateLimitPolicy,
    ];
    let root = At::root();
    let spec = root.field("spec");
    let (from, to) = (spec.field("from"), spec.field("to"));
    for (at, length) in [(&from, document.spec.from.len()), (&to, document.spec.to.len())] {
        if length == 0 {
            report.report(at, "must not be empty");
        }
        report.at_most(16, length, at);
    }
    for (i, source) in document.spec.from.iter().enumerate() {
        let at = from.index(i);
        let kind = REFERRERS.into_iter().find(|kind| kind.as_str() == source.kind);
        let group = kind.unwrap_or(Kind::HttpRoute).group();
        if source.group != group {
            report.unsupported(&at.field("group"), "is not supported").fix(group);
        }
        if kind.is_none() {
            report
                .unsupported(&at.field("kind"), format!("{:?} is not supported", source.kind))
                .fix("HTTPRoute");
        }
    }
    for (i, target) in document.spec.to.iter().enumerate() {
        need_kind(Some(&target.group), Some(&target.kind), &to.index(i), report);
    }
}
