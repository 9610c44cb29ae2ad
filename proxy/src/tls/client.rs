//! TLS towards upstream.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use rustls::ClientConfig;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{DnsName, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::error::{TlsError, TlsFailure};
use super::material::OwnCertificate;
use super::resumption::LazySessions;
use super::secret::Secret;
use super::server::missing;
use super::verify::{PeerPolicy, PeerRules, Verifier};
use super::{TlsParams, TlsSession, unix_now};

/// The stream of a TLS connection to an endpoint.
pub type ClientStream<IO> = tokio_rustls::client::TlsStream<IO>;

/// What does not change when certificates do.
#[derive(Debug, Clone)]
pub struct ClientParams {
    /// Versions, ciphers, ALPN.
    pub tls: TlsParams,
    /// `sni`.
    pub sni: Option<DnsName<'static>>,
    /// `auto_host_sni`: the caller gives the endpoint's hostname as [`Target::host`].
    pub auto_host_sni: bool,
    /// `auto_sni_san_validation`: the certificate must be for the name that was sent.
    pub verify_sni: bool,
    /// How many servers' sessions are kept; 0 is no resumption (`max_session_keys: 0`).
    pub sessions: usize,
}

impl Default for ClientParams {
    fn default() -> Self {
        Self { tls: TlsParams::default(), sni: None, auto_host_sni: false, verify_sni: false, sessions: 32 }
    }
}

/// What to offer by ALPN when the context has no `alpn_protocols` of its own (those win, as in Envoy).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlpnOffer {
    /// No ALPN.
    Nothing,
    /// `h2`.
    Http2,
    /// `http/1.1`.
    Http1,
    /// `h2`, `http/1.1`.
    Any,
}

impl AlpnOffer {
    const COUNT: usize = 4;

    fn protocols(self) -> Vec<Vec<u8>> {
        match self {
            Self::Nothing => vec![],
            Self::Http2 => vec![b"h2".to_vec()],
            Self::Http1 => vec![b"http/1.1".to_vec()],
            Self::Any => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        }
    }
}

/// Whom to connect to.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The endpoint.
    pub address: SocketAddr,
    /// Send this name instead of `sni`: the downstream host under `auto_sni`, the endpoint's hostname under
    /// `auto_host_sni`. A port after it is cut off; what is no DNS name (an IP address) is not sent (RFC 6066 §3).
    pub host: Option<&'a str>,
    /// `auto_san_validation`: the certificate must be for the name, instead of matching the configured names.
    pub verify_host: bool,
    /// ALPN, when the context does not say.
    pub alpn: AlpnOffer,
}

impl Target<'_> {
    /// A target by address alone.
    #[must_use]
    pub const fn new(address: SocketAddr, alpn: AlpnOffer) -> Self {
        Self { address, host: None, verify_host: false, alpn }
    }
}

/// A compiled `UpstreamTlsContext`. Its certificate and its trust are secrets, which change while connections are being
/// made.
#[derive(Debug)]
pub struct ClientTls {
    params: ClientParams,
    certificate: Option<Arc<Secret<OwnCertificate>>>,
    peers: PeerRules,
    /// Made by the first handshake, and again by the first after a secret has changed: most of a mesh's thousands of
    /// contexts never have one.
    state: ArcSwapOption<State>,
}

#[derive(Debug)]
struct State {
    certificate: Option<Arc<OwnCertificate>>,
    peers: PeerPolicy,
    /// Checked against the configured names, and against the connection's own name. Each has its own sessions: one
    /// made under the weaker check must not be resumed under the other.
    by_sans: Variants,
    by_name: Variants,
}

#[derive(Debug)]
struct Variants {
    base: ClientConfig,
    offers: [OnceLock<Arc<ClientConfig>>; AlpnOffer::COUNT],
}

impl ClientTls {
    /// Builds a context.
    ///
    /// # Errors
    /// rustls refuses the combination, such as a version without a cipher suite.
    pub fn new(
        params: ClientParams,
        certificate: Option<Arc<Secret<OwnCertificate>>>,
        peers: PeerRules,
    ) -> Result<Self, rustls::Error> {
        ClientConfig::builder_with_provider(Arc::clone(&params.tls.provider))
            .with_protocol_versions(params.tls.versions)?;
        Ok(Self { params, certificate, peers, state: ArcSwapOption::empty() })
    }

    /// The parameters that it was built with.
    #[must_use]
    pub fn params(&self) -> &ClientParams {
        &self.params
    }

