//! Roots: certificates that sign others, with their keys.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use remora_proxy::tls::identity::sha256;
use remora_proxy::tls::material;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

use super::authority::SKEW;
use super::refused::Refused;
use super::{Source, hex, pem};

/// How long a root lives that is made here: 10 years.
pub(super) const LIFE: u64 = 3652 * 24 * 3600;

/// Where a root is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It is trusted, and does not sign yet.
    Announced,
    /// It signs; exactly one does.
    Signing,
    /// It is trusted until the last certificate that it signed has ended.
    Retiring,
}

/// What nobody sees in a log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Hidden(String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// A certificate that signs, with its key, and what peers trust because of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Root {
    /// SHA-256 of its public key (SPKI), in hexadecimal.
    pub id: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Whether it was made here; else it was given by files.
    pub own: bool,
    /// PEM.
    certificate: String,
    /// Certificates between it and what is trusted, each in PEM.
    between: Vec<String>,
    /// What is trusted because of it, each in PEM: itself, when it is self-signed.
    anchors: Vec<String>,
    key: Hidden,
    /// Beginning of its validity, in seconds since 1970.
    pub not_before: u64,
    /// End of its validity, in seconds since 1970.
    pub not_after: u64,
    /// No certificate of a workload that it signed ends after this, in seconds since 1970.
    pub signed_until: u64,
    /// None for the first one, and where one of the two does not allow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cross: Option<Cross>,
}

/// A cross-certificate (RFC 5280 §3.2): the name and the key of a root, signed by the root before it. Who trusts only that one believes
/// what the newer one signs, as long as the older one is trusted at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cross {
    /// The id of the root that signed it.
    pub(super) by: String,
    /// PEM.
    pub(super) certificate: String,
}

/// Why files are no root.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {what}: {fix}", file.display())]
pub struct Wrong {
    /// Which file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub what: String,
    /// What to do about it.
    pub fix: String,
}

/// `--ca-cert`, `--ca-key` and `--ca-roots`.
#[derive(Debug, Clone)]
pub struct Files {
    /// The certificate that signs, and those between it and the roots.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// What is trusted; left out, the certificate is a root itself.
    pub roots: Option<PathBuf>,
}

/// The end of the year 9999, in seconds since 1970: X.509 has no later time (RFC 5280 section 4.1.2.5).
pub(super) const LAST: u64 = 253_402_300_799;

/// Gives a certificate its times, in seconds since 1970.
pub(super) fn lives(params: &mut CertificateParams, from: u64, until: u64) {
    let date = |seconds| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(LAST.min(seconds));
    (params.not_before, params.not_after) = (date(from), date(until));
}

impl Root {
    /// It enters another phase.
    #[must_use]
    pub(super) fn entering(self, phase: Phase, now: u64) -> Self {
        Self { phase, since: now, ..self }
    }

