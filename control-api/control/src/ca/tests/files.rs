//! CAs out of files.

use super::*;

#[test]
fn a_ca_in_files_is_checked_and_its_mistakes_are_named_with_their_fix() {
    use KeyUsagePurpose::{CrlSign, KeyCertSign};
    let (given, both) = (Given::new(), vec![KeyCertSign, CrlSign]);
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let root = ca("root", both.clone(), NOW + 9000);
    let pem = root.self_signed(&key).unwrap().pem();
    assert_eq!(given.read(&pem, &key, None).unwrap().not_after, NOW + 9000);

    let issuer = Issuer::from_params(&root, &key);
    let below = ca("below", both.clone(), NOW + 500).signed_by(&other, &issuer).unwrap().pem();
    let mut authority = Authority::new(given.read(&below, &other, Some(&pem)).unwrap());
    let leaf = issue(&mut authority, 9000, NOW);
    assert_eq!((leaf.not_after, leaf.intermediates.len()), (NOW + 500, 1));
    assert!(authority.has_foreign_anchors(), "of the root there is no list");
    assert!(
        is_trusted(&leaf.leaf, &leaf.intermediates[0]) && is_trusted(&leaf.intermediates[0], &leaf.roots)
    );

    let told = |wrong: Result<Root, root::Wrong>| wrong.unwrap_err().to_string();
    let stranger = KeyPair::generate().unwrap();
    let strange = ca("root", both.clone(), NOW + 9000).self_signed(&stranger).unwrap().pem();
    let mut plain = ca("root", both.clone(), NOW + 9000);
    plain.is_ca = IsCa::NoCa;
    for (wrong, file, words) in [
        (given.read(&pem, &other, None), "ca.pem", "does not belong"),
        (given.read(&below, &other, None), "ca.pem", "--ca-roots FILE"),
        (given.read(&below, &other, Some(&strange)), "roots.pem", "none of it signed"),
        (given.read(&plain.self_signed(&key).unwrap().pem(), &key, None), "ca.pem", "no CA"),
        (
            given.read(&ca("r", vec![KeyCertSign], NOW + 9).self_signed(&key).unwrap().pem(), &key, None),
            "ca.pem",
            "cRLSign",
        ),
        (given.read(&ca("r", both, NOW).self_signed(&key).unwrap().pem(), &key, None), "ca.pem", "expired"),
        (given.read("junk", &key, None), "ca.pem", "holds no certificate"),
    ] {
        let text = told(wrong);
        assert!(text.contains(file) && text.contains(words), "{text}");
    }
}

/// Signing certificates and lists, of 9000 s.
fn usual(name: &str, until: u64) -> CertificateParams {
    ca(name, vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign], until)
}

/// A self-signed root of this name, and its key.
fn given(name: &str) -> (Root, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let pem = usual(name, NOW + 9000).self_signed(&key).unwrap().pem();
    (Given::new().read(&pem, &key, None).unwrap(), key)
}

/// The process may well be started again with the files of a root that was given up.
#[test]
fn a_root_that_has_gone_does_not_come_back() {
    let (root, _) = given("first");
    let mut authority = Authority::new(root.clone());
    let leaf = issue(&mut authority, 10, NOW);
    authority.announce(Root::make(DOMAIN, NOW, &mut System).unwrap(), NOW, &mut System).unwrap();
    authority.advance(DOMAIN, &[], overlap(0, 0), NOW, &mut System).unwrap();
    assert!(authority.has_had(&root) && !authority.has_had(&given("other").0));
    let later = leaf.not_after + 100 + SKEW;
    authority.advance(DOMAIN, &[], overlap(0, 0), later, &mut System).unwrap();
    assert_eq!(authority.roots().len(), 1);
    assert!(authority.has_had(&root), "and a restart does not announce it");
    let read: Authority = serde_json::from_value(serde_json::to_value(&authority).unwrap()).unwrap();
    assert!(read.has_had(&root));
}

#[test]
fn a_newer_certificate_of_a_root_is_taken() {
    let (root, key) = given("root");
    let mut authority = Authority::new(root.clone());
    let old = issue(&mut authority, 10, NOW);
    let read = |name: &str, until, key: &KeyPair| {
        let pem = usual(name, until).self_signed(key).unwrap().pem();
        Given::new().read(&pem, key, None).unwrap()
    };
    for not_newer in [
        root,
        read("root", NOW + 8000, &key),
        read("another name", NOW + 10_000, &key),
        read("root", NOW + 10_000, &KeyPair::generate().unwrap()),
    ] {
        assert!(!authority.renew(&not_newer).unwrap());
    }
    assert!(authority.renew(&read("root", NOW + 10_000, &key)).unwrap());
    assert_eq!(authority.signing().unwrap().not_after, NOW + 10_000);
    assert!(is_trusted(&old.leaf, &authority.trusted()));
    let new = issue(&mut authority, 9500, NOW);
    assert_eq!(new.not_after, NOW + 9500);
}

/// The list of the one would be taken for that of the other.
#[test]
fn two_roots_of_one_name_are_not_trusted_at_a_time() {
    let mut authority = Authority::new(given("Mesh CA").0);
    let refused = authority.announce(given("Mesh CA").0, NOW, &mut System).unwrap_err();
    assert_eq!(refused.id(), "ca_root_name");
    authority.announce(given("Mesh CA 2").0, NOW, &mut System).unwrap();
}

/// `--ca-roots` may have others besides, and in front.
#[test]
fn tokens_name_the_root_that_the_chain_leads_to() {
    let (key, below, stranger) =
        (KeyPair::generate().unwrap(), KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let params = usual("root", NOW + 9000);
    let root = params.self_signed(&key).unwrap().pem();
    let signer =
        usual("below", NOW + 500).signed_by(&below, &Issuer::from_params(&params, &key)).unwrap().pem();
    let other = usual("stranger", NOW + 9000).self_signed(&stranger).unwrap().pem();
    let files = Given::new();
    let alone = files.read(&signer, &below, Some(&root)).unwrap();
    let behind = files.read(&signer, &below, Some(&format!("{other}{root}"))).unwrap();
    assert_eq!(alone.pin().unwrap(), behind.pin().unwrap());
    assert_eq!(behind.anchors().len(), 2);
}

/// Whoever has the key of a root makes certificates for as long as it is trusted.
#[test]
fn a_root_that_does_not_sign_can_be_distrusted() {
    let (root, _) = given("stolen");
    let mut authority = Authority::new(root.clone());
    let leaf = issue(&mut authority, 9000, NOW);
    assert_eq!(authority.distrust(&root.id, NOW).unwrap_err().id(), "ca_root_signs");
    authority.announce(Root::make(DOMAIN, NOW, &mut System).unwrap(), NOW, &mut System).unwrap();
    authority.advance(DOMAIN, &[], overlap(0, 0), NOW, &mut System).unwrap();
    for nobody in ["", "none"] {
        assert_eq!(authority.distrust(nobody, NOW).unwrap_err().id(), "ca_root_unknown");
    }
    assert!(is_trusted(&leaf.leaf, &authority.trusted()));
    assert_eq!(authority.distrust(root.short(), NOW).unwrap(), root.id);
    assert!(!is_trusted(&leaf.leaf, &authority.trusted()) && authority.has_had(&root));
    assert_eq!(authority.roots().len(), 1);
}
