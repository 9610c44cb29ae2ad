//! What the authority promises, with time and keys as arguments.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P521_SHA512,
    PKCS_ED25519, SanType, SignatureAlgorithm,
};
use remora_proxy::tls::identity::{PeerIdentity, SpiffeId};
use remora_proxy::tls::material;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate, parse_x509_pem};

use super::authority::{Order, Reason, SKEW, Step};
use super::root::Files;
use super::*;

mod files;
mod roots;

const NOW: u64 = 1_800_000_000;
const DOMAIN: &str = "test";

fn overlap(least: u64, most: u64) -> Overlap {
    Overlap { least: Duration::from_secs(least), most: Duration::from_secs(most) }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn authority() -> Authority {
    Authority::new(Root::make(DOMAIN, NOW, &mut System).unwrap())
}

fn shop() -> SpiffeId {
    SpiffeId::parse("spiffe://test/ns/default/sa/shop").unwrap()
}

/// A CSR in PEM that asks for `names`.
fn request(algorithm: &'static SignatureAlgorithm, names: Vec<SanType>) -> String {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.serialize_request(&key).unwrap().pem().unwrap()
}

fn csr(names: Vec<SanType>) -> Csr {
    Csr::read(request(&rcgen::PKCS_ECDSA_P256_SHA256, names).as_bytes()).unwrap()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn issue(authority: &mut Authority, ttl: u64, now: u64) -> authority::Issued {
    let identity = shop();
    authority.reserve(seconds(ttl), now).unwrap();
    let order = Order { identity: &identity, names: &[], ttl: seconds(ttl) };
    authority.issue(&csr(Vec::new()), order, now, &mut System).unwrap()
}

fn der(pem: &str) -> CertificateDer<'static> {
    material::certificates(pem.as_bytes()).unwrap().remove(0)
}

/// Whether a signature of `leaf` is by one of `roots`, directly.
fn is_trusted(leaf: &str, roots: &str) -> bool {
    let leaf = der(leaf);
    let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
    let roots = material::certificates(roots.as_bytes()).unwrap();
    roots.iter().any(|root| {
        let (_, root) = X509Certificate::from_der(root).unwrap();
        leaf.verify_signature(Some(root.public_key())).is_ok()
    })
}

/// A CA in files, as people have it.
struct Given {
    folder: tempfile::TempDir,
}

impl Given {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, text: &str) -> std::path::PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn read(&self, certificate: &str, key: &KeyPair, roots: Option<&str>) -> Result<Root, root::Wrong> {
        let files = Files {
            certificate: self.write("ca.pem", certificate),
            key: self.write("ca.key", &key.serialize_pem()),
            roots: roots.map(|roots| self.write("roots.pem", roots)),
        };
        Root::read(&files, NOW)
    }
}

fn ca(name: &str, usages: Vec<KeyUsagePurpose>, until: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = usages;
    root::lives(&mut params, NOW - 100, until);
    params
}

#[test]
fn a_leaf_is_what_the_credential_says_and_nothing_that_the_csr_asks_for() {
    let mut authority = authority();
    authority.reserve(seconds(30), NOW).unwrap();
    let asked = csr(vec![
        uri("spiffe://test/ns/default/sa/shop"),
        SanType::DnsName("bank.example".try_into().unwrap()),
    ]);
    let (identity, ttl) = (shop(), seconds(30));
    let order = Order { identity: &identity, names: &[], ttl };
    let issued = authority.issue(&asked, order, NOW, &mut System).unwrap();
    let leaf = der(&issued.leaf);
    let peer = PeerIdentity::of_leaf(&leaf, true).unwrap();
    assert_eq!(peer.spiffe.as_ref(), Some(&identity));
    assert_eq!((peer.uri_sans.len(), peer.dns_sans.len(), &*peer.subject), (1, 0, ""));
    let (_, parsed) = X509Certificate::from_der(&leaf).unwrap();
    let names = parsed.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "without a subject the names count");
    let constraints = parsed.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    let usage = parsed.key_usage().unwrap().unwrap().value;
    assert_eq!(usage.flags, 1, "digitalSignature alone");
    let extended = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert_eq!(hex(parsed.raw_serial()), issued.serial);
    assert_eq!(issued.serial.len(), 32);
    let validity = parsed.validity();
    assert_eq!(validity.not_before.timestamp(), i64::try_from(NOW - SKEW).unwrap());
    assert_eq!(validity.not_after.timestamp(), i64::try_from(NOW + 30).unwrap());
    assert!(is_trusted(&issued.leaf, &issued.roots));
    assert_ne!(issue(&mut authority, 30, NOW).serial, issued.serial);
}

