//! Certificates for mTLS: one authority, one leaf for each side with a DNS name and a SPIFFE ID, ECDSA P-256.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};

/// Writes `ca.pem`, and for each of the names `a` and `b`: `.pem`, `.key`, and `.both.pem` with the two in one file.
pub(crate) fn write(folder: &Path) -> anyhow::Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "bench authority");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = key()?;
    let authority = params.self_signed(&key).context("authority")?;
    save(folder, "ca.pem", &authority.pem())?;
    let issuer = Issuer::new(params, key);
    for name in ["a", "b"] {
        leaf(folder, name, &issuer)?;
    }
    Ok(())
}

fn key() -> anyhow::Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("key")
}

fn leaf(folder: &Path, name: &str, issuer: &Issuer<'_, KeyPair>) -> anyhow::Result<()> {
    let host = format!("{name}.bench");
    let mut params = CertificateParams::new(vec![host.clone()]).context("name")?;
    let identity = format!("spiffe://bench/ns/bench/sa/{name}");
    params.subject_alt_names.push(SanType::URI(identity.try_into().context("identity")?));
    params.distinguished_name.push(DnType::CommonName, host);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = key()?;
    let certificate = params.signed_by(&key, issuer).context("leaf")?.pem();
    let key = key.serialize_pem();
    save(folder, &format!("{name}.pem"), &certificate)?;
    save(folder, &format!("{name}.key"), &key)?;
    save(folder, &format!("{name}.both.pem"), &format!("{certificate}{key}"))
}

fn save(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = folder.join(name);
    fs::write(&path, text).with_context(|| path.display().to_string())
}
