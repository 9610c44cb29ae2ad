//! Everything that a store holds, in memory and up to date: what is read is read here, so that a store that is away stops writes and
//! nothing else.

pub mod change;
pub mod instances;
pub mod mirror;

mod follow;
mod state;
mod transaction;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Mutex, watch};

use crate::document::Record;
use crate::store::{Key, Revision, Scope, Store};

pub use follow::follow;
pub use state::{Change, Gone, Position};

use state::State;

/// How long a write waits until what was written is seen here.
const VISIBLE_IN: Duration = Duration::from_secs(5);

/// How the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It has not been read yet.
    Starting,
    /// What is here is what it holds.
    Following,
    /// It does not answer. What is here is what it held last.
    Away(String),
}

/// The content of a store.
#[derive(Debug)]
pub struct Registry {
    store: Arc<dyn Store>,
    state: RwLock<State>,
    progress: watch::Sender<Position>,
    health: watch::Sender<Health>,
    /// Held by the one change whose documents are being checked.
    checking: Arc<Mutex<()>>,
    /// Documents of Kubernetes are changed there.
    reads_kubernetes: AtomicBool,
}

impl Registry {
    /// An empty one; [`follow()`] fills it.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            state: RwLock::default(),
            progress: watch::Sender::new(Position::default()),
            health: watch::Sender::new(Health::Starting),
            checking: Arc::default(),
            reads_kubernetes: AtomicBool::new(false),
        }
    }

    /// Where writes go.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// How the store is.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// Waits until the store has been read for the first time.
    pub async fn filled(&self) {
        // The sender is a part of `self`.
        let _ = self.health.subscribe().wait_for(|health| *health == Health::Following).await;
    }

    /// The document of `key`.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Arc<Record>> {
        self.read(|state| state.get(key))
    }

    /// The documents of a scope in the order of their keys, and the revision that they are of.
    #[must_use]
    pub fn list(&self, scope: &Scope) -> (Revision, Vec<Arc<Record>>) {
        self.read(|state| (state.revision(), state.list(scope)))
    }

    /// The newest write that is seen here.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.read(State::revision)
    }

    /// Everything there is now, the position from which [`Self::changes`] goes on, and the newest write among it.
    #[must_use]
    pub fn all(&self) -> (Position, Revision, Vec<Arc<Record>>) {
        self.read(|state| (state.position(), state.revision(), state.list(&Scope::All)))
    }

    /// The position after the write `revision`.
    ///
    /// # Errors
    /// The changes since then are no longer kept.
    pub fn position_after(&self, revision: Revision) -> Result<Position, Gone> {
        self.read(|state| state.position_after(revision))
    }

    /// At most `most` changes after `position`.
    ///
    /// # Errors
    /// They are no longer kept: begin again with [`Self::all`].
    pub fn changes(&self, position: Position, most: usize) -> Result<Vec<Change>, Gone> {
        self.read(|state| state.changes(position, most))
    }

    /// The newest position, as it moves.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Position> {
        self.progress.subscribe()
    }

    /// Waits until the write `revision` is seen here, so that whoever wrote reads it. False: it takes too long.
    pub async fn seen(&self, revision: Revision) -> bool {
        let mut progress = self.progress.subscribe();
        let seen = async {
            while self.read(State::revision) < revision {
                if progress.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(VISIBLE_IN, seen).await.is_ok()
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let position = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            change(&mut state);
            state.position()
        };
        self.progress.send_replace(position);
    }
}
