//! HTTP/1 around the pages, with bounds.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::Admin;
use super::pages::Answer;

/// Connections at a time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
/// Bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;
/// To send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// To make the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Of a connection as a whole: a reader that stopped does not keep its place for ever.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);
/// After an accept that failed, for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Which pages a server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// All: the admin port.
    All,
    /// `/ready`, `/healthz/ready` and `/healthcheck`: the readiness port.
    Readiness,
    /// `/metrics` and `/stats/prometheus`: the metrics port.
    Metrics,
}

impl Pages {
    fn has(self, path: &str) -> bool {
        match self {
            Self::All => true,
            Self::Readiness => matches!(path, "/ready" | "/healthz/ready" | "/healthcheck"),
            Self::Metrics => matches!(path, "/metrics" | "/stats/prometheus"),
        }
    }
}

/// A server that is bound and does not serve yet.
#[derive(Debug)]
pub struct BoundAdmin {
    listener: TcpListener,
    /// The address; a port 0 is resolved.
    pub address: SocketAddr,
    server: Arc<Server>,
    open: OpenAnswers,
}

#[derive(Debug)]
struct Server {
    admin: Arc<Admin>,
    pages: Pages,
    /// Only `localhost` and IP addresses are taken as Host.
    strict_host: bool,
}

impl Admin {
    /// Binds a server to `address`.
    ///
    /// # Errors
    /// The address is in use or not ours.
    pub async fn bind(self: &Arc<Self>, address: SocketAddr, pages: Pages) -> io::Result<BoundAdmin> {
        self.serve_on(TcpListener::bind(address).await?.into_std()?, pages)
    }

    /// A server on a socket that listens already, and does not block.
    ///
    /// # Errors
    /// It is no such socket.
    pub fn serve_on(
        self: &Arc<Self>,
        listener: std::net::TcpListener,
        pages: Pages,
    ) -> io::Result<BoundAdmin> {
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        if pages == Pages::All && !address.ip().is_loopback() {
            tracing::warn!(%address, "the admin server can be reached from other machines");
        }
        let strict_host = address.ip().is_loopback();
        let server = Arc::new(Server { admin: Arc::clone(self), pages, strict_host });
        let open = OpenAnswers { places: Arc::new(Semaphore::new(MAX_CONNECTIONS)), stop: Arc::default() };
        Ok(BoundAdmin { listener, address, server, open })
    }
}

impl BoundAdmin {
    /// Open connections, to be waited for at the end: `/quitquitquit` wants its answer.
    #[must_use]
    pub fn answers(&self) -> OpenAnswers {
        self.open.clone()
    }

    /// Serves until it is dropped, which also closes its connections.
    pub async fn serve(self) {
        let mut connections = JoinSet::new();
        loop {
            // The semaphore is never closed.
            let Ok(place) = Arc::clone(&self.open.places).acquire_owned().await else { return };
            let accepted = tokio::select! {
                biased;
                () = self.open.stop.notified() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&self.server), place));
                }
                Err(error) => {
                    tracing::warn!(%error, "admin: accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
        drop(self.listener);
        while connections.join_next().await.is_some() {}
    }
}

/// Connections of an admin server.
#[derive(Debug, Clone)]
pub struct OpenAnswers {
    places: Arc<Semaphore>,
    stop: Arc<Notify>,
}

impl OpenAnswers {
    /// Waits until none is open, but not longer than `limit`.
    pub async fn written(&self, limit: Duration) {
        let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
        // What is not read by now is not waited for.
        let _ = tokio::time::timeout(limit, self.places.acquire_many(all - 1)).await;
    }

    /// Leaves the port to another process, which has the same socket. What is open is answered.
    pub fn accept_no_more(&self) {
        self.stop.notify_one();
    }
}

async fn connection(stream: TcpStream, server: Arc<Server>, _place: OwnedSemaphorePermit) {
    let service = service_fn(move |request| {
        let server = Arc::clone(&server);
        async move { Ok::<_, Infallible>(server.answer(request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        // A page is asked for now and then; the end of the process need not wait for idle connections.
        .keep_alive(false)
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, served).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%error, "admin connection"),
    }
}

impl Server {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let answer = match self.refusal(request.method(), request.uri().path(), request.headers()) {
            Some(refusal) => refusal,
            None => self.page(&request).await,
        };
        let mut response = Response::new(Full::new(Bytes::from(answer.body)));
        *response.status_mut() = answer.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::SERVER, HeaderValue::from_static("remora"));
        let policy =
            HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; form-action 'self'");
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
        response
    }

    /// Pages may be large and lock the registry: not on the runtime that also speaks to the control plane.
    async fn page(&self, request: &Request<Incoming>) -> Answer {
        let admin = Arc::clone(&self.admin);
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let page = tokio::task::spawn_blocking(move || {
            admin.handle(&method, uri.path(), uri.query().unwrap_or_default())
        });
        match tokio::time::timeout(ANSWER_TIMEOUT, page).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Answer::error(StatusCode::INTERNAL_SERVER_ERROR, "the page failed"),
            Err(_) => Answer::error(StatusCode::SERVICE_UNAVAILABLE, "the page took too long"),
        }
    }

    fn refusal(&self, method: &Method, path: &str, headers: &HeaderMap) -> Option<Answer> {
        if !self.pages.has(path) {
            return Some(Answer::error(StatusCode::NOT_FOUND, "not on this port"));
        }
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        if self.strict_host && !host.is_empty() && !is_local(host) {
            return Some(Answer::error(StatusCode::FORBIDDEN, "use an IP address or localhost as the host"));
        }
        let foreign = headers.get(header::ORIGIN).is_some_and(|origin| {
            let origin = origin.to_str().unwrap_or_default();
            origin.strip_prefix("http://").is_none_or(|origin| origin != host)
        });
        if method == Method::POST && foreign {
            return Some(Answer::error(StatusCode::FORBIDDEN, "not from another site"));
        }
        None
    }
}

/// Whether a Host is `localhost` or an IP address, with or without a port.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None if host.parse::<IpAddr>().is_ok() => host,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}
