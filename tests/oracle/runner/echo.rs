//! Upstreams that name themselves, remember every request that reaches them, and misbehave on demand.
//!
//! The header `x-echo` of a request says how to answer, as directives with `;` between them:
//! `status=N`, `body=TEXT`, `size=N`, `h=Name:value` (again for more), `trailer=name:value`, `chunked`, `nolen`
//! (the close ends the body), `delay=MS` (before the head), `stall=MS` (in the middle of the body), `interim=N`, `early`
//! (answer before the request's body is read), `noexpect` (no 100 Continue), `abort` (close without an answer),
//! `half` (break off in the middle of the body), `refuse` (HTTP/2: REFUSED_STREAM), `close` (close after the answer).
//! `first=N` limits all of it to the first N attempts of a request; later ones get a plain 200.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::echo2;
use super::wire::{Body, Fields, Head, Io, Wire, chunked, encode};

/// One request as an upstream saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The upstream's name.
    pub upstream: &'static str,
    /// `x-test-id`.
    pub id: String,
    /// `METHOD target VERSION`.
    pub line: String,
    /// `:authority` or Host.
    pub authority: Option<String>,
    /// The other fields.
    pub fields: Fields,
    /// The body.
    pub body: Vec<u8>,
    /// Its trailers.
    pub trailers: Fields,
    /// Whether the body arrived whole.
    pub complete: bool,
    /// SNI, ALPN and client certificate, on a TLS upstream.
    pub tls: Option<String>,
}

/// What all upstreams of a run saw, in order.
#[derive(Debug, Clone, Default)]
pub struct Recorder(Arc<Mutex<Vec<Seen>>>);

impl Recorder {
    /// Adds a request; returns its index and how many of the same id came before.
    pub fn add(&self, seen: Seen) -> (usize, usize) {
        let mut all = self.0.lock().expect("a recorder never panics while locked");
        let before = all.iter().filter(|s| s.id == seen.id).count();
        all.push(seen);
        (all.len() - 1, before)
    }
    /// Fills in the body of request `index`.
    pub fn finish(&self, index: usize, body: Body) {
        let mut all = self.0.lock().expect("a recorder never panics while locked");
        all[index].body = body.bytes;
        all[index].trailers = body.trailers;
        all[index].complete = body.complete;
    }
    /// The requests whose id is `id`, or starts with `id#`.
    pub fn of(&self, id: &str) -> Vec<Seen> {
        let all = self.0.lock().expect("a recorder never panics while locked");
        let prefix = format!("{id}#");
        all.iter().filter(|s| s.id == id || s.id.starts_with(&prefix)).cloned().collect()
    }
}

/// How to answer.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub status: Option<u16>,
    pub body: Option<Vec<u8>>,
    pub fields: Fields,
    pub trailers: Fields,
    pub chunked: bool,
    pub no_length: bool,
    pub delay: u64,
    pub stall: u64,
    pub interim: Vec<u16>,
    pub early: bool,
    pub no_expect: bool,
    pub abort: bool,
    pub half: bool,
    pub refuse: bool,
    pub close: bool,
}

impl Plan {
    /// Reads `x-echo` for a request that `before` others of the same id preceded.
    pub fn parse(text: &str, before: usize) -> Self {
        let mut plan = Self::default();
        for part in text.split(';').filter(|p| !p.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let number = || value.parse::<u64>().expect("a number in x-echo");
            let field = || {
                let (n, v) = value.split_once(':').expect("name:value in x-echo");
                (n.to_owned(), v.to_owned())
            };
            match key {
                "first" if before as u64 >= number() => return Self::default(),
                "first" => {}
                "status" => plan.status = u16::try_from(number()).ok(),
                "body" => plan.body = Some(value.as_bytes().to_vec()),
                "size" => plan.body = Some(vec![b'x'; usize::try_from(number()).expect("a size")]),
                "h" => plan.fields.push(field()),
                "trailer" => plan.trailers.push(field()),
                "delay" => plan.delay = number(),
                "stall" => plan.stall = number(),
                "interim" => plan.interim.extend(u16::try_from(number())),
                "chunked" => plan.chunked = true,
                "nolen" => plan.no_length = true,
                "early" => plan.early = true,
                "noexpect" => plan.no_expect = true,
                "abort" => plan.abort = true,
                "half" => plan.half = true,
                "refuse" => plan.refuse = true,
                "close" => plan.close = true,
                other => panic!("unknown directive {other} in x-echo"),
            }
        }
        plan
    }
}

/// Starts the HTTP upstream `name`, plaintext (HTTP/1 and h2c) or TLS (by ALPN).
pub async fn start(name: &'static str, recorder: Recorder, tls: Option<TlsAcceptor>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(connection(socket, name, recorder.clone(), tls.clone()));
        }
    });
    address
}

async fn connection(socket: TcpStream, name: &'static str, recorder: Recorder, tls: Option<TlsAcceptor>) {
    socket.set_nodelay(true).expect("a TCP option");
    let Some(acceptor) = tls else {
        if prior_knowledge(&socket).await {
            return echo2::serve(Box::new(socket), name, recorder, None).await;
        }
        return serve(Box::new(socket), name, recorder, None).await;
    };
    let Ok(stream) = acceptor.accept(socket).await else { return };
    let (_, session) = stream.get_ref();
    let alpn = session.alpn_protocol().map(|p| String::from_utf8_lossy(p).into_owned());
    let about = format!(
        "sni={} alpn={} client-certificate={}",
        session.server_name().unwrap_or("-"),
        alpn.as_deref().unwrap_or("-"),
        session.peer_certificates().is_some()
    );
    if alpn.as_deref() == Some("h2") {
        return echo2::serve(Box::new(stream), name, recorder, Some(about)).await;
    }
    serve(Box::new(stream), name, recorder, Some(about)).await;
}

