//! Network namespaces as a pod and as the world around it, the programs in them, and `remora init`.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use remora_tests::config::{Bootstrap, Listener, address, to_cluster};
use remora_tests::netns::{self, Running, Said, runs};
use remora_tests::proxy::binary;
use remora_tests::wait::eventually;
use serde_json::{Value, json};

/// UID of the proxy.
pub(crate) const PROXY: u32 = 1337;

pub(crate) const POD: &str = "10.77.0.2";
pub(crate) const POD6: &str = "[fd77::2]";
pub(crate) const FAR: &str = "10.77.0.1";
pub(crate) const FAR6: &str = "[fd77::1]";
/// A name that the sidecar answers, and its address.
pub(crate) const WEB: &str = "web.shop.svc.cluster.local";
pub(crate) const WEB_VIP: &str = "10.96.0.7";
/// The other address of the world.
pub(crate) const OTHER: &str = "10.77.0.9";

const TOOLS: [&str; 8] =
    ["ip", "nft", "iptables-restore", "ip6tables-restore", "curl", "python3", "setpriv", "unshare"];

/// Says aloud why nothing is tested here, if so.
pub(crate) fn skipped() -> bool {
    netns::skipped("interception", &TOOLS)
}

/// A namespace with what these tests do in one.
#[derive(Debug)]
pub(crate) struct Namespace(netns::Namespace);

impl Deref for Namespace {
    type Target = netns::Namespace;
    fn deref(&self) -> &netns::Namespace {
        &self.0
    }
}

impl Namespace {
    /// The rules without counters: what nft shows of all tables, those of iptables included.
    pub(crate) fn ruleset(&self) -> String {
        self.must("nft -s list ruleset 2>/dev/null")
    }

    /// The rules of iptables, both versions of IP, without counters and dates.
    pub(crate) fn iptables(&self) -> String {
        let all = self.must("iptables-save -t nat; ip6tables-save -t nat");
        let rules = all.lines().filter(|line| line.starts_with("-A") || line.contains("REMORA"));
        rules.map(|line| format!("{line}\n")).collect()
    }

    pub(crate) fn init(&self, line: &str) -> Said {
        let remora = binary().0;
        let mut words = vec![remora.to_str().expect("UTF-8 path"), "init"];
        words.extend(line.split_whitespace());
        self.run(&words)
    }

    /// Runs `remora init`, which has to work; gives its summary.
    pub(crate) fn initialised(&self, line: &str) -> String {
        let said = self.init(line);
        assert_eq!(said.status, 0, "init {line}: {}{}", said.out, said.err);
        said.out
    }

    /// A GET with curl, under the ids that setpriv is given (or none). The head and body of the answer; `error N` with curl's status.
    pub(crate) fn get_as(&self, ids: &[&str], host: &str, port: u16) -> String {
        let url = format!("http://{host}:{port}/");
        let mut words = Vec::new();
        if !ids.is_empty() {
            words.extend(["setpriv", "--clear-groups"]);
            words.extend(ids);
        }
        words.extend(["curl", "-s", "-i", "-m", "5", &url]);
        let said = self.run(&words);
        if said.status == 0 { said.out } else { format!("error {} {}", said.status, said.err) }
    }

    pub(crate) fn get(&self, host: &str, port: u16) -> String {
        self.get_as(&[], host, port)
    }

    /// Starts a server that answers each GET with `name` and the client's address.
    pub(crate) async fn serve(&self, name: &str, port: u16) -> Running {
        let port_text = port.to_string();
        let child = self
            .command(&["python3", "-c", SERVER, &port_text, name])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3");
        eventually(&format!("server {name}"), || self.get("127.0.0.1", port).contains(name)).await;
        child.into()
    }
}

/// Without the look-up of its own name that http.server makes, for which there is no name server here.
const SERVER: &str = r#"
import http.server, socket, socketserver, sys
class Server(socketserver.ThreadingTCPServer):
    address_family, allow_reuse_address, daemon_threads = socket.AF_INET6, True, True
    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{sys.argv[2]} {self.client_address[0]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
Server(("::", int(sys.argv[1])), Handler).serve_forever()
"#;

/// A pod and the world, joined by one cable, with IPv4 and IPv6; the pod's default route is the world.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) pod: Namespace,
    pub(crate) far: Namespace,
}

impl Net {
    pub(crate) fn new() -> Self {
        let [pod, far] = ["pod", "far"].map(|role| Namespace(netns::Namespace::new(role)));
        cable(
            (&pod, "eth0", &["10.77.0.2/24", "fd77::2/64"]),
            (&far, "eth0", &["10.77.0.1/24", "10.77.0.9/24", "fd77::1/64"]),
        );
        pod.must("ip route add default via 10.77.0.1; ip -6 route add default via fd77::1");
        Self { pod, far }
    }

