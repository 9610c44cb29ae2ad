//! Documents in, resources out: golden files, and Envoy's own rules for everything that comes out.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support {
    pub(crate) mod mutilated;
    pub(crate) mod profile;
}

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use remora_mesh::{Compiler, Documents, Lack, Mesh, Name, NodeKind, NodeRequest, Resource, Rule};
use remora_xds::Schema;
use support::mutilated::mutilated;
use support::profile::profile;

const DEMO: &str = include_str!("../../../deploy/examples/demo.yaml");

/// All resources of a sidecar as one text, after Envoy's rules were checked.
fn compiled(text: &str, workload: &str) -> String {
    let compiler = Compiler::new(Mesh::from(&read(text).unwrap()), profile());
    let request = NodeRequest::new(NodeKind::Sidecar, "default").with_workload(workload.into());
    let node = compiler.node(&request).unwrap();
    let schema = Schema::load();
    let shown = |(kind, resources): (&str, BTreeMap<Arc<str>, Arc<Resource>>)| {
        let mut text = format!("=== {kind}\n");
        for resource in resources.values() {
            assert_eq!(schema.check_any(&resource.body, &resource.name), Ok(()), "{}", resource.name);
            text.push_str("---\n");
            text.push_str(&schema.any_to_yaml(&resource.body));
        }
        text
    };
    let all = [
        ("clusters", node.clusters),
        ("endpoints", node.endpoints),
        ("routes", node.routes),
        ("listeners", node.listeners),
    ];
    all.map(shown).concat()
}

/// The part of [`compiled`] that is of one kind.
fn of_kind(text: &str, workload: &str, kind: &str) -> String {
    let all = compiled(text, workload);
    let found = all.split("=== ").find(|part| part.starts_with(kind));
    found.unwrap().split_once('\n').unwrap().1.to_owned()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// What is accepted compiles, and what comes out keeps to Envoy's rules; what is not says where.
    #[test]
    fn accepted_documents_compile_to_valid_resources(text in mutilated(format!("{SERVICES}{ROUTE}"))) {
        match Documents::read([("mesh.yaml", text.as_str())]) {
            Err(errors) => prop_assert!(!errors.is_empty() && errors.iter().all(|e| e.position.is_some()), "{errors:?}"),
            Ok(documents) => {
                let names: Vec<String> = documents.workloads.iter().map(|w| w.metadata.name.clone()).collect();
                for name in names {
                    compiled(&text, &name);
                }
            }
        }
    }
}

fn read(text: &str) -> Result<Documents, String> {
    let lines = |errors: Vec<remora_xds::diag::ConfigError>| {
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    Documents::read([("mesh.yaml", text)]).map_err(lines)
}

/// Every sidecar would refuse it, with every later change of that listener.
#[test]
fn a_new_path_is_written_as_a_path() {
    let of = |path: &str| {
        let rule = format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: r}}
spec:
  parentRefs: [{{kind: Service, name: b}}]
  rules: [{{filters: [{{type: RequestRedirect, requestRedirect: {{path: {{type: ReplaceFullPath, replaceFullPath: {path:?}}}}}}}]}}]
"
        );
        read(&format!("{SERVICES}---\n{rule}"))
    };
    for path in ["", "/", "/a/b;c?d=%20"] {
        assert!(of(path).is_ok(), "{path}");
    }
    for path in ["/a b", "/a#b", "/\u{e4}", "/a\"b", "/\\"] {
        let error = of(path).unwrap_err();
        assert!(error.contains("replaceFullPath: has characters that no path may have"), "{path}: {error}");
    }
}

#[test]
fn a_workload_that_is_called_and_calls() {
    insta::assert_snapshot!(compiled(DEMO, "shop-1"));
}

#[test]
fn a_workload_that_only_calls_has_no_inbound_listener() {
    let all = compiled(&shop_only(), "visitors");
    assert!(!all.contains("name: inbound"), "{all}");
    assert!(all.contains("outbound|8080||shop.default.svc.cluster.local"));
    assert!(!all.contains("stock"), "what it does not call is not sent to it: {all}");
}

