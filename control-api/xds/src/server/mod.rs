//! The Aggregated Discovery Service of a control plane, both variants.
//!
//! [`AdsService`] connects the state machines of [`crate::stream`] to gRPC and to a [`Snapshots`], which is the control plane:
//! it gives each node a snapshot behind a watch channel, and is told what the clients have and what they refuse.

mod drive;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::kind::Kind;
use crate::node_snapshot::NodeSnapshot;
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use crate::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::pb::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use crate::resource::Resource;
use crate::stream::{DeltaStream, Limits, SotwStream, Stream};

/// The snapshot of a node as it changes. None: it is not known yet, and the client keeps what it has until it is.
pub type SnapshotWatch = watch::Receiver<Option<Arc<NodeSnapshot>>>;

/// What the control plane has to offer, and what it may want to know.
///
/// All calls come from the tasks of streams: they must be quick and must not block.
pub trait Snapshots: Send + Sync + 'static {
    /// The snapshot of the node that has opened a stream. When the sender is dropped, the stream ends, and the client connects again.
    ///
    /// # Errors
    /// The node gets none: its stream is ended with this status.
    fn watch(&self, client: &Client) -> Result<SnapshotWatch, Denied>;

    /// The client asks for names that its snapshot does not have. Those that are in the snapshot when
    /// [`Limits::absent_wait`] has passed are sent; of the others the client is told that they do not exist.
    fn wanted(&self, client: &Client, kind: Kind, names: &[Arc<str>]) {
        let _ = (client, kind, names);
    }

    /// The client has this resource in force.
    fn accepted(&self, client: &Client, resource: &Arc<Resource>) {
        let _ = (client, resource);
    }

    /// The client refused this resource; `detail` is its reason.
    fn refused(&self, client: &Client, resource: &Arc<Resource>, detail: &str) {
        let _ = (client, resource, detail);
    }

    /// The stream of the client has ended.
    fn closed(&self, client: &Client, reason: &str) {
        let _ = (client, reason);
    }
}

/// Connections that `listener` accepts, for [`AdsService::transport`]. Without a delay (Nagle's algorithm is off): the end of a push
/// would wait 40 ms for the acknowledgement of its beginning.
#[must_use]
pub fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

/// The client of one stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Client {
    /// Number of the stream, unique in the process.
    pub stream: u64,
    /// Its node, from the first request.
    pub node: Node,
    /// Where it connected from.
    pub address: Option<SocketAddr>,
    /// Which variant of the protocol it speaks: `delta` or `sotw`.
    pub variant: &'static str,
    /// The certificates that it showed, in DER, its own first; empty without mTLS.
    pub certificates: Vec<Vec<u8>>,
}

/// What a server that accepts TLS connections by itself puts into the extensions of a request: the certificates that the
/// client showed, in DER, its own first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerCertificates(pub Arc<Vec<Vec<u8>>>);

/// Why a node gets no snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied {
    /// There is no such node (gRPC NOT_FOUND).
    Unknown(String),
    /// The client may not be this node (gRPC PERMISSION_DENIED).
    Forbidden(String),
    /// Not now (gRPC UNAVAILABLE).
    Unavailable(String),
}

impl From<Denied> for Status {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Unknown(text) => Self::not_found(text),
            Denied::Forbidden(text) => Self::permission_denied(text),
            Denied::Unavailable(text) => Self::unavailable(text),
        }
    }
}

/// How the service behaves.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Bounds of one stream.
    pub limits: Limits,
    /// Streams at one time.
    pub streams: usize,
    /// Bytes of one request.
    pub request_bytes: usize,
    /// How long a stream may take to send its first request.
    pub first_request: Duration,
    /// A change is sent when nothing else has changed for this long…
    pub quiet: Duration,
    /// …or when it is this old.
    pub at_most: Duration,
    /// A stream that is this old is ended, so that clients spread over a grown set of control planes.
    pub stream_age: Duration,
    /// So old a connection takes no new streams: GOAWAY.
    pub connection_age: Duration,
    /// Up to this share of `stream_age` is taken off, at random: streams that began together do not end together.
    pub stream_age_jitter: f64,
    /// A quiet connection is probed after this time…
    pub keepalive: Duration,
    /// …and closed when the probe is not answered in this time.
    pub keepalive_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            streams: 10_000,
            request_bytes: 4 << 20,
            first_request: Duration::from_secs(15),
            quiet: Duration::from_millis(10),
            at_most: Duration::from_millis(100),
            stream_age: Duration::from_secs(30 * 60),
            connection_age: Duration::from_secs(60 * 60),
            stream_age_jitter: 0.2,
            keepalive: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