    /// A machine behind the pod, which forwards to it, and its addresses.
    pub(crate) fn behind(&self) -> (Namespace, [&'static str; 2]) {
        let behind = Namespace(netns::Namespace::new("behind"));
        cable(
            (&self.pod, "eth1", &["10.78.0.1/24", "fd78::1/64"]),
            (&behind, "eth0", &["10.78.0.2/24", "fd78::2/64"]),
        );
        behind.must("ip route add default via 10.78.0.1; ip -6 route add default via fd78::1");
        self.pod
            .must("for f in ipv4/ip_forward ipv6/conf/all/forwarding; do echo 1 > /proc/sys/net/$f; done");
        self.far.must("ip route add 10.78.0.0/24 via 10.77.0.2; ip -6 route add fd78::/64 via fd77::2");
        (behind, ["10.78.0.2", "[fd78::2]"])
    }
}

/// One end of a cable: where, the interface, its addresses.
type End<'a> = (&'a Namespace, &'a str, &'a [&'a str]);

fn cable(one: End<'_>, other: End<'_>) {
    let link = format!(
        "link add {} netns {} type veth peer name {} netns {}",
        one.1,
        one.0.name(),
        other.1,
        other.0.name()
    );
    assert!(runs(Command::new("ip").args(link.split(' '))), "ip {link}");
    for (at, interface, addresses) in [one, other] {
        for address in addresses {
            let at_once = if address.contains(':') { "nodad" } else { "" };
            at.must(&format!("ip addr add {address} dev {interface} {at_once}"));
        }
        at.must(&format!("ip link set {interface} up"));
    }
}

/// `remora proxy` in a pod, as UID 1337: what comes in by 15006 or goes out by 15001 goes where it wanted to, and the answer says by
/// which listener it came (`x-via`).
#[derive(Debug)]
pub(crate) struct Sidecar {
    process: Running,
    folder: tempfile::TempDir,
}

impl Sidecar {
    pub(crate) async fn start(pod: &Namespace) -> Self {
        Self::spawn(pod, intercepting, PLAIN).ready(pod).await
    }

    /// The same with TPROXY: the program on port 8080 sees its clients.
    pub(crate) async fn start_transparent(pod: &Namespace) -> Self {
        Self::spawn(pod, transparent, TRANSPARENT).ready(pod).await
    }

    /// One of REDIRECT at first, until [`Self::become_transparent`]: its listeners are in a file.
    pub(crate) async fn start_changing(pod: &Namespace) -> Self {
        let folder = temporary();
        publish(&folder, intercepting);
        let source = json!({ "path": folder.path().join(LISTENERS) });
        let dynamic = json!({ "lds_config": { "resource_api_version": "V3", "path_config_source": source } });
        Self::begin(pod, folder, &bootstrap().dynamic(dynamic), TRANSPARENT).ready(pod).await
    }

    pub(crate) fn become_transparent(&self) {
        publish(&self.folder, transparent);
    }

    async fn ready(self, pod: &Namespace) -> Self {
        let ready = "curl -s -o /dev/null -f http://127.0.0.1:15000/ready";
        eventually("readiness of the sidecar", || pod.shell(ready).status == 0).await;
        self
    }

    /// One with TPROXY that may not be transparent: what it says when it ends.
    pub(crate) async fn refused(pod: &Namespace) -> String {
        let mut sidecar = Self::spawn(pod, transparent, PLAIN);
        let status = sidecar.process.end("the sidecar").await;
        assert!(!status.success());
        std::fs::read_to_string(sidecar.folder.path().join("stderr")).unwrap()
    }

    fn spawn(pod: &Namespace, listener: fn(&str, SocketAddr) -> Value, caps: &str) -> Self {
        let with_all = |bootstrap: Bootstrap, listener: Value| bootstrap.listener(listener);
        let bootstrap = listeners(listener).into_iter().fold(bootstrap(), with_all).listener(dns());
        Self::begin(pod, temporary(), &bootstrap, caps)
    }

    fn begin(pod: &Namespace, folder: tempfile::TempDir, bootstrap: &Bootstrap, caps: &str) -> Self {
        let config = folder.path().join("bootstrap.yaml");
        std::fs::write(&config, bootstrap.to_json().to_string()).unwrap();
        let log = std::fs::File::create(folder.path().join("stderr")).unwrap();
        let remora = binary().0;
        // The files of this test are root's.
        let child = pod
            .command(&["setpriv", "--reuid", &PROXY.to_string(), "--regid", "1337", "--clear-groups"])
            .args(["--inh-caps", caps, "--ambient-caps", caps])
            .arg(remora)
            .args(["proxy", "--concurrency", "1", "-c"])
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { process: child.into(), folder }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("stderr"));
            eprintln!("--- stderr of the sidecar:\n{}", log.unwrap_or_default());
        }
    }
}

