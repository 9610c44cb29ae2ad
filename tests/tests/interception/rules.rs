//! The rules as a whole: again, over what is there, away, beside those of others, and without what they need.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::BACKENDS;
use remora_tests::netns::Said;

use super::net::{FAR, Net, program, skipped};

#[test]
fn twice_is_as_once_and_clean_leaves_nothing() {
    if skipped() {
        return;
    }
    let net = Net::new();
    let _summary = net.pod.initialised("--backend nft");
    let first = net.pod.ruleset();
    assert!(first.contains("table inet remora") && first.contains("redirect to :15006"), "{first}");
    let _summary = net.pod.initialised("--backend nft");
    assert_eq!(net.pod.ruleset(), first);
    let said = net.pod.initialised("--clean");
    assert!(said.starts_with("removed: table inet remora\n"), "{said}");
    assert_eq!(net.pod.ruleset(), "");
    assert!(net.pod.initialised("--clean").starts_with("removed: nothing to remove\n"));

    let _summary = net.pod.initialised("--backend iptables");
    let first = net.pod.iptables();
    assert_eq!(first.lines().filter(|line| line.ends_with("-j REMORA_OUTPUT")).count(), 2, "{first}");
    let _summary = net.pod.initialised("--backend iptables");
    assert_eq!(net.pod.iptables(), first);
    let _said = net.pod.initialised("--clean");
    assert_eq!(net.pod.iptables(), "");
}

/// As in a pod with IPv4 only, or before its other addresses have come: what is sent has loopback's address, and the routes of TPROXY keep it here.
#[test]
fn tproxy_comes_where_ipv6_has_no_address_but_loopbacks() {
    if skipped() {
        return;
    }
    let net = Net::new();
    net.pod.must("ip -6 address flush dev eth0; ip -6 route flush default");
    let summary = net.pod.initialised("--backend nft --mode tproxy");
    assert!(summary.contains("IPv6 only read back: there is no route to anywhere yet"), "{summary}");
    assert!(summary.contains("::1 was called by 2001:db8::1"), "{summary}");
}

#[test]
fn what_was_half_applied_is_replaced_whole() {
    if skipped() {
        return;
    }
    let net = Net::new();
    let _summary = net.pod.initialised("--backend nft");
    let whole = net.pod.ruleset();
    let _said = net.pod.initialised("--clean");
    net.pod.must(
        "nft 'add table inet remora; add chain inet remora outbound { type nat hook output priority -100; };
         add rule inet remora outbound meta l4proto tcp redirect to :9999; add chain inet remora rest; add table ip remora;
         add chain ip remora outbound { type nat hook output priority -100; };
         add rule ip remora outbound meta l4proto tcp redirect to :9998'",
    );
    let _summary = net.pod.initialised("--backend nft");
    assert_eq!(net.pod.ruleset(), whole);
    let _said = net.pod.initialised("--clean");

    let _summary = net.pod.initialised("--backend iptables");
    let whole = net.pod.iptables();
    net.pod.must("iptables -t nat -F REMORA_OUTPUT; iptables -t nat -A REMORA_OUTPUT -p tcp -j REDIRECT --to-ports 9999");
    net.pod.must("iptables -t nat -A OUTPUT -j REMORA_OUTPUT; ip6tables -t nat -D OUTPUT -j REMORA_OUTPUT");
    assert_ne!(net.pod.iptables(), whole);
    let _summary = net.pod.initialised("--backend iptables");
    assert_eq!(net.pod.iptables(), whole);
}

#[test]
fn the_other_backend_takes_over() {
    if skipped() {
        return;
    }
    let net = Net::new();
    let _summary = net.pod.initialised("--backend nft");
    let _summary = net.pod.initialised("--backend iptables");
    assert!(!net.pod.ruleset().contains("table inet remora"));
    assert!(net.pod.iptables().contains("-j REMORA_INBOUND"));
    // Only one version of IP from now on: the rules for the other one go.
    let _summary = net.pod.initialised("--backend iptables --ip-version 4");
    assert_eq!(net.pod.iptables().lines().filter(|line| line.ends_with("-j REMORA_INBOUND")).count(), 1);
    let _summary = net.pod.initialised("--backend nft");
    assert_eq!(net.pod.iptables(), "");
    assert!(net.pod.ruleset().contains("table inet remora"));
    let _summary = net.pod.initialised("--backend nft --ip-version 6");
    let rules = net.pod.ruleset();
    assert!(rules.contains("table ip6 remora") && !rules.contains("table inet remora"), "{rules}");
}

