//! How long a request may take: what the route, the listener, gRPC's `grpc-timeout` and (for internal requests) Envoy's
//! headers say, brought into one set of limits.

mod left;

use std::time::Duration;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use tokio::time::Instant;

use super::{EXPECTED_TIMEOUT, HEDGE_ON_PER_TRY_TIMEOUT, PER_TRY_TIMEOUT, REQUEST_TIMEOUT};

pub use left::TimeLeft;

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
    /// `hedge_policy.hedge_on_per_try_timeout`.
    pub hedge: bool,
    /// It asks for a tunnel, of which there is one: it is not hedged, whatever its route or its headers say.
    pub tunnel: bool,
    /// The listener's `max_stream_duration`.
    pub listener_stream: Option<Duration>,
    /// How long a proxy of the mesh in front of us waits; it can only shorten the route's timeout.
    pub waits: Option<Duration>,
}

/// The limits of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// From the end of the request to the end of the answer, all tries together.
    pub request: Option<Duration>,
    /// One try; shorter than the above.
    pub per_try: Option<Duration>,
    /// A try that takes longer than `per_try` is not given up: another one begins beside it.
    pub hedge: bool,
    /// From the first byte of the request to the last of the answer. Zero: at once.
    pub stream: Option<Duration>,
    /// `grpc-timeout` is to be set to the time that is left whatever the client said (`max_grpc_timeout` is configured).
    pub rewrite_grpc: bool,
    /// `grpc-timeout` of the client, of a gRPC request: the upstream is told what is left of it.
    pub asked_grpc: Option<Duration>,
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
        let (mut per_try, mut hedge) = (with.per_try, with.hedge);
        if with.internal {
            let expected = headers.get(&EXPECTED_TIMEOUT).filter(|_| with.respect_expected);
            let said = expected.or_else(|| headers.get(&REQUEST_TIMEOUT));
            if let Some(said) = said.and_then(millis) {
                request = non_zero(said);
            }
            if let Some(said) = headers.get(&PER_TRY_TIMEOUT).and_then(millis) {
                per_try = non_zero(said);
            }
            hedge = headers.get(&HEDGE_ON_PER_TRY_TIMEOUT).and_then(flag).unwrap_or(hedge);
        }
        if let Some(waits) = with.waits {
            request = Some(request.map_or(waits, |r| r.min(waits)));
        }
        // A try cannot be given more than the whole: then the whole is its limit.
        per_try = per_try.filter(|t| request.is_none_or(|r| *t < r));
        Limits {
            request,
            per_try,
            hedge: hedge && !with.tunnel && per_try.is_some(),
            stream: self.stream_limit(grpc_timeout, with.listener_stream),
            rewrite_grpc: with.grpc && self.grpc_request.is_some(),
            asked_grpc: grpc_timeout.filter(|_| with.grpc),
        }
    }

    /// Whether the stream of a request may have a limit, of this route or of its listener.
    #[must_use]
    pub fn limits_stream(&self, listener: Option<Duration>) -> bool {
        self.grpc_stream.is_some() || self.stream.or(listener).is_some()
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

fn flag(value: &HeaderValue) -> Option<bool> {
    value.to_str().ok()?.parse().ok()
}

/// A header that is a number of milliseconds.
#[must_use]
pub fn millis(value: &HeaderValue) -> Option<Duration> {
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

    /// After how long a try is given up. None: only with the request.
    #[must_use]
    pub fn try_limit(&self) -> Option<Duration> {
        self.per_try.filter(|_| !self.hedge)
    }

    /// After how long another try begins beside one that has no answer. None: never.
    #[must_use]
    pub fn hedge_after(&self) -> Option<Duration> {
        self.per_try.filter(|_| self.hedge)
    }

    /// When a try that begins `now` is given up, for a request received at `received`.
    #[must_use]
    pub fn try_deadline(&self, received: Instant, now: Instant) -> Option<Instant> {
        let per_try = self.try_limit().and_then(|t| now.checked_add(t));
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
        let expected = match (self.try_limit(), left) {
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
mod tests;
