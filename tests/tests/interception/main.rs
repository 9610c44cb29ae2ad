//! `remora init` in real network namespaces: what is captured, what is not, and what it does when it may or can not. Needs root.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod dns;
mod net;
mod rules;
mod tproxy;

use net::{FAR, FAR6, Net, OTHER, POD, POD6, Sidecar, skipped};
use remora_tests::wait::eventually;

const BACKENDS: [&str; 2] = ["--backend nft", "--backend iptables"];

/// How an answer came: by which listener of the sidecar, and from whom.
fn way(answer: &str) -> String {
    if !answer.starts_with("HTTP/1.1 200") && !answer.starts_with("HTTP/1.0 200") {
        return answer.to_owned();
    }
    let mut via: Vec<_> =
        answer.lines().filter_map(|line| line.strip_prefix("x-via: ")).map(str::trim).collect();
    via.push(answer.lines().last().and_then(|body| body.split(' ').next()).unwrap_or("nobody"));
    via.join(" ")
}

#[tokio::test]
async fn unmodified_programs_talk_through_their_sidecar() {
    if skipped() {
        return;
    }
    for backend in BACKENDS {
        let net = Net::new();
        let _servers = [net.far.serve("far", 8080).await, net.pod.serve("pod", 8080).await];
        assert_eq!(way(&net.pod.get(FAR, 8080)), "far", "{backend}: before");
        let summary = net.pod.initialised(backend);
        eprintln!("{summary}");
        assert!(
            summary.contains("self-test: 192.0.2.1:9 was redirected; [2001:db8::1]:9 was redirected"),
            "{summary}"
        );
        let _sidecar = Sidecar::start(&net.pod).await;
        for host in [FAR, FAR6] {
            assert_eq!(way(&net.pod.get(host, 8080)), "outbound far", "{backend}");
            let own = net.pod.get_as(&["--reuid", "1337"], host, 8080);
            assert_eq!(way(&own), "far", "{backend}: own traffic");
        }
        for host in [POD, POD6] {
            assert_eq!(way(&net.far.get(host, 8080)), "inbound pod", "{backend}");
        }
        for host in [POD, POD6, "127.0.0.1", "127.1.2.3", "[::1]"] {
            assert_eq!(way(&net.pod.get(host, 8080)), "pod", "{backend}: what stays on this machine");
        }
        // While the proxy listens there is nothing to listen on: the second run only reads the rules back.
        let summary = net.pod.initialised(backend);
        assert!(summary.contains("only read back: port 15001 is in use"), "{summary}");
        assert_eq!(way(&net.pod.get(FAR, 8080)), "outbound far", "{backend}: again");
        let _gone = net.pod.initialised("--clean");
        assert_eq!(way(&net.pod.get(FAR, 8080)), "far", "{backend}: cleaned");
        assert_eq!(way(&net.far.get(POD, 8080)), "pod", "{backend}: cleaned");
    }
}

#[tokio::test]
async fn without_a_proxy_nothing_passes_by() {
    if skipped() {
        return;
    }
    let net = Net::new();
    let _servers = [net.far.serve("far", 8080).await, net.pod.serve("pod", 8080).await];
    let _summary = net.pod.initialised("");
    for answer in
        [net.pod.get(FAR, 8080), net.pod.get(FAR6, 8080), net.far.get(POD, 8080), net.far.get(POD6, 8080)]
    {
        // 7: could not connect.
        assert!(answer.starts_with("error 7"), "{answer}");
    }
}

/// As when Docker starts later on a VM. Of chains with one priority the kernel asks the latest first.
#[tokio::test]
async fn nat_that_comes_later_does_not_pass_by() {
    if skipped() {
        return;
    }
    let net = Net::new();
    let _servers = [
        net.far.serve("far", 8080).await,
        net.far.serve("bypass", 8081).await,
        net.pod.serve("pod", 8080).await,
        net.pod.serve("bypass", 8081).await,
    ];
    let _summary = net.pod.initialised("--backend nft");
    // The proxy's own connections are not what is asked here.
    net.pod.must(
        "nft 'add table inet docker; add chain inet docker i { type nat hook prerouting priority -100; };
         add chain inet docker o { type nat hook output priority -100; };
         add rule inet docker i iifname eth0 tcp dport 8080 redirect to :8081;
         add rule inet docker o meta skuid != 1337 ip daddr 10.77.0.1 tcp dport 8080 dnat ip to 10.77.0.1:8081'",
    );
    let _sidecar = Sidecar::start(&net.pod).await;
    assert_eq!(way(&net.pod.get(FAR, 8080)), "outbound far");
    for host in [POD, POD6] {
        assert_eq!(way(&net.far.get(host, 8080)), "inbound pod");
    }
    // What is excluded is still theirs.
    let _summary = net.pod.initialised("--backend nft --exclude-inbound-ports 8080");
    assert_eq!(way(&net.far.get(POD, 8080)), "bypass");
}

