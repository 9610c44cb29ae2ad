//! Which names are due, and what their answers change. No clock, no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;
use tokio::time::Instant;

use super::{Answer, DnsKind, DnsSpec, DnsUpdate, LookupError, LookupResult, Query};
use crate::upstream::endpoint::{Assignment, EndpointSpec};

/// DNS clusters by name.
pub type Clusters = BTreeMap<Arc<str>, Arc<DnsSpec>>;

/// The state of all names that DNS clusters use.
#[derive(Debug, Default)]
pub struct Scheduler {
    clusters: Clusters,
    names: HashMap<Query, Name>,
    /// Names that wait for their time, soonest first.
    timers: BTreeSet<(Instant, u64)>,
    tickets: HashMap<u64, Query>,
    next_ticket: u64,
    rng: fastrand::Rng,
}

#[derive(Debug)]
struct Name {
    /// The clusters that use it.
    users: BTreeSet<Arc<str>>,
    /// Its entry among the timers; None while it is being asked for.
    timer: Option<(Instant, u64)>,
    /// The last good answer.
    good: Vec<IpAddr>,
    /// Whether it was answered at all.
    answered: bool,
    /// Failures since the last good answer.
    failures: u32,
    error: Option<LookupError>,
}

impl Scheduler {
    /// No names yet; `rng` spreads the refreshes.
    #[must_use]
    pub fn new(rng: fastrand::Rng) -> Self {
        Self { rng, ..Self::default() }
    }

    /// Replaces the clusters. A name that stays keeps its answer and its time. The updates are for new and changed
    /// clusters that have something to say at once: IP addresses, and names that another cluster asked for.
    pub fn set_clusters(&mut self, wanted: Clusters, now: Instant) -> Vec<DnsUpdate> {
        let changed: Vec<Arc<str>> = wanted
            .iter()
            .filter(|(name, spec)| self.clusters.get(*name).is_none_or(|old| old != *spec))
            .map(|(name, _)| Arc::clone(name))
            .collect();
        let gone: Vec<_> = self.clusters.keys().filter(|n| !wanted.contains_key(*n)).cloned().collect();
        // Users first, names without users last: a name that only moves between clusters keeps its answer.
        for cluster in changed.iter().chain(&gone) {
            for query in self.clusters.get(cluster).map(|spec| queries(spec)).unwrap_or_default() {
                if let Some(name) = self.names.get_mut(&query) {
                    name.users.remove(cluster);
                }
            }
        }
        self.clusters = wanted;
        for cluster in &changed {
            for query in self.clusters.get(cluster).map(|spec| queries(spec)).unwrap_or_default() {
                self.join(query, cluster, now);
            }
        }
        self.names.retain(|_, name| {
            if let (true, Some(timer)) = (name.users.is_empty(), name.timer) {
                self.timers.remove(&timer);
                self.tickets.remove(&timer.1);
            }
            !name.users.is_empty()
        });
        changed.iter().filter_map(|cluster| self.update(cluster)).filter(speaks).collect()
    }

    fn join(&mut self, query: Query, cluster: &Arc<str>, now: Instant) {
        if let Some(name) = self.names.get_mut(&query) {
            name.users.insert(Arc::clone(cluster));
            return;
        }
        let literal = query.host.parse::<IpAddr>().ok();
        let timer = if literal.is_none() { Some(self.arm(query.clone(), now)) } else { None };
        let name = Name {
            users: BTreeSet::from([Arc::clone(cluster)]),
            timer,
            answered: literal.is_some(),
            good: literal.into_iter().collect(),
            failures: 0,
            error: None,
        };
        self.names.insert(query, name);
    }

    fn arm(&mut self, query: Query, at: Instant) -> (Instant, u64) {
        self.next_ticket += 1;
        let timer = (at, self.next_ticket);
        self.timers.insert(timer);
        self.tickets.insert(timer.1, query);
        timer
    }

    /// When the next name is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Takes a name that is due: ask for it now, and give the outcome to [`Self::answer`].
    pub fn due(&mut self, now: Instant) -> Option<Query> {
        while self.next_due()? <= now {
            let timer = self.timers.pop_first()?;
            let query = self.tickets.remove(&timer.1)?;
            if let Some(name) = self.names.get_mut(&query) {
                name.timer = None;
                return Some(query);
            }
        }
        None
    }

