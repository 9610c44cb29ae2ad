//! How long a request may take: what the route, the listener, gRPC's `grpc-timeout` and (for internal requests) Envoy's
//! headers say, brought into one set of limits.

use std::time::Duration;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use tokio::time::Instant;

use super::{EXPECTED_TIMEOUT, PER_TRY_TIMEOUT, REQUEST_TIMEOUT};

/// gRPC's deadline header.
pub static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// A limit that a route may leave to the listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Limit {
    /// Not said: the listener's.
    #[default]
    Inherit,
    /// Zero: none, whatever the listener says.
    Off,
    /// This long.
    After(Duration),
}

impl Limit {
    /// The limit that holds under `listener`'s.
    #[must_use]
    pub const fn or(self, listener: Option<Duration>) -> Option<Duration> {
        match self {
            Self::Inherit => listener,
            Self::Off => None,
            Self::After(d) => Some(d),
        }
    }
}

/// How `grpc-timeout` is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrpcHeader {
    /// The largest timeout that is accepted; None is any.
    pub max: Option<Duration>,
    /// Subtracted, so that this proxy answers before its client gives up.
    pub offset: Duration,
}

/// The timeouts of a `RouteAction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeoutPolicy {
    /// `timeout`, default 15 s; None is none (0, or `max_stream_duration` is there, as in Envoy).
    pub request: Option<Duration>,
    /// `max_grpc_timeout` and `grpc_timeout_offset`: for gRPC requests in place of `timeout`.
    pub grpc_request: Option<GrpcHeader>,
    /// `idle_timeout`.
    pub idle: Limit,
    /// `max_stream_duration.max_stream_duration`.
    pub stream: Limit,
    /// `max_stream_duration.grpc_timeout_header_max` and `_offset`: in place of the above when the header is there.
    pub grpc_stream: Option<GrpcHeader>,
}

impl TimeoutPolicy {
    /// Envoy's route timeout.
    pub const DEFAULT_REQUEST: Duration = Duration::from_secs(15);
}

impl Default for TimeoutPolicy {
    fn default() -> Self {
        Self {
            request: Some(Self::DEFAULT_REQUEST),
            grpc_request: None,
            idle: Limit::Inherit,
            stream: Limit::Inherit,
            grpc_stream: None,
        }
    }
}

/// What is known of a request beside its route.
#[derive(Debug, Clone, Copy, Default)]
pub struct Circumstances {
    /// It is a gRPC request.
    pub grpc: bool,
    /// It may steer its timeouts by headers.
    pub internal: bool,
    /// Router's `respect_expected_rq_timeout`.
    pub respect_expected: bool,
    /// `per_try_timeout` of the retry policy.
    pub per_try: Option<Duration>,
    /// The listener's `max_stream_duration`.
    pub listener_stream: Option<Duration>,
}

/// The limits of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// From the end of the request to the end of the answer, all tries together.
    pub request: Option<Duration>,
    /// One try; shorter than the above.
    pub per_try: Option<Duration>,
    /// From the first byte of the request to the last of the answer. Zero: at once.
    pub stream: Option<Duration>,
    /// `grpc-timeout` is to be rewritten to the time that is left (`max_grpc_timeout` is configured).
    pub rewrite_grpc: bool,
}

impl TimeoutPolicy {
    /// The limits of a request with these headers.
    #[must_use]
    pub fn limits(&self, headers: &HeaderMap, with: &Circumstances) -> Limits {
        let grpc_timeout = headers.get(&GRPC_TIMEOUT).and_then(|v| parse_grpc_timeout(v.as_bytes()));
        let mut request = match self.grpc_request.filter(|_| with.grpc) {
            Some(rule) => legacy_grpc(rule, grpc_timeout),
            None => self.request,
        };
        let mut per_try = with.per_try;
        if with.internal {
            let expected = headers.get(&EXPECTED_TIMEOUT).filter(|_| with.respect_expected);
            let said = expected.or_else(|| headers.get(&REQUEST_TIMEOUT));
            if let Some(said) = said.and_then(millis) {
                request = non_zero(said);
            }
            if let Some(said) = headers.get(&PER_TRY_TIMEOUT).and_then(millis) {
                per_try = non_zero(said);
            }
        }
        // A try cannot be given more than the whole: then the whole is its limit.
        per_try = per_try.filter(|t| request.is_none_or(|r| *t < r));
        Limits {
            request,
            per_try,
            stream: self.stream_limit(grpc_timeout, with.listener_stream),
            rewrite_grpc: with.grpc && self.grpc_request.is_some(),
        }
    }

    fn stream_limit(&self, grpc: Option<Duration>, listener: Option<Duration>) -> Option<Duration> {
        let (Some(rule), Some(asked)) = (self.grpc_stream, grpc) else {
            return self.stream.or(listener);
        };
        let capped = rule.max.map_or(asked, |max| asked.min(max));
        Some(capped.saturating_sub(rule.offset))
    }
}

