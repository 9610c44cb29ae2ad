//! AuthorizationPolicies -> RBAC filters of the listener in front of a program, and those that ask somebody else.
//!
//! Rules about what only HTTP has are strict on an opaque port: a `Deny` looks at the rest of the rule, an `Allow` never matches. A
//! `Custom` is a `Deny` where nobody can be asked: on such a port, or when its provider is not there.

mod matchers;
mod provider;
mod token;

use std::collections::BTreeMap;

use remora_xds::pb::envoy::config::listener::v3::Filter;
use remora_xds::pb::envoy::config::listener::v3::filter::ConfigType;
use remora_xds::pb::envoy::config::rbac::v3::rbac::Action as RbacAction;
use remora_xds::pb::envoy::config::rbac::v3::{Permission, Policy, Principal, Rbac};
use remora_xds::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use remora_xds::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;

use super::http::http_filter;
use super::parts;
use crate::document::{
    Action, AuthorizationPolicySpec, AuthorizationRule, Condition, Document, Operation, ServiceSpec, Source,
};
use crate::mesh::Mesh;
use crate::name::Name;

pub(super) use provider::ports as asked;

use matchers::{Permit, Who};

/// The filter, under whose name verdicts are left.
const RBAC: &str = "envoy.filters.http.rbac";
/// In front of metrics of decisions that are not followed.
const DRY_RUN: &str = "dry_run_";

/// The rules of one port.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// Filters that ask, by policy.
    custom: BTreeMap<Name, Vec<HttpFilter>>,
    deny: Set,
    allow: Set,
}

/// Rules of one action.
#[derive(Debug, Default)]
struct Set {
    enforced: Option<Rbac>,
    dry_run: Option<Rbac>,
}

/// What rules are about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) mesh: &'a Mesh,
    pub(super) trust_domain: &'a str,
    /// Whether the port speaks HTTP.
    pub(super) http: bool,
}

/// The policies of a Service.
pub(super) fn of<'a>(
    mesh: &'a Mesh,
    service: &'a Document<ServiceSpec>,
) -> impl Iterator<Item = &'a Document<AuthorizationPolicySpec>> {
    mesh.authorizations(service).map(|policy| &**policy)
}

/// The rules of a port. `own` are the Services, and ports of theirs, that lead to it in what it speaks; `all` are those that lead to its
/// number at all. It is one program that hears them, so that the rules of all hold: nobody gets around one by another protocol.
pub(super) fn rules(subject: Subject<'_>, own: &[Call<'_>], all: &[Call<'_>]) -> Rules {
    let mut rules = Rules::default();
    let mut seen = Vec::new();
    for (service, _) in all {
        let unreadable = subject.mesh.authentication(service).filter(|policy| policy.spec.unreadable);
        if let Some(policy) = unreadable {
            rules.refuse_all(&policy.name());
        }
        for policy in of(subject.mesh, service) {
            if seen.contains(&policy.name()) {
                continue;
            }
            seen.push(policy.name());
            let of_all = ports_of(policy, all);
            let of_own = ports_of(policy, own);
            let ports = match policy.spec.action {
                Action::Allow if !of_own.is_empty() => of_own,
                _ => of_all,
            };
            rules.add(subject, policy, &ports);
        }
    }
    rules
}

/// A port of a Service.
type Call<'a> = (&'a Document<ServiceSpec>, u16);

/// The ports of `calls` that are of a policy's targets.
fn ports_of(policy: &Document<AuthorizationPolicySpec>, calls: &[(&Document<ServiceSpec>, u16)]) -> Vec<u16> {
    let targeted = |service: &Document<ServiceSpec>| {
        policy.metadata.namespace == service.metadata.namespace && policy.spec.is_for(&service.metadata.name)
    };
    calls.iter().filter(|(service, _)| targeted(service)).map(|(_, port)| *port).collect()
}

