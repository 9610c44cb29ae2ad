//! `RouteMatch`.

use remora_xds::diag::At;
use remora_xds::pb::envoy::config::route::v3 as pb;
use remora_xds::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use remora_xds::pb::envoy::config::route::v3::route_match::PathSpecifier;

use crate::config::compile::Scope;
use crate::config::compile::common::{header_matches, regex, runtime_fraction, string_match, unsupported};
use crate::route::matcher::{CookieMatch, PathMatch, QueryMatch, QueryRule, RouteMatch};

/// Compiles a `RouteMatch`.
pub fn route_match(pb: Option<&pb::RouteMatch>, at: &At<'_>, scope: &mut Scope<'_>) -> Option<RouteMatch> {
    let Some(pb) = pb else {
        scope.errors.report(at, "is required");
        return None;
    };
    let pb::RouteMatch {
        case_sensitive,
        runtime_fraction: fraction,
        headers,
        query_parameters,
        cookies,
        grpc,
        tls_context,
        dynamic_metadata,
        filter_state,
        path_specifier,
    } = pb;
    unsupported(tls_context.is_some(), &at.field("tls_context"), scope);
    unsupported(!dynamic_metadata.is_empty(), &at.field("dynamic_metadata"), scope);
    unsupported(!filter_state.is_empty(), &at.field("filter_state"), scope);
    let ignore_case = case_sensitive.as_ref().is_some_and(|v| !v.value);
    let path = path_match(path_specifier.as_ref(), ignore_case, at, scope);
    let query_at = at.field("query_parameters");
    let query = query_parameters.iter().enumerate();
    let cookies_at = at.field("cookies");
    let fraction_at = at.field("runtime_fraction");
    Some(RouteMatch {
        headers: header_matches(headers, &at.field("headers"), scope),
        query: query.filter_map(|(i, q)| query_match(q, &query_at.index(i), scope)).collect(),
        cookies: cookies
            .iter()
            .enumerate()
            .filter_map(|(i, c)| cookie_match(c, &cookies_at.index(i), scope))
            .collect(),
        grpc: grpc.is_some(),
        fraction: fraction.as_ref().and_then(|f| runtime_fraction(f, &fraction_at, scope)),
        path: path?,
    })
}

fn path_match(
    pb: Option<&PathSpecifier>,
    ignore_case: bool,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<PathMatch> {
    Some(match pb {
        Some(PathSpecifier::Prefix(text)) => PathMatch::Prefix { text: text.as_str().into(), ignore_case },
        Some(PathSpecifier::Path(text)) => PathMatch::Exact { text: text.as_str().into(), ignore_case },
        Some(PathSpecifier::PathSeparatedPrefix(text)) => {
            if text.is_empty() || text.ends_with('/') || text.contains(['?', '#']) {
                let message = "must not be empty, hold ? or #, or end in /";
                scope.errors.report(&at.field("path_separated_prefix"), message);
                return None;
            }
            PathMatch::SeparatedPrefix { text: text.as_str().into(), ignore_case }
        }
        Some(PathSpecifier::SafeRegex(pattern)) => {
            PathMatch::Regex(regex(pattern, &at.field("safe_regex"), scope)?)
        }
        Some(PathSpecifier::ConnectMatcher(pb::route_match::ConnectMatcher {})) => PathMatch::Connect,
        Some(PathSpecifier::PathMatchPolicy(_)) => {
            unsupported(true, &at.field("path_match_policy"), scope);
            return None;
        }
        None => {
            let message = "needs prefix, path, path_separated_prefix, safe_regex or connect_matcher";
            scope.errors.report(at, message);
            return None;
        }
    })
}

pub(in crate::config::compile) fn query_match(
    pb: &pb::QueryParameterMatcher,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<QueryMatch> {
    let pb::QueryParameterMatcher { name, query_parameter_match_specifier } = pb;
    if name.is_empty() {
        scope.errors.report(&at.field("name"), "must not be empty");
    }
    let rule = match query_parameter_match_specifier {
        Some(QueryParameterMatchSpecifier::StringMatch(text)) => {
            QueryRule::Text(string_match(text, &at.field("string_match"), scope)?)
        }
        Some(QueryParameterMatchSpecifier::PresentMatch(wanted)) => QueryRule::Present(*wanted),
        None => QueryRule::Present(true),
    };
    Some(QueryMatch { name: name.as_str().into(), rule })
}

fn cookie_match(pb: &pb::CookieMatcher, at: &At<'_>, scope: &mut Scope<'_>) -> Option<CookieMatch> {
    let pb::CookieMatcher { name, string_match: text, invert_match } = pb;
    if name.is_empty() {
        scope.errors.report(&at.field("name"), "must not be empty");
    }
    let Some(text) = text else {
        scope.errors.report(&at.field("string_match"), "is required");
        return None;
    };
    let text = string_match(text, &at.field("string_match"), scope)?;
    Some(CookieMatch { name: name.as_str().into(), text, invert: *invert_match })
}
