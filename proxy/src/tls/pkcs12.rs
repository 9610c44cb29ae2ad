//! PKCS#12 stores (RFC 7292) and encrypted PKCS#8 keys (RFC 5958 §3), with the encryption that OpenSSL 3 and Java since
//! 8u301 write: PBES2 with PBKDF2 and AES-CBC (RFC 8018). The store's checksum is verified before anything is decrypted.
//!
//! Why not a crate: those that read such stores bring a second implementation of every primitive, forty crates, of which
//! the central ones are pre-releases. What aws-lc does not offer (RC2, the key derivation of 1996) is refused by name.

use std::num::NonZeroU32;

use aws_lc_rs::cipher::{self, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{digest, hmac, pbkdf2};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::asn1_rs::{Any, Class, FromDer as _, Oid, Tag, oid};

const DATA: Oid<'_> = oid!(1.2.840.113549.1.7.1);
const ENCRYPTED_DATA: Oid<'_> = oid!(1.2.840.113549.1.7.6);
const KEY_BAG: Oid<'_> = oid!(1.2.840.113549.1.12.10.1.1);
const SHROUDED_KEY_BAG: Oid<'_> = oid!(1.2.840.113549.1.12.10.1.2);
const CERT_BAG: Oid<'_> = oid!(1.2.840.113549.1.12.10.1.3);
const X509_CERTIFICATE: Oid<'_> = oid!(1.2.840.113549.1.9.22.1);
const PBES2: Oid<'_> = oid!(1.2.840.113549.1.5.13);
const PBKDF2: Oid<'_> = oid!(1.2.840.113549.1.5.12);
const HMAC_SHA1: Oid<'_> = oid!(1.2.840.113549.2.7);
const HMAC_SHA256: Oid<'_> = oid!(1.2.840.113549.2.9);
const HMAC_SHA384: Oid<'_> = oid!(1.2.840.113549.2.10);
const HMAC_SHA512: Oid<'_> = oid!(1.2.840.113549.2.11);
const AES_128_CBC: Oid<'_> = oid!(2.16.840.1.101.3.4.1.2);
const AES_192_CBC: Oid<'_> = oid!(2.16.840.1.101.3.4.1.22);
const AES_256_CBC: Oid<'_> = oid!(2.16.840.1.101.3.4.1.42);
const SHA1: Oid<'_> = oid!(1.3.14.3.2.26);
const SHA256: Oid<'_> = oid!(2.16.840.1.101.3.4.2.1);
const SHA384: Oid<'_> = oid!(2.16.840.1.101.3.4.2.2);
const SHA512: Oid<'_> = oid!(2.16.840.1.101.3.4.2.3);

/// What all derivations of one store may cost together: far more than any tool asks for (OpenSSL 2,048 each, Java 10,000), and about a second
/// of work.
const MAX_ITERATIONS: u32 = 2_000_000;
/// The purpose "integrity" of the key derivation (RFC 7292 appendix B.3).
const INTEGRITY: u8 = 3;

/// Why a store, or an encrypted key, cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The bytes are not what the standard says.
    #[error("is damaged, or not in DER")]
    Malformed,
    /// The checksum, or the padding, does not fit.
    #[error("cannot be opened with this password")]
    Password,
    /// There is no checksum, or one of a kind that we do not verify.
    #[error("has no checksum that can be verified")]
    NoChecksum,
    /// Encrypted in another way.
    #[error("is encrypted in a way that is not supported")]
    Encryption,
    /// More rounds of key derivation than are worth the wait.
    #[error("asks for too many rounds of key derivation")]
    Rounds,
    /// No private key.
    #[error("holds no private key")]
    NoKey,
    /// Several private keys.
    #[error("holds more than one private key")]
    ManyKeys,
}

impl StoreError {
    /// What to do about it.
    #[must_use]
    pub const fn fix(self) -> &'static str {
        match self {
            Self::Malformed | Self::NoChecksum | Self::Encryption | Self::Rounds => {
                "write it again with AES, and remove FILE.pem then, which is not encrypted: \
                 openssl pkcs12 -legacy -in FILE -noenc -out FILE.pem && openssl pkcs12 -export -in FILE.pem -out FILE.new"
            }
            Self::Password => "give the right one in `password`",
            Self::NoKey | Self::ManyKeys => "export the entry that is meant into a store of its own",
        }
    }
}

