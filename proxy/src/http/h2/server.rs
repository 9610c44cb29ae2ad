//! Serves one HTTP/2 connection (RFC 9113): every stream is a task of the same worker.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Connection, SendResponse};
use http::{Request, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::convert::{self, Converted, Refused};
use super::cork::{Cork, Uncork};
use super::guard::{Flooded, GOAWAY_GRACE, Guard};
use super::tunnel::H2Tunnel;
use crate::config::spec::{Http2Keepalive, HttpSpec};
use crate::error::Reason;
use crate::http::body::{Body, BodyProgress, H2Body};
use crate::http::context::RequestCtx;
use crate::http::downstream::Downstream;
use crate::http::interim::InterimSink;
use crate::http::local_reply;
use crate::http::pipeline;
use crate::http::pump::{H2Pump, PumpError};
use crate::http::recheck::poll_refused;
use crate::http::response::{Response, Upgraded};
use crate::http::tunnel;
use crate::http::watchdog::Watchdog;
use crate::tcp::Traffic;
use crate::worker::timer::Timer;

/// Serves `io` until the peer or the drain ends it.
pub async fn serve<T: AsyncRead + AsyncWrite + Unpin>(
    io: T,
    downstream: Rc<Downstream>,
    http: Arc<HttpSpec>,
) {
    let (io, uncork) = Cork::new(io);
    let (io, flooded) = Guard::new(io);
    let handshake = uncork.around(builder(&http).handshake::<_, Bytes>(io));
    let limit = http.headers_timeout.unwrap_or(std::time::Duration::from_secs(10));
    let Ok(Ok(connection)) = tokio::time::timeout(limit, handshake).await else {
        downstream.worker.metrics.rejected(Reason::Malformed);
        downstream.tell(Reason::Malformed, Some("http2_handshake"), None);
        return;
    };
    let session = Session {
        connection,
        uncork,
        flooded,
        streams: Rc::default(),
        opened: Instant::now(),
        going_away: false,
        downstream,
        http,
    };
    session.run().await;
}

/// Answers a connection that does not start with the preface: SETTINGS and GOAWAY(PROTOCOL_ERROR), and then a close
/// that leaves the client time to read them (RFC 9113 §3.4).
pub async fn refuse_preface<T: AsyncRead + AsyncWrite + Unpin>(mut io: T) {
    const ANSWER: &[u8] = &[
        0, 0, 0, 4, 0, 0, 0, 0, 0, // SETTINGS
        0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, // GOAWAY, last stream 0, PROTOCOL_ERROR
    ];
    let goodbye = async {
        io.write_all(ANSWER).await?;
        io.shutdown().await?;
        let mut rest = [0; 4096];
        while io.read(&mut rest).await? > 0 {}
        Ok::<(), std::io::Error>(())
    };
    // Whether the client reads it is its own affair.
    let _ = tokio::time::timeout(GOAWAY_GRACE, goodbye).await;
}

fn builder(http: &HttpSpec) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(http.http2.stream_window)
        .initial_connection_window_size(http.http2.connection_window)
        .max_concurrent_streams(http.http2.max_streams)
        .header_table_size(http.http2.hpack_table)
        .max_header_list_size(u32::try_from(http.max_header_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(256 * 1024)
        .max_pending_accept_reset_streams(64)
        .max_concurrent_reset_streams(64);
    if http.http2.allow_connect {
        builder.enable_connect_protocol();
    }
    builder
}

struct Session<T> {
    connection: Connection<Guard<Cork<T>>, Bytes>,
    uncork: Uncork<T>,
    flooded: Flooded,
    streams: Rc<Cell<usize>>,
    opened: Instant,
    going_away: bool,
    downstream: Rc<Downstream>,
    http: Arc<HttpSpec>,
}

#[expect(
    clippy::large_enum_variant,
    reason = "lives for one match; a box would cost an allocation a request"
)]
enum Event {
    Stream(Request<RecvStream>, SendResponse<Bytes>),
    GoAway,
    Ended,
    Flooded,
    Idle,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Session<T> {
    async fn run(mut self) {
        let far = Instant::now() + std::time::Duration::from_secs(365 * 24 * 3600);
        let mut age = Timer::at(self.http.max_connection_age.map_or(far, |age| self.opened + age));
        let mut idle = Timer::at(self.http.idle_timeout.map_or(far, |idle| self.opened + idle));
        let pings =
            self.http.http2.keepalive.and_then(|k| self.connection.ping_pong().map(|p| keepalive(k, p)));
        let mut dead = pin!(async {
            match pings {
                Some(pings) => pings.await,
                None => std::future::pending().await,
            }
        });
        loop {
            match self.next(&mut age, &mut idle, dead.as_mut()).await {
                Event::Stream(request, respond) => self.start(request, respond),
                Event::GoAway => {
                    self.going_away = true;
                    // Two GOAWAYs, the first with the highest id: no stream on its way is refused (RFC 9113 §6.8).
                    self.connection.graceful_shutdown();
                }
                Event::Ended => return,
                Event::Idle => {
                    if self.streams.get() == 0 {
                        self.going_away = true;
                        self.connection.graceful_shutdown();
                    } else if let Some(limit) = self.http.idle_timeout {
                        idle.reset(Instant::now() + limit);
                    }
                }
                Event::Flooded => {
                    self.downstream.worker.metrics.rejected(Reason::Flood);
                    self.downstream.tell(Reason::Flood, None, None);
                    self.connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                    let closed = poll_fn(|cx| self.connection.poll_closed(cx));
                    let _ = tokio::time::timeout(GOAWAY_GRACE, self.uncork.around(closed)).await;
                    return;
                }
            }
        }
    }

    async fn next(
        &mut self,
        age: &mut Timer,
        idle: &mut Timer,
        mut dead: Pin<&mut impl Future<Output = ()>>,
    ) -> Event {
        poll_fn(|cx| {
            let accepted = self.connection.poll_accept(cx);
            if self.flooded.get() {
                return Poll::Ready(Event::Flooded);
            }
            match accepted {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    return Poll::Ready(Event::Stream(request, respond));
                }
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Event::Ended),
                // Everything that arrived was read, and everything that was to be said is gathered.
                Poll::Pending => self.uncork.poll_flush(cx),
            }
            if dead.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Event::Ended);
            }
            if self.going_away {
                return Poll::Pending;
            }
            if self.downstream.drain.poll_draining(cx).is_some() || age.poll(cx).is_ready() {
                return Poll::Ready(Event::GoAway);
            }
            idle.poll(cx).map(|()| Event::Idle)
        })
        .await
    }

    fn start(&mut self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        if let Some(http) = self.downstream.http() {
            self.http = http;
        }
        let count = StreamCount::new(&self.streams);
        self.downstream.streams.set(self.downstream.streams.get() + 1);
        if self.http.max_requests.is_some_and(|max| self.downstream.streams.get() >= u64::from(max))
            && !self.going_away
        {
            self.going_away = true;
            self.connection.graceful_shutdown();
        }
        let stream =
            Stream { downstream: Rc::clone(&self.downstream), http: Arc::clone(&self.http), _count: count };
        // Boxed here: the runtime moves what it is given several times, and this is some kilobytes.
        tokio::task::spawn_local(Box::pin(stream.run(request, respond)));
    }
}

