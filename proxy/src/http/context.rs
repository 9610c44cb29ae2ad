//! One request, from its first byte to the end of its answer: what it is, what was decided, and the record of it.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use tokio::time::Instant;

use super::body::BodyProgress;
use super::downstream::Downstream;
use super::filters::{self, Answering, Findings};
use super::head::{HeaderCase, RequestHead, ResponseHead};
use super::headers::{self, Origin};
use super::interim::InterimSink;
use super::local_reply;
use super::response::Response;
use crate::config::names::ClusterId;
use crate::config::spec::HttpSpec;
use crate::error::Reason;
use crate::resilience::circuit::Refusal;
use crate::tcp::Traffic;
use crate::telemetry::flags::ResponseFlags;
use crate::telemetry::record::{self, AccessRecord, Timings};
use crate::tls::TlsSession;
use crate::upstream::cluster::{Cluster, ClusterPermit};
use crate::upstream::endpoint::ActiveRequest;
use crate::upstream::outcome::{self, Ended, Outcome, Unsettled};
use crate::why::Place;
use crate::worker::Pinned;
use crate::worker::changes::Follower;
use crate::worker::timer::Timer;

/// See the module.
#[derive(Debug)]
pub struct RequestCtx {
    /// The connection.
    pub downstream: Rc<Downstream>,
    /// The configuration, one for the whole request.
    pub snapshot: Rc<Pinned>,
    /// The connection manager.
    pub http: Arc<HttpSpec>,
    /// The request's head, as it is forwarded.
    pub head: RequestHead,
    /// Reading of the request's body.
    pub progress: Rc<BodyProgress>,
    /// Takes 1xx answers.
    pub interim: InterimSink,
    /// `Upgrade` asked for.
    pub upgrade: Option<HeaderValue>,
    /// The path was not canonical and the client is to be told (UNESCAPE_AND_REDIRECT).
    pub redirect_to_canonical: bool,
    /// Where it comes from.
    pub origin: Origin,
    /// When its head was complete.
    pub start: Instant,
    /// The time limit that ends first.
    pub deadline: Deadline,
    /// Upstream attempts so far.
    pub attempts: u32,
    /// Whether it was tried again because the route's policy says so.
    pub retried: Retried,
    /// Why the proxy ended it, when it did.
    pub reason: Option<Reason>,
    /// Response flags besides the reason's.
    pub flags: ResponseFlags,
    /// `route.name`.
    pub route_name: Option<Arc<str>>,
    /// The cluster of the last attempt.
    pub cluster: Option<Arc<Cluster>>,
    /// Its number; None when the request named it.
    pub cluster_id: Option<ClusterId>,
    /// The endpoint of the last attempt, counted as busy until the request ends.
    pub active: Option<ActiveRequest>,
    /// The request counts against the cluster's limit until it ends.
    pub permits: [Option<ClusterPermit>; 2],
    /// A time limit that ends it is answered with 204 (`x-envoy-upstream-rq-timeout-alt-response`).
    pub timeout_alternative: bool,
    /// The answer says how often it was tried (`include_attempt_count_in_response`).
    pub shows_attempts: bool,
    /// Trailers of the answer, when it is gRPC: its status is there.
    pub trailers: Rc<std::cell::OnceCell<HeaderMap>>,
    /// The outcome of the last attempt, when its trailers may still change it.
    pub unsettled: Option<Box<Unsettled>>,
    /// The circuit breaker that refused the last attempt.
    pub circuit: Option<Box<Refusal>>,
    /// What policy filters found; None when there was nothing to keep.
    pub policy: Option<Box<Findings>>,
    /// What filters that saw the request will do with its answer, in their order.
    pub answering: Vec<Answering>,
    /// Changes since the request began: it is judged again.
    pub changes: Follower,
    /// Which policy refused it then.
    pub revoked: std::cell::OnceCell<String>,
    /// When the head of the answer came.
    pub answered: Option<Duration>,
    /// What went through the tunnel that it became.
    pub tunnel: Option<Rc<Traffic>>,
    /// How long a tunnel of it may stay quiet. None: for ever.
    pub tunnel_idle: Option<Duration>,
    /// Drawn once: which fractions of the traffic (`runtime_fraction`) the request belongs to, whenever it is judged.
    pub random: u64,
    split: Option<u64>,
    stages: Vec<Stage>,
    original_path: Option<PathAndQuery>,
    judged_host: Option<Option<Authority>>,
    judged_headers: Judged,
    status: Option<StatusCode>,
    response: Option<ResponseHead>,
    finished: bool,
}

