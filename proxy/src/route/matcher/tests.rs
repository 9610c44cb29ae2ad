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
        // Envoy 1.40 answers these the same way.
        (exact("a"), false, false, &["a", "b"], true),
        (exact("b"), false, false, &["a", "b"], true),
        (exact("c"), false, false, &["a", "b"], false),
        (exact("a"), true, false, &["a", "b"], false),
        (exact("b"), true, false, &["a", "b"], false),
        (exact("c"), true, false, &["a", "b"], true),
        (text(Place::Prefix, "a"), false, false, &["a", "b"], true),
        (text(Place::Suffix, "b"), false, false, &["a", "b"], true),
        (HeaderRule::Range(1..5), false, false, &["9", "3"], true),
        (HeaderRule::Range(1..5), false, false, &["9", "8"], false),
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
fn a_granting_rule_asks_every_value() {
    let every = |rule: HeaderRule, invert, values: &[&str]| {
        let pairs: Vec<_> = values.iter().map(|v| ("x-role", *v)).collect();
        let key = HeaderKey::parse("x-role").unwrap();
        HeaderMatch { key, rule, invert, missing_is_empty: false }.is_match_every(&get("h", "/", &pairs))
    };
    assert!(every(exact("user"), false, &["user"]) && every(exact("user"), false, &["user", "user"]));
    assert!(!every(exact("user"), false, &["user", "admin"]) && !every(exact("user"), false, &[]));
    assert!(
        every(exact("admin"), true, &["user", "guest"]) && !every(exact("admin"), true, &["user", "admin"])
    );
    assert!(
        every(HeaderRule::Present(true), false, &["a", "b"]) && every(HeaderRule::Present(false), false, &[])
    );
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
    assert!(is("cookie", "a=1; b=2") && is("cookie", "b=2") && !is("cookie", "a=1,b=2"));
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
                let _ = m.is_match(&head);
            }
            let _ = cookie(&head.headers, &name);
        }
        let _ = parameter(&query, &name);
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
