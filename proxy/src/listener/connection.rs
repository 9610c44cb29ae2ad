//! One downstream connection from accept to its filter chain: original destination, first bytes, chain, TLS, codec.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use smallvec::SmallVec;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::admission;
use super::chain_match::{ConnectionFacts, Transport};
use super::detect::{ClientHelloInfo, Detected, detect};
use super::original_dst::{Kernel, OriginalDst, canonical};
use crate::config::spec::{Codec, FilterChain, HttpSpec, ListenerSpec, NetworkFilter};
use crate::error::Reason;
use crate::http::downstream::Downstream;
use crate::http::{h1, h2};
use crate::io::{Io, ReadAhead, Rewound};
use crate::tcp_proxy;
use crate::telemetry::metrics::{ListenerCount, ListenerSeries, Refusal};
use crate::telemetry::record::{self, AccessRecord};
use crate::tls::TlsSession;
use crate::why::Place;
use crate::worker::Worker;
use crate::worker::drain::Registration;

/// How long a connection that says nothing is still waited for when draining begins.
const SILENCE: Duration = Duration::from_secs(5);
/// How long the first bytes are waited for of a client that they matter of, whatever `listener_filters_timeout` and
/// `continue_on_listener_filters_timeout` say (Envoy's default of the former).
const FIRST_BYTES: Duration = Duration::from_secs(15);

/// A connection that was accepted.
#[derive(Debug)]
pub struct Accepted {
    /// It.
    pub stream: TcpStream,
    /// Who called.
    pub peer: SocketAddr,
    /// Counts it as open.
    pub drain: Registration,
}

/// Serves an accepted connection until it ends. `series` counts for the listener that accepted it.
pub async fn serve(worker: Rc<Worker>, spec: Arc<ListenerSpec>, accepted: Accepted, series: ListenerSeries) {
    let Accepted { mut stream, peer, drain } = accepted;
    let Ok(local) = stream.local_addr().map(canonical) else { return };
    let remote = canonical(peer);
    let original_dst = original_destination(&spec, &stream, local);
    let spec = listener_of(&worker, spec, original_dst);
    let between = (remote, original_dst.unwrap_or(local));
    let mut read = BytesMut::new();
    let seen = match look(&spec, &mut stream, &mut read, (between, &drain)).await {
        Ok(seen) => seen,
        Err(why) => return refuse(&worker, &spec, between, why, known(&Seen::default())),
    };
    let Some(chain) = choose(&spec, &seen, between.1, remote) else {
        return refuse(&worker, &spec, between, Refusal::NoFilterChain, known(&seen));
    };
    let (io, read, tls) = match secure(&chain, stream, read).await {
        Ok(secured) => secured,
        Err((why, detail)) => {
            let (filter_chain, transport_failure) = (Some(&*chain.name), Some(&*detail));
            let known = record::Downstream { filter_chain, transport_failure, ..known(&seen) };
            return refuse(&worker, &spec, between, why, known);
        }
    };
    if tls.is_some() {
        series.count(ListenerCount::TlsHandshakes);
    }
    let downstream = Rc::new(Downstream {
        id: worker.next_connection_id(),
        remote,
        local,
        original_dst,
        peer: worker.metrics.peer(tls.as_ref()),
        drain,
        peer_uri_sans: tls.as_ref().and_then(|t| t.peer.as_ref()).map(|p| p.uri_sans.join(",").into()),
        tls,
        listener: spec,
        chain: Arc::clone(&chain),
        worker,
        evicted: std::cell::OnceCell::new(),
        streams: std::cell::Cell::new(0),
        limits: std::cell::RefCell::default(),
    });
    match &chain.filter {
        NetworkFilter::Http(http) => {
            let served = pin!(serve_http(io, read, Rc::clone(&downstream), Arc::clone(http)));
            let changes = downstream.worker.changes.follow();
            let admitted = match admission::admit(&downstream) {
                Ok(()) => admission::while_admitted(&downstream, changes, served).await,
                Err(refused) => Err(refused),
            };
            if let Err(refused) = admitted {
                tracing::debug!(chain = &*chain.name, details = refused.details, "the connection is closed");
                downstream.tell(refused.reason, Some(&refused.details), refused.rule.as_deref());
                if refused.reason == Reason::RbacDenied {
                    downstream.worker.metrics.refused(Refusal::Unauthorized);
                }
            }
        }
        NetworkFilter::Tcp(tcp) => tcp_proxy::serve(io, read, downstream, Arc::clone(tcp)).await,
    }
}

/// Refuses a connection of which nothing is known yet: the process has no room for it.
#[cold]
pub fn refuse_unseen(
    worker: &Worker,
    spec: &ListenerSpec,
    stream: &TcpStream,
    peer: SocketAddr,
    refusal: Refusal,
) {
    let Ok(local) = stream.local_addr().map(canonical) else { return };
    refuse(worker, spec, (canonical(peer), local), refusal, known(&Seen::default()));
}

