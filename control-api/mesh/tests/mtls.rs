//! mTLS of Services and of their ports: whom plaintext is taken from.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support {
    pub(crate) mod compiled;
    pub(crate) mod profile;
}

use std::sync::Arc;

use remora_mesh::{AnyDocument, Change, Compiler, Documents, Health, Instance, Key, Kind, Name};
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

/// Whether calls to that Service are made over mTLS.
fn is_strict(compiler: &Compiler, service: &str) -> bool {
    let service = compiler.resources(&Name::new("default", service)).unwrap();
    shown([&service.ports[0].cluster]).contains("transport_socket")
}

/// One that stands for a policy of which nobody here can say which Services it is for.
#[test]
fn a_policy_whose_targets_cannot_be_read_is_for_all_services_of_its_namespace() {
    let read = |kind: &str| {
        let text = format!(
            "apiVersion: remora.dev/v1alpha1
kind: {kind}
metadata: {{name: guard}}
spec: {{targetRefs: []}}
"
        );
        Documents::read_alone([("guard.yaml", &*text)]).unwrap().iter().next().unwrap()
    };
    let AnyDocument::AuthenticationPolicy(mut nobody) = read("AuthenticationPolicy") else { panic!() };
    let spec = &mut Arc::make_mut(&mut nobody).spec;
    (spec.unreadable, spec.of_all) = (true, true);
    let AnyDocument::AuthorizationPolicy(mut denies) = read("AuthorizationPolicy") else { panic!() };
    Arc::make_mut(&mut denies).spec.all_but = Some(vec!["spared".into()]);
    let mut compiler = compiler(PLAIN);
    for (policy, spares) in
        [(AnyDocument::AuthenticationPolicy(nobody), false), (AnyDocument::AuthorizationPolicy(denies), true)]
    {
        let key = policy.key();
        compiler.apply([Change::Put(policy)]);
        assert!(is_strict(&compiler, "dns"), "{key}");
        // Services that come later are no others.
        for (name, strict) in [("late", true), ("spared", !spares)] {
            put(&mut compiler, &PLAIN.replace("dns", name));
            assert_eq!(is_strict(&compiler, name), strict, "{key} {name}");
        }
        compiler.apply([Change::Remove(key)]);
        for name in ["dns", "late", "spared"] {
            assert!(!is_strict(&compiler, name), "{name}");
            if name != "dns" {
                compiler.apply([Change::Remove(Key::new(Kind::Service, Name::new("default", name)))]);
            }
        }
    }
}

/// However old it is: it may be about others only.
#[test]
fn a_policy_whose_targets_cannot_be_read_leaves_services_that_have_one_alone() {
    let mut compiler = compiler(&two(PERMISSIVE_WEB, PERMISSIVE_WEB));
    let text = "apiVersion: remora.dev/v1alpha1
kind: AuthenticationPolicy
metadata: {name: guard, creationTimestamp: 2020-01-01T00:00:00Z}
spec: {targetRefs: []}
";
    let AnyDocument::AuthenticationPolicy(mut nobody) =
        Documents::read_alone([("guard.yaml", text)]).unwrap().iter().next().unwrap()
    else {
        panic!()
    };
    let spec = &mut Arc::make_mut(&mut nobody).spec;
    (spec.unreadable, spec.of_all) = (true, true);
    compiler.apply([Change::Put(AnyDocument::AuthenticationPolicy(nobody))]);
    let inbound = |compiler: &Compiler| {
        Schema::load().any_to_yaml(&sidecar(compiler, "default", "w").listeners["inbound"].body)
    };
    assert!(!inbound(&compiler).contains("unreadable"));
    compiler.apply([Change::Remove(Key::new(Kind::AuthenticationPolicy, Name::new("default", "b")))]);
    let text = inbound(&compiler);
    assert!(text.contains("default/guard:unreadable") && !text.contains("default/a:"), "{text}");
}

