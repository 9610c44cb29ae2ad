//! Compiling step by step gives what compiling afresh gives, resource by resource; and a step costs what it touches.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support {
    pub(crate) mod profile;
}

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use remora_mesh::{
    AnyDocument, Change, Compiler, Documents, Health, Instance, Key, Kind, Mesh, Name, NodeKind, NodeRequest,
    NodeResources,
};
use remora_xds::Schema;
use support::profile::profile;

/// One document, whether or not what it refers to exists.
fn document(text: &str) -> AnyDocument {
    Documents::read_alone([("mesh.yaml", text)]).unwrap().iter().next().unwrap()
}

/// An edit in a mesh of two namespaces with a handful of names, so that edits meet.
#[derive(Debug, Clone)]
enum Edit {
    Put(String),
    Remove(Kind, &'static str, String),
    Register { text: String, health: Health, service: Option<String>, reported: bool },
    Deregister(&'static str, String),
    Unreadable(&'static str, String, bool),
}

const NAMESPACES: [&str; 2] = ["one", "two"];

fn change(edit: &Edit) -> Change {
    match edit {
        Edit::Put(text) => Change::Put(document(text)),
        Edit::Remove(kind, namespace, name) => Change::Remove(Key::new(*kind, Name::new(namespace, name))),
        Edit::Deregister(namespace, name) => Change::Deregister(Name::new(namespace, name)),
        Edit::Unreadable(namespace, name, documented) => {
            Change::Unreadable { name: Name::new(namespace, name), documented: *documented }
        }
        Edit::Register { text, health, service, reported } => {
            let AnyDocument::Workload(workload) = document(text) else { unreachable!("a Workload") };
            let services = service.iter().cloned().collect();
            Change::Register(Arc::new(Instance { workload, health: *health, services, reported: *reported }))
        }
    }
}

fn namespace() -> impl Strategy<Value = &'static str> {
    prop::sample::select(NAMESPACES.to_vec())
}

fn service() -> impl Strategy<Value = String> {
    let app = prop::sample::select(vec!["{}", "{app: a}", "{app: b}", "{app: a, version: v1}"]);
    let ports = prop::sample::select(vec![
        "[{name: http, port: 8080}]",
        "[{name: http, port: 8080, targetPort: web}, {name: grpc, port: 9090}]",
        "[{name: db, port: 5432}]",
    ]);
    let vip = prop::sample::select(vec!["", "clusterIP: None, ", "clusterIPs: [10.96.0.1, 'fd00::1'], "]);
    (namespace(), 0..3_u8, app, ports, vip).prop_map(|(namespace, number, app, ports, vip)| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: {namespace}}}\nspec: {{{vip}selector: {app}, ports: {ports}}}\n"
        )
    })
}

fn workload() -> impl Strategy<Value = String> {
    let labels = prop::sample::select(vec!["{}", "{app: a}", "{app: b}", "{app: a, version: v1}"]);
    let ports = prop::sample::select(vec![
        "[]",
        "[{port: 8080}, {port: 9090}]",
        "[{port: 8080}, {port: 9090}], addresses: [10.0.0.9, 'fd00::9'], interception: Redirect",
        "[{name: web, port: 80}, {port: 5432}]",
    ]);
    let egress = prop::sample::select(vec![
        "",
        ", egress: [{service: s0}]",
        ", egress: [{service: s1, namespace: two, port: 8080, localPort: 7000}]",
        ", httpProxy: {}",
        ", httpProxy: {port: 7001}, egress: [{service: s1, namespace: two, port: 8080, localPort: 7000}, {service: s0}]",
    ]);
    let account = prop::sample::select(vec!["x", "y"]);
    (namespace(), 0..4_u8, labels, ports, egress, account).prop_map(
        |(namespace, number, labels, ports, egress, account)| {
            format!(
                "apiVersion: remora.dev/v1alpha1\nkind: Workload\nmetadata: {{name: w{number}, namespace: {namespace}, labels: {labels}}}\n\
                 spec: {{address: 10.0.0.{number}, serviceAccount: {account}, ports: {ports}{egress}}}\n"
            )
        },
    )
}

