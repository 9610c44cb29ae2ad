//! Connects subscriptions to gRPC and to the data plane, for as long as it runs.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use super::failover::Failover;
use super::link::{Ended, Link};
use super::subscriptions::{Answer, Batch, Names, Request, Response, Subscriptions};
use super::{Variant, Versions};
use crate::kind::Kind;
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};

/// A server that has nothing to say is healthy when its stream lasts this long.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// Least time between the beginnings of two streams of which the first was answered.
const ANSWERED_AGAIN: Duration = Duration::from_secs(1);
/// A stream that takes no more requests is over: so long it may take until it says why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A byte stream to a server.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection that is being opened.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Duplex>>> + Send>>;

/// Waits for other servers.
pub type Changed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Opens connections to the servers of a control plane.
pub trait Connector: Send + Sync + 'static {
    /// How many servers there are at the moment.
    fn servers(&self) -> usize;
    /// Opens a connection to one of them, by a number below [`Self::servers`], with TLS if it is to have TLS, and within its own time limit.
    fn connect(&self, server: usize) -> Connecting;
    /// `:authority` of the requests.
    fn authority(&self) -> &str;
    /// Comes when the servers are others than at the time of this call: then none of them has failed yet.
    fn changed(&self) -> Changed;
}

/// How the stream is to be.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which variant is spoken.
    pub variant: Variant,
    /// Who we are.
    pub node: Node,
    /// Whether all listeners are wanted, and all clusters.
    pub roots: Vec<Kind>,
    /// What is in force from an earlier life.
    pub held: Vec<(Kind, Versions)>,
    /// Bytes of the largest response.
    pub response_bytes: usize,
    /// A connection without a response for so long is probed with an HTTP/2 PING…
    pub keepalive: Duration,
    /// …and given up when the probe is not answered in this time.
    pub keepalive_timeout: Duration,
}

impl Settings {
    /// Usual bounds: 64 MiB a response; a silent server is noticed within 28 s. Servers count more frequent probes as an attack:
    /// Istio's allows one in 15 s.
    #[must_use]
    pub const fn new(variant: Variant, node: Node, roots: Vec<Kind>) -> Self {
        Self {
            variant,
            node,
            roots,
            held: Vec::new(),
            response_bytes: 64 << 20,
            keepalive: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(8),
        }
    }
}

/// What the data plane is told.
#[derive(Debug)]
pub enum Event {
    /// A server has accepted the stream.
    Connected,
    /// There is no server, and why.
    Disconnected(String),
    /// Resources; nothing else comes before they are answered.
    Batch(Batch, oneshot::Sender<Answer>),
}

/// Keeps a stream open until the receiver of events or the sender of `wanted` is gone.
pub async fn run(
    settings: Settings,
    connector: impl Connector,
    mut wanted: watch::Receiver<Names>,
    events: mpsc::Sender<Event>,
) {
    let mut rng = fastrand::Rng::new();
    let mut failover = Failover::new(&mut rng);
    let mut subscriptions =
        Subscriptions::new(settings.variant, settings.node.clone(), settings.held.iter().cloned());
    for kind in &settings.roots {
        subscriptions.want_all(*kind);
    }
    let connector: Arc<dyn Connector> = Arc::new(connector);
    while !events.is_closed() {
        let changed = connector.changed();
        let number = failover.server(connector.servers());
        let server = Server { connector: Arc::clone(&connector), number, ended: Ended::default() };
        let mut session = Session {
            settings: &settings,
            subscriptions: &mut subscriptions,
            wanted: &mut wanted,
            events: &events,
            answered: false,
            misbehaved: false,
        };
        let began = Instant::now();
        let reason = session.run(server).await;
        let Session { answered, misbehaved, .. } = session;
        if (answered && !misbehaved) || began.elapsed() >= HEALTHY_AFTER {
            failover.healthy();
        }
        let Err(reason) = reason else { return };
        let mut wait = failover.failed(connector.servers(), &mut rng);
        if answered {
            // A server that answers and ends the stream at once is not asked all the time either.
            wait = wait.max(ANSWERED_AGAIN.saturating_sub(began.elapsed()));
        }
        tracing::debug!(reason, ?wait, "the stream to the control plane ended");
        if events.send(Event::Disconnected(reason)).await.is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = changed => failover.healthy(),
        }
    }
}

struct Session<'s> {
    settings: &'s Settings,
    subscriptions: &'s mut Subscriptions,
    wanted: &'s mut watch::Receiver<Names>,
    events: &'s mpsc::Sender<Event>,
    /// Whether the server has sent anything.
    answered: bool,
    /// Whether it has sent what it must not: if it does so each time, it is not to be asked all the time.
    misbehaved: bool,
}

