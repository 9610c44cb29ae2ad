//! Real handshakes over an in-memory pipe.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType as San};
use rustls::version::{TLS12, TLS13};
use rustls::{ProtocolVersion, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::client::{AlpnOffer, ClientParams, ClientTls, Target};
use super::domains::Domains;
use super::error::{TlsError, TlsFailure};
use super::identity::PeerIdentity;
use super::material::{self, Authorities, MaterialError, OwnCertificate};
use super::secret::Secret;
use super::server::{ServerParams, ServerTls};
use super::testing::{Ca, Pair, WEAK_KEY, anyone, dns, expired, not_yet, old_form, uri};
use super::verify::{PeerRules, SanMatch, SanType, Trust};
use super::{TlsParams, TlsSession, provider};
use crate::route::text::{Place, StringMatch};

mod pem;
mod sessions;
mod trust;

type Versions = &'static [&'static SupportedProtocolVersion];
static ONLY_12: Versions = &[&TLS12];
static ONLY_13: Versions = &[&TLS13];

const ORDERS: &str = "spiffe://mesh.example/ns/shop/sa/orders";
const WEB: &str = "spiffe://mesh.example/ns/shop/sa/web";

fn exactly(san: SanType, name: &str) -> Vec<SanMatch> {
    vec![SanMatch { san, text: StringMatch::text(Place::Exact, name, false) }]
}

fn target() -> Target<'static> {
    Target::new("192.0.2.7:443".parse().unwrap(), AlpnOffer::Nothing)
}

fn alpn(protocols: &[&str]) -> TlsParams {
    TlsParams { alpn: protocols.iter().map(|p| p.as_bytes().to_vec()).collect(), ..TlsParams::default() }
}

/// A server that wants `ORDERS`' clients to show a certificate of `ca`.
fn mtls_server(ca: &Ca, pair: &Pair, clients: Vec<SanMatch>) -> ServerTls {
    let params = ServerParams { require_client_certificate: true, ..ServerParams::default() };
    ServerTls::new(params, vec![pair.own()], Some(ca.policy(clients))).unwrap()
}

fn client(ca: &Ca, pair: Option<&Pair>, servers: Vec<SanMatch>) -> ClientTls {
    ClientTls::new(ClientParams::default(), pair.map(Pair::own), ca.policy(servers)).unwrap()
}

type Outcome = (Result<TlsSession, TlsError>, Result<TlsSession, TlsError>);

/// Shakes hands and sends a byte both ways: a TLS 1.3 client knows only then whether the server took its certificate.
async fn shake(server: &ServerTls, client: &ClientTls, target: Target<'_>) -> Outcome {
    let (near, far) = duplex(64 * 1024);
    let serve = async {
        let (mut stream, session) = server.accept(far, b"").await?;
        stream.read_u8().await?;
        stream.write_u8(1).await?;
        stream.flush().await?;
        Ok(session)
    };
    let ask = async {
        let (mut stream, session) = client.connect(near, target).await?;
        stream.write_u8(1).await?;
        stream.flush().await?;
        stream.read_u8().await?;
        Ok(session)
    };
    tokio::join!(serve, ask)
}

fn kinds(outcome: &Outcome) -> (Option<TlsFailure>, Option<TlsFailure>) {
    (outcome.0.as_ref().err().map(|e| e.kind), outcome.1.as_ref().err().map(|e| e.kind))
}