/// What became of retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retried {
    /// There were none.
    No,
    /// There were some.
    Yes,
    /// There were some, or the budget denied the first, and the answer is one that would be tried again still.
    InVain,
}

/// The head as filters saw it before one of them changed it.
#[derive(Debug)]
pub struct Stage {
    /// The name of the filter that changed it.
    pub until: Arc<str>,
    /// What those before it saw, and it itself.
    pub head: RequestHead,
    /// It had the route chosen again.
    pub rerouted: bool,
}

/// The headers as policy judged them.
#[derive(Debug, Default)]
enum Judged {
    /// As they are.
    #[default]
    AsTheyAre,
    /// Without those that forwarding writes: the client sent none.
    Unwritten,
    /// These.
    Kept(Box<HeaderMap>),
}

impl RequestCtx {
    /// A request that came.
    #[must_use]
    pub fn new(
        downstream: &Rc<Downstream>,
        http: &Arc<HttpSpec>,
        head: RequestHead,
        progress: Rc<BodyProgress>,
        interim: InterimSink,
    ) -> Self {
        let origin = Origin { client: downstream.remote, internal: false, waits: None };
        let snapshot = downstream.worker.snapshot();
        // What the connection knew when it began to wait may refer to what has gone since.
        let http = downstream.http_of(&snapshot).unwrap_or_else(|| Arc::clone(http));
        Self {
            downstream: Rc::clone(downstream),
            snapshot,
            http,
            head,
            progress,
            interim,
            upgrade: None,
            redirect_to_canonical: false,
            origin,
            start: Instant::now(),
            deadline: Deadline::default(),
            attempts: 0,
            retried: Retried::No,
            reason: None,
            flags: ResponseFlags::NONE,
            route_name: None,
            cluster: None,
            cluster_id: None,
            active: None,
            permits: [None, None],
            timeout_alternative: false,
            shows_attempts: false,
            trailers: Rc::default(),
            unsettled: None,
            circuit: None,
            policy: None,
            answering: Vec::new(),
            changes: downstream.worker.changes.follow(),
            revoked: std::cell::OnceCell::new(),
            answered: None,
            tunnel: None,
            tunnel_idle: None,
            random: 0,
            split: None,
            stages: Vec::new(),
            original_path: None,
            judged_host: None,
            judged_headers: Judged::default(),
            status: None,
            response: None,
            finished: false,
        }
    }

    /// A request that could not be read.
    #[must_use]
    pub fn refused(downstream: &Rc<Downstream>, http: &Arc<HttpSpec>, reason: Reason) -> Self {
        let head = RequestHead {
            method: Method::GET,
            scheme: Scheme::HTTP,
            authority: None,
            path: PathAndQuery::from_static("/"),
            version: Version::HTTP_11,
            headers: HeaderMap::new(),
            case: HeaderCase::default(),
        };
        let mut ctx = Self::new(downstream, http, head, Rc::default(), InterimSink::None);
        ctx.reason = Some(reason);
        ctx
    }

    /// Drawn once: which of the route's weighted clusters takes the request.
    pub fn split(&mut self) -> u64 {
        let worker = &self.downstream.worker;
        *self.split.get_or_insert_with(|| worker.with_rng(|rng| rng.u64(..)))
    }

    /// Whether the client speaks gRPC.
    #[must_use]
    pub fn is_grpc(&self) -> bool {
        self.head.is_grpc()
    }

    /// An answer that the proxy makes itself.
    pub fn local_reply(&mut self, reason: Reason) -> Response {
        self.reason = Some(reason);
        let mut response = local_reply::reply(reason, self.is_grpc());
        filters::answer(self, &mut response);
        super::pipeline::finish_head(self, &mut response.head);
        self.note_response(&response.head);
        response
    }

    /// Remembers the head of the answer for the record.
    pub fn note_response(&mut self, head: &ResponseHead) {
        self.status = Some(head.status);
        if !self.http.access_log.is_empty() || self.is_grpc() {
            self.response = Some(head.clone());
        }
    }

    /// Remembers the path before it is rewritten.
    pub fn note_original_path(&mut self) {
        self.original_path.get_or_insert_with(|| self.head.path.clone());
    }

    /// The path that the client asked for.
    #[must_use]
    pub fn original_path(&self) -> &PathAndQuery {
        self.original_path.as_ref().unwrap_or(&self.head.path)
    }

    /// Remembers the host before the route changes it.
    pub fn note_judged_host(&mut self) {
        self.judged_host.get_or_insert_with(|| self.head.authority.clone());
    }

