//! Clusters: what the file said ([`ClusterSpec`]), what outlives its edits ([`ClusterState`]), and the two joined with the
//! endpoints of the moment ([`Cluster`]), which is what a snapshot holds.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::census::{Census, Out};
use super::connect::ConnectSpec;
use super::connects::Connects;
use super::dns::DnsSpec;
use super::endpoint::{Assignment, Endpoint, EndpointSet, HealthStatus, Metadata};
use super::health::HealthCheckSpec;
use super::original_dst::OriginalDstSpec;
use super::outlier::OutlierCounts;
use crate::balance::context::LbContext;
use crate::balance::zone::LocalZones;
use crate::balance::{LbPolicy, LbSpec, WorkerCursor};
use crate::config::spec::{Http1Spec, Http2Spec};
use crate::resilience::breaker::{Breaker, Holder, Permit, Resource, RoutingPriority, Thresholds};
use crate::resilience::circuit::Circuit;
use crate::resilience::outlier::OutlierSpec;
use crate::tls::client::ClientTls;

/// A compiled `envoy.config.cluster.v3.Cluster`.
#[derive(Debug)]
pub struct ClusterSpec {
    /// `name`.
    pub name: Arc<str>,
    /// `alt_stat_name`, or the name.
    pub stat_name: Arc<str>,
    /// Where the endpoints come from.
    pub discovery: Discovery,
    /// How connections are opened.
    pub connect: ConnectSpec,
    /// Who gets a request.
    pub lb: LbSpec,
    /// HTTP towards the endpoints.
    pub http: UpstreamHttp,
    /// `transport_socket`; None is plaintext.
    pub tls: Option<Arc<ClientTls>>,
    /// Hash of what `transport_socket` says; 0 for none.
    pub transport: u64,
    /// `circuit_breakers` of DEFAULT and HIGH.
    pub thresholds: [Thresholds; 2],
    /// `outlier_detection`.
    pub outlier: Option<OutlierSpec>,
    /// `health_checks`.
    pub health_check: Option<Arc<HealthCheckSpec>>,
    /// `remora.circuit_breaker` of its metadata.
    pub circuit: Option<Arc<Circuit>>,
    /// `per_connection_buffer_limit_bytes`, default 1 MiB.
    pub buffer_limit: usize,
    /// `common_lb_config.close_connections_on_host_set_change`.
    pub close_on_host_change: bool,
    /// `metadata`.
    pub metadata: Option<Arc<Metadata>>,
}

impl ClusterSpec {
    /// The limits of `priority`.
    #[must_use]
    pub const fn thresholds(&self, priority: RoutingPriority) -> &Thresholds {
        &self.thresholds[priority as usize]
    }
}

/// `type` or `cluster_type`.
#[derive(Debug, Clone, PartialEq)]
pub enum Discovery {
    /// STATIC: the endpoints of the file.
    Static(Arc<Assignment>),
    /// STRICT_DNS and LOGICAL_DNS.
    Dns(Arc<DnsSpec>),
    /// EDS.
    Eds(EdsSpec),
    /// ORIGINAL_DST.
    OriginalDst(OriginalDstSpec),
}

/// `EdsClusterConfig`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdsSpec {
    /// `service_name`, or the name of the cluster: the name of the ClusterLoadAssignment.
    pub service_name: Arc<str>,
    /// `eds_config`.
    pub source: EdsSource,
    /// `initial_fetch_timeout`, default 15 s, zero is none: how long a new cluster waits for its first endpoints.
    pub initial_fetch_timeout: Duration,
}

/// Where load assignments come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EdsSource {
    /// `ads` or `self`.
    Ads,
    /// `path_config_source`.
    File {
        /// `path`.
        path: Arc<str>,
        /// `watched_directory.path`: reload when this directory changes.
        watched_directory: Option<Arc<str>>,
    },
}

/// Which HTTP version is spoken to the endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2, with prior knowledge when there is no TLS.
    Http2,
    /// `use_downstream_protocol_config`: what the client speaks.
    Downstream,
    /// `auto_config`: what ALPN decides.
    Auto,
}

