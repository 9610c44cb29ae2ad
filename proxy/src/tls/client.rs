//! TLS towards upstream.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use rustls::ClientConfig;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{DnsName, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::error::{TlsError, TlsFailure};
use super::material::OwnCertificate;
use super::resumption::LazySessions;
use super::verify::{PeerPolicy, Verifier};
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

/// A compiled `UpstreamTlsContext`. Certificates and trust can be replaced while connections are being made.
#[derive(Debug)]
pub struct ClientTls {
    params: ClientParams,
    state: ArcSwap<State>,
}

#[derive(Debug)]
struct State {
    certificate: Option<OwnCertificate>,
    peers: Arc<PeerPolicy>,
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
        certificate: Option<OwnCertificate>,
        peers: Arc<PeerPolicy>,
    ) -> Result<Self, rustls::Error> {
        let state = ArcSwap::from_pointee(State::build(&params, certificate, peers)?);
        Ok(Self { params, state })
    }

    /// New handshakes show `certificate` and verify by `peers`. Kept sessions are forgotten. Called by one task at a
    /// time.
    ///
    /// # Errors
    /// As for [`Self::new`]; nothing has changed then.
    pub fn replace(
        &self,
        certificate: Option<OwnCertificate>,
        peers: Arc<PeerPolicy>,
    ) -> Result<(), rustls::Error> {
        self.state.store(Arc::new(State::build(&self.params, certificate, peers)?));
        Ok(())
    }

    /// The parameters that it was built with.
    #[must_use]
    pub fn params(&self) -> &ClientParams {
        &self.params
    }

    /// The certificate that new handshakes show.
    #[must_use]
    pub fn certificate(&self) -> Option<OwnCertificate> {
        self.state.load().certificate.clone()
    }

    /// What servers are verified by.
    #[must_use]
    pub fn peers(&self) -> Arc<PeerPolicy> {
        Arc::clone(&self.state.load().peers)
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
            let state = self.state.load();
            let variants = if by_name { &state.by_name } else { &state.by_sans };
            (variants.config(target.alpn), state.peers.roots.is_some())
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
        certificate: Option<OwnCertificate>,
        peers: Arc<PeerPolicy>,
    ) -> Result<Self, rustls::Error> {
        let by_sans = Variants::build(params, certificate.as_ref(), &peers, false)?;
        let by_name = Variants::build(params, certificate.as_ref(), &peers, true)?;
        Ok(Self { certificate, peers, by_sans, by_name })
    }
}

impl Variants {
    fn build(
        params: &ClientParams,
        certificate: Option<&OwnCertificate>,
        peers: &Arc<PeerPolicy>,
        by_name: bool,
    ) -> Result<Self, rustls::Error> {
        let provider = &params.tls.provider;
        let verifier = Arc::new(Verifier::of_server(Arc::clone(peers), provider, by_name));
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
