//! Connections of the ports of a control plane: how many there are at one time, and, where HTTP is served, how long one may say nothing.
//!
//! Where all places are taken and somebody waits, a connection on which nothing runs has to give its place up soon: silent ones, however
//! many, keep nobody out.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tonic::codegen::Service;
use tracing::{debug, warn};

/// For the head of a request of HTTP/1, and between two of them.
const HEAD: Duration = Duration::from_secs(10);
/// Between questions whether an HTTP/2 client is still there.
const PING: Duration = Duration::from_secs(20);
/// What a connection on which nothing runs has left when somebody waits for its place.
const HURRY: Duration = Duration::from_secs(1);
/// For a client to take note that its connection ends.
const GOODBYE: Duration = Duration::from_secs(1);
/// After an accept that failed.
const RETRY: Duration = Duration::from_millis(100);

/// The place of a connection among those that there may be at one time. Given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _slot: OwnedSemaphorePermit,
    /// Whether somebody waits for a place.
    crowded: watch::Receiver<bool>,
}

impl Place {
    /// Ends after `limit`, or after a second when somebody waits for a place.
    pub(crate) async fn patience(&self, limit: Duration) {
        let mut crowded = self.crowded.clone();
        let hurry = async {
            if crowded.wait_for(|crowded| *crowded).await.is_err() {
                // Nobody accepts connections any more, so that nobody waits.
                std::future::pending::<()>().await;
            }
            sleep(HURRY).await;
        };
        tokio::select! {
            () = sleep(limit) => {}
            () = hurry => {}
        }
    }
}

/// Accepts connections for ever, at most `most` at one time, and gives each to `serve`, which is not to wait.
pub(crate) async fn accept(
    listener: TcpListener,
    most: usize,
    serve: impl Fn(TcpStream, SocketAddr, Place) + Send,
) {
    let slots = Arc::new(Semaphore::new(most));
    let crowded = watch::Sender::new(false);
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(RETRY).await;
                continue;
            }
        };
        let slot = match Arc::clone(&slots).try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => {
                crowded.send_replace(true);
                // It is never closed.
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
                crowded.send_replace(false);
                slot
            }
        };
        serve(stream, address, Place { _slot: slot, crowded: crowded.subscribe() });
    }
}

/// How long a connection may say nothing, and what may run on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// From its beginning to the head of its first request.
    pub(crate) first: Duration,
    /// From the end of the last answer to the head of the next request. (Of HTTP/1 at most 10 s.)
    pub(crate) idle: Duration,
    /// Requests at one time, of HTTP/2.
    pub(crate) streams: u32,
}

/// Serves `router` on one connection, until it ends or says nothing for too long.
pub(crate) async fn http<IO>(stream: IO, address: SocketAddr, router: Router, limits: Limits, place: Place)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (running, watched) = watch::channel(0);
    let running = Arc::new(running);
    let answer = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(address);
        let (mut router, runs) = (router.clone(), Runs::new(&running));
        async move {
            let response: Response = router.call(request).await?;
            Ok::<_, Infallible>(response.map(|body| Body::new(Counted { body, _runs: runs })))
        }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(PING))
        .max_concurrent_streams(limits.streams);
    let mut serving = Box::pin(server.serve_connection(TokioIo::new(stream), answer));
    let ended = tokio::select! {
        ended = serving.as_mut() => Some(ended),
        () = silence(watched, limits, &place) => None,
    };
    match ended {
        Some(Ok(())) => {}
        Some(Err(error)) => debug!(%address, %error, "a connection ended"),
        None => {
            debug!(%address, "a connection that says nothing is closed");
            serving.as_mut().graceful_shutdown();
            // Whoever takes no note finds it closed.
            let _ = timeout(GOODBYE, serving).await;
        }
    }
}

