//! The client: sends exactly what a case says and writes down everything that comes back.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use h2::client::SendRequest;
use rustls::pki_types::ServerName;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::case::{End, Protocol, RequestSpec, TlsSpec};
use super::wire::{Body, Fields, Head, Io, Wire, chunked, encode, parse_fields};
use super::{certs, echo2};

/// No request of the corpus takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came back.
#[derive(Debug, Default)]
pub struct Answer {
    pub status: Option<u16>,
    pub version: String,
    pub interim: Vec<u16>,
    pub fields: Fields,
    pub body: Body,
    pub end: End,
    pub tunnel: Option<Vec<u8>>,
    pub closed: Option<bool>,
    pub certificate: Option<String>,
}

/// A connection to the proxy.
pub enum Connection {
    Http1(Wire, Option<String>),
    Http2(SendRequest<Bytes>, JoinHandle<()>, Option<String>),
    /// The TLS handshake failed.
    Refused,
}

/// Connects to `port`. A listener may report its port a moment before it accepts.
async fn connect(port: u16) -> anyhow::Result<TcpStream> {
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    loop {
        tick.tick().await;
        match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(socket) => return Ok(socket),
            Err(e) if Instant::now() > deadline => return Err(e).context("connect to the proxy"),
            Err(_) => {}
        }
    }
}

impl Connection {
    /// Opens a connection as `spec` wants it.
    pub async fn open(spec: &RequestSpec, port: u16, certs: &Path) -> anyhow::Result<Self> {
        let socket = connect(port).await?;
        socket.set_nodelay(true)?;
        let (io, certificate) = match &spec.tls {
            None => (Box::new(socket) as Io, None),
            Some(tls) => match handshake(socket, tls, certs).await? {
                Some((io, certificate)) => (io, Some(certificate)),
                None => return Ok(Self::Refused),
            },
        };
        if spec.protocol != Protocol::Http2 {
            return Ok(Self::Http1(Wire::new(io), certificate));
        }
        // With TLS 1.3 a refused client certificate shows only here.
        let Ok((send, connection)) = h2::client::handshake(io).await else { return Ok(Self::Refused) };
        let task = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self::Http2(send, task, certificate))
    }

    /// Sends a request and reads the answer.
    pub async fn exchange(&mut self, spec: &RequestSpec, id: &str) -> anyhow::Result<Answer> {
        let (mut answer, certificate) = match self {
            Self::Refused => (Answer { end: End::TlsRefused, ..Answer::default() }, None),
            Self::Http1(wire, certificate) => {
                let work = async {
                    match spec.protocol {
                        Protocol::Tcp => tcp(wire, spec).await,
                        _ => http1(wire, spec, id).await,
                    }
                };
                (timeout(PATIENCE, work).await.context("no end of the answer in 10 s")??, certificate.clone())
            }
            Self::Http2(send, _, certificate) => {
                let work = http2(send, spec, id);
                (timeout(PATIENCE, work).await.context("no end of the answer in 10 s")??, certificate.clone())
            }
        };
        answer.certificate = certificate;
        if spec.wait_close > 0 {
            answer.closed =
                Some(timeout(Duration::from_millis(spec.wait_close), self.closed()).await.is_ok());
        }
        Ok(answer)
    }

    async fn closed(&mut self) {
        match self {
            Self::Refused => {}
            Self::Http1(wire, _) => while matches!(wire.some().await, Ok(Some(_))) {},
            Self::Http2(_, task, _) => {
                let _ = task.await;
            }
        }
    }
}

/// None when the proxy refuses the handshake.
async fn handshake(socket: TcpStream, tls: &TlsSpec, certs: &Path) -> anyhow::Result<Option<(Io, String)>> {
    let config = certs::client(certs, tls.certificate.as_deref(), &tls.alpn)?;
    let name = ServerName::try_from(tls.sni.clone())?;
    let Ok(stream) = TlsConnector::from(Arc::new(config)).connect(name, socket).await else {
        return Ok(None);
    };
    let (_, session) = stream.get_ref();
    let alpn = session.alpn_protocol().map_or_else(|| "-".into(), String::from_utf8_lossy).into_owned();
    let version = session.protocol_version().and_then(|v| v.as_str()).unwrap_or("?").to_owned();
    Ok(Some((Box::new(stream), format!("for {} {version} alpn={alpn}", tls.sni))))
}

fn body_of(spec: &RequestSpec) -> Option<Vec<u8>> {
    match &spec.body {
        Some(text) => Some(text.as_bytes().to_vec()),
        None if spec.body_size > 0 => Some(vec![b'y'; spec.body_size]),
        None if spec.chunked || !spec.trailers.is_empty() => Some(Vec::new()),
        None => None,
    }
}

fn own_fields(spec: &RequestSpec, id: &str) -> Fields {
    let mut fields: Fields = vec![("x-test-id".into(), id.into())];
    if !spec.echo.is_empty() {
        fields.push(("x-echo".into(), spec.echo.clone()));
    }
    fields.extend(parse_fields(&spec.headers));
    fields
}

/// Head and body as bytes.
fn request1(spec: &RequestSpec, id: &str) -> (Vec<u8>, Vec<u8>) {
    let mut fields = own_fields(spec, id);
    if spec.host != "-" {
        fields.insert(0, ("Host".into(), spec.host.clone()));
    }
    let mut bytes = Vec::new();
    if let Some(body) = body_of(spec) {
        if spec.chunked || !spec.trailers.is_empty() {
            fields.push(("Transfer-Encoding".into(), "chunked".into()));
            bytes = chunked(&body, &parse_fields(&spec.trailers));
        } else {
            fields.push(("Content-Length".into(), body.len().to_string()));
            bytes = body;
        }
    }
    if spec.expect {
        fields.push(("Expect".into(), "100-continue".into()));
    }
    let version = if spec.protocol == Protocol::Http10 { "HTTP/1.0" } else { "HTTP/1.1" };
    (encode(&format!("{} {} {version}", spec.method, spec.path), &fields), bytes)
}

