//! The tables of the file, and the transactions on them. Everything here blocks.

use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use redb::{
    CommitError, Database, DatabaseError, MultimapTable, MultimapTableDefinition, ReadTransaction,
    ReadableDatabase, ReadableMultimapTable, ReadableTable, StorageError, Table, TableDefinition, TableError,
    TransactionError, WriteTransaction,
};

use super::Opener;
use crate::store::{Entry, Event, Key, LeaseId, Listing, MAX_VALUE, Put, Revision, Scope, StoreError, Write};

/// Of the tables below.
const SCHEMA: u64 = 1;

/// `schema`, `revision`, `compacted`, `lease` -> number.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Path of a key -> (revision, lease or 0, value).
const ENTRIES: TableDefinition<'_, &str, (u64, u64, &[u8])> = TableDefinition::new("entries");
/// Revision -> (path, lease or 0, value; none when the key went away).
const HISTORY: TableDefinition<'_, u64, (&str, u64, Option<&[u8]>)> = TableDefinition::new("history");
/// Lease -> its time in milliseconds.
const LEASES: TableDefinition<'_, u64, u64> = TableDefinition::new("leases");
/// Lease -> paths of its keys.
const LEASED: MultimapTableDefinition<'_, u64, &str> = MultimapTableDefinition::new("leased");

/// What waits to be done.
#[derive(Debug, Clone)]
pub(super) enum Work {
    /// All of these or none.
    Transact(Vec<Write>),
    Grant(Duration),
    Revoke(LeaseId),
}

/// What the file knew when it was opened.
#[derive(Debug)]
pub(super) struct State {
    pub(super) revision: Revision,
    pub(super) leases: Vec<(LeaseId, Duration)>,
}

/// The open file. After an I/O error it is closed, and opened again by the next write: redb refuses to go on.
pub(super) struct File {
    name: String,
    opener: Opener,
    database: RwLock<Option<Arc<Database>>>,
    history: u64,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("name", &self.name).finish_non_exhaustive()
    }
}

impl File {
    pub(super) fn open(name: String, opener: Opener, history: u64) -> Result<(Self, State), StoreError> {
        let database = Arc::new(opener().map_err(|e| opening(&name, e))?);
        let state = prepare(&database)?;
        Ok((Self { name, opener, database: RwLock::new(Some(database)), history }, state))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn database(&self) -> Result<Arc<Database>, StoreError> {
        if let Some(database) = &*self.database.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(Arc::clone(database));
        }
        let mut slot = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = &*slot {
            return Ok(Arc::clone(database));
        }
        let database = Arc::new((self.opener)().map_err(|e| opening(&self.name, e))?);
        *slot = Some(Arc::clone(&database));
        Ok(database)
    }

    fn close(&self) {
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn reading(&self) -> Result<ReadTransaction, StoreError> {
        Ok(self.database()?.begin_read()?)
    }

    pub(super) fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        let table = self.reading()?.open_table(ENTRIES)?;
        let found = table.get(key.path().as_str())?;
        Ok(found.map(|row| entry(key.clone(), row.value())))
    }

    pub(super) fn list(&self, scope: &Scope) -> Result<Listing, StoreError> {
        let reading = self.reading()?;
        let revision = number(&reading.open_table(META)?, "revision")?;
        let table = reading.open_table(ENTRIES)?;
        let prefix = scope.prefix();
        let mut entries = Vec::new();
        for row in table.range(prefix.as_str()..)? {
            let (path, row) = row?;
            if !path.value().starts_with(&prefix) {
                break;
            }
            entries.push(entry(key_of(path.value())?, row.value()));
        }
        Ok(Listing { revision, entries })
    }

    /// At most `most` changes after `after`.
    pub(super) fn changes(&self, after: Revision, most: usize) -> Result<Vec<Event>, StoreError> {
        let reading = self.reading()?;
        let meta = reading.open_table(META)?;
        let (revision, compacted) = (number(&meta, "revision")?, number(&meta, "compacted")?);
        // From the future: of another file, or of this one before an older copy of it was put in its place.
        if after < compacted || after > revision {
            return Err(StoreError::Compacted { oldest: compacted });
        }
        let table = reading.open_table(HISTORY)?;
        let mut events = Vec::new();
        for row in table.range((Bound::Excluded(after), Bound::Unbounded))?.take(most) {
            let (revision, row) = row?;
            let (revision, (path, lease, value)) = (revision.value(), row.value());
            let key = key_of(path)?;
            events.push(match value {
                Some(value) => Event::Put(entry(key, (revision, lease, value))),
                None => Event::Delete { key, revision },
            });
        }
        Ok(events)
    }

