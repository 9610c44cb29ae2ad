//! Names of certificates. A leaf as the fuzzer writes it is read without harm; and where a rule for a DNS name matches a leaf, webpki says
//! that the leaf is valid for that name.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType as Name};
use remora_proxy::route::text::{Place, StringMatch};
use remora_proxy::tls::identity::{PeerIdentity, SpiffeId};
use remora_proxy::tls::verify::{SanMatch, SanType};
use rustls_pki_types::{CertificateDer, ServerName};

static KEY: LazyLock<KeyPair> =
    LazyLock::new(|| KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("random numbers"));

fuzz_target!(|bytes: &[u8]| {
    if let Ok(peer) = PeerIdentity::of_leaf(&CertificateDer::from(bytes), true)
        && let Some(id) = peer.spiffe
    {
        assert_eq!(SpiffeId::parse(id.as_str()).as_ref(), Ok(&id));
        assert_eq!(peer.uri_sans.len(), 1);
    }
    let Some((name, host)) = std::str::from_utf8(bytes).ok().and_then(|text| text.split_once('\n')) else {
        return;
    };
    // An address is no name: webpki would look for it among the addresses of the leaf.
    let (Ok(dns), Ok(server @ ServerName::DnsName(_))) = (name.try_into(), ServerName::try_from(host)) else {
        return;
    };
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![Name::DnsName(dns)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let Ok(leaf) = params.self_signed(&*KEY) else { return };
    let text = StringMatch::Text { place: Place::Exact, text: host.as_bytes().into(), ignore_case: false };
    let matches = SanMatch { san: SanType::Dns, text }.matches_leaf(leaf.der());
    if matches.is_ok_and(|matches| matches) {
        let theirs = webpki::EndEntityCert::try_from(leaf.der()).expect("rcgen made it");
        let valid = theirs.verify_is_valid_for_subject_name(&server);
        assert!(valid.is_ok(), "{name} is taken for {host}: {valid:?}");
    }
});
