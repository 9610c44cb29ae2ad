//! Golden files of what each kind of document compiles to, and what is refused by name.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support {
    pub(crate) mod compiled;
    pub(crate) mod mutilated;
    pub(crate) mod profile;
}

use std::sync::Arc;

use proptest::prelude::*;

use remora_mesh::{
    Change, Compiler, Documents, Health, Instance, Mesh, Name, NodeKind, NodeRequest, Profile,
};
use remora_xds::pb::envoy::config::core::v3::Node;
use remora_xds::pb::envoy::config::listener::v3::Listener;
use remora_xds::{Schema, any};
use support::compiled::{compiler, found, shown, sidecar};
use support::mutilated::mutilated;
use support::profile::profile;

const SHOP: &str = include_str!("../../../deploy/examples/shop.yaml");
const EXTERNAL: &str = include_str!("../../../deploy/examples/external.yaml");
const ASKING: &str = include_str!("../../../deploy/examples/authorizer.yaml");

#[test]
fn http_and_grpc_routes() {
    let node = sidecar(&compiler(SHOP), "shop", "till");
    insta::assert_snapshot!(shown(node.routes.values()));
    assert_eq!(node.problems, []);
}

#[test]
fn tcp_and_tls_routes() {
    let compiler = compiler(SHOP);
    let ledger = compiler.resources(&Name::new("shop", "ledger")).unwrap();
    insta::assert_snapshot!(shown(ledger.ports.iter().map(|port| &port.producer.listener)));
}

#[test]
fn callers_with_routes_of_their_own() {
    let node = sidecar(&compiler(SHOP), "vault", "archive-1");
    insta::assert_snapshot!(shown(node.routes.values()));
    assert!(!node.clusters.contains_key("outbound|8180||orders-next.shop.svc.cluster.local"));
}

#[test]
fn endpoint_slices_without_mtls() {
    let compiler = compiler(EXTERNAL);
    let weather = compiler.resources(&Name::new("default", "weather")).unwrap();
    insta::assert_snapshot!(shown([&weather.ports[0].cluster, &weather.ports[0].endpoints]));
}

#[test]
fn groups_of_the_key_exchange_hold_for_both_sides() {
    let (documents, _) = Documents::check([("mesh.yaml", SHOP)]);
    let profile = Profile { ecdh_curves: vec!["X25519MLKEM768".into()], ..profile() };
    let compiler = Compiler::new(Mesh::from(&documents), profile);
    let (caller, called) = (sidecar(&compiler, "shop", "till"), sidecar(&compiler, "shop", "orders-1"));
    for side in [shown(caller.clusters.values()), shown(called.listeners.values())] {
        let contexts = side.matches("tls_params:").count();
        assert!(contexts > 0, "{side}");
        assert_eq!(side.matches("ecdh_curves:").count(), contexts, "{side}");
        assert_eq!(side.matches("- X25519MLKEM768").count(), contexts, "{side}");
    }
}

#[test]
fn health_and_places_of_endpoints() {
    let mut compiler = compiler(SHOP);
    let mut register = |name: &str, address: &str, health| {
        let text = format!(
            "apiVersion: remora.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{address: {address}, serviceAccount: orders, ports: [{{port: 8080}}]}}\n"
        );
        let documents = Documents::read_alone([("lease", text.as_str())]).unwrap();
        let workload = Arc::new(documents.workloads[0].clone());
        compiler.apply([Change::Register(Arc::new(Instance {
            workload,
            health,
            services: vec!["orders".into()],
            reported: false,
        }))]);
    };
    register("draining", "10.0.1.1", Health::Draining);
    register("dead", "10.0.1.2", Health::Dead);
    // It is known, and no endpoint.
    register("starting", "10.0.1.3", Health::Absent);
    // A new instance at the address of the dead one.
    register("reborn", "10.0.1.2", Health::Ready);
    let orders = compiler.resources(&Name::new("shop", "orders")).unwrap();
    insta::assert_snapshot!(shown([&orders.port(8080).unwrap().endpoints]));
}

