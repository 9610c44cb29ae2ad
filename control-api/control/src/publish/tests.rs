//! What a publisher keeps.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use remora_mesh::{Change, Credentials, Documents, Listening};
use remora_xds::pb::envoy::config::core::v3::Node as PbNode;

use super::*;

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
        credentials: Credentials::Issued,
        listening: Listening::AsWritten,
    };
    let publisher = Publisher::new(profile, Arc::new(Board::default()));
    let documents = Documents::read([("mesh.yaml", MESH)]).unwrap();
    publisher.apply(documents.iter().map(Change::Put).collect());
    publisher
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
