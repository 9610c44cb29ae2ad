//! Certificate signing requests (PKCS #10, RFC 2986): a key, and the proof that the sender has it. Every name in them is only a wish.

use rcgen::SubjectPublicKeyInfo;
use remora_proxy::tls::identity::{SpiffeId, sha256};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509;

use super::refused::Refused;

/// Bits of an RSA key.
const RSA: std::ops::RangeInclusive<usize> = 2048..=8192;

/// A request whose signature and key are good.
#[derive(Debug, Clone)]
pub struct Csr {
    pub(super) key: SubjectPublicKeyInfo,
    /// SHA-256 of the key.
    pub(super) fingerprint: [u8; 32],
    /// The URI names that it asks for.
    uris: Vec<String>,
}

impl Csr {
    /// Reads a request in PEM or DER.
    ///
    /// # Errors
    /// It is none, its signature is not by its own key, or its key is weak.
    pub fn read(bytes: &[u8]) -> Result<Self, Refused> {
        let malformed = |why: &str| Refused::CsrMalformed(why.to_owned());
        let der = match bytes.first() {
            // SEQUENCE: no text begins so.
            Some(0x30) => CertificateSigningRequestDer::from(bytes),
            _ => CertificateSigningRequestDer::from_pem_slice(bytes)
                .map_err(|e| Refused::CsrMalformed(format!("no PEM block CERTIFICATE REQUEST: {e}")))?,
        };
        let Ok(([], request)) = X509CertificationRequest::from_der(&der) else {
            return Err(malformed("no PKCS #10 request"));
        };
        let key = &request.certification_request_info.subject_pki;
        check(key)?;
        request.verify_signature().map_err(|_| Refused::CsrSignature)?;
        let uris = names(&request)?;
        let fingerprint = sha256(key.raw);
        let key = SubjectPublicKeyInfo::from_der(key.raw).map_err(|e| Refused::CsrKey(e.to_string()))?;
        Ok(Self { key, fingerprint, uris })
    }

    /// Whether it may be signed for `identity`: it names no URI, or this one.
    ///
    /// # Errors
    /// [`Refused::CsrIdentity`].
    pub fn admit(&self, identity: &SpiffeId) -> Result<(), Refused> {
        match self.uris.iter().find(|uri| *uri != identity.as_str()) {
            None => Ok(()),
            Some(other) => Err(Refused::CsrIdentity { asked: other.clone(), allowed: identity.to_string() }),
        }
    }
}

fn names(request: &X509CertificationRequest<'_>) -> Result<Vec<String>, Refused> {
    let mut uris = Vec::new();
    for extension in request.requested_extensions().into_iter().flatten() {
        match extension {
            ParsedExtension::SubjectAlternativeName(names) => {
                let uri = |name: &GeneralName<'_>| match name {
                    GeneralName::URI(uri) => Some((*uri).to_owned()),
                    _ => None,
                };
                uris.extend(names.general_names.iter().filter_map(uri));
            }
            ParsedExtension::ParseError { .. } => {
                return Err(Refused::CsrMalformed("one of its extensions".into()));
            }
            _ => {}
        }
    }
    Ok(uris)
}

/// Whether peers can use the key, and nobody can guess it.
fn check(key: &x509::SubjectPublicKeyInfo<'_>) -> Result<(), Refused> {
    let algorithm = &key.algorithm.algorithm;
    let weak = |what: String| Err(Refused::CsrKey(what));
    if *algorithm == OID_SIG_ED25519 {
        return Ok(());
    }
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = key.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
        return match curve {
            Some(curve) if curve == OID_EC_P256 || curve == OID_NIST_EC_P384 => Ok(()),
            Some(curve) => weak(format!("on the curve {curve}")),
            None => weak("on a curve without a name".into()),
        };
    }
    if *algorithm == OID_PKCS1_RSAENCRYPTION {
        return match key.parsed() {
            Ok(PublicKey::RSA(rsa)) if RSA.contains(&rsa.key_size()) => Ok(()),
            Ok(PublicKey::RSA(rsa)) => weak(format!("RSA of {} bits", rsa.key_size())),
            _ => weak("no RSA key".into()),
        };
    }
    weak(format!("of the algorithm {algorithm}"))
}
