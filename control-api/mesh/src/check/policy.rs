//! Policies.

use std::sync::Arc;

use remora_xds::diag::At;

use super::jwt;
use super::names::{need_kind, need_service};
use super::related;
use super::report::Report;
use crate::document::{AppProtocol, AuthenticationPolicySpec, Document, MtlsMode, ServiceSpec, TargetRef};
use crate::kinds::{AnyDocument, Kind};
use crate::mesh::Mesh;
use crate::name::Key;

/// An AuthenticationPolicy.
pub(super) fn authentication(
    mesh: &Mesh,
    document: &Arc<Document<AuthenticationPolicySpec>>,
    report: &mut Report,
) {
    let key = AnyDocument::AuthenticationPolicy(Arc::clone(document)).key();
    targets(mesh, &key, &document.spec.target_refs, report);
    let services = services(mesh, &key, &document.spec.target_refs);
    let root = At::root();
    let spec_at = root.field("spec");
    let modes = spec_at.field("portLevelMtls");
    let known = |port: &u16| services.iter().any(|s| s.spec.ports.iter().any(|p| p.port == *port));
    for port in document.spec.port_level_mtls.keys() {
        if !port.parse().is_ok_and(|number: u16| known(&number) && number.to_string() == *port) {
            report
                .report(&modes.field(port), "is a port of none of the targets")
                .fix("name a port of the Service, by its number");
        }
    }
    jwt::check(&document.spec, &services, &spec_at, report);
}

/// The targets of a policy that are there.
pub(super) fn services<'m>(
    mesh: &'m Mesh,
    policy: &Key,
    refs: &[TargetRef],
) -> Vec<&'m Document<ServiceSpec>> {
    let found = refs.iter().filter_map(|target| mesh.service(&policy.name.namespace, &target.name));
    found.map(AsRef::as_ref).collect()
}

/// In front of some port of each target that speaks HTTP is a sidecar.
pub(super) fn need_http(mesh: &Mesh, policy: &Key, refs: &[TargetRef], report: &mut Report) {
    let root = At::root();
    let spec = root.field("spec");
    let list = spec.field("targetRefs");
    for (i, target) in refs.iter().enumerate() {
        let Some(service) = mesh.service(&policy.name.namespace, &target.name) else { continue };
        let mut http = service.spec.ports.iter().filter(|port| port.speaks() != AppProtocol::Tcp).peekable();
        let at = list.index(i);
        if http.peek().is_none() {
            let text = format!("no port of Service {:?} speaks HTTP", target.name);
            report.report(&at, text).fix("appProtocol: http on it, or another Service");
        } else if http.all(|port| mesh.demanded(service, port.port) == MtlsMode::Disabled) {
            let text = format!("callers of Service {:?} go past its sidecars: mTLS is Disabled", target.name);
            report.report(&at, text).fix("mtls.mode: Permissive or Strict in its AuthenticationPolicy");
        }
    }
}

/// Each target is a Service of the policy's namespace, and has no other policy of this kind, if it can have one only.
pub(super) fn targets(mesh: &Mesh, policy: &Key, refs: &[TargetRef], report: &mut Report) {
    let root = At::root();
    let spec = root.field("spec");
    let list = spec.field("targetRefs");
    if refs.is_empty() {
        report.report(&list, "must not be empty").fix("targetRefs: [{kind: Service, name: …}]");
    }
    report.at_most(16, refs.len(), &list);
    for (i, target) in refs.iter().enumerate() {
        let at = list.index(i);
        need_kind(target.group.as_deref(), target.kind.as_deref(), &at, report);
        let namespace = &policy.name.namespace;
        let Some(service) = need_service(mesh, namespace, &target.name, &at.field("name"), report) else {
            continue;
        };
        let holds = match policy.kind {
            Kind::TrafficPolicy => mesh.policy(service).cloned().map(AnyDocument::TrafficPolicy),
            Kind::RateLimitPolicy => mesh.rate_limits(service).cloned().map(AnyDocument::RateLimitPolicy),
            Kind::FaultPolicy => mesh.faults(service).cloned().map(AnyDocument::FaultPolicy),
            // They add up.
            Kind::AuthorizationPolicy => None,
            _ => mesh.authentication(service).cloned().map(AnyDocument::AuthenticationPolicy),
        };
        if let Some(other) = holds.filter(|other| other.key() != *policy) {
            let text = format!(
                "Service {:?} has the {} {:?} already",
                target.name,
                policy.kind,
                &*other.key().name.name
            );
            report
                .conflict(&at, text, related(&other, "spec.targetRefs", "which holds"))
                .fix("put everything into one of the two");
        }
    }
}
