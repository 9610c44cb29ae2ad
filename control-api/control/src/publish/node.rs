//! One connected node.

use std::sync::Arc;

use remora_mesh::{Compiler, NodeRequest, NodeResources, Problem, Touched};
use remora_xds::server::SnapshotWatch;
use remora_xds::{Kind, NodeSnapshot, Resources};
use tokio::sync::watch;
use tracing::debug;

use super::matters;
use super::share::Shared;

/// What one node asked for and is to have.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) request: NodeRequest,
    /// Streams of it.
    pub(super) streams: usize,
    /// What it was put together of; None while its workload is not known.
    resources: Option<NodeResources>,
    snapshots: watch::Sender<Option<Arc<NodeSnapshot>>>,
}

impl Node {
    pub(super) fn new(request: NodeRequest) -> Self {
        Self { request, streams: 0, resources: None, snapshots: watch::Sender::new(None) }
    }

    /// What it should have and cannot be sent.
    pub(super) fn problems(&self) -> &[Problem] {
        self.resources.as_ref().map_or(&[], |resources| &resources.problems)
    }

    pub(super) fn subscribe(&self) -> SnapshotWatch {
        self.snapshots.subscribe()
    }

    pub(super) fn is_touched(&self, touched: &Touched) -> bool {
        match &self.resources {
            Some(resources) => matters(&self.request, resources, touched),
            None => !touched.workloads.is_empty(),
        }
    }

    /// Puts together what it is to have now. A sidecar whose workload is not known, or not any more, keeps what it has.
    pub(super) fn assemble(&mut self, compiler: &Compiler, shared: &mut Shared) {
        let resources = match compiler.node(&self.request) {
            Ok(resources) => resources,
            Err(unknown) => return debug!(%unknown, "a sidecar waits for its workload"),
        };
        let old = self.snapshots.borrow().clone().unwrap_or_default();
        let mut new = NodeSnapshot::clone(&old);
        let kinds = [
            (Kind::Cluster, &resources.clusters),
            (Kind::ClusterLoadAssignment, &resources.endpoints),
            (Kind::Listener, &resources.listeners),
            (Kind::RouteConfiguration, &resources.routes),
        ];
        for (kind, compiled) in kinds {
            let made: Resources = compiled
                .iter()
                .map(|(name, resource)| (Arc::clone(name), shared.resource(resource)))
                .collect();
            if !same(&made, old.kind(kind)) {
                new.set(kind, Arc::new(made));
            }
        }
        self.resources = Some(resources);
        let known = self.snapshots.borrow().is_some();
        if !known || Kind::ALL.into_iter().any(|kind| !Arc::ptr_eq(new.kind(kind), old.kind(kind))) {
            self.snapshots.send_replace(Some(Arc::new(new)));
        }
    }
}

/// Whether two maps have the same names with the same versions.
fn same(a: &Resources, b: &Resources) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|((a_name, a), (b_name, b))| {
            a_name == b_name && (Arc::ptr_eq(a, b) || a.version() == b.version() && a.origin() == b.origin())
        })
}
