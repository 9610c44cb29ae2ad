//! Why the authority does not do what it is asked.

use tonic::{Code, Status};

use crate::store::StoreError;

/// A refusal; [`Self::id`] is its reason id.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refused {
    /// The CSR is no PKCS #10 request.
    #[error("the CSR cannot be read: {0}")]
    CsrMalformed(String),
    /// Whoever made the CSR does not have its key.
    #[error("the CSR is not signed by its own key")]
    CsrSignature,
    /// The key is too weak, or of a kind that peers do not know.
    #[error(
        "the key of the CSR is {0}; it may be ECDSA P-256 or P-384, RSA of 2048 to 8192 bits, or Ed25519"
    )]
    CsrKey(String),
    /// The CSR asks for a name that is not the credential's.
    #[error("the CSR asks for {asked}, and the credential is for {allowed}")]
    CsrIdentity {
        /// Its URI name.
        asked: String,
        /// The identity of the credential.
        allowed: String,
    },
    /// Neither a token nor a certificate.
    #[error(
        "no credential: send a join token as `authorization: Bearer TOKEN`, or show a certificate of this trust domain"
    )]
    NoCredential,
    /// No certificate where nothing else counts.
    #[error("a proxy shows a certificate of this trust domain here; its agent gets one with a join token")]
    NoCertificate,
    /// There is no such token.
    #[error("the join token is not known here; `remora token create` makes one")]
    TokenUnknown,
    /// Its time is over.
    #[error("the join token ended at {0}; `remora token create` makes a new one")]
    TokenExpired(String),
    /// It was used as often as it may be.
    #[error("the join token was used as often as it may be; `remora token create` makes a new one")]
    TokenUsed,
    /// Kubernetes says that the token is nobody's.
    #[error("the service-account token is refused by Kubernetes: {0}")]
    ServiceAccount(String),
    /// Kubernetes does not say whose the token is.
    #[error("the service-account token cannot be reviewed: {0}: {1}")]
    Review(String, String),
    /// A token cannot be made with these terms.
    #[error("a join token {0}")]
    TokenTerms(String),
    /// There are too many tokens.
    #[error("{0} join tokens are there already; delete some, or wait until they have ended")]
    TokensFull(usize),
    /// The peer's certificate is no workload of this trust domain.
    #[error("the certificate of the connection is of {0}, which is no workload of this trust domain")]
    PeerIdentity(String),
    /// The peer's certificate is revoked.
    #[error("the certificate {0} is revoked")]
    CertificateRevoked(String),
    /// The certificate of the connection was good when it was shown, and has ended.
    #[error("the certificate {0} has expired: connect again with the one that came after it")]
    CertificateExpired(String),
    /// The identity gets no certificates any more.
    #[error("{0} is revoked; `remora certs restore` lets it have certificates again")]
    IdentityRevoked(String),
    /// What should be an identity is none.
    #[error("{0}")]
    Identity(String),
    /// What should be a serial number is none.
    #[error("{0:?} is no serial number: write it as `remora certs` shows it, in hexadecimal")]
    Serial(String),
    /// Too many failures of one address.
    #[error("too many requests of this address have failed; try again in a minute")]
    TooManyFailures,
    /// A root is announced already.
    #[error("the root {0} is announced already, and will sign when the overlap is over")]
    RootAnnounced(String),
    /// There are too many roots.
    #[error("{0} roots are trusted already; wait until one has retired")]
    RootsFull(usize),
    /// Another root has the same name.
    #[error(
        "the root {0} has the same name: verifiers would take the revocation list of one for that of the other; give the new CA a name of its own"
    )]
    RootName(String),
    /// There is no such root, or several.
    #[error("{0:?} is no root, or the beginning of several: name it as `remora certs` shows it")]
    RootUnknown(String),
    /// Everything hangs on it.
    #[error(
        "the root {0} signs: announce another one with `remora certs rotate-root`, and wait until that signs"
    )]
    RootSigns(String),
    /// There are too many revocations.
    #[error("{0} revocations are kept already; they go when the certificates have ended")]
    RevocationsFull(usize),
    /// The authority has not been read from the store yet.
    #[error("the authority has not been read from the store yet")]
    NotReady,
    /// What the store holds is no authority.
    #[error("the authority in the store cannot be used: {0}")]
    Corrupt(String),
    /// The signer fails.
    #[error("cannot sign: {0}")]
    Signing(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<rcgen::Error> for Refused {
    fn from(error: rcgen::Error) -> Self {
        Self::Signing(error.to_string())
    }
}

impl Refused {
    /// The reason id, `ca_token_unknown`.
    #[must_use]
    pub const fn id(&self) -> &'static str {
        match self {
            Self::CsrMalformed(_) => "ca_csr_malformed",
            Self::CsrSignature => "ca_csr_signature",
            Self::CsrKey(_) => "ca_csr_key",
            Self::CsrIdentity { .. } => "ca_csr_identity",
            Self::NoCredential => "ca_no_credential",
            Self::NoCertificate => "ca_no_certificate",
            Self::TokenUnknown => "ca_token_unknown",
            Self::TokenExpired(_) => "ca_token_expired",
            Self::TokenUsed => "ca_token_used",
            Self::ServiceAccount(_) => "ca_service_account",
            Self::Review(..) => "ca_review",
            Self::TokenTerms(_) => "ca_token_terms",
            Self::TokensFull(_) => "ca_tokens_full",
            Self::PeerIdentity(_) => "ca_peer_identity",
            Self::CertificateRevoked(_) => "ca_certificate_revoked",
            Self::CertificateExpired(_) => "ca_certificate_expired",
            Self::IdentityRevoked(_) => "ca_identity_revoked",
            Self::Identity(_) => "ca_identity",
            Self::Serial(_) => "ca_serial",
            Self::TooManyFailures => "ca_too_many_failures",
            Self::RootAnnounced(_) => "ca_root_announced",
            Self::RootsFull(_) => "ca_roots_full",
            Self::RootName(_) => "ca_root_name",
            Self::RootUnknown(_) => "ca_root_unknown",
            Self::RootSigns(_) => "ca_root_signs",
            Self::RevocationsFull(_) => "ca_revocations_full",
            Self::NotReady => "ca_not_ready",
            Self::Corrupt(_) => "ca_corrupt",
            Self::Signing(_) => "ca_signing",
            Self::Store(_) => "ca_store",
        }
    }

    /// Its code in gRPC.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::CsrMalformed(_)
            | Self::CsrSignature
            | Self::CsrKey(_)
            | Self::Identity(_)
            | Self::Serial(_)
            | Self::RootUnknown(_)
            | Self::TokenTerms(_) => Code::InvalidArgument,
            Self::NoCredential
            | Self::NoCertificate
            | Self::TokenUnknown
            | Self::TokenExpired(_)
            | Self::TokenUsed
            | Self::ServiceAccount(_) => Code::Unauthenticated,
            Self::CsrIdentity { .. }
            | Self::PeerIdentity(_)
            | Self::CertificateRevoked(_)
            | Self::CertificateExpired(_)
            | Self::IdentityRevoked(_) => Code::PermissionDenied,
            Self::TooManyFailures => Code::ResourceExhausted,
            Self::RootAnnounced(_)
            | Self::RootsFull(_)
            | Self::RootName(_)
            | Self::RootSigns(_)
            | Self::RevocationsFull(_)
            | Self::TokensFull(_) => Code::FailedPrecondition,
            Self::NotReady | Self::Store(_) | Self::Review(..) => Code::Unavailable,
            Self::Corrupt(_) | Self::Signing(_) => Code::Internal,
        }
    }

    /// Whether the caller is to blame, so that it counts against its address.
    #[must_use]
    pub const fn is_denial(&self) -> bool {
        matches!(self.code(), Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument)
    }
}

/// `ca_token_used: the join token …`.
impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        Self::new(refused.code(), format!("{}: {refused}", refused.id()))
    }
}
