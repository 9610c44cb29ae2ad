//! C6: endpoints come and go all the time. In a file of its own, because it measures.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use remora_tests::client::http1::Http1Client;
use remora_tests::config::{Listener, to_cluster};
use remora_tests::control_plane::{RawControlPlane, RawStream};
use remora_tests::proxy::Proxy;
use remora_tests::resources::{cds, eds_cluster, lds, under, wire};
use remora_xds::pb::envoy::config::core::v3::address::Address as AddressKind;
use remora_xds::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use remora_xds::pb::envoy::config::core::v3::{Address, SocketAddress};
use remora_xds::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use remora_xds::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use remora_xds::pb::envoy::service::discovery::v3::Resource as PbResource;
use remora_xds::{Kind, any};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

const CLUSTERS: u8 = 100;
/// Endpoints of a cluster.
const ENDPOINTS: u16 = 1000;
/// Endpoints that one update replaces.
const REPLACED: u16 = 100;
/// With so many updates a second 10,000 endpoints change.
const UPDATES: u32 = 100;
/// The number of a cluster's first endpoint: 127.x.0.0 is no address of a host.
const FIRST: u16 = 256;
/// Clusters that get requests.
const USED: u8 = 2;

/// A server at every loopback address, each of which is an endpoint: the second byte is its cluster, the last two its number.
struct Everywhere {
    port: u16,
    hits: Arc<Mutex<Vec<(Ipv4Addr, Instant)>>>,
    task: JoinHandle<()>,
}

impl Everywhere {
    fn start() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind_device(Some(b"lo")).unwrap();
        socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
        let listener = socket.listen(1024).unwrap();
        let port = listener.local_addr().unwrap().port();
        let hits = Arc::default();
        let task = tokio::spawn(accept(listener, Arc::clone(&hits)));
        Self { port, hits, task }
    }
}

impl Drop for Everywhere {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, hits: Arc<Mutex<Vec<(Ipv4Addr, Instant)>>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream, Arc::clone(&hits)));
    }
}

/// Requests without a body, until the proxy ends the connection.
async fn serve(mut stream: TcpStream, hits: Arc<Mutex<Vec<(Ipv4Addr, Instant)>>>) {
    let Ok(SocketAddr::V4(own)) = stream.local_addr() else { return };
    let mut head = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut head).await {
        if head.ends_with(b"\r\n\r\n") {
            hits.lock().unwrap().push((*own.ip(), Instant::now()));
            head.clear();
            if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.is_err() {
                return;
            }
        }
    }
}

fn name(cluster: u8) -> String {
    format!("c{cluster}")
}

/// The endpoints of a cluster after so many updates.
fn assignment(cluster: u8, updates: u16, port: u16) -> PbResource {
    let first = FIRST + updates * REPLACED;
    let endpoint = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let socket = SocketAddress {
            address: Ipv4Addr::new(127, cluster + 1, high, low).to_string(),
            port_specifier: Some(PortSpecifier::PortValue(port.into())),
            ..SocketAddress::default()
        };
        let address = Some(Address { address: Some(AddressKind::SocketAddress(socket)) });
        let endpoint = Endpoint { address, ..Endpoint::default() };
        LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(endpoint)), ..LbEndpoint::default() }
    };
    let lb_endpoints = (first..first + ENDPOINTS).map(endpoint).collect();
    let endpoints = vec![LocalityLbEndpoints { lb_endpoints, ..LocalityLbEndpoints::default() }];
    let cluster_name = name(cluster);
    let message = ClusterLoadAssignment { cluster_name, endpoints, ..ClusterLoadAssignment::default() };
    PbResource {
        name: name(cluster),
        version: updates.to_string(),
        resource: Some(any::pack(&message)),
        ..PbResource::default()
    }
}

/// Gives the proxy everything for the first time.
async fn begin(plane: &mut RawControlPlane, port: u16) -> RawStream {
    let mut stream = plane.stream().await;
    let clusters = (0..CLUSTERS).map(|n| wire(&cds(&eds_cluster(&name(n)))));
    stream.push(Kind::Cluster, clusters.collect()).await;
    for cluster in 0..CLUSTERS {
        stream.push(Kind::ClusterLoadAssignment, vec![assignment(cluster, 0, port)]).await;
    }
    let routes = (0..CLUSTERS).map(|n| to_cluster(&format!("/{}/", name(n)), &name(n)));
    let listener = routes.fold(Listener::http("ingress"), Listener::route);
    stream.push(Kind::Listener, vec![wire(&lds(listener))]).await;
    stream
}

