//! Certificates and keys as people have them.

use super::*;

#[tokio::test]
async fn chains_in_any_order_and_pem_as_people_have_it() {
    let root = Ca::new("root");
    let middle = root.intermediate("middle");
    let lower = middle.intermediate("lower");
    let leaf = lower.leaf(&[uri(ORDERS)], |_| {});
    let chains = [
        format!("{}{}{}", leaf.chain, lower.pem, middle.pem),
        format!("{}{}{}{}", root.pem, middle.pem, lower.pem, leaf.chain),
        format!("{}\r\n\r\nsome text\n{}{}", middle.pem, leaf.chain.replace('\n', "\r\n"), lower.pem),
        format!("\u{feff}{}{}{}", lower.pem, leaf.chain, middle.pem).trim_end().to_owned(),
        format!("{}{}{}", leaf.chain, middle.pem, lower.pem).replace('\n', "\n    "),
    ];
    let client = client(&root, None, exactly(SanType::Uri, ORDERS));
    for chain in chains {
        let own = OwnCertificate::from_pem(chain.as_bytes(), leaf.key.as_bytes(), provider()).unwrap();
        let server = ServerTls::new(ServerParams::default(), vec![Secret::inline(own)], None).unwrap();
        assert!(shake(&server, &client, target()).await.1.is_ok(), "{chain}");
    }
}

#[test]
fn keys_in_every_form() {
    let ca = Ca::new("root");
    let ec = ca.leaf(&[dns("a")], |_| {});
    let rsa = ca.leaf_for(&rcgen::PKCS_RSA_SHA256, &[dns("a")], |_| {});
    let ed = ca.leaf_for(&rcgen::PKCS_ED25519, &[dns("a")], |_| {});
    let sec1 = old_form(&ec.key, "EC PRIVATE KEY");
    let with_parameters =
        format!("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n{sec1}");
    for (pair, key) in [
        (&ec, ec.key.trim_end()),
        (&ec, &sec1),
        (&ec, &with_parameters),
        (&rsa, &rsa.key),
        (&rsa, &old_form(&rsa.key, "RSA PRIVATE KEY")),
        (&ed, &ed.key),
    ] {
        OwnCertificate::from_pem(pair.chain.as_bytes(), key.as_bytes(), provider()).unwrap();
    }
}

/// How a PKCS#12 file begins: a sequence, and in it the version 3 (RFC 7292 §4).
const PKCS12_HEAD: [u8; 8] = [0x30, 0x82, 0x09, 0x80, 2, 1, 3, 0x30];

#[test]
fn material_that_cannot_be_used() {
    let ca = Ca::new("root");
    let (a, b) = (ca.leaf(&[dns("a")], |_| {}), ca.leaf(&[dns("a")], |_| {}));
    let make = |chain: &[u8], key: &[u8]| OwnCertificate::from_pem(chain, key, provider()).unwrap_err();
    let (chain, key) = (a.chain.as_bytes(), a.key.as_bytes());
    let encrypted = a.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let der = material::certificates(chain).unwrap().remove(0);
    let broken = a.chain.replace("-----END CERTIFICATE-----", "");
    let not_a_certificate = old_form(&a.key, "CERTIFICATE");
    assert_eq!(make(chain, b.key.as_bytes()), MaterialError::Mismatch);
    assert_eq!(make(key, key), MaterialError::NoCertificate);
    assert_eq!(make(b"", key), MaterialError::NoCertificate);
    assert_eq!(make(chain, chain), MaterialError::NoKey);
    assert_eq!(make(chain, encrypted.as_bytes()), MaterialError::EncryptedKey);
    assert_eq!(make(&der, key), MaterialError::Der);
    assert_eq!(make(&PKCS12_HEAD, key), MaterialError::Pkcs12);
    assert_eq!(make(chain, &PKCS12_HEAD), MaterialError::Pkcs12);
    assert!(matches!(make(broken.as_bytes(), key), MaterialError::Pem(_)));
    assert_eq!(make(not_a_certificate.as_bytes(), key), MaterialError::Certificate(0));
    let bad_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----";
    assert!(matches!(make(chain, bad_key.as_bytes()), MaterialError::Key(_)));
    assert!(matches!(make(chain, WEAK_KEY.as_bytes()), MaterialError::Key(_)));
}

#[test]
fn a_certificate_that_has_ended_is_a_warning() {
    let ca = Ca::new("root");
    let (good, ended) =
        (ca.leaf(&[dns("a")], |_| {}).certificate(), ca.leaf(&[dns("a")], expired).certificate());
    let now = crate::tls::unix_now();
    assert_eq!(good.warning(now), None);
    assert!(ended.warning(now).unwrap().contains("expired"));
    assert!(good.warning(good.not_before - 1).unwrap().contains("not valid yet"));
}
