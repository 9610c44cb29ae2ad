//! The HTTP proxy that `httpProxy` of a Workload makes of a sidecar, with what the mesh's compiler gives it.

use std::net::SocketAddr;

use remora_mesh::{
    Compiler, Credentials, Documents, Listening, Mesh, NodeKind, NodeRequest, NodeResources, OutboundTraffic,
    Profile,
};
use remora_tests::control_plane::ControlPlane;
use remora_tests::proxy::Proxy;
use remora_tests::resources::under;
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::within;
use remora_xds::pb::envoy::config::cluster::v3::Cluster;
use remora_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use remora_xds::pb::envoy::config::listener::v3::Listener;
use remora_xds::pb::envoy::config::route::v3::RouteConfiguration;
use remora_xds::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use remora_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use remora_xds::{Resource, any};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Two Services of one port that speak HTTP, and one that does not; their programs are called without mTLS.
fn mesh(web: SocketAddr, other: SocketAddr, sql: SocketAddr) -> String {
    let service = |name: &str, port: u16, kind: &str, at: SocketAddr| {
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{selector: {{app: {name}}}, ports: [{{name: {kind}, port: {port}, targetPort: {target}}}]}}
---
apiVersion: remora.dev/v1alpha1
kind: AuthenticationPolicy
metadata: {{name: {name}, namespace: shop}}
spec: {{targetRefs: [{{name: {name}}}], mtls: {{mode: Disabled}}}}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {{name: {name}-1, namespace: shop, labels: {{app: {name}}}}}
spec: {{address: 127.0.0.1, ports: [{{port: {target}}}], egress: []}}
---
",
            target = at.port()
        )
    };
    service("web", 80, "http", web)
        + &service("other", 80, "http", other)
        + &service("sql", 5432, "tcp", sql)
        + "apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: laptop, namespace: shop}
spec: {address: 127.0.0.1, httpProxy: {}}
"
}

fn compiled(text: &str, outbound_traffic: OutboundTraffic) -> NodeResources {
    let (documents, findings) = Documents::check([("mesh.yaml", text)]);
    assert!(findings.is_empty(), "{findings:?}");
    let profile = Profile {
        trust_domain: "mesh.test".into(),
        federated: Vec::new(),
        credentials: Credentials::Issued,
        listening: Listening::Ephemeral,
        ecdh_curves: Vec::new(),
        outbound_traffic,
    };
    let request = NodeRequest::new(NodeKind::Sidecar, "shop").with_workload("laptop".into());
    Compiler::new(Mesh::from(&documents), profile).node(&request).unwrap()
}

/// Makes addresses of loopback those of others: no test may call any other.
fn open_loopback(table: &mut RouteConfiguration) {
    let routes = table.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes);
    for header in routes.filter_map(|route| route.r#match.as_mut()).flat_map(|matched| &mut matched.headers) {
        if let Some(HeaderMatchSpecifier::StringMatch(matcher)) = &mut header.header_match_specifier
            && let Some(MatchPattern::SafeRegex(regex)) = &mut matcher.match_pattern
            && regex.regex.ends_with(":[0-9]{1,5}")
        {
            regex.regex = r"127\.0\.0\.1:[0-9]{1,5}".into();
        }
    }
}

fn served(node: &NodeResources, change: impl Fn(&mut RouteConfiguration)) -> Vec<Resource> {
    let clusters = node.clusters.values().map(|r| Resource::new(&any::unpack::<Cluster>(&r.body).unwrap()));
    let endpoints = node.endpoints.values();
    let endpoints = endpoints.map(|r| Resource::new(&any::unpack::<ClusterLoadAssignment>(&r.body).unwrap()));
    let listeners =
        node.listeners.values().map(|r| Resource::new(&any::unpack::<Listener>(&r.body).unwrap()));
    let routes = node.routes.values();
    let routes = routes.map(|r| {
        let mut table = any::unpack::<RouteConfiguration>(&r.body).unwrap();
        change(&mut table);
        Resource::new(&table)
    });
    clusters.chain(endpoints).chain(listeners).chain(routes).collect()
}

/// A proxy for what `text` says, with addresses of loopback among those of others.
async fn started(text: &str) -> (ControlPlane, Proxy) {
    let plane = ControlPlane::start().await;
    plane.publish(served(&compiled(text, OutboundTraffic::AllowAny), open_loopback));
    let proxy = under(&[plane.address]).start().await;
    (plane, proxy)
}

