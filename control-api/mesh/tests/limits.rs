//! RateLimitPolicy and FaultPolicy: what sidecars in front of programs get, and what is refused.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support {
    pub(crate) mod compiled;
    pub(crate) mod profile;
}

use remora_mesh::{Change, Compiler, Documents, Key, Kind, Name, NodeKind, NodeRequest, NodeResources};
use remora_xds::Schema;
use support::compiled::{compiler, found, shown, sidecar};

const EXAMPLE: &str = include_str!("../../../deploy/examples/limits.yaml");
const COUNTER: &str = "outbound|8081||ratelimit.platform.svc.cluster.local";

/// The filters before the router in every chain of the inbound listener.
fn filters(node: &NodeResources) -> String {
    let text = Schema::load().any_to_yaml(&node.listeners["inbound"].body);
    let chains = text.split("http_filters:").skip(1);
    chains.map(|chain| chain.split_once("- name: envoy.filters.http.router").unwrap().0).collect()
}

/// The names of those filters.
fn names(node: &NodeResources) -> Vec<String> {
    let text = filters(node);
    let start = text.trim_start_matches('\n');
    let indent = &start[..start.len() - start.trim_start().len()];
    let names = text.lines().filter_map(|line| line.strip_prefix(indent)?.strip_prefix("- name: "));
    names.map(|name| name.trim_matches(['\'', '"']).to_owned()).collect()
}

/// The example with `new` in the place of `old`.
fn with(old: &str, new: &str) -> String {
    assert!(EXAMPLE.contains(old), "{old}");
    EXAMPLE.replacen(old, new, 1)
}

/// Up to the first policy, with another one.
fn policy(kind: &str, spec: &str) -> String {
    let (mesh, _) =
        EXAMPLE.split_once("---\napiVersion: remora.dev/v1alpha1\nkind: RateLimitPolicy").unwrap();
    format!(
        "{mesh}---\napiVersion: remora.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: p}}\nspec:\n  targetRefs: [{{name: search}}]\n{spec}"
    )
}

#[test]
fn limits_and_faults_are_filters_in_front_of_the_program() {
    let node = sidecar(&compiler(EXAMPLE), "default", "search-1");
    insta::assert_snapshot!(filters(&node));
    assert!(node.clusters.contains_key(COUNTER) && node.endpoints.contains_key(COUNTER));
    let made_of: Vec<_> = node.listeners["inbound"].documents.iter().map(ToString::to_string).collect();
    for document in [
        "RateLimitPolicy/default/search",
        "FaultPolicy/default/search",
        "Service/platform/ratelimit",
        "ReferenceGrant/platform/limits",
    ] {
        assert!(made_of.iter().any(|made_of| made_of == document), "{document}: {made_of:?}");
    }
    // Callers have nothing of that.
    let caller = sidecar(&compiler(EXAMPLE), "default", "shop-1");
    assert!(!caller.clusters.contains_key(COUNTER));
    assert!(!shown(caller.listeners.values()).contains("ratelimit"));
}

#[test]
fn the_order_is_tokens_rules_limits_faults() {
    let more = "---
apiVersion: remora.dev/v1alpha1
kind: AuthenticationPolicy
metadata: {name: tokens}
spec: {targetRefs: [{name: search}], jwtRules: [{issuer: a, jwks: '{\"keys\": [{\"kty\": \"oct\", \"k\": \"c2VjcmV0LXRoYXQtaXMtbG9uZy1lbm91Z2gtZm9yLUhTMjU2\"}]}'}]}
---
apiVersion: remora.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: allow}
spec: {targetRefs: [{name: search}], rules: [{}]}
";
    let node = sidecar(&compiler(&format!("{EXAMPLE}{more}")), "default", "search-1");
    let all = names(&node);
    let wanted = [
        "envoy.filters.http.jwt_authn",
        "envoy.filters.http.rbac",
        "default/search",
        "default/search:mesh:together",
        "default/search:global",
        "default/search:faults[0]",
        "default/search:faults[1]",
        "default/search:faults[2]",
    ];
    assert_eq!(all, wanted);
}

#[test]
fn a_dry_run_counts_and_refuses_nothing() {
    let text = with("  maxBuckets: 5000\n", "  maxBuckets: 5000\n  dryRun: true\n");
    let all = filters(&sidecar(&compiler(&text), "default", "search-1"));
    assert_eq!(all.matches("numerator: 1000000").count(), 3 + 1, "three are enabled, and a delay: {all}");
}

#[test]
fn what_sidecars_do_by_themselves_is_divided_by_how_many_they_are() {
    let mut compiler = compiler(EXAMPLE);
    let request = NodeRequest::new(NodeKind::Sidecar, "default").with_workload("search-1".into());
    let first = Name::new("default", "search-1");
    let alone = |compiler: &Compiler| {
        let all = filters(&compiler.node(&request).unwrap());
        let (_, after) = all.split_once("fallback_rate_limit:").unwrap();
        let number = |field: &str| after.split_once(field).unwrap().1.lines().next().unwrap().to_owned();
        (number("max_tokens: "), number("tokens_per_fill: "), number("fill_interval: "))
    };
    let share = |max: &str, per: &str| (max.to_owned(), "2000".to_owned(), per.to_owned());
    assert_eq!(alone(&compiler), share("2000", "1s"));
    let mut come = |number: u8| {
        let text = format!(
            "apiVersion: remora.dev/v1alpha1\nkind: Workload\nmetadata: {{name: more-{number}, labels: {{app: search}}}}\n\
             spec: {{address: 10.0.1.{number}, ports: [{{port: 8080}}], egress: []}}\n"
        );
        let document = Documents::read_alone([("more.yaml", text.as_str())]).unwrap().iter().next().unwrap();
        let touched = compiler.apply([Change::Put(document)]);
        (touched.workloads.contains(&first), alone(&compiler))
    };
    assert_eq!(come(1), (true, share("1000", "2s")));
    assert_eq!(come(2), (true, share("500", "4s")));
    assert_eq!(come(3), (false, share("500", "4s")), "which seldom changes");
    let leases: Vec<_> = remora_mesh::leases(compiler.mesh()).collect();
    let [lease] = &leases[..] else { panic!("{leases:?}") };
    assert_eq!(
        (lease.domain.as_str(), lease.bucket.1.as_str(), lease.requests),
        ("default/search", "together", 2000)
    );
}

