//! The tries of one request: what follows each of them, within the request's time and the cluster's budget.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::ahead::AheadBody;
use super::attempt::{self, Attempt, Wanted};
use super::body::Body;
use super::context::{RequestCtx, Retried};
use super::h1::client::{Failed, Sent};
use super::last_good::LastGood;
use super::replay::Replay;
use super::response::Response;
use crate::error::Reason;
use crate::resilience::circuit::Fallback;
use crate::resilience::retry::{
    Decision, Outcome, Progress, RETRIES_EXHAUSTED, RetryKind, RetryPolicy, RetryState, Stop,
};
use crate::resilience::timeout::TimeLeft;
use crate::route::action::RouteAction;
use crate::telemetry::flags::ResponseFlags;
use crate::telemetry::metrics::ClusterCount;
use crate::upstream::cluster::Cluster;
use crate::upstream::endpoint::EndpointKey;

/// Number of the attempt.
static ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
static IS_TIMEOUT_RETRY: HeaderName = HeaderName::from_static("x-envoy-is-timeout-retry");

/// A request body is kept for retries up to this size, unless the route says otherwise (features.md B9).
const REPLAY_LIMIT: usize = 64 * 1024;

/// How long the head of a gRPC answer is held back to see whether a message follows it or only its status.
const HOLD: Duration = Duration::from_millis(50);

/// What the request may still do.
pub(super) struct Tries<'a> {
    pub(super) action: &'a RouteAction,
    pub(super) cluster: Arc<Cluster>,
    pub(super) state: RetryState,
    pub(super) time: &'a TimeLeft,
    pub(super) wanted: Wanted<'a>,
    /// The cluster stands in for the one whose circuit breaker refused.
    pub(super) stand_in: bool,
}

/// The request's body, for one attempt or for several.
enum Source {
    Once { body: Body, replayable: bool },
    Replay(Replay),
}

impl Source {
    fn new(body: Body, state: &RetryState, limit: Option<u64>) -> Self {
        if body.is_end() || !state.may_retry() {
            // Only an empty body may be taken twice without a recording.
            return Self::Once { replayable: body.is_end(), body };
        }
        let limit = limit.map_or(REPLAY_LIMIT, |n| usize::try_from(n).unwrap_or(usize::MAX));
        Self::Replay(Replay::new(body, limit))
    }

    fn take(&mut self) -> Body {
        match self {
            Self::Once { body, .. } => std::mem::take(body),
            Self::Replay(replay) => replay.body(),
        }
    }

    fn is_replayable(&self) -> bool {
        match self {
            Self::Once { replayable, .. } => *replayable,
            Self::Replay(replay) => replay.can_replay(),
        }
    }
}

