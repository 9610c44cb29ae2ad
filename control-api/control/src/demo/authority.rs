//! A certificate authority that lives as long as the demo.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// Certificates live for a day, and began two minutes ago for machines whose clocks are behind.
const LIFE: Duration = Duration::from_secs(24 * 3600);
const BACKDATED: Duration = Duration::from_secs(120);

pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, PEM.
    pub(super) roots: String,
}

/// A certificate and its key, PEM.
pub(super) struct Identity {
    pub(super) chain: String,
    pub(super) key: String,
}

fn parameters(name: &str) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    let now = rcgen::date_time_ymd(1970, 1, 1) + SystemTime::now().duration_since(UNIX_EPOCH)?;
    params.not_before = now - BACKDATED;
    params.not_after = now + LIFE;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

impl Authority {
    pub(super) fn new() -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = parameters("remora demo")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let roots = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), roots })
    }

    /// A certificate for one SPIFFE ID (X509-SVID: one URI, no other name).
    pub(super) fn issue(&self, spiffe: &str) -> anyhow::Result<Identity> {
        let key = KeyPair::generate()?;
        let mut params = parameters("workload")?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(spiffe.try_into()?)];
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity { chain: certificate.pem(), key: key.serialize_pem() })
    }
}
