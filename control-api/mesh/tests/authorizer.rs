//! Policies that ask a service (`action: Custom`): what sidecars get, and what is refused.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support {
    pub(crate) mod compiled;
    pub(crate) mod profile;
}

use remora_mesh::{
    AnyDocument, Change, Compiler, Documents, Key, Kind, Mesh, Name, NodeKind, NodeRequest, NodeResources,
};
use remora_xds::Schema;
use support::compiled::{compiler, found, shown, sidecar};
use support::profile::profile;

const ASKING: &str = include_str!("../../../deploy/examples/authorizer.yaml");
const CLUSTER: &str = "outbound|9000||authorizer.security.svc.cluster.local";

/// The filters before the router in every chain of the inbound listener.
fn filters(node: &NodeResources) -> String {
    let text = Schema::load().any_to_yaml(&node.listeners["inbound"].body);
    let chains = text.split("http_filters:").skip(1);
    chains.map(|chain| chain.split_once("- name: envoy.filters.http.router").unwrap().0).collect()
}

/// The sidecar of documents that need not be right.
fn carts(text: &str) -> NodeResources {
    let documents = Documents::read_alone([("mesh.yaml", text)]).unwrap();
    sidecar(&Compiler::new(Mesh::from(&documents), profile()), "default", "carts-1")
}

/// The example with `new` in the place of `old`.
fn with(old: &str, new: &str) -> String {
    assert!(ASKING.contains(old), "{old}");
    ASKING.replacen(old, new, 1)
}

#[test]
fn a_service_is_asked_about_what_rules_choose() {
    let node = sidecar(&compiler(ASKING), "default", "carts-1");
    insta::assert_snapshot!(filters(&node));
    let listener = &node.listeners["inbound"];
    let documents: Vec<_> = listener.documents.iter().map(ToString::to_string).collect();
    for document in
        ["AuthorizationPolicy/default/ask", "Service/security/authorizer", "ReferenceGrant/security/askers"]
    {
        assert!(documents.iter().any(|made_of| made_of == document), "{document}: {documents:?}");
    }
    // It is called as any other Service: over mTLS, and nobody else may answer.
    let text = shown([&node.clusters[CLUSTER]]);
    assert!(text.contains("exact: spiffe://mesh.test/ns/security/sa/authorizer"), "{text}");
    assert!(
        node.endpoints.contains_key(CLUSTER) && node.services.contains(&Name::new("security", "authorizer"))
    );
    // Who asks nobody gets nothing of that.
    let other = sidecar(&compiler(ASKING), "security", "authorizer-1");
    assert!(!filters(&other).contains("ext_authz"));
}

