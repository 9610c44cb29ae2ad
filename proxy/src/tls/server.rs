//! TLS towards downstream.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use super::error::{TlsError, TlsFailure};
use super::material::OwnCertificate;
use super::resumption::Tickets;
use super::secret::Secret;
use super::verify::{PeerPolicy, PeerRules, Verifier};
use super::{TlsParams, TlsSession, unix_now};

/// The stream of an accepted TLS connection.
pub type ServerStream<IO> = tokio_rustls::server::TlsStream<IO>;

/// What does not change when certificates do.
#[derive(Debug, Clone)]
pub struct ServerParams {
    /// Versions, ciphers, ALPN.
    pub tls: TlsParams,
    /// `require_client_certificate`.
    pub require_client_certificate: bool,
    /// `require_sni`.
    pub require_sni: bool,
    /// `full_scan_certs_on_sni_mismatch`.
    pub full_scan: bool,
    /// `prefer_client_ciphers`.
    pub prefer_client_ciphers: bool,
    /// `session_timeout`, default 2 h; None is no resumption at all.
    pub session_timeout: Option<Duration>,
}

impl Default for ServerParams {
    fn default() -> Self {
        Self {
            tls: TlsParams::default(),
            require_client_certificate: false,
            require_sni: false,
            full_scan: false,
            prefer_client_ciphers: false,
            session_timeout: Some(Duration::from_secs(2 * 3600)),
        }
    }
}

/// A compiled `DownstreamTlsContext`. Its certificates and its trust are secrets, which change while connections are
/// being accepted: a handshake uses what it began with.
#[derive(Debug)]
pub struct ServerTls {
    params: ServerParams,
    certificates: Vec<Arc<Secret<OwnCertificate>>>,
    peers: Option<PeerRules>,
    /// Made by the first handshake, and again by the first after a secret has changed.
    state: ArcSwapOption<State>,
}

#[derive(Debug)]
struct State {
    certificates: Arc<Certificates>,
    peers: Option<PeerPolicy>,
    tickets: Option<Arc<Tickets>>,
    config: Arc<ServerConfig>,
    /// The same without ALPN, for clients that offer none of our protocols: as in Envoy they go on without one.
    without_alpn: Arc<ServerConfig>,
}

impl ServerTls {
    /// Builds a context. `peers` is None when no certificate is asked of clients.
    ///
    /// # Errors
    /// rustls refuses the combination, such as a version without a cipher suite.
    pub fn new(
        params: ServerParams,
        certificates: Vec<Arc<Secret<OwnCertificate>>>,
        peers: Option<PeerRules>,
    ) -> Result<Self, rustls::Error> {
        ServerConfig::builder_with_provider(Arc::clone(&params.tls.provider))
            .with_protocol_versions(params.tls.versions)?;
        Ok(Self { params, certificates, peers, state: ArcSwapOption::empty() })
    }

    /// The parameters that it was built with.
    #[must_use]
    pub fn params(&self) -> &ServerParams {
        &self.params
    }

    /// Whether all its secrets have come.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.certificates.iter().all(|secret| secret.is_there())
            && self.peers.as_ref().is_none_or(|peers| peers.trust.is_there())
    }

    /// The certificates that new handshakes show, those that have come.
    pub fn certificates(&self) -> impl Iterator<Item = Arc<OwnCertificate>> {
        self.certificates.iter().filter_map(|secret| secret.get())
    }

    /// The secrets of [`Self::certificates`].
    pub fn secrets(&self) -> impl Iterator<Item = &Arc<Secret<OwnCertificate>>> {
        self.certificates.iter()
    }

    /// What clients are verified by.
    #[must_use]
    pub const fn peers(&self) -> Option<&PeerRules> {
        self.peers.as_ref()
    }

    /// What a handshake that begins now uses.
    fn state(&self) -> Result<Arc<State>, TlsError> {
        let old = self.state.load_full();
        if let Some(old) = &old
            && self.is_current(old)
        {
            return Ok(Arc::clone(old));
        }
        let own = self.certificates.iter().map(|secret| secret.get().ok_or_else(|| missing(secret.name())));
        let own = own.collect::<Result<Vec<_>, _>>()?;
        let peers = self.peers.as_ref().map(|rules| rules.now().ok_or_else(|| missing(rules.trust.name())));
        let peers = peers.transpose()?;
        // Sessions outlive a new certificate of ours. Those that an old trust allowed must not be resumed under a new one.
        let tickets = match (&old, self.params.session_timeout) {
            (Some(old), _) if same_trust(old.peers.as_ref(), peers.as_ref()) => old.tickets.clone(),
            (_, timeout) => timeout.map(Tickets::new).transpose()?,
        };
        let certificates = Arc::new(Certificates::new(own, &self.params));
        let state = Arc::new(State::build(&self.params, certificates, peers, tickets)?);
        self.state.store(Some(Arc::clone(&state)));
        Ok(state)
    }

    fn is_current(&self, state: &State) -> bool {
        let mut own = self.certificates.iter().zip(&state.certificates.list);
        own.all(|(secret, used)| secret.is(used))
            && match (&self.peers, &state.peers) {
                (Some(rules), Some(used)) => rules.trust.is(&used.trust),
                _ => true,
            }
    }

    /// The rustls configuration of new handshakes.
    ///
    /// # Errors
    /// A secret has not come.
    pub fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        Ok(Arc::clone(&self.state()?.config))
    }

    /// Shakes hands. `first` is what detection has read from `io` already; the stream afterwards is on `io` itself.
    /// The caller sets the time limit (`transport_socket_connect_timeout`).
    ///
    /// # Errors
    /// The handshake failed; the peer got an alert where it can understand one.
    pub async fn accept<IO>(
        &self,
        mut io: IO,
        first: &[u8],
    ) -> Result<(ServerStream<IO>, TlsSession), TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let mut acceptor = Acceptor::default();
        let mut rest = first;
        while !rest.is_empty() {
            acceptor.read_tls(&mut rest).map_err(|e| TlsError::new(TlsFailure::Protocol, e.to_string()))?;
        }
        let start = match acceptor.accept() {
            Ok(Some(accepted)) => StartHandshake::from_parts(accepted, io),
            Ok(None) => LazyConfigAcceptor::new(acceptor, io).await?,
            Err((error, mut alert)) => {
                let mut bytes = Vec::new();
                if alert.write_all(&mut bytes).is_ok() {
                    let _ = io.write_all(&bytes).await;
                }
                return Err(error.into());
            }
        };
        self.finish(start).await
    }

    async fn finish<IO>(&self, start: StartHandshake<IO>) -> Result<(ServerStream<IO>, TlsSession), TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let (config, verified) = {
            let state = self.state()?;
            let verified = state.peers.as_ref().is_some_and(PeerPolicy::verifies);
            (state.config_for(&start.client_hello()), verified)
        };
        let stream = start.into_stream(config).await?;
        let connection = stream.get_ref().1;
        let sni = connection.server_name().map(Arc::from);
        let session = TlsSession::read(connection, sni, verified, unix_now())?;
        Ok((stream, session))
    }
}