    /// Whether all its secrets have come.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.certificate.as_ref().is_none_or(|secret| secret.is_there()) && self.peers.trust.is_there()
    }

    /// The certificate that new handshakes show.
    #[must_use]
    pub fn certificate(&self) -> Option<Arc<OwnCertificate>> {
        self.certificate.as_ref()?.get()
    }

    /// The secret of [`Self::certificate`].
    #[must_use]
    pub const fn secret(&self) -> Option<&Arc<Secret<OwnCertificate>>> {
        self.certificate.as_ref()
    }

    /// What servers are verified by.
    #[must_use]
    pub const fn peers(&self) -> &PeerRules {
        &self.peers
    }

    /// What a handshake that begins now uses. Kept sessions are forgotten when a secret has changed.
    fn state(&self) -> Result<Arc<State>, TlsError> {
        if let Some(state) = self.state.load_full()
            && self.is_current(&state)
        {
            return Ok(state);
        }
        let own = self.certificate.as_ref().map(|secret| secret.get().ok_or_else(|| missing(secret.name())));
        let peers = self.peers.now().ok_or_else(|| missing(self.peers.trust.name()))?;
        let state = Arc::new(State::build(&self.params, own.transpose()?, peers)?);
        self.state.store(Some(Arc::clone(&state)));
        Ok(state)
    }

    fn is_current(&self, state: &State) -> bool {
        self.peers.trust.is(&state.peers.trust)
            && match (&self.certificate, &state.certificate) {
                (Some(secret), Some(used)) => secret.is(used),
                _ => true,
            }
    }

    /// Shakes hands with an endpoint over `io`. The caller sets the time limit (`connect_timeout`).
    ///
    /// # Errors
    /// The handshake failed, or a name had to be verified and there is none.
    pub async fn connect<IO>(
        &self,
        io: IO,
        target: Target<'_>,
    ) -> Result<(ClientStream<IO>, TlsSession), TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let by_name = target.verify_host || self.params.verify_sni;
        let name = self.server_name(&target, by_name)?;
        let sni = match &name {
            ServerName::DnsName(name) => Some(Arc::from(name.as_ref())),
            _ => None,
        };
        let (config, verified) = {
            let state = self.state()?;
            let variants = if by_name { &state.by_name } else { &state.by_sans };
            (variants.config(target.alpn), state.peers.verifies())
        };
        let stream = TlsConnector::from(config).connect(name, io).await?;
        let session = TlsSession::read(stream.get_ref().1, sni, verified, unix_now())?;
        Ok((stream, session))
    }

    /// The name to send. Without one, the endpoint's address: rustls does not send it, and keeps sessions by it.
    fn server_name(&self, target: &Target<'_>, by_name: bool) -> Result<ServerName<'static>, TlsError> {
        if let Some(host) = target.host.map(without_port) {
            if let Ok(name) = DnsName::try_from(host) {
                return Ok(ServerName::DnsName(name.to_owned()));
            }
            if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
                return Ok(ServerName::IpAddress(ip.into()));
            }
        }
        match &self.params.sni {
            Some(sni) => Ok(ServerName::DnsName(sni.clone())),
            None if by_name => {
                let detail = "the certificate is to be checked against the server name, and there is none";
                Err(TlsError::new(TlsFailure::NoServerName, detail))
            }
            None => Ok(ServerName::IpAddress(target.address.ip().into())),
        }
    }
}

/// `host` of `host:port` and of `[v6]:port`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.contains(':') => name,
        Some((name, _)) if name.ends_with(']') => name,
        _ => host,
    }
}

impl State {
    fn build(
        params: &ClientParams,
        certificate: Option<Arc<OwnCertificate>>,
        peers: PeerPolicy,
    ) -> Result<Self, rustls::Error> {
        let by_sans = Variants::build(params, certificate.as_deref(), &peers, false)?;
        let by_name = Variants::build(params, certificate.as_deref(), &peers, true)?;
        Ok(Self { certificate, peers, by_sans, by_name })
    }
}

impl Variants {
    fn build(
        params: &ClientParams,
        certificate: Option<&OwnCertificate>,
        peers: &PeerPolicy,
        by_name: bool,
    ) -> Result<Self, rustls::Error> {
        let provider = &params.tls.provider;
        let verifier = Arc::new(Verifier::of_server(peers.clone(), provider, by_name));
        let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(params.tls.versions)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut base = match certificate {
            None => builder.with_no_client_auth(),
            Some(own) => builder.with_client_cert_resolver(client_key(&own.key)),
        };
        base.resumption = match params.sessions {
            0 => Resumption::disabled(),
            limit => Resumption::store(Arc::new(LazySessions::new(limit))),
        };
        base.alpn_protocols.clone_from(&params.tls.alpn);
        Ok(Self { base, offers: Default::default() })
    }

    fn config(&self, offer: AlpnOffer) -> Arc<ClientConfig> {
        let offer = if self.base.alpn_protocols.is_empty() { offer } else { AlpnOffer::Nothing };
        let made = self.offers[offer as usize].get_or_init(|| {
            let mut config = self.base.clone();
            if config.alpn_protocols.is_empty() {
                config.alpn_protocols = offer.protocols();
            }
            Arc::new(config)
        });
        Arc::clone(made)
    }
}

fn client_key(key: &Arc<CertifiedKey>) -> Arc<dyn ResolvesClientCert> {
    Arc::new(SingleCertAndKey::from(CertifiedKey::clone(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_cut_off_hosts() {
        for (host, name) in [
            ("a.example", "a.example"),
            ("a.example:443", "a.example"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("::1", "::1"),
            ("", ""),
        ] {
            assert_eq!(without_port(host), name, "{host}");
        }
    }
}
