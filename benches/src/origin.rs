//! The origin: answers as cheaply as it can, so that one core carries it and the load generator together.
//!
//! `/` is answered with 1 KiB, `/N` with N bytes. The bulk port reads an order of nine bytes (a direction and a length,
//! big-endian) and then sends or reads that many bytes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Response, StatusCode, header};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Bytes of an answer to `/`.
pub const DEFAULT_SIZE: usize = 1024;
/// Longest answer; a longer one is refused with 413.
pub const MAX_SIZE: usize = 64 << 20;
/// Longest request head.
const BUFFER: usize = 64 * 1024;
/// Bytes per read or write on the bulk port.
const BLOCK: usize = 256 * 1024;

/// Direction of a bulk connection, seen from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bulk {
    /// The origin sends.
    Get,
    /// The origin reads.
    Put,
}

/// The nine bytes that order a bulk transfer of `length` bytes.
#[must_use]
pub fn bulk_order(kind: Bulk, length: u64) -> [u8; 9] {
    let mut order = [0; 9];
    let (first, rest) = order.split_at_mut(1);
    first.fill(match kind {
        Bulk::Get => b'G',
        Bulk::Put => b'P',
    });
    rest.copy_from_slice(&length.to_be_bytes());
    order
}

/// The answer's length for a path: `None` if it asks for too much or for nothing known.
fn size_of(path: &str) -> Option<usize> {
    let path = path.split('?').next().unwrap_or_default();
    match path.strip_prefix('/') {
        Some("") => Some(DEFAULT_SIZE),
        Some(number) => number.parse().ok().filter(|size| *size <= MAX_SIZE),
        None => None,
    }
}

/// Whole HTTP/1 answers by path, made once.
#[derive(Debug, Default)]
struct Answers {
    h1: RefCell<HashMap<String, Bytes>>,
    body: RefCell<Bytes>,
}

impl Answers {
    /// A body of so many bytes; all bodies are slices of one block.
    fn body(&self, size: usize) -> Bytes {
        let mut block = self.body.borrow_mut();
        if block.len() < size {
            *block = Bytes::from(vec![b'x'; size]);
        }
        block.slice(..size)
    }

    fn h1(&self, path: &str) -> Bytes {
        if let Some(answer) = self.h1.borrow().get(path) {
            return answer.clone();
        }
        let answer = match size_of(path) {
            Some(size) => {
                let head =
                    format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {size}\r\n\r\n");
                Bytes::from([head.as_bytes(), &self.body(size)].concat())
            }
            None => Bytes::from_static(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n"),
        };
        // Bounded: a client that asks for ever new paths gets them uncached.
        let mut cache = self.h1.borrow_mut();
        if cache.len() < 64 {
            cache.insert(path.to_owned(), answer.clone());
        }
        answer
    }
}

/// Serves the three ports for ever, on the current local runtime.
///
/// # Errors
/// When accepting fails.
pub async fn serve(h1: TcpListener, h2: TcpListener, bulk: TcpListener) -> anyhow::Result<()> {
    let answers = Rc::new(Answers::default());
    loop {
        tokio::select! {
            accepted = h1.accept() => {
                let stream = accepted.context("accept")?.0;
                let answers = Rc::clone(&answers);
                tokio::task::spawn_local(async move { serve_h1(stream, &answers).await });
            }
            accepted = h2.accept() => {
                let stream = accepted.context("accept")?.0;
                let answers = Rc::clone(&answers);
                tokio::task::spawn_local(async move { serve_h2(stream, &answers).await });
            }
            accepted = bulk.accept() => {
                let stream = accepted.context("accept")?.0;
                tokio::task::spawn_local(serve_bulk(stream));
            }
        }
    }
}

/// One HTTP/1 connection. Errors end it: the client sees and counts them.
async fn serve_h1(mut stream: TcpStream, answers: &Answers) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; BUFFER];
    let mut filled = 0;
    loop {
        let request = match parse(buffer.get(..filled).unwrap_or_default())? {
            Some(request) => request,
            None if filled == BUFFER => bail!("request head too long"),
            None => {
                let n = stream.read(buffer.get_mut(filled..).unwrap_or_default()).await?;
                if n == 0 {
                    return Ok(());
                }
                filled += n;
                continue;
            }
        };
        let mut body = request.body;
        let buffered = body.min(filled - request.head);
        buffer.copy_within(request.head + buffered..filled, 0);
        filled -= request.head + buffered;
        body -= buffered;
        while body > 0 {
            let most = body.min(BUFFER);
            let n = stream.read(buffer.get_mut(..most).unwrap_or_default()).await?;
            if n == 0 {
                return Ok(());
            }
            body -= n;
        }
        stream.write_all(&answers.h1(&request.path)).await?;
    }
}

#[derive(Debug, PartialEq, Eq)]
struct H1Request {
    head: usize,
    body: usize,
    path: String,
}

fn parse(bytes: &[u8]) -> anyhow::Result<Option<H1Request>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = request.parse(bytes)? else { return Ok(None) };
    let mut body = 0;
    for header in request.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            body = std::str::from_utf8(header.value)?.trim().parse()?;
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            bail!("chunked requests are not read here");
        }
    }
    Ok(Some(H1Request { head, body, path: request.path.unwrap_or("/").to_owned() }))
}

/// One HTTP/2 connection with prior knowledge.
async fn serve_h2(stream: TcpStream, answers: &Answers) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut connection = h2::server::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 24)
        .max_concurrent_streams(10_000)
        .handshake(stream)
        .await?;
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted?;
        let size = size_of(request.uri().path());
        let mut response = Response::new(());
        let length = size.unwrap_or(0);
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        if size.is_none() {
            *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        }
        let mut send = respond.send_response(response, length == 0)?;
        if length > 0 {
            send.send_data(answers.body(length), true)?;
        }
    }
    Ok(())
}

/// One bulk connection.
async fn serve_bulk(mut stream: TcpStream) -> anyhow::Result<()> {
    let kind = stream.read_u8().await?;
    let mut rest = stream.read_u64().await?;
    let mut block = vec![b'x'; BLOCK];
    while rest > 0 {
        let most = usize::try_from(rest).unwrap_or(BLOCK).min(BLOCK);
        let part = block.get_mut(..most).unwrap_or_default();
        let n = match kind {
            b'G' => stream.write(part).await?,
            b'P' => stream.read(part).await?,
            other => bail!("no such order: {other}"),
        };
        if n == 0 {
            return Ok(());
        }
        rest -= n as u64;
    }
    stream.shutdown().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_sizes() {
        assert_eq!(size_of("/"), Some(1024));
        assert_eq!(size_of("/?x"), Some(1024));
        assert_eq!(size_of("/0"), Some(0));
        assert_eq!(size_of("/65536"), Some(65536));
        assert_eq!(size_of("/67108865"), None);
        assert_eq!(size_of("/nothing"), None);
        assert_eq!(size_of("*"), None);
    }

    #[test]
    fn orders_carry_direction_and_length() {
        assert_eq!(bulk_order(Bulk::Get, 258), [b'G', 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(bulk_order(Bulk::Put, 0), [b'P', 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn answers_are_framed_by_length() {
        let answers = Answers::default();
        let answer = answers.h1("/3");
        assert!(answer.ends_with(b"content-length: 3\r\n\r\nxxx"), "{answer:?}");
        assert_eq!(answers.h1("/3").as_ptr(), answer.as_ptr());
        assert!(answers.h1("/no").starts_with(b"HTTP/1.1 413"));
    }
}