type Responses<R> = ReceiverStream<Result<R, Status>>;

/// See the module.
#[derive(Debug)]
pub struct AdsService<S>(Arc<Shared<S>>);

#[derive(Debug)]
struct Shared<S> {
    snapshots: S,
    settings: Settings,
    streams: Arc<Semaphore>,
    next_stream: AtomicU64,
}

impl<S: Snapshots> AdsService<S> {
    /// A service of `snapshots`. An `Arc<S>` is a [`Snapshots`] too.
    #[must_use]
    pub fn new(snapshots: S, settings: Settings) -> Self {
        let streams = Arc::new(Semaphore::new(settings.streams));
        // Nonces of a process that was restarted must not look like ours.
        let next_stream = AtomicU64::new(fastrand::u64(..) & !0xff_ffff);
        Self(Arc::new(Shared { snapshots, settings, streams, next_stream }))
    }

    /// The gRPC service, to be added to a [`Self::transport`].
    #[must_use]
    pub fn into_server(self) -> AggregatedDiscoveryServiceServer<Self> {
        let bytes = self.0.settings.request_bytes;
        AggregatedDiscoveryServiceServer::new(self).max_decoding_message_size(bytes)
    }

    /// The same for secrets alone (SDS), as a workload's own agent offers them.
    #[must_use]
    pub fn into_secret_server(self) -> SecretDiscoveryServiceServer<Self> {
        let bytes = self.0.settings.request_bytes;
        SecretDiscoveryServiceServer::new(self).max_decoding_message_size(bytes)
    }

    /// A gRPC server with the keepalive and the bounds of `settings`, for the connections of [`incoming`].
    #[must_use]
    pub fn transport(settings: &Settings) -> tonic::transport::Server {
        tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(settings.keepalive))
            .http2_keepalive_timeout(Some(settings.keepalive_timeout))
            .http2_max_pending_accept_reset_streams(Some(100))
            .max_concurrent_streams(Some(100))
            // What a handshake has shown is not believed for ever.
            .max_connection_age(settings.connection_age)
    }

    fn start<M>(
        &self,
        variant: &'static str,
        request: Request<Streaming<M::Request>>,
    ) -> Result<Response<Responses<M::Response>>, Status>
    where
        M: Stream + Send + 'static,
    {
        let shared = Arc::clone(&self.0);
        let permit = Arc::clone(&shared.streams).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{} streams are open already", shared.settings.streams))
        })?;
        let address = request.remote_addr();
        let certificates = request.extensions().get::<PeerCertificates>();
        let client = Client {
            stream: shared.next_stream.fetch_add(1, Ordering::Relaxed),
            node: Node::default(),
            address,
            variant,
            certificates: certificates.map(|c| c.0.to_vec()).unwrap_or_default(),
        };
        let (out, responses) = mpsc::channel(1);
        tokio::spawn(async move {
            drive::run::<M, S>(&shared, client, request.into_inner(), out).await;
            drop(permit);
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

#[tonic::async_trait]
impl<S: Snapshots> AggregatedDiscoveryService for AdsService<S> {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.start::<SotwStream>("sotw", request)
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.start::<DeltaStream>("delta", request)
    }
}

#[tonic::async_trait]
impl<S: Snapshots> SecretDiscoveryService for AdsService<S> {
    type StreamSecretsStream = Responses<DiscoveryResponse>;
    type DeltaSecretsStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        self.start::<SotwStream>("sotw", request)
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        self.start::<DeltaStream>("delta", request)
    }

    async fn fetch_secrets(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("open a stream"))
    }
}

impl<S: Snapshots> Snapshots for Arc<S> {
    fn watch(&self, client: &Client) -> Result<SnapshotWatch, Denied> {
        S::watch(self, client)
    }
    fn wanted(&self, client: &Client, kind: Kind, names: &[Arc<str>]) {
        S::wanted(self, client, kind, names);
    }
    fn accepted(&self, client: &Client, resource: &Arc<Resource>) {
        S::accepted(self, client, resource);
    }
    fn refused(&self, client: &Client, resource: &Arc<Resource>, detail: &str) {
        S::refused(self, client, resource, detail);
    }
    fn closed(&self, client: &Client, reason: &str) {
        S::closed(self, client, reason);
    }
}
