//! Certificates made for one test.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls::SupportedProtocolVersion;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, PEM.
    pub pem: String,
}

/// A certificate with its key, PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The chain.
    pub chain: String,
    /// The key.
    pub key: String,
}

/// What a TLS client offers.
#[derive(Debug, Clone)]
pub struct ClientTls {
    /// rustls' settings, ALPN included.
    pub config: Arc<rustls::ClientConfig>,
    /// SNI, and the name that the server's certificate must have.
    pub server_name: ServerName<'static>,
}

impl Authority {
    /// A fresh one.
    ///
    /// # Panics
    /// When rcgen refuses its own parameters.
    #[must_use]
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key).expect("self-signed");
        Self { pem: cert.pem(), issuer: Issuer::new(params, key) }
    }

    /// One that a control plane may have as its own: with a subject, and with a key for revocation lists.
    ///
    /// # Panics
    /// When rcgen refuses its own parameters.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let cert = params.self_signed(&key).expect("self-signed");
        Self { pem: cert.pem(), issuer: Issuer::new(params, key) }
    }

    /// Its key, PEM.
    #[must_use]
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A certificate for DNS names, IP addresses and URIs (anything with `://`).
    ///
    /// # Panics
    /// When a name is not one.
    #[must_use]
    pub fn issue(&self, names: &[&str]) -> Identity {
        self.issue_with(names, |_| {})
    }

    /// The same, with something else about it.
    ///
    /// # Panics
    /// When a name is not one.
    #[must_use]
    pub fn issue_with(&self, names: &[&str], edit: impl FnOnce(&mut CertificateParams)) -> Identity {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        for name in names {
            params.subject_alt_names.push(if name.contains("://") {
                SanType::URI((*name).try_into().expect("URI"))
            } else if let Ok(ip) = name.parse::<IpAddr>() {
                SanType::IpAddress(ip)
            } else {
                SanType::DnsName((*name).try_into().expect("DNS name"))
            });
        }
        edit(&mut params);
        let cert = params.signed_by(&key, &self.issuer).expect("signed");
        Identity { chain: cert.pem(), key: key.serialize_pem() }
    }

    /// A revocation list with certificates of these serial numbers, in PEM.
    ///
    /// # Panics
    /// When rcgen refuses its own parameters.
    #[must_use]
    pub fn revoke(&self, serials: &[u64]) -> String {
        let (from, to) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2100, 1, 1));
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: from,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: from,
            next_update: to,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).expect("signed").pem().expect("PEM")
    }

    /// A client that trusts this authority, offers these ALPN protocols, and shows `identity` when it is given.
    ///
    /// # Panics
    /// When rustls refuses the certificates.
    #[must_use]
    pub fn client(&self, server_name: &str, alpn: &[&str], identity: Option<&Identity>) -> ClientTls {
        self.client_of(rustls::ALL_VERSIONS, server_name, alpn, identity)
    }

    /// The same, with these versions of TLS alone.
    ///
    /// # Panics
    /// When rustls refuses the certificates.
    #[must_use]
    pub fn client_of(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        server_name: &str,
        alpn: &[&str],
        identity: Option<&Identity>,
    ) -> ClientTls {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("PEM")).expect("root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let chain = CertificateDer::pem_slice_iter(identity.chain.as_bytes())
                    .collect::<Result<_, _>>()
                    .expect("chain");
                let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).expect("key");
                builder.with_client_auth_cert(chain, key).expect("client certificate")
            }
        };
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        let server_name = ServerName::try_from(server_name.to_owned()).expect("server name");
        ClientTls { config: Arc::new(config), server_name }
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Identity {
    /// Writes chain and key into `folder` and returns their paths.
    ///
    /// # Panics
    /// When the folder cannot be written.
    #[must_use]
    pub fn save(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let chain = folder.join(format!("{name}.pem"));
        let key = folder.join(format!("{name}.key"));
        std::fs::write(&chain, &self.chain).expect("write chain");
        std::fs::write(&key, &self.key).expect("write key");
        (chain, key)
    }
}