fn route() -> impl Strategy<Value = String> {
    let reference = || (namespace(), 0..3_u8, prop::sample::select(vec![8080_u16, 9090]));
    let more = prop::sample::select(vec![
        "",
        "\n    filters: [{type: CORS, cors: {allowOrigins: ['*']}}]",
        "\n    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: s1, namespace: two, port: 8080}}}]",
        "\n    sessionPersistence: {type: Header}",
    ]);
    let references = (reference(), reference(), reference());
    (namespace(), 0..2_u8, references, more).prop_map(|(namespace, number, (parent, a, b), more)| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r{number}, namespace: {namespace}}}\n\
             spec:\n  parentRefs: [{{kind: Service, name: s{}, namespace: {}, port: {}}}]\n  rules:\n  - backendRefs:\n    \
             - {{name: s{}, namespace: {}, port: {}, weight: 2}}\n    - {{name: s{}, namespace: {}, port: {}}}{more}\n",
            parent.1, parent.0, parent.2, a.1, a.0, a.2, b.1, b.0, b.2
        )
    })
}

fn grpc_route() -> impl Strategy<Value = String> {
    (namespace(), 0..2_u8, namespace(), 0..3_u8, 0..3_u8).prop_map(|(namespace, number, parent, a, b)| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {{name: g{number}, namespace: {namespace}}}\n\
             spec:\n  parentRefs: [{{kind: Service, name: s{a}, namespace: {parent}}}]\n  rules:\n  - matches: [{{method: {{service: x.Y}}}}]\n    \
             backendRefs: [{{name: s{b}, port: 9090}}]\n"
        )
    })
}

fn tcp_route() -> impl Strategy<Value = String> {
    let kind = prop::sample::select(vec![
        ("v1alpha2", "TCPRoute", 't', ""),
        ("v1", "TLSRoute", 'l', "\n  hostnames: [a.test, '*.b.test']"),
        ("v1", "TLSRoute", 'l', ""),
    ]);
    (kind, namespace(), 0..2_u8, namespace(), 0..3_u8, 0..3_u8).prop_map(|(kind, namespace, number, parent, a, b)| {
        let (version, kind, letter, names) = kind;
        format!(
            "apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: {letter}{number}, namespace: {namespace}}}\n\
             spec:{names}\n  parentRefs: [{{kind: Service, name: s{a}, namespace: {parent}}}]\n  rules:\n  - backendRefs:\n    \
             - {{name: s{b}, namespace: one, port: 5432}}\n    - {{name: s{a}, namespace: two, port: 5432, weight: 3}}\n"
        )
    })
}

fn slice() -> impl Strategy<Value = String> {
    let conditions = prop::sample::select(vec!["{}", "{ready: false}", "{ready: false, terminating: true}"]);
    let sidecars = prop::sample::select(vec!["{}", "{remora.dev/sidecars: none}"]);
    // Where nobody is, and where a workload may be.
    let net = || prop::sample::select(vec!["10.2.0", "10.0.0"]);
    // Workloads may have the last one besides their own.
    let last = prop::sample::select(vec![0, 1, 9]);
    let parts = (namespace(), 0..2_u8, 0..3_u8, 0..5_u8, conditions, sidecars, (net(), net(), last));
    parts.prop_map(|(namespace, number, service, target, conditions, sidecars, (named, net, last))| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: e{number}, namespace: {namespace}, labels: {{kubernetes.io/service-name: s{service}}}, annotations: {sidecars}}}\n\
             addressType: IPv4\nports: [{{name: http, port: 8081}}, {{name: db, port: 5433}}]\nendpoints:\n\
             - {{addresses: [{named}.{target}], conditions: {conditions}, targetRef: {{kind: Pod, name: w{target}}}}}\n\
             - {{addresses: [{net}.{last}], zone: z{number}}}\n"
        )
    })
}

fn grant() -> impl Strategy<Value = String> {
    let kind = prop::sample::select(vec![
        ("gateway.networking.k8s.io", "HTTPRoute"),
        ("gateway.networking.k8s.io", "GRPCRoute"),
        ("gateway.networking.k8s.io", "TCPRoute"),
        ("gateway.networking.k8s.io", "TLSRoute"),
        ("remora.dev", "AuthorizationPolicy"),
        ("remora.dev", "TrafficPolicy"),
        ("remora.dev", "RateLimitPolicy"),
    ]);
    let to = prop::sample::select(vec!["", ", name: s0"]);
    (namespace(), namespace(), kind, to, 0..2_u8).prop_map(|(namespace, from, (group, kind), to, number)| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: y{number}, namespace: {namespace}}}\n\
             spec: {{from: [{{group: {group}, kind: {kind}, namespace: {from}}}], to: [{{group: '', kind: Service{to}}}]}}\n"
        )
    })
}

