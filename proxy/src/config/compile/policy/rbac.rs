//! `envoy.config.rbac.v3.RBAC` and the filters that hold it.

use remora_xds::diag::At;
use remora_xds::pb::envoy::config::rbac::v3 as pb;
use remora_xds::pb::envoy::config::rbac::v3::permission::Rule as PermissionPb;
use remora_xds::pb::envoy::config::rbac::v3::principal::Identifier as PrincipalPb;
use remora_xds::pb::envoy::config::rbac::v3::rbac::Action as ActionPb;
use remora_xds::pb::envoy::config::route::v3::HeaderMatcher;
use remora_xds::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use remora_xds::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use remora_xds::pb::envoy::r#type::matcher::v3::PathMatcher;
use remora_xds::pb::envoy::r#type::matcher::v3::path_matcher::Rule as PathRulePb;
use remora_xds::pb::envoy::r#type::v3::Int32Range;

use super::metadata;
use crate::config::compile::Scope;
use crate::config::compile::common::{header_match, string_match, unsupported};
use crate::config::compile::fields::{cidr, refuse};
use crate::policy::rbac::{Action, Policy, RbacFilter, Rule, Rules};

/// What a list of rules is compiled for.
#[derive(Clone, Copy)]
struct Use {
    /// A match leads to access.
    grants: bool,
    /// There is a request; a connection has neither headers nor a path.
    http: bool,
}

impl Use {
    const fn negated(self) -> Self {
        Self { grants: !self.grants, ..self }
    }
}

/// Compiles the HTTP filter.
pub fn http_filter(pb: &HttpRbac, at: &At<'_>, scope: &mut Scope<'_>) -> RbacFilter {
    let HttpRbac {
        rules,
        rules_stat_prefix,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix,
        track_per_rule_stats: _, // every decision is counted with the name of its policy
    } = pb;
    refuse!(scope, at; matcher, shadow_matcher);
    let mut compile = |rules: &Option<pb::Rbac>, prefix: &str, field| {
        rules.as_ref().and_then(|pb| compile_rules(pb, prefix, true, &at.field(field), scope))
    };
    RbacFilter {
        rules: compile(rules, rules_stat_prefix, "rules"),
        shadow: compile(shadow_rules, shadow_rules_stat_prefix, "shadow_rules"),
    }
}

/// Compiles the network filter.
pub fn network_filter(pb: &NetworkRbac, at: &At<'_>, scope: &mut Scope<'_>) -> RbacFilter {
    let NetworkRbac {
        rules,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix,
        stat_prefix,
        // A connection is judged when it begins and again with every change of the configuration; between the two nothing
        // that a rule may look at changes, so that ONE_TIME_ON_FIRST_BYTE and CONTINUOUS are the same.
        enforcement_type: _,
        delay_deny,
    } = pb;
    refuse!(scope, at; matcher, shadow_matcher, delay_deny);
    let shadow_prefix = format!("{stat_prefix}{shadow_rules_stat_prefix}");
    let mut compile = |rules: &Option<pb::Rbac>, prefix: &str, field| {
        rules.as_ref().and_then(|pb| compile_rules(pb, prefix, false, &at.field(field), scope))
    };
    RbacFilter {
        rules: compile(rules, stat_prefix, "rules"),
        shadow: compile(shadow_rules, &shadow_prefix, "shadow_rules"),
    }
}

