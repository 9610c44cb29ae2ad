//! The floor: a reverse proxy of bare hyper. One thread, a pool that is a stack, no features.
//!
//! What it costs is what a data plane on hyper cannot go below; the distance to it is what the features cost.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header, uri};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::CryptoProvider};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What stands on either side of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// HTTP/1 on both sides.
    H1,
    /// HTTP/2 with prior knowledge on both sides.
    H2,
    /// The client's half of a mesh: HTTP/1 in plaintext to HTTP/2 over mTLS.
    MtlsClient,
    /// The server's half of a mesh: HTTP/2 over mTLS to HTTP/1 in plaintext.
    MtlsServer,
    /// Opaque bytes.
    Tcp,
}

/// Certificates of the mTLS modes.
#[derive(Debug, Clone)]
pub struct TlsFiles<'a> {
    /// This side's certificate chain (PEM).
    pub certificate: &'a Path,
    /// Its key (PEM).
    pub key: &'a Path,
    /// What the peer's certificate must chain to (PEM).
    pub authority: &'a Path,
    /// The name that the server's certificate must carry.
    pub server_name: &'a str,
}

/// Runs hyper's tasks on the local runtime.
#[derive(Debug, Clone, Copy)]
struct Local;

impl<F> hyper::rt::Executor<F> for Local
where
    F: Future<Output: 'static> + 'static,
{
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

/// Serves for ever on the current local runtime.
///
/// # Errors
/// When accepting fails, or a mode with TLS has no certificates or bad ones.
pub async fn serve(
    listener: TcpListener,
    upstream: SocketAddr,
    mode: Mode,
    tls: Option<&TlsFiles<'_>>,
) -> anyhow::Result<()> {
    let acceptor = match mode {
        Mode::MtlsServer => {
            Some(TlsAcceptor::from(server_config(tls.context("certificates are needed")?, b"h2")?))
        }
        _ => None,
    };
    let connector = match mode {
        Mode::MtlsClient => {
            let files = tls.context("certificates are needed")?;
            let name = ServerName::try_from(files.server_name.to_owned()).context("server name")?;
            Some((TlsConnector::from(Arc::new(client_config(files, provider(), b"h2")?)), name))
        }
        _ => None,
    };
    let h2_upstream = matches!(mode, Mode::H2 | Mode::MtlsClient);
    let pool = Rc::new(Pool {
        upstream,
        connector,
        h2: h2_upstream.then(RefCell::default),
        authority: HeaderValue::from_str(&upstream.to_string()).context("authority")?,
        idle: RefCell::default(),
    });
    loop {
        let (stream, _) = listener.accept().await.context("accept")?;
        stream.set_nodelay(true)?;
        if mode == Mode::Tcp {
            tokio::task::spawn_local(copy(stream, upstream));
            continue;
        }
        let pool = Rc::clone(&pool);
        let acceptor = acceptor.clone();
        // A connection's failure is the client's to count.
        tokio::task::spawn_local(async move {
            match acceptor {
                Some(acceptor) => serve_h2(acceptor.accept(stream).await?, pool).await,
                None if mode == Mode::H2 => serve_h2(stream, pool).await,
                None => serve_h1(stream, pool).await,
            }
        });
    }
}

async fn copy(mut downstream: TcpStream, upstream: SocketAddr) -> anyhow::Result<()> {
    const BUFFER: usize = 64 * 1024;
    let mut upstream = TcpStream::connect(upstream).await?;
    upstream.set_nodelay(true)?;
    tokio::io::copy_bidirectional_with_sizes(&mut downstream, &mut upstream, BUFFER, BUFFER).await?;
    Ok(())
}

async fn serve_h1(stream: TcpStream, pool: Rc<Pool>) -> anyhow::Result<()> {
    let service = service_fn(move |request| proxy(request, Rc::clone(&pool)));
    Ok(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?)
}

async fn serve_h2<S>(stream: S, pool: Rc<Pool>) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service = service_fn(move |request| proxy(request, Rc::clone(&pool)));
    hyper::server::conn::http2::Builder::new(Local).serve_connection(TokioIo::new(stream), service).await?;
    Ok(())
}

