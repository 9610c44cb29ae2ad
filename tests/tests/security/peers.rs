//! Peers: who they say they are in certificates and headers, and handshakes that are none.

use std::process::Command;

use rcgen::SanType;
use remora_tests::certs::{Authority, Identity};
use remora_tests::client::http1::Http1Client;
use remora_tests::client::http2::{Http2Client, request};
use remora_tests::config::{Listener, to_cluster};
use remora_tests::proxy::Proxy;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};

use crate::{any, judged, rbac};

const SERVER: &str = "a.example";
const WEB: &str = "spiffe://mesh.test/ns/shop/sa/web";

/// A proxy with one listener; the origin answers `in`.
async fn start(listener: Listener) -> (Http1Upstream, Proxy) {
    let origin = Http1Upstream::answering(Answer::ok("in")).await;
    let listener = listener.route(to_cluster("/", "origin"));
    let proxy = Proxy::builder().listener(listener).upstream("origin", &origin).start().await;
    (origin, proxy)
}

/// The counter of handshakes that failed for this reason.
fn rejected(reason: &str) -> String {
    format!("remora_downstream_rejected_total{{reason=\"{reason}\"}}")
}

/// Mutual TLS: clients of these authorities, with a name that begins with one of these.
fn mutual(own: &Identity, authorities: &str, names: &[&str]) -> Value {
    let names: Vec<Value> =
        names.iter().map(|name| json!({ "san_type": "URI", "matcher": { "prefix": name } })).collect();
    json!({ "require_client_certificate": true, "common_tls_context": {
        "tls_certificates": [{
            "certificate_chain": { "inline_string": own.chain },
            "private_key": { "inline_string": own.key },
        }],
        "validation_context": {
            "trusted_ca": { "inline_string": authorities },
            "match_typed_subject_alt_names": names,
        },
    } })
}

/// The same path in another trust domain is somebody else, for the handshake and for the rules.
#[tokio::test]
async fn another_trust_domain_is_another_peer() {
    let (ours, partners) = (Authority::new(), Authority::new());
    let both = format!("{}{}", ours.pem, partners.pem);
    let own = ours.issue(&[SERVER]);
    let only = json!({ "authenticated": { "principal_name": { "exact": WEB } } });
    let listener = judged("ingress", rbac("ALLOW", any(), only));
    let names = ["spiffe://mesh.test/", "spiffe://partner.test/"];
    let (origin, proxy) = start(listener.tls_context(mutual(&own, &both, &names))).await;
    let ask = async |identity: &Identity| {
        let tls = ours.client(SERVER, &["http/1.1"], Some(identity));
        let mut client = Http1Client::connect_tls(proxy.address("ingress"), &tls).await.ok()?;
        let answer = client.get("/").await.ok()?;
        Some((answer.status, answer.reason().map(str::to_owned)))
    };
    assert_eq!(ask(&ours.issue(&[WEB])).await, Some((200, None)));
    let denied = Some((403, Some("rbac_denied".to_owned())));
    for name in [
        "spiffe://partner.test/ns/shop/sa/web",
        "spiffe://mesh.test/ns/shop/sa/web2",
        "spiffe://mesh.test/ns/shop/sa/web/x",
        "spiffe://mesh.test/ns/shop/sa/Web",
    ] {
        assert_eq!(ask(&partners.issue(&[name])).await, denied, "{name}");
    }
    // A DNS name that reads like one of this domain.
    let both_names = partners.issue_with(&["spiffe://partner.test/ns/shop/sa/web"], |params| {
        params.subject_alt_names.push(SanType::DnsName(WEB.try_into().unwrap()));
    });
    assert_eq!(ask(&both_names).await, denied);
    for (name, reason) in [
        ("spiffe://mesh.test.evil/ns/shop/sa/web", "tls_certificate_name"),
        ("spiffe://mesh.testx/ns/shop/sa/web", "tls_certificate_name"),
        ("spiffe://mesh/test/ns/shop/sa/web", "tls_certificate_name"),
        ("spiffe://evil/mesh.test/ns/shop/sa/web", "tls_certificate_name"),
        ("https://mesh.test/ns/shop/sa/web", "tls_certificate_name"),
        ("spiffe://MESH.TEST/ns/shop/sa/web", "tls_certificate_refused"),
        ("SPIFFE://mesh.test/ns/shop/sa/web", "tls_certificate_refused"),
        ("spiffe://mesh.test@evil/ns/shop/sa/web", "tls_certificate_refused"),
        ("spiffe://mesh.test:1/ns/shop/sa/web", "tls_certificate_refused"),
        ("spiffe://mesh.test/ns/../ns/shop/sa/web", "tls_certificate_refused"),
        ("spiffe://mesh.test/ns/shop/sa/web/", "tls_certificate_refused"),
        ("spiffe://mesh.test/ns/shop/sa/web%00", "tls_certificate_refused"),
        ("spiffe://mesh.test/", "tls_certificate_refused"),
    ] {
        let before = proxy.count(&rejected(reason)).await;
        assert_eq!(ask(&ours.issue(&[name])).await, None, "{name}");
        proxy.counts(&rejected(reason), before + 1).await;
    }
    assert_eq!(origin.requests().len(), 1);
}