    /// Remembers the headers before they are changed.
    pub fn note_judged_headers(&mut self) {
        if !matches!(self.judged_headers, Judged::Kept(_)) {
            self.judged_headers = Judged::Kept(Box::new(self.head.headers.clone()));
        }
    }

    /// Forwarding changes headers from now on, and so does the route when `by_route`. Where only those are written that the client did not
    /// send, nothing has to be remembered.
    pub fn note_forwarded(&mut self, by_route: bool) {
        if by_route || headers::has_written(&self.head.headers) {
            self.note_judged_headers();
        } else if matches!(self.judged_headers, Judged::AsTheyAre) {
            self.judged_headers = Judged::Unwritten;
        }
    }

    /// Remembers the head before the filter `name` changes it for the first time.
    pub fn note_stage(&mut self, name: &Arc<str>) {
        if self.stages.last().is_none_or(|stage| stage.until != *name) {
            let head = self.head.clone();
            self.stages.push(Stage { until: Arc::clone(name), head, rerouted: false });
        }
    }

    /// The filter that changed the head had the route chosen again.
    pub fn note_rerouted(&mut self) {
        if let Some(stage) = self.stages.last_mut() {
            stage.rerouted = true;
        }
    }

    /// The heads that filters saw, in their order; [`Self::judged_head`] is the one after the last of them.
    #[must_use]
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// The head as policy judged it, before the route changed it.
    #[must_use]
    pub fn judged_head(&self) -> RequestHead {
        let headers = match &self.judged_headers {
            Judged::AsTheyAre => self.head.headers.clone(),
            Judged::Unwritten => headers::without_written(&self.head.headers),
            Judged::Kept(headers) => HeaderMap::clone(headers),
        };
        RequestHead {
            authority: self.judged_host.as_ref().unwrap_or(&self.head.authority).clone(),
            path: self.original_path().clone(),
            headers,
            ..self.head.clone()
        }
    }

    /// Adds what an upgrade is to rules. HTTP/1 and HTTP/2 (RFC 8441) ask for one in different words; rules see those of HTTP/1, as in Envoy.
    pub fn show_upgrade(&self, headers: &mut HeaderMap) {
        if let Some(protocol) = self.upgrade.as_ref().filter(|_| self.head.method != Method::CONNECT) {
            headers.insert(header::UPGRADE, protocol.clone());
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
    }

    /// Whether what follows its head is no request, when it is granted.
    #[must_use]
    pub fn may_tunnel(&self) -> bool {
        self.upgrade.is_some() || self.head.method == Method::CONNECT
    }

    /// Ends the request: metrics and access log. `sent` is for what is no tunnel; `failed` is why its answer broke off.
    pub fn finish(mut self, sent: u64, failed: Option<Reason>) {
        self.close(sent, failed);
    }

    fn close(&mut self, sent: u64, failed: Option<Reason>) {
        self.finished = true;
        self.reason = self.reason.or_else(|| Some(self.downstream.evicted.get()?.reason)).or(failed);
        let total = self.start.elapsed();
        if let (Some(reason @ Reason::UpstreamBodyReset), Some(active), Some(cluster)) =
            (failed, &self.active, &self.cluster)
        {
            // Its head was taken for the whole answer. A gRPC answer was told of by its guard, and of a tunnel that breaks off nobody knows whether
            // it was over.
            if !self.is_grpc() && self.tunnel.is_none() {
                // How long it went on is no latency.
                let broken = Outcome::new(Ended::Failed(reason), Duration::ZERO);
                outcome::record(cluster, active.endpoint(), &broken, Instant::now());
            }
        }
        let worker = Rc::clone(&self.downstream.worker);
        let record = self.record(sent, total);
        worker.metrics.request(self, &record);
        // A direct answer is what the route says; as a refusal it has its rule in the configuration.
        if let Some(reason) = self.reason.filter(|reason| *reason != Reason::DirectResponse) {
            self.tell(reason, &record);
        }
        if !self.http.access_log.is_empty() {
            let record = AccessRecord { start: SystemTime::now().checked_sub(total), ..record };
            worker.access_log(&self.http.access_log, &record);
        }
    }

    /// Keeps for the operator why the request was refused or lost.
    #[cold]
    fn tell(&self, reason: Reason, record: &AccessRecord<'_>) {
        // A request that could not be read has an empty head.
        let read = self.head.authority.is_some() || !self.head.headers.is_empty();
        let refusal = self.policy.as_ref().and_then(|policy| policy.refusal.as_deref());
        let record = AccessRecord {
            request: record.request.filter(|_| read),
            route_name: record.route_name.or_else(|| refusal?.route.as_deref()),
            ..*record
        };
        let evicted = || self.downstream.evicted.get()?.rule.as_deref();
        let host = self.judged_host.as_ref().unwrap_or(&self.head.authority).as_ref();
        let place = Place {
            listener: &self.downstream.listener.name,
            virtual_host: refusal.and_then(|refusal| refusal.virtual_host.as_deref()),
            rule: refusal.and_then(|refusal| refusal.rule.as_deref()).or_else(evicted),
            asked: Some((host.map_or("", Authority::as_str), self.original_path().as_str())),
        };
        self.downstream.worker.stories.tell(reason, &record, &place);
    }

    fn record(&self, sent: u64, total: Duration) -> AccessRecord<'_> {
        let active = self.active.as_ref().map(ActiveRequest::endpoint);
        let tls = self.downstream.tls.as_ref();
        // Also of a tunnel whose task was dropped, when nobody says what was sent.
        let (bytes_received, bytes_sent) = match &self.tunnel {
            Some(traffic) => (traffic.received.get(), traffic.sent.get()),
            None => (self.progress.bytes.get(), sent),
        };
        AccessRecord {
            request: Some(&self.head),
            response: self.response.as_ref(),
            trailers: self.trailers.get(),
            status: self.status,
            reason: self.reason,
            flags: self.flags,
            response_code_details: self.details(),
            shadow: self.policy.as_ref().and_then(|p| p.shadow.as_deref()),
            bytes_received,
            bytes_sent,
            timings: Timings {
                total: Some(total),
                request_received: None,
                request_sent: None,
                response_started: self.answered,
            },
            route_name: self.route_name.as_deref(),
            attempts: self.attempts,
            downstream: record::Downstream {
                connection_id: Some(self.downstream.id),
                remote: Some(self.origin.client),
                direct_remote: Some(self.downstream.remote),
                local: Some(self.downstream.original_dst.unwrap_or(self.downstream.local)),
                server_name: tls.and_then(|t| t.sni.as_deref()),
                peer_uri_san: self.downstream.peer_uri_sans.as_deref(),
                tls_version: tls.map(TlsSession::version_name),
                filter_chain: Some(&self.downstream.chain.name),
                ..record::Downstream::default()
            },
            upstream: record::Upstream {
                remote: active.map(|e| e.spec.address),
                cluster: self.cluster.as_ref().map(|c| &*c.spec().name),
                ..record::Upstream::default()
            },
            ..AccessRecord::default()
        }
    }

