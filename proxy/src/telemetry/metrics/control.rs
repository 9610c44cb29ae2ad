//! Counters of the control side: configuration.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::{Collect, MetricFamily, counters, gauges};

/// A kind of xDS resource, for the label `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResourceKind {
    /// Listener.
    Listener,
    /// RouteConfiguration.
    Route,
    /// Cluster.
    Cluster,
    /// ClusterLoadAssignment.
    Endpoint,
    /// Secret.
    Secret,
}

const KINDS: [(ResourceKind, &str); 5] = [
    (ResourceKind::Listener, "listener"),
    (ResourceKind::Route, "route"),
    (ResourceKind::Cluster, "cluster"),
    (ResourceKind::Endpoint, "endpoint"),
    (ResourceKind::Secret, "secret"),
];

/// Counters of configuration updates.
#[derive(Debug, Default)]
pub struct ControlMetrics {
    accepted: [AtomicU64; KINDS.len()],
    rejected: [AtomicU64; KINDS.len()],
    version: AtomicU64,
    updated: AtomicU64,
    connected: AtomicU64,
    from_disk: AtomicU64,
    unresolved: AtomicU64,
    identity_ends: AtomicU64,
    identity_requests: [AtomicU64; 2],
}

impl ControlMetrics {
    /// Resources that were applied.
    pub fn config_accepted(&self, kind: ResourceKind, resources: u64) {
        self.accepted[kind as usize].fetch_add(resources, Ordering::Relaxed);
    }

    /// Resources that were refused.
    pub fn config_rejected(&self, kind: ResourceKind, resources: u64) {
        self.rejected[kind as usize].fetch_add(resources, Ordering::Relaxed);
    }

    /// A snapshot was published: its number, which goes up by one each time, and when.
    pub fn config_published(&self, version: u64, at: SystemTime) {
        self.version.store(version, Ordering::Relaxed);
        let seconds = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        self.updated.store(seconds, Ordering::Relaxed);
    }

    /// Whether what is served came from disk, and no control plane has confirmed it.
    pub fn config_from_disk(&self, from_disk: bool) {
        self.from_disk.store(u64::from(from_disk), Ordering::Relaxed);
    }

    /// How many names of clusters cannot be resolved at the moment.
    pub fn dns_unresolved(&self, names: u64) {
        self.unresolved.store(names, Ordering::Relaxed);
    }

    /// The identity agent has a new certificate, and when that ends.
    pub fn identity_renewed(&self, not_after: i64) {
        self.identity_ends.store(not_after.try_into().unwrap_or(0), Ordering::Relaxed);
        self.identity_requests[0].fetch_add(1, Ordering::Relaxed);
    }

    /// The identity agent could not get one.
    pub fn identity_failed(&self) {
        self.identity_requests[1].fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the control plane is connected.
    pub fn control_plane_connected(&self, connected: bool) {
        self.connected.store(u64::from(connected), Ordering::Relaxed);
    }
}

impl Collect for ControlMetrics {
    fn collect(&self, out: &mut Vec<MetricFamily>) {
        let by_kind = |cells: &[AtomicU64; KINDS.len()]| {
            KINDS.map(|(kind, name)| (vec![("type", name)], cells[kind as usize].load(Ordering::Relaxed)))
        };
        let help = "Resources of configuration updates that were applied.";
        out.push(counters("remora_config_updates_accepted_total", help, by_kind(&self.accepted)));
        let help = "Resources of configuration updates that were refused; the last good ones stay.";
        out.push(counters("remora_config_updates_rejected_total", help, by_kind(&self.rejected)));
        let help = "Certificates that the identity agent got, and requests that failed.";
        let [got, failed] = [0, 1].map(|i| self.identity_requests[i].load(Ordering::Relaxed));
        let results = [(vec![("result", "ok")], got), (vec![("result", "failed")], failed)];
        out.push(counters("remora_identity_requests_total", help, results));
        for (name, help, value) in [
            (
                "remora_identity_not_after_timestamp_seconds",
                "When the certificate of the identity agent ends; 0 without one.",
                &self.identity_ends,
            ),
            ("remora_config_version", "Number of the snapshot in use.", &self.version),
            ("remora_config_last_update_timestamp_seconds", "When it was published.", &self.updated),
            ("remora_control_plane_connected", "1 while the control plane is connected.", &self.connected),
            (
                "remora_config_from_disk",
                "1 while the last good configuration of an earlier process serves.",
                &self.from_disk,
            ),
            (
                "remora_dns_unresolved_names",
                "Names of clusters that cannot be resolved; their last good addresses serve.",
                &self.unresolved,
            ),
        ] {
            let value = value.load(Ordering::Relaxed) as f64;
            out.push(gauges(name, help, std::iter::once((Vec::new(), value))));
        }
    }
}