#[tokio::test]
async fn mutual_tls_tells_each_side_who_the_other_is() {
    let ca = Ca::new("root");
    let (orders, web) = (ca.leaf(&[uri(ORDERS), dns("orders")], |_| {}), ca.leaf(&[uri(WEB)], |_| {}));
    let server = mtls_server(&ca, &orders, exactly(SanType::Uri, WEB));
    let client = client(&ca, Some(&web), exactly(SanType::Uri, ORDERS));
    let target = Target { host: Some("orders.shop.example:8080"), ..target() };
    let (served, asked) = shake(&server, &client, target).await;
    let (served, asked) = (served.unwrap(), asked.unwrap());
    let (seen_client, seen_server) = (served.peer.unwrap(), asked.peer.unwrap());
    assert_eq!(seen_client.spiffe.as_ref().unwrap().as_str(), WEB);
    assert_eq!(seen_server.spiffe.as_ref().unwrap().service_account(), Some(("shop", "orders")));
    assert_eq!(
        (&*seen_server.subject, seen_server.dns_sans.len(), seen_server.verified),
        ("CN=leaf", 1, true)
    );
    let der = &material::certificates(web.chain.as_bytes()).unwrap()[0];
    assert_eq!(PeerIdentity::of_leaf(der, true).unwrap(), *seen_client);
    assert_eq!(seen_client.fingerprint_hex().len(), 64);
    assert_eq!(served.sni.as_deref(), Some("orders.shop.example"));
    assert_eq!(asked.sni.as_deref(), Some("orders.shop.example"));
    assert_eq!((served.version, served.resumed, served.alpn), (ProtocolVersion::TLSv1_3, false, None));
}

#[tokio::test]
async fn a_client_that_is_not_acceptable() {
    let (ca, other) = (Ca::new("root"), Ca::new("other root"));
    let orders = ca.leaf(&[uri(ORDERS)], |_| {});
    let server = mtls_server(&ca, &orders, exactly(SanType::Uri, WEB));
    let ca_leaf = |p: &mut CertificateParams| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let signer = |p: &mut CertificateParams| p.key_usages.push(KeyUsagePurpose::KeyCertSign);
    let no_signature = |p: &mut CertificateParams| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    let server_only =
        |p: &mut CertificateParams| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let nul = San::DnsName("a\0b".try_into().unwrap());
    use TlsFailure as F;
    for (what, pair, want) in [
        ("none", None, F::NoClientCertificate),
        ("expired", Some(ca.leaf(&[uri(WEB)], expired)), F::CertificateExpired),
        ("not valid yet", Some(ca.leaf(&[uri(WEB)], not_yet)), F::CertificateNotYetValid),
        ("wrong CA", Some(other.leaf(&[uri(WEB)], |_| {})), F::CertificateUntrusted),
        (
            "wrong name",
            Some(ca.leaf(&[uri("spiffe://mesh.example/ns/shop/sa/webx")], |_| {})),
            F::CertificateName,
        ),
        (
            "other domain",
            Some(ca.leaf(&[uri("spiffe://mesh.example.evil/ns/shop/sa/web")], |_| {})),
            F::CertificateName,
        ),
        ("common name only", Some(ca.leaf(&[], |_| {})), F::CertificateName),
        ("DNS name that looks like it", Some(ca.leaf(&[dns(WEB)], |_| {})), F::CertificateName),
        ("two URIs", Some(ca.leaf(&[uri(WEB), uri(ORDERS)], |_| {})), F::CertificateRefused),
        ("NUL in a name", Some(ca.leaf(&[uri(WEB), nul], |_| {})), F::CertificateRefused),
        (
            "upper case domain",
            Some(ca.leaf(&[uri("spiffe://MESH.EXAMPLE/x")], |_| {})),
            F::CertificateRefused,
        ),
        (
            "upper case scheme",
            Some(ca.leaf(&[uri("SPIFFE://mesh.example/x")], |_| {})),
            F::CertificateRefused,
        ),
        ("domain only", Some(ca.leaf(&[uri("spiffe://mesh.example")], |_| {})), F::CertificateRefused),
        ("a CA", Some(ca.leaf(&[uri(WEB)], ca_leaf)), F::CertificateRefused),
        ("may sign certificates", Some(ca.leaf(&[uri(WEB)], signer)), F::CertificateRefused),
        ("may not sign", Some(ca.leaf(&[uri(WEB)], no_signature)), F::CertificateRefused),
        ("for servers", Some(ca.leaf(&[uri(WEB)], server_only)), F::CertificateRefused),
    ] {
        let client = client(&ca, pair.as_ref(), vec![]);
        let outcome = shake(&server, &client, target()).await;
        assert_eq!(kinds(&outcome), (Some(want), Some(F::RefusedByPeer)), "{what}: {:?}", outcome.0);
    }
}

