//! Endpoints and endpoint sets.
//!
//! [`EndpointSpec`] is what discovery said, [`EndpointState`] is what the proxy learned, [`Endpoint`] joins the two under
//! a key that worker-local pools use. A new list of endpoints keeps the key and state of every endpoint that is in
//! both lists, so an update closes no connection and resets no counter (ARCHITECTURE, rule 3).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use foldhash::{HashMap, HashMapExt};
use tokio::time::Instant;

use super::census::Standing;
use crate::balance::context::{LbContext, Tick};
use crate::balance::ewma::Latency;
use crate::balance::subset::{LbMetadata, Subsets};
use crate::balance::zone::LocalZones;
use crate::balance::{Balancer, LbSpec, Rules, WorkerCursor};
use crate::resilience::outlier::Monitor;

/// Number of an endpoint, unique in the process and never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointKey(u64);

impl EndpointKey {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The number, for logs.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// `envoy.config.core.v3.Locality`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    /// Region, such as `eu-west-1`.
    pub region: Arc<str>,
    /// Zone in the region.
    pub zone: Arc<str>,
    /// Part of the zone.
    pub sub_zone: Arc<str>,
}

/// One `LocalityLbEndpoints`, without its endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct LocalityGroup {
    /// `locality`.
    pub locality: Locality,
    /// `priority`, 0 is the highest.
    pub priority: u32,
    /// `load_balancing_weight`; without one the locality gets no load under locality-weighted balancing.
    pub weight: Option<u32>,
}

/// `filter_metadata` of a cluster: filter name -> value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata(pub BTreeMap<String, serde_json::Value>);

impl Metadata {
    /// The value under `namespace` at `path`.
    #[must_use]
    pub fn get(&self, namespace: &str, path: &[&str]) -> Option<&serde_json::Value> {
        path.iter().try_fold(self.0.get(namespace)?, |value, key| value.get(key))
    }
}

/// `envoy.config.core.v3.HealthStatus`, as discovery said it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum HealthStatus {
    /// UNKNOWN or HEALTHY.
    #[default]
    Healthy,
    /// DEGRADED: used when healthy endpoints do not suffice.
    Degraded,
    /// DRAINING: finishes what it has; gets new requests only in panic mode.
    Draining,
    /// UNHEALTHY or TIMEOUT.
    Unhealthy,
}

/// `Endpoint.HealthCheckConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointCheck {
    /// `address`: another address to be asked.
    pub address: Option<IpAddr>,
    /// `port_value`, or the port of `address`.
    pub port: Option<u16>,
    /// `hostname`: what the check asks for.
    pub hostname: Option<Arc<str>>,
    /// `disable_active_health_check`.
    pub disabled: bool,
}

/// One `LbEndpoint` with an address.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointSpec {
    /// Where to connect.
    pub address: SocketAddr,
    /// `endpoint.hostname`, or the name that was resolved: host rewriting and SNI use it.
    pub hostname: Option<Arc<str>>,
    /// `load_balancing_weight`, at least 1.
    pub weight: u32,
    /// Locality and priority.
    pub group: Arc<LocalityGroup>,
    /// What metrics say of it: `workload` under `istio` in its `metadata`, or else `endpoint.observability_name`. The text is
    /// `workload;namespace;canonical service;canonical revision;cluster`; what is empty or left out is as usual for the cluster.
    pub labels: Option<Arc<str>>,
    /// `metadata` under `envoy.lb`: subsets and `hash_key`.
    pub metadata: Option<Arc<LbMetadata>>,
    /// `health_status`.
    pub health: HealthStatus,
    /// `health_check_config`.
    pub check: Option<Arc<EndpointCheck>>,
    /// LOGICAL_DNS: one endpoint that stays the same whatever address its name has at the moment.
    pub logical: bool,
}

impl EndpointSpec {
    /// A healthy endpoint of weight 1 at `address`, priority 0, without locality.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            hostname: None,
            weight: 1,
            group: Arc::default(),
            labels: None,
            metadata: None,
            health: HealthStatus::Healthy,
            check: None,
            logical: false,
        }
    }

    /// Health checks leave it out.
    #[must_use]
    pub fn is_unchecked(&self) -> bool {
        self.check.as_ref().is_some_and(|check| check.disabled)
    }

    /// The same endpoint at another address.
    #[must_use]
    pub fn at(&self, ip: IpAddr) -> Self {
        Self { address: SocketAddr::new(ip, self.address.port()), ..self.clone() }
    }

    /// What makes it the same endpoint in two lists. The host name is part of it because an address that now belongs
    /// to another host must not get the old one's connections (features.md, pain 21).
    fn identity(&self) -> (Option<SocketAddr>, u16, Option<&str>) {
        let address = if self.logical { None } else { Some(self.address) };
        (address, self.address.port(), self.hostname.as_deref())
    }
}

