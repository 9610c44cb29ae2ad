//! Join tokens and certificates for them.

use std::time::SystemTime;

use http::{Method, StatusCode};
use remora_control::ca::hex;
use remora_control::ca::service::CertificateRequest;
use remora_control::clock::age;
use remora_proxy::tls::identity::{PeerIdentity, sha256};
use remora_proxy::tls::material;
use serde_json::json;
use tonic::Code;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::client::{Agent, create, joined, reason, shake, tls, token};
use crate::support::{Rig, plaintext, until};

fn refused(code: Code, id: &str) -> (Code, String) {
    (code, id.to_owned())
}

#[tokio::test]
async fn a_token_is_good_for_one_key_and_for_the_identity_that_it_is_for() {
    let rig = Rig::start().await;
    let made = token(&rig, "shop", &json!({})).await;
    let text = made["token"].as_str().unwrap();
    let mut agent = Agent::new();
    agent.ask(plaintext(&rig).await, Some(text)).await.unwrap();
    let leaf = material::certificates(agent.chain[0].as_bytes()).unwrap().remove(0);
    let peer = PeerIdentity::of_leaf(&leaf, true).unwrap();
    assert_eq!(peer.spiffe.unwrap().as_str(), "spiffe://test/ns/default/sa/shop");
    let (_, ca) = rig.get("/remora/v1/ca").await;
    assert_eq!(agent.chain.last().unwrap(), ca["trusted"].as_str().unwrap());

    // An answer that was lost may be asked for again; another key gets nothing.
    agent.ask(plaintext(&rig).await, Some(text)).await.unwrap();
    let other = Agent::new().ask(plaintext(&rig).await, Some(text)).await;
    assert_eq!(reason(other), refused(Code::Unauthenticated, "ca_token_used"));

    let (_, ca) = rig.get("/remora/v1/ca").await;
    let logged = &ca["issued"][0];
    assert_eq!(logged["identity"], "spiffe://test/ns/default/sa/shop");
    assert_eq!(logged["credential"], format!("token {}", made["id"].as_str().unwrap()));
    assert!(logged["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{logged}");
    let file = std::fs::read_to_string(rig.folder.path().join("issued.jsonl")).unwrap();
    assert!(file.contains(logged["serial"].as_str().unwrap()), "{file}");
}

#[tokio::test]
async fn what_is_no_credential_is_told_so() {
    let rig = Rig::start().await;
    let made = token(&rig, "shop", &json!({})).await;
    let text = made["token"].as_str().unwrap().to_owned();
    let ask = async |mut agent: Agent, token: Option<&str>| agent.ask(plaintext(&rig).await, token).await;

    assert_eq!(reason(ask(Agent::new(), None).await), refused(Code::Unauthenticated, "ca_no_credential"));
    let mut parts: Vec<_> = text.split('-').collect();
    let wrong = "0".repeat(parts[2].len());
    parts[2] = &wrong;
    for unknown in ["secret", "remora-00-11", &parts.join("-")] {
        let told = reason(ask(Agent::new(), Some(unknown)).await);
        assert_eq!(told, refused(Code::Unauthenticated, "ca_token_unknown"), "{unknown}");
    }
    let bank = ask(Agent::named("spiffe://test/ns/default/sa/bank"), Some(&text)).await;
    assert_eq!(reason(bank), refused(Code::PermissionDenied, "ca_csr_identity"));
    // Asked once only: too many failures would be told instead.
    let short = token(&rig, "shop", &json!({"ttlSeconds": 1})).await;
    let ends = short["expires"].as_str().unwrap().to_owned();
    until("it has ended", async || age(&ends, SystemTime::now()).is_some_and(|past| past >= 1)).await;
    let expired = reason(ask(Agent::new(), short["token"].as_str()).await);
    assert_eq!(expired, refused(Code::Unauthenticated, "ca_token_expired"));
}

#[tokio::test]
async fn hostile_requests_are_bounded() {
    let rig = Rig::start().await;
    let made = token(&rig, "shop", &json!({})).await;
    let text = made["token"].as_str();
    let send = async |csr: String| {
        create(plaintext(&rig).await, text, CertificateRequest { csr, validity_duration: 0 }).await
    };
    assert_eq!(send("x".repeat(1 << 20)).await.unwrap_err().code(), Code::OutOfRange);
    assert_eq!(reason(send("junk".into()).await.map(drop)).1, "ca_csr_malformed");
    let mut last = String::new();
    for _ in 0..40 {
        let guess = format!("remora-{:016x}-{:048x}", 1, 2);
        last = reason(Agent::new().ask(plaintext(&rig).await, Some(&guess)).await).1;
        if last != "ca_token_unknown" {
            break;
        }
    }
    assert_eq!(last, "ca_too_many_failures");
    Agent::new().ask(plaintext(&rig).await, text).await.expect("who has a token does not suffer for others");
    let metrics = rig.get("/metrics").await.1.to_string();
    assert!(metrics.contains("remora_control_ca_requests_total{answer=\\\"issued\\\"} 1\\n"), "{metrics}");
}

#[tokio::test]
async fn people_make_list_and_remove_tokens() {
    let rig = Rig::start().await;
    let made = token(&rig, "shop", &json!({"uses": 2})).await;
    let (_, list) = rig.get("/remora/v1/tokens").await;
    assert_eq!(list["items"][0]["identity"], "spiffe://test/ns/default/sa/shop");
    assert_eq!(list["items"][0]["uses"], 2);
    assert!(!list.to_string().contains(made["token"].as_str().unwrap().split('-').nth(2).unwrap()));
    let one = format!("/remora/v1/tokens/{}", made["id"].as_str().unwrap());
    assert_eq!(rig.send(Method::DELETE, &one, "", "").await.0, StatusCode::NO_CONTENT);
    assert_eq!(rig.send(Method::DELETE, &one, "", "").await.0, StatusCode::NOT_FOUND);
    let gone = Agent::new().ask(plaintext(&rig).await, made["token"].as_str()).await;
    assert_eq!(reason(gone), refused(Code::Unauthenticated, "ca_token_unknown"));

    for wrong in [
        json!({"namespace": "a/b", "serviceAccount": "x"}),
        json!({"namespace": "a", "serviceAccount": ""}),
        json!({"namespace": "a", "serviceAccount": "x", "uses": 0}),
        json!({"namespace": "a", "serviceAccount": "x", "ttlSeconds": 0}),
    ] {
        let (status, answer) =
            rig.send(Method::POST, "/remora/v1/tokens", "application/json", &wrong.to_string()).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{wrong}: {answer}");
    }
    let audit = std::fs::read_to_string(rig.folder.path().join("audit.jsonl")).unwrap();
    assert_eq!(audit.matches("JoinToken").count(), 2, "{audit}");
    assert!(audit.contains("+identity spiffe://"), "what it was for is known when it is gone: {audit}");
}

#[tokio::test]
async fn the_tls_port_is_verified_by_the_pin_of_a_token_and_a_certificate_is_renewed_by_itself() {
    let rig = Rig::start().await;
    let made = token(&rig, "shop", &json!({})).await;
    let pin = made["token"].as_str().unwrap().rsplit('-').next().unwrap();
    let stream = shake(&rig).await;
    let pinned = stream.get_ref().1.peer_certificates().unwrap().iter().any(|der| {
        let (_, parsed) = X509Certificate::from_der(der).unwrap();
        hex(&sha256(parsed.tbs_certificate.subject_pki.raw)) == pin
    });
    assert!(pinned, "the chain that is shown ends with the root of the pin");

    let nobody = Agent::new().ask(tls(&rig, None).await, None).await;
    assert_eq!(reason(nobody), refused(Code::Unauthenticated, "ca_no_credential"));
    let mut agent = Agent::new();
    agent.ask(tls(&rig, None).await, made["token"].as_str()).await.unwrap();
    let channel = tls(&rig, Some(&agent)).await;
    agent.ask(channel.clone(), None).await.unwrap();
    let (_, ca) = rig.get("/remora/v1/ca").await;
    let credential = ca["issued"][0]["credential"].as_str().unwrap();
    assert!(credential.starts_with("certificate "), "{credential}");
    let bank = Agent::named("spiffe://test/ns/default/sa/bank").ask(channel, None).await;
    assert_eq!(reason(bank), refused(Code::PermissionDenied, "ca_csr_identity"));
}

#[tokio::test]
async fn the_certificate_of_the_tls_port_is_replaced_at_half_of_its_life() {
    let rig = Rig::with(|options| options.authority.ttl = std::time::Duration::from_secs(2)).await;
    let shown = async || shake(&rig).await.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let first = shown().await;
    until("another certificate", async || shown().await != first).await;
    joined(&rig, "shop").await;
}