#[test]
fn a_csr_for_somebody_else_is_refused_by_name() {
    let mut authority = authority();
    authority.reserve(seconds(30), NOW).unwrap();
    let identity = shop();
    let order = Order { identity: &identity, names: &[], ttl: seconds(30) };
    let own = uri(identity.as_str());
    for other in ["spiffe://test/ns/default/sa/bank", "spiffe://test/ns/default/sa/shop/", "https://shop"] {
        let refused =
            authority.issue(&csr(vec![own.clone(), uri(other)]), order, NOW, &mut System).unwrap_err();
        assert_eq!(refused.id(), "ca_csr_identity");
        assert!(refused.to_string().contains(other), "{refused}");
    }
}

#[test]
fn weak_keys_broken_signatures_and_junk_are_refused_by_id() {
    let refused = |bytes: &[u8]| Csr::read(bytes).unwrap_err().id();
    for good in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        assert!(Csr::read(request(good, Vec::new()).as_bytes()).is_ok(), "{good:?}");
    }
    assert_eq!(refused(request(&PKCS_ECDSA_P521_SHA512, Vec::new()).as_bytes()), "ca_csr_key");
    for junk in [
        &b""[..],
        b"junk",
        b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        &[0x30],
    ] {
        assert_eq!(refused(junk), "ca_csr_malformed", "{junk:?}");
    }
    let key = KeyPair::generate().unwrap();
    let good = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    assert!(Csr::read(&good).is_ok());
    let mut forged = good.clone();
    // The signature stands at the end; its last byte is a part of the number s.
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(refused(&forged), "ca_csr_signature");
    let mut longer = good;
    longer.push(0);
    assert_eq!(refused(&longer), "ca_csr_malformed");
}

#[test]
fn rsa_keys_count_by_their_length() {
    for (bits, id) in [("1024", Some("ca_csr_key")), ("2048", None)] {
        let subject = ["-subj", "/CN=x", "-keyout", "/dev/null", "-nodes"];
        let made = Command::new("openssl")
            .args(["req", "-new", "-newkey", &format!("rsa:{bits}")])
            .args(subject)
            .output();
        let Ok(made) = made.as_ref().map(|made| &made.stdout) else { return skipped() };
        assert_eq!(Csr::read(made).err().map(|refused| refused.id()), id, "{bits}");
    }
}

/// Straight to the stream: what a test prints that passes is not shown.
fn skipped() {
    let _ = writeln!(std::io::stderr(), "SKIPPED: there is no openssl on this machine");
}

#[test]
fn a_life_is_at_least_a_second_and_ends_with_the_root() {
    let mut authority = authority();
    assert_eq!(issue(&mut authority, 0, NOW).not_after, NOW + 1);
    let end = authority.roots()[0].not_after;
    assert_eq!(issue(&mut authority, 3600, end - 60).not_after, end);
    let identity = shop();
    let order = Order { identity: &identity, names: &[], ttl: seconds(1) };
    assert!(
        authority.issue(&csr(Vec::new()), order, end, &mut System).is_err(),
        "an expired root signs nothing"
    );
}

