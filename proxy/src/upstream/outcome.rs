//! How an attempt ended, and who is told of it: the one place from which outlier detection, balancing and breakers learn.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::cluster::Cluster;
use super::endpoint::Endpoint;
use super::outlier;
use crate::balance::LbPolicy;
use crate::balance::context::Tick;
use crate::balance::ewma::{Latency, PeakEwma};
use crate::error::Reason;
use crate::resilience::circuit::Pass;

/// How an attempt ended, in the words that all who are told of it need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// What came of it.
    pub ended: Ended,
    /// From the beginning of the attempt to the head of the answer, to the connection (TCP) or to the failure.
    pub took: Duration,
    /// How much of it was spent on a connection, for HTTP: that is no property of the endpoint's answers, and the next one has it already.
    pub waited: Duration,
}

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The endpoint answered.
    Answered {
        /// Status of the answer.
        status: StatusCode,
        /// `grpc-status` of an answer to a gRPC request, from its trailers or its head.
        grpc: Option<u16>,
    },
    /// A TCP connection is there. What becomes of it is not known here.
    Connected,
    /// There is no answer.
    Failed(Reason),
    /// Nobody waited for the end: it says nothing about the endpoint.
    Abandoned,
}

/// What is wrong with an endpoint (Envoy's external and local origin).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It answered, or the connection is there.
    Good,
    /// It answered with this status, which is 500 or more.
    ServerError(u16),
    /// It was not reached, broke off, or did not answer in time. The status (503 or 504) is what it counts as where local origin is not
    /// told apart (Envoy `split_external_local_origin_errors`).
    LocalOrigin(u16),
    /// Says nothing about the endpoint: a limit of ours, the client's fault, or a kept-alive connection that both sides closed at once.
    Neither,
}

impl Outcome {
    /// One that waited for no connection.
    #[must_use]
    pub const fn new(ended: Ended, took: Duration) -> Self {
        Self { ended, took, waited: Duration::ZERO }
    }

    /// See [`Verdict`]. A gRPC status counts as the HTTP status that means the same.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self.ended {
            Ended::Answered { status, grpc } => match grpc.map_or(status.as_u16(), http_status_of_grpc) {
                error @ 500.. => Verdict::ServerError(error),
                _ => Verdict::Good,
            },
            Ended::Connected => Verdict::Good,
            Ended::Failed(reason) => failure(reason),
            Ended::Abandoned => Verdict::Neither,
        }
    }

    /// Whether the endpoint did what it was asked.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.verdict() == Verdict::Good
    }
}

const fn failure(reason: Reason) -> Verdict {
    match reason {
        Reason::ConnectFailure
        | Reason::ConnectTimeout
        | Reason::UpstreamTls
        | Reason::UpstreamClosed
        | Reason::UpstreamReset
        | Reason::UpstreamRefused
        | Reason::UpstreamBodyReset
        | Reason::UpstreamProtocol
        | Reason::UpstreamHeadersTooLarge => Verdict::LocalOrigin(503),
        Reason::PerTryTimeout | Reason::PerTryIdle | Reason::UpstreamTimeout => Verdict::LocalOrigin(504),
        _ => Verdict::Neither,
    }
}

