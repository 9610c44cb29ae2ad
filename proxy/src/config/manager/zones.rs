//! Zone aware routing: clusters that ask for it know how this proxy and those like it are spread over zones.

use std::sync::Arc;

use remora_xds::pb::envoy::config::bootstrap::v3::Bootstrap;

use super::Manager;
use crate::balance::zone::LocalZones;
use crate::upstream::cluster::Cluster;
use crate::upstream::endpoint::Locality;

/// What the bootstrap says about zones, and what is known.
#[derive(Debug, Default)]
pub(super) struct Zones {
    /// `cluster_manager.local_cluster_name`.
    cluster: Option<Arc<str>>,
    /// `node.locality`.
    own: Locality,
    known: Option<Arc<LocalZones>>,
}

impl Zones {
    pub(super) fn of(bootstrap: &Bootstrap) -> Self {
        let name = bootstrap.cluster_manager.as_ref().map(|manager| manager.local_cluster_name.as_str());
        let own = bootstrap.node.as_ref().and_then(|node| node.locality.as_ref());
        let own = own.map_or_else(Locality::default, |own| Locality {
            region: own.region.as_str().into(),
            zone: own.zone.as_str().into(),
            sub_zone: own.sub_zone.as_str().into(),
        });
        Self { cluster: name.filter(|name| !name.is_empty()).map(Into::into), own, known: None }
    }
}

impl Manager {
    /// The cluster with what is known of zones, if it wants to know.
    pub(super) fn in_zones(&mut self, name: &Arc<str>, cluster: Arc<Cluster>) -> Arc<Cluster> {
        let known = self.zones.known.as_ref();
        if cluster.spec().lb.zone.is_none() || cluster.endpoints().local_zones() == known {
            return cluster;
        }
        let next = Arc::new(cluster.in_zones(known.cloned()));
        if let Some(held) = self.clusters.get_mut(name) {
            held.value = Arc::clone(&next);
        }
        next
    }

    /// Tells the clusters that want to know when the local cluster is another than before.
    pub(super) fn note_zones(&mut self, name: &Arc<str>) {
        if self.zones.cluster.as_ref() != Some(name) {
            return;
        }
        let local = self.clusters.get(name).map(|held| Arc::clone(held.value.endpoints()));
        let known = local.and_then(|local| LocalZones::new(self.zones.own.clone(), &local)).map(Arc::new);
        if self.zones.known == known {
            return;
        }
        self.zones.known = known;
        let aware = self.clusters.iter().filter(|(_, held)| held.value.spec().lb.zone.is_some());
        let aware: Vec<_> = aware.map(|(name, held)| (Arc::clone(name), Arc::clone(&held.value))).collect();
        for (other, cluster) in aware {
            self.show(&other, Some(cluster));
        }
    }
}
