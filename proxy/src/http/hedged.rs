//! Tries of one request beside each other, where the route hedges: what [`crate::resilience::hedge`] decides is done here.
//!
//! A request that does not hedge never comes here. One that does pays for a box and a copy of its head for each try: a try
//! that goes on while the next one begins owns what it needs.

use std::cell::Cell;
use std::future::{Future, poll_fn, ready};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::attempt::{self, Attempt, Exchange, TryLimits};
use super::body::{Body, BodyProgress};
use super::context::{RequestCtx, Retried};
use super::downstream::Downstream;
use super::h1::client::Failed;
use super::head::RequestHead;
use super::interim::{Held, InterimSink};
use super::recheck::poll_refused;
use super::response::Response;
use super::tries::{Source, StandIn, Tries, is_stale, is_timeout, status_is_to_come, status_of};
use crate::error::Reason;
use crate::resilience::breaker::RoutingPriority;
use crate::resilience::hedge::{Ended, Next, Patience};
use crate::resilience::retry::{Decision, RetryKind, Stop};
use crate::resilience::timeout::TimeLeft;
use crate::telemetry::flags::ResponseFlags;
use crate::telemetry::metrics::ClusterCount;
use crate::upstream::cluster::{Cluster, ClusterPermit};
use crate::upstream::endpoint::{ActiveRequest, Endpoint, EndpointKey};
use crate::upstream::outcome::{Ended as AttemptEnded, Passes, Unsettled, Watch};
use crate::worker::timer::Timer;

/// Tries until there is an answer to pass on; a try that has none `after` this time gets another one beside it.
///
/// # Errors
/// Why the last try had none.
pub(super) async fn run(
    tries: &mut Tries<'_>,
    ctx: &mut RequestCtx,
    body: Body,
    after: Duration,
) -> Result<Response, Reason> {
    let source = Source::new(body, &tries.state, tries.action.buffer_limit);
    let mut race = Race {
        tries,
        source,
        after,
        flights: SmallVec::new(),
        under_way: Rc::default(),
        won: None,
        coming: None,
        tried: SmallVec::new(),
        moved: false,
    };
    race.begin(ctx, None, false);
    loop {
        match poll_fn(|cx| race.poll(ctx, cx)).await {
            Event::Refused(reason) => return Err(reason),
            Event::Due(coming) => race.begin(ctx, coming.permit, coming.fresh),
            Event::Late => race.hedge(ctx),
            Event::Ended(at, landed) => {
                if let Some(answer) = race.ended(ctx, at, *landed) {
                    if let Some(interim) = race.won {
                        interim.pass_on().await;
                    }
                    return answer;
                }
            }
        }
    }
}

/// How a try ended: its answer, what is still to be told of it, and the trailers of an answer without a body.
type Landed = (Result<Response, Failed>, Option<Box<Unsettled>>, Option<HeaderMap>);

type Work<'a> = Pin<Box<dyn Future<Output = Landed> + 'a>>;

/// A try that has no answer yet.
struct Flight<'a> {
    work: Work<'a>,
    /// It has taken longer than the others wait.
    late: Rc<Cell<bool>>,
    /// What it has said that is no answer.
    interim: Rc<Held>,
    /// The policy was asked for another one beside it.
    asked: bool,
    /// Another one begins beside it, or began. It gets no other, whatever became of that.
    followed: bool,
    /// Its place in the retry budget.
    #[expect(dead_code, reason = "held until the head of its answer is decided")]
    permit: Option<ClusterPermit>,
    /// Its endpoint counts it as in flight. That of the newest try is in the request's context.
    active: Option<ActiveRequest>,
    /// None: it got none.
    endpoint: Option<EndpointKey>,
}

/// A try that is about to begin.
struct Coming {
    at: Timer,
    permit: Option<ClusterPermit>,
    fresh: bool,
}

enum Event {
    Refused(Reason),
    Due(Coming),
    Late,
    Ended(usize, Box<Landed>),
}

