//! The task that runs the scheduler.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Clusters, DnsSpec, DnsUpdate, LookupError, LookupResult, Query, Resolver, Scheduler};
use crate::clock::at;

/// Lookups under way at the same time.
const PARALLEL: usize = 64;
/// A lookup that takes longer has failed.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Tells the driver which clusters there are. When the last handle is dropped the driver ends.
#[derive(Debug, Clone)]
pub struct DnsHandle {
    wanted: Arc<watch::Sender<Clusters>>,
}

impl DnsHandle {
    /// Replaces all clusters: call it with the DNS clusters of every new snapshot. Never waits.
    pub fn set_clusters(&self, clusters: impl IntoIterator<Item = (Arc<str>, Arc<DnsSpec>)>) {
        let clusters: Clusters = clusters.into_iter().collect();
        self.wanted.send_if_modified(|old| {
            let changed = *old != clusters;
            *old = clusters;
            changed
        });
    }
}

/// Keeps the names of all clusters resolved.
pub struct Driver<R> {
    resolver: R,
    scheduler: Scheduler,
    wanted: watch::Receiver<Clusters>,
    updates: mpsc::Sender<DnsUpdate>,
    /// Updates that wait for room in the channel; a newer one of a cluster replaces the older.
    pending: BTreeMap<Arc<str>, DnsUpdate>,
    lookups: JoinSet<(Query, LookupResult)>,
}

impl<R> std::fmt::Debug for Driver<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("scheduler", &self.scheduler).finish_non_exhaustive()
    }
}

impl<R: Resolver> Driver<R> {
    /// A driver that sends what it finds to `updates`, and the handle that feeds it.
    #[must_use]
    pub fn new(resolver: R, updates: mpsc::Sender<DnsUpdate>, rng: fastrand::Rng) -> (Self, DnsHandle) {
        let (sender, wanted) = watch::channel(Clusters::new());
        let driver = Self {
            resolver,
            scheduler: Scheduler::new(rng),
            wanted,
            updates,
            pending: BTreeMap::new(),
            lookups: JoinSet::new(),
        };
        (driver, DnsHandle { wanted: Arc::new(sender) })
    }

    /// Runs until the handle or the receiver of updates is dropped.
    pub async fn run(mut self) {
        loop {
            self.start_lookups();
            let due = self.scheduler.next_due().filter(|_| self.lookups.len() < PARALLEL);
            tokio::select! {
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let clusters = self.wanted.borrow_and_update().clone();
                    self.pending.retain(|name, _| clusters.contains_key(name));
                    let updates = self.scheduler.set_clusters(clusters, Instant::now());
                    queue(&mut self.pending, updates);
                }
                Some(done) = self.lookups.join_next(), if !self.lookups.is_empty() => {
                    // A lookup catches its own end; only a panic or an abort at shutdown gets here.
                    let Ok((query, result)) = done else { continue };
                    if let Err(error) = &result {
                        tracing::debug!(name = %query.host, %error, "lookup failed");
                    }
                    let updates = self.scheduler.answer(&query, result, Instant::now());
                    queue(&mut self.pending, updates);
                }
                permit = self.updates.reserve(), if !self.pending.is_empty() => {
                    let Ok(permit) = permit else { return };
                    if let Some((_, update)) = self.pending.pop_first() {
                        permit.send(update);
                    }
                }
                () = self.updates.closed() => return,
                () = at(due) => {}
            }
        }
    }

    fn start_lookups(&mut self) {
        while self.lookups.len() < PARALLEL {
            let Some(query) = self.scheduler.due(Instant::now()) else { return };
            let lookup = self.resolver.lookup(query.clone());
            self.lookups.spawn(async move {
                // A task of its own, so that a panic in there is this name's failure and not the end of all refreshing.
                let task = tokio::spawn(tokio::time::timeout(LOOKUP_TIMEOUT, lookup));
                let result = match task.await {
                    Ok(Ok(result)) => result,
                    Ok(Err(_)) => Err(LookupError::Timeout),
                    Err(error) => Err(LookupError::Failed(error.to_string())),
                };
                (query, result)
            });
        }
    }
}

fn queue(pending: &mut BTreeMap<Arc<str>, DnsUpdate>, updates: Vec<DnsUpdate>) {
    pending.extend(updates.into_iter().map(|u| (Arc::clone(&u.cluster), u)));
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
