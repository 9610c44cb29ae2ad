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

/// What people register says nothing of Services of other namespaces; what Kubernetes says of a pod does.
#[test]
fn an_instance_says_who_reported_it() {
    let key = store::Key::new("Registration", "default", "shop-2");
    let mut body = serde_json::json!({
        "apiVersion": "remora.dev/v1alpha1", "kind": "Registration", "metadata": {"name": "shop-2", "namespace": "default"},
        "spec": {"services": [], "workload": {"address": "10.0.0.2", "ports": []}, "health": "Ready"},
    });
    let ours = serde_json::json!({"remora.dev/origin": "kubernetes"});
    for (annotations, host_network, reported) in
        [(serde_json::json!({}), false, false), (ours.clone(), false, true), (ours, true, false)]
    {
        body["metadata"]["annotations"] = annotations;
        body["spec"]["hostNetwork"] = host_network.into();
        let value = body.to_string().into();
        let record = Record::of(&store::Entry { key: key.clone(), value, revision: 1, lease: None }).unwrap();
        let Ok(Change::Register(instance)) = change::change(&key, Some(&record), false) else { panic!() };
        assert_eq!(instance.reported, reported);
    }
}

/// It may have a sidecar, whether it was in force or not.
#[test]
fn an_instance_that_cannot_be_read_is_not_one_that_is_not_there() {
    for kind in ["Registration", "Workload"] {
        let key = store::Key::new(kind, "default", "shop-2");
        let workload = serde_json::json!({"address": "10.0.0.2", "ports": [], "weather": "good"});
        let spec = if kind == "Workload" { workload } else { serde_json::json!({"workload": workload}) };
        let body = serde_json::json!({
            "apiVersion": "remora.dev/v1alpha1", "kind": kind, "metadata": {"name": "shop-2", "namespace": "default"},
            "spec": spec,
        });
        let value = body.to_string().into();
        let record = Record::of(&store::Entry { key, value, revision: 1, lease: None }).unwrap();
        for in_force in [false, true] {
            let (instead, why) = change::change(&record.key, Some(&record), in_force).unwrap_err();
            assert!(why[0].contains("weather"), "{why:?}");
            let Some(Change::Unreadable { name, documented }) = instead else { panic!("{instead:?}") };
            assert_eq!((name.to_string(), documented), ("default/shop-2".to_owned(), kind == "Workload"));
        }
    }
}

/// Nobody knows whether its endpoints have sidecars: what other slices of its Service say is not all there is.
#[test]
fn a_slice_that_cannot_be_read_keeps_plaintext_away() {
    let key = store::Key::new("EndpointSlice", "default", "shop-1");
    let body = serde_json::json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "shop-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "shop"}},
        "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.9"]}], "ports": [{"name": "http"}],
    });
    let entry = store::Entry { key, value: body.to_string().into(), revision: 1, lease: None };
    let record = Record::of(&entry).unwrap();
    for in_force in [false, true] {
        let (instead, why) = change::change(&record.key, Some(&record), in_force).unwrap_err();
        assert!(why[0].contains("port"), "{why:?}");
        let Some(Change::Put(AnyDocument::EndpointSlice(slice))) = instead else {
            panic!("it is as if there were none: {instead:?}")
        };
        assert_eq!(slice.service(), Some("shop"));
        assert!(slice.spec.endpoints.is_empty() && !slice.has_no_sidecars());
        assert_eq!(slice.metadata.annotations["remora.dev/sidecars"], "some");
    }
}

/// What stands in the place of an AuthorizationPolicy with this `spec`, and of an AuthenticationPolicy: their targets, and whether all are.
fn stand_ins(spec: &serde_json::Value) -> [Option<(String, bool)>; 2] {
    let names = |refs: &[remora_mesh::document::TargetRef]| {
        refs.iter().map(|target| target.name.as_str()).collect::<Vec<_>>().join(" ")
    };
    ["AuthorizationPolicy", "AuthenticationPolicy"].map(|kind| {
        let record = policy(kind, spec);
        match change::change(&record.key, Some(&record), false).unwrap_err().0.unwrap() {
            Change::Put(AnyDocument::AuthorizationPolicy(policy)) => {
                assert_eq!(policy.spec.action, Action::Deny);
                Some((names(&policy.spec.target_refs), policy.spec.all_but == Some(Vec::new())))
            }
            Change::Put(AnyDocument::AuthenticationPolicy(policy)) => {
                assert!(policy.spec.unreadable);
                Some((names(&policy.spec.target_refs), policy.spec.of_all))
            }
            Change::Remove(_) => None,
            other => panic!("{other:?}"),
        }
    })
}

