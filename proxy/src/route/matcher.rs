//! What a route asks of a request (`envoy.config.route.v3.RouteMatch`), and header matchers, which other policies use too.

use std::ops::Range;

use http::header::{COOKIE, HeaderName};
use http::{HeaderMap, Method};
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

    /// The value of `key`. Several values are joined with `,` (cookies with `; `) in `buffer`, as Envoy does.
    fn value<'a>(&'a self, key: &HeaderKey, buffer: &'a mut SmallVec<[u8; 128]>) -> Option<&'a [u8]> {
        let HeaderKey::Name(name) = key else {
            return self.pseudo(key);
        };
        let mut values = self.fields().get_all(name).iter();
        let first = values.next()?.as_bytes();
        let Some(second) = values.next() else {
            return Some(first);
        };
        let separator: &[u8] = if name == COOKIE { b"; " } else { b"," };
        buffer.extend_from_slice(first);
        for value in std::iter::once(second).chain(values) {
            buffer.extend_from_slice(separator);
            buffer.extend_from_slice(value.as_bytes());
        }
        Some(buffer)
    }
}

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
    /// Whether the headers of `view` match. A missing header does not match, inverted or not, unless
    /// the rule is about presence or `treat_missing_header_as_empty` is set.
    #[must_use]
    pub fn is_match<V: HeaderView + ?Sized>(&self, view: &V) -> bool {
        let mut buffer = SmallVec::new();
        let value = view.value(&self.key, &mut buffer);
        let value = if self.missing_is_empty { Some(value.unwrap_or_default()) } else { value };
        let hit = match (&self.rule, value) {
            (HeaderRule::Present(wanted), value) => value.is_some() == *wanted,
            (_, None) => return false,
            (HeaderRule::Text(text), Some(value)) => text.is_match(value),
            (HeaderRule::Range(range), Some(value)) => integer(value).is_some_and(|n| range.contains(&n)),
        };
        hit != self.invert
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
        let value = query.and_then(|q| parameter(q, &self.name));
        match &self.rule {
            QueryRule::Present(wanted) => value.is_some() == *wanted,
            QueryRule::Text(text) => value.is_some_and(|v| text.is_match(v.as_bytes())),
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
pub(crate) mod tests {
    use super::*;
    use crate::http::head::HeaderCase;
    use crate::route::text::Place;
    use http::Version;
    use http::uri::Scheme;
    use proptest::prelude::*;

    /// A GET of `path` on `host`, with headers.
    pub(crate) fn get(host: &str, path: &str, headers: &[(&str, &str)]) -> RequestHead {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        RequestHead {
            method: Method::GET,
            scheme: Scheme::HTTP,
            authority: (!host.is_empty()).then(|| host.parse().unwrap()),
            path: path.parse().unwrap(),
            version: Version::HTTP_11,
            headers: map,
            case: HeaderCase::default(),
        }
    }

    fn exact(text: &str) -> HeaderRule {
        HeaderRule::Text(StringMatch::text(Place::Exact, text, false))
    }

    #[test]
    fn path_matchers() {
        let exact = |t: &str, i| PathMatch::Exact { text: t.into(), ignore_case: i };
        let prefix = |t: &str, i| PathMatch::Prefix { text: t.into(), ignore_case: i };
        let separated = |t: &str, i| PathMatch::SeparatedPrefix { text: t.into(), ignore_case: i };
        let regex = |t: &str| PathMatch::Regex(Pattern::new(t).unwrap());
        let table: &[(PathMatch, &str, bool)] = &[
            (exact("/a", false), "/a", true),
            (exact("/a", false), "/A", false),
            (exact("/a", true), "/A", true),
            (exact("/a", false), "/a/", false),
            (prefix("/a", false), "/abc", true),
            (prefix("/a", false), "/b", false),
            (prefix("/aB", true), "/Abc", true),
            (prefix("", false), "/", true),
            (prefix("/abc", false), "/ab", false),
            (separated("/api/dev", false), "/api/dev", true),
            (separated("/api/dev", false), "/api/dev/", true),
            (separated("/api/dev", false), "/api/dev/v1", true),
            (separated("/api/dev", false), "/api/developer", false),
            (separated("/api/dev", true), "/API/dev/v1", true),
            (regex("/v[0-9]+/.*"), "/v1/x", true),
            (regex("/v[0-9]+"), "/v1/x", false),
            (PathMatch::Connect, "/", false),
        ];
        for (matcher, path, want) in table {
            assert_eq!(matcher.is_match(path), *want, "{matcher:?} on {path}");
        }
    }

    #[test]
    fn header_matchers_follow_envoys_table() {
        let text = |place, t: &str| HeaderRule::Text(StringMatch::text(place, t, false));
        // (rule, invert, missing_is_empty, values of the header, match?)
        let table: &[(HeaderRule, bool, bool, &[&str], bool)] = &[
            (exact("a"), false, false, &["a"], true),
            (exact("a"), false, false, &["b"], false),
            (exact("a"), true, false, &["b"], true),
            (exact("a"), false, false, &[], false),
            (exact("a"), true, false, &[], false),
            (exact("a"), true, true, &[], true),
            (exact(""), false, true, &[], true),
            (exact("a,b"), false, false, &["a", "b"], true),
            (exact("a"), false, false, &["a", "b"], false),
            (text(Place::Contains, "b"), false, false, &["a", "b"], true),
            (text(Place::Suffix, "c"), false, false, &["a", "b"], false),
            (HeaderRule::Present(true), false, false, &["x"], true),
            (HeaderRule::Present(true), false, false, &[""], true),
            (HeaderRule::Present(true), false, false, &[], false),
            (HeaderRule::Present(true), true, false, &[], true),
            (HeaderRule::Present(true), true, false, &["x"], false),
            (HeaderRule::Present(false), false, false, &[], true),
            (HeaderRule::Present(false), false, false, &["x"], false),
            (HeaderRule::Present(false), true, false, &[], false),
            (HeaderRule::Present(false), true, false, &["x"], true),
            (HeaderRule::Present(true), false, true, &[], true),
            (HeaderRule::Present(false), false, true, &[], false),
            (HeaderRule::Range(-10..0), false, false, &["-1"], true),
            (HeaderRule::Range(-10..0), false, false, &["0"], false),
            (HeaderRule::Range(-10..0), false, false, &["10.9"], false),
            (HeaderRule::Range(-10..0), false, false, &["-1x"], false),
            (HeaderRule::Range(-10..0), false, false, &["somestring"], false),
            (HeaderRule::Range(0..10), false, false, &["+5"], true),
            (HeaderRule::Range(0..10), false, false, &[""], false),
            (HeaderRule::Range(0..10), true, true, &[], true),
            (HeaderRule::Range(0..10), true, false, &[], false),
            (HeaderRule::Range(-10..0), true, false, &["-1"], false),
            (HeaderRule::Text(StringMatch::Regex(Pattern::new("^$").unwrap())), false, true, &[], true),
            (HeaderRule::Text(StringMatch::Regex(Pattern::new("^$").unwrap())), false, false, &[], false),
        ];
        for (rule, invert, missing_is_empty, values, want) in table {
            let pairs: Vec<_> = values.iter().map(|v| ("x-h", *v)).collect();
            let key = HeaderKey::parse("X-H").unwrap();
            let (rule, invert, missing_is_empty) = (rule.clone(), *invert, *missing_is_empty);
            let m = HeaderMatch { key, rule, invert, missing_is_empty };
            assert_eq!(m.is_match(&get("h", "/", &pairs)), *want, "{m:?} on {values:?}");
        }
    }

    #[test]
    fn pseudo_headers_and_cookies_are_headers_too() {
        let head = get("Shop.example:80", "/a?b=c", &[("cookie", "a=1"), ("cookie", "b=2")]);
        let is = |name: &str, value: &str| {
            let key = HeaderKey::parse(name).unwrap();
            HeaderMatch { key, rule: exact(value), invert: false, missing_is_empty: false }.is_match(&head)
        };
        assert!(is(":method", "GET") && !is(":method", "get"));
        assert!(is(":path", "/a?b=c") && !is(":path", "/a"));
        assert!(is(":authority", "Shop.example:80") && is("Host", "Shop.example:80"));
        assert!(is(":scheme", "http"));
        assert!(!is(":status", "200"));
        assert!(is("cookie", "a=1; b=2"));
        assert_eq!(HeaderKey::parse(":nope"), None);
        assert_eq!(HeaderKey::parse(""), None);
        let status = HeaderMatch {
            key: HeaderKey::Status,
            rule: HeaderRule::Range(500..600),
            invert: false,
            missing_is_empty: false,
        };
        assert!(status.is_match(&ResponseHead::new(http::StatusCode::BAD_GATEWAY)));
    }

    #[test]
    fn query_parameters_first_value_counts_undecoded() {
        let q = |name: &str, rule| QueryMatch { name: name.into(), rule };
        let text = |t: &str| QueryRule::Text(StringMatch::text(Place::Exact, t, false));
        assert!(q("a", text("1")).is_match(Some("a=1&a=2")));
        assert!(!q("a", text("2")).is_match(Some("a=1&a=2")));
        assert!(q("a", text("foo%20bar")).is_match(Some("x&a=foo%20bar")));
        assert!(q("x", QueryRule::Present(true)).is_match(Some("x&a=1")));
        assert!(!q("y", QueryRule::Present(true)).is_match(Some("x&a=1")));
        assert!(q("y", QueryRule::Present(false)).is_match(None));
        assert!(!q("a", text("")).is_match(None));
    }

    #[test]
    fn cookies() {
        let c = |name: &str, v: &str, invert| CookieMatch {
            name: name.into(),
            text: StringMatch::text(Place::Exact, v, false),
            invert,
        };
        let head = get("h", "/", &[("cookie", "a=1; b=\"two\""), ("cookie", "c; d=x=y")]);
        assert!(c("a", "1", false).is_match(&head.headers));
        assert!(c("b", "two", false).is_match(&head.headers));
        assert!(c("d", "x=y", false).is_match(&head.headers));
        assert!(!c("c", "", false).is_match(&head.headers));
        assert!(c("z", "1", true).is_match(&head.headers));
        assert!(!c("a", "1", true).is_match(&head.headers));
    }

    #[test]
    fn the_whole_match_is_a_conjunction_and_connect_stands_apart() {
        let base = RouteMatch {
            path: PathMatch::Prefix { text: "/".into(), ignore_case: false },
            headers: Box::new([]),
            query: Box::new([]),
            cookies: Box::new([]),
            grpc: false,
            fraction: None,
        };
        let mut head = get("h", "/x;v=1?a=1", &[]);
        let ok = |m: &RouteMatch, h: &RequestHead, random| m.is_match(&Subject::new(h, false, random));
        assert!(ok(&base, &head, 0));
        assert_eq!(Subject::new(&head, true, 0).path, "/x");

        let grpc = RouteMatch { grpc: true, ..base.clone() };
        assert!(!ok(&grpc, &head, 0));
        head.headers.insert("content-type", "application/grpc+proto".parse().unwrap());
        assert!(ok(&grpc, &head, 0));

        let half = RouteMatch { fraction: Some(Fraction { numerator: 50, denominator: 100 }), ..base.clone() };
        assert!(ok(&half, &head, 149) && !ok(&half, &head, 150));

        let connect = RouteMatch { path: PathMatch::Connect, ..base.clone() };
        assert!(!ok(&connect, &head, 0));
        head.method = Method::CONNECT;
        assert!(ok(&connect, &head, 0) && !ok(&base, &head, 0));
    }

    proptest! {
        #[test]
        fn no_matcher_panics_on_any_header_or_query(bytes in proptest::collection::vec(any::<u8>(), 0..40), query in "[ -~]{0,30}", name in "[a-z=&]{0,3}") {
            if let Ok(value) = http::HeaderValue::from_bytes(&bytes) {
                let mut head = get("h", "/", &[]);
                head.headers.append("x", value.clone());
                head.headers.append("x", value.clone());
                head.headers.append(COOKIE, value);
                for rule in [exact("a"), HeaderRule::Present(true), HeaderRule::Range(0..5), HeaderRule::Text(StringMatch::Regex(Pattern::new(".*").unwrap()))] {
                    let m = HeaderMatch { key: HeaderKey::parse("x").unwrap(), rule, invert: false, missing_is_empty: false };
                    m.is_match(&head);
                }
                cookie(&head.headers, &name);
            }
            parameter(&query, &name);
        }

        #[test]
        fn a_separated_prefix_is_a_prefix(path in "/[ab/]{0,8}", text in "/[ab]{1,3}") {
            let separated = PathMatch::SeparatedPrefix { text: text.clone().into(), ignore_case: false };
            let prefix = PathMatch::Prefix { text: text.clone().into(), ignore_case: false };
            let want = path == text || path.starts_with(&format!("{text}/"));
            prop_assert_eq!(separated.is_match(&path), want);
            prop_assert!(!separated.is_match(&path) || prefix.is_match(&path));
        }
    }
}
