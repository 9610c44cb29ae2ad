//! Metrics without locks or shared cache lines on the request path.
//!
//! A series has one `Shard` for each worker: counters that only this worker writes, with plain loads
//! and stores. A worker finds the shard of a request in its own map by a small key; only a key that is new there
//! takes the registry's lock. A scrape, on another thread, adds the shards up.
//!
//! Series are bounded (features.md N2): at most [`Options::max_series`] of a family, further label sets are counted
//! in one series whose labels are all `other`; a series that did not change for [`Options::idle`] disappears.

mod control;
mod expose;
mod family;
mod policy;
mod process;
mod refusal;
mod shard;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use foldhash::HashMap;
use prometheus::TextEncoder;
use tokio::time::Instant;

use super::labels::{
    ClusterLabel, ListenerLabel, Peer, PeerId, PeerLabels, PolicyLabels, RequestLabels, TcpLabels,
};

pub use control::{ControlMetrics, ResourceKind};
pub use expose::{counters, gauges};
pub use policy::Decision;
pub use prometheus::proto::MetricFamily;
pub use refusal::Refusal;
pub use worker::{
    ClusterCount, ClusterSeries, ListenerCount, ListenerSeries, RequestSample, TcpSeries, WorkerMetrics,
};

use family::Family;
use shard::Shard;

/// Most peers that are told apart.
const MAX_PEERS: usize = 65_536;

/// Something that adds metrics to a scrape, which runs on the control runtime.
pub trait Collect: Send + Sync {
    /// Appends metric families. Families of the same name from several sources are joined.
    fn collect(&self, out: &mut Vec<MetricFamily>);
}

/// Settings of a [`Registry`].
#[derive(Debug, Clone)]
pub struct Options {
    /// Prefix of the request and TCP metrics: `remora_`, or `istio_` for boards that look for it.
    pub istio_prefix: Arc<str>,
    /// Series of one family.
    pub max_series: usize,
    /// A series that did not change for this long disappears.
    pub idle: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { istio_prefix: "remora_".into(), max_series: 10_000, idle: Duration::from_secs(600) }
    }
}

/// All metrics of the process.
pub struct Registry {
    /// Counters of the control side.
    pub control: ControlMetrics,
    options: Options,
    requests: Family<RequestLabels, { worker::REQUEST_CELLS }>,
    tcp: Family<TcpLabels, { worker::TCP_CELLS }>,
    clusters: Family<ClusterLabel, { worker::CLUSTER_CELLS }>,
    listeners: Family<ListenerLabel, { worker::LISTENER_CELLS }>,
    policies: Family<PolicyLabels, { policy::POLICY_CELLS }>,
    workers: Mutex<Vec<Arc<Shard<{ worker::WORKER_CELLS }>>>>,
    peers: Mutex<HashMap<Arc<PeerLabels>, PeerId>>,
    next_worker: AtomicU32,
    collectors: Mutex<Vec<Arc<dyn Collect>>>,
    started: SystemTime,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("options", &self.options).finish_non_exhaustive()
    }
}

/// A poisoned lock only means that another thread panicked; counters are never half-written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// An empty registry. `started` is the start of the process.
    #[must_use]
    pub fn new(options: Options, started: SystemTime) -> Arc<Self> {
        let (max, idle) = (options.max_series, options.idle);
        let unknown = (Arc::new(PeerLabels::default()), PeerId::default());
        Arc::new(Self {
            control: ControlMetrics::default(),
            requests: Family::new(max, idle, |_| false),
            tcp: Family::new(max, idle, |_| false),
            clusters: Family::new(max, idle, |_| false),
            listeners: Family::new(max, idle, worker::listener_in_use),
            policies: Family::new(max, idle, |_| false),
            workers: Mutex::default(),
            peers: Mutex::new(std::iter::once(unknown).collect()),
            next_worker: AtomicU32::new(0),
            collectors: Mutex::default(),
            options,
            started,
        })
    }

    /// The metrics of one worker; to be made on the worker.
    #[must_use]
    pub fn worker(self: &Arc<Self>) -> WorkerMetrics {
        let own = Arc::new(Shard::default());
        lock(&self.workers).push(Arc::clone(&own));
        WorkerMetrics::new(Arc::clone(self), self.next_worker.fetch_add(1, Ordering::Relaxed), own)
    }

    /// Adds a source of metrics.
    pub fn add(&self, collector: Arc<dyn Collect>) {
        lock(&self.collectors).push(collector);
    }

    /// The number of a peer. Beyond 65,536 all further ones are one peer `other`.
    fn peer(&self, labels: &PeerLabels) -> Peer {
        let mut peers = lock(&self.peers);
        if let Some((labels, id)) = peers.get_key_value(labels) {
            return Peer { id: *id, labels: Arc::clone(labels) };
        }
        if peers.len() >= MAX_PEERS {
            return Peer { id: PeerId(u32::MAX), labels: Arc::new(PeerLabels::all("other")) };
        }
        let labels = Arc::new(labels.clone());
        let id = PeerId(u32::try_from(peers.len()).unwrap_or(u32::MAX));
        peers.insert(Arc::clone(&labels), id);
        Peer { id, labels }
    }

    /// All metrics, sorted by name. `now` decides which series are idle.
    #[must_use]
    pub fn gather(&self, now: Instant) -> Vec<MetricFamily> {
        let mut all = Vec::new();
        self.collect_series(now, &mut all);
        self.control.collect(&mut all);
        process::collect(self.started, &mut all);
        let collectors = lock(&self.collectors).clone();
        for collector in collectors {
            collector.collect(&mut all);
        }
        let mut by_name: BTreeMap<String, MetricFamily> = BTreeMap::new();
        for mut family in all.into_iter().filter(|f| !f.get_metric().is_empty()) {
            match by_name.entry(family.name().to_owned()) {
                std::collections::btree_map::Entry::Occupied(same) => {
                    same.into_mut().mut_metric().append(family.mut_metric());
                }
                std::collections::btree_map::Entry::Vacant(new) => {
                    new.insert(family);
                }
            }
        }
        by_name.into_values().collect()
    }

    /// The text that Prometheus scrapes.
    ///
    /// # Errors
    /// A metric name that is not one, which would be a mistake of ours.
    pub fn encode(&self, now: Instant) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.gather(now))
    }
}
