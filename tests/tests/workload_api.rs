//! A proxy whose certificate and trust come from a SPIFFE Workload API (`--workload-api`), row I7 of docs/reference/identity-faults.md. The API
//! is that of our own identity socket; `tests/xds` has the same with an agent that is not ours.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::Path;
use std::sync::Arc;

use rcgen::{IsCa, KeyUsagePurpose};
use remora_proxy::identity::Identity as Own;
use remora_proxy::identity::socket::Socket;
use remora_tests::certs::{Authority, ClientTls, Identity};
use remora_tests::client::http1::Http1Client;
use remora_tests::config::{Listener, direct};
use remora_tests::proxy::{Builder, Proxy};
use remora_tests::wait::{eventually, eventually_async};
use rustls::client::Resumption;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const SERVER: &str = "a.example";
/// SPIRE lets people write any path.
const ID: &str = "spiffe://mesh.test/spire/shop";
const CLIENT: &str = "spiffe://mesh.test/spire/web";

/// An agent that has one identity for everybody.
struct Agent {
    newest: watch::Sender<Option<Arc<Own>>>,
    serving: JoinHandle<()>,
}

impl Agent {
    fn at(path: &Path) -> Self {
        let (newest, identities) = watch::channel(None);
        let serving = tokio::spawn(Socket::bind(path).unwrap().serve(identities));
        Self { newest, serving }
    }

    /// A new certificate of `issuer`, and the bundle `roots`. The certificate is the answer.
    fn push(&self, issuer: &Authority, roots: &[&Authority]) -> Identity {
        let pair = svid(issuer, &[SERVER, ID]);
        let roots: String = roots.iter().map(|authority| authority.pem.as_str()).collect();
        let own = Own::from_pem(pair.chain.clone(), pair.key.clone(), roots).unwrap();
        self.newest.send_replace(Some(Arc::new(own)));
        pair
    }

    fn end(self) {
        self.serving.abort();
    }
}

fn svid(issuer: &Authority, names: &[&str]) -> Identity {
    issuer.issue_with(names, |params| {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    })
}

/// A proxy that answers whoever its agent's bundle vouches for.
fn guarded(agent: &Path) -> Builder {
    let listener = Listener::http("ingress").route(direct("/", 200, "ok")).tls_context(json!({
        "require_client_certificate": true,
        "common_tls_context": {
            "tls_certificate_sds_secret_configs": [{ "name": "default" }],
            "validation_context_sds_secret_config": { "name": "ROOTCA" },
        },
    }));
    let builder = Proxy::builder().listener(listener);
    builder.argument("--workload-api").argument(&format!("unix://{}", agent.display()))
}

fn client(server: &Authority, identity: &Identity) -> ClientTls {
    let mut tls = server.client(SERVER, &["http/1.1"], Some(identity));
    Arc::make_mut(&mut tls.config).resumption = Resumption::disabled();
    tls
}

/// One request on a connection of its own.
async fn is_let_in(proxy: &Proxy, tls: &ClientTls) -> bool {
    match Http1Client::connect_tls(proxy.address("ingress"), tls).await {
        Ok(mut client) => client.get("/").await.is_ok_and(|answer| answer.status == 200),
        Err(_) => false,
    }
}

/// Waits until the proxy shows a certificate.
async fn shows(proxy: &Proxy, tls: &ClientTls, expected: &Identity) {
    let expected = remora_proxy::tls::material::certificates(expected.chain.as_bytes()).unwrap();
    eventually_async("the new certificate", async || {
        let tcp = TcpStream::connect(proxy.address("ingress")).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&tls.config));
        let stream = connector.connect(tls.server_name.clone(), tcp).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap() == expected
    })
    .await;
}

/// The agent comes late, renews, goes away, and comes back. Nobody who has a connection notices.
#[tokio::test]
async fn i7_an_agent_may_come_late_rotate_and_start_again() {
    let authority = Authority::new();
    let tls = client(&authority, &svid(&authority, &[CLIENT]));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let builder = guarded(&path);
    let log = builder.folder().join("stderr");
    let comes_late = async {
        let missed = || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("no certificate"));
        eventually("the agent is missed", missed).await;
        let agent = Agent::at(&path);
        let first = agent.push(&authority, &[&authority]);
        (agent, first)
    };
    let (proxy, (agent, first)) = tokio::join!(builder.start(), comes_late);
    shows(&proxy, &tls, &first).await;
    let mut kept = proxy.https1(&tls).await;
    for _ in 0..3 {
        shows(&proxy, &tls, &agent.push(&authority, &[&authority])).await;
        assert_eq!(kept.get("/").await.unwrap().status, 200);
    }
    let failures = "remora_identity_requests_total{result=\"failed\"}";
    let before = proxy.count(failures).await;
    agent.end();
    eventually_async("the agent is missed", async || proxy.count(failures).await > before).await;
    assert!(is_let_in(&proxy, &tls).await, "what came stays");
    assert!(proxy.count("remora_identity_not_after_timestamp_seconds").await > 0);

    let agent = Agent::at(&path);
    shows(&proxy, &tls, &agent.push(&authority, &[&authority])).await;
    assert_eq!(kept.get("/").await.unwrap().status, 200);
}

/// Whom to believe comes from the agent, too: one authority after the other, each for names of its own trust domain.
#[tokio::test]
async fn i7_peers_are_those_that_the_bundle_of_the_agent_vouches_for() {
    let (old, new) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let agent = Agent::at(&path);
    agent.push(&old, &[&old]);
    let proxy = guarded(&path).start().await;
    let [of_old, of_new] = [&old, &new].map(|authority| client(&old, &svid(authority, &[CLIENT])));
    assert!(is_let_in(&proxy, &of_old).await && !is_let_in(&proxy, &of_new).await);
    let of_others = client(&old, &svid(&old, &["spiffe://other.test/spire/web"]));
    assert!(!is_let_in(&proxy, &of_others).await, "an authority vouched for another trust domain");

    agent.push(&old, &[&old, &new]);
    eventually_async("both are believed", async || is_let_in(&proxy, &of_new).await).await;
    assert!(is_let_in(&proxy, &of_old).await);
    agent.push(&new, &[&new]);
    let [of_old, of_new] = [&old, &new].map(|authority| client(&new, &svid(authority, &[CLIENT])));
    eventually_async("the new one signs", async || is_let_in(&proxy, &of_new).await).await;
    assert!(!is_let_in(&proxy, &of_old).await);
}

#[tokio::test]
async fn an_address_is_needed_and_only_one_issuer() {
    let proxy = || Proxy::builder().environment("SPIFFE_ENDPOINT_SOCKET", "nowhere");
    let (status, text) = proxy().argument("--workload-api").refuse().await;
    assert!(status.code() == Some(2) && text.contains("SPIFFE_ENDPOINT_SOCKET"), "{text}");
    let both = proxy().argument("--workload-api=unix:///a").argument("--ca").argument("https://127.0.0.1:1");
    let (status, text) = both.refuse().await;
    assert!(status.code() == Some(2) && text.contains("cannot be used with"), "{text}");
    let token = proxy().argument("--workload-api=unix:///a").argument("--token-file").argument("token");
    let (status, text) = token.refuse().await;
    assert!(status.code() == Some(2) && text.contains("cannot be used with"), "{text}");
}
