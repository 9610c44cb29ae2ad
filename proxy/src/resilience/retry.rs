//! Whether a try that failed is tried again. Envoy's conditions, and two rules of our own:
//!
//! - A request that may have been processed is repeated only when the policy (or the header of an internal request) says so.
//! - One that certainly was not, or that is idempotent and met a kept-alive connection that had just closed, is sent
//!   again once even without a policy: it would be an error that only the proxy made (RFC 9110 §9.2.2, RFC 9113 §8.7).
//!
//! Whether the budget allows it, and whether there is time, is asked elsewhere.

use std::fmt;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName};
use http::{Method, StatusCode};
use smallvec::SmallVec;

use super::backoff::{Backoff, asked_for};
use super::{MAX_RETRIES, RETRIABLE_STATUS_CODES, RETRY_GRPC_ON, RETRY_ON};
use crate::error::Reason;
use crate::http::head::{RequestHead, ResponseHead};
use crate::route::matcher::HeaderMatch;

static RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

macro_rules! conditions {
    ($($(#[doc = $doc:literal])+ $name:ident = $bit:literal, $text:literal;)+) => {
        /// A set of retry conditions (`retry_on`).
        #[derive(Clone, Copy, PartialEq, Eq, Default)]
        pub struct RetryOn(u32);

        impl RetryOn {
            $($(#[doc = $doc])+ pub const $name: Self = Self(1 << $bit);)+

            const ALL: &'static [(Self, &'static str)] = &[$((Self::$name, $text),)+];
        }
    };
}

conditions! {
    /// `5xx`: a 5xx answer, or none at all.
    SERVER_ERROR = 0, "5xx";
    /// `gateway-error`: 502, 503 or 504, or no answer at all.
    GATEWAY_ERROR = 1, "gateway-error";
    /// `connect-failure`: no connection.
    CONNECT_FAILURE = 2, "connect-failure";
    /// `retriable-4xx`: 409.
    RETRIABLE_4XX = 3, "retriable-4xx";
    /// `refused-stream`: the upstream refused the stream unprocessed.
    REFUSED_STREAM = 4, "refused-stream";
    /// `retriable-status-codes`.
    STATUS_CODES = 5, "retriable-status-codes";
    /// `retriable-headers`.
    HEADERS = 6, "retriable-headers";
    /// `reset`: no answer at all.
    RESET = 7, "reset";
    /// `reset-before-request`: no answer, and nothing of the request had left.
    RESET_BEFORE_REQUEST = 8, "reset-before-request";
    /// `envoy-ratelimited`: also an answer with x-envoy-ratelimited.
    RATE_LIMITED = 9, "envoy-ratelimited";
    /// `cancelled`: gRPC status 1 in the headers of the answer.
    GRPC_CANCELLED = 10, "cancelled";
    /// `deadline-exceeded`: gRPC status 4.
    GRPC_DEADLINE_EXCEEDED = 11, "deadline-exceeded";
    /// `resource-exhausted`: gRPC status 8.
    GRPC_RESOURCE_EXHAUSTED = 12, "resource-exhausted";
    /// `internal`: gRPC status 13.
    GRPC_INTERNAL = 13, "internal";
    /// `unavailable`: gRPC status 14.
    GRPC_UNAVAILABLE = 14, "unavailable";
}

impl RetryOn {
    /// The condition called `name`.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, text)| *text == name).map(|(on, _)| *on)
    }

    /// All names, for error messages.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::ALL.iter().map(|(_, text)| *text)
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the sets have a condition in common.
    #[must_use]
    pub const fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether no condition is set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    const fn grpc(status: u8) -> Self {
        match status {
            1 => Self::GRPC_CANCELLED,
            4 => Self::GRPC_DEADLINE_EXCEEDED,
            8 => Self::GRPC_RESOURCE_EXHAUSTED,
            13 => Self::GRPC_INTERNAL,
            14 => Self::GRPC_UNAVAILABLE,
            _ => Self(0),
        }
    }
}

impl fmt::Debug for RetryOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Self::ALL.iter().filter(|(on, _)| self.any(*on)).map(|(_, text)| *text).collect();
        write!(f, "[{}]", names.join(","))
    }
}

/// A compiled `envoy.config.route.v3.RetryPolicy`.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// `retry_on`.
    pub on: RetryOn,
    /// `num_retries`, default 1.
    pub num_retries: u32,
    /// `per_try_timeout`.
    pub per_try_timeout: Option<Duration>,
    /// `per_try_idle_timeout`.
    pub per_try_idle_timeout: Option<Duration>,
    /// `retry_back_off`.
    pub backoff: Backoff,
    /// `rate_limited_retry_back_off`.
    pub rate_limited: Option<RateLimitedBackoff>,
    /// `retriable_status_codes`.
    pub status_codes: Box<[StatusCode]>,
    /// `retriable_headers`: one of them must match the answer.
    pub headers: Box<[HeaderMatch]>,
    /// `retriable_request_headers`: one of them must match the request, when there are any.
    pub request_headers: Box<[HeaderMatch]>,
    /// `retry_host_predicate` previous_hosts: a retry avoids endpoints that were tried.
    pub avoid_previous_hosts: bool,
    /// `host_selection_retry_max_attempts`, default 1: how often another endpoint is asked for.
    pub host_selection_attempts: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            on: RetryOn::default(),
            num_retries: 1,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            backoff: Backoff::default(),
            rate_limited: None,
            status_codes: Box::new([]),
            headers: Box::new([]),
            request_headers: Box::new([]),
            avoid_previous_hosts: false,
            host_selection_attempts: 1,
        }
    }
}

