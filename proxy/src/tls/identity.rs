//! Who the peer is: the SPIFFE ID and the other names of its leaf certificate.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A SPIFFE ID, <https://spiffe.io/docs/latest/spiffe-specs/spiffe-id> §2: always compared as (trust domain, path),
/// never as a prefix of a string.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    uri: Arc<str>,
    /// Where the path begins in `uri`.
    path: usize,
}

/// Why a string is not a SPIFFE ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// Another scheme.
    #[error("a SPIFFE ID begins with `spiffe://`, in lower case")]
    Scheme,
    /// Longer than 2048 bytes.
    #[error("a SPIFFE ID has at most 2048 bytes")]
    TooLong,
    /// A trust domain has 1 to 255 of `a-z 0-9 . - _`.
    #[error("a trust domain has 1 to 255 characters of a-z, 0-9, dot, dash and underscore")]
    TrustDomain,
    /// A path has segments of `a-z A-Z 0-9 . - _`, none of them empty, `.` or `..`.
    #[error(
        "a SPIFFE path has segments of letters, digits, dot, dash and underscore; none is empty, `.` or `..`"
    )]
    Path,
    /// A certificate's SPIFFE ID must name a workload.
    #[error("the SPIFFE ID of a workload has a path")]
    NoPath,
}

const SCHEME: &str = "spiffe://";

impl SpiffeId {
    /// Parses `text` strictly.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        if text.len() > 2048 {
            return Err(SpiffeIdError::TooLong);
        }
        let (domain, path) = rest.find('/').map_or((rest, ""), |cut| rest.split_at(cut));
        let domain_byte = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        if domain.is_empty() || domain.len() > 255 || !domain.bytes().all(domain_byte) {
            return Err(SpiffeIdError::TrustDomain);
        }
        let path_byte = |b: u8| matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        let segment = |s: &str| !matches!(s, "" | "." | "..") && s.bytes().all(path_byte);
        if !path.is_empty() && !path[1..].split('/').all(segment) {
            return Err(SpiffeIdError::Path);
        }
        Ok(Self { uri: text.into(), path: SCHEME.len() + domain.len() })
    }

    /// The whole URI.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.uri[SCHEME.len()..self.path]
    }

    /// The path, with its leading slash; empty for a trust domain itself.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.uri[self.path..]
    }

    /// Namespace and service account, when the path is `/ns/<namespace>/sa/<service account>`.
    #[must_use]
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let (namespace, account) = self.path().strip_prefix("/ns/")?.split_once("/sa/")?;
        (!namespace.contains('/') && !account.contains('/')).then_some((namespace, account))
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl std::str::FromStr for SpiffeId {
    type Err = SpiffeIdError;
    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        Self::parse(text)
    }
}

/// Why a leaf certificate is refused whoever signed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// Not a certificate.
    #[error("it is not an X.509 certificate")]
    Malformed,
    /// The subject alternative names cannot be read.
    #[error("its subject alternative names are malformed")]
    BadNames,
    /// A name holds a NUL or another control or non-ASCII byte (CVE-2025-66220 class).
    #[error("one of its names holds a byte that is not printable ASCII")]
    NameBytes,
    /// More than one URI name: nobody could say which is the identity (X.509-SVID §2).
    #[error("it has more than one URI name")]
    SeveralUris,
    /// The URI name begins like a SPIFFE ID and is none.
    #[error("its SPIFFE ID is not valid: {0}")]
    Spiffe(SpiffeIdError),
    /// CA:TRUE or keyCertSign or cRLSign: a CA's certificate must not stand for a workload (X.509-SVID §4).
    #[error("it is a CA's certificate")]
    Ca,
    /// keyUsage is there without digitalSignature.
    #[error("its keyUsage does not allow digital signatures")]
    KeyUsage,
}

/// The names of a certificate, by type. A name of one type never matches as another (CVE-2022-21656 class).
#[derive(Debug, Default)]
pub(super) struct LeafNames<'a> {
    pub(super) uri: Option<&'a str>,
    pub(super) dns: Vec<&'a str>,
    pub(super) email: Vec<&'a str>,
    pub(super) ip: Vec<IpAddr>,
    pub(super) spiffe: Option<SpiffeId>,
}

/// Parses a certificate; bytes after it are an error.
pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, LeafError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(LeafError::Malformed),
    }
}

/// Checks a leaf by its own content, and gives its names.
pub(super) fn inspect<'a>(certificate: &'a X509Certificate<'a>) -> Result<LeafNames<'a>, LeafError> {
    if certificate.basic_constraints().map_err(|_| LeafError::Malformed)?.is_some_and(|b| b.value.ca) {
        return Err(LeafError::Ca);
    }
    if let Some(usage) = certificate.key_usage().map_err(|_| LeafError::Malformed)? {
        if usage.value.key_cert_sign() || usage.value.crl_sign() {
            return Err(LeafError::Ca);
        }
        if !usage.value.digital_signature() {
            return Err(LeafError::KeyUsage);
        }
    }
    names(certificate)
}