#[test]
fn a_policy_that_denies_all_of_a_namespace_is_enforced_in_front_of_each_program() {
    let mut compiler = compiler(&two(PERMISSIVE_WEB, PERMISSIVE_WEB));
    let text = "apiVersion: remora.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: guard}
spec: {targetRefs: [], action: Deny, rules: [{}]}
";
    let AnyDocument::AuthorizationPolicy(mut policy) =
        Documents::read_alone([("guard.yaml", text)]).unwrap().iter().next().unwrap()
    else {
        panic!()
    };
    let mut inbound = |but: &[&str]| {
        let all_but = but.iter().map(|name| (*name).to_owned()).collect();
        Arc::make_mut(&mut policy).spec.all_but = Some(all_but);
        compiler.apply([Change::Put(AnyDocument::AuthorizationPolicy(Arc::clone(&policy)))]);
        Schema::load().any_to_yaml(&sidecar(&compiler, "default", "w").listeners["inbound"].body)
    };
    // Of HTTP over mTLS and in plaintext, and of the opaque port.
    assert_eq!(inbound(&[]).matches("default/guard:rules[0]").count(), 3);
    assert_eq!(inbound(&["a"]).matches("default/guard:rules[0]").count(), 3, "b is behind the same ports");
    assert_eq!(inbound(&["a", "b"]).matches("default/guard").count(), 0);
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
    let documents = Documents::read([("mesh.yaml", &*foreign)]).unwrap();
    compiler.apply(documents.iter().map(Change::Put));
    let there = cluster(&compiler);
    assert!(there.contains("exact: spiffe://partner.test/ns/default/sa/default"), "{there}");
    assert!(!there.contains("mesh.test"), "{there}");
    let said = found(&foreign.replace("partner.test", "\"Partner.test/x\""));
    assert!(said.contains("spec.trustDomain: is no trust domain"), "{said}");
}

