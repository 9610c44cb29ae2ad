//! The life of roots.

use super::*;

#[test]
fn a_root_is_announced_signs_retires_and_goes() {
    let mut authority = authority();
    let first = authority.roots()[0].id.clone();
    let old = issue(&mut authority, 100, NOW);
    authority.announce(Root::make(DOMAIN, NOW, &mut System).unwrap(), NOW, &mut System).unwrap();
    let again =
        authority.announce(Root::make(DOMAIN, NOW, &mut System).unwrap(), NOW, &mut System).unwrap_err();
    assert_eq!(again.id(), "ca_root_announced");
    let second = authority.announced().unwrap().id.clone();
    let lag = vec!["slow".to_owned()];
    let advance = |authority: &mut Authority, laggards: &[String], now| {
        authority.advance(DOMAIN, laggards, overlap(10, 50), now, &mut System).unwrap()
    };

    assert_eq!(advance(&mut authority, &[], NOW + 9), [], "too early");
    assert_eq!(advance(&mut authority, &lag, NOW + 49), [], "somebody does not trust it yet");
    let mut late = authority.clone();
    assert_eq!(advance(&mut late, &lag, NOW + 50), [Step::Signs(second[..12].to_owned(), lag.clone())]);
    assert_eq!(advance(&mut authority, &[], NOW + 10), [Step::Signs(second[..12].to_owned(), Vec::new())]);
    assert_eq!(authority.signing().unwrap().id, second);
    assert!(is_trusted(&issue(&mut authority, 10, NOW + 10).leaf, &authority.trusted()));
    assert!(is_trusted(&old.leaf, &authority.trusted()), "what the old one signed holds");

    let retiring = authority.roots().iter().find(|root| root.id == first).unwrap();
    assert_eq!(retiring.phase, Phase::Retiring);
    let end = retiring.signed_until + SKEW;
    assert!(end > old.not_after);
    assert_eq!(advance(&mut authority, &[], end), []);
    assert_eq!(advance(&mut authority, &[], end + 1), [Step::Gone(first[..12].to_owned())]);
    assert!(!is_trusted(&old.leaf, &authority.trusted()));
    assert_eq!(authority.roots().len(), 1);
}

/// What OpenSSL says of a leaf of the newest root, for somebody who trusts `roots`. None without openssl.
fn openssl_says(authority: &Authority, leaf: &authority::Issued, roots: &[String]) -> Option<String> {
    let folder = Given::new();
    let roots = folder.write("roots.pem", &roots.concat());
    let between = folder.write("between.pem", &leaf.intermediates.concat());
    let certificate = folder.write("leaf.pem", &leaf.leaf);
    let lists = folder.write("lists.pem", authority.revocation_lists().unwrap_or_default());
    let output = Command::new("openssl")
        .args(["verify", "-x509_strict", "-crl_check_all", "-purpose", "sslserver", "-CAfile"])
        .arg(roots)
        .arg("-CRLfile")
        .arg(lists)
        .arg("-untrusted")
        .args([between, certificate])
        .output();
    let output = output.ok()?;
    Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn who_was_away_and_knows_one_older_root_believes_the_newest_until_that_one_is_gone() {
    let now = crate::clock::unix(std::time::SystemTime::now());
    let mut authority = Authority::new(Root::make(DOMAIN, now, &mut System).unwrap());
    let mut known = vec![authority.trusted()];
    // Lists are looked at, too: those of the older roots are needed for the cross-certificates.
    authority.revoke(&[("01".into(), now + 90_000)], Reason::Unspecified, now).unwrap();
    issue(&mut authority, 80_000, now);
    for _ in 0..2 {
        authority.announce(Root::make(DOMAIN, now, &mut System).unwrap(), now, &mut System).unwrap();
        known.push(authority.announced().unwrap().anchors().concat());
        authority.advance(DOMAIN, &[], overlap(0, 0), now, &mut System).unwrap();
        issue(&mut authority, 80_000, now);
    }
    let leaf = issue(&mut authority, 600, now);
    assert_eq!(leaf.intermediates.len(), 2, "one cross-certificate of each root before it");
    for root in &known {
        let Some(says) = openssl_says(&authority, &leaf, std::slice::from_ref(root)) else {
            return skipped();
        };
        assert!(says.ends_with(": OK\n"), "{says}");
    }
    let ends = authority.roots().iter().map(|root| root.signed_until).min().unwrap();
    authority.advance(DOMAIN, &[], overlap(0, 0), ends + SKEW + 1, &mut System).unwrap();
    assert!(authority.roots().len() < 3);
    let leaf = issue(&mut authority, 600, ends + SKEW + 1);
    assert!(leaf.intermediates.len() < 2, "nobody vouches who is not trusted any more");
}

#[test]
fn a_ca_that_may_have_no_ca_below_it_vouches_for_nobody() {
    use KeyUsagePurpose::{CrlSign, KeyCertSign};
    let (given, key) = (Given::new(), KeyPair::generate().unwrap());
    let mut params = ca("strict", vec![KeyCertSign, CrlSign], NOW + 9000);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let pem = params.self_signed(&key).unwrap().pem();
    let mut authority = Authority::new(given.read(&pem, &key, None).unwrap());
    authority.announce(Root::make(DOMAIN, NOW, &mut System).unwrap(), NOW, &mut System).unwrap();
    authority.advance(DOMAIN, &[], overlap(0, 0), NOW, &mut System).unwrap();
    assert_eq!(issue(&mut authority, 10, NOW).intermediates, Vec::<String>::new());
}

#[test]
fn an_own_root_that_ends_soon_is_followed_by_another() {
    let mut authority = authority();
    let at = NOW + root::LIFE * 4 / 5 + 3600;
    let steps = authority.advance(DOMAIN, &[], overlap(10, 50), at, &mut System).unwrap();
    assert!(matches!(&steps[..], [Step::Announced(_)]), "{steps:?}");
    assert_eq!(authority.advance(DOMAIN, &[], overlap(10, 50), at + 1, &mut System).unwrap(), []);
}

/// Whoever stole the key of a root that was announced has the certificate by which the signing one vouches for it.
#[test]
fn nobody_vouches_for_a_root_that_is_distrusted() {
    let now = crate::clock::unix(std::time::SystemTime::now());
    let mut authority = Authority::new(Root::make(DOMAIN, now, &mut System).unwrap());
    let known = authority.trusted();
    issue(&mut authority, 80_000, now);
    authority.announce(Root::make(DOMAIN, now, &mut System).unwrap(), now, &mut System).unwrap();
    let stolen = authority.announced().unwrap().id.clone();
    let mut thief = authority.clone();
    thief.advance(DOMAIN, &[], overlap(0, 0), now, &mut System).unwrap();
    let leaf = issue(&mut thief, 600, now);
    assert_eq!((thief.signing().unwrap().id.as_str(), leaf.intermediates.len()), (stolen.as_str(), 1));

    authority.distrust(&stolen, now).unwrap();
    let cross = material::certificates(leaf.intermediates[0].as_bytes()).unwrap().remove(0);
    let (_, cross) = X509Certificate::from_der(&cross).unwrap();
    assert!(authority.is_revoked(&hex(cross.raw_serial())), "{:?}", authority.revoked());
    let Some(says) = openssl_says(&authority, &leaf, &[known]) else { return skipped() };
    assert!(says.contains("verification failed"), "{says}");
}
