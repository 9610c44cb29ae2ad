//! The mesh of a run: who stands behind which Service, and who calls it.

use serde_json::{Value, json};

/// Its size.
#[derive(Debug, Clone, Copy)]
pub struct Mesh {
    /// Services. The first one is called by every node.
    pub services: usize,
    /// Instances of each Service.
    pub instances: usize,
    /// Nodes: the first instance of each of the first Services.
    pub nodes: usize,
    /// Services that each node calls, the common one included.
    pub egress: usize,
}

/// Port of the first Service; each has one of its own, because a node listens for all that it calls on one address.
const FIRST_PORT: usize = 20_000;
/// Longest lease: a run is over before it ends, and what renewals cost is no part of it.
const LEASE_MS: u64 = 300_000;

/// An instance by its Service and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instance {
    pub(crate) service: usize,
    pub(crate) number: usize,
}

impl Instance {
    pub(crate) fn name(self) -> String {
        format!("{}-{}", service(self.service), self.number)
    }
}

fn service(number: usize) -> String {
    format!("service-{number:04}")
}

impl Mesh {
    /// The name of the load assignment of a Service.
    pub(crate) fn assignment(number: usize) -> String {
        format!("outbound|{}||{}.default.svc.cluster.local", FIRST_PORT + number, service(number))
    }

    /// All Services as one text.
    pub(crate) fn documents(&self) -> String {
        let document = |number| {
            let (name, port) = (service(number), FIRST_PORT + number);
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
                 spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: {port}, targetPort: 8080}}]}}\n"
            )
        };
        (0..self.services).map(document).collect()
    }

    /// Every instance, those of the nodes first.
    pub(crate) fn all(&self) -> impl Iterator<Item = Instance> + use<> {
        let (services, instances) = (self.services, self.instances);
        (0..instances).flat_map(move |number| (0..services).map(move |service| Instance { service, number }))
    }

    /// The Services that a node calls.
    pub(crate) fn called(&self, node: usize) -> impl Iterator<Item = usize> + use<> {
        let (own, others) = (self.egress.saturating_sub(1), self.services.saturating_sub(1).max(1));
        std::iter::once(0).chain((0..own).map(move |i| 1 + (node * own + i) % others))
    }

    /// The nodes that call a Service.
    pub(crate) fn callers(&self, service: usize) -> Vec<usize> {
        (0..self.nodes).filter(|node| self.called(*node).any(|called| called == service)).collect()
    }

    /// What an instance says of itself; `life` changes its address and nothing else.
    pub(crate) fn registration(&self, instance: Instance, life: usize) -> Value {
        let Instance { service: own, number } = instance;
        let index = number * self.services + own;
        let node = number == 0 && own < self.nodes;
        let called = node.then(|| self.called(own)).into_iter().flatten();
        let egress: Vec<_> = called.map(|number| json!({ "service": service(number) })).collect();
        json!({
            "labels": { "app": service(own) },
            "workload": {
                "address": format!("10.{}.{}.{}", life % 250, index / 250 % 250, index % 250 + 1),
                "ports": [{ "port": 8080 }],
                "egress": egress,
            },
            "ttlMs": LEASE_MS,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESH: Mesh = Mesh { services: 1000, instances: 10, nodes: 500, egress: 20 };

    #[test]
    fn every_node_calls_as_many_services_and_all_call_the_first() {
        for node in 0..MESH.nodes {
            let called: std::collections::BTreeSet<_> = MESH.called(node).collect();
            assert_eq!(called.len(), 20, "{node}");
        }
        assert_eq!(MESH.callers(0).len(), 500);
        let callers: Vec<_> = (1..1000).map(|service| MESH.callers(service).len()).collect();
        assert!(callers.iter().all(|n| (9..=10).contains(n)), "{callers:?}");
    }

    #[test]
    fn instances_have_addresses_of_their_own() {
        let address =
            |i, life| MESH.registration(i, life)["workload"]["address"].as_str().unwrap().to_owned();
        let all: std::collections::BTreeSet<_> = MESH.all().map(|i| address(i, 0)).collect();
        assert_eq!(all.len(), 10_000);
        let one = Instance { service: 3, number: 4 };
        assert!(!all.contains(&address(one, 1)));
        assert_eq!(MESH.registration(one, 0)["workload"]["egress"].as_array().unwrap().len(), 0);
    }
}
