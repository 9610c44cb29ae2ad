//! Rolling restarts: every instance of a service is replaced under load, by SIGTERM or by kill -9, with and without sidecars of its own.
//! See docs/experiments/rolling-restart.md.

use std::net::SocketAddr;
use std::time::Duration;

use remora_tests::config::{Listener, address, budget, careful, cluster, cluster_http2, merge, to_cluster};
use remora_tests::ledger::{Ledger, Offer};
use remora_tests::origin::{Origin, executed};
use remora_tests::proxy::Proxy;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::{long, ms};

const INSTANCES: usize = 3;
const WORK: Duration = ms(5);

/// How an instance ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// SIGTERM: first its sidecar, when it has one.
    Term,
    /// Everything at once.
    Kill,
}

/// A process, its sidecar if it has one, and where others find it.
struct Instance {
    origin: Origin,
    sidecar: Option<Proxy>,
}

impl Instance {
    async fn start(folder: &TempDir, number: usize, own: SocketAddr, sidecar: Option<SocketAddr>) -> Self {
        let log = folder.path().join(format!("log-{number}"));
        let origin = Origin::start(own, &log, WORK).await;
        let sidecar = match sidecar {
            None => None,
            Some(at) => Some(inbound(origin.address, at).await),
        };
        Self { origin, sidecar }
    }

    fn address(&self) -> SocketAddr {
        self.sidecar.as_ref().map_or(self.origin.address, |sidecar| sidecar.address("inbound"))
    }

    async fn end(&mut self, how: End) {
        if how == End::Kill {
            // The sidecar last: nobody shall be told that the origin is gone.
            self.origin.signal("KILL");
            if let Some(sidecar) = &self.sidecar {
                sidecar.signal("KILL");
            }
        }
        if let Some(sidecar) = &mut self.sidecar {
            if how == End::Term {
                sidecar.signal("TERM");
            }
            sidecar.exited().await;
        }
        if how == End::Term {
            self.origin.signal("TERM");
        }
        self.origin.ended().await;
    }
}

/// The sidecar of an instance. It waits for what is in flight as long as it takes; no retries: there is one process to ask.
async fn inbound(origin: SocketAddr, at: SocketAddr) -> Proxy {
    let listener =
        Listener::http("inbound").route(to_cluster("/", "own")).with(json!({ "address": address(at) }));
    Proxy::builder()
        .listener(listener)
        .cluster(cluster("own", &[origin]))
        .argument("--drain-time-s")
        .argument("30")
        .start()
        .await
}

/// Who asks, by its own sidecar.
async fn outbound(instances: &[Instance]) -> Proxy {
    let addresses: Vec<_> = instances.iter().map(Instance::address).collect();
    // Between sidecars it is HTTP/2, as in a mesh.
    let mut endpoints = match instances[0].sidecar {
        Some(_) => cluster_http2("origin", &addresses),
        None => cluster("origin", &addresses),
    };
    merge(&mut endpoints, budget(20, 100));
    let [gets, others] = careful("origin", &json!({}));
    Proxy::builder()
        .listener(Listener::http("ingress").route(gets).route(others))
        .cluster(endpoints)
        .start()
        .await
}

/// Replaces every instance; gives the ledger, and when instances began to end.
async fn roll(sidecars: bool, how: End) -> (Ledger, Vec<Instant>) {
    let (rounds, rate) = if long() { (20, 300) } else { (1, 100) };
    let folder = tempfile::tempdir().unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut instances = Vec::new();
    for number in 0..INSTANCES {
        instances.push(Instance::start(&folder, number, any, sidecars.then_some(any)).await);
    }
    let client = outbound(&instances).await;
    let load = Offer::both(client.address("ingress"), rate).start();
    load.sends(50).await;
    let mut ends = Vec::new();
    for _ in 0..rounds {
        for (number, instance) in instances.iter_mut().enumerate() {
            let (own, shown) = (instance.origin.address, instance.address());
            ends.push(Instant::now());
            instance.end(how).await;
            *instance = Instance::start(&folder, number, own, sidecars.then_some(shown)).await;
            load.sends(50).await;
        }
    }
    let ledger = load.end().await;
    let logs = (0..INSTANCES).flat_map(|number| executed(&folder.path().join(format!("log-{number}"))));
    (ledger.with(logs), ends)
}

/// SIGTERM: whoever is asked to go finishes what it has, so nothing at all is lost.
async fn orderly(sidecars: bool, row: &str) {
    let (ledger, ends) = roll(sidecars, End::Term).await;
    println!("{row}: {} restarts", ends.len());
    ledger.nothing_lost(row);
}

/// kill -9: no GET is lost, and a POST only when it was at the process that died.
async fn brutal(sidecars: bool, row: &str) {
    let (ledger, ends) = roll(sidecars, End::Kill).await;
    println!("{row}: {} restarts", ends.len());
    ledger.no_get_lost(row);
    for entry in ledger.lost(true) {
        let over = entry.sent + entry.took;
        let at_it = |end: &Instant| entry.sent < *end + ms(100) && over + ms(50) > *end;
        assert!(ends.iter().any(at_it), "{row}: not in flight when a process died: {entry:?}");
    }
}

#[tokio::test]
async fn processes_that_are_asked_to_go_lose_nothing() {
    orderly(false, "rolling restart, SIGTERM").await;
}

#[tokio::test]
async fn processes_with_sidecars_that_are_asked_to_go_lose_nothing() {
    orderly(true, "rolling restart with sidecars, SIGTERM").await;
}

#[tokio::test]
async fn processes_that_are_killed_lose_no_get() {
    brutal(false, "rolling restart, kill -9").await;
}

#[tokio::test]
async fn processes_with_sidecars_that_are_killed_lose_no_get() {
    brutal(true, "rolling restart with sidecars, kill -9").await;
}
