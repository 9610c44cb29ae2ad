//! What texts compile to, and what is wrong with them.

use std::sync::Arc;

use remora_mesh::{Compiler, Documents, Mesh, NodeKind, NodeRequest, NodeResources, Resource};
use remora_xds::Schema;

use super::profile::profile;

/// Documents without a mistake.
pub(crate) fn compiler(text: &str) -> Compiler {
    let (documents, findings) = Documents::check([("mesh.yaml", text)]);
    assert!(findings.is_empty(), "{findings:?}");
    Compiler::new(Mesh::from(&documents), profile())
}

/// What a sidecar gets: all of it is as Envoy's rules want it.
pub(crate) fn sidecar(compiler: &Compiler, namespace: &str, workload: &str) -> NodeResources {
    let request = NodeRequest::new(NodeKind::Sidecar, namespace).with_workload(workload.into());
    let node = compiler.node(&request).unwrap();
    let schema = Schema::load();
    let all = node.clusters.values().chain(node.endpoints.values()).chain(node.listeners.values());
    for resource in all.chain(node.routes.values()) {
        assert_eq!(schema.check_any(&resource.body, &resource.name), Ok(()), "{}", resource.name);
    }
    node
}

/// Resources as YAML, each with the documents that it was made of.
pub(crate) fn shown<'a>(resources: impl IntoIterator<Item = &'a Arc<Resource>>) -> String {
    let schema = Schema::load();
    let one = |resource: &Arc<Resource>| {
        let documents: Vec<_> = resource.documents.iter().map(ToString::to_string).collect();
        format!("# of {}\n{}", documents.join(", "), schema.any_to_yaml(&resource.body))
    };
    resources.into_iter().map(one).collect()
}

/// Every finding, a line each.
pub(crate) fn found(text: &str) -> String {
    let (_, findings) = Documents::check([("mesh.yaml", text)]);
    findings.iter().map(|finding| format!("[{}] {finding}\n", finding.rule.id())).collect()
}
