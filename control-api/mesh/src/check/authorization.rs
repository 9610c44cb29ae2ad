//! AuthorizationPolicies.

use std::sync::Arc;

use remora_xds::diag::At;
use remora_xds::nearest;

use super::names::is_dns_label;
use super::policy::targets;
use super::provider;
use super::report::Report;
use crate::document::{
    Action, AppProtocol, Attribute, AuthorizationPolicySpec, AuthorizationRule, Condition, Document,
    MtlsMode, Operation, ServicePort, ServiceSpec, Source, To, cidr,
};
use crate::kinds::AnyDocument;
use crate::mesh::Mesh;

/// Rules of one policy.
const MOST_RULES: usize = 512;
/// Entries of one list.
const MOST_ENTRIES: usize = 256;
/// Of one text: it may become a regular expression.
const MOST_BYTES: usize = 1024;
/// Entries of `from`, `to` and `when`: each is combined with each.
const MOST_PARTS: usize = 32;

pub(super) fn check(mesh: &Mesh, document: &Arc<Document<AuthorizationPolicySpec>>, report: &mut Report) {
    let key = AnyDocument::AuthorizationPolicy(Arc::clone(document)).key();
    let spec = &document.spec;
    targets(mesh, &key, &spec.target_refs, report);
    let root = At::root();
    let at = root.field("spec");
    let rules = at.field("rules");
    report.at_most(MOST_RULES, spec.rules.len(), &rules);
    let all = match spec.action {
        Action::Allow => None,
        Action::Deny => Some("denies everything"),
        Action::Custom => Some("asks about everything"),
    };
    if let Some(all) = all.filter(|_| spec.rules.is_empty()) {
        let text = format!("{} without rules does nothing", spec.action.as_str());
        report.report(&rules, text).fix(format!("rules: [{{}}] {all}"));
    }
    provider::check(mesh, document, &at, report);
    unenforced(mesh, document, &at.field("targetRefs"), report);
    let ports = target_ports(mesh, document);
    let known: Vec<_> = ports.iter().map(|port| port.port).collect();
    for (i, rule) in spec.rules.iter().enumerate() {
        let at = rules.index(i);
        if spec.action.guards() && !spec.dry_run {
            opaque(rule, spec.action, &ports, &at, report);
        }
        unverified(mesh, document, rule, &at, report);
        for (field, length) in [("from", rule.from.len()), ("to", rule.to.len()), ("when", rule.when.len())] {
            report.at_most(MOST_PARTS, length, &at.field(field));
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

/// Callers of a Service without mTLS go past the sidecars, and past the rules.
fn unenforced(mesh: &Mesh, document: &Document<AuthorizationPolicySpec>, at: &At<'_>, report: &mut Report) {
    for (i, target) in document.spec.target_refs.iter().enumerate() {
        let service = mesh.service(&document.metadata.namespace, &target.name);
        let ports =
            service.into_iter().flat_map(|service| service.spec.ports.iter().map(move |p| (service, p.port)));
        let meant = ports.filter(|(_, port)| concerns(&document.spec.rules, *port));
        for (_, port) in meant.filter(|(service, port)| mesh.demanded(service, *port) == MtlsMode::Disabled) {
            let name = &target.name;
            let text =
                format!("nobody would enforce it on port {port}: callers of {name:?} go past its sidecars");
            report
                .report(&at.index(i), text)
                .fix("an AuthenticationPolicy with mtls.mode: Strict or Permissive");
        }
    }
}

/// Whether some rule may say something about `port`. No rules at all say that nothing passes.
fn concerns(rules: &[AuthorizationRule], port: u16) -> bool {
    let names = |operation: &Operation| {
        (operation.ports.is_empty() || operation.ports.contains(&port))
            && !operation.not_ports.contains(&port)
    };
    let about =
        |rule: &AuthorizationRule| rule.to.is_empty() || rule.to.iter().any(|to| names(&to.operation));
    rules.is_empty() || rules.iter().any(about)
}

/// A `Deny` of something that only HTTP has would refuse everything on a port that speaks something else, and about such a port nobody
/// can be asked at all.
fn opaque(
    rule: &AuthorizationRule,
    action: Action,
    ports: &[&ServicePort],
    at: &At<'_>,
    report: &mut Report,
) {
    let http_when =
        rule.when.iter().any(|c| Attribute::parse(&c.key).is_some_and(|attribute| attribute.is_http()));
    let http_from = rule.from.iter().any(|from| {
        let source = &from.source;
        let lists = [
            &source.remote_ip_blocks,
            &source.not_remote_ip_blocks,
            &source.request_principals,
            &source.not_request_principals,
        ];
        lists.iter().any(|list| !list.is_empty())
    });
    let everything = To::default();
    let none = rule.to.is_empty().then_some(&everything);
    for to in rule.to.iter().chain(none) {
        let Operation { hosts, not_hosts, methods, not_methods, paths, not_paths, ports: of, not_ports } =
            &to.operation;
        let lists = [hosts, not_hosts, methods, not_methods, paths, not_paths];
        let http = http_when || http_from || lists.iter().any(|list| !list.is_empty());
        if action == Action::Deny && !http {
            continue;
        }
        let meant = |port: &&&ServicePort| {
            (of.is_empty() || of.contains(&port.port)) && !not_ports.contains(&port.port)
        };
        let tcp = ports.iter().filter(meant).find(|port| port.speaks() == AppProtocol::Tcp);
        if let Some(port) = tcp {
            let what = if action == Action::Custom { "asks about" } else { "would deny everything on" };
            let text = format!("{what} port {}, which does not speak HTTP", port.port);
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
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
    ];
    for (field, list) in texts {
        patterns(list, false, &at.field(field), report);
    }
    for (field, list) in [("principals", &source.principals), ("notPrincipals", &source.not_principals)] {
        for (i, id) in list.iter().enumerate().filter(|(_, id)| !is_principal(id)) {
            let error = report.report(&at.field(field).index(i), format!("{id:?} is nobody"));
            error.fix(
                "spiffe://<trust domain>/ns/<namespace>/sa/<service account>, with * at one end if need be",
            );
        }
    }
    let users = [
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
    ];
    for (field, list) in users {
        request_principals(list, &at.field(field), report);
    }
    for (field, list) in [("namespaces", &source.namespaces), ("notNamespaces", &source.not_namespaces)] {
        let is_name = |name: &str| name == "*" || is_dns_label(name.trim_matches('*').trim_matches('-'));
        for (i, name) in list.iter().enumerate().filter(|(_, name)| !is_name(name)) {
            report.report(&at.field(field).index(i), format!("{name:?} is no namespace"));
        }
    }
    for (field, list) in [("ipBlocks", &source.ip_blocks), ("notIpBlocks", &source.not_ip_blocks)] {
        ranges(list, &at.field(field), report);
    }
    let claimed =
        [("remoteIpBlocks", &source.remote_ip_blocks), ("notRemoteIpBlocks", &source.not_remote_ip_blocks)];
    for (field, _) in claimed.iter().filter(|(_, list)| !list.is_empty()) {
        claim(&at.field(field), report);
    }
}

/// What a caller says of its own callers (X-Forwarded-For) is nothing to go by until somebody says who may say it.
fn claim(at: &At<'_>, report: &mut Report) {
    report.unsupported(at, "is not supported yet: any caller can claim any address").fix("use ipBlocks");
}

fn is_principal(id: &str) -> bool {
    let rest = id.strip_prefix("spiffe://").unwrap_or(id);
    id.starts_with('*') || id.ends_with('*') || rest.contains("/ns/") && rest.contains("/sa/")
}

fn request_principals(list: &[String], at: &At<'_>, report: &mut Report) {
    let is_one = |id: &String| id.contains(['/', '*']);
    for (i, id) in list.iter().enumerate().filter(|(_, id)| !is_one(id)) {
        let error = report.report(&at.index(i), format!("{id:?} is nobody"));
        error.fix("<issuer>/<subject>, with * at one end if need be");
    }
}

/// Nobody has a token that nobody verifies. The rules may come later.
fn unverified(
    mesh: &Mesh,
    document: &Document<AuthorizationPolicySpec>,
    rule: &AuthorizationRule,
    at: &At<'_>,
    report: &mut Report,
) {
    let asks =
        |source: &Source| !(source.request_principals.is_empty() && source.not_request_principals.is_empty());
    let of_token = |c: &Condition| Attribute::parse(&c.key).is_some_and(|attribute| attribute.is_of_token());
    if !(rule.from.iter().any(|from| asks(&from.source)) || rule.when.iter().any(of_token)) {
        return;
    }
    let targets = document.spec.target_refs.iter();
    let services = targets.filter_map(|target| mesh.service(&document.metadata.namespace, &target.name));
    let verifies = |service: &Document<ServiceSpec>| {
        mesh.authentication(service).is_some_and(|policy| !policy.spec.jwt_rules.is_empty())
    };
    for service in services.filter(|service| !verifies(service)) {
        let text = format!("asks for a token, and no tokens are verified for {:?}", service.metadata.name);
        report.missing(at, text).fix("an AuthenticationPolicy with jwtRules");
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
    ];
    for (field, list) in texts {
        patterns(list, false, &at.field(field), report);
    }
    for (field, list) in [("hosts", &operation.hosts), ("notHosts", &operation.not_hosts)] {
        for (i, host) in list.iter().enumerate().filter(|(_, host)| !host.is_ascii()) {
            let error = report.report(&at.field(field).index(i), format!("no request has the host {host:?}"));
            error.fix("write it as requests do: xn--…");
        }
    }
    for (field, list) in [("methods", &operation.methods), ("notMethods", &operation.not_methods)] {
        for (i, method) in list.iter().enumerate().filter(|(_, m)| m.bytes().any(|b| b.is_ascii_lowercase()))
        {
            let error =
                report.report(&at.field(field).index(i), format!("no request has the method {method:?}"));
            error.fix(method.to_ascii_uppercase());
        }
    }
    for (field, list) in [("paths", &operation.paths), ("notPaths", &operation.not_paths)] {
        patterns(list, true, &at.field(field), report);
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
    if attribute == Attribute::RemoteIp {
        claim(&at.field("key"), report);
    }
    if condition.values.is_empty() && condition.not_values.is_empty() {
        report.report(&at.field("values"), "is missing").fix("values: [\"*\"] wants it to be there");
    }
    for (field, list) in [("values", &condition.values), ("notValues", &condition.not_values)] {
        match attribute {
            Attribute::SourceIp | Attribute::RemoteIp => ranges(list, &at.field(field), report),
            Attribute::RequestPrincipal => {
                patterns(list, false, &at.field(field), report);
                request_principals(list, &at.field(field), report);
            }
            _ => patterns(list, false, &at.field(field), report),
        }
    }
}

/// A `*` stands at the beginning or at the end; in paths there may be `{*}` and `{**}`.
fn patterns(list: &[String], templates: bool, at: &At<'_>, report: &mut Report) {
    report.at_most(MOST_ENTRIES, list.len(), at);
    for (i, text) in list.iter().enumerate() {
        let inner = text.strip_prefix('*').or_else(|| text.strip_suffix('*')).unwrap_or(text);
        if text.is_empty() {
            report.report(&at.index(i), "is empty").fix("\"*\" is anything");
        } else if text.len() > MOST_BYTES {
            report.report(&at.index(i), format!("is longer than {MOST_BYTES} bytes"));
        } else if without_templates(inner, templates).contains('*') {
            let error = report.report(&at.index(i), format!("{text:?} has a * in its middle"));
            error.fix("write * at the beginning or at the end, or {*} and {**} in a path");
        }
    }
}

fn without_templates(text: &str, templates: bool) -> String {
    if templates { text.replace("{**}", "").replace("{*}", "") } else { text.to_owned() }
}

fn ranges(list: &[String], at: &At<'_>, report: &mut Report) {
    report.at_most(MOST_ENTRIES, list.len(), at);
    for (i, text) in list.iter().enumerate().filter(|(_, text)| cidr(text).is_none()) {
        report.report(&at.index(i), format!("{text:?} is no range of addresses")).fix("10.1.0.0/16");
    }
}