impl Rules {
    fn add(&mut self, subject: Subject<'_>, policy: &Document<AuthorizationPolicySpec>, ports: &[u16]) {
        let context = Context { subject, action: policy.spec.action, ports };
        let compiled = context.rules(policy);
        let (set, action) = match policy.spec.action {
            Action::Allow => (&mut self.allow, RbacAction::Allow),
            Action::Deny => (&mut self.deny, RbacAction::Deny),
            // It matches nothing here, or is nothing to follow.
            Action::Custom if compiled.is_empty() || policy.spec.dry_run => return,
            Action::Custom => {
                if let Some(asked) = provider::of(subject.mesh, policy).filter(|_| subject.http) {
                    let everything = context.rule(&AuthorizationRule::default());
                    let all = compiled.iter().any(|(_, rule)| Some(rule) == everything.as_ref());
                    self.custom.insert(policy.name(), asked.filters((!all).then_some(compiled)));
                    return;
                }
                (&mut self.deny, RbacAction::Deny)
            }
        };
        let into = if policy.spec.dry_run { &mut set.dry_run } else { &mut set.enforced };
        // An `Allow` without rules allows nothing.
        let rbac = into.get_or_insert_with(|| Rbac { action: action.into(), ..Rbac::default() });
        rbac.policies.extend(compiled);
    }

    /// Nothing passes, by a policy of this name.
    fn refuse_all(&mut self, name: &Name) {
        let deny = || Rbac { action: RbacAction::Deny.into(), ..Rbac::default() };
        let everything = Policy {
            permissions: vec![Permit::all(Vec::new())],
            principals: vec![Who::all(Vec::new())],
            ..Policy::default()
        };
        let policies = &mut self.deny.enforced.get_or_insert_with(deny).policies;
        policies.insert(format!("{}/{}:unreadable", name.namespace, name.name), everything);
    }

    /// Only what an `Allow` matches passes, and nothing if there is none.
    pub(super) fn close(&mut self) {
        let allow = || Rbac { action: RbacAction::Allow.into(), ..Rbac::default() };
        self.allow.enforced.get_or_insert_with(allow);
    }

    /// Before the router. Others are asked before rules are looked at, in the order of the policies' names.
    pub(super) fn http(self) -> Vec<HttpFilter> {
        let sets = [self.deny, self.allow].into_iter().filter(|set| !set.is_empty());
        let judging = |Set { enforced, dry_run }| {
            let config = HttpRbac {
                rules: enforced,
                shadow_rules: dry_run,
                shadow_rules_stat_prefix: DRY_RUN.into(),
                ..HttpRbac::default()
            };
            http_filter(RBAC, parts::pack(&config))
        };
        self.custom.into_values().flatten().chain(sets.map(judging)).collect()
    }

    /// Before the TCP proxy.
    pub(super) fn network(self, stat: &str) -> Vec<Filter> {
        let sets = [self.deny, self.allow].into_iter().filter(|set| !set.is_empty());
        let filter = |Set { enforced, dry_run }| Filter {
            name: "envoy.filters.network.rbac".into(),
            config_type: Some(ConfigType::TypedConfig(parts::pack(&NetworkRbac {
                rules: enforced,
                shadow_rules: dry_run,
                shadow_rules_stat_prefix: DRY_RUN.into(),
                stat_prefix: stat.into(),
                ..NetworkRbac::default()
            }))),
        };
        sets.map(filter).collect()
    }
}

impl Set {
    const fn is_empty(&self) -> bool {
        self.enforced.is_none() && self.dry_run.is_none()
    }
}

/// What a rule is compiled for.
struct Context<'a> {
    subject: Subject<'a>,
    action: Action,
    /// Ports of the Services that lead here.
    ports: &'a [u16],
}

