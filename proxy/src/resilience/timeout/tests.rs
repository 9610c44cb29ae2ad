use super::*;
use proptest::prelude::*;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn headers(list: &[(&HeaderName, &str)]) -> HeaderMap {
    list.iter().map(|(n, v)| ((*n).clone(), v.parse().unwrap())).collect()
}

const INTERNAL: Circumstances = Circumstances {
    grpc: false,
    internal: true,
    respect_expected: false,
    per_try: None,
    hedge: false,
    tunnel: false,
    listener_stream: None,
    waits: None,
};

#[test]
fn grpc_timeout_in_all_units() {
    let table: &[(&str, Option<Duration>)] = &[
        ("1H", Some(Duration::from_secs(3600))),
        ("2M", Some(Duration::from_secs(120))),
        ("3S", Some(Duration::from_secs(3))),
        ("4m", Some(ms(4))),
        ("5u", Some(Duration::from_micros(5))),
        ("6n", Some(Duration::from_nanos(6))),
        ("0S", Some(Duration::ZERO)),
        ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
        ("100000000n", None),
        ("", None),
        ("S", None),
        ("1", None),
        ("-1S", None),
        ("1 S", None),
        ("1s", None),
        ("1.5S", None),
    ];
    for (text, want) in table {
        assert_eq!(parse_grpc_timeout(text.as_bytes()), *want, "{text}");
    }
    assert_eq!(grpc_timeout(ms(1500)), "1500m");
    assert_eq!(grpc_timeout(ms(100_000_000)), "100000S");
    assert_eq!(grpc_timeout(Duration::from_secs(100_000_000)), "1666666M");
    assert_eq!(grpc_timeout(Duration::from_secs(6_000_000_000)), "1666666H");
    assert_eq!(grpc_timeout(Duration::MAX), "99999999H");
}

#[test]
fn a_proxy_in_front_can_only_shorten_the_time() {
    let waits = |waits, route: Option<Duration>| {
        let policy = TimeoutPolicy { request: route, ..TimeoutPolicy::default() };
        policy.limits(&HeaderMap::new(), &Circumstances { waits, ..Circumstances::default() }).request
    };
    assert_eq!(waits(Some(ms(70)), Some(ms(100))), Some(ms(70)));
    assert_eq!(waits(Some(ms(170)), Some(ms(100))), Some(ms(100)));
    assert_eq!(waits(Some(ms(170)), None), Some(ms(170)));
    assert_eq!(waits(None, Some(ms(100))), Some(ms(100)));
}

#[test]
fn the_route_timeout_and_who_may_change_it() {
    let policy = TimeoutPolicy::default();
    let said = headers(&[(&REQUEST_TIMEOUT, "200"), (&PER_TRY_TIMEOUT, "50"), (&EXPECTED_TIMEOUT, "70")]);
    let external = policy.limits(&said, &Circumstances::default());
    assert_eq!((external.request, external.per_try), (Some(Duration::from_secs(15)), None));
    let internal = policy.limits(&said, &INTERNAL);
    assert_eq!((internal.request, internal.per_try), (Some(ms(200)), Some(ms(50))));
    let respect = policy.limits(&said, &Circumstances { respect_expected: true, ..INTERNAL });
    assert_eq!((respect.request, respect.per_try), (Some(ms(70)), Some(ms(50))));
    let zero = policy.limits(&headers(&[(&REQUEST_TIMEOUT, "0")]), &INTERNAL);
    assert_eq!(zero.request, None);
    let junk = policy.limits(&headers(&[(&REQUEST_TIMEOUT, "soon"), (&PER_TRY_TIMEOUT, "-1")]), &INTERNAL);
    assert_eq!((junk.request, junk.per_try), (Some(Duration::from_secs(15)), None));
}