#[test]
fn rules_of_other_meshes_are_refused_by_name() {
    if skipped() {
        return;
    }
    for (make, named) in [
        ("iptables -t nat -N ISTIO_OUTPUT", "Istio's chain ISTIO_OUTPUT"),
        ("ip6tables -t nat -N PROXY_INIT_REDIRECT", "Linkerd's chain PROXY_INIT_REDIRECT"),
        ("iptables-legacy -t nat -N PROXY_INIT_OUTPUT", "Linkerd's chain PROXY_INIT_OUTPUT"),
        ("nft add table inet istio-proxy-nat", "Istio's table inet istio-proxy-nat"),
    ] {
        let net = Net::new();
        if net.pod.shell(make).status != 0 {
            eprintln!("SKIPPED: interception: {make} does not work here");
            continue;
        }
        for backend in BACKENDS {
            let before = net.pod.ruleset();
            let said = net.pod.init(backend);
            assert_eq!(said.status, 1, "{make}: {}", said.out);
            assert!(
                said.err.contains(named) && said.err.contains("Nothing was changed"),
                "{make}: {}",
                said.err
            );
            assert_eq!(net.pod.ruleset(), before, "{make}");
            assert_eq!(net.pod.iptables(), "", "{make}");
        }
    }
}

#[test]
fn without_the_capability_it_says_so() {
    if skipped() {
        return;
    }
    let net = Net::new();
    let remora = remora_tests::proxy::binary().0;
    let remora = remora.to_str().unwrap();
    for arguments in [&["init"][..], &["init", "--backend", "iptables"], &["init", "--clean"]] {
        let limited = ["setpriv", "--bounding-set", "-net_admin", remora];
        let said = net.pod.run(&[&limited[..], arguments].concat());
        assert_eq!(said.status, 1, "{}", said.out);
        assert!(said.err.contains("NET_ADMIN") && said.err.contains("Nothing was changed"), "{}", said.err);
    }
    // Has it, but not for this namespace.
    let said = net.pod.run(&["unshare", "--user", "--map-root-user", remora, "init"]);
    assert_eq!(said.status, 1, "{}", said.out);
    assert!(said.err.contains("NET_ADMIN"), "{}", said.err);
    assert_eq!(net.pod.ruleset(), "");
    // Showing needs nothing.
    let said = net.pod.run(&["setpriv", "--bounding-set", "-net_admin", remora, "init", "--dry-run"]);
    assert_eq!(said.status, 0, "{}", said.err);
    let dry = net.pod.init("--dry-run --backend nft").out;
    assert_eq!(said.out, dry);
    // It is what would be applied.
    let applied = net.pod.initialised("--backend nft").contains("table inet remora");
    let rules = net.pod.ruleset();
    net.pod.must("nft delete table inet remora");
    net.pod.must(&format!("nft -f - <<'END'\n{dry}END"));
    assert!(applied);
    assert_eq!(net.pod.ruleset(), rules);
}

#[test]
fn wrong_arguments_are_status_2() {
    if skipped() {
        return;
    }
    let net = Net::new();
    for (line, word) in [
        ("--inbound-port 0", "is not a port"),
        ("--inbound-port 15001", "both 15001"),
        ("--mode transparent", "tproxy"),
        ("--include-inbound-ports 80 --exclude-inbound-ports 80", "port 80 is in"),
    ] {
        let said = net.pod.init(line);
        assert_eq!(said.status, 2, "{line}: {}", said.err);
        assert!(said.err.contains(word), "{line}: {}", said.err);
    }
    assert_eq!(net.pod.ruleset(), "");
}