fn policy() -> impl Strategy<Value = String> {
    let what = prop::sample::select(vec![
        ("TrafficPolicy", 'p', "retries: {num: 0}"),
        ("TrafficPolicy", 'p', "loadBalancing: Random"),
        (
            "TrafficPolicy",
            'p',
            "retries: {retryOn: [5xx], allMethods: true, budget: {minPerSecond: 3, interval: 1s}}",
        ),
        ("TrafficPolicy", 'p', "loadBalancing: {policy: PeakEwma, decay: 5s, panicThreshold: 0}"),
        ("TrafficPolicy", 'p', "outlierDetection: {enabled: false}"),
        (
            "TrafficPolicy",
            'p',
            "circuitBreaker: {fallback: {backendRef: {name: s0, namespace: two, port: 8080}}}",
        ),
        (
            "TrafficPolicy",
            'p',
            "circuitBreaker: {}, healthChecks: [{http: {path: /}}, {port: 5432, tcp: {}}]",
        ),
        (
            "TrafficPolicy",
            'p',
            "loadBalancing: {policy: Maglev, hashOn: [{sourceIp: true}], session: {header: x-place}}",
        ),
        ("AuthenticationPolicy", 'a', "mtls: {mode: Disabled}"),
        ("AuthenticationPolicy", 'a', "mtls: {mode: Strict}"),
        ("RateLimitPolicy", 'm', "limits: [{requests: 1, per: 1s, by: [{client: true}]}]"),
        ("RateLimitPolicy", 'm', "limits: [{scope: Mesh, requests: 9, per: 1s}]"),
        (
            "RateLimitPolicy",
            'm',
            "global: {backendRef: {name: s0, namespace: two, port: 9090}, domain: d, descriptors: [{entries: [{key: a, value: b}]}]}",
        ),
        ("FaultPolicy", 'f', "faults: [{delay: {fixedDelay: 1s, percentage: 1}}]"),
        (
            "AuthorizationPolicy",
            'z',
            "action: Custom, rules: [{}], provider: {protocol: HTTP, backendRef: {name: s1, port: 8080}}",
        ),
        (
            "AuthorizationPolicy",
            'z',
            "action: Custom, rules: [{to: [{operation: {paths: [/x]}}]}], \
             provider: {protocol: GRPC, backendRef: {name: s0, namespace: two, port: 9090}}",
        ),
    ]);
    (namespace(), 0..2_u8, 0..3_u8, what).prop_map(|(namespace, number, target, (kind, letter, what))| {
        // What Services keep together.
        let shared = if what.contains("Mesh") && target != 0 { ", {name: s0}" } else { "" };
        let targets = format!("{{name: s{target}}}{shared}");
        format!(
            "apiVersion: remora.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {letter}{number}, namespace: {namespace}}}\n\
             spec: {{targetRefs: [{targets}], {what}}}\n"
        )
    })
}

fn edit() -> impl Strategy<Value = Edit> {
    let health = prop::sample::select(vec![Health::Ready, Health::Draining, Health::Dead, Health::Absent]);
    let remove = prop::sample::select(vec![
        (Kind::Service, "s"),
        (Kind::Workload, "w"),
        (Kind::HttpRoute, "r"),
        (Kind::TrafficPolicy, "p"),
        (Kind::AuthenticationPolicy, "a"),
        (Kind::AuthorizationPolicy, "z"),
        (Kind::RateLimitPolicy, "m"),
        (Kind::FaultPolicy, "f"),
        (Kind::GrpcRoute, "g"),
        (Kind::TcpRoute, "t"),
        (Kind::TlsRoute, "l"),
        (Kind::EndpointSlice, "e"),
        (Kind::ReferenceGrant, "y"),
    ]);
    prop_oneof![
        3 => service().prop_map(Edit::Put),
        3 => workload().prop_map(Edit::Put),
        3 => route().prop_map(Edit::Put),
        2 => policy().prop_map(Edit::Put),
        2 => grpc_route().prop_map(Edit::Put),
        2 => tcp_route().prop_map(Edit::Put),
        2 => slice().prop_map(Edit::Put),
        2 => grant().prop_map(Edit::Put),
        3 => (workload(), health, prop::option::of(0..3_u8), any::<bool>()).prop_map(|(text, health, service, reported)| {
            Edit::Register { text, health, service: service.map(|number| format!("s{number}")), reported }
        }),
        3 => (remove, namespace(), 0..4_u8).prop_map(|((kind, letter), namespace, number)| {
            Edit::Remove(kind, namespace, format!("{letter}{number}"))
        }),
        1 => (namespace(), 0..4_u8).prop_map(|(namespace, number)| Edit::Deregister(namespace, format!("w{number}"))),
        1 => (namespace(), 0..4_u8, any::<bool>()).prop_map(|(namespace, number, documented)| {
            Edit::Unreadable(namespace, format!("w{number}"), documented)
        }),
    ]
}