impl Tries<'_> {
    /// Tries until there is an answer to pass on.
    ///
    /// # Errors
    /// Why the last try had none.
    pub(super) async fn run(&mut self, ctx: &mut RequestCtx, body: Body) -> Result<Response, Reason> {
        let bodiless = body.is_end();
        let mut last_good = LastGood::of(ctx, self.action.circuit.as_ref(), &self.cluster, bodiless);
        let mut source = Source::new(body, &self.state, self.action.buffer_limit);
        let mut tried: SmallVec<[EndpointKey; 4]> = SmallVec::new();
        let (mut fresh, mut moved) = (false, false);
        loop {
            ctx.attempts += 1;
            if self.action.attempt_count_in_request {
                ctx.head.headers.insert(ATTEMPT_COUNT.clone(), HeaderValue::from(ctx.attempts));
            }
            self.time.announce(&mut ctx.head.headers, Instant::now(), ctx.http.suppress_envoy_headers);
            let Self { action, ref cluster, time, wanted, stand_in, .. } = *self;
            let attempt = Attempt { cluster, action, time, fresh, moved, stand_in, tried: &tried, wanted };
            let mut outcome = attempt::run(ctx, &attempt, source.take()).await;
            let replayable = source.is_replayable();
            if let Err(Failed { reason: Reason::CircuitOpen, .. }) = outcome {
                if let Some(answer) = last_good.as_ref().and_then(|last| last.answer(ctx)) {
                    ctx.permits[1] = None;
                    return Ok(answer);
                }
                if replayable && self.go_elsewhere(ctx) {
                    last_good = LastGood::of(ctx, None, &self.cluster, bodiless);
                    continue;
                }
            }
            let trailers = match &mut outcome {
                Ok(response) if response.upgraded.is_some() => {
                    ctx.permits[1] = None;
                    return outcome.map_err(|failed| failed.reason);
                }
                Ok(response) if replayable && self.waits_for_status(ctx, response) => {
                    Box::pin(status_of(response)).await
                }
                _ => None,
            };
            if let (Some(trailers), Some(mut unsettled)) =
                (&trailers, ctx.unsettled.take_if(|_| trailers.is_some()))
            {
                unsettled.trailers(trailers);
            }
            let Some((kind, delay)) = self.again(ctx, &outcome, trailers.as_ref(), replayable) else {
                // The retry, if it was one, is over: what follows of the answer may take hours.
                ctx.permits[1] = None;
                if let (Some(last), Ok(response)) = (last_good, &mut outcome) {
                    last.see(ctx, response);
                }
                return outcome.map_err(|failed| failed.reason);
            };
            if action.is_timeout_retry_header {
                let timeout = outcome.as_ref().is_err_and(|failed| is_timeout(failed.reason));
                let value = HeaderValue::from_static(if timeout { "true" } else { "false" });
                ctx.head.headers.insert(IS_TIMEOUT_RETRY.clone(), value);
            }
            // A connection that had gone stale says nothing about its endpoint.
            let stale = kind == RetryKind::Transparent
                || outcome.as_ref().is_err_and(|failed| failed.reason == Reason::ReusedConnectionClosed);
            moved |= !stale;
            if !stale && self.policy().is_some_and(|p| p.avoid_previous_hosts) {
                tried.extend(ctx.active.as_ref().map(|a| a.endpoint().key));
            }
            fresh = stale;
            self.state.count(kind);
            if let Ok(Response { body: Body::Early(early), .. }) = &outcome {
                // Two uploads would each get a part of what comes.
                early.give_up();
            }
            // What it holds is free while nothing happens.
            drop(outcome);
            ctx.unsettled = None;
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
        }
    }

    /// Follows the circuit breaker that refused an attempt to where it sends the request instead. Once: the fallback of a fallback is
    /// not asked.
    #[cold]
    fn go_elsewhere(&mut self, ctx: &mut RequestCtx) -> bool {
        let fallback = ctx.circuit.as_ref().and_then(|refusal| refusal.circuit.spec.fallback.as_ref());
        let Some(Fallback::Cluster(id)) = fallback.filter(|_| !self.stand_in) else { return false };
        let id = *id;
        let other = ctx.snapshot.cluster(id).filter(|other| !Arc::ptr_eq(other, &self.cluster));
        let Some(other) = other.cloned() else { return false };
        ctx.cluster = Some(Arc::clone(&other));
        ctx.cluster_id = Some(id);
        // Nothing was sent, and the limits are the other one's.
        ctx.permits = [None, None];
        ctx.attempts -= 1;
        self.cluster = other;
        self.stand_in = true;
        true
    }

    fn policy(&self) -> Option<&RetryPolicy> {
        self.action.retry.as_deref()
    }

    /// Whether the next try is made, why, and after which pause.
    fn again(
        &self,
        ctx: &mut RequestCtx,
        outcome: &Result<Response, Failed>,
        trailers: Option<&HeaderMap>,
        replayable: bool,
    ) -> Option<(RetryKind, Duration)> {
        let (ended, sent) = match outcome {
            Ok(response) => (Outcome::Answer(&response.head, trailers), true),
            Err(failed) => (Outcome::Failed(failed.reason), failed.sent != Sent::Nothing),
        };
        let progress = Progress { sent, replayable };
        let again = match self.state.decide(self.policy(), ended, progress) {
            Decision::Stop(Stop::NotRetriable) => return None,
            Decision::Retry(RetryKind::Transparent) => {
                self.count(ctx, RetryKind::Transparent);
                return Some((RetryKind::Transparent, Duration::ZERO));
            }
            Decision::Retry(RetryKind::Policy) => self.permitted(ctx, outcome.as_ref().ok()),
            Decision::Stop(Stop::LimitReached) => {
                ctx.flags = ctx.flags.with(ResponseFlags::RETRY_LIMIT);
                None
            }
            Decision::Stop(Stop::NotReplayable) => None,
        };
        match again {
            Some(_) => ctx.retried = Retried::Yes,
            None if ctx.retried == Retried::Yes => ctx.retried = Retried::InVain,
            None => {}
        }
        again.map(|delay| (RetryKind::Policy, delay))
    }

    /// The pause before a retry by policy, when time and budget allow one.
    fn permitted(&self, ctx: &mut RequestCtx, answer: Option<&Response>) -> Option<Duration> {
        let now = Instant::now();
        let head = answer.map(|response| &response.head);
        let n = self.state.retries() + 1;
        let delay = ctx.downstream.worker.with_rng(|rng| match self.policy() {
            Some(policy) => policy.wait(n, head, SystemTime::now(), rng),
            // Asked for by an internal request.
            None => RetryPolicy::default().wait(n, head, SystemTime::now(), rng),
        })?;
        if !self.time.allows(delay, now) {
            return None;
        }
        // The permit of the try before is free again: it ended.
        ctx.permits[1] = None;
        ctx.permits[1] = self.cluster.try_retry(self.action.priority, n, now);
        if ctx.permits[1].is_none() {
            ctx.flags = ctx.flags.with(ResponseFlags::OVERFLOW);
            let metrics = &ctx.downstream.worker.metrics;
            metrics.cluster(ctx.cluster_id, &self.cluster, ClusterCount::RetriesDenied);
            // What this budget denies, no budget above may allow: shares of several hops would multiply.
            ctx.retried = Retried::InVain;
            return None;
        }
        self.count(ctx, RetryKind::Policy);
        Some(delay)
    }

    fn count(&self, ctx: &RequestCtx, kind: RetryKind) {
        ctx.downstream.worker.metrics.retried(ctx.cluster_id, &self.cluster, kind);
    }

    /// Whether the status of the answer, which decides about a retry, is still to come. A client that is still sending may wait for
    /// the head of the answer before it goes on.
    fn waits_for_status(&self, ctx: &RequestCtx, response: &Response) -> bool {
        self.state.wants_grpc_status()
            && ctx.is_grpc()
            && ctx.progress.done.get()
            && !response.body.is_end()
            && !matches!(response.body, Body::Early(_))
            && !response.head.headers.contains_key("grpc-status")
    }
}

