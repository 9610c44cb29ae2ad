//! One connected node.

use std::collections::BTreeSet;
use std::sync::Arc;

use remora_mesh::{Compiler, Name, NodeRequest, NodeResources, Problem, Touched};
use remora_xds::server::SnapshotWatch;
use remora_xds::{Kind, NodeSnapshot, Resource, Resources};
use tokio::sync::watch;
use tracing::debug;

use super::share::Shared;

/// What one node asked for and is to have.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) request: NodeRequest,
    /// Streams of it.
    pub(super) streams: usize,
    /// What it was put together of; None while its workload is not known.
    uses: Option<Uses>,
    /// The secret that says whom to trust.
    trust: Option<Arc<Resource>>,
    snapshots: watch::Sender<Option<Arc<NodeSnapshot>>>,
}

/// What a node's resources depend on.
#[derive(Debug)]
struct Uses {
    services: BTreeSet<Name>,
    /// All of its namespace.
    whole_namespace: bool,
    /// All of the mesh.
    whole_mesh: bool,
    /// What it should have and cannot be sent.
    problems: Vec<Problem>,
}

/// How much of a node a change concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Concern {
    Nothing,
    /// Where its Services are, and nothing else.
    Endpoints,
    Everything,
}

impl Node {
    pub(super) fn new(request: NodeRequest, trust: Option<&Arc<Resource>>) -> Self {
        Self { request, streams: 0, uses: None, trust: trust.cloned(), snapshots: watch::Sender::new(None) }
    }

    /// Trusts what `secret` says from now on.
    pub(super) fn trust(&mut self, secret: &Arc<Resource>) {
        self.trust = Some(Arc::clone(secret));
        let Some(mut snapshot) = self.snapshots.borrow().as_deref().cloned() else { return };
        if snapshot.get(Kind::Secret, secret.name()).is_none_or(|old| !alike(old, secret)) {
            snapshot.insert(Arc::clone(secret));
            self.snapshots.send_replace(Some(Arc::new(snapshot)));
        }
    }

    /// What it should have and cannot be sent.
    pub(super) fn problems(&self) -> &[Problem] {
        self.uses.as_ref().map_or(&[], |uses| &uses.problems)
    }

    pub(super) fn subscribe(&self) -> SnapshotWatch {
        self.snapshots.subscribe()
    }

    /// Gives it what changed for it. True: it was put together anew.
    pub(super) fn follow(&mut self, touched: &Touched, compiler: &Compiler, shared: &mut Shared) -> bool {
        let concern = self.concern(touched);
        match concern {
            Concern::Nothing => {}
            Concern::Endpoints => self.move_endpoints(&touched.endpoints, compiler, shared),
            Concern::Everything => self.assemble(compiler, shared),
        }
        concern == Concern::Everything
    }

    fn concern(&self, touched: &Touched) -> Concern {
        let Some(uses) = &self.uses else {
            return if touched.workloads.is_empty() { Concern::Nothing } else { Concern::Everything };
        };
        let namespace = &*self.request.namespace;
        let own = self.request.workload.as_deref().is_some_and(|workload| {
            touched.workloads.iter().any(|name| *name.name == *workload && *name.namespace == *namespace)
        });
        let around = (uses.whole_mesh && !touched.namespaces.is_empty())
            || (uses.whole_namespace && touched.namespaces.iter().any(|touched| **touched == *namespace));
        let uses_one = |names: &BTreeSet<Name>| names.iter().any(|name| uses.services.contains(name));
        if own || around || uses_one(&touched.services) {
            Concern::Everything
        } else if uses_one(&touched.endpoints) {
            Concern::Endpoints
        } else {
            Concern::Nothing
        }
    }

    /// Puts the load assignments of `services` in the places of those that it has: nothing else of it has to be looked at, and a change
    /// of an endpoint may concern every node.
    fn move_endpoints(&mut self, services: &BTreeSet<Name>, compiler: &Compiler, shared: &mut Shared) {
        let Some(mut snapshot) = self.snapshots.borrow().as_deref().cloned() else { return };
        let mut moved = false;
        let uses = self.uses.as_ref();
        let used: Vec<_> =
            services.iter().filter(|name| uses.is_some_and(|u| u.services.contains(name))).collect();
        if self.request.intercepted.is_some() {
            for (name, listener) in used.iter().flat_map(|name| compiler.pods(name)) {
                match (snapshot.get(Kind::Listener, &name), listener) {
                    (None, None) => {}
                    (Some(old), Some(new)) => {
                        let new = shared.resource(new);
                        if !alike(old, &new) {
                            snapshot.insert(new);
                            moved = true;
                        }
                    }
                    // The first pod, or the last: a cluster comes or goes with it.
                    _ => return self.assemble(compiler, shared),
                }
            }
        }
        for port in
            used.into_iter().filter_map(|name| compiler.resources(name)).flat_map(|service| &service.ports)
        {
            let old = snapshot.get(Kind::ClusterLoadAssignment, &port.endpoints.name);
            let new = shared.resource(&port.endpoints);
            if old.is_some_and(|old| !alike(old, &new)) {
                snapshot.insert(new);
                moved = true;
            }
        }
        if moved {
            self.snapshots.send_replace(Some(Arc::new(snapshot)));
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
        if let Some(secret) =
            self.trust.as_ref().filter(|trust| new.get(Kind::Secret, trust.name()).is_none())
        {
            new.insert(Arc::clone(secret));
        }
        let NodeResources { services, whole_namespace, whole_mesh, problems, .. } = resources;
        self.uses = Some(Uses { services, whole_namespace, whole_mesh, problems });
        let known = self.snapshots.borrow().is_some();
        if !known || Kind::ALL.into_iter().any(|kind| !Arc::ptr_eq(new.kind(kind), old.kind(kind))) {
            self.snapshots.send_replace(Some(Arc::new(new)));
        }
    }
}

/// Whether two maps have the same names with the same versions.
fn same(a: &Resources, b: &Resources) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|((a_name, a), (b_name, b))| a_name == b_name && alike(a, b))
}

fn alike(a: &Arc<Resource>, b: &Arc<Resource>) -> bool {
    Arc::ptr_eq(a, b) || a.version() == b.version() && a.origin() == b.origin()
}