fn requests() -> Vec<NodeRequest> {
    let mut all = Vec::new();
    for namespace in NAMESPACES {
        all.push(NodeRequest::new(NodeKind::Proxy, namespace));
        let mut grpc = NodeRequest::new(NodeKind::Grpc, namespace);
        grpc.wanted = ["s0", "s1.two", "s2.one.svc.cluster.local:9090"].map(Into::into).into();
        all.push(grpc);
        for number in 0..4 {
            let name = format!("w{number}");
            let request = NodeRequest::new(NodeKind::Sidecar, namespace).with_workload(name);
            let intercepted = Some(vec!["fd00::2".parse().unwrap()]);
            all.push(NodeRequest { intercepted, captures_dns: true, ..request.clone() });
            all.push(request);
        }
    }
    all
}

fn services() -> impl Iterator<Item = Name> {
    NAMESPACES.into_iter().flat_map(|namespace| (0..3).map(move |n| Name::new(namespace, &format!("s{n}"))))
}

/// Whether what `touched` says explains every difference between two states of a node.
fn explained(request: &NodeRequest, old: &NodeResources, touched: &remora_mesh::Touched) -> bool {
    let own = request.workload.as_ref().map(|name| Name::new(&request.namespace, name));
    own.is_some_and(|name| touched.workloads.contains(&name))
        || old.whole_mesh && !touched.namespaces.is_empty()
        || old.whole_namespace && touched.namespaces.contains(request.namespace.as_str())
        || old.services.iter().any(|name| touched.services.contains(name) || touched.endpoints.contains(name))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn step_by_step_is_afresh(edits in prop::collection::vec(edit(), 1..50)) {
        let schema = Schema::load();
        let mut compiler = Compiler::new(Mesh::default(), profile());
        for edit in &edits {
            let before: Vec<_> = requests().into_iter().map(|r| (compiler.node(&r), r)).collect();
            let old: Vec<_> = services().map(|name| (compiler.resources(&name).cloned(), name)).collect();
            let touched = compiler.apply([change(edit)]);

            let fresh = Compiler::new(compiler.mesh().clone(), profile());
            for (old, name) in old {
                let new = compiler.resources(&name);
                prop_assert_eq!(new, fresh.resources(&name), "{} after {:?}", name, edit);
                let untouched = !touched.services.contains(&name) && !touched.endpoints.contains(&name);
                prop_assert!(!untouched || old.as_ref() == new, "{name} changed untold by {edit:?}");
            }
            for (old, request) in before {
                let new = compiler.node(&request);
                prop_assert_eq!(&new, &fresh.node(&request));
                if let (Ok(old), Ok(new)) = (&old, &new) {
                    let told = old == new || explained(&request, old, &touched);
                    prop_assert!(told, "{request:?} changed untold by {edit:?}: {touched:?}");
                }
                for resource in new.iter().flat_map(|new| new.listeners.values().chain(new.routes.values())
                    .chain(new.clusters.values()).chain(new.endpoints.values())) {
                    let checked = request.kind == NodeKind::Grpc || schema.check_any(&resource.body, &resource.name).is_ok();
                    prop_assert!(checked, "{}: {:?}", resource.name, schema.check_any(&resource.body, ""));
                    prop_assert!(!resource.documents.is_empty());
                }
            }
        }
    }
}

