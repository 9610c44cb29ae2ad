//! A minimal HTTP/1.1 client: one write and, mostly, one read per request.

use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Options;

/// Room for a response head and the start of its body; larger heads are an error.
pub(super) const BUFFER: usize = 64 * 1024;

pub(super) struct Client {
    target: SocketAddr,
    request: Vec<u8>,
    stream: TcpStream,
    buffer: Vec<u8>,
    reusable: bool,
}

impl Client {
    pub(super) async fn connect(options: &Options) -> anyhow::Result<Self> {
        let stream = open(options.target).await?;
        let request = request(options);
        Ok(Self { target: options.target, request, stream, buffer: vec![0; BUFFER], reusable: true })
    }

    pub(super) async fn reconnect(&mut self) -> anyhow::Result<()> {
        self.stream = open(self.target).await?;
        self.reusable = true;
        Ok(())
    }

    pub(super) async fn request(&mut self) -> anyhow::Result<u64> {
        if !self.reusable {
            self.reconnect().await?;
        }
        let head = exchange(&mut self.stream, &self.request, &mut self.buffer).await?;
        self.reusable = head.keep_alive;
        head.body_of_success()
    }
}

/// Sends a request and reads the whole answer.
pub(super) async fn exchange<IO>(stream: &mut IO, request: &[u8], buffer: &mut [u8]) -> anyhow::Result<Head>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(request).await.context("write")?;
    // TLS may keep what it has encrypted.
    stream.flush().await.context("write")?;
    let mut filled = 0;
    let head = loop {
        let room = buffer.get_mut(filled..).unwrap_or_default();
        if room.is_empty() {
            bail!("the response head is longer than {BUFFER} bytes");
        }
        let n = stream.read(room).await.context("read")?;
        if n == 0 {
            bail!("the connection was closed before the response was complete");
        }
        filled += n;
        if let Some(head) = parse(buffer.get(..filled).unwrap_or_default())? {
            break head;
        }
    };
    let mut rest = head.body.saturating_sub((filled - head.length) as u64);
    while rest > 0 {
        let n = stream.read(buffer).await.context("read")?;
        if n == 0 {
            bail!("the connection was closed inside a response body");
        }
        rest = rest.saturating_sub(n as u64);
    }
    Ok(head)
}

/// The bytes of every request.
pub(super) fn request(options: &Options) -> Vec<u8> {
    format!("GET {} HTTP/1.1\r\nhost: {}\r\n\r\n", options.path, options.authority).into_bytes()
}

pub(super) async fn open(target: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(target).await.context("connect")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Bytes of the head itself.
    length: usize,
    status: u16,
    /// Bytes of the body (RFC 9112 §6.2).
    body: u64,
    keep_alive: bool,
}

impl Head {
    /// The length of the body, if the status is 200.
    pub(super) fn body_of_success(&self) -> anyhow::Result<u64> {
        if self.status == 200 { Ok(self.body) } else { bail!("status {}", self.status) }
    }
}

/// Reads a response head; `None` while it is incomplete. The origin frames by Content-Length and the proxies under test
/// keep that, so another framing is an error: it would make the comparison unequal.
fn parse(bytes: &[u8]) -> anyhow::Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = response.parse(bytes).context("response head")? else {
        return Ok(None);
    };
    let mut body = None;
    let mut keep_alive = response.version == Some(1);
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(header.value).context("content-length")?;
            body = Some(text.trim().parse().context("content-length")?);
        } else if header.name.eq_ignore_ascii_case("connection")
            && header.value.eq_ignore_ascii_case(b"close")
        {
            keep_alive = false;
        }
    }
    let body = body.context("a response without content-length")?;
    Ok(Some(Head { length, status: response.code.unwrap_or_default(), body, keep_alive }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_whole_or_not_at_all() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n";
        for cut in 0..head.len() {
            assert_eq!(parse(&head[..cut]).unwrap(), None);
        }
        let expected = Head { length: head.len(), status: 200, body: 12, keep_alive: true };
        assert_eq!(parse(head).unwrap(), Some(expected));
    }

    #[test]
    fn closing_and_unframed_answers_are_noticed() {
        let closing =
            parse(b"HTTP/1.1 503 no\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").unwrap().unwrap();
        assert_eq!((closing.status, closing.keep_alive), (503, false));
        assert!(!parse(b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap().unwrap().keep_alive);
        assert!(parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        assert!(parse(b"SSH-2.0-x\r\n\r\n").is_err());
    }
}
