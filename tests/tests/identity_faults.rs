//! Faults of certificates and trust, rows I1 to I4 of docs/reference/identity-faults.md: what is right goes on, what is not gets
//! in nowhere, and the counters tell the causes apart. I5 is tested in the proxy's `config::manager::secrets`, I6 in clock_jumps.rs.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SerialNumber,
};
use remora_tests::certs::{Authority, ClientTls, Identity};
use remora_tests::client::Io;
use remora_tests::client::http1::Http1Client;
use remora_tests::config::{Listener, keepalive, merge, to_cluster};
use remora_tests::control_plane::ControlPlane;
use remora_tests::proxy::Proxy;
use remora_tests::resources::{
    cds, eds, eds_cluster, lds, own_secret, rds_by_ads, roots_secret, routes, under,
};
use remora_tests::traffic::Load;
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::{eventually, eventually_async};
use remora_xds::{Kind, Resource};
use rustls::client::Resumption;
use serde_json::{Value, json};
use tokio::sync::Notify;

const SERVER: &str = "a.example";
const CLIENT: &str = "spiffe://mesh.test/ns/shop/sa/web";

/// A proxy whose listener takes its certificate, and with `mutual` its trust, from secrets.
struct Rig {
    plane: ControlPlane,
    proxy: Proxy,
    rest: Vec<Resource>,
    own: Resource,
    roots: Option<Resource>,
    _origin: Http1Upstream,
}

impl Rig {
    async fn start(own: Resource, roots: Option<Resource>) -> Self {
        let origin = Http1Upstream::answering(Answer::ok("origin")).await;
        let plane = ControlPlane::start().await;
        let listener = Listener::http("ingress").manager(rds_by_ads("routes"));
        let listener = listener.by_secrets("own", roots.as_ref().map(|_| "roots"));
        let rest = vec![
            cds(&eds_cluster("origin")),
            eds("origin", &[origin.address()]),
            lds(listener),
            routes("origin", 1),
        ];
        let all = rest.iter().chain([&own]).chain(&roots).cloned();
        plane.publish(all);
        let proxy = under(&[plane.address]).start().await;
        Self { plane, proxy, rest, own, roots, _origin: origin }
    }

    /// Pushes another certificate, or other trust, and waits until it is in force.
    async fn push(&mut self, secret: Resource) {
        let name = secret.name().to_string();
        if name == "own" {
            self.own = secret;
        } else {
            self.roots = Some(secret);
        }
        self.plane.publish(self.rest.iter().chain([&self.own]).chain(&self.roots).cloned());
        self.plane.accepted(Kind::Secret, &name).await;
    }

    /// One request on a connection of its own; None: there was none.
    async fn status(&self, tls: &ClientTls) -> Option<u16> {
        let connected = Http1Client::connect_tls(self.proxy.address("ingress"), tls).await;
        // In TLS 1.3 a client knows only by the first answer that its certificate was taken.
        Some(connected.ok()?.get("/").await.ok()?.status)
    }

    /// Handshakes that failed for this reason.
    async fn refusals(&self, reason: &str) -> u64 {
        self.proxy.count(&rejected(reason)).await
    }

    /// Waits until so many handshakes have failed for this reason.
    async fn refused(&self, reason: &str, count: u64) {
        self.proxy.counts(&rejected(reason), count).await;
    }
}

fn rejected(reason: &str) -> String {
    format!("remora_downstream_rejected_total{{reason=\"{reason}\"}}")
}

fn ends_in(life: Duration) -> impl FnOnce(&mut CertificateParams) {
    move |params| params.not_after = (SystemTime::now() + life).into()
}

/// I1: a new certificate every few milliseconds, a new connection for every request: none is lost, and one that was there lives on.
#[tokio::test]
async fn i1_rotation_under_load_loses_no_handshake_and_no_connection() {
    const ROTATIONS: usize = 40;
    let authority = Authority::new();
    let tls = authority.client(SERVER, &["http/1.1"], None);
    let mut rig = Rig::start(own_secret("own", &authority.issue(&[SERVER])), None).await;
    let address = rig.proxy.address("ingress");
    let mut kept = Http1Client::connect_tls(address, &tls).await.unwrap();
    let traffic = Load::on(address).tls(&tls).reconnect().start().await;
    for _ in 0..ROTATIONS {
        rig.push(own_secret("own", &authority.issue(&[SERVER]))).await;
        traffic.flows(5).await;
        assert_eq!(kept.get("/").await.unwrap().status, 200);
    }
    let count = traffic.lost_nothing().await;
    println!("I1: {ROTATIONS} certificates, {count} handshakes, none lost");
}