/// CVE-2022-21656, CVE-2025-66220, CVE-2026-47778: only a URI name is an identity, and a NUL ends no name.
#[tokio::test]
async fn only_one_whole_uri_name_is_an_identity() {
    let authority = Authority::new();
    let own = authority.issue(&[SERVER]);
    let (origin, proxy) = start(Listener::http("ingress").mutual_tls(&own, &authority, WEB)).await;
    let uri = |name: &str| SanType::URI(name.try_into().unwrap());
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let nul = format!("{WEB}\0.evil");
    for (what, names, reason) in [
        ("no name but the common one", vec![], "tls_certificate_name"),
        ("a DNS name that reads like it", vec![dns(WEB)], "tls_certificate_name"),
        ("an e-mail address", vec![SanType::Rfc822Name(WEB.try_into().unwrap())], "tls_certificate_name"),
        ("an address", vec![SanType::IpAddress([127, 0, 0, 1].into())], "tls_certificate_name"),
        ("a wildcard", vec![dns("*.example"), uri("spiffe://mesh.test/*")], "tls_certificate_refused"),
        ("a NUL in the URI", vec![uri(&nul)], "tls_certificate_refused"),
        ("a NUL in another name", vec![uri(WEB), dns("a\0b")], "tls_certificate_refused"),
        ("two URIs", vec![uri(WEB), uri("spiffe://mesh.test/x")], "tls_certificate_refused"),
        ("twice the same", vec![uri(WEB), uri(WEB)], "tls_certificate_refused"),
    ] {
        let named = authority.issue_with(&[], |params| {
            params.distinguished_name.push(rcgen::DnType::CommonName, WEB);
            params.subject_alt_names = names;
        });
        let tls = authority.client(SERVER, &["http/1.1"], Some(&named));
        let before = proxy.count(&rejected(reason)).await;
        if let Ok(mut client) = Http1Client::connect_tls(proxy.address("ingress"), &tls).await {
            client.get("/").await.expect_err(what);
        }
        proxy.counts(&rejected(reason), before + 1).await;
    }
    assert!(origin.requests().is_empty());
}

/// In the mesh the program reads who called from the certificate that was verified, and from nothing else.
#[tokio::test]
async fn x_forwarded_client_cert_is_what_was_verified_and_nothing_that_was_sent() {
    let authority = Authority::new();
    let own = authority.issue(&["spiffe://mesh.test/ns/shop/sa/orders", SERVER]);
    let tls = authority.client(SERVER, &["http/1.1"], Some(&authority.issue(&[WEB])));
    let tls2 = authority.client(SERVER, &["h2"], Some(&authority.issue(&[WEB])));
    let manager = json!({
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": { "uri": true },
    });
    let listener = Listener::http("ingress").manager(manager).mutual_tls(&own, &authority, WEB);
    let (origin, proxy) = start(listener).await;
    let forged = "Hash=00;URI=spiffe://mesh.test/ns/shop/sa/admin";
    let mut client = Http1Client::connect_tls(proxy.address("ingress"), &tls).await.unwrap();
    for lines in [
        format!("X-Forwarded-Client-Cert: {forged}\r\nx-forwarded-client-cert: {forged}\r\n"),
        format!("Connection: x-forwarded-client-cert\r\nX-Forwarded-Client-Cert: {forged}\r\n"),
        String::new(),
    ] {
        client.send(format!("GET / HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n")).await;
        assert_eq!(client.response().await.unwrap().status, 200);
    }
    let mut client = Http2Client::connect_tls(proxy.address("ingress"), &tls2).await.unwrap();
    let fields = [&request("GET", "/")[..], &[("x-forwarded-client-cert", forged)]].concat();
    let stream = client.open(&fields, true).await;
    assert_eq!(client.outcome(stream).await.answer().status, 200);
    assert_eq!(origin.requests().len(), 4);
    for seen in origin.requests() {
        let said = seen.fields().all("x-forwarded-client-cert");
        let [said] = said[..] else { panic!("{said:?}") };
        assert!(said.ends_with(&format!(";URI={WEB}")) && !said.contains("admin"), "{said}");
        assert_eq!(said.matches("Hash=").count(), 1, "{said}");
    }
}