async fn proxy(request: Request<Incoming>, pool: Rc<Pool>) -> Result<Response<Pooled>, hyper::Error> {
    match pool.send(request).await {
        Ok(response) => Ok(response),
        Err(_) => {
            let mut response = Response::new(Pooled { body: None, lease: None });
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            Ok(response)
        }
    }
}

/// Connections to the one upstream.
struct Pool {
    upstream: SocketAddr,
    connector: Option<(TlsConnector, ServerName<'static>)>,
    /// The HTTP/2 connection, if that is what the upstream speaks.
    h2: Option<RefCell<Option<http2::SendRequest<Incoming>>>>,
    authority: HeaderValue,
    idle: RefCell<Vec<http1::SendRequest<Incoming>>>,
}

impl Pool {
    async fn send(self: Rc<Self>, mut request: Request<Incoming>) -> anyhow::Result<Response<Pooled>> {
        request.headers_mut().remove(header::CONNECTION);
        if let Some(slot) = &self.h2 {
            let host = request.headers_mut().remove(header::HOST);
            let mut parts = request.uri().clone().into_parts();
            if parts.authority.is_none() {
                let host = host.as_ref().unwrap_or(&self.authority);
                parts.authority = Some(uri::Authority::try_from(host.as_bytes())?);
            }
            parts.scheme = Some(uri::Scheme::HTTP);
            *request.uri_mut() = Uri::from_parts(parts)?;
            *request.version_mut() = Version::HTTP_2;
            let response = self.h2_sender(slot).await?.send_request(request).await?;
            return Ok(response.map(|body| Pooled { body: Some(body), lease: None }));
        }
        if let Some(authority) = request.uri().authority() {
            let host = HeaderValue::from_str(authority.as_str())?;
            request.headers_mut().insert(header::HOST, host);
            let path = request.uri().path_and_query().cloned();
            *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
        }
        *request.version_mut() = Version::HTTP_11;
        let mut sender = self.h1_sender().await?;
        let response = sender.send_request(request).await?;
        let lease = Some((sender, self));
        Ok(response.map(|body| Pooled { body: Some(body), lease }))
    }

    async fn h1_sender(&self) -> anyhow::Result<http1::SendRequest<Incoming>> {
        loop {
            let idle = self.idle.borrow_mut().pop();
            let Some(mut sender) = idle else { break };
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let stream = TcpStream::connect(self.upstream).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::task::spawn_local(connection);
        Ok(sender)
    }

    async fn h2_sender(
        &self,
        slot: &RefCell<Option<http2::SendRequest<Incoming>>>,
    ) -> anyhow::Result<http2::SendRequest<Incoming>> {
        if let Some(sender) = slot.borrow().as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = TcpStream::connect(self.upstream).await?;
        stream.set_nodelay(true)?;
        let sender = match &self.connector {
            Some((connector, name)) => h2_handshake(connector.connect(name.clone(), stream).await?).await?,
            None => h2_handshake(stream).await?,
        };
        *slot.borrow_mut() = Some(sender.clone());
        Ok(sender)
    }
}

async fn h2_handshake<S>(stream: S) -> anyhow::Result<http2::SendRequest<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (sender, connection) = http2::handshake(Local, TokioIo::new(stream)).await?;
    tokio::task::spawn_local(connection);
    Ok(sender)
}

/// A response body that gives its HTTP/1 connection back to the pool when it has ended.
struct Pooled {
    body: Option<Incoming>,
    lease: Option<(http1::SendRequest<Incoming>, Rc<Pool>)>,
}

impl Pooled {
    fn give_back(&mut self) {
        if let Some((sender, pool)) = self.lease.take() {
            pool.idle.borrow_mut().push(sender);
        }
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if self.is_end_stream() {
            self.give_back();
        }
    }
}

impl Body for Pooled {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = self.body.as_mut() else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        match frame {
            None => self.give_back(),
            Some(Ok(_)) if self.is_end_stream() => self.give_back(),
            Some(_) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn identity(files: &TlsFiles<'_>) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_file_iter(files.certificate)
        .and_then(Iterator::collect)
        .with_context(|| files.certificate.display().to_string())?;
    let key = PrivateKeyDer::from_pem_file(files.key).with_context(|| files.key.display().to_string())?;
    Ok((chain, key))
}

fn roots(files: &TlsFiles<'_>) -> anyhow::Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(files.authority)? {
        roots.add(certificate?)?;
    }
    Ok(Arc::new(roots))
}

/// TLS 1.3 for clients with a certificate of the authority.
pub(crate) fn server_config(files: &TlsFiles<'_>, alpn: &[u8]) -> anyhow::Result<Arc<ServerConfig>> {
    let (chain, key) = identity(files)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(files)?, provider()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Arc::new(config))
}

/// TLS 1.3 with a certificate, towards servers of the authority.
pub(crate) fn client_config(
    files: &TlsFiles<'_>,
    provider: Arc<CryptoProvider>,
    alpn: &[u8],
) -> anyhow::Result<ClientConfig> {
    let (chain, key) = identity(files)?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(files)?)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::{self, Protocol, bulk};
    use crate::origin;

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// The addresses of a running origin: HTTP/1, HTTP/2, bulk.
    async fn origin() -> [SocketAddr; 3] {
        let ((h1, a), (h2, b), (bulk, c)) = (listener().await, listener().await, listener().await);
        tokio::task::spawn_local(origin::serve(h1, h2, bulk));
        [a, b, c]
    }