#[test]
fn without_nft_it_takes_iptables_and_without_both_it_names_packages() {
    if skipped() {
        return;
    }
    let net = Net::new();
    let remora = remora_tests::proxy::binary().0;
    let remora = remora.to_str().unwrap();
    let hidden = |programs: &[&str]| {
        let hide: Vec<_> = programs
            .iter()
            .map(|name| format!("mount --bind /dev/null {}", program(name).display()))
            .collect();
        let script = format!("{} && exec {remora} init", hide.join(" && "));
        net.pod.run(&["unshare", "--mount", "sh", "-c", &script])
    };
    let said = hidden(&["nft"]);
    assert_eq!(said.status, 0, "{}", said.err);
    assert!(said.out.starts_with("rules: iptables"), "{}", said.out);
    assert!(net.pod.iptables().contains("-j REMORA_OUTPUT"));
    let _said = net.pod.initialised("--clean");
    let said = hidden(&["nft", "iptables-restore"]);
    assert_eq!(said.status, 1, "{}", said.out);
    assert!(said.err.contains("install the package nftables (or iptables)"), "{}", said.err);
}

#[test]
fn ipv6_that_is_switched_off_is_left_out_and_that_is_said() {
    if skipped() {
        return;
    }
    for backend in BACKENDS {
        let net = Net::new();
        net.pod.must("for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 > $f; done");
        let summary = net.pod.initialised(backend);
        assert!(summary.contains("ip: IPv4 only; IPv6 is switched off here\n"), "{summary}");
        assert!(summary.contains("self-test: 192.0.2.1:9 was redirected\n"), "{summary}");
        assert!(!net.pod.iptables().contains("::"), "{}", net.pod.iptables());
        assert!(!net.pod.ruleset().contains("inet remora"), "{}", net.pod.ruleset());
        let said = net.pod.init(&format!("{backend} --ip-version both"));
        assert_eq!(said.status, 1);
        assert!(said.err.contains("IPv6 is switched off"), "{}", said.err);
    }
    let net = Net::new();
    let summary = net.pod.initialised("--ip-version 4");
    assert!(summary.contains("IPv6 is on here and NOT captured"), "{summary}");
}

#[test]
fn the_self_test_fails_when_the_rules_do_not_redirect() {
    if skipped() {
        return;
    }
    for (other, word) in [
        // Swallows what was redirected.
        (
            "type filter hook output priority 0; } ; add rule ip other o tcp dport 15001 drop",
            "did not come to port 15001 within 2 s",
        ),
        // Comes first, and sends everything elsewhere.
        (
            "type nat hook output priority -150; } ; add rule ip other o ip daddr 192.0.2.1 dnat to 10.77.0.1",
            "was not redirected",
        ),
    ] {
        let net = Net::new();
        net.pod.must(&format!("nft 'add table ip other; add chain ip other o {{ {other}'"));
        for backend in BACKENDS {
            let said = net.pod.init(backend);
            assert_eq!(said.status, 1, "{}", said.out);
            assert!(said.err.contains(word) && said.err.contains("they stay"), "{}", said.err);
            let answer = net.pod.get(FAR, 8080);
            assert!(answer.starts_with("error"), "{answer}");
            let _summary = net.pod.initialised(&format!("{backend} --no-verify"));
        }
    }
    // No route yet: the rules are only read back, which is said.
    let net = Net::new();
    net.pod.must("ip route del default; ip -6 route del default");
    let summary = net.pod.initialised("");
    assert!(summary.contains("IPv4 only read back: there is no route"), "{summary}");
}

