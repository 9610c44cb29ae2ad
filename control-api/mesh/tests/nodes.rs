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

#[test]
fn a_program_that_speaks_two_protocols_on_one_port_hears_each_of_them() {
    let text = "apiVersion: v1
kind: Service
metadata: {name: api}
spec:
  selector: {app: api}
  ports:
  - {name: http, port: 8080}
  - {name: grpc, port: 9090, targetPort: 8080}
  - {name: tcp-x, port: 7070, targetPort: 8080}
  - {name: tcp-y, port: 7171, targetPort: 5432}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: api-1, labels: {app: api}}
spec: {address: 10.0.0.1, ports: [{port: 8080}, {port: 5432}], egress: []}
";
    let node = sidecar(text, "default", "api-1");
    let clusters = ["inbound|5432||", "inbound|8080||http", "inbound|8080||http2", "inbound|8080||tcp"];
    assert_eq!(names(&node.clusters), clusters);
    assert!(yaml(&node.clusters["inbound|8080||http2"]).contains("http2_protocol_options"));
    assert!(yaml(&node.clusters["inbound|8080||http"]).contains("http_protocol_options"));
    let listener = yaml(&node.listeners["inbound"]);
    for (port, chain) in [
        (8080, "inbound_8080_http"),
        (9090, "inbound_8080_http2"),
        (7070, "inbound_8080_tcp"),
        (7171, "inbound_5432"),
    ] {
        let sni = format!("outbound_.{port}_._.api.default.svc.cluster.local");
        let chains = listener.split("\n- ").filter(|part| part.contains("server_names"));
        let with_it: Vec<_> = chains.filter(|part| part.contains(&sni)).collect();
        assert_eq!(with_it.len(), 1, "{port}: {listener}");
        assert!(with_it[0].contains(&format!("stat_prefix: {chain}\n")), "{port}: {}", with_it[0]);
    }
}

#[test]
fn a_resource_names_every_document_that_it_is_made_of() {
    let text = format!(
        "{}{}{SPLIT}{}",
        service("db"),
        service("next"),
        "---
apiVersion: remora.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: calm, namespace: a}
spec: {targetRefs: [{name: db}], timeouts: {idle: 7m}}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: db-1, namespace: a, labels: {app: db}}
spec: {address: 10.0.0.2, ports: [{port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: more, namespace: a, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: tcp-sql, port: 5432}]
endpoints: []
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: there, namespace: b}
spec: {parentRefs: [{kind: Service, name: db, namespace: a}], rules: [{backendRefs: [{name: next, namespace: a, port: 8080}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: may, namespace: a}
spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: b}], to: [{group: '', kind: Service}]}
"
    );
    let node = sidecar(&text, "b", "caller");
    let made_of =
        |resource: &Resource| resource.documents.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        made_of(&node.endpoints["outbound|5432||db.a.svc.cluster.local"]),
        ["Service/a/db", "Workload/a/db-1", "EndpointSlice/a/more"]
    );
    assert_eq!(
        made_of(&node.routes["db.a.svc.cluster.local:8080"]),
        [
            "Service/a/db",
            "HTTPRoute/b/consumer",
            "HTTPRoute/b/there",
            "TrafficPolicy/a/calm",
            "Service/a/next",
            "ReferenceGrant/a/may"
        ]
    );
    let listener = &node.listeners["db.a.svc.cluster.local:5432"];
    let of_the_listener = ["Service/a/db", "TrafficPolicy/a/calm", "TCPRoute/a/producer", "Service/a/next"];
    assert_eq!(made_of(listener), of_the_listener);
    let text = yaml(listener);
    assert!(text.contains("idle_timeout: 420s"), "the policy holds for connections too: {text}");
}
