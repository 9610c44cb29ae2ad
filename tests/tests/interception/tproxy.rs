//! `remora init --mode tproxy`: the program sees the addresses of its clients.

use std::io::Write;
use std::process::Stdio;

use remora_tests::wait::eventually;

use super::net::{FAR, FAR6, Namespace, Net, OTHER, POD, POD6, Sidecar, program, skipped};
use super::rules::with_fake;
use super::{BACKENDS, way};

/// Whom the program saw. It listens on IPv6 for both.
fn seen(answer: &str) -> &str {
    answer.trim_end().rsplit(' ').next().unwrap_or_default().trim_start_matches("::ffff:")
}

/// Routes besides those of the kernel itself, and the rules that lead to them.
fn routes(pod: &Namespace) -> String {
    pod.must("ip -4 rule; ip -6 rule; ip -4 route show table 15006 2>/dev/null; ip -6 route show table 15006 2>/dev/null; true")
}

#[tokio::test]
async fn the_program_sees_its_clients() {
    if skipped() {
        return;
    }
    for backend in BACKENDS {
        let net = Net::new();
        // As WireGuard has it: the kernel looks for the way back to a client by the mark of its packets.
        net.pod.must("echo 1 > /proc/sys/net/ipv4/conf/all/src_valid_mark");
        let _servers = [
            net.far.serve("far", 8080).await,
            net.pod.serve("pod", 8080).await,
            net.pod.serve("pod", 8082).await,
        ];
        let summary = net.pod.initialised(&format!("{backend} --mode tproxy --exclude-inbound-ports 8082"));
        for shown in [
            "127.0.0.1 was called by 192.0.2.1",
            "::1 was called by 2001:db8::1",
            "[2001:db8::1]:9 was redirected",
        ] {
            assert!(summary.contains(shown), "{summary}");
        }
        let _sidecar = Sidecar::start_transparent(&net.pod).await;
        // Twice: over a connection that is kept, too. And each client over its own.
        for _ in 0..2 {
            for (host, client, own) in [(POD, FAR, FAR), (POD6, FAR6, "fd77::1"), (POD, OTHER, OTHER)] {
                let url = format!("http://{host}:8080/");
                let interface = client.trim_matches(['[', ']']);
                let said = net.far.run(&["curl", "-s", "-i", "-m", "5", "--interface", interface, &url]);
                assert_eq!(
                    (way(&said.out).as_str(), seen(&said.out)),
                    ("inbound pod", own),
                    "{backend} {said:?}"
                );
            }
        }
        // As where the mesh leads it: to the port of the sidecar.
        let direct = net.far.get(POD, 15006);
        assert_eq!((way(&direct).as_str(), seen(&direct)), ("inbound pod", FAR), "{backend}");
        assert_eq!(way(&net.far.get(POD, 8082)), "pod", "{backend}: excluded");
        for host in [FAR, FAR6] {
            assert_eq!(way(&net.pod.get(host, 8080)), "outbound far", "{backend}");
        }
        for host in [POD, POD6, "127.0.0.1", "[::1]"] {
            assert_eq!(way(&net.pod.get(host, 8080)), "pod", "{backend}: what stays on this machine");
        }
        // A call to its own Service: the sidecar is the client, and nothing goes in a circle.
        let own = net.pod.get_as(&["--reuid", "1337"], POD, 15006);
        assert_eq!((way(&own).as_str(), seen(&own)), ("inbound pod", POD), "{backend}");
        let own = net.pod.get_as(&["--reuid", "1337"], POD6, 15006);
        assert_eq!((way(&own).as_str(), seen(&own)), ("inbound pod", "fd77::2"), "{backend}");
        let _gone = net.pod.initialised("--clean");
        assert_eq!(way(&net.far.get(POD, 8080)), "pod", "{backend}: cleaned");
    }
}