#[tokio::test]
async fn a_server_that_is_not_acceptable() {
    let (ca, other) = (Ca::new("root"), Ca::new("other root"));
    let client_only =
        |p: &mut CertificateParams| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    use TlsFailure as F;
    for (what, pair, want) in [
        ("expired", ca.leaf(&[uri(ORDERS)], expired), F::CertificateExpired),
        ("not valid yet", ca.leaf(&[uri(ORDERS)], not_yet), F::CertificateNotYetValid),
        ("wrong CA", other.leaf(&[uri(ORDERS)], |_| {}), F::CertificateUntrusted),
        ("wrong name", ca.leaf(&[uri(WEB)], |_| {}), F::CertificateName),
        ("for clients", ca.leaf(&[uri(ORDERS)], client_only), F::CertificateRefused),
    ] {
        let server = ServerTls::new(ServerParams::default(), vec![pair.own()], None).unwrap();
        let client = client(&ca, None, exactly(SanType::Uri, ORDERS));
        let outcome = shake(&server, &client, target()).await;
        assert_eq!(kinds(&outcome), (Some(F::RefusedByPeer), Some(want)), "{what}: {:?}", outcome.1);
    }
}

#[tokio::test]
async fn a_refused_name_says_which_names_there_are() {
    let ca = Ca::new("root");
    let server =
        ServerTls::new(ServerParams::default(), vec![ca.leaf(&[uri(WEB), dns("a")], |_| {}).own()], None);
    let client = client(&ca, None, exactly(SanType::Uri, ORDERS));
    let (_, asked) = shake(&server.unwrap(), &client, target()).await;
    let text = asked.unwrap_err().to_string();
    assert!(text.contains(&format!("URI:{WEB}, DNS:a")), "{text}");
}

#[tokio::test]
async fn optional_client_certificates_are_verified_when_shown() {
    let (ca, other) = (Ca::new("root"), Ca::new("other root"));
    let orders = ca.leaf(&[uri(ORDERS)], |_| {});
    let policy = Some(ca.policy(vec![]));
    let server = ServerTls::new(ServerParams::default(), vec![orders.own()], policy).unwrap();
    let (served, _) = shake(&server, &client(&ca, None, vec![]), target()).await;
    assert!(served.unwrap().peer.is_none());
    let (served, _) =
        shake(&server, &client(&ca, Some(&ca.leaf(&[uri(WEB)], |_| {})), vec![]), target()).await;
    assert!(served.unwrap().peer.unwrap().spiffe.is_some());
    let (served, _) =
        shake(&server, &client(&ca, Some(&other.leaf(&[uri(WEB)], |_| {})), vec![]), target()).await;
    assert_eq!(served.unwrap_err().kind, TlsFailure::CertificateUntrusted);
}

#[tokio::test]
async fn an_unverified_peer_has_no_names() {
    let (ca, other) = (Ca::new("root"), Ca::new("other root"));
    let anyone = || PeerRules::inline(anyone());
    let params = ServerParams { require_client_certificate: true, ..ServerParams::default() };
    let server = ServerTls::new(params, vec![ca.leaf(&[uri(ORDERS)], |_| {}).own()], Some(anyone())).unwrap();
    let web = other.leaf(&[uri(WEB), dns("web")], |_| {});
    let client = ClientTls::new(ClientParams::default(), Some(web.own()), anyone()).unwrap();
    let (served, asked) = shake(&server, &client, target()).await;
    for peer in [served.unwrap().peer.unwrap(), asked.unwrap().peer.unwrap()] {
        assert!(
            !peer.verified && peer.spiffe.is_none() && peer.uri_sans.is_empty() && peer.dns_sans.is_empty()
        );
    }
}