#[test]
fn over_http_the_policy_says_which_headers_count() {
    let text = with(
        "protocol: GRPC",
        "protocol: HTTP\n    http: {path: /check/, allowedHeaders: [X-Team], allowedResponseHeaders: [x-user]}\n    failOpen: true",
    )
    .replace("    grpc: {allowedHeaders: [authorization, x-request-id]}\n", "")
    .replace("name: grpc", "name: http");
    assert_eq!(found(&text), "");
    let text = filters(&carts(&text));
    for line in [
        "uri: http://authorizer.security.svc.cluster.local:9000",
        "path_prefix: /check\n",
        "exact: x-team",
        "failure_mode_allow: true",
        "allowed_upstream_headers:",
        "exact: x-user",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[test]
fn every_request_is_asked_about_when_a_rule_says_nothing() {
    let rules = &ASKING[ASKING.find("  rules:\n").unwrap()..ASKING.find("---\n# What the service").unwrap()];
    let text = filters(&carts(&ASKING.replace(rules, "  rules: [{}]\n")));
    assert!(text.contains("ext_authz.v3.ExtAuthz"), "{text}");
    assert!(!text.contains("filter_enabled_metadata") && !text.contains("custom_default_ask_"), "{text}");
}

#[test]
fn several_are_asked_in_the_order_of_their_names_before_rules_are_looked_at() {
    let start = ASKING.find("# What matches a rule").unwrap();
    let ask = &ASKING[start..ASKING.find("# What the service let").unwrap()];
    let text = format!("{ASKING}---\n{}", ask.replace("name: ask}", "name: also}").trim_end_matches("---\n"));
    assert_eq!(found(&text), "");
    let text = filters(&carts(&text));
    let at = |word: &str| text.find(word).unwrap_or_else(|| panic!("{word} in {text}"));
    assert!(at("- name: default/also") < at("- name: default/ask"), "{text}");
    assert!(at("- name: default/ask") < at("default/carts:rules[0]"), "{text}");
}

/// Nobody can be asked: what would be asked about is refused.
#[test]
fn a_provider_that_is_not_there_refuses_what_it_would_be_asked_about() {
    let grant = &ASKING[ASKING.find("---\n# Whoever owns").unwrap()..];
    for text in [
        with("backendRef: {name: authorizer", "backendRef: {name: nobody"),
        with("namespace: security, port: 9000}\n    grpc", "namespace: security, port: 9001}\n    grpc"),
        with("name: grpc, port: 9000", "name: tcp, port: 9000"),
        with(grant, ""),
    ] {
        assert_ne!(found(&text), "");
        let node = carts(&text);
        let text = filters(&node);
        assert!(!text.contains("ext_authz") && text.contains("action: DENY"), "{text}");
        assert!(text.contains("default/ask:rules[1]"), "{text}");
        assert!(!node.clusters.contains_key(CLUSTER));
    }
}

/// The program is the same whoever calls it: nobody gets around the question by another protocol.
#[test]
fn a_port_that_does_not_speak_http_is_closed_to_what_would_be_asked_about() {
    let opaque = "---\napiVersion: v1\nkind: Service\nmetadata: {name: raw}\nspec: {selector: {app: carts}, ports: [{name: tcp, port: 1, targetPort: 8080}]}\n";
    let text = format!("{ASKING}{opaque}");
    assert_eq!(found(&text), "");
    let text = Schema::load().any_to_yaml(&carts(&text).listeners["inbound"].body);
    let network = text.split("- name: envoy.filters.network.rbac").nth(1).unwrap();
    assert!(network.contains("action: DENY") && network.contains("default/ask:rules[0]"), "{network}");
}

/// A sidecar hears of its provider when that comes and goes.
#[test]
fn what_comes_and_goes_is_told_to_whoever_asks() {
    let documents = Documents::read_alone([("mesh.yaml", ASKING)]).unwrap();
    let mut compiler = Compiler::new(Mesh::from(&documents), profile());
    let request = NodeRequest::new(NodeKind::Sidecar, "default").with_workload("carts-1".into());
    let asks = |compiler: &Compiler| filters(&compiler.node(&request).unwrap()).contains("ext_authz");
    let keys = [
        Key::new(Kind::Service, Name::new("security", "authorizer")),
        Key::new(Kind::ReferenceGrant, Name::new("security", "askers")),
    ];
    let of = |key: &Key| documents.iter().find(|document: &AnyDocument| document.key() == *key).unwrap();
    for key in &keys {
        assert!(asks(&compiler), "{key}");
        for change in [Change::Remove(key.clone()), Change::Put(of(key))] {
            let touched = compiler.apply([change]);
            assert!(touched.workloads.contains(&Name::new("default", "carts-1")), "{key}: {touched:?}");
        }
    }
}

#[test]
fn what_means_nothing_is_refused_by_name() {
    let policy = "name: ask}\nspec:\n";
    let backend = "backendRef: {name: authorizer, namespace: security, port: 9000}";
    for (old, new, says) in [
        (policy, "name: ask}\nspec:\n  dryRun: true\n", "spec.dryRun: is not supported for Custom"),
        ("action: Custom", "action: Deny", "spec.provider: means nothing for Deny"),
        ("action: Custom", "action: Custum", "did you mean Custom?"),
        ("protocol: GRPC", "protocol: TCP", "\"TCP\" is not supported"),
        (
            backend,
            "backendRef: {name: authorizr, namespace: security, port: 9000}",
            // What else is there, nobody is told who may not ask it.
            "no ReferenceGrant of security lets this policy ask authorizr",
        ),
        (backend, "backendRef: {name: cart, port: 8080}", "did you mean carts?"),
        (backend, "backendRef: {name: authorizer, namespace: security, port: 9001}", "has no port 9001"),
        (
            backend,
            "backendRef: {name: authorizer, namespace: security, port: 9000, weight: 1}",
            "weight: is not known here",
        ),
        (
            backend,
            "backendRef: {kind: Pod, name: authorizer, namespace: security, port: 9000}",
            "\"Pod\" is not supported",
        ),
        (
            backend,
            "backendRef: {name: carts, port: 8080}",
            "port 8080 of Service \"carts\" does not speak GRPC",
        ),
        (
            backend,
            "backendRef: {name: carts, port: 8080}",
            "\"carts\" would have to be asked before it answers",
        ),
        (
            "namespace: default}]\n  to",
            "namespace: other}]\n  to",
            "no ReferenceGrant of security lets this policy ask authorizer",
        ),
        (
            "group: remora.dev",
            "group: gateway.networking.k8s.io",
            "spec.from[0].group: is not supported (remora.dev)",
        ),
        (
            "grpc: {allowedHeaders: [authorization, x-request-id]}",
            "http: {path: /x}",
            "provider.http: means nothing for GRPC",
        ),
        (
            "grpc: {allowedHeaders: [authorization, x-request-id]}",
            "grpc: {allowedHeaders: ['a b']}",
            "allowedHeaders[0]: \"a b\" is no name of a header",
        ),
        (
            "grpc: {allowedHeaders: [authorization, x-request-id]}",
            "grpc: {initialMetadata: []}",
            "initialMetadata: is not known here",
        ),
        (
            "protocol: GRPC",
            "protocol: HTTP\n    http: {allowedResponseHeaders: [x-user, Connection]}",
            "allowedResponseHeaders[1]: no answer changes Connection",
        ),
        ("maxSize: 8192", "maxSize: 1048577", "provider.forwardBody.maxSize: is more than 1048576"),
        ("timeout: 250ms", "timeout: 0s", "provider.timeout: must be more than 0s"),
        (
            "ports: [{name: http, port: 8080}]",
            "ports: [{name: http, port: 8080}, {name: tcp-db, port: 5432}]",
            "spec.rules[0]: asks about port 5432, which does not speak HTTP",
        ),
    ] {
        let said = found(&with(old, new));
        assert!(said.contains(says), "{new}: {said}");
    }
    let provider = &ASKING[ASKING.find("  provider:\n").unwrap()..ASKING.find("  rules:\n").unwrap()];
    assert!(found(&ASKING.replace(provider, "")).contains("spec.provider: is missing: Custom asks somebody"));
    let rules = &ASKING[ASKING.find("  rules:\n").unwrap()..ASKING.find("---\n# What the service").unwrap()];
    let said = found(&ASKING.replace(rules, ""));
    assert!(said.contains("Custom without rules does nothing (rules: [{}] asks about everything)"), "{said}");
}

/// On a route the caller's side would ask; who looks for that finds what there is.
#[test]
fn the_filter_of_a_route_is_refused_with_the_way_to_ask() {
    let route = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{kind: Service, name: carts}]
  rules: [{filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP}}], backendRefs: [{name: carts, port: 8080}]}]
";
    let said = found(&format!("{ASKING}{route}"));
    assert!(
        said.contains("ExternalAuth is not supported yet (an AuthorizationPolicy with action: Custom"),
        "{said}"
    );
}

/// Two services that ask each other would wait for each other.
#[test]
fn whoever_is_asked_asks_nobody_who_asks_it() {
    let back = "---
apiVersion: remora.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: back, namespace: security}
spec:
  targetRefs: [{name: authorizer}]
  action: Custom
  provider: {protocol: HTTP, backendRef: {name: carts, namespace: default, port: 8080}}
  rules: [{}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: back}
spec: {from: [{group: remora.dev, kind: AuthorizationPolicy, namespace: security}], to: [{group: '', kind: Service}]}
";
    let said = found(&format!("{ASKING}{back}"));
    assert_eq!(said.matches("would have to be asked before it answers").count(), 2, "{said}");
}
