//! Services and EndpointSlices.

use std::collections::BTreeSet;

use remora_xds::diag::At;

use super::names::need_service;
use super::report::{Lack, Report};
use crate::document::{Document, EndpointSliceSpec, SERVICE_NAME, ServiceSpec};
use crate::mesh::Mesh;

/// A Service.
pub(super) fn service(document: &Document<ServiceSpec>, report: &mut Report) {
    let root = At::root();
    let spec = root.field("spec");
    let list = spec.field("ports");
    let ports = &document.spec.ports;
    if ports.is_empty() {
        report.report(&list, "must not be empty").fix("ports: [{name: http, port: 8080}]");
    }
    let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (i, port) in ports.iter().enumerate() {
        let at = list.index(i);
        if !numbers.insert(port.port) {
            report.report(&at.field("port"), format!("{} occurs twice", port.port));
        }
        match &port.name {
            Some(name) if !names.insert(name) => {
                report.report(&at.field("name"), format!("{name:?} occurs twice"));
            }
            None if ports.len() > 1 => {
                report.report(&at, "needs a name: there are several ports").fix("add name: …");
            }
            _ => {}
        }
    }
    match document.spec.kind.as_deref() {
        None | Some("ClusterIP") => {}
        Some("ExternalName") => {
            report
                .unsupported(&spec.field("type"), "ExternalName is not supported: a Service has workloads of the mesh")
                .fix("an EndpointSlice with the addresses, and an AuthenticationPolicy with mtls.mode: Disabled");
        }
        Some(other) => {
            let text = format!("{other:?} is not supported: a mesh has no way in from outside");
            report.unsupported(&spec.field("type"), text).fix("type: ClusterIP");
        }
    }
    if document.spec.external_name.is_some() {
        report.unsupported(
            &spec.field("externalName"),
            "is not supported: a Service has workloads of the mesh",
        );
    }
    if document.spec.session_affinity.as_deref().is_some_and(|affinity| affinity != "None") {
        report
            .unsupported(&spec.field("sessionAffinity"), "is not supported yet")
            .fix("sessionAffinity: None");
    }
}

/// An EndpointSlice.
pub(super) fn slice(mesh: &Mesh, document: &Document<EndpointSliceSpec>, report: &mut Report) {
    let root = At::root();
    let (metadata, endpoints) = (root.field("metadata"), root.field("endpoints"));
    let namespace = &document.metadata.namespace;
    let service = if let Some(name) = document.service() {
        let labels = metadata.field("labels");
        need_service(mesh, namespace, name, &labels.field(SERVICE_NAME), report)
    } else {
        let fix = format!("labels: {{{SERVICE_NAME}: …}}");
        report.report(&metadata, "does not say which Service the slice belongs to").fix(fix);
        None
    };
    let version = match document.spec.address_type.as_str() {
        "IPv4" => Some(true),
        "IPv6" => Some(false),
        _ => {
            report.unsupported(&root.field("addressType"), "is not supported").fix("IPv4 or IPv6");
            None
        }
    };
    report.at_most(1000, document.spec.endpoints.len(), &endpoints);
    for (i, endpoint) in document.spec.endpoints.iter().enumerate() {
        let at = endpoints.index(i);
        let addresses = at.field("addresses");
        if endpoint.addresses.is_empty() {
            report.report(&addresses, "must not be empty");
        }
        if version.is_some_and(|v4| endpoint.addresses.iter().any(|ip| ip.is_ipv4() != v4)) {
            report.report(&addresses, format!("is not {}", document.spec.address_type));
        }
        if let Some(kind) = endpoint.target_ref.as_ref().and_then(|target| target.kind.as_deref())
            && !matches!(kind, "Pod" | "Workload")
        {
            let target = at.field("targetRef");
            report.unsupported(&target.field("kind"), format!("{kind:?} is not supported")).fix("Workload");
        }
    }
    let ports = root.field("ports");
    for (i, port) in document.spec.ports.iter().enumerate() {
        let name = port.name.as_deref().unwrap_or_default();
        let known = |service: &Document<ServiceSpec>| {
            service.spec.ports.iter().any(|p| p.name.as_deref().unwrap_or_default() == name)
        };
        if let Some(service) = service.filter(|service| !known(service)) {
            let text = format!("the Service has no port named {name:?}");
            report.lacking(&ports.index(i), Lack::Port(service.name()), text);
        }
    }
}
