//! The data plane, as far as it decides about resources.

use std::net::Ipv6Addr;
use std::sync::LazyLock;

use remora_mesh::document::Interception;
use remora_mesh::{
    Compiler, Credentials, Documents, Listening, Mesh, NodeKind, NodeRequest, NodeResources, OutboundTraffic,
    Profile,
};
use remora_proxy::config::manager::Manager;
use remora_tests::resources::message;
use remora_xds::Kind;
use remora_xds::client::{Batch, Incoming};
use remora_xds::diag::SourceMap;
use remora_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use serde_json::json;
use tokio::time::Instant;

/// What the sidecars of all workloads say about what these documents give them: what they do not take, and why.
///
/// # Panics
/// When the documents cannot be read.
pub(crate) fn refused(text: &str) -> Vec<String> {
    let (documents, findings) = Documents::check([("mesh.yaml", text)]);
    assert!(findings.is_empty(), "{findings:?}");
    let profile = Profile {
        trust_domain: "mesh.test".into(),
        federated: Vec::new(),
        credentials: Credentials::Issued,
        listening: Listening::AsWritten,
        ecdh_curves: Vec::new(),
        outbound_traffic: OutboundTraffic::AllowAny,
    };
    let compiler = Compiler::new(Mesh::from(&documents), profile);
    let nodes = documents.workloads.iter().flat_map(|workload| {
        let request = NodeRequest::new(NodeKind::Sidecar, &workload.metadata.namespace)
            .with_workload(workload.metadata.name.clone());
        let addresses = vec![workload.spec.address, Ipv6Addr::LOCALHOST.into()];
        let intercepted = NodeRequest { intercepted: Some(addresses), captures_dns: true, ..request.clone() };
        let transparent = NodeRequest { shows_clients: true, ..intercepted.clone() };
        // Who says that it is intercepted has to be.
        let direct = (workload.spec.interception == Interception::None).then_some(request);
        direct
            .into_iter()
            .chain([intercepted, transparent])
            .map(|request| compiler.node(&request).unwrap())
            .collect::<Vec<_>>()
    });
    nodes.flat_map(|node| taken(&node)).collect()
}

/// In the order in which the control plane sends it.
fn taken(node: &NodeResources) -> Vec<String> {
    let mut manager = manager();
    let all = [
        (Kind::Cluster, &node.clusters),
        (Kind::ClusterLoadAssignment, &node.endpoints),
        (Kind::Listener, &node.listeners),
        (Kind::RouteConfiguration, &node.routes),
    ];
    let mut refused: Vec<_> = node.problems.iter().map(|problem| problem.message.clone()).collect();
    for (kind, resources) in all {
        let incoming = resources.iter().map(|(name, resource)| Incoming {
            name: Some(name.clone()),
            version: "1".into(),
            any: resource.body.clone(),
        });
        let applied = manager.apply_ads(&Batch::restored(kind, incoming.collect()), Instant::now());
        refused.extend(applied.refused.iter().map(|refused| format!("{}: {}", refused.name, refused.detail)));
        if applied.refused.is_empty() && applied.accepted.len() != resources.len() {
            refused.push(format!("of {} {kind:?} {} are wanted", resources.len(), applied.accepted.len()));
        }
    }
    refused
}

/// Of a sidecar whose identity agent has its certificate.
fn manager() -> Manager {
    static BOOTSTRAP: LazyLock<Bootstrap> = LazyLock::new(|| {
        let ads = json!({ "resource_api_version": "V3", "ads": {} });
        message(&json!({
            "node": { "id": "sidecar~10.0.0.1~shop-1.default~default.svc" },
            "static_resources": { "clusters": [{ "name": "remora-control", "type": "STATIC", "load_assignment": {
                "cluster_name": "remora-control", "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": {
                    "socket_address": { "address": "127.0.0.1", "port_value": 1 },
                } } }] }],
            } }] },
            "dynamic_resources": {
                "ads_config": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "grpc_services": [{ "envoy_grpc": { "cluster_name": "remora-control" } }],
                },
                "cds_config": ads,
                "lds_config": ads,
            },
        }))
    });
    Manager::new(&BOOTSTRAP, "bootstrap", SourceMap::default(), true).unwrap()
}