    /// Does what waits in one commit. The answer to each is its last revision, or the id of the lease that it made. They are all
    /// durable when this returns. `Err`: none was done.
    pub(super) fn write(
        &self,
        work: &[Work],
    ) -> Result<(Vec<Result<u64, StoreError>>, Revision), StoreError> {
        let done = self.try_write(work);
        if let Err(StoreError::Full(_) | StoreError::Unavailable(_) | StoreError::Corrupt(_)) = &done {
            self.close();
        }
        done
    }

    fn try_write(&self, work: &[Work]) -> Result<(Vec<Result<u64, StoreError>>, Revision), StoreError> {
        let transaction = self.database()?.begin_write()?;
        let (answers, before, after) = {
            let mut tables = Tables::open(&transaction)?;
            let before = tables.revision;
            let mut answers = Vec::with_capacity(work.len());
            for item in work {
                let done = tables.apply(item);
                if let Err(StoreError::Full(_) | StoreError::Unavailable(_) | StoreError::Corrupt(_)) = &done
                {
                    return Err(done.err().unwrap_or(StoreError::Busy));
                }
                answers.push(done);
            }
            tables.finish(self.history)?;
            (answers, before, tables.revision)
        };
        if before == after && answers.iter().all(Result::is_err) {
            transaction.abort()?;
        } else {
            transaction.commit()?;
        }
        Ok((answers, after))
    }
}

/// Makes the tables of a new file, checks those of an old one.
fn prepare(database: &Database) -> Result<State, StoreError> {
    let transaction = database.begin_write()?;
    let state = {
        let mut meta = transaction.open_table(META)?;
        let found = meta.get("schema")?.map(|row| row.value());
        match found {
            None => drop(meta.insert("schema", SCHEMA)?),
            Some(SCHEMA) => {}
            Some(found) => return Err(StoreError::Schema { found, known: SCHEMA }),
        }
        transaction.open_table(ENTRIES)?;
        transaction.open_table(HISTORY)?;
        transaction.open_multimap_table(LEASED)?;
        let mut leases = Vec::new();
        for row in transaction.open_table(LEASES)?.iter()? {
            let (id, ttl) = row?;
            leases.push((LeaseId(id.value()), Duration::from_millis(ttl.value())));
        }
        State { revision: number(&meta, "revision")?, leases }
    };
    transaction.commit()?;
    Ok(state)
}