/// I2: nobody renews a certificate. New handshakes fail when it has ended, what is open goes on, and a new one mends it.
#[tokio::test]
async fn i2_an_expired_certificate_fails_closed_and_a_new_one_mends_it() {
    let authority = Authority::new();
    let mut tls = authority.client(SERVER, &["http/1.1"], None);
    // A session that is resumed shows no certificate.
    Arc::make_mut(&mut tls.config).resumption = Resumption::disabled();
    let short = authority.issue_with(&[SERVER], ends_in(Duration::from_secs(3)));
    let mut rig = Rig::start(own_secret("own", &short), None).await;
    let mut kept = Http1Client::connect_tls(rig.proxy.address("ingress"), &tls).await.unwrap();
    assert_eq!(rig.status(&tls).await, Some(200));
    eventually_async("the end of the certificate", async || rig.status(&tls).await.is_none()).await;
    let told = async || rig.refusals("tls_refused_by_peer").await > 0;
    eventually_async("the client says why", told).await;
    assert_eq!(kept.get("/").await.unwrap().status, 200);
    rig.push(own_secret("own", &authority.issue(&[SERVER]))).await;
    assert_eq!(rig.status(&tls).await, Some(200));

    // A client whose certificate has ended.
    let ended = authority.issue_with(&[CLIENT], |params| params.not_after = rcgen::date_time_ymd(2021, 1, 1));
    let own = own_secret("own", &authority.issue(&[SERVER]));
    let rig = Rig::start(own, Some(roots_secret("roots", &authority.pem, None))).await;
    assert_eq!(rig.status(&authority.client(SERVER, &["http/1.1"], Some(&ended))).await, None);
    rig.refused("tls_certificate_expired", 1).await;
}

/// I3: from one authority to another. Nobody is refused while both are trusted; afterwards those of the old one are.
#[tokio::test]
async fn i3_a_new_authority_takes_over_without_a_lost_request() {
    let (old, new) = (Authority::new(), Authority::new());
    let own = own_secret("own", &old.issue(&[SERVER]));
    let mut rig = Rig::start(own, Some(roots_secret("roots", &old.pem, None))).await;
    // The servers' side is not what changes here: both clients believe the old authority.
    let (of_old, of_new) = (old.issue(&[CLIENT]), new.issue(&[CLIENT]));
    let client = |identity: &Identity| old.client(SERVER, &["http/1.1"], Some(identity));
    assert_eq!(rig.status(&client(&of_new)).await, None);

    rig.push(roots_secret("roots", &format!("{}{}", old.pem, new.pem), None)).await;
    let traffic = Load::on(rig.proxy.address("ingress")).tls(&client(&of_new)).reconnect().start().await;
    assert_eq!(rig.status(&client(&of_old)).await, Some(200));
    traffic.flows(20).await;
    rig.push(roots_secret("roots", &new.pem, None)).await;
    let before = rig.refusals("tls_certificate_untrusted").await;
    assert_eq!(rig.status(&client(&of_old)).await, None);
    rig.refused("tls_certificate_untrusted", before + 1).await;
    traffic.flows(20).await;
    traffic.lost_nothing().await;
}

/// I4: certificates of our own authority that are nobody's: each is refused, and counted by why.
#[tokio::test]
async fn i4_what_is_wrong_about_a_certificate_is_counted_and_lets_nobody_in() {
    let authority = Authority::new();
    let own = own_secret("own", &authority.issue(&[SERVER]));
    let rig = Rig::start(own, Some(roots_secret("roots", &authority.pem, None))).await;
    let client = |identity: &Identity| authority.client(SERVER, &["http/1.1"], Some(identity));
    let server_only = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    let authority_itself = |params: &mut CertificateParams| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    };
    let not_yet = |params: &mut CertificateParams| {
        params.not_before = rcgen::date_time_ymd(2090, 1, 1);
        params.not_after = rcgen::date_time_ymd(2091, 1, 1);
    };
    let cases = [
        (authority.issue(&["spiffe://mesh.test.evil/ns/shop/sa/web"]), "tls_certificate_name"),
        (authority.issue(&["spiffe://MESH.test/ns/shop/sa/web"]), "tls_certificate_refused"),
        (authority.issue(&["mesh.test"]), "tls_certificate_name"),
        (authority.issue(&[CLIENT, "spiffe://mesh.test/ns/shop/sa/other"]), "tls_certificate_refused"),
        (authority.issue_with(&[CLIENT], server_only), "tls_certificate_refused"),
        (authority.issue_with(&[CLIENT], authority_itself), "tls_certificate_refused"),
        (authority.issue_with(&[CLIENT], not_yet), "tls_certificate_not_yet_valid"),
        (Authority::new().issue(&[CLIENT]), "tls_certificate_untrusted"),
    ];
    for (i, (identity, reason)) in cases.iter().enumerate() {
        let before = rig.refusals(reason).await;
        assert_eq!(rig.status(&client(identity)).await, None, "case {i}");
        rig.refused(reason, before + 1).await;
    }
    assert_eq!(rig.status(&authority.client(SERVER, &["http/1.1"], None)).await, None);
    rig.refused("tls_no_client_certificate", 1).await;
    assert_eq!(rig.status(&client(&authority.issue(&[CLIENT]))).await, Some(200));
}