/// The subject alternative names of a certificate.
pub(super) fn names<'a>(certificate: &'a X509Certificate<'a>) -> Result<LeafNames<'a>, LeafError> {
    let mut names = LeafNames::default();
    let extension = certificate.subject_alternative_name().map_err(|_| LeafError::BadNames)?;
    for name in extension.iter().flat_map(|e| &e.value.general_names) {
        match name {
            GeneralName::URI(uri) => {
                if names.uri.replace(printable(uri)?).is_some() {
                    return Err(LeafError::SeveralUris);
                }
            }
            GeneralName::DNSName(dns) => names.dns.push(printable(dns)?),
            GeneralName::RFC822Name(email) => names.email.push(printable(email)?),
            GeneralName::IPAddress(bytes) => names.ip.push(ip_of(bytes).ok_or(LeafError::BadNames)?),
            GeneralName::Invalid(..) => return Err(LeafError::BadNames),
            GeneralName::OtherName(..)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::RegisteredID(_) => {}
        }
    }
    names.spiffe = names.uri.map_or(Ok(None), spiffe_of)?;
    Ok(names)
}

fn spiffe_of(uri: &str) -> Result<Option<SpiffeId>, LeafError> {
    let claims_spiffe = uri.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe:"));
    if !claims_spiffe {
        return Ok(None);
    }
    let id = SpiffeId::parse(uri).map_err(LeafError::Spiffe)?;
    if id.path().is_empty() {
        return Err(LeafError::Spiffe(SpiffeIdError::NoPath));
    }
    Ok(Some(id))
}

fn printable(name: &str) -> Result<&str, LeafError> {
    if name.bytes().all(|b| matches!(b, 0x20..=0x7e)) { Ok(name) } else { Err(LeafError::NameBytes) }
}

/// RFC 5280 §4.2.1.6, with the wildcards and underscores that are seen.
fn is_host(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'*'))
}

fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// The peer of a connection, read from its leaf certificate once per connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The SPIFFE ID: the only URI name of a verified certificate. None when the certificate was not verified.
    pub spiffe: Option<SpiffeId>,
    /// URI names (at most one). Empty when the certificate was not verified.
    pub uri_sans: Vec<Box<str>>,
    /// DNS names. Empty when the certificate was not verified. What is no name of a host is left out: an authority of another trust domain
    /// may write there what reads like an identity of this one.
    pub dns_sans: Vec<Box<str>>,
    /// The subject as RFC 2253 writes it, such as `CN=orders,O=Example`.
    pub subject: Box<str>,
    /// SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
    /// End of validity, in seconds since 1970.
    pub not_after: i64,
    /// Its serial number and the name of its issuer, in DER: by these it may be revoked.
    pub serial: Box<[u8]>,
    /// See [`Self::serial`].
    pub issuer: Box<[u8]>,
    /// A trusted CA signed the certificate. False under `ACCEPT_UNTRUSTED`, where its names mean nothing.
    pub verified: bool,
}

impl PeerIdentity {
    /// Reads a leaf certificate.
    ///
    /// # Errors
    /// The certificate is one that is refused whoever signed it.
    pub fn of_leaf(leaf: &CertificateDer<'_>, verified: bool) -> Result<Self, LeafError> {
        let certificate = parse(leaf)?;
        let names = if verified { inspect(&certificate)? } else { LeafNames::default() };
        Ok(Self {
            spiffe: names.spiffe,
            uri_sans: names.uri.iter().map(|s| Box::from(*s)).collect(),
            dns_sans: names.dns.iter().filter(|name| is_host(name)).map(|s| Box::from(*s)).collect(),
            subject: subject(&certificate).into(),
            fingerprint: sha256(leaf),
            not_after: certificate.validity().not_after.timestamp(),
            serial: certificate.raw_serial().into(),
            issuer: certificate.issuer().as_raw().into(),
            verified,
        })
    }