    /// A self-signed root of `domain`, which is announced.
    ///
    /// # Errors
    /// The machine has no random numbers.
    pub fn make(domain: &str, now: u64, source: &mut impl Source) -> Result<Self, Refused> {
        let key = source.key()?;
        let serial = source.serial()?;
        // Two roots of one name would be hard to tell apart, for people and for verifiers; 64 characters are X.520's bound.
        let name: String = format!("remora {} of {domain}", hex(&serial[12..])).chars().take(64).collect();
        let mut params = authority_of(&name, serial);
        lives(&mut params, now.saturating_sub(SKEW), now + LIFE);
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self {
            id: hex(&sha256(&key.subject_public_key_info())),
            phase: Phase::Announced,
            since: now,
            own: true,
            anchors: vec![certificate.clone()],
            between: Vec::new(),
            certificate,
            key: Hidden(key.serialize_pem()),
            not_before: now.saturating_sub(SKEW),
            not_after: now + LIFE,
            signed_until: 0,
            cross: None,
        })
    }

    /// A root or an intermediate out of files, which is announced.
    ///
    /// # Errors
    /// The files cannot be read, do not belong together, are no CA's, or have expired.
    pub fn read(files: &Files, now: u64) -> Result<Self, Wrong> {
        let certificates = certificates(&files.certificate)?;
        let key = material::private_key(&bytes(&files.key)?).map_err(|e| unusable(&files.key, &e))?;
        let key =
            KeyPair::try_from(&key).map_err(|e| wrong(&files.key, e, "use an ECDSA, RSA or Ed25519 key"))?;
        let anchors = files.roots.as_deref().map(self::certificates).transpose()?;
        let [signer, between @ ..] = &certificates[..] else {
            return Err(wrong(&files.certificate, "holds no certificate", "give a CA's certificate in PEM"));
        };
        let parsed = check(&files.certificate, signer, &key, now)?;
        let self_signed = parsed.subject().as_raw() == parsed.issuer().as_raw();
        let anchors = match anchors {
            Some(anchors) => anchors,
            None if self_signed => vec![signer.clone()],
            None => {
                let fix = "name the file with its root: --ca-roots FILE";
                return Err(wrong(&files.certificate, "is an intermediate", fix));
            }
        };
        let mut anchors = anchors;
        // Tokens name the first: it has to be the one that the chain leads to.
        let own = leads(files, &parsed, between, &anchors)?;
        anchors[..=own].rotate_right(1);
        let pem = |list: &[CertificateDer<'_>]| list.iter().map(|c| pem::certificate(c)).collect::<Vec<_>>();
        let between: Vec<_> = between.iter().filter(|c| !anchors.contains(c)).cloned().collect();
        Ok(Self {
            id: hex(&sha256(&key.subject_public_key_info())),
            phase: Phase::Announced,
            since: now,
            own: false,
            certificate: pem::certificate(signer),
            between: pem(&between),
            anchors: pem(&anchors),
            key: Hidden(pem::encode("PRIVATE KEY", key.serialized_der())),
            not_before: seconds(parsed.validity().not_before.timestamp()),
            not_after: seconds(parsed.validity().not_after.timestamp()),
            signed_until: 0,
            cross: None,
        })
    }

    /// Signed by `by`, too, where both allow it: this one was made here, and that one may sign CAs.
    ///
    /// # Errors
    /// What the store holds is no certificate, or the machine has no random numbers.
    pub(super) fn crossed(mut self, by: &Self, now: u64, source: &mut impl Source) -> Result<Self, Refused> {
        if !self.own || !by.parsed(may_sign_authorities)? {
            return Ok(self);
        }
        let name = self.parsed(|certificate| {
            certificate.subject().iter_common_name().find_map(|name| name.as_str().ok()).map(str::to_owned)
        })?;
        let name = name.ok_or_else(|| Refused::Corrupt(format!("root {} has no name", self.short())))?;
        let mut params = authority_of(&name, source.serial()?);
        lives(&mut params, now.saturating_sub(SKEW).max(by.not_before), self.not_after.min(by.not_after));
        params.use_authority_key_identifier_extension = true;
        let key = self.key()?;
        let certificate = params.signed_by(&key, &by.issuer()?)?.pem();
        self.cross = Some(Cross { by: by.id.clone(), certificate });
        Ok(self)
    }

    /// Serial number and end of the certificate by which another root vouches for it.
    ///
    /// # Errors
    /// What the store holds is no certificate.
    pub(super) fn cross_serial(&self) -> Result<Option<(String, u64)>, Refused> {
        let read = |certificate: &X509Certificate<'_>| {
            (hex(certificate.raw_serial()), seconds(certificate.validity().not_after.timestamp()))
        };
        self.cross.as_ref().map(|cross| self.parse(&cross.certificate, read)).transpose()
    }

    /// Takes the certificate of `newer`, which has the same key.
    pub(super) fn renew(&mut self, newer: &Self) {
        let Self { certificate, between, anchors, not_before, not_after, .. } = newer.clone();
        *self = Self { certificate, between, anchors, not_before, not_after, ..self.clone() };
    }

    /// Its subject, in DER.
    ///
    /// # Errors
    /// What the store holds is no certificate.
    pub(super) fn name(&self) -> Result<Vec<u8>, Refused> {
        self.parsed(|certificate| certificate.subject().as_raw().to_vec())
    }

    /// See [`Cross`].
    pub(super) const fn cross(&self) -> Option<&Cross> {
        self.cross.as_ref()
    }

    /// Whether what is trusted because of it are other certificates: it can make no revocation list in their place.
    pub(super) fn is_below_others(&self) -> bool {
        self.anchors.iter().any(|anchor| *anchor != self.certificate)
    }

    fn key(&self) -> Result<KeyPair, Refused> {
        KeyPair::from_pem(&self.key.0).map_err(|e| Refused::Corrupt(format!("root {}: {e}", self.short())))
    }

    fn parsed<T>(&self, read: impl FnOnce(&X509Certificate<'_>) -> T) -> Result<T, Refused> {
        self.parse(&self.certificate, read)
    }

    fn parse<T>(&self, pem: &str, read: impl FnOnce(&X509Certificate<'_>) -> T) -> Result<T, Refused> {
        let corrupt = || Refused::Corrupt(format!("root {}: its certificate cannot be read", self.short()));
        let list = material::certificates(pem.as_bytes()).map_err(|_| corrupt())?;
        let (_, parsed) =
            list.first().and_then(|der| X509Certificate::from_der(der).ok()).ok_or_else(corrupt)?;
        Ok(read(&parsed))
    }

    /// The certificate with its key, to sign with.
    ///
    /// # Errors
    /// What the store holds is none.
    pub(super) fn issuer(&self) -> Result<Issuer<'static, KeyPair>, Refused> {
        let corrupt = |e: rcgen::Error| Refused::Corrupt(format!("root {}: {e}", self.short()));
        Issuer::from_ca_cert_pem(&self.certificate, self.key()?).map_err(corrupt)
    }

    /// The key identifier that its certificate gives itself.
    ///
    /// # Errors
    /// What the store holds is no certificate.
    pub(super) fn key_id(&self) -> Result<Vec<u8>, Refused> {
        self.parsed(|parsed| {
            let said = parsed.extensions().iter().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            });
            said.unwrap_or_else(|| sha256(parsed.tbs_certificate.subject_pki.raw)[..20].to_vec())
        })
    }

    /// What is sent behind a leaf: itself unless it is trusted, and those between it and what is trusted.
    pub(super) fn intermediates(&self) -> impl Iterator<Item = &String> {
        let own = (!self.anchors.contains(&self.certificate)).then_some(&self.certificate);
        own.into_iter().chain(&self.between)
    }

    /// What is trusted because of it, each in PEM.
    #[must_use]
    pub fn anchors(&self) -> &[String] {
        &self.anchors
    }

    /// SHA-256 of the public key of what is trusted, in hexadecimal: who knows this can verify a server that shows the whole chain.
    ///
    /// # Errors
    /// What the store holds is no certificate.
    pub fn pin(&self) -> Result<String, Refused> {
        let corrupt = || Refused::Corrupt(format!("root {}: its trust anchor cannot be read", self.short()));
        let anchor = self.anchors.first().ok_or_else(corrupt)?;
        let list = material::certificates(anchor.as_bytes()).map_err(|_| corrupt())?;
        let (_, parsed) =
            list.first().and_then(|der| X509Certificate::from_der(der).ok()).ok_or_else(corrupt)?;
        Ok(hex(&sha256(parsed.tbs_certificate.subject_pki.raw)))
    }

    /// The beginning of its id, for people.
    #[must_use]
    pub fn short(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }
}

