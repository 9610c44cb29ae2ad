//! HTTP/1 on the wire, byte-exact. Libraries would tidy up what an oracle has to see: spelling and order of header
//! names, framing, interim answers, how a message ended.

use bytes::{Buf, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A byte stream: TCP or TLS.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A byte stream of either kind.
pub type Io = Box<dyn Stream>;

/// Header fields in order, names as written.
pub type Fields = Vec<(String, String)>;

/// Start line and fields of a message.
#[derive(Debug, Clone, Default)]
pub struct Head {
    /// The start line without its line end.
    pub start: String,
    /// The fields.
    pub fields: Fields,
}

impl Head {
    /// The first value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
    /// Word `index` of the start line.
    pub fn word(&self, index: usize) -> &str {
        self.start.split(' ').nth(index).unwrap_or("")
    }
}

/// A message body as it came.
#[derive(Debug, Default)]
pub struct Body {
    /// The bytes, without framing.
    pub bytes: Vec<u8>,
    /// Fields after the last chunk.
    pub trailers: Fields,
    /// Whether the framing said that it was all there.
    pub complete: bool,
}

/// A connection with what was read ahead.
pub struct Wire {
    io: Io,
    buf: BytesMut,
}

impl Wire {
    /// Speaks HTTP/1 on `io`.
    pub fn new(io: Io) -> Self {
        Self { io, buf: BytesMut::with_capacity(8192) }
    }

    /// Sends bytes.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }

    /// Sends FIN (or close_notify).
    pub async fn finish(&mut self) -> io::Result<()> {
        self.io.shutdown().await
    }

    /// Reads more; false at the end of the stream.
    async fn fill(&mut self) -> io::Result<bool> {
        Ok(self.io.read_buf(&mut self.buf).await? > 0)
    }

    async fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.buf.iter().position(|b| *b == b'\n') {
                let mut line = self.buf.split_to(end + 1).to_vec();
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// Reads a head; None when the peer closed before it was complete.
    pub async fn head(&mut self) -> io::Result<Option<Head>> {
        let Some(start) = self.line().await? else { return Ok(None) };
        Ok(self.fields().await?.map(|fields| Head { start, fields }))
    }

    async fn fields(&mut self) -> io::Result<Option<Fields>> {
        let mut fields = Fields::new();
        loop {
            let Some(line) = self.line().await? else { return Ok(None) };
            if line.is_empty() {
                return Ok(Some(fields));
            }
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// Reads the body that `head` announces. `bodyless` for an answer to HEAD and the like.
    pub async fn body(&mut self, head: &Head, request: bool, bodyless: bool) -> io::Result<Body> {
        if bodyless {
            return Ok(Body { complete: true, ..Body::default() });
        }
        let chunked =
            head.get("transfer-encoding").is_some_and(|v| v.to_ascii_lowercase().ends_with("chunked"));
        if chunked {
            return self.chunks().await;
        }
        match head.get("content-length").and_then(|v| v.parse::<usize>().ok()) {
            Some(n) => self.exactly(n).await,
            None if request => Ok(Body { complete: true, ..Body::default() }),
            None => self.rest().await,
        }
    }

    async fn exactly(&mut self, n: usize) -> io::Result<Body> {
        while self.buf.len() < n {
            match self.fill().await {
                Ok(true) => {}
                _ => return Ok(Body { bytes: self.buf.split().to_vec(), ..Body::default() }),
            }
        }
        Ok(Body { bytes: self.buf.split_to(n).to_vec(), complete: true, ..Body::default() })
    }

    async fn chunks(&mut self) -> io::Result<Body> {
        let mut body = Body::default();
        loop {
            let Ok(Some(line)) = self.line().await else { return Ok(body) };
            let size = line.split(';').next().unwrap_or("").trim();
            let Ok(size) = usize::from_str_radix(size, 16) else { return Ok(body) };
            if size == 0 {
                if let Ok(Some(trailers)) = self.fields().await {
                    body.trailers = trailers;
                    body.complete = true;
                }
                return Ok(body);
            }
            let chunk = self.exactly(size + 2).await?;
            body.bytes.extend_from_slice(&chunk.bytes[..chunk.bytes.len().min(size)]);
            if !chunk.complete {
                return Ok(body);
            }
        }
    }

    /// Reads until the peer closes.
    pub async fn rest(&mut self) -> io::Result<Body> {
        let complete = loop {
            match self.fill().await {
                Ok(true) => {}
                Ok(false) => break true,
                Err(_) => break false,
            }
        };
        Ok(Body { bytes: self.buf.split().to_vec(), complete, ..Body::default() })
    }

    /// Reads what is there; None at the end of the stream.
    pub async fn some(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.buf.has_remaining() || self.fill().await? {
            return Ok(Some(self.buf.split().to_vec()));
        }
        Ok(None)
    }
}

/// A head as bytes.
pub fn encode(start: &str, fields: &[(String, String)]) -> Vec<u8> {
    let mut out = format!("{start}\r\n").into_bytes();
    for (name, value) in fields {
        out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// A body in one chunk, with trailers.
pub fn chunked(body: &[u8], trailers: &[(String, String)]) -> Vec<u8> {
    let mut out = Vec::new();
    if !body.is_empty() {
        out.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
        out.extend_from_slice(body);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// `name: value` lines as fields.
pub fn parse_fields(lines: &[String]) -> Fields {
    lines
        .iter()
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            (name.to_owned(), value.trim().to_owned())
        })
        .collect()
}
