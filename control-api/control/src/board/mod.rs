//! What proxies make of the documents: who is connected, who has what, who refuses what and why.

mod flaw;
mod standing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use remora_mesh::Problem;
use remora_xds::server::SnapshotWatch;
use remora_xds::{Kind, NodeSnapshot, Resource};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::store::{Key, Revision};

pub use flaw::Flaw;
pub use standing::Standing;

/// Refusals of one proxy that are kept.
const REFUSALS: usize = 200;
/// Bytes of a reason that are kept.
const REASON: usize = 2000;

/// A resource that a proxy refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// `Cluster`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Version that was refused.
    pub version: String,
    /// What the proxy says.
    pub reason: String,
    /// Paths of the documents that it was made of.
    pub documents: Vec<String>,
}

/// A stream of a proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// Id of its node.
    pub node: String,
    /// The workload that it stands beside, `default/shop-1`, when it is one.
    pub workload: Option<String>,
    /// Where it connected from.
    pub address: Option<SocketAddr>,
    /// `delta` or `sotw`.
    pub variant: String,
    /// What it says that it is, `envoy 1.40.0`.
    pub agent: String,
    /// Since when, RFC 3339.
    pub since: String,
    /// `Synced`: it has everything. `Syncing`: something is on its way. `Refused`: it refuses something. `Waiting`: its workload is
    /// not known.
    pub state: String,
    /// Resources that it has in force, of those that it is to have.
    pub in_force: usize,
    /// Resources that it is to have.
    pub wanted: usize,
    /// What it refuses.
    pub refusals: Vec<Refusal>,
    /// What it should have and cannot be sent.
    #[serde(default)]
    pub problems: Vec<String>,
}

type Id = (Kind, Arc<str>);

fn id(resource: &Resource) -> Id {
    (resource.kind(), Arc::clone(resource.name()))
}

/// A stream of a proxy.
#[derive(Debug)]
struct Stream {
    proxy: Proxy,
    /// What it is to have.
    snapshots: SnapshotWatch,
    /// Versions in force.
    has: HashMap<Id, Arc<str>>,
    refused: BTreeMap<Id, Refusal>,
    /// The snapshot that it was seen to have whole.
    complete: Option<Arc<NodeSnapshot>>,
}

impl Stream {
    /// What it is to have.
    fn snapshot(&self) -> Arc<NodeSnapshot> {
        self.snapshots.borrow().clone().unwrap_or_default()
    }