/// A certificate that signs others. How long the chain below it may be is not bounded: cross-certificates stand in it.
fn authority_of(name: &str, serial: [u8; 16]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.serial_number = Some(serial.to_vec().into());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// Whether a CA may stand below it (RFC 5280 §4.2.1.9).
fn may_sign_authorities(certificate: &X509Certificate<'_>) -> bool {
    let constraints = certificate.basic_constraints().ok().flatten();
    constraints.is_some_and(|c| c.value.path_len_constraint.is_none_or(|length| length > 0))
}

fn seconds(timestamp: i64) -> u64 {
    u64::try_from(timestamp).unwrap_or(0)
}

fn wrong(file: &Path, what: impl ToString, fix: &str) -> Wrong {
    Wrong { file: file.to_owned(), what: what.to_string(), fix: fix.to_owned() }
}

fn unusable(file: &Path, error: &material::MaterialError) -> Wrong {
    wrong(file, error, error.fix())
}

fn bytes(file: &Path) -> Result<Vec<u8>, Wrong> {
    std::fs::read(file).map_err(|e| wrong(file, e, "name a file that this process may read"))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Wrong> {
    material::certificates(&bytes(file)?).map_err(|e| unusable(file, &e))
}

fn check<'a>(
    file: &Path,
    der: &'a CertificateDer<'_>,
    key: &KeyPair,
    now: u64,
) -> Result<X509Certificate<'a>, Wrong> {
    let (_, parsed) = X509Certificate::from_der(der).map_err(|e| wrong(file, e, "export it again as PEM"))?;
    if parsed.tbs_certificate.subject_pki.raw != key.subject_public_key_info() {
        return Err(wrong(
            file,
            "does not belong to the key of --ca-key",
            "give the certificate and the key of one pair",
        ));
    }
    let constraints = parsed.basic_constraints().ok().flatten();
    if !constraints.is_some_and(|c| c.value.ca) {
        return Err(wrong(file, "is no CA's certificate (CA:TRUE)", "give the certificate of a CA"));
    }
    let usage = parsed.key_usage().ok().flatten();
    if usage.is_some_and(|u| !u.value.key_cert_sign() || !u.value.crl_sign()) {
        let fix = "make it with keyUsage keyCertSign and cRLSign";
        return Err(wrong(file, "may not sign certificates and revocation lists", fix));
    }
    let validity = parsed.validity();
    if seconds(validity.not_after.timestamp()) <= now {
        return Err(wrong(file, format!("expired at {}", validity.not_after), "renew it"));
    }
    if seconds(validity.not_before.timestamp()) > now {
        let what = format!("is not valid before {}", validity.not_before);
        return Err(wrong(file, what, "wait, or set the clock"));
    }
    Ok(parsed)
}