/// Capabilities: the files of this test are root's.
const PLAIN: &str = "+dac_override";
const TRANSPARENT: &str = "+dac_override,+net_admin";
/// The file of [`Sidecar::start_changing`].
const LISTENERS: &str = "listeners.json";

fn temporary() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("remora-test-").tempdir().unwrap()
}

/// Without listeners.
fn bootstrap() -> Bootstrap {
    Bootstrap::default()
        .cluster(json!({ "name": "program", "type": "STATIC", "connect_timeout": "2s",
            "load_assignment": { "cluster_name": "program", "endpoints": [{ "lb_endpoints": [
                { "endpoint": { "address": address(([127, 0, 0, 1], 8080).into()) } },
            ] }] } }))
        .cluster(json!({ "name": "original", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "2s" }))
        .with(json!({ "admin": { "address": address(([127, 0, 0, 1], 15000).into()) } }))
}

fn listeners(listener: fn(&str, SocketAddr) -> Value) -> [Value; 4] {
    [
        ("outbound", "127.0.0.1:15001"),
        ("outbound", "[::1]:15001"),
        ("inbound", "0.0.0.0:15006"),
        ("inbound", "[::]:15006"),
    ]
    .map(|(via, at)| listener(via, at.parse().unwrap()))
}

/// As a file that is replaced whole.
fn publish(folder: &tempfile::TempDir, listener: fn(&str, SocketAddr) -> Value) {
    let resources = listeners(listener).map(|mut listener| {
        listener["@type"] = "type.googleapis.com/envoy.config.listener.v3.Listener".into();
        listener
    });
    let (fresh, file) = (folder.path().join("fresh"), folder.path().join(LISTENERS));
    std::fs::write(&fresh, json!({ "resources": resources }).to_string()).unwrap();
    std::fs::rename(fresh, file).unwrap();
}

fn intercepting(via: &str, at: SocketAddr) -> Value {
    let mut route = to_cluster("/", "original");
    route["response_headers_to_add"] = json!([{ "header": { "key": "x-via", "value": via } }]);
    let filter = "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst";
    Listener::http(&format!("{via}-{at}"))
        .route(route)
        .with(json!({
            "address": address(at),
            "listener_filters": [{ "name": "envoy.filters.listener.original_dst", "typed_config": { "@type": filter } }],
        }))
        .into()
}

/// With the client's address to the program on loopback, for what comes in.
fn transparent(via: &str, at: SocketAddr) -> Value {
    if via != "inbound" {
        return intercepting(via, at);
    }
    let mut route = to_cluster("/", "program");
    route["response_headers_to_add"] = json!([{ "header": { "key": "x-via", "value": via } }]);
    let filter = "type.googleapis.com/envoy.extensions.filters.listener.original_src.v3.OriginalSrc";
    Listener::http(&format!("{via}-{at}"))
        .route(route)
        .with(json!({
            "address": address(at),
            "transparent": true,
            "listener_filters": [{ "name": "envoy.filters.listener.original_src", "typed_config": { "@type": filter } }],
        }))
        .into()
}

/// Answers DNS for [`WEB`], and asks the world for everything else.
fn dns() -> Value {
    let udp = |at: &str| {
        let mut all = address(at.parse().unwrap());
        all["socket_address"]["protocol"] = "UDP".into();
        all
    };
    json!({
        "name": "dns",
        "address": udp("127.0.0.1:15053"),
        "additional_addresses": [{ "address": udp("[::1]:15053") }],
        "listener_filters": [{
            "name": "envoy.filters.udp.dns_filter",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig",
                "stat_prefix": "dns",
                "server_config": { "inline_dns_table": { "virtual_domains": [{
                    "name": WEB, "endpoint": { "address_list": { "address": [WEB_VIP] } },
                }] } },
                "client_config": {
                    "max_pending_lookups": 16,
                    "resolver_timeout": "2s",
                    "typed_dns_resolver_config": {
                        "name": "envoy.network.dns_resolver.cares",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
                            "resolvers": [address(format!("{FAR}:53").parse().unwrap())],
                        },
                    },
                },
            },
        }],
    })
}

/// The real file behind a program: what has to be hidden to take it away.
pub(crate) fn program(name: &str) -> PathBuf {
    let found = ["/usr/sbin", "/sbin", "/usr/bin"].map(|folder| PathBuf::from(folder).join(name));
    found.into_iter().find(|path| path.exists()).unwrap().canonicalize().unwrap()
}