/// Whether the connection opens with the HTTP/2 preface.
async fn prior_knowledge(socket: &TcpStream) -> bool {
    let mut start = [0u8; 14];
    loop {
        match socket.peek(&mut start).await {
            Ok(n) if n >= 3 => return &start[..3] == b"PRI",
            Ok(0) | Err(_) => return false,
            Ok(_) => tokio::task::yield_now().await,
        }
    }
}

async fn serve(io: Io, name: &'static str, recorder: Recorder, tls: Option<String>) {
    let mut wire = Wire::new(io);
    while let Ok(Some(head)) = wire.head().await {
        let seen = Seen {
            upstream: name,
            id: head.get("x-test-id").unwrap_or("").to_owned(),
            line: head.start.clone(),
            authority: head.get("host").map(str::to_owned),
            fields: head.fields.iter().filter(|(n, _)| !n.eq_ignore_ascii_case("host")).cloned().collect(),
            body: Vec::new(),
            trailers: Fields::new(),
            complete: false,
            tls: tls.clone(),
        };
        let (index, before) = recorder.add(seen);
        let plan = Plan::parse(head.get("x-echo").unwrap_or(""), before);
        if matches!(answer(&mut wire, name, &recorder, index, &head, &plan).await, Ok(true)) {
            continue;
        }
        return;
    }
}

/// Answers one request; true when the connection may be used again.
async fn answer(
    wire: &mut Wire,
    name: &str,
    recorder: &Recorder,
    index: usize,
    head: &Head,
    plan: &Plan,
) -> std::io::Result<bool> {
    for status in &plan.interim {
        wire.send(format!("HTTP/1.1 {status} Interim\r\nx-interim: {name}\r\n\r\n").as_bytes()).await?;
    }
    if !plan.early {
        if head.get("expect").is_some() && !plan.no_expect {
            wire.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let body = wire.body(head, true, false).await?;
        recorder.finish(index, body);
    }
    if plan.abort {
        return Ok(false);
    }
    tokio::time::sleep(Duration::from_millis(plan.delay)).await;
    if let Some(token) = head.get("upgrade").filter(|_| plan.status.is_none()) {
        return tunnel(wire, name, token).await;
    }
    respond(wire, name, head, plan).await?;
    Ok(!(plan.half || plan.no_length || plan.close || plan.early))
}

async fn respond(wire: &mut Wire, name: &str, head: &Head, plan: &Plan) -> std::io::Result<()> {
    let status = plan.status.unwrap_or(200);
    let body = plan.body.clone().unwrap_or_else(|| format!("upstream {name}\n").into_bytes());
    let bodyless = matches!(status, 204 | 304);
    let mut fields: Fields = vec![("x-upstream".into(), name.into())];
    fields.extend(plan.fields.iter().cloned());
    let chunks = plan.chunked || !plan.trailers.is_empty();
    if chunks {
        fields.push(("transfer-encoding".into(), "chunked".into()));
    } else if !bodyless && !plan.no_length {
        fields.push(("content-length".into(), body.len().to_string()));
    }
    if plan.close {
        fields.push(("connection".into(), "close".into()));
    }
    wire.send(&encode(&format!("HTTP/1.1 {status} {}", phrase(status)), &fields)).await?;
    if bodyless || head.word(0) == "HEAD" {
        return Ok(());
    }
    let (first, second) = body.split_at(body.len() / 2);
    if plan.half {
        return wire.send(first).await;
    }
    if plan.stall > 0 {
        wire.send(&if chunks { chunk(first) } else { first.to_vec() }).await?;
        tokio::time::sleep(Duration::from_millis(plan.stall)).await;
        return wire.send(&if chunks { chunked(second, &plan.trailers) } else { second.to_vec() }).await;
    }
    wire.send(&if chunks { chunked(&body, &plan.trailers) } else { body }).await
}

/// A chunk that is not the last.
fn chunk(bytes: &[u8]) -> Vec<u8> {
    let mut out = format!("{:x}\r\n", bytes.len()).into_bytes();
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
    out
}

async fn tunnel(wire: &mut Wire, name: &str, token: &str) -> std::io::Result<bool> {
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nx-upstream: {name}\r\nconnection: upgrade\r\nupgrade: {token}\r\n\r\n"
    );
    wire.send(head.as_bytes()).await?;
    while let Some(bytes) = wire.some().await? {
        wire.send(&bytes).await?;
    }
    wire.finish().await?;
    Ok(false)
}

fn phrase(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Unknown")
}

/// Starts a TCP upstream that speaks first, echoes, and says goodbye after the client's FIN.
pub async fn start_tcp(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut wire = Wire::new(Box::new(socket));
                wire.send(format!("220 {name} ready\r\n").as_bytes()).await?;
                while let Some(bytes) = wire.some().await? {
                    wire.send(&bytes).await?;
                }
                wire.send(format!("221 {name} bye\r\n").as_bytes()).await?;
                wire.finish().await
            });
        }
    });
    address
}
