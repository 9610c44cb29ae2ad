//! What one node is to have.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::kind::Kind;
use crate::resource::Resource;

/// The resources of one kind, by name.
pub type Resources = BTreeMap<Arc<str>, Arc<Resource>>;

/// Everything that one node is to have. A clone costs one reference count for each kind, and what two snapshots have in
/// common is shared: a change of one resource copies the map of its kind, a map of pointers.
#[derive(Debug, Clone, Default)]
pub struct NodeSnapshot {
    kinds: [Arc<Resources>; Kind::ALL.len()],
}

impl NodeSnapshot {
    /// The resources of `kind`.
    #[must_use]
    pub const fn kind(&self, kind: Kind) -> &Arc<Resources> {
        &self.kinds[kind.index()]
    }

    /// The resource `name` of `kind`.
    #[must_use]
    pub fn get(&self, kind: Kind, name: &str) -> Option<&Arc<Resource>> {
        self.kind(kind).get(name)
    }

    /// Puts `resource` in, in place of the one with its kind and name.
    pub fn insert(&mut self, resource: Arc<Resource>) {
        let resources = Arc::make_mut(&mut self.kinds[resource.kind().index()]);
        resources.insert(Arc::clone(resource.name()), resource);
    }

    /// Takes the resource `name` of `kind` out.
    pub fn remove(&mut self, kind: Kind, name: &str) -> Option<Arc<Resource>> {
        self.get(kind, name)?;
        Arc::make_mut(&mut self.kinds[kind.index()]).remove(name)
    }

    /// Replaces all resources of `kind`, with a map that several nodes may share.
    pub fn set(&mut self, kind: Kind, resources: Arc<Resources>) {
        self.kinds[kind.index()] = resources;
    }

    /// All resources.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.kinds.iter().flat_map(|resources| resources.values())
    }

    /// How many resources there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kinds.iter().map(|resources| resources.len()).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl FromIterator<Arc<Resource>> for NodeSnapshot {
    fn from_iter<I: IntoIterator<Item = Arc<Resource>>>(resources: I) -> Self {
        let mut snapshot = Self::default();
        for resource in resources {
            snapshot.insert(resource);
        }
        snapshot
    }
}

impl FromIterator<Resource> for NodeSnapshot {
    fn from_iter<I: IntoIterator<Item = Resource>>(resources: I) -> Self {
        resources.into_iter().map(Arc::new).collect()
    }
}
