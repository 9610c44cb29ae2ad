//! The store in a file.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use redb::{Database, StorageBackend, backends::FileBackend};
use remora_control::store::redb::{Opener, Options, RedbStore};
use remora_control::store::{Expect, Put, Scope, Store, StoreError};

use crate::conformance::{self, Rig, key, write};

const FEW: Options = Options { history: 150 };

struct Files {
    folder: tempfile::TempDir,
    stores: AtomicU64,
}

impl Rig for Files {
    async fn fresh(&self) -> Arc<dyn Store> {
        let name = self.stores.fetch_add(1, Ordering::Relaxed).to_string();
        Arc::new(RedbStore::open(&self.folder.path().join(name), FEW).await.unwrap())
    }

    async fn compact(&self, store: &Arc<dyn Store>) {
        for i in 0..FEW.history {
            write(store, "filler", &i.to_string()).await;
        }
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

async fn open(path: &Path) -> Result<RedbStore, StoreError> {
    RedbStore::open(path, Options::default()).await
}

/// A store that was dropped closes its file when its task has ended.
async fn reopen(path: &Path) -> Arc<dyn Store> {
    loop {
        match open(path).await {
            Ok(store) => return Arc::new(store),
            Err(StoreError::Locked(_)) => tokio::task::yield_now().await,
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn redb_does_what_a_store_must() {
    conformance::run(&Files { folder: folder(), stores: AtomicU64::new(0) }).await;
}

#[tokio::test]
async fn what_is_written_is_there_after_a_restart_and_watches_go_on() {
    let folder = folder();
    let path = folder.path().join("store");
    let store = reopen(&path).await;
    let first = write(&store, "a", "1").await;
    let lease = store.grant(std::time::Duration::from_secs(60)).await.unwrap();
    drop(store);
    let store = reopen(&path).await;
    let second = write(&store, "b", "1").await;
    assert_eq!(second, first + 1);
    let mut watch = store.watch(first).await.unwrap();
    assert_eq!(watch.next().await.unwrap()[0].revision(), second);
    store.keep_alive(lease).await.unwrap();
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_refused_by_name() {
    let folder = folder();
    let path = folder.path().join("open");
    let _open = open(&path).await.unwrap();
    let error = open(&path).await.unwrap_err();
    assert!(matches!(&error, StoreError::Locked(name) if name.ends_with("open")), "{error}");

    let path = folder.path().join("text");
    std::fs::write(&path, "this is no database\n".repeat(1000)).unwrap();
    let error = open(&path).await.unwrap_err();
    assert!(matches!(&error, StoreError::Corrupt(why) if why.contains("text")), "{error}");

    let path = folder.path().join("newer");
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(redb::TableDefinition::<&str, u64>::new("meta"))
        .unwrap()
        .insert("schema", 7)
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Schema { found: 7, known: 1 }), "{error}");
}

/// A disk with so many bytes.
#[derive(Debug)]
struct Disk {
    file: FileBackend,
    most: Arc<AtomicU64>,
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, std::io::Error> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        if len > self.most.load(Ordering::Relaxed) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.file.set_len(len)
    }
    fn sync_data(&self) -> Result<(), std::io::Error> {
        self.file.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.file.write(offset, data)
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_nothing_else_and_is_forgotten_once_there_is_space() {
    let folder = folder();
    let path = folder.path().join("store");
    let most = Arc::new(AtomicU64::new(8 << 20));
    let limit = Arc::clone(&most);
    let opener: Opener = Arc::new(move || {
        let file =
            std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = FileBackend::new(file.map_err(|e| redb::DatabaseError::Storage(e.into()))?)?;
        Database::builder().create_with_backend(Disk { file, most: Arc::clone(&limit) })
    });
    let store: Arc<dyn Store> =
        Arc::new(RedbStore::open_with("disk".into(), opener, Options::default()).await.unwrap());
    let put = |i: u32| Put {
        key: key(&format!("k{i}")),
        value: Bytes::from(vec![0; 400_000]),
        expect: Expect::Any,
        lease: None,
    };
    let mut written = 0;
    let error = loop {
        match store.put(put(written)).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 100, "the disk has no end");
    };
    assert!(matches!(error, StoreError::Full(_)), "{error}");
    assert!(written > 0);
    assert_eq!(store.list(&Scope::All).await.unwrap().entries.len(), written as usize, "reads are served");
    assert!(matches!(store.put(put(written)).await, Err(StoreError::Full(_))), "as long as it is full");
    most.store(64 << 20, Ordering::Relaxed);
    store.put(put(written)).await.unwrap();
    assert_eq!(store.list(&Scope::All).await.unwrap().entries.len(), written as usize + 1);
}

const WRITER: &str = "REMORA_TEST_STORE_WRITER";
const ROUNDS: u32 = 8;

/// Not a test of its own: the process that the next one kills.
#[tokio::test]
#[ignore = "started by what_was_acknowledged_survives_kill_9"]
async fn writer_process() {
    let Some(path) = std::env::var_os(WRITER).map(PathBuf::from) else { return };
    // Who looked at it last may still be closing it.
    let store = reopen(&path).await;
    let begin = store.list(&Scope::All).await.unwrap().entries.len();
    let mut out = std::io::stdout();
    for i in begin..begin + 100_000 {
        // Several at once, so that transactions have several writes.
        let name = |part| format!("k{i}-{part}");
        let (a, b) = (name("a"), name("b"));
        tokio::join!(write(&store, &a, "x"), write(&store, &b, "x"));
        writeln!(out, "\nacknowledged {a}\nacknowledged {b}").unwrap();
        out.flush().unwrap();
    }
}

// The task of a store that was dropped closes it while this waits for the next writer.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9() {
    let folder = folder();
    let path = folder.path().join("store");
    let mut acknowledged = Vec::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["redb::writer_process", "--exact", "--ignored", "--nocapture"])
            .env(WRITER, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let enough = acknowledged.len() + 7 + 13 * round as usize;
        for line in lines.by_ref() {
            acknowledged.extend(line.unwrap().strip_prefix("acknowledged ").map(str::to_owned));
            if acknowledged.len() >= enough {
                child.kill().unwrap();
                break;
            }
        }
        // What it said before it died counts too.
        for line in lines.map_while(Result::ok) {
            acknowledged.extend(
                line.strip_prefix("acknowledged k")
                    .filter(|rest| rest.ends_with(['a', 'b']))
                    .map(|rest| format!("k{rest}")),
            );
        }
        child.wait().unwrap();
        assert!(acknowledged.len() >= enough, "the writer ended by itself");
        let store = open(&path).await.unwrap();
        for name in &acknowledged {
            assert!(store.get(&key(name)).await.unwrap().is_some(), "round {round}: {name} is lost");
        }
    }
    assert!(acknowledged.len() > 400, "{}", acknowledged.len());
}
