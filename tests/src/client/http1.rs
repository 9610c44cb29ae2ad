//! A client that sends the bytes it is given and reads the answers strictly.

use std::io;
use std::net::SocketAddr;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Io;
use crate::certs::ClientTls;
use crate::http1::{BodyReader, Broken, Fields, Framing, Head, latin1, take_head};
use crate::wait::patience;

/// One connection.
#[derive(Debug)]
pub struct Http1Client {
    io: Io,
    input: BytesMut,
}

/// A complete answer.
#[derive(Debug, Clone, Default)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// `HTTP/1.1` or `HTTP/1.0`.
    pub version: String,
    /// Header fields.
    pub fields: Fields,
    /// The body without its framing.
    pub body: Vec<u8>,
    /// Trailer fields of a chunked body.
    pub trailers: Fields,
    /// How the end of the body was found.
    pub framing: Framing,
    /// The 1xx answers that came before.
    pub informational: Vec<Head>,
}

impl Response {
    /// The proxy's reason id, when the proxy made this answer itself.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.fields.get("x-remora-reason")
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        latin1(&self.body)
    }

    /// Whether the connection may be used again.
    #[must_use]
    pub fn keeps_alive(&self) -> bool {
        let said = self.fields.all("connection").join(",").to_ascii_lowercase();
        match self.version.as_str() {
            "HTTP/1.0" => said.contains("keep-alive"),
            _ => !said.contains("close") && self.framing != Framing::Close,
        }
    }
}

impl Http1Client {
    /// Over a connection that exists already.
    #[must_use]
    pub fn over(io: Io) -> Self {
        Self { io, input: BytesMut::new() }
    }

    /// Connects in plaintext.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::over(Io::tcp(address).await)
    }

    /// Connects in plaintext to somebody who may be gone.
    ///
    /// # Errors
    /// The connection's.
    pub async fn try_connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self::over(Io::Tcp(stream)))
    }

    /// Connects with TLS.
    ///
    /// # Errors
    /// The handshake's.
    pub async fn connect_tls(address: SocketAddr, tls: &ClientTls) -> io::Result<Self> {
        Ok(Self { io: Io::tls(address, tls).await?, input: BytesMut::new() })
    }

    /// Sends bytes. A connection that the proxy closed already is no failure: the answer may be waiting.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _closed = self.try_send(bytes).await;
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// The socket's, or a time-out when the proxy does not read.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let write = async {
            self.io.write_all(bytes.as_ref()).await?;
            self.io.flush().await
        };
        match tokio::time::timeout(patience(), write).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Sends FIN, and goes on reading.
    pub async fn half_close(&mut self) {
        let _closed = self.io.shutdown().await;
    }

    /// Closes with RST.
    pub fn reset(self) {
        self.io.reset();
    }

    /// Sends `GET path` and reads the answer.
    ///
    /// # Errors
    /// As [`Http1Client::response`].
    pub async fn get(&mut self, path: &str) -> Result<Response, Broken> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n\r\n")).await;
        self.response().await
    }

    /// Reads one answer to a request that was not HEAD or CONNECT.
    ///
    /// # Errors
    /// What ended it early.
    pub async fn response(&mut self) -> Result<Response, Broken> {
        self.response_to("GET").await
    }

    /// Reads one answer to a request of this method.
    ///
    /// # Errors
    /// What ended it early.
    pub async fn response_to(&mut self, method: &str) -> Result<Response, Broken> {
        let (mut response, mut reader) = self.head(method).await?;
        while !reader.read(&mut self.input).map_err(Broken::Malformed)? {
            match self.fill("response body").await {
                Ok(()) => {}
                Err(Broken::Closed) if reader.ends_with_connection() => break,
                Err(Broken::Closed) => {
                    return Err(Broken::Truncated(format!("{} body bytes", reader.body.len())));
                }
                Err(other) => return Err(other),
            }
        }
        response.framing = reader.framing();
        response.body = reader.body;
        response.trailers = reader.trailers;
        Ok(response)
    }

    /// Reads the head of an answer and the 1xx answers before it, and leaves the body to the returned reader.
    ///
    /// # Errors
    /// What ended it early.
    pub async fn head(&mut self, method: &str) -> Result<(Response, BodyReader), Broken> {
        let mut informational = Vec::new();
        loop {
            let head = self.any_head().await?;
            let version = head.word(0).to_owned();
            let status: u16 = head.word(1).parse().map_err(|_| Broken::Malformed(head.start.clone()))?;
            if !matches!(version.as_str(), "HTTP/1.1" | "HTTP/1.0") || !(100..600).contains(&status) {
                return Err(Broken::Malformed(head.start));
            }
            if (100..200).contains(&status) && status != 101 {
                informational.push(head);
                continue;
            }
            let reader = BodyReader::response(method, status, &head.fields).map_err(Broken::Malformed)?;
            let fields = head.fields;
            return Ok((Response { status, version, fields, informational, ..Response::default() }, reader));
        }
    }

    /// Reads one head, 1xx or final.
    ///
    /// # Errors
    /// What ended it early.
    pub async fn any_head(&mut self) -> Result<Head, Broken> {
        loop {
            if let Some(head) = take_head(&mut self.input).map_err(Broken::Malformed)? {
                return Ok(head);
            }
            match self.fill("response head").await {
                Err(Broken::Closed) if !self.input.is_empty() => {
                    return Err(Broken::Truncated(latin1(&self.input)));
                }
                other => other?,
            }
        }
    }

    /// Reads more of a body that [`Http1Client::head`] began, at least one byte of input; true when it is complete.
    ///
    /// # Errors
    /// What ended it early.
    pub async fn body_more(&mut self, reader: &mut BodyReader) -> Result<bool, Broken> {
        let before = reader.body.len();
        if reader.read(&mut self.input).map_err(Broken::Malformed)? {
            return Ok(true);
        }
        if reader.body.len() > before {
            return Ok(false);
        }
        self.fill("response body").await?;
        reader.read(&mut self.input).map_err(Broken::Malformed)
    }

    /// Reads exactly `n` raw bytes: a tunnel.
    ///
    /// # Errors
    /// What ended it early.
    pub async fn raw(&mut self, n: usize) -> Result<Vec<u8>, Broken> {
        while self.input.len() < n {
            self.fill("raw bytes").await?;
        }
        Ok(self.input.split_to(n).to_vec())
    }

    /// Reads raw bytes up to the end of the connection.
    ///
    /// # Errors
    /// A reset, or silence.
    pub async fn raw_to_end(&mut self) -> Result<Vec<u8>, Broken> {
        loop {
            match self.fill("end of the connection").await {
                Ok(()) => {}
                Err(Broken::Closed) => return Ok(self.input.split().to_vec()),
                Err(other) => return Err(other),
            }
        }
    }

    /// Whether the proxy closes the connection, by FIN or RST, without another byte.
    pub async fn is_closed(&mut self) -> bool {
        if !self.input.is_empty() {
            return false;
        }
        matches!(self.fill("close").await, Err(Broken::Closed | Broken::Reset(_)))
    }

    /// Bytes that were read and belong to no answer yet.
    #[must_use]
    pub fn leftover(&self) -> &[u8] {
        &self.input
    }

    async fn fill(&mut self, what: &str) -> Result<(), Broken> {
        match tokio::time::timeout(patience(), self.io.read_buf(&mut self.input)).await {
            Err(_) => Err(Broken::Silent(what.into())),
            Ok(Ok(0)) => Err(Broken::Closed),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(Broken::Reset(format!("{what}: {e}"))),
        }
    }
}
