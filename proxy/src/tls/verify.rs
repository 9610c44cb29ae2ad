//! Verification of the peer's certificate: chain by webpki, leaf and names by ourselves.
//!
//! Order: the leaf by its own content ([`super::identity::LeafError`]), the chain up to a trusted CA with validity,
//! purpose and name constraints (RFC 5280 §6), then the names. Common names never count.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError};
use rustls::{SignatureScheme, crypto::CryptoProvider};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, ExtendedKeyUsageValidator, KeyUsage,
    RevocationCheckDepth, RevocationOptions, RevocationOptionsBuilder, UnknownStatusPolicy,
};

use super::domains::{self, Domains};
use super::identity::{self, LeafError, LeafNames, PeerIdentity};
use super::material::Authorities;
use super::secret::Secret;
use crate::route::text::{Place, StringMatch};

/// Type of a subject alternative name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SanType {
    /// `URI`; a SPIFFE ID is one.
    Uri,
    /// `DNS`.
    Dns,
    /// `IP_ADDRESS`, compared in its usual text form.
    Ip,
    /// `EMAIL`.
    Email,
}

/// One entry of `match_typed_subject_alt_names`.
#[derive(Debug, Clone)]
pub struct SanMatch {
    /// Only names of this type are looked at.
    pub san: SanType,
    /// How they are compared.
    pub text: StringMatch,
}

impl SanMatch {
    /// Whether a leaf certificate has such a name.
    ///
    /// # Errors
    /// It is one that is refused whoever signed it.
    pub fn matches_leaf(&self, leaf: &CertificateDer<'_>) -> Result<bool, LeafError> {
        let certificate = identity::parse(leaf)?;
        Ok(self.matches(&identity::inspect(&certificate)?))
    }

    pub(super) fn matches(&self, names: &LeafNames<'_>) -> bool {
        let text = |name: &str| self.text.is_match(name.as_bytes());
        match self.san {
            SanType::Uri => names.uri.is_some_and(text),
            SanType::Email => names.email.iter().any(|name| text(name)),
            SanType::Ip => names.ip.iter().any(|ip: &IpAddr| text(&ip.to_string())),
            SanType::Dns => names.dns.iter().any(|name| match &self.text {
                // As Envoy: an exact DNS matcher follows the certificate's wildcard.
                StringMatch::Text { place: Place::Exact, text: want, .. } => {
                    dns_name_covers(name.as_bytes(), want)
                }
                _ => text(name),
            }),
        }
    }
}

/// Whether the certificate's DNS name `pattern` covers `host`: equal, or `*.` for exactly one label (RFC 6125 §6.4.3). Names in
/// certificates do not end with a dot (RFC 5280 §4.2.1.6); one that does covers nothing.
fn dns_name_covers(pattern: &[u8], host: &[u8]) -> bool {
    if pattern.ends_with(b".") {
        return false;
    }
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let Some(parent) = pattern.strip_prefix(b"*.") else { return false };
    let Some(dot) = memchr::memchr(b'.', host) else { return false };
    dot > 0 && parent.contains(&b'.') && host[dot + 1..].eq_ignore_ascii_case(parent)
}

/// The peer's names are none that the configuration accepts.
#[derive(Debug)]
pub struct NameMismatch {
    presented: String,
}

impl fmt::Display for NameMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no name of the certificate is an accepted one; it has {}", self.presented)
    }
}

impl std::error::Error for NameMismatch {}

impl NameMismatch {
    fn new(names: &LeafNames<'_>) -> Self {
        let mut list: Vec<String> = names.uri.iter().map(|n| format!("URI:{n}")).collect();
        list.extend(names.dns.iter().map(|n| format!("DNS:{n}")));
        list.extend(names.ip.iter().map(|n| format!("IP:{n}")));
        list.extend(names.email.iter().map(|n| format!("email:{n}")));
        // A certificate can hold thousands of names; a log line cannot.
        let more = list.len().saturating_sub(8);
        list.truncate(8);
        let mut presented = if list.is_empty() { "none".to_owned() } else { list.join(", ") };
        if more > 0 {
            presented.push_str(&format!(" and {more} more"));
        }
        Self { presented }
    }
}

/// Whom we believe (`CertificateValidationContext`).
#[derive(Debug)]
pub struct Trust {
    /// `trusted_ca`. None under `ACCEPT_UNTRUSTED`: only possession of the key is verified.
    pub roots: Option<Authorities>,
    /// `custom_validator_config`: peers are verified by the bundle of their trust domain, and by nothing else.
    pub domains: Option<Domains>,
    /// `crl`. As in Envoy, every certificate of a chain has to be covered as soon as there is one.
    pub revoked: Vec<CertRevocationList<'static>>,
    /// `only_verify_leaf_cert_crl`.
    pub only_leaf_revocation: bool,
    /// `match_typed_subject_alt_names`: one must match; an empty list accepts every name.
    pub sans: Vec<SanMatch>,
    /// Name the trusted CAs to clients (`suppress_client_ca_list` turns it off).
    pub send_ca_names: bool,
}

