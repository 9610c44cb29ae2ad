//! C1: the control plane is gone.

use std::path::Path;
use std::time::Duration;

use remora_tests::certs::{Authority, Identity};
use remora_tests::config::{Listener, merge, mutual_tls};
use remora_tests::control_plane::ControlPlane;
use remora_tests::proxy::{Builder, Proxy};
use remora_tests::resources::{cds, eds, eds_cluster, ingress, lds, rds_by_ads, routes, service, under};
use remora_tests::traffic::{Load, Traffic};
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::{eventually, eventually_async};
use remora_xds::Resource;
use serde_json::json;

use super::{RECONNECTED, converged};

const CLIENT: &str = "spiffe://mesh.test/ns/shop/sa/client";
const SERVER: &str = "spiffe://mesh.test/ns/shop/sa/server";

/// The row says ten minutes: `REMORA_OUTAGE_SECONDS=600`.
fn outage() -> Duration {
    let seconds = std::env::var("REMORA_OUTAGE_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(15))
}

/// What the client's proxy is given: every request to the server's proxy goes through a handshake of its own.
fn outbound(server: &Proxy, own: &Identity, authority: &Authority, version: u32) -> Vec<Resource> {
    let mut cluster = eds_cluster("server");
    merge(&mut cluster, mutual_tls(own, authority, SERVER));
    // A machine that is busy with other tests may need more than a second for a handshake.
    merge(&mut cluster, json!({ "max_requests_per_connection": 1, "connect_timeout": "10s" }));
    vec![cds(&cluster), eds("server", &[server.address("ingress")]), ingress(), routes("server", version)]
}

/// What the server's proxy is given.
fn inbound(origin: &Http1Upstream, own: &Identity, authority: &Authority) -> Vec<Resource> {
    let listener = Listener::http("ingress").manager(rds_by_ads("routes")).mutual_tls(own, authority, CLIENT);
    let mut resources = service(origin.address(), 1);
    resources.retain(|resource| &**resource.name() != "ingress");
    resources.push(lds(listener));
    resources
}

fn with_state(builder: Builder, folder: &Path) -> Builder {
    builder.argument("--state-dir").argument(folder.to_str().unwrap())
}

/// Kept and new connections side by side.
async fn traffic(proxy: &Proxy) -> [Traffic; 2] {
    let load = Load::on(proxy.address("ingress")).gap(Duration::from_millis(2));
    [load.clone().start().await, load.reconnect().start().await]
}

async fn handshakes(proxy: &Proxy) -> usize {
    let metrics = proxy.admin("GET", "/metrics").await.unwrap().text();
    let line = metrics.lines().find(|line| line.starts_with("remora_downstream_tls_handshakes_total"));
    line.and_then(|line| line.rsplit(' ').next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// For the whole outage two proxies carry traffic with mutual TLS between them, over kept and new connections, and halfway one of
/// them is started again, from its disk.
#[tokio::test]
async fn a_control_plane_that_is_gone_is_not_missed() {
    let authority = Authority::new();
    let (client, server) = (authority.issue(&[CLIENT]), authority.issue(&[SERVER]));
    let origin = Http1Upstream::answering(Answer::ok("origin")).await;
    let planes = [ControlPlane::start().await, ControlPlane::start().await];
    let addresses = [planes[0].address, planes[1].address];
    planes[0].publish(inbound(&origin, &server, &authority));
    let receiving = under(&addresses[..1]).start().await;
    planes[1].publish(outbound(&receiving, &client, &authority, 1));
    let state = tempfile::tempdir().unwrap();
    let sending = with_state(under(&addresses[1..]), state.path()).start().await;
    eventually("the file", || state.path().join("last-good.pb.gz").is_file()).await;

    let flowing = traffic(&sending).await;
    drop(planes);
    let before = handshakes(&receiving).await;
    tokio::time::sleep(outage() / 2).await;
    let mut requests = 0;
    for traffic in flowing {
        requests += traffic.lost_nothing().await;
    }
    drop(sending);
    let restarted = with_state(under(&addresses[1..]), state.path()).start().await;
    let flowing = traffic(&restarted).await;
    tokio::time::sleep(outage() / 2).await;
    let during = handshakes(&receiving).await - before;

    let plane = ControlPlane::start_at(addresses[1]).await;
    plane.publish(outbound(&receiving, &client, &authority, 2));
    let convergence = converged(&restarted, 2, RECONNECTED).await;
    for traffic in flowing {
        requests += traffic.lost_nothing().await;
    }
    println!(
        "C1: {requests} requests and {during} handshakes in {:?} without a control plane, lost 0; converged {convergence:?} after it was back",
        outage()
    );
    assert!(during > 100, "{during} handshakes");
    eventually_async("the end of the note", async || {
        restarted.admin("GET", "/metrics").await.unwrap().text().contains("remora_config_from_disk 0")
    })
    .await;
}
