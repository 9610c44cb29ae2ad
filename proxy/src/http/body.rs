//! Message bodies: one closed type, streamed, never collected (features.md B9).

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::ahead::AheadBody;
use super::compress::CompressedBody;
use super::early::EarlyBody;
use super::guard::GuardedBody;
use super::h1::conn::SharedConn;
use super::h1::decode::{Decoded, Decoder};
use super::last_good::RememberedBody;
use super::mirror::{CopiedBody, CopyBody};
use super::replay::ReplayBody;
use super::throttle::ThrottledBody;
use crate::error::Reason;
use crate::upstream::lease::H1Lease;

/// A request or response body.
#[derive(Debug, Default)]
pub enum Body {
    /// None, or all of it was delivered.
    #[default]
    Empty,
    /// One piece, made by the proxy.
    Full(Bytes),
    /// From an HTTP/1 connection.
    H1(Box<H1Body>),
    /// From an HTTP/2 stream.
    H2(H2Body),
    /// A request body that may be sent again.
    Replay(Box<ReplayBody>),
    /// A request body that was read ahead.
    Ahead(Box<AheadBody>),
    /// An answer that overtook its request.
    Early(Box<EarlyBody>),
    /// An answer under the time limits of its request.
    Guarded(Box<GuardedBody>),
    /// An answer that comes slowly.
    Throttled(Box<ThrottledBody>),
    /// An answer that is compressed on its way.
    Compressed(Box<CompressedBody>),
    /// An answer of which a copy is kept for worse times.
    Remembered(Box<RememberedBody>),
    /// A request body of which mirrors have copies.
    Copied(Box<CopiedBody>),
    /// Such a copy.
    Copy(Box<CopyBody>),
}

