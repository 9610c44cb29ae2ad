//! Every pair of programs, through the addresses of Services and of pods, over IPv4 and IPv6.

use remora_tests::netns::Said;
use remora_tests::pods::{Network, Pod, Rig, python, script};

use super::checks::Checks;

/// Where a Service is called: its own addresses, and those of one of its pods.
fn addresses(service: u8, pod: &Pod) -> [(&'static str, String); 4] {
    let own = pod.spec.addresses();
    [
        ("VIP, IPv4", format!("10.96.0.{service}")),
        ("VIP, IPv6", format!("fd00:96::{service}")),
        ("pod IP, IPv4", own.v4.to_string()),
        ("pod IP, IPv6", own.v6.to_string()),
    ]
}

/// With a port; IPv6 in brackets.
fn target(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// What is told of a command that did not do it.
fn told(said: &Said) -> String {
    format!("status {} {}{}", said.status, said.out, said.err.lines().last().unwrap_or_default())
}

/// All of them; payloads have the marker of the program in it, which [`super::wire`] looks for.
pub(crate) fn all(rig: &Rig, checks: &mut Checks) {
    http(rig, checks);
    redis(rig, checks);
    mariadb(rig, checks);
    python_pairs(rig, checks);
}

fn http(rig: &Rig, checks: &mut Checks) {
    let shell = "URI=spiffe://cluster.local/ns/default/sa/shell";
    for (how, address) in addresses(10, rig.pod("web-1")) {
        let (port, begins) = if how.starts_with("VIP") { (80, "web-") } else { (8080, "web-1 8080") };
        let url = format!("http://{}/marker-of-curl", target(&address, port));
        let answer = rig.curl(&[&url]);
        checks.answer(&format!("curl, nginx: {how}"), &answer, begins, &[shell, "/marker-of-curl"]);
    }
    let other = rig.pod("web-2").spec.addresses().v4;
    let answer = rig.curl(&[&format!("http://{other}:8080/")]);
    checks.answer("curl, nginx: the other pod by its IP", &answer, "web-2 8080", &[shell]);
    for version in ["-4", "-6"] {
        let answer = rig.curl(&[version, "http://web/"]);
        checks.answer(&format!("curl, nginx: by name, {version}"), &answer, "web-", &[shell]);
    }
    for vip in ["10.96.0.10", "[fd00:96::10]"] {
        let said = rig.pod("web-1").run(&["curl", "-s", "-m", "5", "-w", "%{http_code}\n", vip, vip, vip]);
        let good = said.out.lines().filter(|line| *line == "200").count();
        checks.that(&format!("a pod calls its own Service: {vip}"), good == 3, &told(&said));
    }
}

/// Programs behind TPROXY see the pod that called, whatever is between: mTLS, plaintext, HTTP, TCP.
pub(crate) fn clients(rig: &Rig, checks: &mut Checks) {
    let shell = rig.pod("shell").spec.addresses();
    for (how, address) in addresses(10, rig.pod("web-1")).into_iter().skip(2) {
        let own = if address.contains(':') { shell.v6.to_string() } else { shell.v4.to_string() };
        // STRICT, PERMISSIVE, DISABLED; twice, for connections that are kept.
        for port in [8080, 8081, 8082, 8080, 8081, 8082] {
            let answer = rig.curl(&[&format!("http://{}/", target(&address, port))]);
            let ends = format!(" / {own}\n");
            checks.that(&format!("the client, nginx: {how}, {port}"), answer.ends_with(&ends), &answer);
        }
    }
    let outside = Network::outside_address();
    let web = rig.pod("web-1").spec.addresses();
    for (own, address) in
        [(outside.v4.to_string(), web.v4.to_string()), (outside.v6.to_string(), web.v6.to_string())]
    {
        let answer = rig.curl_from_outside(&[&format!("http://{}/", target(&address, 8081))]);
        let ends = format!(" / {own}\n");
        checks.that(&format!("the client from outside, nginx: {address}"), answer.ends_with(&ends), &answer);
    }
    for (how, address) in addresses(30, rig.pod("db")) {
        // Endpoints of a Service have the first address of their pod.
        let six = how == "pod IP, IPv6";
        let own = if six { shell.v6.to_string() } else { shell.v4.to_string() };
        let login = ["timeout", "5", "mariadb", "--no-defaults", "-uapp", "-psecret", "-h", &address];
        let said = rig.pod("shell").run(&[&login[..], &["-Nse", "SELECT USER()", "shop"]].concat());
        checks.that(&format!("the client, MariaDB: {how}"), said.out == format!("app@{own}\n"), &told(&said));
    }
    // With REDIRECT it is the sidecar.
    let other = rig.pod("web-2").spec.addresses().v4;
    let answer = rig.curl(&[&format!("http://{other}:8080/")]);
    checks.that("the client with REDIRECT, nginx", answer.ends_with(" / 127.0.0.1\n"), &answer);
}

fn redis(rig: &Rig, checks: &mut Checks) {
    let shell = rig.pod("shell");
    for (how, address) in addresses(20, rig.pod("cache")) {
        let cli =
            |words: &[&str]| shell.run(&[&["timeout", "5", "redis-cli", "-h", &address], words].concat());
        let set = cli(&["SET", "key", "marker-of-redis"]);
        let get = cli(&["GET", "key"]);
        let holds = set.out == "OK\n" && get.out == "marker-of-redis\n";
        checks.that(&format!("redis-cli, Redis: {how}"), holds, &(told(&set) + &told(&get)));
    }
}

/// The server speaks first. Whoever waits to see what the client says would keep both waiting.
fn mariadb(rig: &Rig, checks: &mut Checks) {
    let shell = rig.pod("shell");
    for (how, address) in addresses(30, rig.pod("db")) {
        let login = ["timeout", "5", "mariadb", "--no-defaults", "-uapp", "-psecret", "-h", &address];
        let said = shell.run(&[&login[..], &["-Nse", "SELECT 'marker-of-mariadb'", "shop"]].concat());
        checks.that(&format!("mariadb, MariaDB: {how}"), said.out == "marker-of-mariadb\n", &told(&said));
        let said = shell.run(&[&python(), "-B", &script(), "greeting", &address, "3306"]);
        let seen: serde_json::Value = serde_json::from_str(&said.out).unwrap_or_default();
        let soon = seen["milliseconds"].as_f64().is_some_and(|milliseconds| milliseconds < 300.0);
        let greets = seen["text"].as_str().is_some_and(|text| text.contains("MariaDB"));
        let saw = told(&said);
        checks.that(&format!("MariaDB's greeting: {how}: {} ms", seen["milliseconds"]), soon && greets, &saw);
    }
}

fn python_pairs(rig: &Rig, checks: &mut Checks) {
    let shell = rig.pod("shell");
    for (name, client, port) in [("gRPC", "grpc-client", 50051), ("WebSocket", "websocket-client", 8765)] {
        let targets = addresses(40, rig.pod("echo"));
        let marker = format!("marker-of-{name}");
        let call = |targets: &[String]| {
            let mut words = vec!["timeout".to_owned(), "20".into(), python(), "-B".into(), script()];
            words.extend([client.to_owned(), marker.clone()]);
            words.extend_from_slice(targets);
            shell.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let all: Vec<_> = targets.iter().map(|(_, address)| target(address, port)).collect();
        // Python takes its time to start: one by one only to see which fails.
        if call(&all).status == 0 {
            checks.that(&format!("{name}: VIP and pod IP, IPv4 and IPv6"), true, "");
            continue;
        }
        for ((how, _), target) in targets.iter().zip(&all) {
            let said = call(std::slice::from_ref(target));
            checks.that(&format!("{name}: {how}"), said.status == 0, &told(&said));
        }
    }
}
