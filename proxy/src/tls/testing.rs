//! Certificates for tests.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    SignatureAlgorithm,
};

use super::material::{self, Authorities, OwnCertificate};
use super::secret::Secret;
use super::verify::{PeerRules, SanMatch, Trust};

/// A certificate authority.
pub(crate) struct Ca {
    params: CertificateParams,
    key: KeyPair,
    pub(crate) pem: String,
}

/// A certificate chain and its key, in PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = Self::params(name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { params, key, pem }
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    /// A CA below this one.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        let (key, params) = (KeyPair::generate().unwrap(), Self::params(name));
        let pem = params.signed_by(&key, &self.issuer()).unwrap().pem();
        Self { params, key, pem }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    /// A leaf for both sides, changed by `edit`.
    pub(crate) fn leaf(&self, sans: &[SanType], edit: impl FnOnce(&mut CertificateParams)) -> Pair {
        self.leaf_for(&rcgen::PKCS_ECDSA_P256_SHA256, sans, edit)
    }

    pub(crate) fn leaf_for(
        &self,
        algorithm: &'static SignatureAlgorithm,
        sans: &[SanType],
        edit: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "leaf");
        params.subject_alt_names = sans.to_vec();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        edit(&mut params);
        let chain = params.signed_by(&key, &self.issuer()).unwrap().pem();
        Pair { chain, key: key.serialize_pem() }
    }

    /// A revocation list with these certificates, in PEM.
    pub(crate) fn revoke(&self, pairs: &[&Pair]) -> String {
        let day = |day| rcgen::date_time_ymd(day, 1, 1);
        let serial = |pair: &&Pair| {
            let leaf = material::certificates(pair.chain.as_bytes()).unwrap().remove(0);
            let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
            RevokedCertParams {
                serial_number: SerialNumber::from_slice(leaf.raw_serial()),
                revocation_time: day(2020),
                reason_code: None,
                invalidity_date: None,
            }
        };
        let params = CertificateRevocationListParams {
            this_update: day(2020),
            next_update: day(2100),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: pairs.iter().map(serial).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer()).unwrap().pem().unwrap()
    }

    pub(crate) fn policy(&self, sans: Vec<SanMatch>) -> PeerRules {
        PeerRules::inline(self.trust(sans))
    }

    pub(crate) fn trust(&self, sans: Vec<SanMatch>) -> Trust {
        let roots = Some(material::roots(self.pem.as_bytes()).unwrap());
        Trust { roots, sans, ..anyone() }
    }
}

impl Pair {
    pub(crate) fn own(&self) -> Arc<Secret<OwnCertificate>> {
        Secret::inline(self.certificate())
    }

    pub(crate) fn certificate(&self) -> OwnCertificate {
        OwnCertificate::from_pem(self.chain.as_bytes(), self.key.as_bytes(), super::provider()).unwrap()
    }
}

/// Trust in everybody who has a key.
pub(crate) fn anyone() -> Trust {
    Trust { roots: None, ..Trust::in_roots(Authorities::none()) }
}

pub(crate) fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

pub(crate) fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

pub(crate) fn expired(params: &mut CertificateParams) {
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
}

pub(crate) fn not_yet(params: &mut CertificateParams) {
    params.not_before = rcgen::date_time_ymd(2090, 1, 1);
    params.not_after = rcgen::date_time_ymd(2091, 1, 1);
}

/// An RSA key of 1024 bits, which is nobody's.
pub(crate) const WEAK_KEY: &str = "-----BEGIN PRIVATE KEY-----\n\
MIICdQIBADANBgkqhkiG9w0BAQEFAASCAl8wggJbAgEAAoGBAKWEvM6c/AJ8X/RV\n\
gIkQUM4elvFkr+opT7D6gBNxoVvifjSaC8QWCIV//tudVCn6REYsf5JU9NotENNx\n\
mXxFa9YnIq6EJKRCIkcoZ/Dh70NMUAZDkJi8SO3Ww+pN0+SrOg6bFOC+QInlMzVY\n\
Zz6rwu20nzkHm1Yf9I8MB5x6FDBTAgMBAAECgYAQJ/W6AS7EG1nOYq4qMtKAXBIF\n\
u/tD0wZ5Uuo/e57xdhk1jzfIyxHH3ieFTkUR1+DkLKHDKdHAnhd/XB5MOAZ/d6D3\n\
C/kkKs2rkvra57BEzuU4vp/D+CCu7/xnttjDbqhMrXjJF8oK5iYRPjFT87j3Weef\n\
H2ce5kVIR5PzKV87IQJBAM3toNVuZ8FnV5Gl/B6rZJcw8LKI21kXIaAXOFVi5lRm\n\
7H9Wiy5XHQq8oYWOWhyx4+87NZTIGoh2EV1lcxMLyOMCQQDNw7u5/VgT9zqjWKvd\n\
6SCm36D/gGmh6vY/Gta81Zbp8cYxxnm3UyrQlHStuhzSvdYSbYluLFerVgzLelA/\n\
cEXRAkBnKEjPYhU7v0cQwTOBMZ6cVnndFc273WiMx9UCgR6c3UpPp8zlE+KKhF/t\n\
hZgCk+J47xIyS+NuxKaCQNXajqa9AkBvwa6VXvdWqMHNdFysg3E7kVx1ST6WNfKW\n\
5bHaEDwORkW6RS1Yl7A6Z1dUADCleXvquFmbYDQhl/QNFBq/ye/xAkBsQlpGNqc9\n\
7eksS0mlkUDUW0hq262KXqnu52wQCpes/s9ZSOj/osmYINmWy4mYqb4NJBwoU0NP\n\
pOvk/TNEhqGm\n\
-----END PRIVATE KEY-----";

/// The private key of a PKCS#8 PEM in its old form: `RSA PRIVATE KEY` (PKCS#1) or `EC PRIVATE KEY` (SEC1).
pub(crate) fn old_form(pkcs8_pem: &str, label: &str) -> String {
    let key = material::private_key(pkcs8_pem.as_bytes()).unwrap();
    // PrivateKeyInfo is a sequence of version, algorithm and an octet string, which holds the old form.
    let (_, info) = element(key.secret_der());
    let (after_version, _) = element(info);
    let (after_algorithm, _) = element(after_version);
    let (_, inner) = element(after_algorithm);
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----", base64(inner))
}

/// What follows the first DER element, and the content of that element.
fn element(der: &[u8]) -> (&[u8], &[u8]) {
    let (header, length) = match der[1] {
        short @ 0..=127 => (2, usize::from(short)),
        0x81 => (3, usize::from(der[2])),
        _ => (4, usize::from(der[2]) << 8 | usize::from(der[3])),
    };
    (&der[header + length..], &der[header..header + length])
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |w, b| w << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * i) & 63) as usize] as char;
            out.push(if i <= chunk.len() { digit } else { '=' });
        }
    }
    out
}
