//! What rules say of end users, as RBAC's principals: claims of tokens that were verified before ([`super::super::jwt`]).

use remora_xds::pb::envoy::config::rbac::v3::principal::Identifier;
use remora_xds::pb::envoy::config::rbac::v3::{MetadataSource, Principal, SourcedMetadata};
use remora_xds::pb::envoy::r#type::matcher::v3::double_matcher::MatchPattern as DoublePattern;
use remora_xds::pb::envoy::r#type::matcher::v3::list_matcher::MatchPattern as ListPattern;
use remora_xds::pb::envoy::r#type::matcher::v3::metadata_matcher::PathSegment;
use remora_xds::pb::envoy::r#type::matcher::v3::metadata_matcher::path_segment::Segment;
use remora_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use remora_xds::pb::envoy::r#type::matcher::v3::value_matcher::MatchPattern as ValuePattern;
use remora_xds::pb::envoy::r#type::matcher::v3::{
    DoubleMatcher, ListMatcher, MetadataMatcher, OrMatcher, ValueMatcher,
};

use super::super::jwt::{FILTER, PAYLOAD};
use super::matchers::{Who, pattern, text};

/// `<issuer>/<subject>`; `*` at the beginning or the end is anything, and alone everybody who has a token with a subject. Both may have
/// slashes: a whole ID is meant in each way in which one parts it. With a `*`, the last slash does.
pub(super) fn principal(id: &str) -> Principal {
    let both = |issuer, subject| Who::all(vec![is("iss", issuer), is("sub", subject)]);
    match (id.strip_prefix('*'), id.strip_suffix('*')) {
        (Some(""), _) => both(None, None),
        (Some(end), _) => match end.rsplit_once('/') {
            Some((issuer, subject)) => {
                let issuer = (!issuer.is_empty()).then(|| MatchPattern::Suffix(issuer.into()));
                both(issuer, Some(MatchPattern::Exact(subject.into())))
            }
            None => both(None, Some(MatchPattern::Suffix(end.into()))),
        },
        (_, Some(beginning)) => {
            let within_issuer = both(Some(MatchPattern::Prefix(beginning.into())), None);
            let Some((issuer, subject)) = beginning.rsplit_once('/') else { return within_issuer };
            let subject = (!subject.is_empty()).then(|| MatchPattern::Prefix(subject.into()));
            let behind_issuer = both(Some(MatchPattern::Exact(issuer.into())), subject);
            // Never empty: there are two.
            Who::any_of(vec![behind_issuer, within_issuer]).unwrap_or_default()
        }
        _ => {
            let parted = id.match_indices('/').map(|(at, _)| (&id[..at], &id[at + 1..]));
            let whole = parted.filter(|(issuer, subject)| !issuer.is_empty() && !subject.is_empty());
            let exact = |text: &str| Some(MatchPattern::Exact(text.into()));
            let ways: Vec<_> = whole.map(|(issuer, subject)| both(exact(issuer), exact(subject))).collect();
            // Without a slash it was refused (`check`), and is nobody.
            Who::any_of(ways).unwrap_or_else(|| both(exact(id), exact("")))
        }
    }
}

/// A claim that is a text; None: any.
fn is(name: &str, wanted: Option<MatchPattern>) -> Principal {
    let wanted = wanted.unwrap_or_else(|| pattern("*"));
    metadata(&[name.to_owned()], ValuePattern::StringMatch(text(wanted)))
}

/// A claim that is `wanted` (a text, number or truth value), or a list that has the text; `*` wants it to be there.
pub(super) fn claim(path: &[String], wanted: &str) -> Principal {
    if wanted == "*" {
        return metadata(path, ValuePattern::PresentMatch(true));
    }
    let string = || Some(ValuePattern::StringMatch(text(pattern(wanted))));
    let one_of = Box::new(ValueMatcher { match_pattern: string() });
    let list = ListMatcher { match_pattern: Some(ListPattern::OneOf(one_of)) };
    let flag = wanted.parse().ok().map(ValuePattern::BoolMatch);
    let list = Some(ValuePattern::ListMatch(Box::new(list)));
    let number = wanted.parse().ok().filter(|number: &f64| number.is_finite()).map(|number| {
        ValuePattern::DoubleMatch(DoubleMatcher { match_pattern: Some(DoublePattern::Exact(number)) })
    });
    let ways = [string(), list, flag, number].into_iter().flatten();
    let value_matchers = ways.map(|way| ValueMatcher { match_pattern: Some(way) }).collect();
    metadata(path, ValuePattern::OrMatch(OrMatcher { value_matchers }))
}

fn metadata(path: &[String], value: ValuePattern) -> Principal {
    let keys = std::iter::once(PAYLOAD).chain(path.iter().map(String::as_str));
    let matcher = MetadataMatcher {
        filter: FILTER.into(),
        path: keys.map(|key| PathSegment { segment: Some(Segment::Key(key.into())) }).collect(),
        value: Some(ValueMatcher { match_pattern: Some(value) }),
        invert: false,
    };
    Principal {
        identifier: Some(Identifier::SourcedMetadata(SourcedMetadata {
            metadata_matcher: Some(matcher),
            metadata_source: MetadataSource::Dynamic.into(),
        })),
    }
}
