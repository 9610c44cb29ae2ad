//! One exchange on an HTTP/1 connection to an endpoint.

use std::future::poll_fn;
use std::task::{Context, Poll};

use http::{HeaderValue, Method, StatusCode, Version};

use super::conn::SharedConn;
use super::decode::Decoder;
use super::encode::{self, Spelling, Wire};
use super::framing::Framing;
use super::parse::{self, ParsedResponse, ResponseLimits};
use crate::error::Reason;
use crate::http::body::{Body, H1Body, Owner};
use crate::http::early::EarlyBody;
use crate::http::head::RequestHead;
use crate::http::interim::{InterimSink, MAX_INTERIM};
use crate::http::pump::{H1Pump, Pump, PumpError};
use crate::http::response::{Held, Response, Upgraded};
use crate::http::tunnel::Tunnel;
use crate::upstream::lease::H1Lease;

/// How a request is sent.
#[derive(Debug)]
pub struct SendOptions<'a> {
    /// Spelling of header names towards the endpoint.
    pub spelling: Spelling,
    /// The endpoint is reached by TLS.
    pub secure: bool,
    /// `Upgrade` that is passed on.
    pub upgrade: Option<&'a HeaderValue>,
    /// Of the answer's head.
    pub limits: ResponseLimits,
    /// Takes 1xx answers.
    pub interim: &'a InterimSink,
}

/// How much of a request may have reached the endpoint's application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Not one byte.
    Nothing,
    /// The head, and perhaps some of the body.
    Some,
    /// The whole request.
    All,
}

/// Why an exchange gave no answer.
#[derive(Debug, Clone, Copy)]
pub struct Failed {
    /// Why.
    pub reason: Reason,
    /// How far the request got.
    pub sent: Sent,
}

impl Failed {
    /// A failure.
    #[must_use]
    pub const fn new(reason: Reason, sent: Sent) -> Self {
        Self { reason, sent }
    }
}

/// Framing of a request body towards an endpoint.
#[must_use]
pub fn request_framing(head: &RequestHead, body: &Body) -> Framing {
    match body.exact_len() {
        Some(0) if body.is_end() => Framing::Empty,
        Some(n) if head.headers.contains_key(http::header::CONTENT_LENGTH) => Framing::Length(n),
        _ => Framing::Chunked,
    }
}

/// Sends one request and waits for the head of the answer.
///
/// # Errors
/// Why there is none, and how far the request got.
pub async fn send(
    mut lease: H1Lease,
    head: &RequestHead,
    body: Body,
    options: &SendOptions<'_>,
) -> Result<Response, Failed> {
    let conn = lease.conn.clone();
    let framing = request_framing(head, &body);
    let wire = Wire {
        framing,
        keep_alive: true,
        peer: Version::HTTP_11,
        upgrade: options.upgrade,
        spelling: options.spelling,
    };
    encode::request(conn.borrow_mut().out_head(), head, wire);
    let mut exchange = Exchange {
        pump: Some(H1Pump::new(conn.clone(), body, framing, options.spelling, true)),
        conn,
        method: &head.method,
        limits: options.limits,
        sent: Sent::Nothing,
        broken: false,
        answered: false,
    };
    for _ in 0..MAX_INTERIM {
        let parsed = match poll_fn(|cx| exchange.poll(cx)).await {
            Ok(parsed) => parsed,
            Err(reason) => {
                exchange.conn.borrow().io.abort_on_drop();
                let raced = lease.is_reused()
                    && !exchange.answered
                    && matches!(reason, Reason::UpstreamClosed | Reason::UpstreamReset);
                let reason = if raced { Reason::ReusedConnectionClosed } else { reason };
                return Err(Failed::new(reason, exchange.sent));
            }
        };
        if parsed.head.status == StatusCode::SWITCHING_PROTOCOLS {
            return match (options.upgrade, parsed.upgrade) {
                (Some(_), Some(protocol)) => {
                    let upgraded =
                        Upgraded { protocol, io: Tunnel::H1(exchange.conn), held: Held::H1(lease) };
                    Ok(Response { head: parsed.head, body: Body::Empty, upgraded: Some(Box::new(upgraded)) })
                }
                _ => Err(Failed::new(Reason::UpstreamProtocol, exchange.sent)),
            };
        }
        if parsed.head.status.is_informational() {
            options.interim.send(parsed.head).await;
            continue;
        }
        let tunnel = head.method == Method::CONNECT && parsed.head.status.is_success();
        if tunnel {
            let upgraded = Upgraded {
                protocol: HeaderValue::from_static("connect"),
                io: Tunnel::H1(exchange.conn),
                held: Held::H1(lease),
            };
            return Ok(Response { head: parsed.head, body: Body::Empty, upgraded: Some(Box::new(upgraded)) });
        }
        if let Some(upload) = exchange.pump.take() {
            // The connection is not used again.
            let response = finish(lease, exchange.conn, parsed);
            return Ok(Response {
                body: Body::Early(Box::new(EarlyBody::new(response.body, Pump::H1(upload)))),
                ..response
            });
        }
        if parsed.keep_alive && !exchange.broken {
            lease.allow_reuse();
        }
        return Ok(finish(lease, exchange.conn, parsed));
    }
    Err(Failed::new(Reason::UpstreamProtocol, exchange.sent))
}

fn finish(lease: H1Lease, conn: SharedConn, parsed: ParsedResponse) -> Response {
    let decoder = Decoder::new(parsed.framing);
    let body = if decoder.is_done() {
        lease.finish();
        Body::Empty
    } else {
        Body::H1(Box::new(H1Body::new(conn, decoder, Owner::Upstream(Some(lease)))))
    };
    Response { head: parsed.head, body, upgraded: None }
}

/// Request out, response head in, both at once.
struct Exchange<'a> {
    conn: SharedConn,
    pump: Option<H1Pump>,
    method: &'a Method,
    limits: ResponseLimits,
    sent: Sent,
    /// The endpoint stopped taking the request.
    broken: bool,
    /// At least one byte came back.
    answered: bool,
}

impl Exchange<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<ParsedResponse, Reason>> {
        if let Some(pump) = &mut self.pump {
            match pump.poll(cx) {
                Poll::Ready(Ok(())) => {
                    self.pump = None;
                    self.sent = Sent::All;
                }
                Poll::Ready(Err(PumpError::Source(reason))) => return Poll::Ready(Err(reason)),
                // It may have answered before it stopped listening.
                Poll::Ready(Err(PumpError::Sink)) => {
                    self.pump = None;
                    self.broken = true;
                    self.sent = Sent::Some;
                }
                Poll::Pending => self.sent = Sent::Some,
            }
        }
        loop {
            let mut conn = self.conn.borrow_mut();
            if !conn.read.is_empty() {
                self.answered = true;
                if let Some(parsed) = parse::parse_response(&mut conn.read, self.method, self.limits)? {
                    return Poll::Ready(Ok(parsed));
                }
            }
            match conn.poll_fill(cx) {
                Poll::Ready(Ok(0)) => {
                    let reason =
                        if self.answered { Reason::UpstreamProtocol } else { Reason::UpstreamClosed };
                    return Poll::Ready(Err(reason));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Reason::UpstreamReset)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
