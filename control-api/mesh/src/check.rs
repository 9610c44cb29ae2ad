//! What must hold between documents, and what their types cannot say.

mod route;

use std::collections::{BTreeMap, BTreeSet};

use remora_xds::diag::{At, ConfigError, Errors};
use remora_xds::nearest;

use crate::compile::egress;
use crate::document::{Document, ServiceSpec, TrafficPolicySpec, WorkloadSpec};
use crate::mesh::Mesh;
use crate::read::Documents;

/// Retry conditions that mean something for a mesh.
const RETRY_ON: [&str; 12] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "refused-stream",
    "retriable-4xx",
    "cancelled",
    "deadline-exceeded",
    "resource-exhausted",
    "internal",
    "unavailable",
];

/// Most that one workload weighs.
pub(crate) const MAX_WEIGHT: u32 = 10_000;

/// Every mistake.
pub(crate) fn check(all: &Documents, mesh: &Mesh) -> Vec<ConfigError> {
    let mut list = Vec::new();
    unique("Service", &all.services, &mut list);
    unique("Workload", &all.workloads, &mut list);
    unique("HTTPRoute", &all.routes, &mut list);
    unique("TrafficPolicy", &all.policies, &mut list);
    for document in &all.services {
        with(document, &mut list, service);
    }
    for document in &all.workloads {
        with(document, &mut list, |document, errors| workload(mesh, document, errors));
    }
    for document in &all.routes {
        with(document, &mut list, |document, errors| route::check(mesh, document, errors));
    }
    for document in &all.policies {
        with(document, &mut list, |document, errors| policy(all, mesh, document, errors));
    }
    list
}

fn with<S>(document: &Document<S>, list: &mut Vec<ConfigError>, run: impl FnOnce(&Document<S>, &mut Errors)) {
    let mut errors = Errors::new(document.source.clone(), document.map.clone());
    run(document, &mut errors);
    list.extend(errors.into_list());
}

fn unique<S>(kind: &str, documents: &[Document<S>], list: &mut Vec<ConfigError>) {
    let mut seen = BTreeMap::new();
    for document in documents {
        let (name, namespace) = (&document.metadata.name, &document.metadata.namespace);
        let mut errors = Errors::new(document.source.clone(), document.map.clone());
        let root = At::root();
        let metadata = root.field("metadata");
        for (field, value) in [("name", name), ("namespace", namespace)] {
            if !is_dns_label(value) {
                let text = format!("{value:?} is no name");
                errors
                    .report(&metadata.field(field), text)
                    .fix("lower-case letters, digits and -, at most 63");
            }
        }
        let labels = metadata.field("labels");
        for (label, value) in &document.metadata.labels {
            if !is_label_value(value) {
                let at = labels.field(label);
                errors
                    .report(&at, format!("{value:?} is no value of a label"))
                    .fix("letters, digits, -, _ and ., at most 63");
            }
        }
        if let Some(first) = seen.insert((namespace, name), document) {
            let line = first.map.position("metadata").map_or(0, |p| p.line);
            let text = format!("{kind} {namespace}/{name} stands in {}:{line} already", first.source);
            errors.report(&metadata.field("name"), text).fix("remove one of the two, or rename it");
        }
        list.extend(errors.into_list());
    }
}

