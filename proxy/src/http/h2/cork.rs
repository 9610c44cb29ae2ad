//! Gathers what an HTTP/2 connection writes in one turn of its task.
//!
//! The h2 crate hands every DATA frame to the transport by itself. Under load one turn has many frames to send: each would be a
//! system call, a TCP segment, a TLS record, and a wake-up of the peer. Here they gather, and leave together when the
//! connection's task has nothing more to do. It must say so: [`Uncork::poll_flush`] at the end of every poll.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// So much gathers before it leaves at once: a full TLS record and what fills a socket's first flight.
const FULL: usize = 32 * 1024;
/// Writes of this size do not gain from a copy.
const LARGE: usize = 8 * 1024;
/// A buffer that grew beyond this is given back when it is empty: idle connections hold no memory.
const KEPT: usize = 4 * 1024;

#[derive(Debug)]
struct Inner<T> {
    io: T,
    gathered: BytesMut,
    /// What went wrong while the h2 crate was not asking.
    failed: Option<io::ErrorKind>,
}

/// The transport as the h2 crate sees it.
#[derive(Debug)]
pub struct Cork<T>(Rc<RefCell<Inner<T>>>);

/// Lets go what has gathered.
#[derive(Debug)]
pub struct Uncork<T>(Rc<RefCell<Inner<T>>>);

impl<T> Cork<T> {
    /// Both ends of a corked `io`.
    #[must_use]
    pub fn new(io: T) -> (Self, Uncork<T>) {
        let inner = Rc::new(RefCell::new(Inner { io, gathered: BytesMut::new(), failed: None }));
        (Self(Rc::clone(&inner)), Uncork(inner))
    }
}

impl<T: AsyncWrite + Unpin> Uncork<T> {
    /// Writes what has gathered; registers the waker where the transport takes no more. An error is the h2 crate's to
    /// report: it meets it on its next turn, which comes at once.
    pub fn poll_flush(&self, cx: &mut Context<'_>) {
        let mut inner = self.0.borrow_mut();
        if let Poll::Ready(Err(error)) = inner.poll_flush(cx)
            && inner.failed.replace(error.kind()).is_none()
        {
            cx.waker().wake_by_ref();
        }
    }

    /// Drives a part of a connection's life, such as its handshake, letting go at the end of every turn.
    pub async fn around<F: Future>(&self, part: F) -> F::Output {
        let mut part = pin!(part);
        poll_fn(|cx| {
            let output = part.as_mut().poll(cx);
            self.poll_flush(cx);
            output
        })
        .await
    }
}

impl<T: AsyncWrite + Unpin> Inner<T> {
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered.is_empty() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.gathered))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gathered.advance(n);
        }
        if self.gathered.capacity() > KEPT {
            self.gathered = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if let Some(kind) = self.failed {
            return Poll::Ready(Err(kind.into()));
        }
        let length = bufs.iter().map(|b| b.len()).sum();
        if length >= LARGE && self.io.is_write_vectored() {
            ready!(self.poll_drain(cx))?;
            return Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        }
        if self.gathered.len() >= FULL {
            ready!(self.poll_drain(cx))?;
        }
        self.gathered.reserve(length);
        for buf in bufs {
            self.gathered.extend_from_slice(buf);
        }
        Poll::Ready(Ok(length))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Cork<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        match inner.failed {
            Some(kind) => Poll::Ready(Err(kind.into())),
            None => Pin::new(&mut inner.io).poll_read(cx, buf),
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Cork<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, bufs)
    }

    /// The h2 crate then leaves the copying to us.
    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The h2 crate flushes after every frame; the task does it once, by [`Uncork`].
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        ready!(inner.poll_flush(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn frames_leave_together_and_only_when_told() {
        let (io, mut peer) = tokio::io::duplex(1 << 20);
        let (mut cork, uncork) = Cork::new(io);
        cork.write_all(b"headers").await.unwrap();
        cork.flush().await.unwrap();
        cork.write_all(b" data").await.unwrap();
        let mut got = [0; 64];
        assert!(futures_now(peer.read(&mut got)).is_none(), "nothing leaves before the end of the turn");
        uncork.around(async {}).await;
        let n = peer.read(&mut got).await.unwrap();
        assert_eq!(&got[..n], b"headers data");
    }

    #[tokio::test]
    async fn a_receiver_that_is_slow_holds_the_sender_back() {
        let (io, mut peer) = tokio::io::duplex(1024);
        let (mut cork, uncork) = Cork::new(io);
        let sent = (0..1000).take_while(|_| futures_now(cork.write_all(&[7; 1000])).is_some()).count();
        assert!(sent * 1000 <= FULL + 1024 + 1000, "{sent} writes of 1000 bytes were taken");
        // A write that was taken in part when the receiver had no room goes on where it stopped.
        let mut all = Vec::new();
        let reading = async { peer.read_to_end(&mut all).await };
        let ending = async {
            cork.shutdown().await.unwrap();
            drop((cork, uncork));
        };
        let (read, ()) = tokio::join!(reading, ending);
        assert!(read.unwrap() >= sent * 1000 && all.iter().all(|b| *b == 7));
    }

    #[tokio::test]
    async fn shutdown_sends_the_rest_first() {
        let (io, mut peer) = tokio::io::duplex(1024);
        let (mut cork, _uncork) = Cork::new(io);
        cork.write_all(b"goodbye").await.unwrap();
        cork.shutdown().await.unwrap();
        let mut all = String::new();
        peer.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "goodbye");
    }

    /// What `future` gives when it is ready at once.
    fn futures_now<F: Future>(future: F) -> Option<F::Output> {
        let mut future = std::pin::pin!(future);
        match future.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }
}