/// The HTTP status that means the same as a gRPC status (`google.rpc.Code`).
#[must_use]
pub const fn http_status_of_grpc(code: u16) -> u16 {
    match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// `grpc-status` of a head or of trailers.
#[must_use]
pub fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// Tells those whom `cluster` has of an attempt at `endpoint`.
pub fn record(cluster: &Cluster, endpoint: &Endpoint, outcome: &Outcome, now: Instant) {
    if let LbPolicy::PeakEwma(ewma) = &cluster.spec().lb.policy {
        note_latency(ewma, endpoint.state.latency(), outcome, Tick::at(now));
    }
    if let Some(spec) = &cluster.spec().outlier {
        outlier::note(cluster, endpoint, spec, outcome.verdict());
    }
}

fn note_latency(ewma: &PeakEwma, latency: &Latency, outcome: &Outcome, now: Tick) {
    let took = outcome.took.saturating_sub(outcome.waited);
    match outcome.verdict() {
        Verdict::Good => ewma.observe(latency, took, now),
        Verdict::ServerError(_) | Verdict::LocalOrigin(_) => ewma.observe_failure(latency, took, now),
        // The client did not wait: the answer would have taken longer than this.
        Verdict::Neither if outcome.ended == Ended::Abandoned => {
            ewma.observe_more(latency, outcome.took, now)
        }
        Verdict::Neither => {}
    }
}

/// What the circuit breakers of the route and of the cluster let through.
pub type Passes = [Option<Pass>; 2];

fn settle(passes: &mut Passes, outcome: &Outcome, now: Instant) {
    for pass in passes.iter_mut().filter_map(Option::take) {
        pass.settle(outcome, now);
    }
}

/// An attempt that is under way: exactly one outcome comes of it, whoever drops it.
#[derive(Debug)]
#[must_use]
pub struct Watch<'a> {
    cluster: &'a Arc<Cluster>,
    endpoint: &'a Arc<Endpoint>,
    /// The time limit that ended the request, when one did.
    over: &'a Cell<Option<Reason>>,
    began: Instant,
    waited: Duration,
    told: bool,
    passes: Passes,
}

impl<'a> Watch<'a> {
    /// Began at `began`. None: nobody wants to know. `over` says at the time of a drop which time limit ended the request, if one did.
    #[must_use]
    pub fn begin(
        cluster: &'a Arc<Cluster>,
        endpoint: &'a Arc<Endpoint>,
        over: &'a Cell<Option<Reason>>,
        passes: Passes,
        began: Instant,
    ) -> Option<Self> {
        let watched = cluster.is_watched() || passes.iter().any(Option::is_some);
        watched.then_some(Self {
            cluster,
            endpoint,
            over,
            began,
            waited: Duration::ZERO,
            told: false,
            passes,
        })
    }

    /// It waited this long for its connection.
    pub const fn waited(mut self, time: Duration) -> Self {
        self.waited = time;
        self
    }

    /// It ended.
    pub fn ended(mut self, ended: Ended) {
        self.tell(ended);
    }

    /// The head of an answer to a gRPC request came, with this status; the rest of the outcome is in the trailers.
    pub fn awaits_trailers(mut self, status: StatusCode) -> Unsettled {
        self.told = true;
        let (cluster, endpoint) = (Arc::clone(self.cluster), Arc::clone(self.endpoint));
        Unsettled {
            cluster,
            endpoint,
            ended: Ended::Answered { status, grpc: None },
            took: self.began.elapsed(),
            waited: self.waited,
            passes: std::mem::take(&mut self.passes),
        }
    }

    fn tell(&mut self, ended: Ended) {
        self.told = true;
        let now = Instant::now();
        let outcome = Outcome { ended, took: now - self.began, waited: self.waited };
        record(self.cluster, self.endpoint, &outcome, now);
        settle(&mut self.passes, &outcome, now);
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if !self.told {
            self.tell(self.over.get().map_or(Ended::Abandoned, Ended::Failed));
        }
    }
}

/// An answer whose trailers may still change what it means. Tells its outcome when it is dropped.
#[derive(Debug)]
pub struct Unsettled {
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    ended: Ended,
    took: Duration,
    waited: Duration,
    passes: Passes,
}

impl Unsettled {
    const fn outcome(&self) -> Outcome {
        Outcome { ended: self.ended, took: self.took, waited: self.waited }
    }