/// I4: a certificate is revoked while it is used: its open connection ends, and there is no new one.
#[tokio::test]
async fn i4_a_revoked_peer_loses_what_it_has_open() {
    let authority = Authority::new();
    let own = own_secret("own", &authority.issue(&[SERVER]));
    let mut rig = Rig::start(own, Some(roots_secret("roots", &authority.pem, None))).await;
    let numbered = |serial: u64| {
        authority.issue_with(&[CLIENT], |params| params.serial_number = Some(SerialNumber::from(serial)))
    };
    let client = |identity: &Identity| authority.client(SERVER, &["http/1.1"], Some(identity));
    let (revoked, other) = (client(&numbered(7)), client(&numbered(8)));
    let address = rig.proxy.address("ingress");
    let mut open = Http1Client::connect_tls(address, &revoked).await.unwrap();
    let mut others = Http1Client::connect_tls(address, &other).await.unwrap();
    assert_eq!(open.get("/").await.unwrap().status, 200);
    assert_eq!(others.get("/").await.unwrap().status, 200);

    rig.push(roots_secret("roots", &authority.pem, Some(&authority.revoke(&[7])))).await;
    assert!(open.is_closed().await);
    assert_eq!(rig.status(&revoked).await, None);
    rig.refused("tls_certificate_revoked", 1).await;
    assert_eq!(others.get("/").await.unwrap().status, 200);
    assert_eq!(rig.status(&other).await, Some(200));
}

/// A server behind the cluster `server`, reached over TLS as `roots` says.
fn server_cluster(http2: bool) -> Resource {
    let mut cluster = eds_cluster("server");
    let name = json!({ "san_type": "DNS", "matcher": { "exact": SERVER } });
    let sds = json!({ "name": "roots", "sds_config": { "resource_api_version": "V3", "ads": {} } });
    cluster["transport_socket"] = json!({ "name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": { "combined_validation_context": {
            "default_validation_context": { "match_typed_subject_alt_names": [name] },
            "validation_context_sds_secret_config": sds,
        } },
    } });
    if http2 {
        merge(&mut cluster, keepalive("30s", "30s"));
    }
    cds(&cluster)
}

/// A proxy whose listener leads to a server that shows the certificate number 7.
struct ToServer {
    authority: Authority,
    plane: ControlPlane,
    resources: Vec<Resource>,
    proxy: Proxy,
    rest: Arc<Notify>,
    _server: (Proxy, Http1Upstream),
}

impl ToServer {
    async fn start(listener: impl Into<Value>, http2: bool) -> Self {
        let authority = Authority::new();
        let seven = |params: &mut CertificateParams| params.serial_number = Some(SerialNumber::from(7_u64));
        let rest = Arc::new(Notify::new());
        let answer = rest.clone();
        let origin = Http1Upstream::scripted(move |seen, _| match seen.target() {
            "/slow" => {
                Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfirst").until(&answer).send("last")
            }
            _ => Answer::ok("origin"),
        })
        .await;
        let behind =
            Listener::http("ingress").tls(&authority.issue_with(&[SERVER], seven), &["h2", "http/1.1"]);
        let behind = behind.route(to_cluster("/", "origin"));
        let server = Proxy::builder().listener(behind).upstream("origin", &origin).start().await;
        let resources =
            vec![server_cluster(http2), eds("server", &[server.address("ingress")]), lds(listener)];
        let plane = ControlPlane::start().await;
        let none = roots_secret("roots", &authority.pem, Some(&authority.revoke(&[8])));
        plane.publish(resources.iter().cloned().chain([none]));
        let proxy = under(&[plane.address]).start().await;
        Self { authority, plane, resources, proxy, rest, _server: (server, origin) }
    }

    async fn revoke(&self) {
        let list = roots_secret("roots", &self.authority.pem, Some(&self.authority.revoke(&[7])));
        self.plane.publish(self.resources.iter().cloned().chain([list]));
        self.plane.accepted(Kind::Secret, "roots").await;
    }
}