/// A Service with an endpoint that is known to have no sidecar, and one of its own namespace that calls it.
const PLAIN: &str = "apiVersion: v1
kind: Service
metadata: {name: dns}
spec: {selector: {app: dns}, ports: [{name: tcp-dns, port: 53}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns-1, labels: {kubernetes.io/service-name: dns}, annotations: {remora.dev/sidecars: none}}
addressType: IPv4
ports: [{name: tcp-dns, port: 53}]
endpoints: [{addresses: [10.0.0.53], targetRef: {kind: Pod, name: dns-a}}]
";

/// What calls to that Service use, as text.
fn called(compiler: &Compiler) -> String {
    let service = compiler.resources(&Name::new("default", "dns")).unwrap();
    shown([&service.ports[0].cluster, &service.ports[0].endpoints])
}

fn put(compiler: &mut Compiler, text: &str) {
    let documents = Documents::read_alone([("more.yaml", text)]).unwrap();
    compiler.apply(documents.iter().map(Change::Put));
}

/// Whether calls to that Service go to its program; else they go to nobody.
fn plain(compiler: &Compiler) -> bool {
    let text = called(compiler);
    let (tls, address) = (text.contains("transport_socket"), text.contains("10.0.0.53"));
    assert_ne!(tls, address, "its program, or nobody: {text}");
    !tls
}

#[test]
fn a_service_that_is_known_to_have_no_sidecars_is_called_in_plaintext() {
    let mut compiler = compiler(PLAIN);
    assert!(plain(&compiler));

    // Its own policy says otherwise.
    let strict = "apiVersion: remora.dev/v1alpha1
kind: AuthenticationPolicy
metadata: {name: dns}
spec: {targetRefs: [{name: dns}], mtls: {mode: Strict}}
";
    put(&mut compiler, strict);
    assert!(!plain(&compiler));
    let key = Key::new(Kind::AuthenticationPolicy, Name::new("default", "dns"));
    compiler.apply([Change::Remove(key)]);
    assert!(plain(&compiler));

    // Somebody of whom that is not known.
    let unknown = PLAIN.rsplit("---\n").next().unwrap().replace("dns-1", "dns-2");
    put(&mut compiler, &unknown.replace(", annotations: {remora.dev/sidecars: none}", ""));
    assert!(!plain(&compiler));
    // An empty slice says nothing.
    let empty = unknown.replace("[{addresses: [10.0.0.53], targetRef: {kind: Pod, name: dns-a}}]", "[]");
    put(&mut compiler, &empty.replace(", annotations: {remora.dev/sidecars: none}", ""));
    assert!(plain(&compiler));
}

/// Its other slice, with these annotations and endpoints.
fn other_slice(annotations: &str, endpoints: &str) -> String {
    let slice = PLAIN.rsplit("---\n").next().unwrap().replace("dns-1", "dns-2");
    let slice = slice.replace("{remora.dev/sidecars: none}", annotations);
    slice.replace("[{addresses: [10.0.0.53], targetRef: {kind: Pod, name: dns-a}}]", endpoints)
}

#[test]
fn a_slice_that_says_that_there_are_sidecars_ends_plaintext_also_without_endpoints() {
    let mut compiler = compiler(PLAIN);
    for word in ["some", "all"] {
        put(&mut compiler, &other_slice(&format!("{{remora.dev/sidecars: {word}}}"), "[]"));
        assert!(!plain(&compiler), "{word}");
        put(&mut compiler, &other_slice("{}", "[]"));
        assert!(plain(&compiler), "it says nothing any more");
    }
}

/// They are not called, and an instance that is one of them counts.
#[test]
fn endpoints_that_are_not_called_are_not_overlooked() {
    let none = "{remora.dev/sidecars: none}";
    let waits = "[{addresses: [10.0.0.60], conditions: {ready: false}, targetRef: {kind: Pod, name: dns-w}}]";
    let mut compiler = compiler(PLAIN);
    put(&mut compiler, &other_slice(none, waits));
    assert!(plain(&compiler) && !called(&compiler).contains("10.0.0.60"), "{}", called(&compiler));
    let finishes = waits.replace("ready: false", "ready: false, terminating: true");
    put(&mut compiler, &other_slice(none, &finishes));
    assert!(called(&compiler).contains("10.0.0.60"), "that one finishes what it has");
    put(&mut compiler, &other_slice(none, waits));
    // By its address, and by its name.
    for (name, address) in [("vm", "10.0.0.60"), ("dns-w", "10.0.0.61")] {
        let workload = format!(
            "apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {{name: {name}}}
spec: {{address: {address}, ports: [{{port: 53}}]}}
"
        );
        put(&mut compiler, &workload);
        assert!(called(&compiler).contains("transport_socket"), "{name}");
        assert!(!called(&compiler).contains("10.0.0.53"), "{name}");
        compiler.apply([Change::Remove(Key::new(Kind::Workload, Name::new("default", name)))]);
        assert!(plain(&compiler), "{name} has gone");
    }
    // Nobody is called where nobody is ready.
    put(&mut compiler, &other_slice(none, waits).replace("dns-2", "dns-1"));
    assert!(called(&compiler).contains("transport_socket"));
}

#[test]
fn the_first_workload_with_a_sidecar_ends_plaintext() {
    let mut compiler = compiler(PLAIN);
    let workload = "apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: dns-b, labels: {app: dns}}
spec: {address: 10.0.0.54, ports: [{port: 53}]}
";
    let documents = Documents::read_alone([("lease", workload)]).unwrap();
    let workload = Arc::new(documents.workloads[0].clone());
    let mut is = |health| {
        let workload = Arc::clone(&workload);
        compiler.apply([Change::Register(Arc::new(Instance {
            workload,
            health,
            services: Vec::new(),
            reported: false,
        }))]);
        called(&compiler)
    };
    let starts = is(Health::Absent);
    assert!(starts.contains("transport_socket") && !starts.contains("10.0.0."), "{starts}");
    let ready = is(Health::Ready);
    assert!(ready.contains("10.0.0.54") && !ready.contains("10.0.0.53"), "{ready}");
    // That the only one with a sidecar does not answer is no reason to go on without mTLS.
    let fails = is(Health::Absent);
    assert!(fails.contains("transport_socket") && !fails.contains("10.0.0."), "{fails}");
    compiler.apply([Change::Deregister(Name::new("default", "dns-b"))]);
    assert!(!called(&compiler).contains("transport_socket"), "it has gone");
}

/// It may have one, and be behind any of them.
#[test]
fn an_instance_that_cannot_be_read_ends_plaintext_in_its_namespace() {
    let mut compiler = compiler(PLAIN);
    for documented in [true, false] {
        let unreadable = |namespace, name| {
            let touched = Change::Unreadable { name: Name::new(namespace, name), documented };
            [touched]
        };
        compiler.apply(unreadable("elsewhere", "x"));
        assert!(plain(&compiler), "others cannot keep it closed");
        let touched = compiler.apply(unreadable("default", "x"));
        assert!(!plain(&compiler));
        assert!(touched.services.contains(&Name::new("default", "dns")), "{touched:?}");
        compiler.apply(unreadable("default", "y"));
        let gone = |name| {
            let name = Name::new("default", name);
            [if documented {
                Change::Remove(Key::new(Kind::Workload, name))
            } else {
                Change::Deregister(name)
            }]
        };
        compiler.apply(gone("x"));
        assert!(!plain(&compiler), "there is another one");
        let touched = compiler.apply(gone("y"));
        assert!(plain(&compiler));
        assert!(touched.services.contains(&Name::new("default", "dns")), "{touched:?}");
        // Both can be read again, and are somewhere else.
        compiler.apply(unreadable("default", "w"));
        compiler.apply(gone("w"));
        assert!(plain(&compiler));
    }
    compiler.apply([Change::Unreadable { name: Name::new("default", "w"), documented: false }]);
    assert!(!plain(&compiler));
    compiler.apply([at(("default", false), "address: 10.0.0.99")]);
    assert!(plain(&compiler), "it can be read, and is somewhere else");
}

/// Nobody asks it where there is no sidecar.
#[test]
fn a_service_with_an_authorization_policy_is_not_called_in_plaintext() {
    let mut compiler = compiler(PLAIN);
    let policy = "apiVersion: remora.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: dns}
spec: {targetRefs: [{name: dns}], action: Deny, rules: [{}]}
";
    put(&mut compiler, policy);
    assert!(!plain(&compiler));
    put(&mut compiler, &policy.replace("action: Deny", "action: Deny, dryRun: true"));
    assert!(plain(&compiler), "it closes nothing");
    put(&mut compiler, policy);
    assert!(!plain(&compiler));
    put(&mut compiler, &policy.replace("targetRefs: [{name: dns}]", "targetRefs: [{name: other}]"));
    assert!(plain(&compiler), "it is about somebody else");
    put(&mut compiler, policy);
    compiler.apply([Change::Remove(Key::new(Kind::AuthorizationPolicy, Name::new("default", "dns")))]);
    assert!(plain(&compiler));
}

#[test]
fn no_endpoint_where_an_instance_is_has_no_sidecar() {
    nobody_is_there(&PLAIN.replace(", targetRef: {kind: Pod, name: dns-a}", ""));
    // Also where a slice says that it is another one: the address may have been taken over.
    nobody_is_there(PLAIN);
}

/// An instance at an address.
fn at((namespace, reported): (&str, bool), address: &str) -> Change {
    let workload = format!(
        "apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {{name: w, namespace: {namespace}}}
spec: {{{address}, ports: [{{port: 53}}]}}
"
    );
    let documents = Documents::read_alone([("lease", &*workload)]).unwrap();
    let workload = Arc::new(documents.workloads[0].clone());
    Change::Register(Arc::new(Instance { workload, health: Health::Ready, services: Vec::new(), reported }))
}

fn nobody_is_there(documents: &str) {
    for by in [("default", false), ("elsewhere", true)] {
        let mut compiler = compiler(documents);
        assert!(plain(&compiler));
        compiler.apply([at(by, "address: 10.0.0.53")]);
        assert!(!plain(&compiler));
        compiler.apply([at(by, "address: 10.0.0.54")]);
        assert!(plain(&compiler), "it is somewhere else");
        compiler.apply([at(by, "address: 10.0.0.53")]);
        assert!(!plain(&compiler));
        compiler.apply([Change::Deregister(Name::new(by.0, "w"))]);
        assert!(plain(&compiler), "it has gone");
    }
}

#[test]
fn each_address_of_an_instance_is_one_where_it_is() {
    let mut compiler = compiler(PLAIN);
    for spec in [
        "address: 'fd00::53', addresses: [10.0.0.53]",
        "address: 10.0.0.52, addresses: [10.0.0.52, 10.0.0.53]",
        "address: '::ffff:10.0.0.53'",
    ] {
        compiler.apply([at(("default", false), spec)]);
        assert!(!plain(&compiler), "{spec}");
        // Without that one.
        let first = spec.split(", addresses").next().unwrap().replace("53'", "54'");
        compiler.apply([at(("default", false), &first)]);
        assert!(plain(&compiler), "{first}");
    }
}

/// Else everybody who may write in some namespace could keep callers from the Services of all.
#[test]
fn what_people_of_other_namespaces_say_of_an_address_is_nothing() {
    let mut compiler = compiler(PLAIN);
    compiler.apply([at(("elsewhere", false), "address: 10.0.0.53")]);
    assert!(plain(&compiler));
    compiler.apply([at(("elsewhere", true), "address: 10.0.0.53")]);
    assert!(!plain(&compiler), "Kubernetes says so");
    let workload = "apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: w, namespace: elsewhere}
spec: {address: 10.0.0.53, ports: [{port: 53}]}
";
    put(&mut compiler, workload);
    assert!(plain(&compiler), "the document holds before what is registered, and people write it");
}

/// Registered sidecars are in no document, and others may come.
#[test]
fn a_policy_of_a_service_that_seems_to_have_no_sidecars_is_no_mistake() {
    let limits = "---
apiVersion: remora.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: dns}
spec: {targetRefs: [{name: dns}], limits: [{requests: 1, per: 1s}]}
";
    let said = found(&(PLAIN.replace("tcp-dns", "http") + limits));
    assert_eq!(said, "");
}
