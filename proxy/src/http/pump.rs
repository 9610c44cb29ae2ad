//! Moves a body from where it comes from to where it goes, at the pace of the slower one. Plain structs with a `poll`,
//! so that a request body can be pumped while its response is awaited, in one task and without a queue between.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::SendStream;
use http::{HeaderMap, HeaderValue};

use super::body::Body;
use super::h1::conn::SharedConn;
use super::h1::encode::{self, Spelling};
use super::h1::framing::Framing;
use crate::error::Reason;

/// Small body pieces are gathered up to this size.
const GATHER: usize = 16 * 1024;

/// Why a pump stopped early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PumpError {
    /// The body could not be read.
    Source(Reason),
    /// The receiver does not take any more.
    Sink,
}

/// A body on its way to a receiver.
#[derive(Debug)]
pub enum Pump {
    /// To an HTTP/1 connection.
    H1(H1Pump),
    /// To an HTTP/2 stream.
    H2(H2Pump),
}

impl Pump {
    /// Drives the body; ready when its last byte was handed to the transport.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        match self {
            Self::H1(pump) => pump.poll(cx),
            Self::H2(pump) => pump.poll(cx),
        }
    }
}

/// A body on its way to an HTTP/1 connection. What already waits on the connection (the head) leaves with it.
#[derive(Debug)]
pub struct H1Pump {
    conn: SharedConn,
    body: Body,
    framing: Framing,
    spelling: Spelling,
    trailers: bool,
    sent: u64,
    full: bool,
    finished: bool,
}

impl H1Pump {
    /// `trailers`: whether the receiver takes trailers.
    #[must_use]
    pub const fn new(
        conn: SharedConn,
        body: Body,
        framing: Framing,
        spelling: Spelling,
        trailers: bool,
    ) -> Self {
        Self { conn, body, framing, spelling, trailers, sent: 0, full: false, finished: false }
    }

    /// Body bytes handed to the transport.
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.sent
    }

    /// See [`Body::poll_limits`].
    pub fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        self.body.poll_limits(cx)
    }

    /// See [`Pump::poll`].
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        loop {
            if self.full || self.finished {
                if ready!(self.conn.borrow_mut().poll_out(cx)).is_err() {
                    return Poll::Ready(Err(PumpError::Sink));
                }
                if self.finished {
                    return Poll::Ready(Ok(()));
                }
                self.full = false;
            }
            match self.body.poll_next(cx) {
                Poll::Pending => {
                    // Nothing to add: let what waits go.
                    if ready!(self.conn.borrow_mut().poll_out(cx)).is_err() {
                        return Poll::Ready(Err(PumpError::Sink));
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.push(data)?,
                    Err(frame) => self.finish(frame.into_trailers().ok())?,
                },
                Poll::Ready(Some(Err(reason))) => return Poll::Ready(Err(PumpError::Source(reason))),
                Poll::Ready(None) => self.finish(None)?,
            }
        }
    }

    fn push(&mut self, data: Bytes) -> Result<(), PumpError> {
        if data.is_empty() {
            return Ok(());
        }
        self.sent += data.len() as u64;
        let mut conn = self.conn.borrow_mut();
        match self.framing {
            // A body where none is allowed (HEAD, 304): dropped.
            Framing::Empty => {}
            Framing::Length(n) if self.sent > n => return Err(PumpError::Source(Reason::UpstreamProtocol)),
            Framing::Length(_) | Framing::UntilClose => conn.queue(data, b""),
            Framing::Chunked => {
                encode::chunk_head(conn.out_head(), data.len());
                conn.queue(data, b"\r\n");
            }
        }
        // Small pieces gather in front of one write; a large one leaves before the next is asked for, so that the
        // sender is not read faster than the receiver takes.
        self.full = !conn.is_flushed_body() || conn.out_head().len() >= GATHER;
        Ok(())
    }

    fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), PumpError> {
        match self.framing {
            Framing::Length(n) if self.sent < n => return Err(PumpError::Source(Reason::UpstreamBodyReset)),
            Framing::Chunked => {
                let trailers = trailers.filter(|_| self.trailers);
                encode::last_chunk(self.conn.borrow_mut().out_head(), trailers.as_ref(), self.spelling);
            }
            _ => {}
        }
        self.finished = true;
        Ok(())
    }
}

/// A body on its way to an HTTP/2 stream.
#[derive(Debug)]
pub struct H2Pump {
    stream: SendStream<Bytes>,
    body: Body,
    pending: Bytes,
    sent: u64,
    body_ended: bool,
}

impl H2Pump {
    /// The stream's head must have been sent, without END_STREAM.
    #[must_use]
    pub const fn new(stream: SendStream<Bytes>, body: Body) -> Self {
        Self { stream, body, pending: Bytes::new(), sent: 0, body_ended: false }
    }

    /// Body bytes handed to the transport.
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.sent
    }

    /// Ends the stream with RST_STREAM, so that a broken-off message is not taken for a whole one.
    pub fn reset(&mut self, reason: h2::Reason) {
        self.stream.send_reset(reason);
    }

    /// Ends a gRPC answer that broke off with a status instead of a reset: the client learns why. False: the stream is gone.
    pub fn end_with_grpc(&mut self, reason: Reason) -> bool {
        let mut trailers = HeaderMap::with_capacity(2);
        trailers.insert("grpc-status", HeaderValue::from(reason.grpc() as u16));
        trailers.insert("grpc-message", HeaderValue::from_static(reason.id()));
        self.stream.send_trailers(trailers).is_ok()
    }

    /// See [`Body::poll_limits`].
    pub fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        self.body.poll_limits(cx)
    }

    /// See [`Pump::poll`].
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        loop {
            if !self.pending.is_empty() {
                ready!(self.poll_send(cx))?;
                continue;
            }
            if self.body_ended {
                return Poll::Ready(Ok(()));
            }
            if let Poll::Ready(_reset) = self.stream.poll_reset(cx) {
                return Poll::Ready(Err(PumpError::Sink));
            }
            match ready!(self.body.poll_next(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.pending = data,
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        self.stream.send_trailers(trailers).map_err(|_| PumpError::Sink)?;
                        self.body_ended = true;
                    }
                },
                Some(Err(reason)) => return Poll::Ready(Err(PumpError::Source(reason))),
                None => {
                    self.stream.send_data(Bytes::new(), true).map_err(|_| PumpError::Sink)?;
                    self.body_ended = true;
                }
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        if self.stream.capacity() == 0 {
            self.stream.reserve_capacity(self.pending.len());
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                _ => return Poll::Ready(Err(PumpError::Sink)),
            }
        }
        let n = self.stream.capacity().min(self.pending.len());
        if n == 0 {
            // Capacity was taken back between the two calls; asked for again on the next poll.
            return Poll::Ready(Ok(()));
        }
        let part = self.pending.split_to(n);
        self.sent += n as u64;
        let last = !self.pending.has_remaining() && self.body.is_end();
        self.body_ended |= last;
        self.stream.send_data(part, last).map_err(|_| PumpError::Sink)?;
        Poll::Ready(Ok(()))
    }
}
