//! Matches.

use remora_xds::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use remora_xds::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use remora_xds::pb::envoy::config::route::v3::route_match::PathSpecifier;
use remora_xds::pb::envoy::config::route::v3::{HeaderMatcher, QueryParameterMatcher, RouteMatch};
use remora_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use remora_xds::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};

use crate::document::{HttpMatch, PathMatch, PathMatchType, ValueMatch, ValueMatchType};

/// A match of a rule.
pub(super) fn compile(matched: &HttpMatch) -> RouteMatch {
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
