//! etcd, from Debian's package `etcd-server`.

use std::io::Write;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use remora_control::store::etcd::EtcdStore;
use tokio::time::Instant;

/// An etcd of one member, which ends with this.
pub(crate) struct Etcd {
    pub(crate) child: Child,
    /// HOST:PORT.
    pub(crate) client: String,
    /// Prefixes given out.
    stores: AtomicU32,
    _folder: tempfile::TempDir,
}

impl Etcd {
    /// HOST:PORT/PREFIX of an empty store.
    pub(crate) fn fresh_address(&self) -> String {
        format!("{}/test-{}", self.client, self.stores.fetch_add(1, Ordering::Relaxed))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn free_port() -> String {
    format!("127.0.0.1:{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port())
}

/// None, and a word about it, when the machine has no etcd. It cannot bind port 0 and say which it was: a port may be taken
/// between the question and the use, so that there are a few attempts.
pub(crate) async fn start() -> Option<Etcd> {
    if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
        // Straight to the stream: what a test prints that passes is not shown.
        let words = "SKIPPED: there is no etcd on this machine (Debian: apt-get install etcd-server)";
        let _ = writeln!(std::io::stderr(), "{words}");
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
