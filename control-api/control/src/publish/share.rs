//! Resources of the compiler as the streams send them: each is made once, however many nodes have it.

use std::collections::HashMap;
use std::sync::Arc;

use remora_mesh::ResourceKind;
use remora_xds::pb::envoy::config::cluster::v3::Cluster;
use remora_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use remora_xds::pb::envoy::config::listener::v3::Listener;
use remora_xds::pb::envoy::config::route::v3::RouteConfiguration;
use remora_xds::{Named, Resource};

/// What was made of what. The compiler shares its resources, so that one is known by where it is; it stays there as long as it is in
/// here.
#[derive(Debug, Default)]
pub(super) struct Shared {
    made: HashMap<usize, (Arc<remora_mesh::Resource>, Arc<Resource>)>,
    /// Size after the last cleaning.
    clean: usize,
}

impl Shared {
    pub(super) fn resource(&mut self, compiled: &Arc<remora_mesh::Resource>) -> Arc<Resource> {
        let place = Arc::as_ptr(compiled).addr();
        let (_, made) =
            self.made.entry(place).or_insert_with(|| (Arc::clone(compiled), Arc::new(make(compiled))));
        Arc::clone(made)
    }

    /// How many are kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.made.len()
    }

    /// Forgets what the compiler no longer has, when that may be a part of it.
    pub(super) fn forget_unused(&mut self) {
        if self.made.len() > self.clean + self.clean / 8 + 100 {
            self.made.retain(|_, (compiled, _)| Arc::strong_count(compiled) > 1);
            self.clean = self.made.len();
        }
    }
}

fn make(compiled: &remora_mesh::Resource) -> Resource {
    let made = match compiled.kind {
        ResourceKind::Cluster => read::<Cluster>(compiled),
        ResourceKind::ClusterLoadAssignment => read::<ClusterLoadAssignment>(compiled),
        ResourceKind::Listener => read::<Listener>(compiled),
        ResourceKind::RouteConfiguration => read::<RouteConfiguration>(compiled),
    };
    let documents: Vec<_> = compiled.documents.iter().map(ToString::to_string).collect();
    made.with_origin(documents.join(" "))
}

fn read<M: Named>(compiled: &remora_mesh::Resource) -> Resource {
    // The compiler encoded it from this type.
    Resource::new(&M::decode(compiled.body.value.as_slice()).unwrap_or_default())
}
