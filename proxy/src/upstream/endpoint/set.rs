//! The endpoints of a cluster, with the index that the balancer picks from.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use foldhash::{HashMap, HashMapExt};

use super::{Assignment, AssignmentPolicy, Endpoint, EndpointKey, Health};
use crate::balance::context::LbContext;
use crate::balance::subset::Subsets;
use crate::balance::zone::LocalZones;
use crate::balance::{Balancer, LbSpec, Rules, WorkerCursor};

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
