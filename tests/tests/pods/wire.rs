//! What tcpdump sees on the nodes and in the pods while the programs talk.

use std::net::{IpAddr, SocketAddr};

use remora_tests::pods::capture::Capture;
use remora_tests::pods::{Network, PODS, Rig};
use remora_tests::wait::eventually;

use super::checks::Checks;

/// In the payload of each pair of programs, and which pod serves it.
const MARKERS: [(&str, &str); 5] = [
    ("marker-of-curl", "web-1"),
    ("marker-of-redis", "cache"),
    ("marker-of-mariadb", "db"),
    ("marker-of-gRPC", "echo"),
    ("marker-of-WebSocket", "echo"),
];
/// The health port of a sidecar, asked in plaintext from anywhere.
const HEALTH: u16 = 15_021;

/// Captures on every interface of the nodes, and on loopback of pods.
pub(crate) struct Wire {
    nodes: Vec<Capture>,
    pods: Vec<(&'static str, Capture)>,
}

impl Wire {
    pub(crate) async fn watch(rig: &Rig) -> Self {
        let (mut nodes, mut pods) = (Vec::new(), Vec::new());
        for number in 1..=3 {
            nodes.push(Capture::start(rig.network.node(number), "any", &rig.files.root).await);
        }
        for name in ["web-1", "shell", "cache", "db", "echo"] {
            pods.push((name, Capture::start(&rig.pod(name).namespace, "lo", &rig.files.root).await));
        }
        Self { nodes, pods }
    }

    /// What was captured since then.
    pub(crate) async fn judge(self, rig: &Rig, checks: &mut Checks) {
        self.everything_is_written(rig).await;
        for (marker, server) in MARKERS {
            for pod in [server, "shell"] {
                // In plaintext where it must be: on the pod's own loopback.
                let capture = &self.pods.iter().find(|(name, _)| *name == pod).unwrap().1;
                checks.that(&format!("{marker} is on loopback of {pod}"), capture.has(marker), "it is not");
            }
            let seen = self.nodes.iter().any(|node| node.has(marker));
            checks.that(&format!("{marker} is on no wire"), !seen, "it is");
        }
        self.only_tls(checks);
    }

    /// Plaintext passes each node at the end. When it is seen, all that was before has been.
    async fn everything_is_written(&self, rig: &Rig) {
        for (index, node) in self.nodes.iter().enumerate() {
            let spec = PODS.into_iter().find(|spec| usize::from(spec.node) == index + 1).unwrap();
            let url = format!("http://{}:{HEALTH}/the-end", spec.addresses().v4);
            let _answer = rig.curl_from_outside(&[&url]);
            eventually("plaintext on a node", || node.has("GET /the-end")).await;
        }
    }

    /// Whatever goes between pods begins with a TLS handshake, in both directions.
    fn only_tls(&self, checks: &mut Checks) {
        let pods: Vec<IpAddr> = PODS
            .iter()
            .flat_map(|spec| {
                let own = spec.addresses();
                [IpAddr::from(own.v4), own.v6.into()]
            })
            .collect();
        let between = |one: &SocketAddr, other: &SocketAddr| {
            [one, other].iter().all(|end| pods.contains(&end.ip()) && end.port() != HEALTH)
        };
        let (mut tls, mut other) = (0, Vec::new());
        for node in &self.nodes {
            for ((from, to), bytes) in node.first_bytes() {
                if !between(&from, &to) {
                    continue;
                }
                if bytes.starts_with(&[0x16, 3]) {
                    tls += 1;
                } else {
                    other.push(format!(
                        "{from} to {to}: {:?}",
                        String::from_utf8_lossy(&bytes[..bytes.len().min(60)])
                    ));
                }
            }
        }
        checks.that(
            &format!("{tls} directions of connections between pods begin with TLS"),
            tls >= 16,
            "too few",
        );
        checks.that("nothing else goes between pods", other.is_empty(), &other.join("; "));
    }
}

/// Calls out of the mesh and into it.
pub(crate) fn borders(rig: &Rig, checks: &mut Checks) {
    let (outside, web) = (Network::outside_address(), rig.pod("web-1").spec.addresses());
    let there = [outside.v4.to_string(), format!("[{}]", outside.v6)];
    let pod = [web.v4.to_string(), format!("[{}]", web.v6)];
    for address in &there {
        let answer = rig.curl(&[&format!("http://{address}/hello")]);
        checks.answer(&format!("out of the mesh: {address}"), &answer, "outside /hello", &[]);
    }
    for address in &pod {
        let from_outside = |port: u16| rig.curl_from_outside(&[&format!("http://{address}:{port}/")]);
        let from_shell = |port: u16| rig.curl(&[&format!("http://{address}:{port}/")]);
        checks.refused(&format!("plaintext from outside, STRICT: {address}"), &from_outside(8080));
        checks.refused(
            &format!("plaintext from outside, the sidecar's port: {address}"),
            &from_outside(15_006),
        );
        checks.answer(
            &format!("plaintext from outside, PERMISSIVE: {address}"),
            &from_outside(8081),
            "web-1 8081  /",
            &[],
        );
        checks.answer(
            &format!("plaintext from outside, DISABLED: {address}"),
            &from_outside(8082),
            "web-1 8082  /",
            &[],
        );
        checks.refused(&format!("from outside, a port of no Service: {address}"), &from_outside(8083));
        checks.refused(&format!("from a pod, a port of no Service: {address}"), &from_shell(8083));
        for (mode, port) in [("STRICT", 8080), ("PERMISSIVE", 8081)] {
            let begins = format!("web-1 {port} ");
            checks.answer(
                &format!("from a pod, {mode}: {address}"),
                &from_shell(port),
                &begins,
                &["sa/shell"],
            );
        }
        checks.answer(&format!("from a pod, DISABLED: {address}"), &from_shell(8082), "web-1 8082  /", &[]);
    }
    for (service, port, who) in [("open", 8081, "sa/shell"), ("plain", 8082, "")] {
        let answer = rig.curl(&[&format!("http://{service}/")]);
        checks.answer(
            &format!("from a pod by VIP: {service}"),
            &answer,
            "web-",
            &[&format!(" {port} "), who],
        );
    }
}

/// Who calls is known behind the wire: for rules, and for metrics.
pub(crate) fn identity(rig: &Rig, checks: &mut Checks) {
    let status = ["-o", "/dev/null", "-w", "%{http_code}"];
    let web = rig.pod("web-1").spec.addresses();
    for host in ["web".to_owned(), format!("{}:8080", web.v4), format!("[{}]:8080", web.v6)] {
        let url = format!("http://{host}/not-for-shell");
        let answer = rig.curl(&[&status[..], &[&url]].concat());
        checks.answer(&format!("denied to shell: {url}"), &answer, "403", &[]);
    }
    let answer = rig.pod("web-1").run(&["curl", "-s", "-m", "5", "http://web/not-for-shell"]).out;
    checks.answer("not denied to web", &answer, "web-", &["sa/web"]);
    let page = rig.pod("web-1").admin("/stats/prometheus");
    let counted = page.lines().any(|line| {
        let has = |part: &str| line.contains(part);
        line.starts_with("remora_requests_total{")
            && has(r#"reporter="destination""#)
            && has(r#"source_principal="spiffe://cluster.local/ns/default/sa/shell""#)
            && has(r#"destination_service_name="web""#)
            && has(r#"response_code="200""#)
    });
    let lines: Vec<_> = page.lines().filter(|line| line.starts_with("remora_requests_total{")).collect();
    checks.that("requests are counted with their caller at the called side", counted, &lines.join("\n"));
}
