//! Active health checks on the control runtime: one task for each endpoint, which asks it and tells what changed.

pub mod probe;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use self::probe::{ProbeSpec, Prober};
use super::census::Out;
use super::cluster::Cluster;
use super::endpoint::{Endpoint, EndpointKey};
use crate::balance::context::Tick;
use crate::config::snapshot::Snapshot;
use crate::resilience::health::{Checked, Finding, Schedule};

/// `health_checks` of a cluster.
#[derive(Debug)]
pub struct HealthCheckSpec {
    /// When, and what the answers mean.
    pub schedule: Schedule,
    /// What is asked.
    pub probe: ProbeSpec,
    /// `alt_port`.
    pub port: Option<u16>,
    /// `reuse_connection`, default true.
    pub reuse: bool,
    /// `always_log_health_check_failures`.
    pub log_failures: bool,
    /// `always_log_health_check_success`.
    pub log_successes: bool,
    /// Two checks with the same settings have the same.
    pub fingerprint: u64,
}

/// A check of an endpoint changed its health, or was the first.
#[derive(Debug)]
pub struct Report {
    cluster: Arc<str>,
    key: EndpointKey,
    healthy: bool,
}

/// What a [`Report`] is about.
#[derive(Debug)]
pub struct Told {
    /// The cluster of the endpoint.
    pub cluster: Arc<Cluster>,
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Whether it is healthy.
    pub healthy: bool,
    /// Whether the cluster has waited for this and nothing else: [`Cluster::awaits_checks`].
    pub warms: bool,
}

/// All endpoints that are checked.
#[derive(Debug)]
pub struct Checks {
    running: HashMap<(Arc<str>, EndpointKey), Running>,
    send: mpsc::Sender<Report>,
    reports: mpsc::Receiver<Report>,
}

#[derive(Debug)]
struct Running {
    spec: Arc<HealthCheckSpec>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Default for Checks {
    fn default() -> Self {
        let (send, reports) = mpsc::channel(256);
        Self { running: HashMap::new(), send, reports }
    }
}

impl Checks {
    /// Begins to check what `snapshot` has and nobody checks yet, and ends the checks of what has gone. Answers the names of clusters
    /// whose endpoints have another health now: a new one is out until its first check passes.
    pub fn follow(&mut self, snapshot: &Snapshot, config: &Arc<ArcSwap<Snapshot>>) -> Vec<Arc<str>> {
        let mut changed = Vec::new();
        let mut running = HashMap::with_capacity(self.running.len());
        for cluster in snapshot.clusters() {
            if cluster.spec().health_check.is_none() && self.running.is_empty() {
                continue;
            }
            let name = &cluster.spec().name;
            let mut has_changed = false;
            for endpoint in cluster.endpoints().endpoints() {
                let spec = cluster.spec().health_check.as_ref().filter(|_| !endpoint.spec.is_unchecked());
                let place = (Arc::clone(name), endpoint.key);
                let old = self.running.remove(&place);
                has_changed |= match (spec, old) {
                    (Some(spec), Some(old)) if old.spec.fingerprint == spec.fingerprint => {
                        running.insert(place, old);
                        false
                    }
                    (Some(spec), old) => {
                        let (task, out) = self.start(cluster, endpoint, spec, config, old.is_some());
                        running.insert(place, Running { spec: Arc::clone(spec), task });
                        out
                    }
                    (None, Some(_)) => {
                        cluster.checks_ended(endpoint);
                        cluster.state().census().set(endpoint.state.standing(), Out::HealthCheck, false)
                    }
                    (None, None) => false,
                };
            }
            if has_changed {
                changed.push(Arc::clone(name));
            }
        }
        // What is left has gone; its tasks end here.
        self.running = running;
        changed
    }

    fn start(
        &self,
        cluster: &Cluster,
        endpoint: &Endpoint,
        spec: &Arc<HealthCheckSpec>,
        config: &Arc<ArcSwap<Snapshot>>,
        known: bool,
    ) -> (AbortHandle, bool) {
        let standing = endpoint.state.standing();
        // Who has served requests before health checks were configured goes on until a check says otherwise.
        let healthy = if known { !standing.has_failed_health_check() } else { endpoint.state.requests() > 0 };
        let out = cluster.state().census().set(standing, Out::HealthCheck, !healthy);
        let mut checked = Checked::new(healthy);
        if known && standing.was_checked() {
            checked.resume();
        }
        let watcher = Watcher {
            cluster: Arc::clone(&cluster.spec().name),
            key: endpoint.key,
            spec: Arc::clone(spec),
            config: Arc::clone(config),
            send: self.send.clone(),
        };
        (tokio::spawn(watcher.run(checked)).abort_handle(), out)
    }

    /// The next change. Nothing is lost when this is dropped.
    pub async fn next(&mut self) -> Report {
        match self.reports.recv().await {
            Some(report) => report,
            // There is always a sender: our own.
            None => std::future::pending().await,
        }
    }

