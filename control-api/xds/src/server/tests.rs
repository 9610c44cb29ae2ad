//! The service through real gRPC on loopback.

use std::net::SocketAddr;
use std::sync::Mutex;

use tonic::codegen::tokio_stream::StreamExt as _;

use super::*;
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::pb::google::rpc::Status as RpcStatus;

const CDS: &str = Kind::Cluster.type_url();
const PATIENCE: Duration = Duration::from_secs(10);

/// A control plane with one snapshot for every node, which writes down what it is told.
struct Plane {
    snapshots: watch::Sender<Option<Arc<NodeSnapshot>>>,
    told: Mutex<Vec<String>>,
    news: tokio::sync::Notify,
}

impl Plane {
    fn new() -> Arc<Self> {
        let snapshots = watch::Sender::new(None);
        Arc::new(Self { snapshots, told: Mutex::default(), news: tokio::sync::Notify::new() })
    }

    fn publish(&self, clusters: &[(&str, &str)]) {
        let cluster = |(name, content): &(&str, &str)| {
            let (name, alt_stat_name) = ((*name).to_owned(), (*content).to_owned());
            Resource::new(&Cluster { name, alt_stat_name, ..Cluster::default() })
        };
        self.snapshots.send_replace(Some(Arc::new(clusters.iter().map(cluster).collect())));
    }

    fn tell(&self, text: String) {
        self.told.lock().unwrap().push(text);
        self.news.notify_waiters();
    }

    async fn was_told(&self, text: &str) {
        let wait = async {
            loop {
                let news = self.news.notified();
                if self.told.lock().unwrap().iter().any(|told| told == text) {
                    return;
                }
                news.await;
            }
        };
        let told = tokio::time::timeout(PATIENCE, wait).await;
        assert!(told.is_ok(), "{text:?} is not among {:?}", self.told.lock().unwrap());
    }
}

impl Snapshots for Plane {
    fn watch(&self, client: &Client) -> Result<SnapshotWatch, Denied> {
        match &*client.node.id {
            "stranger" => Err(Denied::Unknown("no workload \"stranger\"".into())),
            _ => Ok(self.snapshots.subscribe()),
        }
    }
    fn wanted(&self, client: &Client, kind: Kind, names: &[Arc<str>]) {
        self.tell(format!("{} wants {kind} {}", client.node.id, names.join(",")));
        if names.iter().any(|name| &**name == "on-demand") {
            self.publish(&[("on-demand", "")]);
        }
    }
    fn accepted(&self, client: &Client, resource: &Arc<Resource>) {
        self.tell(format!("{} accepted {}", client.node.id, resource.name()));
    }
    fn refused(&self, client: &Client, resource: &Arc<Resource>, detail: &str) {
        self.tell(format!("{} refused {}: {detail}", client.node.id, resource.name()));
    }
    fn closed(&self, client: &Client, reason: &str) {
        self.tell(format!("{} closed: {reason}", client.node.id));
    }
}

async fn serve(plane: &Arc<Plane>, settings: Settings) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut transport = AdsService::<Arc<Plane>>::transport(&settings);
    let service = AdsService::new(Arc::clone(plane), settings).into_server();
    tokio::spawn(transport.add_service(service).serve_with_incoming(incoming(listener)));
    address
}

#[tokio::test]
async fn connections_are_without_delay() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut incoming = incoming(listener);
    let (_client, accepted) = tokio::join!(tokio::net::TcpStream::connect(address), incoming.next());
    assert!(accepted.unwrap().unwrap().nodelay().unwrap());
}

/// A delta client in the hands of the test.
struct Wire {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Wire {
    /// Opens a stream with this first request.
    async fn open(address: SocketAddr, first: DeltaDiscoveryRequest) -> Self {
        let mut client =
            AggregatedDiscoveryServiceClient::connect(format!("http://{address}")).await.unwrap();
        let (requests, outbound) = mpsc::channel(16);
        requests.send(first).await.unwrap();
        let responses = client.delta_aggregated_resources(ReceiverStream::new(outbound)).await.unwrap();
        Self { requests, responses: responses.into_inner() }
    }

    async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let next = tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("an answer");
        next.map(|response| response.expect("the stream goes on"))
    }

    async fn answer(&self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        let error_detail = error.map(|text| RpcStatus { message: text.into(), ..RpcStatus::default() });
        let (type_url, response_nonce) = (response.type_url.clone(), response.nonce.clone());
        let request = DeltaDiscoveryRequest { type_url, response_nonce, error_detail, ..Default::default() };
        self.requests.send(request).await.unwrap();
    }
}

fn ask(node: &str, type_url: &str, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(Node { id: node.into(), ..Node::default() }),
        type_url: type_url.into(),
        resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|r| r.name.as_str()).collect()
}