#[test]
fn what_grpc_libraries_get() {
    let node = Node { user_agent_name: "gRPC Go".into(), ..Node::default() };
    let mut request = NodeRequest::of(&node).unwrap();
    assert_eq!((request.kind, request.namespace.as_str()), (NodeKind::Grpc, "default"));
    request.wanted = ["orders.shop:9090", "orders.shop", "nobody.shop"].map(Into::into).into();
    let node = compiler(SHOP).node(&request).unwrap();
    let listeners: Vec<_> = node.listeners.keys().map(AsRef::as_ref).collect();
    assert_eq!(listeners, ["orders.shop", "orders.shop:9090"]);
    let all = node.listeners.values().chain(node.routes.values()).chain(node.clusters.values());
    for resource in all {
        assert!(any::type_name(&resource.body.type_url).is_some());
    }
    // The schema is of what sidecars take, and has no api_listener: it shows as a listener with a name only.
    insta::assert_snapshot!(shown(node.listeners.values().chain(node.routes.values())));
    assert!(node.services.contains(&Name::new("shop", "nobody")), "it may come");
}

#[test]
fn a_node_says_who_it_is() {
    let id = |id: &str| NodeRequest::of(&Node { id: id.into(), ..Node::default() });
    let sidecar = id("sidecar~10.0.0.1~till.shop~shop.svc.cluster.local").unwrap();
    assert_eq!((sidecar.kind, sidecar.namespace.as_str()), (NodeKind::Sidecar, "shop"));
    assert_eq!(sidecar.workload.as_deref(), Some("till"));
    assert_eq!(id("router~10.0.0.1~.shop~shop.svc").unwrap().workload, None);
    let error = id("me").unwrap_err().to_string();
    assert!(error.contains("\"me\""), "{error}");
}

#[test]
fn a_proxy_without_a_workload_calls_and_is_not_called() {
    let node = compiler(SHOP).node(&NodeRequest::new(NodeKind::Proxy, "shop")).unwrap();
    assert!(!node.listeners.contains_key("inbound"));
    assert!(node.whole_namespace);
    assert!(node.listeners.contains_key("orders.shop.svc.cluster.local:8080"));
}

const REFUSED: &str = "apiVersion: v1
kind: Service
metadata: {name: a}
spec: {type: ExternalName, externalName: a.test, sessionAffinity: ClientIP, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: b, namespace: other}
spec: {type: LoadBalancer, ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  hostnames: [a.test]
  parentRefs: [{kind: Service, name: a, sectionName: grpc}]
  rules:
  - filters:
    - {type: ExternalAuth, externalAuth: {backendRef: {name: a}}}
    - {type: ExtensionRef, extensionRef: {group: x, kind: Y, name: z}}
    backendRefs: [{name: b, namespace: other, port: 80}]
    sessionPersistence: {type: Cookie, idleTimeout: 1m}
    retry: {codes: [200], backoff: 0s}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: g}
spec:
  parentRefs: [{kind: Service, name: a}]
  rules:
  - matches: [{method: {}}, {method: {service: a b}}, {method: {type: RegularExpression, method: '('}}]
    filters: [{type: URLRewrite, urlRewrite: {hostname: x.test}}]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: t}
