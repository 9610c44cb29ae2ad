//! What HTTPRoutes do besides routing: CORS, mirrors, sessions.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support {
    pub(crate) mod compiled;
    pub(crate) mod profile;
}

use remora_mesh::{NodeKind, NodeRequest, NodeResources};
use support::compiled::{compiler, found, shown, sidecar};

const EXAMPLE: &str = include_str!("../../../deploy/examples/pages.yaml");
const MIRROR: &str = "outbound|8080||catalog-next.default.svc.cluster.local";

/// The example with `new` in the place of `old`.
fn with(old: &str, new: &str) -> String {
    assert!(EXAMPLE.contains(old), "{old}");
    EXAMPLE.replacen(old, new, 1)
}

/// The example with the one rule `rule`.
fn rule(rule: &str) -> String {
    let (mesh, _) = EXAMPLE.split_once("  rules:\n").unwrap();
    format!("{mesh}  rules:\n{rule}")
}

/// The filters before the router of the one listener.
fn filters(node: &NodeResources) -> String {
    let text = shown(node.listeners.values());
    let (_, rest) = text.split_once("http_filters:").unwrap();
    rest.split_once("- name: envoy.filters.http.router").unwrap().0.to_owned()
}

#[test]
fn pages_copies_and_sessions() {
    let node = sidecar(&compiler(EXAMPLE), "default", "edge-1");
    insta::assert_snapshot!(format!("{}\n{}", filters(&node), shown(node.routes.values())));
    assert!(node.clusters.contains_key(MIRROR) && node.endpoints.contains_key(MIRROR));
    let listener = node.listeners.values().next().unwrap();
    assert!(listener.documents.iter().any(|key| key.to_string() == "HTTPRoute/default/catalog"));
}

#[test]
fn routes_that_say_nothing_of_filters_need_none() {
    let node =
        sidecar(&compiler(&rule("  - backendRefs: [{name: catalog, port: 8080}]\n")), "default", "edge-1");
    assert_eq!(filters(&node).trim(), "");
    assert!(!shown(node.routes.values()).contains("typed_per_filter_config"));
}

#[test]
fn a_session_of_the_policy_holds_for_rules_that_have_none() {
    let policy = "---\napiVersion: remora.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p}\n\
        spec: {targetRefs: [{name: catalog}], loadBalancing: {session: {header: x-place}}}\n";
    let node = sidecar(&compiler(&format!("{EXAMPLE}{policy}")), "default", "edge-1");
    let (filters, routes) = (filters(&node), shown(node.routes.values()));
    assert!(filters.contains("HeaderBasedSessionState") && filters.contains("x-place"), "{filters}");
    assert!(routes.contains("name: cart") && !routes.contains("disabled: true"), "{routes}");
}

#[test]
fn a_grpc_library_is_told_of_no_filters() {
    let mut request = NodeRequest::new(NodeKind::Grpc, "default");
    request.wanted = ["catalog:8080".to_owned()].into();
    let node = compiler(EXAMPLE).node(&request).unwrap();
    let routes = shown(node.routes.values());
    assert!(routes.contains("prefix: /cart/") && !routes.contains("typed_per_filter_config"), "{routes}");
}

#[test]
fn a_mirror_that_is_not_there_gets_nothing() {
    let text = with("backendRef: {name: catalog-next, port: 8080}", "backendRef: {name: gone, port: 8080}");
    assert!(found(&text).contains("[reference]"), "{}", found(&text));
    let many = rule(
        "  - filters:
    - {type: RequestMirror, requestMirror: {backendRef: {name: catalog-next, port: 8080}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: catalog, port: 8080}, fraction: {numerator: 1, denominator: 3}}}
    backendRefs: [{name: catalog, port: 8080}]
",
    );
    let routes = shown(sidecar(&compiler(&many), "default", "edge-1").routes.values());
    assert_eq!(routes.matches("- cluster: outbound").count(), 2, "{routes}");
    assert!(routes.contains("numerator: 333333"), "{routes}");
}

#[test]
fn what_makes_no_sense_is_refused_with_its_place_and_a_fix() {
    let wrong = "  - filters:
    - {type: CORS}
    - type: RequestMirror
      requestMirror: {backendRef: {name: none, port: 1}, percent: 1, fraction: {numerator: 2, denominator: 1}}
    - {type: RequestRedirect, requestRedirect: {hostname: a.test}}
  - matches: [{path: {value: /a}, method: GET}]
    filters:
    - type: CORS
      cors: {allowOrigins: [shop.example, 'https://a.*.example'], allowCredentials: true, allowMethods: ['*'], allowHeaders: ['a b'], maxAge: 0}
    backendRefs: [{name: catalog, port: 8080, filters: [{type: CORS, cors: {allowOrigins: ['*']}}]}]
    sessionPersistence: {sessionName: 'a=b', absoluteTimeout: 1h, idleTimeout: 1m}
  - matches: [{path: {value: /b}}]
    backendRefs: [{name: catalog, port: 8080}, {name: catalog-next, port: 8080}]
    sessionPersistence: {type: Header, cookieConfig: {lifetimeType: Permanent}}
  - matches: [{path: {value: /c}}]
    backendRefs: [{name: catalog-next, port: 8080}]
    sessionPersistence: {type: Header, sessionName: x-remora-session}
";
    insta::assert_snapshot!("wrong", found(&rule(wrong)));
    let grpc = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: g}\nspec:\n  \
        parentRefs: [{kind: Service, name: catalog}]\n  rules:\n  - filters: [{type: CORS, cors: {allowOrigins: ['*']}}]\n    \
        backendRefs: [{name: catalog, port: 8080}]\n";
    let said = found(&format!("{}{grpc}", rule("  - backendRefs: [{name: catalog, port: 8080}]\n")));
    assert!(said.contains("does not belong to a GRPCRoute"), "{said}");
}
