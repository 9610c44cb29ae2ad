//! A store in one file of this machine.
//!
//! Writes go through one task that commits what waits in one transaction, so that a burst costs few `fsync`s; each is answered
//! after its commit. Changes are kept by revision up to a bound, and every watch reads them at its own pace: a slow one costs a
//! number, and when it is slower than the bound it is told to list again.

mod file;
mod writer;

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::redb::{Database, DatabaseError, StorageError};
use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};

use self::file::{File, Work};
use self::writer::{Command, Writer};
use super::{Entry, Event, Key, LeaseId, Listing, Revision, Scope, Store, StoreError, Watch, Write};

/// Writes that may wait for the task.
const QUEUE: usize = 1024;
/// Most changes that a watch answers at once.
const BATCH: usize = 1000;

/// How the file is opened, the first time and after an I/O error.
pub type Opener = Arc<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>;

/// Settings.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many changes are kept for watches.
    pub history: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { history: 10_000 }
    }
}

/// Bytes of the file that are kept in memory. Everything that is read often is in the registry.
const CACHE: usize = 4 << 20;

/// A store in one file.
#[derive(Debug)]
pub struct RedbStore {
    file: Arc<File>,
    commands: mpsc::Sender<Command>,
    latest: watch::Receiver<Revision>,
}

impl RedbStore {
    /// Opens the file at `path`, or makes it. Needs a tokio runtime, where its task runs until the store is dropped.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::Corrupt`], [`StoreError::Schema`], or an I/O error as [`StoreError::Unavailable`].
    pub async fn open(path: &Path, options: Options) -> Result<Self, StoreError> {
        let place = path.to_path_buf();
        let opener: Opener = Arc::new(move || {
            private(&place)?;
            Database::builder().set_cache_size(CACHE).create(&place)
        });
        Self::open_with(path.display().to_string(), opener, options).await
    }

    /// The same with another way to open it; `name` is for people.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_with(name: String, opener: Opener, options: Options) -> Result<Self, StoreError> {
        let opened = tokio::task::spawn_blocking(move || File::open(name, opener, options.history));
        let (file, state) = opened.await.map_err(|e| StoreError::Unavailable(e.to_string()))??;
        let file = Arc::new(file);
        let (tell, latest) = watch::channel(state.revision);
        let (commands, queue) = mpsc::channel(QUEUE);
        tokio::spawn(Writer::new(Arc::clone(&file), tell, state.leases).run(queue));
        Ok(Self { file, commands, latest })
    }

    fn command(&self, command: Command) -> Result<(), StoreError> {
        self.commands.try_send(command).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => StoreError::Busy,
            mpsc::error::TrySendError::Closed(_) => ended(),
        })
    }

    async fn work(&self, work: Work) -> Result<u64, StoreError> {
        let (answer, wait) = oneshot::channel();
        self.command(Command::Do(work, answer))?;
        wait.await.unwrap_or_else(|_| Err(ended()))
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&File) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        blocking(&self.file, read).await
    }
}

/// Makes the file, if there is none, and closes it to everybody else: the key of the authority is in it.
fn private(path: &Path) -> Result<(), DatabaseError> {
    let storage = |error: std::io::Error| DatabaseError::Storage(StorageError::Io(error));
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(storage)?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(storage)
}

fn ended() -> StoreError {
    StoreError::Unavailable("the task that writes has ended".into())
}

async fn blocking<T: Send + 'static>(
    file: &Arc<File>,
    run: impl FnOnce(&File) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let file = Arc::clone(file);
    let done = tokio::task::spawn_blocking(move || run(&file)).await;
    done.unwrap_or_else(|failed| Err(StoreError::Unavailable(failed.to_string())))
}

#[async_trait]
impl Store for RedbStore {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        let key = key.clone();
        self.read(move |file| file.get(&key)).await
    }

    async fn list(&self, scope: &Scope) -> Result<Listing, StoreError> {
        let scope = scope.clone();
        self.read(move |file| file.list(&scope)).await
    }

    async fn transact(&self, writes: Vec<Write>) -> Result<Vec<Revision>, StoreError> {
        // Each write has a revision of its own.
        let count = writes.iter().filter(|write| write.is_change()).count() as u64;
        let last = self.work(Work::Transact(writes)).await?;
        Ok((last + 1 - count..=last).collect())
    }

    async fn watch(&self, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        // What is no longer kept shows now, not at the first change.
        self.read(move |file| file.changes(after, 1)).await?;
        Ok(Box::new(RedbWatch { file: Arc::clone(&self.file), latest: self.latest.clone(), position: after }))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.work(Work::Grant(ttl)).await.map(LeaseId)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let (answer, wait) = oneshot::channel();
        self.command(Command::KeepAlive(lease, answer))?;
        wait.await.unwrap_or_else(|_| Err(ended()))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.work(Work::Revoke(lease)).await.map(drop)
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn describe(&self) -> String {
        format!("redb {}", self.file.name())
    }
}

struct RedbWatch {
    file: Arc<File>,
    latest: watch::Receiver<Revision>,
    position: Revision,
}

#[async_trait]
impl Watch for RedbWatch {
    async fn next(&mut self) -> Result<Vec<Event>, StoreError> {
        let position = self.position;
        self.latest.wait_for(|latest| *latest > position).await.map_err(|_| ended())?;
        let events = blocking(&self.file, move |file| file.changes(position, BATCH)).await?;
        self.position = events.last().map_or(position, Event::revision);
        Ok(events)
    }
}
