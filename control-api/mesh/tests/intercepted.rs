//! What a sidecar gets whose traffic rules of its network namespace lead to it.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support {
    pub(crate) mod profile;
}

use std::net::IpAddr;
use std::sync::Arc;

use remora_mesh::{
    AnyDocument, Change, Compiler, Documents, Health, Instance, Mesh, Name, NodeKind, NodeRequest,
    NodeResources, OutboundTraffic, Profile,
};
use remora_xds::any;
use remora_xds::pb::envoy::config::cluster::v3::Cluster;
use remora_xds::pb::envoy::config::core::v3::address::Address as Kind;
use remora_xds::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use remora_xds::pb::envoy::config::core::v3::{Address, Node};
use remora_xds::pb::envoy::config::listener::v3::listener_filter::ConfigType;
use remora_xds::pb::envoy::config::listener::v3::{FilterChain, Listener};
use remora_xds::pb::envoy::data::dns::v3::dns_table::DnsVirtualDomain;
use remora_xds::pb::envoy::data::dns::v3::dns_table::dns_endpoint::EndpointConfig;
use remora_xds::pb::envoy::extensions::filters::udp::dns_filter::v3::DnsFilterConfig;
use remora_xds::pb::envoy::extensions::filters::udp::dns_filter::v3::dns_filter_config::server_context_config::ConfigSource;
use support::profile::profile;

/// Services `web` (HTTP) with two VIPs and `db` (TCP) without, in one namespace, and one of another namespace.
fn mesh(policies: &str) -> String {
    let fixed = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7, 'fd00:96::7'], selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: tcp-sql, port: 3306}, {name: http-admin, port: 9000}]}
---
apiVersion: v1
kind: Service
metadata: {name: audit, namespace: office}
spec: {clusterIP: 10.96.0.9, ports: [{name: http, port: 80}]}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {address: 10.244.1.2, ports: [{port: 8080}]}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: db-1, namespace: shop, labels: {app: db}}
spec: {address: 10.244.2.2, ports: [{port: 3306}, {port: 9000}]}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: db-2, namespace: shop, labels: {app: db}}
spec: {address: 10.244.3.2, ports: [{port: 3306}, {port: 9000}]}
---
";
    fixed.to_owned() + policies
}

fn policy(service: &str, said: &str) -> String {
    format!(
        "apiVersion: remora.dev/v1alpha1\nkind: AuthenticationPolicy\nmetadata: {{name: {service}, namespace: shop}}\n\
         spec: {{targetRefs: [{{name: {service}}}], {said}}}\n---\n"
    )
}

fn compiler(text: &str, profile: Profile) -> Compiler {
    Compiler::new(Mesh::from(&Documents::read_alone([("mesh.yaml", text)]).unwrap()), profile)
}

fn request(workload: &str, addresses: &[&str]) -> NodeRequest {
    let addresses: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
    let mut request = NodeRequest::new(NodeKind::Sidecar, "shop").with_workload(workload.into());
    request.intercepted = Some(addresses);
    request
}

fn node(policies: &str, workload: &str) -> NodeResources {
    compiler(&mesh(policies), profile()).node(&request(workload, &["10.244.2.2", "fd00::2"])).unwrap()
}

fn listener(node: &NodeResources, name: &str) -> Listener {
    any::unpack(&node.listeners[name].body).unwrap()
}

fn at(address: Option<&Address>) -> String {
    let Some(Kind::SocketAddress(at)) = address.and_then(|a| a.address.as_ref()) else {
        panic!("{address:?}")
    };
    let Some(PortSpecifier::PortValue(port)) = at.port_specifier else { panic!("{at:?}") };
    format!("{}|{port}", at.address)
}

fn addresses(listener: &Listener) -> Vec<String> {
    let more = listener.additional_addresses.iter().map(|more| more.address.as_ref());
    std::iter::once(listener.address.as_ref()).chain(more).map(at).collect()
}

/// Name, destination port, transport protocol, whether there is TLS.
fn chains(listener: &Listener) -> Vec<(String, Option<u32>, String, bool)> {
    let shown = |chain: &FilterChain| {
        let found = chain.filter_chain_match.clone().unwrap_or_default();
        let port = found.destination_port.map(|port| port.value);
        (chain.name.clone(), port, found.transport_protocol, chain.transport_socket.is_some())
    };
    listener.filter_chains.iter().map(shown).collect()
}

