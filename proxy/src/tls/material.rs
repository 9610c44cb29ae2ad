//! Certificates, keys and trusted CAs out of PEM, as tolerant as the files that people have: any key format, chains in
//! any order, no newline at the end, indented, with text around.

use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use rustls::RootCertStore;
use rustls::SignatureAlgorithm;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use webpki::{CertRevocationList, OwnedCertRevocationList};

use super::identity;
use super::pkcs12::{self, StoreError};

/// Why material cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MaterialError {
    /// No certificate.
    #[error("holds no certificate")]
    NoCertificate,
    /// DER where PEM was expected.
    #[error("is DER (binary), not PEM")]
    Der,
    /// A PKCS#12 store, which holds certificates and key under a password.
    #[error("is a PKCS#12 store (.p12, .pfx), not PEM")]
    Pkcs12,
    /// PEM framing or base64 is broken.
    #[error("is not valid PEM: {0}")]
    Pem(String),
    /// A certificate cannot be parsed.
    #[error("certificate {0} cannot be parsed")]
    Certificate(usize),
    /// No private key.
    #[error("holds no private key")]
    NoKey,
    /// The key needs a password, or is encrypted in the way of PEM files before PKCS#8.
    #[error("holds an encrypted private key")]
    EncryptedKey,
    /// An encrypted key cannot be opened.
    #[error("the private key in it {0}")]
    LockedKey(StoreError),
    /// A PKCS#12 store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key type is none that we use.
    #[error("holds a private key that cannot be used: {0}")]
    Key(String),
    /// No certificate belongs to the key.
    #[error("the private key belongs to none of the certificates in `certificate_chain`")]
    Mismatch,
    /// No revocation list.
    #[error("holds no revocation list")]
    NoRevocationList,
    /// A revocation list cannot be parsed.
    #[error("revocation list {0} cannot be used: {1}")]
    RevocationList(usize, String),
    /// A CA cannot be used as a trust anchor.
    #[error("CA certificate {0} cannot be used: {1}")]
    Ca(usize, String),
}

impl MaterialError {
    /// What to do about it.
    #[must_use]
    pub const fn fix(&self) -> &'static str {
        match self {
            Self::NoCertificate => "it needs at least one block `-----BEGIN CERTIFICATE-----`",
            Self::Der => "convert it: openssl x509 -inform der -in FILE -out FILE.pem",
            Self::Pkcs12 => {
                "name it in `pkcs12`, and its password in `password`, instead of `certificate_chain` and `private_key`"
            }
            Self::NoRevocationList => "it needs at least one block `-----BEGIN X509 CRL-----`",
            Self::Pem(_) | Self::Certificate(_) | Self::Ca(..) | Self::RevocationList(..) => {
                "export it again as PEM"
            }
            Self::NoKey => {
                "it needs one block `-----BEGIN PRIVATE KEY-----`, `RSA PRIVATE KEY` or `EC PRIVATE KEY`"
            }
            Self::EncryptedKey => {
                "write it as PKCS#8 (openssl pkcs8 -topk8 -v2 aes256 -in FILE -out FILE.p8) and give its `password`, or decrypt it"
            }
            Self::LockedKey(StoreError::Password) | Self::Store(StoreError::Password) => {
                "give the right one in `password`"
            }
            Self::LockedKey(_) => "write it again: openssl pkcs8 -topk8 -v2 aes256 -in FILE -out FILE.new",
            Self::Store(error) => error.fix(),
            Self::Key(_) => {
                "use an ECDSA P-256, P-384 or P-521, an RSA (2048 bits or more) or an Ed25519 key"
            }
            Self::Mismatch => "give the certificate and the key of one pair",
        }
    }

    /// Whether the key, not the certificates, is to blame.
    #[must_use]
    pub const fn is_about_key(&self) -> bool {
        matches!(self, Self::NoKey | Self::EncryptedKey | Self::LockedKey(_) | Self::Key(_) | Self::Mismatch)
    }
}