/// As after a start with the last good configuration, which was of REDIRECT: the kernel drops what TPROXY would give to sockets of before.
#[tokio::test]
async fn a_sidecar_that_becomes_transparent_gets_what_is_captured() {
    if skipped() {
        return;
    }
    let net = Net::new();
    let _server = net.pod.serve("pod", 8080).await;
    let sidecar = Sidecar::start_changing(&net.pod).await;
    let _summary = net.pod.initialised("--mode tproxy");
    sidecar.become_transparent();
    for (host, own) in [(POD, FAR), (POD6, "fd77::1")] {
        eventually("the program sees its client", || {
            let said = net.far.get(host, 8080);
            (way(&said).as_str(), seen(&said)) == ("inbound pod", own)
        })
        .await;
    }
}

/// With REDIRECT it is captured.
#[tokio::test]
async fn what_is_forwarded_passes_by() {
    if skipped() {
        return;
    }
    for backend in BACKENDS {
        let net = Net::new();
        let (behind, at) = net.behind();
        let _servers = [behind.serve("behind", 8080).await, net.pod.serve("pod", 8080).await];
        let _summary = net.pod.initialised(&format!("{backend} --mode tproxy"));
        let _sidecar = Sidecar::start_transparent(&net.pod).await;
        for host in at {
            assert_eq!(way(&net.far.get(host, 8080)), "behind", "{backend} {host}");
        }
        assert_eq!(way(&net.far.get(POD, 8080)), "inbound pod", "{backend}");
    }
}

#[test]
fn twice_is_as_once_and_clean_leaves_nothing() {
    if skipped() {
        return;
    }
    for backend in BACKENDS {
        let net = Net::new();
        let before = routes(&net.pod);
        let all = || (net.pod.ruleset(), routes(&net.pod));
        let _summary = net.pod.initialised(&format!("{backend} --mode tproxy"));
        let first = all();
        assert!(first.0.contains("tproxy to :15006") || first.0.contains("TPROXY"), "{}", first.0);
        assert!(
            ["1:\tfrom 127.0.0.0/8 iif lo lookup 15006", "1:\tfrom ::1 iif lo lookup 15006"]
                .iter()
                .all(|rule| first.1.contains(rule)),
            "{}",
            first.1
        );
        let _summary = net.pod.initialised(&format!("{backend} --mode tproxy"));
        assert_eq!(all(), first, "{backend}");
        let said = net.pod.init("--check --mode tproxy");
        assert_eq!(said.status, 0, "{}", said.err);
        // What is missing is noticed, and put back.
        net.pod.must("ip -6 rule del priority 1");
        assert_eq!(net.pod.init("--check --mode tproxy").status, 1);
        let _summary = net.pod.initialised(&format!("{backend} --mode tproxy"));
        assert_eq!(all(), first, "{backend}");
        // The other mode, and back.
        let _summary = net.pod.initialised(backend);
        assert_eq!(routes(&net.pod), before, "{backend}");
        let rules = net.pod.ruleset();
        assert!(!rules.contains("tproxy") && !rules.contains("TPROXY"), "{rules}");
        let _summary = net.pod.initialised(&format!("{backend} --mode tproxy"));
        assert_eq!(all().1, first.1, "{backend}");
        // The other backend.
        let other = BACKENDS.into_iter().find(|other| *other != backend).unwrap();
        let _summary = net.pod.initialised(&format!("{other} --mode tproxy"));
        let _summary = net.pod.initialised(&format!("{backend} --mode tproxy"));
        assert_eq!(net.pod.ruleset().contains("table inet remora"), backend.contains("nft"), "{backend}");
        let said = net.pod.initialised("--clean");
        assert!(said.contains("routes of IPv4 (table 15006); routes of IPv6 (table 15006)"), "{said}");
        assert_eq!(routes(&net.pod), before, "{backend}");
        let left = net.pod.ruleset();
        assert!(!left.contains("remora") && !left.contains("REMORA"), "{backend}: {left}");
        assert!(net.pod.initialised("--clean").starts_with("removed: nothing to remove\n"));
    }
}