/// What is wrong with documents.
fn found(text: &str) -> String {
    let (_, findings) = Documents::check([("mesh.yaml", text)]);
    findings.iter().map(|finding| format!("{finding}\n")).collect()
}

/// How long first bytes are waited for, in seconds and nanoseconds.
fn first_bytes(listener: &Listener) -> (i64, i32) {
    listener.listener_filters_timeout.map(|time| (time.seconds, time.nanos)).unwrap()
}

#[test]
fn everything_has_a_listener_by_address() {
    let node = node("", "db-1");
    let names: Vec<_> = node.listeners.keys().map(AsRef::as_ref).collect();
    assert_eq!(
        names,
        [
            "audit.office.svc.cluster.local:80",
            "db.shop.svc.cluster.local:3306/pods",
            "db.shop.svc.cluster.local:9000/pods",
            "virtualInbound",
            "virtualOutbound",
            "web.shop.svc.cluster.local:80",
            "web.shop.svc.cluster.local:80/pods",
        ],
        "VIPs of every namespace, pods by themselves, and its own Service"
    );
    for (name, bound, expected) in [
        ("virtualOutbound", true, ["127.0.0.1|15001", "::1|15001"].as_slice()),
        ("virtualInbound", true, &["0.0.0.0|15006", "::|15006"]),
        ("web.shop.svc.cluster.local:80", false, &["10.96.0.7|80", "fd00:96::7|80"]),
        ("web.shop.svc.cluster.local:80/pods", false, &["10.244.1.2|8080"]),
        ("db.shop.svc.cluster.local:3306/pods", false, &["10.244.2.2|3306", "10.244.3.2|3306"]),
    ] {
        let listener = listener(&node, name);
        assert_eq!(addresses(&listener), expected, "{name}");
        assert_eq!(listener.bind_to_port.is_none_or(|bind| bind.value), bound, "{name}");
    }
    let cluster: Cluster = any::unpack(&node.clusters["pod|3306||db.shop.svc.cluster.local"].body).unwrap();
    let shown = format!("{cluster:?}");
    assert!(shown.contains("upstream_port_override: Some(UInt32Value { value: 15006 })"), "{shown}");
    assert!(node.whole_mesh && !node.whole_namespace);
}

#[test]
fn without_ipv6_nothing_listens_on_it() {
    let compiler = compiler(&mesh(""), profile());
    let node = compiler.node(&request("db-1", &["10.244.2.2"])).unwrap();
    assert_eq!(addresses(&listener(&node, "virtualOutbound")), ["127.0.0.1|15001"]);
    assert_eq!(addresses(&listener(&node, "virtualInbound")), ["0.0.0.0|15006"]);
}

#[test]
fn plaintext_is_told_apart_by_port() {
    let strict = |name: &str| (name.to_owned(), None, String::new(), true);
    let inbound = listener(&node("", "db-1"), "virtualInbound");
    assert_eq!(chains(&inbound), [strict("inbound_3306"), strict("inbound_9000")]);
    assert!(!inbound.continue_on_listener_filters_timeout);

    // Two ports in plaintext, one of them over mTLS too: there is no doubt which is meant.
    let said = policy("db", "portLevelMtls: {3306: {mode: Disabled}, 9000: {mode: Permissive}}");
    let inbound = listener(&node(&said, "db-1"), "virtualInbound");
    let found = chains(&inbound);
    let expected = [
        strict("inbound_9000"),
        ("inbound_3306_plaintext".to_owned(), Some(3306), String::new(), false),
        ("inbound_9000_direct".to_owned(), Some(9000), String::new(), true),
        ("inbound_9000_plaintext".to_owned(), Some(9000), "raw_buffer".to_owned(), false),
    ];
    assert_eq!(found, expected);
    // Where nobody may speak TLS to the sidecar, nobody waits for a client that lets the server speak first.
    let inspector = inbound.listener_filters.iter().find(|f| f.name.ends_with("tls_inspector")).unwrap();
    assert!(format!("{:?}", inspector.filter_disabled).contains("start: 3306, end: 3307"), "{inspector:?}");
    assert!(inbound.continue_on_listener_filters_timeout);
    // In HTTP the client begins.
    assert_eq!(first_bytes(&inbound), (10, 0));

    // What is TCP to us may be the program's own TLS.
    let said = policy("db", "portLevelMtls: {3306: {mode: Permissive}}");
    let inbound = listener(&node(&said, "db-1"), "virtualInbound");
    assert_eq!(first_bytes(&inbound), (0, 200_000_000), "the program may speak first");
    let found = chains(&inbound);
    assert!(
        found.contains(&("inbound_3306_plaintext".to_owned(), Some(3306), String::new(), false)),
        "{found:?}"
    );
}

