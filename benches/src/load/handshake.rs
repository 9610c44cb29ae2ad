//! A connection by mutual TLS 1.3 for every request: what handshakes cost.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind, NamedGroup};
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::TlsConnector;

use super::{Options, h1};
use crate::floor::{self, TlsFiles};

/// Tickets that one client keeps; it needs one at a time.
const TICKETS: usize = 4;

/// What is negotiated. A handshake with another outcome is a failed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// X25519, both certificates.
    Full,
    /// X25519MLKEM768, both certificates.
    Hybrid,
    /// X25519, and a ticket of the connection before in the place of certificates.
    Resumed,
}

impl Kind {
    fn group(self) -> NamedGroup {
        if self == Self::Hybrid { NamedGroup::X25519MLKEM768 } else { NamedGroup::X25519 }
    }

    fn handshake(self) -> HandshakeKind {
        if self == Self::Resumed { HandshakeKind::Resumed } else { HandshakeKind::Full }
    }
}

/// How every connection of a run shakes hands.
#[derive(Debug, Clone)]
pub struct Handshake {
    kind: Kind,
    config: ClientConfig,
    name: ServerName<'static>,
}

impl Handshake {
    /// The client `a` of the certificates in `folder`, towards the server `b`.
    ///
    /// # Errors
    /// A certificate or key cannot be read.
    pub fn new(kind: Kind, folder: &Path) -> anyhow::Result<Self> {
        let [certificate, key, authority] = ["a.pem", "a.key", "ca.pem"].map(|file| folder.join(file));
        let server_name = "b.bench";
        let files = TlsFiles { certificate: &certificate, key: &key, authority: &authority, server_name };
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups =
            vec![if kind == Kind::Hybrid { kx_group::X25519MLKEM768 } else { kx_group::X25519 }];
        let config = floor::client_config(&files, Arc::new(provider), b"http/1.1")?;
        Ok(Self { kind, config, name: server_name.try_into()? })
    }

    /// One client's own: whoever makes one connection after the other always has the ticket of the one before.
    fn connector(&self) -> TlsConnector {
        let mut config = self.config.clone();
        config.resumption = match self.kind {
            Kind::Resumed => Resumption::in_memory_sessions(TICKETS),
            Kind::Full | Kind::Hybrid => Resumption::disabled(),
        };
        TlsConnector::from(Arc::new(config))
    }
}

pub(super) struct Client {
    target: SocketAddr,
    request: Vec<u8>,
    buffer: Vec<u8>,
    connector: TlsConnector,
    name: ServerName<'static>,
    kind: Kind,
}

impl Client {
    /// Makes a first connection, which also brings the first ticket.
    pub(super) async fn connect(handshake: &Handshake, options: &Options) -> anyhow::Result<Self> {
        let mut client = Self {
            target: options.target,
            request: h1::request(options),
            buffer: vec![0; h1::BUFFER],
            connector: handshake.connector(),
            name: handshake.name.clone(),
            kind: handshake.kind,
        };
        client.exchange().await?;
        Ok(client)
    }

    /// Whether there is anybody to connect to.
    pub(super) async fn reconnect(&mut self) -> anyhow::Result<()> {
        h1::open(self.target).await.map(drop)
    }

    pub(super) async fn request(&mut self) -> anyhow::Result<u64> {
        let (body, negotiated) = self.exchange().await?;
        let wanted = (Some(self.kind.handshake()), Some(self.kind.group()));
        ensure!(negotiated == wanted, "negotiated {negotiated:?} instead of {wanted:?}");
        Ok(body)
    }

    /// One connection, from the first packet to the last; the length of the answer, and what the handshake came to.
    async fn exchange(&mut self) -> anyhow::Result<(u64, Negotiated)> {
        let stream = h1::open(self.target).await?;
        let mut stream = self.connector.connect(self.name.clone(), stream).await.context("handshake")?;
        let head = h1::exchange(&mut stream, &self.request, &mut self.buffer).await?;
        let connection = stream.get_ref().1;
        let group = connection.negotiated_key_exchange_group().map(|group| group.name());
        let negotiated = (connection.handshake_kind(), group);
        stream.shutdown().await.context("close")?;
        Ok((head.body_of_success()?, negotiated))
    }
}

type Negotiated = (Option<HandshakeKind>, Option<NamedGroup>);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::load::{self, Mode, Protocol};

    /// Answers one request on every connection.
    async fn server(folder: &Path) -> SocketAddr {
        let [certificate, key, authority] = ["b.pem", "b.key", "ca.pem"].map(|file| folder.join(file));
        let files =
            TlsFiles { certificate: &certificate, key: &key, authority: &authority, server_name: "b.bench" };
        let acceptor = TlsAcceptor::from(floor::server_config(&files, b"http/1.1").unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::task::spawn_local(async move {
                    let mut stream = acceptor.accept(stream).await.unwrap();
                    let mut request = [0; 256];
                    assert!(stream.read(&mut request).await.unwrap() > 0);
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                    // The client closes first.
                    let _ = stream.read(&mut request).await;
                });
            }
        });
        address
    }

    #[tokio::test(flavor = "local")]
    async fn every_request_is_a_handshake_of_its_kind() {
        let folder = tempfile::tempdir().unwrap();
        crate::compare::certs::write(folder.path()).unwrap();
        let target = server(folder.path()).await;
        for kind in [Kind::Full, Kind::Hybrid, Kind::Resumed] {
            let options = Options {
                target,
                protocol: Protocol::H1,
                handshake: Some(Handshake::new(kind, folder.path()).unwrap()),
                mode: Mode::Closed,
                connections: 2,
                streams: 1,
                authority: "b.bench".into(),
                path: "/".into(),
                warmup: Duration::ZERO,
                window: Duration::from_millis(200),
            };
            let report = load::run(&options, &mut |_| {}).await.unwrap();
            assert!(report.ok > 1 && report.errors == 0, "{kind:?}: {report:?}");
        }
    }

    #[tokio::test(flavor = "local")]
    async fn another_outcome_is_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        crate::compare::certs::write(folder.path()).unwrap();
        let target = server(folder.path()).await;
        let options = Options {
            target,
            protocol: Protocol::H1,
            handshake: None,
            mode: Mode::Closed,
            connections: 1,
            streams: 1,
            authority: "b.bench".into(),
            path: "/".into(),
            warmup: Duration::ZERO,
            window: Duration::ZERO,
        };
        let full = Handshake::new(Kind::Full, folder.path()).unwrap();
        let mut client = Client::connect(&full, &options).await.unwrap();
        client.kind = Kind::Resumed;
        let error = client.request().await.unwrap_err();
        assert!(error.to_string().contains("instead of (Some(Resumed)"), "{error}");
    }
}
