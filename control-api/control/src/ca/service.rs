//! `istio.v1.auth.IstioCertificateService/CreateCertificate` (istio.io/api `security/v1alpha1/ca.proto`): a CSR and a credential come
//! in, a certificate for the identity of the **credential** goes out.
//!
//! Messages with the fields that are used, and the service, are written down here as those of etcd are: one method needs no generator.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message;
use remora_proxy::tls::identity::{PeerIdentity, SpiffeId};
use rustls_pki_types::CertificateDer;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Context, Poll, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tracing::{info, warn};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::{Authority, Issued};
use super::failures::Failures;
use super::issued::Log;
use super::keeper::now;
use super::review::Reviewer;
use super::tokens::{PREFIX, Presented, Tokens};
use super::{Ca, Csr, Refused, hex};

/// Bytes of a request: a CSR of an RSA key of 8192 bits has 3 KiB.
const MAX_REQUEST: usize = 64 << 10;
const METHOD: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// `IstioCertificateRequest`. What it says in `metadata` (field 4) is not looked at.
#[derive(Clone, PartialEq, Message)]
pub struct CertificateRequest {
    /// PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// In seconds; 0 is no wish.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
}

/// `IstioCertificateResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct CertificateResponse {
    /// PEM: the certificate, those between it and a root, and last all roots that are trusted.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

/// The certificate that a client of a TLS port has shown, put into the extensions of a request by whoever accepted the connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shown {
    /// Its SPIFFE ID; None when it has none.
    pub identity: Option<SpiffeId>,
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// When it ends, in seconds since 1970; a connection may live longer.
    pub ends: u64,
}

impl Shown {
    /// What a certificate says, in DER, whose chain was verified in the handshake.
    #[must_use]
    pub fn of(leaf: &[u8]) -> Self {
        let peer = PeerIdentity::of_leaf(&CertificateDer::from(leaf), true);
        let parsed = X509Certificate::from_der(leaf).ok().map(|(_, parsed)| parsed);
        let ends =
            |parsed: &X509Certificate<'_>| parsed.validity().not_after.timestamp().try_into().unwrap_or(0);
        Self {
            identity: peer.ok().and_then(|peer| peer.spiffe),
            serial: parsed.as_ref().map(|parsed| hex(parsed.raw_serial())).unwrap_or_default(),
            ends: parsed.as_ref().map_or(0, ends),
        }
    }
}

/// Where a request came from, put into its extensions by whoever accepted a TLS connection.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddress(pub SocketAddr);

/// What proves who asks.
#[derive(Debug, Clone)]
enum Credential {
    Token(Presented),
    ServiceAccount(ServiceAccountToken),
    Certificate(Shown),
}

/// A token of Kubernetes, which no log shows.
#[derive(Clone)]
struct ServiceAccountToken(String);

impl fmt::Debug for ServiceAccountToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl Credential {
    /// For the log of what was issued.
    fn name(&self) -> String {
        match self {
            Self::Token(token) => format!("token {}", token.id),
            Self::ServiceAccount(_) => "serviceaccount".into(),
            Self::Certificate(shown) => format!("certificate {}", shown.serial),
        }
    }
}

/// The service. A clone is the same one.
#[derive(Debug, Clone)]
pub struct Service(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ca: Arc<Ca>,
    tokens: Arc<Tokens>,
    log: Arc<Log>,
    reviewer: Option<Reviewer>,
    failures: Mutex<Failures>,
    issued: AtomicU64,
    refused: AtomicU64,
}

impl Service {
    /// One that signs with `ca`. Without a reviewer the tokens of Kubernetes are unknown.
    #[must_use]
    pub fn new(ca: Arc<Ca>, tokens: Arc<Tokens>, log: Arc<Log>, reviewer: Option<Reviewer>) -> Self {
        let (failures, issued, refused) = Default::default();
        Self(Arc::new(Inner { ca, tokens, log, reviewer, failures, issued, refused }))
    }

    /// Requests that got a certificate, and those that did not.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.0.issued.load(Ordering::Relaxed), self.0.refused.load(Ordering::Relaxed))
    }
}

