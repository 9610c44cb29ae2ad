//! Load balancing: which endpoint gets a request.
//!
//! `Balancer::build` freezes an index over one endpoint set; `Balancer::pick` reads it. Picking takes no lock and allocates
//! nothing: positions of round robin are in the worker's own [`WorkerCursor`], load is in the endpoints' atomics.
//!
//! A pick goes through three levels, as Envoy's does: a *lane* (priority and health class, by the loads of [`priority`]), in it
//! a *bucket* (one locality under locality-weighted balancing, else everything), in it an endpoint by the policy. A new
//! policy is a variant of [`LbPolicy`] and one of `bucket::Picker`.

mod bucket;
pub mod consistent;
pub mod context;
pub mod ewma;
pub mod hash;
pub mod maglev;
pub mod priority;
pub mod ring;
pub mod slow_start;
pub mod subset;
mod weights;
pub mod zone;

use std::sync::Arc;

use smallvec::SmallVec;

use crate::upstream::endpoint::{AssignmentPolicy, Endpoint, EndpointKey, Health, Locality, LocalityGroup};
use bucket::Bucket;
use consistent::ConsistentHash;
use context::LbContext;
use ewma::PeakEwma;
use priority::{Count, Load};
use slow_start::SlowStart;
use subset::SubsetSpec;
use weights::Schedule;
use zone::{LocalZones, ZoneAware};

/// `lb_policy`, or the first supported policy of `load_balancing_policy`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LbPolicy {
    /// ROUND_ROBIN: in turn, in proportion to the weights.
    RoundRobin,
    /// LEAST_REQUEST: the one of a few random endpoints that has the fewest requests in flight for its weight.
    LeastRequest {
        /// How many are looked at.
        choices: Choices,
        /// `active_request_bias`, default 1.0: how strongly load counts when weights differ. 0 ignores it.
        bias: f64,
    },
    /// RANDOM.
    Random,
    /// Of two random endpoints the one with the lower latency times load.
    PeakEwma(PeakEwma),
    /// RING_HASH and MAGLEV: the endpoint that the hash of the request leads to.
    ConsistentHash(ConsistentHash),
}

/// How many endpoints LEAST_REQUEST compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choices {
    /// `choice_count`, default 2.
    Random(u32),
    /// `selection_method: FULL_SCAN`.
    All,
}

/// Everything of a cluster that decides who gets a request.
#[derive(Debug, Clone, PartialEq)]
pub struct LbSpec {
    /// The policy.
    pub policy: LbPolicy,
    /// `healthy_panic_threshold` in percent, default 50: below it, health is ignored. 0 is off.
    pub panic_threshold: u32,
    /// `fail_traffic_on_panic`: in panic mode use no endpoint instead of all.
    pub fail_on_panic: bool,
    /// `locality_weighted_lb_config`: pick a locality by its weight first.
    pub locality_weighted: bool,
    /// `zone_aware_lb_config`.
    pub zone: Option<ZoneAware>,
    /// `slow_start_config`.
    pub slow_start: Option<SlowStart>,
    /// `lb_subset_config`.
    pub subsets: Option<Arc<SubsetSpec>>,
}

impl LbSpec {
    /// Whether a pick depends on the time.
    #[must_use]
    pub const fn is_timed(&self) -> bool {
        matches!(self.policy, LbPolicy::PeakEwma(_)) || self.slow_start.is_some()
    }

    /// Whether a pick depends on how many requests the whole cluster has.
    #[must_use]
    pub const fn is_bounded(&self) -> bool {
        matches!(self.policy, LbPolicy::ConsistentHash(ConsistentHash { balance_factor: Some(_), .. }))
    }
}

impl Default for LbSpec {
    fn default() -> Self {
        Self {
            policy: LbPolicy::RoundRobin,
            panic_threshold: 50,
            fail_on_panic: false,
            locality_weighted: false,
            zone: None,
            slow_start: None,
            subsets: None,
        }
    }
}