/// `ClusterLoadAssignment`, compiled.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Assignment {
    /// All endpoints of all localities.
    pub endpoints: Vec<EndpointSpec>,
    /// `policy`.
    pub policy: AssignmentPolicy,
}

/// `ClusterLoadAssignment.Policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AssignmentPolicy {
    /// `overprovisioning_factor` in percent, default 140.
    pub overprovisioning: u32,
    /// `weighted_priority_health`: count weights, not endpoints, to tell the health of a priority.
    pub weighted_health: bool,
}

impl Default for AssignmentPolicy {
    fn default() -> Self {
        Self { overprovisioning: 140, weighted_health: false }
    }
}

impl From<Vec<EndpointSpec>> for Assignment {
    fn from(endpoints: Vec<EndpointSpec>) -> Self {
        Self { endpoints, policy: AssignmentPolicy::default() }
    }
}

/// Shortest idle time of a pooled HTTP/1 connection to an endpoint that nothing is known about. Three seconds is below
/// every server default that we know.
const IDLE_START_MS: u32 = 3_000;
/// Idle times are not learned beyond this: many load balancers and servers close at 60 s.
const IDLE_MAX_MS: u32 = 55_000;
const IDLE_MIN_MS: u32 = 100;
const _: () = assert!(IDLE_MAX_MS <= u16::MAX as u32);

/// None of these times is longer than [`IDLE_MAX_MS`].
fn narrow(ms: u32) -> u16 {
    u16::try_from(ms).unwrap_or(u16::MAX)
}

/// What the proxy knows about an endpoint from its own traffic. Atomics, because it must mean the same on every worker. Every request
/// writes it, so that it should share its cache line with nothing else: with the two counts of its `Arc` it is as long as one, and the
/// allocator puts blocks of that length on lines of their own.
#[derive(Debug, Default)]
pub struct EndpointState {
    active: AtomicU32,
    standing: Standing,
    idle_ms: AtomicU16,
    idle_cap_ms: AtomicU16,
    requests: AtomicU64,
    latency: Latency,
    /// The tick at which it became known or healthy again.
    since: AtomicU32,
    monitor: OnceLock<Box<Monitor>>,
}

const _: () = assert!(size_of::<EndpointState>() == 64 - 2 * size_of::<usize>());

impl EndpointState {
    /// Requests in flight from all workers.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// What its answers took, when the cluster balances by it.
    #[must_use]
    pub const fn latency(&self) -> &Latency {
        &self.latency
    }

    /// When it became known or healthy again.
    #[must_use]
    pub fn since(&self) -> Tick {
        Tick(self.since.load(Ordering::Relaxed))
    }

    /// It is known or healthy from `now` on.
    pub(crate) fn starts(&self, now: Tick) {
        self.since.store(now.0, Ordering::Relaxed);
    }

    /// Requests begun since the endpoint is known.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Ejected by outlier detection or failed by active health checks: not picked outside panic mode. The balancer sees it
    /// at once; priorities and panic mode follow when the set is rebuilt ([`EndpointSet::rebalance`]).
    #[must_use]
    pub fn is_out(&self) -> bool {
        self.standing.is_out()
    }

    /// Nobody lists the endpoint any more: its pools are to be given up. For good, because a new list makes a new endpoint of it.
    pub fn leave(&self) {
        self.standing.leave();
    }

