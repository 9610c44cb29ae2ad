//! What a route asks of a request (`envoy.config.route.v3.RouteMatch`), and header matchers, which other policies use too.

use std::borrow::Cow;
use std::ops::Range;

use http::header::{COOKIE, HeaderName};
use http::{HeaderMap, Method};
use percent_encoding::percent_decode_str;
use smallvec::SmallVec;

use super::re2::Pattern;
use super::text::StringMatch;
use crate::http::head::{RequestHead, ResponseHead};

/// A compiled `RouteMatch`: everything must hold.
#[derive(Debug, Clone)]
pub struct RouteMatch {
    /// `path_specifier`.
    pub path: PathMatch,
    /// `headers`.
    pub headers: Box<[HeaderMatch]>,
    /// `query_parameters`.
    pub query: Box<[QueryMatch]>,
    /// `cookies`.
    pub cookies: Box<[CookieMatch]>,
    /// `grpc`: only gRPC requests.
    pub grpc: bool,
    /// `runtime_fraction`, its default value: there is no runtime layer.
    pub fraction: Option<Fraction>,
}

/// `path_specifier`. The path is compared without its query.
#[derive(Debug, Clone)]
pub enum PathMatch {
    /// `path`.
    Exact {
        /// The path.
        text: Box<str>,
        /// `case_sensitive: false`.
        ignore_case: bool,
    },
    /// `prefix`.
    Prefix {
        /// The prefix; may be empty.
        text: Box<str>,
        /// `case_sensitive: false`.
        ignore_case: bool,
    },
    /// `path_separated_prefix`: the path is the prefix, or goes on with `/`.
    SeparatedPrefix {
        /// The prefix, without a slash at its end.
        text: Box<str>,
        /// `case_sensitive: false`.
        ignore_case: bool,
    },
    /// `safe_regex`, against the whole path.
    Regex(Pattern),
    /// `connect_matcher`: CONNECT, whatever its target.
    Connect,
}

impl PathMatch {
    /// Whether `path` (no query) matches. CONNECT is decided by the caller.
    #[must_use]
    pub fn is_match(&self, path: &str) -> bool {
        let head = |text: &str, ignore_case: bool| {
            path.as_bytes().get(..text.len()).is_some_and(|part| same(part, text, ignore_case))
        };
        match self {
            Self::Exact { text, ignore_case } => same(path.as_bytes(), text, *ignore_case),
            Self::Prefix { text, ignore_case } => head(text, *ignore_case),
            Self::SeparatedPrefix { text, ignore_case } => {
                head(text, *ignore_case) && matches!(path.as_bytes().get(text.len()), None | Some(b'/'))
            }
            Self::Regex(pattern) => pattern.is_match(path.as_bytes()),
            Self::Connect => false,
        }
    }

    /// Length of the part of `path` (no query) that a prefix rewrite replaces: the prefix, or else the whole path.
    /// `path` is one that this matcher accepts.
    #[must_use]
    pub fn matched_len(&self, path: &str) -> usize {
        match self {
            Self::Exact { text, .. } | Self::Prefix { text, .. } | Self::SeparatedPrefix { text, .. } => {
                text.len().min(path.len())
            }
            Self::Regex(_) | Self::Connect => path.len(),
        }
    }
}

fn same(part: &[u8], text: &str, ignore_case: bool) -> bool {
    if ignore_case { part.eq_ignore_ascii_case(text.as_bytes()) } else { part == text.as_bytes() }
}

/// `FractionalPercent`: `numerator` of `denominator` requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fraction {
    /// How many …
    pub numerator: u32,
    /// … of these: 100, 10,000 or 1,000,000.
    pub denominator: u32,
}

impl Fraction {
    /// Whether the request that drew `random` is among them.
    #[must_use]
    pub const fn contains(self, random: u64) -> bool {
        random % (self.denominator as u64) < self.numerator as u64
    }
}

/// What is matched: a request, cut up once for all routes of its virtual host.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The request.
    pub head: &'a RequestHead,
    /// Its path without query (and without parameters when the table says so).
    pub path: &'a str,
    /// The random number that `runtime_fraction` looks at.
    pub random: u64,
}

impl<'a> Subject<'a> {
    /// Cuts up `head`. `ignore_parameters` also cuts the path at its first `;`.
    #[must_use]
    pub fn new(head: &'a RequestHead, ignore_parameters: bool, random: u64) -> Self {
        let mut path = head.path.path();
        if ignore_parameters && let Some(end) = path.find(';') {
            path = &path[..end];
        }
        Self { head, path, random }
    }
}

impl RouteMatch {
    /// Whether the request matches.
    #[must_use]
    pub fn is_match(&self, subject: &Subject<'_>) -> bool {
        self.path_matches(subject)
            && self.fraction.is_none_or(|f| f.contains(subject.random))
            && (!self.grpc || subject.head.is_grpc())
            && self.headers.iter().all(|m| m.is_match(subject.head))
            && self.query.iter().all(|m| m.is_match(subject.head.path.query()))
            && self.cookies.iter().all(|m| m.is_match(&subject.head.headers))
    }