/// As Kubernetes has it. Values become parts of labels in metrics.
fn is_label_value(value: &str) -> bool {
    value.len() <= 63 && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// RFC 1123 label: names become parts of host names and of identities.
fn is_dns_label(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn service(document: &Document<ServiceSpec>, errors: &mut Errors) {
    let root = At::root();
    let spec = root.field("spec");
    let list = spec.field("ports");
    let ports = &document.spec.ports;
    if ports.is_empty() {
        errors.report(&list, "must not be empty").fix("ports: [{name: http, port: 8080}]");
    }
    let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (i, port) in ports.iter().enumerate() {
        let at = list.index(i);
        if !numbers.insert(port.port) {
            errors.report(&at.field("port"), format!("{} occurs twice", port.port));
        }
        match &port.name {
            Some(name) if !names.insert(name) => {
                errors.report(&at.field("name"), format!("{name:?} occurs twice"));
            }
            None if ports.len() > 1 => {
                errors.report(&at, "needs a name: there are several ports").fix("add name: …");
            }
            _ => {}
        }
    }
}

fn workload(mesh: &Mesh, document: &Document<WorkloadSpec>, errors: &mut Errors) {
    let root = At::root();
    let spec = root.field("spec");
    let ports = spec.field("ports");
    let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (i, port) in document.spec.ports.iter().enumerate() {
        let at = ports.index(i);
        if !numbers.insert(port.port) {
            errors.report(&at.field("port"), format!("{} occurs twice", port.port));
        }
        if port.name.as_ref().is_some_and(|name| !names.insert(name)) {
            errors.report(&at.field("name"), "occurs twice");
        }
    }
    if !(1..=MAX_WEIGHT).contains(&document.spec.weight) {
        errors.report(&spec.field("weight"), format!("must be 1 to {MAX_WEIGHT}"));
    }
    if !is_dns_label(&document.spec.service_account) {
        errors.report(&spec.field("serviceAccount"), "is no name").fix("lower-case letters, digits and -");
    }
    let list = spec.field("egress");
    for (i, item) in document.spec.egress.iter().flatten().enumerate() {
        let at = list.index(i);
        let namespace = item.namespace.as_ref().unwrap_or(&document.metadata.namespace);
        if let Some(found) = need_service(mesh, namespace, &item.service, &at.field("service"), errors) {
            need_port(found, item.port, &at.field("port"), errors);
            if item.port.is_none() && item.local_port.is_some() && found.spec.ports.len() > 1 {
                let text = format!(
                    "Service {:?} has several ports, and one number is for one of them",
                    item.service
                );
                errors.report(&at.field("localPort"), text).fix("say which one with port");
            }
        }
    }
    let mut taken: BTreeMap<u16, String> = BTreeMap::new();
    for port in &document.spec.ports {
        taken.insert(port.port, "the program's own".into());
    }
    taken.insert(document.spec.inbound_port, "inboundPort".into());
    for outbound in egress(mesh, document) {
        if outbound.local_port < 1024 && !outbound.chosen {
            let text = format!(
                "{}:{} would be on 127.0.0.1:{}, where only root may listen",
                outbound.service.metadata.name, outbound.port.port, outbound.local_port
            );
            errors.report(&list, text).fix(format!(
                "egress: [{{service: {}, port: {}, localPort: …}}]",
                outbound.service.metadata.name, outbound.port.port
            ));
        }
        let (number, who) =
            (outbound.local_port, format!("{}:{}", outbound.service.metadata.name, outbound.port.port));
        if let Some(other) = taken.insert(number, who.clone()) {
            let text = format!("{who} and {other} would both be on 127.0.0.1:{number}");
            errors.report(&list, text).fix(format!(
                "egress: [{{service: {}, port: {}, localPort: …}}]",
                outbound.service.metadata.name, outbound.port.port
            ));
        }
    }
}

fn policy(all: &Documents, mesh: &Mesh, document: &Document<TrafficPolicySpec>, errors: &mut Errors) {
    let root = At::root();
    let spec = root.field("spec");
    let targets = spec.field("targetRefs");
    if document.spec.target_refs.is_empty() {
        errors.report(&targets, "must not be empty").fix("targetRefs: [{kind: Service, name: …}]");
    }
    let metadata = &document.metadata;
    for (i, target) in document.spec.target_refs.iter().enumerate() {
        let at = targets.index(i);
        need_kind(target.group.as_deref(), target.kind.as_deref(), &at, errors);
        need_service(mesh, &metadata.namespace, &target.name, &at.field("name"), errors);
        let before = all.policies.iter().take_while(|p| !std::ptr::eq(*p, document));
        let same = |p: &&Document<TrafficPolicySpec>| {
            p.metadata.namespace == metadata.namespace
                && p.spec.target_refs.iter().any(|t| t.name == target.name)
        };
        if let Some(other) = { before }.find(same) {
            let text =
                format!("Service {:?} has the TrafficPolicy {:?} already", target.name, other.metadata.name);
            errors.report(&at, text).fix("put everything into one of the two");
        }
    }
    let retries = spec.field("retries");
    let on = retries.field("on");
    for (i, condition) in document.spec.retries.on.iter().enumerate() {
        if !RETRY_ON.contains(&condition.as_str()) {
            let fix = nearest(condition, RETRY_ON.into_iter()).map_or_else(
                || format!("known are {}", RETRY_ON.join(", ")),
                |near| format!("did you mean {near}?"),
            );
            errors.report(&on.index(i), format!("{condition:?} is no retry condition")).fix(fix);
        }
    }
    let codes = retries.field("statusCodes");
    for (i, code) in document.spec.retries.status_codes.iter().enumerate() {
        if !(400..600).contains(code) {
            errors.report(&codes.index(i), format!("{code} is no status of a failure")).fix("400 to 599");
        }
    }
    if document.spec.retries.budget.percent.is_some_and(|p| p > 100) {
        errors.report(&retries.field("budget").field("percent"), "is more than 100");
    }
    if document.spec.timeouts.connect.is_some_and(|t| t.0.is_zero()) {
        errors.report(&spec.field("timeouts").field("connect"), "must be more than 0s");
    }
}

/// `group` and `kind` of a reference to a Service.
fn need_kind(group: Option<&str>, kind: Option<&str>, at: &At<'_>, errors: &mut Errors) {
    if !matches!(group, None | Some("" | "core")) {
        errors.report(&at.field("group"), "must be empty: a Service is in the core group").fix("remove it");
    }
    if kind.is_some_and(|kind| kind != "Service") {
        errors
            .report(&at.field("kind"), format!("{:?} is not supported", kind.unwrap_or_default()))
            .fix("kind: Service");
    }
}

fn need_service<'a>(
    mesh: &'a Mesh,
    namespace: &str,
    name: &str,
    at: &At<'_>,
    errors: &mut Errors,
) -> Option<&'a Document<ServiceSpec>> {
    let found = mesh.service(namespace, name);
    if found.is_none() {
        let names = mesh.services(namespace).map(|s| s.metadata.name.as_str());
        let fix = nearest(name, names).map(|near| format!("did you mean {near}?"));
        errors.report(at, format!("there is no Service {namespace}/{name}")).fix = fix;
    }
    found.map(AsRef::as_ref)
}

fn need_port(service: &Document<ServiceSpec>, port: Option<u16>, at: &At<'_>, errors: &mut Errors) {
    let ports: Vec<_> = service.spec.ports.iter().map(|p| p.port).collect();
    if let Some(port) = port.filter(|port| !ports.contains(port)) {
        let known: Vec<_> = ports.iter().map(ToString::to_string).collect();
        let text = format!("Service {:?} has no port {port}", service.metadata.name);
        errors.report(at, text).fix(format!("it has {}", known.join(", ")));
    }
}