/// Routes without rules would be a change that nobody is told of.
#[test]
fn routes_go_again_when_rules_or_routes_are_refused() {
    if skipped() {
        return;
    }
    let net = Net::new();
    let before = routes(&net.pod);
    let real = |name: &str| program(name).display().to_string();
    let refuses =
        format!("[ \"$1\" = -f ] || exec {} \"$@\"; echo 'Error: Invalid argument' >&2; exit 1", real("nft"));
    let of_nft = || with_fake(&net, "nft", &refuses, "--backend nft --mode tproxy");
    let said = of_nft();
    assert_eq!(said.status, 1, "{}", said.out);
    assert!(
        said.err.contains("nothing was changed") && said.err.contains("Invalid argument"),
        "{}",
        said.err
    );
    assert_eq!(routes(&net.pod), before);
    assert_eq!(net.pod.ruleset(), "");
    // Of IPv6, when those of IPv4 are there.
    let fails = format!(
        "[ \"$1 $2\" = '-6 -batch' ] || exec {} \"$@\"; echo 'RTNETLINK answers: Invalid argument' >&2; exit 2",
        real("ip")
    );
    let said = with_fake(&net, "ip", &fails, "--mode tproxy");
    assert_eq!(said.status, 1, "{}", said.out);
    assert!(said.err.contains("no rules were changed") && !said.err.contains("IPv4 stay"), "{}", said.err);
    assert_eq!(routes(&net.pod), before);
    // With iptables nothing of the rules stays.
    let fails = "echo 'table mangle does not exist' >&2; exit 3";
    let said = with_fake(&net, "ip6tables-restore", fails, "--backend iptables --mode tproxy");
    assert!(said.err.contains("nothing is captured now"), "{}", said.err);
    assert_eq!(routes(&net.pod), before);
    let left = net.pod.ruleset();
    assert!(!left.contains("REMORA"), "{left}");
    // Where TPROXY was there before, it is there whole.
    let _summary = net.pod.initialised("--backend nft --mode tproxy");
    let whole = (net.pod.ruleset(), routes(&net.pod));
    assert_eq!(of_nft().status, 1);
    assert_eq!((net.pod.ruleset(), routes(&net.pod)), whole);
}

/// Nothing passes by while nobody listens, and who is connected already goes on.
#[tokio::test]
async fn what_was_open_before_goes_on_and_nothing_new_passes_by() {
    if skipped() {
        return;
    }
    for backend in BACKENDS {
        let net = Net::new();
        let _server = net.pod.serve("pod", 8080).await;
        let script = format!(
            "import http.client, sys
c = http.client.HTTPConnection('{POD}', 8080, timeout=5)
c.connect(); print('open', flush=True); sys.stdin.readline()
c.request('GET', '/'); print(c.getresponse().read().decode(), end='')"
        );
        let mut client = net.far.command(&["python3", "-c", &script]);
        let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = std::io::BufReader::new(client.stdout.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        assert_eq!(line, "open\n");
        let _summary = net.pod.initialised(&format!("{backend} --mode tproxy"));
        for url in [format!("http://{POD}:8080/"), format!("http://{POD6}:8080/")] {
            // 28: no answer in time.
            assert_eq!(net.far.run(&["curl", "-s", "-m", "1", &url]).status, 28, "{backend} {url}");
        }
        client.stdin.take().unwrap().write_all(b"go\n").unwrap();
        line.clear();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        assert_eq!(seen(&line), FAR, "{backend}");
        assert!(client.wait().unwrap().success());
    }
}

#[tokio::test]
async fn without_the_capability_the_proxy_says_so() {
    if skipped() {
        return;
    }
    let net = Net::new();
    let said = Sidecar::refused(&net.pod).await;
    assert!(said.contains("transparent needs the capability NET_ADMIN"), "{said}");
}
