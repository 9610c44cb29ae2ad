//! The TLS port of the control plane: CA and ADS, with a certificate of the authority itself.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use remora_proxy::tls::TlsParams;
use remora_proxy::tls::material::{self, OwnCertificate};
use remora_proxy::tls::secret::Secret;
use remora_proxy::tls::server::{ServerParams, ServerStream, ServerTls};
use remora_proxy::tls::verify::{PeerRules, Trust};
use remora_xds::server::{AdsService, PeerCertificates, Settings};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::codegen::InterceptedService;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tonic::{Request, Status};
use tracing::{debug, error};

use super::own::{Held, Own, RETRY};
use crate::ca::authority::Authority;
use crate::ca::service::{PeerAddress, Shown};
use crate::ca::{self, Ca, Refused};
use crate::connections::{self, Place};
use crate::publish::Publisher;
use crate::quota;

/// For a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections at one time, as many as the streams of ADS and some more; what is above waits to be accepted.
const CONNECTIONS: usize = 12_000;

/// What the port is served with.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) own: Own,
    pub(super) certificates: ca::Service,
    pub(super) publisher: Arc<Publisher>,
    pub(super) quotas: quota::Service,
}

/// What handshakes use, and what changes it.
struct Shaking {
    tls: ServerTls,
    own: Arc<Secret<OwnCertificate>>,
    trust: Arc<Secret<Trust>>,
}

/// Serves for ever.
pub(super) async fn serve(listener: TcpListener, port: Port) {
    let (shaking, held) = loop {
        match port.begin().await {
            Ok((shaking, held)) => break (Arc::new(shaking), held),
            Err(error) => error!(%error, "the TLS port has no certificate yet; tried again"),
        }
        tokio::time::sleep(RETRY).await;
    };
    let (accepted, connections) = mpsc::channel(16);
    let settings = Settings::default();
    let ads = AdsService::new(Arc::clone(&port.publisher), settings.clone()).into_server();
    let quotas = port.quotas.clone().into_server();
    let (ca, of_quotas) = (Arc::clone(&port.own.ca), Arc::clone(&port.own.ca));
    let served = AdsService::<Arc<Publisher>>::transport(&settings)
        .add_service(InterceptedService::new(ads, move |request| node(&ca, request)))
        .add_service(InterceptedService::new(quotas, move |request| node(&of_quotas, request)))
        .add_service(InterceptedService::new(port.certificates.clone(), client))
        .serve_with_incoming(ReceiverStream::new(connections));
    let (served, (), ()) =
        tokio::join!(served, accept(listener, Arc::clone(&shaking), accepted), port.renew(&shaking, held));
    if let Err(error) = served {
        error!(%error, "the TLS server has ended");
    }
}

impl Port {
    async fn begin(&self) -> Result<(Shaking, Held), Refused> {
        let (own, held) = self.own.issue().await?;
        let params = ServerParams {
            tls: TlsParams { alpn: vec![b"h2".to_vec()], ..TlsParams::default() },
            // A session that is resumed would outlive a root.
            session_timeout: None,
            ..ServerParams::default()
        };
        let (own, trust) = (Secret::inline(own), Secret::inline(self.trust()?));
        let peers = PeerRules { trust: Arc::clone(&trust), sans: Arc::new([]), send_ca_names: false };
        let tls = ServerTls::new(params, vec![Arc::clone(&own)], Some(peers));
        Ok((Shaking { tls: tls.map_err(|e| Refused::Signing(e.to_string()))?, own, trust }, held))
    }

    /// Clients of the authority; those without a certificate may ask for one.
    fn trust(&self) -> Result<Trust, Refused> {
        let trusted = self.own.ca.read(Authority::trusted)?;
        let roots = material::roots(trusted.as_bytes()).map_err(|e| Refused::Corrupt(e.to_string()))?;
        Ok(Trust::in_roots(roots))
    }

    /// Replaces whom to trust when that changes, and the certificate in time.
    async fn renew(&self, shaking: &Shaking, held: Held) {
        let trust = || match self.trust() {
            Ok(trust) => shaking.trust.set(Arc::new(trust)),
            Err(error) => error!(%error, "the TLS port goes on trusting what it did"),
        };
        self.own.renew("the TLS port", &shaking.own, held, trust).await;
    }
}

/// Accepts connections and shakes hands, each in its own task.
async fn accept(
    listener: TcpListener,
    shaking: Arc<Shaking>,
    accepted: mpsc::Sender<io::Result<Connection>>,
) {
    let serve = move |stream, peer, place: Place| {
        // A stream of ADS lasts for ever.
        place.stays();
        let (shaking, accepted) = (Arc::clone(&shaking), accepted.clone());
        tokio::spawn(async move {
            let shaken = timeout(HANDSHAKE, Connection::shake(&shaking.tls, stream, peer, place)).await;
            match shaken {
                // Its receiver is the server, which lives as long as this process.
                Ok(Ok(connection)) => drop(accepted.send(Ok(connection)).await),
                Ok(Err(why)) => debug!(%peer, why, "no handshake"),
                Err(_) => debug!(%peer, "no handshake in time"),
            }
        });
    };
    connections::accept(listener, CONNECTIONS, serve).await;
}

/// A connection whose handshake is done.
struct Connection {
    stream: ServerStream<TcpStream>,
    info: Info,
    _place: Place,
}

/// What requests know of their connection.
#[derive(Debug, Clone)]
struct Info {
    tcp: TcpConnectInfo,
    peer: SocketAddr,
    certificates: PeerCertificates,
    shown: Option<Shown>,
    /// Set when a request was refused because the certificate has ended: the client is to shake hands with its newer one.
    stale: Arc<AtomicBool>,
}

impl Connection {
    async fn shake(
        tls: &ServerTls,
        stream: TcpStream,
        peer: SocketAddr,
        place: Place,
    ) -> Result<Self, String> {
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let tcp = stream.connect_info();
        let (stream, _) = tls.accept(stream, &[]).await.map_err(|e| e.to_string())?;
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificates = PeerCertificates(Arc::new(certificates.iter().map(|der| der.to_vec()).collect()));
        let shown = certificates.0.first().map(|leaf| Shown::of(leaf));
        Ok(Self {
            stream,
            info: Info { tcp, peer, certificates, shown, stale: Arc::default() },
            _place: place,
        })
    }
}

/// Tells a service who its client is.
fn client(mut request: Request<()>) -> Result<Request<()>, Status> {
    if let Some(info) = request.extensions().get::<Info>().cloned() {
        let extensions = request.extensions_mut();
        extensions.insert(info.tcp);
        extensions.insert(PeerAddress(info.peer));
        extensions.insert(info.certificates);
        info.shown.map(|shown| extensions.insert(shown));
    }
    Ok(request)
}

/// Lets workloads of the trust domain have resources; of which node, the publisher checks.
fn node(ca: &Ca, request: Request<()>) -> Result<Request<()>, Status> {
    let stale = request.extensions().get::<Info>().map(|info| Arc::clone(&info.stale));
    let request = client(request)?;
    let shown = request.extensions().get::<Shown>().ok_or(Refused::NoCertificate)?;
    let admitted = ca.admit(shown);
    if let (Err(Refused::CertificateExpired(_)), Some(stale)) = (&admitted, stale) {
        stale.store(true, Ordering::Relaxed);
    }
    admitted?;
    Ok(request)
}

impl Connected for Connection {
    type ConnectInfo = Info;

    fn connect_info(&self) -> Info {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // The end of the connection: the client comes again, with what it has now.
        if self.info.stale.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