/// `RateLimitedRetryBackOff`: the upstream says when to come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimitedBackoff {
    /// `reset_headers`, tried in order.
    pub headers: Box<[(HeaderName, ResetFormat)]>,
    /// `max_interval`, default 300 s: a longer wait is not accepted.
    pub max: Duration,
}

/// `ResetHeaderFormat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetFormat {
    /// SECONDS from now.
    Seconds,
    /// UNIX_TIMESTAMP, seconds.
    UnixTimestamp,
}

impl RateLimitedBackoff {
    /// The wait that `headers` ask for. `unix_now` is the time in seconds since 1970.
    #[must_use]
    pub fn wait(&self, headers: &HeaderMap, unix_now: u64) -> Option<Duration> {
        self.headers.iter().find_map(|(name, format)| {
            let number: u64 = headers.get(name)?.to_str().ok()?.trim().parse().ok()?;
            let seconds = match format {
                ResetFormat::Seconds => number,
                ResetFormat::UnixTimestamp => number.checked_sub(unix_now)?,
            };
            Some(Duration::from_secs(seconds)).filter(|d| *d <= self.max)
        })
    }
}

/// How a try ended.
#[derive(Debug, Clone, Copy)]
pub enum Outcome<'a> {
    /// The head of an answer came; nothing of it has gone downstream yet.
    Answer(&'a ResponseHead),
    /// No answer came.
    Failed(Reason),
}

/// How far the request got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Some of it has been written to the connection.
    pub sent: bool,
    /// All of it can be sent again: the body fits the replay buffer, or none of it was read.
    pub replayable: bool,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Try again.
    Retry(RetryKind),
    /// This is the answer.
    Stop(Stop),
}

/// Why it is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryKind {
    /// A condition of the policy holds: counts against `num_retries` and the budget, after a back-off.
    Policy,
    /// The request was not processed, or is idempotent and met a stale connection: once, at once, on a new connection.
    Transparent,
}

/// Why it is not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// No condition holds.
    NotRetriable,
    /// A condition holds, but the number of retries is used up (flag URX).
    LimitReached,
    /// A condition holds, but the request's body is gone.
    NotReplayable,
}

/// The retries of one request.
#[derive(Debug, Clone)]
pub struct RetryState {
    on: RetryOn,
    remaining: u32,
    done: u32,
    transparent_left: bool,
    idempotent: bool,
    codes: SmallVec<[StatusCode; 4]>,
}

impl RetryState {
    /// The state before the first try. `internal` requests may add conditions by header.
    #[must_use]
    pub fn new(policy: Option<&RetryPolicy>, head: &RequestHead, internal: bool) -> Self {
        let mut state = Self {
            on: policy.map_or_else(RetryOn::default, |p| p.on),
            remaining: policy.map_or(1, |p| p.num_retries),
            done: 0,
            transparent_left: true,
            idempotent: is_idempotent(head),
            codes: SmallVec::new(),
        };
        if internal {
            state.read_conditions(&head.headers);
        }
        let wanted = policy.map_or(&[][..], |p| &p.request_headers);
        if !wanted.is_empty() && !wanted.iter().any(|m| m.is_match(head)) {
            state.on = RetryOn::default();
        }
        if internal && !state.on.is_empty() {
            state.read_limits(&head.headers);
        }
        state
    }

    fn read_conditions(&mut self, headers: &HeaderMap) {
        for name in [&RETRY_ON, &RETRY_GRPC_ON] {
            for word in words(headers, name) {
                self.on = self.on.union(RetryOn::parse(word).unwrap_or_default());
            }
        }
    }

    fn read_limits(&mut self, headers: &HeaderMap) {
        if let Some(n) = words(headers, &MAX_RETRIES).next().and_then(|n| n.parse().ok()) {
            self.remaining = n;
        }
        let codes = words(headers, &RETRIABLE_STATUS_CODES).filter_map(|w| w.parse().ok());
        self.codes.extend(codes);
    }

    /// Whether any try may follow the first: if not, nothing of the body need be kept.
    #[must_use]
    pub fn may_retry(&self) -> bool {
        self.transparent_left || (!self.on.is_empty() && self.remaining > 0)
    }

    /// How many retries there were.
    #[must_use]
    pub const fn retries(&self) -> u32 {
        self.done
    }

