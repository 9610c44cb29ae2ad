//! The HTTP proxy of a sidecar: what it is asked for by name, and where that leads.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support {
    pub(crate) mod profile;
}

use remora_mesh::{
    Compiler, Documents, Mesh, Name, NodeKind, NodeRequest, NodeResources, OutboundTraffic, Profile,
};
use remora_xds::Schema;
use remora_xds::any;
use remora_xds::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use support::profile::profile;

const EXAMPLE: &str = include_str!("../../../deploy/examples/proxied.yaml");

fn node(text: &str, profile: Profile) -> NodeResources {
    let documents = Documents::read_alone([("mesh.yaml", text)]).unwrap();
    let request = NodeRequest::new(NodeKind::Sidecar, "shop").with_workload("laptop".into());
    Compiler::new(Mesh::from(&documents), profile).node(&request).unwrap()
}

fn table(node: &NodeResources) -> RouteConfiguration {
    any::unpack(&node.routes["httpProxy"].body).unwrap()
}

fn hosts(node: &NodeResources) -> Vec<VirtualHost> {
    table(node).virtual_hosts
}

fn host(node: &NodeResources, name: &str) -> VirtualHost {
    hosts(node).into_iter().find(|host| host.name == name).unwrap()
}

fn found(text: &str) -> String {
    Documents::check([("mesh.yaml", text)]).1.iter().map(|finding| format!("{finding}\n")).collect()
}

/// Clusters of what a host does with CONNECT and with everything else.
fn led(host: &VirtualHost) -> Vec<String> {
    host.routes.iter().map(|route| format!("{route:?}")).collect()
}

#[test]
fn services_of_one_port_are_told_apart_by_name() {
    assert_eq!(found(EXAMPLE), "");
    let node = node(EXAMPLE, profile());
    assert_eq!(node.problems, []);
    let names: Vec<_> = node.listeners.keys().map(AsRef::as_ref).collect();
    assert_eq!(names, ["httpProxy"], "nothing else is on loopback, and nobody calls the laptop");
    assert!(node.whole_mesh && node.services.contains(&Name::new("shop", "ledger")));
    let listener = Schema::load().any_to_yaml(&node.listeners["httpProxy"].body);
    for part in [
        "address: 127.0.0.1",
        "port_value: 15002",
        "codec_type: HTTP1",
        "upgrade_type: CONNECT",
        "strip_trailing_host_dot: true",
        "normalize_path: false",
        "path_with_escaped_slashes_action: KEEP_UNCHANGED",
    ] {
        assert!(listener.contains(part), "{part} in {listener}");
    }
    let catalog = host(&node, "catalog.shop.svc.cluster.local:80");
    for domain in
        ["catalog", "catalog:80", "catalog.shop", "catalog.shop.svc:80", "catalog.shop.svc.cluster.local"]
    {
        assert!(catalog.domains.iter().any(|found| found == domain), "{domain} in {:?}", catalog.domains);
    }
    assert!(led(&catalog)[1].contains("outbound|80||catalog.shop.svc.cluster.local"), "{catalog:?}");
    let pages = host(&node, "pages.shop.svc.cluster.local:80");
    assert!(led(&pages)[1].contains("outbound|80||pages.shop.svc.cluster.local"), "{pages:?}");
    let ledger = host(&node, "ledger.shop.svc.cluster.local:5432");
    assert!(!ledger.domains.contains(&"ledger".to_owned()), "{:?}", ledger.domains);
    let tunnel = &led(&ledger)[0];
    assert!(tunnel.contains("outbound|5432||ledger.shop.svc.cluster.local"), "{tunnel}");
    assert!(tunnel.contains("ConnectConfig"), "{tunnel}");
    for cluster in ["outbound|80||catalog", "outbound|80||pages", "outbound|5432||ledger"] {
        let name = format!("{cluster}.shop.svc.cluster.local");
        assert!(
            node.clusters.contains_key(name.as_str()) && node.endpoints.contains_key(name.as_str()),
            "{name}"
        );
    }
    let table = table(&node);
    assert_eq!(table.request_headers_to_remove, ["proxy-authorization"]);
    assert_eq!(table.response_headers_to_remove, ["proxy-authenticate"]);
    // Routes of Services that no listener names would be waited for in vain.
    assert_eq!(node.routes.len(), 1, "{:?}", node.routes.keys());
}

