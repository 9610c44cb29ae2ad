//! AuthorizationPolicies.

use std::sync::Arc;

use remora_xds::diag::At;
use remora_xds::nearest;

use super::policy::targets;
use super::report::Report;
use crate::document::{
    Action, AppProtocol, Attribute, AuthorizationPolicySpec, AuthorizationRule, Condition, Document,
    Operation, ServicePort, Source, To, cidr,
};
use crate::kinds::AnyDocument;
use crate::mesh::Mesh;

/// Rules of one policy.
const MOST_RULES: usize = 512;
/// Entries of one list.
const MOST_ENTRIES: usize = 256;

pub(super) fn check(mesh: &Mesh, document: &Arc<Document<AuthorizationPolicySpec>>, report: &mut Report) {
    let key = AnyDocument::AuthorizationPolicy(Arc::clone(document)).key();
    let spec = &document.spec;
    targets(mesh, &key, &spec.target_refs, report);
    let root = At::root();
    let at = root.field("spec");
    let rules = at.field("rules");
    report.at_most(MOST_RULES, spec.rules.len(), &rules);
    if spec.rules.is_empty() && spec.action == Action::Deny {
        report.report(&rules, "Deny without rules does nothing").fix("rules: [{}] denies everything");
    }
    let ports = target_ports(mesh, document);
    let known: Vec<_> = ports.iter().map(|port| port.port).collect();
    for (i, rule) in spec.rules.iter().enumerate() {
        let at = rules.index(i);
        if spec.action == Action::Deny && !spec.dry_run {
            opaque(rule, &ports, &at, report);
        }
        let from = at.field("from");
        for (i, item) in rule.from.iter().enumerate() {
            source(&item.source, &from.index(i).field("source"), report);
        }
        let to = at.field("to");
        for (i, item) in rule.to.iter().enumerate() {
            operation(&item.operation, &known, &to.index(i).field("operation"), report);
        }
        let when = at.field("when");
        for (i, item) in rule.when.iter().enumerate() {
            condition(item, &when.index(i), report);
        }
    }
}

/// Ports of the targets.
fn target_ports<'m>(mesh: &'m Mesh, document: &Document<AuthorizationPolicySpec>) -> Vec<&'m ServicePort> {
    let targets = document.spec.target_refs.iter();
    let services = targets.filter_map(|target| mesh.service(&document.metadata.namespace, &target.name));
    services.flat_map(|service| &service.spec.ports).collect()
}

/// A `Deny` of something that only HTTP has would refuse everything on a port that speaks something else.
fn opaque(rule: &AuthorizationRule, ports: &[&ServicePort], at: &At<'_>, report: &mut Report) {
    let http_when =
        rule.when.iter().any(|c| Attribute::parse(&c.key).is_some_and(|attribute| attribute.is_http()));
    let http_from = rule.from.iter().any(|from| {
        let source = &from.source;
        !(source.remote_ip_blocks.is_empty() && source.not_remote_ip_blocks.is_empty())
    });
    let everything = To::default();
    let none = rule.to.is_empty().then_some(&everything);
    for to in rule.to.iter().chain(none) {
        let Operation { hosts, not_hosts, methods, not_methods, paths, not_paths, ports: of, not_ports } =
            &to.operation;
        let lists = [hosts, not_hosts, methods, not_methods, paths, not_paths];
        if !(http_when || http_from || lists.iter().any(|list| !list.is_empty())) {
            continue;
        }
        let meant = |port: &&&ServicePort| {
            (of.is_empty() || of.contains(&port.port)) && !not_ports.contains(&port.port)
        };
        let tcp = ports.iter().filter(meant).find(|port| port.speaks() == AppProtocol::Tcp);
        if let Some(port) = tcp {
            let text = format!("would deny everything on port {}, which does not speak HTTP", port.port);
            report.report(at, text).fix("name the ports that do: operation: {ports: […]}");
            return;
        }
    }
}

fn source(source: &Source, at: &At<'_>, report: &mut Report) {
    if *source == Source::default() {
        report.report(at, "says nothing").fix("remove it, or say who");
    }
    let texts = [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
    ];
    for (field, list) in texts {
        patterns(list, &at.field(field), report);
    }
    let blocks = [
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ];
    for (field, list) in blocks {
        ranges(list, &at.field(field), report);
    }
}

fn operation(operation: &Operation, known: &[u16], at: &At<'_>, report: &mut Report) {
    if *operation == Operation::default() {
        report.report(at, "says nothing").fix("remove it, or say what");
    }
    let texts = [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ];
    for (field, list) in texts {
        patterns(list, &at.field(field), report);
    }
    for (field, list) in [("paths", &operation.paths), ("notPaths", &operation.not_paths)] {
        for (i, path) in list.iter().enumerate().filter(|(_, path)| !path.starts_with(['/', '*', '{'])) {
            let error =
                report.report(&at.field(field).index(i), format!("{path:?} is the beginning of no path"));
            error.fix(format!("/{path}"));
        }
    }
    for (field, list) in [("ports", &operation.ports), ("notPorts", &operation.not_ports)] {
        for (i, port) in list.iter().enumerate().filter(|(_, port)| !known.contains(port)) {
            let text = format!("{port} is a port of none of the targets");
            report
                .report(&at.field(field).index(i), text)
                .fix("name a port of the Service, not of the program");
        }
    }
}

fn condition(condition: &Condition, at: &At<'_>, report: &mut Report) {
    let Some(attribute) = Attribute::parse(&condition.key) else {
        let fix = nearest(&condition.key, Attribute::KEYS.into_iter()).map_or_else(
            || format!("known are {}", Attribute::KEYS.join(", ")),
            |near| format!("did you mean {near}?"),
        );
        report
            .report(&at.field("key"), format!("{:?} is nothing that can be asked for", condition.key))
            .fix(fix);
        return;
    };
    if condition.values.is_empty() && condition.not_values.is_empty() {
        report.report(&at.field("values"), "is missing").fix("values: [\"*\"] wants it to be there");
    }
    for (field, list) in [("values", &condition.values), ("notValues", &condition.not_values)] {
        match attribute {
            Attribute::SourceIp | Attribute::RemoteIp => ranges(list, &at.field(field), report),
            _ => patterns(list, &at.field(field), report),
        }
    }
}

/// A `*` stands at the beginning or at the end.
fn patterns(list: &[String], at: &At<'_>, report: &mut Report) {
    report.at_most(MOST_ENTRIES, list.len(), at);
    for (i, text) in list.iter().enumerate() {
        let inner = text.strip_prefix('*').or_else(|| text.strip_suffix('*')).unwrap_or(text);
        if text.is_empty() {
            report.report(&at.index(i), "is empty").fix("\"*\" is anything");
        } else if inner.replace("{**}", "").replace("{*}", "").contains('*') {
            let error = report.report(&at.index(i), format!("{text:?} has a * in its middle"));
            error.fix("write * at the beginning or at the end, or {*} and {**} in a path");
        }
    }
}

fn ranges(list: &[String], at: &At<'_>, report: &mut Report) {
    report.at_most(MOST_ENTRIES, list.len(), at);
    for (i, text) in list.iter().enumerate().filter(|(_, text)| cidr(text).is_none()) {
        report.report(&at.index(i), format!("{text:?} is no range of addresses")).fix("10.1.0.0/16");
    }
}
