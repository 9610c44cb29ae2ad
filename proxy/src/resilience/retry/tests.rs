use super::*;
use crate::route::matcher::tests::get;
use crate::route::matcher::{HeaderKey, HeaderRule};
use proptest::prelude::*;
use std::time::SystemTime;

const SENT: Progress = Progress { sent: true, replayable: true };
const UNSENT: Progress = Progress { sent: false, replayable: true };
const RETRY: Decision = Decision::Retry(RetryKind::Policy);
const TRANSPARENT: Decision = Decision::Retry(RetryKind::Transparent);
const NO: Decision = Decision::Stop(Stop::NotRetriable);

fn on(names: &str) -> RetryOn {
    names
        .split(',')
        .filter(|n| !n.is_empty())
        .fold(RetryOn::default(), |set, n| set.union(RetryOn::parse(n).unwrap()))
}

fn policy(names: &str) -> RetryPolicy {
    RetryPolicy { on: on(names), ..RetryPolicy::default() }
}

fn request(method: Method, headers: &[(&str, &str)]) -> RequestHead {
    let mut head = get("h", "/", headers);
    head.method = method;
    head
}

fn answer(status: u16, headers: &[(&str, &str)]) -> ResponseHead {
    let mut head = ResponseHead::new(StatusCode::from_u16(status).unwrap());
    head.headers = get("h", "/", headers).headers;
    head
}

fn after_answer(policy: &RetryPolicy, head: &ResponseHead) -> Decision {
    let state = RetryState::new(Some(policy), &request(Method::POST, &[]), false);
    state.decide(Some(policy), Outcome::Answer(head, None), SENT)
}

fn after_failure(names: &str, reason: Reason, progress: Progress) -> Decision {
    let policy = policy(names);
    let state = RetryState::new(Some(&policy), &request(Method::POST, &[]), false);
    state.decide(Some(&policy), Outcome::Failed(reason), progress)
}

#[test]
fn every_condition_on_an_answer() {
    type Row<'a> = (&'a str, u16, &'a [(&'a str, &'a str)], bool);
    let table: &[Row<'_>] = &[
        ("5xx", 500, &[], true),
        ("5xx", 599, &[], true),
        ("5xx", 499, &[], false),
        ("gateway-error", 502, &[], true),
        ("gateway-error", 503, &[], true),
        ("gateway-error", 504, &[], true),
        ("gateway-error", 500, &[], false),
        ("gateway-error", 505, &[], false),
        ("retriable-4xx", 409, &[], true),
        ("retriable-4xx", 404, &[], false),
        ("connect-failure,reset,refused-stream,reset-before-request", 503, &[], false),
        ("cancelled", 200, &[("grpc-status", "1")], true),
        ("deadline-exceeded", 200, &[("grpc-status", "4")], true),
        ("resource-exhausted", 200, &[("grpc-status", "8")], true),
        ("internal", 200, &[("grpc-status", "13")], true),
        ("unavailable", 200, &[("grpc-status", "14")], true),
        ("unavailable", 200, &[("grpc-status", "13")], false),
        ("unavailable", 200, &[("grpc-status", "0")], false),
        ("unavailable", 200, &[("grpc-status", "x")], false),
        ("unavailable", 200, &[], false),
        ("5xx", 503, &[("x-envoy-ratelimited", "true")], false),
        ("envoy-ratelimited", 429, &[("x-envoy-ratelimited", "true")], true),
        ("envoy-ratelimited", 429, &[], false),
        ("", 503, &[], false),
    ];
    for (names, status, headers, want) in table {
        let got = after_answer(&policy(names), &answer(*status, headers));
        assert_eq!(got, if *want { RETRY } else { NO }, "{names} {status} {headers:?}");
    }
}

#[test]
fn listed_status_codes_and_headers() {
    let mut p = policy("retriable-status-codes");
    p.status_codes = Box::new([StatusCode::TOO_MANY_REQUESTS]);
    assert_eq!(after_answer(&p, &answer(429, &[])), RETRY);
    assert_eq!(after_answer(&p, &answer(503, &[])), NO);

    let mut p = policy("retriable-headers");
    p.headers = Box::new([HeaderMatch {
        key: HeaderKey::parse("x-again").unwrap(),
        rule: HeaderRule::Present(true),
        invert: false,
        missing_is_empty: false,
    }]);
    assert_eq!(after_answer(&p, &answer(200, &[("x-again", "")])), RETRY);
    assert_eq!(after_answer(&p, &answer(200, &[])), NO);
}