/// What a store holds that TLS needs.
#[derive(Debug)]
pub struct Store {
    /// The private key, as PKCS#8.
    pub key: PrivateKeyDer<'static>,
    /// All certificates, in the store's order.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// A password, and how many rounds of key derivation may still be spent on it.
struct Password<'a> {
    text: &'a str,
    rounds: u32,
}

impl<'a> Password<'a> {
    const fn new(text: &'a str) -> Self {
        Self { text, rounds: MAX_ITERATIONS }
    }

    fn spend(&mut self, rounds: u32) -> Result<NonZeroU32, StoreError> {
        let count = NonZeroU32::new(rounds).ok_or(StoreError::Malformed)?;
        self.rounds = self.rounds.checked_sub(rounds).ok_or(StoreError::Rounds)?;
        Ok(count)
    }
}

/// Opens a store (RFC 7292 §4).
///
/// # Errors
/// It is damaged, the password is wrong, or it is of a kind that is not supported.
pub fn open(store: &[u8], password: &str) -> Result<Store, StoreError> {
    let pfx = &mut only(store, Tag::Sequence)?;
    if number(pfx)? != 3 {
        return Err(StoreError::Malformed);
    }
    let safe = &mut element(pfx, Tag::Sequence)?;
    if element(safe, Tag::Oid)? != DATA.as_bytes() {
        return Err(StoreError::NoChecksum);
    }
    let safe = only(element(safe, Tag(0))?, Tag::OctetString)?;
    let password = &mut Password::new(password);
    verify(safe, pfx, password)?;

    let (mut key, mut certificates) = (None, Vec::new());
    let contents = &mut only(safe, Tag::Sequence)?;
    while !contents.is_empty() {
        let content = decrypted(&mut element(contents, Tag::Sequence)?, password)?;
        let bags = &mut only(&content, Tag::Sequence)?;
        while !bags.is_empty() {
            match bag(&mut element(bags, Tag::Sequence)?)? {
                Bag::Certificate(der) => certificates.push(CertificateDer::from(der.to_vec())),
                Bag::Other => {}
                _ if key.is_some() => return Err(StoreError::ManyKeys),
                Bag::Key(plain) => key = Some(plain.to_vec()),
                Bag::ShroudedKey(info) => key = Some(decrypt_info(info, password)?),
            }
        }
    }
    let key = PrivatePkcs8KeyDer::from(key.ok_or(StoreError::NoKey)?).into();
    Ok(Store { key, certificates })
}

/// Opens an `EncryptedPrivateKeyInfo` (RFC 5958 §3).
///
/// # Errors
/// As of [`open`].
pub fn open_key(key: &[u8], password: &str) -> Result<PrivateKeyDer<'static>, StoreError> {
    let key = decrypt_info(only(key, Tag::Sequence)?, &mut Password::new(password))?;
    Ok(PrivatePkcs8KeyDer::from(key).into())
}

/// Verifies `MacData`, what is left of the store, over `safe`.
fn verify(safe: &[u8], rest: &mut &[u8], password: &mut Password<'_>) -> Result<(), StoreError> {
    if rest.is_empty() {
        return Err(StoreError::NoChecksum);
    }
    let mac = &mut element(rest, Tag::Sequence)?;
    let info = &mut element(mac, Tag::Sequence)?;
    let algorithm = element(&mut element(info, Tag::Sequence)?, Tag::Oid)?;
    let (hash, hmac) = match algorithm {
        a if a == SHA1.as_bytes() => (&digest::SHA1_FOR_LEGACY_USE_ONLY, hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY),
        a if a == SHA256.as_bytes() => (&digest::SHA256, hmac::HMAC_SHA256),
        a if a == SHA384.as_bytes() => (&digest::SHA384, hmac::HMAC_SHA384),
        a if a == SHA512.as_bytes() => (&digest::SHA512, hmac::HMAC_SHA512),
        _ => return Err(StoreError::NoChecksum),
    };
    let expected = element(info, Tag::OctetString)?;
    let salt = element(mac, Tag::OctetString)?;
    let iterations = if mac.is_empty() { 1 } else { number(mac)? };
    let key = integrity_key(hash, password.text, salt, password.spend(iterations)?);
    hmac::verify(&hmac::Key::new(hmac, &key), safe, expected).map_err(|_| StoreError::Password)
}

