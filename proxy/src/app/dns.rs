//! DNS' part of the wiring: endpoints that were found, and names that cannot be resolved.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::App;
use crate::config::manager::Changes;
use crate::upstream::dns::{DnsSpec, DnsUpdate};

/// Names that cannot be resolved at the moment, by cluster.
pub(super) type Unresolved = BTreeMap<Arc<str>, BTreeSet<Arc<str>>>;

impl App {
    pub(super) async fn dns_answered(&mut self, update: &DnsUpdate) {
        if self.manager.apply_dns(update) {
            self.tell_unresolved(update);
            let snapshot = Changes { snapshot: true, ..Changes::default() };
            // Routes of the control plane may have waited for these endpoints.
            self.follow_promoted(snapshot).await;
        }
    }

    /// Says which names begin to fail and which are found again: once, however often they are asked for.
    fn tell_unresolved(&mut self, update: &DnsUpdate) {
        let cluster = &*update.cluster;
        let old = self.unresolved.remove(&update.cluster).unwrap_or_default();
        for (name, error) in update.failing.iter().filter(|(name, _)| !old.contains(name)) {
            tracing::warn!(cluster, name = &**name, %error, "not resolved; its last good addresses serve");
        }
        let failing: BTreeSet<_> = update.failing.iter().map(|(name, _)| Arc::clone(name)).collect();
        for name in old.difference(&failing) {
            tracing::info!(cluster, name = &**name, "resolved again");
        }
        if !failing.is_empty() {
            self.unresolved.insert(Arc::clone(&update.cluster), failing);
        }
        self.count_unresolved();
    }

    /// Forgets the names of clusters that are not among `named` any more.
    pub(super) fn forget_unresolved(&mut self, named: &[(Arc<str>, Arc<DnsSpec>)]) {
        if !self.unresolved.is_empty() {
            self.unresolved.retain(|cluster, _| named.iter().any(|(name, _)| name == cluster));
            self.count_unresolved();
        }
    }

    fn count_unresolved(&self) {
        let names = self.unresolved.values().map(BTreeSet::len).sum::<usize>();
        self.shared.registry.control.dns_unresolved(names as u64);
    }
}