#[test]
fn every_condition_on_a_failure() {
    let table: &[(&str, Reason, Progress, Decision)] = &[
        ("connect-failure", Reason::ConnectFailure, UNSENT, RETRY),
        ("connect-failure", Reason::ConnectTimeout, UNSENT, RETRY),
        ("connect-failure", Reason::UpstreamTls, UNSENT, RETRY),
        ("connect-failure", Reason::UpstreamReset, SENT, NO),
        ("refused-stream", Reason::UpstreamRefused, SENT, RETRY),
        ("refused-stream", Reason::UpstreamReset, SENT, NO),
        ("reset", Reason::UpstreamReset, SENT, RETRY),
        ("reset", Reason::UpstreamClosed, SENT, RETRY),
        ("reset", Reason::ConnectFailure, UNSENT, RETRY),
        ("reset", Reason::PerTryTimeout, SENT, RETRY),
        ("reset-before-request", Reason::UpstreamClosed, UNSENT, RETRY),
        ("reset-before-request", Reason::UpstreamClosed, SENT, NO),
        ("5xx", Reason::UpstreamClosed, SENT, RETRY),
        ("5xx", Reason::PerTryTimeout, SENT, RETRY),
        ("5xx", Reason::UpstreamProtocol, SENT, RETRY),
        ("gateway-error", Reason::ConnectFailure, UNSENT, RETRY),
        ("gateway-error", Reason::PerTryTimeout, SENT, RETRY),
        ("retriable-4xx,connect-failure", Reason::PerTryTimeout, SENT, NO),
        ("5xx,reset,connect-failure", Reason::UpstreamOverflow, UNSENT, NO),
        ("5xx,reset,connect-failure", Reason::NoHealthyUpstream, UNSENT, NO),
        ("5xx,reset", Reason::UpstreamTimeout, SENT, NO),
        ("5xx,reset", Reason::UpstreamBodyReset, SENT, NO),
        ("5xx,reset", Reason::DownstreamGone, SENT, NO),
        ("", Reason::ConnectFailure, UNSENT, NO),
    ];
    for (names, reason, progress, want) in table {
        assert_eq!(after_failure(names, *reason, *progress), *want, "{names} {reason} {progress:?}");
    }
}

#[test]
fn without_a_policy_only_what_was_not_processed_is_repeated_and_once() {
    let decide = |method, reason, progress| {
        RetryState::new(None, &request(method, &[]), false).decide(None, Outcome::Failed(reason), progress)
    };
    assert_eq!(decide(Method::POST, Reason::UpstreamRefused, SENT), TRANSPARENT);
    assert_eq!(decide(Method::GET, Reason::ReusedConnectionClosed, SENT), TRANSPARENT);
    assert_eq!(decide(Method::POST, Reason::ReusedConnectionClosed, SENT), NO);
    assert_eq!(decide(Method::POST, Reason::ReusedConnectionClosed, UNSENT), TRANSPARENT);
    assert_eq!(decide(Method::GET, Reason::UpstreamClosed, SENT), NO);
    assert_eq!(decide(Method::GET, Reason::UpstreamReset, SENT), NO);

    let keyed = request(Method::POST, &[("idempotency-key", "k")]);
    let mut state = RetryState::new(None, &keyed, false);
    let stale = Outcome::Failed(Reason::ReusedConnectionClosed);
    assert_eq!(state.decide(None, stale, SENT), TRANSPARENT);
    state.count(RetryKind::Transparent);
    assert_eq!(state.decide(None, stale, SENT), NO);
    assert_eq!(state.retries(), 1);
    assert!(!state.may_retry());
}

