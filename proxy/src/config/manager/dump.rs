//! The resources in force as they came, for `/config_dump` and for the disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use remora_xds::Kind;
use remora_xds::pb::google::protobuf::Any;

/// A resource as it came. Its kind is that under which it stands.
#[derive(Debug, Clone)]
pub struct Dumped {
    /// The encoded resource.
    pub bytes: Arc<[u8]>,
    /// Its version, when it came from a control plane.
    pub version: Option<Arc<str>>,
}

impl Dumped {
    /// The resource as the wire has it.
    #[must_use]
    pub fn any(&self, kind: Kind) -> Any {
        Any { type_url: kind.type_url().into(), value: self.bytes.to_vec() }
    }
}

/// See the module. Shared with the admin page, so that nothing is copied before somebody looks.
#[derive(Debug, Default)]
pub struct Dump(Mutex<BTreeMap<(Kind, Arc<str>), Dumped>>);

impl Dump {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Kind, Arc<str>), Dumped>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, kind: Kind, name: Arc<str>, resource: Dumped) {
        self.lock().insert((kind, name), resource);
    }

    pub(super) fn get(&self, kind: Kind, name: &Arc<str>) -> Option<Dumped> {
        self.lock().get(&(kind, Arc::clone(name))).cloned()
    }

    /// The same resource came under another version.
    pub(super) fn set_version(&self, kind: Kind, name: &Arc<str>, version: &Arc<str>) {
        if let Some(resource) = self.lock().get_mut(&(kind, Arc::clone(name))) {
            resource.version = Some(Arc::clone(version));
        }
    }

    pub(super) fn remove(&self, kind: Kind, name: &Arc<str>) {
        self.lock().remove(&(kind, Arc::clone(name)));
    }

    /// The resources of one kind by name.
    #[must_use]
    pub fn of(&self, kind: Kind) -> Vec<(Arc<str>, Dumped)> {
        let all = self.lock();
        let own = all.iter().filter(|((k, _), _)| *k == kind);
        own.map(|((_, name), resource)| (Arc::clone(name), resource.clone())).collect()
    }

    /// Everything that came from a control plane.
    #[must_use]
    pub fn from_control_plane(&self) -> Vec<(Kind, Arc<str>, Dumped)> {
        let all = self.lock();
        let dynamic = all.iter().filter(|(_, resource)| resource.version.is_some());
        dynamic.map(|((kind, name), resource)| (*kind, Arc::clone(name), resource.clone())).collect()
    }
}
