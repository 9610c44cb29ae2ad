//! C7: connections to the control plane stay open, and nothing comes any more.

use std::time::Duration;

use remora_tests::config::{keepalive, merge};
use remora_tests::control_plane::ControlPlane;
use remora_tests::proxy::Proxy;
use remora_tests::relay::{Pace, Relay, Way};
use remora_tests::resources::{by_ads, control_cluster, service};
use remora_tests::traffic::Load;
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use serde_json::{Value, json};

use super::converged;

/// Of two servers the one in use falls silent; the other one is found within `limit`.
async fn the_other_server_is_found(options: Value, limit: Duration) {
    let origin = Http1Upstream::answering(Answer::ok("origin")).await;
    let planes = [ControlPlane::start().await, ControlPlane::start().await];
    let relays =
        [Relay::start(Way::to(planes[0].address)).await, Relay::start(Way::to(planes[1].address)).await];
    planes.iter().for_each(|plane| plane.publish(service(origin.address(), 1)));
    let mut cluster = control_cluster(&[relays[0].address, relays[1].address]);
    merge(&mut cluster, options);
    let proxy = Proxy::builder().cluster(cluster).dynamic(by_ads("DELTA_GRPC")).start().await;
    let load = Load::on(proxy.address("ingress")).gap(Duration::from_millis(2));
    let traffic = load.start().await;

    let used = planes.iter().position(|plane| !plane.said().is_empty()).unwrap();
    relays[used].pace(Pace::Stopped);
    planes.iter().for_each(|plane| plane.publish(service(origin.address(), 2)));
    let detection = converged(&proxy, 2, limit).await;
    println!("C7: a silent server was left for the other one after {detection:?}, at most {limit:?}");
    let log = proxy.stderr();
    assert!(log.contains("the server is silent"), "{log}");
    traffic.lost_nothing().await;
}

/// As it comes.
#[tokio::test]
async fn a_silent_server_is_left_within_thirty_seconds() {
    the_other_server_is_found(json!({}), Duration::from_secs(30)).await;
}

/// `connection_keepalive` of the control plane's cluster.
#[tokio::test]
async fn or_sooner_if_its_cluster_says_so() {
    the_other_server_is_found(keepalive("1s", "1s"), Duration::from_secs(5)).await;
}