    /// CONNECT has no path, so that only `connect_matcher` accepts it. (Extended CONNECT is an upgrade: by the time it
    /// is routed it has a path and the method GET.)
    fn path_matches(&self, subject: &Subject<'_>) -> bool {
        let connect = subject.head.method == Method::CONNECT;
        match &self.path {
            PathMatch::Connect => connect,
            path => !connect && path.is_match(subject.path),
        }
    }
}

/// A header or pseudo-header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderKey {
    /// `:method`.
    Method,
    /// `:path`, with its query.
    Path,
    /// `:authority` or `host`.
    Authority,
    /// `:scheme`.
    Scheme,
    /// `:status` of a response.
    Status,
    /// Any other.
    Name(HeaderName),
}

impl HeaderKey {
    /// The key of `name`; None when it is neither a header name nor one of the pseudo-headers above.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":authority" | "host" => Self::Authority,
            ":scheme" => Self::Scheme,
            ":status" => Self::Status,
            lower => Self::Name(HeaderName::from_bytes(lower.as_bytes()).ok()?),
        })
    }
}

/// Something with headers that matchers can look at.
pub trait HeaderView {
    /// The value of a pseudo-header, if there is such a thing here.
    fn pseudo(&self, key: &HeaderKey) -> Option<&[u8]>;
    /// All other headers.
    fn fields(&self) -> &HeaderMap;

    /// All values of `key`.
    fn values(&self, key: &HeaderKey) -> Values<'_> {
        match key {
            HeaderKey::Name(name) => self.fields().get_all(name).iter().map(|v| v.as_bytes()).collect(),
            pseudo => self.pseudo(pseudo).into_iter().collect(),
        }
    }
}

/// The values of one header.
pub type Values<'a> = SmallVec<[&'a [u8]; 4]>;

impl HeaderView for RequestHead {
    fn pseudo(&self, key: &HeaderKey) -> Option<&[u8]> {
        match key {
            HeaderKey::Method => Some(self.method.as_str().as_bytes()),
            HeaderKey::Path => Some(self.path.as_str().as_bytes()),
            HeaderKey::Authority => self.authority.as_ref().map(|a| a.as_str().as_bytes()),
            HeaderKey::Scheme => Some(self.scheme.as_str().as_bytes()),
            HeaderKey::Status | HeaderKey::Name(_) => None,
        }
    }
    fn fields(&self) -> &HeaderMap {
        &self.headers
    }
}

impl HeaderView for ResponseHead {
    fn pseudo(&self, key: &HeaderKey) -> Option<&[u8]> {
        matches!(key, HeaderKey::Status).then(|| self.status.as_str().as_bytes())
    }
    fn fields(&self) -> &HeaderMap {
        &self.headers
    }
}

/// A compiled `HeaderMatcher`.
#[derive(Debug, Clone)]
pub struct HeaderMatch {
    /// `name`.
    pub key: HeaderKey,
    /// `header_match_specifier`.
    pub rule: HeaderRule,
    /// `invert_match`.
    pub invert: bool,
    /// `treat_missing_header_as_empty`.
    pub missing_is_empty: bool,
}

/// `header_match_specifier`.
#[derive(Debug, Clone)]
pub enum HeaderRule {
    /// `present_match`; also when nothing is said.
    Present(bool),
    /// `string_match` and the deprecated matchers of text.
    Text(StringMatch),
    /// `range_match`: a decimal integer in the range.
    Range(Range<i64>),
}

impl HeaderMatch {
    /// Whether the headers of `view` match. One of several values is enough, as in Envoy since 1.39; all of them joined
    /// to one list count as well, because a proxy before us may have joined them (RFC 9110 §5.3).
    /// A missing header does not match, inverted or not, unless the rule is about presence or
    /// `treat_missing_header_as_empty` is set.
    #[must_use]
    pub fn is_match<V: HeaderView + ?Sized>(&self, view: &V) -> bool {
        self.test(view, |values| values.iter().any(|v| self.hit(v)) || self.hit_joined(values))
    }

    /// Like [`HeaderMatch::is_match`], but every value must match: for rules that grant something, so that a second
    /// header of the same name does not smuggle a value past them.
    #[must_use]
    pub fn is_match_every<V: HeaderView + ?Sized>(&self, view: &V) -> bool {
        // Inverted, "none matches" is what is asked of every value.
        self.test(view, |values| {
            if self.invert { values.iter().any(|v| self.hit(v)) } else { values.iter().all(|v| self.hit(v)) }
        })
    }