    /// Takes the outcome of a lookup. The updates are for the clusters that it changes.
    pub fn answer(&mut self, query: &Query, result: LookupResult, now: Instant) -> Vec<DnsUpdate> {
        // Nobody uses the name any more, or it went and came back while it was being asked for.
        let Some(name) = self.names.get_mut(query).filter(|n| n.timer.is_none()) else { return Vec::new() };
        let result =
            result.and_then(|a| if a.addresses.is_empty() { Err(LookupError::Empty) } else { Ok(a) });
        let first = !name.answered;
        let failed_before = name.error.is_some();
        name.answered = true;
        let (moved, ttl) = match result {
            Ok(Answer { mut addresses, ttl }) => {
                let mut seen = foldhash::HashSet::default();
                addresses.retain(|ip| seen.insert(*ip));
                let moved = Moved::between(&name.good, &addresses);
                name.good = addresses;
                name.failures = 0;
                name.error = None;
                (moved, Some(ttl))
            }
            Err(error) => {
                name.failures = name.failures.saturating_add(1);
                name.error = Some(error);
                (Moved::default(), None)
            }
        };
        let news = first || failed_before != name.error.is_some();
        let (users, failures) = (name.users.clone(), name.failures);
        let specs = users.iter().filter_map(|u| self.clusters.get(u));
        let delays = specs.map(|spec| match ttl {
            Some(ttl) => spec.refresh.after_answer(ttl, &mut self.rng),
            None => spec.refresh.after_failure(failures, &mut self.rng),
        });
        // The most impatient user decides.
        let delay = delays.min().unwrap_or(Duration::from_secs(5)).max(Duration::from_millis(1));
        let timer = self.arm(query.clone(), now + delay);
        if let Some(name) = self.names.get_mut(query) {
            name.timer = Some(timer);
        }
        let concerns = |cluster: &&Arc<str>| {
            self.clusters.get(*cluster).is_some_and(|spec| news || moved.concerns(spec.kind))
        };
        users.iter().filter(concerns).filter_map(|cluster| self.update(cluster)).collect()
    }

    /// The endpoints of a cluster as its names are known now.
    fn update(&self, cluster: &Arc<str>) -> Option<DnsUpdate> {
        let spec = self.clusters.get(cluster)?;
        let mut endpoints: Vec<EndpointSpec> = Vec::new();
        let (mut complete, mut failing) = (true, Vec::new());
        for (target, query) in spec.targets.iter().zip(queries(spec)) {
            let Some(name) = self.names.get(&query) else { continue };
            complete &= name.answered;
            failing.extend(name.error.clone().map(|e| (Arc::clone(&target.host), e)));
            let take = match spec.kind {
                DnsKind::Strict => name.good.len(),
                DnsKind::Logical => 1,
            };
            endpoints.extend(name.good.iter().take(take).map(|ip| target.template.at(*ip)));
        }
        let assignment = Assignment { endpoints, policy: spec.policy };
        Some(DnsUpdate { cluster: Arc::clone(cluster), assignment, complete, failing })
    }

    /// Number of different names.
    #[must_use]
    pub fn names(&self) -> usize {
        self.names.len()
    }
}

/// An update that says more than "nothing known yet".
fn speaks(update: &DnsUpdate) -> bool {
    update.complete || !update.assignment.endpoints.is_empty()
}

fn queries(spec: &DnsSpec) -> Vec<Query> {
    let query = |host: &Arc<str>| Query {
        host: Arc::clone(host),
        family: spec.family,
        servers: Arc::clone(&spec.servers),
    };
    spec.targets.iter().map(|t| query(&t.host)).collect()
}

/// What differs between two answers. Servers rotate their answers: another order is nothing new to STRICT_DNS.
#[derive(Debug, Default)]
struct Moved {
    set: bool,
    first: bool,
}

impl Moved {
    fn between(old: &[IpAddr], new: &[IpAddr]) -> Self {
        let sorted = |list: &[IpAddr]| {
            let mut list = list.to_vec();
            list.sort_unstable();
            list
        };
        Self { set: sorted(old) != sorted(new), first: old.first() != new.first() }
    }

    const fn concerns(&self, kind: DnsKind) -> bool {
        match kind {
            DnsKind::Strict => self.set,
            DnsKind::Logical => self.first,
        }
    }
}