/// Counts a connection that is refused before it is served, and keeps for the operator why. `between`: its two ends.
#[cold]
fn refuse(
    worker: &Worker,
    spec: &ListenerSpec,
    between: (SocketAddr, SocketAddr),
    why: Refusal,
    known: record::Downstream<'_>,
) {
    worker.metrics.refused(why);
    let downstream = record::Downstream {
        connection_id: Some(worker.next_connection_id()),
        remote: Some(between.0),
        local: Some(between.1),
        ..known
    };
    let record = AccessRecord { downstream, ..AccessRecord::default() };
    let place = Place { listener: &spec.name, ..Place::default() };
    worker.stories.tell(why, &record, &place);
}

/// What the first bytes tell of a connection.
fn known(seen: &Seen) -> record::Downstream<'_> {
    let server_name = seen.hello.as_ref().and_then(|hello| hello.sni.as_deref());
    record::Downstream { server_name, ..record::Downstream::default() }
}

fn original_destination(spec: &ListenerSpec, stream: &TcpStream, local: SocketAddr) -> Option<SocketAddr> {
    if spec.socket.transparent {
        return Some(local);
    }
    if !spec.original_dst && !spec.use_original_dst {
        return None;
    }
    Kernel.original_dst(stream).unwrap_or_else(|error| {
        tracing::debug!(listener = &*spec.name, %error, "no original destination");
        None
    })
}

/// `use_original_dst`: the listener that owns the original destination takes the connection over.
fn listener_of(worker: &Worker, spec: Arc<ListenerSpec>, original: Option<SocketAddr>) -> Arc<ListenerSpec> {
    let Some(original) = original.filter(|_| spec.use_original_dst) else { return spec };
    worker.snapshot().listener_at(original).map_or(spec, Arc::clone)
}

/// What the first bytes said, as far as the listener asked.
#[derive(Default)]
struct Seen {
    hello: Option<ClientHelloInfo>,
    http: Option<&'static [u8]>,
}

/// Looks at the first bytes when a listener filter asks for it; waits no longer than its timeout, and not for a silent client when the
/// process drains. Where the listener goes on without them, that is for silent clients that let the server speak first: others are waited for up to
/// [`FIRST_BYTES`]. `between`: the client, and where it wanted to go.
async fn look(
    spec: &ListenerSpec,
    stream: &mut TcpStream,
    read: &mut BytesMut,
    (between, drain): ((SocketAddr, SocketAddr), &Registration),
) -> Result<Seen, Refusal> {
    let port = between.1.port();
    let tls = spec.inspect_tls && !spec.uninspected.tls.contains(port);
    let http = spec.inspect_http && !spec.uninspected.http.contains(port);
    if !tls && !http {
        return Ok(Seen::default());
    }
    let mut detected = within(spec.inspect_timeout, first_bytes(stream, read, drain)).await;
    if detected.is_none() && spec.continue_on_inspect_timeout {
        let chain = choose(spec, &Seen::default(), between.1, between.0);
        let may_wait_for_server = chain.as_ref().is_some_and(|c| matches!(c.filter, NetworkFilter::Tcp(_)));
        if !(may_wait_for_server && read.is_empty()) {
            let rest = FIRST_BYTES.saturating_sub(spec.inspect_timeout);
            detected = tokio::time::timeout(rest, first_bytes(stream, read, drain)).await.ok();
        }
        if detected.is_none() && chain.is_some() {
            detected = Some(Some(Detected::Opaque));
        }
    }
    let detected = match detected {
        Some(Some(detected)) => detected,
        Some(None) => return Err(Refusal::Draining),
        None => return Err(Refusal::DetectTimeout),
    };
    Ok(match detected {
        Detected::Tls(hello) if tls => Seen { hello: Some(hello), http: None },
        Detected::Http2 if http => Seen { hello: None, http: Some(b"h2c") },
        Detected::Http1 if http => Seen { hello: None, http: Some(b"http/1.1") },
        _ => Seen::default(),
    })
}

/// What the first bytes are, as soon as that is known. None: there were none until draining ended. What was read stays in `read`, so that one who
/// gave up may ask again.
async fn first_bytes(stream: &mut TcpStream, read: &mut BytesMut, drain: &Registration) -> Option<Detected> {
    loop {
        match detect(read) {
            Detected::NeedMore => {}
            found => return Some(found),
        }
        let quiet = read.is_empty();
        let more = tokio::select! {
            biased;
            more = stream.read_buf(read) => more,
            () = drained(drain, SILENCE), if quiet => return None,
        };
        match more {
            Ok(n) if n > 0 => {}
            _ => return Some(Detected::Opaque),
        }
    }
}

