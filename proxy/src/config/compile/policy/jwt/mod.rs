//! `envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication`.

use std::collections::BTreeMap;

use http::HeaderName;
use remora_xds::diag::At;
use remora_xds::pb::envoy::extensions::filters::http::jwt_authn::v3 as pb;

use self::requirement::Providers;
use crate::config::compile::Scope;
use crate::config::compile::fields::refuse;
use crate::config::compile::route::compile_route_match;
use crate::policy::jwt::provider::Provider;
use crate::policy::jwt::{JwtFilter, Rule};

mod provider;
mod requirement;

/// Compiles the filter. None when it has mistakes, which are in `scope.errors`.
pub fn jwt_filter(pb: &pb::JwtAuthentication, at: &At<'_>, scope: &mut Scope<'_>) -> Option<JwtFilter> {
    let before = scope.errors.len();
    let pb::JwtAuthentication {
        providers,
        rules,
        filter_state_rules,
        bypass_cors_preflight,
        requirement_map,
        strip_failure_response,
        stat_prefix,
    } = pb;
    refuse!(scope, at; filter_state_rules, strip_failure_response, stat_prefix);
    let providers_at = at.field("providers");
    let mut list: Vec<_> = providers.iter().collect();
    list.sort_by_key(|(name, _)| *name);
    let providers: Box<[Provider]> = list
        .into_iter()
        .filter_map(|(name, pb)| provider::compile(name, pb, &providers_at.field(name), scope))
        .collect();
    let known = Providers(&providers);
    let map_at = at.field("requirement_map");
    let mut named = BTreeMap::new();
    for (name, pb) in requirement_map {
        if let Some(requirement) = known.requirement(pb, &map_at.field(name), scope) {
            named.insert(name.as_str().into(), requirement);
        }
    }
    let rules_at = at.field("rules");
    let rules = rules.iter().enumerate();
    let rules = rules.filter_map(|(i, pb)| rule(pb, known, &named, &rules_at.index(i), scope)).collect();
    let own_headers = own_headers(&providers);
    let filter =
        JwtFilter { providers, rules, named, bypass_cors_preflight: *bypass_cors_preflight, own_headers };
    (scope.errors.len() == before).then_some(filter)
}

fn rule(
    pb: &pb::RequirementRule,
    known: Providers<'_>,
    named: &BTreeMap<Box<str>, crate::policy::jwt::requirement::Requirement>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Rule> {
    use pb::requirement_rule::RequirementType;
    let pb::RequirementRule { r#match, requirement_type } = pb;
    let matcher = compile_route_match(r#match.as_ref(), &at.field("match"), scope);
    let requirement = match requirement_type {
        None => None,
        Some(RequirementType::Requires(pb)) if pb.requires_type.is_none() => None,
        Some(RequirementType::Requires(pb)) => Some(known.requirement(pb, &at.field("requires"), scope)?),
        Some(RequirementType::RequirementName(name)) => {
            let requirement = named.get(name.as_str()).cloned();
            if requirement.is_none() {
                let message = format!("`{name}` is not in requirement_map");
                scope.errors.report(&at.field("requirement_name"), message);
            }
            Some(requirement?)
        }
    };
    Some(Rule { matcher: matcher?, requirement })
}

/// The headers that only the filter writes.
fn own_headers(providers: &[Provider]) -> Box<[HeaderName]> {
    let payloads = providers.iter().filter_map(|p| p.payload_header.as_ref()).map(|(name, _)| name);
    let claims = providers.iter().flat_map(|p| &p.claim_headers).map(|(name, _)| name);
    payloads.chain(claims).cloned().collect()
}
