//! Opaque forwarding: bytes both ways with half-close, counters and an idle timeout (features.md A1, A2).

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use crate::error::Reason;
use crate::io::Io;

/// Read-ahead of one direction. A direction allocates it when its first byte comes.
const BUFFER: usize = 64 * 1024;

/// What went through a tunnel.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes from downstream to upstream.
    pub received: Cell<u64>,
    /// Bytes from upstream to downstream.
    pub sent: Cell<u64>,
    /// The client was told that nothing more comes: what is on its way to it is all of it, and a reset would destroy that.
    pub client_told: Cell<bool>,
    /// The same, of the endpoint.
    pub endpoint_told: Cell<bool>,
}

/// The client's side of a tunnel.
pub trait Client: AsyncRead + AsyncWrite + Unpin {
    /// Ready when a client has gone of which nothing more is read, as it has said its end. TCP does not tell before something is written.
    fn poll_gone(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl Client for Io {}

/// How a tunnel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Both sides closed in order.
    Closed,
    /// The client broke off.
    Downstream,
    /// The endpoint broke off.
    Upstream,
    /// Nothing moved for the idle timeout.
    Idle,
}

impl Ended {
    /// What that is called, when it was not in order.
    #[must_use]
    pub const fn reason(self) -> Option<Reason> {
        match self {
            Self::Closed => None,
            Self::Downstream => Some(Reason::DownstreamGone),
            Self::Upstream => Some(Reason::UpstreamBodyReset),
            Self::Idle => Some(Reason::StreamIdle),
        }
    }
}

/// Copies both ways until both sides have closed, one breaks off, or nothing moves for `idle`. What was read ahead goes first.
pub async fn forward<D, U>(
    downstream: (&mut D, BytesMut),
    upstream: (&mut U, BytesMut),
    idle: Option<Duration>,
    traffic: &Traffic,
) -> Ended
where
    D: Client,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let (down, down_read) = downstream;
    let (up, up_read) = upstream;
    let mut request = Half::new(down_read, &traffic.received, &traffic.endpoint_told);
    let mut response = Half::new(up_read, &traffic.sent, &traffic.client_told);
    let copy = poll_fn(|cx| {
        // Both halves are polled in every turn; neither waits for the other. Many clients that were told the end go without close_notify.
        match request.poll(cx, down, up, response.done) {
            // It may have answered before it stopped listening: that is read. Unless it had closed before, there is no end in order behind it.
            Poll::Ready(Err(HalfError::Write(why))) => {
                (request.done, response.broken) = (true, why != io::ErrorKind::BrokenPipe);
            }
            Poll::Ready(Err(HalfError::Read)) => return Poll::Ready(Err(Ended::Downstream)),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        let answered =
            response.poll(cx, up, down, false).map_err(|e| e.party(Ended::Upstream, Ended::Downstream))?;
        match (request.done, answered.is_ready()) {
            (true, true) => return Poll::Ready(Ok(())),
            (true, false) => {}
            (false, _) => return Poll::Pending,
        }
        if request.poll_swallow(cx, down).is_ready() || down.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Ended::Downstream));
        }
        Poll::Pending
    });
    let ended = async { copy.await.map_or_else(|ended| ended, |()| Ended::Closed) };
    match idle {
        None => ended.await,
        Some(idle) => {
            tokio::select! {
                biased;
                ended = ended => ended,
                () = quiet(idle, traffic) => Ended::Idle,
            }
        }
    }
}

/// Returns when the counters stood still for `idle` (checked four times in that time, so up to a quarter late).
async fn quiet(idle: Duration, traffic: &Traffic) {
    let total = || traffic.received.get() + traffic.sent.get();
    let (mut seen, mut still) = (total(), 0);
    while still < 4 {
        tokio::time::sleep(idle / 4).await;
        still = if total() == seen { still + 1 } else { 0 };
        seen = total();
    }
}

