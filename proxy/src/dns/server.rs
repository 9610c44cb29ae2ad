//! UDP and TCP of a DNS listener.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::DnsFilterSpec;
use super::exchange::framed;
use super::forward::{Forwarder, Looked, Resolved, Waiting};
use super::stats::{Count, Stats};
use super::table::Domain;
use super::wire::{self, NotAQuery, Query, code, kind};

/// TCP connections of a listener at the same time.
const CONNECTIONS: usize = 64;
/// How long a TCP client may take for its next question, or for taking an answer (RFC 7766 §6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// After an error that is the socket's, not a client's.
const PAUSE: Duration = Duration::from_millis(50);

/// A DNS listener: what its sockets share.
#[derive(Debug)]
pub struct Service {
    spec: ArcSwap<DnsFilterSpec>,
    forwarder: Arc<Forwarder>,
    stats: Arc<Stats>,
    connections: Semaphore,
}

/// What becomes of a message.
enum Taken {
    Ignored,
    Answered(Vec<u8>),
    Asked(Pending),
}

/// A question that is under way.
struct Pending {
    query: Query,
    exists: bool,
    waiting: Waiting,
}

impl Service {
    /// For a listener at these addresses.
    #[must_use]
    pub fn new(spec: Arc<DnsFilterSpec>, stats: Arc<Stats>, own: Vec<SocketAddr>) -> Arc<Self> {
        Arc::new(Self {
            spec: ArcSwap::new(spec),
            forwarder: Forwarder::new(Arc::clone(&stats), own),
            stats,
            connections: Semaphore::new(CONNECTIONS),
        })
    }

    /// Follows the configuration. What is cached stays, unless others are asked from now on.
    pub fn follow(&self, spec: &Arc<DnsFilterSpec>) {
        let old = self.spec.swap(Arc::clone(spec));
        let servers = |spec: &DnsFilterSpec| spec.forward.as_ref().map(|forward| forward.servers.clone());
        if servers(&old) != servers(spec) {
            self.forwarder.forget();
        }
    }

    fn take(&self, message: &[u8]) -> Taken {
        let query = match Query::read(message) {
            Ok(query) => query,
            Err(refused) => {
                self.stats.count(Count::Invalid);
                return match refused {
                    NotAQuery::Silence => Taken::Ignored,
                    NotAQuery::Answer(answer) => Taken::Answered(answer),
                };
            }
        };
        self.stats.count(Count::Queries);
        match query.key.kind {
            kind::A => self.stats.count(Count::A),
            kind::AAAA => self.stats.count(Count::Aaaa),
            _ => {}
        }
        let spec = self.spec.load();
        let domain = spec.table.find(&query.key.name).filter(|_| query.key.class == wire::IN);
        if let Some(answer) = domain.and_then(|domain| self.local(&query, domain)) {
            return Taken::Answered(answer);
        }
        let exists = domain.is_some();
        let Some(forward) = &spec.forward else {
            return Taken::Answered(query.answer(if exists { code::NO_ERROR } else { code::NX_DOMAIN }));
        };
        match self.forwarder.look(&query.key, forward, Instant::now()) {
            Looked::Now(resolved) => Taken::Answered(self.resolved(&query, &resolved, exists)),
            Looked::Later(waiting) => Taken::Asked(Pending { query, exists, waiting }),
        }
    }

    /// The answer from the table. None for types that it does not have.
    fn local(&self, query: &Query, domain: &Domain) -> Option<Vec<u8>> {
        self.stats.count(Count::Known);
        let (addresses, count) = match query.key.kind {
            kind::A => (&domain.v4[..], Count::LocalA),
            kind::AAAA => (&domain.v6[..], Count::LocalAaaa),
            // How to speak to it is the mesh's to know.
            kind::SVCB | kind::HTTPS => return Some(query.answer(code::NO_ERROR)),
            _ => return None,
        };
        self.stats.add(count, addresses.len());
        Some(query.addresses(addresses, domain.ttl))
    }