impl Trust {
    /// Trust in everybody whose certificate comes from one of `roots`.
    #[must_use]
    pub const fn in_roots(roots: Authorities) -> Self {
        Self {
            roots: Some(roots),
            domains: None,
            revoked: Vec::new(),
            only_leaf_revocation: false,
            sans: Vec::new(),
            send_ca_names: true,
        }
    }
}

impl Trust {
    /// Names of the authorities that peers are verified by.
    fn ca_names(&self) -> Vec<DistinguishedName> {
        match &self.domains {
            Some(domains) => domains.bundles().flat_map(|bundle| bundle.store.subjects()).collect(),
            None => self.roots.as_ref().map(|roots| roots.store.subjects()).unwrap_or_default(),
        }
    }

    /// Whether a list names the certificate of a peer that was accepted before.
    #[must_use]
    pub fn revokes(&self, peer: &PeerIdentity) -> bool {
        self.revoked.iter().any(|list| {
            // A list has the issuer's name without tag and length.
            let same = !list.issuer().is_empty() && peer.issuer.ends_with(list.issuer());
            same && matches!(list.find_serial(&peer.serial), Ok(Some(_)))
        })
    }
}

/// What a context asks of its peers: trust, which it may share with other contexts, and names of its own.
#[derive(Debug, Clone)]
pub struct PeerRules {
    /// Whom to believe.
    pub trust: Arc<Secret<Trust>>,
    /// Names besides those of the trust (`combined_validation_context`).
    pub sans: Arc<[SanMatch]>,
    /// As in [`Trust`]; both have to want it.
    pub send_ca_names: bool,
}

impl PeerRules {
    /// Trust that is written out where it is used.
    #[must_use]
    pub fn inline(trust: Trust) -> Self {
        Self { trust: Secret::inline(trust), sans: Arc::new([]), send_ca_names: true }
    }

    /// With the trust that there is now; None: it has not come yet.
    pub(super) fn now(&self) -> Option<PeerPolicy> {
        Some(PeerPolicy { trust: self.trust.get()?, rules: self.clone() })
    }
}

/// What is asked of the peer of one handshake.
#[derive(Debug, Clone)]
pub(super) struct PeerPolicy {
    pub(super) trust: Arc<Trust>,
    rules: PeerRules,
}

impl PeerPolicy {
    /// Whether the peer's certificate is verified at all.
    pub(super) fn verifies(&self) -> bool {
        self.trust.roots.is_some()
    }

    fn accepts(&self, names: &LeafNames<'_>) -> bool {
        let mut sans = self.rules.sans.iter().chain(&self.trust.sans).peekable();
        sans.peek().is_none() || sans.any(|san| san.matches(names))
    }
}

/// Whether a chain, leaf first, leads to one of `roots` now, for a client.
///
/// # Errors
/// Why not.
pub fn leads_to(chain: &[CertificateDer<'_>], roots: &Authorities) -> Result<(), String> {
    let (leaf, between) = chain.split_first().ok_or("there is no certificate")?;
    let algorithms = super::provider().signature_verification_algorithms;
    let leaf = EndEntityCert::try_from(leaf).map_err(|e| e.to_string())?;
    let (anchors, usage) = (&roots.store.roots, KeyUsage::client_auth());
    leaf.verify_for_usage(algorithms.all, anchors, between, UnixTime::now(), usage, None, None)
        .map(drop)
        .map_err(|e| webpki_error(e).to_string())
}

/// The verifier of one side of one context.
#[derive(Debug)]
pub(super) struct Verifier {
    policy: PeerPolicy,
    algorithms: WebPkiSupportedAlgorithms,
    ca_names: Vec<DistinguishedName>,
    mandatory: bool,
    /// Compare the certificate with the server name of the connection, instead of `policy.sans`.
    by_server_name: bool,
}

impl Verifier {
    /// For clients of a server; `mandatory` is `require_client_certificate`.
    pub(super) fn of_clients(policy: PeerPolicy, provider: &CryptoProvider, mandatory: bool) -> Self {
        let send_names = policy.rules.send_ca_names && policy.trust.send_ca_names;
        let ca_names = if send_names { policy.trust.ca_names() } else { Vec::new() };
        let algorithms = provider.signature_verification_algorithms;
        Self { policy, algorithms, ca_names, mandatory, by_server_name: false }
    }

    /// For the server of a client.
    pub(super) fn of_server(policy: PeerPolicy, provider: &CryptoProvider, by_server_name: bool) -> Self {
        let algorithms = provider.signature_verification_algorithms;
        Self { policy, algorithms, ca_names: Vec::new(), mandatory: true, by_server_name }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: impl ExtendedKeyUsageValidator,
        server_name: Option<&ServerName<'_>>,
    ) -> Result<(), Error> {
        // The handshake signature is verified by rustls in any case.
        let trust = &*self.policy.trust;
        let Some(roots) = &trust.roots else { return Ok(()) };
        let certificate = identity::parse(leaf).map_err(other)?;
        let names = identity::inspect(&certificate).map_err(other)?;
        let chain = EndEntityCert::try_from(leaf).map_err(webpki_error)?;
        let mut lists: Vec<_> = trust.revoked.iter().collect();
        let mut anchors = roots;
        if let Some(domains) = &trust.domains {
            anchors = domains.bundle(names.spiffe.as_ref()).map_err(other)?;
            if !domains::is_covered(anchors, certificate.issuer().as_raw(), &trust.revoked) {
                lists.clear();
            }
        }
        chain
            .verify_for_usage(
                self.algorithms.all,
                &anchors.store.roots,
                intermediates,
                now,
                usage,
                revocation(trust, &lists),
                None,
            )
            .map_err(webpki_error)?;
        match server_name {
            Some(name) if self.by_server_name => {
                chain.verify_is_valid_for_subject_name(name).map_err(|_| refuse_names(&names))
            }
            _ if self.policy.accepts(&names) => Ok(()),
            _ => Err(refuse_names(&names)),
        }
    }
}

/// As Envoy: every certificate of the chain is to be covered by a list, unless only the leaf is asked for.
fn revocation<'a>(trust: &Trust, lists: &'a [&'a CertRevocationList<'a>]) -> Option<RevocationOptions<'a>> {
    let depth = if trust.only_leaf_revocation {
        RevocationCheckDepth::EndEntity
    } else {
        RevocationCheckDepth::Chain
    };
    let options = RevocationOptionsBuilder::new(lists).ok()?;
    Some(
        options
            .with_depth(depth)
            .with_status_policy(UnknownStatusPolicy::Deny)
            .with_expiration_policy(ExpirationPolicy::Enforce)
            .build(),
    )
}