/// Ends when nothing ran on a connection for too long.
async fn silence(mut running: watch::Receiver<usize>, limits: Limits, place: &Place) {
    let mut limit = limits.first;
    loop {
        let runs = *running.borrow_and_update() > 0;
        let changed = if runs {
            running.changed().await
        } else {
            tokio::select! {
                changed = running.changed() => changed,
                () = place.patience(limit) => return,
            }
        };
        if changed.is_err() {
            // Nothing is served on it any more.
            return;
        }
        limit = limits.idle;
    }
}

/// A request that runs: from its head to the end of its answer.
#[derive(Debug)]
struct Runs(Arc<watch::Sender<usize>>);

impl Runs {
    fn new(running: &Arc<watch::Sender<usize>>) -> Self {
        running.send_modify(|running| *running += 1);
        Self(Arc::clone(running))
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}

/// The body of an answer, with which its request ends.
struct Counted {
    body: Body,
    _runs: Runs,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use http_body_util::{BodyExt, Empty};
    use tokio::io::AsyncReadExt;

    use super::*;

    /// Longest that anything takes on a slow machine.
    const PATIENCE: Duration = Duration::from_secs(20);
    const HOUR: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_millis(50);

    /// A port with so many places.
    async fn port(most: usize, limits: Limits) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(async || "ok"));
        let serve = move |stream: TcpStream, address, place| {
            tokio::spawn(http(stream, address, router.clone(), limits, place));
        };
        tokio::spawn(accept(listener, most, serve));
        address
    }

    type Asking<C> = (C, tokio::task::JoinHandle<hyper::Result<()>>);

    async fn http1(to: SocketAddr) -> Asking<hyper::client::conn::http1::SendRequest<Empty<Bytes>>> {
        let stream = TcpStream::connect(to).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        (sender, tokio::spawn(connection))
    }

    async fn http2(to: SocketAddr) -> Asking<hyper::client::conn::http2::SendRequest<Empty<Bytes>>> {
        let stream = TcpStream::connect(to).await.unwrap();
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.unwrap();
        (sender, tokio::spawn(connection))
    }

    fn question(to: SocketAddr) -> http::Request<Empty<Bytes>> {
        http::Request::get(format!("http://{to}/")).header("host", to.to_string()).body(Empty::new()).unwrap()
    }

    async fn text(response: http::Response<Incoming>) -> String {
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap()
    }

    #[tokio::test]
    async fn connections_that_say_nothing_give_their_place_to_one_that_asks() {
        let to = port(2, Limits { first: HOUR, idle: HOUR, streams: 1 }).await;
        // One that was never asked anything, and one that was.
        let mut silent = TcpStream::connect(to).await.unwrap();
        let (mut earlier, _still) = http2(to).await;
        assert_eq!(text(earlier.send_request(question(to)).await.unwrap()).await, "ok");
        let asked = async {
            let (mut sender, _connection) = http1(to).await;
            text(sender.send_request(question(to)).await.unwrap()).await
        };
        assert_eq!(timeout(PATIENCE, asked).await.expect("it is served"), "ok");
        let closed = timeout(PATIENCE, silent.read(&mut [0; 1])).await.expect("it gave its place up");
        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    }

    #[tokio::test]
    async fn a_first_request_and_a_next_one_have_to_come_in_time() {
        let to = port(10, Limits { first: SHORT, idle: HOUR, streams: 1 }).await;
        let mut silent = TcpStream::connect(to).await.unwrap();
        let closed = timeout(PATIENCE, silent.read(&mut [0; 1])).await.expect("it is closed");
        assert!(matches!(closed, Ok(0)), "{closed:?}");

        let to = port(10, Limits { first: HOUR, idle: SHORT, streams: 1 }).await;
        let (mut sender, connection) = http2(to).await;
        assert_eq!(text(sender.send_request(question(to)).await.unwrap()).await, "ok");
        let _ended = timeout(PATIENCE, connection).await.expect("it is closed").unwrap();
        assert!(sender.send_request(question(to)).await.is_err());

        let (mut sender, connection) = http1(to).await;
        assert_eq!(text(sender.send_request(question(to)).await.unwrap()).await, "ok");
        let _ended = timeout(PATIENCE, connection).await.expect("it is closed").unwrap();
    }
}