fn compile_rules(
    pb: &pb::Rbac,
    prefix: &str,
    http: bool,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Rules> {
    let pb::Rbac { action, policies, audit_logging_options } = pb;
    refuse!(scope, at; audit_logging_options);
    let action = match ActionPb::try_from(*action) {
        Ok(ActionPb::Allow) => Action::Allow,
        Ok(ActionPb::Deny) => Action::Deny,
        Ok(ActionPb::Log) | Err(_) => {
            scope
                .errors
                .report(&at.field("action"), "is not supported")
                .fix("use ALLOW, DENY or shadow_rules");
            return None;
        }
    };
    let purpose = Use { grants: action == Action::Allow, http };
    let at = at.field("policies");
    let mut compiled = Vec::with_capacity(policies.len());
    let mut policies: Vec<_> = policies.iter().collect();
    policies.sort_by_key(|(name, _)| *name);
    for (name, pb) in policies {
        let at = at.field(name);
        let pb::Policy { permissions, principals, condition, checked_condition, cel_config } = pb;
        refuse!(scope, &at; condition, checked_condition, cel_config);
        compiled.push(Policy {
            name: name.as_str().into(),
            id: scope.names.policies.intern(&label(prefix, name)),
            permissions: list(permissions, purpose, &at.field("permissions"), scope, permission),
            principals: list(principals, purpose, &at.field("principals"), scope, principal),
        });
    }
    let none = scope.names.policies.intern(&label(prefix, "none"));
    Some(Rules::new(action, compiled, prefix.into(), none))
}

/// The name by which a policy is numbered for metrics.
fn label(prefix: &str, policy: &str) -> String {
    format!("{prefix}\n{policy}")
}

fn list<P>(
    list: &[P],
    purpose: Use,
    at: &At<'_>,
    scope: &mut Scope<'_>,
    compile: impl Fn(&P, Use, &At<'_>, &mut Scope<'_>) -> Option<Rule>,
) -> Box<[Rule]> {
    if list.is_empty() {
        scope.errors.report(at, "must not be empty").fix("[{any: true}] is everything");
    }
    list.iter().enumerate().filter_map(|(i, pb)| compile(pb, purpose, &at.index(i), scope)).collect()
}

#[expect(deprecated, reason = "old files have metadata")]
fn permission(pb: &pb::Permission, purpose: Use, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Rule> {
    Some(match pb.rule.as_ref() {
        Some(PermissionPb::AndRules(set)) => {
            let at = at.field("and_rules");
            Rule::And(list(&set.rules, purpose, &at.field("rules"), scope, permission))
        }
        Some(PermissionPb::OrRules(set)) => {
            let at = at.field("or_rules");
            Rule::Or(list(&set.rules, purpose, &at.field("rules"), scope, permission))
        }
        Some(PermissionPb::NotRule(rule)) => {
            Rule::Not(Box::new(permission(rule, purpose.negated(), &at.field("not_rule"), scope)?))
        }
        Some(PermissionPb::Any(true)) => Rule::Any,
        Some(PermissionPb::Header(pb)) => return header(pb, purpose, &at.field("header"), scope),
        Some(PermissionPb::UrlPath(pb)) => return url_path(pb, purpose, &at.field("url_path"), scope),
        Some(PermissionPb::DestinationIp(range)) => {
            Rule::DestinationIp(cidr(range, &at.field("destination_ip"), scope)?)
        }
        Some(PermissionPb::DestinationPort(port)) => Rule::DestinationPort(*port..port.saturating_add(1)),
        Some(PermissionPb::DestinationPortRange(range)) => {
            return port_range(range, &at.field("destination_port_range"), scope);
        }
        Some(PermissionPb::RequestedServerName(text)) => {
            Rule::ServerName(string_match(text, &at.field("requested_server_name"), scope)?)
        }
        Some(PermissionPb::Metadata(pb)) => return metadata::claim(pb, &at.field("metadata"), scope),
        Some(PermissionPb::SourcedMetadata(pb)) => {
            return metadata::sourced(pb, &at.field("sourced_metadata"), scope);
        }
        Some(PermissionPb::Matcher(_)) => return refused(at, "matcher", scope),
        Some(PermissionPb::UriTemplate(_)) => return refused(at, "uri_template", scope),
        Some(PermissionPb::Any(false)) | None => return nothing(at, scope),
    })
}

#[expect(deprecated, reason = "old files have source_ip and metadata")]
fn principal(pb: &pb::Principal, purpose: Use, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Rule> {
    Some(match pb.identifier.as_ref() {
        Some(PrincipalPb::AndIds(set)) => {
            let at = at.field("and_ids");
            Rule::And(list(&set.ids, purpose, &at.field("ids"), scope, principal))
        }
        Some(PrincipalPb::OrIds(set)) => {
            let at = at.field("or_ids");
            Rule::Or(list(&set.ids, purpose, &at.field("ids"), scope, principal))
        }
        Some(PrincipalPb::NotId(id)) => {
            Rule::Not(Box::new(principal(id, purpose.negated(), &at.field("not_id"), scope)?))
        }
        Some(PrincipalPb::Any(true)) => Rule::Any,
        Some(PrincipalPb::Authenticated(pb)) => {
            let at = at.field("authenticated");
            match &pb.principal_name {
                Some(text) => Rule::Authenticated(string_match(text, &at.field("principal_name"), scope)?),
                None => Rule::AnyPeer { grants: purpose.grants },
            }
        }
        Some(PrincipalPb::SourceIp(range)) => {
            Rule::DirectRemoteIp(cidr(range, &at.field("source_ip"), scope)?)
        }
        Some(PrincipalPb::DirectRemoteIp(range)) => {
            Rule::DirectRemoteIp(cidr(range, &at.field("direct_remote_ip"), scope)?)
        }
        Some(PrincipalPb::RemoteIp(range)) => Rule::RemoteIp(cidr(range, &at.field("remote_ip"), scope)?),
        Some(PrincipalPb::Header(pb)) => return header(pb, purpose, &at.field("header"), scope),
        Some(PrincipalPb::UrlPath(pb)) => return url_path(pb, purpose, &at.field("url_path"), scope),
        Some(PrincipalPb::Metadata(pb)) => return metadata::claim(pb, &at.field("metadata"), scope),
        Some(PrincipalPb::SourcedMetadata(pb)) => {
            return metadata::sourced(pb, &at.field("sourced_metadata"), scope);
        }
        Some(PrincipalPb::FilterState(_)) => return refused(at, "filter_state", scope),
        Some(PrincipalPb::Custom(_)) => return refused(at, "custom", scope),
        Some(PrincipalPb::Any(false)) | None => return nothing(at, scope),
    })
}

fn refused(at: &At<'_>, field: &str, scope: &mut Scope<'_>) -> Option<Rule> {
    unsupported(true, &at.field(field), scope);
    None
}

fn nothing(at: &At<'_>, scope: &mut Scope<'_>) -> Option<Rule> {
    scope.errors.report(at, "says nothing").fix("any: true is everything");
    None
}

/// A rule about a request makes no sense for a connection; without a request it would never hold, and its negation always.
fn only_http(purpose: Use, at: &At<'_>, scope: &mut Scope<'_>) -> Option<()> {
    if !purpose.http {
        let fix = "use envoy.filters.http.rbac";
        scope.errors.report(at, "a connection has no headers and no path").fix(fix);
    }
    purpose.http.then_some(())
}

fn header(pb: &HeaderMatcher, purpose: Use, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Rule> {
    only_http(purpose, at, scope)?;
    Some(Rule::Header { matcher: header_match(pb, at, scope)?, grants: purpose.grants })
}

fn url_path(pb: &PathMatcher, purpose: Use, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Rule> {
    only_http(purpose, at, scope)?;
    match &pb.rule {
        Some(PathRulePb::Path(text)) => string_match(text, &at.field("path"), scope).map(Rule::Path),
        None => nothing(at, scope),
    }
}

/// The end is not part of the range.
fn port_range(range: &Int32Range, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Rule> {
    match (u32::try_from(range.start), u32::try_from(range.end)) {
        (Ok(start), Ok(end)) if start < end && end <= 65536 => Some(Rule::DestinationPort(start..end)),
        _ => {
            scope.errors.report(at, "is no range of ports").fix("start: 80, end: 81 is port 80 alone");
            None
        }
    }
}
