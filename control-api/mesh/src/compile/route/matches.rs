//! Matches.

use remora_xds::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use remora_xds::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use remora_xds::pb::envoy::config::route::v3::route_match::PathSpecifier;
use remora_xds::pb::envoy::config::route::v3::{HeaderMatcher, QueryParameterMatcher, RouteMatch};
use remora_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use remora_xds::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};

use crate::document::{
    GrpcMatch, GrpcMethod, HttpMatch, PathMatch, PathMatchType, ValueMatch, ValueMatchType,
};

/// A match of an HTTPRoute.
pub(super) fn http(matched: &HttpMatch) -> RouteMatch {
    let method = matched.method.as_ref().map(|m| header(":method", MatchPattern::Exact(m.clone())));
    let headers = matched.headers.iter().map(|h| header(&h.name, pattern(h)));
    let query = matched.query_params.iter().map(|q| QueryParameterMatcher {
        name: q.name.clone(),
        query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(string(pattern(q)))),
    });
    RouteMatch {
        path_specifier: Some(path(&matched.path)),
        headers: method.into_iter().chain(headers).collect(),
        query_parameters: query.collect(),
        ..RouteMatch::default()
    }
}

/// What is left of a match where there are no routes: its headers, with the path and the query behind it as one of them, and its query
/// parameters.
pub(in crate::compile) fn conditions(
    matched: &HttpMatch,
) -> (Vec<HeaderMatcher>, Vec<QueryParameterMatcher>) {
    let RouteMatch { headers, query_parameters, .. } = http(matched);
    let PathMatch { kind, value } = &matched.path;
    let path = match kind {
        PathMatchType::Exact => Some(quoted(value)),
        PathMatchType::RegularExpression => Some(format!("(?:{value})")),
        PathMatchType::PathPrefix => {
            let prefix = value.trim_end_matches('/');
            (!prefix.is_empty()).then(|| format!("{}(?:/[^?]*)?", quoted(prefix)))
        }
    };
    let path = path.map(|path| header(":path", MatchPattern::SafeRegex(regex(&format!("{path}(?:\\?.*)?")))));
    (path.into_iter().chain(headers).collect(), query_parameters)
}

/// A match of a GRPCRoute: the path of a call is `/service/method`.
pub(super) fn grpc(matched: &GrpcMatch) -> RouteMatch {
    let nothing = GrpcMethod::default();
    let method = matched.method.as_ref().unwrap_or(&nothing);
    let path = match (method.kind, method.service.as_deref(), method.method.as_deref()) {
        (_, None, None) => PathSpecifier::Prefix("/".into()),
        (ValueMatchType::Exact, Some(service), None) => PathSpecifier::Prefix(format!("/{service}/")),
        (ValueMatchType::Exact, Some(service), Some(name)) => {
            PathSpecifier::Path(format!("/{service}/{name}"))
        }
        (ValueMatchType::Exact, None, Some(name)) => {
            PathSpecifier::SafeRegex(regex(&format!("/[^/]+/{}", quoted(name))))
        }
        (ValueMatchType::RegularExpression, service, name) => {
            let part =
                |text: Option<&str>| text.map_or_else(|| "[^/]+".to_owned(), |text| format!("(?:{text})"));
            PathSpecifier::SafeRegex(regex(&format!("/{}/{}", part(service), part(name))))
        }
    };
    RouteMatch {
        path_specifier: Some(path),
        headers: matched.headers.iter().map(|h| header(&h.name, pattern(h))).collect(),
        ..RouteMatch::default()
    }
}

/// Characters that mean something in RE2, escaped.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_punctuation() && c != '/' && c != '_' && c != '-' {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn path(path: &PathMatch) -> PathSpecifier {
    match path.kind {
        PathMatchType::Exact => PathSpecifier::Path(path.value.clone()),
        PathMatchType::RegularExpression => PathSpecifier::SafeRegex(regex(&path.value)),
        PathMatchType::PathPrefix => match path.value.trim_end_matches('/') {
            "" => PathSpecifier::Prefix("/".into()),
            prefix => PathSpecifier::PathSeparatedPrefix(prefix.into()),
        },
    }
}

pub(super) fn regex(text: &str) -> RegexMatcher {
    RegexMatcher { regex: text.into(), ..RegexMatcher::default() }
}

fn pattern(value: &ValueMatch) -> MatchPattern {
    match value.kind {
        ValueMatchType::Exact => MatchPattern::Exact(value.value.clone()),
        ValueMatchType::RegularExpression => MatchPattern::SafeRegex(regex(&value.value)),
    }
}

fn string(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }
}

fn header(name: &str, pattern: MatchPattern) -> HeaderMatcher {
    HeaderMatcher {
        name: name.into(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(string(pattern))),
        ..HeaderMatcher::default()
    }
}
