//! A connection or stream after an upgrade: plain bytes, those read ahead first.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::context::RequestCtx;
use super::h1::conn::SharedConn;
use super::h2::tunnel::H2Tunnel;
use super::recheck::while_allowed;
use super::response::Upgraded;
use crate::error::Reason;
use crate::listener::admission;
use crate::tcp::{self, Traffic};

/// See the module.
#[derive(Debug)]
pub enum Tunnel {
    /// An HTTP/1 connection.
    H1(SharedConn),
    /// An HTTP/2 stream.
    H2(Box<H2Tunnel>),
}

/// Carries bytes both ways between the client and an endpoint until the tunnel ends: at the latest when its request may not go on, or when a list
/// revokes the certificate of its server. Gives why it ended, when that was not in order.
pub async fn forward<D>(
    ctx: &mut RequestCtx,
    down: &mut D,
    upgraded: Upgraded,
    traffic: &Traffic,
) -> Option<Reason>
where
    D: AsyncRead + AsyncWrite + Unpin,
{
    let Upgraded { io: mut up, held, .. } = upgraded;
    let (downstream, cluster) = (Rc::clone(&ctx.downstream), ctx.cluster.clone());
    let server = held.server().zip(cluster.as_ref().map(|cluster| &*cluster.spec().name));
    let copy = tcp::forward((down, BytesMut::new()), (&mut up, BytesMut::new()), ctx.tunnel_idle(), traffic);
    let copy = admission::while_good(&downstream, server, copy);
    match while_allowed(ctx, copy).await {
        Ok(Some(_)) => None,
        Ok(None) => Some(Reason::UpstreamTls),
        Err(reason) => Some(reason),
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::H2(stream) => Pin::new(&mut **stream).poll_read(cx, buf),
            Self::H1(conn) => {
                let mut conn = conn.borrow_mut();
                if conn.read.is_empty() {
                    return Pin::new(&mut conn.io).poll_read(cx, buf);
                }
                let n = conn.read.len().min(buf.remaining());
                buf.put_slice(&conn.read.split_to(n));
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::H2(stream) => Pin::new(&mut **stream).poll_write(cx, buf),
            Self::H1(conn) => {
                let mut conn = conn.borrow_mut();
                ready!(conn.poll_out(cx))?;
                Pin::new(&mut conn.io).poll_write(cx, buf)
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::H2(stream) => Pin::new(&mut **stream).poll_flush(cx),
            Self::H1(conn) => {
                let mut conn = conn.borrow_mut();
                ready!(conn.poll_out(cx))?;
                Pin::new(&mut conn.io).poll_flush(cx)
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::H2(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
            Self::H1(conn) => Pin::new(&mut conn.borrow_mut().io).poll_shutdown(cx),
        }
    }
}