fn parsed<'a>(certificates: &'a [CertificateDer<'_>]) -> Vec<X509Certificate<'a>> {
    certificates.iter().filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1)).collect()
}

/// To which of `anchors` the signatures lead from `signer`.
fn leads(
    files: &Files,
    signer: &X509Certificate<'_>,
    between: &[CertificateDer<'_>],
    anchors: &[CertificateDer<'_>],
) -> Result<usize, Wrong> {
    let (mut rest, anchors) = (parsed(between), parsed(anchors));
    let mut at = signer.clone();
    loop {
        let signs = |above: &X509Certificate<'_>| {
            above.subject().as_raw() == at.issuer().as_raw()
                && at.verify_signature(Some(above.public_key())).is_ok()
        };
        if let Some(own) = anchors.iter().position(|anchor| anchor.as_raw() == at.as_raw() || signs(anchor)) {
            return Ok(own);
        }
        let Some(next) = rest.iter().position(signs) else {
            let file = files.roots.as_deref().unwrap_or(&files.certificate);
            let what = format!("none of it signed {}, directly or by those behind it", at.subject());
            return Err(wrong(
                file,
                what,
                "give the root of --ca-cert, and put those between into the file of --ca-cert",
            ));
        };
        at = rest.swap_remove(next);
    }
}