#[test]
fn calls_to_programs_without_mtls_go_to_them() {
    let said = policy("db", "portLevelMtls: {3306: {mode: Disabled}}");
    let node = node(&said, "web-1");
    let cluster: Cluster = any::unpack(&node.clusters["pod|3306||db.shop.svc.cluster.local"].body).unwrap();
    assert!(cluster.transport_socket.is_none() && cluster.lb_config.is_none(), "{cluster:?}");
}

#[test]
fn others_go_on_or_are_closed() {
    for (said, last) in [
        (OutboundTraffic::AllowAny, "PassthroughCluster"),
        (OutboundTraffic::RegistryOnly, "BlackHoleCluster"),
    ] {
        let compiler = compiler(&mesh(""), Profile { outbound_traffic: said, ..profile() });
        let node = compiler.node(&request("db-1", &[])).unwrap();
        let outbound = listener(&node, "virtualOutbound");
        let chain = outbound.filter_chains.last().unwrap();
        assert!(format!("{:?}", chain.filters).contains("tcp_proxy"), "{chain:?}");
        let remora_xds::pb::envoy::config::listener::v3::filter::ConfigType::TypedConfig(config) =
            chain.filters[0].config_type.as_ref().unwrap()
        else {
            panic!("{chain:?}");
        };
        assert!(remora_xds::Schema::load().any_to_yaml(config).contains(&format!("cluster: {last}")));
        assert!(node.clusters.contains_key(last));
    }
}

#[test]
fn egress_makes_it_less() {
    let caller = "apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: caller, namespace: shop}
spec: {address: 10.244.1.9, egress: [{service: web}]}
---
";
    let node = node(caller, "caller");
    let names: Vec<_> = node.listeners.keys().map(AsRef::as_ref).collect();
    assert_eq!(
        names,
        [
            "virtualInbound",
            "virtualOutbound",
            "web.shop.svc.cluster.local:80",
            "web.shop.svc.cluster.local:80/pods"
        ]
    );
    assert!(!node.whole_mesh);
}

#[test]
fn a_pod_that_comes_is_in_the_listener_of_pods() {
    let mut compiler = compiler(&mesh(""), profile());
    let name = Name::new("shop", "db");
    let before: Vec<_> = compiler.pods(&name).map(|(_, listener)| listener.cloned()).collect();
    let more = "apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: db-3, namespace: shop, labels: {app: db}}
spec: {address: 10.244.3.3, ports: [{port: 3306}]}
";
    let documents = Documents::read_alone([("more.yaml", more)]).unwrap();
    compiler.apply(documents.iter().map(Change::Put));
    let after: Vec<_> = compiler.pods(&name).collect();
    assert_eq!(after[0].0, "db.shop.svc.cluster.local:3306/pods");
    let changed: Listener = any::unpack(&after[0].1.unwrap().body).unwrap();
    assert_eq!(addresses(&changed).last().unwrap(), "10.244.3.3|3306");
    assert_ne!(after[0].1, before[0].as_ref());
}

#[test]
fn a_pod_is_known_by_each_of_its_addresses() {
    let mut compiler = compiler(&mesh(""), profile());
    let name = Name::new("shop", "db");
    let before = compiler.pods(&name).next().unwrap().1.cloned();
    // The second is the first once more, as IPv6 has it.
    let more = "apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: db-2, namespace: shop, labels: {app: db}}
spec: {address: 10.244.3.2, addresses: [10.244.3.2, '::ffff:10.244.3.2', 'fd00:244:3::2'], ports: [{port: 3306}, {port: 9000}]}
";
    let documents = Documents::read_alone([("more.yaml", more)]).unwrap();
    compiler.apply(documents.iter().map(Change::Put));
    assert_ne!(compiler.pods(&name).next().unwrap().1.cloned(), before);
    let node = compiler.node(&request("web-1", &[])).unwrap();
    for (listened, number) in
        [("db.shop.svc.cluster.local:3306/pods", 3306), ("db.shop.svc.cluster.local:9000/pods", 9000)]
    {
        let expected = ["10.244.2.2", "10.244.3.2", "fd00:244:3::2"].map(|ip| format!("{ip}|{number}"));
        assert_eq!(addresses(&listener(&node, listened)), expected);
    }
    // Whoever answers there must be one of the Service, as at the other addresses.
    let cluster: Cluster = any::unpack(&node.clusters["pod|3306||db.shop.svc.cluster.local"].body).unwrap();
    assert!(cluster.transport_socket.is_some() && cluster.lb_config.is_some(), "{cluster:?}");
}

