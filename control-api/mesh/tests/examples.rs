//! Examples with something wrong in them: what is accepted compiles for everybody, to what Envoy's rules allow.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support {
    pub(crate) mod mutilated;
    pub(crate) mod profile;
}

use proptest::prelude::*;
use remora_mesh::document::Interception;
use remora_mesh::{Compiler, Documents, Mesh, NodeKind, NodeRequest};
use remora_xds::Schema;
use support::mutilated::mutilated;
use support::profile::profile;

const EXAMPLES: [&str; 6] = [
    include_str!("../../../deploy/examples/callers.yaml"),
    include_str!("../../../deploy/examples/resilience.yaml"),
    include_str!("../../../deploy/examples/limits.yaml"),
    include_str!("../../../deploy/examples/pages.yaml"),
    include_str!("../../../deploy/examples/intercepted.yaml"),
    include_str!("../../../deploy/examples/proxied.yaml"),
];

fn example() -> impl Strategy<Value = String> {
    prop::sample::select(EXAMPLES.to_vec()).prop_flat_map(|text| mutilated(text.to_owned()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_accepted_compiles_to_valid_resources(text in example()) {
        // Also what is not right together: a document may be there before another one that it needs.
        let Ok(documents) = Documents::read_alone([("mesh.yaml", text.as_str())]) else { return Ok(()) };
        let (_, findings) = Documents::check([("mesh.yaml", text.as_str())]);
        let right = findings.is_empty();
        let schema = Schema::load();
        let compiler = Compiler::new(Mesh::from(&documents), profile());
        for workload in &documents.workloads {
            let mut request = NodeRequest::new(NodeKind::Sidecar, &workload.metadata.namespace)
                .with_workload(workload.metadata.name.clone());
            request.intercepted =
                (workload.spec.interception == Interception::Redirect).then(|| workload.spec.all_addresses());
            let node = compiler.node(&request).unwrap();
            prop_assert!(!right || node.problems.is_empty(), "{:?}", node.problems);
            let all = node.clusters.values().chain(node.endpoints.values()).chain(node.listeners.values());
            for resource in all.chain(node.routes.values()).filter(|_| right) {
                prop_assert_eq!(schema.check_any(&resource.body, &resource.name), Ok(()), "{}", resource.name);
            }
        }
    }
}

#[test]
fn examples_are_right() {
    for text in EXAMPLES {
        let (documents, findings) = Documents::check([("mesh.yaml", text)]);
        assert!(findings.is_empty() && !documents.is_empty(), "{findings:?}");
    }
}
