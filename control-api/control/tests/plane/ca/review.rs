//! Tokens of Kubernetes, reviewed by a server that speaks its API.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::routing::post;
use http::{HeaderMap, StatusCode};
use rcgen::{CertificateParams, KeyPair};
use remora_control::ca::review::Options;
use remora_proxy::tls::material::OwnCertificate;
use remora_proxy::tls::secret::Secret;
use remora_proxy::tls::server::{ServerParams, ServerTls};
use remora_proxy::tls::{TlsParams, provider};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::Code;

use super::client::{Agent, reason};
use crate::support::{Rig, plaintext};

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// Knows one token, and answers only who shows the token of the control plane, over TLS.
async fn review(headers: HeaderMap, body: String) -> (StatusCode, String) {
    let asked: Value = serde_json::from_str(&body).unwrap();
    if headers.get("authorization").is_some_and(|own| own != "Bearer control") {
        return (StatusCode::UNAUTHORIZED, String::new());
    }
    let known = asked["spec"]["token"] == "ey.known.token";
    let user = json!({"username": "system:serviceaccount:default:shop"});
    let status = if known {
        json!({"authenticated": true, "user": user, "audiences": asked["spec"]["audiences"]})
    } else {
        json!({"error": "invalid bearer token"})
    };
    (StatusCode::CREATED, json!({"kind": "TokenReview", "status": status}).to_string())
}

async fn plain() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().route(PATH, post(review));
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}{PATH}")
}

/// The same by TLS, in front of the other. The answer is the URL and the root.
async fn secure(plain: &str) -> (String, String) {
    let behind = plain.split('/').nth(2).unwrap().to_owned();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::ExplicitNoCa;
    let pem = params.self_signed(&key).unwrap().pem();
    let own = OwnCertificate::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes(), provider()).unwrap();
    let tls = TlsParams { alpn: vec![b"http/1.1".to_vec()], ..TlsParams::default() };
    let params = ServerParams { tls, ..ServerParams::default() };
    let tls = Arc::new(ServerTls::new(params, vec![Secret::inline(own)], None).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, behind) = (Arc::clone(&tls), behind.clone());
            tokio::spawn(async move {
                let Ok((mut stream, _)) = tls.accept(stream, &[]).await else { return };
                let mut back = tokio::net::TcpStream::connect(behind).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut back).await;
            });
        }
    });
    (format!("https://localhost:{port}{PATH}"), pem)
}

async fn rig(url: String, roots: Option<PathBuf>, token: PathBuf) -> Rig {
    let review = Options { url, audience: "mesh".into(), roots, token: Some(token) };
    Rig::with(|options| options.authority.review = Some(review)).await
}

async fn asked(rig: &Rig, token: &str) -> Result<Agent, (Code, String)> {
    let mut agent = Agent::new();
    match agent.ask(plaintext(rig).await, Some(token)).await {
        Ok(()) => Ok(agent),
        Err(status) => Err(reason(Err(status))),
    }
}

#[tokio::test]
async fn a_service_account_of_kubernetes_gets_its_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let (own, roots) = (folder.path().join("token"), folder.path().join("roots.pem"));
    let plain = plain().await;
    let (url, pem) = secure(&plain).await;
    std::fs::write(&own, "control\n").unwrap();
    std::fs::write(&roots, pem).unwrap();
    for rig in [rig(plain, None, own.clone()).await, rig(url, Some(roots), own.clone()).await] {
        asked(&rig, "ey.known.token").await.unwrap();
        let logged = rig.get("/remora/v1/ca").await.1["issued"][0].clone();
        assert_eq!(logged["identity"], "spiffe://test/ns/default/sa/shop");
        assert_eq!(logged["credential"], "serviceaccount");
        let unknown = asked(&rig, "ey.other.token").await.err().unwrap();
        assert_eq!(unknown, (Code::Unauthenticated, "ca_service_account".to_owned()));
    }
}

#[tokio::test]
async fn without_a_reviewer_or_its_answer_nobody_is_believed() {
    let rig_without = Rig::start().await;
    let unknown = asked(&rig_without, "ey.known.token").await.err().unwrap();
    assert_eq!(unknown, (Code::Unauthenticated, "ca_token_unknown".to_owned()));
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let rig = rig(format!("http://{nobody}{PATH}"), None, folder.path().join("token")).await;
    let silent = asked(&rig, "ey.known.token").await.err().unwrap();
    assert_eq!(silent, (Code::Unavailable, "ca_review".to_owned()));
}