/// A certificate chain with its private key, ready to be shown.
#[derive(Debug, Clone)]
pub struct OwnCertificate {
    /// Chain, leaf first, and key.
    pub key: Arc<CertifiedKey>,
    /// DNS names of the leaf in lower case; its common name when it has none.
    pub names: Vec<Box<str>>,
    /// The URI name of the leaf: its SPIFFE ID, when it has one.
    pub uri: Option<Box<str>>,
    /// Beginning of validity, in seconds since 1970.
    pub not_before: i64,
    /// End of validity, in seconds since 1970.
    pub not_after: i64,
}

impl OwnCertificate {
    /// Builds the pair out of PEM. The chain may be in any order: the leaf is the certificate that belongs to the key.
    ///
    /// # Errors
    /// What is wrong with the material.
    pub fn from_pem(chain: &[u8], key: &[u8], provider: &CryptoProvider) -> Result<Self, MaterialError> {
        Self::new(certificates(chain)?, private_key(key)?, provider)
    }

    /// As [`Self::from_pem`], of a key that may be encrypted with `password`.
    ///
    /// # Errors
    /// What is wrong with the material.
    pub fn from_encrypted_pem(
        chain: &[u8],
        key: &[u8],
        password: &str,
        provider: &CryptoProvider,
    ) -> Result<Self, MaterialError> {
        Self::new(certificates(chain)?, unlocked_key(key, password)?, provider)
    }

    /// Builds the pair out of a PKCS#12 store.
    ///
    /// # Errors
    /// What is wrong with the store, or with what it holds.
    pub fn from_pkcs12(
        store: &[u8],
        password: &str,
        provider: &CryptoProvider,
    ) -> Result<Self, MaterialError> {
        let store = pkcs12::open(store, password)?;
        Self::new(readable(store.certificates)?, store.key, provider)
    }

    fn new(
        certificates: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        provider: &CryptoProvider,
    ) -> Result<Self, MaterialError> {
        let key =
            provider.key_provider.load_private_key(key).map_err(|e| MaterialError::Key(e.to_string()))?;
        let chain = leaf_first(certificates, key.public_key().as_deref())?;
        let leaf = identity::parse(&chain[0]).map_err(|_| MaterialError::Certificate(0))?;
        let (not_before, not_after) =
            (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
        let names = server_names(&leaf);
        let uri = identity::names(&leaf).ok().and_then(|names| names.uri.map(Into::into));
        Ok(Self { key: Arc::new(CertifiedKey::new(chain, key)), names, uri, not_before, not_after })
    }

    /// Whether the key is ECDSA.
    #[must_use]
    pub fn is_ecdsa(&self) -> bool {
        self.key.key.algorithm() == SignatureAlgorithm::ECDSA
    }

    /// What to warn about at `now` (seconds since 1970): expired, or not valid yet.
    #[must_use]
    pub fn warning(&self, now: i64) -> Option<&'static str> {
        if self.not_after < now {
            Some("the certificate has expired: peers will refuse it")
        } else if self.not_before > now {
            Some("the certificate is not valid yet: peers will refuse it")
        } else {
            None
        }
    }
}

fn server_names(leaf: &x509_parser::certificate::X509Certificate<'_>) -> Vec<Box<str>> {
    let dns = identity::names(leaf).map(|names| names.dns).unwrap_or_default();
    if dns.is_empty() {
        let common = leaf.subject().iter_common_name().filter_map(|cn| cn.as_str().ok());
        return common.map(|cn| cn.to_ascii_lowercase().into()).collect();
    }
    dns.iter().map(|name| name.to_ascii_lowercase().into()).collect()
}

/// All certificates of a PEM text.
///
/// # Errors
/// None is there, or one is broken.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    let text = normalise(pem)?;
    let mut list = Vec::new();
    for item in CertificateDer::pem_slice_iter(&text) {
        list.push(item.map_err(|e| MaterialError::Pem(e.to_string()))?);
    }
    readable(list)
}