async fn http1(wire: &mut Wire, spec: &RequestSpec, id: &str) -> anyhow::Result<Answer> {
    let mut answer = Answer { end: End::NoAnswer, ..Answer::default() };
    let (head, body) = match &spec.raw {
        Some(raw) => (raw.replace("{{ID}}", id).into_bytes(), Vec::new()),
        None => request1(spec, id),
    };
    // A proxy may answer and close before it has read everything: that is an outcome, not an error.
    let _ = wire.send(&head).await;
    let mut early = None;
    if spec.expect
        && let Ok(Ok(Some(head))) = timeout(Duration::from_secs(1), wire.head()).await
    {
        if head.word(1) == "100" {
            answer.interim.push(100);
        } else {
            early = Some(head);
        }
    }
    if early.is_none() && !body.is_empty() {
        let _ = wire.send(&body).await;
    }
    let head = loop {
        let head = match early.take() {
            Some(head) => head,
            None => match wire.head().await {
                Ok(Some(head)) => head,
                _ => return Ok(answer),
            },
        };
        let status: u16 = head.word(1).parse().with_context(|| format!("status line {}", head.start))?;
        if status == 101 || status >= 200 {
            answer.status = Some(status);
            break head;
        }
        answer.interim.push(status);
    };
    read1(wire, spec, head, &mut answer).await?;
    Ok(answer)
}

async fn read1(wire: &mut Wire, spec: &RequestSpec, head: Head, answer: &mut Answer) -> anyhow::Result<()> {
    answer.version = head.word(0).to_owned();
    if answer.status == Some(101) {
        answer.fields = head.fields;
        answer.end = End::Complete;
        answer.tunnel = Some(tunnel(wire, spec.tunnel.as_deref().unwrap_or("")).await?);
        return Ok(());
    }
    let method = spec.raw.as_deref().map_or(spec.method.as_str(), |raw| raw.split(' ').next().unwrap_or(""));
    let bodyless = method == "HEAD" || matches!(answer.status, Some(204 | 304));
    answer.body = wire.body(&head, false, bodyless).await?;
    answer.end = if answer.body.complete { End::Complete } else { End::Truncated };
    answer.fields = head.fields;
    Ok(())
}

/// Sends `text`, waits until it is back, closes our side, and reads the rest.
async fn tunnel(wire: &mut Wire, text: &str) -> anyhow::Result<Vec<u8>> {
    let _ = wire.send(text.as_bytes()).await;
    let mut back = Vec::new();
    while back.len() < text.len() {
        match wire.some().await {
            Ok(Some(bytes)) => back.extend_from_slice(&bytes),
            _ => break,
        }
    }
    let _ = wire.finish().await;
    back.extend_from_slice(&wire.rest().await?.bytes);
    Ok(back)
}

/// Waits for the server's greeting before it sends anything.
async fn tcp(wire: &mut Wire, spec: &RequestSpec) -> anyhow::Result<Answer> {
    let mut answer = Answer { end: End::NoAnswer, ..Answer::default() };
    let Ok(Some(mut all)) = wire.some().await else { return Ok(answer) };
    if let Some(text) = &spec.tunnel {
        all.extend_from_slice(&tunnel(wire, text).await?);
    }
    answer.end = End::Complete;
    answer.tunnel = Some(all);
    Ok(answer)
}

async fn http2(send: &mut SendRequest<Bytes>, spec: &RequestSpec, id: &str) -> anyhow::Result<Answer> {
    let mut answer = Answer { end: End::NoAnswer, ..Answer::default() };
    let scheme = if spec.tls.is_some() { "https" } else { "http" };
    let mut request = http::Request::builder()
        .method(spec.method.as_str())
        .uri(format!("{scheme}://{}{}", spec.host, spec.path))
        .version(http::Version::HTTP_2)
        .body(())?;
    *request.headers_mut() = echo2::map(&own_fields(spec, id));
    let body = body_of(spec);
    let Ok(mut ready) = send.clone().ready().await else { return Ok(answer) };
    let (mut response, mut out) = match ready.send_request(request, body.is_none()) {
        Ok(pair) => pair,
        Err(e) => bail!("send: {e}"),
    };
    if let Some(body) = body {
        let trailers = parse_fields(&spec.trailers);
        let sent = out.send_data(Bytes::from(body), trailers.is_empty());
        if sent.is_ok() && !trailers.is_empty() {
            let _ = out.send_trailers(echo2::map(&trailers));
        }
    }
    let response = loop {
        let step = std::future::poll_fn(|cx| match response.poll_informational(cx) {
            Poll::Ready(Some(Ok(interim))) => Poll::Ready(Err(interim.status().as_u16())),
            _ => Pin::new(&mut response).poll(cx).map(Ok),
        });
        match step.await {
            Err(interim) => answer.interim.push(interim),
            Ok(response) => break response,
        }
    };
    let Ok(response) = response else { return Ok(answer) };
    let (head, mut stream) = response.into_parts();
    answer.status = Some(head.status.as_u16());
    answer.version = "HTTP/2".into();
    answer.fields = echo2::fields(&head.headers);
    match echo2::collect(&mut stream).await {
        Ok(body) => {
            answer.body = body;
            answer.end = End::Complete;
        }
        Err(_) => answer.end = End::Truncated,
    }
    Ok(answer)
}