fn refuse_names(names: &LeafNames<'_>) -> Error {
    other(NameMismatch::new(names))
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// The alert that the peer gets depends on this mapping (RFC 8446 §6.2).
fn webpki_error(error: webpki::Error) -> Error {
    use CertificateError as C;
    use webpki::Error as E;
    Error::InvalidCertificate(match error {
        E::CertExpired { time, not_after } => C::ExpiredContext { time, not_after },
        E::CertNotValidYet { time, not_before } => C::NotValidYetContext { time, not_before },
        E::UnknownIssuer => C::UnknownIssuer,
        E::CertRevoked => C::Revoked,
        E::UnknownRevocationStatus => C::UnknownRevocationStatus,
        E::CrlExpired { time, next_update } => C::ExpiredRevocationListContext { time, next_update },
        E::InvalidSignatureForPublicKey => C::BadSignature,
        E::BadDer | E::BadDerTime | E::TrailingData(_) => C::BadEncoding,
        E::RequiredEkuNotFoundContext(_) => C::InvalidPurpose,
        E::UnsupportedCriticalExtension => C::UnhandledCriticalExtension,
        unknown => C::Other(OtherError(Arc::new(unknown))),
    })
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.ca_names
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, intermediates, now, KeyUsage::client_auth(), None)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, intermediates, now, KeyUsage::server_auth(), Some(server_name))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_covers_one_label() {
        let covers = |pattern: &str, host: &str| dns_name_covers(pattern.as_bytes(), host.as_bytes());
        assert!(covers("*.shop.example", "a.shop.example"));
        assert!(covers("A.example", "a.EXAMPLE"));
        for (pattern, host) in [
            ("*.shop.example", "shop.example"),
            ("*.shop.example", "a.b.shop.example"),
            ("*.shop.example", ".shop.example"),
            ("*.example", "shop.example"),
            ("a*.shop.example", "ab.shop.example"),
            ("*", "a"),
            // Found by the fuzzer: with its dot, the suffix looked like two labels.
            ("*.example.", "shop.example."),
            ("shop.example.", "shop.example."),
        ] {
            assert!(!covers(pattern, host), "{pattern} {host}");
        }
    }

    #[test]
    fn a_matcher_looks_only_at_names_of_its_type() {
        let id = "spiffe://a.example/x";
        let names = LeafNames { dns: vec![id], ..LeafNames::default() };
        let matcher =
            |san| SanMatch { san, text: StringMatch::text(Place::Exact, id, false) }.matches(&names);
        assert!(!matcher(SanType::Uri) && !matcher(SanType::Email) && !matcher(SanType::Ip));
        assert!(matcher(SanType::Dns));
    }

    #[test]
    fn every_type_of_name() {
        let names = LeafNames {
            uri: Some("spiffe://a/x"),
            dns: vec!["*.shop.example"],
            email: vec!["a@shop.example"],
            ip: vec!["10.0.0.1".parse().unwrap()],
            spiffe: None,
        };
        let matches =
            |san, place, text| SanMatch { san, text: StringMatch::text(place, text, false) }.matches(&names);
        assert!(matches(SanType::Uri, Place::Prefix, "spiffe://a/"));
        assert!(matches(SanType::Email, Place::Suffix, "@shop.example"));
        assert!(matches(SanType::Ip, Place::Exact, "10.0.0.1"));
        assert!(
            matches(SanType::Dns, Place::Exact, "a.shop.example"),
            "an exact DNS matcher follows the wildcard"
        );
        assert!(!matches(SanType::Dns, Place::Prefix, "a.shop"), "others see the name as it is written");
    }
}