/// A ClientHello of TLS 1.3 with so many bytes of padding (RFC 7685), or as many as extensions can have, in records of 16 KiB.
fn client_hello(padding: usize) -> Vec<u8> {
    let tls = Authority::new().client(SERVER, &["http/1.1"], None);
    let name = ServerName::try_from(SERVER).unwrap();
    let mut client = rustls::ClientConnection::new(tls.config, name).unwrap();
    let mut record = Vec::new();
    client.write_tls(&mut record).unwrap();
    let mut message = record.split_off(5);
    // Type and length 4, version 2, random 32, session id, cipher suites, compression methods, extensions.
    let mut at = 4 + 2 + 32;
    at += 1 + usize::from(message[at]);
    at += 2 + usize::from(u16::from_be_bytes([message[at], message[at + 1]]));
    at += 1 + usize::from(message[at]);
    let padding = padding.min(0xffff - (message.len() - at - 2) - 4);
    message.extend([0, 21]);
    message.extend(u16::try_from(padding).unwrap().to_be_bytes());
    message.resize(message.len() + padding, 0);
    let extensions = u16::try_from(message.len() - at - 2).unwrap().to_be_bytes();
    message[at..at + 2].copy_from_slice(&extensions);
    let length = u32::try_from(message.len() - 4).unwrap().to_be_bytes();
    message[1..4].copy_from_slice(&length[1..]);
    let mut records = Vec::new();
    for part in message.chunks(1 << 14) {
        records.extend([22, 3, 1]);
        records.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
        records.extend(part);
    }
    records
}

/// A ClientHello that asks for TLS 1.0 at most.
fn tls10() -> Vec<u8> {
    let mut hello = vec![3, 1];
    hello.extend([7; 32]);
    // No session, TLS_RSA_WITH_AES_128_CBC_SHA, no compression.
    hello.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    let length = u8::try_from(hello.len()).unwrap();
    [&[22, 3, 1, 0, length + 4, 1, 0, 0, length], &hello[..]].concat()
}