    fn resolved(&self, query: &Query, resolved: &Resolved, exists: bool) -> Vec<u8> {
        match resolved {
            Resolved::Answer(reply, left) => {
                self.stats.count(Count::External);
                reply.answer(query, *left, exists)
            }
            Resolved::Failed => query.answer(code::SERV_FAIL),
        }
    }

    async fn finish(&self, pending: Pending) -> (Query, Vec<u8>) {
        let Pending { query, exists, waiting } = pending;
        let resolved = waiting.answer().await;
        let answer = self.resolved(&query, &resolved, exists);
        (query, answer)
    }
}

/// Answers datagrams until it is dropped.
pub async fn serve_udp(service: Arc<Service>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    // A question is far shorter; what is cut is malformed.
    let mut buffer = vec![0; 4096];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(got) => got,
            Err(error) => {
                // What ICMP says of an answer that nobody took is told here, too.
                if error.kind() != io::ErrorKind::ConnectionRefused {
                    tracing::debug!(%error, "DNS: a datagram cannot be received");
                    tokio::time::sleep(PAUSE).await;
                }
                continue;
            }
        };
        let message = &buffer[..length];
        match service.take(message) {
            Taken::Ignored => {}
            Taken::Answered(answer) => {
                let answer = fitting(&service, message, answer);
                send(&service, &socket, peer, &answer).await;
            }
            Taken::Asked(pending) => {
                // It does not keep the socket open, which would take questions that nobody reads.
                let (service, socket) = (Arc::clone(&service), Arc::downgrade(&socket));
                // Their number is bounded: `max_pending_lookups`.
                tokio::spawn(async move {
                    let (query, answer) = service.finish(pending).await;
                    let answer = short_enough(&service, &query, answer);
                    if let Some(socket) = socket.upgrade() {
                        send(&service, &socket, peer, &answer).await;
                    }
                });
            }
        }
    }
}

async fn send(service: &Service, socket: &UdpSocket, peer: SocketAddr, answer: &[u8]) {
    match socket.send_to(answer, peer).await {
        Ok(_) => service.stats.count(Count::Responses),
        Err(error) => tracing::debug!(%peer, %error, "DNS: an answer cannot be sent"),
    }
}

/// Cuts what does not fit into a datagram.
fn short_enough(service: &Service, query: &Query, answer: Vec<u8>) -> Vec<u8> {
    if answer.len() <= query.udp_size() {
        return answer;
    }
    service.stats.count(Count::Truncated);
    query.truncated()
}

/// The same for an answer that was there at once; mostly it is short, and nothing is read again.
fn fitting(service: &Service, message: &[u8], answer: Vec<u8>) -> Vec<u8> {
    if answer.len() <= wire::PLAIN_UDP {
        return answer;
    }
    match Query::read(message) {
        Ok(query) => short_enough(service, &query, answer),
        Err(_) => answer,
    }
}

/// Answers connections until it is dropped.
pub async fn serve_tcp(service: Arc<Service>, listener: TcpListener) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "DNS: a connection cannot be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            let Ok(_permit) = service.connections.try_acquire() else {
                service.stats.count(Count::Refused);
                return;
            };
            if let Err(error) = converse(&service, stream).await {
                tracing::debug!(%error, "DNS: a connection ended badly");
            }
        });
    }
}

/// One question after the other, until the client ends or is idle.
async fn converse(service: &Service, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let message = async {
            let mut message = vec![0; stream.read_u16().await?.into()];
            stream.read_exact(&mut message).await?;
            Ok::<_, io::Error>(message)
        };
        let message = match timeout(IDLE, message).await {
            Ok(Ok(message)) => message,
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(()),
        };
        let answer = match service.take(&message) {
            // Nobody sends that by mistake.
            Taken::Ignored => return Ok(()),
            Taken::Answered(answer) => answer,
            Taken::Asked(pending) => service.finish(pending).await.1,
        };
        match timeout(IDLE, stream.write_all(&framed(&answer))).await {
            Ok(written) => written?,
            Err(_) => return Ok(()),
        }
        service.stats.count(Count::Responses);
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
