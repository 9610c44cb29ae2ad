//! What a publisher keeps.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use remora_mesh::document::Action;
use remora_mesh::{AnyDocument, Change, Credentials, Documents, Listening, OutboundTraffic};
use remora_xds::pb::envoy::config::core::v3::Node as PbNode;

use super::*;
use crate::document::Record;
use crate::store;

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {selector: {app: shop}, ports: [{name: http, port: 8080}]}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: shop-1, labels: {app: shop}}
spec: {address: 10.0.0.1, ports: [{port: 8080}]}
";

fn publisher() -> Publisher {
    let profile = Profile {
        trust_domain: "test".into(),
        federated: Vec::new(),
        credentials: Credentials::Issued,
        listening: Listening::AsWritten,
        ecdh_curves: Vec::new(),
        outbound_traffic: OutboundTraffic::AllowAny,
    };
    let publisher = Publisher::new(profile, Arc::new(Board::default()));
    let documents = Documents::read([("mesh.yaml", MESH)]).unwrap();
    publisher.apply(documents.iter().map(Change::Put).collect());
    publisher
}

/// A record of a policy of shop.
fn policy(kind: &str, spec: &serde_json::Value) -> Record {
    let key = store::Key::new(kind, "default", "guard");
    let body = serde_json::json!({
        "apiVersion": "remora.dev/v1alpha1", "kind": kind,
        "metadata": {"name": "guard", "namespace": "default"}, "spec": spec,
    });
    let entry = store::Entry { key, value: body.to_string().into(), revision: 1, lease: None };
    Record::of(&entry).unwrap()
}

#[test]
fn a_policy_of_a_newer_version_does_not_open_what_it_closes() {
    let newer = serde_json::json!({
        "targetRefs": [{"group": "", "kind": "Service", "name": "shop", "sectionName": "http"}],
        "rules": [{"weather": ["good"]}],
    });
    let record = policy("AuthorizationPolicy", &newer);
    let (instead, why) = change::change(&record.key, Some(&record), true).unwrap_err();
    assert!(
        instead.is_none() && why[0].contains("is not known here"),
        "what it said before goes on: {why:?}"
    );
    let (instead, _) = change::change(&record.key, Some(&record), false).unwrap_err();
    let Some(Change::Put(AnyDocument::AuthorizationPolicy(closed))) = instead else {
        panic!("open: {instead:?}")
    };
    assert_eq!(closed.spec.action, Action::Deny);
    assert_eq!((closed.spec.rules.len(), closed.spec.target_refs.len()), (1, 1));
}

/// The address of whoever calls through a proxy may be forged, and a range of 33 bits would be refused by every sidecar.
#[test]
fn a_policy_of_kubernetes_that_makes_no_sense_opens_nothing() {
    for rule in [
        serde_json::json!({"from": [{"source": {"remoteIpBlocks": ["10.1.0.0/16"]}}]}),
        serde_json::json!({"from": [{"source": {"ipBlocks": ["10.0.0.0/33"]}}]}),
    ] {
        let spec = serde_json::json!({"targetRefs": [{"name": "shop"}], "rules": [rule]});
        let mut record = policy("AuthorizationPolicy", &spec);
        assert!(change::change(&record.key, Some(&record), false).is_ok(), "checked when it was written");
        let mut body: serde_json::Value = serde_json::from_str(&record.text()).unwrap();
        body["metadata"]["annotations"] = serde_json::json!({"remora.dev/origin": "kubernetes"});
        let entry = store::Entry {
            key: record.key.clone(),
            value: body.to_string().into(),
            revision: 2,
            lease: None,
        };
        record = Record::of(&entry).unwrap();
        let (instead, why) = change::change(&record.key, Some(&record), true).unwrap_err();
        assert!(instead.is_none() && why[0].contains("rules[0].from[0]"), "{why:?}");
        let (instead, _) = change::change(&record.key, Some(&record), false).unwrap_err();
        let Some(Change::Put(AnyDocument::AuthorizationPolicy(closed))) = instead else {
            panic!("open: {instead:?}")
        };
        assert_eq!(closed.spec.action, Action::Deny);
    }
}

