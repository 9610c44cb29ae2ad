//! The order in which rules are tried: the Gateway API's own words, case by case.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fmt::Write;

use remora_mesh::{Compiler, Credentials, Documents, Listening, Mesh, Name, OutboundTraffic, Profile};
use remora_xds::any;
use remora_xds::pb::envoy::config::route::v3::RouteConfiguration;
use remora_xds::pb::envoy::config::route::v3::route::Action;
use remora_xds::pb::envoy::config::route::v3::route_action::ClusterSpecifier;

fn profile() -> Profile {
    Profile {
        trust_domain: "mesh.test".into(),
        federated: Vec::new(),
        credentials: Credentials::Issued,
        listening: Listening::AsWritten,
        ecdh_curves: Vec::new(),
        outbound_traffic: OutboundTraffic::AllowAny,
    }
}

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {ports: [{name: http, port: 80}, {name: grpc, port: 90}]}
---
apiVersion: v1
kind: Service
metadata: {name: one}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: two, namespace: other}
spec: {ports: [{name: http, port: 80}]}
";

/// A route; `metadata` and `rest` of the spec are flow mappings without their braces.
fn route(kind: &str, metadata: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{{metadata}}}\n\
         spec: {{parentRefs: [{{kind: Service, name: shop, namespace: default}}], {rest}}}\n"
    )
}

fn table(text: &str, port: u16, caller: &str) -> RouteConfiguration {
    let documents = Documents::read_alone([("mesh.yaml", text)]).unwrap();
    let compiler = Compiler::new(Mesh::from(&documents), profile());
    let resources = compiler.resources(&Name::new("default", "shop")).unwrap();
    any::unpack(&resources.port(port).unwrap().callers(caller).routes.as_ref().unwrap().body).unwrap()
}

/// Names of the routes in the order in which they are tried: `namespace.route.rule`.
fn order(text: &str, port: u16, caller: &str) -> Vec<String> {
    let table = table(text, port, caller);
    table.virtual_hosts[0].routes.iter().map(|route| route.name.clone()).collect()
}

#[test]
fn the_more_specific_match_is_tried_first() {
    // The first of each pair is tried first, however they are written.
    let cases = [
        (
            "an exact path before a prefix",
            "path: {type: Exact, value: /a}",
            "path: {value: /a/very/long/prefix}",
        ),
        ("the longer prefix", "path: {value: /a/b}", "path: {value: /a}"),
        ("a slash at the end does not count", "path: {value: /ab}", "path: {value: /a/}"),
        ("a path before a method", "path: {value: /a}", "method: GET"),
        ("a method before headers", "method: GET", "headers: [{name: a, value: x}, {name: b, value: x}]"),
        (
            "more headers",
            "headers: [{name: a, value: x}, {name: b, value: x}]",
            "headers: [{name: c, value: x}], queryParams: [{name: q, value: x}, {name: r, value: x}]",
        ),
        (
            "more query parameters",
            "queryParams: [{name: q, value: x}, {name: r, value: x}]",
            "queryParams: [{name: s, value: x}]",
        ),
        ("anything before nothing", "queryParams: [{name: q, value: x}]", "path: {value: /}"),
    ];
    for (what, first, second) in cases {
        for (a, b) in [(first, second), (second, first)] {
            let rules = format!("rules: [{{matches: [{{{a}}}]}}, {{matches: [{{{b}}}]}}]");
            let text = format!("{SERVICES}{}", route("HTTPRoute", "name: r", &rules));
            let wanted =
                if a == first { ["default.r.0", "default.r.1"] } else { ["default.r.1", "default.r.0"] };
            assert_eq!(order(&text, 80, "default"), wanted, "{what}: {a} and {b}");
        }
    }
}

#[test]
fn of_equal_matches_the_older_route_holds_then_its_name_then_the_order_in_it() {
    let rules = "rules: [{matches: [{path: {value: /a}}]}, {matches: [{path: {value: /a}}]}]";
    let mut text = SERVICES.to_owned();
    for metadata in [
        "name: none",
        "name: z-old, creationTimestamp: '2026-01-01T00:00:00Z'",
        "name: b-new, creationTimestamp: '2026-06-01T00:00:00Z'",
        "name: a-new, creationTimestamp: '2026-06-01T00:00:00Z'",
    ] {
        text.write_str(&route("HTTPRoute", metadata, rules)).unwrap();
    }
    let wanted =
        ["z-old", "a-new", "b-new", "none"].map(|name| [0, 1].map(|rule| format!("default.{name}.{rule}")));
    assert_eq!(order(&text, 80, "default"), wanted.concat());
}