struct Tables<'t> {
    meta: Table<'t, &'static str, u64>,
    entries: Table<'t, &'static str, (u64, u64, &'static [u8])>,
    history: Table<'t, u64, (&'static str, u64, Option<&'static [u8]>)>,
    leases: Table<'t, u64, u64>,
    leased: MultimapTable<'t, u64, &'static str>,
    revision: Revision,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Self, StoreError> {
        let meta = transaction.open_table(META)?;
        let revision = number(&meta, "revision")?;
        Ok(Self {
            meta,
            entries: transaction.open_table(ENTRIES)?,
            history: transaction.open_table(HISTORY)?,
            leases: transaction.open_table(LEASES)?,
            leased: transaction.open_multimap_table(LEASED)?,
            revision,
        })
    }

    fn apply(&mut self, work: &Work) -> Result<u64, StoreError> {
        match work {
            Work::Transact(writes) => {
                // Nothing is written before everything is known to be right.
                for write in writes {
                    self.admit(write)?;
                }
                for write in writes {
                    match write {
                        Write::Put(put) => self.put(put)?,
                        Write::Delete { key, .. } => self.remove(&key.path())?,
                        Write::Check { .. } => {}
                    }
                }
                Ok(self.revision)
            }
            Work::Grant(ttl) => {
                let id = number(&self.meta, "lease")? + 1;
                self.meta.insert("lease", id)?;
                self.leases.insert(id, u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))?;
                Ok(id)
            }
            Work::Revoke(lease) => {
                self.leases.remove(lease.0)?.ok_or(StoreError::NoLease(*lease))?;
                let paths: Result<Vec<_>, _> =
                    self.leased.get(lease.0)?.map(|path| path.map(|path| path.value().to_owned())).collect();
                for path in paths? {
                    self.remove(&path)?;
                }
                Ok(self.revision)
            }
        }
    }

    /// The revision and the lease of what is at `path`.
    fn current(&self, path: &str) -> Result<Option<(u64, u64)>, StoreError> {
        let found = self.entries.get(path)?;
        Ok(found.map(|row| (row.value().0, row.value().1)))
    }

    fn admit(&self, write: &Write) -> Result<(), StoreError> {
        if let Write::Put(put) = write {
            if put.value.len() > MAX_VALUE {
                return Err(StoreError::TooLarge { bytes: put.value.len() });
            }
            if let Some(lease) = put.lease
                && self.leases.get(lease.0)?.is_none()
            {
                return Err(StoreError::NoLease(lease));
            }
        }
        let current = self.current(&write.key().path())?.map(|(revision, _)| revision);
        if write.may(current) { Ok(()) } else { Err(write.conflict(current)) }
    }

    fn put(&mut self, put: &Put) -> Result<(), StoreError> {
        let path = put.key.path();
        if let Some((_, lease)) = self.current(&path)?.filter(|(_, lease)| *lease != 0) {
            self.leased.remove(lease, path.as_str())?;
        }
        let lease = put.lease.map_or(0, |lease| lease.0);
        if lease != 0 {
            self.leased.insert(lease, path.as_str())?;
        }
        self.revision += 1;
        self.entries.insert(path.as_str(), (self.revision, lease, put.value.as_ref()))?;
        self.history.insert(self.revision, (path.as_str(), lease, Some(put.value.as_ref())))?;
        Ok(())
    }

    fn remove(&mut self, path: &str) -> Result<(), StoreError> {
        let Some((_, lease)) = self.current(path)? else { return Ok(()) };
        self.entries.remove(path)?;
        if lease != 0 {
            self.leased.remove(lease, path)?;
        }
        self.revision += 1;
        self.history.insert(self.revision, (path, 0, None))?;
        Ok(())
    }

    /// Forgets old changes, and writes down where everything is.
    fn finish(&mut self, keep: u64) -> Result<(), StoreError> {
        let compacted = self.revision.saturating_sub(keep);
        if compacted > number(&self.meta, "compacted")? {
            self.history.retain_in(..=compacted, |_, _| false)?;
            self.meta.insert("compacted", compacted)?;
        }
        self.meta.insert("revision", self.revision)?;
        Ok(())
    }
}

fn number(meta: &impl ReadableTable<&'static str, u64>, name: &str) -> Result<u64, StoreError> {
    Ok(meta.get(name)?.map_or(0, |row| row.value()))
}

fn key_of(path: &str) -> Result<Key, StoreError> {
    Key::parse(path).ok_or_else(|| StoreError::Corrupt(format!("{path:?} is no key")))
}

fn entry(key: Key, (revision, lease, value): (u64, u64, &[u8])) -> Entry {
    Entry {
        key,
        value: Bytes::copy_from_slice(value),
        revision,
        lease: (lease != 0).then_some(LeaseId(lease)),
    }
}

fn opening(name: &str, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            StoreError::Locked(name.to_owned())
        }
        DatabaseError::Storage(error) => match StoreError::from(error) {
            StoreError::Corrupt(why) => StoreError::Corrupt(format!("{name}: {why}")),
            StoreError::Unavailable(why) => StoreError::Unavailable(format!("{name}: {why}")),
            other => other,
        },
        other => StoreError::Corrupt(format!("{name}: {other}")),
    }
}

impl From<StorageError> for StoreError {
    fn from(error: StorageError) -> Self {
        use std::io::ErrorKind as Kind;
        match error {
            StorageError::Corrupted(why) => Self::Corrupt(why),
            StorageError::Io(error) => match error.kind() {
                Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => Self::Full(error.to_string()),
                // What redb says of a file that is none of its own, or too short.
                Kind::InvalidData | Kind::UnexpectedEof => Self::Corrupt(error.to_string()),
                _ => Self::Unavailable(error.to_string()),
            },
            other => Self::Unavailable(other.to_string()),
        }
    }
}

impl From<TransactionError> for StoreError {
    fn from(error: TransactionError) -> Self {
        match error {
            TransactionError::Storage(error) => error.into(),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

impl From<CommitError> for StoreError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Storage(error) => error.into(),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

impl From<TableError> for StoreError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Storage(error) => error.into(),
            other => Self::Corrupt(other.to_string()),
        }
    }
}
