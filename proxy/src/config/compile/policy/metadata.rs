//! `MetadataMatcher` and `ValueMatcher`: claims of verified tokens, and verdicts of RBAC.

use remora_xds::diag::At;
use remora_xds::pb::envoy::config::rbac::v3::{MetadataSource, SourcedMetadata};
use remora_xds::pb::envoy::r#type::matcher::v3::double_matcher::MatchPattern as DoublePattern;
use remora_xds::pb::envoy::r#type::matcher::v3::list_matcher::MatchPattern as ListPattern;
use remora_xds::pb::envoy::r#type::matcher::v3::metadata_matcher::PathSegment;
use remora_xds::pb::envoy::r#type::matcher::v3::metadata_matcher::path_segment::Segment;
use remora_xds::pb::envoy::r#type::matcher::v3::value_matcher::MatchPattern;
use remora_xds::pb::envoy::r#type::matcher::v3::{MetadataMatcher, ValueMatcher};

use crate::config::compile::Scope;
use crate::config::compile::common::string_match;
use crate::policy::authz::Condition;
use crate::policy::rbac::{ClaimMatch, Engine, Rule, ValueMatch};

/// The one filter that leaves something behind for rules.
const JWT: &str = "envoy.filters.http.jwt_authn";
/// Leaves something behind for `filter_enabled_metadata`.
const RBAC: &str = "envoy.filters.http.rbac";

pub(super) fn sourced(pb: &SourcedMetadata, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Rule> {
    let SourcedMetadata { metadata_matcher, metadata_source } = pb;
    if *metadata_source != MetadataSource::Dynamic as i32 {
        scope.errors.report(&at.field("metadata_source"), "is not supported").fix("use DYNAMIC");
        return None;
    }
    let at = at.field("metadata_matcher");
    match metadata_matcher {
        Some(pb) => claim(pb, &at, scope),
        None => {
            scope.errors.report(&at, "is required");
            None
        }
    }
}

pub(super) fn claim(pb: &MetadataMatcher, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Rule> {
    if pb.filter != JWT {
        return stranger(&pb.filter, "envoy.filters.http.jwt_authn does", at, scope);
    }
    let fix = "the first key is payload_in_metadata of a provider";
    matcher(pb, fix, at, scope).map(Rule::Claim)
}

/// `filter_enabled_metadata`.
pub(super) fn condition(pb: &MetadataMatcher, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Condition> {
    let fix = "the first key is payload_in_metadata of a provider";
    match pb.filter.as_str() {
        JWT => matcher(pb, fix, at, scope).map(Condition::Claim),
        RBAC => verdict(pb, at, scope).map(Condition::Verdict),
        other => stranger(other, "envoy.filters.http.rbac and envoy.filters.http.jwt_authn do", at, scope),
    }
}

fn stranger<T>(filter: &str, fix: &str, at: &At<'_>, scope: &mut Scope<'_>) -> Option<T> {
    scope.errors.report(&at.field("filter"), format!("`{filter}` leaves no metadata here")).fix(fix);
    None
}

/// A verdict is a text under one key.
fn verdict(pb: &MetadataMatcher, at: &At<'_>, scope: &mut Scope<'_>) -> Option<ClaimMatch> {
    let fix = "shadow_rules_stat_prefix of a filter in front, and shadow_effective_policy_id";
    let matcher = matcher(pb, fix, at, scope)?;
    if !Engine::has(&matcher.payload) || !matcher.path.is_empty() {
        scope.errors.report(&at.field("path"), "is nothing that the filter leaves").fix(fix);
        return None;
    }
    Some(matcher)
}

fn matcher(pb: &MetadataMatcher, fix: &str, at: &At<'_>, scope: &mut Scope<'_>) -> Option<ClaimMatch> {
    let MetadataMatcher { filter: _, path, value, invert } = pb;
    let key = |segment: &PathSegment| segment.segment.as_ref().map(|Segment::Key(key)| key.clone());
    let keys: Option<Vec<String>> = path.iter().map(key).collect();
    let Some((payload, path)) = keys.as_deref().and_then(<[String]>::split_first) else {
        scope.errors.report(&at.field("path"), "has no key, or one that is empty").fix(fix);
        return None;
    };
    let at = at.field("value");
    let Some(value) = value else {
        scope.errors.report(&at, "is required");
        return None;
    };
    let value = value_match(value, &at, scope)?;
    let path = path.iter().map(|key| key.as_str().into()).collect();
    Some(ClaimMatch { payload: payload.as_str().into(), path, value, invert: *invert })
}

fn value_match(pb: &ValueMatcher, at: &At<'_>, scope: &mut Scope<'_>) -> Option<ValueMatch> {
    Some(match &pb.match_pattern {
        Some(MatchPattern::NullMatch(_)) => ValueMatch::Null,
        Some(MatchPattern::BoolMatch(wanted)) => ValueMatch::Bool(*wanted),
        Some(MatchPattern::PresentMatch(true)) => ValueMatch::Present,
        Some(MatchPattern::PresentMatch(false)) => {
            let fix = "present_match: true, and invert: true beside the value";
            scope.errors.report(&at.field("present_match"), "matches nothing, nor does it in Envoy").fix(fix);
            return None;
        }
        Some(MatchPattern::StringMatch(text)) => {
            ValueMatch::Text(string_match(text, &at.field("string_match"), scope)?)
        }
        Some(MatchPattern::DoubleMatch(double)) => match &double.match_pattern {
            Some(DoublePattern::Exact(exact)) => ValueMatch::Number(*exact),
            Some(DoublePattern::Range(range)) => ValueMatch::Range(range.start..range.end),
            None => return nothing(&at.field("double_match"), scope),
        },
        Some(MatchPattern::ListMatch(list)) => {
            let at = at.field("list_match");
            match &list.match_pattern {
                Some(ListPattern::OneOf(one)) => {
                    ValueMatch::OneOf(Box::new(value_match(one, &at.field("one_of"), scope)?))
                }
                None => return nothing(&at, scope),
            }
        }
        Some(MatchPattern::OrMatch(any)) => {
            let at = at.field("or_match");
            let at = at.field("value_matchers");
            let list = any.value_matchers.iter().enumerate();
            ValueMatch::Or(list.filter_map(|(i, v)| value_match(v, &at.index(i), scope)).collect())
        }
        None => return nothing(at, scope),
    })
}

fn nothing(at: &At<'_>, scope: &mut Scope<'_>) -> Option<ValueMatch> {
    scope.errors.report(at, "says nothing");
    None
}