/// The tries under way, oldest first.
struct Race<'r, 'a> {
    tries: &'r mut Tries<'a>,
    source: Source,
    after: Duration,
    flights: SmallVec<[Flight<'a>; 2]>,
    /// How many they are.
    under_way: Rc<Cell<usize>>,
    /// What the try that has the answer said before.
    won: Option<Rc<Held>>,
    coming: Option<Coming>,
    tried: SmallVec<[EndpointKey; 4]>,
    moved: bool,
}

impl<'a> Race<'_, 'a> {
    fn poll(&mut self, ctx: &RequestCtx, cx: &mut Context<'_>) -> Poll<Event> {
        for (at, flight) in self.flights.iter_mut().enumerate() {
            if let Poll::Ready(landed) = flight.work.as_mut().poll(cx) {
                return Poll::Ready(Event::Ended(at, Box::new(landed)));
            }
        }
        if let Some(newest) = self.flights.last_mut()
            && newest.late.get()
            && !std::mem::replace(&mut newest.asked, true)
        {
            return Poll::Ready(Event::Late);
        }
        if let Some(coming) = self.coming.take_if(|coming| coming.at.poll(cx).is_ready()) {
            return Poll::Ready(Event::Due(coming));
        }
        poll_refused(ctx, cx).map(Event::Refused)
    }

    /// Begins a try.
    fn begin(&mut self, ctx: &mut RequestCtx, permit: Option<ClusterPermit>, fresh: bool) {
        if let Some(newest) = self.flights.last_mut() {
            newest.active = ctx.active.take();
        }
        let now = Instant::now();
        self.tries.announce(ctx, now);
        let late = Rc::new(Cell::new(false));
        let interim = Held::new(&ctx.interim, &self.under_way);
        let Tries { action, ref cluster, time, wanted, stand_in, .. } = *self.tries;
        let attempt = Attempt {
            now,
            cluster,
            action,
            time,
            fresh,
            moved: self.moved,
            stand_in,
            tried: &self.tried,
            wanted,
        };
        let (work, endpoint): (Work<'a>, _) = match attempt::begin(ctx, &attempt) {
            Err(failed) => (Box::pin(ready((Err(failed), None, None))), None),
            Ok((endpoint, passes)) => {
                let key = endpoint.key;
                let grpc = ctx.is_grpc();
                let parts = Parts {
                    downstream: Rc::clone(&ctx.downstream),
                    cluster: Arc::clone(cluster),
                    endpoint,
                    passes,
                    head: ctx.head.clone(),
                    body: self.source.take(),
                    interim: InterimSink::Held(Rc::clone(&interim)),
                    progress: Rc::clone(&ctx.progress),
                    time,
                    own_time: (!self.flights.is_empty()).then(|| time.clone()),
                    suppress: ctx.http.suppress_envoy_headers,
                    ends_connect: action.ends_connect(),
                    priority: action.priority,
                    fresh,
                    idle: attempt::idle_limit(action),
                    patience: Patience::new(self.after),
                    late: Rc::clone(&late),
                    grpc,
                    holds: grpc && self.tries.state.wants_grpc_status(),
                };
                (Box::pin(parts.fly()), Some(key))
            }
        };
        let flight =
            Flight { work, late, interim, asked: false, followed: false, permit, active: None, endpoint };
        self.flights.push(flight);
        self.under_way.set(self.flights.len());
    }

