//! What one worker counts.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;

use super::Registry;
use super::family::Handles;
use super::policy::POLICY_CELLS;
use super::refusal::Refusal;
use super::shard::Shard;
use crate::config::names::{ChainId, ClusterId, PolicyId};
use crate::error::Reason;
use crate::telemetry::labels::{
    ClusterLabel, ListenerLabel, Peer, PeerLabels, RequestKey, RequestLabels, TcpKey, TcpLabels,
};

/// Upper bounds of the request duration, µs: 0.1 ms to 5 min.
pub(super) const DURATION_BOUNDS_US: [u64; 19] = [
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
];

/// Upper bounds of body sizes, bytes.
pub(super) const BYTE_BOUNDS: [u64; 11] =
    [0, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20];

/// Each histogram: a cell for each bound, one for what is larger, one for the sum.
const DURATION_CELLS: usize = DURATION_BOUNDS_US.len() + 2;
const BYTE_CELLS: usize = BYTE_BOUNDS.len() + 2;
pub(super) const REQUEST_CELLS: usize = DURATION_CELLS + 2 * BYTE_CELLS;

pub(super) const TCP_CELLS: usize = 4;
/// Names and help of the TCP cells, in their order.
pub(super) const TCP_NAMES: [(&str, &str); TCP_CELLS] = [
    ("tcp_sent_bytes_total", "Bytes sent to the client."),
    ("tcp_received_bytes_total", "Bytes received from the client."),
    ("tcp_connections_opened_total", "TCP connections that began."),
    ("tcp_connections_closed_total", "TCP connections that ended."),
];

/// What workers count of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterCount {
    /// Attempts beyond the first of a request.
    Retries,
    /// Retries that the retry budget did not allow.
    RetriesDenied,
    /// Retries that began beside a try that was late.
    Hedges,
    /// Kept-alive connections that turned out to be closed when they were used again.
    ReuseRaces,
}

impl ClusterCount {
    pub(super) const ALL: [Self; 4] = [Self::Retries, Self::RetriesDenied, Self::Hedges, Self::ReuseRaces];

    /// Name and help of the metric.
    pub(super) const fn metric(self) -> (&'static str, &'static str) {
        match self {
            Self::Retries => ("remora_upstream_retries_total", "Attempts beyond the first of a request."),
            Self::RetriesDenied => {
                ("remora_upstream_retries_denied_total", "Retries that the retry budget did not allow.")
            }
            Self::Hedges => {
                ("remora_upstream_hedges_total", "Retries that began beside a try that was late.")
            }
            Self::ReuseRaces => (
                "remora_upstream_reuse_races_total",
                "Kept-alive connections that turned out to be closed when they were used again.",
            ),
        }
    }
}

/// What is counted of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerCount {
    /// A connection was accepted.
    Accepted,
    /// A connection ended.
    Closed,
    /// A TLS handshake succeeded.
    TlsHandshakes,
}

pub(super) const CLUSTER_CELLS: usize = ClusterCount::ALL.len();
pub(super) const LISTENER_CELLS: usize = 3;

/// Cells of a worker: refusals, then reasons, then floods.
pub(super) const FLOOD_CELL: usize = Refusal::COUNT + Reason::ALL.len();
pub(super) const WORKER_CELLS: usize = FLOOD_CELL + 1;

pub(super) const fn reason_cell(reason: Reason) -> usize {
    Refusal::COUNT + reason as usize
}

pub(super) fn open_downstream(cells: &[u64; LISTENER_CELLS]) -> u64 {
    cells[ListenerCount::Accepted as usize].saturating_sub(cells[ListenerCount::Closed as usize])
}

pub(super) fn listener_in_use(cells: &[u64; LISTENER_CELLS]) -> bool {
    open_downstream(cells) > 0
}

/// What a finished request adds.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestSample {
    /// First byte in to last byte out.
    pub duration: Duration,
    /// Body bytes of the request.
    pub request_bytes: u64,
    /// Body bytes of the response.
    pub response_bytes: u64,
}

impl RequestSample {
    fn add_to(&self, shard: &Shard<REQUEST_CELLS>) {
        let micros = u64::try_from(self.duration.as_micros()).unwrap_or(u64::MAX);
        observe(shard, 0, &DURATION_BOUNDS_US, micros);
        observe(shard, DURATION_CELLS, &BYTE_BOUNDS, self.request_bytes);
        observe(shard, DURATION_CELLS + BYTE_CELLS, &BYTE_BOUNDS, self.response_bytes);
    }
}

fn observe<const N: usize>(shard: &Shard<N>, first: usize, bounds: &[u64], value: u64) {
    shard.add(first + bounds.partition_point(|bound| *bound < value), 1);
    shard.add(first + bounds.len() + 1, value);
}

/// Counters of the TCP connections with one set of labels; a connection keeps it while it is open. A clone is the
/// same counters. It stays on its worker.
#[derive(Debug, Clone)]
pub struct TcpSeries(Local<TCP_CELLS>);

/// Counters of one cluster. A clone is the same counters. It stays on its worker.
#[derive(Debug, Clone)]
pub struct ClusterSeries(Local<CLUSTER_CELLS>);

/// Counters of one listener. A clone is the same counters. It stays on its worker.
#[derive(Debug, Clone)]
pub struct ListenerSeries(Local<LISTENER_CELLS>);

/// A shard that cannot leave its thread, because only one thread may write to it.
#[derive(Debug, Clone)]
struct Local<const N: usize> {
    shard: Arc<Shard<N>>,
    _not_send: std::marker::PhantomData<Rc<()>>,
}

impl<const N: usize> Local<N> {
    fn new(shard: Arc<Shard<N>>) -> Self {
        Self { shard, _not_send: std::marker::PhantomData }
    }
}