#[test]
fn calls_of_grpc_by_characters_of_service_and_method_then_headers() {
    let cases = [
        ("{service: a.LongService}", "{service: a.S, method: VeryLongMethod}"),
        ("{service: a.S, method: Long}", "{service: a.S, method: M}"),
        ("{service: a.S, method: M}", "{service: a.S}"),
        ("{method: M}", ""),
    ];
    for (first, second) in cases {
        let one =
            |method: &str| if method.is_empty() { "{}".to_owned() } else { format!("{{method: {method}}}") };
        let rules = format!("rules: [{{matches: [{}]}}, {{matches: [{}]}}]", one(second), one(first));
        let text = format!("{SERVICES}{}", route("GRPCRoute", "name: r", &rules));
        assert_eq!(order(&text, 90, "default"), ["default.r.1", "default.r.0"], "{first} and {second}");
    }
}

#[test]
fn a_route_of_the_callers_namespace_holds_there_and_nowhere_else() {
    let rules = "rules: [{}]";
    let text = format!(
        "{SERVICES}{}{}",
        route("HTTPRoute", "name: producer", rules),
        route("HTTPRoute", "name: consumer, namespace: other", rules)
    );
    assert_eq!(order(&text, 80, "default"), ["default.producer.0"]);
    assert_eq!(order(&text, 80, "third"), ["default.producer.0"]);
    assert_eq!(order(&text, 80, "other"), ["other.consumer.0"]);
}

#[test]
fn grpc_routes_hold_before_http_routes() {
    let text = format!(
        "{SERVICES}{}{}",
        route("HTTPRoute", "name: http", "rules: [{}]"),
        route("GRPCRoute", "name: grpc", "rules: [{}]")
    );
    assert_eq!(order(&text, 90, "default"), ["default.grpc.0"]);
}

#[test]
fn a_route_may_be_for_one_port_by_number_or_name() {
    for parent in ["port: 90", "sectionName: grpc"] {
        let one = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\n";
        let text = format!(
            "{SERVICES}{one}spec: {{parentRefs: [{{kind: Service, name: shop, {parent}}}], rules: [{{}}]}}\n"
        );
        assert_eq!(order(&text, 90, "default"), ["default.r.0"]);
        assert_eq!(order(&text, 80, "default"), ["default"]);
    }
}

/// What a route does: a status, or clusters with their weights; after that the share of the requests that come this far.
fn actions(text: &str) -> Vec<String> {
    actions_for(text, "default")
}

/// The same for callers of a namespace.
fn actions_for(text: &str, caller: &str) -> Vec<String> {
    let table = table(text, 80, caller);
    let routes = table.virtual_hosts[0].routes.iter();
    routes
        .map(|route| {
            let share = route.r#match.as_ref().unwrap().runtime_fraction.as_ref();
            let share = share.map(|f| format!(" for {} ppm", f.default_value.unwrap().numerator));
            let does = match route.action.as_ref().unwrap() {
                Action::DirectResponse(answer) => answer.status.to_string(),
                Action::Route(action) => match action.cluster_specifier.as_ref().unwrap() {
                    ClusterSpecifier::Cluster(name) => name.clone(),
                    ClusterSpecifier::WeightedClusters(all) => {
                        let one = |c: &remora_xds::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight| {
                            format!("{}={}", c.name, c.weight.unwrap().value)
                        };
                        all.clusters.iter().map(one).collect::<Vec<_>>().join(" ")
                    }
                    other => format!("{other:?}"),
                },
                other => format!("{other:?}"),
            };
            format!("{does}{}", share.unwrap_or_default())
        })
        .collect()
}

#[test]
fn the_share_of_backends_that_do_not_exist_is_answered_500() {
    let with = |backends: &str| {
        let text = route("HTTPRoute", "name: r", &format!("rules: [{{backendRefs: [{backends}]}}]"));
        actions(&format!("{SERVICES}{text}"))
    };
    let one = "outbound|80||one.default.svc.cluster.local";
    assert_eq!(with("{name: one, port: 80}"), [one]);
    assert_eq!(with("{name: gone, port: 80}"), ["500"]);
    assert_eq!(with("{name: one, port: 81}"), ["500"]);
    assert_eq!(with("{name: one, port: 80, weight: 0}"), ["500"]);
    assert_eq!(with(""), ["500"]);
    assert_eq!(with("{name: one, port: 80, weight: 3}, {name: gone, port: 80}"), ["500 for 250000 ppm", one]);
}

