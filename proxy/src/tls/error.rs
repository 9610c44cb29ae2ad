//! Why a handshake failed, in a closed set that logs and metrics can count.

use std::io;

use rustls::{AlertDescription, CertificateError, Error as Rustls};

macro_rules! failures {
    ($(#[doc = $doc:literal] $name:ident = $id:literal;)+) => {
        /// Kind of a failed handshake.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum TlsFailure { $(#[doc = $doc] $name,)+ }

        impl TlsFailure {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// Stable id for logs and metrics.
            #[must_use]
            pub const fn id(self) -> &'static str { match self { $(Self::$name => $id,)+ } }

            /// One sentence for a person.
            #[must_use]
            pub const fn explain(self) -> &'static str { match self { $(Self::$name => $doc.trim_ascii(),)+ } }
        }
    };
}

failures! {
    /// The peer closed the connection before the handshake was complete.
    PeerClosed = "tls_peer_closed";
    /// The transport failed.
    Io = "tls_io";
    /// The bytes are not TLS.
    NotTls = "tls_not_tls";
    /// The peer broke the protocol.
    Protocol = "tls_protocol_error";
    /// No TLS version, cipher suite or group in common.
    Incompatible = "tls_incompatible";
    /// No application protocol in common.
    NoCommonAlpn = "tls_no_common_alpn";
    /// The client did not show the certificate that `require_client_certificate` asks for.
    NoClientCertificate = "tls_no_client_certificate";
    /// We have no certificate for the name that the client asked for, or it asked for none under `require_sni`.
    NoServerCertificate = "tls_no_server_certificate";
    /// The peer's certificate is past its end.
    CertificateExpired = "tls_certificate_expired";
    /// The peer's certificate is not valid yet: its clock, its issuer's or ours is wrong.
    CertificateNotYetValid = "tls_certificate_not_yet_valid";
    /// The peer's certificate has been revoked, or the revocation lists do not say whether it is.
    CertificateRevoked = "tls_certificate_revoked";
    /// No trusted CA signed the peer's certificate.
    CertificateUntrusted = "tls_certificate_untrusted";
    /// No subject alternative name of the peer's certificate is one that we accept.
    CertificateName = "tls_certificate_name";
    /// The peer's certificate is malformed, or not one for this purpose.
    CertificateRefused = "tls_certificate_refused";
    /// The peer refused us; the detail names its alert.
    RefusedByPeer = "tls_refused_by_peer";
    /// There is no server name to send or to verify.
    NoServerName = "tls_no_server_name";
    /// A secret that the context refers to has not come (yet).
    SecretMissing = "tls_secret_missing";
    /// A fault of ours.
    Internal = "tls_internal";
}

/// A failed handshake.
#[derive(Debug, thiserror::Error)]
#[error("{}: {detail}", kind.id())]
pub struct TlsError {
    /// Kind.
    pub kind: TlsFailure,
    /// What happened, for a log.
    pub detail: String,
}

impl TlsError {
    /// A failure of `kind`.
    pub(super) fn new(kind: TlsFailure, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

impl From<Rustls> for TlsError {
    fn from(error: Rustls) -> Self {
        Self::new(classify(&error), error.to_string())
    }
}

impl From<io::Error> for TlsError {
    fn from(error: io::Error) -> Self {
        if let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<Rustls>()) {
            return Self::new(classify(tls), tls.to_string());
        }
        let kind = match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => TlsFailure::PeerClosed,
            _ => TlsFailure::Io,
        };
        Self::new(kind, error.to_string())
    }
}

fn classify(error: &Rustls) -> TlsFailure {
    match error {
        Rustls::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => TlsFailure::NotTls,
        Rustls::InvalidMessage(_) | Rustls::InappropriateMessage { .. } => TlsFailure::Protocol,
        Rustls::InappropriateHandshakeMessage { .. } | Rustls::PeerMisbehaved(_) => TlsFailure::Protocol,
        Rustls::DecryptError | Rustls::PeerSentOversizedRecord => TlsFailure::Protocol,
        Rustls::PeerIncompatible(_) => TlsFailure::Incompatible,
        Rustls::NoApplicationProtocol => TlsFailure::NoCommonAlpn,
        Rustls::NoCertificatesPresented => TlsFailure::NoClientCertificate,
        Rustls::AlertReceived(AlertDescription::NoApplicationProtocol) => TlsFailure::NoCommonAlpn,
        Rustls::AlertReceived(_) => TlsFailure::RefusedByPeer,
        Rustls::InvalidCertificate(certificate) => classify_certificate(certificate),
        // rustls says this, and only this, when the resolver has no certificate.
        Rustls::General(text) if text.contains("no server certificate chain resolved") => {
            TlsFailure::NoServerCertificate
        }
        _ => TlsFailure::Internal,
    }
}

fn classify_certificate(error: &CertificateError) -> TlsFailure {
    use CertificateError as E;
    match error {
        E::Expired | E::ExpiredContext { .. } => TlsFailure::CertificateExpired,
        E::NotValidYet | E::NotValidYetContext { .. } => TlsFailure::CertificateNotYetValid,
        E::Revoked
        | E::UnknownRevocationStatus
        | E::ExpiredRevocationList
        | E::ExpiredRevocationListContext { .. } => TlsFailure::CertificateRevoked,
        E::UnknownIssuer | E::BadSignature => TlsFailure::CertificateUntrusted,
        E::NotValidForName | E::NotValidForNameContext { .. } => TlsFailure::CertificateName,
        E::Other(other) if other.0.downcast_ref::<super::verify::NameMismatch>().is_some() => {
            TlsFailure::CertificateName
        }
        E::Other(other) if other.0.downcast_ref::<super::domains::NoBundle>().is_some() => {
            TlsFailure::CertificateUntrusted
        }
        _ => TlsFailure::CertificateRefused,
    }
}