fn fake(folder: &Path, name: &str, script: &str) {
    let file = folder.join(name);
    std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs `remora init` with a program of this name and script in front of all others.
pub(super) fn with_fake(net: &Net, name: &str, script: &str, line: &str) -> Said {
    let folder = tempfile::tempdir().unwrap();
    fake(folder.path(), name, script);
    let remora = remora_tests::proxy::binary().0;
    let path = format!("PATH={}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let mut words = vec!["env", &path, remora.to_str().unwrap(), "init"];
    words.extend(line.split_whitespace());
    net.pod.run(&words)
}

#[test]
fn iptables_that_fails_midway_leaves_nothing_and_says_so() {
    if skipped() {
        return;
    }
    let net = Net::new();
    let fails = "echo 'table nat does not exist' >&2; exit 3";
    let said = with_fake(&net, "ip6tables-restore", fails, "--backend iptables");
    assert_eq!(said.status, 1, "{}", said.out);
    for word in ["IPv6 were refused", "table nat does not exist", "nothing is captured now", "--ip-version 4"]
    {
        assert!(said.err.contains(word), "{word}: {}", said.err);
    }
    assert_eq!(net.pod.iptables(), "");
    let said = with_fake(&net, "ip6tables-restore", fails, "--backend iptables --ip-version 4");
    assert_eq!(said.status, 0, "{}", said.err);
}

#[test]
fn clean_does_what_it_can() {
    if skipped() {
        return;
    }
    let net = Net::new();
    let fails = "echo 'table nat does not exist' >&2; exit 3";
    let _summary = net.pod.initialised("--backend iptables");
    let said = with_fake(&net, "ip6tables-save", fails, "--clean");
    // There are rules for IPv6, and nobody can see whose.
    assert_eq!(said.status, 1, "{}", said.out);
    for word in ["removed: chains REMORA_* of IPv4", "may still be there", "table nat does not exist"] {
        assert!(said.err.contains(word), "{word}: {}", said.err);
    }
    assert_eq!(net.pod.must("iptables-save -t nat | grep REMORA || true"), "");
    let _said = net.pod.initialised("--clean");
    assert_eq!(net.pod.iptables(), "");
    // Without nft nobody says whether there is something. A tool that is missing has put nothing there.
    let remora = remora_tests::proxy::binary().0;
    let remora = remora.to_str().unwrap();
    let _summary = net.pod.initialised("--backend iptables --ip-version 4");
    let nft = program("nft");
    let folder = tempfile::tempdir().unwrap();
    fake(folder.path(), "ip6tables-save", fails);
    let path = format!("PATH={}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let script = format!("mount --bind /dev/null {} && exec env {path} {remora} init --clean", nft.display());
    let said = net.pod.run(&["unshare", "--mount", "sh", "-c", &script]);
    assert_eq!(said.status, 0, "{}", said.err);
    assert!(said.out.starts_with("removed: chains REMORA_* of IPv4"), "{}", said.out);
    assert_eq!(net.pod.iptables(), "");
}

/// Without nft nobody says whether something is in it.
#[test]
fn a_table_mangle_that_cannot_be_read_is_in_the_way_of_tproxy_only() {
    if skipped() {
        return;
    }
    let net = Net::new();
    let folder = tempfile::tempdir().unwrap();
    for name in ["iptables-save", "ip6tables-save"] {
        let script = format!(
            "case \"$*\" in *mangle*) echo 'table mangle does not exist' >&2; exit 3;; esac
             PATH=/usr/sbin:/sbin; exec {name} \"$@\""
        );
        fake(folder.path(), name, &script);
    }
    let (remora, nft) = (remora_tests::proxy::binary().0, program("nft"));
    let path = format!("PATH={}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let run = |arguments: &str| {
        let init = format!("exec env {path} {} init {arguments}", remora.display());
        let script = format!("mount --bind /dev/null {} && {init}", nft.display());
        net.pod.run(&["unshare", "--mount", "sh", "-c", &script])
    };
    let said = run("--mode tproxy");
    assert_eq!(said.status, 1, "{}", said.out);
    for word in ["table mangle does not exist", "nothing was changed"] {
        assert!(said.err.contains(word), "{word}: {}", said.err);
    }
    let said = run("");
    assert_eq!(said.status, 0, "{}", said.err);
    assert!(said.out.starts_with("rules: iptables"), "{}", said.out);
}

#[test]
fn nft_takes_all_or_nothing_and_old_kernels_get_two_tables() {
    if skipped() {
        return;
    }
    let net = Net::new();
    let real = program("nft").display().to_string();
    let refusing = |what: &str| {
        format!(
            "[ \"$1\" = -f ] || exec {real} \"$@\"
             rules=$(cat); case $rules in *'{what}'*) echo 'Error: Operation not supported' >&2; exit 1;; esac
             echo \"$rules\" | {real} -f -"
        )
    };
    let said = with_fake(&net, "nft", &refusing("table "), "--backend nft");
    assert_eq!(said.status, 1, "{}", said.out);
    assert!(said.err.contains("nothing was changed") && said.err.contains("--backend"), "{}", said.err);
    assert_eq!(net.pod.ruleset(), "");
    // Kernels without NAT in inet.
    let said = with_fake(&net, "nft", &refusing("table inet"), "--backend nft");
    assert_eq!(said.status, 0, "{}", said.err);
    assert!(said.out.starts_with("rules: nft, table ip remora and table ip6 remora\n"), "{}", said.out);
    assert!(said.out.contains("192.0.2.1:9 was redirected; [2001:db8::1]:9 was redirected"), "{}", said.out);
}
