//! One worker: a thread with a current-thread runtime that owns its connections, its pools and its metric shard.
//! Nothing in here is shared with another thread but the snapshot and the counters that must mean the same everywhere.

pub mod changes;
pub mod drain;
pub mod run;
pub mod telemetry;
pub mod timer;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use foldhash::HashMap;
use http::HeaderValue;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::changes::Changes;
use self::drain::LocalDrain;
use self::telemetry::WorkerTelemetry;
use crate::balance::WorkerCursor;
use crate::balance::context::{LbContext, Tick};
use crate::config::snapshot::Snapshot;
use crate::policy::jwt::signatures::Signatures;
use crate::resilience::circuit::last_good::shelves::Shelves;
use crate::resilience::overload::Lag;
use crate::telemetry::access_log::{AccessLog, WorkerLogs};
use crate::telemetry::format::{Absent, Format};
use crate::telemetry::record::AccessRecord;
use crate::upstream::cluster::Cluster;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::original_dst::{OriginalDstSpec, OriginalDstTable};
use crate::upstream::pool::Pools;
use crate::why::WorkerStories;

/// How many original destinations a worker remembers.
const ORIGINAL_DESTINATIONS: usize = 10_000;
/// How often it looks for those that nobody asks for any more, while there are any.
const LOOK_FOR_UNUSED: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Worker {
    /// 0 for the first.
    pub id: usize,
    /// Connections to endpoints.
    pub pools: Pools,
    /// Draining.
    pub drain: LocalDrain,
    /// How late it is.
    pub lag: Arc<Lag>,
    /// Changes of rules.
    pub changes: Changes,
    /// The last good answers of destinations whose circuit breakers want them.
    pub last_good: Shelves,
    /// Tokens that were verified.
    pub signatures: RefCell<Signatures>,
    /// This worker's shard of the metrics.
    pub metrics: WorkerTelemetry,
    /// Why requests and connections were refused or lost.
    pub stories: WorkerStories,
    config: Arc<ArcSwap<Snapshot>>,
    cached: RefCell<Rc<Pinned>>,
    /// The configuration that [`Self::changes`] told of last.
    announced: RefCell<Rc<Pinned>>,
    logs: WorkerLogs,
    rng: RefCell<fastrand::Rng>,
    cursors: RefCell<HashMap<Arc<str>, WorkerCursor>>,
    originals: RefCell<OriginalDstTable>,
    /// There is the first of them.
    first_original: Notify,
    formats: RefCell<HashMap<Box<str>, Option<Rc<Format>>>>,
    date: RefCell<(u64, HeaderValue)>,
    connections: Cell<u64>,
}

/// A snapshot as one worker holds it: cloning counts on the worker's own counter, not on the one that all workers share.
#[derive(Debug)]
pub struct Pinned(Arc<Snapshot>);

impl std::ops::Deref for Pinned {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.0
    }
}

impl Worker {
    /// A worker over `config`.
    #[must_use]
    pub fn new(
        id: usize,
        config: Arc<ArcSwap<Snapshot>>,
        metrics: WorkerTelemetry,
        logs: WorkerLogs,
        stories: WorkerStories,
        drain: LocalDrain,
    ) -> Rc<Self> {
        let first = Rc::new(Pinned(config.load_full()));
        Rc::new(Self {
            id,
            pools: Pools::default(),
            drain,
            lag: first.overload.worker(),
            changes: Changes::default(),
            last_good: Shelves::default(),
            signatures: RefCell::default(),
            metrics,
            stories,
            config,
            cached: RefCell::new(Rc::clone(&first)),
            announced: RefCell::new(first),
            logs,
            rng: RefCell::new(fastrand::Rng::new()),
            cursors: RefCell::default(),
            originals: RefCell::new(OriginalDstTable::new(ORIGINAL_DESTINATIONS)),
            first_original: Notify::new(),
            formats: RefCell::default(),
            date: RefCell::new((0, HeaderValue::from_static(""))),
            connections: Cell::new(0),
        })
    }

    /// The configuration of now. Costs one atomic load while nothing changes: the reference count that requests share is
    /// this worker's own.
    #[must_use]
    pub fn snapshot(&self) -> Rc<Pinned> {
        let newest = self.config.load();
        let mut cached = self.cached.borrow_mut();
        if !Arc::ptr_eq(&newest, &cached.0) {
            *cached = Rc::new(Pinned(Arc::clone(&newest)));
        }
        Rc::clone(&cached)
    }