/// The key derivation of RFC 7292 appendix B.2, for the one case that is needed: as many bytes as the hash has.
fn integrity_key(
    hash: &'static digest::Algorithm,
    password: &str,
    salt: &[u8],
    iterations: NonZeroU32,
) -> Vec<u8> {
    let block = hash.block_len();
    // UTF-16, big endian, with a zero at its end (appendix B.1).
    let password: Vec<u8> = password.encode_utf16().chain([0]).flat_map(u16::to_be_bytes).collect();
    let mut context = digest::Context::new(hash);
    context.update(&vec![INTEGRITY; block]);
    for part in [salt, &password] {
        let length = part.len().next_multiple_of(block);
        context.update(&part.iter().copied().cycle().take(length).collect::<Vec<u8>>());
    }
    let mut key = context.finish();
    for _ in 1..iterations.get() {
        key = digest::digest(hash, key.as_ref());
    }
    key.as_ref().to_vec()
}

/// The bytes of a `ContentInfo` whose fields are `info`: plain, or encrypted with the password.
fn decrypted(info: &mut &[u8], password: &mut Password<'_>) -> Result<Vec<u8>, StoreError> {
    let kind = element(info, Tag::Oid)?;
    let content = element(info, Tag(0))?;
    if kind == DATA.as_bytes() {
        return Ok(only(content, Tag::OctetString)?.to_vec());
    }
    if kind != ENCRYPTED_DATA.as_bytes() {
        return Err(StoreError::Encryption);
    }
    let data = &mut only(content, Tag::Sequence)?;
    number(data)?;
    let content = &mut element(data, Tag::Sequence)?;
    element(content, Tag::Oid)?;
    let algorithm = element(content, Tag::Sequence)?;
    decrypt(algorithm, element(content, Tag(0))?, password)
}

/// What a `SafeBag` holds.
enum Bag<'a> {
    Key(&'a [u8]),
    ShroudedKey(&'a [u8]),
    Certificate(&'a [u8]),
    /// Lists of revoked certificates, secrets and nested bags are of no use here.
    Other,
}

/// Reads the fields of a `SafeBag`.
fn bag<'a>(bag: &mut &'a [u8]) -> Result<Bag<'a>, StoreError> {
    let kind = element(bag, Tag::Oid)?;
    let value = element(bag, Tag(0))?;
    if kind == KEY_BAG.as_bytes() {
        Ok(Bag::Key(value))
    } else if kind == SHROUDED_KEY_BAG.as_bytes() {
        Ok(Bag::ShroudedKey(only(value, Tag::Sequence)?))
    } else if kind == CERT_BAG.as_bytes() {
        let certificate = &mut only(value, Tag::Sequence)?;
        let is_x509 = element(certificate, Tag::Oid)? == X509_CERTIFICATE.as_bytes();
        let der = element(certificate, Tag(0))?;
        if is_x509 { Ok(Bag::Certificate(only(der, Tag::OctetString)?)) } else { Ok(Bag::Other) }
    } else {
        Ok(Bag::Other)
    }
}

/// Decrypts the fields of an `EncryptedPrivateKeyInfo`.
fn decrypt_info(mut info: &[u8], password: &mut Password<'_>) -> Result<Vec<u8>, StoreError> {
    let algorithm = element(&mut info, Tag::Sequence)?;
    decrypt(algorithm, element(&mut info, Tag::OctetString)?, password)
}

