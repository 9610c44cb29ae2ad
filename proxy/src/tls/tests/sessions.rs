//! Sessions that are resumed, and the name of a connection.

use super::*;

#[tokio::test]
async fn sessions_resume_until_trust_changes() {
    let ca = Ca::new("root");
    let (orders, web) = (ca.leaf(&[uri(ORDERS)], |_| {}), ca.leaf(&[uri(WEB)], |_| {}));
    for versions in [ONLY_13, ONLY_12] {
        let tls = TlsParams { versions, ..TlsParams::default() };
        let params = ServerParams { tls, require_client_certificate: true, ..ServerParams::default() };
        let (own, clients) = (orders.own(), ca.policy(vec![]));
        let server = ServerTls::new(params, vec![Arc::clone(&own)], Some(clients.clone())).unwrap();
        let (shown, servers) = (web.own(), ca.policy(vec![]));
        let shows = Some(Arc::clone(&shown));
        let client = ClientTls::new(ClientParams::default(), shows, servers.clone()).unwrap();
        let resumed = async || {
            let (served, asked) = shake(&server, &client, target()).await;
            let (served, asked) = (served.unwrap(), asked.unwrap());
            assert_eq!(served.peer.unwrap().spiffe.as_ref().unwrap().as_str(), WEB);
            assert_eq!(asked.peer.unwrap().spiffe.as_ref().unwrap().as_str(), ORDERS);
            assert_eq!(served.resumed, asked.resumed);
            served.resumed
        };
        assert!(!resumed().await);
        assert!(resumed().await);
        own.set(Arc::new(orders.certificate()));
        assert!(resumed().await, "a new certificate of ours does not end sessions");
        clients.trust.set(Arc::new(ca.trust(exactly(SanType::Uri, WEB))));
        assert!(!resumed().await, "new trust does");
        servers.trust.set(Arc::new(ca.trust(vec![])));
        assert!(!resumed().await, "a client's too");
        shown.set(Arc::new(web.certificate()));
        assert!(!resumed().await, "a client's new certificate is shown");
    }
}

#[tokio::test]
async fn a_client_that_is_no_longer_trusted_cannot_resume() {
    let ca = Ca::new("root");
    let (orders, web) = (ca.leaf(&[uri(ORDERS)], |_| {}), ca.leaf(&[uri(WEB)], |_| {}));
    let server = mtls_server(&ca, &orders, vec![]);
    let client = client(&ca, Some(&web), vec![]);
    assert!(shake(&server, &client, target()).await.0.is_ok());
    server.peers().unwrap().trust.set(Arc::new(ca.trust(exactly(SanType::Uri, ORDERS))));
    let (served, _) = shake(&server, &client, target()).await;
    assert_eq!(served.unwrap_err().kind, TlsFailure::CertificateName);
}

#[tokio::test]
async fn a_session_is_not_resumed_after_the_peer_s_certificate_ended() {
    let ca = Ca::new("root");
    let (orders, web) = (ca.leaf(&[uri(ORDERS)], |_| {}), ca.leaf(&[uri(WEB)], |_| {}));
    let server = mtls_server(&ca, &orders, vec![]);
    let client = client(&ca, Some(&web), vec![]);
    assert!(shake(&server, &client, target()).await.0.is_ok());
    let (near, far) = duplex(64 * 1024);
    let acceptor = tokio_rustls::TlsAcceptor::from(server.config().unwrap());
    let (stream, _client) = tokio::join!(acceptor.accept(far), client.connect(near, target()));
    let stream = stream.unwrap();
    let state = stream.get_ref().1;
    let end = web.certificate().not_after;
    assert!(TlsSession::read(state, None, true, end).unwrap().resumed);
    assert_eq!(
        TlsSession::read(state, None, true, end + 1).unwrap_err().kind,
        TlsFailure::CertificateExpired
    );
}

#[tokio::test]
async fn resumption_can_be_off_on_either_side() {
    let ca = Ca::new("root");
    let orders = ca.leaf(&[uri(ORDERS)], |_| {});
    for (timeout, sessions) in [(None, 32), (Some(Duration::from_secs(60)), 0)] {
        let params = ServerParams { session_timeout: timeout, ..ServerParams::default() };
        let server = ServerTls::new(params, vec![orders.own()], None).unwrap();
        let params = ClientParams { sessions, ..ClientParams::default() };
        let client = ClientTls::new(params, None, ca.policy(vec![])).unwrap();
        for _ in 0..2 {
            assert!(!shake(&server, &client, target()).await.0.unwrap().resumed);
        }
    }
}

#[tokio::test]
async fn the_name_of_the_connection_is_verified_when_asked() {
    let ca = Ca::new("root");
    let pair = ca.leaf(&[dns("*.shop.example"), San::IpAddress("192.0.2.1".parse().unwrap())], |_| {});
    let server = ServerTls::new(ServerParams::default(), vec![pair.own()], None).unwrap();
    // The configured names are replaced by the check of the connection's own name.
    let client = client(&ca, None, exactly(SanType::Uri, "spiffe://never"));
    for (host, want) in [
        (Some("orders.shop.example"), None),
        (Some("ORDERS.shop.example:8443"), None),
        (Some("192.0.2.1:443"), None),
        (Some("a.b.shop.example"), Some(TlsFailure::CertificateName)),
        (Some("192.0.2.2"), Some(TlsFailure::CertificateName)),
        (None, Some(TlsFailure::NoServerName)),
    ] {
        let target = Target { host, verify_host: true, ..target() };
        assert_eq!(kinds(&shake(&server, &client, target).await).1, want, "{host:?}");
    }
}

#[tokio::test]
async fn a_session_made_without_the_name_check_is_not_resumed_under_it() {
    let ca = Ca::new("root");
    let server =
        ServerTls::new(ServerParams::default(), vec![ca.leaf(&[dns("other")], |_| {}).own()], None).unwrap();
    let client = client(&ca, None, vec![]);
    let target = Target { host: Some("orders.shop.example"), ..target() };
    assert!(shake(&server, &client, target).await.1.is_ok());
    let strict = Target { verify_host: true, ..target };
    assert_eq!(kinds(&shake(&server, &client, strict).await).1, Some(TlsFailure::CertificateName));
}
