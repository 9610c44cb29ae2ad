//! What holds for a bucket as assignments come and go.

use super::*;
use http::HeaderValue;

const TTL: Option<Duration> = Some(Duration::from_secs(2));

fn tokens(n: u32) -> Strategy {
    Strategy::Tokens(BucketSpec { max: n, per_fill: n, interval: Duration::from_secs(1) })
}

fn tracker(unassigned: Strategy, expired: Option<Expired>, now: Instant) -> Tracker {
    let key = MeterKey {
        cluster: "c".into(),
        authority: "a".into(),
        domain: "d".into(),
        bucket: [("name".to_owned(), "one".to_owned())].into(),
    };
    let lead = Arc::new(Lead { interval: Duration::from_secs(1), unassigned, expired });
    let meter = Arc::new(Meter::new(key, &lead, now));
    Tracker::new(meter, lead, now)
}

/// How many of `n` requests go on.
fn passed(tracker: &Tracker, n: u32, now: Instant) -> u32 {
    (0..n).map(|_| u32::from(tracker.meter().take(now))).sum()
}

#[test]
fn the_first_request_is_reported_at_once_and_then_usage_at_its_interval() {
    let start = Instant::now();
    let mut tracker = tracker(Strategy::AllowAll, None, start);
    tracker.turn(start);
    assert_eq!((tracker.next(), tracker.report(start)), (None, None), "nobody asks");
    assert_eq!(passed(&tracker, 1, start), 1);
    tracker.turn(start);
    let first = Usage { elapsed: Duration::from_nanos(1), allowed: 1, denied: 0 };
    assert_eq!(tracker.report(start), Some(first));
    tracker.assign(tokens(3), TTL, start);
    assert_eq!(passed(&tracker, 5, start), 3, "the bucket is full");
    let half = start + Duration::from_millis(500);
    assert_eq!(tracker.report(half), None);
    let due = start + Duration::from_secs(1);
    assert_eq!(tracker.next(), Some(due));
    let usage = Usage { elapsed: Duration::from_secs(1), allowed: 3, denied: 2 };
    assert_eq!(tracker.report(due), Some(usage));
    tracker.subscribe(half);
    assert!(tracker.report(due).is_some(), "a new stream is told at once");
}

#[test]
fn another_share_brings_no_tokens() {
    let start = Instant::now();
    let mut tracker = tracker(Strategy::DenyAll, None, start);
    assert_eq!(passed(&tracker, 2, start), 0);
    tracker.turn(start);
    tracker.assign(tokens(10), TTL, start);
    assert_eq!(passed(&tracker, 5, start), 0, "after DENY_ALL it fills as time goes on");
    let second = start + Duration::from_secs(1);
    assert_eq!(passed(&tracker, 4, second), 4);
    tracker.assign(tokens(100), TTL, second);
    assert_eq!(passed(&tracker, 50, second), 6);
    tracker.assign(tokens(100), TTL, second);
    assert_eq!(passed(&tracker, 50, second), 0, "the same one is only extended");
    let third = second + Duration::from_secs(1);
    tracker.assign(tokens(3), TTL, third);
    assert_eq!(passed(&tracker, 50, third), 3);
}

#[test]
fn a_share_goes_on_until_it_expires_then_the_fallback_then_nothing_is_known() {
    let start = Instant::now();
    let expired = Expired { strategy: Some(tokens(1)), lasts: Duration::from_secs(10) };
    let mut tracker = tracker(Strategy::AllowAll, Some(expired), start);
    passed(&tracker, 1, start);
    tracker.turn(start);
    tracker.assign(tokens(5), TTL, start);
    let at = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(passed(&tracker, 9, at(1)), 5);
    tracker.turn(at(2));
    assert_eq!(tracker.end(), Some(at(12)));
    assert_eq!(passed(&tracker, 9, at(4)), 1, "a fair share");
    assert!(tracker.report(at(4)).is_some(), "it still asks");
    tracker.turn(at(12));
    assert!(!tracker.is_active());
    assert_eq!(passed(&tracker, 9, at(12)), 9, "as without any assignment");
    tracker.turn(at(12));
    assert!(tracker.is_active(), "and it is asked for again");
}

