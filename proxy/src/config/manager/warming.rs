//! Make before break: what refers to something that is not there yet waits for it, and what is still referred to leaves later.
//! Both for a bounded time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use remora_xds::Kind;
use tokio::time::Instant;

use super::clusters::tls_is_ready;
use super::secrets::{has_secrets, loses_secrets, missing_secrets};
use super::wants::rds_of;
use super::{Changes, Held, Manager, http_specs};
use crate::config::names::ClusterId;
use crate::config::spec::{FilterChain, HttpSpec, ListenerSpec, NetworkFilter, RdsSpec, RouteSource};
use crate::route::RouteTable;
use crate::upstream::cluster::{Cluster, ClusterSpec, Discovery};

/// The longest wait: Envoy's default of `initial_fetch_timeout`, which may make it shorter.
pub(super) const INIT_TIMEOUT: Duration = Duration::from_secs(15);

/// The routes that a chain takes from elsewhere.
fn chain_rds(chain: &FilterChain) -> Option<&RdsSpec> {
    match &chain.filter {
        NetworkFilter::Http(http) => http.rds.as_ref(),
        NetworkFilter::Tcp(_) => None,
    }
}

/// How often it is looked whether a departed chain has connections.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A wait of 0 has no end in Envoy's API; here everything has one.
fn bounded(wait: Duration) -> Duration {
    if wait.is_zero() { INIT_TIMEOUT } else { wait.min(INIT_TIMEOUT) }
}

/// How long a cluster waits for its first endpoints and their first checks.
fn endpoints_wait(cluster: &Cluster) -> Duration {
    match &cluster.spec().discovery {
        Discovery::Eds(eds) if !cluster.is_discovered() => bounded(eds.initial_fetch_timeout),
        _ => INIT_TIMEOUT,
    }
}

/// How long a listener waits for its routes.
fn patience_of(listener: &ListenerSpec) -> Duration {
    let waits = rds_of(listener).map(|rds| bounded(rds.initial_fetch_timeout.unwrap_or_default()));
    waits.max().unwrap_or(INIT_TIMEOUT)
}

/// What is on its way in or out.
#[derive(Debug, Default)]
pub(super) struct Warming {
    /// Route tables that name a cluster without endpoints. The old table serves.
    pub(super) tables: BTreeMap<Arc<str>, Waiting<RouteTable>>,
    /// Listeners without their routes. The old listener serves.
    pub(super) listeners: BTreeMap<Arc<str>, Waiting<ListenerSpec>>,
    /// Clusters whose secrets have not come. The old cluster serves, for as long as that takes.
    pub(super) clusters: BTreeMap<Arc<str>, Held<ClusterSpec>>,
    /// Clusters that were removed while routes in force name them, and when they go at the latest.
    pub(super) leaving: BTreeMap<Arc<str>, Instant>,
    /// Filter chains that were removed, and that connections may still be of.
    departed: Vec<Weak<FilterChain>>,
    /// When their connections are looked at next.
    look_at: Option<Instant>,
}

/// Something that waits to come into force.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    pub(super) held: Held<T>,
    /// When it comes into force as it is.
    pub(super) until: Instant,
}

