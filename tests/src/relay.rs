//! A TCP relay in front of a server, for what can go wrong on the way to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::certs::{Authority, Identity};

/// How bytes pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As they come.
    Free,
    /// Not at all: connections are accepted and nothing is read, as by a process that was stopped.
    Stopped,
    /// One byte a second towards the client.
    Trickle,
    /// As over a network that loses so many of a hundred packets: what was lost comes one retransmission timeout late, and what is behind it too.
    Lossy(u8),
}

/// The kernel's shortest retransmission timeout.
const RETRANSMISSION: Duration = Duration::from_millis(200);
/// What fits into a packet.
const PACKET: usize = 1400;

/// Where connections lead.
#[derive(Clone)]
pub struct Way {
    server: SocketAddr,
    tls: Option<TlsAcceptor>,
}

impl Way {
    /// To a server, as it is.
    #[must_use]
    pub const fn to(server: SocketAddr) -> Self {
        Self { server, tls: None }
    }

    /// Behind mutual TLS: the relay shows `identity`, and wants a certificate of `authority`.
    ///
    /// # Panics
    /// When rustls refuses the certificates.
    #[must_use]
    pub fn behind(self, identity: &Identity, authority: &Authority) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).expect("PEM")).expect("root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .expect("verifier");
        let chain = CertificateDer::pem_slice_iter(identity.chain.as_bytes());
        let chain = chain.collect::<Result<_, _>>().expect("chain");
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).expect("key");
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)
            .expect("certificate");
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self { tls: Some(TlsAcceptor::from(Arc::new(config))), ..self }
    }
}

/// The relay. Dropping it closes its connections.
#[derive(Debug)]
pub struct Relay {
    /// Where it listens.
    pub address: SocketAddr,
    pace: watch::Sender<Pace>,
    way: watch::Sender<Way>,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, TLS: {}", self.server, self.tls.is_some())
    }
}

impl Relay {
    /// Starts one.
    ///
    /// # Panics
    /// When no loopback port is free.
    pub async fn start(way: Way) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let (pace, paces) = watch::channel(Pace::Free);
        let (way, ways) = watch::channel(way);
        let task = tokio::spawn(accept(listener, ways, paces));
        Self { address, pace, way, task }
    }

    /// Changes the pace, of open connections too.
    pub fn pace(&self, pace: Pace) {
        self.pace.send_replace(pace);
    }

    /// Leads elsewhere, and closes what is open.
    pub fn lead(&self, way: Way) {
        self.way.send_replace(way);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, mut ways: watch::Receiver<Way>, paces: watch::Receiver<Pace>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { return };
                connections.spawn(relay(client, ways.borrow().clone(), paces.clone()));
            }
            changed = ways.changed() => {
                connections.abort_all();
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// One connection. Its errors are those of its ends, which see them themselves.
async fn relay(client: TcpStream, way: Way, pace: watch::Receiver<Pace>) {
    let Ok(server) = TcpStream::connect(way.server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    match way.tls {
        None => join(client, server, pace).await,
        Some(tls) => {
            if let Ok(client) = tls.accept(client).await {
                join(client, server, pace).await;
            }
        }
    }
}

async fn join(client: impl AsyncRead + AsyncWrite, server: TcpStream, pace: watch::Receiver<Pace>) {
    let (from_client, to_client) = tokio::io::split(client);
    let (from_server, to_server) = server.into_split();
    // An end of either side is the end of both.
    tokio::select! {
        () = carry(from_client, to_server, pace.clone(), Pace::Free) => {}
        () = carry(from_server, to_client, pace, Pace::Trickle) => {}
    }
}

/// Carries bytes in one direction; `slowest` is what a [`Pace::Trickle`] means to it.
async fn carry(from: impl AsyncRead, to: impl AsyncWrite, mut pace: watch::Receiver<Pace>, slowest: Pace) {
    let (mut from, mut to) = (std::pin::pin!(from), std::pin::pin!(to));
    let mut chance = Chance::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        if pace.wait_for(|pace| *pace != Pace::Stopped).await.is_err() {
            return;
        }
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            // It may have changed since.
            let Ok(now) = pace.wait_for(|pace| *pace != Pace::Stopped).await.map(|pace| *pace) else {
                return;
            };
            let slow = now == Pace::Trickle && slowest == Pace::Trickle;
            let most = match now {
                Pace::Lossy(_) => PACKET,
                _ if slow => 1,
                _ => rest.len(),
            };
            let (part, later) = rest.split_at(most.min(rest.len()));
            if let Pace::Lossy(percent) = now {
                while chance.percent() < percent {
                    tokio::time::sleep(RETRANSMISSION).await;
                }
            }
            if to.write_all(part).await.is_err() || to.flush().await.is_err() {
                return;
            }
            rest = later;
            if slow {
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_secs(1)) => {}
                    _ = pace.changed() => {}
                }
            }
        }
    }
}

/// Which packets are lost (SplitMix64): others for each direction of each connection.
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        static CARRIERS: AtomicU64 = AtomicU64::new(0);
        Self(CARRIERS.fetch_add(1, Ordering::Relaxed) << 32)
    }

    /// Below 100.
    fn percent(&mut self) -> u8 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        u8::try_from((mixed ^ (mixed >> 27)) % 100).unwrap_or(0)
    }
}