/// One worker's place in the rotations of one cluster. It outlives endpoint sets: a new set goes on where the old was.
#[derive(Debug, Clone, Default)]
pub struct WorkerCursor {
    positions: SmallVec<[u32; 2]>,
}

impl WorkerCursor {
    /// The next position in rotation `slot`. A rotation starts at a random place, so that many proxies that start together
    /// do not all begin with the same endpoint.
    fn next(&mut self, slot: u32, rng: &mut fastrand::Rng) -> u32 {
        let slot = slot as usize;
        while self.positions.len() <= slot {
            self.positions.push(rng.u32(..));
        }
        let at = self.positions[slot];
        self.positions[slot] = at.wrapping_add(1);
        at
    }

    /// Skips `n` more positions in rotation `slot`.
    fn skip(&mut self, slot: u32, n: u32) {
        if let Some(at) = self.positions.get_mut(slot as usize) {
            *at = at.wrapping_add(n);
        }
    }
}

/// What an index is built by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules<'a> {
    /// The cluster's.
    pub(crate) lb: &'a LbSpec,
    /// The assignment's.
    pub(crate) policy: AssignmentPolicy,
    /// Where this proxy is, when that is known.
    pub(crate) local: Option<&'a LocalZones>,
}

/// The frozen index over one endpoint set.
#[derive(Debug)]
pub(crate) struct Balancer {
    lanes: Box<[Lane]>,
    panic: bool,
    last_resort: bool,
    /// The hash of the request decides about everything, also about the lane.
    by_hash: bool,
    slots: u32,
}

/// The endpoints of one priority and health class that share its load.
#[derive(Debug)]
struct Lane {
    /// Sum of the loads up to this one, in percent; the last is 100.
    upto: u32,
    /// All endpoints whatever their health.
    panic: bool,
    /// Rotation over the buckets; unused with one bucket.
    localities: Schedule,
    slot: u32,
    buckets: Box<[Bucket]>,
}

/// Which endpoints may be picked.
#[derive(Debug, Clone, Copy)]
struct Filter<'a> {
    context: &'a LbContext<'a>,
    exclude: &'a [EndpointKey],
    ignore_health: bool,
}

impl Filter<'_> {
    fn allows(&self, endpoint: &Endpoint) -> bool {
        (self.ignore_health || !endpoint.state.is_out())
            && (self.exclude.is_empty() || !self.exclude.contains(&endpoint.key))
    }
}

impl Balancer {
    /// Freezes the index over `endpoints` as their health is now.
    pub(crate) fn build(rules: Rules<'_>, endpoints: &[Arc<Endpoint>]) -> Self {
        Self::build_from(rules, endpoints, 0)
    }

    /// The same for one of several indexes of a cluster: its rotations begin at `slot` of the cursor.
    fn build_from(rules: Rules<'_>, endpoints: &[Arc<Endpoint>], slot: u32) -> Self {
        let Rules { lb, policy, local } = rules;
        let counts = count(policy, endpoints);
        let loads = priority::loads(&counts, policy.overprovisioning, lb.panic_threshold);
        let panic = loads.iter().any(|l| l.panic && l.percent > 0);
        let mut builder = Builder { lb, policy, local, endpoints, slots: slot };
        let mut upto = 0;
        let mut lanes = Vec::with_capacity(loads.len());
        for load in loads.iter().filter(|l| l.percent > 0) {
            upto += load.percent;
            lanes.push(builder.lane(load, upto));
        }
        Self {
            lanes: lanes.into(),
            panic,
            last_resort: lb.panic_threshold > 0 && !lb.fail_on_panic,
            by_hash: matches!(lb.policy, LbPolicy::ConsistentHash(_)),
            slots: builder.slots,
        }
    }

    /// The slot of the cursor behind those of this index.
    pub(crate) const fn slots(&self) -> u32 {
        self.slots
    }