#[test]
fn the_same_documents_give_the_same_bytes_each_time() {
    let mut texts = vec![
        "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {selector: {app: s}, ports: [{name: http, port: 8080}]}\n".to_owned(),
        "apiVersion: remora.dev/v1alpha1\nkind: Workload\nmetadata: {name: w, labels: {app: s}}\nspec: {address: 10.0.0.1, ports: [{port: 8080}]}\n".to_owned(),
        "apiVersion: remora.dev/v1alpha1\nkind: AuthenticationPolicy\nmetadata: {name: tokens}\nspec: {targetRefs: [{name: s}], jwtRules: [\
         {issuer: a, jwks: '{\"keys\":[]}'}, {issuer: b, jwks: '{\"keys\":[]}'}, {issuer: c, jwks: '{\"keys\":[]}'}]}\n".to_owned(),
    ];
    texts.extend(["x", "y", "z"].map(|name| {
        format!(
            "apiVersion: remora.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\n\
         spec: {{targetRefs: [{{name: s}}], rules: [{{to: [{{operation: {{paths: [/{name}]}}}}]}}]}}\n"
        )
    }));
    let compile = || {
        let mut compiler = Compiler::new(Mesh::default(), profile());
        compiler.apply(texts.iter().map(|text| Change::Put(document(text))));
        compiler.node(&NodeRequest::new(NodeKind::Sidecar, "default").with_workload("w".into())).unwrap()
    };
    let first = compile();
    for _ in 0..20 {
        assert_eq!(first, compile());
    }
}

/// A mesh of `services` Services with ten instances each.
fn large(services: usize) -> Mesh {
    let mut mesh = Mesh::default();
    for number in 0..services {
        mesh.apply(Change::Put(document(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}}}\nspec: {{selector: {{app: s{number}}}, ports: [{{name: http, port: 8080}}]}}\n"
        ))));
        for instance in 0..10 {
            mesh.apply(registration(number, instance, Health::Ready));
        }
    }
    mesh
}

fn registration(service: usize, instance: usize, health: Health) -> Change {
    let text = format!(
        "apiVersion: remora.dev/v1alpha1\nkind: Workload\nmetadata: {{name: s{service}-{instance}, labels: {{app: s{service}, mesh: x}}}}\n\
         spec: {{address: 10.{}.{}.{instance}, ports: [{{port: 8080}}], egress: []}}\n",
        service / 250,
        service % 250
    );
    let AnyDocument::Workload(workload) = document(&text) else { unreachable!("a Workload") };
    Change::Register(Arc::new(Instance { workload, health, services: Vec::new(), reported: false }))
}

#[test]
fn a_change_of_endpoints_compiles_one_assignment_and_nothing_else() {
    let mut compiler = Compiler::new(large(100), profile());
    let name = Name::new("default", "s42");
    let old = compiler.resources(&name).unwrap().clone();
    let touched = compiler.apply([registration(42, 3, Health::Draining)]);
    assert_eq!(touched.endpoints, BTreeSet::from([name.clone()]));
    assert!(touched.services.is_empty() && touched.workloads.is_empty() && touched.namespaces.is_empty());
    let new = compiler.resources(&name).unwrap();
    assert!(Arc::ptr_eq(&old.ports[0].cluster, &new.ports[0].cluster));
    assert!(Arc::ptr_eq(&old.ports[0].producer.listener, &new.ports[0].producer.listener));
    assert_ne!(old.ports[0].endpoints, new.ports[0].endpoints);
}

/// `cargo test -p remora-mesh --release --test incremental -- --ignored --nocapture`
#[test]
#[ignore = "a measurement: cargo test --release -p remora-mesh --test incremental -- --ignored --nocapture"]
fn cost_of_ten_thousand_endpoints() {
    let time = std::time::SystemTime::now;
    let began = time();
    let mesh = large(1000);
    println!("index 1,000 services, 10,000 instances: {:?}", began.elapsed().unwrap());
    let began = time();
    let mut compiler = Compiler::new(mesh, profile());
    println!("compile all: {:?}", began.elapsed().unwrap());
    let changes: Vec<_> = (0..1000).map(|n| registration(n, 3, Health::Draining)).collect();
    let began = time();
    for change in changes {
        compiler.apply([change]);
    }
    println!("a change of endpoints: {:?}", began.elapsed().unwrap() / 1000);
    let began = time();
    let copy = compiler.mesh().clone();
    println!("a copy of the mesh: {:?}", began.elapsed().unwrap());
    drop(copy);
}
