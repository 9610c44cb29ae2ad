//! Requests over a shared HTTP/2 connection (RFC 9113), on the `h2` crate directly.

use std::future::{Future, poll_fn};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderValue, Request, StatusCode, Uri, Version};

use super::cork::Cork;
use super::tunnel::H2Tunnel;
use crate::config::spec::{Http2Keepalive, Http2Spec};
use crate::error::Reason;
use crate::http::body::{Body, H2Body};
use crate::http::early::EarlyBody;
use crate::http::h1::client::{Failed, SendOptions, Sent};
use crate::http::head::{HeaderCase, RequestHead, ResponseHead};
use crate::http::interim::MAX_INTERIM;
use crate::http::pump::{H2Pump, Pump, PumpError};
use crate::http::response::{Held, Response, Upgraded};
use crate::http::tunnel::Tunnel;
use crate::io::Io;
use crate::upstream::lease::H2Slot;

/// Header lists of answers larger than this are refused by the peer's SETTINGS and by us.
const MAX_HEADER_LIST: u32 = 80 * 1024;

/// Starts a client connection: the handle to send requests, and the future that drives it until it ends.
///
/// # Errors
/// [`Reason::ConnectFailure`] when the preface cannot be written.
pub async fn handshake(
    io: Io,
    spec: &Http2Spec,
) -> Result<(SendRequest<Bytes>, impl Future<Output = ()> + use<>), Reason> {
    let (io, uncork) = Cork::new(io);
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(spec.stream_window)
        .initial_connection_window_size(spec.connection_window)
        .header_table_size(spec.hpack_table)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buffer_size(256 * 1024)
        .enable_push(false);
    let handshake = uncork.around(builder.handshake::<_, Bytes>(io)).await;
    let (sender, mut connection) = handshake.map_err(|_| Reason::ConnectFailure)?;
    let pings = spec.keepalive.and_then(|k| connection.ping_pong().map(|p| (k, p)));
    let driver = async move {
        let alive = async {
            match pings {
                Some((keepalive, pings)) => ping(keepalive, pings).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Streams carry the error to whoever waits on them.
            _ = uncork.around(connection) => {}
            () = alive => {}
        }
    };
    Ok((sender, driver))
}

/// PINGs a connection every interval; returns when an answer does not come in time (features.md C5).
async fn ping(keepalive: Http2Keepalive, mut pings: h2::PingPong) {
    loop {
        tokio::time::sleep(keepalive.interval).await;
        let answer = tokio::time::timeout(keepalive.timeout, pings.ping(h2::Ping::opaque())).await;
        if !matches!(answer, Ok(Ok(_))) {
            return;
        }
    }
}

/// Sends one request and waits for the head of the answer.
///
/// # Errors
/// Why there is none, and how far the request got.
pub async fn send(
    sender: SendRequest<Bytes>,
    slot: H2Slot,
    head: &RequestHead,
    body: Body,
    options: &SendOptions<'_>,
) -> Result<Response, Failed> {
    let mut sender = match poll_ready(sender).await {
        Ok(sender) => sender,
        Err(error) => {
            slot.retire();
            return Err(Failed::new(refused_or(&error, Reason::UpstreamRefused), Sent::Nothing));
        }
    };
    if options.upgrade.is_some() {
        return Box::pin(connect(sender, slot, head, options)).await;
    }
    let end_stream = body.is_end();
    let request = build(head, options).map_err(|reason| Failed::new(reason, Sent::Nothing))?;
    let (mut answer, stream) = sender.send_request(request, end_stream).map_err(|error| {
        slot.retire();
        Failed::new(refused_or(&error, Reason::UpstreamRefused), Sent::Nothing)
    })?;
    let mut pump = (!end_stream).then(|| Pump::H2(H2Pump::new(stream, body)));
    for _ in 0..MAX_INTERIM {
        match poll_fn(|cx| poll_answer(cx, &mut pump, &mut answer)).await {
            Ok(Event::Interim(head)) if head.headers.len() > options.limits.max_headers => {
                return Err(Failed::new(Reason::UpstreamHeadersTooLarge, Sent::All));
            }
            Ok(Event::Interim(head)) => options.interim.send(head).await,
            Ok(Event::Head(response)) => {
                let response = finish(bounded(response, options)?, slot);
                return Ok(match pump {
                    Some(upload) => {
                        let body = Body::Early(Box::new(EarlyBody::new(response.body, upload)));
                        Response { body, ..response }
                    }
                    None => response,
                });
            }
            Err(failed) => {
                if failed.reason == Reason::UpstreamRefused {
                    slot.retire();
                }
                return Err(failed);
            }
        }
    }
    Err(Failed::new(Reason::UpstreamProtocol, Sent::All))
}

/// Whether the peer takes extended CONNECT (RFC 8441 §3). Its SETTINGS come first on a new connection, for which this
/// waits a moment.
pub async fn takes_upgrades(sender: &SendRequest<Bytes>) -> bool {
    for _ in 0..50 {
        if sender.is_extended_connect_protocol_enabled() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    false
}

/// An upgrade over HTTP/2: extended CONNECT (RFC 8441 §5).
async fn connect(
    mut sender: SendRequest<Bytes>,
    slot: H2Slot,
    head: &RequestHead,
    options: &SendOptions<'_>,
) -> Result<Response, Failed> {
    let mut request = build(head, options).map_err(|reason| Failed::new(reason, Sent::Nothing))?;
    let protocol = options.upgrade.and_then(|u| u.to_str().ok()).unwrap_or_default();
    request.extensions_mut().insert(h2::ext::Protocol::from(protocol));
    *request.method_mut() = http::Method::CONNECT;
    let (mut answer, stream) = sender.send_request(request, false).map_err(|error| {
        slot.retire();
        Failed::new(refused_or(&error, Reason::UpstreamRefused), Sent::Nothing)
    })?;
    let response = match poll_fn(|cx| std::pin::Pin::new(&mut answer).poll(cx)).await {
        Ok(response) => bounded(response, options)?,
        Err(error) => return Err(failed(&error)),
    };
    if !response.status().is_success() {
        return Ok(finish(response, slot));
    }
    let (parts, recv) = response.into_parts();
    let mut head = response_head(parts);
    head.status = StatusCode::SWITCHING_PROTOCOLS;
    let upgraded = Upgraded {
        protocol: options.upgrade.cloned().unwrap_or(HeaderValue::from_static("")),
        io: Tunnel::H2(Box::new(H2Tunnel::new(stream, recv))),
        held: Held::H2(slot),
    };
    Ok(Response { head, body: Body::Empty, upgraded: Some(Box::new(upgraded)) })
}

async fn poll_ready(sender: SendRequest<Bytes>) -> Result<SendRequest<Bytes>, h2::Error> {
    sender.ready().await
}

enum Event {
    Interim(ResponseHead),
    Head(http::Response<h2::RecvStream>),
}

fn poll_answer(
    cx: &mut Context<'_>,
    pump: &mut Option<Pump>,
    answer: &mut ResponseFuture,
) -> Poll<Result<Event, Failed>> {
    if let Some(active) = pump {
        match active.poll(cx) {
            Poll::Ready(Ok(()) | Err(PumpError::Sink)) => *pump = None,
            Poll::Ready(Err(PumpError::Source(reason))) => {
                if let Pump::H2(pump) = active {
                    pump.reset(h2::Reason::CANCEL);
                }
                return Poll::Ready(Err(Failed::new(reason, Sent::Some)));
            }
            Poll::Pending => {}
        }
    }
    match answer.poll_informational(cx) {
        Poll::Ready(Some(Ok(interim))) => {
            let (parts, ()) = interim.into_parts();
            return Poll::Ready(Ok(Event::Interim(response_head(parts))));
        }
        Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(failed(&error))),
        Poll::Ready(None) | Poll::Pending => {}
    }
    std::pin::Pin::new(answer).poll(cx).map(|result| match result {
        Ok(response) => Ok(Event::Head(response)),
        Err(error) => Err(failed(&error)),
    })
}

/// Of bytes the codec has the limit.
fn bounded<B>(response: http::Response<B>, options: &SendOptions<'_>) -> Result<http::Response<B>, Failed> {
    if response.headers().len() > options.limits.max_headers {
        return Err(Failed::new(Reason::UpstreamHeadersTooLarge, Sent::All));
    }
    Ok(response)
}

fn failed(error: &h2::Error) -> Failed {
    Failed::new(refused_or(error, Reason::UpstreamReset), Sent::All)
}

/// REFUSED_STREAM, and GOAWAY that excludes the stream, promise that nothing was processed (RFC 9113 §8.7, §6.8).
fn refused_or(error: &h2::Error, otherwise: Reason) -> Reason {
    if error.reason() == Some(h2::Reason::REFUSED_STREAM) || (error.is_go_away() && error.is_remote()) {
        Reason::UpstreamRefused
    } else if error.is_io() {
        Reason::UpstreamClosed
    } else if error.is_reset() && !error.is_remote() {
        Reason::UpstreamProtocol
    } else {
        otherwise
    }
}

fn build(head: &RequestHead, options: &SendOptions<'_>) -> Result<Request<()>, Reason> {
    let mut uri = http::uri::Parts::default();
    uri.authority.clone_from(&head.authority);
    if head.method != http::Method::CONNECT {
        uri.scheme = Some(if options.secure { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
        uri.path_and_query = Some(head.path.clone());
        if uri.authority.is_none() {
            // An HTTP/1.0 request without Host.
            uri.authority = Some(http::uri::Authority::from_static("localhost"));
        }
    }
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| Reason::BadPath)?;
    request.headers_mut().clone_from(&head.headers);
    Ok(request)
}

fn response_head(parts: http::response::Parts) -> ResponseHead {
    ResponseHead {
        status: parts.status,
        version: Version::HTTP_2,
        headers: parts.headers,
        case: HeaderCase::default(),
        phrase: None,
    }
}

fn finish(response: http::Response<h2::RecvStream>, slot: H2Slot) -> Response {
    let (parts, stream) = response.into_parts();
    let head = response_head(parts);
    let length = head.headers.get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let bodiless = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let body = if stream.is_end_stream() && (bodiless || length.is_none()) {
        Body::Empty
    } else {
        Body::H2(H2Body::upstream(stream, length, slot))
    };
    Response { head, body, upgraded: None }
}
