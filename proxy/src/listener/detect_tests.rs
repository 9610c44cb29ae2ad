use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;

/// A ClientHello as rustls writes it.
fn hello(name: &str, alpn: &[&str]) -> Vec<u8> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(crate::tls::provider()))
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    let mut client = ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// The same handshake message in records of `size` bytes.
fn refragment(one_record: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for part in one_record[5..].chunks(size) {
        out.extend_from_slice(&[HANDSHAKE, 3, 1]);
        out.extend_from_slice(&u16::try_from(part.len()).unwrap().to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

fn info(sni: Option<&str>, alpn: &[&str]) -> ClientHelloInfo {
    ClientHelloInfo { sni: sni.map(Into::into), alpn: alpn.iter().map(|p| p.as_bytes().into()).collect() }
}

/// Every beginning of `bytes` answers NeedMore or what the whole answers.
fn is_stable(bytes: &[u8]) -> Detected {
    let whole = detect(bytes);
    let mut decided = false;
    for end in 0..=bytes.len() {
        let part = detect(&bytes[..end]);
        assert!(part == whole || (part == Detected::NeedMore && !decided), "{end}: {part:?}, then {whole:?}");
        decided |= part != Detected::NeedMore;
    }
    whole
}

#[test]
fn a_client_hello_in_every_split_and_fragmentation() {
    let bytes = hello("Orders.Shop.Example", &["h2", "http/1.1"]);
    let want = Detected::Tls(info(Some("orders.shop.example"), &["h2", "http/1.1"]));
    assert_eq!(is_stable(&bytes), want);
    for size in [1, 2, 3, 4, 5, 100, 1000] {
        assert_eq!(is_stable(&refragment(&bytes, size)), want, "records of {size}");
    }
    let mut more = bytes.clone();
    more.extend_from_slice(b"\x14\x03\x03\x00\x01\x01 and more");
    assert_eq!(is_stable(&more), want);
}

/// rustls writes no name with a trailing dot: one is put in the place of the last letter.
#[test]
fn a_name_with_a_trailing_dot_is_the_name() {
    let mut bytes = hello("orders.shop.examplex", &[]);
    let name = b"orders.shop.examplex";
    let at = bytes.windows(name.len()).position(|part| part == name).unwrap() + name.len() - 1;
    bytes[at] = b'.';
    assert_eq!(is_stable(&bytes), Detected::Tls(info(Some("orders.shop.example"), &[])));
}

#[test]
fn a_client_hello_without_names() {
    let bytes = hello("127.0.0.1", &[]);
    assert_eq!(is_stable(&bytes), Detected::Tls(ClientHelloInfo::default()));
}

#[test]
fn a_hello_without_extensions_is_tls() {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    let mut bytes = vec![HANDSHAKE, 3, 1, 0, u8::try_from(body.len() + 4).unwrap(), CLIENT_HELLO, 0, 0];
    bytes.push(u8::try_from(body.len()).unwrap());
    bytes.extend(body);
    assert_eq!(is_stable(&bytes), Detected::Tls(ClientHelloInfo::default()));
}

#[test]
fn what_begins_like_tls_and_is_not() {
    for bytes in [
        &b"\x16\x02"[..],
        b"\x16\x03\x05",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x40\x01",
        b"\x16\x03\x01\x00\x04\x02",
        b"\x16\x03\x01\x00\x04\x01\x01\x00\x00",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03",
        b"\x16\x03\x01\x00\x01\x01\x17",
        b"\x80\x2e\x01",
    ] {
        assert_eq!(is_stable(bytes), Detected::Opaque, "{bytes:?}");
    }
}

#[test]
fn http() {
    for (bytes, want) in [
        (&b"GET / HTTP/1.1\r\n"[..], Detected::Http1),
        (b"POST /a", Detected::Http1),
        (b"OPTIONS * HTTP/1.1", Detected::Http1),
        (b"GET http://a/ HTTP/1.1", Detected::Http1),
        (b"GET HTTPS://a/", Detected::Http1),
        (b"CONNECT a.example:443 HTTP/1.1", Detected::Http1),
        (b"CONNECT [::1]:443 HTTP/1.0", Detected::Http1),
        (b"MKCALENDAR /", Detected::Http1),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Detected::Http2),
        (b"PRI * HTTP/2.0\r\n\r\nXX", Detected::Opaque),
        (b"PR", Detected::NeedMore),
        (b"G", Detected::NeedMore),
        (b"GET", Detected::NeedMore),
        (b"GET ", Detected::NeedMore),
        (b"GET ht", Detected::NeedMore),
        (b"CONNECT a.example", Detected::NeedMore),
    ] {
        assert_eq!(is_stable(bytes), want, "{}", bytes.escape_ascii());
    }
}

#[test]
fn other_protocols_are_opaque_at_once() {
    for (bytes, first_decision) in [
        (&b"*1\r\n$4\r\nPING\r\n"[..], 1), // Redis
        (b"GET key\r\n", 5),               // Redis inline
        (b"get key\r\n", 1),               // memcached
        (b"SSH-2.0-OpenSSH", 2),
        (b"EHLO a.example\r\n", 1),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", 1), // PostgreSQL SSLRequest
        (b"\x10\x26\x00\x04MQTT", 1),
        (b"\r\nGET / HTTP/1.1", 1),
        (b"AMQP\x00\x00\x09\x01", 2),
        (b"PROXY TCP4", 4),
        (b"CONNECT\r\n", 8), // STOMP
        (b"CONNECT \r\n", 9),
        (b"GETS /", 4),
        (b"\xff", 1),
    ] {
        assert_eq!(is_stable(bytes), Detected::Opaque, "{}", bytes.escape_ascii());
        let decided = (0..=bytes.len()).find(|n| detect(&bytes[..*n]) == Detected::Opaque);
        assert_eq!(decided, Some(first_decision), "{}", bytes.escape_ascii());
    }
}

#[test]
fn nothing_is_looked_at_beyond_the_limit() {
    let mut bytes = b"CONNECT ".to_vec();
    bytes.resize(LIMIT - 1, b'a');
    assert_eq!(detect(&bytes), Detected::NeedMore);
    bytes.push(b'a');
    assert_eq!(detect(&bytes), Detected::Opaque);
    bytes.extend_from_slice(b" HTTP/1.1");
    assert_eq!(detect(&bytes), Detected::Opaque);
}

proptest! {
    #[test]
    fn any_bytes_are_stable(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        is_stable(&bytes);
    }

    #[test]
    fn bytes_that_look_like_tls_are_stable(mut bytes in proptest::collection::vec(any::<u8>(), 10..300)) {
        bytes[..9].copy_from_slice(&[HANDSHAKE, 3, 1, 0, 200, CLIENT_HELLO, 0, 0, 150]);
        is_stable(&bytes);
    }

    #[test]
    fn text_is_stable(text in "(GET|PUT|PRI|CONNECT|P|[A-Z]{1,9})?[ /*:a-zA-Z0-9.\r\n-]{0,30}") {
        is_stable(text.as_bytes());
    }
}

proptest! {
    // Each case looks at every beginning of a ClientHello of 1.5 kB.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_damaged_client_hello_is_stable(at in 0usize..4000, byte in any::<u8>(), cut in 0usize..4000) {
        static HELLO: LazyLock<Vec<u8>> = LazyLock::new(|| hello("orders.shop.example", &["h2"]));
        let mut bytes = HELLO.clone();
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(cut);
        is_stable(&bytes);
    }

    #[test]
    fn names_and_protocols_are_read_back(
        name in "[a-z]{1,20}(\\.[a-z0-9]{1,20}){0,4}\\.[a-z]{2,9}",
        alpn in proptest::collection::vec("[a-z0-9/.-]{1,30}", 0..5),
        size in 1usize..2000,
    ) {
        let protocols: Vec<&str> = alpn.iter().map(String::as_str).collect();
        let bytes = refragment(&hello(&name, &protocols), size);
        prop_assert_eq!(detect(&bytes), Detected::Tls(info(Some(&name), &protocols)));
    }
}