    /// The trailers came.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        if let Ended::Answered { grpc, .. } = &mut self.ended {
            *grpc = grpc_status(trailers);
        }
    }

    /// A message of the answer came. Circuit breakers wait no longer: a stream may last for hours, and holds no place of theirs.
    pub fn goes_on(&mut self) {
        if self.passes.iter().all(Option::is_none) {
            return;
        }
        let outcome = self.outcome();
        settle(&mut self.passes, &outcome, Instant::now());
    }

    /// The answer broke off.
    pub const fn failed(&mut self, reason: Reason) {
        self.ended = Ended::Failed(reason);
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        let outcome = self.outcome();
        let now = Instant::now();
        record(&self.cluster, &self.endpoint, &outcome, now);
        settle(&mut self.passes, &outcome, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(ended: Ended) -> Verdict {
        Outcome::new(ended, Duration::ZERO).verdict()
    }

    #[test]
    fn answers_are_judged_by_their_status() {
        let answered = |status: u16, grpc| {
            verdict(Ended::Answered { status: StatusCode::from_u16(status).unwrap(), grpc })
        };
        for status in [200, 302, 404, 429, 499] {
            assert_eq!(answered(status, None), Verdict::Good, "{status}");
        }
        assert_eq!(answered(502, None), Verdict::ServerError(502));
        assert_eq!(answered(200, Some(14)), Verdict::ServerError(503));
        assert_eq!(answered(200, Some(13)), Verdict::ServerError(500));
        assert_eq!(answered(200, Some(5)), Verdict::Good);
        assert_eq!(verdict(Ended::Connected), Verdict::Good);
    }

    #[test]
    fn failures_and_answers_that_nobody_waited_for_do_not_look_fast() {
        let ewma = PeakEwma::default();
        let known = |ended, took_ms| {
            let latency = Latency::default();
            let took = Duration::from_millis(took_ms);
            note_latency(&ewma, &latency, &Outcome::new(ended, took), Tick(1));
            ewma.estimate(&latency, Tick(1)).map(|micros| micros / 1000.0)
        };
        let answered = |status| Ended::Answered { status, grpc: None };
        assert_eq!(known(answered(StatusCode::OK), 5), Some(5.0));
        assert_eq!(known(answered(StatusCode::BAD_GATEWAY), 5), Some(1000.0));
        assert_eq!(known(Ended::Failed(Reason::ConnectFailure), 0), Some(1000.0));
        assert_eq!(known(Ended::Failed(Reason::UpstreamOverflow), 5), None);
        assert_eq!(known(Ended::Abandoned, 5), None, "it might have been quick");
        let latency = Latency::default();
        ewma.observe(&latency, Duration::from_millis(10), Tick(1));
        for (took, want) in [(5, 10.0), (50, 50.0)] {
            let took = Duration::from_millis(took);
            let abandoned = Outcome::new(Ended::Abandoned, took);
            note_latency(&ewma, &latency, &abandoned, Tick(1));
            assert_eq!(ewma.estimate(&latency, Tick(1)), Some(want * 1000.0));
        }
    }

    #[test]
    fn a_connection_is_no_part_of_the_latency() {
        let (ewma, latency) = (PeakEwma::default(), Latency::default());
        let ended = Ended::Answered { status: StatusCode::OK, grpc: None };
        let [took, waited] = [50, 45].map(Duration::from_millis);
        note_latency(&ewma, &latency, &Outcome { ended, took, waited }, Tick(1));
        assert_eq!(ewma.estimate(&latency, Tick(1)), Some(5000.0));
    }

    #[test]
    fn only_what_the_endpoint_did_counts_against_it() {
        assert_eq!(verdict(Ended::Failed(Reason::ConnectFailure)), Verdict::LocalOrigin(503));
        assert_eq!(verdict(Ended::Failed(Reason::PerTryTimeout)), Verdict::LocalOrigin(504));
        for reason in
            [Reason::UpstreamOverflow, Reason::DownstreamGone, Reason::RbacDenied, Reason::RequestIdle]
        {
            assert_eq!(verdict(Ended::Failed(reason)), Verdict::Neither, "{reason}");
        }
        assert_eq!(verdict(Ended::Failed(Reason::ReusedConnectionClosed)), Verdict::Neither);
        assert_eq!(verdict(Ended::Abandoned), Verdict::Neither);
    }
}
