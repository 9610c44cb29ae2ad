//! Circuit breakers and active health checks of TrafficPolicies: what callers get, and what is refused.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support {
    pub(crate) mod compiled;
    pub(crate) mod profile;
}

use remora_mesh::{Change, Key, Kind, Name, NodeKind, NodeRequest, NodeResources};
use support::compiled::{compiler, found, shown, sidecar};

const EXAMPLE: &str = include_str!("../../../deploy/examples/resilience.yaml");
const FALLBACK: &str = "outbound|8081||bestsellers.default.svc.cluster.local";

fn cluster(port: u16) -> String {
    format!("outbound|{port}||recommendations.default.svc.cluster.local")
}

/// The example with `new` in the place of `old`.
fn with(old: &str, new: &str) -> String {
    assert!(EXAMPLE.contains(old), "{old}");
    EXAMPLE.replacen(old, new, 1)
}

/// The part of a cluster that begins with `field`.
fn part(node: &NodeResources, port: u16, field: &str) -> String {
    let text = shown([&node.clusters[cluster(port).as_str()]]);
    let lines = text.lines().skip_while(|line| !line.starts_with(&format!("{field}:")));
    let rest = lines.clone().skip(1).take_while(|line| line.starts_with([' ', '-']));
    lines.take(1).chain(rest).collect::<Vec<_>>().join("\n")
}

#[test]
fn callers_check_break_and_have_something_instead() {
    let node = sidecar(&compiler(EXAMPLE), "default", "shop-1");
    let parts = [8080, 9090, 5432].map(|port| {
        format!("=== {port}\n{}\n{}\n", part(&node, port, "health_checks"), part(&node, port, "metadata"))
    });
    insta::assert_snapshot!(parts.concat());
    assert!(node.clusters.contains_key(FALLBACK) && node.endpoints.contains_key(FALLBACK));
    assert!(!node.listeners.keys().any(|name| name.contains("bestsellers")), "it does not call it itself");
    let made_of: Vec<_> =
        node.clusters[cluster(8080).as_str()].documents.iter().map(ToString::to_string).collect();
    assert!(made_of.contains(&"Service/default/bestsellers".to_owned()), "{made_of:?}");
    // A gRPC library has no circuit breaker, and is sent what it asked for and nothing else.
    let mut request = NodeRequest::new(NodeKind::Grpc, "default");
    request.wanted = ["recommendations:9090".to_owned()].into();
    let library = compiler(EXAMPLE).node(&request).unwrap();
    assert_eq!(library.clusters.keys().map(AsRef::as_ref).collect::<Vec<_>>(), [cluster(9090)]);
    assert_eq!(part(&library, 9090, "health_checks"), "");
}

#[test]
fn programs_without_sidecars_are_asked_in_what_they_speak() {
    let plain = "---\napiVersion: remora.dev/v1alpha1\nkind: AuthenticationPolicy\nmetadata: {name: plain}\n\
        spec: {targetRefs: [{name: recommendations}], mtls: {mode: Disabled}}\n";
    let node = sidecar(&compiler(&format!("{EXAMPLE}{plain}")), "default", "shop-1");
    // HTTP1 is the first of the enumeration, and left out.
    assert!(!part(&node, 8080, "health_checks").contains("codec_client_type"));
    let node = sidecar(&compiler(EXAMPLE), "default", "shop-1");
    assert!(part(&node, 8080, "health_checks").contains("codec_client_type: HTTP2"));
}

#[test]
fn an_answer_is_for_http() {
    let answer = "      answer: {status: 203, headers: {content-type: application/json}, body: '[]'}";
    let text = with("      backendRef: {name: bestsellers, port: 8081}", answer);
    let node = sidecar(&compiler(&text), "default", "shop-1");
    insta::assert_snapshot!("fixed_answer", part(&node, 8080, "metadata"));
    assert!(!part(&node, 5432, "metadata").contains("fallback"), "there is no answer to a connection");
    assert!(!node.clusters.contains_key(FALLBACK));
}

