//! `provider` of AuthorizationPolicies.

use std::collections::BTreeSet;

use remora_xds::diag::At;

use super::names::{check_header_name, check_path};
use super::report::Report;
use super::route::reference;
use crate::document::{Action, AuthorizationPolicySpec, Document, Provider, ProviderProtocol};
use crate::kinds::Kind;
use crate::mesh::Mesh;
use crate::name::{Key, Name};

/// Entries of one list.
const MOST_HEADERS: usize = 64;
/// What frames a message, or ends at one hop: no answer changes it.
const FIXED: [&str; 9] = [
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Of a body, as much as a sidecar reads ahead, bytes.
const MOST_BODY: u32 = 1024 * 1024;

/// The provider of a policy, at `spec`.
pub(super) fn check(
    mesh: &Mesh,
    document: &Document<AuthorizationPolicySpec>,
    spec: &At<'_>,
    report: &mut Report,
) {
    let at = spec.field("provider");
    let action = document.spec.action;
    if action == Action::Custom && document.spec.dry_run {
        let text = "is not supported for Custom: whoever is asked decides";
        report.unsupported(&spec.field("dryRun"), text).fix("remove it");
    }
    match (&document.spec.provider, action) {
        (None, Action::Custom) => {
            let fix = "provider: {protocol: GRPC, backendRef: {name: …, port: …}}";
            report.report(&at, "is missing: Custom asks somebody").fix(fix);
        }
        (None, _) => {}
        (Some(_), Action::Allow | Action::Deny) => {
            let text = format!("means nothing for {}", action.as_str());
            report.report(&at, text).fix("action: Custom, or remove it");
        }
        (Some(provider), Action::Custom) => {
            service(mesh, document, provider, &at.field("backendRef"), report);
            settings(provider, &at, report);
        }
    }
}

/// The port that is asked.
fn service(
    mesh: &Mesh,
    document: &Document<AuthorizationPolicySpec>,
    provider: &Provider,
    at: &At<'_>,
    report: &mut Report,
) {
    let key = Key::new(Kind::AuthorizationPolicy, document.name());
    let to = provider.backend_ref.to();
    let Some(found) = reference(mesh, &key, to, at, report) else { return };
    let port = found.spec.ports.iter().find(|port| port.port == to.port);
    if let Some(port) = port.filter(|port| !provider.protocol.is_spoken(port.speaks())) {
        let text = format!(
            "port {} of Service {:?} does not speak {}",
            port.port,
            to.name,
            provider.protocol.as_str()
        );
        let protocol = if provider.protocol == ProviderProtocol::Grpc { "grpc" } else { "http" };
        report.report(&at.field("port"), text).fix(format!("appProtocol: {protocol} on it, or another port"));
    }
    if asks_itself(mesh, document) {
        let text = format!("{:?} would have to be asked before it answers", to.name);
        report.report(&at.field("name"), text).fix("a Service that answers by itself");
    }
}

/// Whether a check leads to a Service that the policy is about.
fn asks_itself(mesh: &Mesh, policy: &Document<AuthorizationPolicySpec>) -> bool {
    let provider = |policy: &Document<AuthorizationPolicySpec>| {
        let asked = policy.spec.provider.as_ref().filter(|_| policy.spec.action == Action::Custom)?;
        let to = asked.backend_ref.to();
        Some(Name::new(to.namespace.unwrap_or(&policy.metadata.namespace), to.name))
    };
    let targeted = |name: &Name| {
        *name.namespace == *policy.metadata.namespace
            && policy.spec.target_refs.iter().any(|target| target.name == *name.name)
    };
    let mut next: Vec<Name> = provider(policy).into_iter().collect();
    let mut seen = BTreeSet::new();
    while let Some(name) = next.pop() {
        if targeted(&name) {
            return true;
        }
        if let Some(service) = mesh.service(&name.namespace, &name.name)
            && seen.insert(name)
        {
            next.extend(mesh.authorizations(service).filter_map(|other| provider(other)));
        }
    }
    false
}

/// What it is told, and what counts of its answer.
fn settings(provider: &Provider, at: &At<'_>, report: &mut Report) {
    let other = match provider.protocol {
        ProviderProtocol::Grpc => ("http", provider.http.is_some()),
        ProviderProtocol::Http => ("grpc", provider.grpc.is_some()),
    };
    if let (field, true) = other {
        let text = format!("means nothing for {}", provider.protocol.as_str());
        report.report(&at.field(field), text).fix("remove it");
    }
    if let Some(grpc) = &provider.grpc {
        headers(&grpc.allowed_headers, &at.field("grpc").field("allowedHeaders"), report);
    }
    if let Some(http) = &provider.http {
        let at = at.field("http");
        if !http.path.is_empty() {
            check_path(&http.path, &at.field("path"), report);
        }
        headers(&http.allowed_headers, &at.field("allowedHeaders"), report);
        let answer = at.field("allowedResponseHeaders");
        headers(&http.allowed_response_headers, &answer, report);
        let fixed = |name: &str| FIXED.iter().any(|fixed| name.eq_ignore_ascii_case(fixed));
        let listed = http.allowed_response_headers.iter().enumerate();
        for (i, name) in listed.filter(|(_, name)| fixed(name)) {
            report.report(&answer.index(i), format!("no answer changes {name}")).fix("remove it");
        }
    }
    if provider.forward_body.is_some_and(|body| body.max_size > MOST_BODY) {
        let text = format!("is more than {MOST_BODY}");
        report.report(&at.field("forwardBody").field("maxSize"), text);
    }
    if provider.timeout.is_some_and(|timeout| timeout.0.is_zero()) {
        report.report(&at.field("timeout"), "must be more than 0s");
    }
}

fn headers(list: &[String], at: &At<'_>, report: &mut Report) {
    report.at_most(MOST_HEADERS, list.len(), at);
    for (i, name) in list.iter().enumerate() {
        check_header_name(name, &at.index(i), report);
    }
}
