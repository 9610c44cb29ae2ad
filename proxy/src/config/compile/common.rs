//! Small messages that many resources hold: durations, matchers, header names, value templates, inline data.
//!
//! Each function reports what is wrong at the path of the field and answers None; the caller goes on, so that one
//! pass finds every mistake.

use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3 as core;
use remora_xds::pb::envoy::config::core::v3::data_source::Specifier;
use remora_xds::pb::envoy::config::route::v3 as pb;
use remora_xds::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use remora_xds::pb::envoy::r#type::matcher::v3 as matcher_pb;
use remora_xds::pb::envoy::r#type::matcher::v3::regex_matcher::EngineType;
use remora_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use remora_xds::pb::envoy::r#type::v3::FractionalPercent;
use remora_xds::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use remora_xds::pb::google::protobuf;

use super::Scope;
use crate::route::header::ValueTemplate;
use crate::route::matcher::{Fraction, HeaderKey, HeaderMatch, HeaderRule};
use crate::route::re2::{Pattern, Substitution};
use crate::route::text::{Place, StringMatch};

/// Reports a field that is set although it is not supported.
pub fn unsupported(set: bool, at: &At<'_>, scope: &mut Scope<'_>) {
    if set {
        scope.errors.report(at, "this field is not supported").fix("remove it");
    }
}

/// protobuf's own limit of a duration, 10,000 years: beyond it adding one to a clock could overflow.
const MAX_SECONDS: u64 = 315_576_000_000;