/// PINGs a quiet client every interval; returns when it does not answer in time (features.md C5).
async fn keepalive(keepalive: Http2Keepalive, mut pings: h2::PingPong) {
    loop {
        tokio::time::sleep(keepalive.interval).await;
        let answer = tokio::time::timeout(keepalive.timeout, pings.ping(h2::Ping::opaque())).await;
        if !matches!(answer, Ok(Ok(_))) {
            return;
        }
    }
}

/// Counts a stream as open until dropped.
struct StreamCount(Rc<Cell<usize>>);

impl StreamCount {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for StreamCount {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// One stream.
struct Stream {
    downstream: Rc<Downstream>,
    http: Arc<HttpSpec>,
    _count: StreamCount,
}

impl Stream {
    async fn run(self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let (parts, stream) = request.into_parts();
        let Converted { head, redirect, upgrade } =
            match convert::request(parts, &self.http, self.downstream.is_secure()) {
                Ok(converted) => converted,
                Err(Refused::Reset(reason)) => {
                    RequestCtx::refused(&self.downstream, &self.http, reason).finish(0, None);
                    respond.send_reset(h2::Reason::PROTOCOL_ERROR);
                    return;
                }
                Err(Refused::Reply(reason)) => return self.refuse(reason, respond),
            };
        let progress: Rc<BodyProgress> = Rc::default();
        let (body, tunnel) = match upgrade {
            // The stream's data is the tunnel's, not a body.
            Some(_) => {
                progress.done.set(true);
                (Body::Empty, Some(stream))
            }
            None => (request_body(stream, &head, &progress), None),
        };
        let is_head = head.method == http::Method::HEAD;
        let respond = Rc::new(RefCell::new(respond));
        let interim = InterimSink::H2(Rc::clone(&respond));
        let mut ctx = RequestCtx::new(&self.downstream, &self.http, head, Rc::clone(&progress), interim);
        ctx.redirect_to_canonical = redirect;
        ctx.upgrade = upgrade;
        let mut watchdog = Watchdog::new(self.http.stream_idle_timeout);
        watchdog.start();
        let whole = self.http.request_timeout.filter(|_| !progress.done.get());
        let mut whole = whole.map(Timer::after);
        let outcome = {
            let mut work = pin!(pipeline::handle(&mut ctx, body));
            poll_fn(|cx| {
                if let Poll::Ready(response) = work.as_mut().poll(cx) {
                    return Poll::Ready(Ok(response));
                }
                if respond.borrow_mut().poll_reset(cx).is_ready() {
                    return Poll::Ready(Err(Reason::DownstreamGone));
                }
                if !progress.done.get()
                    && let Some(timer) = &mut whole
                    && timer.poll(cx).is_ready()
                {
                    return Poll::Ready(Err(Reason::RequestTimeout));
                }
                watchdog.poll(cx, || progress.bytes.get()).map(|()| Err(Reason::idle(progress.done.get())))
            })
            .await
        };
        let mut response = match outcome {
            Ok(response) => response,
            Err(Reason::DownstreamGone) => return ctx.finish(0, Some(Reason::DownstreamGone)),
            Err(reason) => ctx.local_reply(reason),
        };
        if let (Some(upgraded), Some(recv)) = (response.upgraded.take(), tunnel) {
            return Box::pin(forward_tunnel(ctx, response, *upgraded, &respond, recv)).await;
        }
        let (sent, failed) = self.send(&ctx, response, is_head, &respond, &mut watchdog).await;
        ctx.finish(sent, failed);
    }