/// First bytes that are no handshake, or none that we speak: each has its own reason, and the listener goes on.
#[tokio::test]
async fn handshakes_that_are_none_are_told_apart() {
    const ALERT: u8 = 21;
    const HANDSHAKE: u8 = 22;
    let authority = Authority::new();
    let listener = Listener::http("ingress").tls(&authority.issue(&[SERVER]), &["http/1.1"]);
    let (_origin, proxy) = start(listener).await;
    let whole = client_hello(0);
    let before = proxy.rss();
    for (what, bytes, reason, told) in [
        ("TLS 1.0", &tls10()[..], "tls_incompatible", true),
        ("SSL 2.0", b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10", "tls_not_tls", true),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "tls_not_tls", true),
        ("cut off", &whole[..whole.len() / 2], "tls_peer_closed", false),
        ("a record's head", &whole[..3], "tls_peer_closed", false),
        ("64 KiB", &client_hello(0xffff), "tls_protocol_error", false),
    ] {
        let before = proxy.count(&rejected(reason)).await;
        let mut client = Http1Client::connect(proxy.address("ingress")).await;
        client.send(bytes).await;
        client.half_close().await;
        // An alert may be lost where the connection ends with bytes that nobody read.
        let first = client.raw_to_end().await.unwrap_or_default().first().copied();
        assert!(first == Some(ALERT) || (!told && first.is_none()), "{what}: {first:?}");
        proxy.counts(&rejected(reason), before + 1).await;
    }
    let mut client = Http1Client::connect(proxy.address("ingress")).await;
    client.send(client_hello(15_000)).await;
    assert_eq!(client.raw(1).await.unwrap(), [HANDSHAKE], "a long one is served");
    assert!(proxy.rss() < before + (5 << 20), "{} bytes more", proxy.rss() - before);
    let tls = authority.client(SERVER, &["http/1.1"], None);
    assert_eq!(proxy.https1(&tls).await.get("/").await.unwrap().status, 200);
}

/// A ClientHello that never ends holds its connection for as long as the listener says.
#[tokio::test]
async fn a_handshake_that_stops_is_given_up() {
    let authority = Authority::new();
    let listener = Listener::http("ingress").tls(&authority.issue(&[SERVER]), &["http/1.1"]);
    let mut listener = Value::from(listener.route(to_cluster("/", "origin")));
    listener["filter_chains"][0]["transport_socket_connect_timeout"] = "0.2s".into();
    let origin = Http1Upstream::answering(Answer::ok("in")).await;
    let proxy = Proxy::builder().listener(listener).upstream("origin", &origin).start().await;
    let mut client = Http1Client::connect(proxy.address("ingress")).await;
    client.send(&client_hello(0)[..100]).await;
    assert!(client.is_closed().await);
    proxy.counts(&rejected("tls_timeout"), 1).await;
}

/// What is no pair is refused at the start, by its mistake.
#[tokio::test]
async fn a_certificate_that_cannot_be_shown_is_refused_by_its_mistake() {
    let authority = Authority::new();
    let (one, two) = (authority.issue(&[SERVER]), authority.issue(&[SERVER]));
    let pair = |chain: &str, key: &str| Identity { chain: chain.into(), key: key.into() };
    let encrypted = one.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    for (identity, mistake) in [
        (pair(&one.chain, &two.key), "belongs to none of the certificates"),
        (pair(&one.chain, &one.chain), "holds no private key"),
        (pair(&one.key, &one.key), "holds no certificate"),
        (pair(&one.chain, &encrypted), "encrypted private key"),
        (pair(&one.chain.replace("-----END CERTIFICATE-----", ""), &one.key), "not valid PEM"),
    ] {
        let listener = Listener::http("ingress").tls(&identity, &[]).route(to_cluster("/", "origin"));
        let (status, said) = Proxy::builder().listener(listener).refuse().await;
        assert!(!status.success() && said.contains(mistake), "{mistake}: {said}");
    }
}

/// PKCS#12 stores as OpenSSL and Java write them; one that is named as PEM, or is encrypted as before 2016, says what to do.
#[tokio::test]
async fn pkcs12_stores_are_served_or_say_what_to_do() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let (chain, key) = authority.issue(&[SERVER]).save(folder.path(), "own");
    let run = |program: &str, arguments: &[&str]| {
        let status = Command::new(program).args(arguments).current_dir(folder.path()).output().ok()?;
        assert!(status.status.success(), "{program}: {}", String::from_utf8_lossy(&status.stderr));
        Some(())
    };
    let (chain, key) = (chain.to_str().unwrap(), key.to_str().unwrap());
    let export = ["pkcs12", "-export", "-in", chain, "-inkey", key, "-passout", "pass:x y", "-out"];
    if run("openssl", &[&export[..], &["own.p12"]].concat()).is_none() {
        println!("SKIPPED: there is no openssl on this machine");
        return;
    }
    std::fs::write(folder.path().join("password"), "x y\n").unwrap();
    let file = |name: &str| json!({ "filename": folder.path().join(name) });
    let listener = |certificate: Value| {
        Listener::http("ingress")
            .tls_context(json!({ "common_tls_context": { "tls_certificates": [certificate] } }))
    };
    let store = |name: &str, password: &str| {
        listener(json!({ "pkcs12": file(name), "password": { "inline_string": password } }))
    };

    let mut served = vec![listener(json!({ "pkcs12": file("own.p12"), "password": file("password") }))];
    let import = ["-importkeystore", "-srckeystore", "own.p12", "-srcstorepass", "x y", "-noprompt"];
    let java = ["-destkeystore", "java.p12", "-deststorepass", "changeit", "-deststoretype", "PKCS12"];
    if run("keytool", &[import, java].concat()).is_some() {
        served.push(store("java.p12", "changeit"));
    } else {
        println!("SKIPPED: there is no keytool on this machine");
    }
    // What is told to do about an old store works.
    run("openssl", &[&export[..], &["old.p12", "-legacy"]].concat()).unwrap();
    let open = ["pkcs12", "-legacy", "-in", "old.p12", "-noenc", "-passin", "pass:x y", "-out", "old.pem"];
    run("openssl", &open).unwrap();
    let again = ["pkcs12", "-export", "-in", "old.pem", "-out", "new.p12", "-passout", "pass:x"];
    run("openssl", &again).unwrap();
    served.push(store("new.p12", "x"));
    for listener in served {
        let (_origin, proxy) = start(listener).await;
        let tls = authority.client(SERVER, &["http/1.1"], None);
        assert_eq!(proxy.https1(&tls).await.get("/").await.unwrap().status, 200);
    }

    let both = json!({ "pkcs12": file("own.p12"), "private_key": file("own.p12") });
    let as_pem = json!({ "certificate_chain": file("own.p12"), "private_key": file("own.p12") });
    for (listener, says) in [
        (store("own.p12", "xy"), "cannot be opened with this password"),
        (store("old.p12", "x y"), "openssl pkcs12 -legacy -in FILE"),
        (listener(both), "name the certificates in one way only"),
        (listener(as_pem), "name it in `pkcs12`"),
    ] {
        let proxy = Proxy::builder().listener(listener.route(to_cluster("/", "origin")));
        let (status, said) = proxy.refuse().await;
        assert!(!status.success() && said.contains(says), "{says}: {said}");
    }
}
