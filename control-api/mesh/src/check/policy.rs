//! Policies.

use std::sync::Arc;

use remora_xds::diag::At;

use super::jwt;
use super::names::{need_kind, need_service};
use super::related;
use super::report::Report;
use crate::document::{AuthenticationPolicySpec, Document, TargetRef};
use crate::kinds::AnyDocument;
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
    let names = document.spec.target_refs.iter().map(|target| &target.name);
    let services = names.filter_map(|name| mesh.service(&document.metadata.namespace, name));
    let services: Vec<_> = services.map(AsRef::as_ref).collect();
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
            crate::kinds::Kind::TrafficPolicy => {
                mesh.policy(service).cloned().map(AnyDocument::TrafficPolicy)
            }
            // They add up.
            crate::kinds::Kind::AuthorizationPolicy => None,
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
