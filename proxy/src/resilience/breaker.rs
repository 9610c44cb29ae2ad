//! Circuit breakers as Envoy means them: limits on connections, pending requests, active requests and retries of a cluster.
//!
//! The counters are shared by all workers and outlive configuration; the limits come from the snapshot with every call, so
//! an edited limit holds from the next request on and no counter is reset.

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What is limited (`CircuitBreakers.Thresholds`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resource {
    /// `max_connections`.
    Connections,
    /// `max_pending_requests`: requests that wait for a connection.
    Pending,
    /// `max_requests`: requests in flight.
    Requests,
    /// `max_retries`, or the retry budget.
    Retries,
}

impl Resource {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Connections, Self::Pending, Self::Requests, Self::Retries];

    /// Its value as the label `limit` of metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Pending => "pending",
            Self::Requests => "requests",
            Self::Retries => "retries",
        }
    }
}

/// `RoutingPriority`: each has its own limits and counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum RoutingPriority {
    /// DEFAULT.
    #[default]
    Default,
    /// HIGH.
    High,
}

/// The limits of one priority.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// `max_connections`, default 1024.
    pub max_connections: u32,
    /// `max_pending_requests`, default 1024.
    pub max_pending: u32,
    /// `max_requests`, default 1024.
    pub max_requests: u32,
    /// `max_retries`, default 3; without effect under a retry budget.
    pub max_retries: u32,
    /// `retry_budget`.
    pub retry_budget: Option<super::budget::BudgetSpec>,
    /// `track_remaining`: show how much is left in the metrics.
    pub track_remaining: bool,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
            track_remaining: false,
        }
    }
}

impl Thresholds {
    /// The limit for `resource`. For retries it is `max_retries`: a budget is asked by [`super::budget::try_retry`].
    #[must_use]
    pub const fn limit(&self, resource: Resource) -> u32 {
        match resource {
            Resource::Connections => self.max_connections,
            Resource::Pending => self.max_pending,
            Resource::Requests => self.max_requests,
            Resource::Retries => self.max_retries,
        }
    }
}

#[derive(Debug, Default)]
struct Gauge {
    active: AtomicU32,
    overflow: AtomicU64,
}

/// The counters of one cluster and priority.
#[derive(Debug, Default)]
pub struct Breaker {
    gauges: [Gauge; 4],
    /// Requests of late, when the retry budget has an interval.
    pub(super) recent: super::budget::Recent,
    /// Those of them that asked for a retry.
    pub(super) failing: super::budget::Recent,
    /// Retries of late, likewise.
    pub(super) retried: super::budget::Recent,
}

impl Breaker {
    const fn gauge(&self, resource: Resource) -> &Gauge {
        &self.gauges[resource as usize]
    }

    /// Takes one of `resource` unless `limit` are taken; a refusal is counted. One atomic addition now, one subtraction when
    /// the permit is dropped. `limit` is exact, whatever other workers do at the same time.
    ///
    /// The holder is whatever keeps the breaker alive: a reference, or an `Arc` of the breaker or of the cluster's state.
    pub fn try_acquire<H: Holder>(holder: H, resource: Resource, limit: u32) -> Option<Permit<H>> {
        let gauge = holder.breaker().gauge(resource);
        let before = gauge.active.fetch_add(1, Ordering::Relaxed);
        if before >= limit {
            gauge.active.fetch_sub(1, Ordering::Relaxed);
            gauge.overflow.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Permit { holder, resource })
    }

    /// How many of `resource` are taken.
    #[must_use]
    pub fn active(&self, resource: Resource) -> u32 {
        self.gauge(resource).active.load(Ordering::Relaxed)
    }

    /// How often `resource` was refused (Envoy `upstream_cx_overflow`, `upstream_rq_pending_overflow`,
    /// `upstream_rq_retry_overflow`).
    #[must_use]
    pub fn overflow(&self, resource: Resource) -> u64 {
        self.gauge(resource).overflow.load(Ordering::Relaxed)
    }

    /// How many of `resource` are left below `limit` (`track_remaining`, Envoy `remaining_cx` and so on).
    #[must_use]
    pub fn remaining(&self, resource: Resource, limit: u32) -> u32 {
        limit.saturating_sub(self.active(resource))
    }

    /// Whether the breaker is open: the next one would be refused (Envoy `cx_open` and so on).
    #[must_use]
    pub fn is_open(&self, resource: Resource, limit: u32) -> bool {
        self.remaining(resource, limit) == 0
    }
}

/// Something that keeps a breaker alive while a permit is held.
pub trait Holder {
    /// The breaker.
    fn breaker(&self) -> &Breaker;
}

impl Holder for &Breaker {
    fn breaker(&self) -> &Breaker {
        self
    }
}

impl Holder for std::sync::Arc<Breaker> {
    fn breaker(&self) -> &Breaker {
        self
    }
}

/// One taken unit of a resource; given back on drop.
#[derive(Debug)]
#[must_use]
pub struct Permit<H: Holder> {
    holder: H,
    resource: Resource,
}

impl<H: Holder> Permit<H> {
    /// The breaker.
    pub(crate) fn breaker(&self) -> &Breaker {
        self.holder.breaker()
    }
}

impl<H: Holder> Drop for Permit<H> {
    fn drop(&mut self) {
        self.holder.breaker().gauge(self.resource).active.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn permits_count_and_refusals_are_counted() {
        let breaker = Arc::new(Breaker::default());
        let take = |limit| Breaker::try_acquire(Arc::clone(&breaker), Resource::Requests, limit);
        let first = take(2).unwrap();
        let second = take(2).unwrap();
        assert!(take(2).is_none());
        assert!(breaker.is_open(Resource::Requests, 2));
        // A raised limit holds at once; a lowered one refuses without taking anything away.
        let third = take(3).unwrap();
        assert!(take(1).is_none());
        assert_eq!((breaker.active(Resource::Requests), breaker.overflow(Resource::Requests)), (3, 2));
        drop((first, second));
        assert_eq!(breaker.remaining(Resource::Requests, 3), 2);
        drop(third);
        assert_eq!(breaker.active(Resource::Requests), 0);
        assert!(take(0).is_none());
        assert_eq!(breaker.active(Resource::Connections), 0);
    }

    #[test]
    fn the_limit_is_exact_between_threads() {
        let breaker = Breaker::default();
        let peak = AtomicU32::new(0);
        let held = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        if let Some(_permit) = Breaker::try_acquire(&breaker, Resource::Pending, 3) {
                            let now = held.fetch_add(1, Ordering::SeqCst) + 1;
                            peak.fetch_max(now, Ordering::SeqCst);
                            held.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert!(peak.load(Ordering::SeqCst) <= 3);
        assert_eq!(breaker.active(Resource::Pending), 0);
    }
}
