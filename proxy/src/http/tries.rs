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
use super::hedged;
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
    /// The budget of the cluster knows that the request asked for a retry.
    pub(super) has_asked: bool,
    /// The request had no body.
    pub(super) bodiless: bool,
    /// Where the answer may be kept, or come from.
    pub(super) last_good: Option<Box<LastGood>>,
}

/// What stands in for a destination whose circuit breaker refused.
pub(super) enum StandIn {
    /// Its last good answer.
    Answer(Box<Response>),
    /// Another cluster, which is the one of the request now.
    Cluster,
}

/// The request's body, for one attempt or for several.
pub(super) enum Source {
    Once { body: Body, replayable: bool },
    Replay(Replay),
}

impl Source {
    pub(super) fn new(body: Body, state: &RetryState, limit: Option<u64>) -> Self {
        if body.is_end() || !state.may_retry() {
            // Only an empty body may be taken twice without a recording.
            return Self::Once { replayable: body.is_end(), body };
        }
        let limit = limit.map_or(REPLAY_LIMIT, |n| usize::try_from(n).unwrap_or(usize::MAX));
        Self::Replay(Replay::new(body, limit))
    }

    pub(super) fn take(&mut self) -> Body {
        match self {
            Self::Once { body, .. } => std::mem::take(body),
            Self::Replay(replay) => replay.body(),
        }
    }

    pub(super) fn is_replayable(&self) -> bool {
        match self {
            Self::Once { replayable, .. } => *replayable,
            Self::Replay(replay) => replay.can_replay(),
        }
    }

    /// Whether two tries may send it at the same time.
    pub(super) fn is_complete(&self) -> bool {
        match self {
            Self::Once { replayable, .. } => *replayable,
            Self::Replay(replay) => replay.is_complete(),
        }
    }
}

impl<'a> Tries<'a> {
    pub(super) const fn new(
        action: &'a RouteAction,
        cluster: Arc<Cluster>,
        state: RetryState,
        time: &'a TimeLeft,
        wanted: Wanted<'a>,
    ) -> Self {
        Self {
            action,
            cluster,
            state,
            time,
            wanted,
            stand_in: false,
            has_asked: false,
            bodiless: true,
            last_good: None,
        }
    }
}

