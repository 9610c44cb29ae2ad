//! How callers treat a Service: TrafficPolicy.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support {
    pub(crate) mod compiled;
    pub(crate) mod profile;
}

use support::compiled::{compiler, found, shown, sidecar};

const MESH: &str = "apiVersion: v1
kind: Service
metadata: {name: a}
spec: {selector: {app: a}, ports: [{name: http, port: 8080}, {name: tcp-db, port: 5432}]}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: a-1, labels: {app: a}}
spec: {address: 10.0.0.1, ports: [{port: 8080}, {port: 5432}], egress: []}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: caller}
spec: {address: 10.0.0.2, egress: [{service: a}]}
";

fn policy(spec: &str) -> String {
    format!(
        "{MESH}---\napiVersion: remora.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p}}\nspec:\n  targetRefs: [{{name: a}}]\n{spec}"
    )
}

/// The part of the cluster of a port that begins with `field`, up to the next field.
fn of_cluster(text: &str, port: u16, field: &str) -> String {
    let compiler = compiler(text);
    let node = sidecar(&compiler, "default", "caller");
    let name = format!("outbound|{port}||a.default.svc.cluster.local");
    let all = shown([&node.clusters[name.as_str()]]);
    let lines = all.lines().skip_while(|line| !line.starts_with(&format!("{field}:")));
    let (first, rest) = (lines.clone().take(1), lines.skip(1));
    let rest = rest.take_while(|line| line.starts_with([' ', '-']));
    first.chain(rest).map(str::trim).collect::<Vec<_>>().join(" ")
}

#[test]
fn http_is_balanced_by_peak_ewma_and_connections_by_least_request() {
    let ewma = of_cluster(MESH, 8080, "load_balancing_policy");
    assert!(ewma.contains("name: remora.load_balancing_policies.peak_ewma"), "{ewma}");
    assert!(ewma.contains("decay: 10s") && ewma.contains("v3.LeastRequest"), "{ewma}");
    assert_eq!(of_cluster(MESH, 5432, "load_balancing_policy"), "");
    assert_eq!(of_cluster(MESH, 5432, "lb_policy"), "lb_policy: LEAST_REQUEST");
}

#[test]
fn a_policy_says_how_endpoints_are_chosen() {
    let short = policy("  loadBalancing: Random\n");
    assert_eq!(of_cluster(&short, 8080, "lb_policy"), "lb_policy: RANDOM");
    assert_eq!(of_cluster(&short, 8080, "load_balancing_policy"), "");
    let long = policy("  loadBalancing: {policy: LeastRequest, choiceCount: 5, panicThreshold: 0}\n");
    assert_eq!(
        of_cluster(&long, 8080, "least_request_lb_config"),
        "least_request_lb_config: choice_count: 5"
    );
    assert_eq!(of_cluster(&long, 8080, "common_lb_config"), "common_lb_config: healthy_panic_threshold: {}");
    let slow = policy("  loadBalancing: {policy: PeakEwma, decay: 1m500ms}\n");
    assert!(of_cluster(&slow, 5432, "load_balancing_policy").contains("decay: 60.5s"));
}

const HASHED: &str = "  loadBalancing:
    policy: RingHash
    minimumRingSize: 2048
    boundedLoad: 125
    hashOn: [{header: x-user, terminal: true}, {cookie: {name: user, ttl: 1h, path: /}}, {queryParameter: user}, {sourceIp: true}]
    session: {cookie: {name: place, ttl: 1h}, strict: true}
";

#[test]
fn requests_that_belong_together_go_together() {
    let text = policy(HASHED);
    assert_eq!(of_cluster(&text, 8080, "lb_policy"), "lb_policy: RING_HASH");
    let compiler = compiler(&text);
    let node = sidecar(&compiler, "default", "caller");
    let cluster = &node.clusters["outbound|8080||a.default.svc.cluster.local"];
    let all = std::iter::once(cluster).chain(node.listeners.values()).chain(node.routes.values());
    insta::assert_snapshot!("hashed", shown(all));
    let maglev =
        policy("  loadBalancing: {policy: Maglev, hashOn: [{header: x-user}], session: {header: x-place}}\n");
    assert_eq!(of_cluster(&maglev, 8080, "maglev_lb_config"), "maglev_lb_config: table_size: \"65537\"");
    let slow = policy("  loadBalancing: {policy: RoundRobin, slowStart: {window: 10s}}\n");
    let slow = of_cluster(&slow, 8080, "round_robin_lb_config");
    // As 10 or 10.0, by what the rest of the build asks of the serializer.
    let wanted =
        "round_robin_lb_config: slow_start_config: slow_start_window: 10s min_weight_percent: value: 10";
    assert_eq!(slow.trim_end_matches(".0"), wanted);
}