    /// What follows a try that ended with `outcome`.
    #[must_use]
    pub fn decide(&self, policy: Option<&RetryPolicy>, outcome: Outcome<'_>, progress: Progress) -> Decision {
        let kind = match outcome {
            Outcome::Answer(head) => self.on_answer(policy, head),
            Outcome::Failed(reason) => self.on_failure(reason, progress),
        };
        let Some(kind) = kind else { return Decision::Stop(Stop::NotRetriable) };
        if !progress.replayable {
            Decision::Stop(Stop::NotReplayable)
        } else if kind == RetryKind::Policy && self.remaining == 0 {
            Decision::Stop(Stop::LimitReached)
        } else {
            Decision::Retry(kind)
        }
    }

    /// Counts a retry that is about to be made.
    pub fn count(&mut self, kind: RetryKind) {
        self.done = self.done.saturating_add(1);
        match kind {
            RetryKind::Policy => self.remaining = self.remaining.saturating_sub(1),
            RetryKind::Transparent => self.transparent_left = false,
        }
    }

    fn on_answer(&self, policy: Option<&RetryPolicy>, head: &ResponseHead) -> Option<RetryKind> {
        if head.headers.contains_key(&RATE_LIMITED) {
            return self.on.any(RetryOn::RATE_LIMITED).then_some(RetryKind::Policy);
        }
        let status = head.status;
        let gateway = matches!(status.as_u16(), 502..=504);
        let listed =
            || self.codes.contains(&status) || policy.is_some_and(|p| p.status_codes.contains(&status));
        let header = || policy.is_some_and(|p| p.headers.iter().any(|m| m.is_match(head)));
        let hit = (self.on.any(RetryOn::SERVER_ERROR) && status.is_server_error())
            || (self.on.any(RetryOn::GATEWAY_ERROR) && gateway)
            || (self.on.any(RetryOn::RETRIABLE_4XX) && status == StatusCode::CONFLICT)
            || (self.on.any(RetryOn::STATUS_CODES) && listed())
            || (self.on.any(RetryOn::HEADERS) && header())
            || grpc_status(&head.headers).is_some_and(|code| self.on.any(RetryOn::grpc(code)));
        hit.then_some(RetryKind::Policy)
    }

    fn on_failure(&self, reason: Reason, progress: Progress) -> Option<RetryKind> {
        let (class, unprocessed) = classify(reason)?;
        let policy = self.on.any(class) || (self.on.any(RetryOn::RESET_BEFORE_REQUEST) && !progress.sent);
        if policy && self.remaining > 0 {
            return Some(RetryKind::Policy);
        }
        let stale = reason == Reason::ReusedConnectionClosed && (!progress.sent || self.idempotent);
        if self.transparent_left && (stale || unprocessed) {
            return Some(RetryKind::Transparent);
        }
        policy.then_some(RetryKind::Policy)
    }
}

/// The conditions under which a failure is retried (`reset-before-request` aside), and whether it may be repeated without
/// any. None: never retried: an overflow would only grow, and a time that is up stays up.
fn classify(reason: Reason) -> Option<(RetryOn, bool)> {
    let reset = RetryOn::RESET.union(RetryOn::SERVER_ERROR).union(RetryOn::GATEWAY_ERROR);
    match reason {
        Reason::ConnectFailure | Reason::ConnectTimeout | Reason::UpstreamTls => {
            Some((reset.union(RetryOn::CONNECT_FAILURE), false))
        }
        Reason::UpstreamRefused => Some((reset.union(RetryOn::REFUSED_STREAM), true)),
        Reason::ReusedConnectionClosed
        | Reason::UpstreamClosed
        | Reason::UpstreamReset
        | Reason::UpstreamProtocol
        | Reason::UpstreamHeadersTooLarge
        | Reason::PerTryTimeout => Some((reset, false)),
        _ => None,
    }
}

impl RetryPolicy {
    /// The wait before retry `n` (the first is 1) that follows an answer with these headers, if one came.
    /// `unix_now` is the time in seconds since 1970.
    #[must_use]
    pub fn delay(
        &self,
        n: u32,
        answer: Option<&HeaderMap>,
        unix_now: u64,
        rng: &mut fastrand::Rng,
    ) -> Duration {
        let asked = self.rate_limited.as_ref().zip(answer).and_then(|(r, headers)| r.wait(headers, unix_now));
        match asked {
            Some(wait) => asked_for(wait, rng),
            None => self.backoff.delay(n, rng),
        }
    }
}

/// Whether repeating the request has the same effect as sending it once: by its method (RFC 9110 §9.2.2), or because it
/// carries an Idempotency-Key.
#[must_use]
pub fn is_idempotent(head: &RequestHead) -> bool {
    let m = &head.method;
    let method = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE];
    method.contains(m) || head.headers.contains_key(&IDEMPOTENCY_KEY)
}

/// The gRPC status of an answer that has no body (trailers-only).
fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    headers.get(&GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// The comma-separated words of a header.
fn words<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> + use<'h> {
    let values = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(str::trim).filter(|w| !w.is_empty())
}

#[cfg(test)]
mod tests;