#[test]
fn the_policy_is_used_up_before_the_transparent_retry_and_then_the_limit_shows() {
    let p = RetryPolicy { num_retries: 1, ..policy("5xx") };
    let mut state = RetryState::new(Some(&p), &request(Method::GET, &[]), false);
    let stale = Outcome::Failed(Reason::ReusedConnectionClosed);
    assert_eq!(state.decide(Some(&p), stale, SENT), RETRY);
    state.count(RetryKind::Policy);
    assert_eq!(state.decide(Some(&p), stale, SENT), TRANSPARENT);
    state.count(RetryKind::Transparent);
    assert_eq!(state.decide(Some(&p), stale, SENT), Decision::Stop(Stop::LimitReached));
    assert_eq!(
        state.decide(Some(&p), Outcome::Answer(&answer(503, &[]), None), SENT),
        Decision::Stop(Stop::LimitReached)
    );
    assert_eq!(state.decide(Some(&p), Outcome::Answer(&answer(200, &[]), None), SENT), NO);
}

#[test]
fn a_body_that_is_gone_cannot_be_sent_again() {
    let gone = Progress { sent: true, replayable: false };
    assert_eq!(after_failure("5xx", Reason::UpstreamClosed, gone), Decision::Stop(Stop::NotReplayable));
    assert_eq!(after_failure("", Reason::UpstreamRefused, gone), Decision::Stop(Stop::NotReplayable));
}

#[test]
fn an_internal_request_may_ask_for_retries() {
    let head = request(
        Method::POST,
        &[
            ("x-envoy-retry-on", "connect-failure, retriable-status-codes,nonsense"),
            ("x-envoy-retry-grpc-on", "unavailable"),
            ("x-envoy-max-retries", "3"),
            ("x-envoy-retriable-status-codes", "418, 7,x"),
        ],
    );
    let external = RetryState::new(None, &head, false);
    assert_eq!(external.decide(None, Outcome::Failed(Reason::ConnectFailure), UNSENT), NO);
    let mut internal = RetryState::new(None, &head, true);
    for _ in 0..3 {
        assert_eq!(internal.decide(None, Outcome::Failed(Reason::ConnectFailure), UNSENT), RETRY);
        assert_eq!(internal.decide(None, Outcome::Answer(&answer(418, &[]), None), SENT), RETRY);
        assert_eq!(
            internal.decide(None, Outcome::Answer(&answer(200, &[("grpc-status", "14")]), None), SENT),
            RETRY
        );
        internal.count(RetryKind::Policy);
    }
    let stop = internal.decide(None, Outcome::Failed(Reason::ConnectFailure), UNSENT);
    assert_eq!(stop, Decision::Stop(Stop::LimitReached));
}

#[test]
fn max_retries_alone_asks_for_nothing() {
    let head = request(Method::GET, &[("x-envoy-max-retries", "5")]);
    let state = RetryState::new(None, &head, true);
    assert_eq!(state.decide(None, Outcome::Answer(&answer(503, &[]), None), SENT), NO);
    let p = policy("5xx");
    let none = request(Method::GET, &[("x-envoy-max-retries", "0")]);
    let state = RetryState::new(Some(&p), &none, true);
    assert_eq!(
        state.decide(Some(&p), Outcome::Answer(&answer(503, &[]), None), SENT),
        Decision::Stop(Stop::LimitReached)
    );
}

#[test]
fn a_hedge_needs_a_policy_a_complete_request_and_a_retry_that_is_left() {
    let state = |p: &RetryPolicy| RetryState::new(Some(p), &request(Method::POST, &[]), false);
    assert_eq!(state(&policy("connect-failure")).hedge(true), RETRY, "any condition will do, as in Envoy");
    assert_eq!(state(&policy("")).hedge(true), NO);
    assert_eq!(state(&policy("5xx")).hedge(false), Decision::Stop(Stop::NotReplayable));
    let mut used = state(&policy("5xx"));
    used.count(RetryKind::Policy);
    assert_eq!(used.hedge(true), Decision::Stop(Stop::LimitReached));
}