spec: {parentRefs: [{kind: Service, name: a}], rules: []}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: l}
spec: {parentRefs: [{kind: Service, name: a}], hostnames: ['*', 'A.test'], rules: [{backendRefs: [{name: a, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: y}
spec: {from: [{group: x, kind: Gateway, namespace: n}], to: []}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: e, labels: {kubernetes.io/service-name: a}}
addressType: FQDN
ports: [{name: no, port: 1}]
endpoints: [{addresses: []}, {addresses: ['10.0.0.1'], targetRef: {kind: Node, name: n}}]
---
apiVersion: remora.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: p}
spec: {targetRefs: [{name: a}]}
---
apiVersion: remora.dev/v1alpha1
kind: AuthenticationPolicy
metadata: {name: q}
spec: {targetRefs: [{name: a}], mtls: {mode: Disabled}, jwtRules: [{issuer: '', jwks: '{}', caCertificates: x}, {issuer: i}]}
";

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    insta::assert_snapshot!(found(REFUSED));
    let kinds = ["TelemetryPolicy", "VirtualService", "Pod"];
    let said: String =
        kinds.map(|kind| found(&format!("apiVersion: remora.dev/v1alpha1\nkind: {kind}\n"))).concat();
    insta::assert_snapshot!("kinds_that_are_refused", said);
}

/// Plaintext has a chain of its own, and there can be one: it names nobody.
#[test]
fn plaintext_is_taken_for_one_permissive_port() {
    let text = |second: &str| {
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: a}}
spec: {{selector: {{app: a}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: b}}
spec: {{selector: {{app: a}}, ports: [{{name: tcp, port: 90, targetPort: 9090}}]}}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {{name: w, labels: {{app: a}}}}
spec: {{address: 10.0.0.1, ports: [{{port: 8080}}, {{port: 9090}}]}}
---
apiVersion: remora.dev/v1alpha1
kind: AuthenticationPolicy
metadata: {{name: p}}
spec: {{targetRefs: [{{name: a}}], mtls: {{mode: Permissive}}}}
---
apiVersion: remora.dev/v1alpha1
kind: AuthenticationPolicy
metadata: {{name: q}}
spec: {{targetRefs: [{{name: b}}], mtls: {{mode: {second}}}}}
"
        )
    };
    assert_eq!(found(&text("Strict")), "");
    let listener = |second: &str| {
        let (documents, _) = Documents::check([("mesh.yaml", text(second).as_str())]);
        let node = NodeRequest::new(NodeKind::Sidecar, "default").with_workload("w".into());
        let resources = Compiler::new(Mesh::from(&documents), profile()).node(&node).unwrap();
        any::unpack::<Listener>(&resources.listeners["inbound"].body).unwrap()
    };
    let strict = listener("Strict");
    let plain: Vec<_> = strict.filter_chains.iter().filter(|c| c.transport_socket.is_none()).collect();
    assert_eq!(plain.len(), 1);
    assert_eq!(plain[0].name, "inbound_8080_plaintext");
    assert_eq!(plain[0].filter_chain_match.as_ref().unwrap().transport_protocol, "raw_buffer");
    assert!(strict.continue_on_listener_filters_timeout);

    assert!(found(&text("Permissive")).contains("plaintext could be for any of 2 ports"));
    assert!(listener("Permissive").filter_chains.iter().all(|chain| chain.transport_socket.is_some()));
}

