use super::*;
use http::HeaderValue;
use proptest::prelude::*;

const MAX_AGE: Duration = Duration::from_secs(300);

fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    lines.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
}

type Lines<'a> = &'a [(&'static str, &'static str)];

fn found(asked: Lines<'_>, status: u16, answer: Lines<'_>) -> Option<Terms> {
    let (asked, answer) = (headers(asked), headers(answer));
    let status = StatusCode::from_u16(status).unwrap();
    let vary = Vary::of(&answer, &asked)?;
    terms(&asked, (status, &answer), &vary, Duration::ZERO, MAX_AGE)
}

fn is_ok(asked: Lines<'_>, answer: Lines<'_>) -> bool {
    found(asked, 200, answer).is_some()
}

/// Seconds that an answer with this `Cache-Control` may be old; 0: it is not kept.
fn limit(control: &'static str) -> u64 {
    found(&[], 200, &[("cache-control", control)]).map_or(0, |terms| terms.limit.as_secs())
}

#[test]
fn only_a_whole_200_is_kept() {
    assert!(is_ok(&[], &[]));
    for status in [201, 203, 204, 206, 301, 304, 404, 503] {
        assert_eq!(found(&[], status, &[]), None, "{status}");
    }
    for line in [
        ("set-cookie", "a=b"),
        ("trailer", "x-sum"),
        ("content-range", "bytes 0-1/2"),
        ("x-remora-reason", "circuit_open"),
    ] {
        assert!(!is_ok(&[], &[line]), "{line:?}");
    }
}

#[test]
fn what_a_shared_cache_must_not_store_is_not_kept() {
    for control in
        ["no-store", "private", "no-cache", "No-Store", "max-age=9, no-store", "private=\"x-a, x-b\""]
    {
        assert!(!is_ok(&[], &[("cache-control", control)]), "{control}");
    }
    assert!(!is_ok(&[], &[("cache-control", "public"), ("cache-control", "private")]), "on two lines");
    assert!(!is_ok(&[("cache-control", "no-store")], &[]), "said by the request");
    assert!(is_ok(&[("cache-control", "no-cache")], &[]), "this is about answers that are kept");
    assert!(is_ok(&[], &[("cache-control", "x=\"a, no-store\", max-age=9")]), "a comma within quotes");
    assert!(!is_ok(&[], &[("cache-control", "x=\"a\\\", b\", no-store")]), "a quote within quotes");
}

#[test]
fn who_tells_who_asks_is_answered_alone_unless_the_answer_is_for_everybody() {
    for asked in [("authorization", "Basic x"), ("cookie", "id=1"), ("x-forwarded-client-cert", "By=a")] {
        assert!(!is_ok(&[asked], &[]) && !is_ok(&[asked], &[("cache-control", "max-age=9")]), "{asked:?}");
        for control in ["public", "s-maxage=9", "must-revalidate, max-age=9"] {
            let terms = found(&[asked], 200, &[("cache-control", control)]);
            assert!(terms.is_some_and(|terms| terms.shared), "{asked:?} {control}");
        }
    }
    assert!(is_ok(&[("cookie", "id=1")], &[("vary", "cookie")]), "it is for those with this cookie");
    assert!(
        !is_ok(&[("authorization", "x")], &[("vary", "authorization")]),
        "RFC 9111 section 3.5 has no such exception"
    );
}

#[test]
fn an_answer_may_shorten_its_time_and_never_lengthen_it() {
    assert_eq!(limit("max-age=10"), 300, "stale, but nothing speaks against it");
    assert_eq!(limit("max-age=10, stale-if-error=20"), 30);
    assert_eq!(limit("stale-if-error=\"20\""), 20);
    assert_eq!(limit("max-age=10, stale-if-error=999999999999999999999"), 300);
    assert_eq!(limit("max-age=10, must-revalidate, stale-if-error=20"), 10, "RFC 9111 section 4.2.4");
    assert_eq!(limit("max-age=10, proxy-revalidate"), 10);
    assert_eq!(limit("max-age=50, s-maxage=10"), 10);
    assert_eq!(limit("max-age=50, max-age=10, must-revalidate"), 10, "of two the least");
    assert_eq!(limit("must-revalidate"), 0);
    assert_eq!(limit("max-age=x, must-revalidate"), 0, "what cannot be read is stale");
    let dates = |expires| {
        let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        let answer = [date, ("expires", expires), ("cache-control", "must-revalidate")];
        found(&[], 200, &answer).map(|terms| terms.limit.as_secs())
    };
    assert_eq!(dates("Sun, 06 Nov 1994 08:49:57 GMT"), Some(20));
    assert_eq!((dates("Sun, 06 Nov 1994 08:49:07 GMT"), dates("0")), (None, None));
}