#[test]
fn a_hedged_try_has_the_time_of_the_whole_request() {
    let policy = TimeoutPolicy { request: Some(ms(100)), ..TimeoutPolicy::default() };
    let with = Circumstances { per_try: Some(ms(30)), ..INTERNAL };
    let limits = |said: &[_], with: Circumstances| policy.limits(&headers(said), &with);
    let plain = limits(&[], with);
    assert_eq!(
        (plain.try_limit(), plain.hedge_after(), plain.expected(ms(0))),
        (Some(ms(30)), None, Some(ms(30)))
    );
    let hedged = limits(&[], Circumstances { hedge: true, ..with });
    assert_eq!(
        (hedged.try_limit(), hedged.hedge_after(), hedged.expected(ms(0))),
        (None, Some(ms(30)), Some(ms(100)))
    );
    let said =
        |value, hedge| limits(&[(&HEDGE_ON_PER_TRY_TIMEOUT, value)], Circumstances { hedge, ..with }).hedge;
    assert!(said("true", false) && !said("false", true) && said("perhaps", true) && !said("TRUE", false));
    let external = Circumstances { internal: false, ..with };
    assert!(!limits(&[(&HEDGE_ON_PER_TRY_TIMEOUT, "true")], external).hedge);
    let tunnel = Circumstances { tunnel: true, hedge: true, ..with };
    for said in [&[][..], &[(&HEDGE_ON_PER_TRY_TIMEOUT, "true")]] {
        assert!(!limits(said, tunnel).hedge, "{said:?}");
    }
    let unlimited = Circumstances { per_try: None, hedge: true, ..with };
    assert!(!limits(&[], unlimited).hedge, "there is nothing to wait for");
}

#[test]
fn a_try_never_has_more_than_the_whole() {
    let policy = TimeoutPolicy { request: Some(ms(100)), ..TimeoutPolicy::default() };
    let per_try =
        |t| policy.limits(&HeaderMap::new(), &Circumstances { per_try: Some(ms(t)), ..INTERNAL }).per_try;
    assert_eq!(per_try(99), Some(ms(99)));
    assert_eq!(per_try(100), None);
    let none = TimeoutPolicy { request: None, ..policy };
    let limits = none.limits(&HeaderMap::new(), &Circumstances { per_try: Some(ms(500)), ..INTERNAL });
    assert_eq!((limits.request, limits.per_try), (None, Some(ms(500))));
}

#[test]
fn deprecated_grpc_timeouts_of_the_route() {
    let rule = |max, offset| TimeoutPolicy {
        grpc_request: Some(GrpcHeader { max, offset }),
        ..TimeoutPolicy::default()
    };
    let ask = |policy: &TimeoutPolicy, header: Option<&str>, grpc| {
        let h = header.map(|h| headers(&[(&GRPC_TIMEOUT, h)])).unwrap_or_default();
        policy.limits(&h, &Circumstances { grpc, ..Circumstances::default() }).request
    };
    let capped = rule(Some(ms(500)), Duration::ZERO);
    assert_eq!(ask(&capped, Some("100m"), true), Some(ms(100)));
    assert_eq!(ask(&capped, Some("1S"), true), Some(ms(500)));
    assert_eq!(ask(&capped, None, true), Some(ms(500)));
    assert_eq!(ask(&capped, Some("100m"), false), Some(Duration::from_secs(15)));
    let open = rule(None, ms(10));
    assert_eq!(ask(&open, Some("100m"), true), Some(ms(90)));
    assert_eq!(ask(&open, Some("10m"), true), Some(ms(10)), "the offset never leaves nothing");
    assert_eq!(ask(&open, None, true), None);
    assert_eq!(ask(&open, Some("0m"), true), None);
}