/// Certificates that can all be parsed, one at least.
fn readable(list: Vec<CertificateDer<'static>>) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    for (i, certificate) in list.iter().enumerate() {
        identity::parse(certificate).map_err(|_| MaterialError::Certificate(i))?;
    }
    if list.is_empty() { Err(MaterialError::NoCertificate) } else { Ok(list) }
}

/// The first private key of a PEM text: PKCS#8, PKCS#1 or SEC1.
///
/// # Errors
/// None is there, it is encrypted, or it is broken.
pub fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, MaterialError> {
    let text = normalise(pem)?;
    if is_encrypted(&text) { Err(MaterialError::EncryptedKey) } else { plain_key(&text) }
}

/// As [`private_key`], of a key that may be a block `ENCRYPTED PRIVATE KEY` (PKCS#8).
///
/// # Errors
/// None is there, it cannot be opened with `password`, or it is broken.
pub fn unlocked_key(pem: &[u8], password: &str) -> Result<PrivateKeyDer<'static>, MaterialError> {
    let text = normalise(pem)?;
    if !is_encrypted(&text) {
        return plain_key(&text);
    }
    // The reader of PEM knows blocks of plain keys only; what it then takes for one is the encrypted structure.
    let text = String::from_utf8_lossy(&text).replace("ENCRYPTED PRIVATE KEY", "PRIVATE KEY");
    if is_encrypted(text.as_bytes()) {
        return Err(MaterialError::EncryptedKey); // `Proc-Type: 4,ENCRYPTED` (RFC 1421)
    }
    let key = plain_key(text.as_bytes())?;
    pkcs12::open_key(key.secret_der(), password).map_err(MaterialError::LockedKey)
}

fn is_encrypted(text: &[u8]) -> bool {
    memchr::memmem::find(text, b"ENCRYPTED").is_some()
}

fn plain_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, MaterialError> {
    match PrivateKeyDer::from_pem_slice(text) {
        Ok(key) => Ok(key),
        Err(rustls_pki_types::pem::Error::NoItemsFound) => Err(MaterialError::NoKey),
        Err(error) => Err(MaterialError::Pem(error.to_string())),
    }
}

/// Trusted CAs.
#[derive(Debug, Clone)]
pub struct Authorities {
    /// For verifiers.
    pub store: RootCertStore,
    /// For people.
    pub certificates: Vec<CertificateDer<'static>>,
}

impl Authorities {
    /// Out of certificates.
    ///
    /// # Errors
    /// One cannot be a trust anchor.
    pub fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, MaterialError> {
        let mut store = RootCertStore::empty();
        for (i, certificate) in certificates.iter().enumerate() {
            store.add(certificate.clone()).map_err(|e| MaterialError::Ca(i, e.to_string()))?;
        }
        Ok(Self { store, certificates })
    }

    /// These, and those of `others` that are not among them.
    #[must_use]
    pub fn with(&self, others: &Self) -> Self {
        let more = others.certificates.iter().filter(|other| !self.certificates.contains(other)).cloned();
        let all: Vec<_> = self.certificates.iter().cloned().chain(more).collect();
        // All of them have been anchors before.
        Self::new(all).unwrap_or_else(|_| self.clone())
    }

    /// None (yet).
    #[must_use]
    pub fn none() -> Self {
        Self { store: RootCertStore::empty(), certificates: Vec::new() }
    }
}

/// Certificates as PEM (RFC 7468).
#[must_use]
pub fn to_pem(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|der| block("CERTIFICATE", der)).collect()
}

/// A private key, PKCS#8 in DER, as PEM (RFC 7468).
#[must_use]
pub fn key_to_pem(key: &[u8]) -> String {
    block("PRIVATE KEY", key)
}

fn block(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|byte| char::from(*byte)));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

/// Trusted CAs out of a PEM bundle.
///
/// # Errors
/// None is there, or one cannot be a trust anchor.
pub fn roots(pem: &[u8]) -> Result<Authorities, MaterialError> {
    Authorities::new(certificates(pem)?)
}

