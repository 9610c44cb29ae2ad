//! Documents and registrations -> what every connected node is to have.
//!
//! [`Publisher`] keeps a compiler up to date with the registry and gives each node a snapshot. A change puts together the nodes
//! that it touches, and no others; what nodes have in common is one resource, shared.

mod change;
mod follow;
mod node;
mod peers;
mod share;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use remora_mesh::{Compiler, Mesh, NodeKind, NodeRequest, Profile};
use remora_xds::server::{Client, Denied, SnapshotWatch, Snapshots};
use remora_xds::{Kind, Resource};
use tokio::time::Instant;

use crate::board::{Board, Proxy, Refusal};
use crate::ca::service::Shown;
use crate::clock::rfc3339;
use crate::quota;

pub use follow::follow;

use node::Node;
use peers::{allowed, keep};
use share::Shared;

/// Names that one node may ask for.
const WANTED: usize = 10_000;

/// See the module.
#[derive(Debug)]
pub struct Publisher {
    state: Mutex<State>,
    board: Arc<Board>,
}

#[derive(Debug)]
struct State {
    compiler: Compiler,
    shared: Shared,
    /// By what they say of themselves: several streams may be of one node.
    nodes: HashMap<NodeKey, Node>,
    streams: HashMap<u64, NodeKey>,
    /// The secret that says whom to trust; every node has it.
    trust: Option<Arc<Resource>>,
    /// Who shares the limits that sidecars keep together.
    quotas: Option<quota::Service>,
}

/// Id of a node, what it says of itself, and the certificate that it showed.
type NodeKey = (String, String, Option<Shown>);

impl Publisher {
    /// Without documents.
    #[must_use]
    pub fn new(profile: Profile, board: Arc<Board>) -> Self {
        let state = State {
            compiler: Compiler::new(Mesh::default(), profile),
            shared: Shared::default(),
            nodes: HashMap::new(),
            streams: HashMap::new(),
            trust: None,
            quotas: None,
        };
        Self { state: Mutex::new(state), board }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells `quotas` from now on which limits there are.
    pub fn tell(&self, quotas: quota::Service) {
        self.state().quotas = Some(quotas);
    }

    /// Makes changes, and gives new snapshots to the nodes that they touch.
    pub fn apply(&self, changes: Vec<remora_mesh::Change>) {
        let began = Instant::now();
        let mut state = self.state();
        let state = &mut *state;
        let limits = changes.iter().any(is_limit);
        let touched = state.compiler.apply(changes);
        if limits && let Some(quotas) = &state.quotas {
            quotas.set(remora_mesh::leases(state.compiler.mesh()).collect());
        }
        for ((id, ..), node) in &mut state.nodes {
            if node.follow(&touched, &state.compiler, &mut state.shared) {
                self.board.set_problems(id, node.problems());
            }
        }
        if !touched.workloads.is_empty() {
            let mesh = state.compiler.mesh();
            keep(&mut state.nodes, &mut state.streams, |node, shown| {
                allowed(mesh, &node.request, shown).is_ok()
            });
        }
        state.shared.forget_unused();
        self.board.compiled(began.elapsed());
    }
}

fn is_limit(change: &remora_mesh::Change) -> bool {
    let key = match change {
        remora_mesh::Change::Put(document) => document.key(),
        remora_mesh::Change::Remove(key) => key.clone(),
        _ => return false,
    };
    key.kind == remora_mesh::Kind::RateLimitPolicy
}

impl Publisher {
    /// Gives every node `secret`, and what comes later too; nothing else of them changes.
    pub fn trust(&self, secret: &Arc<Resource>) {
        let mut state = self.state();
        state.trust = Some(Arc::clone(secret));
        for node in state.nodes.values_mut() {
            node.trust(secret);
        }
    }