impl Inner {
    async fn answer(&self, request: Request<CertificateRequest>) -> Result<CertificateResponse, Refused> {
        let from =
            request.extensions().get::<PeerAddress>().map(|peer| peer.0).or_else(|| request.remote_addr());
        let address = from.map(|from| from.ip());
        let failures = || self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        // Others may be at the same address: what is known to be good is good.
        if address.is_some_and(|address| !failures().admits(address, Instant::now())) && !self.knows(&request)
        {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Refused::TooManyFailures);
        }
        let answer = self.create(&request, from).await;
        let count = if answer.is_ok() { &self.issued } else { &self.refused };
        count.fetch_add(1, Ordering::Relaxed);
        match &answer {
            Err(refused) if refused.is_denial() => {
                if let Some(address) = address {
                    failures().note(address, Instant::now());
                }
                info!(peer = ?from, id = refused.id(), %refused, "no certificate");
            }
            Err(failed) => warn!(peer = ?from, id = failed.id(), %failed, "no certificate"),
            Ok(_) => {}
        }
        answer
    }

    /// Whether the credential is one that need not be asked about.
    fn knows(&self, request: &Request<CertificateRequest>) -> bool {
        match credential(request) {
            Ok(Credential::Token(token)) => self.tokens.knows(&token),
            Ok(Credential::Certificate(_)) => true,
            Ok(Credential::ServiceAccount(_)) | Err(_) => false,
        }
    }

    async fn create(
        &self,
        request: &Request<CertificateRequest>,
        from: Option<SocketAddr>,
    ) -> Result<CertificateResponse, Refused> {
        let asked = request.get_ref();
        let credential = credential(request)?;
        let csr = Csr::read(asked.csr.as_bytes())?;
        let identity = self.identity(&credential, &csr).await?;
        csr.admit(&identity)?;
        if self.ca.read(|authority: &Authority| authority.is_barred(&identity))? {
            return Err(Refused::IdentityRevoked(identity.to_string()));
        }
        let signer = self.ca.signer(self.ca.ttl(asked.validity_duration)).await?;
        // From here on nothing fails for a reason of the caller's: a token is not lost.
        if let Credential::Token(token) = &credential {
            self.tokens.spend(token, &csr).await?;
        }
        let issued = signer.issue(&csr, &identity)?;
        self.log.write(&issued, identity.as_str(), credential.name(), from).await;
        Ok(response(issued))
    }

    /// The identity that is signed.
    async fn identity(&self, credential: &Credential, csr: &Csr) -> Result<SpiffeId, Refused> {
        match credential {
            Credential::Token(token) => self.tokens.check(token, csr).await,
            Credential::ServiceAccount(ServiceAccountToken(token)) => {
                let reviewer = self.reviewer.as_ref().ok_or(Refused::TokenUnknown)?;
                let (namespace, account) = reviewer.review(token).await?;
                self.ca.identity(&namespace, &account)
            }
            Credential::Certificate(shown) => self.ca.admit(shown).cloned(),
        }
    }
}

impl Ca {
    /// The workload of this trust domain that a client's certificate is of. Whoever accepted the connection has verified the chain.
    ///
    /// # Errors
    /// [`Refused::PeerIdentity`], [`Refused::CertificateRevoked`], [`Refused::CertificateExpired`], [`Refused::IdentityRevoked`].
    pub fn admit<'s>(&self, shown: &'s Shown) -> Result<&'s SpiffeId, Refused> {
        let domain = &*self.settings().trust_domain;
        let of_domain = |id: &&SpiffeId| id.trust_domain() == domain && id.service_account().is_some();
        let name = || shown.identity.as_ref().map_or_else(|| "no SPIFFE ID".to_owned(), ToString::to_string);
        let identity = shown.identity.as_ref().filter(of_domain);
        let identity = identity.ok_or_else(|| Refused::PeerIdentity(name()))?;
        if self.read(|authority| authority.is_revoked(&shown.serial))? {
            return Err(Refused::CertificateRevoked(shown.serial.clone()));
        }
        // Also one that no control plane that lives remembers to have signed.
        if self.read(|authority| authority.is_barred(identity))? {
            return Err(Refused::IdentityRevoked(identity.to_string()));
        }
        if shown.ends <= now() {
            return Err(Refused::CertificateExpired(shown.serial.clone()));
        }
        Ok(identity)
    }
}

/// A token goes before a certificate: who sends one means it.
fn credential(request: &Request<CertificateRequest>) -> Result<Credential, Refused> {
    if let Some(header) = request.metadata().get("authorization") {
        let text = header.to_str().ok().and_then(|text| text.split_once(' '));
        let bearer = text.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let token = bearer.ok_or(Refused::NoCredential)?.1.trim();
        return match Presented::parse(token) {
            Some(token) => Ok(Credential::Token(token)),
            None if token.starts_with(PREFIX) => Err(Refused::TokenUnknown),
            None => Ok(Credential::ServiceAccount(ServiceAccountToken(token.to_owned()))),
        };
    }
    request.extensions().get::<Shown>().cloned().map(Credential::Certificate).ok_or(Refused::NoCredential)
}

fn response(issued: Issued) -> CertificateResponse {
    let between = issued.intermediates.into_iter();
    CertificateResponse {
        cert_chain: [issued.leaf].into_iter().chain(between).chain([issued.roots]).collect(),
    }
}

impl UnaryService<CertificateRequest> for Service {
    type Response = CertificateResponse;
    type Future = BoxFuture<Response<CertificateResponse>, Status>;

    fn call(&mut self, request: Request<CertificateRequest>) -> Self::Future {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { Ok(Response::new(inner.answer(request).await?)) })
    }
}

impl tonic::codegen::Service<http::Request<Body>> for Service {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path() != METHOD {
                return Ok(Status::unimplemented("the method is CreateCertificate").into_http());
            }
            let codec = ProstCodec::<CertificateResponse, CertificateRequest>::default();
            let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_REQUEST);
            Ok(grpc.unary(service, request).await)
        })
    }
}

impl NamedService for Service {
    const NAME: &'static str = "istio.v1.auth.IstioCertificateService";
}