/// `HttpProtocolOptions` and the legacy fields that mean the same.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamHttp {
    /// The version.
    pub protocol: UpstreamProtocol,
    /// HTTP/1 options.
    pub http1: Http1Spec,
    /// HTTP/2 options.
    pub http2: Http2Spec,
    /// `idle_timeout`, default 1 h; None is off. An HTTP/1 pool uses [`super::endpoint::EndpointState::idle_limit`].
    pub idle_timeout: Option<Duration>,
    /// `max_requests_per_connection`.
    pub max_requests: Option<u32>,
    /// `max_connection_duration`.
    pub max_connection_age: Option<Duration>,
    /// `max_connection_duration_jitter`: up to this share, in percent, is added to `max_connection_age`.
    pub max_connection_age_jitter: f64,
    /// `max_stream_duration`.
    pub max_stream_duration: Option<Duration>,
    /// `max_headers_count` of a response, default 100; at most 256 on HTTP/1.
    pub max_header_count: usize,
    /// `max_response_headers_kb`, in bytes; default 60 KiB, for HTTP/1 80 KiB.
    pub max_header_bytes: Option<usize>,
    /// `upstream_http_protocol_options`.
    pub sni: SniSpec,
}

impl Default for UpstreamHttp {
    fn default() -> Self {
        Self {
            protocol: UpstreamProtocol::Http1,
            http1: Http1Spec::default(),
            http2: Http2Spec::default(),
            idle_timeout: Some(Duration::from_secs(3600)),
            max_requests: None,
            max_connection_age: None,
            max_connection_age_jitter: 0.0,
            max_stream_duration: None,
            max_header_count: 100,
            max_header_bytes: None,
            sni: SniSpec::default(),
        }
    }
}

/// `UpstreamHttpProtocolOptions`: TLS names that follow the request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SniSpec {
    /// `auto_sni`: SNI is the request's host.
    pub auto: bool,
    /// `auto_san_validation`: so is the name that the certificate must have.
    pub auto_san: bool,
    /// `override_auto_sni_header`: take the host from this header when the request has it.
    pub header: Option<http::HeaderName>,
}

/// What outlives edits of a cluster.
#[derive(Debug, Default)]
pub struct ClusterState {
    breakers: [Breaker; 2],
    census: Census,
    connects: Connects,
    outlier: OnceLock<Box<OutlierCounts>>,
    /// Health checks that passed, and that did not.
    pub(super) check_counts: [AtomicU64; 2],
    /// See [`Cluster::awaits_checks`].
    is_checked: AtomicBool,
    panics: AtomicU64,
    nobody: AtomicU64,
}

impl ClusterState {
    /// The counters of `priority`.
    #[must_use]
    pub const fn breaker(&self, priority: RoutingPriority) -> &Breaker {
        &self.breakers[priority as usize]
    }

    /// How connections began.
    #[must_use]
    pub const fn connects(&self) -> &Connects {
        &self.connects
    }

    /// How many endpoints may be used.
    #[must_use]
    pub const fn census(&self) -> &Census {
        &self.census
    }