#[tokio::test]
async fn versions() {
    let ca = Ca::new("root");
    let orders = ca.leaf(&[uri(ORDERS)], |_| {});
    let both: Versions = rustls::ALL_VERSIONS;
    for (ours, theirs, want) in [
        (ONLY_12, both, Ok(ProtocolVersion::TLSv1_2)),
        (both, ONLY_12, Ok(ProtocolVersion::TLSv1_2)),
        (both, both, Ok(ProtocolVersion::TLSv1_3)),
        (ONLY_13, ONLY_12, Err(TlsFailure::Incompatible)),
    ] {
        let tls = TlsParams { versions: ours, ..TlsParams::default() };
        let params = ServerParams { tls, require_client_certificate: true, ..ServerParams::default() };
        let server = ServerTls::new(params, vec![orders.own()], Some(ca.policy(vec![]))).unwrap();
        let tls = TlsParams { versions: theirs, ..TlsParams::default() };
        let params = ClientParams { tls, ..ClientParams::default() };
        let client = ClientTls::new(params, Some(orders.own()), ca.policy(vec![])).unwrap();
        let (served, _) = shake(&server, &client, target()).await;
        assert_eq!(served.map(|s| s.version).map_err(|e| e.kind), want);
    }
}

#[tokio::test]
async fn application_protocols() {
    let ca = Ca::new("root");
    let orders = ca.leaf(&[uri(ORDERS)], |_| {});
    let server = |protocols| {
        let params = ServerParams { tls: alpn(protocols), ..ServerParams::default() };
        ServerTls::new(params, vec![orders.own()], None).unwrap()
    };
    let client = |protocols| {
        let params = ClientParams { tls: alpn(protocols), ..ClientParams::default() };
        ClientTls::new(params, None, ca.policy(vec![])).unwrap()
    };
    for (ours, configured, offer, want) in [
        (&["h2", "http/1.1"][..], &[][..], AlpnOffer::Any, Some("h2")),
        (&["h2", "http/1.1"], &[], AlpnOffer::Http1, Some("http/1.1")),
        (&["h2", "http/1.1"], &[], AlpnOffer::Nothing, None),
        (&["http/1.1"], &[], AlpnOffer::Any, Some("http/1.1")),
        // What the context says wins over what the pool would offer.
        (&["h2", "http/1.1"], &["http/1.1"], AlpnOffer::Http2, Some("http/1.1")),
        // Nothing in common: as in Envoy the connection goes on without a protocol.
        (&["http/1.1"], &[], AlpnOffer::Http2, None),
        (&[], &[], AlpnOffer::Http2, None),
    ] {
        let target = Target { alpn: offer, ..target() };
        let (served, asked) = shake(&server(ours), &client(configured), target).await;
        let (served, asked) = (served.unwrap(), asked.unwrap());
        assert_eq!(served.alpn.as_deref(), want.map(str::as_bytes), "{ours:?} {configured:?} {offer:?}");
        assert_eq!(asked.alpn, served.alpn);
        assert_eq!(asked.is_h2(), want == Some("h2"));
    }
}

#[tokio::test]
async fn certificates_are_chosen_by_name_and_key_type() {
    let ca = Ca::new("root");
    let make = |rsa: bool, name: &str| {
        let algorithm = if rsa { &rcgen::PKCS_RSA_SHA256 } else { &rcgen::PKCS_ECDSA_P256_SHA256 };
        ca.leaf_for(algorithm, &[dns(name)], |_| {})
    };
    let list = [
        make(true, "first.example"),
        make(true, "both.example"),
        make(false, "both.example"),
        make(false, "*.wild.example"),
    ];
    let rsa_only = Arc::new(rustls::crypto::CryptoProvider {
        cipher_suites: vec![rustls::crypto::aws_lc_rs::cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256],
        ..rustls::crypto::CryptoProvider::clone(provider())
    });
    let serve = |require_sni, full_scan| {
        let params = ServerParams { require_sni, full_scan, ..ServerParams::default() };
        ServerTls::new(params, list.iter().map(Pair::own).collect(), None).unwrap()
    };
    let any = client(&ca, None, vec![]);
    let tls = TlsParams { provider: rsa_only, versions: ONLY_12, alpn: vec![] };
    let params = ClientParams { tls, ..ClientParams::default() };
    let rsa = ClientTls::new(params, None, ca.policy(vec![])).unwrap();
    let server = serve(false, false);
    for (server, client, host, want) in [
        (&server, &any, Some("both.example"), 2),
        (&server, &rsa, Some("both.example"), 1),
        (&server, &any, Some("a.wild.example"), 3),
        (&server, &any, Some("unknown.example"), 0),
        (&server, &any, None, 0),
        (&serve(false, true), &any, Some("unknown.example"), 2),
    ] {
        let (_, asked) = shake(server, client, Target { host, ..target() }).await;
        let der = &material::certificates(list[want].chain.as_bytes()).unwrap()[0];
        let expected = PeerIdentity::of_leaf(der, true).unwrap();
        assert_eq!(*asked.unwrap().peer.unwrap(), expected, "{host:?}");
    }
    let (served, _) = shake(&serve(true, false), &any, target()).await;
    assert_eq!(served.unwrap_err().kind, TlsFailure::NoServerCertificate);
}