/// Revocation lists out of PEM.
///
/// # Errors
/// None is there, or one is broken.
pub fn revocation_lists(pem: &[u8]) -> Result<Vec<CertRevocationList<'static>>, MaterialError> {
    let text = normalise(pem)?;
    let mut lists = Vec::new();
    for (i, item) in CertificateRevocationListDer::pem_slice_iter(&text).enumerate() {
        let der = item.map_err(|e| MaterialError::Pem(e.to_string()))?;
        let list = OwnedCertRevocationList::from_der(&der);
        lists.push(list.map_err(|e| MaterialError::RevocationList(i, e.to_string()))?.into());
    }
    if lists.is_empty() { Err(MaterialError::NoRevocationList) } else { Ok(lists) }
}

/// Lines without indentation and byte order mark; a marker must stand at the beginning of its line.
fn normalise(pem: &[u8]) -> Result<Vec<u8>, MaterialError> {
    if pem.starts_with(&[0x30]) {
        return Err(if is_pkcs12(pem) { MaterialError::Pkcs12 } else { MaterialError::Der });
    }
    let pem = pem.strip_prefix(b"\xef\xbb\xbf").unwrap_or(pem);
    let mut out = Vec::with_capacity(pem.len() + 1);
    for line in pem.split(|b| matches!(b, b'\n' | b'\r')) {
        let line = line.trim_ascii();
        if !line.is_empty() {
            out.extend_from_slice(line);
            out.push(b'\n');
        }
    }
    Ok(out)
}

/// Whether DER is a PKCS#12 store: a sequence that begins with the integer 3 (RFC 7292 §4).
fn is_pkcs12(der: &[u8]) -> bool {
    // The sequence's length has one byte, or says how many more there are; 0x80 is the indefinite form of Java's stores.
    let header = match der.get(1) {
        Some(&long @ 0x80..) => 2 + usize::from(long & 0x7f),
        _ => 2,
    };
    der.get(header..).is_some_and(|content| content.starts_with(&[2, 1, 3]))
}

/// Puts the certificate of `public_key` first, and after it the certificate of its issuer, and so on.
fn leaf_first(
    mut rest: Vec<CertificateDer<'static>>,
    public_key: Option<&[u8]>,
) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    let leaf = match public_key {
        None => 0,
        Some(spki) => rest.iter().position(|c| spki_of(c) == Some(spki)).ok_or(MaterialError::Mismatch)?,
    };
    let mut chain = vec![rest.remove(leaf)];
    while let Some(next) = issuer_position(&chain[chain.len() - 1], &rest) {
        chain.push(rest.remove(next));
    }
    // Cross-signed alternatives stay behind the chain, where verifiers still find them.
    chain.append(&mut rest);
    Ok(chain)
}

/// SHA-256 of a certificate's public key (SPKI), in hexadecimal, as join tokens name roots.
#[must_use]
pub fn fingerprint_hex(certificate: &CertificateDer<'_>) -> Option<String> {
    let digest = identity::sha256(spki_of(certificate)?);
    Some(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Whether a certificate names itself as its issuer.
#[must_use]
pub fn is_self_signed(certificate: &CertificateDer<'_>) -> bool {
    identity::parse(certificate).is_ok_and(|c| c.subject().as_raw() == c.issuer().as_raw())
}

fn spki_of<'a>(certificate: &'a CertificateDer<'_>) -> Option<&'a [u8]> {
    Some(identity::parse(certificate).ok()?.tbs_certificate.subject_pki.raw)
}

fn issuer_position(of: &CertificateDer<'_>, among: &[CertificateDer<'_>]) -> Option<usize> {
    let child = identity::parse(of).ok()?;
    let issuer = child.issuer().as_raw();
    among.iter().position(|c| identity::parse(c).is_ok_and(|c| c.subject().as_raw() == issuer))
}