#[test]
fn retriable_request_headers_limit_the_policy() {
    let mut p = policy("5xx");
    p.request_headers = Box::new([HeaderMatch {
        key: HeaderKey::Method,
        rule: HeaderRule::Text(crate::route::text::StringMatch::text(
            crate::route::text::Place::Exact,
            "GET",
            false,
        )),
        invert: false,
        missing_is_empty: false,
    }]);
    let decide = |method| {
        RetryState::new(Some(&p), &request(method, &[]), false).decide(
            Some(&p),
            Outcome::Answer(&answer(500, &[]), None),
            SENT,
        )
    };
    assert_eq!(decide(Method::GET), RETRY);
    assert_eq!(decide(Method::POST), NO);
    let hedge = |method| RetryState::new(Some(&p), &request(method, &[]), false).hedge(true);
    assert_eq!((hedge(Method::GET), hedge(Method::POST)), (RETRY, NO), "a late try may have been processed");
}

#[test]
fn the_upstream_may_say_when_to_come_back() {
    let rule = RateLimitedBackoff {
        headers: Box::new([
            ("retry-after".parse().unwrap(), ResetFormat::Seconds),
            ("x-ratelimit-reset".parse().unwrap(), ResetFormat::UnixTimestamp),
        ]),
        max: Duration::from_secs(300),
    };
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let wait =
        |headers: &[(&str, &str)]| rule.wait(&answer(429, headers).headers, at(1000)).map(|d| d.as_secs());
    assert_eq!(wait(&[("retry-after", "120")]), Some(120));
    assert_eq!(wait(&[("x-ratelimit-reset", "1060")]), Some(60));
    assert_eq!(
        wait(&[("retry-after", "301"), ("x-ratelimit-reset", "1060")]),
        Some(60),
        "too long: the next header"
    );
    assert_eq!(wait(&[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")]), None);
    assert_eq!(wait(&[("x-ratelimit-reset", "999")]), None);
    assert_eq!(wait(&[]), None);

    let p = RetryPolicy { rate_limited: Some(rule), ..policy("5xx") };
    let mut rng = fastrand::Rng::with_seed(3);
    let mut wait = |n, head: Option<&ResponseHead>| p.wait(n, head, at(0), &mut rng).unwrap();
    for n in 1..50 {
        let asked = wait(n, Some(&answer(429, &[("retry-after", "10")])));
        assert!(asked >= Duration::from_secs(10) && asked < Duration::from_secs(15));
        let year = answer(503, &[("retry-after", "31536000")]);
        assert!(wait(n, Some(&year)) < p.backoff.max, "as in Envoy");
        assert!(wait(n, Some(&answer(429, &[]))) < p.backoff.max);
        assert!(wait(n, None) < p.backoff.max);
    }
}

#[test]
fn retry_after_holds_without_a_rule_about_it() {
    let p = policy("5xx");
    let mut rng = fastrand::Rng::with_seed(3);
    let now = httpdate::parse_http_date("Wed, 21 Oct 2015 07:28:00 GMT").unwrap();
    let mut wait =
        |status, value: &str| p.wait(1, Some(&answer(status, &[("retry-after", value)])), now, &mut rng);
    for (value, seconds) in [("2", 2), ("60", 60), ("Wed, 21 Oct 2015 07:28:30 GMT", 30)] {
        for status in [429, 503] {
            let asked = wait(status, value).unwrap();
            let least = Duration::from_secs(seconds);
            assert!(asked >= least && asked <= least * 3 / 2, "{value}: {asked:?}");
        }
    }
    for year in ["31536000", "61", "99999999999999999999999999", "Fri, 21 Oct 2016 07:28:00 GMT"] {
        assert_eq!(wait(503, year), None, "{year}");
    }
    for nothing in ["", "soon", "-1", "Wed, 21 Oct 2015 07:27:00 GMT"] {
        assert!(wait(503, nothing).unwrap() < p.backoff.max, "{nothing}");
    }
    assert!(wait(500, "31536000").unwrap() < p.backoff.max);
}

#[test]
fn what_was_retried_in_vain_below_is_not_retried_again() {
    let marked =
        [("x-remora-retries-exhausted", "1"), ("grpc-status", "14"), ("x-envoy-ratelimited", "true")];
    for names in ["5xx", "gateway-error", "unavailable", "envoy-ratelimited"] {
        assert_eq!(after_answer(&policy(names), &answer(503, &marked)), NO, "{names}");
    }
}

#[test]
fn a_grpc_status_in_trailers_counts_like_one_in_the_head() {
    let p = policy("unavailable,internal");
    let state = RetryState::new(Some(&p), &request(Method::POST, &[]), false);
    assert!(state.wants_grpc_status());
    assert!(!RetryState::new(Some(&policy("5xx")), &request(Method::POST, &[]), false).wants_grpc_status());
    let decide = |head: &[(&str, &str)], code| {
        let trailers = get("h", "/", &[("grpc-status", code)]).headers;
        state.decide(Some(&p), Outcome::Answer(&answer(200, head), Some(&trailers)), SENT)
    };
    assert_eq!(decide(&[], "14"), RETRY);
    assert_eq!(decide(&[], "13"), RETRY);
    assert_eq!(decide(&[], "5"), NO);
    assert_eq!(decide(&[("grpc-status", "0")], "14"), NO, "the head's holds");
}

#[test]
fn requests_that_are_left_out_are_repeated_when_they_were_not_processed() {
    let mut p = policy("5xx,reset,unavailable,connect-failure,refused-stream");
    p.request_headers = Box::new([HeaderMatch {
        key: HeaderKey::parse("idempotency-key").unwrap(),
        rule: HeaderRule::Present(true),
        invert: false,
        missing_is_empty: false,
    }]);
    let decide = |headers: &[(&str, &str)], outcome: Outcome<'_>, progress| {
        RetryState::new(Some(&p), &request(Method::POST, headers), false).decide(Some(&p), outcome, progress)
    };
    let keyed = [("idempotency-key", "k")];
    let error = answer(503, &[("grpc-status", "14")]);
    for (outcome, progress, plain) in [
        (Outcome::Answer(&error, None), SENT, NO),
        (Outcome::Failed(Reason::UpstreamReset), SENT, NO),
        (Outcome::Failed(Reason::PerTryTimeout), SENT, NO),
        (Outcome::Failed(Reason::ConnectFailure), UNSENT, RETRY),
        (Outcome::Failed(Reason::UpstreamRefused), SENT, RETRY),
    ] {
        assert_eq!(decide(&keyed, outcome, progress), RETRY, "{outcome:?}");
        assert_eq!(decide(&[], outcome, progress), plain, "{outcome:?}");
    }
}

#[test]
fn names_round_trip() {
    for name in RetryOn::names() {
        assert_eq!(format!("{:?}", RetryOn::parse(name).unwrap()), format!("[{name}]"));
    }
    assert_eq!(RetryOn::parse("http3-post-connect-failure"), None);
    assert_eq!(RetryOn::names().count(), RetryOn::ALL.len());
}

fn any_reason() -> impl Strategy<Value = Reason> {
    proptest::sample::select(Reason::ALL)
}

proptest! {
    /// Rule 2: without a policy nothing that may have been processed is repeated, unless it is idempotent.
    #[test]
    fn no_policy_no_repetition_of_what_may_have_been_processed(reason in any_reason(), sent in any::<bool>(), replayable in any::<bool>()) {
        let state = RetryState::new(None, &request(Method::POST, &[]), false);
        let decision = state.decide(None, Outcome::Failed(reason), Progress { sent, replayable });
        if matches!(decision, Decision::Retry(_)) {
            prop_assert!(!sent || reason.never_processed());
            prop_assert!(replayable);
        }
    }

    /// However tries end, there are at most `num_retries` + 1 of them.
    #[test]
    fn retries_end(reasons in proptest::collection::vec(any_reason(), 0..40), num_retries in 0u32..5) {
        let p = RetryPolicy { num_retries, ..policy("5xx,reset,connect-failure,refused-stream,reset-before-request") };
        let mut state = RetryState::new(Some(&p), &request(Method::GET, &[]), false);
        for reason in reasons {
            if let Decision::Retry(kind) = state.decide(Some(&p), Outcome::Failed(reason), SENT) {
                state.count(kind);
            }
        }
        prop_assert!(state.retries() <= num_retries + 1);
    }
}