#[test]
fn an_edit_of_the_split_changes_the_routes_and_nothing_else() {
    let edited = DEMO.replace("weight: 90", "weight: 50").replace("weight: 10", "weight: 50");
    let (before, after) = (compiled(DEMO, "shop-1"), compiled(&edited, "shop-1"));
    for (before, after) in before.split("=== ").zip(after.split("=== ")) {
        assert_eq!(before == after, !before.starts_with("routes"), "{before}");
    }
    for workload in ["stock-1", "stock-2"] {
        assert_eq!(compiled(DEMO, workload), compiled(&edited, workload), "{workload}");
    }
    assert_ne!(compiled(DEMO, "visitors"), compiled(&edited, "visitors"), "they may call stock");
    let visitors = |weight: &str| compiled(&shop_only().replace("weight: 90", weight), "visitors");
    assert_eq!(visitors("weight: 90"), visitors("weight: 50"));
}

/// The demo without the visitors' way to stock.
fn shop_only() -> String {
    DEMO.replace(", {service: stock, localPort: 9081}", "")
}

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {selector: {app: a}, ports: [{name: http, port: 8080}, {name: grpc-api, port: 9090}, {name: db, port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: b}
spec: {selector: {app: b}, ports: [{port: 8081, appProtocol: http}]}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: a-1, labels: {app: a, version: v7}}
spec: {address: 10.0.0.1, ports: [{port: 8080}, {port: 9090}, {port: 5432}]}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: b-1, labels: {app: b}}
spec: {address: 10.0.0.2, inboundPort: 16006, serviceAccount: b, ports: [{port: 8081}]}
";

#[test]
fn http_grpc_and_tcp_ports_of_one_program() {
    insta::assert_snapshot!(of_kind(SERVICES, "a-1", "listeners"));
}

#[test]
fn callers_of_http_grpc_and_tcp() {
    insta::assert_snapshot!(of_kind(SERVICES, "b-1", "clusters"));
}

#[test]
fn every_part_of_a_route() {
    let text = format!("{SERVICES}{ROUTE}");
    insta::assert_snapshot!("every_part_of_a_route", of_kind(&text, "a-1", "routes"));
    insta::assert_snapshot!("a_traffic_policy", of_kind(&text, "a-1", "clusters"));
}

const ROUTE: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{kind: Service, name: b, port: 8081}]
  rules:
  - backendRefs: [{name: b, port: 8081}]
  - matches:
    - path: {value: /cart/}
      method: POST
      headers: [{name: x-user, value: anna}, {name: x-tier, type: RegularExpression, value: 'gold|silver'}]
      queryParams: [{name: debug, value: '1'}]
    - path: {type: RegularExpression, value: '/v[0-9]+/.*'}
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: x-a, value: '100%'}], add: [{name: x-b, value: '2'}], remove: [x-c]}
    backendRefs:
    - {name: a, port: 8080, weight: 3, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [x-d]}}]}
    - {name: b, port: 8081, weight: 0}
    timeouts: {request: 2s, backendRequest: 500ms}
  - matches: [{path: {value: /old}}]
    filters: [{type: URLRewrite, urlRewrite: {hostname: new.test, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: b, port: 8081}]
  - matches: [{path: {type: Exact, value: /gone}}]
    filters:
    - type: RequestRedirect
      requestRedirect: {scheme: https, hostname: x.test, path: {type: ReplaceFullPath, replaceFullPath: /new}, statusCode: 301}
  - matches: [{path: {value: /nowhere}}]
---
apiVersion: remora.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: p}
spec:
  targetRefs: [{name: b}]
  retries: {retryOn: [5xx], statusCodes: [429], num: 4, perTry: 1s, perTryIdle: 500ms, budget: {percent: 30, minPerSecond: 1, interval: 2s}}
  timeouts: {request: 9s, idle: 1m, connect: 250ms}
  connections: {maxConnections: 7, maxPendingRequests: 8, maxRequests: 9}
  loadBalancing: RoundRobin
