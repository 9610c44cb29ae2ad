//! Workloads.

use std::collections::{BTreeMap, BTreeSet};

use remora_xds::diag::At;

use super::MAX_WEIGHT;
use super::names::{is_dns_label, is_trust_domain, need_port, need_service};
use super::report::Report;
use crate::compile::{OUTBOUND_PORT, egress, permissive_ports};
use crate::document::{Document, Interception, WorkloadSpec};
use crate::mesh::Mesh;

pub(super) fn check(mesh: &Mesh, document: &Document<WorkloadSpec>, report: &mut Report) {
    let root = At::root();
    let spec = root.field("spec");
    let ports = spec.field("ports");
    let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (i, port) in document.spec.ports.iter().enumerate() {
        let at = ports.index(i);
        if !numbers.insert(port.port) {
            report.report(&at.field("port"), format!("{} occurs twice", port.port));
        }
        if port.name.as_ref().is_some_and(|name| !names.insert(name)) {
            report.report(&at.field("name"), "occurs twice");
        }
    }
    if !(1..=MAX_WEIGHT).contains(&document.spec.weight) {
        report.report(&spec.field("weight"), format!("must be 1 to {MAX_WEIGHT}"));
    }
    if !is_dns_label(&document.spec.service_account) {
        report.report(&spec.field("serviceAccount"), "is no name").fix("lower-case letters, digits and -");
    }
    if document.spec.trust_domain.as_ref().is_some_and(|domain| !is_trust_domain(domain)) {
        let fix = "lower-case letters, digits, dots, hyphens and underscores";
        report.report(&spec.field("trustDomain"), "is no trust domain").fix(fix);
    }
    for (i, ip) in document.spec.addresses.iter().enumerate() {
        if ip.is_unspecified() || ip.is_multicast() {
            let at = spec.field("addresses");
            report.report(&at.index(i), format!("{ip} is no address of one machine"));
        }
    }
    let list = spec.field("egress");
    for (i, item) in document.spec.egress.iter().flatten().enumerate() {
        let at = list.index(i);
        let namespace = item.namespace.as_ref().unwrap_or(&document.metadata.namespace);
        if let Some(found) = need_service(mesh, namespace, &item.service, &at.field("service"), report) {
            need_port(found, item.port, &at.field("port"), report);
            if item.port.is_none() && item.local_port.is_some() && found.spec.ports.len() > 1 {
                let text = format!(
                    "Service {:?} has several ports, and one number is for one of them",
                    item.service
                );
                report.report(&at.field("localPort"), text).fix("say which one with port");
            }
        }
    }
    http_proxy(&document.spec, report);
    // Where rules lead connections to the sidecar it has nothing on loopback, and plaintext says which port it is for.
    if document.spec.interception == Interception::Redirect {
        return;
    }
    loopback(mesh, document, &list, report);
    let instance = mesh.instance(&document.metadata.namespace, &document.metadata.name);
    let plain = instance.map_or(0, |instance| permissive_ports(mesh, instance));
    if plain > 1 {
        let text = format!("plaintext could be for any of {plain} ports (Permissive), and is taken for none");
        report.report(&ports, text).fix("Permissive for one of its ports, Strict for the others");
    }
}

/// The HTTP proxy is on loopback with and without interception.
fn http_proxy(workload: &WorkloadSpec, report: &mut Report) {
    let Some(proxy) = workload.http_proxy else { return };
    let number = proxy.port;
    let other = if workload.ports.iter().any(|port| port.port == number) {
        "the program"
    } else if number == workload.inbound_port {
        "inboundPort"
    } else if number == OUTBOUND_PORT && workload.interception == Interception::Redirect {
        "virtualOutbound"
    } else {
        return;
    };
    let (root, text) = (At::root(), format!("httpProxy and {other} would both be on 127.0.0.1:{number}"));
    let spec = root.field("spec");
    let at = spec.field("httpProxy");
    report.report(&at.field("port"), text).fix("another port");
}

/// Everything on loopback has a port of its own.
fn loopback(mesh: &Mesh, document: &Document<WorkloadSpec>, list: &At<'_>, report: &mut Report) {
    let mut taken: BTreeMap<u16, String> = BTreeMap::new();
    for port in &document.spec.ports {
        taken.insert(port.port, "the program's own".into());
    }
    taken.insert(document.spec.inbound_port, "inboundPort".into());
    if let Some(proxy) = document.spec.http_proxy {
        taken.insert(proxy.port, "httpProxy".into());
    }
    for outbound in egress(mesh, document) {
        if outbound.local_port < 1024 && !outbound.chosen {
            let text = format!(
                "{}:{} would be on 127.0.0.1:{}, where only root may listen",
                outbound.service.metadata.name, outbound.port.port, outbound.local_port
            );
            report.report(list, text).fix(format!(
                "egress: [{{service: {}, port: {}, localPort: …}}]",
                outbound.service.metadata.name, outbound.port.port
            ));
        }
        let (number, who) =
            (outbound.local_port, format!("{}:{}", outbound.service.metadata.name, outbound.port.port));
        if let Some(other) = taken.insert(number, who.clone()) {
            let text = format!("{who} and {other} would both be on 127.0.0.1:{number}");
            report.report(list, text).fix(format!(
                "egress: [{{service: {}, port: {}, localPort: …}}]",
                outbound.service.metadata.name, outbound.port.port
            ));
        }
    }
}