/// Several Services on one port, and plaintext for several ports: without interception neither can be.
#[test]
fn what_only_loopback_cannot_have_is_right_with_interception() {
    let text = |more: &str| {
        let services = [("a", 1, 8080), ("b", 2, 8081)].map(|(name, last, port)| {
            format!(
                "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{clusterIP: 10.96.1.{last}, selector: {{app: x}}, ports: [{{name: http, port: 80, targetPort: {port}}}]}}
---
apiVersion: remora.dev/v1alpha1
kind: AuthenticationPolicy
metadata: {{name: {name}}}
spec: {{targetRefs: [{{name: {name}}}], mtls: {{mode: Permissive}}}}
---
"
            )
        });
        let workloads = format!(
            "apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {{name: w, labels: {{app: x}}}}
spec: {{{more}address: 10.0.0.1, ports: [{{port: 8080}}, {{port: 8081}}]}}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {{name: caller}}
spec: {{{more}address: 10.0.0.2}}
"
        );
        services.concat() + &workloads
    };
    let without = found(&text(""));
    assert!(without.contains("would both be on 127.0.0.1:80"), "{without}");
    assert!(without.contains("plaintext could be for any of 2 ports"), "{without}");
    assert_eq!(found(&text("interception: Redirect, ")), "");

    // Its node has the last word on where it listens.
    let text = text("interception: Redirect, ");
    let compiler = compiler(&text, profile());
    let mut request = NodeRequest::new(NodeKind::Sidecar, "default").with_workload("caller".into());
    let said = |request: &NodeRequest| {
        let problems = compiler.node(request).unwrap().problems;
        problems.into_iter().filter(|problem| problem.message.contains("INTERCEPTION_MODE")).count()
    };
    assert_eq!(said(&request), 1);
    request.intercepted = Some(Vec::new());
    assert_eq!(said(&request), 0);
}

#[test]
fn addresses_of_workloads_are_of_one_machine() {
    for bad in ["0.0.0.0", "'::'", "224.0.0.1"] {
        let text = format!(
            "apiVersion: remora.dev/v1alpha1\nkind: Workload\nmetadata: {{name: w}}\nspec: {{address: 10.0.0.1, addresses: [{bad}]}}\n"
        );
        let shown = found(&text);
        assert!(
            shown.contains("spec.addresses[0]") && shown.contains("is no address of one machine"),
            "{shown}"
        );
    }
}

#[test]
fn a_pod_that_is_not_ready_is_called_over_mtls_too() {
    let mut compiler = compiler(&mesh(""), profile());
    let text = "apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: db-4, namespace: shop, labels: {app: db}}
spec: {address: 10.244.3.4, ports: [{port: 3306}]}
";
    let documents = Documents::read_alone([("pod.yaml", text)]).unwrap();
    let AnyDocument::Workload(workload) = documents.iter().next().unwrap() else { panic!("{text}") };
    for health in [Health::Absent, Health::Dead] {
        let instance = Instance { workload: workload.clone(), health, services: Vec::new(), reported: false };
        compiler.apply([Change::Register(Arc::new(instance))]);
        let node = compiler.node(&request("web-1", &[])).unwrap();
        let found = addresses(&listener(&node, "db.shop.svc.cluster.local:3306/pods"));
        assert!(found.contains(&"10.244.3.4|3306".to_owned()), "{health:?}: {found:?}");
    }
}

/// The names that a node's DNS listener answers, with their addresses, and where it listens.
fn dns(node: &NodeResources) -> (Vec<String>, Vec<String>) {
    let listener = listener(node, "dns");
    let Some(ConfigType::TypedConfig(filter)) = &listener.listener_filters[0].config_type else { panic!() };
    let filter: DnsFilterConfig = any::unpack(filter).unwrap();
    let Some(ConfigSource::InlineDnsTable(table)) = filter.server_config.unwrap().config_source else {
        panic!()
    };
    let shown = |domain: &DnsVirtualDomain| {
        let endpoint = domain.endpoint.clone().unwrap().endpoint_config;
        let Some(EndpointConfig::AddressList(list)) = &endpoint else { panic!("{endpoint:?}") };
        format!("{} {}", domain.name, list.address.join(" "))
    };
    (table.virtual_domains.iter().map(shown).collect(), addresses(&listener))
}