#[test]
fn a_service_that_counts_may_come_and_go() {
    let mut compiler = compiler(EXAMPLE);
    let request = NodeRequest::new(NodeKind::Sidecar, "default").with_workload("search-1".into());
    let gone = Key::new(Kind::ReferenceGrant, Name::new("platform", "limits"));
    let grant = compiler.mesh().document(&gone).unwrap();
    let touched = compiler.apply([Change::Remove(gone)]);
    assert!(touched.workloads.contains(&Name::new("default", "search-1")), "{touched:?}");
    let without = compiler.node(&request).unwrap();
    assert!(!names(&without).contains(&"default/search:global".to_owned()), "requests go on without it");
    compiler.apply([Change::Put(grant)]);
    assert!(compiler.node(&request).unwrap().clusters.contains_key(COUNTER));
}

#[test]
fn without_an_answer_requests_are_refused_when_a_policy_says_so() {
    let text = with("    timeout: 50ms\n", "    timeout: 50ms\n    failOpen: false\n");
    let mut compiler = compiler(&text);
    let request = NodeRequest::new(NodeKind::Sidecar, "default").with_workload("search-1".into());
    assert!(filters(&compiler.node(&request).unwrap()).contains("failure_mode_deny: true"));
    compiler.apply([Change::Remove(Key::new(Kind::Service, Name::new("platform", "ratelimit")))]);
    let without = compiler.node(&request).unwrap();
    let all = filters(&without);
    assert!(all.contains("failure_mode_deny: true") && all.contains(COUNTER), "nobody answers: {all}");
    assert!(!without.clusters.contains_key(COUNTER));
}

#[test]
fn limits_that_make_no_sense_are_refused_with_their_place_and_a_fix() {
    let wrong = "  limits:
  - {name: 'A b', requests: 0, per: 10ms, burst: 0}
  - {name: twice, requests: 1, per: 99999h, burst: 1000, by: [{}, {client: true, header: x}]}
  - {name: twice, requests: 1, per: 1s, match: {path: {value: x}}, by: [{header: 'a b'}, {header: 'a b'}, {queryParameter: ''}]}
  - {scope: Mesh, requests: 1, per: 2h, burst: 1, match: {method: GET}, by: [{client: true}]}
  maxBuckets: 0
  global:
    backendRef: {name: search, port: 8080}
    domain: ''
    timeout: 0s
    descriptors:
    - {entries: []}
    - {entries: [{key: '', value: ''}, {key: a}, {key: b, header: x, match: {}}]}
";
    insta::assert_snapshot!("wrong_limits", found(&policy("RateLimitPolicy", wrong)));
    insta::assert_snapshot!("no_limits", found(&policy("RateLimitPolicy", "  maxBuckets: 7\n")));
    let second = "---
apiVersion: remora.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: other}
spec: {targetRefs: [{name: search}], limits: [{requests: 1, per: 1s}]}
";
    let both = found(&format!("{EXAMPLE}{second}"));
    assert!(
        both.contains("[conflict]") && both.contains("has the RateLimitPolicy \"other\" already"),
        "{both}"
    );
}

#[test]
fn faults_that_make_no_sense_are_refused_with_their_place_and_a_fix() {
    let wrong = "  faults:
  - {}
  - {match: {queryParams: [{name: a, value: b}]}, delay: {fixedDelay: 0s, percentage: 0}}
  - {abort: {percentage: 1}}
  - {abort: {httpStatus: 100, grpcStatus: 0, percentage: 0.0001}}
";
    insta::assert_snapshot!("wrong_faults", found(&policy("FaultPolicy", wrong)));
    assert!(found(&policy("FaultPolicy", "  faults: []\n")).contains("must not be empty"));
    assert!(
        found(&policy("FaultPolicy", "  faults: [{abort: {httpStatus: 503}}]\n"))
            .contains("percentage is missing")
    );
}

#[test]
fn policies_are_for_what_a_sidecar_sees() {
    let fault = policy("FaultPolicy", "  faults: [{abort: {httpStatus: 503, percentage: 1}}]\n");
    assert_eq!(found(&fault), "");
    let tcp = fault.replacen("{name: http, port: 8080}", "{name: db, port: 8080}", 1);
    assert!(found(&tcp).contains("no port of Service \"search\" speaks HTTP"), "{}", found(&tcp));
    let plain = "---\napiVersion: remora.dev/v1alpha1\nkind: AuthenticationPolicy\nmetadata: {name: plain}\n\
        spec: {targetRefs: [{name: search}], mtls: {mode: Disabled}}\n";
    let said = found(&format!("{fault}{plain}"));
    assert!(said.contains("go past its sidecars"), "{said}");
}
