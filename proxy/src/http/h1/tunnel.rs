//! A connection after an upgrade: plain bytes, those read ahead first.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::conn::SharedConn;

/// See the module.
#[derive(Debug)]
pub struct Tunnel(SharedConn);

impl Tunnel {
    /// The bytes of `conn` from here on.
    #[must_use]
    pub const fn new(conn: SharedConn) -> Self {
        Self(conn)
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut conn = self.0.borrow_mut();
        if conn.read.is_empty() {
            return Pin::new(&mut conn.io).poll_read(cx, buf);
        }
        let n = conn.read.len().min(buf.remaining());
        buf.put_slice(&conn.read.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut conn = self.0.borrow_mut();
        ready!(conn.poll_out(cx))?;
        Pin::new(&mut conn.io).poll_write(cx, buf)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut conn = self.0.borrow_mut();
        ready!(conn.poll_out(cx))?;
        Pin::new(&mut conn.io).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().io).poll_shutdown(cx)
    }
}
