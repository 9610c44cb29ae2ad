//! What a client wants and has of one kind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::Instant;

use crate::node_snapshot::Resources;
use crate::resource::Resource;

/// The state of one kind.
#[derive(Debug, Default)]
pub(super) struct Subscription {
    pub(super) requested: bool,
    pub(super) wildcard: bool,
    pub(super) names: BTreeSet<Arc<str>>,
    /// Names that were asked for and have no answer yet. The time is when the client is told that there is none, once it has
    /// turned out that the snapshot has none.
    pub(super) asked: BTreeMap<Arc<str>, Option<Instant>>,
    pub(super) held: BTreeMap<Arc<str>, Held>,
    /// Versions that the client refused.
    pub(super) refused: BTreeMap<Arc<str>, Arc<str>>,
    /// When resources with a TTL have to be confirmed.
    pub(super) confirm: BTreeMap<Arc<str>, Instant>,
    pub(super) in_flight: Option<InFlight>,
    pub(super) newest: String,
    /// An answer is due even if there is nothing to say in it.
    pub(super) owed: bool,
    /// Nothing differs between `held` and the snapshot, apart from removals.
    pub(super) settled: bool,
    /// The client has nothing that is gone from the snapshot.
    pub(super) tidy: bool,
}

/// What the client has under a name.
#[derive(Debug)]
pub(super) enum Held {
    /// It said so when it connected.
    Claimed(Arc<str>),
    Sent(Arc<Resource>),
    /// It knows that there is nothing.
    Absent,
}

impl Held {
    pub(super) fn version(&self) -> Option<&Arc<str>> {
        match self {
            Self::Claimed(version) => Some(version),
            Self::Sent(resource) => Some(resource.version()),
            Self::Absent => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) nonce: String,
    pub(super) since: Instant,
    pub(super) sent: Vec<Arc<Resource>>,
    /// The client did not have one of these: what refers to it has to wait.
    pub(super) introduces: bool,
}

/// What has to be sent of one kind.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) changed: Vec<Arc<Resource>>,
    pub(super) removed: Vec<Arc<str>>,
    pub(super) introduces: bool,
}

impl Subscription {
    /// The resources that the client is to have.
    pub(super) fn wanted<'r>(&self, resources: &'r Resources) -> Vec<&'r Arc<Resource>> {
        if self.wildcard {
            resources.values().collect()
        } else {
            self.names.iter().filter_map(|name| resources.get(name)).collect()
        }
    }

    pub(super) fn gone<'s>(&'s self, resources: &'s Resources) -> impl Iterator<Item = &'s Arc<str>> {
        let has = self.held.iter().filter(|(_, held)| held.version().is_some());
        has.map(|(name, _)| name).filter(|name| !resources.contains_key(*name))
    }

    /// Whether the client has no version of `resource` at all.
    pub(super) fn lacks(&self, resource: &Resource) -> bool {
        self.held.get(resource.name()).is_none_or(|held| held.version().is_none())
    }

    /// What the client refused once and a complete response repeats, besides what `changed`: its answer is to these, too.
    pub(super) fn refused_before(&self, changed: &[Arc<Resource>]) -> Vec<Arc<Resource>> {
        let repeated = |name: &Arc<str>| match self.held.get(name) {
            Some(Held::Sent(resource)) => Some(Arc::clone(resource)),
            _ => None,
        };
        let unchanged = |resource: &Arc<Resource>| changed.iter().all(|c| c.name() != resource.name());
        self.refused.keys().filter_map(repeated).filter(unchanged).collect()
    }

    /// The client has nothing under `name` any more, and knows it.
    pub(super) fn forget(&mut self, name: &Arc<str>) {
        if self.names.contains(name) {
            self.held.insert(Arc::clone(name), Held::Absent);
        } else {
            self.held.remove(name);
        }
        self.refused.remove(name);
        self.confirm.remove(name);
    }
}