/// A duration that is not negative.
pub fn duration(value: Option<&protobuf::Duration>, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Duration> {
    let value = value?;
    let parts = (u64::try_from(value.seconds), u32::try_from(value.nanos));
    match parts {
        (Ok(seconds @ ..=MAX_SECONDS), Ok(nanos @ ..=999_999_999)) => Some(Duration::new(seconds, nanos)),
        _ => {
            scope.errors.report(at, "must be a duration of zero or more");
            None
        }
    }
}

/// A duration of more than zero.
pub fn positive_duration(
    value: Option<&protobuf::Duration>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Duration> {
    let value = duration(value, at, scope)?;
    if value.is_zero() {
        scope.errors.report(at, "must be more than zero");
        return None;
    }
    Some(value)
}

/// An enumeration's value by number.
pub fn enumeration<E: TryFrom<i32>>(value: i32, at: &At<'_>, scope: &mut Scope<'_>) -> Option<E> {
    let known = E::try_from(value).ok();
    if known.is_none() {
        scope.errors.report(at, format!("{value} is not a value of this enumeration"));
    }
    known
}

/// A regular expression that must match the whole text.
pub fn regex(value: &matcher_pb::RegexMatcher, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Pattern> {
    let text = regex_text(value, at, scope)?;
    report(Pattern::new(text), &at.field("regex"), scope)
}

#[expect(deprecated, reason = "old files name the engine")]
fn regex_text<'r>(
    value: &'r matcher_pb::RegexMatcher,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<&'r str> {
    let matcher_pb::RegexMatcher { regex, engine_type } = value;
    if let Some(EngineType::GoogleRe2(re2)) = engine_type {
        unsupported(re2.max_program_size.is_some(), &at.field("google_re2").field("max_program_size"), scope);
    }
    if regex.is_empty() {
        scope.errors.report(&at.field("regex"), "must not be empty");
        return None;
    }
    Some(regex)
}

/// A regular expression and what replaces its matches.
pub fn substitution(
    value: &matcher_pb::RegexMatchAndSubstitute,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Substitution> {
    let matcher_pb::RegexMatchAndSubstitute { pattern, substitution } = value;
    let Some(pattern) = pattern else {
        scope.errors.report(&at.field("pattern"), "is required");
        return None;
    };
    let text = regex_text(pattern, &at.field("pattern"), scope)?;
    if has_control(substitution) {
        scope.errors.report(&at.field("substitution"), "must not hold control characters");
        return None;
    }
    report(Substitution::new(text, substitution), at, scope)
}

fn report<T>(result: Result<T, String>, at: &At<'_>, scope: &mut Scope<'_>) -> Option<T> {
    result.map_err(|message| scope.errors.report(at, format!("bad regular expression: {message}"))).ok()
}

/// Whether a text holds bytes that no header may hold.
#[must_use]
pub fn has_control(text: &str) -> bool {
    text.bytes().any(|b| b.is_ascii_control())
}

/// A `StringMatcher`.
pub fn string_match(
    value: &matcher_pb::StringMatcher,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<StringMatch> {
    let matcher_pb::StringMatcher { ignore_case, match_pattern } = value;
    let (place, text, field) = match match_pattern {
        Some(MatchPattern::Exact(text)) => (Place::Exact, text, "exact"),
        Some(MatchPattern::Prefix(text)) => (Place::Prefix, text, "prefix"),
        Some(MatchPattern::Suffix(text)) => (Place::Suffix, text, "suffix"),
        Some(MatchPattern::Contains(text)) => (Place::Contains, text, "contains"),
        Some(MatchPattern::SafeRegex(pattern)) => {
            if *ignore_case {
                let fix = "begin the regular expression with (?i)";
                scope.errors.report(&at.field("ignore_case"), "has no effect on safe_regex").fix(fix);
            }
            return regex(pattern, &at.field("safe_regex"), scope).map(StringMatch::Regex);
        }
        Some(MatchPattern::Custom(_)) => {
            unsupported(true, &at.field("custom"), scope);
            return None;
        }
        None => {
            scope.errors.report(at, "needs exact, prefix, suffix, contains or safe_regex");
            return None;
        }
    };
    plain_text(place, text, *ignore_case, &at.field(field), scope)
}

/// A matcher of plain text; only an exact one may be empty.
fn plain_text(
    place: Place,
    text: &str,
    ignore_case: bool,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<StringMatch> {
    if text.is_empty() && place != Place::Exact {
        scope.errors.report(at, "must not be empty").fix("use present_match or safe_regex");
        return None;
    }
    Some(StringMatch::text(place, text, ignore_case))
}

/// A `HeaderMatcher`.
pub fn header_match(value: &pb::HeaderMatcher, at: &At<'_>, scope: &mut Scope<'_>) -> Option<HeaderMatch> {
    let pb::HeaderMatcher { name, invert_match, treat_missing_header_as_empty, header_match_specifier } =
        value;
    let key = header_key(name, &at.field("name"), scope);
    let rule = header_rule(header_match_specifier.as_ref(), at, scope);
    Some(HeaderMatch {
        key: key?,
        rule: rule?,
        invert: *invert_match,
        missing_is_empty: *treat_missing_header_as_empty,
    })
}

/// A list of `HeaderMatcher`.
pub fn header_matches(list: &[pb::HeaderMatcher], at: &At<'_>, scope: &mut Scope<'_>) -> Box<[HeaderMatch]> {
    list.iter().enumerate().filter_map(|(i, m)| header_match(m, &at.index(i), scope)).collect()
}

#[expect(deprecated, reason = "old files have the matchers that string_match replaced")]
fn header_rule(
    specifier: Option<&HeaderMatchSpecifier>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<HeaderRule> {
    let text = |place, text: &str, field, scope: &mut Scope<'_>| {
        plain_text(place, text, false, &at.field(field), scope).map(HeaderRule::Text)
    };
    match specifier {
        None => Some(HeaderRule::Present(true)),
        Some(HeaderMatchSpecifier::PresentMatch(wanted)) => Some(HeaderRule::Present(*wanted)),
        // An empty exact_match means any value, as it always did in Envoy.
        Some(HeaderMatchSpecifier::ExactMatch(t)) if t.is_empty() => Some(HeaderRule::Present(true)),
        Some(HeaderMatchSpecifier::ExactMatch(t)) => text(Place::Exact, t, "exact_match", scope),
        Some(HeaderMatchSpecifier::PrefixMatch(t)) => text(Place::Prefix, t, "prefix_match", scope),
        Some(HeaderMatchSpecifier::SuffixMatch(t)) => text(Place::Suffix, t, "suffix_match", scope),
        Some(HeaderMatchSpecifier::ContainsMatch(t)) => text(Place::Contains, t, "contains_match", scope),
        Some(HeaderMatchSpecifier::SafeRegexMatch(pattern)) => {
            let pattern = regex(pattern, &at.field("safe_regex_match"), scope)?;
            Some(HeaderRule::Text(StringMatch::Regex(pattern)))
        }
        Some(HeaderMatchSpecifier::StringMatch(m)) => {
            string_match(m, &at.field("string_match"), scope).map(HeaderRule::Text)
        }
        Some(HeaderMatchSpecifier::RangeMatch(range)) => Some(HeaderRule::Range(range.start..range.end)),
    }
}

/// The name of a header or of one of the pseudo-headers that a request or answer has.
pub fn header_key(name: &str, at: &At<'_>, scope: &mut Scope<'_>) -> Option<HeaderKey> {
    let key = HeaderKey::parse(name);
    if key.is_none() {
        scope.errors.report(at, format!("{name:?} is not a header name"));
    }
    key
}

/// The name of a real header.
pub fn header_name(name: &str, at: &At<'_>, scope: &mut Scope<'_>) -> Option<HeaderName> {
    let parsed = HeaderName::from_bytes(name.as_bytes()).ok();
    if parsed.is_none() {
        scope.errors.report(at, format!("{name:?} is not a header name"));
    }
    parsed
}

/// A `FractionalPercent`.
pub fn fraction(value: &FractionalPercent, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Fraction> {
    let FractionalPercent { numerator, denominator } = value;
    let denominator = match enumeration(*denominator, &at.field("denominator"), scope)? {
        DenominatorType::Hundred => 100,
        DenominatorType::TenThousand => 10_000,
        DenominatorType::Million => 1_000_000,
    };
    Some(Fraction { numerator: *numerator, denominator })
}

/// A `RuntimeFractionalPercent`. There is no runtime layer, so that its default value holds.
pub fn runtime_fraction(
    value: &core::RuntimeFractionalPercent,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Fraction> {
    let core::RuntimeFractionalPercent { default_value, runtime_key: _ } = value;
    let at = at.field("default_value");
    let Some(value) = default_value else {
        scope.errors.report(&at, "is required");
        return None;
    };
    fraction(value, &at, scope)
}

/// The operators that a value template may have.
pub const TEMPLATE_OPERATORS: &[&str] = &[
    "CONNECTION_ID",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_LOCAL_ADDRESS",
    "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_LOCAL_PORT",
    "DOWNSTREAM_LOCAL_URI_SAN",
    "DOWNSTREAM_PEER_URI_SAN",
    "DOWNSTREAM_REMOTE_ADDRESS",
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_REMOTE_PORT",
    "DOWNSTREAM_TLS_VERSION",
    "HOSTNAME",
    "PROTOCOL",
    "REQ",
    "REQUESTED_SERVER_NAME",
    "RESP",
    "RESPONSE_CODE",
    "RESPONSE_CODE_DETAILS",
    "RESPONSE_FLAGS",
    "ROUTE_NAME",
    "START_TIME",
    "UPSTREAM_CLUSTER",
    "UPSTREAM_HOST",
    "UPSTREAM_REMOTE_ADDRESS",
    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
];

/// A text that may have `%OPERATORS%`; `%%` is a percent sign.
pub fn value_template(text: &str, at: &At<'_>, scope: &mut Scope<'_>) -> Option<ValueTemplate> {
    match parse_template(text) {
        Ok(template) => Some(template),
        Err(message) => {
            scope.errors.report(at, message);
            None
        }
    }
}

fn parse_template(text: &str) -> Result<ValueTemplate, String> {
    let mut literal = String::with_capacity(text.len());
    let mut dynamic = false;
    let mut rest = text;
    while let Some(percent) = rest.find('%') {
        literal.push_str(&rest[..percent]);
        rest = &rest[percent + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            literal.push('%');
            rest = after;
        } else {
            dynamic = true;
            rest = operator(rest)?;
        }
    }
    literal.push_str(rest);
    let value = HeaderValue::from_bytes(literal.as_bytes())
        .map_err(|_| "must not hold control characters".to_owned())?;
    Ok(if dynamic { ValueTemplate::Dynamic(text.into()) } else { ValueTemplate::Static(value) })
}

/// Checks the operator at the start of `text`, after its percent sign; answers what follows it.
fn operator(text: &str) -> Result<&str, String> {
    let end = text.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
    let (name, mut rest) = text.split_at(end.unwrap_or(text.len()));
    if let Some(arguments) = rest.strip_prefix('(') {
        let close = arguments.find(')').ok_or_else(|| format!("%{name}( has no closing )"))?;
        rest = &arguments[close + 1..];
    }
    if let Some(length) = rest.strip_prefix(':') {
        let digits = length.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || length[..digits].parse::<u16>().is_err() {
            return Err(format!("%{name} has a bad length after its colon"));
        }
        rest = &length[digits..];
    }
    let rest = rest
        .strip_prefix('%')
        .ok_or("a percent sign begins an operator that does not end; write %% for a percent sign")?;
    if !TEMPLATE_OPERATORS.contains(&name) {
        return Err(format!("operator %{name}% is not supported here"));
    }
    Ok(rest)
}

/// A `DataSource` of at most `most` bytes, read now.
pub fn data_source(
    value: &core::DataSource,
    most: usize,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Bytes> {
    let core::DataSource { watched_directory, specifier } = value;
    unsupported(watched_directory.is_some(), &at.field("watched_directory"), scope);
    let too_long = |len: u64| format!("is {len} bytes long, the limit is {most}");
    let (field, bytes) = match specifier {
        Some(Specifier::InlineString(text)) => ("inline_string", Ok(Bytes::copy_from_slice(text.as_bytes()))),
        Some(Specifier::InlineBytes(bytes)) => ("inline_bytes", Ok(Bytes::copy_from_slice(bytes))),
        Some(Specifier::EnvironmentVariable(name)) => (
            "environment_variable",
            std::env::var(name).map(Bytes::from).map_err(|e| format!("{name:?}: {e}")),
        ),
        Some(Specifier::Filename(path)) => ("filename", read_file(path, most, &too_long)),
        None => {
            scope.errors.report(at, "needs filename, inline_string, inline_bytes or environment_variable");
            return None;
        }
    };
    let checked = bytes.and_then(|b| if b.len() > most { Err(too_long(b.len() as u64)) } else { Ok(b) });
    match checked {
        Ok(bytes) => Some(bytes),
        Err(message) => {
            let error = scope.errors.report(&at.field(field), message);
            if field == "filename" {
                error.fix("name a file that the proxy's user can read");
            }
            None
        }
    }
}

/// A special file without an end must not be read: only a regular one of a known length is.
fn read_file(path: &str, most: usize, too_long: &dyn Fn(u64) -> String) -> Result<Bytes, String> {
    let describe = |e: std::io::Error| format!("cannot read {path:?}: {e}");
    let meta = std::fs::metadata(path).map_err(describe)?;
    if !meta.is_file() {
        return Err(format!("{path:?} is not a regular file"));
    }
    if meta.len() > most as u64 {
        return Err(too_long(meta.len()));
    }
    std::fs::read(path).map(Bytes::from).map_err(describe)
}

#[cfg(test)]
mod tests;
