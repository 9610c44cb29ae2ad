//! Which requests are logged (`envoy.config.accesslog.v3.AccessLogFilter`).

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::http::head::RequestHead;
use crate::telemetry::flags::ResponseFlags;
use crate::telemetry::record::AccessRecord;

/// A compiled filter.
#[derive(Debug, Clone)]
pub enum Filter {
    /// `status_code_filter`; a request without status has 0.
    Status(Compare, u32),
    /// `duration_filter`, milliseconds.
    Duration(Compare, u32),
    /// `and_filter`.
    And(Vec<Self>),
    /// `or_filter`.
    Or(Vec<Self>),
    /// `header_filter`: a request header.
    Header(HeaderFilter),
    /// `response_flag_filter`; the empty set stands for any flag.
    Flags(ResponseFlags),
    /// `grpc_status_filter`: bit n is code n; `exclude` turns it round.
    GrpcStatus {
        /// Codes of the list.
        codes: u32,
        /// Log the other codes.
        exclude: bool,
    },
    /// `runtime_filter`: this many of a million requests, at random.
    Sample(u32),
}

/// `ComparisonFilter.Op`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// `EQ`.
    Eq,
    /// `GE`.
    Ge,
    /// `LE`.
    Le,
    /// `NE`.
    Ne,
}

/// A compiled `envoy.config.route.v3.HeaderMatcher` over request headers.
#[derive(Debug, Clone)]
pub struct HeaderFilter {
    /// The header.
    pub name: LogHeader,
    /// What its value must be; None: the header is there.
    pub value: Option<TextMatch>,
    /// `ignore_case` of the value.
    pub ignore_case: bool,
    /// `invert_match`.
    pub invert: bool,
    /// `treat_missing_header_as_empty`.
    pub missing_as_empty: bool,
}

/// A header or a part of the request line that has the form of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogHeader {
    /// `:method`.
    Method,
    /// `:path`.
    Path,
    /// `:authority` or `host`.
    Authority,
    /// `:scheme`.
    Scheme,
    /// Any other.
    Named(HeaderName),
}

/// `envoy.type.matcher.v3.StringMatcher`; patterns are lower-case when the case does not count.
#[derive(Debug, Clone)]
pub enum TextMatch {
    /// `exact`.
    Exact(Box<str>),
    /// `prefix`.
    Prefix(Box<str>),
    /// `suffix`.
    Suffix(Box<str>),
    /// `contains`.
    Contains(Box<str>),
    /// `safe_regex`: the whole value.
    Regex(regex::bytes::Regex),
}

impl Filter {
    /// Whether `record` is logged.
    pub fn matches(&self, record: &AccessRecord<'_>, rng: &mut fastrand::Rng) -> bool {
        match self {
            Self::Status(compare, value) => compare.holds(u64::from(record.status_code()), *value),
            Self::Duration(compare, value) => record
                .timings
                .total
                .is_some_and(|d| compare.holds(u64::try_from(d.as_millis()).unwrap_or(u64::MAX), *value)),
            Self::And(all) => all.iter().all(|f| f.matches(record, rng)),
            Self::Or(any) => any.iter().any(|f| f.matches(record, rng)),
            Self::Header(header) => record.request.is_some_and(|r| header.matches(r)),
            Self::Flags(ResponseFlags::NONE) => !record.all_flags().is_empty(),
            Self::Flags(flags) => record.all_flags().intersects(*flags),
            Self::GrpcStatus { codes, exclude } => {
                // Envoy maps the HTTP status when a request is not gRPC; Unknown (2) is what remains.
                let code = record.grpc_status().and_then(|c| u32::try_from(c).ok()).unwrap_or(2);
                (code < 32 && codes & (1 << code) != 0) != *exclude
            }
            Self::Sample(millionths) => rng.u32(0..1_000_000) < *millionths,
        }
    }
}

impl Compare {
    fn holds(self, left: u64, right: u32) -> bool {
        let right = u64::from(right);
        match self {
            Self::Eq => left == right,
            Self::Ge => left >= right,
            Self::Le => left <= right,
            Self::Ne => left != right,
        }
    }
}

impl LogHeader {
    /// The header called `name`; None when that is no name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":authority" | "host" => Self::Authority,
            ":scheme" => Self::Scheme,
            other => Self::Named(HeaderName::from_bytes(other.as_bytes()).ok()?),
        })
    }

    fn get<'a>(&self, head: &'a RequestHead) -> Option<Cow<'a, [u8]>> {
        let text = match self {
            Self::Method => head.method.as_str(),
            Self::Path => head.path.as_str(),
            Self::Authority => head.authority.as_ref()?.as_str(),
            Self::Scheme => head.scheme.as_str(),
            Self::Named(name) => return joined(&head.headers, name),
        };
        Some(Cow::Borrowed(text.as_bytes()))
    }
}

/// All values of a header, joined with commas as Envoy does.
fn joined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    let mut values = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let first = values.next()?;
    let mut rest = values.peekable();
    if rest.peek().is_none() {
        return Some(Cow::Borrowed(first));
    }
    let mut all = first.to_vec();
    for value in rest {
        all.push(b',');
        all.extend_from_slice(value);
    }
    Some(Cow::Owned(all))
}

impl HeaderFilter {
    fn matches(&self, head: &RequestHead) -> bool {
        let value = self.name.get(head);
        let value = match value {
            None if self.missing_as_empty => Cow::Borrowed(&b""[..]),
            // A missing header matches nothing but an inverted "is present" (HeaderMatcher.invert_match).
            None => return self.value.is_none() && self.invert,
            Some(value) => value,
        };
        let Some(wanted) = &self.value else { return !self.invert };
        let value = if self.ignore_case { Cow::Owned(value.to_ascii_lowercase()) } else { value };
        wanted.matches(&value) != self.invert
    }
}

impl TextMatch {
    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => value == text.as_bytes(),
            Self::Prefix(text) => value.starts_with(text.as_bytes()),
            Self::Suffix(text) => value.ends_with(text.as_bytes()),
            Self::Contains(text) => memchr::memmem::find(value, text.as_bytes()).is_some(),
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}