    /// Another change that is there already.
    pub fn try_next(&mut self) -> Option<Report> {
        self.reports.try_recv().ok()
    }
}

impl Report {
    /// Makes it known to the balancer. None: neither is there any more.
    #[must_use]
    pub fn apply(&self, snapshot: &Snapshot) -> Option<Told> {
        let cluster = snapshot.cluster_by_name(&self.cluster)?;
        let endpoint = cluster.endpoints().endpoints().iter().find(|endpoint| endpoint.key == self.key)?;
        cluster.spec().health_check.as_ref().filter(|_| !endpoint.spec.is_unchecked())?;
        let (name, address) = (&*self.cluster, endpoint.spec.address);
        let changed =
            cluster.state().census().set(endpoint.state.standing(), Out::HealthCheck, !self.healthy);
        match (changed, self.healthy) {
            (true, true) => {
                tracing::info!(cluster = name, endpoint = %address, "health checks pass");
                endpoint.state.starts(Tick::at(Instant::now()));
            }
            (true, false) => tracing::warn!(cluster = name, endpoint = %address, "health checks fail"),
            (false, _) => {}
        }
        let warms = cluster.was_checked(endpoint);
        Some(Told {
            cluster: Arc::clone(cluster),
            endpoint: Arc::clone(endpoint),
            healthy: self.healthy,
            warms,
        })
    }
}

/// Whether a check that passes ends an ejection by outlier detection.
fn ends_ejection(cluster: &Cluster) -> bool {
    cluster.spec().outlier.as_ref().is_some_and(|spec| spec.uneject_on_health_check)
}

/// Checks one endpoint until it is aborted.
struct Watcher {
    cluster: Arc<str>,
    key: EndpointKey,
    spec: Arc<HealthCheckSpec>,
    config: Arc<ArcSwap<Snapshot>>,
    send: mpsc::Sender<Report>,
}

impl Watcher {
    async fn run(self, mut checked: Checked) {
        let schedule = &self.spec.schedule;
        let mut rng = fastrand::Rng::new();
        let (mut prober, mut made_with) = (Prober::default(), None);
        let mut wait =
            if checked.is_first() { Checked::first_wait(schedule, &mut rng) } else { schedule.interval };
        loop {
            tokio::time::sleep(wait).await;
            // Its place in the snapshot may have come only now, or have gone: then nobody waits for this.
            let Some((cluster, endpoint)) = self.find() else {
                wait = Duration::from_millis(10);
                continue;
            };
            // A check without the secrets would say nothing of the endpoint.
            if cluster.spec().tls.as_ref().is_some_and(|tls| !tls.is_ready()) {
                wait = Duration::from_millis(50);
                continue;
            }
            if made_with.replace(cluster.transport()).is_some_and(|made| made != cluster.transport()) {
                prober.close();
            }
            let (finding, why) = self.check(&mut prober, &cluster, &endpoint).await;
            let Some(finding) = finding else {
                tracing::warn!(cluster = &*self.cluster, why, "health check not made");
                wait = schedule.interval;
                continue;
            };
            cluster.state().check_counts[usize::from(finding != Finding::Passed)]
                .fetch_add(1, Ordering::Relaxed);
            self.log(&endpoint, finding, &why);
            let changed = checked.ended(schedule, finding);
            let standing = endpoint.state.standing();
            let restores = finding == Finding::Passed && checked.is_healthy() && ends_ejection(&cluster);
            if changed
                || (restores && standing.is_ejected())
                || !standing.was_checked()
                || checked.is_healthy() == standing.has_failed_health_check()
            {
                let report = Report {
                    cluster: Arc::clone(&self.cluster),
                    key: self.key,
                    healthy: checked.is_healthy(),
                };
                if self.send.send(report).await.is_err() {
                    return;
                }
            }
            let used = cluster.state().connects().established() > 0;
            wait = checked.wait(schedule, used, &mut rng);
        }
    }

    fn find(&self) -> Option<(Arc<Cluster>, Arc<Endpoint>)> {
        let snapshot = self.config.load();
        let cluster = snapshot.cluster_by_name(&self.cluster)?;
        let endpoint = cluster.endpoints().endpoints().iter().find(|endpoint| endpoint.key == self.key)?;
        Some((Arc::clone(cluster), Arc::clone(endpoint)))
    }

    /// What is found of the endpoint, if anything, and why it did not pass.
    async fn check(
        &self,
        prober: &mut Prober,
        cluster: &Cluster,
        endpoint: &Endpoint,
    ) -> (Option<Finding>, String) {
        let probe = prober.check(&self.spec, cluster, endpoint);
        let outcome = tokio::time::timeout(self.spec.schedule.timeout, probe).await;
        let (finding, why) = match outcome {
            Ok(Ok(())) => (Some(Finding::Passed), String::new()),
            Ok(Err(probe::Error { finding, why })) => (finding, why),
            Err(_) => (Some(Finding::Failed), "no answer in time".to_owned()),
        };
        if finding != Some(Finding::Passed) || !self.spec.reuse {
            prober.close();
        }
        (finding, why)
    }

    fn log(&self, endpoint: &Endpoint, finding: Finding, why: &str) {
        let (cluster, address) = (&*self.cluster, endpoint.spec.address);
        if finding == Finding::Passed {
            if self.spec.log_successes {
                tracing::info!(cluster, endpoint = %address, "health check passed");
            }
        } else if self.spec.log_failures {
            tracing::warn!(cluster, endpoint = %address, why, "health check failed");
        } else {
            tracing::debug!(cluster, endpoint = %address, why, "health check failed");
        }
    }
}