    /// What it is to have and asks for: a secret matters to a proxy only if it asked for it, and that shows in its answer to the first.
    fn due<'s>(&self, snapshot: &'s NodeSnapshot) -> impl Iterator<Item = &'s Arc<Resource>> {
        snapshot.iter().filter(|resource| resource.kind() != Kind::Secret || self.knows(&id(resource)))
    }

    fn knows(&self, id: &Id) -> bool {
        self.has.contains_key(id) || self.refused.contains_key(id)
    }

    fn lacks(&self, resource: &Resource) -> bool {
        self.has.get(&id(resource)) != Some(resource.version())
    }

    /// The refusal of a resource that it is to have, in this version.
    fn refusal(&self, resource: &Resource) -> Option<&Refusal> {
        self.refused.get(&id(resource)).filter(|refusal| *refusal.version == **resource.version())
    }

    /// The proxy as it is now.
    fn now(&self) -> Proxy {
        let mut proxy = self.proxy.clone();
        let waits = self.snapshots.borrow().is_none();
        let snapshot = self.snapshot();
        proxy.wanted = self.due(&snapshot).count();
        proxy.in_force = self.due(&snapshot).filter(|resource| !self.lacks(resource)).count();
        proxy.refusals = self.due(&snapshot).filter_map(|resource| self.refusal(resource)).cloned().collect();
        let state = match (&proxy.refusals[..], proxy.in_force < proxy.wanted) {
            _ if waits => "Waiting",
            ([], false) => "Synced",
            ([], true) => "Syncing",
            _ => "Refused",
        };
        state.clone_into(&mut proxy.state);
        proxy
    }

    /// Tells what it lacks and what it refuses.
    fn tell(&mut self, standing: &mut Standing) {
        let snapshot = self.snapshot();
        if self.complete.as_ref().is_some_and(|complete| Arc::ptr_eq(complete, &snapshot)) {
            return;
        }
        let mut lacking = BTreeSet::new();
        let mut complete = true;
        for resource in self.due(&snapshot).filter(|resource| self.lacks(resource)) {
            complete = false;
            match self.refusal(resource) {
                Some(refusal) => standing.refusal(&self.proxy.node, refusal),
                None => lacking.extend(resource.origin().into_iter().flat_map(|origin| origin.split(' '))),
            }
        }
        for document in lacking {
            standing.lacking(&self.proxy.node, document);
        }
        self.complete = complete.then_some(snapshot);
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Board {
    streams: Mutex<BTreeMap<u64, Stream>>,
    /// Documents that are left out, and why; and the newest write that was looked at.
    left_out: RwLock<(Revision, BTreeMap<Key, Vec<Flaw>>)>,
    /// What nodes should have and cannot be sent, by their ids.
    problems: RwLock<BTreeMap<String, Vec<Problem>>>,
    /// The newest write that is in the snapshots.
    followed: AtomicU64,
    files: RwLock<Value>,
    kubernetes: RwLock<Value>,
    accepted: AtomicU64,
    refused: AtomicU64,
    compiled: AtomicU64,
    compile_micros: AtomicU64,
}

impl Board {
    fn streams(&self) -> MutexGuard<'_, BTreeMap<u64, Stream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A proxy has opened a stream; `snapshots` is what it is to have.
    pub fn opened(&self, stream: u64, proxy: Proxy, snapshots: SnapshotWatch) {
        let new = Stream { proxy, snapshots, has: HashMap::new(), refused: BTreeMap::new(), complete: None };
        self.streams().insert(stream, new);
    }

    /// Its stream has ended.
    pub fn closed(&self, stream: u64) {
        self.streams().remove(&stream);
    }

    /// It has a resource in force.
    pub fn accepted(&self, stream: u64, resource: &Resource) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        let (mut streams, id) = (self.streams(), id(resource));
        let Some(stream) = streams.get_mut(&stream) else { return };
        stream.refused.remove(&id);
        stream.has.insert(id, Arc::clone(resource.version()));
        // Of what has gone nobody tells.
        let snapshot = stream.snapshot();
        if stream.has.len() > 2 * snapshot.len() + 100 {
            stream.has.retain(|(kind, name), _| snapshot.get(*kind, name).is_some());
        }
    }

    /// It refuses a resource.
    pub fn refused(&self, stream: u64, resource: &Resource, mut refusal: Refusal) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        if let Some((cut, _)) = refusal.reason.char_indices().find(|(at, _)| *at >= REASON) {
            refusal.reason.truncate(cut);
        }
        let (mut streams, id) = (self.streams(), id(resource));
        let Some(stream) = streams.get_mut(&stream) else { return };
        if stream.refused.len() < REFUSALS || stream.refused.contains_key(&id) {
            stream.refused.insert(id, refusal);
        }
    }

    /// Nodes that asked for this resource, and have another version of it in force.
    #[must_use]
    pub fn laggards(&self, resource: &Resource) -> Vec<String> {
        let streams = self.streams();
        let lag = streams.values().filter(|stream| stream.knows(&id(resource)) && stream.lacks(resource));
        lag.map(|stream| stream.proxy.node.clone()).collect()
    }

    /// Documents that are not right, alone or together with the others, and why: of all that were written up to `checked`. Those that
    /// cannot be read are left out.
    pub fn left_out(&self, checked: Revision, documents: BTreeMap<Key, Vec<Flaw>>) {
        *self.left_out.write().unwrap_or_else(PoisonError::into_inner) = (checked, documents);
    }

    /// What a node should have and cannot be sent; nothing when it has gone.
    pub fn set_problems(&self, node: &str, problems: &[Problem]) {
        let mut all = self.problems.write().unwrap_or_else(PoisonError::into_inner);
        match problems {
            [] => drop(all.remove(node)),
            some => drop(all.insert(node.to_owned(), some.to_vec())),
        }
    }

    /// Every write up to `revision` is in the snapshots.
    pub fn followed(&self, revision: Revision) {
        self.followed.fetch_max(revision, Ordering::Release);
    }

    /// What the folder of documents says of itself.
    pub fn set_files(&self, state: Value) {
        *self.files.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// See [`Self::set_files`]; null without a folder.
    #[must_use]
    pub fn files(&self) -> Value {
        self.files.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How far Kubernetes has been read.
    pub fn set_kubernetes(&self, state: Value) {
        *self.kubernetes.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// See [`Self::set_kubernetes`]; null without Kubernetes.
    #[must_use]
    pub fn kubernetes(&self) -> Value {
        self.kubernetes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The documents were compiled once more.
    pub fn compiled(&self, took: std::time::Duration) {
        self.compiled.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.compile_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Every connected proxy with its sync state, by node.
    #[must_use]
    pub fn proxies(&self) -> Vec<Proxy> {
        let mut all: Vec<_> = self.streams().values().map(Stream::now).collect();
        let problems = self.problems.read().unwrap_or_else(PoisonError::into_inner);
        for proxy in &mut all {
            let own = problems.get(&proxy.node).into_iter().flatten();
            proxy.problems =
                own.map(|problem| format!("{}: {}", problem.document, problem.message)).collect();
        }
        all.sort_by(|a, b| (&a.node, &a.since).cmp(&(&b.node, &b.since)));
        all
    }

    /// What proxies make of the documents now. Made once for many documents.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let mut standing = Standing::new(
            self.followed.load(Ordering::Acquire),
            self.left_out.read().unwrap_or_else(PoisonError::into_inner).clone(),
        );
        for stream in self.streams().values_mut() {
            stream.tell(&mut standing);
        }
        for (node, problems) in self.problems.read().unwrap_or_else(PoisonError::into_inner).iter() {
            for problem in problems {
                standing.problem(node, problem);
            }
        }
        standing
    }

    /// Name, help, type and value of each metric.
    #[must_use]
    pub fn metrics(&self) -> Vec<(&'static str, &'static str, &'static str, f64)> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let connected = self.streams().len() as f64;
        let left_out = self.left_out.read().unwrap_or_else(PoisonError::into_inner).1.len() as f64;
        vec![
            ("remora_control_xds_streams", "Open streams of proxies.", "gauge", connected),
            (
                "remora_control_xds_accepted_total",
                "Resources that proxies took.",
                "counter",
                count(&self.accepted),
            ),
            (
                "remora_control_xds_refused_total",
                "Resources that proxies refused.",
                "counter",
                count(&self.refused),
            ),
            (
                "remora_control_documents_left_out",
                "Documents that are not right together.",
                "gauge",
                left_out,
            ),
            (
                "remora_control_compilations_total",
                "Times that changes were compiled.",
                "counter",
                count(&self.compiled),
            ),
            (
                "remora_control_compile_seconds_total",
                "Time that compiling took.",
                "counter",
                count(&self.compile_micros) / 1e6,
            ),
        ]
    }
}