#[test]
fn a_node_that_captures_dns_answers_names_of_services_with_addresses() {
    assert!(!node("", "db-1").listeners.contains_key("dns"));
    let compiler = compiler(&mesh(""), profile());
    let mut request = request("db-1", &["10.244.2.2", "fd00::2"]);
    request.captures_dns = true;
    let (names, at) = dns(&compiler.node(&request).unwrap());
    assert_eq!(
        names,
        ["audit.office.svc.cluster.local 10.96.0.9", "web.shop.svc.cluster.local 10.96.0.7 fd00:96::7",]
    );
    assert_eq!(at, ["127.0.0.1|15053", "::1|15053"]);
    request.intercepted = Some(vec!["10.244.2.2".parse().unwrap()]);
    assert_eq!(dns(&compiler.node(&request).unwrap()).1, ["127.0.0.1|15053"]);
    // Without rules nobody comes there.
    request.intercepted = None;
    assert!(!compiler.node(&request).unwrap().listeners.contains_key("dns"));
}

/// Whatever the mode, the chains are the same: what differs is whose address the program sees.
#[test]
fn a_node_that_shows_clients_has_a_transparent_listener() {
    let compiler = compiler(&mesh(""), profile());
    let by_redirect = request("web-1", &["10.244.1.2", "fd00::2"]);
    let by_tproxy = NodeRequest { shows_clients: true, ..by_redirect.clone() };
    let inbound = |request: &NodeRequest| listener(&compiler.node(request).unwrap(), "virtualInbound");
    let (redirect, tproxy) = (inbound(&by_redirect), inbound(&by_tproxy));
    let names = |listener: &Listener| {
        listener.listener_filters.iter().map(|filter| filter.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(redirect.transparent, None);
    assert_eq!(tproxy.transparent.map(|flag| flag.value), Some(true));
    let [src, dst, tls] = ["original_src", "original_dst", "tls_inspector"]
        .map(|name| format!("envoy.filters.listener.{name}"));
    assert_eq!(names(&redirect), [dst.clone(), tls.clone()]);
    assert_eq!(names(&tproxy), [dst, src, tls]);
    let filters = redirect.listener_filters.clone();
    assert_eq!(Listener { transparent: None, listener_filters: filters, ..tproxy }, redirect);
}

#[test]
fn a_node_says_that_it_is_intercepted() {
    use remora_xds::pb::google::protobuf::value::Kind as Value;
    let text =
        |text: &str| remora_xds::pb::google::protobuf::Value { kind: Some(Value::StringValue(text.into())) };
    let said = |metadata: &[(&str, &str)]| {
        let node = Node {
            id: "sidecar~10.244.1.2~web-1.shop~shop.svc".into(),
            metadata: Some(remora_xds::pb::google::protobuf::Struct {
                fields: metadata.iter().map(|(name, value)| ((*name).to_owned(), text(value))).collect(),
            }),
            ..Node::default()
        };
        let request = NodeRequest::of(&node).unwrap();
        assert_eq!(request.shows_clients, metadata.contains(&("INTERCEPTION_MODE", "TPROXY")));
        assert_eq!(request.captures_dns, metadata.contains(&("DNS_CAPTURE", "true")));
        request.intercepted
    };
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(said(&[]), None);
    assert_eq!(said(&[("INTERCEPTION_MODE", "NONE")]), None);
    for mode in ["REDIRECT", "TPROXY"] {
        assert_eq!(said(&[("INTERCEPTION_MODE", mode)]), Some(vec![ip("10.244.1.2")]), "{mode}");
    }
    let both =
        [("INTERCEPTION_MODE", "REDIRECT"), ("INSTANCE_IPS", "10.244.1.2,fd00::2"), ("DNS_CAPTURE", "true")];
    let both = said(&both).unwrap();
    assert!(both.contains(&ip("fd00::2")) && both.contains(&ip("10.244.1.2")), "{both:?}");
}

#[test]
fn addresses_of_services_are_addresses() {
    for bad in ["10.96.0", "127.0.0.1", "0.0.0.0", "web"] {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{clusterIP: '{bad}', ports: [{{port: 80}}]}}\n"
        );
        let refused = Documents::read_alone([("mesh.yaml", text.as_str())]).unwrap_err();
        assert!(format!("{refused:?}").contains("no address of a Service"), "{refused:?}");
    }
}