impl Context<'_> {
    /// The rules that can match here, by name.
    fn rules(&self, policy: &Document<AuthorizationPolicySpec>) -> Vec<(String, Policy)> {
        let name = policy.name();
        let rules = policy.spec.rules.iter().enumerate();
        rules.filter_map(|(i, rule)| Some((format!("{name}:rules[{i}]"), self.rule(rule)?))).collect()
    }

    /// None: it never matches here.
    fn rule(&self, rule: &AuthorizationRule) -> Option<Policy> {
        let (mut permit, mut who) = (Vec::new(), Vec::new());
        for condition in &rule.when {
            self.condition(condition, &mut permit, &mut who)?;
        }
        let mut permissions = Vec::new();
        for to in &rule.to {
            if let Some(mut all) = self.operation(&to.operation) {
                all.extend(permit.iter().cloned());
                permissions.push(Permit::all(all));
            }
        }
        let mut principals = Vec::new();
        for from in &rule.from {
            if let Some(mut all) = self.source(&from.source) {
                all.extend(who.iter().cloned());
                principals.push(Who::all(all));
            }
        }
        if rule.to.is_empty() {
            permissions.push(Permit::all(permit));
        }
        if rule.from.is_empty() {
            principals.push(Who::all(who));
        }
        let matches_nothing = permissions.is_empty() || principals.is_empty();
        (!matches_nothing).then(|| Policy { permissions, principals, ..Policy::default() })
    }

    /// Something that only HTTP has, on an opaque port: an `Allow` cannot match, and others do without it.
    fn http_only(&self, present: bool) -> Option<bool> {
        match (present && !self.subject.http, self.action.guards()) {
            (false, _) => Some(present),
            (true, true) => Some(false),
            (true, false) => None,
        }
    }

    fn operation(&self, operation: &Operation) -> Option<Vec<Permission>> {
        let Operation { hosts, not_hosts, ports, not_ports, methods, not_methods, paths, not_paths } =
            operation;
        let mut all = Vec::new();
        let lists = [
            (hosts, not_hosts, Permit::host as fn(&str) -> Permission),
            (methods, not_methods, Permit::method),
            (paths, not_paths, Permit::path),
        ];
        for (one_of, none_of, make) in lists {
            if self.http_only(!(one_of.is_empty() && none_of.is_empty()))? {
                all.extend(Permit::any_of(one_of.iter().map(|text| make(text)).collect()));
                all.extend(Permit::none_of(none_of.iter().map(|text| make(text)).collect()));
            }
        }
        self.is_for(ports, not_ports).then_some(all)
    }

    /// Whether the ports of the Services that lead here are meant. Where some are and some are not, the stricter answer.
    fn is_for(&self, ports: &[u16], not_ports: &[u16]) -> bool {
        let meant = |port: &u16| (ports.is_empty() || ports.contains(port)) && !not_ports.contains(port);
        if self.action.guards() { self.ports.iter().any(meant) } else { self.ports.iter().all(meant) }
    }

    fn source(&self, source: &Source) -> Option<Vec<Principal>> {
        let Source {
            principals,
            not_principals,
            namespaces,
            not_namespaces,
            ip_blocks,
            not_ip_blocks,
            remote_ip_blocks,
            not_remote_ip_blocks,
            request_principals,
            not_request_principals,
        } = source;
        let domain = self.subject.trust_domain;
        let namespace = |text: &str| Who::namespace(domain, text);
        let mut all = Vec::new();
        let mut add = |one_of: &[String], none_of: &[String], make: &dyn Fn(&str) -> Principal| {
            all.extend(Who::any_of(one_of.iter().map(|text| make(text)).collect()));
            all.extend(Who::none_of(none_of.iter().map(|text| make(text)).collect()));
        };
        add(principals, not_principals, &Who::principal);
        add(namespaces, not_namespaces, &namespace);
        add(ip_blocks, not_ip_blocks, &Who::direct_ip);
        if self.http_only(!(remote_ip_blocks.is_empty() && not_remote_ip_blocks.is_empty()))? {
            add(remote_ip_blocks, not_remote_ip_blocks, &Who::remote_ip);
        }
        if self.http_only(!(request_principals.is_empty() && not_request_principals.is_empty()))? {
            add(request_principals, not_request_principals, &token::principal);
        }
        Some(all)
    }

    fn condition(
        &self,
        condition: &Condition,
        permit: &mut Vec<Permission>,
        who: &mut Vec<Principal>,
    ) -> Option<()> {
        use crate::document::Attribute as A;
        let Some(attribute) = A::parse(&condition.key) else {
            // Written by somebody who knows more than this version: an `Allow` cannot match, and others do without it.
            return self.action.guards().then_some(());
        };
        if attribute.is_http() && !self.http_only(true)? {
            return Some(());
        }
        let domain = self.subject.trust_domain;
        let Condition { values, not_values, .. } = condition;
        if let A::Header(_) | A::Sni = attribute {
            let make = |text: &String| match &attribute {
                A::Header(name) => Permit::header(name, text),
                _ => Permit::sni(text),
            };
            permit.extend(Permit::any_of(values.iter().map(make).collect()));
            permit.extend(Permit::none_of(not_values.iter().map(make).collect()));
            return Some(());
        }
        let make = |text: &String| match &attribute {
            A::SourceIp => Who::direct_ip(text),
            A::RemoteIp => Who::remote_ip(text),
            A::Namespace => Who::namespace(domain, text),
            A::RequestPrincipal => token::principal(text),
            A::Claim(path) => token::claim(path, text),
            _ => Who::principal(text),
        };
        who.extend(Who::any_of(values.iter().map(make).collect()));
        who.extend(Who::none_of(not_values.iter().map(make).collect()));
        Some(())
    }
}
