//! The resources in force as they came, for `/config_dump` and for the disk.

mod block;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::HashMap;
use remora_xds::Kind;
use remora_xds::pb::google::protobuf::Any;

use self::block::{Block, PACKED, Stored};
pub use self::block::{Together, Unpacker};

/// A resource as it came. Its kind is that under which it stands.
#[derive(Debug, Clone)]
pub struct Dumped {
    /// The encoded resource.
    pub stored: Stored,
    /// Its version, when it came from a control plane.
    pub version: Option<Arc<str>>,
}

impl Dumped {
    /// The resource as the wire has it.
    #[must_use]
    pub fn any(&self, kind: Kind, unpacker: &mut Unpacker) -> Any {
        Any { type_url: kind.type_url().into(), value: unpacker.bytes(&self.stored).to_vec() }
    }
}

type Key = (Kind, Arc<str>);

/// See the module. Shared with the admin page, so that nothing is copied before somebody looks.
#[derive(Debug, Default)]
pub struct Dump(Mutex<BTreeMap<Key, Dumped>>);

impl Dump {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Dumped>> {
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

    /// Packs what came since the last time, when it is much. The work is done while nobody waits for it.
    pub fn pack(&self) {
        let mut after = None;
        while let Some((plain, together)) = self.next_plain(after.as_ref()) {
            self.swap(&plain, together.packed());
            after = plain.into_iter().next_back().map(|(key, _)| key);
        }
        self.part_leftovers();
    }

    /// Puts bytes at another place. Another resource may have come meanwhile: it stays.
    fn swap(&self, before: &[(Key, Stored)], after: impl Iterator<Item = Stored>) {
        let mut all = self.lock();
        for ((key, before), stored) in before.iter().zip(after) {
            if let Some(resource) = all.get_mut(key).filter(|now| now.stored.is(before)) {
                resource.stored = stored;
            }
        }
    }

    /// The next resources that are not packed and make a block; None when there are too few.
    fn next_plain(&self, after: Option<&Key>) -> Option<(Vec<(Key, Stored)>, Together)> {
        let all = self.lock();
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let (mut plain, mut together, mut unpacker) = (Vec::new(), Together::default(), Unpacker::default());
        for (key, Dumped { stored, .. }) in all.range::<Key, _>((start, Bound::Unbounded)) {
            if !stored.block.is_packed() {
                together.add(unpacker.bytes(stored));
                plain.push((key.clone(), stored.clone()));
                if together.bytes() >= PACKED {
                    return Some((plain, together));
                }
            }
        }
        None
    }

    /// Takes what is left of blocks of which most is gone out of them.
    fn part_leftovers(&self) {
        let mut leftovers = self.leftovers();
        // Each block is unpacked once.
        leftovers.sort_by_key(|(_, stored)| Arc::as_ptr(&stored.block));
        let mut unpacker = Unpacker::default();
        for one in leftovers {
            let mut alone = Together::default();
            alone.add(unpacker.bytes(&one.1));
            self.swap(std::slice::from_ref(&one), alone.stored());
        }
    }

    /// Resources in blocks of which most is gone.
    fn leftovers(&self) -> Vec<(Key, Stored)> {
        let all = self.lock();
        let mut used: HashMap<*const Block, usize> = HashMap::default();
        for Dumped { stored, .. } in all.values() {
            *used.entry(Arc::as_ptr(&stored.block)).or_default() += stored.length();
        }
        let is_left = |stored: &Stored| {
            used.get(&Arc::as_ptr(&stored.block)).is_some_and(|used| *used < stored.block.length() / 2)
        };
        let left = all.iter().filter(|(_, resource)| is_left(&resource.stored));
        left.map(|(key, resource)| (key.clone(), resource.stored.clone())).collect()
    }
}