#[test]
fn the_targets_of_a_policy_that_cannot_be_read_are_read_one_by_one() {
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    for (spec, names, all) in [
        (r#"{"targetRef": {"kind": "Service", "name": "shop"}}"#, "shop", false),
        (
            r#"{"targetRef": {"name": "shop"}, "targetRefs": [{"name": "till"}], "new": 1}"#,
            "shop till",
            false,
        ),
        (r#"{"targetRefs": [{"name": "shop"}, {"name": ["x"]}]}"#, "shop", true),
        (r#"{"targetRefs": [{"name": "shop"}, "till"]}"#, "shop", true),
        (r#"{"targetRefs": [{"kind": "Workload", "name": "w"}], "new": 1}"#, "", true),
        (r#"{"targetRefs": [{"selector": {"app": "shop"}}]}"#, "", true),
        (r#"{"targetRefs": {"name": "shop"}}"#, "", true),
        (r#"{"targetRefs": [], "new": 1}"#, "", true),
        (r#"{"selector": {"app": "shop"}}"#, "", true),
        (r#"[]"#, "", true),
    ] {
        let expected = Some((names.to_owned(), all));
        assert_eq!(stand_ins(&json(spec)), [expected.clone(), expected], "{spec}");
    }
    let others = r#"{"targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g"}], "new": 1}"#;
    assert_eq!(stand_ins(&json(others)), [None, None], "it is about no Service");
    let mut record = policy("AuthenticationPolicy", &json(r#"{"new": 1}"#));
    let mut body: serde_json::Value = serde_json::from_str(&record.text()).unwrap();
    body["metadata"]["creationTimestamp"] = 5.into();
    let value = body.to_string().into();
    record = Record::of(&store::Entry { key: record.key, value, revision: 2, lease: None }).unwrap();
    let instead = change::change(&record.key, Some(&record), false).unwrap_err().0;
    assert!(matches!(instead, Some(Change::Put(_))), "{instead:?}");
}

/// What a mesh has of the policy `guard` of a kind after each of these, and of what stands beside it.
async fn holds(kind: remora_mesh::Kind, specs: &[serde_json::Value]) -> Vec<[Option<AnyDocument>; 2]> {
    let folder = tempfile::tempdir().unwrap();
    let options = store::redb::Options::default();
    let store = store::redb::RedbStore::open(&folder.path().join("remora.redb"), options).await;
    let registry = Arc::new(crate::registry::Registry::new(Arc::new(store.unwrap())));
    tokio::spawn(crate::registry::follow(Arc::clone(&registry)));
    registry.filled().await;
    let key = store::Key::new(kind.as_str(), "default", "guard");
    let publisher = publisher();
    let mut progress = follow::Progress::default();
    let mut all = Vec::new();
    for spec in specs {
        let body = serde_json::json!({
            "apiVersion": "remora.dev/v1alpha1", "kind": kind.as_str(),
            "metadata": {
                "name": "guard", "namespace": "default", "creationTimestamp": "2026-11-27T10:00:00Z",
                "annotations": {"remora.dev/origin": "kubernetes"},
            },
            "spec": spec,
        });
        registry.mirror(crate::registry::mirror::Wanted::from([(key.clone(), Some(body))])).await;
        while progress.step(&registry, &publisher) {}
        let state = publisher.state();
        all.push(["guard", "guard:unreadable"].map(|name| {
            let key = remora_mesh::Key::new(kind, remora_mesh::Name::new("default", name));
            state.compiler.mesh().document(&key)
        }));
    }
    all
}

/// An edit that cannot be read leaves what was closed closed, and what it would close too.
#[tokio::test]
async fn the_new_targets_of_a_policy_that_cannot_be_read_any_more_are_not_open() {
    let readable = serde_json::json!({"targetRefs": [{"name": "shop"}]});
    let newer = serde_json::json!({"targetRefs": [{"name": "shop"}, {"name": "till"}], "weather": "good"});
    let kind = remora_mesh::Kind::AuthenticationPolicy;
    let all = holds(kind, &[readable.clone(), newer, readable]).await;
    let said = |policy: &Option<AnyDocument>| {
        let Some(AnyDocument::AuthenticationPolicy(policy)) = policy else { return None };
        let targets = policy.spec.target_refs.iter().map(|target| target.name.clone());
        Some((policy.spec.unreadable, targets.collect::<Vec<_>>().join(" ")))
    };
    let all: Vec<_> = all.iter().map(|both| both.each_ref().map(said)).collect();
    let shop = Some((false, "shop".to_owned()));
    let closed = Some((true, "shop till".to_owned()));
    let between = [shop.clone(), closed];
    assert_eq!(all, [[shop.clone(), None], between, [shop, None]], "of both, the older name holds");
}

/// Those of AuthorizationPolicies add up: what stands beside one is about the others only.
#[tokio::test]
async fn the_new_targets_of_an_authorization_policy_that_cannot_be_read_any_more_are_denied() {
    let spec = |refs: &str, more: &str| {
        let text = format!(r#"{{"targetRefs": [{refs}], "rules": [{{}}]{more}}}"#);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let (shop, both) = (r#"{"name": "shop"}"#, r#"{"name": "shop"}, {"name": "till"}"#);
    let specs = [
        spec(shop, ""),
        spec(both, r#", "weather": "good""#),
        spec(shop, r#", "weather": "good""#),
        spec(r#"{"name": "till"}, {"name": ["x"]}"#, ""),
        spec(both, r#", "weather": "good", "dryRun": true"#),
        spec(shop, ""),
    ];
    let till = Some([false, true, false]);
    let all_but_shop = Some([false, true, true]);
    assert_eq!(denied_beside(&specs).await, [None, till, None, all_but_shop, None, None]);
    // Nobody was kept from its target, and nobody can say that nobody is to be.
    let specs = [spec(shop, r#", "dryRun": true"#), spec(shop, r#", "weather": "good""#), spec(shop, "")];
    assert_eq!(denied_beside(&specs).await, [None, Some([true, false, false]), None]);
}

/// Whether shop, till and another Service are denied by what stands beside an AuthorizationPolicy of shop, after each of these.
async fn denied_beside(specs: &[serde_json::Value]) -> Vec<Option<[bool; 3]>> {
    let all = holds(remora_mesh::Kind::AuthorizationPolicy, specs).await;
    let beside = all.iter().map(|[policy, beside]| {
        let Some(AnyDocument::AuthorizationPolicy(policy)) = policy else { panic!("open: {policy:?}") };
        assert_eq!((policy.spec.action, policy.spec.is_for("shop")), (Action::Allow, true));
        let Some(AnyDocument::AuthorizationPolicy(beside)) = beside else { return None };
        assert_eq!((beside.spec.action, beside.spec.rules.len()), (Action::Deny, 1));
        Some(["shop", "till", "other"].map(|name| beside.spec.is_for(name)))
    });
    beside.collect()
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