#[test]
fn fields_of_other_policies_are_refused() {
    let mixed = "  loadBalancing:
    minimumRingSize: 0
    tableSize: 65536
    boundedLoad: 99
    slowStart: {window: 0s, minWeightPercent: 0}
    hashOn: [{}, {header: x y, sourceIp: true}, {queryParameter: ''}, {cookie: {name: 'a=b', path: x}}, {cookie: {name: ä, ttl: 0s, path: '/\"'}}]
    session: {strict: true}
";
    insta::assert_snapshot!("fields_of_other_policies", found(&policy(mixed)));
    let nothing = "  loadBalancing: {policy: Maglev, session: {header: 'a b', cookie: {name: ''}}}\n";
    insta::assert_snapshot!("nothing_to_hash", found(&policy(nothing)));
}

#[test]
fn outliers_are_ejected_unless_documents_say_no() {
    insta::assert_snapshot!("outliers_by_default", of_cluster(MESH, 5432, "outlier_detection"));
    let off = policy("  outlierDetection: {enabled: false}\n");
    assert_eq!(of_cluster(&off, 8080, "outlier_detection"), "");
    let said = policy(
        "  outlierDetection:
    consecutive5xxErrors: 0
    consecutiveGatewayErrors: 3
    splitExternalLocalOriginErrors: true
    consecutiveLocalOriginFailures: 4
    interval: 1s
    baseEjectionTime: 10m
    maxEjectionPercent: 100
    successRate: {minimumHosts: 3, requestVolume: 10, stdevFactor: 1000}
    failurePercentage: {threshold: 30}
",
    );
    insta::assert_snapshot!("outliers_as_a_policy_says", of_cluster(&said, 8080, "outlier_detection"));
}

#[test]
fn a_try_is_never_longer_than_the_request_of_its_rule() {
    let text = policy("  timeouts: {request: 10s}\n  retries: {perTry: 3s}\n");
    let route = |timeouts: &str| {
        format!(
            "{text}---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\n\
             spec: {{parentRefs: [{{kind: Service, name: a, port: 8080}}], rules: [{{timeouts: {timeouts}, backendRefs: [{{name: a, port: 8080}}]}}]}}\n"
        )
    };
    for (timeouts, per_try) in [
        ("{}", "3s"),
        ("{request: 2s}", "2s"),
        ("{request: 0s}", "3s"),
        ("{backendRequest: 5s}", "5s"),
        ("{backendRequest: 20s}", "10s"),
        ("{request: 0s, backendRequest: 20s}", "20s"),
    ] {
        let compiler = compiler(&route(timeouts));
        let node = sidecar(&compiler, "default", "caller");
        let routes = shown(node.routes.values());
        assert!(routes.contains(&format!("per_try_timeout: {per_try}")), "{timeouts}: {routes}");
    }
}

#[test]
fn what_contradicts_itself_is_refused_with_both_places() {
    let text = policy(
        "  timeouts: {request: 1s}
  retries: {perTry: 2s, budget: {percent: 0, minPerSecond: 0, interval: 0s}, allMethods: true}
  loadBalancing: {policy: Random, decay: 2h, choiceCount: 1, panicThreshold: 101}
  outlierDetection: {maxEjectionPercent: 0, interval: 0s, baseEjectionTime: 5m, maxEjectionTime: 4m, consecutiveLocalOriginFailures: 3, failurePercentage: {threshold: 101}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{kind: Service, name: a, port: 8080}]
  rules: [{backendRefs: [{name: a, port: 8080, weight: 0}, {name: a, port: 8080, weight: 0}]}]
",
    );
    insta::assert_snapshot!("contradictions", found(&text));
    let off = policy(
        "  retries: {num: 0, retryOn: [5xx], statusCodes: [503], budget: {percent: 0, minPerSecond: 0}}\n  loadBalancing: RingHsh\n",
    );
    insta::assert_snapshot!("retries_that_are_off", found(&off));
    let off = policy(
        "  retries: {num: 0, retryOn: [5xx], statusCodes: [503], budget: {percent: 0, minPerSecond: 0}}\n",
    );
    insta::assert_snapshot!("retries_that_are_off_and_said", found(&off));
    insta::assert_snapshot!(
        "detection_that_is_off",
        found(&policy("  outlierDetection: {enabled: false, interval: 1s}\n"))
    );
}
