//! Whether a try that failed is tried again. Envoy's conditions, and two rules of our own:
//!
//! - A request that may have been processed is repeated only when the policy (or the header of an internal request) says so.
//! - One that certainly was not, or that is idempotent and met a kept-alive connection that had just closed, is sent
//!   again once even without a policy: it would be an error that only the proxy made (RFC 9110 §9.2.2, RFC 9113 §8.7).
//! - `retriable_request_headers` say which requests may be repeated though they may have been processed. Under the policy's
//!   conditions the others are repeated, too, when they certainly were not.
//! - What a proxy on the way repeated in vain is not repeated again ([`RETRIES_EXHAUSTED`]).
//!
//! Whether the budget allows it, and whether there is time, is asked elsewhere.

mod on;
mod wait;

use std::time::Duration;

use http::header::{HeaderMap, HeaderName};
use http::{Method, StatusCode};
use smallvec::SmallVec;

use super::backoff::Backoff;
use super::{MAX_RETRIES, RETRIABLE_HEADER_NAMES, RETRIABLE_STATUS_CODES, RETRY_GRPC_ON, RETRY_ON};
use crate::error::Reason;
use crate::http::head::{RequestHead, ResponseHead};
use crate::route::matcher::HeaderMatch;

pub use on::RetryOn;
pub use wait::{RateLimitedBackoff, ResetFormat};

static RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// Says of an answer that a proxy on the way retried in vain: it is not retried again.
pub static RETRIES_EXHAUSTED: HeaderName = HeaderName::from_static("x-remora-retries-exhausted");
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

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

/// How a try ended.
#[derive(Debug, Clone, Copy)]
pub enum Outcome<'a> {
    /// The head of an answer came, and the trailers if it has no body; nothing of it has gone downstream yet.
    Answer(&'a ResponseHead, Option<&'a HeaderMap>),
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
    /// What may have been processed is not repeated (`retriable_request_headers`).
    unprocessed_only: bool,
    codes: SmallVec<[StatusCode; 4]>,
    names: Vec<HeaderName>,
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
            unprocessed_only: policy.is_some_and(|p| p.excludes(head)),
            codes: SmallVec::new(),
            names: Vec::new(),
        };
        if internal {
            state.read_conditions(&head.headers);
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
        self.names.extend(words(headers, &RETRIABLE_HEADER_NAMES).filter_map(|w| w.parse().ok()));
    }

    /// Whether the gRPC status of an answer matters.
    #[must_use]
    pub const fn wants_grpc_status(&self) -> bool {
        self.on.any(RetryOn::GRPC) && !self.unprocessed_only
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
            Outcome::Answer(head, trailers) => self.on_answer(policy, head, trailers),
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

    /// Whether a try that is late gets another one beside it, as far as the policy says so: any condition will do, as in Envoy, but what
    /// may have been processed must be allowed to be repeated. `complete`: all of the request is there to be sent again.
    #[must_use]
    pub fn hedge(&self, complete: bool) -> Decision {
        if self.on.is_empty() || self.unprocessed_only {
            Decision::Stop(Stop::NotRetriable)
        } else if !complete {
            Decision::Stop(Stop::NotReplayable)
        } else if self.remaining == 0 {
            Decision::Stop(Stop::LimitReached)
        } else {
            Decision::Retry(RetryKind::Policy)
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

    fn on_answer(
        &self,
        policy: Option<&RetryPolicy>,
        head: &ResponseHead,
        trailers: Option<&HeaderMap>,
    ) -> Option<RetryKind> {
        if self.on.is_empty() || self.unprocessed_only {
            return None;
        }
        // Most answers are good: what they say about retries is looked up only where one would follow.
        let rate_limited = || head.headers.contains_key(&RATE_LIMITED);
        let again = if self.on.any(RetryOn::RATE_LIMITED) && rate_limited() {
            true
        } else {
            self.is_hit(policy, head, trailers) && !rate_limited()
        };
        (again && !head.headers.contains_key(&RETRIES_EXHAUSTED)).then_some(RetryKind::Policy)
    }

    /// Whether the answer is one that the conditions name.
    fn is_hit(
        &self,
        policy: Option<&RetryPolicy>,
        head: &ResponseHead,
        trailers: Option<&HeaderMap>,
    ) -> bool {
        let status = head.status;
        let gateway = matches!(status.as_u16(), 502..=504);
        let listed =
            || self.codes.contains(&status) || policy.is_some_and(|p| p.status_codes.contains(&status));
        let header = || {
            self.names.iter().any(|name| head.headers.contains_key(name))
                || policy.is_some_and(|p| p.headers.iter().any(|m| m.is_match(head)))
        };
        let grpc = || grpc_status(&head.headers).or_else(|| grpc_status(trailers?));
        (self.on.any(RetryOn::SERVER_ERROR) && status.is_server_error())
            || (self.on.any(RetryOn::GATEWAY_ERROR) && gateway)
            || (self.on.any(RetryOn::RETRIABLE_4XX) && status == StatusCode::CONFLICT)
            || (self.on.any(RetryOn::STATUS_CODES) && listed())
            || (self.on.any(RetryOn::HEADERS) && header())
            || (self.on.any(RetryOn::GRPC) && grpc().is_some_and(|code| self.on.any(RetryOn::grpc(code))))
    }

    fn on_failure(&self, reason: Reason, progress: Progress) -> Option<RetryKind> {
        let (class, unprocessed) = classify(reason)?;
        let asked = self.on.any(class) || (self.on.any(RetryOn::RESET_BEFORE_REQUEST) && !progress.sent);
        let policy = asked && !(self.unprocessed_only && progress.sent && !reason.never_processed());
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
        | Reason::PerTryTimeout
        | Reason::PerTryIdle => Some((reset, false)),
        _ => None,
    }
}

impl RetryPolicy {
    /// Whether `retriable_request_headers` leave a request out.
    fn excludes(&self, head: &RequestHead) -> bool {
        !self.request_headers.is_empty() && !self.request_headers.iter().any(|m| m.is_match(head))
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

/// The gRPC status in the headers of an answer (trailers-only), or in its trailers.
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