    /// The newest try is late: another one beside it, if policy, budget and time allow.
    fn hedge(&mut self, ctx: &mut RequestCtx) {
        // Flags stay, whatever comes of the late try (as in Envoy).
        match self.tries.state.hedge(self.source.is_complete()) {
            Decision::Retry(_) => {}
            Decision::Stop(Stop::LimitReached) => {
                ctx.flags = ctx.flags.with(ResponseFlags::RETRY_LIMIT);
                return;
            }
            Decision::Stop(_) => return,
        }
        let Some(pause) = self.tries.permitted(ctx, None) else {
            // In vain only if the late try has no good answer.
            if ctx.retried == Retried::InVain {
                ctx.retried = Retried::Yes;
            }
            return;
        };
        ctx.retried = Retried::Yes;
        let metrics = &ctx.downstream.worker.metrics;
        metrics.cluster(ctx.cluster_id, &self.tries.cluster, ClusterCount::Hedges);
        self.tries.announce_retry(ctx, true);
        let newest = self.flights.last_mut();
        let endpoint = newest.and_then(|flight| {
            flight.followed = true;
            flight.endpoint
        });
        self.follow(RetryKind::Policy, endpoint, false);
        self.schedule(ctx, pause, false);
    }

    /// What is known of the endpoints for the next try. `stale`: only a connection failed.
    fn follow(&mut self, kind: RetryKind, endpoint: Option<EndpointKey>, stale: bool) {
        self.moved |= !stale;
        if !stale && self.tries.avoids_previous_hosts() {
            self.tried.extend(endpoint);
        }
        self.tries.state.count(kind);
    }

    fn schedule(&mut self, ctx: &mut RequestCtx, pause: Duration, fresh: bool) {
        let permit = ctx.permits[1].take();
        self.coming = Some(Coming { at: Timer::after(pause), permit, fresh });
    }

    /// A try ended. The answer of the request, when this is it.
    fn ended(
        &mut self,
        ctx: &mut RequestCtx,
        at: usize,
        (mut outcome, unsettled, trailers): Landed,
    ) -> Option<Result<Response, Reason>> {
        let newest = at + 1 == self.flights.len();
        // Its permit is free again: whether another one is taken is decided below.
        let Flight { endpoint, active, followed, interim, .. } = self.flights.remove(at);
        self.under_way.set(self.flights.len());
        let others = !self.flights.is_empty() || self.coming.is_some();
        let replayable = self.source.is_replayable();
        let refused = matches!(outcome, Err(Failed { reason: Reason::CircuitOpen, .. }));
        if refused && !others {
            match self.tries.stand_in(ctx, replayable) {
                Some(StandIn::Answer(answer)) => return Some(Ok(*answer)),
                Some(StandIn::Cluster) => {
                    self.begin(ctx, None, false);
                    return None;
                }
                None => {}
            }
        }
        let decision = self.tries.decide(&outcome, trailers.as_ref(), replayable);
        let bad = outcome.is_err() || decision != Decision::Stop(Stop::NotRetriable);
        let ended = Ended { bad, followed, others };
        let before = ctx.retried;
        let next = match ended.next() {
            Next::Retry => {
                if let Some((kind, pause)) = self.tries.again(ctx, &outcome, trailers.as_ref(), replayable) {
                    let timeout = outcome.as_ref().is_err_and(|failed| is_timeout(failed.reason));
                    self.tries.announce_retry(ctx, timeout);
                    let stale = is_stale(kind, &outcome);
                    self.follow(kind, endpoint, stale);
                    self.schedule(ctx, pause, stale);
                    give_up(&outcome);
                    self.leave(ctx, newest);
                    return None;
                }
                ended.settled()
            }
            next => next,
        };
        if next == Next::Wait {
            ctx.retried = before;
            give_up(&outcome);
            self.leave(ctx, newest);
            return None;
        }
        if bad && followed {
            note_in_vain(ctx, decision);
        }
        if !newest {
            ctx.active = active;
        }
        ctx.unsettled = unsettled;
        self.won = Some(interim);
        self.tries.remember(ctx, &mut outcome);
        Some(outcome.map_err(|failed| failed.reason))
    }

    /// The try that ended is forgotten: the record names one that goes on, if there is one.
    fn leave(&mut self, ctx: &mut RequestCtx, newest: bool) {
        if newest && let Some(active) = self.flights.last_mut().and_then(|flight| flight.active.take()) {
            ctx.active = Some(active);
        }
    }
}