#[test]
fn what_is_revoked_is_on_a_list_of_every_root_until_it_has_ended() {
    let mut authority = authority();
    let leaf = issue(&mut authority, 100, NOW);
    assert_eq!(authority.revocation_lists(), None);
    let (one, other) = (leaf.serial.clone(), "00AB:01".to_owned());
    authority
        .revoke(&[(one.clone(), leaf.not_after), (other, NOW + 500)], Reason::KeyCompromise, NOW)
        .unwrap();
    assert!(authority.is_revoked(&one) && authority.is_revoked("00ab01"));
    let before = authority.clone();
    authority.revoke(&[(one.clone(), leaf.not_after)], Reason::Superseded, NOW + 5).unwrap();
    assert_eq!(authority, before, "it is there already");
    assert_eq!(
        authority.revoke(&[("shop".into(), NOW)], Reason::Unspecified, NOW).unwrap_err().id(),
        "ca_serial"
    );
    authority.announce(Root::make(DOMAIN, NOW, &mut System).unwrap(), NOW, &mut System).unwrap();
    assert_eq!(authority.revocation_lists().unwrap().matches("BEGIN X509 CRL").count(), 2);

    let mut advance =
        |now| authority.advance(DOMAIN, &["slow".into()], overlap(10, u64::MAX / 4), now, &mut System);
    advance(leaf.not_after + SKEW + 1).unwrap();
    advance(NOW + 400).unwrap();
    let made = authority.lists().unwrap().made;
    assert!(!authority.is_revoked(&one) && authority.is_revoked("00ab01"));
    assert_eq!(made, leaf.not_after + SKEW + 1);
    authority.advance(DOMAIN, &[], overlap(1, 1), NOW + 500 + SKEW + 1, &mut System).unwrap();
    assert_eq!(authority.revocation_lists(), None);
}

#[test]
fn of_more_certificates_than_fit_those_are_revoked_that_stand_first() {
    let mut authority = authority();
    let all: Vec<_> = (1..=2001).map(|n| (format!("{n:04x}"), NOW + 500)).collect();
    assert_eq!(authority.revoke(&all, Reason::Unspecified, NOW).unwrap_err().id(), "ca_revocations_full");
    assert_eq!(authority.revoke_as_many_as_fit(&all, Reason::Unspecified, NOW).unwrap(), 1);
    assert!(authority.is_revoked(&all[0].0) && !authority.is_revoked(&all[2000].0));
    assert_eq!(authority.revoke_as_many_as_fit(&all[..2000], Reason::Unspecified, NOW).unwrap(), 0);
}

#[test]
fn a_list_is_made_anew_before_it_is_old() {
    let mut authority = authority();
    authority.revoke(&[("01".into(), NOW + 10 * crl::LIFE)], Reason::Unspecified, NOW).unwrap();
    let first = authority.revocation_lists().unwrap().to_owned();
    let at = NOW + crl::LIFE / 2;
    authority.advance(DOMAIN, &[], overlap(1, 1), at, &mut System).unwrap();
    assert_eq!(authority.revocation_lists(), Some(&*first));
    authority.advance(DOMAIN, &[], overlap(1, 1), at + 1, &mut System).unwrap();
    assert_ne!(authority.revocation_lists(), Some(&*first));
}

/// A control plane that is away must not end a mesh whose certificates are good.
#[test]
fn a_list_holds_for_as_long_as_what_was_signed() {
    for (ttl, least) in [(600, crl::LIFE), (30 * 24 * 3600, 30 * 24 * 3600)] {
        let mut authority = authority();
        let leaf = issue(&mut authority, ttl, NOW);
        authority.revoke(&[("01".into(), leaf.not_after)], Reason::Unspecified, NOW).unwrap();
        let (_, pem) = parse_x509_pem(authority.revocation_lists().unwrap().as_bytes()).unwrap();
        let (_, list) = CertificateRevocationList::from_der(&pem.contents).unwrap();
        let ends = list.next_update().unwrap().timestamp();
        assert!(ends >= i64::try_from(NOW + least).unwrap(), "{ttl}: {ends}");
    }
}

#[test]
fn an_identity_that_is_barred_gets_nothing_until_it_is_restored() {
    let mut authority = authority();
    authority.reserve(seconds(30), NOW).unwrap();
    authority.bar(&shop(), Reason::PrivilegeWithdrawn, NOW).unwrap();
    let identity = shop();
    let order = Order { identity: &identity, names: &[], ttl: seconds(30) };
    let refused = authority.issue(&csr(Vec::new()), order, NOW, &mut System).unwrap_err();
    assert_eq!(refused.id(), "ca_identity_revoked");
    assert!(authority.restore(&shop()) && !authority.restore(&shop()));
    assert!(authority.issue(&csr(Vec::new()), order, NOW, &mut System).is_ok());
}

#[test]
fn the_state_is_read_back_and_no_log_shows_a_key() {
    let authority = authority();
    let text = serde_json::to_string(&authority).unwrap();
    assert_eq!(serde_json::from_str::<Authority>(&text).unwrap(), authority);
    assert!(text.contains("PRIVATE KEY"));
    assert!(!format!("{authority:?}").contains("PRIVATE KEY"));
}