#[test]
fn the_last_share_may_be_used_on_or_the_bucket_is_abandoned() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let reuse = Expired { strategy: None, lasts: Duration::from_secs(5) };
    let mut one = tracker(Strategy::DenyAll, Some(reuse), start);
    passed(&one, 1, start);
    one.turn(start);
    one.assign(tokens(5), TTL, start);
    one.turn(at(3));
    assert_eq!(passed(&one, 9, at(3)), 5);
    one.assign(tokens(5), None, at(3));
    assert_eq!((one.end(), passed(&one, 9, at(3))), (None, 0), "a share without an end, and no new tokens");

    let mut other = tracker(Strategy::DenyAll, None, start);
    passed(&other, 1, start);
    other.turn(start);
    other.assign(tokens(5), Some(Duration::ZERO), start);
    assert!(!other.is_active(), "expired as it came");
    other.assign(tokens(5), TTL, start);
    assert_eq!(passed(&other, 9, at(1)), 0, "what comes for an abandoned bucket is too late");
}

#[test]
fn a_share_without_somebody_who_ends_it_is_over_when_the_bucket_is_led_again() {
    let start = Instant::now();
    let mut first = tracker(Strategy::DenyAll, None, start);
    passed(&first, 1, start);
    first.turn(start);
    first.assign(Strategy::AllowAll, TTL, start);
    let (meter, lead) = (Arc::clone(first.meter()), Arc::clone(&first.lead));
    drop(first);
    assert!(meter.take(start));
    let mut second = Tracker::new(meter, lead, start);
    assert_eq!(passed(&second, 1, start), 0);
    second.turn(start);
    assert!(second.report(start).is_some(), "it is asked for at once");
}

#[test]
fn requests_find_their_buckets() {
    let bucket = |name: &str| {
        let lead = Arc::new(Lead {
            interval: Duration::from_secs(1),
            unassigned: Strategy::AllowAll,
            expired: None,
        });
        let key = MeterKey {
            cluster: "c".into(),
            authority: "a".into(),
            domain: "d".into(),
            bucket: [("name".to_owned(), name.to_owned())].into(),
        };
        let refusal = || Refusal {
            status: http::StatusCode::TOO_MANY_REQUESTS,
            headers: HeaderMutations::default(),
            resource_exhausted: false,
        };
        QuotaBucket {
            meter: Arc::new(Meter::new(key, &lead, Instant::now())),
            lead,
            refusal: refusal(),
            body: Bytes::new(),
            grpc_refusal: refusal(),
            grpc_message: Bytes::new(),
        }
    };
    let map = ["gold", "gold,gold"].map(|name| (name.into(), bucket(name))).into_iter().collect();
    let matcher =
        Matcher { tree: Some((HeaderName::from_static("x-tier"), map)), otherwise: Some(bucket("rest")) };
    let found = |values: &[&'static str]| {
        let headers: HeaderMap = values
            .iter()
            .map(|value| (HeaderName::from_static("x-tier"), HeaderValue::from_static(value)))
            .collect();
        matcher.find(&headers).unwrap().meter.key().bucket["name"].clone()
    };
    assert_eq!(found(&["gold"]), "gold");
    assert_eq!(found(&["gold", "gold"]), "gold,gold");
    assert_eq!(found(&["silver"]), "rest");
    assert_eq!(found(&[]), "rest");
    assert_eq!(matcher.buckets().count(), 3);
}

#[test]
fn what_a_service_sends_is_counted_or_ignored() {
    use pb::rate_limit_strategy::Strategy as Sent;
    let of = |sent| Strategy::of(Some(&RateLimitStrategy { strategy: Some(sent) }));
    let bucket = |max_tokens, seconds| {
        let fill_interval = Some(remora_xds::pb::google::protobuf::Duration { seconds, nanos: 0 });
        Sent::TokenBucket(pb::TokenBucket { max_tokens, tokens_per_fill: None, fill_interval })
    };
    assert_eq!(Strategy::of(None), Some(Strategy::AllowAll));
    assert_eq!(of(bucket(0, 1)), Some(Strategy::DenyAll));
    assert!(matches!(of(bucket(5, 1)), Some(Strategy::Tokens(_))));
    assert_eq!((of(bucket(5, 0)), of(bucket(5, -1)), of(bucket(u32::MAX, 3600))), (None, None, None));
    let per = |requests_per_time_unit, unit: RateLimitUnit| {
        of(Sent::RequestsPerTimeUnit(RequestsPerTimeUnit { requests_per_time_unit, time_unit: unit.into() }))
    };
    assert_eq!(per(3, RateLimitUnit::Second), Some(tokens(3)));
    assert_eq!(
        (per(0, RateLimitUnit::Unknown), per(3, RateLimitUnit::Year)),
        (Some(Strategy::DenyAll), None)
    );
}
