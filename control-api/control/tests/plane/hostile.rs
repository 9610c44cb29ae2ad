//! Clients that mean no good: each is told what is wrong, and everybody else is served.

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use remora_xds::Kind;
use remora_xds::pb::envoy::config::core::v3::Node;
use remora_xds::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use remora_xds::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::ads::{CLUSTER, Client, WORKLOADS};
use crate::support::{PATIENCE, ROUTE, Rig, SERVICE};

const CALLER: &str = "sidecar~10.0.0.9~caller.default~default.svc";

/// A client that has everything, of a control plane that is attacked.
struct Victim {
    rig: Rig,
    client: Client,
    endpoints: usize,
}

impl Victim {
    async fn new() -> Self {
        let rig = Rig::start().await;
        let (status, answer) = rig.apply(&format!("{SERVICE}---\n{ROUTE}{WORKLOADS}"), "").await;
        assert!(status.is_success(), "{answer}");
        let mut client = Client::connect(&rig, CALLER).await;
        client.until(|c| c.has.contains_key(&(Kind::Cluster, CLUSTER.into()))).await;
        client.ask(Kind::ClusterLoadAssignment, CLUSTER).await;
        client.until(|c| c.endpoints() == 1).await;
        Self { rig, client, endpoints: 1 }
    }

    /// It still gets what changes.
    async fn is_served(&mut self) {
        self.endpoints += 1;
        let more = WORKLOADS.replace("shop-1", &format!("shop-{}", self.endpoints));
        let more = more.replace("10.0.0.1,", &format!("10.0.1.{},", self.endpoints));
        let (status, answer) = self.rig.apply(&more, "").await;
        assert!(status.is_success(), "{answer}");
        let endpoints = self.endpoints;
        self.client.until(|c| c.endpoints() == endpoints).await;
    }

    /// How a stream with these requests ends.
    async fn ends(&self, requests: Vec<DeltaDiscoveryRequest>) -> Status {
        let address = format!("http://{}", self.rig.plane.xds);
        let mut stub = AggregatedDiscoveryServiceClient::connect(address).await.unwrap();
        let (send, queue) = mpsc::channel(8);
        for request in requests {
            send.send(request).await.unwrap();
        }
        let mut responses =
            stub.delta_aggregated_resources(ReceiverStream::new(queue)).await.unwrap().into_inner();
        let end = async {
            loop {
                if let Err(status) = responses.message().await {
                    return status;
                }
            }
        };
        timeout(PATIENCE, end).await.expect("the stream ends")
    }
}

fn request(type_url: &str, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(Node { id: CALLER.into(), ..Node::default() }),
        type_url: type_url.into(),
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

#[tokio::test]
async fn streams_that_ask_for_nonsense_end_with_its_name() {
    let mut victim = Victim::new().await;
    let clusters = Kind::Cluster.type_url();

    let unknown = victim.ends(vec![request("type.googleapis.com/no.such.Type", &[])]).await;
    assert_eq!(unknown.code(), Code::Unimplemented);
    assert!(unknown.message().contains("no.such.Type"), "{unknown}");

    let nobody = DeltaDiscoveryRequest { node: None, ..request(clusters, &[]) };
    assert_eq!(victim.ends(vec![nobody]).await.code(), Code::InvalidArgument);

    let long = "x".repeat(10 << 20);
    let large = victim.ends(vec![request(clusters, &[&long])]).await;
    assert_eq!(large.code(), Code::OutOfRange, "a request of 10 MB: {large}");

    let names: Vec<String> = (0..200_000).map(|i| format!("n{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let many = victim.ends(vec![request(clusters, &names)]).await;
    assert_eq!(many.code(), Code::ResourceExhausted, "{many}");
    victim.is_served().await;
}

#[tokio::test]
async fn bytes_that_are_no_request_end_their_stream() {
    let mut victim = Victim::new().await;
    let stream = TcpStream::connect(victim.rig.plane.xds).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    // A gRPC frame of five bytes that are no protobuf; one that promises more than it has; one that is compressed by nothing.
    for body in [&b"\0\0\0\0\x05\xff\xff\xff\xff\xff"[..], b"\0\xff\xff\xff\xff", b"\x01\0\0\0\x01a"] {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!(
                "http://{}/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
                victim.rig.plane.xds
            ))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::copy_from_slice(body)))
            .unwrap();
        let answer = timeout(PATIENCE, sender.send_request(request)).await.expect("an answer").unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let early = answer.headers().get("grpc-status").cloned();
        let whole = timeout(PATIENCE, answer.into_body().collect()).await.expect("an end").unwrap();
        let late = whole.trailers().and_then(|trailers| trailers.get("grpc-status").cloned());
        let status = early.or(late).expect("a grpc-status");
        assert_ne!(status, "0", "{body:?}");
    }
    connection.abort();
    victim.is_served().await;
}

#[tokio::test]
async fn clients_that_never_answer_or_answer_for_others_hold_up_nobody() {
    let mut victim = Victim::new().await;
    // These ask for everything, and read nothing.
    let mut deaf = Vec::new();
    for _ in 0..20 {
        let address = format!("http://{}", victim.rig.plane.xds);
        let mut stub = AggregatedDiscoveryServiceClient::connect(address).await.unwrap();
        let (send, queue) = mpsc::channel(8);
        for kind in Kind::ALL {
            send.send(request(kind.type_url(), &["*"])).await.unwrap();
        }
        let responses = stub.delta_aggregated_resources(ReceiverStream::new(queue)).await.unwrap();
        deaf.push((send, responses));
    }
    victim.is_served().await;

    // An answer to a response of another stream means nothing, be it a refusal.
    let other = Client::connect(&victim.rig, CALLER).await;
    other.answer(Kind::Cluster, "not-mine-1", Some("I refuse what is not mine")).await;
    victim.is_served().await;
    let (_, status) = victim.rig.get("/status").await;
    let refusals =
        status["proxies"].as_array().unwrap().iter().flat_map(|p| p["refusals"].as_array().unwrap());
    assert_eq!(refusals.count(), 0, "{status}");
}

#[tokio::test]
async fn documents_that_mean_harm_are_refused_and_nothing_is_written() {
    let mut victim = Victim::new().await;
    let before = victim.rig.get("/status").await.1["documents"].clone();
    let levels: Vec<_> = ('b'..='k')
        .zip('a'..)
        .map(|(this, last)| format!("{this}: &{this} [{}]\n", vec![format!("*{last}"); 9].join(", ")))
        .collect();
    let bomb = format!("a: &a [x]\n{}", levels.concat());
    let deep = format!("spec: {}{}\n", "[".repeat(100_000), "]".repeat(100_000));
    let large = format!("{SERVICE}# {}\n", "x".repeat(20 << 20));
    let nowhere = ROUTE.replace("backendRefs: [{name: shop", "backendRefs: [{name: nobody");
    let twice = format!("{SERVICE}---\n{SERVICE}");
    for (text, why) in [
        (bomb.as_str(), "alias"),
        (deep.as_str(), "recursion limit"),
        (large.as_str(), "bytes"),
        (nowhere.as_str(), "nobody"),
        (twice.as_str(), "already"),
    ] {
        let (status, answer) = victim.rig.apply(text, "").await;
        assert!(status.is_client_error(), "{status} {why}");
        assert!(answer["message"].as_str().unwrap().contains(why), "{why}: {answer}");
    }
    assert_eq!(victim.rig.get("/status").await.1["documents"], before);
    victim.is_served().await;
}