#[tokio::test]
async fn bytes_that_detection_has_read_are_not_lost() {
    let ca = Ca::new("root");
    let server =
        ServerTls::new(ServerParams::default(), vec![ca.leaf(&[dns("a")], |_| {}).own()], None).unwrap();
    let client = client(&ca, None, vec![]);
    for read in [0, 1, 4, 5, 6, 100, 5000] {
        let (near, mut far) = duplex(64 * 1024);
        let serve = async {
            let mut first = vec![0; read];
            let mut got = 0;
            // A ClientHello is shorter than the last of these: take what the client sends before it waits.
            while got < read.min(200) {
                got += far.read(&mut first[got..]).await.unwrap();
            }
            let (mut stream, _) = server.accept(far, &first[..got]).await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), 7);
        };
        let ask = async {
            let (mut stream, _) = client.connect(near, target()).await.unwrap();
            stream.write_u8(7).await.unwrap();
            stream.flush().await.unwrap();
            stream
        };
        tokio::join!(serve, ask);
    }
}

#[tokio::test]
async fn garbage_and_silence() {
    let ca = Ca::new("root");
    let server =
        ServerTls::new(ServerParams::default(), vec![ca.leaf(&[dns("a")], |_| {}).own()], None).unwrap();
    for (first, then, want) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], &b""[..], TlsFailure::NotTls),
        (b"", b"GET / HTTP/1.1\r\n\r\n", TlsFailure::NotTls),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03", b"", TlsFailure::Protocol),
        (b"\x16\x03", b"", TlsFailure::PeerClosed),
        (b"", b"", TlsFailure::PeerClosed),
    ] {
        let (mut near, far) = duplex(1024);
        near.write_all(then).await.unwrap();
        near.shutdown().await.unwrap();
        let error = server.accept(far, first).await.map(|_| ()).unwrap_err();
        assert_eq!(error.kind, want, "{first:?} {then:?}: {error}");
        let mut alert = Vec::new();
        near.read_to_end(&mut alert).await.unwrap();
        assert_eq!(
            alert.is_empty(),
            want == TlsFailure::PeerClosed,
            "an alert tells a TLS peer why: {alert:?}"
        );
    }
}

#[tokio::test]
async fn a_handshake_without_its_secret_says_which() {
    let ca = Ca::new("root");
    let orders = ca.leaf(&[uri(ORDERS)], |_| {});
    let own = Secret::awaited("own".into());
    let server = ServerTls::new(ServerParams::default(), vec![Arc::clone(&own)], None).unwrap();
    assert!(!server.is_ready());
    let client = client(&ca, None, vec![]);
    let error = shake(&server, &client, target()).await.0.unwrap_err();
    assert_eq!((error.kind, error.detail.contains("\"own\"")), (TlsFailure::SecretMissing, true));
    own.set(Arc::new(orders.certificate()));
    assert!(server.is_ready() && shake(&server, &client, target()).await.0.is_ok());
}
