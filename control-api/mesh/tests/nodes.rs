//! What one node gets, and what it does not.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support {
    pub(crate) mod profile;
}

use std::collections::BTreeMap;
use std::sync::Arc;

use remora_mesh::{Compiler, Documents, Mesh, Name, NodeKind, NodeRequest, NodeResources, Resource};
use remora_xds::Schema;
use support::profile::profile;

fn node(text: &str, request: &NodeRequest) -> NodeResources {
    let documents = Documents::read_alone([("mesh.yaml", text)]).unwrap();
    Compiler::new(Mesh::from(&documents), profile()).node(request).unwrap()
}

fn sidecar(text: &str, namespace: &str, workload: &str) -> NodeResources {
    node(text, &NodeRequest::new(NodeKind::Sidecar, namespace).with_workload(workload.into()))
}

fn names(resources: &BTreeMap<Arc<str>, Arc<Resource>>) -> Vec<&str> {
    resources.keys().map(AsRef::as_ref).collect()
}

fn yaml(resource: &Resource) -> String {
    Schema::load().any_to_yaml(&resource.body)
}

/// A Service with the ports of a database that also speaks HTTP.
fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a}}\n\
         spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 8080}}, {{name: tcp-sql, port: 5432}}]}}\n---\n"
    )
}

const SPLIT: &str = "apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: producer, namespace: a}
spec: {parentRefs: [{kind: Service, name: db, port: 5432}], rules: [{backendRefs: [{name: next, port: 5432}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: consumer, namespace: b}
spec: {parentRefs: [{kind: Service, name: db, namespace: a}], rules: [{matches: [{path: {value: /mine}}]}]}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: caller, namespace: b}
spec: {address: 10.0.0.1, egress: [{service: db, namespace: a}]}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: elsewhere, namespace: b}
spec: {address: 10.0.0.1, egress: [{service: db, namespace: a, port: 5432, localPort: 7000}]}
";

#[test]
fn a_consumer_route_leaves_the_producers_on_ports_where_it_does_nothing() {
    let text = format!("{}{}{SPLIT}", service("db"), service("next"));
    for workload in ["caller", "elsewhere"] {
        let node = sidecar(&text, "b", workload);
        let listener = yaml(&node.listeners["db.a.svc.cluster.local:5432"]);
        assert!(listener.contains("cluster: outbound|5432||next.a.svc.cluster.local"), "{listener}");
        assert!(node.endpoints.contains_key("outbound|5432||next.a.svc.cluster.local"));
    }
    let routes = yaml(&sidecar(&text, "b", "caller").routes["db.a.svc.cluster.local:8080"]);
    assert!(routes.contains("/mine"), "where it does something it holds: {routes}");
}

#[test]
fn a_service_that_was_asked_for_by_its_cluster_has_one_listener() {
    let mut proxy = NodeRequest::new(NodeKind::Proxy, "a");
    proxy.wanted.insert("outbound|8080||db.a.svc.cluster.local".into());
    let node = node(&service("db"), &proxy);
    assert_eq!(node.problems, []);
    assert_eq!(names(&node.listeners), ["db.a.svc.cluster.local:5432", "db.a.svc.cluster.local:8080"]);

    // On the port that its workload chose.
    let text = format!("{}{}{SPLIT}", service("db"), service("next"));
    let mut request = NodeRequest::new(NodeKind::Sidecar, "b").with_workload("elsewhere".into());
    request.wanted.insert("outbound|5432||db.a.svc.cluster.local".into());
    let node = self::node(&text, &request);
    let listener = yaml(&node.listeners["db.a.svc.cluster.local:5432"]);
    assert!(listener.contains("7000"), "{listener}");
}

#[test]
fn a_grpc_library_gets_what_it_asks_for_and_nothing_else() {
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{name: grpc, port: 9090}}]}}\n---\n"
        )
    };
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: r}\n\
                 spec: {parentRefs: [{kind: Service, name: one}], rules: [{backendRefs: [{name: two, port: 9090}]}]}\n";
    let mut request = NodeRequest::new(NodeKind::Grpc, "default");
    request.wanted.insert("one:9090".into());
    let (one, two) =
        ("outbound|9090||one.default.svc.cluster.local", "outbound|9090||two.default.svc.cluster.local");
    let services = format!("{}{}", service("one"), service("two"));
    for (text, wanted) in [(format!("{services}{route}"), two), (services, one)] {
        let node = node(&text, &request);
        assert_eq!((names(&node.clusters), names(&node.endpoints)), (vec![wanted], vec![wanted]));
        assert_eq!(names(&node.listeners), ["one:9090"]);
        assert!(node.services.contains(&Name::new("default", "one")));
    }
}