    async fn floor(upstream: SocketAddr, mode: Mode, tls: Option<(&Path, &str)>) -> SocketAddr {
        let (listener, address) = listener().await;
        let paths = tls.map(|(folder, leaf)| {
            [folder.join(format!("{leaf}.pem")), folder.join(format!("{leaf}.key")), folder.join("ca.pem")]
        });
        tokio::task::spawn_local(async move {
            let files = paths.as_ref().map(|[certificate, key, authority]| TlsFiles {
                certificate,
                key,
                authority,
                server_name: "b.bench",
            });
            serve(listener, upstream, mode, files.as_ref()).await
        });
        address
    }

    /// Closed-loop load for a moment; every answer must be the 3,000 bytes that were asked for.
    async fn check(target: SocketAddr, protocol: Protocol) {
        let options = load::Options {
            target,
            protocol,
            handshake: None,
            mode: load::Mode::Closed,
            connections: 2,
            streams: if protocol == Protocol::H2 { 3 } else { 1 },
            authority: "origin.bench".into(),
            path: "/3000".into(),
            warmup: Duration::ZERO,
            window: Duration::from_millis(100),
        };
        let report = load::run(&options, &mut |_| {}).await.unwrap();
        assert!(report.ok > 0, "{report:?}");
        assert_eq!((report.errors, report.bytes), (0, report.ok * 3000), "{report:?}");
    }

    #[tokio::test(flavor = "local")]
    async fn both_protocols_and_bulk_pass_through() {
        let [h1, h2, bulk] = origin().await;
        check(h1, Protocol::H1).await;
        check(h2, Protocol::H2).await;
        check(floor(h1, Mode::H1, None).await, Protocol::H1).await;
        check(floor(h2, Mode::H2, None).await, Protocol::H2).await;
        bulk::probe(floor(bulk, Mode::Tcp, None).await).await.unwrap();
    }

    #[tokio::test(flavor = "local")]
    async fn the_pair_carries_http1_over_http2_with_mutual_tls() {
        let folder = tempfile::tempdir().unwrap();
        crate::compare::certs::write(folder.path()).unwrap();
        let [h1, ..] = origin().await;
        let server = floor(h1, Mode::MtlsServer, Some((folder.path(), "b"))).await;
        let client = floor(server, Mode::MtlsClient, Some((folder.path(), "a"))).await;
        check(client, Protocol::H1).await;
    }

    #[tokio::test(flavor = "local")]
    async fn an_upstream_that_is_gone_is_a_502() {
        let (gone, address) = listener().await;
        drop(gone);
        let proxy = floor(address, Mode::H1, None).await;
        let options = load::Options {
            target: proxy,
            protocol: Protocol::H1,
            handshake: None,
            mode: load::Mode::Closed,
            connections: 1,
            streams: 1,
            authority: "origin.bench".into(),
            path: "/".into(),
            warmup: Duration::ZERO,
            window: Duration::ZERO,
        };
        let error = load::probe(&options).await.unwrap_err().to_string();
        assert_eq!(error, "status 502");
    }
}
