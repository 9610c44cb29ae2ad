//! The control runtime's part of outlier detection: when ejections end, success rates, and what is said of panic mode.
//!
//! Nothing is done while nothing happened: a cluster is looked at when a worker ejected somebody or began to count, and then once an
//! interval until there is nothing left to remember.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio::time::Instant;

use super::cluster::Cluster;
use super::endpoint::{Endpoint, EndpointKey};
use super::outlier::{self, OutlierCounts};
use crate::balance::context::Tick;
use crate::config::snapshot::Snapshot;
use crate::resilience::outlier::{Ejection, OutlierSpec, outliers};

/// What is remembered between two looks.
#[derive(Debug, Default)]
pub struct Sweep {
    clusters: HashMap<Arc<str>, Watched>,
    panics: BTreeSet<Arc<str>>,
}

#[derive(Debug, Default)]
struct Watched {
    /// When the interval is over; None when nothing happens.
    due: Option<Instant>,
    ejections: HashMap<EndpointKey, Ejection>,
}

impl Sweep {
    /// When [`Self::turn`] is to be called, if nothing happens before.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.clusters.values().filter_map(|watched| watched.due).min()
    }

    /// Looks at all clusters. Answers the names of those whose endpoints have another health now.
    pub fn turn(&mut self, snapshot: &Snapshot, now: Instant, rng: &mut fastrand::Rng) -> Vec<Arc<str>> {
        self.clusters.retain(|name, _| snapshot.cluster_by_name(name).is_some());
        let mut changed = Vec::new();
        for cluster in snapshot.clusters() {
            let name = &cluster.spec().name;
            let has_changed = match &cluster.spec().outlier {
                Some(spec) => {
                    self.clusters.entry(Arc::clone(name)).or_default().turn(cluster, spec, now, rng)
                }
                // Outlier detection was taken out of the configuration: nobody stays ejected.
                None => {
                    // Also by a request that began before that, and failed afterwards.
                    let known = self.clusters.remove(name).is_some();
                    (known || cluster.state().census().ejected() > 0) && restore_all(cluster)
                }
            };
            if has_changed {
                changed.push(Arc::clone(name));
            }
        }
        changed
    }

    /// Health checks say that an ejected endpoint works: its ejection ends. Answers whether that was a change.
    pub fn restore(&mut self, cluster: &Cluster, endpoint: &Endpoint) -> bool {
        if let Some(watched) = self.clusters.get_mut(&cluster.spec().name)
            && let Some(ejection) = watched.ejections.get_mut(&endpoint.key)
        {
            ejection.end();
        }
        restore(cluster, endpoint)
    }

    /// Says once when a cluster enters panic mode or leaves it.
    pub fn announce_panics(&mut self, snapshot: &Snapshot) {
        let panics =
            |cluster: &&Arc<Cluster>| cluster.endpoints().in_panic() && !cluster.endpoints().is_empty();
        let now: BTreeSet<_> =
            snapshot.clusters().filter(panics).map(|cluster| Arc::clone(&cluster.spec().name)).collect();
        for name in now.difference(&self.panics) {
            let Some(cluster) = snapshot.cluster_by_name(name) else { continue };
            let (usable, of) = (cluster.state().census().is_in(), cluster.endpoints().len());
            let threshold = cluster.spec().lb.panic_threshold;
            tracing::warn!(
                cluster = &**name,
                usable,
                of,
                threshold,
                "panic mode begins: too few endpoints are healthy, so that health is ignored"
            );
        }
        for name in self.panics.difference(&now) {
            tracing::info!(cluster = &**name, "panic mode ends");
        }
        self.panics = now;
    }
}

impl Watched {
    /// Answers whether the health of an endpoint changed.
    fn turn(
        &mut self,
        cluster: &Arc<Cluster>,
        spec: &OutlierSpec,
        now: Instant,
        rng: &mut fastrand::Rng,
    ) -> bool {
        let endpoints = cluster.endpoints().endpoints();
        self.ejections.retain(|key, _| endpoints.iter().any(|endpoint| endpoint.key == *key));
        let mut changed = false;
        if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            compare_rates(cluster, spec, rng);
            changed |= self.end_ejections(cluster, spec, now);
        }
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.state.standing().is_ejected()) {
            let ejection = self.ejections.entry(endpoint.key).or_default();
            if !ejection.is_ejected() {
                let length = ejection.begin(spec, now, rng);
                tracing::debug!(cluster = &*cluster.spec().name, endpoint = %endpoint.spec.address, ?length, "out for");
                changed = true;
            }
        }
        self.ejections.retain(|_, ejection| !ejection.is_over());
        // As long as an interval runs the mark stays, so that no worker wakes us.
        let stirred = || cluster.state().known_outlier().is_some_and(OutlierCounts::take_stirred);
        if self.due.is_none() && (!self.ejections.is_empty() || stirred()) {
            self.due = Some(now + spec.interval);
        }
        changed
    }

    fn end_ejections(&mut self, cluster: &Cluster, spec: &OutlierSpec, now: Instant) -> bool {
        let mut changed = false;
        for endpoint in cluster.endpoints().endpoints() {
            if let Some(ejection) = self.ejections.get_mut(&endpoint.key)
                && ejection.tick(spec, now)
            {
                ejection.end();
                changed |= restore(cluster, endpoint);
            }
        }
        changed
    }
}

fn compare_rates(cluster: &Cluster, spec: &OutlierSpec, rng: &mut fastrand::Rng) {
    let endpoints = cluster.endpoints().endpoints();
    if !spec.wants_rates(endpoints.len()) {
        return;
    }
    let candidates: Vec<_> =
        endpoints.iter().filter(|endpoint| !endpoint.state.standing().is_ejected()).collect();
    let volumes: Vec<_> = candidates.iter().map(|endpoint| endpoint.state.monitor().take_rates()).collect();
    for local in [false, true] {
        let hosts: Vec<_> = candidates
            .iter()
            .zip(&volumes)
            .map(|(endpoint, volumes)| (endpoint.state.monitor(), volumes[usize::from(local)]))
            .collect();
        for (i, cause) in outliers(spec, endpoints.len(), &hosts, local) {
            outlier::eject(cluster, candidates[i], cause, rng.u32(0..100));
        }
    }
}

fn restore_all(cluster: &Cluster) -> bool {
    cluster
        .endpoints()
        .endpoints()
        .iter()
        .fold(false, |changed, endpoint| restore(cluster, endpoint) | changed)
}

fn restore(cluster: &Cluster, endpoint: &Endpoint) -> bool {
    let changed = cluster.state().census().restore(endpoint.state.standing());
    if changed {
        endpoint.state.monitor().forget_rows();
        endpoint.state.starts(Tick::at(Instant::now()));
        tracing::info!(cluster = &*cluster.spec().name, endpoint = %endpoint.spec.address, "no longer ejected");
    }
    changed
}

#[cfg(test)]
#[path = "sweep_tests.rs"]
mod tests;