#[test]
fn routes_and_consumers_hold_through_the_proxy() {
    let more = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec: {parentRefs: [{kind: Service, name: catalog}], rules: [{matches: [{path: {value: /v2}}], backendRefs: [{name: pages, port: 80}], sessionPersistence: {type: Header}}]}
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: t, namespace: shop}
spec: {parentRefs: [{kind: Service, name: ledger}], rules: [{backendRefs: [{name: ledger, port: 5432, weight: 3}, {name: nobody, port: 1, weight: 1}]}]}
";
    let node = node(&format!("{EXAMPLE}{more}"), profile());
    let catalog = host(&node, "catalog.shop.svc.cluster.local:80");
    assert!(format!("{catalog:?}").contains("/v2"), "{catalog:?}");
    assert!(catalog.routes.iter().all(|route| route.typed_per_filter_config.is_empty()), "{catalog:?}");
    let tunnel = led(&host(&node, "ledger.shop.svc.cluster.local:5432")).remove(0);
    assert!(tunnel.contains("BlackHoleCluster") && tunnel.contains("outbound|5432||ledger"), "{tunnel}");
    assert!(node.clusters.contains_key("BlackHoleCluster"));
}

#[test]
fn a_policy_holds_for_tunnels_as_for_connections() {
    let policy = "---
apiVersion: remora.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: slow, namespace: shop}
spec:
  targetRefs: [{name: ledger}]
  timeouts: {idle: 20s}
  retries: {num: 4}
  loadBalancing: {policy: Maglev, hashOn: [{header: x-user}, {sourceIp: true}]}
";
    let plain = node(EXAMPLE, profile());
    let route = |node: &NodeResources| host(node, "ledger.shop.svc.cluster.local:5432").routes.remove(0);
    let said = format!("{:?}", route(&plain));
    assert!(said.contains(", idle_timeout: None") && said.contains("hash_policy: []"), "{said}");
    assert!(said.contains("num_retries: Some(UInt32Value { value: 2 })"), "{said}");

    let node = node(&format!("{EXAMPLE}{policy}"), profile());
    let said = format!("{:?}", route(&node));
    for part in [
        ", idle_timeout: Some(Duration { seconds: 20, nanos: 0 })",
        "num_retries: Some(UInt32Value { value: 4 })",
        "ConnectionProperties(ConnectionProperties { source_ip: true })",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert!(!said.contains("x-user"), "{said}");
    let documents: Vec<_> = node.routes["httpProxy"].documents.iter().map(ToString::to_string).collect();
    assert!(documents.contains(&"TrafficPolicy/shop/slow".to_owned()), "{documents:?}");
}

#[test]
fn egress_makes_it_less_and_chooses_ports_of_loopback() {
    let text = EXAMPLE.replace(
        "httpProxy: {port: 15002}",
        "httpProxy: {}\n  egress: [{service: catalog}, {service: ledger, localPort: 9432}]",
    );
    assert_eq!(found(&text), "");
    let node = node(&text, profile());
    let names: Vec<_> = node.listeners.keys().map(AsRef::as_ref).collect();
    assert_eq!(names, ["httpProxy", "ledger.shop.svc.cluster.local:5432"]);
    assert_eq!(hosts(&node).len(), 3, "catalog, ledger and the others");
    assert!(!node.whole_mesh && !node.whole_namespace);
    let listener = Schema::load().any_to_yaml(&node.listeners["httpProxy"].body);
    assert!(listener.contains("port_value: 15002"), "{listener}");

    let text = text.replace("localPort: 9432", "localPort: 15002");
    assert!(found(&text).contains("would both be on 127.0.0.1:15002"), "{}", found(&text));
}

#[test]
fn nothing_else_is_on_its_port() {
    let at = |port: u16, more: &str| {
        EXAMPLE.replace(
            "httpProxy: {port: 15002}",
            &format!("httpProxy: {{port: {port}}}\n  ports: [{{port: 8080}}]\n{more}"),
        )
    };
    let redirect = "  interception: Redirect\n";
    for (port, more, other) in
        [(8080, "", "the program"), (15006, redirect, "inboundPort"), (15001, redirect, "virtualOutbound")]
    {
        let shown = found(&at(port, more));
        let text = format!("httpProxy and {other} would both be on 127.0.0.1:{port}");
        assert!(shown.contains("spec.httpProxy.port") && shown.contains(&text), "{shown}");
    }
    assert_eq!(found(&at(15001, "")), "");
}

#[test]
fn others_are_reached_by_address_or_not_at_all() {
    let open = node(EXAMPLE, profile());
    let others = host(&open, "others");
    assert_eq!(others.domains, ["*"]);
    let led = led(&others);
    assert!(led[..3].iter().all(|route| route.contains("HttpProxyPassthroughCluster")), "{led:?}");
    assert!(led[3..].iter().all(|route| route.contains("status: 502")), "{led:?}");
    assert!(open.clusters.contains_key("HttpProxyPassthroughCluster"));

    let closed = node(EXAMPLE, Profile { outbound_traffic: OutboundTraffic::RegistryOnly, ..profile() });
    let led = self::led(&host(&closed, "others"));
    assert!(led.iter().all(|route| route.contains("status: 403")), "{led:?}");
    assert!(!closed.clusters.contains_key("HttpProxyPassthroughCluster"));
}