#[derive(Debug, Clone)]
enum Act {
    Wait(u64),
    Rotate,
    Issue(u64),
    Revoke,
    Advance { acknowledged: bool },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (1..4000_u64).prop_map(Act::Wait),
        Just(Act::Rotate),
        (1..4000_u64).prop_map(Act::Issue),
        Just(Act::Revoke),
        any::<bool>().prop_map(|acknowledged| Act::Advance { acknowledged }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// A replica that has not heard of the last changes issues too: from the authority as it was three acts ago.
    #[test]
    fn every_living_leaf_is_trusted_and_one_root_signs(acts in proptest::collection::vec(act(), 1..40)) {
        let mut authority = authority();
        let (mut now, mut leaves) = (NOW, Vec::new());
        let mut stale = vec![authority.clone(); 3];
        for act in acts {
            match act {
                Act::Wait(time) => now += time,
                Act::Rotate => drop(authority.announce(Root::make(DOMAIN, now, &mut System).unwrap(), now, &mut System)),
                Act::Issue(ttl) => {
                    leaves.push(issue(&mut authority, ttl, now));
                    let identity = shop();
                    let order = Order { identity: &identity, names: &[], ttl: seconds(ttl) };
                    // Where it has no room, it would ask the store.
                    leaves.extend(stale[0].issue(&csr(Vec::new()), order, now, &mut System));
                }
                Act::Revoke => {
                    let some = leaves.last().map(|leaf| (leaf.serial.clone(), leaf.not_after));
                    authority.revoke(some.as_slice(), Reason::Unspecified, now).unwrap();
                }
                Act::Advance { acknowledged } => {
                    let laggards = if acknowledged { vec![] } else { vec!["slow".to_owned()] };
                    authority.advance(DOMAIN, &laggards, overlap(600, 6000), now, &mut System).unwrap();
                }
            }
            stale.remove(0);
            stale.push(authority.clone());
            let signing = authority.roots().iter().filter(|root| root.phase == Phase::Signing).count();
            prop_assert_eq!(signing, 1);
            leaves.retain(|leaf| leaf.not_after > now);
            let trusted = authority.trusted();
            for leaf in &leaves {
                prop_assert!(is_trusted(&leaf.leaf, &trusted), "at {now}: ends {}", leaf.not_after);
            }
        }
    }
}

/// The chain, the revocation list and the text, by another implementation.
#[test]
fn openssl_believes_what_it_should_and_no_more() {
    let now = crate::clock::unix(std::time::SystemTime::now());
    let folder = Given::new();
    let mut authority = Authority::new(Root::make(DOMAIN, now, &mut System).unwrap());
    let (good, bad) = (issue(&mut authority, 600, now), issue(&mut authority, 600, now));
    authority.announce(Root::make(DOMAIN, now, &mut System).unwrap(), now, &mut System).unwrap();
    authority.revoke(&[(bad.serial.clone(), bad.not_after)], Reason::KeyCompromise, now).unwrap();
    let roots = folder.write("roots.pem", &authority.trusted());
    let lists = folder.write("lists.pem", authority.revocation_lists().unwrap());
    let verify = |leaf: &authority::Issued| {
        let leaf = folder.write("leaf.pem", &leaf.leaf);
        let output = Command::new("openssl")
            .args(["verify", "-x509_strict", "-crl_check_all", "-purpose", "sslserver", "-CAfile"])
            .args([&roots, std::path::Path::new("-CRLfile"), &lists, &leaf])
            .output();
        output.map(|output| String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let Ok(believed) = verify(&good) else { return skipped() };
    assert!(believed.ends_with(": OK\n"), "{believed}");
    let refused = verify(&bad).unwrap();
    assert!(refused.contains("certificate revoked"), "{refused}");
    let leaf = folder.write("leaf.pem", &good.leaf);
    let text = Command::new("openssl").args(["x509", "-noout", "-text", "-in"]).arg(leaf).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    for fact in [
        "Subject Alternative Name: critical\n                URI:spiffe://test/ns/default/sa/shop\n",
        "Key Usage: critical\n                Digital Signature\n",
        "TLS Web Server Authentication, TLS Web Client Authentication\n",
        "CA:FALSE",
        "ecdsa-with-SHA256",
    ] {
        assert!(text.contains(fact), "{fact:?} in {text}");
    }
}
