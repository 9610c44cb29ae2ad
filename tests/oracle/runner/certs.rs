//! Certificates made for one run: nothing secret is ever committed.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::Path;
use std::sync::Arc;

/// Writes to `dir`: `ca.crt`, `other-ca.crt`, and `NAME.crt`, `NAME.key` of `a`, `b`, `upstream`, `client` (from `ca`) and
/// `stranger` (from `other-ca`).
pub fn write(dir: &Path) -> anyhow::Result<()> {
    let ca = authority("Oracle CA")?;
    let other = authority("Other CA")?;
    std::fs::write(dir.join("ca.crt"), ca.pem())?;
    std::fs::write(dir.join("other-ca.crt"), other.pem())?;
    type Leaf<'a> = (&'a str, &'a CertifiedIssuer<'a, KeyPair>, &'a [&'a str], Option<&'a str>);
    let leaves: [Leaf<'_>; 5] = [
        ("a", &ca, &["a.example", "*.wild.example"], None),
        ("b", &ca, &["b.example"], None),
        ("upstream", &ca, &["upstream.internal"], Some("spiffe://oracle.test/ns/default/sa/upstream")),
        ("client", &ca, &["client.internal"], Some("spiffe://oracle.test/ns/default/sa/client")),
        ("stranger", &other, &["client.internal"], Some("spiffe://oracle.test/ns/default/sa/client")),
    ];
    for (name, issuer, names, uri) in leaves {
        let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if let Some(uri) = uri {
            params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        }
        let key = KeyPair::generate()?;
        std::fs::write(dir.join(format!("{name}.crt")), params.signed_by(&key, issuer)?.pem())?;
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}

fn authority(name: &str) -> anyhow::Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

fn roots(dir: &Path) -> anyhow::Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_file_iter(dir.join("ca.crt"))? {
        roots.add(cert?)?;
    }
    Ok(Arc::new(roots))
}

fn pair(dir: &Path, name: &str) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_file_iter(dir.join(format!("{name}.crt")))?.collect::<Result<_, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_file(dir.join(format!("{name}.key")))?))
}

/// The TLS side of upstream S: h2 and http/1.1, asks for a client certificate and does not insist on one.
pub fn upstream(dir: &Path) -> anyhow::Result<ServerConfig> {
    let verifier = WebPkiClientVerifier::builder(roots(dir)?).allow_unauthenticated().build()?;
    let (chain, key) = pair(dir, "upstream")?;
    let mut config =
        ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A client that trusts `ca` and shows the certificate `name`, if any.
pub fn client(dir: &Path, name: Option<&str>, alpn: &[String]) -> anyhow::Result<ClientConfig> {
    let builder = ClientConfig::builder().with_root_certificates(roots(dir)?);
    let mut config = match name {
        Some(name) => {
            let (chain, key) = pair(dir, name)?;
            builder.with_client_auth_cert(chain, key)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(config)
}
