//! Serves one HTTP/1 connection: heads in, pipeline, responses out, one request after the other.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use http::uri::Scheme;
use http::{HeaderValue, Method, StatusCode, Version};
use tokio::time::Instant;

use super::conn::{self, Conn, SharedConn};
use super::decode::Decoder;
use super::encode::{self, Spelling, Wire};
use super::framing::Framing;
use super::parse::{self, ParsedRequest, RequestRules};
use crate::config::spec::HttpSpec;
use crate::error::Reason;
use crate::http::body::{Body, BodyProgress, H1Body, Owner};
use crate::http::context::RequestCtx;
use crate::http::downstream::Downstream;
use crate::http::early::LINGER;
use crate::http::interim::InterimSink;
use crate::http::local_reply;
use crate::http::path::PathRules;
use crate::http::pipeline;
use crate::http::pump::{H1Pump, PumpError};
use crate::http::recheck::poll_refused;
use crate::http::response::{Response, Upgraded};
use crate::http::tunnel::{self, BreaksOff, Tunnel};
use crate::http::watchdog::Watchdog;
use crate::io::Io;
use crate::tcp::Traffic;
use crate::worker::timer::Timer;

/// Pipelined requests are read ahead up to this size while one is being served.
const READ_AHEAD: usize = 16 * 1024;
/// How much of an unread request body is swallowed, so that the client reads our answer instead of a reset.
const LINGER_BYTES: usize = 256 * 1024;
/// How often a closing connection looks whether an upload still uses it.
const UPLOAD_LOOK: Duration = Duration::from_millis(10);

/// Serves `io` until it closes. `read` holds what was already read from it.
pub async fn serve(io: Io, read: BytesMut, downstream: Rc<Downstream>, http: Arc<HttpSpec>) {
    let mut session = Session {
        rules: rules(&http, downstream.is_secure()),
        watchdog: Watchdog::new(http.stream_idle_timeout),
        timer: Timer::after(Duration::from_secs(3600)),
        conn: Conn::shared(io, read),
        opened: Instant::now(),
        requests: 0,
        progress: Rc::default(),
        downstream,
        http,
    };
    match session.run().await {
        End::Whole => session.say_goodbye().await,
        End::Unread => session.linger().await,
        End::Broken => {}
    }
}

fn rules(http: &HttpSpec, secure: bool) -> RequestRules {
    RequestRules {
        max_bytes: http.max_header_bytes,
        max_headers: http.max_header_count,
        path: PathRules {
            normalize: http.normalize_path,
            merge_slashes: http.merge_slashes,
            escaped_slashes: http.escaped_slashes,
        },
        underscores: http.underscores,
        http1: http.http1.clone(),
        scheme: if secure { Scheme::HTTPS } else { Scheme::HTTP },
    }
}

/// Spelling of header names towards peers of a listener or cluster.
#[must_use]
pub fn spelling(http1: &crate::config::spec::Http1Spec) -> Spelling {
    match (http1.proper_case, http1.preserve_case) {
        (true, _) => Spelling::Proper,
        (false, true) => Spelling::Preserve,
        (false, false) => Spelling::Lower,
    }
}

struct Session {
    conn: SharedConn,
    downstream: Rc<Downstream>,
    http: Arc<HttpSpec>,
    rules: RequestRules,
    opened: Instant,
    requests: u32,
    progress: Rc<BodyProgress>,
    timer: Timer,
    watchdog: Watchdog,
}

/// How a connection ends.
enum End {
    /// Everything was said: the client is told that this is the end (TLS close_notify).
    Whole,
    /// The same, and bytes may still be coming.
    Unread,
    /// In the middle of something: it must not look like an end.
    Broken,
}

/// What follows a request.
enum Next {
    KeepAlive,
    Close(End),
    Tunnel(Box<Upgraded>, Box<RequestCtx>),
}

/// What ended the wait for bytes.
enum Wait {
    Bytes,
    Closed,
    Timeout,
}

impl Session {
    /// Serves requests until the connection is to be closed.
    async fn run(&mut self) -> End {
        loop {
            self.refresh();
            let parsed = match self.read_head().await {
                Ok(Some(parsed)) => parsed,
                Ok(None) => return End::Whole,
                Err(reason) => {
                    Box::pin(self.refuse(reason)).await;
                    return End::Unread;
                }
            };
            match self.exchange(parsed).await {
                Next::KeepAlive => {}
                Next::Close(end) => return end,
                Next::Tunnel(upgraded, ctx) => {
                    return Box::pin(self.tunnel(*upgraded, *ctx)).await;
                }
            }
        }
    }