    pub(crate) const fn in_panic(&self) -> bool {
        self.panic
    }

    pub(crate) fn pick<'e>(
        &self,
        endpoints: &'e [Arc<Endpoint>],
        cursor: &mut WorkerCursor,
        rng: &mut fastrand::Rng,
        context: &LbContext<'_>,
    ) -> Option<&'e Arc<Endpoint>> {
        let drawn;
        let context = if self.by_hash && context.hash.is_none() {
            // A request without a hash goes anywhere.
            drawn = LbContext { hash: Some(rng.u64(..)), ..*context };
            &drawn
        } else {
            context
        };
        let hash = context.hash.filter(|_| self.by_hash);
        let lane = match &*self.lanes {
            [] => return None,
            [only] => only,
            [first, ..] => {
                let roll = hash.map_or_else(|| rng.u32(0..100), |hash| (hash % 100) as u32);
                self.lanes.iter().find(|l| roll < l.upto).unwrap_or(first)
            }
        };
        let filter = Filter { context, exclude: context.exclude, ignore_health: lane.panic };
        lane.pick(endpoints, cursor, rng, filter)
            .or_else(|| self.pick_elsewhere(endpoints, cursor, rng, (lane, context)))
    }

    /// The lane had nothing to offer. In this order: another lane, an endpoint that the request failed on before, and
    /// (when all went out since the index was built, and panic mode is not off) any endpoint.
    #[cold]
    fn pick_elsewhere<'e>(
        &self,
        endpoints: &'e [Arc<Endpoint>],
        cursor: &mut WorkerCursor,
        rng: &mut fastrand::Rng,
        (lane, context): (&Lane, &LbContext<'_>),
    ) -> Option<&'e Arc<Endpoint>> {
        let avoiding = |ignore_health| Filter { context, exclude: context.exclude, ignore_health };
        let all = |ignore_health| Filter { context, exclude: &[], ignore_health };
        let mut tries: SmallVec<[(&Lane, Filter<'_>); 4]> = SmallVec::new();
        for other in self.lanes.iter().filter(|l| !std::ptr::eq(*l, lane)) {
            tries.push((other, avoiding(other.panic)));
        }
        tries.push((lane, all(lane.panic)));
        if self.last_resort {
            tries.push((lane, avoiding(true)));
            tries.push((lane, all(true)));
        }
        tries.into_iter().find_map(|(lane, filter)| lane.pick(endpoints, cursor, rng, filter))
    }
}

impl Lane {
    fn pick<'e>(
        &self,
        endpoints: &'e [Arc<Endpoint>],
        cursor: &mut WorkerCursor,
        rng: &mut fastrand::Rng,
        filter: Filter<'_>,
    ) -> Option<&'e Arc<Endpoint>> {
        let (first, rest) = match &*self.buckets {
            [] => return None,
            [only] => return only.pick(endpoints, cursor, rng, filter),
            buckets => {
                let at = self.localities.at(cursor.next(self.slot, rng)) as usize;
                (buckets.get(at)?, buckets)
            }
        };
        first.pick(endpoints, cursor, rng, filter).or_else(|| {
            let mut others = rest.iter().filter(|b| !std::ptr::eq(*b, first));
            others.find_map(|b| b.pick(endpoints, cursor, rng, filter))
        })
    }
}

/// Hosts by priority and health.
fn count(policy: AssignmentPolicy, endpoints: &[Arc<Endpoint>]) -> Vec<Count> {
    let mut counts: Vec<Count> = Vec::new();
    for endpoint in endpoints {
        let priority = endpoint.spec.group.priority as usize;
        if counts.len() <= priority {
            counts.resize(priority + 1, Count::default());
        }
        let weight = if policy.weighted_health { u64::from(endpoint.spec.weight) } else { 1 };
        counts[priority].add(endpoint.health(), weight);
    }
    counts
}

