//! Clusters in force, and the endpoints that they take from load assignments and DNS.

use std::sync::Arc;

use remora_xds::Kind;

use super::{Held, Manager, Origin, put};
use crate::upstream::cluster::{Cluster, ClusterSpec, Discovery};
use crate::upstream::dns::DnsUpdate;
use crate::upstream::endpoint::Assignment;

impl Manager {
    /// Takes over what DNS answered for a cluster. False: the cluster is gone, or has its endpoints from elsewhere since it was asked.
    pub fn apply_dns(&mut self, update: &DnsUpdate) -> bool {
        let held = self.clusters.get_mut(&update.cluster);
        let held = held.filter(|held| matches!(held.value.spec().discovery, Discovery::Dns(_)));
        let Some(held) = held else { return false };
        held.value = Arc::new(held.value.with_assignment(&update.assignment));
        let value = Arc::clone(&held.value);
        self.show(&update.cluster, Some(value));
        true
    }

    /// The health of endpoints of these clusters changed.
    pub fn rebalance(&mut self, names: &[Arc<str>]) {
        for name in names {
            let Some(held) = self.clusters.get_mut(name) else { continue };
            held.value = Arc::new(held.value.rebalanced());
            let value = Arc::clone(&held.value);
            self.show(name, Some(value));
        }
    }

    pub(super) fn put_assignment(
        &mut self,
        hash: u64,
        name: &Arc<str>,
        assignment: Assignment,
        origin: &Origin,
    ) {
        put(&mut self.assignments, name, Held { origin: origin.clone(), hash, value: Arc::new(()) });
        let Some(users) = self.eds_users.get(name).cloned() else {
            self.parked.insert(Arc::clone(name), assignment);
            return;
        };
        for cluster in users {
            self.attach(&cluster, Some(&assignment));
        }
    }

    /// Brings a cluster into force, at once or, when it would fail every handshake in the place of one that works, when its secrets are there.
    pub(super) fn put_cluster(&mut self, hash: u64, spec: ClusterSpec, origin: &Origin) {
        let new = Held { origin: origin.clone(), hash, value: Arc::new(spec) };
        let name = Arc::clone(&new.value.name);
        self.dynamic.warming.clusters.remove(&name);
        let works = self.clusters.get(&name).is_some_and(|old| tls_is_ready(old.value.spec()));
        if works && !tls_is_ready(&new.value) {
            self.dynamic.warming.clusters.insert(name, new);
        } else {
            self.replace_cluster(new);
        }
    }

    pub(super) fn replace_cluster(&mut self, new: Held<ClusterSpec>) {
        let Held { origin, hash, value: spec } = new;
        let name = Arc::clone(&spec.name);
        let old = self.clusters.get(&name);
        if old.is_some_and(|old| old.hash == hash && old.origin == origin) {
            return;
        }
        let value =
            old.map_or_else(|| Cluster::new(Arc::clone(&spec)), |old| old.value.with_spec(Arc::clone(&spec)));
        self.unlink(&name);
        if let Discovery::Eds(eds) = &spec.discovery {
            self.eds_users.entry(Arc::clone(&eds.service_name)).or_default().push(Arc::clone(&name));
        }
        self.clusters.insert(Arc::clone(&name), Held { origin, hash, value: Arc::new(value) });
        let assignment = self.assignment_of(&name);
        self.attach(&name, assignment.as_ref());
    }

    /// What a cluster that has just come takes its endpoints from, if that is there already.
    fn assignment_of(&mut self, name: &Arc<str>) -> Option<Assignment> {
        let Discovery::Eds(eds) = &self.clusters.get(name)?.value.spec().discovery else { return None };
        let service = Arc::clone(&eds.service_name);
        if !self.assignments.contains_key(&service) {
            return None;
        }
        self.parked.remove(&service).or_else(|| {
            let other = self.eds_users.get(&service)?.iter().find(|user| *user != name)?;
            Some(self.clusters.get(other)?.value.endpoints().assignment())
        })
    }

    pub(super) fn remove_cluster(&mut self, name: &Arc<str>) {
        self.unlink(name);
        self.dynamic.warming.clusters.remove(name);
        if let Some(held) = self.clusters.remove(name) {
            held.value.endpoints().retire();
        }
        self.dump.remove(Kind::Cluster, name);
        self.show(name, None);
    }

    /// The cluster no longer takes endpoints from its assignment. Those of an assignment that nobody uses now are parked.
    fn unlink(&mut self, name: &str) {
        let Some(old) = self.clusters.get(name).map(|old| &old.value) else { return };
        let Discovery::Eds(eds) = &old.spec().discovery else { return };
        if let Some(users) = self.eds_users.get_mut(&eds.service_name) {
            users.retain(|user| **user != *name);
            if users.is_empty() {
                let service = Arc::clone(&eds.service_name);
                if self.assignments.contains_key(&service) {
                    self.parked.insert(Arc::clone(&service), old.endpoints().assignment());
                }
                self.eds_users.remove(&service);
            }
        }
    }

    /// Gives an EDS cluster its endpoints, and shows it. One that has the same ones already keeps its pointer.
    fn attach(&mut self, name: &Arc<str>, assignment: Option<&Assignment>) {
        let Some(held) = self.clusters.get_mut(name) else { return };
        if let Some(assignment) = assignment {
            let next = held.value.with_assignment(assignment);
            if !(held.value.is_discovered() && same_endpoints(&held.value, &next)) {
                held.value = Arc::new(next);
            }
        }
        let value = Arc::clone(&held.value);
        self.show(name, Some(value));
    }

    /// What the next snapshot shows under the name of a cluster.
    pub(super) fn show(&mut self, name: &Arc<str>, cluster: Option<Arc<Cluster>>) {
        cluster.iter().for_each(|cluster| cluster.stays_warm());
        let cluster = cluster.map(|cluster| self.in_zones(name, cluster));
        let index = self.names.clusters.intern_shared(name).index();
        let list = Arc::make_mut(&mut self.cluster_list);
        if list.len() <= index {
            list.resize(index + 1, None);
        }
        if list[index].is_some() != cluster.is_some() {
            self.cluster_ids = None;
        }
        list[index] = cluster;
        self.note_zones(name);
    }
}

/// Whether the secrets of a cluster have come.
pub(super) fn tls_is_ready(spec: &ClusterSpec) -> bool {
    spec.tls.as_ref().is_none_or(|tls| tls.is_ready())
}

fn same_endpoints(a: &Cluster, b: &Cluster) -> bool {
    let (a, b) = (a.endpoints(), b.endpoints());
    let shared = || a.endpoints().iter().zip(b.endpoints()).all(|(a, b)| Arc::ptr_eq(a, b));
    a.policy() == b.policy() && a.len() == b.len() && shared()
}
