//! What must hold between documents, and what their types cannot say.

mod authorization;
mod balancing;
mod breaker;
mod fault;
mod filter;
mod health;
mod http;
mod jwt;
mod limit;
mod names;
mod order;
mod policy;
mod provider;
mod report;
mod route;
mod service;
mod traffic;
mod workload;

use std::collections::BTreeMap;
use std::sync::Arc;

use remora_xds::diag::At;

use crate::document::{Document, Metadata};
use crate::kinds::{AnyDocument, Documents};
use crate::mesh::Mesh;

pub(crate) use order::warnings;
pub use report::{Finding, Lack, Related, Rule, Severity};

use report::Report;

/// Most that one workload weighs.
pub(crate) const MAX_WEIGHT: u32 = 10_000;

/// Everything in documents that are a mesh of their own: mistakes, and what does nothing.
pub(crate) fn check(documents: &Documents) -> Vec<Finding> {
    let mesh = Mesh::from(documents);
    let all: Vec<_> = documents.iter().collect();
    let mut list = duplicates(&all);
    for document in &all {
        list.extend(findings(&mesh, document));
    }
    list.extend(warnings(&mesh));
    list
}

/// The mistakes of a document that is, or may become, a part of `mesh`. Those of the rule [`Rule::Reference`] go away by themselves
/// when what is referred to arrives.
#[must_use]
pub fn findings(mesh: &Mesh, document: &AnyDocument) -> Vec<Finding> {
    match document {
        AnyDocument::Service(d) => with(d, |report| service::service(d, report)),
        AnyDocument::Workload(d) => with(d, |report| workload::check(mesh, d, report)),
        AnyDocument::EndpointSlice(d) => with(d, |report| service::slice(mesh, d, report)),
        AnyDocument::HttpRoute(d) => with(d, |report| http::http(mesh, d, report)),
        AnyDocument::GrpcRoute(d) => with(d, |report| http::grpc(mesh, d, report)),
        AnyDocument::TcpRoute(d) => with(d, |report| route::tcp(mesh, d, report)),
        AnyDocument::TlsRoute(d) => with(d, |report| route::tls(mesh, d, report)),
        AnyDocument::ReferenceGrant(d) => with(d, |report| route::grant(d, report)),
        AnyDocument::TrafficPolicy(d) => with(d, |report| traffic::check(mesh, d, report)),
        AnyDocument::AuthenticationPolicy(d) => with(d, |report| policy::authentication(mesh, d, report)),
        AnyDocument::AuthorizationPolicy(d) => with(d, |report| authorization::check(mesh, d, report)),
        AnyDocument::RateLimitPolicy(d) => with(d, |report| limit::check(mesh, d, report)),
        AnyDocument::FaultPolicy(d) => with(d, |report| fault::check(mesh, d, report)),
    }
}

/// The mistakes that a document has by itself, whatever else there is: values that make no sense, and what is not supported.
#[must_use]
pub fn senseless(document: &AnyDocument) -> Vec<Finding> {
    let mut found = findings(&Mesh::default(), document);
    found.retain(|finding| {
        finding.severity == Severity::Error && matches!(finding.rule, Rule::Invalid | Rule::Unsupported)
    });
    found
}

fn with<S>(document: &Document<S>, run: impl FnOnce(&mut Report)) -> Vec<Finding> {
    let mut report = Report::new(&document.source, &document.map);
    metadata(&document.metadata, &mut report);
    run(&mut report);
    report.into_list()
}

fn metadata(metadata: &Metadata, report: &mut Report) {
    let root = At::root();
    let at = root.field("metadata");
    for (field, value) in [("name", &metadata.name), ("namespace", &metadata.namespace)] {
        if !names::is_dns_label(value) {
            let text = format!("{value:?} is no name");
            report.report(&at.field(field), text).fix("lower-case letters, digits and -, at most 63");
        }
    }
    let labels = at.field("labels");
    for (label, value) in &metadata.labels {
        if !names::is_label_value(value) {
            let text = format!("{value:?} is no value of a label");
            report.report(&labels.field(label), text).fix("letters, digits, -, _ and ., at most 63");
        }
    }
}

/// Documents of one kind and name.
fn duplicates(all: &[AnyDocument]) -> Vec<Finding> {
    let mut seen = BTreeMap::new();
    let mut list = Vec::new();
    for document in all {
        let key = document.key();
        let Some(first) = seen.insert(key.clone(), document) else { continue };
        let mut report = Report::new(document.source(), document.map());
        let root = At::root();
        let metadata = root.field("metadata");
        let other = related(first, "metadata", "the other one");
        let line = other.position.map_or(0, |at| at.line);
        let text = format!("there are two documents {key}, the other one at {}:{line}", other.source);
        report.conflict(&metadata.field("name"), text, other).fix("remove one of the two, or rename it");
        list.extend(report.into_list());
    }
    list
}

/// A field of another document.
fn related(document: &AnyDocument, path: &str, message: &str) -> Related {
    Related {
        source: Arc::clone(document.source()),
        position: document.map().position(path),
        message: message.to_owned(),
    }
}
