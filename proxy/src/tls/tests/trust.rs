//! Revocation, and bundles of other trust domains.

use super::*;

#[tokio::test]
async fn a_revoked_certificate_is_refused() {
    let ca = Ca::new("root");
    let (orders, web) = (ca.leaf(&[uri(ORDERS)], |_| {}), ca.leaf(&[uri(WEB)], |_| {}));
    let server = mtls_server(&ca, &orders, vec![]);
    let client = client(&ca, Some(&web), vec![]);
    let lists = |revoked: &[&Pair]| material::revocation_lists(ca.revoke(revoked).as_bytes()).unwrap();
    let trust = &server.peers().unwrap().trust;
    trust.set(Arc::new(Trust { revoked: lists(&[&orders]), ..ca.trust(vec![]) }));
    assert!(shake(&server, &client, target()).await.0.is_ok(), "another one is revoked");
    trust.set(Arc::new(Trust { revoked: lists(&[&web]), ..ca.trust(vec![]) }));
    let error = shake(&server, &client, target()).await.0.unwrap_err();
    assert_eq!(error.kind, TlsFailure::CertificateRevoked, "{error}");
}

/// What policy asks of connections that are open when a list comes.
#[test]
fn a_list_names_peers_by_issuer_and_serial_number() {
    let (ca, other) = (Ca::new("root"), Ca::new("other"));
    let (orders, web) = (ca.leaf(&[uri(ORDERS)], |_| {}), ca.leaf(&[uri(WEB)], |_| {}));
    let peer = |pair: &Pair| PeerIdentity::of_leaf(&pair.certificate().key.cert[0], true).unwrap();
    let trust = |ca: &Ca, revoked: &[&Pair]| {
        let revoked = material::revocation_lists(ca.revoke(revoked).as_bytes()).unwrap();
        Trust { revoked, ..ca.trust(vec![]) }
    };
    assert!(trust(&ca, &[&web]).revokes(&peer(&web)) && !trust(&ca, &[&web]).revokes(&peer(&orders)));
    assert!(!trust(&other, &[&web]).revokes(&peer(&web)), "another authority's list");
    assert!(!ca.trust(vec![]).revokes(&peer(&web)));
}

fn domains(bundles: &[(&str, &Ca)]) -> Trust {
    let mut domains = Domains::default();
    for (name, ca) in bundles {
        domains.insert(name, material::roots(ca.pem.as_bytes()).unwrap());
    }
    Trust { domains: Some(domains), ..Trust::in_roots(Authorities::none()) }
}

/// SPIFFE federation: an authority vouches for names of its own trust domain, and for no others.
#[tokio::test]
async fn each_trust_domain_is_verified_by_its_own_bundle() {
    use TlsFailure as F;
    const ABROAD: &str = "spiffe://abroad.example/ns/shop/sa/web";
    let (ours, theirs, nobody) = (Ca::new("ours"), Ca::new("theirs"), Ca::new("nobody"));
    let server = mtls_server(&ours, &ours.leaf(&[uri(ORDERS)], |_| {}), vec![]);
    let trust = domains(&[("mesh.example", &ours), ("abroad.example", &theirs)]);
    server.peers().unwrap().trust.set(Arc::new(trust));
    let below = theirs.intermediate("below");
    let chained = |names: &[San]| {
        let leaf = below.leaf(names, |_| {});
        Pair { chain: format!("{}{}", leaf.chain, below.pem), ..leaf }
    };
    for (what, pair, refused) in [
        ("ours", ours.leaf(&[uri(WEB)], |_| {}), None),
        ("theirs", theirs.leaf(&[uri(ABROAD)], |_| {}), None),
        ("theirs, by an intermediate", chained(&[uri(ABROAD)]), None),
        ("their root, our domain", theirs.leaf(&[uri(WEB)], |_| {}), Some(F::CertificateUntrusted)),
        ("their intermediate, our domain", chained(&[uri(WEB)]), Some(F::CertificateUntrusted)),
        ("our root, their domain", ours.leaf(&[uri(ABROAD)], |_| {}), Some(F::CertificateUntrusted)),
        ("a root of nobody's", nobody.leaf(&[uri(ABROAD)], |_| {}), Some(F::CertificateUntrusted)),
        (
            "a domain that is not named",
            theirs.leaf(&[uri("spiffe://abroad.example.evil/x")], |_| {}),
            Some(F::CertificateUntrusted),
        ),
        ("no SPIFFE ID", theirs.leaf(&[dns("abroad.example")], |_| {}), Some(F::CertificateUntrusted)),
        ("names of both domains", theirs.leaf(&[uri(ABROAD), uri(WEB)], |_| {}), Some(F::CertificateRefused)),
    ] {
        let outcome = shake(&server, &client(&ours, Some(&pair), vec![]), target()).await;
        assert_eq!(kinds(&outcome).0, refused, "{what}");
    }
}

#[tokio::test]
async fn a_server_is_verified_by_the_bundle_of_its_domain() {
    let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
    let client = client(&ours, None, exactly(SanType::Uri, ORDERS));
    let trust = domains(&[("mesh.example", &ours), ("abroad.example", &theirs)]);
    client.peers().trust.set(Arc::new(trust));
    let server = |ca: &Ca| {
        let own = ca.leaf(&[uri(ORDERS)], |_| {}).own();
        ServerTls::new(ServerParams::default(), vec![own], None).unwrap()
    };
    assert!(shake(&server(&ours), &client, target()).await.1.is_ok());
    let forged = shake(&server(&theirs), &client, target()).await.1.unwrap_err();
    assert_eq!(forged.kind, TlsFailure::CertificateUntrusted, "{forged}");
}

/// A domain that publishes no lists revokes nothing; where there is a list, every certificate has to be covered.
#[tokio::test]
async fn revocation_lists_are_about_the_domain_of_their_issuer() {
    let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
    let (orders, web) = (ours.leaf(&[uri(ORDERS)], |_| {}), ours.leaf(&[uri(WEB)], |_| {}));
    let abroad = theirs.leaf(&[uri("spiffe://abroad.example/x")], |_| {});
    let server = mtls_server(&ours, &orders, vec![]);
    let revoked = material::revocation_lists(ours.revoke(&[&web]).as_bytes()).unwrap();
    let trust = domains(&[("mesh.example", &ours), ("abroad.example", &theirs)]);
    server.peers().unwrap().trust.set(Arc::new(Trust { revoked, ..trust }));
    let below = ours.intermediate("below");
    let uncovered = below.leaf(&[uri(WEB)], |_| {});
    let uncovered = Pair { chain: format!("{}{}", uncovered.chain, below.pem), ..uncovered };
    for (pair, revoked) in [(&abroad, false), (&orders, false), (&web, true), (&uncovered, true)] {
        let outcome = shake(&server, &client(&ours, Some(pair), vec![]), target()).await;
        let is = kinds(&outcome).0 == Some(TlsFailure::CertificateRevoked);
        assert_eq!((is, outcome.0.is_err()), (revoked, revoked), "{:?}", outcome.0.err());
    }
}