    /// Wakes what is open when rules may say something else about it now. New endpoints alone wake nobody.
    pub fn announce_changes(&self) {
        let newest = self.snapshot();
        let before = self.announced.replace(Rc::clone(&newest));
        if !newest.same_rules(&before) {
            self.changes.announce();
        }
    }

    /// Uses the worker's random numbers.
    pub fn with_rng<R>(&self, f: impl FnOnce(&mut fastrand::Rng) -> R) -> R {
        f(&mut self.rng.borrow_mut())
    }

    /// A number for a new connection, unique in the process.
    pub fn next_connection_id(&self) -> u64 {
        let n = self.connections.get();
        self.connections.set(n + 1);
        (self.id as u64) << 48 | n
    }

    /// Picks an endpoint of `cluster` at `now`.
    #[must_use]
    pub fn pick(
        &self,
        cluster: &Arc<Cluster>,
        mut context: LbContext<'_>,
        now: Instant,
    ) -> Option<Arc<Endpoint>> {
        if cluster.spec().lb.is_timed() {
            context.now = Tick::at(now);
        }
        let mut cursors = self.cursors.borrow_mut();
        let rng = &mut *self.rng.borrow_mut();
        let name = &cluster.spec().name;
        if let Some(cursor) = cursors.get_mut(name) {
            return cluster.pick(cursor, rng, &context).cloned();
        }
        let cursor = cursors.entry(Arc::clone(name)).or_default();
        cluster.pick(cursor, rng, &context).cloned()
    }

    /// The endpoint at an original destination.
    pub fn original_endpoint(
        &self,
        cluster: &Arc<Cluster>,
        spec: &OriginalDstSpec,
        address: SocketAddr,
    ) -> Arc<Endpoint> {
        let mut originals = self.originals.borrow_mut();
        if originals.is_empty() {
            self.first_original.notify_one();
        }
        originals.endpoint(&cluster.spec().name, address, spec.cleanup, Instant::now())
    }

    /// Forgets original destinations that nobody asks for any more, and their pools; for ever.
    pub async fn forget_originals(&self) {
        loop {
            self.first_original.notified().await;
            while !self.originals.borrow().is_empty() {
                tokio::time::sleep(LOOK_FOR_UNUSED).await;
                let left = {
                    let mut originals = self.originals.borrow_mut();
                    originals.expire(Instant::now());
                    originals.take_left()
                };
                if left {
                    self.pools.prune();
                }
            }
        }
    }

    /// A header template, compiled once. None cannot happen for text that the compiler accepted.
    #[must_use]
    pub fn format(&self, template: &str) -> Option<Rc<Format>> {
        if let Some(format) = self.formats.borrow().get(template) {
            return format.clone();
        }
        let format = Format::parse(template, Absent::Omit).ok().map(Rc::new);
        self.formats.borrow_mut().insert(template.into(), format.clone());
        format
    }

    /// The Date of now, made once a second (RFC 9110 §6.6.1).
    #[must_use]
    pub fn date(&self) -> HeaderValue {
        let now = SystemTime::now();
        let second = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut date = self.date.borrow_mut();
        if date.0 != second
            && let Ok(value) = HeaderValue::from_str(&httpdate::fmt_http_date(now))
        {
            *date = (second, value);
        }
        date.1.clone()
    }

    /// Writes a record to `logs`.
    pub fn access_log(&self, logs: &[Arc<AccessLog>], record: &AccessRecord<'_>) {
        self.logs.log_all(logs, record, Instant::now());
    }

    /// The buffers of the access logs.
    #[must_use]
    pub const fn logs(&self) -> &WorkerLogs {
        &self.logs
    }

    /// Forgets what belongs to endpoints and clusters that are gone.
    pub fn prune(&self) {
        let snapshot = self.snapshot();
        self.pools.prune();
        self.cursors.borrow_mut().retain(|name, _| snapshot.cluster_by_name(name).is_some());
        self.last_good.prune(|name| {
            let cluster = snapshot.cluster_by_name(name.strip_prefix("cluster/")?);
            Some(cluster.and_then(|cluster| cluster.spec().circuit.as_ref()?.last_good.as_ref()))
        });
    }
}