#[test]
fn stream_duration() {
    let stream = |stream, grpc_stream, header: Option<&str>, listener| {
        let policy = TimeoutPolicy { stream, grpc_stream, ..TimeoutPolicy::default() };
        let h = header.map(|h| headers(&[(&GRPC_TIMEOUT, h)])).unwrap_or_default();
        policy.limits(&h, &Circumstances { listener_stream: listener, ..Circumstances::default() }).stream
    };
    let (at, hour) = (Limit::After(ms(700)), Some(Duration::from_secs(3600)));
    assert_eq!(stream(Limit::Inherit, None, None, hour), hour);
    assert_eq!(stream(Limit::Off, None, None, hour), None);
    assert_eq!(stream(at, None, Some("1m"), hour), Some(ms(700)));
    let rule = |max, offset| Some(GrpcHeader { max, offset });
    assert_eq!(stream(at, rule(None, ms(0)), None, hour), Some(ms(700)));
    assert_eq!(stream(at, rule(None, ms(0)), Some("5S"), hour), Some(ms(5000)));
    assert_eq!(stream(at, rule(Some(ms(900)), ms(100)), Some("5S"), hour), Some(ms(800)));
    assert_eq!(stream(at, rule(None, ms(100)), Some("50m"), hour), Some(Duration::ZERO));
    assert_eq!(stream(at, rule(None, ms(0)), Some("junk"), hour), Some(ms(700)));
}

#[test]
fn deadlines_and_what_the_upstream_is_told() {
    let start = Instant::now();
    let limits =
        Limits { request: Some(ms(100)), per_try: Some(ms(30)), rewrite_grpc: true, ..Limits::default() };
    assert_eq!(limits.request_deadline(start), Some(start + ms(100)));
    assert_eq!(limits.try_deadline(start, start + ms(50)), Some(start + ms(80)));
    assert_eq!(limits.try_deadline(start, start + ms(90)), Some(start + ms(100)));
    assert_eq!(limits.stream_deadline(start), None);
    assert_eq!(limits.expected(ms(0)), Some(ms(30)));
    assert_eq!(limits.expected(ms(90)), Some(ms(10)));
    assert_eq!(limits.expected(ms(200)), Some(ms(1)));
    assert_eq!(Limits::default().expected(ms(5)), None);
    assert_eq!(Limits::default().try_deadline(start, start), None);

    let mut told = headers(&[(&GRPC_TIMEOUT, "9S")]);
    limits.announce(&mut told, ms(90), false);
    assert_eq!(
        (&told[&EXPECTED_TIMEOUT], &told[&GRPC_TIMEOUT]),
        (&"10".parse().unwrap(), &"10m".parse().unwrap())
    );
    let mut quiet = HeaderMap::new();
    Limits { rewrite_grpc: false, ..limits }.announce(&mut quiet, ms(0), true);
    assert!(quiet.is_empty());
}

#[test]
fn a_timeout_past_the_end_of_time_is_none() {
    let limits = Limits { request: Some(Duration::MAX), stream: Some(Duration::MAX), ..Limits::default() };
    let now = Instant::now();
    assert_eq!((limits.request_deadline(now), limits.stream_deadline(now)), (None, None));
}

proptest! {
    #[test]
    fn any_header_is_safe_and_a_written_one_is_read_back_no_later(bytes in proptest::collection::vec(any::<u8>(), 0..12), nanos in any::<u64>()) {
        let _ = parse_grpc_timeout(&bytes);
        let timeout = Duration::from_nanos(nanos);
        let back = parse_grpc_timeout(grpc_timeout(timeout).as_bytes());
        prop_assert!(back.is_some_and(|b| b <= timeout));
    }

    #[test]
    fn expected_is_never_zero_nor_more_than_is_left(request in proptest::option::of(1u64..10_000), per_try in proptest::option::of(1u64..10_000), elapsed in 0u64..20_000) {
        let limits = Limits { request: request.map(ms), per_try: per_try.map(ms), ..Limits::default() };
        match limits.expected(ms(elapsed)) {
            None => prop_assert!(request.is_none() && per_try.is_none()),
            Some(e) => {
                prop_assert!(!e.is_zero());
                if let Some(r) = request {
                    prop_assert!(e <= ms(r.saturating_sub(elapsed).max(1)));
                }
            }
        }
    }
}
