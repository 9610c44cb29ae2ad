//! The certificates that TLS contexts in force show and believe.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::source::Certificate;
use crate::config::snapshot::Snapshot;
use crate::telemetry::format::rfc3339;
use crate::tls::domains::Domains;
use crate::tls::material::OwnCertificate;
use crate::tls::secret::Secret;
use crate::tls::verify::{PeerRules, Trust};

/// All certificates of a snapshot, each once.
pub(super) fn in_use(config: &Snapshot) -> Vec<Certificate> {
    let mut found = Found::default();
    for tls in config.listeners.iter().flat_map(|l| &l.chains).filter_map(|chain| chain.tls.as_ref()) {
        tls.secrets().for_each(|secret| found.own(secret));
        tls.peers().into_iter().for_each(|peers| found.peers(peers));
    }
    for tls in config.clusters().filter_map(|cluster| cluster.spec().tls.as_ref()) {
        tls.secret().into_iter().for_each(|secret| found.own(secret));
        found.peers(tls.peers());
    }
    let own = found.own.into_values().filter_map(|secret| {
        let leaf = secret.get()?.key.cert.first()?.clone();
        certificate(&leaf, secret.name(), false)
    });
    let roots = found.trust.into_values().flat_map(|secret| {
        let trust = secret.get();
        let own = trust.iter().filter_map(|trust| trust.roots.as_ref());
        let bundles = trust.iter().filter_map(|trust| trust.domains.as_ref()).flat_map(Domains::bundles);
        // Those of the own trust domain may be in both.
        let mut roots: Vec<&CertificateDer<'_>> = Vec::new();
        for root in own.chain(bundles).flat_map(|roots| &roots.certificates) {
            if !roots.contains(&root) {
                roots.push(root);
            }
        }
        roots.into_iter().filter_map(|root| certificate(root, secret.name(), true)).collect::<Vec<_>>()
    });
    own.chain(roots).collect()
}

/// By address: thousands of contexts share a few secrets.
#[derive(Default)]
struct Found<'a> {
    own: BTreeMap<usize, &'a Secret<OwnCertificate>>,
    trust: BTreeMap<usize, &'a Secret<Trust>>,
}

impl<'a> Found<'a> {
    fn own(&mut self, secret: &'a Arc<Secret<OwnCertificate>>) {
        self.own.insert(Arc::as_ptr(secret).addr(), secret);
    }

    fn peers(&mut self, peers: &'a PeerRules) {
        self.trust.insert(Arc::as_ptr(&peers.trust).addr(), &peers.trust);
    }
}

fn certificate(der: &CertificateDer<'_>, secret: &str, is_ca: bool) -> Option<Certificate> {
    let (_, parsed) = x509_parser::parse_x509_certificate(der).ok()?;
    let at = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0));
    let validity = parsed.validity();
    let ends = at(validity.not_after.timestamp());
    let left = ends.duration_since(SystemTime::now()).unwrap_or_default();
    let (mut uris, mut dns) = (Vec::new(), Vec::new());
    for name in names(&parsed) {
        match name {
            GeneralName::URI(uri) => uris.push((*uri).to_owned()),
            GeneralName::DNSName(name) => dns.push((*name).to_owned()),
            _ => {}
        }
    }
    Some(Certificate {
        is_ca,
        path: secret.to_owned(),
        serial_number: parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
        uris,
        dns,
        days_until_expiration: left.as_secs() / (24 * 3600),
        valid_from: rfc3339(at(validity.not_before.timestamp())),
        expiration_time: rfc3339(ends),
    })
}

fn names<'a>(certificate: &'a X509Certificate<'_>) -> impl Iterator<Item = &'a GeneralName<'a>> {
    let names = certificate.subject_alternative_name().ok().flatten();
    names.into_iter().flat_map(|names| &names.value.general_names)
}
