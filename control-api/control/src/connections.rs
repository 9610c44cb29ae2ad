//! Connections of the ports of a control plane: how many there are at one time, and, where HTTP is served, how long one may say nothing and
//! how long an exchange takes.
//!
//! Where all places are taken and somebody waits, the connection on which nothing has come to its end for longest gives up its place, whether
//! something runs on it or not: neither silent ones nor such that leave answers unread, however many, keep anybody out.

mod place;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::codegen::Service;
use tracing::{debug, warn};

pub(crate) use place::Place;
use place::{Places, Runs};

/// For the head of a request of HTTP/1, and between two of them.
const HEAD: Duration = Duration::from_secs(10);
/// Between questions whether an HTTP/2 client is still there.
const PING: Duration = Duration::from_secs(20);
/// For a client to take note that its connection ends.
const GOODBYE: Duration = Duration::from_secs(1);
/// After an accept that failed.
const RETRY: Duration = Duration::from_millis(100);
/// Bytes of a question of HTTP/2 that may be on their way before somebody reads them, and of all questions of a connection.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 128 << 10;
/// Bytes of a connection of HTTP/1 that are read ahead, a head among them.
const READ_AHEAD: usize = 64 << 10;

/// Accepts connections for ever, at most `most` at one time, and gives each to `serve`, which is not to wait.
pub(crate) async fn accept(
    listener: TcpListener,
    most: usize,
    serve: impl Fn(TcpStream, SocketAddr, Place) + Send,
) {
    let places = Places::new(most);
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(RETRY).await;
                continue;
            }
        };
        let Some(place) = places.take().await else { return };
        serve(stream, address, place);
    }
}

/// How long a connection may say nothing, and what may run on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// From its beginning to the head of its first request.
    pub(crate) first: Duration,
    /// From the end of the last answer to the head of the next request. (Of HTTP/1 at most 10 s.)
    pub(crate) idle: Duration,
    /// From the head of a request to the end of its answer, whoever is slow.
    pub(crate) exchange: Duration,
    /// Requests at one time, of HTTP/2.
    pub(crate) streams: u32,
}

/// Of an answer that is meant to last, among its extensions: how long at most. It is kept where others have to make room.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lasts(pub(crate) Duration);

tokio::task_local! {
    /// When the exchange of this task has to be over. Only a stream of HTTP/2 has a task.
    static UNTIL: Cell<Instant>;
}

/// Runs streams of HTTP/2, each as long as its exchange may take. One that is dropped is reset: also if its answer only waits for the client
/// to take more, when nobody asks for what comes next.
#[derive(Debug, Clone, Copy)]
struct Streams(Duration);

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let in_time = async move {
            let mut stream = pin!(stream);
            loop {
                let until = UNTIL.with(Cell::get);
                tokio::select! {
                    _ = &mut stream => return,
                    // It may be a later one by now.
                    () = sleep_until(until) => if UNTIL.with(Cell::get) <= until { return },
                }
            }
        };
        tokio::spawn(UNTIL.scope(Cell::new(Instant::now() + self.0), in_time));
    }
}

/// Serves `router` on one connection, until it ends, says nothing for too long, or has to make room.
pub(crate) async fn http<IO>(stream: IO, address: SocketAddr, router: Router, limits: Limits, place: Place)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let doing = place.doing().clone();
    let answer = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(address);
        let (mut router, runs) = (router.clone(), Runs::new(&doing, limits.exchange));
        async move {
            let response: Response = router.call(request).await?;
            if let Some(Lasts(most)) = response.extensions().get() {
                let until = Instant::now() + *most;
                runs.lasts(until);
                // Of HTTP/1 the connection ends then.
                let _ = UNTIL.try_with(|of_stream| of_stream.set(until));
            }
            Ok::<_, Infallible>(response.map(|body| Body::new(Counted { body, _runs: runs })))
        }
    });
    let mut server = auto::Builder::new(Streams(limits.exchange));
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(READ_AHEAD);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(PING))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.streams);
    let mut serving = Box::pin(server.serve_connection(TokioIo::new(stream), answer));
    let ended = tokio::select! {
        ended = serving.as_mut() => Some(ended),
        () = has_to_end(&place, limits) => None,
    };
    match ended {
        Some(Ok(())) => {}
        Some(Err(error)) => debug!(%address, %error, "a connection ended"),
        None => {
            debug!(%address, "a connection that took too long is closed");
            // Who waits for it does not wait for a goodbye.
            drop(place);
            serving.as_mut().graceful_shutdown();
            // Whoever takes no note finds it closed.
            let _ = timeout(GOODBYE, serving).await;
        }
    }
}

/// Ends when nothing ran on a connection, or something that cannot be stopped alone, for too long; or when somebody waits for its place.
async fn has_to_end(place: &Place, limits: Limits) {
    let first = Instant::now() + limits.first;
    let mut doing = place.doing().subscribe();
    loop {
        let until = {
            let doing = doing.borrow_and_update();
            if doing.told {
                return;
            }
            let idle = || doing.ended().map_or(first, |ended| ended + limits.idle);
            // A stream is reset before.
            doing.due().map_or_else(idle, |due| due + GOODBYE)
        };
        tokio::select! {
            // The other end of it is in the place.
            changed = doing.changed() => if changed.is_err() { return },
            () = sleep_until(until) => return,
        }
    }
}

/// The body of an answer, with which its exchange ends.
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