#[expect(clippy::cast_precision_loss, reason = "weights of a cluster are far below 2^53")]
fn share(weight: u64, total: u64) -> f64 {
    weight as f64 / total.max(1) as f64
}

struct Builder<'a> {
    lb: &'a LbSpec,
    policy: AssignmentPolicy,
    local: Option<&'a LocalZones>,
    endpoints: &'a [Arc<Endpoint>],
    slots: u32,
}

impl Builder<'_> {
    fn lane(&mut self, load: &Load, upto: u32) -> Lane {
        let in_priority = |e: &Endpoint| e.spec.group.priority == load.priority;
        let wanted = |e: &Endpoint| in_priority(e) && (load.panic || e.health() == load.health);
        let mut lane = Lane {
            upto,
            panic: load.panic,
            localities: Schedule::default(),
            slot: self.slot(),
            buckets: Box::default(),
        };
        if load.panic && self.lb.fail_on_panic {
            return lane;
        }
        if let LbPolicy::ConsistentHash(spec) = &self.lb.policy {
            lane.buckets = self.hashed(spec, &wanted).into_iter().collect();
            return lane;
        }
        if self.lb.locality_weighted && !load.panic {
            let (weights, members) = self.localities(&in_priority, &wanted);
            if !weights.is_empty() {
                lane.localities = Schedule::rotation(&weights);
                lane.buckets = members.into_iter().map(|m| self.bucket(m)).collect();
                return lane;
            }
        }
        // Only healthy endpoints of the first priority are near or far, as in Envoy.
        if load.priority == 0
            && load.health == Health::Healthy
            && !load.panic
            && let Some((weights, members)) = self.zones(&wanted)
        {
            lane.localities = Schedule::rotation(&weights);
            lane.buckets = members.into_iter().map(|m| self.bucket(m)).collect();
            return lane;
        }
        let members = self.indices(&wanted);
        if !members.is_empty() {
            lane.buckets = Box::new([self.bucket(members)]);
        }
        lane
    }

    /// The localities of a priority that get load, with their effective weights: the configured weight, less the share of
    /// endpoints that overprovisioning does not cover (Envoy, "Locality weighted load balancing").
    fn localities(
        &self,
        in_priority: &dyn Fn(&Endpoint) -> bool,
        wanted: &dyn Fn(&Endpoint) -> bool,
    ) -> (Vec<u32>, Vec<Vec<u32>>) {
        struct Part<'a> {
            group: &'a LocalityGroup,
            all: u64,
            members: Vec<u32>,
        }
        let mut parts: Vec<Part<'_>> = Vec::new();
        let mut index: foldhash::HashMap<&LocalityGroup, usize> = foldhash::HashMap::default();
        for (i, endpoint) in (0_u32..).zip(self.endpoints).filter(|(_, e)| in_priority(e)) {
            let group = &*endpoint.spec.group;
            let at = *index.entry(group).or_insert_with(|| {
                parts.push(Part { group, all: 0, members: Vec::new() });
                parts.len() - 1
            });
            parts[at].all += 1;
            if wanted(endpoint) {
                parts[at].members.push(i);
            }
        }
        let effective = |part: &Part<'_>| {
            let available = u64::from(self.policy.overprovisioning) * 100 * part.members.len() as u64;
            u64::from(part.group.weight.unwrap_or(0)) * (available / part.all.max(1)).min(10_000)
        };
        let mut parts: Vec<(u64, Part<'_>)> = parts.into_iter().map(|p| (effective(&p), p)).collect();
        parts.retain(|(weight, _)| *weight > 0);
        // Effective weights are up to 46 bits wide; the schedule takes 32.
        let largest = parts.iter().map(|(w, _)| *w).max().unwrap_or(0);
        let shift = (64 - largest.leading_zeros()).saturating_sub(32);
        let weights =
            parts.iter().map(|(w, _)| u32::try_from(w >> shift).unwrap_or(u32::MAX).max(1)).collect();
        (weights, parts.into_iter().map(|(_, p)| p.members).collect())
    }

    /// The zones and their weights under zone aware routing. Those that get nothing follow without a weight: for when the others have nobody
    /// to offer.
    fn zones(&self, wanted: &dyn Fn(&Endpoint) -> bool) -> Option<(Vec<u32>, Vec<Vec<u32>>)> {
        let (spec, local) = (self.lb.zone.as_ref()?, self.local?);
        let mut zones: Vec<(&Locality, Vec<u32>)> = Vec::new();
        let mut index: foldhash::HashMap<&Locality, usize> = foldhash::HashMap::default();
        for (i, endpoint) in (0_u32..).zip(self.endpoints).filter(|(_, e)| wanted(e)) {
            let zone = &endpoint.spec.group.locality;
            let at = *index.entry(zone).or_insert_with(|| {
                zones.push((zone, Vec::new()));
                zones.len() - 1
            });
            zones[at].1.push(i);
        }
        let counts: Vec<(&Locality, u64)> = zones.iter().map(|(zone, m)| (*zone, m.len() as u64)).collect();
        let weights = zone::weights(spec, local, &counts)?;
        let (near, far): (Vec<_>, Vec<_>) =
            weights.into_iter().zip(zones).map(|(weight, (_, m))| (weight, m)).partition(|(w, _)| *w > 0);
        let weights = near.iter().map(|(weight, _)| *weight).collect();
        Some((weights, near.into_iter().chain(far).map(|(_, members)| members).collect()))
    }

    fn indices(&self, wanted: &dyn Fn(&Endpoint) -> bool) -> Vec<u32> {
        (0_u32..).zip(self.endpoints).filter(|(_, e)| wanted(e)).map(|(i, _)| i).collect()
    }

    fn bucket(&mut self, members: Vec<u32>) -> Bucket {
        let slot = self.slot();
        Bucket::build(self.lb, self.endpoints, members, slot)
    }

    /// One table for the whole lane, in which the weights of localities are part of the endpoints' shares.
    fn hashed(&self, spec: &ConsistentHash, wanted: &dyn Fn(&Endpoint) -> bool) -> Option<Bucket> {
        let members = self.indices(wanted);
        let shares = if self.lb.locality_weighted { self.locality_shares(&members) } else { None };
        let (members, shares) = shares.unwrap_or_else(|| {
            let weights: Vec<u32> = self.of(&members).map(|e| e.spec.weight).collect();
            let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
            (members, weights.into_iter().map(|w| share(w.into(), total)).collect())
        });
        Bucket::hashed(spec, self.endpoints, members, &shares)
    }

    /// Members and their shares by the weights of their localities. None: no locality has a weight.
    fn locality_shares(&self, members: &[u32]) -> Option<(Vec<u32>, Vec<f64>)> {
        let mut weights: foldhash::HashMap<&LocalityGroup, u64> = foldhash::HashMap::default();
        for endpoint in self.of(members) {
            *weights.entry(&endpoint.spec.group).or_default() += u64::from(endpoint.spec.weight);
        }
        let weight = |group: &LocalityGroup| u64::from(group.weight.unwrap_or(0));
        let total: u64 = weights.keys().map(|group| weight(group)).sum();
        let with_share = self.of(members).zip(members).filter_map(|(endpoint, member)| {
            let group = &*endpoint.spec.group;
            let locality = share(weight(group), total);
            let own = share(endpoint.spec.weight.into(), weights.get(group).copied().unwrap_or(0));
            (locality > 0.0).then_some((*member, own * locality))
        });
        (total > 0).then(|| with_share.unzip())
    }

    fn of(&self, members: &[u32]) -> impl Iterator<Item = &Endpoint> {
        members.iter().filter_map(|i| self.endpoints.get(*i as usize)).map(|e| &**e)
    }

    fn slot(&mut self) -> u32 {
        self.slots += 1;
        self.slots - 1
    }
}

#[cfg(test)]
mod tests;
