//! One try: breaker, pick, acquire, send.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Method, StatusCode, Version};
use tokio::time::Instant;

use super::body::{Body, BodyProgress};
use super::context::RequestCtx;
use super::forward::set_host;
use super::guard::Idle;
use super::h1::client::{self as h1, Failed, SendOptions, Sent};
use super::h1::parse::ResponseLimits;
use super::h1::server::spelling;
use super::h2::client as h2;
use super::head::{RequestHead, ResponseHead};
use super::interim::InterimSink;
use super::recheck::poll_refused;
use super::response::{Held, Response, Upgraded};
use super::tunnel::Tunnel;
use crate::balance::context::LbContext;
use crate::balance::subset::LbMetadata;
use crate::error::Reason;
use crate::resilience::breaker::{Resource, RoutingPriority};
use crate::resilience::timeout::TimeLeft;
use crate::route::action::RouteAction;
use crate::route::rewrite::parse_authority;
use crate::upstream::cluster::{Cluster, Discovery, UpstreamProtocol};
use crate::upstream::connect::Origin;
use crate::upstream::endpoint::{Endpoint, EndpointKey};
use crate::upstream::outcome::{Ended, Passes, Unsettled, Watch, grpc_status};
use crate::worker::Worker;
use crate::worker::timer::Timer;

/// Heads of answers larger than this are refused (Envoy's default for HTTP/1 is 80 KiB).
const MAX_ANSWER_HEAD: usize = 80 * 1024;

/// What an attempt needs to know.
#[derive(Debug)]
pub struct Attempt<'a> {
    /// When it begins.
    pub now: Instant,
    /// Where to.
    pub cluster: &'a Arc<Cluster>,
    /// The route.
    pub action: &'a RouteAction,
    /// What is left of the request's time.
    pub time: &'a TimeLeft,
    /// Only a new connection will do: the last one had gone stale.
    pub fresh: bool,
    /// An endpoint has failed: the request goes elsewhere, whatever its session says.
    pub moved: bool,
    /// The cluster stands in for another: the circuit breaker of the route has refused already.
    pub stand_in: bool,
    /// Endpoints to avoid.
    pub tried: &'a [EndpointKey],
    /// What the route and the request say about the endpoint.
    pub wanted: Wanted<'a>,
}

/// What decides about the endpoint besides the cluster's policy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// The hash by `hash_policy`.
    pub hash: Option<u64>,
    /// `metadata_match`.
    pub subset: Option<&'a LbMetadata>,
}

/// Runs one attempt.
///
/// # Errors
/// Why there is no answer, and how far the request got.
pub async fn run(ctx: &mut RequestCtx, attempt: &Attempt<'_>, body: Body) -> Result<Response, Failed> {
    let (endpoint, passes) = begin(ctx, attempt)?;
    let progress = Rc::clone(&ctx.progress);
    let watch = Watch::begin(attempt.cluster, &endpoint, &progress.over, passes, attempt.now);
    let answer = {
        let send = pin!(send(ctx, attempt, &endpoint, body));
        limited(ctx, attempt, send).await
    };
    if let Some(watch) = watch {
        ctx.unsettled = settle(watch.waited(attempt.time.waited()), ctx.is_grpc(), &answer);
    }
    answer
}

/// What comes before the sending: breakers, and the choice of the endpoint.
pub(super) fn begin(ctx: &mut RequestCtx, attempt: &Attempt<'_>) -> Result<(Arc<Endpoint>, Passes), Failed> {
    let passes = pass(ctx, attempt)?;
    take_request_permit(ctx, attempt)?;
    let endpoint = pick(ctx, attempt)?;
    if attempt.action.host_rewrite.needs_endpoint()
        && let Some(host) = endpoint.spec.hostname.as_deref().and_then(parse_authority)
    {
        set_host(ctx, attempt.action, host);
    }
    ctx.active = Some(endpoint.begin());
    Ok((endpoint, passes))
}