#[test]
fn another_namespace_is_reached_with_a_grant_only() {
    let to_two =
        route("HTTPRoute", "name: r", "rules: [{backendRefs: [{name: two, namespace: other, port: 80}]}]");
    let grant = |from: &str, to: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: other}}\n\
             spec: {{from: [{{group: gateway.networking.k8s.io, {from}}}], to: [{{group: '', kind: Service{to}}}]}}\n"
        )
    };
    let with = |grant: &str| actions(&format!("{SERVICES}{to_two}{grant}"));
    let two = "outbound|80||two.other.svc.cluster.local";
    assert_eq!(with(""), ["500"]);
    assert_eq!(with(&grant("kind: HTTPRoute, namespace: default", "")), [two]);
    assert_eq!(with(&grant("kind: HTTPRoute, namespace: default", ", name: two")), [two]);
    assert_eq!(with(&grant("kind: HTTPRoute, namespace: default", ", name: three")), ["500"]);
    assert_eq!(with(&grant("kind: GRPCRoute, namespace: default", "")), ["500"]);
    assert_eq!(with(&grant("kind: HTTPRoute, namespace: third", "")), ["500"]);
}

/// The conformance case MeshConsumerRoute.
#[test]
fn a_consumer_route_leads_back_to_its_service_without_a_grant() {
    let to = |backend: &str| {
        let rules = format!("rules: [{{backendRefs: [{{namespace: default, port: 80, name: {backend}}}]}}]");
        format!("{SERVICES}{}", route("HTTPRoute", "name: r, namespace: other", &rules))
    };
    let refused = |text: &str| {
        let (_, found) = Documents::check([("mesh.yaml", text)]);
        found.iter().any(|finding| finding.to_string().contains("no ReferenceGrant of default"))
    };
    let back = to("shop");
    assert_eq!(actions_for(&back, "other"), ["outbound|80||shop.default.svc.cluster.local"]);
    assert!(!refused(&back));
    // Callers of one Service did not mean another one, also where the route is attached to both.
    let both = back.replace(
        "namespace: default}]",
        "namespace: default}, {kind: Service, name: one, namespace: default}]",
    );
    assert_ne!(both, back);
    for text in [to("one"), both] {
        assert_eq!(actions_for(&text, "other"), ["500"]);
        assert!(refused(&text));
    }
}

/// HTTPRouteFilter: one that is not supported must not be skipped, whoever wrote the route without having it checked.
#[test]
fn requests_of_a_filter_that_is_not_supported_are_refused() {
    let refused = |rule: &str| -> Vec<Option<u32>> {
        let route = route("HTTPRoute", "name: r", &format!("rules: [{rule}]"));
        let table = table(&format!("{SERVICES}{route}"), 80, "default");
        let status = |action: &Option<Action>| match action {
            Some(Action::DirectResponse(answer)) => Some(answer.status),
            _ => None,
        };
        table.virtual_hosts[0].routes.iter().map(|route| status(&route.action)).collect()
    };
    let (auth, extension) = (
        "{type: ExternalAuth, externalAuth: {protocol: GRPC}}",
        "{type: ExtensionRef, extensionRef: {group: a.example, kind: B, name: c}}",
    );
    for filter in [auth, extension] {
        assert_eq!(
            refused(&format!("{{filters: [{filter}], backendRefs: [{{name: one, port: 80}}]}}")),
            [Some(500)],
            "{filter}"
        );
        let redirect = "{type: RequestRedirect, requestRedirect: {hostname: a.example}}";
        assert_eq!(refused(&format!("{{filters: [{redirect}, {filter}]}}")), [Some(500)], "{filter}");
        let some = format!("{{name: one, port: 80, filters: [{filter}]}}, {{name: shop, port: 80}}");
        assert_eq!(
            refused(&format!("{{backendRefs: [{some}]}}")),
            [Some(500), None],
            "its share of {filter}"
        );
    }
    let rewrite = "{type: URLRewrite, urlRewrite: {hostname: a.example}}";
    assert_eq!(
        refused(&format!("{{backendRefs: [{{name: one, port: 80, filters: [{rewrite}]}}]}}")),
        [Some(500)]
    );
    let bucket = "{group: a.example, kind: Bucket, name: one, port: 80}";
    assert_eq!(
        refused(&format!("{{backendRefs: [{bucket}]}}")),
        [Some(500)],
        "no Service of that name is meant"
    );
}