    /// New requests obey new configuration.
    fn refresh(&mut self) {
        if let Some(http) = self.downstream.http()
            && !Arc::ptr_eq(&http, &self.http)
        {
            self.rules = rules(&http, self.downstream.is_secure());
            self.watchdog = Watchdog::new(http.stream_idle_timeout);
            self.http = http;
        }
    }

    /// The next request head. `Ok(None)`: the connection ended between requests.
    async fn read_head(&mut self) -> Result<Option<ParsedRequest>, Reason> {
        let mut first_byte = None;
        loop {
            let partial = !self.conn.borrow().read.is_empty();
            if partial {
                let parsed = parse::parse_request(&mut self.conn.borrow_mut().read, &self.rules)?;
                if parsed.is_some() {
                    return Ok(parsed);
                }
                first_byte.get_or_insert_with(Instant::now);
            }
            match self.wait(first_byte).await {
                Wait::Bytes => {}
                Wait::Timeout if partial => return Err(Reason::HeadersTimeout),
                Wait::Closed if partial => return Err(Reason::DownstreamGone),
                Wait::Timeout | Wait::Closed => return Ok(None),
            }
        }
    }

    /// Waits for bytes: between requests for the idle timeout or until draining ends, inside a head for its timeout.
    async fn wait(&mut self, first_byte: Option<Instant>) -> Wait {
        let limit = if first_byte.is_some() { self.http.headers_timeout } else { self.http.idle_timeout };
        let far = Instant::now() + Duration::from_secs(365 * 24 * 3600);
        let deadline = limit.map_or(far, |limit| first_byte.unwrap_or_else(Instant::now) + limit);
        let (conn, timer, drain) = (&self.conn, &mut self.timer, &self.downstream.drain);
        let window = self.http.drain_timeout;
        timer.reset(deadline);
        poll_fn(|cx| {
            match conn.borrow_mut().poll_fill(cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Wait::Closed),
                Poll::Ready(Ok(_)) => return Poll::Ready(Wait::Bytes),
                Poll::Pending => {}
            }
            if first_byte.is_none()
                && let Some(since) = drain.poll_draining(cx)
                && let end = drain.patience(since, window)
                && end < timer.deadline()
            {
                timer.reset(end);
            }
            timer.poll(cx).map(|()| Wait::Timeout)
        })
        .await
    }

    /// Answers a head that is not a request we forward.
    async fn refuse(&mut self, reason: Reason) {
        let mut ctx = RequestCtx::refused(&self.downstream, &self.http, reason);
        if reason == Reason::DownstreamGone {
            return ctx.finish(0, None);
        }
        let mut response = local_reply::reply(reason, false);
        pipeline::finish_head(&ctx, &mut response.head);
        ctx.note_response(&response.head);
        let sent = self
            .write_response(&ctx, response, (&Method::GET, Version::HTTP_11), false)
            .await
            .map_or(0, |sent| sent);
        ctx.finish(sent, None);
    }

    /// One request: through the pipeline and back.
    async fn exchange(&mut self, parsed: ParsedRequest) -> Next {
        self.requests += 1;
        let ParsedRequest { head, framing, keep_alive, upgrade, expect_continue, redirect } = parsed;
        let body = self.request_body(framing);
        let (method, version) = (head.method.clone(), head.version);
        let asked_upgrade = upgrade.is_some();
        let interim = if version == Version::HTTP_11 {
            InterimSink::H1 { conn: Rc::clone(&self.conn), spelling: spelling(&self.http.http1) }
        } else {
            InterimSink::None
        };
        let mut ctx = RequestCtx::new(&self.downstream, &self.http, head, Rc::clone(&self.progress), interim);
        ctx.upgrade = upgrade;
        ctx.redirect_to_canonical = redirect;
        let Some(mut response) = self.respond(&mut ctx, body).await else {
            ctx.finish(0, Some(Reason::DownstreamGone));
            return Next::Close(End::Broken);
        };
        if let Some(upgraded) = response.upgraded.take() {
            return Box::pin(self.switch(response, upgraded, ctx)).await;
        }
        // The upgrade was refused by an endpoint, or a CONNECT by anybody: what the client sends now may already be the other protocol.
        let switches = ctx.upgrade.is_some() || method == Method::CONNECT;
        let keep_alive = keep_alive && !switches && self.may_keep_alive(asked_upgrade, expect_continue);
        let response_ok = self.write_response(&ctx, response, (&method, version), keep_alive).await;
        let complete = self.progress.done.get();
        match response_ok {
            Ok(sent) => {
                ctx.finish(sent, None);
                if keep_alive && complete && self.http_10_safe(version) {
                    Next::KeepAlive
                } else {
                    // A client that asks for another protocol may be speaking it already.
                    let whole = complete && !asked_upgrade && method != Method::CONNECT;
                    Next::Close(if whole { End::Whole } else { End::Unread })
                }
            }
            Err(reason) => {
                ctx.finish(0, Some(reason));
                Next::Close(End::Broken)
            }
        }
    }

    /// After a body that ended with the connection there is no next request.
    fn http_10_safe(&self, version: Version) -> bool {
        version == Version::HTTP_11 || !self.conn.borrow().eof
    }

    fn request_body(&mut self, framing: Framing) -> Body {
        if Rc::strong_count(&self.progress) > 1 {
            self.progress = Rc::default();
        }
        self.progress.bytes.set(0);
        self.progress.failed.set(None);
        self.progress.done.set(framing == Framing::Empty);
        if framing == Framing::Empty {
            return Body::Empty;
        }
        let owner = Owner::Downstream(Rc::clone(&self.progress));
        Body::H1(Box::new(H1Body::new(Rc::clone(&self.conn), Decoder::new(framing), owner)))
    }

    /// Whether the connection may carry another request after this response.
    fn may_keep_alive(&self, asked_upgrade: bool, expects: bool) -> bool {
        let worn = self.http.max_requests.is_some_and(|max| self.requests >= max)
            || self.http.max_connection_age.is_some_and(|max| self.opened.elapsed() >= max);
        // Bytes behind a refused upgrade could be anything: they are not read as a request.
        let ambiguous = asked_upgrade && !self.conn.borrow().read.is_empty();
        let unread = !self.progress.done.get() && expects;
        !(worn || ambiguous || unread || self.downstream.drain.is_draining()) && self.progress.done.get()
    }

    /// Runs the pipeline while watching the client. None: the client is gone.
    async fn respond(&mut self, ctx: &mut RequestCtx, body: Body) -> Option<Response> {
        let (conn, progress, watchdog) =
            (Rc::clone(&self.conn), Rc::clone(&self.progress), &mut self.watchdog);
        watchdog.start();
        let mut whole = self.http.request_timeout.filter(|_| !progress.done.get()).map(|limit| {
            self.timer.reset(Instant::now() + limit);
            &mut self.timer
        });
        let outcome = {
            let mut work = pin!(pipeline::handle(ctx, body));
            poll_fn(|cx| {
                if let Poll::Ready(response) = work.as_mut().poll(cx) {
                    return Poll::Ready(Ok(response));
                }
                if progress.done.get() && poll_broken(&conn, cx).is_ready() {
                    return Poll::Ready(Err(Reason::DownstreamGone));
                }
                // `request_timeout` is for the whole request, until its last byte.
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
        match outcome {
            Ok(response) if progress.failed.get() == Some(Reason::DownstreamGone) => {
                drop(response);
                None
            }
            Ok(response) => Some(response),
            Err(Reason::DownstreamGone) => None,
            Err(reason) => Some(ctx.local_reply(reason)),
        }
    }

    /// Writes a response; the body bytes sent.
    async fn write_response(
        &mut self,
        ctx: &RequestCtx,
        response: Response,
        (method, version): (&Method, Version),
        keep_alive: bool,
    ) -> Result<u64, Reason> {
        let Response { mut head, body, .. } = response;
        let framing = response_framing(&mut head, &body, method, version);
        let keep_alive = keep_alive && framing != Framing::UntilClose;
        let spelling = spelling(&self.http.http1);
        let told = if is_unknown_length(&head, method, version) { Framing::Chunked } else { framing };
        let wire = Wire { framing: told, keep_alive, peer: version, upgrade: None, spelling };
        encode::response(self.conn.borrow_mut().out_head(), &head, wire);
        let trailers = self.http.http1.trailers && version == Version::HTTP_11;
        let body = if method == Method::HEAD { Body::Empty } else { body };
        let mut pump = H1Pump::new(Rc::clone(&self.conn), body, framing, spelling, trailers);
        let (conn, watchdog) = (&self.conn, &mut self.watchdog);
        let ended = poll_fn(|cx| {
            if let Poll::Ready(done) = pump.poll(cx) {
                return Poll::Ready(done);
            }
            // What the client still uploads is read by somebody else, whose wake-up this would take.
            if ctx.progress.done.get() && poll_broken(conn, cx).is_ready() {
                return Poll::Ready(Err(PumpError::Sink));
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
            Ok(()) => Ok(pump.sent()),
            Err(PumpError::Sink) => Err(Reason::DownstreamGone),
            Err(PumpError::Source(reason)) => {
                // What was sent goes out, but not the end of it; where only the close would tell, a reset does. Not for ever: the
                // reason may be that the client reads nothing.
                let _ = tokio::time::timeout(self.http.delayed_close, conn::flush(&self.conn)).await;
                if framing == Framing::UntilClose {
                    self.conn.borrow().io.abort_on_drop();
                }
                Err(reason)
            }
        }
    }

    /// Answers 101 (or 2xx to CONNECT); what follows is a tunnel.
    async fn switch(&mut self, response: Response, upgraded: Box<Upgraded>, ctx: RequestCtx) -> Next {
        let switching = response.head.status == StatusCode::SWITCHING_PROTOCOLS;
        let upgrade: Option<&HeaderValue> = switching.then_some(&upgraded.protocol);
        let wire = Wire {
            framing: Framing::Empty,
            keep_alive: true,
            peer: Version::HTTP_11,
            upgrade,
            spelling: spelling(&self.http.http1),
        };
        encode::response(self.conn.borrow_mut().out_head(), &response.head, wire);
        if conn::flush(&self.conn).await.is_err() {
            ctx.finish(0, Some(Reason::DownstreamGone));
            return Next::Close(End::Broken);
        }
        Next::Tunnel(upgraded, Box::new(ctx))
    }

    /// Passes on how each side ends. A client that goes on after the end of all is not answered with a reset, which would destroy what it has not read.
    async fn tunnel(&mut self, upgraded: Upgraded, mut ctx: RequestCtx) -> End {
        let mut down = Tunnel::H1(Rc::clone(&self.conn));
        let traffic = Rc::<Traffic>::default();
        let breaks_off = BreaksOff::of(&down, &traffic.client_told);
        let failed = tunnel::forward(&mut ctx, &mut down, upgraded, &traffic).await;
        breaks_off.ended(failed);
        ctx.finish(traffic.sent.get(), failed);
        if failed.is_none() { End::Unread } else { End::Broken }
    }

    /// Closes our side. A client that reads nothing is not waited for.
    async fn say_goodbye(&self) {
        let _ = tokio::time::timeout(self.http.delayed_close, conn::shutdown(&self.conn)).await;
    }

    /// Closes our side and swallows what the client still sends, for a bounded time and size: a reset would destroy
    /// the answer before the client has read it (RFC 9112 §9.6).
    async fn linger(&mut self) {
        let _ = tokio::time::timeout(self.http.delayed_close, conn::shutdown(&self.conn)).await;
        // An upload that goes on behind its answer reads from the same connection: what it needs is not swallowed.
        let upload = async {
            while Rc::strong_count(&self.conn) > 1 {
                tokio::time::sleep(UPLOAD_LOOK).await;
            }
        };
        let _ = tokio::time::timeout(LINGER * 2, upload).await;
        let mut swallowed = 0;
        let swallow = async {
            while swallowed < LINGER_BYTES {
                self.conn.borrow_mut().read.clear();
                match conn::fill(&self.conn).await {
                    Ok(n) if n > 0 => swallowed += n,
                    _ => return,
                }
            }
        };
        let _ = tokio::time::timeout(self.http.delayed_close, swallow).await;
    }
}

/// Ready when the client has reset the connection. Its FIN is only a half-close: the answer is still wanted. Bytes are
/// read ahead (pipelining), up to a bound.
fn poll_broken(conn: &SharedConn, cx: &mut Context<'_>) -> Poll<()> {
    let mut conn = conn.borrow_mut();
    while !conn.eof && conn.read.len() < READ_AHEAD {
        match conn.poll_fill(cx) {
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Pending => break,
        }
    }
    Poll::Pending
}

/// RFC 9112 §6: how a response is delimited towards this client.
/// An answer to HEAD says how its body would have been framed (RFC 9110 section 9.3.2).
fn is_unknown_length(head: &crate::http::head::ResponseHead, method: &Method, version: Version) -> bool {
    method == Method::HEAD
        && version == Version::HTTP_11
        && !matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        && !head.headers.contains_key(http::header::CONTENT_LENGTH)
}

fn response_framing(
    head: &mut crate::http::head::ResponseHead,
    body: &Body,
    method: &Method,
    version: Version,
) -> Framing {
    if method == Method::HEAD || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Framing::Empty;
    }
    match body.exact_len() {
        Some(n) if head.headers.contains_key(http::header::CONTENT_LENGTH) => Framing::Length(n),
        Some(n) if body.is_end() || matches!(body, Body::Full(_)) => {
            head.headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from(n));
            Framing::Length(n)
        }
        _ if version == Version::HTTP_11 => Framing::Chunked,
        _ => Framing::UntilClose,
    }
}