impl Body {
    /// The next frame. After `None` or an error it must not be polled again.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Full(data) => {
                let data = std::mem::take(data);
                *self = Self::Empty;
                Poll::Ready((!data.is_empty()).then(|| Ok(Frame::data(data))))
            }
            Self::H1(body) => body.poll_next(cx),
            Self::H2(body) => body.poll_next(cx),
            Self::Replay(body) => body.poll_next(cx),
            Self::Ahead(body) => body.poll_next(cx),
            Self::Early(body) => body.inner_mut().poll_next(cx),
            Self::Guarded(body) => body.poll_next(cx),
            Self::Throttled(body) => body.poll_next(cx),
            Self::Compressed(body) => body.poll_next(cx),
            Self::Remembered(body) => body.poll_next(cx),
            Self::Copied(body) => body.poll_next(cx),
            Self::Copy(body) => body.poll_next(cx),
        }
    }

    /// Ready when the time of an answer is up, whoever it is that takes so long.
    pub fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        match self {
            Self::Guarded(body) => body.poll_limits(cx),
            Self::Throttled(body) => body.inner_mut().poll_limits(cx),
            Self::Compressed(body) => body.inner_mut().poll_limits(cx),
            _ => Poll::Pending,
        }
    }

    /// Whether nothing more will come, as far as that is known without waiting.
    #[must_use]
    pub fn is_end(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(data) => data.is_empty(),
            Self::H1(body) => body.decoder.is_done(),
            Self::H2(body) => body.stream.is_end_stream(),
            Self::Replay(body) => body.is_end(),
            Self::Ahead(body) => body.is_end(),
            Self::Early(body) => body.inner().is_end(),
            Self::Guarded(body) => body.inner().is_end(),
            Self::Throttled(body) => body.is_end(),
            Self::Compressed(body) => body.is_end(),
            Self::Remembered(body) => body.inner().is_end(),
            Self::Copied(body) => body.inner().is_end(),
            Self::Copy(body) => body.is_end(),
        }
    }

    /// Bytes still to come, when that is known.
    #[must_use]
    pub fn exact_len(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Full(data) => Some(data.len() as u64),
            Self::H1(body) => body.decoder.remaining(),
            Self::H2(body) => body.length,
            Self::Replay(body) => body.exact_len(),
            Self::Ahead(body) => body.exact_len(),
            Self::Early(body) => body.inner().exact_len(),
            Self::Guarded(body) => body.inner().exact_len(),
            Self::Throttled(body) => body.exact_len(),
            Self::Compressed(_) => None,
            Self::Remembered(body) => body.inner().exact_len(),
            Self::Copied(body) => body.inner().exact_len(),
            Self::Copy(body) => body.exact_len(),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Reason;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        self.get_mut().poll_next(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        self.exact_len().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// What the server needs to know about a request body that the pipeline took away.
#[derive(Debug, Default)]
pub struct BodyProgress {
    /// Body bytes read so far.
    pub bytes: Cell<u64>,
    /// The last byte was read: the connection is at a message boundary.
    pub done: Cell<bool>,
    /// Reading failed.
    pub failed: Cell<Option<Reason>>,
    /// The time limit that ended the request.
    pub over: Cell<Option<Reason>>,
}

/// A body read from an HTTP/1 connection.
#[derive(Debug)]
pub struct H1Body {
    conn: SharedConn,
    decoder: Decoder,
    owner: Owner,
}

/// Whose connection it is, and what happens at the end.
#[derive(Debug)]
pub enum Owner {
    /// The server's: it looks at the progress afterwards.
    Downstream(Rc<BodyProgress>),
    /// The pool's: it gets the connection back.
    Upstream(Option<H1Lease>),
}

impl H1Body {
    /// A body at its first byte.
    #[must_use]
    pub const fn new(conn: SharedConn, decoder: Decoder, owner: Owner) -> Self {
        Self { conn, decoder, owner }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        loop {
            let decoded = {
                let mut conn = self.conn.borrow_mut();
                match self.decoder.decode(&mut conn.read) {
                    Ok(Decoded::NeedMore) => match ready!(conn.poll_fill(cx)) {
                        Ok(0) => self.decoder.end_of_stream().map_err(|_| self.owner.cut_off()),
                        Ok(_) => continue,
                        Err(_) => Err(self.owner.cut_off()),
                    },
                    other => other.map_err(|reason| self.owner.malformed(reason)),
                }
            };
            return Poll::Ready(match decoded {
                Ok(Decoded::Data(data)) => {
                    self.owner.count(data.len());
                    if self.decoder.is_done() {
                        self.owner.finish();
                    }
                    Some(Ok(Frame::data(data)))
                }
                Ok(Decoded::Trailers(map)) => {
                    self.owner.finish();
                    Some(Ok(Frame::trailers(map)))
                }
                Ok(Decoded::End) => {
                    self.owner.finish();
                    None
                }
                Ok(Decoded::NeedMore) => continue,
                Err(reason) => {
                    self.owner.fail(reason);
                    Some(Err(reason))
                }
            });
        }
    }
}

impl Owner {
    const fn cut_off(&self) -> Reason {
        match self {
            Self::Downstream(_) => Reason::DownstreamGone,
            Self::Upstream(_) => Reason::UpstreamBodyReset,
        }
    }

    const fn malformed(&self, reason: Reason) -> Reason {
        match self {
            Self::Downstream(_) => reason,
            Self::Upstream(_) => Reason::UpstreamProtocol,
        }
    }

    fn count(&self, n: usize) {
        if let Self::Downstream(progress) = self {
            progress.bytes.set(progress.bytes.get() + n as u64);
        }
    }

    fn finish(&mut self) {
        match self {
            Self::Downstream(progress) => progress.done.set(true),
            Self::Upstream(lease) => {
                if let Some(lease) = lease.take() {
                    lease.finish();
                }
            }
        }
    }

    fn fail(&mut self, reason: Reason) {
        match self {
            Self::Downstream(progress) => progress.failed.set(Some(reason)),
            // Dropping the lease closes the connection.
            Self::Upstream(lease) => *lease = None,
        }
    }
}

/// A body read from an HTTP/2 stream.
#[derive(Debug)]
pub struct H2Body {
    stream: h2::RecvStream,
    length: Option<u64>,
    progress: Option<Rc<BodyProgress>>,
    data_done: bool,
    /// Keeps the stream counted on its connection until the body ends.
    _slot: Option<crate::upstream::lease::H2Slot>,
}

impl H2Body {
    /// A request body; `length` is its Content-Length.
    #[must_use]
    pub const fn downstream(stream: h2::RecvStream, length: Option<u64>, progress: Rc<BodyProgress>) -> Self {
        Self { stream, length, progress: Some(progress), data_done: false, _slot: None }
    }

    /// A response body.
    #[must_use]
    pub const fn upstream(
        stream: h2::RecvStream,
        length: Option<u64>,
        slot: crate::upstream::lease::H2Slot,
    ) -> Self {
        Self { stream, length, progress: None, data_done: false, _slot: Some(slot) }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        if !self.data_done {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // The window opens when the data is taken: the other side pulls only what it can send.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    if let Some(left) = &mut self.length {
                        *left = left.saturating_sub(data.len() as u64);
                    }
                    if let Some(progress) = &self.progress {
                        progress.bytes.set(progress.bytes.get() + data.len() as u64);
                        // Whoever takes the last piece need not ask for more.
                        if self.stream.is_end_stream() {
                            progress.done.set(true);
                        }
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(self.fail(&error)))),
                None => self.data_done = true,
            }
        }
        Poll::Ready(match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => {
                if let Some(progress) = &self.progress {
                    progress.done.set(true);
                }
                trailers.map(|mut map| {
                    drop_forbidden_trailers(&mut map);
                    Ok(Frame::trailers(map))
                })
            }
            Err(error) => Some(Err(self.fail(&error))),
        })
    }

    fn fail(&self, error: &h2::Error) -> Reason {
        let Some(progress) = &self.progress else { return Reason::UpstreamBodyReset };
        let cancelled =
            error.reason() == Some(h2::Reason::CANCEL) || error.is_io() || error.reason().is_none();
        let reason = if cancelled { Reason::DownstreamGone } else { Reason::Malformed };
        progress.failed.set(Some(reason));
        reason
    }
}

fn drop_forbidden_trailers(map: &mut http::HeaderMap) {
    if map.keys().all(super::h1::decode::is_allowed_trailer) {
        return;
    }
    let forbidden: Vec<_> =
        map.keys().filter(|n| !super::h1::decode::is_allowed_trailer(n)).cloned().collect();
    for name in forbidden {
        map.remove(name);
    }
}