    /// Like [`HeaderMatch::is_match`], but for rules that refuse something: one value is enough, inverted or not, and one
    /// element of a list is a value, whether or not a proxy before us has joined them.
    #[must_use]
    pub fn is_match_some<V: HeaderView + ?Sized>(&self, view: &V) -> bool {
        self.test(view, |values| {
            if self.invert {
                values.iter().all(|v| self.hit(v))
            } else {
                values.iter().any(|v| self.hit(v) || self.hit_element(v)) || self.hit_joined(values)
            }
        })
    }

    fn test<V: HeaderView + ?Sized>(&self, view: &V, hit: impl Fn(&[&[u8]]) -> bool) -> bool {
        let mut values = view.values(&self.key);
        if values.is_empty() && self.missing_is_empty {
            values.push(b"");
        }
        let hit = match self.rule {
            HeaderRule::Present(wanted) => values.is_empty() != wanted,
            _ if values.is_empty() => return false,
            _ => hit(&values),
        };
        hit != self.invert
    }

    fn hit(&self, value: &[u8]) -> bool {
        match &self.rule {
            HeaderRule::Present(_) => true,
            HeaderRule::Text(text) => text.is_match(value),
            HeaderRule::Range(range) => integer(value).is_some_and(|n| range.contains(&n)),
        }
    }

    fn hit_element(&self, value: &[u8]) -> bool {
        let list = matches!(self.key, HeaderKey::Name(_)) && memchr::memchr(b',', value).is_some();
        list && value.split(|b| *b == b',').any(|element| self.hit(element.trim_ascii()))
    }

    fn hit_joined(&self, values: &[&[u8]]) -> bool {
        if values.len() < 2 || matches!(self.rule, HeaderRule::Range(_)) {
            return false;
        }
        let cookie = matches!(&self.key, HeaderKey::Name(name) if name == COOKIE);
        let separator: &[u8] = if cookie { b"; " } else { b"," };
        self.hit(&values.join(separator))
    }
}

/// A base-10 integer with an optional sign, spaces around it allowed.
fn integer(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value.trim_ascii()).ok()?.parse().ok()
}

/// A compiled `QueryParameterMatcher`. The first parameter of the name counts; nothing is percent-decoded.
#[derive(Debug, Clone)]
pub struct QueryMatch {
    /// `name`.
    pub name: Box<str>,
    /// `query_parameter_match_specifier`.
    pub rule: QueryRule,
}

/// `query_parameter_match_specifier`.
#[derive(Debug, Clone)]
pub enum QueryRule {
    /// `present_match`; also when nothing is said.
    Present(bool),
    /// `string_match`.
    Text(StringMatch),
}

impl QueryMatch {
    /// Whether the query (without `?`) matches.
    #[must_use]
    pub fn is_match(&self, query: Option<&str>) -> bool {
        self.is_match_of(query.and_then(|q| parameter(q, &self.name)).map(str::as_bytes))
    }

    /// The same of a query whose escapes are read first: for decisions that nobody must get around by another spelling.
    #[must_use]
    pub fn is_match_decoded(&self, query: Option<&str>) -> bool {
        self.is_match_of(query.and_then(|q| decoded_parameter(q, &self.name)).as_deref())
    }

    fn is_match_of(&self, value: Option<&[u8]>) -> bool {
        match &self.rule {
            QueryRule::Present(wanted) => value.is_some() == *wanted,
            QueryRule::Text(text) => value.is_some_and(|v| text.is_match(v)),
        }
    }
}

/// The value of the first parameter `name` of `query`, as it stands there.
#[must_use]
pub fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

/// The value of the first parameter of `query` that is `name` when the escapes of both are read.
#[must_use]
pub fn decoded_parameter<'q>(query: &'q str, name: &str) -> Option<Cow<'q, [u8]>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        percent_decode_str(key).eq(name.bytes()).then(|| percent_decode_str(value).into())
    })
}

/// A compiled `CookieMatcher`.
#[derive(Debug, Clone)]
pub struct CookieMatch {
    /// `name`.
    pub name: Box<str>,
    /// `string_match`.
    pub text: StringMatch,
    /// `invert_match`. A missing cookie does not match, so that it matches when inverted.
    pub invert: bool,
}

impl CookieMatch {
    /// Whether the cookies of `headers` match.
    #[must_use]
    pub fn is_match(&self, headers: &HeaderMap) -> bool {
        cookie(headers, &self.name).is_some_and(|v| self.text.is_match(v)) != self.invert
    }
}

/// The value of the first cookie `name`, without the quotes around it (RFC 6265 §4.1.1).
#[must_use]
pub fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|v| v.as_bytes().split(|b| *b == b';'));
    for pair in pairs {
        let pair = pair.trim_ascii_start();
        let Some(equals) = memchr::memchr(b'=', pair) else { continue };
        if &pair[..equals] == name.as_bytes() {
            let value = pair[equals + 1..].trim_ascii_end();
            return Some(value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value));
        }
    }
    None
}

#[cfg(test)]
pub(crate) mod tests;