impl Session<'_> {
    /// One stream. Ok: the data plane has ended. Err: why the stream did.
    async fn run(&mut self, server: Server) -> Result<(), String> {
        let ended = server.ended.clone();
        let channel = connect(server, (self.settings.keepalive, self.settings.keepalive_timeout)).await?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(self.settings.response_bytes);
        self.subscriptions.connected();
        self.take_wants();
        match self.settings.variant {
            Variant::Delta => {
                let (out, requests) = mpsc::channel(1);
                let opened = client.delta_aggregated_resources(ReceiverStream::new(requests));
                let pick = |request| match request {
                    Request::Delta(request) => Some(*request),
                    Request::Sotw(_) => None,
                };
                self.stream(opened, Outbound { out, pick }, &ended).await
            }
            Variant::Sotw => {
                let (out, requests) = mpsc::channel(1);
                let opened = client.stream_aggregated_resources(ReceiverStream::new(requests));
                let pick = |request| match request {
                    Request::Sotw(request) => Some(*request),
                    Request::Delta(_) => None,
                };
                self.stream(opened, Outbound { out, pick }, &ended).await
            }
        }
    }

    async fn stream<Q, R>(
        &mut self,
        opened: impl Future<Output = Result<tonic::Response<Streaming<R>>, Status>>,
        outbound: Outbound<Q>,
        ended: &Ended,
    ) -> Result<(), String>
    where
        R: Into<Response>,
    {
        let mut opened = std::pin::pin!(opened);
        let mut responses = None;
        // Whether there may be a request to send.
        let mut lively = true;
        loop {
            let next_at = self.subscriptions.next_at();
            tokio::select! {
                permit = outbound.out.reserve(), if lively => {
                    let Ok(permit) = permit else {
                        // Responses that were not taken come before it.
                        let end = async {
                            loop {
                                if let Err(status) = receive(opened.as_mut(), &mut responses).await {
                                    return status;
                                }
                            }
                        };
                        return Err(match tokio::time::timeout(LAST_WORDS, end).await {
                            Ok(status) => self.why(&status, ended),
                            Err(_) => "the server reads no more requests".to_owned(),
                        });
                    };
                    match self.subscriptions.next_request(Instant::now()).and_then(outbound.pick) {
                        Some(request) => permit.send(request),
                        None => lively = false,
                    }
                }
                received = receive(opened.as_mut(), &mut responses), if self.subscriptions.may_take() => {
                    let received = received.map_err(|status| self.why(&status, ended))?;
                    let going_on = match received {
                        None => self.events.send(Event::Connected).await.is_ok(),
                        Some(response) => self.received(response.into()).await?,
                    };
                    if !going_on {
                        return Ok(());
                    }
                    lively = true;
                }
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.take_wants();
                    lively = true;
                }
                () = until(next_at), if !lively => lively = true,
            }
        }
    }

    /// Why the stream ended, for the log.
    fn why(&mut self, status: &Status, ended: &Ended) -> String {
        // What has a source befell the connection.
        if status.source().is_none() {
            self.misbehaved = matches!(status.code(), Code::OutOfRange | Code::Internal);
            return text_of(status);
        }
        let text = text_of(status);
        if ended.by_peer() || !text.contains("broken pipe") {
            return text;
        }
        format!("the server is silent: no answer to a PING within {:?}", self.settings.keepalive_timeout)
    }

    /// Hands a response to the data plane, and takes its answer. False: the data plane has ended.
    async fn received(&mut self, response: Response) -> Result<bool, String> {
        self.answered = true;
        let batch = self.subscriptions.take(response).inspect_err(|_| self.misbehaved = true)?;
        let (answer, answered) = oneshot::channel();
        if self.events.send(Event::Batch(batch, answer)).await.is_err() {
            return Ok(false);
        }
        let Ok(answer) = answered.await else { return Ok(false) };
        self.subscriptions.settle(answer, Instant::now());
        self.take_wants();
        Ok(true)
    }

    fn take_wants(&mut self) {
        for (kind, names) in &*self.wanted.borrow_and_update() {
            self.subscriptions.want(*kind, names);
        }
    }
}

/// A connection to server `number` for other services of it. A silent one is probed after the first time, and given up after the second.
///
/// # Errors
/// Why there is none.
pub async fn open(
    connector: Arc<dyn Connector>,
    number: usize,
    keepalive: (Duration, Duration),
) -> Result<Channel, String> {
    connect(Server { connector, number, ended: Ended::default() }, keepalive).await
}

async fn connect(server: Server, (after, timeout): (Duration, Duration)) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.connector.authority()))
        .map_err(|e| e.to_string())?
        .http2_keep_alive_interval(after)
        .keep_alive_timeout(timeout)
        .keep_alive_while_idle(true);
    endpoint.connect_with_connector(server).await.map_err(|e| full_text(&e))
}

/// Waits until then; for ever, when there is no such time.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

struct Outbound<Q> {
    out: mpsc::Sender<Q>,
    pick: fn(Request) -> Option<Q>,
}

/// The next response; None when the stream is open. A server may open it only when it has something to say, and meanwhile
/// requests have to go on.
async fn receive<R>(
    opened: Pin<&mut impl Future<Output = Result<tonic::Response<Streaming<R>>, Status>>>,
    responses: &mut Option<Streaming<R>>,
) -> Result<Option<R>, Status> {
    let Some(responses) = responses else {
        *responses = Some(opened.await?.into_inner());
        return Ok(None);
    };
    let response = responses.message().await?;
    response.map(Some).ok_or_else(|| Status::unavailable("the server ended the stream"))
}

impl From<DeltaDiscoveryResponse> for Response {
    fn from(response: DeltaDiscoveryResponse) -> Self {
        Self::Delta(Box::new(response))
    }
}

impl From<DiscoveryResponse> for Response {
    fn from(response: DiscoveryResponse) -> Self {
        Self::Sotw(Box::new(response))
    }
}

/// One server, as tonic's channel wants it.
#[derive(Clone)]
struct Server {
    connector: Arc<dyn Connector>,
    number: usize,
    ended: Ended,
}

impl Service<Uri> for Server {
    type Response = TokioIo<Link>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (connecting, ended) = (self.connector.connect(self.number), self.ended.clone());
        Box::pin(async move { connecting.await.map(|io| TokioIo::new(Link { io, ended })) })
    }
}

fn text_of(status: &Status) -> String {
    let text = if status.message().is_empty() { status.code().description() } else { status.message() };
    format!("{:?}: {text}{}", status.code(), causes(status))
}

/// An error with its causes.
fn full_text(error: &dyn Error) -> String {
    format!("{error}{}", causes(error))
}

/// What is behind an error.
fn causes(error: &dyn Error) -> String {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
