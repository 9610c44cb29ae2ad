//! The control plane of the run: the project's own service with one snapshot for everybody, which tells what it sends and what is
//! answered.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::Context as _;
use prost::Message as _;
use remora_xds::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use remora_xds::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
};
use remora_xds::server::{AdsService, Client, Denied, Settings, SnapshotWatch, Snapshots};
use remora_xds::{NodeSnapshot, Resource};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::codegen::tokio_stream::wrappers::TcpListenerStream;
use tonic::codegen::tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

/// Events that nobody has looked at yet; more than all resources of a run.
const SAID: usize = 1 << 17;

/// Something that happened on a stream.
#[derive(Debug)]
pub(crate) enum Said {
    /// A proxy has connected.
    Opened,
    /// A response went to the connection.
    Sent {
        /// When.
        at: Instant,
        /// Bytes of the encoded message.
        bytes: usize,
    },
    /// The proxy has acknowledged a resource.
    Accepted {
        /// When.
        at: Instant,
        /// Which.
        resource: Arc<Resource>,
    },
    /// The proxy refuses a resource.
    Refused(String),
}

/// See the module. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) said: mpsc::Receiver<Said>,
    snapshots: watch::Sender<Option<Arc<NodeSnapshot>>>,
    runtime: Option<Runtime>,
}

#[derive(Debug, Clone)]
struct Teller {
    snapshots: SnapshotWatch,
    tell: mpsc::Sender<Said>,
}

impl Server {
    /// Starts it on a thread of its own. It has nothing to serve yet.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).context("no free port")?;
        let address = listener.local_addr()?;
        let (tell, said) = mpsc::channel(SAID);
        let snapshots = watch::Sender::new(None);
        let teller = Teller { snapshots: snapshots.subscribe(), tell };
        let settings = Settings::default();
        let mut transport = AdsService::<Teller>::transport(&settings);
        let bytes = settings.request_bytes;
        let service = Told { service: AdsService::new(teller.clone(), settings), teller };
        let service = AggregatedDiscoveryServiceServer::new(service).max_decoding_message_size(bytes);
        // Dropped with the runtime; a proxy that loses its stream is missed by whoever waits for its answers.
        runtime.spawn(transport.add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
        Ok(Self { address, said, snapshots, runtime: Some(runtime) })
    }

    /// Serves these resources, and nothing else.
    pub(crate) fn publish(&self, snapshot: NodeSnapshot) {
        self.snapshots.send_replace(Some(Arc::new(snapshot)));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Teller {
    /// Whoever counts may have ended. What has no room is never counted, and the run is given up.
    fn tell(&self, said: Said) {
        let _ = self.tell.try_send(said);
    }
}

impl Snapshots for Teller {
    fn watch(&self, _: &Client) -> Result<SnapshotWatch, Denied> {
        self.tell(Said::Opened);
        Ok(self.snapshots.clone())
    }

    fn accepted(&self, _: &Client, resource: &Arc<Resource>) {
        self.tell(Said::Accepted { at: Instant::now(), resource: Arc::clone(resource) });
    }

    fn refused(&self, _: &Client, resource: &Arc<Resource>, detail: &str) {
        self.tell(Said::Refused(format!("{} {}: {detail}", resource.kind(), resource.name())));
    }
}

/// The service, told of each response.
struct Told {
    service: AdsService<Teller>,
    teller: Teller,
}

type Responses<R> = Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Told {
    type StreamAggregatedResourcesStream =
        <AdsService<Teller> as AggregatedDiscoveryService>::StreamAggregatedResourcesStream;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.service.stream_aggregated_resources(request).await
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let responses = self.service.delta_aggregated_resources(request).await?;
        let teller = self.teller.clone();
        Ok(responses.map(move |stream| {
            let told = stream.map(move |response| {
                if let Ok(response) = &response {
                    teller.tell(Said::Sent { at: Instant::now(), bytes: response.encoded_len() });
                }
                response
            });
            Box::pin(told) as Responses<_>
        }))
    }
}