/// Tells how the attempt ended. An answer to a gRPC request whose status is in the trailers is told of later.
pub(super) fn settle(
    watch: Watch<'_>,
    is_grpc: bool,
    answer: &Result<Response, Failed>,
) -> Option<Box<Unsettled>> {
    match answer {
        Err(failed) => watch.ended(Ended::Failed(failed.reason)),
        Ok(response) => {
            let status = response.head.status;
            let grpc = if is_grpc { grpc_status(&response.head.headers) } else { None };
            if is_grpc && grpc.is_none() && !response.body.is_end() {
                return Some(Box::new(watch.awaits_trailers(status)));
            }
            watch.ended(Ended::Answered { status, grpc });
        }
    }
    None
}

/// The attempt within its own time limit, for as long as policy lets the request be.
async fn limited(
    ctx: &RequestCtx,
    attempt: &Attempt<'_>,
    mut send: Pin<&mut impl Future<Output = Result<Response, Failed>>>,
) -> Result<Response, Failed> {
    let mut limits = TryLimits::new(attempt.time, idle_limit(attempt.action), ctx.progress.bytes.get());
    poll_fn(|cx| {
        if let Poll::Ready(outcome) = send.as_mut().poll(cx) {
            return Poll::Ready(outcome);
        }
        match poll_refused(ctx, cx) {
            Poll::Ready(reason) => Poll::Ready(Err(Failed::new(reason, Sent::All))),
            Poll::Pending => limits.poll(&ctx.progress, cx).map(Err),
        }
    })
    .await
}

/// What the circuit breakers of the route and of the destination say.
fn pass(ctx: &mut RequestCtx, attempt: &Attempt<'_>) -> Result<Passes, Failed> {
    let mut passes = [None, None];
    let of_route = attempt.action.circuit.as_ref().filter(|_| !attempt.stand_in);
    let circuits = [of_route, attempt.cluster.spec().circuit.as_ref()];
    for (pass, circuit) in passes.iter_mut().zip(circuits) {
        let Some(circuit) = circuit else { continue };
        match circuit.try_acquire(attempt.now) {
            Ok(passed) => *pass = Some(passed),
            Err(refusal) => {
                ctx.circuit = Some(Box::new(refusal));
                return Err(Failed::new(Reason::CircuitOpen, Sent::Nothing));
            }
        }
    }
    Ok(passes)
}

/// How long nothing may move in a try.
pub(super) fn idle_limit(action: &RouteAction) -> Option<Duration> {
    action.retry.as_ref().and_then(|policy| policy.per_try_idle_timeout)
}

/// The time limits of one try.
pub(super) struct TryLimits<'a> {
    time: &'a TimeLeft,
    try_ends: Option<Timer>,
    /// With the bytes that were read when it last moved. Boxed, as what few requests have is.
    idle: Option<Box<(Idle, u64)>>,
    queue_ends: Option<Box<Timer>>,
}

impl<'a> TryLimits<'a> {
    /// Those of a try that begins now. `idle`: see [`idle_limit`]. `read`: bytes of the request that were read.
    pub(super) fn new(time: &'a TimeLeft, idle: Option<Duration>, read: u64) -> Self {
        Self {
            time,
            try_ends: time.limits().try_limit().map(Timer::after),
            idle: idle.map(|limit| Box::new((Idle::new(limit), read))),
            queue_ends: None,
        }
    }

