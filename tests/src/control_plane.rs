//! Control planes: a good one, made of the project's own service, that serves whatever it is given (bad resources too) and writes
//! down what its clients say; and a raw one, of which the test writes every response.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use remora_xds::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use remora_xds::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    Resource as PbResource,
};
use remora_xds::server::{self, AdsService, Client, Denied, Settings, SnapshotWatch, Snapshots};
use remora_xds::{Kind, NodeSnapshot, Resource};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::wait::{eventually, within};

/// What the clients said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It has this version of a resource in force.
    Accepted(Kind, String, String),
    /// It refused a resource, for this reason.
    Refused(Kind, String, String),
    /// Its stream ended.
    Closed,
}

/// A control plane that serves one set of resources to everybody.
#[derive(Debug)]
pub struct ControlPlane {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<State>,
    /// Of its own: when it is shut down, all connections are closed, as those of a killed process are.
    runtime: Option<Runtime>,
}

#[derive(Debug)]
struct State {
    snapshots: watch::Sender<Option<Arc<NodeSnapshot>>>,
    said: Mutex<Vec<Said>>,
}

impl ControlPlane {
    /// Starts one that knows nothing yet.
    pub async fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Starts one at the address of one that was stopped.
    ///
    /// # Panics
    /// When the address is taken.
    pub async fn start_at(address: SocketAddr) -> Self {
        let mut bound = None;
        // Connections of the old one may linger.
        eventually("the address of a control plane", || {
            bound = std::net::TcpListener::bind(address).ok();
            bound.is_some()
        })
        .await;
        let listener = bound.expect("waited for");
        let address = listener.local_addr().expect("address");
        listener.set_nonblocking(true).expect("option");
        let state = Arc::new(State { snapshots: watch::Sender::new(None), said: Mutex::default() });
        let settings = Settings::default();
        let mut transport = AdsService::<Arc<State>>::transport(&settings);
        let service = AdsService::new(Arc::clone(&state), settings).into_server();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("runtime");
        runtime.spawn(async move {
            let incoming = server::incoming(TcpListener::from_std(listener).expect("listener"));
            drop(transport.add_service(service).serve_with_incoming(incoming).await);
        });
        Self { address, state, runtime: Some(runtime) }
    }

    /// Serves these, and nothing else.
    pub fn publish(&self, resources: impl IntoIterator<Item = Resource>) {
        self.state.snapshots.send_replace(Some(Arc::new(resources.into_iter().collect())));
    }

    /// Everything that was said.
    ///
    /// # Panics
    /// When a test panicked while it spoke.
    #[must_use]
    pub fn said(&self) -> Vec<Said> {
        self.state.said.lock().expect("not poisoned").clone()
    }

    /// Waits until a client has the newest version of a resource in force.
    pub async fn accepted(&self, kind: Kind, name: &str) {
        eventually(&format!("{kind} {name} accepted"), || {
            let newest = self.state.snapshots.borrow().as_ref().and_then(|s| s.get(kind, name).cloned());
            newest.is_some_and(|resource| {
                let wanted = Said::Accepted(kind, name.into(), resource.version().to_string());
                self.said().contains(&wanted)
            })
        })
        .await;
    }

    /// Waits until a client refuses a resource, and gives its reason.
    pub async fn refused(&self, kind: Kind, name: &str) -> String {
        let mut reason = String::new();
        eventually(&format!("{kind} {name} refused"), || {
            let said = self.said();
            let found = said.iter().rev().find_map(|said| match said {
                Said::Refused(k, n, why) if *k == kind && n == name => Some(why.clone()),
                _ => None,
            });
            reason = found.clone().unwrap_or_default();
            found.is_some()
        })
        .await;
        reason
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl State {
    fn note(&self, said: Said) {
        self.said.lock().expect("not poisoned").push(said);
    }
}

impl Snapshots for State {
    fn watch(&self, _: &Client) -> Result<SnapshotWatch, Denied> {
        Ok(self.snapshots.subscribe())
    }
    fn accepted(&self, _: &Client, resource: &Arc<Resource>) {
        let (name, version) = (resource.name().to_string(), resource.version().to_string());
        self.note(Said::Accepted(resource.kind(), name, version));
    }
    fn refused(&self, _: &Client, resource: &Arc<Resource>, detail: &str) {
        self.note(Said::Refused(resource.kind(), resource.name().to_string(), detail.into()));
    }
    fn closed(&self, _: &Client, _: &str) {
        self.note(Said::Closed);
    }
}

/// A stream of the incremental variant in the hands of the test.
#[derive(Debug)]
pub struct RawStream {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    sent: u32,
    /// Kinds that were asked for.
    asked: BTreeSet<Kind>,
}

/// A control plane that does only what the test says.
#[derive(Debug)]
pub struct RawControlPlane {
    /// Where it listens.
    pub address: SocketAddr,
    streams: mpsc::Receiver<RawStream>,
    server: JoinHandle<()>,
}

impl RawControlPlane {
    /// Starts one.
    ///
    /// # Panics
    /// When there is no address.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let (send, streams) = mpsc::channel(16);
        let service = AggregatedDiscoveryServiceServer::new(Raw(send));
        let served = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(server::incoming(listener));
        let server = tokio::spawn(async move { drop(served.await) });
        Self { address, streams, server }
    }

    /// The next stream that a client opens.
    ///
    /// # Panics
    /// When none comes.
    pub async fn stream(&mut self) -> RawStream {
        within("a stream", self.streams.recv()).await.expect("the server runs")
    }
}

impl Drop for RawControlPlane {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl RawStream {
    /// The next request.
    ///
    /// # Panics
    /// When the stream ends instead.
    pub async fn request(&mut self) -> DeltaDiscoveryRequest {
        let request = within("a request", self.requests.message()).await;
        let request = request.expect("a request").expect("the stream goes on");
        self.asked.extend(Kind::from_type_url(&request.type_url));
        request
    }

    /// The next request of one kind; others are passed over.
    pub async fn request_of(&mut self, kind: Kind) -> DeltaDiscoveryRequest {
        loop {
            let request = self.request().await;
            if request.type_url == kind.type_url() {
                return request;
            }
        }
    }

    /// Sends a response when its kind has been asked for, and does not wait for its answer.
    ///
    /// # Panics
    /// When the stream is gone.
    pub async fn send(&mut self, kind: Kind, resources: Vec<PbResource>, removed: &[&str]) {
        while !self.asked.contains(&kind) {
            self.request().await;
        }
        self.sent += 1;
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().into(),
            nonce: self.sent.to_string(),
            resources,
            removed_resources: removed.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        self.send_raw(response).await;
    }

    /// Sends any response.
    ///
    /// # Panics
    /// When the stream is gone.
    pub async fn send_raw(&mut self, response: DeltaDiscoveryResponse) {
        self.responses.send(Ok(response)).await.expect("the stream goes on");
    }

    /// Sends a response and waits for its answer.
    pub async fn push(&mut self, kind: Kind, resources: Vec<PbResource>) -> DeltaDiscoveryRequest {
        self.send(kind, resources, &[]).await;
        let nonce = self.sent.to_string();
        loop {
            let request = self.request_of(kind).await;
            if request.response_nonce == nonce {
                return request;
            }
        }
    }
}

struct Raw(mpsc::Sender<RawStream>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Raw {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("the raw control plane speaks the incremental variant"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, out) = mpsc::channel(16);
        let stream = RawStream { requests: request.into_inner(), responses, sent: 0, asked: BTreeSet::new() };
        self.0.send(stream).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(out)))
    }
}
