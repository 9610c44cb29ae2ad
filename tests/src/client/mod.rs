//! Clients that can say anything: raw HTTP/1 bytes and raw HTTP/2 frames, over TCP or TLS.

pub mod http1;
pub mod http2;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::certs::ClientTls;
use crate::wait::within;

/// A connection, with or without TLS.
#[derive(Debug)]
pub enum Io {
    /// Plaintext.
    Tcp(TcpStream),
    /// TLS.
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Io {
    /// Connects in plaintext.
    ///
    /// # Panics
    /// When the connection is refused.
    pub async fn tcp(address: SocketAddr) -> Self {
        let stream = within("connect", TcpStream::connect(address)).await.expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        Self::Tcp(stream)
    }

    /// Connects with TLS, offering the ALPN protocols and the certificate of `tls`.
    ///
    /// # Errors
    /// The handshake's.
    pub async fn tls(address: SocketAddr, tls: &ClientTls) -> io::Result<Self> {
        let Self::Tcp(stream) = Self::tcp(address).await else {
            unreachable!("tcp() makes a TCP connection")
        };
        Self::tls_over(stream, tls).await
    }

    /// The same on a connection that is there.
    ///
    /// # Errors
    /// The handshake's.
    pub async fn tls_over(stream: TcpStream, tls: &ClientTls) -> io::Result<Self> {
        let connector = tokio_rustls::TlsConnector::from(tls.config.clone());
        let stream = within("TLS handshake", connector.connect(tls.server_name.clone(), stream)).await?;
        Ok(Self::Tls(Box::new(stream)))
    }

    /// The TCP connection below.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Tcp(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Whether it took up an earlier TLS session.
    #[must_use]
    pub fn resumed(&self) -> bool {
        match self {
            Self::Tcp(_) => false,
            Self::Tls(stream) => stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
        }
    }

    /// Closes with RST.
    ///
    /// # Panics
    /// When the socket has no linger option.
    pub fn reset(self) {
        socket2::SockRef::from(self.socket()).set_linger(Some(std::time::Duration::ZERO)).expect("linger");
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