/// Which side of a copy failed.
enum HalfError {
    Read,
    /// `BrokenPipe`: the side had said its end, and takes nothing any more. Until its end was read, a reset is another error (Linux: EPIPE in
    /// CLOSE_WAIT, else ECONNRESET).
    Write(io::ErrorKind),
}

impl HalfError {
    #[expect(clippy::needless_pass_by_value, reason = "for map_err")]
    fn write(error: io::Error) -> Self {
        Self::Write(error.kind())
    }

    const fn party(&self, reader: Ended, writer: Ended) -> Ended {
        match self {
            Self::Read => reader,
            Self::Write(_) => writer,
        }
    }
}

/// One direction.
struct Half<'a> {
    buf: BytesMut,
    eof: bool,
    done: bool,
    unflushed: bool,
    /// Who speaks has broken off: what it still said goes on, but its end is none.
    broken: bool,
    count: &'a Cell<u64>,
    told: &'a Cell<bool>,
}

impl<'a> Half<'a> {
    const fn new(buf: BytesMut, count: &'a Cell<u64>, told: &'a Cell<bool>) -> Self {
        Self { buf, eof: false, done: false, unflushed: false, broken: false, count, told }
    }

    /// `bare_end`: a connection that ends without TLS's close_notify ends in order.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        bare_end: bool,
    ) -> Poll<Result<(), HalfError>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            while !self.buf.is_empty() {
                let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.buf)).map_err(HalfError::write)?;
                if n == 0 {
                    return Poll::Ready(Err(HalfError::Write(io::ErrorKind::WriteZero)));
                }
                self.count.set(self.count.get() + n as u64);
                self.buf.advance(n);
                self.unflushed = true;
            }
            if self.eof && self.broken {
                return Poll::Ready(Err(HalfError::Read));
            }
            if self.eof {
                // FIN is passed on: the other direction may go on for as long as it likes.
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).ok();
                self.done = true;
                self.told.set(true);
                continue;
            }
            match self.poll_fill(cx, from) {
                Poll::Ready(Ok(n)) => self.eof = n == 0,
                Poll::Ready(Err(error)) if bare_end && error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.eof = true
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(HalfError::Read)),
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(HalfError::write)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Reads on where nobody takes it any more: who is closed with bytes unread is reset, and loses what it has still to read itself. Ready when
    /// that fails.
    fn poll_swallow<R: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, from: &mut R) -> Poll<()> {
        while !self.eof {
            match ready!(self.poll_fill(cx, from)) {
                Ok(n) => self.eof = n == 0,
                Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }

    fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
    ) -> Poll<io::Result<usize>> {
        self.buf.clear();
        if self.buf.capacity() < BUFFER {
            self.buf.reserve(BUFFER);
        }
        poll_read_buf(Pin::new(from), cx, &mut self.buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::net::{TcpListener, TcpStream};

    impl Client for DuplexStream {}
    impl Client for Truncated {}

    #[tokio::test]
    async fn half_close_is_passed_on_and_the_answer_still_comes() {
        let (mut client, mut down) = duplex(64);
        let (mut up, mut server) = duplex(64);
        let traffic = Traffic::default();
        let tunnel =
            forward((&mut down, BytesMut::from(&b"he"[..])), (&mut up, BytesMut::new()), None, &traffic);
        let talk = async {
            client.write_all(b"llo").await.unwrap();
            client.shutdown().await.unwrap();
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"hello");
            server.write_all(b"late answer").await.unwrap();
            server.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"late answer");
        };
        let (ended, ()) = tokio::join!(tunnel, talk);
        assert_eq!(ended, Ended::Closed);
        assert_eq!((traffic.received.get(), traffic.sent.get()), (5, 11));
    }

    #[tokio::test]
    async fn the_answer_of_an_endpoint_that_stopped_listening_is_read() {
        let (mut client, mut down) = duplex(64);
        let (mut up, mut server) = duplex(64);
        let traffic = Traffic::default();
        client.write_all(b"too much").await.unwrap();
        server.write_all(b"413").await.unwrap();
        drop(server);
        let ended = forward((&mut down, BytesMut::new()), (&mut up, BytesMut::new()), None, &traffic).await;
        assert_eq!((ended, traffic.client_told.get()), (Ended::Closed, true));
        drop(down);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"413");
    }

    /// A client that is slow, and goes on while the endpoint ends as `end` says: how the tunnel ended, and how much came to the client.
    async fn slow(end: impl FnOnce(TcpStream)) -> (Ended, usize) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut up = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let (mut client, mut down) = duplex(64);
        server.write_all(&[7; 1000]).await.unwrap();
        let traffic = Traffic::default();
        let tunnel = async {
            let ended =
                forward((&mut down, BytesMut::new()), (&mut up, BytesMut::new()), None, &traffic).await;
            drop(down);
            ended
        };
        let talk = async {
            while traffic.sent.get() < 64 {
                tokio::task::yield_now().await;
            }
            end(server);
            goes_on(&mut client).await;
            client.read_to_end(&mut Vec::new()).await.unwrap()
        };
        let both = async { tokio::join!(tunnel, talk) };
        let said = tokio::time::timeout(Duration::from_secs(10), both).await.expect("an end");
        assert_eq!(traffic.client_told.get(), said.0 == Ended::Closed);
        said
    }

    /// Says several things, one after the other, and listens to nothing meanwhile. The first is answered with a reset by an endpoint that is gone.
    async fn goes_on(client: &mut DuplexStream) {
        for _ in 0..5 {
            client.write_all(&[9; 100]).await.unwrap();
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Behind what an endpoint said before it closed there is its end, whatever becomes of what is said to it afterwards.
    #[tokio::test]
    async fn a_slow_client_gets_all_and_the_end_of_an_endpoint_that_closed() {
        let closes = |server: TcpStream| drop(server);
        assert_eq!(slow(closes).await, (Ended::Closed, 1000));
    }

    #[tokio::test]
    async fn a_slow_client_is_told_no_end_of_an_endpoint_that_was_reset() {
        let resets =
            |server: TcpStream| socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
        assert_eq!(slow(resets).await, (Ended::Upstream, 1000));
    }

    #[tokio::test]
    async fn a_client_that_goes_on_after_the_end_has_had_it_all() {
        let (mut client, mut down) = duplex(64);
        let (mut up, mut server) = duplex(64);
        let traffic = Traffic::default();
        let tunnel = forward((&mut down, BytesMut::new()), (&mut up, BytesMut::new()), None, &traffic);
        let talk = async {
            server.write_all(b"221").await.unwrap();
            drop(server);
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"221");
            client.write_all(b"and more").await.unwrap();
        };
        let (ended, ()) = tokio::join!(tunnel, talk);
        assert_eq!((ended, traffic.client_told.get()), (Ended::Closed, true));
    }

    /// A client that says its end badly (as in TLS without the alert): at once, or when it has been told the server's end.
    #[derive(Debug)]
    struct Truncated {
        goes: bool,
    }

    impl AsyncRead for Truncated {
        fn poll_read(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.goes {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    }

    impl AsyncWrite for Truncated {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buf.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.goes = true;
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_client_without_close_notify_breaks_off_unless_the_server_has_ended() {
        for (goes, expected) in [(false, Ended::Closed), (true, Ended::Downstream)] {
            let (mut up, mut server) = duplex(64);
            server.shutdown().await.unwrap();
            let traffic = Traffic::default();
            let mut down = Truncated { goes };
            let ended =
                forward((&mut down, BytesMut::new()), (&mut up, BytesMut::new()), None, &traffic).await;
            assert_eq!(ended, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_tunnel_ends_after_the_idle_timeout() {
        let (_client, mut down) = duplex(64);
        let (mut up, _server) = duplex(64);
        let traffic = Traffic::default();
        let start = tokio::time::Instant::now();
        let idle = Some(Duration::from_secs(8));
        let ended = forward((&mut down, BytesMut::new()), (&mut up, BytesMut::new()), idle, &traffic).await;
        assert_eq!((ended, start.elapsed()), (Ended::Idle, Duration::from_secs(8)));
    }
}
