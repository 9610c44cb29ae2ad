//! One HTTP/1 connection: the transport, what was read ahead, and what waits to be written.
//!
//! Both directions of a message may be in progress at once (a response can overtake its request's body), always on
//! one worker: the connection is shared by `Rc` and borrowed only inside a poll.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

use crate::io::Io;

/// Read-ahead per connection; a body that the other side does not take stops here (B9, back-pressure).
const READ_CHUNK: usize = 16 * 1024;
/// Up to this size, body data is copied behind the head so that both leave in one write of one slice.
const COPY_LIMIT: usize = 4 * 1024;

/// A connection shared by its reader and its writer.
pub type SharedConn = Rc<RefCell<Conn>>;

/// See the module.
#[derive(Debug)]
pub struct Conn {
    /// The transport.
    pub io: Io,
    /// Bytes read and not yet parsed.
    pub read: BytesMut,
    /// The peer has closed its side.
    pub eof: bool,
    out: Out,
}

/// What waits to be written, in this order.
#[derive(Debug, Default)]
struct Out {
    head: BytesMut,
    body: Bytes,
    tail: &'static [u8],
}

impl Conn {
    /// A connection whose first bytes `read` were already taken from `io`.
    #[must_use]
    pub fn shared(io: Io, read: BytesMut) -> SharedConn {
        Rc::new(RefCell::new(Self { io, read, eof: false, out: Out::default() }))
    }

    /// Reads more bytes. `Ok(0)`: the peer has closed its side.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.eof {
            return Poll::Ready(Ok(0));
        }
        if self.read.capacity() - self.read.len() < 1024 {
            self.read.reserve(if self.read.is_empty() { READ_CHUNK / 2 } else { READ_CHUNK });
        }
        let n = ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read))?;
        self.eof = n == 0;
        Poll::Ready(Ok(n))
    }

    /// The buffer that leaves first: heads are encoded into it.
    pub fn out_head(&mut self) -> &mut BytesMut {
        &mut self.out.head
    }

    /// Queues body data behind what waits; `tail` follows it. Call only after [`Self::poll_out`] has nothing left.
    pub fn queue(&mut self, data: Bytes, tail: &'static [u8]) {
        if data.len() <= COPY_LIMIT && self.out.body.is_empty() && self.out.tail.is_empty() {
            self.out.head.extend_from_slice(&data);
            self.out.head.extend_from_slice(tail);
        } else {
            self.out.body = data;
            self.out.tail = tail;
        }
    }

    /// Whether nothing waits to be written.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.out.head.is_empty() && self.out.body.is_empty() && self.out.tail.is_empty()
    }

    /// Whether no queued body piece is in the way of another.
    #[must_use]
    pub fn is_flushed_body(&self) -> bool {
        self.out.body.is_empty() && self.out.tail.is_empty()
    }

    /// Writes all that waits.
    pub fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_flushed() {
            let out = &mut self.out;
            let n = if out.body.is_empty() && out.tail.is_empty() {
                ready!(Pin::new(&mut self.io).poll_write(cx, &out.head))?
            } else {
                let slices = [IoSlice::new(&out.head), IoSlice::new(&out.body), IoSlice::new(out.tail)];
                let skip = usize::from(out.head.is_empty());
                ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices[skip..]))?
            };
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            out.advance(n);
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }
}

impl Out {
    fn advance(&mut self, mut n: usize) {
        let head = n.min(self.head.len());
        self.head.advance(head);
        n -= head;
        let body = n.min(self.body.len());
        self.body.advance(body);
        n -= body;
        self.tail = &self.tail[n.min(self.tail.len())..];
        if self.head.is_empty() && head > 0 {
            // Back to the start of its allocation, so that the next head needs none.
            self.head.clear();
        }
    }
}

/// Writes all that waits on `conn`.
///
/// # Errors
/// The transport's.
pub async fn flush(conn: &SharedConn) -> io::Result<()> {
    poll_fn(|cx| conn.borrow_mut().poll_out(cx)).await
}

/// Reads more bytes into `conn`. `Ok(0)`: the peer has closed its side.
///
/// # Errors
/// The transport's.
pub async fn fill(conn: &SharedConn) -> io::Result<usize> {
    poll_fn(|cx| conn.borrow_mut().poll_fill(cx)).await
}

/// Closes the write side.
pub async fn shutdown(conn: &SharedConn) {
    // The peer may be gone already; there is nobody left to tell.
    let _ = poll_fn(|cx| Pin::new(&mut conn.borrow_mut().io).poll_shutdown(cx)).await;
}