/// No header is an infinite timeout. The offset is only taken off when something is left.
fn legacy_grpc(rule: GrpcHeader, asked: Option<Duration>) -> Option<Duration> {
    let asked = asked.and_then(non_zero).map(|t| if rule.offset < t { t - rule.offset } else { t });
    match (asked, rule.max) {
        (Some(asked), Some(max)) => Some(asked.min(max)),
        (asked, max) => asked.or(max),
    }
}

fn non_zero(d: Duration) -> Option<Duration> {
    (!d.is_zero()).then_some(d)
}

/// A header that is a number of milliseconds.
fn millis(value: &HeaderValue) -> Option<Duration> {
    value.to_str().ok()?.trim().parse().ok().map(Duration::from_millis)
}

impl Limits {
    /// When the request's time is up, if it was received completely at `received`. None: never.
    #[must_use]
    pub fn request_deadline(&self, received: Instant) -> Option<Instant> {
        received.checked_add(self.request?)
    }

    /// When the stream's time is up, if it began at `began`.
    #[must_use]
    pub fn stream_deadline(&self, began: Instant) -> Option<Instant> {
        began.checked_add(self.stream?)
    }

    /// When a try that begins `now` is given up, for a request received at `received`.
    #[must_use]
    pub fn try_deadline(&self, received: Instant, now: Instant) -> Option<Instant> {
        let per_try = self.per_try.and_then(|t| now.checked_add(t));
        match (per_try, self.request_deadline(received)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// How long an upstream that gets the request `elapsed` after it was received has for its answer. None: no limit.
    /// Never zero, which would say "no limit": a request that is out of time gets a millisecond.
    #[must_use]
    pub fn expected(&self, elapsed: Duration) -> Option<Duration> {
        let left = self.request.map(|r| r.saturating_sub(elapsed));
        let expected = match (self.per_try, left) {
            (Some(per_try), Some(left)) => per_try.min(left),
            (per_try, left) => per_try.or(left)?,
        };
        Some(expected.max(Duration::from_millis(1)))
    }

    /// Tells the upstream its time: `x-envoy-expected-rq-timeout-ms` unless `suppress_expected`, and `grpc-timeout` where
    /// the route asks for that.
    pub fn announce(&self, headers: &mut HeaderMap, elapsed: Duration, suppress_expected: bool) {
        let Some(expected) = self.expected(elapsed) else { return };
        if !suppress_expected {
            let ms = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX);
            headers.insert(&EXPECTED_TIMEOUT, HeaderValue::from(ms));
        }
        if self.rewrite_grpc {
            headers.insert(&GRPC_TIMEOUT, grpc_timeout(expected));
        }
    }
}

/// Parses `grpc-timeout`: one to eight digits and a unit, H, M, S, m, u or n
/// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>). None when it is anything else.
#[must_use]
pub fn parse_grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // Eight digits: far from overflow in any unit.
    let n = digits.iter().fold(0u64, |n, d| n * 10 + u64::from(d - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

/// Writes `grpc-timeout` in the finest unit from milliseconds up that its eight digits can hold.
#[must_use]
pub fn grpc_timeout(timeout: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let units = [(1, 'm'), (1000, 'S'), (60_000, 'M'), (3_600_000, 'H')];
    let ms = timeout.as_millis();
    let fit = units.into_iter().find(|(size, _)| ms / size <= MOST);
    let text = fit.map_or_else(|| format!("{MOST}H"), |(size, unit)| format!("{}{unit}", ms / size));
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("99999999H"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn headers(list: &[(&HeaderName, &str)]) -> HeaderMap {
        list.iter().map(|(n, v)| ((*n).clone(), v.parse().unwrap())).collect()
    }

    const INTERNAL: Circumstances =
        Circumstances { grpc: false, internal: true, respect_expected: false, per_try: None, listener_stream: None };

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
    fn a_try_never_has_more_than_the_whole() {
        let policy = TimeoutPolicy { request: Some(ms(100)), ..TimeoutPolicy::default() };
        let per_try = |t| policy.limits(&HeaderMap::new(), &Circumstances { per_try: Some(ms(t)), ..INTERNAL }).per_try;
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
        let limits = Limits { request: Some(ms(100)), per_try: Some(ms(30)), stream: None, rewrite_grpc: true };
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
        assert_eq!((&told[&EXPECTED_TIMEOUT], &told[&GRPC_TIMEOUT]), (&"10".parse().unwrap(), &"10m".parse().unwrap()));
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
            parse_grpc_timeout(&bytes);
            let timeout = Duration::from_nanos(nanos);
            let back = parse_grpc_timeout(grpc_timeout(timeout).as_bytes());
            prop_assert!(back.is_some_and(|b| b <= timeout));
        }

        #[test]
        fn expected_is_never_zero_nor_more_than_is_left(request in proptest::option::of(1u64..10_000), per_try in proptest::option::of(1u64..10_000), elapsed in 0u64..20_000) {
            let limits = Limits { request: request.map(ms), per_try: per_try.map(ms), stream: None, rewrite_grpc: false };
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
}
