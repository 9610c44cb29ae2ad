//! TLS on both sides: rustls with aws-lc, our own verification of the peer's leaf, SPIFFE identities.
//!
//! No protobuf type comes here: [`crate::config::compile::tls`] makes the parameters of [`server::ServerTls`] and
//! [`client::ClientTls`] from Envoy's contexts.

pub mod client;
pub mod domains;
pub mod error;
pub mod identity;
pub mod material;
pub mod pkcs12;
mod resumption;
pub mod secret;
pub mod server;
pub mod verify;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;
use rustls::{CommonState, HandshakeKind, ProtocolVersion, SupportedProtocolVersion};

use self::error::{TlsError, TlsFailure};
use self::identity::PeerIdentity;

/// The crypto of the whole process. Contexts without `cipher_suites` and `ecdh_curves` share it.
static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

/// The process-wide crypto provider (aws-lc).
#[must_use]
pub fn provider() -> &'static Arc<CryptoProvider> {
    &PROVIDER
}

/// What both directions share: `tls_params` and `alpn_protocols`.
#[derive(Debug, Clone)]
pub struct TlsParams {
    /// Cipher suites and groups.
    pub provider: Arc<CryptoProvider>,
    /// TLS 1.2, 1.3 or both.
    pub versions: &'static [&'static SupportedProtocolVersion],
    /// `alpn_protocols`, most wanted first.
    pub alpn: Vec<Vec<u8>>,
}

impl Default for TlsParams {
    fn default() -> Self {
        Self { provider: Arc::clone(provider()), versions: rustls::ALL_VERSIONS, alpn: Vec::new() }
    }
}

/// What a finished handshake established. Made once per connection.
#[derive(Debug, Clone)]
pub struct TlsSession {
    /// TLS version.
    pub version: ProtocolVersion,
    /// The agreed application protocol.
    pub alpn: Option<Box<[u8]>>,
    /// The server name: asked for by the client, or sent by us.
    pub sni: Option<Arc<str>>,
    /// Who the peer is, when it showed a certificate.
    pub peer: Option<Arc<PeerIdentity>>,
    /// An earlier session was resumed: no certificate was exchanged.
    pub resumed: bool,
}

impl TlsSession {
    /// Whether HTTP/2 was agreed on.
    #[must_use]
    pub fn is_h2(&self) -> bool {
        self.alpn.as_deref() == Some(b"h2")
    }

    /// The version as access logs show it.
    #[must_use]
    pub const fn version_name(&self) -> &'static str {
        match self.version {
            ProtocolVersion::TLSv1_2 => "TLSv1.2",
            _ => "TLSv1.3",
        }
    }

    /// Reads the outcome of a handshake. A resumed session whose peer certificate has expired meanwhile is refused:
    /// resumption must not outlive the identity (CVE-2022-21654 class).
    fn read(state: &CommonState, sni: Option<Arc<str>>, verified: bool, now: i64) -> Result<Self, TlsError> {
        let leaf = state.peer_certificates().and_then(<[_]>::first);
        let peer = leaf.map(|leaf| PeerIdentity::of_leaf(leaf, verified)).transpose().map_err(|e| {
            TlsError::new(TlsFailure::CertificateRefused, format!("the peer's certificate: {e}"))
        })?;
        let resumed = state.handshake_kind() == Some(HandshakeKind::Resumed);
        if resumed && verified && peer.as_ref().is_some_and(|p| p.not_after < now) {
            let detail = "the session was resumed after the peer's certificate expired";
            return Err(TlsError::new(TlsFailure::CertificateExpired, detail));
        }
        Ok(Self {
            version: state.protocol_version().unwrap_or(ProtocolVersion::TLSv1_3),
            alpn: state.alpn_protocol().map(Into::into),
            sni,
            peer: peer.map(Arc::new),
            resumed,
        })
    }
}

/// Seconds since 1970.
fn unix_now() -> i64 {
    i64::try_from(rustls_pki_types::UnixTime::now().as_secs()).unwrap_or(i64::MAX)
}