    /// See [`Self::leave`].
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.standing.is_gone()
    }

    /// Why it is out. Changes go through the cluster's [`super::census::Census`].
    #[must_use]
    pub const fn standing(&self) -> &Standing {
        &self.standing
    }

    /// What outlier detection counts: behind this line, because most requests write nothing there.
    #[must_use]
    pub fn monitor(&self) -> &Monitor {
        self.monitor.get_or_init(Box::default)
    }

    /// The same, if anything was counted.
    #[must_use]
    pub fn known_monitor(&self) -> Option<&Monitor> {
        self.monitor.get().map(|monitor| &**monitor)
    }

    #[cfg(test)]
    pub(crate) fn set_ejected(&self, on: bool) -> bool {
        self.set_out(None, on)
    }

    #[cfg(test)]
    pub(crate) fn set_failed_health_check(&self, on: bool) -> bool {
        self.set_out(Some(super::census::Out::HealthCheck), on)
    }

    #[cfg(test)]
    fn set_out(&self, why: Option<super::census::Out>, on: bool) -> bool {
        let changed = self.standing.set_out(why, on);
        if changed && !self.is_out() {
            self.starts(Tick::at(Instant::now()));
        }
        changed
    }

    /// How long a pooled HTTP/1 connection to this endpoint may idle and still be used again: the configured time or, if
    /// shorter, the time that the endpoint is known to keep connections open (features.md B1, pain 1).
    #[must_use]
    pub fn idle_limit(&self, configured: Option<Duration>) -> Duration {
        let learned = match u32::from(self.idle_ms.load(Ordering::Relaxed)) {
            0 => IDLE_START_MS,
            ms => ms,
        };
        let learned = Duration::from_millis(learned.into());
        configured.map_or(learned, |c| c.min(learned))
    }

    /// A pooled connection was still open when it reached [`Self::idle_limit`]: the endpoint keeps connections at least that
    /// long, so the next ones may stay longer.
    pub fn idle_survived(&self, idle: Duration) {
        let idle = u32::try_from(idle.as_millis()).unwrap_or(IDLE_MAX_MS);
        let cap = match u32::from(self.idle_cap_ms.load(Ordering::Relaxed)) {
            0 => IDLE_MAX_MS,
            ms => ms,
        };
        let next = idle.saturating_mul(2).clamp(IDLE_MIN_MS, cap.clamp(IDLE_MIN_MS, IDLE_MAX_MS));
        self.idle_ms.fetch_max(narrow(next.max(IDLE_START_MS.min(cap))), Ordering::Relaxed);
    }

    /// The endpoint closed a pooled connection that had been idle for `idle`: from now on three quarters of that is the
    /// limit.
    pub fn idle_closed(&self, idle: Duration) {
        let idle = u32::try_from(idle.as_millis()).unwrap_or(u32::MAX);
        let cap = (idle / 4).saturating_mul(3).clamp(IDLE_MIN_MS, IDLE_MAX_MS);
        let current = match u32::from(self.idle_ms.load(Ordering::Relaxed)) {
            0 => IDLE_START_MS,
            ms => ms,
        };
        self.idle_cap_ms.store(narrow(cap), Ordering::Relaxed);
        self.idle_ms.store(narrow(current.min(cap)), Ordering::Relaxed);
    }
}

/// An endpoint of a cluster.
#[derive(Debug)]
pub struct Endpoint {
    /// Key of its worker-local pools.
    pub key: EndpointKey,
    /// What discovery said.
    pub spec: EndpointSpec,
    /// What the proxy learned; outlives changes of the spec.
    pub state: Arc<EndpointState>,
}

/// Health of an endpoint as the balancer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Gets requests.
    Healthy,
    /// Gets requests when the healthy ones do not suffice.
    Degraded,
    /// Gets requests only in panic mode.
    Unhealthy,
}

impl Endpoint {
    /// A new endpoint, unknown so far.
    #[must_use]
    pub fn new(spec: EndpointSpec) -> Self {
        let state = EndpointState::default();
        state.starts(Tick::at(Instant::now()));
        Self { key: EndpointKey::next(), spec, state: Arc::new(state) }
    }

    /// Discovery's word and the proxy's own experience together.
    #[must_use]
    pub fn health(&self) -> Health {
        match self.spec.health {
            _ if self.state.is_out() => Health::Unhealthy,
            HealthStatus::Healthy => Health::Healthy,
            HealthStatus::Degraded => Health::Degraded,
            HealthStatus::Draining | HealthStatus::Unhealthy => Health::Unhealthy,
        }
    }

    /// Counts a request until the answer is dropped.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> ActiveRequest {
        self.state.active.fetch_add(1, Ordering::Relaxed);
        self.state.requests.fetch_add(1, Ordering::Relaxed);
        ActiveRequest { endpoint: Arc::clone(self) }
    }
}

/// A request in flight to an endpoint; least-request balancing counts these.
#[derive(Debug)]
pub struct ActiveRequest {
    endpoint: Arc<Endpoint>,
}

impl ActiveRequest {
    /// The endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.endpoint.state.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The endpoints of a cluster at one moment, with the index that the balancer picks from. Immutable.
#[derive(Debug)]
pub struct EndpointSet {
    endpoints: Arc<[Arc<Endpoint>]>,
    policy: AssignmentPolicy,
    balancer: Balancer,
    subsets: Option<Subsets>,
    local: Option<Arc<LocalZones>>,
    /// Made when a session asks for an address for the first time.
    by_address: OnceLock<HashMap<SocketAddr, u32>>,
}

impl EndpointSet {
    /// A set without endpoints: a cluster that discovery has not answered for.
    #[must_use]
    pub fn empty(lb: &LbSpec) -> Self {
        Self::freeze(Arc::from([]), AssignmentPolicy::default(), lb, None)
    }