/// The trailers of an answer that has no body. As soon as there is a body, or nothing for a while, the answer goes on.
async fn status_of(response: &mut Response) -> Option<HeaderMap> {
    let body = &mut response.body;
    let first = async {
        loop {
            match poll_fn(|cx| body.poll_next(cx)).await? {
                // The frame that ends nothing and says nothing.
                Ok(frame) if frame.data_ref().is_some_and(bytes::Bytes::is_empty) => {}
                frame => return Some(frame),
            }
        }
    };
    let Ok(first) = tokio::time::timeout(HOLD, first).await else { return None };
    let rest = std::mem::take(&mut response.body);
    let frame = first?;
    let trailers = frame.as_ref().ok().and_then(|frame| frame.trailers_ref().cloned());
    response.body = Body::Ahead(Box::new(AheadBody::resume(frame, rest)));
    trailers
}

const fn is_timeout(reason: Reason) -> bool {
    matches!(reason, Reason::PerTryTimeout | Reason::PerTryIdle)
}

/// Says in an answer how often it was tried, where the route wants that, and that it was retried in vain, so that nobody above
/// retries it again. Clients beyond the mesh have no use for that, and do not learn it; the program beside an outbound listener may
/// pass it on to its own callers.
pub(super) fn mark(ctx: &RequestCtx, headers: &mut HeaderMap) {
    // What the listener's limits end does not say it, as in Envoy.
    let limited = matches!(ctx.reason, Some(Reason::MaxDuration | Reason::StreamIdle | Reason::RequestIdle));
    if ctx.shows_attempts && ctx.attempts > 0 && !limited {
        headers.insert(ATTEMPT_COUNT.clone(), HeaderValue::from(ctx.attempts));
    }
    if ctx.http.use_remote_address && !ctx.origin.internal {
        headers.remove(&RETRIES_EXHAUSTED);
    } else if ctx.retried == Retried::InVain {
        headers.insert(RETRIES_EXHAUSTED.clone(), HeaderValue::from_static("1"));
    }
}