    /// The names by which policy knows the peer, in Envoy's order: URI names, DNS names, the subject.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.uri_sans.iter().chain(&self.dns_sans).chain(std::iter::once(&self.subject)).map(|name| &**name)
    }

    /// The fingerprint in lower-case hexadecimal, as in Envoy's `x-forwarded-client-cert` `Hash`.
    #[must_use]
    pub fn fingerprint_hex(&self) -> String {
        use fmt::Write as _;
        self.fingerprint.iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// SHA-256 (FIPS 180-4) by the crypto of the process.
#[must_use]
pub fn sha256(data: &[u8]) -> [u8; 32] {
    let suite = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let digest = suite.tls13().map(|suite| suite.common.hash_provider.hash(data));
    // This suite is a TLS 1.3 one and its hash is SHA-256: neither default is ever taken.
    digest.and_then(|digest| digest.as_ref().try_into().ok()).unwrap_or_default()
}

/// The subject in the form of RFC 2253: most specific first, special characters escaped.
fn subject(certificate: &X509Certificate<'_>) -> String {
    let registry = x509_parser::objects::oid_registry();
    let mut rdns: Vec<String> = Vec::new();
    for rdn in certificate.subject().iter() {
        let pair = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            let oid = attribute.attr_type();
            let key = x509_parser::objects::oid2abbrev(oid, registry)
                .map_or_else(|_| oid.to_id_string(), str::to_owned);
            format!("{key}={}", escape(attribute.as_str().unwrap_or_default()))
        };
        rdns.push(rdn.iter().map(pair).collect::<Vec<_>>().join("+"));
    }
    rdns.reverse();
    rdns.join(",")
}

/// RFC 2253 §2.4. Control characters become `\XX`, so that a subject is safe in a header and a log line.
fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (i, c) in value.chars().enumerate() {
        match c {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => out.extend(['\\', c]),
            '#' if i == 0 => out.push_str("\\#"),
            ' ' if i == 0 || i == last => out.push_str("\\ "),
            ' '..='~' => out.push(c),
            other => {
                let mut bytes = [0; 4];
                for byte in other.encode_utf8(&mut bytes).bytes() {
                    out.push_str(&format!("\\{byte:02X}"));
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_id_is_a_trust_domain_and_a_path() {
        let id = SpiffeId::parse("spiffe://a.example/ns/shop/sa/orders").unwrap();
        assert_eq!((id.trust_domain(), id.path()), ("a.example", "/ns/shop/sa/orders"));
        assert_eq!(id.service_account(), Some(("shop", "orders")));
        let domain = SpiffeId::parse("spiffe://a.example").unwrap();
        assert_eq!((domain.trust_domain(), domain.path(), domain.service_account()), ("a.example", "", None));
    }

    #[test]
    fn what_looks_like_a_spiffe_id_and_is_none() {
        let long = format!("spiffe://a/{}", "x".repeat(2048));
        for (text, error) in [
            ("https://a.example/x", SpiffeIdError::Scheme),
            ("SPIFFE://a.example/x", SpiffeIdError::Scheme),
            ("spiffe://", SpiffeIdError::TrustDomain),
            ("spiffe:///x", SpiffeIdError::TrustDomain),
            ("spiffe://A.EXAMPLE/x", SpiffeIdError::TrustDomain),
            ("spiffe://user@a.example/x", SpiffeIdError::TrustDomain),
            ("spiffe://a.example:443/x", SpiffeIdError::TrustDomain),
            ("spiffe://a.example?x", SpiffeIdError::TrustDomain),
            ("spiffe://a.example/", SpiffeIdError::Path),
            ("spiffe://a.example/x/", SpiffeIdError::Path),
            ("spiffe://a.example//x", SpiffeIdError::Path),
            ("spiffe://a.example/../x", SpiffeIdError::Path),
            ("spiffe://a.example/./x", SpiffeIdError::Path),
            ("spiffe://a.example/x%2fy", SpiffeIdError::Path),
            ("spiffe://a.example/x?y", SpiffeIdError::Path),
            ("spiffe://a.example/x#y", SpiffeIdError::Path),
            (&long, SpiffeIdError::TooLong),
        ] {
            assert_eq!(SpiffeId::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn the_same_path_in_another_domain_is_another_identity() {
        let one = SpiffeId::parse("spiffe://a.example/x").unwrap();
        for other in
            ["spiffe://a.example.evil/x", "spiffe://a.examplex/x", "spiffe://b/x", "spiffe://a.example/x/y"]
        {
            assert_ne!(one, SpiffeId::parse(other).unwrap());
        }
    }

    #[test]
    fn sha256_is_sha256() {
        let hex: String = sha256(b"abc").iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn subjects_are_escaped() {
        assert_eq!(escape(" a,b=c\"\n#"), "\\ a\\,b=c\\\"\\0A#");
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics_and_keeps_the_text(text in "(spiffe://)?[a-zA-Z0-9./_%@:-]{0,40}") {
            if let Ok(id) = SpiffeId::parse(&text) {
                proptest::prop_assert_eq!(id.as_str(), text.as_str());
                proptest::prop_assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
            }
        }
    }
}
