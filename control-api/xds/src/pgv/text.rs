//! Rules on strings and bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::OnceLock;

use regex::bytes::Regex;

use super::Sizes;
use crate::pb::validate::bytes_rules::WellKnown as BytesWellKnown;
use crate::pb::validate::string_rules::WellKnown;
use crate::pb::validate::{BytesRules, KnownRegex, StringRules};

/// A regular expression, compiled when it is first needed.
#[derive(Debug)]
struct Pattern {
    source: String,
    compiled: OnceLock<Option<Regex>>,
}

impl Pattern {
    fn new(source: String) -> Self {
        Self { source, compiled: OnceLock::new() }
    }

    /// Whether `value` matches. A pattern that does not compile matches nothing.
    fn matches(&self, value: &[u8]) -> bool {
        let compiled = self.compiled.get_or_init(|| Regex::new(&self.source).ok());
        compiled.as_ref().is_some_and(|regex| regex.is_match(value))
    }
}

#[derive(Debug)]
pub(super) struct TextCheck {
    rules: StringRules,
    chars: Sizes,
    bytes: Sizes,
    pattern: Option<Pattern>,
}

impl TextCheck {
    pub(super) fn new(mut rules: StringRules) -> Self {
        Self {
            chars: Sizes { exact: rules.len, min: rules.min_len, max: rules.max_len },
            bytes: Sizes { exact: rules.len_bytes, min: rules.min_bytes, max: rules.max_bytes },
            pattern: rules.pattern.take().map(Pattern::new),
            rules,
        }
    }

    pub(super) fn broken(&self, value: &str) -> Option<String> {
        let rules = &self.rules;
        if rules.ignore_empty() && value.is_empty() {
            return None;
        }
        if let Some(wanted) = rules.r#const.as_ref().filter(|c| *c != value) {
            return Some(format!("must be {wanted:?}"));
        }
        if let Some(broken) = self.chars.broken(value.chars().count(), "character") {
            return Some(broken);
        }
        if let Some(broken) = self.bytes.broken(value.len(), "byte") {
            return Some(broken);
        }
        if let Some(pattern) = self.pattern.as_ref().filter(|p| !p.matches(value.as_bytes())) {
            return Some(format!("must match {}", pattern.source));
        }
        if let Some(part) = rules.prefix.as_ref().filter(|p| !value.starts_with(p.as_str())) {
            return Some(format!("must start with {part:?}"));
        }
        if let Some(part) = rules.suffix.as_ref().filter(|p| !value.ends_with(p.as_str())) {
            return Some(format!("must end with {part:?}"));
        }
        if let Some(part) = rules.contains.as_ref().filter(|p| !value.contains(p.as_str())) {
            return Some(format!("must contain {part:?}"));
        }
        if let Some(part) = rules.not_contains.as_ref().filter(|p| value.contains(p.as_str())) {
            return Some(format!("must not contain {part:?}"));
        }
        if !rules.r#in.is_empty() && !rules.r#in.iter().any(|v| v == value) {
            return Some(format!("must be one of {}", rules.r#in.join(", ")));
        }
        if rules.not_in.iter().any(|v| v == value) {
            return Some(format!("must not be {value:?}"));
        }
        well_known(rules.well_known?, rules.strict(), value)
    }
}

fn well_known(kind: WellKnown, strict: bool, value: &str) -> Option<String> {
    let (valid, what) = match kind {
        WellKnown::Email(on) => (!on || is_email(value), "an e-mail address"),
        WellKnown::Hostname(on) => (!on || is_hostname(value), "a host name"),
        WellKnown::Ip(on) => (!on || value.parse::<IpAddr>().is_ok(), "an IP address"),
        WellKnown::Ipv4(on) => (!on || value.parse::<Ipv4Addr>().is_ok(), "an IPv4 address"),
        WellKnown::Ipv6(on) => (!on || value.parse::<Ipv6Addr>().is_ok(), "an IPv6 address"),
        WellKnown::Uri(on) => (!on || is_uri(value), "an absolute URI"),
        WellKnown::UriRef(on) => (!on || is_uri_text(value), "a URI or a relative reference"),
        WellKnown::Address(on) => {
            (!on || value.parse::<IpAddr>().is_ok() || is_hostname(value), "an IP address or a host name")
        }
        WellKnown::Uuid(on) => (!on || is_uuid(value), "a UUID"),
        WellKnown::WellKnownRegex(which) => match KnownRegex::try_from(which) {
            Ok(KnownRegex::HttpHeaderName) => (is_header_name(value, strict), "a header name"),
            Ok(KnownRegex::HttpHeaderValue) => (is_header_value(value, strict), "a header value"),
            Ok(KnownRegex::Unknown) | Err(_) => (true, ""),
        },
    };
    (!valid).then(|| format!("must be {what}, not {value:?}"))
}