const AUTHORIZED: &str = "
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {selector: {app: a}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-db, port: 90, targetPort: 9090}]}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: w, labels: {app: a}}
spec: {address: 10.0.0.1, ports: [{port: 8080}, {port: 9090}]}
---
apiVersion: remora.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: readers}
spec:
  targetRefs: [{name: a}]
  rules:
  - from: [{source: {principals: [mesh.test/ns/default/sa/web], notNamespaces: [evil]}}, {source: {namespaces: [ops]}}]
    to: [{operation: {methods: [GET, HEAD], paths: [/items/*, '/users/{*}/cart'], hosts: [A.example], ports: [80]}}]
    when: [{key: 'request.headers[X-Team]', values: [red, 'blue*']}]
  - from: [{source: {ipBlocks: [10.0.0.0/8, 192.168.1.1]}}]
    to: [{operation: {ports: [90]}}]
---
apiVersion: remora.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: never}
spec:
  targetRefs: [{name: a}]
  action: Deny
  rules: [{to: [{operation: {paths: [/admin*], notMethods: [OPTIONS], ports: [80]}}]}]
---
apiVersion: remora.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: perhaps}
spec: {targetRefs: [{name: a}], dryRun: true, action: Deny, rules: [{from: [{source: {notPrincipals: ['*']}}]}]}
";

#[test]
fn a_denial_of_what_only_http_has_names_its_ports() {
    let text = AUTHORIZED.replace("notMethods: [OPTIONS], ports: [80]", "notMethods: [OPTIONS]");
    assert!(found(&text).contains("spec.rules[0]: would deny everything on port 90"), "{}", found(&text));
}

/// Rules as RBAC, on a port that speaks HTTP and on one that does not.
#[test]
fn authorization_is_rbac_in_front_of_the_program() {
    assert_eq!(found(AUTHORIZED), "");
    let node = sidecar(&compiler(AUTHORIZED), "default", "w");
    let listener = &node.listeners["inbound"];
    let documents: Vec<_> = listener.documents.iter().map(ToString::to_string).collect();
    assert_eq!(documents.iter().filter(|d| d.contains("AuthorizationPolicy")).count(), 3, "{documents:?}");
    let text = Schema::load().any_to_yaml(&listener.body);
    let rbac: String = text
        .split("- name: envoy.filters.")
        .filter(|part| part.contains("rbac.v3.RBAC"))
        .map(|part| format!("- name: envoy.filters.{part}"))
        .collect();
    insta::assert_snapshot!(rbac);
    assert_eq!(Schema::load().check_any(&listener.body, "inbound"), Ok(()));
}

/// Whom the secret with the bundles verifies still has to be of a domain that is known, and a rule may name it.
#[test]
fn workloads_of_other_trust_domains_may_call() {
    let text = AUTHORIZED.replace("mesh.test/ns/default/sa/web", "abroad.example/ns/x/sa/y");
    let (documents, _) = Documents::check([("mesh.yaml", text.as_str())]);
    let profile = Profile { federated: vec!["abroad.example".into()], ..profile() };
    let node = NodeRequest::new(NodeKind::Sidecar, "default").with_workload("w".into());
    let resources = Compiler::new(Mesh::from(&documents), profile).node(&node).unwrap();
    let text = Schema::load().any_to_yaml(&resources.listeners["inbound"].body);
    for line in [
        "prefix: spiffe://mesh.test/\n",
        "prefix: spiffe://abroad.example/\n",
        "exact: spiffe://abroad.example/ns/x/sa/y\n",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[test]
fn rules_that_mean_nothing_are_refused() {
    let policy = |spec: &str| {
        found(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n---\n\
             apiVersion: remora.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec: {spec}\n"
        ))
    };
    for (spec, says) in [
        ("{targetRefs: [{name: a}], action: Deny}", "Deny without rules does nothing"),
        ("{targetRefs: []}", "must not be empty"),
        ("{targetRefs: [{name: b}]}", "b"),
        ("{targetRefs: [{name: a}], rules: [{from: [{source: {}}]}]}", "says nothing"),
        (
            "{targetRefs: [{name: a}], rules: [{to: [{operation: {paths: [admin]}}]}]}",
            "is the beginning of no path",
        ),
        (
            "{targetRefs: [{name: a}], rules: [{to: [{operation: {paths: ['/a*b']}}]}]}",
            "has a * in its middle",
        ),
        (
            "{targetRefs: [{name: a}], rules: [{to: [{operation: {hosts: ['b\u{fc}cher.example']}}]}]}",
            "no request has the host",
        ),
        ("{targetRefs: [{name: a}], rules: [{to: [{operation: {ports: [81]}}]}]}", "81 is a port of none"),
        ("{targetRefs: [{name: a}], rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]}", "is no range"),
        (
            "{targetRefs: [{name: a}], rules: [{when: [{key: source.ips, values: [a]}]}]}",
            "did you mean source.ip?",
        ),
        ("{targetRefs: [{name: a}], rules: [{when: [{key: source.ip}]}]}", "is missing"),
        (
            "{targetRefs: [{name: a}], rules: [{when: [{key: 'request.headers[a b]', values: [x]}]}]}",
            "nothing that can be",
        ),
    ] {
        let said = policy(spec);
        assert!(said.contains(says), "{spec}: {said}");
    }
}

#[test]
fn a_path_that_no_request_has_is_refused() {
    let path = |kind: &str, value: &str| {
        found(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n---\n\
             apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\n\
             spec: {{parentRefs: [{{kind: Service, name: a}}], rules: [{{matches: [{{path: {{type: {kind}, value: '{value}'}}}}]}}]}}\n"
        ))
    };
    for value in ["/a?b", "/a#b", "/a//b", "/a/./b", "/a/../b", "/a/..", "/a/.", "/a%2Fb", "a"] {
        for kind in ["Exact", "PathPrefix"] {
            let said = path(kind, value);
            assert!(said.contains("spec.rules[0].matches[0].path.value"), "{kind} {value}: {said}");
        }
    }
    for (kind, value) in
        [("PathPrefix", "/"), ("PathPrefix", "/a/"), ("Exact", "/a.b/.c"), ("RegularExpression", "/a/?")]
    {
        assert_eq!(path(kind, value), "", "{kind} {value}");
    }
}

const DOUBTFUL: &str = "apiVersion: v1
kind: Service
metadata: {name: a}
spec: {selector: {app: a}, ports: [{name: http, port: 80}, {name: db, port: 5432}, {name: grpc, port: 90}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{kind: Service, name: a}]
  rules:
  - matches: [{path: {type: RegularExpression, value: '/.*'}}]
    backendRefs: [{name: a, port: 80}]
  - matches: [{path: {value: /x}}]
    backendRefs: [{name: a, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: g}
spec:
  parentRefs: [{kind: Service, name: a, port: 90}]
  rules:
  - matches: [{method: {service: x}}]
    backendRefs: [{name: a, port: 90}]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: t}
spec: {parentRefs: [{kind: Service, name: a, port: 5432}], rules: [{backendRefs: [{name: a, port: 5432}]}]}
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: u}
spec: {parentRefs: [{kind: Service, name: a, port: 5432}], rules: [{backendRefs: [{name: a, port: 5432}]}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: e, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
ports: [{name: http, port: 80}]
endpoints: [{addresses: ['10.0.0.1']}]
---
apiVersion: remora.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: p}
spec: {targetRefs: [{name: a}]}
---
apiVersion: remora.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: q}
spec: {targetRefs: [{name: a}]}
";

#[test]
fn what_does_nothing_is_told_with_both_places() {
    insta::assert_snapshot!(found(DOUBTFUL));
}

#[test]
fn a_bomb_is_refused_by_name() {
    let mut text =
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
            .to_owned();
    for level in 1..12 {
        let one = format!("*a{}, ", level - 1).repeat(9);
        text += &format!("  a{level}: &a{level} [{}]\n", one.trim_end_matches(", "));
    }
    let said = found(&text);
    assert!(said.contains("[syntax]") && said.contains("aliases"), "{said}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whether or not documents are right together: those that can be read compile, for everybody, to what Envoy's rules allow. What
    /// the check accepts is accepted for a reason: no sidecar has problems.
    #[test]
    fn mutilated_documents_never_panic(text in mutilated(format!("{SHOP}---\n{EXTERNAL}---\n{ASKING}"))) {
        let Ok(documents) = Documents::read_alone([("mesh.yaml", text.as_str())]) else { return Ok(()) };
        let (_, findings) = Documents::check([("mesh.yaml", text.as_str())]);
        let right = findings.is_empty();
        let schema = Schema::load();
        let compiler = Compiler::new(Mesh::from(&documents), profile());
        for workload in &documents.workloads {
            let request = NodeRequest::new(NodeKind::Sidecar, &workload.metadata.namespace)
                .with_workload(workload.metadata.name.clone());
            let node = compiler.node(&request).unwrap();
            prop_assert!(!right || node.problems.is_empty(), "{:?}", node.problems);
            let all = node.clusters.values().chain(node.endpoints.values()).chain(node.listeners.values());
            for resource in all.chain(node.routes.values()).filter(|_| right) {
                prop_assert_eq!(schema.check_any(&resource.body, &resource.name), Ok(()), "{}", resource.name);
            }
        }
    }
}
