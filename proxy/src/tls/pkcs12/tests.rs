//! `stores/make.sh` makes the stores, with OpenSSL and Java.

use super::*;
use crate::tls::material::{MaterialError, OwnCertificate};
use crate::tls::provider;

const CHAIN: &[u8] = include_bytes!("stores/chain.pem");
const KEY: &[u8] = include_bytes!("stores/key.pem");
const OPENSSL: &[u8] = include_bytes!("stores/openssl.p12");
const SHA1_AES128: &[u8] = include_bytes!("stores/sha1.p12");
const PLAIN: &[u8] = include_bytes!("stores/plain.p12");
const JAVA: &[u8] = include_bytes!("stores/java.p12");
const TWO: &[u8] = include_bytes!("stores/two.p12");
const NO_MAC: &[u8] = include_bytes!("stores/nomac.p12");
const LEGACY: &[u8] = include_bytes!("stores/legacy.p12");

fn names(store: &[u8], password: &str) -> Vec<Box<str>> {
    OwnCertificate::from_pkcs12(store, password, provider()).unwrap().names
}

#[test]
fn stores_of_openssl_and_java_are_opened() {
    assert_eq!(names(OPENSSL, "changeit"), ["store.example".into()]);
    assert_eq!(names(SHA1_AES128, "pässword"), ["store.example".into()]);
    assert_eq!(names(PLAIN, ""), ["store.example".into()]);
    assert_eq!(names(JAVA, "changeit"), ["java.example".into()]);
}

#[test]
fn what_cannot_be_opened_says_why() {
    let open = |store: &[u8], password| open(store, password).unwrap_err();
    for wrong in ["", "change", "changeit ", "changeit\0"] {
        assert_eq!(open(OPENSSL, wrong), StoreError::Password, "{wrong:?}");
        assert_eq!(open(JAVA, wrong), StoreError::Password, "{wrong:?}");
    }
    assert_eq!(open(PLAIN, "x"), StoreError::Password);
    assert_eq!(open(NO_MAC, "changeit"), StoreError::NoChecksum);
    assert_eq!(open(LEGACY, "changeit"), StoreError::Encryption);
    assert_eq!(open(TWO, "changeit"), StoreError::ManyKeys);
    assert_eq!(open(b"", ""), StoreError::Malformed);
    assert_eq!(open(CHAIN, ""), StoreError::Malformed);
}

#[test]
fn a_store_that_was_cut_or_changed_is_never_used() {
    for end in 0..PLAIN.len() {
        assert!(open(&PLAIN[..end], "").is_err(), "cut at {end}");
    }
    let whole = open(PLAIN, "").unwrap();
    for at in 0..PLAIN.len() {
        let mut changed = PLAIN.to_vec();
        changed[at] ^= 0x01;
        // What the checksum does not cover (the object identifier of the data, a longer form of a length) may change nothing.
        if let Ok(store) = open(&changed, "") {
            assert_eq!(store.key.secret_der(), whole.key.secret_der(), "byte {at}");
            assert_eq!(store.certificates, whole.certificates, "byte {at}");
        }
    }
}

#[test]
fn rounds_are_bounded_together() {
    let mut password = Password::new("");
    assert_eq!(password.spend(0), Err(StoreError::Malformed));
    assert_eq!(password.spend(MAX_ITERATIONS - 1).map(NonZeroU32::get), Ok(MAX_ITERATIONS - 1));
    assert_eq!(password.spend(2), Err(StoreError::Rounds));
    assert_eq!(password.spend(1).map(NonZeroU32::get), Ok(1));
    assert_eq!(integer(&[0x7f, 0xff, 0xff, 0xff]), Ok(i32::MAX as u32));
    for wrong in [&[][..], &[0x80], &[1, 0, 0, 0, 0]] {
        assert_eq!(integer(wrong), Err(StoreError::Malformed), "{wrong:?}");
    }
}

#[test]
fn encrypted_keys_are_opened() {
    let with = |password| OwnCertificate::from_encrypted_pem(CHAIN, KEY, password, provider());
    assert_eq!(with("changeit").unwrap().names, ["store.example".into()]);
    assert_eq!(with("changed").unwrap_err(), MaterialError::LockedKey(StoreError::Password));
    let without = OwnCertificate::from_pem(CHAIN, KEY, provider());
    assert_eq!(without.unwrap_err(), MaterialError::EncryptedKey);
    let old = String::from_utf8_lossy(KEY).replace("ENCRYPTED PRIVATE KEY", "EC PRIVATE KEY");
    let old = old.replacen('\n', "\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n", 1);
    let old = OwnCertificate::from_encrypted_pem(CHAIN, old.as_bytes(), "changeit", provider());
    assert_eq!(old.unwrap_err(), MaterialError::EncryptedKey);
}