    /// The set for a new assignment. Endpoints that `old` has too keep their key and state, whatever else of them changed;
    /// endpoints that did not change at all are shared, and those that only `old` has leave. Of two equal endpoints the first is
    /// taken, as Envoy does.
    #[must_use]
    pub fn update(old: &Self, assignment: &Assignment, lb: &LbSpec) -> Self {
        let mut known: HashMap<_, &Arc<Endpoint>> = HashMap::with_capacity(old.endpoints.len());
        for endpoint in &*old.endpoints {
            known.insert(endpoint.spec.identity(), endpoint);
        }
        let mut seen = HashMap::with_capacity(assignment.endpoints.len());
        let mut next = Vec::with_capacity(assignment.endpoints.len());
        for spec in &assignment.endpoints {
            if seen.insert(spec.identity(), ()).is_some() {
                continue;
            }
            next.push(match known.remove(&spec.identity()) {
                Some(same) if same.spec == *spec => Arc::clone(same),
                Some(old) => {
                    Arc::new(Endpoint { key: old.key, spec: spec.clone(), state: Arc::clone(&old.state) })
                }
                None => Arc::new(Endpoint::new(spec.clone())),
            });
        }
        known.values().for_each(|endpoint| endpoint.state.leave());
        Self::freeze(next.into(), assignment.policy, lb, old.local.clone())
    }

    /// All endpoints leave: nothing takes the place of this set.
    pub fn retire(&self) {
        self.endpoints.iter().for_each(|endpoint| endpoint.state.leave());
    }

    /// The same endpoints with a new index: after `lb` changed, or the health of an endpoint did.
    #[must_use]
    pub fn rebalance(&self, lb: &LbSpec) -> Self {
        self.in_zones(lb, self.local.clone())
    }

    /// The same endpoints with an index by what is known of zones now.
    #[must_use]
    pub fn in_zones(&self, lb: &LbSpec, local: Option<Arc<LocalZones>>) -> Self {
        Self::freeze(Arc::clone(&self.endpoints), self.policy, lb, local)
    }

    /// What the index knows of zones.
    #[must_use]
    pub const fn local_zones(&self) -> Option<&Arc<LocalZones>> {
        self.local.as_ref()
    }

    fn freeze(
        endpoints: Arc<[Arc<Endpoint>]>,
        policy: AssignmentPolicy,
        lb: &LbSpec,
        local: Option<Arc<LocalZones>>,
    ) -> Self {
        let rules = Rules { lb, policy, local: local.as_deref() };
        let balancer = Balancer::build(rules, &endpoints);
        let subsets =
            lb.subsets.as_ref().map(|spec| Subsets::build(spec, rules, &endpoints, balancer.slots()));
        Self { endpoints, policy, balancer, subsets, local, by_address: OnceLock::new() }
    }

    /// Picks the endpoint of a request. None: no endpoint may be used.
    #[must_use]
    pub fn pick(
        &self,
        cursor: &mut WorkerCursor,
        rng: &mut fastrand::Rng,
        context: &LbContext<'_>,
    ) -> Option<&Arc<Endpoint>> {
        if let Some(host) = &context.host {
            let own = self.at(host.address).filter(|e| may_be_chosen(e, context.exclude));
            if own.is_some() || host.strict {
                return own;
            }
        }
        match &self.subsets {
            None => self.balancer.pick(&self.endpoints, cursor, rng, context),
            Some(subsets) => subsets.pick((&self.endpoints, &self.balancer), cursor, rng, context),
        }
    }

    /// The endpoint at `address`.
    fn at(&self, address: SocketAddr) -> Option<&Arc<Endpoint>> {
        let index = self.by_address.get_or_init(|| {
            (0..).zip(&*self.endpoints).map(|(i, endpoint)| (endpoint.spec.address, i)).collect()
        });
        self.endpoints.get(*index.get(&address)? as usize)
    }

    /// Whether a priority is in panic mode: too few healthy endpoints, so all are used (Envoy `lb_healthy_panic`).
    #[must_use]
    pub fn in_panic(&self) -> bool {
        self.balancer.in_panic()
    }

    /// `ClusterLoadAssignment.policy`.
    #[must_use]
    pub const fn policy(&self) -> AssignmentPolicy {
        self.policy
    }

    /// What the set was made of.
    #[must_use]
    pub fn assignment(&self) -> Assignment {
        let endpoints = self.endpoints.iter().map(|endpoint| endpoint.spec.clone()).collect();
        Assignment { endpoints, policy: self.policy }
    }

    /// All endpoints.
    #[must_use]
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// Number of endpoints.
    #[must_use]
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }
}

/// Whether a session may have the endpoint: it is healthy or degraded, and the request did not fail there.
fn may_be_chosen(endpoint: &Endpoint, failed: &[EndpointKey]) -> bool {
    endpoint.health() != Health::Unhealthy && !failed.contains(&endpoint.key)
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
