//! C8: responses that are too large, or that take for ever.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use remora_tests::config::{cluster, keepalive, merge};
use remora_tests::control_plane::ControlPlane;
use remora_tests::proxy::Proxy;
use remora_tests::relay::{Pace, Relay, Way};
use remora_tests::resources::{by_ads, control_cluster, message, service, under};
use remora_tests::traffic::{Load, Traffic};
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::eventually;
use remora_xds::pb::envoy::config::cluster::v3::Cluster;
use remora_xds::pb::envoy::config::core::v3::Metadata;
use remora_xds::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use remora_xds::pb::google::protobuf;
use remora_xds::pb::google::protobuf::value::Kind as ValueKind;
use remora_xds::{Kind, Resource, any};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::{RECONNECTED, converged, says_why};

const MIB: u64 = 1 << 20;

/// A server that answers every stream with an empty response, and then with one that claims to be very large.
struct Boaster {
    address: SocketAddr,
    streams: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Boaster {
    async fn start(claim: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let streams = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&streams);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(boast(stream, claim, Arc::clone(&count)));
            }
        });
        Self { address, streams, task }
    }
}

impl Drop for Boaster {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One connection, until the client ends it.
async fn boast(stream: TcpStream, claim: u32, streams: Arc<AtomicUsize>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let mut open = HashMap::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let number = streams.fetch_add(1, Ordering::Relaxed);
        let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut body = respond.send_response(head, false).unwrap();
        let empty = any::pack(&DeltaDiscoveryResponse {
            type_url: Kind::Cluster.type_url().into(),
            nonce: "1".into(),
            ..DeltaDiscoveryResponse::default()
        });
        body.send_data(frame(u32::try_from(empty.value.len()).unwrap(), &empty.value), false).unwrap();
        body.send_data(frame(claim, &[0; 1024]), false).unwrap();
        open.insert(number, (request, body));
    }
}

/// A gRPC message of `length` bytes, or the beginning of one.
fn frame(length: u32, bytes: &[u8]) -> Bytes {
    [&[0], &length.to_be_bytes()[..], bytes].concat().into()
}

/// The refusal names both sizes, costs no memory, and is not repeated all the time.
#[tokio::test]
async fn a_response_above_the_limit_is_refused_by_its_size() {
    let origin = Http1Upstream::answering(Answer::ok("origin")).await;
    let plane = ControlPlane::start().await;
    plane.publish(service(origin.address(), 1));
    let relay = Relay::start(Way::to(plane.address)).await;
    let proxy = under(&[relay.address]).start().await;
    let traffic = Traffic::start(&proxy).await;
    traffic.flows(100).await;
    let before = proxy.rss();

    let boaster = Boaster::start(1 << 30).await;
    relay.lead(Way::to(boaster.address));
    says_why(&proxy, "found 1073741824 bytes, the limit is: 67108864 bytes").await;
    // A span of time is what is measured here: waits that did not grow would let 80 streams happen in it.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let streams = boaster.streams.load(Ordering::Relaxed);
    let growth = proxy.rss().saturating_sub(before) / MIB;
    assert!(streams <= 20, "{streams} streams");
    assert!(growth < 32, "{growth} MiB");

    plane.publish(service(origin.address(), 2));
    relay.lead(Way::to(plane.address));
    let recovery = converged(&proxy, 2, RECONNECTED).await;
    println!(
        "C8: 1 GiB claimed on {streams} streams in 4 s, {growth} MiB more memory; recovered after {recovery:?}"
    );
    traffic.lost_nothing().await;
}

/// A cluster with much to say about itself.
fn bulky(name: &str, bytes: usize) -> Resource {
    let text = protobuf::Value { kind: Some(ValueKind::StringValue("z".repeat(bytes))) };
    let fields = protobuf::Struct { fields: [("y".to_owned(), text)].into() };
    let metadata = Metadata { filter_metadata: [("x".to_owned(), fields)].into(), ..Metadata::default() };
    let mut pb = message::<Cluster>(&cluster(name, &[SocketAddr::from(([127, 0, 0, 1], 9))]));
    pb.metadata = Some(metadata);
    Resource::new(&pb)
}

/// What is large and below the limit is taken; it costs memory while it is in force, and no more when it comes again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)] // Traffic flows while the test makes the next push.
async fn a_large_push_below_the_limit_is_taken() {
    let origin = Http1Upstream::answering(Answer::ok("origin")).await;
    let plane = ControlPlane::start().await;
    plane.publish(service(origin.address(), 0));
    let proxy = under(&[plane.address]).start().await;
    let traffic = Load::on(proxy.address("ingress")).gap(Duration::from_millis(2)).start().await;
    traffic.flows(100).await;
    let before = proxy.rss();
    let mut sizes = Vec::new();
    for round in 1..=2 {
        let bulk: Vec<_> = (0..60).map(|n| bulky(&format!("bulky-{n}"), (1 << 20) + round)).collect();
        plane.publish(service(origin.address(), 0).into_iter().chain(bulk));
        plane.accepted(Kind::Cluster, "bulky-59").await;
        sizes.push(proxy.rss().saturating_sub(before) / MIB);
        plane.publish(service(origin.address(), u32::try_from(round).unwrap()));
        plane.accepted(Kind::RouteConfiguration, "routes").await;
    }
    println!("C8: two pushes of 60 MiB: {} MiB before, {sizes:?} MiB more with them", before / MIB);
    assert!(sizes.iter().all(|size| *size < 4 * 60), "{sizes:?}");
    traffic.lost_nothing().await;
}

/// A server that sends one byte a second is given up like a silent one.
#[tokio::test]
async fn a_trickle_is_given_up() {
    let origin = Http1Upstream::answering(Answer::ok("origin")).await;
    let plane = ControlPlane::start().await;
    plane.publish(service(origin.address(), 1));
    let relay = Relay::start(Way::to(plane.address)).await;
    let mut cluster = control_cluster(&[relay.address]);
    merge(&mut cluster, keepalive("1s", "1s"));
    let proxy = Proxy::builder().cluster(cluster).dynamic(by_ads("DELTA_GRPC")).start().await;
    let traffic = Traffic::start(&proxy).await;
    traffic.flows(100).await;
    let before = proxy.rss();

    relay.pace(Pace::Trickle);
    plane.publish(service(origin.address(), 2));
    eventually("the reason in the log", || proxy.stderr().contains("the server is silent")).await;
    traffic.flows(100).await;
    let growth = proxy.rss().saturating_sub(before) / MIB;
    relay.pace(Pace::Free);
    let recovery = converged(&proxy, 2, RECONNECTED).await;
    println!("C8: one byte a second: {growth} MiB more memory; recovered after {recovery:?}");
    assert!(growth < 32, "{growth} MiB");
    traffic.lost_nothing().await;
}