";

#[test]
fn mistakes_have_line_field_and_fix() {
    let unreadable = "apiVersion: v1
kind: Service
metadata: {name: x}
spec:
  ports:
  - {name: http, port: 80800}
---
apiVersion: v1
kind: Service
metadata: {name: y}
spec:
  port: 8080
---
apiVersion: remora.dev/v1alpha1
kind: Trafficpolicy
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: z}
spec:
  parentRefs: [{kind: Service, name: x}]
  rules:
  - timeouts: {request: 1.5s}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: z}
spec:
  parentRefs: [{kind: Service, name: x}]
  rules: [{filters: [{type: RequestMirror}]}]
";
    insta::assert_snapshot!("unreadable", read(unreadable).unwrap_err());
    let wrong = "---
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {ports: []}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{name: a}, {kind: Service, name: c}]
  rules:
  - matches: [{path: {type: Exact, value: x}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replaceFullPath: /x}}}]
    backendRefs: [{name: bb, port: 1}, {name: b, port: 1}]
    timeouts: {request: 1s, backendRequest: 2s}
---
apiVersion: remora.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: p}
spec:
  targetRefs: [{name: b}]
  retries: {retryOn: [conect-failure], statusCodes: [200], budget: {percent: 101}}
---
apiVersion: remora.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: q}
spec: {targetRefs: [{name: b}]}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: W}
spec: {address: 10.0.0.9, ports: [{port: 8081}], egress: [{service: b}, {service: a, port: 1}]}
";
    insta::assert_snapshot!("wrong", read(&format!("{SERVICES}{wrong}")).unwrap_err());
}

/// What cannot be read is left out; the others are checked, and what refers to it is no mistake of theirs.
#[test]
fn one_unreadable_document_does_not_hide_the_mistakes_of_others() {
    let route = |name: &str, to: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}}}\nspec:\n  \
             parentRefs: [{{kind: Service, name: a}}]\n  rules: [{{backendRefs: [{{name: {to}, port: 8081}}]}}]\n"
        )
    };
    let broken = "---\napiVersion: v1\nkind: Service\nmetadata: {name: c}\nspec: {ports: [{port: 80800}]}\n";
    let text = [SERVICES, broken, &route("to-c", "c"), &route("to-nobody", "d")].concat();
    let (documents, findings) = Documents::check([("mesh.yaml", text.as_str())]);
    let found: Vec<_> = findings.iter().map(|found| (found.rule, found.error.message.as_str())).collect();
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[0].0, Rule::Syntax);
    assert_eq!(found[1], (Rule::Reference, "there is no Service default/d"));
    assert_eq!(findings[1].lacks, Some(Lack::Service(Name::new("default", "d"))));
    assert_eq!(documents.http_routes.len(), 2);
}

#[test]
fn a_route_that_nothing_was_said_of_is_the_newest_and_the_longest_prefix_holds() {
    let route = |name: &str, time: &str, path: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}{time}}}\nspec:\n  \
             parentRefs: [{{kind: Service, name: b}}]\n  rules: [{{matches: [{{path: {{value: {path}}}}}], backendRefs: [{{name: b, port: 8081}}]}}]\n"
        )
    };
    let text = [
        SERVICES.to_owned(),
        route("a-new", "", "/x"),
        route("b-old", ", creationTimestamp: '2026-01-01T00:00:00Z'", "/x"),
        route("c-long", "", "/x/y"),
    ]
    .concat();
    let routes = of_kind(&text, "a-1", "routes");
    let at = |name: &str| routes.find(&format!("default.{name}.0")).unwrap();
    assert!(at("c-long") < at("b-old") && at("b-old") < at("a-new"), "{routes}");
}