#[test]
fn an_answer_comes_with_an_age() {
    let old = headers(&[("age", "100")]);
    let vary = Vary::of(&old, &HeaderMap::new()).unwrap();
    let after = |took, max_age| {
        let of = (StatusCode::OK, &old);
        terms(&HeaderMap::new(), of, &vary, Duration::from_secs(took), Duration::from_secs(max_age))
    };
    assert_eq!(after(3, 300).unwrap().age, Duration::from_secs(103));
    assert_eq!(after(0, 100), None, "it is too old already");
}

#[test]
fn vary_names_what_must_be_the_same() {
    let asked = headers(&[("accept", "a"), ("accept", " b"), ("x", "1")]);
    let vary =
        Vary::of(&headers(&[("vary", "Accept, accept-language"), ("vary", "accept")]), &asked).unwrap();
    assert!(vary.matches(&headers(&[("accept", "a"), ("accept", "b"), ("x", "2")])));
    assert!(!vary.matches(&headers(&[("accept", "b"), ("accept", "a")])));
    assert!(!vary.matches(&headers(&[("accept", "a,b"), ("accept-language", "")])), "present is not absent");
    for many in ["*", "accept, *", "a b", "a1,a2,a3,a4,a5,a6,a7,a8,a9,b1,b2,b3,b4,b5,b6,b7,b8"] {
        assert!(!is_ok(&[], &[("vary", many)]), "{many}");
    }
}

#[test]
fn a_request_says_whether_it_takes_what_is_kept() {
    let wish = |method: &str, line: Option<(&'static str, &'static str)>| {
        let asked = headers(line.as_slice());
        wish(&method.parse().unwrap(), &asked)
    };
    assert_eq!((wish("GET", None), wish("HEAD", None)), (Some(Wish::default()), Some(Wish::default())));
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "QUERY"] {
        assert_eq!(wish(method, None), None, "{method}");
    }
    for line in [
        ("cache-control", "no-cache"),
        ("cache-control", "no-store"),
        ("if-match", "\"a\""),
        ("if-unmodified-since", "Sun, 06 Nov 1994 08:49:37 GMT"),
    ] {
        assert_eq!(wish("GET", Some(line)), None, "{line:?}");
    }
    assert!(wish("GET", Some(("if-none-match", "\"a\""))).is_some(), "the whole answer is right, too");
    let most = wish("GET", Some(("cache-control", "max-age=7"))).unwrap();
    assert_eq!(most.max_age, Some(Duration::from_secs(7)));
}

#[test]
fn what_belongs_to_one_exchange_is_not_given_again() {
    for name in ["age", "content-length", "x-request-id", "x-envoy-upstream-service-time", "x-remora-reason"]
    {
        assert!(!is_kept(&HeaderName::from_static(name)), "{name}");
    }
    for name in ["content-type", "etag", "date", "cache-control", "vary", "x-other"] {
        assert!(is_kept(&HeaderName::from_static(name)), "{name}");
    }
}

proptest! {
    /// Whatever a peer writes: no panic, and `no-store` as a directive of its own is always seen.
    #[test]
    fn no_store_is_never_overlooked(before in "[a-z0-9=, -]{0,20}", after in "[a-z0-9=\", -]{0,20}", any in ".{0,20}") {
        let value = |text: &str| HeaderValue::from_bytes(text.as_bytes());
        let mut map = HeaderMap::new();
        map.insert(header::CACHE_CONTROL, value(&format!("{before}, no-store, {after}")).unwrap());
        prop_assert!(Control::read(&map).no_store);
        if let Ok(odd) = value(&any) {
            map.insert(header::CACHE_CONTROL, odd);
            prop_assert!(!Control::read(&map).no_store || any.to_ascii_lowercase().contains("no-store"));
        }
    }
}