    /// Ends the streams of nodes that showed a certificate which may not have resources any more.
    pub fn expel(&self, is_out: impl Fn(&Shown) -> bool) {
        let mut state = self.state();
        let State { nodes, streams, .. } = &mut *state;
        keep(nodes, streams, |_, shown| !is_out(shown));
    }
}

impl Snapshots for Publisher {
    fn watch(&self, client: &Client) -> Result<SnapshotWatch, Denied> {
        let request = NodeRequest::of(&client.node).map_err(|bad| Denied::Unknown(bad.to_string()))?;
        let workload = request.workload.as_ref().map(|name| format!("{}/{name}", request.namespace));
        let shown = client.certificates.first().map(|leaf| Shown::of(leaf));
        let key = (client.node.id.clone(), format!("{request:?}"), shown);
        let snapshots = {
            let mut state = self.state();
            let state = &mut *state;
            if let Some(shown) = &key.2 {
                allowed(state.compiler.mesh(), &request, shown)?;
            }
            state.streams.insert(client.stream, key.clone());
            let trust = state.trust.as_ref();
            let node = state.nodes.entry(key).or_insert_with(|| Node::new(request, trust));
            node.streams += 1;
            if node.streams == 1 {
                node.assemble(&state.compiler, &mut state.shared);
                self.board.set_problems(&client.node.id, node.problems());
            }
            let snapshots = node.subscribe();
            state.shared.forget_unused();
            snapshots
        };
        let proxy = Proxy {
            node: client.node.id.clone(),
            workload,
            address: client.address,
            variant: client.variant.to_owned(),
            agent: agent(client),
            since: rfc3339(SystemTime::now()),
            ..Proxy::default()
        };
        self.board.opened(client.stream, proxy, snapshots.clone());
        Ok(snapshots)
    }

    fn wanted(&self, client: &Client, kind: Kind, names: &[Arc<str>]) {
        let mut state = self.state();
        let state = &mut *state;
        let Some(node) = state.streams.get(&client.stream).and_then(|key| state.nodes.get_mut(key)) else {
            return;
        };
        // Secrets are no part of the mesh. The others a sidecar knows from clusters and listeners that it was sent, and that may have gone this moment.
        if kind == Kind::Secret || node.request.kind == NodeKind::Sidecar && !kind.is_complete() {
            return;
        }
        let before = node.request.wanted.len();
        let room = WANTED.saturating_sub(before);
        for name in names.iter().take(room) {
            node.request.wanted.insert(name.to_string());
        }
        if let Some(name) = names.get(room) {
            let dropped = names.len() - room;
            tracing::warn!(node = client.node.id, most = WANTED, dropped, first = %name, "a node asks for too many names");
        }
        if node.request.wanted.len() > before {
            node.assemble(&state.compiler, &mut state.shared);
            self.board.set_problems(&client.node.id, node.problems());
            state.shared.forget_unused();
        }
    }

    fn accepted(&self, client: &Client, resource: &Arc<Resource>) {
        self.board.accepted(client.stream, resource);
    }

    fn refused(&self, client: &Client, resource: &Arc<Resource>, detail: &str) {
        let documents = resource.origin().map(|origin| origin.split(' ').map(str::to_owned).collect());
        let refusal = Refusal {
            kind: resource.kind().to_string(),
            name: resource.name().to_string(),
            version: resource.version().to_string(),
            reason: detail.to_owned(),
            documents: documents.unwrap_or_default(),
        };
        tracing::warn!(
            node = client.node.id,
            kind = refusal.kind,
            name = refusal.name,
            detail,
            "a proxy refuses a resource"
        );
        self.board.refused(client.stream, resource, refusal);
    }

    fn closed(&self, client: &Client, _: &str) {
        self.board.closed(client.stream);
        let mut state = self.state();
        let Some(key) = state.streams.remove(&client.stream) else { return };
        let Some(node) = state.nodes.get_mut(&key) else { return };
        node.streams -= 1;
        if node.streams == 0 {
            state.nodes.remove(&key);
            self.board.set_problems(&client.node.id, &[]);
            state.shared.forget_unused();
        }
    }
}

/// `envoy 1.40.0`, as far as the node says.
fn agent(client: &Client) -> String {
    use remora_xds::pb::envoy::config::core::v3::node::UserAgentVersionType as Said;
    let version = match &client.node.user_agent_version_type {
        Some(Said::UserAgentVersion(version)) => version.clone(),
        Some(Said::UserAgentBuildVersion(build)) => build
            .version
            .as_ref()
            .map(|v| format!("{}.{}.{}", v.major_number, v.minor_number, v.patch))
            .unwrap_or_default(),
        None => String::new(),
    };
    let text = format!("{} {version}", client.node.user_agent_name);
    text.trim().chars().take(100).collect()
}
