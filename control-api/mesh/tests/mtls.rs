//! mTLS of Services and of their ports: whom plaintext is taken from.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support {
    pub(crate) mod compiled;
    pub(crate) mod profile;
}

use std::sync::Arc;

use remora_mesh::{AnyDocument, Change, Compiler, Key, Kind, Name};
use remora_xds::Schema;
use remora_xds::any;
use remora_xds::pb::envoy::config::listener::v3::Listener;
use support::compiled::{compiler, found, shown, sidecar};

/// Services `a` and `b`, which lead to the same port of one workload, with a policy each.
fn two(a: &str, b: &str) -> String {
    let service = |name: &str, policy: &str| {
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: x}}, ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: tcp-db, port: 90, targetPort: 9090}}]}}
---
apiVersion: remora.dev/v1alpha1
kind: AuthenticationPolicy
metadata: {{name: {name}}}
spec: {{targetRefs: [{{name: {name}}}], {policy}}}
---
"
        )
    };
    let workload = "apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: w, labels: {app: x}}
spec: {address: 10.0.0.1, ports: [{port: 8080}, {port: 9090}]}
";
    service("a", a) + &service("b", b) + workload
}

/// The names of the chains that take plaintext.
fn plaintext(text: &str) -> Vec<String> {
    let node = sidecar(&compiler(text), "default", "w");
    let Some(inbound) = node.listeners.get("inbound") else { return Vec::new() };
    let listener: Listener = any::unpack(&inbound.body).unwrap();
    let chains = listener.filter_chains.into_iter().filter(|chain| chain.transport_socket.is_none());
    chains.map(|chain| chain.name).collect()
}

const PERMISSIVE_WEB: &str = "portLevelMtls: {80: {mode: Permissive}}";

#[test]
fn plaintext_is_taken_only_if_every_service_of_the_port_lets_it() {
    let strict = "mtls: {mode: Strict}";
    assert_eq!(plaintext(&two(PERMISSIVE_WEB, PERMISSIVE_WEB)), ["inbound_8080_plaintext"]);
    assert_eq!(plaintext(&two(PERMISSIVE_WEB, strict)), [""; 0]);
    assert_eq!(plaintext(&two(strict, PERMISSIVE_WEB)), [""; 0]);
    assert_eq!(plaintext(&two(PERMISSIVE_WEB, "mtls: {}")), [""; 0], "Strict is the default");
}

#[test]
fn a_port_may_have_a_mode_of_its_own() {
    let all_but_one = "mtls: {mode: Permissive}, portLevelMtls: {90: {mode: Strict}}";
    assert_eq!(plaintext(&two(all_but_one, all_but_one)), ["inbound_8080_plaintext"]);

    let direct = "portLevelMtls: {'90': {mode: Disabled}}";
    let text = two(direct, direct);
    let compiler = compiler(&text);
    let node = sidecar(&compiler, "default", "w");
    let chains = Schema::load().any_to_yaml(&node.listeners["inbound"].body);
    assert!(chains.contains("inbound_8080") && !chains.contains("9090"), "{chains}");
    let service = compiler.resources(&Name::new("default", "a")).unwrap();
    let port = |number: u16| {
        let port = service.port(number).unwrap();
        shown([&port.cluster, &port.endpoints])
    };
    assert!(port(80).contains("transport_socket") && port(80).contains("port_value: 15006"), "{}", port(80));
    assert!(!port(90).contains("transport_socket") && port(90).contains("port_value: 9090"), "{}", port(90));
}

#[test]
fn modes_of_ports_that_mean_nothing_are_refused() {
    let strict = "mtls: {mode: Strict}";
    for (policy, says) in [
        ("portLevelMtls: {81: {mode: Strict}}", "spec.portLevelMtls.81: is a port of none of the targets"),
        (
            "portLevelMtls: {http: {mode: Strict}}",
            "spec.portLevelMtls.http: is a port of none of the targets",
        ),
        ("portLevelMtls: {80: {mode: Disable}}", "did you mean Disabled?"),
        ("portLevelMtls: {80: {}}", "mode is missing"),
        (
            "portLevelMtls: {80: {mode: Disabled}}, jwtRules: [{issuer: i, jwks: '{\"keys\": [{}]}'}]",
            "jwtRules: nobody would enforce it on port 80",
        ),
    ] {
        let said = found(&two(policy, strict));
        assert!(said.contains(says), "{policy}: {said}");
    }
    let rules = "---
apiVersion: remora.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: p}
spec: {targetRefs: [{name: a}]}
";
    let said = found(&(two("portLevelMtls: {90: {mode: Disabled}}", strict) + rules));
    assert!(said.contains("spec.targetRefs[0]: nobody would enforce it on port 90"), "{said}");
    let others = rules.replace("name: a}]", "name: a}], rules: [{to: [{operation: {ports: [80]}}]}]");
    assert_eq!(found(&(two("portLevelMtls: {90: {mode: Disabled}}", strict) + &others)), "", "not about 90");
}

/// A policy that a newer version wrote stands for something that nobody here knows.
#[test]
fn nobody_calls_a_service_whose_policy_cannot_be_read() {
    let mut compiler = compiler(&two(PERMISSIVE_WEB, PERMISSIVE_WEB));
    let inbound = |compiler: &Compiler| {
        Schema::load().any_to_yaml(&sidecar(compiler, "default", "w").listeners["inbound"].body)
    };
    assert!(!inbound(&compiler).contains("rbac"));
    let key = Key::new(Kind::AuthenticationPolicy, Name::new("default", "a"));
    let Some(AnyDocument::AuthenticationPolicy(mut policy)) = compiler.mesh().document(&key) else {
        panic!()
    };
    Arc::make_mut(&mut policy).spec.unreadable = true;
    compiler.apply([Change::Put(AnyDocument::AuthenticationPolicy(policy))]);
    let text = inbound(&compiler);
    // Of HTTP over mTLS and in plaintext, and of the opaque port.
    assert_eq!(text.matches("default/a:unreadable").count(), 3, "{text}");
    assert_eq!(text.matches("action: DENY").count(), 3, "{text}");
    compiler.apply([Change::Remove(key)]);
    assert!(!inbound(&compiler).contains("rbac"));
}

/// A workload of another mesh answers by the identity that it has there.
#[test]
fn a_workload_of_another_trust_domain_is_called_by_its_name() {
    let text = two("mtls: {}", "mtls: {}");
    let foreign =
        text.replace("spec: {address: 10.0.0.1,", "spec: {address: 10.0.0.1, trustDomain: partner.test,");
    let mut compiler = compiler(&text);
    let name = Name::new("default", "a");
    let cluster =
        |compiler: &Compiler| shown([&compiler.resources(&name).unwrap().port(80).unwrap().cluster]);
    assert!(
        cluster(&compiler).contains("exact: spiffe://mesh.test/ns/default/sa/default"),
        "{}",
        cluster(&compiler)
    );
    let documents = remora_mesh::Documents::read([("mesh.yaml", &*foreign)]).unwrap();
    compiler.apply(documents.iter().map(Change::Put));
    let there = cluster(&compiler);
    assert!(there.contains("exact: spiffe://partner.test/ns/default/sa/default"), "{there}");
    assert!(!there.contains("mesh.test"), "{there}");
    let said = found(&foreign.replace("partner.test", "\"Partner.test/x\""));
    assert!(said.contains("spec.trustDomain: is no trust domain"), "{said}");
}