#[tokio::test]
async fn changes_arrive_and_answers_are_reported() {
    let plane = Plane::new();
    let address = serve(&plane, Settings::default()).await;
    let mut wire = Wire::open(address, ask("n", CDS, &[])).await;
    plane.publish(&[("a", "")]);
    let first = wire.next().await.unwrap();
    assert_eq!(names(&first), ["a"]);
    wire.answer(&first, None).await;
    plane.was_told("n accepted a").await;
    plane.publish(&[("a", ""), ("b", "")]);
    let second = wire.next().await.unwrap();
    assert_eq!(names(&second), ["b"]);
    wire.answer(&second, Some("b: no such thing")).await;
    plane.was_told("n refused b: b: no such thing").await;
    drop(wire);
    plane.was_told("n closed: closed by the client").await;
}

#[tokio::test]
async fn a_burst_of_changes_is_one_response() {
    let plane = Plane::new();
    plane.publish(&[]);
    let address = serve(
        &plane,
        Settings { quiet: Duration::from_millis(200), at_most: PATIENCE, ..Settings::default() },
    )
    .await;
    let mut wire = Wire::open(address, ask("n", CDS, &[])).await;
    let empty = wire.next().await.unwrap();
    wire.answer(&empty, None).await;
    for n in 0..100 {
        plane.publish(&[("a", &n.to_string())]);
    }
    let response = wire.next().await.unwrap();
    let cluster: Cluster = crate::any::unpack(response.resources[0].resource.as_ref().unwrap()).unwrap();
    assert_eq!(cluster.alt_stat_name, "99");
}

#[tokio::test]
async fn a_name_is_made_on_demand_or_told_absent() {
    let plane = Plane::new();
    plane.publish(&[]);
    let address = serve(&plane, Settings::default()).await;
    let mut wire = Wire::open(address, ask("n", CDS, &["on-demand", "never"])).await;
    let made = wire.next().await.unwrap();
    assert_eq!(names(&made), ["on-demand"]);
    wire.answer(&made, None).await;
    assert_eq!(wire.next().await.unwrap().removed_resources, ["never"]);
    plane.was_told("n wants Cluster never,on-demand").await;
}

#[tokio::test]
async fn bad_streams_end_with_a_reason_and_others_go_on() {
    let plane = Plane::new();
    plane.publish(&[("a", "")]);
    let address = serve(&plane, Settings { request_bytes: 1000, ..Settings::default() }).await;
    let mut good = Wire::open(address, ask("good", CDS, &[])).await;
    let first = good.next().await.unwrap();
    let refusal =
        async |request| Wire::open(address, request).await.next().await.unwrap_err().message().to_owned();
    let anonymous = DeltaDiscoveryRequest { node: None, ..ask("", CDS, &[]) };
    assert_eq!(refusal(anonymous).await, "the first request of a stream must name its node (node.id)");
    assert_eq!(refusal(ask("n", "x/y", &[])).await, "\"x/y\" is not served here");
    assert_eq!(refusal(ask("stranger", CDS, &[])).await, "no workload \"stranger\"");
    let large = refusal(ask("n", CDS, &["x".repeat(2000).as_str()])).await;
    assert!(large.contains("1000"), "{large}");
    good.answer(&first, None).await;
    plane.was_told("good accepted a").await;
    plane.publish(&[("b", "")]);
    assert_eq!(names(&good.next().await.unwrap()), ["b"]);
}

#[tokio::test]
async fn streams_are_bounded_in_number_and_age() {
    let plane = Plane::new();
    let settings = Settings { streams: 1, stream_age: Duration::from_millis(100), ..Settings::default() };
    let address = serve(&plane, settings).await;
    let mut only = Wire::open(address, ask("n", CDS, &[])).await;
    let mut client = AggregatedDiscoveryServiceClient::connect(format!("http://{address}")).await.unwrap();
    let (_requests, outbound) = mpsc::channel(1);
    let second = client.delta_aggregated_resources(ReceiverStream::new(outbound)).await.unwrap_err();
    assert_eq!(second.message(), "1 streams are open already");
    assert_eq!(only.next().await.unwrap_err().message(), "the stream has reached its age; connect again");
}

#[tokio::test]
async fn the_other_variant_is_served_too() {
    let plane = Plane::new();
    plane.publish(&[("a", ""), ("b", "")]);
    let address = serve(&plane, Settings::default()).await;
    let mut client = AggregatedDiscoveryServiceClient::connect(format!("http://{address}")).await.unwrap();
    let (requests, outbound) = mpsc::channel(16);
    let node = Some(Node { id: "n".into(), ..Node::default() });
    requests
        .send(DiscoveryRequest { node, type_url: CDS.into(), ..DiscoveryRequest::default() })
        .await
        .unwrap();
    let mut responses =
        client.stream_aggregated_resources(ReceiverStream::new(outbound)).await.unwrap().into_inner();
    let response = tokio::time::timeout(PATIENCE, responses.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(response.resources.len(), 2);
    let answer = DiscoveryRequest {
        response_nonce: response.nonce,
        type_url: CDS.into(),
        ..DiscoveryRequest::default()
    };
    requests.send(answer).await.unwrap();
    plane.was_told("n accepted b").await;
}