#[test]
fn limits_of_a_newer_version_stay_what_they_were() {
    let newer = serde_json::json!({
        "targetRefs": [{"name": "shop"}],
        "limits": [{"requests": 1, "per": "1s", "weather": "good"}],
    });
    let record = policy("RateLimitPolicy", &newer);
    let (instead, why) = change::change(&record.key, Some(&record), true).unwrap_err();
    assert!(instead.is_none() && why[0].contains("is not known here"), "{why:?}");
    let (instead, _) = change::change(&record.key, Some(&record), false).unwrap_err();
    assert!(matches!(instead, Some(Change::Remove(_))), "{instead:?}");
}

#[test]
fn tokens_that_a_newer_version_asks_for_are_not_done_without() {
    let newer = serde_json::json!({
        "targetRefs": [{"group": "", "kind": "Service", "name": "shop", "sectionName": "http"}],
        "jwtRules": [{"issuer": "login", "jwks": "{}", "weather": "good"}],
    });
    let record = policy("AuthenticationPolicy", &newer);
    let (instead, why) = change::change(&record.key, Some(&record), true).unwrap_err();
    assert!(
        instead.is_none() && why[0].contains("is not known here"),
        "what it said before goes on: {why:?}"
    );
    let (instead, _) = change::change(&record.key, Some(&record), false).unwrap_err();
    let Some(Change::Put(AnyDocument::AuthenticationPolicy(closed))) = instead else {
        panic!("open: {instead:?}")
    };
    assert!(closed.spec.unreadable && closed.spec.target_refs.len() == 1);
}

/// An edit that cannot be read leaves what was closed closed, and what it would close too.
#[tokio::test]
async fn the_new_targets_of_a_policy_that_cannot_be_read_any_more_are_not_open() {
    let folder = tempfile::tempdir().unwrap();
    let options = store::redb::Options::default();
    let store = store::redb::RedbStore::open(&folder.path().join("remora.redb"), options).await;
    let registry = Arc::new(crate::registry::Registry::new(Arc::new(store.unwrap())));
    tokio::spawn(crate::registry::follow(Arc::clone(&registry)));
    registry.filled().await;
    let key = store::Key::new("AuthenticationPolicy", "default", "guard");
    let publisher = publisher();
    let mut progress = follow::Progress::default();
    let mut holds = async |spec: serde_json::Value| {
        let body = serde_json::json!({
            "apiVersion": "remora.dev/v1alpha1", "kind": "AuthenticationPolicy",
            "metadata": {
                "name": "guard", "namespace": "default", "creationTimestamp": "2026-11-27T10:00:00Z",
                "annotations": {"remora.dev/origin": "kubernetes"},
            },
            "spec": spec,
        });
        registry.mirror(crate::registry::mirror::Wanted::from([(key.clone(), Some(body))])).await;
        while progress.step(&registry, &publisher) {}
        let state = publisher.state();
        ["guard", "guard:unreadable"].map(|name| {
            let name = remora_mesh::Name::new("default", name);
            let key = remora_mesh::Key::new(remora_mesh::Kind::AuthenticationPolicy, name);
            let Some(AnyDocument::AuthenticationPolicy(policy)) = state.compiler.mesh().document(&key) else {
                return None;
            };
            let targets = policy.spec.target_refs.iter().map(|target| target.name.clone());
            Some((policy.spec.unreadable, targets.collect::<Vec<_>>().join(" ")))
        })
    };
    let shop = Some((false, "shop".to_owned()));
    let readable = serde_json::json!({"targetRefs": [{"name": "shop"}]});
    assert_eq!(holds(readable.clone()).await, [shop.clone(), None]);
    let newer = serde_json::json!({"targetRefs": [{"name": "shop"}, {"name": "till"}], "weather": "good"});
    let closed = Some((true, "shop till".to_owned()));
    assert_eq!(holds(newer).await, [shop.clone(), closed], "of both, the older name holds");
    assert_eq!(holds(readable).await, [shop, None]);
}

#[test]
fn what_connections_had_of_their_own_goes_with_them() {
    let publisher = publisher();
    let mut most = 0;
    for stream in 0..2000 {
        let id = "sidecar~10.0.0.1~shop-1.default~default.svc".into();
        let node = PbNode { id, ..PbNode::default() };
        let client = Client { stream, node, address: None, variant: "delta", certificates: Vec::new() };
        let snapshots = publisher.watch(&client).unwrap();
        assert!(snapshots.borrow().is_some());
        most = most.max(publisher.state().shared.len());
        publisher.closed(&client, "");
    }
    // Unused ones are looked for only now and then.
    assert!(most < 1100, "{most} resources for one connection at a time");
}