impl Warming {
    /// When something happens at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let tables = self.tables.values().map(|w| w.until);
        let listeners = self.listeners.values().map(|w| w.until);
        tables.chain(listeners).chain(self.leaving.values().copied()).chain(self.look_at).min()
    }

    fn is_empty(&self) -> bool {
        self.tables.is_empty()
            && self.listeners.is_empty()
            && self.clusters.is_empty()
            && self.leaving.is_empty()
            && self.departed.is_empty()
    }

    /// A listener is no longer in force, and `new` is in its place. Connections of chains that are in both follow the new one; routes of the
    /// others stay as long as their connections do.
    pub(super) fn depart(&mut self, old: &ListenerSpec, new: Option<&ListenerSpec>, now: Instant) {
        let stays = |chain: &FilterChain| new.is_some_and(|new| new.chains.iter().any(|c| c.id == chain.id));
        for chain in old.chains.iter().filter(|chain| chain_rds(chain).is_some() && !stays(chain)) {
            self.departed.push(Arc::downgrade(chain));
            self.look_at.get_or_insert(now + LOOK_EVERY);
        }
    }

    /// Names of the routes that connections of departed chains use.
    pub(super) fn departed_routes(&self) -> BTreeSet<Arc<str>> {
        let chains = self.departed.iter().filter_map(Weak::upgrade);
        chains.filter_map(|chain| chain_rds(&chain).map(|rds| Arc::clone(&rds.name))).collect()
    }

    /// Forgets departed chains that have no connection any more. True: some did.
    fn look_at_departed(&mut self, now: Instant) -> bool {
        if self.look_at.is_none_or(|at| at > now) {
            return false;
        }
        let before = self.departed.len();
        self.departed.retain(|chain| chain.strong_count() > 0);
        self.look_at = (!self.departed.is_empty()).then(|| now + LOOK_EVERY);
        self.departed.len() < before
    }
}