fn same_trust(a: Option<&PeerPolicy>, b: Option<&PeerPolicy>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(&a.trust, &b.trust),
        (None, None) => true,
        _ => false,
    }
}

/// A handshake needs a secret that has not come.
pub(super) fn missing(name: &str) -> TlsError {
    TlsError::new(TlsFailure::SecretMissing, format!("the secret {name:?} has not come"))
}

impl State {
    fn build(
        params: &ServerParams,
        certificates: Arc<Certificates>,
        peers: Option<PeerPolicy>,
        tickets: Option<Arc<Tickets>>,
    ) -> Result<Self, rustls::Error> {
        let provider = &params.tls.provider;
        let verifier: Arc<dyn ClientCertVerifier> = match &peers {
            None => WebPkiClientVerifier::no_client_auth(),
            Some(policy) => {
                let mandatory = params.require_client_certificate;
                Arc::new(Verifier::of_clients(policy.clone(), provider, mandatory))
            }
        };
        let resolver = Arc::clone(&certificates);
        let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(params.tls.versions)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(resolver);
        config.ignore_client_order = !params.prefer_client_ciphers;
        // Tickets carry the session, so that it resumes on every worker; nothing is stored here.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        match &tickets {
            Some(tickets) => config.ticketer = Arc::<Tickets>::clone(tickets),
            None => config.send_tls13_tickets = 0,
        }
        let without_alpn = Arc::new(config.clone());
        config.alpn_protocols.clone_from(&params.tls.alpn);
        Ok(Self { certificates, peers, tickets, config: Arc::new(config), without_alpn })
    }

    fn config_for(&self, hello: &ClientHello<'_>) -> Arc<ServerConfig> {
        let ours = &self.config.alpn_protocols;
        let common = match hello.alpn() {
            Some(mut theirs) => theirs.any(|t| ours.iter().any(|o| o == t)),
            None => true,
        };
        Arc::clone(if common { &self.config } else { &self.without_alpn })
    }
}

/// Chooses among `tls_certificates` by server name and by what the client can verify, as Envoy does: a certificate for
/// exactly the name, then one with a wildcard, then the first; ECDSA before others.
#[derive(Debug)]
struct Certificates {
    list: Vec<Arc<OwnCertificate>>,
    require_sni: bool,
    full_scan: bool,
}

impl Certificates {
    fn new(list: Vec<Arc<OwnCertificate>>, params: &ServerParams) -> Self {
        Self { list, require_sni: params.require_sni, full_scan: params.full_scan }
    }

    fn choose(&self, sni: Option<&str>, usable: impl Fn(&OwnCertificate) -> bool) -> Option<&OwnCertificate> {
        let best = |fits: &dyn Fn(&OwnCertificate) -> bool| {
            let fitting = || self.list.iter().map(|c| &**c).filter(|c| fits(c) && usable(c));
            fitting().find(|c| c.is_ecdsa()).or_else(|| fitting().next())
        };
        if let Some(sni) = sni {
            let exact = best(&|c| c.names.iter().any(|n| n.eq_ignore_ascii_case(sni)));
            let named = exact.or_else(|| best(&|c| c.names.iter().any(|n| wildcard_covers(n, sni))));
            if named.is_some() {
                return named;
            }
        }
        let first = self.list.first().map(|c| &**c).filter(|c| !self.full_scan && usable(c));
        // A client that cannot use the first certificate still gets one that it can.
        first.or_else(|| best(&|_| true))
    }
}

fn wildcard_covers(name: &str, host: &str) -> bool {
    let parent = host.split_once('.').map(|(_, parent)| parent);
    name.strip_prefix("*.").zip(parent).is_some_and(|(a, b)| a.eq_ignore_ascii_case(b))
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let sni = hello.server_name();
        if self.require_sni && sni.is_none() {
            return None;
        }
        if let [only] = self.list.as_slice() {
            return Some(Arc::clone(&only.key));
        }
        let schemes = hello.signature_schemes();
        let chosen = self.choose(sni, |c| c.key.key.choose_scheme(schemes).is_some())?;
        Some(Arc::clone(&chosen.key))
    }
}
