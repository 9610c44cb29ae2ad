//! Endpoints and endpoint sets.
//!
//! [`EndpointSpec`] is what discovery said, [`EndpointState`] is what the proxy learned, [`Endpoint`] joins the two under
//! a key that worker-local pools use. A new list of endpoints keeps the key and state of every endpoint that is in
//! both lists, so an update closes no connection and resets no counter (ARCHITECTURE, rule 3).

mod set;
mod spec;

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

use super::census::Standing;
use crate::balance::context::Tick;
use crate::balance::ewma::Latency;
use crate::resilience::outlier::Monitor;

pub use set::EndpointSet;
pub use spec::{
    Assignment, AssignmentPolicy, EndpointCheck, EndpointSpec, HealthStatus, Locality, LocalityGroup,
    Metadata,
};

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

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