/// Zero means no limit.
async fn within<F: Future>(limit: Duration, work: F) -> Option<F::Output> {
    if limit.is_zero() { Some(work.await) } else { tokio::time::timeout(limit, work).await.ok() }
}

fn choose(
    spec: &ListenerSpec,
    seen: &Seen,
    destination: SocketAddr,
    remote: SocketAddr,
) -> Option<Arc<FilterChain>> {
    let mut protocols: SmallVec<[&[u8]; 4]> = SmallVec::new();
    if let Some(hello) = &seen.hello {
        protocols.extend(hello.alpn.iter().map(|p| &**p));
    }
    protocols.extend(seen.http);
    let facts = ConnectionFacts {
        destination,
        source: remote,
        direct_source: remote,
        transport: if seen.hello.is_some() { Transport::Tls } else { Transport::RawBuffer },
        server_name: seen.hello.as_ref().and_then(|h| h.sni.as_deref()),
        application_protocols: &protocols,
    };
    spec.chains.get(spec.matcher.find(&facts)?).cloned()
}

/// Shakes hands when the chain has TLS.
///
/// # Errors
/// Why there is no session, and what TLS says about that.
async fn secure(
    chain: &FilterChain,
    stream: TcpStream,
    read: BytesMut,
) -> Result<(Io, BytesMut, Option<TlsSession>), (Refusal, String)> {
    let Some(tls) = &chain.tls else { return Ok((Io::Tcp(stream), read, None)) };
    // Boxed: a handshake is large and short, and the connection's future would stay as large as it.
    let handshake = tls.accept(ReadAhead::new(stream), &read);
    match Box::pin(within(chain.tls_timeout, handshake)).await {
        Some(Ok((stream, session))) => Ok((Io::Tls(Box::new(stream.into())), BytesMut::new(), Some(session))),
        Some(Err(error)) => {
            tracing::debug!(chain = &*chain.name, %error, "downstream TLS");
            Err((Refusal::Tls(error.kind), error.detail))
        }
        None => Err((Refusal::TlsTimeout, String::new())),
    }
}

async fn serve_http(mut io: Io, mut read: BytesMut, downstream: Rc<Downstream>, http: Arc<HttpSpec>) {
    let http2 = match http.codec {
        Codec::Http1 => false,
        Codec::Http2 => match sniff_http2(&mut io, &mut read, &downstream, &http).await {
            Some(true) => true,
            Some(false) => return Box::pin(h2::server::refuse_preface(io)).await,
            None => return,
        },
        Codec::Auto => match downstream.tls.as_ref().and_then(|t| t.alpn.as_deref()) {
            Some(alpn) => alpn == b"h2",
            None => match sniff_http2(&mut io, &mut read, &downstream, &http).await {
                Some(http2) => http2,
                None => return,
            },
        },
    };
    if http2 {
        h2::server::serve(Rewound::new(read, io), downstream, http).await;
    } else {
        h1::server::serve(io, read, downstream, http).await;
    }
}

/// The HTTP/2 preface, or anything else. Waits for as many bytes as could still be the preface. None: the client left, or said
/// nothing until draining ended: whoever connects while we drain has not been told yet, and is served.
async fn sniff_http2(
    io: &mut Io,
    read: &mut BytesMut,
    downstream: &Downstream,
    http: &HttpSpec,
) -> Option<bool> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut first_byte = None;
    loop {
        if read.len() >= PREFACE.len() || !PREFACE.starts_with(read) {
            return Some(read.starts_with(PREFACE));
        }
        if !read.is_empty() {
            first_byte.get_or_insert_with(tokio::time::Instant::now);
        }
        let idle = if first_byte.is_some() { http.headers_timeout } else { http.idle_timeout };
        let limit = idle.unwrap_or(Duration::ZERO);
        let quiet = read.is_empty();
        let more = std::future::poll_fn(|cx| {
            if read.capacity() - read.len() < 1024 {
                read.reserve(8 * 1024);
            }
            tokio_util::io::poll_read_buf(std::pin::Pin::new(&mut *io), cx, read).map(|n| n.unwrap_or(0))
        });
        let more = async {
            tokio::select! {
                biased;
                n = more => n,
                () = drained(&downstream.drain, http.drain_timeout), if quiet => 0,
            }
        };
        match within(limit, more).await {
            Some(n) if n > 0 => {}
            // HTTP/1 answers a partial head that times out.
            None if !read.is_empty() => return Some(false),
            _ => return None,
        }
    }
}

/// Waits until draining began, and then as long as a connection may be idle meanwhile: for `window`, or a little longer.
async fn drained(drain: &Registration, window: Duration) {
    let since = std::future::poll_fn(|cx| match drain.poll_draining(cx) {
        Some(since) => std::task::Poll::Ready(since),
        None => std::task::Poll::Pending,
    });
    tokio::time::sleep_until(drain.patience(since.await, window)).await;
}
