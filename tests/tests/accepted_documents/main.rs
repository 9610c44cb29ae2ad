//! Documents that `remora check` finds nothing wrong with compile to resources that sidecars take. One that did not would be refused by all of
//! them, with every later change of the same listener or cluster, until somebody reads their complaints.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod fields;
mod kinds;
mod sidecar;

use proptest::prelude::*;
use remora_mesh::Documents;
use serde_json::{Value, json};

use fields::{Drawn, drawn};
use kinds::{HTTP_ROUTE, KINDS, Kind, TRAFFIC_POLICY};
use sidecar::refused;

/// Two Services of every protocol, each in front of a workload that calls the other, and one that calls both through its HTTP proxy.
const MESH: &str = "apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {selector: {app: shop}, ports: [{name: http, port: 8080}, {name: grpc, port: 9090}, {name: db, port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: stock}
spec: {selector: {app: stock}, ports: [{name: http, port: 8081}, {name: grpc, port: 9091}, {name: db, port: 5433}]}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: shop-1, labels: {app: shop}}
spec: {address: 10.0.0.1, ports: [{port: 8080}, {port: 9090}, {port: 5432}], egress: [{service: stock}]}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: stock-1, labels: {app: stock}}
spec: {address: 10.0.0.2, ports: [{port: 8081}, {port: 9091}, {port: 5433}], egress: [{service: shop}]}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: laptop}
spec: {address: 10.0.0.3, httpProxy: {}}
";

fn findings(text: &str) -> Vec<String> {
    Documents::check([("mesh.yaml", text)]).1.iter().map(ToString::to_string).collect()
}

fn with(text: &str, kind: &Kind, spec: &Value) -> String {
    let document = json!({
        "apiVersion": kind.version, "kind": kind.name, "metadata": { "name": "d" }, "spec": spec,
    });
    format!("{text}---\n{document}\n")
}

/// The mesh with as much of what was drawn as goes together.
fn accepted(documents: &[(&Kind, Vec<Drawn>)]) -> String {
    documents.iter().fold(MESH.to_owned(), |text, (kind, fields)| {
        let mut accepted = with(&text, kind, &kind.least());
        if !findings(&accepted).is_empty() {
            return text;
        }
        let mut spec = kind.least();
        for field in fields {
            let mut more = spec.clone();
            field.put(&mut more);
            let all = with(&text, kind, &more);
            if findings(&all).is_empty() {
                (spec, accepted) = (more, all);
            }
        }
        accepted
    })
}

/// As many as fit into a run of all tests, or as PROPTEST_CASES says.
fn cases() -> u32 {
    if std::env::var_os("PROPTEST_CASES").is_some() { ProptestConfig::default().cases } else { 100 }
}

#[test]
fn every_kind_is_right_by_itself() {
    for kind in KINDS {
        assert_eq!(findings(&with(MESH, kind, &kind.least())), Vec::<String>::new(), "{}", kind.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_the_check_accepts_no_sidecar_refuses(documents in drawn()) {
        let text = accepted(&documents);
        prop_assert_eq!(refused(&text), Vec::<String>::new(), "{}", text);
    }
}

#[test]
fn sidecars_take_the_examples() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "yaml")).collect();
    assert!(files.len() >= 8, "{files:?}");
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(refused(&text), Vec::<String>::new(), "{}", file.display());
    }
}

/// What two documents say together, each of which is right by itself.
#[test]
fn a_try_of_a_rule_ends_with_the_request_of_the_policy() {
    let policy = json!({ "targetRefs": [{ "name": "shop" }], "timeouts": { "request": "5s" } });
    let mut rule = HTTP_ROUTE.least();
    rule["rules"][0]["timeouts"] = json!({ "backendRequest": "10s" });
    let text = with(&with(MESH, &TRAFFIC_POLICY, &policy), &HTTP_ROUTE, &rule);
    assert_eq!(refused(&text), Vec::<String>::new());
}