impl Manager {
    /// When [`Self::promote`] has something to do at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.dynamic.warming.deadline()
    }

    /// How long what is not there yet is waited for, from the start on; none when everything is there.
    #[must_use]
    pub fn patience(&self) -> Duration {
        let cold = self.clusters.values().filter(|held| !held.value.is_warm());
        let clusters = cold.map(|held| endpoints_wait(&held.value));
        let lacks =
            |http: &HttpSpec| http.rds.as_ref().is_some_and(|rds| !self.route_tables.contains_key(&rds.name));
        let in_force = self.listeners.values().map(|held| &held.value);
        let cold = in_force
            .filter(|listener| !has_secrets(listener) || http_specs(listener).any(|http| lacks(http)));
        let listeners = cold.map(|listener| patience_of(listener));
        let streams = (!self.dynamic.is_warm()).then_some(INIT_TIMEOUT);
        clusters.chain(listeners).chain(streams).max().unwrap_or_default()
    }

    /// The first thing that [`Self::is_warm`] waits for, for people.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        if !self.dynamic.is_warm() {
            return Some("a configuration of the control plane".to_owned());
        }
        let cluster = self.clusters.iter().find(|(_, held)| !held.value.is_warm());
        if let Some((name, held)) = cluster {
            let what = match &held.value {
                cluster if !tls_is_ready(cluster.spec()) => "secrets",
                cluster if cluster.is_discovered() => "first health checks",
                _ => "endpoints",
            };
            return Some(format!("{what} of cluster {name}"));
        }
        for (name, held) in &self.listeners {
            if !has_secrets(&held.value) {
                return Some(format!("secrets of listener {name}"));
            }
            let mut tables = rds_of(&held.value).map(|rds| &rds.name);
            if let Some(table) = tables.find(|table| !self.route_tables.contains_key(*table)) {
                return Some(format!("routes {table} of listener {name}"));
            }
        }
        None
    }

    /// Whether there is a configuration of the control plane, now or from disk, in which nothing waits for something else; without a control
    /// plane always.
    #[must_use]
    pub fn has_first_config(&self) -> bool {
        self.dynamic.is_warm()
    }

    /// Brings into force what need not wait any longer, and takes out what is no longer used.
    pub fn promote(&mut self, now: Instant) -> Changes {
        let mut changes = Changes::default();
        loop {
            let more = self.promote_once(now);
            changes.add(more);
            if !(more.listeners || more.clusters) {
                return changes;
            }
            // Routes that go may be the last to name a cluster, and endpoints go with theirs.
            self.forget_unwanted();
        }
    }

    fn promote_once(&mut self, now: Instant) -> Changes {
        let mut changes = Changes::default();
        if self.dynamic.warming.is_empty() {
            return changes;
        }
        changes.add(self.promote_clusters());
        let tables = &self.dynamic.warming.tables;
        let ready = |(name, w): (&Arc<str>, &Waiting<RouteTable>)| {
            (w.until <= now || self.table_is_ready(&w.held.value)).then(|| Arc::clone(name))
        };
        let ready: Vec<_> = tables.iter().filter_map(ready).collect();
        for name in ready {
            if let Some(waiting) = self.dynamic.warming.tables.remove(&name) {
                self.put_table(waiting.held);
                changes.snapshot = true;
            }
        }
        let listeners = &self.dynamic.warming.listeners;
        let ready = |(name, w): (&Arc<str>, &Waiting<ListenerSpec>)| {
            (w.until <= now || self.listener_is_ready(&w.held.value)).then(|| Arc::clone(name))
        };
        let mut ready: Vec<_> = listeners.iter().filter_map(ready).collect();
        ready.retain(|name| !self.breaks_what_works(name, now));
        for name in ready {
            if let Some(waiting) = self.dynamic.warming.listeners.remove(&name) {
                self.put_listener(waiting.held, now);
                changes.add(Changes { snapshot: true, listeners: true, clusters: false });
            }
        }
        changes.add(self.release(now));
        if self.dynamic.warming.look_at_departed(now) {
            self.forget_unwanted();
            changes.snapshot = true;
        }
        changes
    }

    /// Whether a listener has waited long enough, and a chain of it would refuse every handshake in the place of one that works. It goes on
    /// waiting then.
    fn breaks_what_works(&mut self, name: &Arc<str>, now: Instant) -> bool {
        let Some(waiting) = self.dynamic.warming.listeners.get_mut(name) else { return false };
        let old = self.listeners.get(name);
        let breaks = old.is_some_and(|old| loses_secrets(&waiting.held.value, &old.value));
        if breaks {
            let missing = missing_secrets(&waiting.held.value);
            tracing::warn!(
                listener = &**name,
                ?missing,
                "secrets have not come; the listener before serves on"
            );
            waiting.until = now + INIT_TIMEOUT;
        }
        breaks
    }

    fn promote_clusters(&mut self) -> Changes {
        let waiting = &self.dynamic.warming.clusters;
        let ready = waiting.iter().filter(|(_, held)| tls_is_ready(&held.value));
        let ready: Vec<_> = ready.map(|(name, _)| Arc::clone(name)).collect();
        let any = !ready.is_empty();
        for name in ready {
            if let Some(held) = self.dynamic.warming.clusters.remove(&name) {
                self.replace_cluster(held);
            }
        }
        Changes { snapshot: any, listeners: false, clusters: any }
    }

    /// Removes clusters that are leaving and that nothing names any more.
    fn release(&mut self, now: Instant) -> Changes {
        if self.dynamic.warming.leaving.is_empty() {
            return Changes::default();
        }
        let used = self.used_clusters();
        let leaves = |(name, until): (&Arc<str>, &Instant)| {
            let named = self.names.clusters.get(name).is_some_and(|id| used.contains(&id.index()));
            (*until <= now || !named).then(|| Arc::clone(name))
        };
        let gone: Vec<_> = self.dynamic.warming.leaving.iter().filter_map(leaves).collect();
        for name in &gone {
            self.dynamic.warming.leaving.remove(name);
            self.remove_cluster(name);
        }
        let any = !gone.is_empty();
        Changes { snapshot: any, listeners: false, clusters: any }
    }

    /// Takes out a cluster, at once or when nothing names it any more.
    pub(super) fn retire_cluster(&mut self, name: &Arc<str>, now: Instant) {
        self.dynamic.warming.clusters.remove(name);
        if self.clusters.contains_key(name) {
            self.dump.remove(Kind::Cluster, name);
            self.dynamic.warming.leaving.insert(Arc::clone(name), now + INIT_TIMEOUT);
        }
    }

    /// Whether a resource in force is about to go.
    pub(super) fn is_leaving(&self, kind: Kind, name: &str) -> bool {
        kind == Kind::Cluster && self.dynamic.warming.leaving.contains_key(name)
    }

    /// Takes a table in, at once or when its clusters have endpoints.
    pub(super) fn arrive_table(&mut self, held: Held<RouteTable>, now: Instant) -> Changes {
        let name = Arc::clone(&held.value.name);
        let waited = self.dynamic.warming.tables.remove(&name);
        if self.table_is_ready(&held.value) {
            self.put_table(held);
            return Changes { snapshot: true, ..Changes::default() };
        }
        // One that comes in the place of one that waits has waited with it.
        let until = waited.map_or_else(|| now + self.patience_of(&held.value), |waited| waited.until);
        self.dynamic.warming.tables.insert(name, Waiting { held, until });
        Changes::default()
    }

    /// Takes a listener in, at once or when its routes, its secrets and the clusters that it names itself are there.
    pub(super) fn arrive_listener(&mut self, held: Held<ListenerSpec>, now: Instant) -> Changes {
        let name = Arc::clone(&held.value.name);
        let waited = self.dynamic.warming.listeners.remove(&name);
        if self.listener_is_ready(&held.value) {
            self.put_listener(held, now);
            return Changes { snapshot: true, listeners: true, clusters: false };
        }
        let until = waited.map_or_else(|| now + patience_of(&held.value), |waited| waited.until);
        self.dynamic.warming.listeners.insert(name, Waiting { held, until });
        Changes::default()
    }

    /// How long a table waits for endpoints: as long as the most patient of the clusters that have none.
    fn patience_of(&self, table: &RouteTable) -> Duration {
        let cold = table.clusters.iter().filter(|used| !self.cluster_is_warm(used.id));
        let patience = cold.map(|used| {
            let cluster = self.cluster_list.get(used.id.index()).and_then(Option::as_ref);
            cluster.map_or(INIT_TIMEOUT, |cluster| endpoints_wait(cluster))
        });
        patience.max().unwrap_or(INIT_TIMEOUT)
    }

    fn cluster_is_warm(&self, id: ClusterId) -> bool {
        self.cluster_list.get(id.index()).and_then(Option::as_ref).is_some_and(|cluster| cluster.is_warm())
    }

    fn table_is_ready(&self, table: &RouteTable) -> bool {
        table.clusters.iter().all(|used| self.cluster_is_warm(used.id))
    }

    fn listener_is_ready(&self, listener: &ListenerSpec) -> bool {
        has_secrets(listener)
            && listener.chains.iter().all(|chain| match &chain.filter {
                NetworkFilter::Http(http) => {
                    http.authz_clusters().all(|id| self.cluster_is_warm(id)) && self.routes_are_ready(http)
                }
                NetworkFilter::Tcp(tcp) => tcp.clusters.iter().all(|(id, _)| self.cluster_is_warm(*id)),
            })
    }

    fn routes_are_ready(&self, http: &HttpSpec) -> bool {
        match (&http.routes, &http.rds) {
            (RouteSource::Inline(table), _) => self.table_is_ready(table),
            (RouteSource::Rds(_), rds) => {
                rds.as_ref().is_none_or(|rds| self.route_tables.contains_key(&rds.name))
            }
        }
    }

    /// Numbers of the clusters that routes and listeners name, in force or about to be.
    fn used_clusters(&self) -> BTreeSet<usize> {
        let mut used = BTreeSet::new();
        let waiting = self.dynamic.warming.tables.values().map(|w| &w.held.value);
        for table in self.route_tables.values().map(|held| &held.value).chain(waiting) {
            used.extend(table.clusters.iter().map(|used| used.id.index()));
        }
        let waiting = self.dynamic.warming.listeners.values().map(|w| &w.held.value);
        for listener in self.listeners.values().map(|held| &held.value).chain(waiting) {
            for http in http_specs(listener) {
                used.extend(http.authz_clusters().map(ClusterId::index));
                if let RouteSource::Inline(table) = &http.routes {
                    used.extend(table.clusters.iter().map(|used| used.id.index()));
                }
            }
            for chain in &listener.chains {
                if let NetworkFilter::Tcp(tcp) = &chain.filter {
                    used.extend(tcp.clusters.iter().map(|(id, _)| id.index()));
                }
            }
        }
        used
    }
}