#[test]
fn what_answers_instead_may_come_and_go() {
    let mut compiler = compiler(EXAMPLE);
    let request = NodeRequest::new(NodeKind::Sidecar, "default").with_workload("shop-1".into());
    let gone = Key::new(Kind::Service, Name::new("default", "bestsellers"));
    let service = compiler.mesh().document(&gone).unwrap();
    let touched = compiler.apply([Change::Remove(gone)]);
    assert!(touched.services.contains(&Name::new("default", "recommendations")), "{touched:?}");
    let without = compiler.node(&request).unwrap();
    assert!(!part(&without, 8080, "metadata").contains(FALLBACK) && !without.clusters.contains_key(FALLBACK));
    compiler.apply([Change::Put(service)]);
    assert!(compiler.node(&request).unwrap().clusters.contains_key(FALLBACK));
}

#[test]
fn what_answers_instead_may_be_in_another_namespace() {
    let text = with("metadata: {name: bestsellers}", "metadata: {name: bestsellers, namespace: other}");
    let text =
        text.replace("{name: bestsellers, port: 8081}", "{name: bestsellers, namespace: other, port: 8081}");
    let ungranted = found(&text);
    assert!(
        ungranted.contains("[reference]") && ungranted.contains("lets this policy lead to"),
        "{ungranted}"
    );
    let grant = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: other}\n\
        spec: {from: [{group: remora.dev, kind: TrafficPolicy, namespace: default}], to: [{group: '', kind: Service}]}\n";
    let node = sidecar(&compiler(&format!("{text}{grant}")), "default", "shop-1");
    let name = "outbound|8081||bestsellers.other.svc.cluster.local";
    assert!(part(&node, 8080, "metadata").contains(name) && node.clusters.contains_key(name));
}

#[test]
fn what_makes_no_sense_is_refused_with_its_place_and_a_fix() {
    let checks = EXAMPLE.find("  healthChecks:").unwrap();
    let policy = |said: &str| found(&format!("{}{said}", &EXAMPLE[..checks]));
    let wrong = "  healthChecks:
  - {}
  - {http: {path: health, host: 'a b', expectedStatuses: [200]}, interval: 0s, unhealthyThreshold: 0}
  - {port: 1, tcp: {}}
  - {port: 5432, grpc: {}}
  - {http: {path: /again}}
  circuitBreaker:
    slidingWindowSize: 10
    minimumNumberOfCalls: 20
    failureRateThreshold: 0
    waitDurationInOpenState: 0s
    slowCallDurationThreshold: 25h
    permittedNumberOfCallsInHalfOpenState: 2000
    fallback: {answer: {status: 100, headers: {content-length: '1', 'a b': c}}, backendRef: {name: recommendations, port: 8080}}
";
    insta::assert_snapshot!("mistakes", policy(wrong));
    for (said, what) in [
        ("  healthChecks: [{http: {path: /, host: 'a:b'}}]\n", "http.host: is no host name"),
        ("  healthChecks: [{http: {path: /\u{e4}}}]\n", "http.path: is no path"),
        ("  circuitBreaker: {failureStatuses: [5xx]}\n", "\"5xx\" is no status"),
        ("  circuitBreaker: {failureRateThreshold: 101}\n", "101 is no percentage"),
        ("  circuitBreaker: {slidingWindowType: CountBased}\n", "did you mean COUNT_BASED?"),
        ("  circuitBreaker: {fallback: {}}\n", "needs lastGood, one of answer and backendRef, or both"),
        ("  circuitBreaker: {fallback: {backendRef: {name: none, port: 1}}}\n", "[reference]"),
        (
            "  circuitBreaker: {fallback: {lastGood: {maxBytes: 139263}}}\n",
            "maxBytes: must be at least 139264",
        ),
        ("  circuitBreaker: {fallback: {lastGood: {maxBodyBytes: 0}}}\n", "must be from 1 to"),
        ("  circuitBreaker: {fallback: {lastGood: {maxAge: 0s}}}\n", "maxAge: must be more than 0s"),
        ("  circuitBreaker: {slidingWindowsize: 1}\n", "did you mean slidingWindowSize?"),
    ] {
        let said = policy(said);
        assert!(said.contains(what), "{what}: {said}");
    }
    let tcp = with("ports: [{name: http, port: 8081}]", "ports: [{name: db, port: 8081}]");
    // One of the ports of the targets speaks the same.
    assert_eq!(found(&tcp), "");
    let only_http = tcp.replace(", {name: grpc-api, port: 9090}, {name: db, port: 5432}", "");
    let only_http = only_http.replace("  - grpc: {service: shop.Recommendations}\n", "");
    assert!(found(&only_http).contains("does not speak HTTP, and the targets do"), "{}", found(&only_http));
}