/// Endpoints that come and go.
struct Churn {
    stream: RawStream,
    port: u16,
    /// When each update of each cluster was sent.
    sent: Vec<Vec<Instant>>,
    /// From the sending of an update to its acknowledgement.
    applied: Vec<Duration>,
}

impl Churn {
    /// Updates one cluster after the other. When the proxy does not keep up, the next update waits, as that of any server does.
    async fn go_on(&mut self, time: Duration) {
        let end = Instant::now() + time;
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / UPDATES);
        for cluster in (0..CLUSTERS).cycle() {
            ticks.tick().await;
            if Instant::now() >= end {
                return;
            }
            let sent = &mut self.sent[usize::from(cluster)];
            let updates = u16::try_from(sent.len()).unwrap() + 1;
            let update = assignment(cluster, updates, self.port);
            let began = Instant::now();
            sent.push(began);
            self.stream.push(Kind::ClusterLoadAssignment, vec![update]).await;
            self.applied.push(began.elapsed());
        }
    }

    /// Whether a request came to an endpoint that had been removed for more than a second.
    fn is_stale(&self, endpoint: Ipv4Addr, at: Instant) -> bool {
        let [_, second, high, low] = endpoint.octets();
        let number = u16::from_be_bytes([high, low]);
        let removed_by = usize::from((number - FIRST) / REPLACED);
        let removed = self.sent[usize::from(second - 1)].get(removed_by);
        removed.is_some_and(|removed| at > *removed + Duration::from_secs(1))
    }
}

/// What a span of time cost.
struct Span {
    cores: f64,
    latencies: Vec<Duration>,
}

/// Requests on four connections while something else takes its time.
async fn measure(proxy: &Proxy, meanwhile: impl Future<Output = ()>) -> Span {
    let mut tasks = JoinSet::new();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    for task in 0..4_u8 {
        let (mut client, stopped) = (proxy.http1().await, stopped.clone());
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            let path = format!("/{}/", name(task % USED));
            while !*stopped.borrow() {
                latencies.push(one(&mut client, &path).await);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            latencies
        });
    }
    let (began, ticks) = (Instant::now(), proxy.cpu_ticks());
    meanwhile.await;
    let cores = (proxy.cpu_ticks() - ticks) as f64 / 100.0 / began.elapsed().as_secs_f64();
    stop.send_replace(true);
    let latencies = tasks.join_all().await.concat();
    Span { cores, latencies }
}

async fn one(client: &mut Http1Client, path: &str) -> Duration {
    let began = Instant::now();
    let response = client.get(path).await.unwrap();
    assert_eq!(response.status, 200, "{}", response.text());
    began.elapsed()
}

fn p99(latencies: &[Duration]) -> Duration {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() * 99 / 100).min(sorted.len() - 1)]
}

/// 100 clusters of 1,000 endpoints each, of which up to 10,000 a second are replaced by others: no request is lost, and none
/// goes to an endpoint that was removed more than a second ago.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_that_come_and_go_cost_no_request() {
    remora_proxy::limits::raise_open_files();
    let everywhere = Everywhere::start();
    let port = everywhere.port;
    let mut plane = RawControlPlane::start().await;
    let address = [plane.address];
    let (proxy, stream) = tokio::join!(under(&address).start(), begin(&mut plane, port));
    let quiet = measure(&proxy, tokio::time::sleep(Duration::from_secs(2))).await;

    let sent = vec![Vec::new(); CLUSTERS.into()];
    let mut churn = Churn { stream, port, sent, applied: Vec::new() };
    let time = Duration::from_secs(6);
    let busy = measure(&proxy, churn.go_on(time)).await;

    let hits = everywhere.hits.lock().unwrap().clone();
    let stale = hits.iter().filter(|(endpoint, at)| churn.is_stale(*endpoint, *at)).count();
    let changes = churn.applied.len() as u64 * u64::from(REPLACED) / time.as_secs();
    println!(
        "C6: {changes} endpoint changes/s, applied within {:?} (p99); {:.2} cores instead of {:.2}; request p99 {:?} instead of {:?}; \
         {} requests, lost 0, stale {stale}; {} MiB",
        p99(&churn.applied),
        busy.cores,
        quiet.cores,
        p99(&busy.latencies),
        p99(&quiet.latencies),
        hits.len(),
        proxy.rss() >> 20,
    );
    assert_eq!(stale, 0);
    assert!(churn.applied.len() > 10, "{}", churn.applied.len());
    assert!(p99(&busy.latencies) < Duration::from_secs(1));
}