    pub(super) fn poll(&mut self, progress: &BodyProgress, cx: &mut Context<'_>) -> Poll<Failed> {
        if let Some(limit) = &mut self.try_ends
            && limit.poll(cx).is_ready()
        {
            return Poll::Ready(Failed::new(Reason::PerTryTimeout, Sent::All));
        }
        if let Some((idle, moved)) = self.idle.as_deref_mut() {
            let read = progress.bytes.get();
            if std::mem::replace(moved, read) != read {
                idle.moved();
            }
            if idle.poll(cx).is_ready() {
                return Poll::Ready(Failed::new(Reason::PerTryIdle, Sent::All));
            }
        }
        // A request that nobody reads while it waits for a connection is never complete, so that its own time would not begin.
        match self.time.queue_limit() {
            None => Poll::Pending,
            Some(limit) => {
                let ends = self.queue_ends.get_or_insert_with(|| Box::new(Timer::after(limit)));
                ends.poll(cx).map(|()| Failed::new(Reason::UpstreamTimeout, Sent::Nothing))
            }
        }
    }
}

/// One permit for the request, however often it is tried.
fn take_request_permit(ctx: &mut RequestCtx, attempt: &Attempt<'_>) -> Result<(), Failed> {
    if ctx.permits[0].is_some() {
        return Ok(());
    }
    let priority = attempt.action.priority;
    ctx.permits[0] = attempt.cluster.try_acquire(Resource::Requests, priority);
    attempt.cluster.record_request(priority, ctx.start);
    if ctx.permits[0].is_none() {
        return Err(Failed::new(Reason::UpstreamOverflow, Sent::Nothing));
    }
    Ok(())
}

fn pick(ctx: &RequestCtx, attempt: &Attempt<'_>) -> Result<Arc<Endpoint>, Failed> {
    let nothing = |reason| Failed::new(reason, Sent::Nothing);
    if let Discovery::OriginalDst(spec) = &attempt.cluster.spec().discovery {
        let address = spec.destination(Some(&ctx.head.headers), ctx.downstream.original_dst);
        let address = address.ok_or_else(|| nothing(Reason::NoOriginalDestination))?;
        return Ok(ctx.downstream.worker.original_endpoint(attempt.cluster, spec, address));
    }
    let Wanted { hash, subset } = attempt.wanted;
    let host = ctx.policy.as_ref().and_then(|policy| policy.host).filter(|_| !attempt.moved);
    let context = LbContext { exclude: attempt.tried, hash, subset, host, ..LbContext::default() };
    let picked = ctx.downstream.worker.pick(attempt.cluster, context, attempt.now);
    picked.ok_or_else(|| nothing(Reason::NoHealthyUpstream))
}

async fn send(
    ctx: &RequestCtx,
    attempt: &Attempt<'_>,
    endpoint: &Arc<Endpoint>,
    body: Body,
) -> Result<Response, Failed> {
    let exchange = Exchange {
        worker: &ctx.downstream.worker,
        cluster: attempt.cluster,
        priority: attempt.action.priority,
        fresh: attempt.fresh,
        upgrade: ctx.upgrade.as_ref(),
        interim: &ctx.interim,
        time: Some((attempt.time, ctx.http.suppress_envoy_headers)),
        ends_connect: attempt.action.ends_connect(),
        origin: ctx.downstream.origin(),
    };
    exchange.send(endpoint, &ctx.head, body).await
}

/// One request to one endpoint, over the pools of a worker.
#[derive(Debug)]
pub struct Exchange<'a> {
    /// Whose connection it uses.
    pub worker: &'a Worker,
    /// The endpoint's.
    pub cluster: &'a Arc<Cluster>,
    /// Which circuit breaker counts connections.
    pub priority: RoutingPriority,
    /// Only a new connection will do.
    pub fresh: bool,
    /// `Upgrade` that is passed on.
    pub upgrade: Option<&'a HeaderValue>,
    /// Takes 1xx answers.
    pub interim: &'a InterimSink,
    /// What the endpoint is told of the time that is left, unless Envoy's headers are suppressed.
    pub time: Option<(&'a TimeLeft, bool)>,
    /// A CONNECT ends here: the endpoint gets nothing of it.
    pub ends_connect: bool,
    /// The endpoint sees this address instead of ours.
    pub origin: Option<Origin>,
}