/// I4: the certificate of a server is revoked. Pooled connections to it take no further request, and those that are running finish.
#[tokio::test]
async fn i4_a_revoked_server_gets_no_further_request() {
    for http2 in [false, true] {
        let rig = ToServer::start(Listener::http("ingress").route(to_cluster("/", "server")), http2).await;
        let mut client = rig.proxy.http1().await;
        assert_eq!(client.get("/").await.unwrap().text(), "origin");
        let mut runs = rig.proxy.http1().await;
        runs.send("GET /slow HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
        let (_, mut body) = runs.head("GET").await.unwrap();
        assert_eq!(client.get("/").await.unwrap().text(), "origin");
        rig.revoke().await;
        let refused = client.get("/").await.unwrap();
        assert_eq!(refused.reason(), Some("upstream_tls_failure"), "HTTP/2: {http2}");
        rig.rest.notify_waiters();
        while !runs.body_more(&mut body).await.unwrap() {}
    }
}

/// I4: of opaque bytes nobody knows where something ends.
#[tokio::test]
async fn i4_an_opaque_connection_to_a_revoked_server_ends() {
    let rig = ToServer::start(Listener::tcp("ingress", "server"), false).await;
    let mut client = rig.proxy.http1().await;
    assert_eq!(client.get("/").await.unwrap().text(), "origin");
    rig.revoke().await;
    assert!(client.is_closed().await);
}

/// I4: neither does anybody of the bytes behind a CONNECT.
#[tokio::test]
async fn i4_a_tunnel_to_a_revoked_server_ends() {
    let tunnel = json!({ "match": { "connect_matcher": {} }, "route": {
        "cluster": "server", "timeout": "0s", "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }],
    } });
    let rig = ToServer::start(Listener::http("ingress").upgrade("CONNECT").route(tunnel), false).await;
    let mut client = rig.proxy.http1().await;
    client.send("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n").await;
    assert_eq!(client.any_head().await.unwrap().word(1), "200");
    assert_eq!(client.get("/").await.unwrap().text(), "origin");
    rig.revoke().await;
    assert!(client.is_closed().await);
}

/// CVE-2022-21654: a session that began under other trust is not taken up again, whether its peer's authority is not trusted any
/// more or its certificate was revoked. What cannot be resumed is a full handshake, and that is refused.
#[tokio::test]
async fn i4_a_session_does_not_outlive_the_trust_that_it_began_under() {
    let (old, new) = (Authority::new(), Authority::new());
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let own = own_secret("own", &old.issue(&[SERVER]));
        let mut rig = Rig::start(own, Some(roots_secret("roots", &old.pem, None))).await;
        let numbered =
            old.issue_with(&[CLIENT], |params| params.serial_number = Some(SerialNumber::from(7_u64)));
        let tls = old.client_of(&[version], SERVER, &["http/1.1"], Some(&numbered));
        let address = rig.proxy.address("ingress");
        let resumes = async |tls: &ClientTls| {
            let io = Io::tls(address, tls).await.ok()?;
            let resumed = io.resumed();
            Http1Client::over(io).get("/").await.ok()?;
            Some(resumed)
        };
        assert_eq!(resumes(&tls).await, Some(false));
        assert_eq!(resumes(&tls).await, Some(true), "the attack is possible at all");
        rig.push(roots_secret("roots", &old.pem, Some(&old.revoke(&[7])))).await;
        assert_eq!(resumes(&tls).await, None);
        rig.refused("tls_certificate_revoked", 1).await;
        rig.push(roots_secret("roots", &old.pem, Some(&old.revoke(&[8])))).await;
        assert_eq!(resumes(&tls).await, Some(false), "a full handshake: the old session is gone");
        assert_eq!(resumes(&tls).await, Some(true));
        rig.push(roots_secret("roots", &new.pem, None)).await;
        assert_eq!(resumes(&tls).await, None);
        rig.refused("tls_certificate_untrusted", 1).await;
    }
}

/// Rule 5: what ran before starts without the control plane, its secrets included.
#[tokio::test]
async fn a_restart_without_the_control_plane_has_its_secrets() {
    let authority = Authority::new();
    let origin = Http1Upstream::answering(Answer::ok("origin")).await;
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("last-good.pb.gz");
    let listener = Listener::http("ingress").manager(rds_by_ads("routes")).by_secrets("own", Some("roots"));
    let plane = ControlPlane::start().await;
    plane.publish([
        cds(&eds_cluster("origin")),
        eds("origin", &[origin.address()]),
        lds(listener),
        routes("origin", 1),
        own_secret("own", &authority.issue(&[SERVER])),
        roots_secret("roots", &authority.pem, None),
    ]);
    let address = plane.address;
    let proxy = || under(&[address]).argument("--state-dir").argument(state.path().to_str().unwrap());
    let first = proxy().start().await;
    eventually("the file", || file.is_file()).await;
    drop((first, plane));

    let second = proxy().start().await;
    let tls = authority.client(SERVER, &["http/1.1"], Some(&authority.issue(&[CLIENT])));
    let mut client = Http1Client::connect_tls(second.address("ingress"), &tls).await.unwrap();
    assert_eq!(client.get("/").await.unwrap().text(), "origin");
}