/// Says `head` to the proxy, and gives all that comes back until it closes.
async fn asked(proxy: &Proxy, head: &str) -> String {
    let mut stream = TcpStream::connect(proxy.address("httpProxy")).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

async fn get(proxy: &Proxy, url: &str) -> String {
    let host = url.trim_start_matches("http://").split('/').next().unwrap();
    asked(proxy, &format!("GET {url} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await
}

async fn connect(proxy: &Proxy, to: &str) -> String {
    asked(proxy, &format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n")).await
}

#[tokio::test]
async fn services_are_called_by_name_and_nothing_on_this_machine_is() {
    let web = Http1Upstream::answering(Answer::ok("from web")).await;
    let other = Http1Upstream::answering(Answer::ok("from other")).await;
    let sql = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let text = mesh(web.address(), other.address(), sql.local_addr().unwrap());
    let plane = ControlPlane::start().await;
    plane.publish(served(&compiled(&text, OutboundTraffic::AllowAny), |_| {}));
    let proxy = under(&[plane.address]).start().await;

    for url in [
        "http://web/a",
        "http://web:80/a",
        "http://web:080/a",
        "http://web.shop.svc.cluster.local/a",
        "http://web.shop.svc.cluster.local.:80/a",
    ] {
        let answer = get(&proxy, url).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("from web"), "{url}: {answer}");
    }
    assert!(get(&proxy, "http://other.shop/").await.ends_with("from other"));
    let target = web.requests()[0].target().to_owned();
    assert_eq!(target, "/a", "a server is asked for a path");

    // It speaks first, and is no HTTP.
    let mut tunnel = TcpStream::connect(proxy.address("httpProxy")).await.unwrap();
    tunnel.write_all(b"CONNECT sql.shop.:05432 HTTP/1.1\r\nHost: sql.shop\r\n\r\n").await.unwrap();
    let (mut server, _) = within("a tunnel", sql.accept()).await.unwrap();
    server.write_all(b"hello").await.unwrap();
    drop(server);
    let mut all = String::new();
    within("the end of a tunnel", tunnel.read_to_string(&mut all)).await.unwrap();
    assert!(all.starts_with("HTTP/1.1 200 ") && all.ends_with("\r\n\r\nhello"), "{all}");

    for (answer, status) in [
        (connect(&proxy, "web:80").await, 405),
        (get(&proxy, "http://sql:5432/").await, 405),
        (connect(&proxy, "elsewhere.example:443").await, 502),
        (get(&proxy, "http://elsewhere.example/").await, 502),
        // Or it would call itself until somebody's files run out.
        (get(&proxy, &format!("http://{}/", proxy.address("httpProxy"))).await, 502),
        (get(&proxy, "http://[::ffff:127.0.0.1]/").await, 502),
        (connect(&proxy, &proxy.address("httpProxy").to_string()).await, 502),
        // It looks like an address, and is none.
        (get(&proxy, "http://299.1.1.1/").await, 503),
    ] {
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
    }
}

#[tokio::test]
async fn others_are_reached_by_address_unless_only_services_may_be() {
    let other = Http1Upstream::answering(Answer::ok("from another")).await;
    let opaque = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, tunnel) = (other.address(), opaque.local_addr().unwrap());
    let text = mesh(([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 1).into());
    let plane = ControlPlane::start().await;
    plane.publish(served(&compiled(&text, OutboundTraffic::AllowAny), open_loopback));
    let open = under(&[plane.address]).start().await;
    // What the client says of the destination is not asked.
    let head = format!(
        "GET http://{address}/a HTTP/1.1\r\nHost: web\r\nX-Envoy-Original-Dst-Host: 127.0.0.1:1\r\nConnection: close\r\n\r\n"
    );
    let answer = asked(&open, &head).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("from another"), "{answer}");
    let request = other.only_request();
    assert_eq!(request.target(), "/a");
    assert_eq!(request.fields().get("host"), Some(&*address.to_string()));
    let greets = tokio::spawn(async move {
        let (mut stream, _) = opaque.accept().await.unwrap();
        stream.write_all(b"hello").await.unwrap();
    });
    let answer = connect(&open, &tunnel.to_string()).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nhello"), "{answer}");
    within("the greeting", greets).await.unwrap();

    let plane = ControlPlane::start().await;
    plane.publish(served(&compiled(&text, OutboundTraffic::RegistryOnly), open_loopback));
    let closed = under(&[plane.address]).start().await;
    for answer in [
        asked(&closed, &head).await,
        connect(&closed, &tunnel.to_string()).await,
        get(&closed, "http://10.0.0.1/").await,
        get(&closed, "http://elsewhere.example/").await,
    ] {
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    }
    assert_eq!(other.requests().len(), 1);
}

/// A program's words to its proxy, and a stranger's to a program's proxy.
#[tokio::test]
async fn credentials_for_a_proxy_go_no_further() {
    let asks = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n";
    let web = Http1Upstream::answering(Answer::raw(asks)).await;
    let address = web.address();
    let (_plane, proxy) = started(&mesh(address, address, address)).await;
    for url in ["http://web/a".to_owned(), format!("http://{address}/a")] {
        let head = format!(
            "GET {url} HTTP/1.1\r\nHost: web\r\nProxy-Authorization: Basic c2VjcmV0\r\nConnection: close\r\n\r\n"
        );
        let answer = asked(&proxy, &head).await.to_lowercase();
        assert!(answer.starts_with("http/1.1 407 ") && !answer.contains("proxy-authenticate:"), "{answer}");
    }
    assert_eq!(web.requests().len(), 2);
    assert!(web.requests().iter().all(|request| !request.fields().has("proxy-authorization")));
}

/// To a stranger `//` need not be `/`.
#[tokio::test]
async fn a_path_is_passed_on_as_it_came() {
    let other = Http1Upstream::answering(Answer::ok("from another")).await;
    let address = other.address();
    let (_plane, proxy) = started(&mesh(address, address, address)).await;
    let path = "/a//b/./c%2Fd/%7Ee";
    let answer = get(&proxy, &format!("http://{address}{path}")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(other.only_request().target(), path);
}
