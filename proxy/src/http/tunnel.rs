//! A connection or stream after an upgrade: plain bytes, those read ahead first.

use std::cell::Cell;
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
use crate::tcp::{self, Client, Traffic};
use crate::telemetry::metrics::TcpSeries;
use crate::upstream::endpoint::ActiveRequest;

/// See the module.
#[derive(Debug)]
pub enum Tunnel {
    /// An HTTP/1 connection.
    H1(SharedConn),
    /// An HTTP/2 stream.
    H2(Box<H2Tunnel>),
}

/// Makes one side of a tunnel see it broken off when this is dropped, and no end of data: also when the tunnel's task is dropped in the middle.
#[derive(Debug)]
#[must_use]
pub struct BreaksOff<'a> {
    conn: Option<SharedConn>,
    told: &'a Cell<bool>,
}

impl<'a> BreaksOff<'a> {
    /// For the side of `tunnel`, unless it has been `told` its end. A stream of HTTP/2 that is dropped before its end is reset anyway (RFC 8441
    /// section 5).
    pub fn of(tunnel: &Tunnel, told: &'a Cell<bool>) -> Self {
        let conn = match tunnel {
            Tunnel::H1(conn) => Some(Rc::clone(conn)),
            Tunnel::H2(_) => None,
        };
        Self { conn, told }
    }

    /// The tunnel ended, and `failed` is why if that was not in order.
    pub fn ended(mut self, failed: Option<Reason>) {
        if failed.is_none() {
            self.conn = None;
        }
    }
}

impl Drop for BreaksOff<'_> {
    fn drop(&mut self) {
        // It is borrowed only inside of a poll.
        if !self.told.get()
            && let Some(Ok(conn)) = self.conn.as_ref().map(|conn| conn.try_borrow())
        {
            conn.io.abort_on_drop();
        }
    }
}

/// A tunnel in the metrics: an open connection until it is dropped, whatever drops it.
struct Open<'a> {
    series: TcpSeries,
    traffic: &'a Traffic,
}

impl<'a> Open<'a> {
    fn count(series: TcpSeries, traffic: &'a Traffic) -> Self {
        series.opened();
        Self { series, traffic }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.series.received(self.traffic.received.get());
        self.series.sent(self.traffic.sent.get());
        self.series.closed();
    }
}

/// Carries bytes both ways between the client and an endpoint until the tunnel ends: at the latest when its request may not go on, or when a list
/// revokes the certificate of its server. Gives why it ended, when that was not in order: then the endpoint sees it broken off, and so must the client.
pub async fn forward<D>(
    ctx: &mut RequestCtx,
    down: &mut D,
    upgraded: Upgraded,
    traffic: &Rc<Traffic>,
) -> Option<Reason>
where
    D: Client,
{
    ctx.tunnel = Some(Rc::clone(traffic));
    let Upgraded { io: mut up, held, .. } = upgraded;
    let breaks_off = BreaksOff::of(&up, &traffic.endpoint_told);
    let (downstream, cluster) = (Rc::clone(&ctx.downstream), ctx.cluster.clone());
    let endpoint = ctx.active.as_ref().map(ActiveRequest::endpoint);
    let named = ctx.cluster_id.zip(cluster.as_ref());
    let series = downstream.worker.metrics.tcp(&downstream, named, endpoint);
    let _open = Open::count(series, traffic);
    let server = held.server().zip(cluster.as_ref().map(|cluster| &*cluster.spec().name));
    let copy = tcp::forward((down, BytesMut::new()), (&mut up, BytesMut::new()), ctx.tunnel_idle, traffic);
    let copy = admission::while_good(&downstream, server, copy);
    let failed = match while_allowed(ctx, copy).await {
        Ok(Some(ended)) => ended.reason(),
        Ok(None) => Some(Reason::UpstreamTls),
        Err(reason) => Some(reason),
    };
    breaks_off.ended(failed);
    failed
}

impl Client for Tunnel {}

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