impl TcpSeries {
    /// Bytes sent to the client.
    pub fn sent(&self, bytes: u64) {
        self.0.shard.add(0, bytes);
    }
    /// Bytes received from the client.
    pub fn received(&self, bytes: u64) {
        self.0.shard.add(1, bytes);
    }
    /// The connection began.
    pub fn opened(&self) {
        self.0.shard.add(2, 1);
    }
    /// The connection ended.
    pub fn closed(&self) {
        self.0.shard.add(3, 1);
    }
}

impl ClusterSeries {
    /// Counts one.
    pub fn count(&self, what: ClusterCount) {
        self.0.shard.add(what as usize, 1);
    }
}

impl ListenerSeries {
    /// Counts one.
    pub fn count(&self, what: ListenerCount) {
        self.0.shard.add(what as usize, 1);
    }
}

/// Policies by filter chain.
pub(super) type PolicyHandles = Handles<(ChainId, PolicyId), POLICY_CELLS>;

/// The metrics of one worker. A clone is the same metrics; it stays on its worker.
#[derive(Clone)]
pub struct WorkerMetrics(Rc<Inner>);

struct Inner {
    registry: Arc<Registry>,
    worker: u32,
    own: Arc<Shard<WORKER_CELLS>>,
    requests: RefCell<Handles<RequestKey, REQUEST_CELLS>>,
    tcp: RefCell<Handles<TcpKey, TCP_CELLS>>,
    clusters: RefCell<Handles<ClusterId, CLUSTER_CELLS>>,
    policies: RefCell<PolicyHandles>,
    peers: RefCell<HashMap<Arc<PeerLabels>, Peer>>,
}

impl std::fmt::Debug for WorkerMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerMetrics").field("worker", &self.0.worker).finish_non_exhaustive()
    }
}

impl WorkerMetrics {
    pub(super) fn new(registry: Arc<Registry>, worker: u32, own: Arc<Shard<WORKER_CELLS>>) -> Self {
        Self(Rc::new(Inner {
            registry,
            worker,
            own,
            requests: RefCell::new(Handles::new(worker)),
            tcp: RefCell::new(Handles::new(worker)),
            clusters: RefCell::new(Handles::new(worker)),
            policies: RefCell::new(Handles::new(worker)),
            peers: RefCell::default(),
        }))
    }

    pub(super) fn policies(&self) -> (&Registry, &RefCell<PolicyHandles>) {
        (&self.0.registry, &self.0.policies)
    }

    /// Counts a finished request. `labels` is called only when `key` is new on this worker.
    pub fn request(&self, key: &RequestKey, sample: &RequestSample, labels: impl FnOnce() -> RequestLabels) {
        let family = &self.0.registry.requests;
        if let Some(shard) = self.0.requests.borrow().get(key, family) {
            return sample.add_to(shard);
        }
        let labels = labels();
        sample.add_to(&self.0.requests.borrow_mut().resolve(*key, labels, family));
    }

    /// Counters for a TCP connection, to be kept while it is open. `labels` is called only when `key` is new here.
    pub fn tcp(&self, key: &TcpKey, labels: impl FnOnce() -> TcpLabels) -> TcpSeries {
        let family = &self.0.registry.tcp;
        let known = self.0.tcp.borrow().get(key, family).cloned();
        let shard = known.unwrap_or_else(|| {
            let labels = labels();
            self.0.tcp.borrow_mut().resolve(*key, labels, family)
        });
        TcpSeries(Local::new(shard))
    }

    /// Counters of a cluster. A connection keeps them while it is open, so that opening and closing is counted in
    /// the same place. `name` is called only when the cluster is new on this worker.
    pub fn cluster(&self, id: ClusterId, name: impl FnOnce() -> Arc<str>) -> ClusterSeries {
        let family = &self.0.registry.clusters;
        let known = self.0.clusters.borrow().get(&id, family).cloned();
        let shard = known.unwrap_or_else(|| {
            let label = ClusterLabel(name());
            self.0.clusters.borrow_mut().resolve(id, label, family)
        });
        ClusterSeries(Local::new(shard))
    }

    /// Counters of a listener, to be kept by it.
    #[must_use]
    pub fn listener(&self, name: &Arc<str>) -> ListenerSeries {
        // Listeners are few and ask once: no map.
        let mut handles = Handles::<ChainId, LISTENER_CELLS>::new(self.0.worker);
        let label = ListenerLabel(Arc::clone(name));
        ListenerSeries(Local::new(handles.resolve(ChainId::from_index(0), label, &self.0.registry.listeners)))
    }

    /// The number of a peer, to be asked for once in a connection.
    #[must_use]
    pub fn peer(&self, labels: &PeerLabels) -> Peer {
        if let Some(peer) = self.0.peers.borrow().get(labels) {
            return peer.clone();
        }
        let peer = self.0.registry.peer(labels);
        if *peer.labels == *labels {
            self.0.peers.borrow_mut().insert(Arc::clone(&peer.labels), peer.clone());
        }
        peer
    }

    /// A connection was refused.
    pub fn refused(&self, why: Refusal) {
        self.0.own.add(why.cell(), 1);
    }

    /// The proxy answered, or lost, a request itself.
    pub fn local_reply(&self, reason: Reason) {
        self.0.own.add(reason_cell(reason), 1);
    }

    /// A connection was closed because its peer flooded us.
    pub fn flooded(&self) {
        self.0.own.add(FLOOD_CELL, 1);
    }

    /// Forgets which series a key stands for. To be called when the configuration changed: a filter chain or
    /// cluster keeps its number, but its labels may be others now.
    pub fn forget_labels(&self) {
        self.0.requests.borrow_mut().forget();
        self.0.tcp.borrow_mut().forget();
        self.0.policies.borrow_mut().forget();
    }
}