#[tokio::test]
async fn exclusions_hold() {
    if skipped() {
        return;
    }
    for backend in BACKENDS {
        let net = Net::new();
        let _servers = [
            net.far.serve("far", 8080).await,
            net.far.serve("far", 8081).await,
            net.pod.serve("pod", 8080).await,
            net.pod.serve("pod", 8082).await,
            net.pod.serve("pod", 15021).await,
        ];
        let _sidecar = Sidecar::start(&net.pod).await;
        let flags = "--proxy-gid 777 --proxy-mark 0x77 --exclude-uids 5000 --exclude-inbound-ports 8082 --exclude-outbound-ports 8081 \
                     --exclude-outbound-cidrs 10.77.0.9,fd99::/16";
        let _summary = net.pod.initialised(&format!("{backend} {flags}"));
        let out = |ids: &[&str], host: &str, port| way(&net.pod.get_as(ids, host, port));
        assert_eq!(out(&[], FAR, 8080), "outbound far", "{backend}");
        assert_eq!(out(&[], FAR, 8081), "far", "{backend}: port");
        assert_eq!(out(&[], FAR6, 8081), "far", "{backend}: port");
        assert_eq!(out(&[], OTHER, 8080), "far", "{backend}: address");
        assert_eq!(out(&["--reuid", "5000"], FAR, 8080), "far", "{backend}: user");
        assert_eq!(out(&["--reuid", "5001"], FAR, 8080), "outbound far", "{backend}: another user");
        assert_eq!(out(&["--regid", "777"], FAR, 8080), "far", "{backend}: group");
        assert_eq!(marked(&net, "0x77"), "far", "{backend}: mark");
        assert_eq!(marked(&net, "0x78"), "outbound far", "{backend}: another mark");
        assert_eq!(way(&net.far.get(POD, 8080)), "inbound pod", "{backend}");
        assert_eq!(way(&net.far.get(POD, 8082)), "pod", "{backend}: inbound port");
        assert_eq!(way(&net.far.get(POD, 15021)), "pod", "{backend}: a port of the proxy");

        let flags = "--include-inbound-ports 8082 --include-outbound-cidrs 10.77.0.8/29 --include-outbound-ports 8081";
        let _summary = net.pod.initialised(&format!("{backend} {flags}"));
        assert_eq!(out(&[], FAR, 8080), "far", "{backend}: not included");
        assert_eq!(out(&[], FAR, 8081), "outbound far", "{backend}: included port");
        assert_eq!(out(&[], FAR6, 8081), "outbound far", "{backend}: included port");
        assert_eq!(out(&[], OTHER, 8080), "outbound far", "{backend}: included address");
        assert_eq!(way(&net.far.get(POD, 8080)), "pod", "{backend}: not included");
        assert_eq!(way(&net.far.get(POD, 8082)), "inbound pod", "{backend}: included");

        let summary = net.pod.initialised(&format!("{backend} --exclude-interfaces eth0"));
        assert!(summary.contains("only read back: an interface is excluded"), "{summary}");
        assert_eq!(out(&[], FAR, 8080), "far", "{backend}: interface");
        assert_eq!(way(&net.far.get(POD, 8080)), "pod", "{backend}: interface");
    }
}

/// A GET by a socket with a mark.
fn marked(net: &Net, mark: &str) -> String {
    let script = format!(
        "import socket; s = socket.socket(); s.settimeout(5); s.setsockopt(socket.SOL_SOCKET, 36, {mark}); s.connect(('{FAR}', 8080))
s.sendall(b'GET / HTTP/1.1\\r\\nHost: a.example\\r\\nConnection: close\\r\\n\\r\\n')
print(s.makefile().read(), end='')"
    );
    let said = net.pod.run(&["python3", "-c", &script]);
    way(if said.status == 0 { &said.out } else { &said.err })
}

#[tokio::test]
async fn dns_goes_to_a_listener_of_its_own() {
    if skipped() {
        return;
    }
    let net = Net::new();
    // Answers with what it was asked, and a word in front.
    let server = "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', 15053))
while True:
    data, peer = s.recvfrom(512); s.sendto(b'captured ' + data, peer)";
    let mut server = net.pod.command(&["python3", "-c", server]).spawn().unwrap();
    let ask = |host: &str, port: u16| {
        let script = format!(
            "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2)
s.connect(('{host}', {port})); s.send(b'name'); print(s.recv(512).decode(), end='')"
        );
        net.pod.run(&["python3", "-c", &script]).out
    };
    eventually("the server", || ask("127.0.0.1", 15053) == "captured name").await;
    for backend in BACKENDS {
        let _summary = net.pod.initialised(backend);
        assert_eq!(ask(FAR, 53), "", "{backend}: off by default");
        for (servers, shown, answer) in [
            ("*", "dns: port 53 (UDP, TCP) -> 15053", "captured name"),
            (FAR, "dns: port 53 (UDP, TCP) of 10.77.0.1/32 -> 15053", "captured name"),
            ("10.77.0.99", "of 10.77.0.99/32 -> 15053", ""),
        ] {
            let summary = net.pod.initialised(&format!("{backend} --capture-dns --dns-servers {servers}"));
            assert!(summary.contains(shown), "{summary}");
            assert_eq!(ask(FAR, 53), answer, "{backend} {servers}");
        }
    }
    server.kill().unwrap();
    server.wait().unwrap();
}
