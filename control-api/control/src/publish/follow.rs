//! The task that hands changes from the registry to the publisher.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use remora_mesh::Change;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::Publisher;
use super::change::{beside, beside_key, change, held};
use crate::board::Flaw;
use crate::ca::{self, keeper::NAMESPACE};
use crate::control::CONTROL_PLANE;
use crate::document::Record;
use crate::kubernetes;
use crate::quota;
use crate::registry::instances::REGISTRATION;
use crate::registry::{Position, Registry};
use crate::store::{Key, Revision};

/// Changes that come together are compiled together.
const TOGETHER: Duration = Duration::from_millis(5);
/// Changes of one step.
const STEP: usize = 5000;
/// What documents say together is checked this long after a change of one.
const CHECK: Duration = Duration::from_millis(200);
/// And after at least so many times as long as the last check took: where endpoints change all the time, it would never end.
const REST: u32 = 10;

/// What control planes keep for themselves is no part of the mesh.
fn is_own(key: &Key) -> bool {
    let kinds = [ca::keeper::KIND, ca::tokens::KIND, CONTROL_PLANE, quota::owner::KIND, kubernetes::SOURCE];
    *key.namespace == *NAMESPACE && kinds.contains(&&*key.kind)
}

/// Keys, and what is there now.
type Changed = Vec<(Key, Option<Arc<Record>>)>;

/// How far a publisher has followed a registry.
#[derive(Debug, Default)]
pub(super) struct Progress {
    position: Position,
    known: BTreeSet<Key>,
    /// Of these a state is in force that could be read, with what [`held`] says of it.
    readable: BTreeMap<Key, BTreeSet<String>>,
    unreadable: BTreeMap<Key, Vec<String>>,
    /// Beside these stands one that closes their new targets.
    beside: BTreeSet<Key>,
    /// Documents changed since they were checked together.
    unchecked: bool,
}

impl Progress {
    /// Hands some changes on. False: there is none.
    pub(super) fn step(&mut self, registry: &Registry, publisher: &Publisher) -> bool {
        let (revision, changes) = match registry.changes(self.position, STEP) {
            Ok(changes) => {
                self.position = changes.last().map_or(self.position, |last| last.position);
                // More of the last write may follow a full step.
                let more = u64::from(changes.len() == STEP);
                let revision = changes.last().map_or(0, |last| last.revision.saturating_sub(more));
                (revision, changes.into_iter().map(|change| (change.key, change.new)).collect())
            }
            Err(_) => self.everything(registry),
        };
        let mut made = Vec::with_capacity(changes.len());
        for (key, new) in changes.iter().filter(|(key, _)| !is_own(key)) {
            self.unchecked |= *key.kind != *REGISTRATION;
            self.unreadable.remove(key);
            if self.beside.remove(key) {
                made.push(Change::Remove(beside_key(key)));
            }
            if new.is_some() {
                self.known.insert(key.clone())
            } else {
                self.known.remove(key)
            };
            match change(key, new.as_deref(), self.readable.contains_key(key)) {
                Ok(change) => {
                    if matches!(change, Change::Put(_)) {
                        self.readable.insert(key.clone(), held(&change));
                    } else {
                        self.readable.remove(key);
                    }
                    made.push(change);
                }
                Err((instead, why)) => {
                    let goes_on = instead.is_none();
                    made.extend(instead);
                    let targets = self.readable.get(key).filter(|_| goes_on);
                    if let Some(closed) =
                        new.as_deref().zip(targets).and_then(|(new, held)| beside(new, held))
                    {
                        self.beside.insert(key.clone());
                        made.push(closed);
                    }
                    self.unreadable.insert(key.clone(), why);
                }
            }
        }
        if !made.is_empty() {
            publisher.apply(made);
        }
        publisher.board.followed(revision);
        !changes.is_empty()
    }

    /// It is too far behind: everything there is, and what there is no more.
    fn everything(&mut self, registry: &Registry) -> (Revision, Changed) {
        let (position, revision, all) = registry.all();
        self.position = position;
        let there: BTreeSet<_> = all.iter().map(|record| record.key.clone()).collect();
        let gone: Vec<_> = self.known.difference(&there).map(|key| (key.clone(), None)).collect();
        let there = all.into_iter().map(|record| (record.key.clone(), Some(record)));
        (revision, gone.into_iter().chain(there).collect())
    }
}

/// Follows `registry` for ever; `ready` is told when everything that it has has been taken.
pub async fn follow(registry: Arc<Registry>, publisher: Arc<Publisher>, ready: oneshot::Sender<()>) {
    let mut moves = registry.progress();
    let mut progress = Progress::default();
    while progress.step(&registry, &publisher) {}
    // Whoever waits for it may have gone.
    let _ = ready.send(());
    let mut check_at = Some(Instant::now());
    let mut pause = CHECK;
    loop {
        moves.borrow_and_update();
        while progress.step(&registry, &publisher) {
            tokio::task::yield_now().await;
        }
        if std::mem::take(&mut progress.unchecked) {
            check_at.get_or_insert_with(|| Instant::now() + pause);
        }
        tokio::select! {
            moved = moves.changed() => {
                if moved.is_err() {
                    return;
                }
                tokio::time::sleep(TOGETHER).await;
            }
            () = sleep_until(check_at.unwrap_or_else(Instant::now)), if check_at.is_some() => {
                check_at = None;
                let began = Instant::now();
                check(&registry, &publisher, progress.unreadable.clone()).await;
                pause = CHECK.max(began.elapsed() * REST);
            }
        }
    }
}

/// What is wrong with documents together: their status says so.
async fn check(registry: &Arc<Registry>, publisher: &Publisher, unreadable: BTreeMap<Key, Vec<String>>) {
    let registry = Arc::clone(registry);
    let checked = tokio::task::spawn_blocking(move || registry.mistakes()).await;
    let (revision, found) = checked.unwrap_or_default();
    let mut left_out: BTreeMap<Key, Vec<Flaw>> = BTreeMap::new();
    for (key, why) in unreadable {
        left_out.insert(key, why.into_iter().map(Flaw::unreadable).collect());
    }
    for (key, found) in found {
        let flaws = left_out.entry(key).or_default();
        let flaw = Flaw::of(found);
        // What cannot be read was found by who compiles it already.
        if !flaws.iter().any(|known| known.text == flaw.text) {
            flaws.push(flaw);
        }
    }
    publisher.board.left_out(revision, left_out);
}