    /// Which policy refused the request, when it came or later, or its connection.
    fn details(&self) -> Option<&str> {
        let refused = self.policy.as_ref().and_then(|policy| policy.refusal.as_ref()?.details.as_deref());
        let later = || self.revoked.get().or_else(|| Some(&self.downstream.evicted.get()?.details));
        refused.or_else(|| later().map(String::as_str))
    }

    /// The record as it is now, for header values with operators.
    #[must_use]
    pub fn partial_record(&self) -> AccessRecord<'_> {
        AccessRecord { start: Some(SystemTime::now()), ..self.record(0, self.start.elapsed()) }
    }
}

impl Drop for RequestCtx {
    fn drop(&mut self) {
        if !self.finished {
            // The connection's task was dropped in the middle of the request.
            self.close(0, Some(Reason::DownstreamGone));
        }
    }
}

/// The time limit of a request that ends first, and what it is called.
#[derive(Debug, Default)]
pub struct Deadline {
    limit: Option<(Instant, Reason)>,
    timer: Option<Timer>,
}

impl Deadline {
    /// Adds a limit; the earlier one counts.
    pub fn limit(&mut self, at: Instant, reason: Reason) {
        if self.limit.is_none_or(|(now, _)| at < now) {
            self.limit = Some((at, reason));
            self.timer = None;
        }
    }

    /// That of a stream which ends at `at`.
    #[must_use]
    pub fn of_stream(at: Option<Instant>) -> Self {
        Self { limit: at.map(|at| (at, Reason::MaxDuration)), timer: None }
    }

    /// Ready when the limit is over.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        let Some((at, reason)) = self.limit else { return Poll::Pending };
        self.timer.get_or_insert_with(|| Timer::at(at)).poll(cx).map(|()| reason)
    }

    /// When the limit is over.
    #[must_use]
    pub fn at(&self) -> Option<Instant> {
        self.limit.map(|(at, _)| at)
    }

    /// Time left, when there is a limit.
    #[must_use]
    pub fn left(&self, now: Instant) -> Option<Duration> {
        self.limit.map(|(at, _)| at.saturating_duration_since(now))
    }
}