impl Exchange<'_> {
    /// Acquires a connection, sends, and waits for the head of the answer.
    ///
    /// # Errors
    /// Why there is none, and how far the request got.
    pub async fn send(
        &self,
        endpoint: &Arc<Endpoint>,
        head: &RequestHead,
        body: Body,
    ) -> Result<Response, Failed> {
        if self.ends_connect && head.method == Method::CONNECT {
            return Box::pin(self.tunnel(endpoint)).await;
        }
        let nothing = |reason| Failed::new(reason, Sent::Nothing);
        let Self { worker, cluster, priority, fresh, upgrade, interim, .. } = *self;
        let spec = cluster.spec();
        let pool = worker.pools.of(cluster, endpoint, self.origin);
        let options = SendOptions {
            spelling: spelling(&spec.http.http1),
            secure: spec.tls.is_some(),
            upgrade,
            limits: ResponseLimits {
                max_bytes: spec.http.max_header_bytes.unwrap_or(MAX_ANSWER_HEAD),
                max_headers: spec.http.max_header_count,
            },
            interim,
        };
        let began = self.queue();
        let http2 = match spec.http.protocol {
            UpstreamProtocol::Http1 => false,
            UpstreamProtocol::Http2 => true,
            UpstreamProtocol::Downstream => head.version == Version::HTTP_2,
            // By ALPN, which only TLS has.
            UpstreamProtocol::Auto => {
                spec.tls.is_some() && Box::pin(pool.speaks_h2(cluster, priority)).await.map_err(nothing)?
            }
        };
        if http2 {
            let (sender, slot) = pool.h2(cluster, priority, fresh).await.map_err(nothing)?;
            let newer = self.leave_queue(head, began);
            let head = newer.as_deref().unwrap_or(head);
            // A peer without RFC 8441 gets its upgrades over HTTP/1.
            if upgrade.is_none() || Box::pin(h2::takes_upgrades(&sender)).await {
                return h2::send(sender, slot, head, body, &options).await;
            }
        }
        let lease = pool.h1(cluster, priority, fresh).await.map_err(nothing)?;
        let newer = self.leave_queue(head, began);
        h1::send(lease, newer.as_deref().unwrap_or(head), body, &options).await
    }

    /// The answer to a CONNECT that ends here: a new connection, whose bytes are the client's from now on. The endpoint gets nothing of the request.
    async fn tunnel(&self, endpoint: &Arc<Endpoint>) -> Result<Response, Failed> {
        let Self { worker, cluster, priority, .. } = *self;
        let waits = self.queue().is_some();
        let lease = worker.pools.opaque(cluster, endpoint, self.origin, priority).await;
        let lease = lease.map_err(|reason| Failed::new(reason, Sent::Nothing))?;
        if let Some((time, _)) = self.time.filter(|_| waits) {
            time.connected(Instant::now());
        }
        let upgraded = Upgraded {
            protocol: HeaderValue::from_static("connect"),
            io: Tunnel::H1(lease.conn.clone()),
            held: Held::H1(lease),
        };
        let head = ResponseHead::new(StatusCode::OK);
        Ok(Response { head, body: Body::Empty, upgraded: Some(Box::new(upgraded)) })
    }

    /// It waits for a connection.
    fn queue(&self) -> Option<Instant> {
        let (time, _) = self.time?;
        let now = Instant::now();
        time.queued(now);
        Some(now)
    }

    /// There is a connection. Another head when it was waited for: what it says about the time that is left must be true now.
    fn leave_queue(&self, head: &RequestHead, began: Option<Instant>) -> Option<Box<RequestHead>> {
        let ((time, suppress), began) = (self.time?, began?);
        let now = Instant::now();
        time.connected(now);
        if now.saturating_duration_since(began) < Duration::from_millis(1) {
            return None;
        }
        let mut head = Box::new(head.clone());
        time.announce(&mut head.headers, now, suppress);
        Some(head)
    }
}