    /// Health checks that passed, and that did not.
    #[must_use]
    pub fn checks(&self) -> [u64; 2] {
        self.check_counts.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// What outlier detection counts.
    #[must_use]
    pub fn outlier(&self) -> &OutlierCounts {
        self.outlier.get_or_init(Box::default)
    }

    /// The same, if anything was counted.
    #[must_use]
    pub fn known_outlier(&self) -> Option<&OutlierCounts> {
        self.outlier.get().map(|counts| &**counts)
    }

    /// The endpoints are `new` now, in the place of `old`.
    fn recount(&self, old: &EndpointSet, new: &EndpointSet) {
        for endpoint in old.endpoints().iter().filter(|endpoint| endpoint.state.is_gone()) {
            self.census.forget(endpoint.state.standing());
        }
        for endpoint in new.endpoints() {
            let out = matches!(endpoint.spec.health, HealthStatus::Draining | HealthStatus::Unhealthy);
            self.census.set(endpoint.state.standing(), Out::Discovery, out);
            self.census.join(endpoint.state.standing());
        }
    }

    /// Picks made in panic mode (Envoy `lb_healthy_panic`).
    #[must_use]
    pub fn panic_picks(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// Picks that found nobody (Envoy `upstream_cx_none_healthy`).
    #[must_use]
    pub fn failed_picks(&self) -> u64 {
        self.nobody.load(Ordering::Relaxed)
    }
}

/// Which `transport_socket` connections are made with, counted in the process: one that was edited has a higher number. Secrets that change
/// by themselves are no edit: connections that were made with the old ones are as good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TransportVersion(u64);

impl TransportVersion {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A cluster in a snapshot. Cloning is three reference counts.
#[derive(Debug, Clone)]
pub struct Cluster {
    spec: Arc<ClusterSpec>,
    transport: TransportVersion,
    endpoints: Arc<EndpointSet>,
    state: Arc<ClusterState>,
    warm: bool,
}

impl Cluster {
    /// A new cluster. STATIC has its endpoints at once, ORIGINAL_DST needs none; the others are not warm until discovery answers.
    #[must_use]
    pub fn new(spec: Arc<ClusterSpec>) -> Self {
        let empty = EndpointSet::empty(&spec.lb);
        let (endpoints, warm) = match &spec.discovery {
            Discovery::Static(assignment) => (EndpointSet::update(&empty, assignment, &spec.lb), true),
            Discovery::OriginalDst(_) => (empty, true),
            Discovery::Dns(_) | Discovery::Eds(_) => (empty, false),
        };
        let state = ClusterState::default();
        state.recount(&endpoints, &endpoints);
        let transport = TransportVersion::next();
        Self { spec, transport, endpoints: Arc::new(endpoints), state: Arc::new(state), warm }
    }

    /// The same cluster after its resource was edited. Endpoints, counters and permits go on, and pools unless the transport socket is another;
    /// the endpoints that discovery found stay until it finds others.
    #[must_use]
    pub fn with_spec(&self, spec: Arc<ClusterSpec>) -> Self {
        let warm = self.warm && !matches!(self.spec.discovery, Discovery::OriginalDst(_));
        let (endpoints, warm) = match &spec.discovery {
            Discovery::Static(assignment) => {
                (Arc::new(EndpointSet::update(&self.endpoints, assignment, &spec.lb)), true)
            }
            Discovery::OriginalDst(_) => {
                self.endpoints.retire();
                (Arc::new(EndpointSet::empty(&spec.lb)), true)
            }
            // Also when the discovery is another now: until it answers, the old endpoints serve.
            _ if self.spec.lb == spec.lb => (Arc::clone(&self.endpoints), warm),
            _ => (Arc::new(self.endpoints.rebalance(&spec.lb)), warm),
        };
        self.state.recount(&self.endpoints, &endpoints);
        let same = self.spec.transport == spec.transport;
        let transport = if same { self.transport } else { TransportVersion::next() };
        Self { spec, transport, endpoints, state: Arc::clone(&self.state), warm }
    }

    /// The same cluster with the endpoints that discovery found.
    #[must_use]
    pub fn with_assignment(&self, assignment: &Assignment) -> Self {
        let endpoints = EndpointSet::update(&self.endpoints, assignment, &self.spec.lb);
        self.state.recount(&self.endpoints, &endpoints);
        Self { endpoints: Arc::new(endpoints), warm: true, ..self.clone() }
    }

    /// The same cluster after the health of an endpoint changed (ejection, health check): loads of priorities and panic mode
    /// are worked out again.
    #[must_use]
    pub fn rebalanced(&self) -> Self {
        Self { endpoints: Arc::new(self.endpoints.rebalance(&self.spec.lb)), ..self.clone() }
    }

    /// The same cluster with what is known of zones now.
    #[must_use]
    pub fn in_zones(&self, local: Option<Arc<LocalZones>>) -> Self {
        Self { endpoints: Arc::new(self.endpoints.in_zones(&self.spec.lb, local)), ..self.clone() }
    }

    /// The spec.
    #[must_use]
    pub fn spec(&self) -> &Arc<ClusterSpec> {
        &self.spec
    }

    /// What its connections are made with.
    #[must_use]
    pub const fn transport(&self) -> TransportVersion {
        self.transport
    }

    /// The endpoints.
    #[must_use]
    pub fn endpoints(&self) -> &Arc<EndpointSet> {
        &self.endpoints
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> &Arc<ClusterState> {
        &self.state
    }

    /// Whether somebody wants to know how attempts end ([`super::outcome::record`]).
    #[must_use]
    pub fn is_watched(&self) -> bool {
        matches!(self.spec.lb.policy, LbPolicy::PeakEwma(_)) || self.spec.outlier.is_some()
    }

    /// Whether discovery has answered once, with endpoints or without, the secrets of its TLS context have come, and so have first health
    /// checks ([`Self::awaits_checks`]).
    #[must_use]
    pub fn is_warm(&self) -> bool {
        self.is_discovered()
            && self.spec.tls.as_ref().is_none_or(|tls| tls.is_ready())
            && !self.awaits_checks()
    }

    /// Whether discovery has answered once.
    #[must_use]
    pub const fn is_discovered(&self) -> bool {
        self.warm
    }

    /// Whether an endpoint of the first ones has neither served a request nor been checked, so that it gets none. Those that come later do
    /// not make the cluster cold again. Envoy, too, does not initialise a cluster before.
    #[must_use]
    pub fn awaits_checks(&self) -> bool {
        let awaits = |endpoint: &Arc<Endpoint>| {
            let state = &endpoint.state;
            !(endpoint.spec.is_unchecked() || state.standing().was_checked() || state.requests() > 0)
        };
        self.spec.health_check.is_some()
            && !self.state.is_checked.load(Ordering::Relaxed)
            && self.endpoints.endpoints().iter().any(awaits)
    }

    /// A health check of an endpoint ended. Answers whether the cluster awaits no more of them.
    pub(crate) fn was_checked(&self, endpoint: &Endpoint) -> bool {
        endpoint.state.standing().checked(true);
        !self.awaits_checks() && !self.state.is_checked.swap(true, Ordering::Relaxed)
    }

    /// An endpoint that was checked is no longer.
    pub(crate) fn checks_ended(&self, endpoint: &Endpoint) {
        endpoint.state.standing().checked(false);
        self.state.is_checked.store(false, Ordering::Relaxed);
    }

    /// To be called when it comes into force: once warm, it awaits the checks of nobody who comes later.
    pub(crate) fn stays_warm(&self) {
        if self.spec.health_check.is_some() && self.is_warm() {
            self.state.is_checked.store(true, Ordering::Relaxed);
        }
    }

    /// Picks the endpoint of a request; see [`EndpointSet::pick`]. None is [`crate::error::Reason::NoHealthyUpstream`].
    #[must_use]
    pub fn pick(
        &self,
        cursor: &mut WorkerCursor,
        rng: &mut fastrand::Rng,
        context: &LbContext<'_>,
    ) -> Option<&Arc<Endpoint>> {
        let picked = if self.spec.lb.is_bounded() {
            self.endpoints.pick(cursor, rng, &LbContext { active: self.active(), ..*context })
        } else {
            self.endpoints.pick(cursor, rng, context)
        };
        if picked.is_none() {
            self.state.nobody.fetch_add(1, Ordering::Relaxed);
        } else if self.endpoints.in_panic() {
            self.state.panics.fetch_add(1, Ordering::Relaxed);
        }
        picked
    }

    /// Requests in flight. A cluster that has none serves opaque connections.
    fn active(&self) -> u32 {
        let all = |resource| self.state.breakers.iter().map(|b| b.active(resource)).sum();
        match all(Resource::Requests) {
            0 => all(Resource::Connections),
            requests => requests,
        }
    }

    /// Takes one of `resource` under the limit of `priority`. None is [`crate::error::Reason::UpstreamOverflow`]. For retries ask
    /// [`Self::try_retry`].
    #[must_use]
    pub fn try_acquire(&self, resource: Resource, priority: RoutingPriority) -> Option<ClusterPermit> {
        Breaker::try_acquire(self.holder(priority), resource, self.spec.thresholds(priority).limit(resource))
    }

    /// Whether the limit of `priority` for `resource` is reached.
    #[must_use]
    pub fn is_open(&self, resource: Resource, priority: RoutingPriority) -> bool {
        let limit = self.spec.thresholds(priority).limit(resource);
        self.state.breaker(priority).is_open(resource, limit)
    }

    /// Takes a permit for one retry, by the retry budget or `max_retries`. `is_first`: the request has not asked this cluster before.
    #[must_use]
    pub fn try_retry(
        &self,
        priority: RoutingPriority,
        is_first: bool,
        now: tokio::time::Instant,
    ) -> Option<ClusterPermit> {
        crate::resilience::budget::try_retry(
            self.holder(priority),
            self.spec.thresholds(priority),
            is_first,
            now,
        )
    }

    /// Tells the retry budget of a new request. Call it once a request, not for its retries.
    pub fn record_request(&self, priority: RoutingPriority, now: tokio::time::Instant) {
        let breaker = self.state.breaker(priority);
        crate::resilience::budget::record_request(breaker, self.spec.thresholds(priority), now);
    }

    fn holder(&self, priority: RoutingPriority) -> BreakerRef {
        BreakerRef { state: Arc::clone(&self.state), priority }
    }
}

/// A permit that keeps the cluster's state alive, not its snapshot.
pub type ClusterPermit = Permit<BreakerRef>;

/// The breaker of one priority of a cluster.
#[derive(Debug)]
pub struct BreakerRef {
    state: Arc<ClusterState>,
    priority: RoutingPriority,
}

impl Holder for BreakerRef {
    fn breaker(&self) -> &Breaker {
        self.state.breaker(self.priority)
    }
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
pub(super) mod tests;