/// Two uploads would each get a part of what comes.
fn give_up(outcome: &Result<Response, Failed>) {
    if let Ok(Response { body: Body::Early(early), .. }) = outcome {
        early.give_up();
    }
}

/// The last of several tries ended in a way that would be tried again.
fn note_in_vain(ctx: &mut RequestCtx, decision: Decision) {
    match decision {
        Decision::Stop(Stop::NotRetriable) => return,
        Decision::Stop(Stop::LimitReached) => ctx.flags = ctx.flags.with(ResponseFlags::RETRY_LIMIT),
        _ => {}
    }
    if ctx.retried == Retried::Yes {
        ctx.retried = Retried::InVain;
    }
}

/// What a try owns while it is under way.
struct Parts<'a> {
    downstream: Rc<Downstream>,
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    passes: Passes,
    head: RequestHead,
    body: Body,
    interim: InterimSink,
    progress: Rc<BodyProgress>,
    time: &'a TimeLeft,
    /// That of a try beside others: each waits for its own connection.
    own_time: Option<TimeLeft>,
    suppress: bool,
    ends_connect: bool,
    priority: RoutingPriority,
    fresh: bool,
    idle: Option<Duration>,
    patience: Patience,
    late: Rc<Cell<bool>>,
    grpc: bool,
    /// Trailers may decide about a retry.
    holds: bool,
}

impl Parts<'_> {
    async fn fly(self) -> Landed {
        let Self { downstream, cluster, endpoint, passes, head, body, interim, progress, .. } = self;
        let (time, late) = (self.own_time.as_ref().unwrap_or(self.time), self.late);
        let mut watch = Watch::begin(&cluster, &endpoint, &progress.over, passes, Instant::now());
        let exchange = Exchange {
            worker: &downstream.worker,
            cluster: &cluster,
            priority: self.priority,
            fresh: self.fresh,
            upgrade: None,
            interim: &interim,
            time: Some((time, self.suppress)),
            ends_connect: self.ends_connect,
            origin: downstream.origin(),
        };
        let mut limits = TryLimits::new(time, self.idle, progress.bytes.get());
        let mut patience = Waiting { patience: self.patience, timer: None };
        let mut answer = {
            let mut send = pin!(exchange.send(&endpoint, &head, body));
            poll_fn(|cx| {
                if let Poll::Ready(answer) = send.as_mut().poll(cx) {
                    return Poll::Ready(answer);
                }
                if patience.ends(progress.done.get(), cx) {
                    late.set(true);
                    // It counts as a timeout, whatever comes of it later (as in Envoy).
                    if let Some(watch) = watch.take() {
                        watch.waited(time.waited()).ended(AttemptEnded::Failed(Reason::PerTryTimeout));
                    }
                }
                limits.poll(&progress, cx).map(Err)
            })
            .await
        };
        let mut unsettled = watch.and_then(|w| attempt::settle(w.waited(time.waited()), self.grpc, &answer));
        let trailers = match &mut answer {
            Ok(response) if self.holds && progress.done.get() && status_is_to_come(response) => {
                status_of(response).await
            }
            _ => None,
        };
        if let (Some(trailers), Some(mut unsettled)) = (&trailers, unsettled.take_if(|_| trailers.is_some()))
        {
            unsettled.trailers(trailers);
        }
        (answer, unsettled, trailers)
    }
}

/// [`Patience`] with the timer that wakes it.
struct Waiting {
    patience: Patience,
    timer: Option<Timer>,
}

impl Waiting {
    /// Whether it ends now. True once.
    fn ends(&mut self, complete: bool, cx: &mut Context<'_>) -> bool {
        let Some(due) = self.patience.due(complete, Instant::now()) else { return false };
        let timer = self.timer.get_or_insert_with(|| Timer::at(due));
        timer.poll(cx).is_ready() && self.patience.ends(Instant::now())
    }
}