/// Strict is a token of RFC 9110 §5.6.2, with a colon before it for pseudo headers; else nothing that ends a header, and
/// nothing at all: a field that is not set passes.
fn is_header_name(value: &str, strict: bool) -> bool {
    if !strict {
        return is_header_value(value, false);
    }
    let name = value.strip_prefix(':').unwrap_or(value);
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Strict is RFC 9110 §5.5 (no control characters but tab); else nothing that ends a header.
fn is_header_value(value: &str, strict: bool) -> bool {
    value.bytes().all(|b| match b {
        0 | b'\n' | b'\r' => false,
        b'\t' => true,
        0x01..=0x1f | 0x7f => !strict,
        _ => true,
    })
}

/// RFC 1034 §3.5, as RFC 1123 relaxed it.
fn is_hostname(value: &str) -> bool {
    let value = value.strip_suffix('.').unwrap_or(value);
    value.len() <= 253
        && value.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn is_email(value: &str) -> bool {
    value.rsplit_once('@').is_some_and(|(local, host)| {
        (1..=64).contains(&local.len())
            && local.bytes().all(|b| b.is_ascii_graphic() && b != b'@')
            && is_hostname(host)
    })
}

/// RFC 3986 §3: a scheme and a colon first.
fn is_uri(value: &str) -> bool {
    let Some((scheme, _)) = value.split_once(':') else { return false };
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
        && is_uri_text(value)
}

fn is_uri_text(value: &str) -> bool {
    value.bytes().all(|b| b.is_ascii_graphic() && !b"<>\"{}|\\^`".contains(&b))
}

fn is_uuid(value: &str) -> bool {
    value.len() == 36
        && value.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}

#[derive(Debug)]
pub(super) struct BytesCheck {
    rules: BytesRules,
    sizes: Sizes,
    pattern: Option<Pattern>,
}

impl BytesCheck {
    pub(super) fn new(mut rules: BytesRules) -> Self {
        let sizes = Sizes { exact: rules.len, min: rules.min_len, max: rules.max_len };
        Self { pattern: rules.pattern.take().map(Pattern::new), sizes, rules }
    }

    pub(super) fn broken(&self, value: &[u8]) -> Option<String> {
        let rules = &self.rules;
        if rules.ignore_empty() && value.is_empty() {
            return None;
        }
        if let Some(broken) = self.sizes.broken(value.len(), "byte") {
            return Some(broken);
        }
        if let Some(pattern) = self.pattern.as_ref().filter(|p| !p.matches(value)) {
            return Some(format!("must match {}", pattern.source));
        }
        let wrong = rules.r#const.as_ref().is_some_and(|c| c != value)
            || rules.prefix.as_ref().is_some_and(|p| !value.starts_with(p))
            || rules.suffix.as_ref().is_some_and(|s| !value.ends_with(s))
            || rules.contains.as_ref().is_some_and(|c| !contains(value, c))
            || (!rules.r#in.is_empty() && !rules.r#in.iter().any(|v| v == value))
            || rules.not_in.iter().any(|v| v == value);
        if wrong {
            return Some("are not bytes that are allowed here".to_owned());
        }
        let (valid, what) = match rules.well_known? {
            BytesWellKnown::Ip(on) => (!on || matches!(value.len(), 4 | 16), "4 or 16"),
            BytesWellKnown::Ipv4(on) => (!on || value.len() == 4, "4"),
            BytesWellKnown::Ipv6(on) => (!on || value.len() == 16, "16"),
        };
        (!valid).then(|| format!("must be an IP address of {what} bytes"))
    }
}

fn contains(value: &[u8], part: &[u8]) -> bool {
    part.is_empty() || value.windows(part.len()).any(|w| w == part)
}