/// PBES2 (RFC 8018 §6.2) by the fields of an `AlgorithmIdentifier`.
fn decrypt(mut algorithm: &[u8], bytes: &[u8], password: &mut Password<'_>) -> Result<Vec<u8>, StoreError> {
    if element(&mut algorithm, Tag::Oid)? != PBES2.as_bytes() {
        return Err(StoreError::Encryption);
    }
    let parameters = &mut element(&mut algorithm, Tag::Sequence)?;
    let derivation = element(parameters, Tag::Sequence)?;
    let scheme = &mut element(parameters, Tag::Sequence)?;
    let (aes, key_bytes) = match element(scheme, Tag::Oid)? {
        a if a == AES_128_CBC.as_bytes() => (&cipher::AES_128, 16),
        a if a == AES_192_CBC.as_bytes() => (&cipher::AES_192, 24),
        a if a == AES_256_CBC.as_bytes() => (&cipher::AES_256, 32),
        _ => return Err(StoreError::Encryption),
    };
    let iv = <[u8; 16]>::try_from(element(scheme, Tag::OctetString)?).map_err(|_| StoreError::Malformed)?;
    let mut key = vec![0; key_bytes];
    derive(derivation, password, &mut key)?;
    let key = UnboundCipherKey::new(aes, &key).and_then(PaddedBlockDecryptingKey::cbc_pkcs7);
    let mut bytes = bytes.to_vec();
    let context = DecryptionContext::Iv128(FixedLength::from(&iv));
    let plain = key.and_then(|key| key.decrypt(&mut bytes, context).map(|plain| plain.to_vec()));
    plain.map_err(|_| StoreError::Password)
}

/// PBKDF2 (RFC 8018 §5.2) by the fields of an `AlgorithmIdentifier`.
fn derive(mut algorithm: &[u8], password: &mut Password<'_>, key: &mut [u8]) -> Result<(), StoreError> {
    if element(&mut algorithm, Tag::Oid)? != PBKDF2.as_bytes() {
        return Err(StoreError::Encryption);
    }
    let parameters = &mut element(&mut algorithm, Tag::Sequence)?;
    let salt = element(parameters, Tag::OctetString)?;
    let iterations = password.spend(number(parameters)?)?;
    if let Some(length) = optional(parameters, Tag::Integer)
        && usize::try_from(integer(length)?).ok() != Some(key.len())
    {
        return Err(StoreError::Malformed);
    }
    let default = HMAC_SHA1;
    let function = match optional(parameters, Tag::Sequence) {
        None => default.as_bytes(),
        Some(mut function) => element(&mut function, Tag::Oid)?,
    };
    let function = match function {
        f if f == HMAC_SHA1.as_bytes() => pbkdf2::PBKDF2_HMAC_SHA1,
        f if f == HMAC_SHA256.as_bytes() => pbkdf2::PBKDF2_HMAC_SHA256,
        f if f == HMAC_SHA384.as_bytes() => pbkdf2::PBKDF2_HMAC_SHA384,
        f if f == HMAC_SHA512.as_bytes() => pbkdf2::PBKDF2_HMAC_SHA512,
        _ => return Err(StoreError::Encryption),
    };
    pbkdf2::derive(function, iterations, salt, password.text.as_bytes(), key);
    Ok(())
}

/// The content of the next element, which has to have this tag; tags below 31 without a name are context-specific.
fn element<'a>(der: &mut &'a [u8], tag: Tag) -> Result<&'a [u8], StoreError> {
    optional(der, tag).ok_or(StoreError::Malformed)
}

/// The content of the next element, if it has this tag.
fn optional<'a>(der: &mut &'a [u8], tag: Tag) -> Option<&'a [u8]> {
    let class = if tag == Tag(0) { Class::ContextSpecific } else { Class::Universal };
    let (rest, any) = Any::from_der(der).ok()?;
    if any.tag() != tag || any.class() != class {
        return None;
    }
    *der = rest;
    Some(any.data)
}

/// The content of the only element.
fn only(mut der: &[u8], tag: Tag) -> Result<&[u8], StoreError> {
    let content = element(&mut der, tag)?;
    if der.is_empty() { Ok(content) } else { Err(StoreError::Malformed) }
}

/// The next element, which is a small number.
fn number(der: &mut &[u8]) -> Result<u32, StoreError> {
    integer(element(der, Tag::Integer)?)
}

/// The content of an INTEGER that is not negative and has at most 31 bits.
fn integer(content: &[u8]) -> Result<u32, StoreError> {
    match content {
        [] | [0x80..=0xff, ..] => Err(StoreError::Malformed),
        _ if content.len() > 4 => Err(StoreError::Malformed),
        _ => Ok(content.iter().fold(0, |n, byte| n << 8 | u32::from(*byte))),
    }
}

#[cfg(test)]
mod tests;