    fn refuse(&self, reason: Reason, mut respond: SendResponse<Bytes>) {
        let mut ctx = RequestCtx::refused(&self.downstream, &self.http, reason);
        let mut response = local_reply::reply(reason, false);
        pipeline::finish_head(&ctx, &mut response.head);
        let body = match response.body {
            Body::Full(body) => body,
            _ => Bytes::new(),
        };
        ctx.note_response(&response.head);
        if let Ok(mut stream) = respond.send_response(convert::response(response.head), body.is_empty()) {
            // The client may have reset the stream meanwhile.
            let _ = stream.send_data(body, true);
        }
        ctx.finish(0, None);
    }

    /// Sends the response; body bytes sent, and why it broke off.
    async fn send(
        &self,
        ctx: &RequestCtx,
        response: Response,
        is_head: bool,
        respond: &RefCell<SendResponse<Bytes>>,
        watchdog: &mut Watchdog,
    ) -> (u64, Option<Reason>) {
        let Response { head, body, .. } = response;
        let bodiless = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let end = is_head || bodiless || body.is_end();
        let sent = respond.borrow_mut().send_response(convert::response(head), end);
        let stream = match sent {
            Ok(stream) if !end => stream,
            Ok(_) => return (0, None),
            Err(_) => return (0, Some(Reason::DownstreamGone)),
        };
        let mut pump = H2Pump::new(stream, body);
        let ended = poll_fn(|cx| {
            if let Poll::Ready(done) = pump.poll(cx) {
                return Poll::Ready(done);
            }
            if let Poll::Ready(reason) = pump.poll_limits(cx) {
                return Poll::Ready(Err(PumpError::Source(reason)));
            }
            if let Poll::Ready(reason) = poll_refused(ctx, cx) {
                return Poll::Ready(Err(PumpError::Source(reason)));
            }
            // What moves in either direction counts.
            let moved = || pump.sent().wrapping_add(ctx.progress.bytes.get());
            watchdog.poll(cx, moved).map(|()| Err(PumpError::Source(Reason::StreamIdle)))
        })
        .await;
        match ended {
            Ok(()) => (pump.sent(), None),
            Err(PumpError::Sink) => (pump.sent(), Some(Reason::DownstreamGone)),
            Err(PumpError::Source(reason)) => {
                if !(ctx.is_grpc() && pump.end_with_grpc(reason)) {
                    // A reset drops what is queued: what came so far leaves first.
                    tokio::task::yield_now().await;
                    pump.reset(h2::Reason::INTERNAL_ERROR);
                }
                (pump.sent(), Some(reason))
            }
        }
    }
}

/// An accepted upgrade: bytes both ways from here on.
async fn forward_tunnel(
    mut ctx: RequestCtx,
    response: Response,
    upgraded: Upgraded,
    respond: &RefCell<SendResponse<Bytes>>,
    recv: RecvStream,
) {
    let sent = respond.borrow_mut().send_response(convert::response(response.head), false);
    let Ok(send) = sent else { return ctx.finish(0, Some(Reason::DownstreamGone)) };
    let mut down = H2Tunnel::new(send, recv);
    let traffic = Rc::<Traffic>::default();
    let failed = tunnel::forward(&mut ctx, &mut down, upgraded, &traffic).await;
    if failed.is_some() {
        // A reset drops what is queued: what came so far leaves first.
        tokio::task::yield_now().await;
    }
    ctx.finish(traffic.sent.get(), failed);
}

fn request_body(
    stream: RecvStream,
    head: &crate::http::head::RequestHead,
    progress: &Rc<BodyProgress>,
) -> Body {
    if stream.is_end_stream() {
        progress.done.set(true);
        return Body::Empty;
    }
    let length = head.headers.get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    Body::H2(H2Body::downstream(stream, length, Rc::clone(progress)))
}
