//! etcd, from Debian's package `etcd-server`.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use remora_control::store::etcd::EtcdStore;
use remora_control::store::{Scope, Store, StoreError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::conformance::{self, Rig};

/// An etcd of one member, which ends with this.
struct Etcd {
    child: Child,
    client: String,
    stores: AtomicU32,
    _folder: tempfile::TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> String {
    format!("127.0.0.1:{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port())
}

/// None, and a word about it, when the machine has no etcd. It cannot bind port 0 and say which it was: a port may be taken
/// between the question and the use, so that there are a few attempts.
async fn start() -> Option<Etcd> {
    if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: there is no etcd on this machine (Debian: apt-get install etcd-server)");
        return None;
    }
    for _ in 0..5 {
        let (client, peer) = (free_port(), free_port());
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(folder.path())
            .arg(format!("--listen-client-urls=http://{client}"))
            .arg(format!("--advertise-client-urls=http://{client}"))
            .arg(format!("--listen-peer-urls=http://{peer}"))
            .arg(format!("--initial-advertise-peer-urls=http://{peer}"))
            .arg(format!("--initial-cluster=default=http://{peer}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut etcd = Etcd { child, client, stores: AtomicU32::new(0), _folder: folder };
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline && etcd.child.try_wait().unwrap().is_none() {
            if EtcdStore::connect(&etcd.client).await.is_ok() {
                return Some(etcd);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    panic!("etcd does not start");
}

impl Rig for Etcd {
    async fn fresh(&self) -> Arc<dyn Store> {
        let prefix = self.stores.fetch_add(1, Ordering::Relaxed);
        Arc::new(EtcdStore::connect(&format!("{}/test-{prefix}", self.client)).await.unwrap())
    }

    async fn compact(&self, store: &Arc<dyn Store>) {
        let revision = store.list(&Scope::All).await.unwrap().revision;
        let body = format!("{{\"revision\":{revision}}}");
        let request = format!(
            "POST /v3/kv/compaction HTTP/1.1\r\nhost: etcd\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(&self.client).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn etcd_does_what_a_store_must() {
    let Some(etcd) = start().await else { return };
    conformance::run(&etcd).await;
}

#[tokio::test]
async fn what_several_control_planes_share_is_the_same_for_all() {
    let Some(etcd) = start().await else { return };
    let address = format!("{}/mesh", etcd.client);
    let one: Arc<dyn Store> = Arc::new(EtcdStore::connect(&address).await.unwrap());
    let two: Arc<dyn Store> = Arc::new(EtcdStore::connect(&address).await.unwrap());
    let other: Arc<dyn Store> =
        Arc::new(EtcdStore::connect(&format!("{}/mesh2", etcd.client)).await.unwrap());
    let mut watch = two.watch(two.list(&Scope::All).await.unwrap().revision).await.unwrap();
    conformance::write(&other, "a", "x").await;
    let revision = conformance::write(&one, "a", "1").await;
    let events = watch.next().await.unwrap();
    assert_eq!(
        events.iter().map(|e| e.revision()).collect::<Vec<_>>(),
        [revision],
        "another prefix is another store"
    );
}

#[tokio::test]
async fn an_etcd_that_is_gone_is_named_and_comes_back() {
    let nobody = EtcdStore::connect(&free_port()).await.unwrap_err();
    assert!(matches!(nobody, StoreError::Unavailable(_)), "{nobody}");
    let Some(mut etcd) = start().await else { return };
    let store = etcd.fresh().await;
    let mut watch = store.watch(store.list(&Scope::All).await.unwrap().revision).await.unwrap();
    etcd.child.kill().unwrap();
    etcd.child.wait().unwrap();
    let error = tokio::time::timeout(Duration::from_secs(20), watch.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    let error = store.list(&Scope::All).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
}