impl Tries<'_> {
    /// Tries until there is an answer to pass on.
    ///
    /// # Errors
    /// Why the last try had none.
    pub(super) async fn run(&mut self, ctx: &mut RequestCtx, body: Body) -> Result<Response, Reason> {
        self.bodiless = body.is_end();
        let general = self.bodiless && self.wanted.subset.is_none();
        self.last_good = LastGood::of(ctx, self.action.circuit.as_ref(), &self.cluster, general);
        if let Some(after) = self.time.limits().hedge_after() {
            return Box::pin(hedged::run(self, ctx, body, after)).await;
        }
        let mut source = Source::new(body, &self.state, self.action.buffer_limit);
        let mut tried: SmallVec<[EndpointKey; 4]> = SmallVec::new();
        let (mut fresh, mut moved) = (false, false);
        loop {
            let now = Instant::now();
            self.announce(ctx, now);
            let Self { action, ref cluster, time, wanted, stand_in, .. } = *self;
            let attempt =
                Attempt { now, cluster, action, time, fresh, moved, stand_in, tried: &tried, wanted };
            let mut outcome = attempt::run(ctx, &attempt, source.take()).await;
            let replayable = source.is_replayable();
            if let Err(Failed { reason: Reason::CircuitOpen, .. }) = outcome {
                match self.stand_in(ctx, replayable) {
                    Some(StandIn::Answer(answer)) => {
                        ctx.permits[1] = None;
                        return Ok(*answer);
                    }
                    Some(StandIn::Cluster) => continue,
                    None => {}
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
                self.remember(ctx, &mut outcome);
                return outcome.map_err(|failed| failed.reason);
            };
            self.announce_retry(ctx, outcome.as_ref().is_err_and(|failed| is_timeout(failed.reason)));
            let stale = is_stale(kind, &outcome);
            moved |= !stale;
            if !stale && self.avoids_previous_hosts() {
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

    /// Another try begins at `now`: says so in the request.
    pub(super) fn announce(&self, ctx: &mut RequestCtx, now: Instant) {
        ctx.attempts += 1;
        if self.action.attempt_count_in_request {
            ctx.head.headers.insert(ATTEMPT_COUNT.clone(), HeaderValue::from(ctx.attempts));
        }
        self.time.announce(&mut ctx.head.headers, now, ctx.http.suppress_envoy_headers);
    }

    /// Says in the request whether the next try is made because of a timeout, where the route wants that.
    pub(super) fn announce_retry(&self, ctx: &mut RequestCtx, timeout: bool) {
        if self.action.is_timeout_retry_header {
            let value = HeaderValue::from_static(if timeout { "true" } else { "false" });
            ctx.head.headers.insert(IS_TIMEOUT_RETRY.clone(), value);
        }
    }

    /// Whether a retry goes to an endpoint that was not tried.
    pub(super) fn avoids_previous_hosts(&self) -> bool {
        self.policy().is_some_and(|p| p.avoid_previous_hosts)
    }

    /// What a request gets that a circuit breaker refuses, if there is anything.
    #[cold]
    pub(super) fn stand_in(&mut self, ctx: &mut RequestCtx, replayable: bool) -> Option<StandIn> {
        if let Some(answer) = self.last_good.as_ref().and_then(|last| last.answer(ctx)) {
            return Some(StandIn::Answer(Box::new(answer)));
        }
        (replayable && self.go_elsewhere(ctx)).then_some(StandIn::Cluster)
    }

    /// Looks at the answer of the request, which may be one for worse times.
    pub(super) fn remember(&self, ctx: &RequestCtx, outcome: &mut Result<Response, Failed>) {
        if let (Some(last), Ok(response)) = (&self.last_good, outcome) {
            last.see(ctx, response);
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
        self.has_asked = false;
        let general = self.bodiless && self.wanted.subset.is_none();
        self.last_good = LastGood::of(ctx, None, &self.cluster, general);
        true
    }

    pub(super) fn policy(&self) -> Option<&RetryPolicy> {
        self.action.retry.as_deref()
    }

    /// Whether the next try is made, why, and after which pause.
    pub(super) fn again(
        &mut self,
        ctx: &mut RequestCtx,
        outcome: &Result<Response, Failed>,
        trailers: Option<&HeaderMap>,
        replayable: bool,
    ) -> Option<(RetryKind, Duration)> {
        let again = match self.decide(outcome, trailers, replayable) {
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

    /// What the policy says about a try that ended.
    pub(super) fn decide(
        &self,
        outcome: &Result<Response, Failed>,
        trailers: Option<&HeaderMap>,
        replayable: bool,
    ) -> Decision {
        let (ended, sent) = match outcome {
            Ok(response) => (Outcome::Answer(&response.head, trailers), true),
            Err(failed) => (Outcome::Failed(failed.reason), failed.sent != Sent::Nothing),
        };
        self.state.decide(self.policy(), ended, Progress { sent, replayable })
    }

    /// The pause before a retry by policy, when time and budget allow one.
    pub(super) fn permitted(&mut self, ctx: &mut RequestCtx, answer: Option<&Response>) -> Option<Duration> {
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
        let is_first = !std::mem::replace(&mut self.has_asked, true);
        // The permit of the try before is free again: it ended.
        ctx.permits[1] = None;
        ctx.permits[1] = self.cluster.try_retry(self.action.priority, is_first, now);
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
            && status_is_to_come(response)
    }
}

/// Whether the gRPC status of an answer is behind its head.
pub(super) fn status_is_to_come(response: &Response) -> bool {
    !response.body.is_end()
        && !matches!(response.body, Body::Early(_))
        && !response.head.headers.contains_key("grpc-status")
}

/// A connection that had gone stale says nothing about its endpoint.
pub(super) fn is_stale(kind: RetryKind, outcome: &Result<Response, Failed>) -> bool {
    kind == RetryKind::Transparent
        || outcome.as_ref().is_err_and(|failed| failed.reason == Reason::ReusedConnectionClosed)
}

/// The trailers of an answer that has no body. As soon as there is a body, or nothing for a while, the answer goes on.
pub(super) async fn status_of(response: &mut Response) -> Option<HeaderMap> {
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

pub(super) const fn is_timeout(reason: Reason) -> bool {
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
