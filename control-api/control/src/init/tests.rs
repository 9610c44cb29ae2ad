//! Arguments, scripts and text, without a kernel.

use std::net::IpAddr;
use std::path::Path;

use clap::{CommandFactory, Parser};
use insta::assert_snapshot;

use super::args::InitArgs;
use super::plan::{Family, NoPlan, Plan, plan};
use super::{dry_run, iptables, ipv6_is_on, nft, routes, summary, with_name_servers};
use crate::init::apply::Applied;

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    init: InitArgs,
}

fn arguments(line: &str) -> Result<InitArgs, String> {
    let words = ["init"].into_iter().chain(line.split_whitespace());
    Arguments::try_parse_from(words).map(|all| all.init).map_err(|error| error.to_string())
}

fn planned(line: &str) -> Plan {
    plan(&arguments(line).unwrap(), true).unwrap()
}

fn refused(line: &str) -> String {
    match arguments(line).map(|args| plan(&args, true)) {
        Err(error) => error,
        Ok(Err(NoPlan::Arguments(wrong))) => wrong.join("\n"),
        Ok(other) => panic!("{line}: {other:?}"),
    }
}

/// Every flag at once.
const EVERYTHING: &str = "--proxy-uid 1337,2102 --proxy-gid 1337 --proxy-mark 0x539 --exclude-uids 0 --inbound-port 16006 \
    --outbound-port 16001 --include-inbound-ports 8080,8443 --exclude-inbound-ports 22 --include-outbound-cidrs 10.0.0.0/8,fd00::/8 \
    --exclude-outbound-cidrs 10.1.0.0/16,10.1.2.3,fd00:1::/32 --include-outbound-ports 9080 --exclude-outbound-ports 3306,5432,3306 \
    --exclude-interfaces docker0,br-1 --capture-dns";

#[test]
fn what_people_get_without_arguments() {
    assert_snapshot!("default_nft", dry_run(&planned(""), super::BackendChoice::Nft));
    assert_snapshot!("default_iptables", dry_run(&planned(""), super::BackendChoice::Iptables));
}

#[test]
fn every_flag_in_both_languages() {
    assert_snapshot!("everything_nft", dry_run(&planned(EVERYTHING), super::BackendChoice::Nft));
    assert_snapshot!("everything_iptables", dry_run(&planned(EVERYTHING), super::BackendChoice::Iptables));
}

/// Outbound they are those of REDIRECT.
#[test]
fn tproxy_in_both_languages() {
    let all = planned(&format!("--mode tproxy {EVERYTHING}"));
    assert_snapshot!("tproxy_nft", dry_run(&planned("--mode tproxy"), super::BackendChoice::Nft));
    assert_snapshot!("tproxy_iptables", dry_run(&all, super::BackendChoice::Iptables));
    // By a packet's mark the kernel would look for the way back to its source (src_valid_mark).
    for choice in [super::BackendChoice::Nft, super::BackendChoice::Iptables] {
        let text = dry_run(&planned("--mode tproxy"), choice);
        assert!(["fwmark", "meta mark", "tproxy-mark"].iter().all(|mark| !text.contains(mark)), "{text}");
    }
    assert_eq!(nft::expected(&all, nft::Table::Inet), [("inbound", 5), ("outbound", 13)]);
    assert_eq!(iptables::expected(&all, Family::V4), [("mangle", 12), ("nat", 15)]);
}

/// From one mode to the other nothing of the first stays.
#[test]
fn a_chain_leaves_the_table_of_the_other_mode() {
    let redirect = iptables::install(&planned(""), Family::V4, "");
    let saved = redirect.replace("-I PREROUTING 1", "-A PREROUTING").replace("-I OUTPUT 1", "-A OUTPUT");
    let text = iptables::install(&planned("--mode tproxy"), Family::V4, &saved);
    assert_eq!(text.matches("COMMIT").count(), 2);
    // What comes in is captured all the time.
    assert!(text.starts_with("*mangle\n"), "{text}");
    for line in ["-D PREROUTING -j REMORA_INBOUND", "-F REMORA_INBOUND", "-X REMORA_INBOUND", "*mangle"] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let back = iptables::install(&planned(""), Family::V4, "*mangle\n:REMORA_INBOUND - [0:0]\nCOMMIT\n");
    assert!(back.ends_with("*mangle\n-F REMORA_INBOUND\n-X REMORA_INBOUND\nCOMMIT\n"), "{back}");
}

#[test]
fn one_version_of_ip_has_a_table_of_its_own() {
    assert_snapshot!("ipv4_nft", dry_run(&planned("--ip-version 4"), super::BackendChoice::Nft));
    assert_snapshot!("ipv6_iptables", dry_run(&planned("--ip-version 6"), super::BackendChoice::Iptables));
    let without = plan(&arguments("").unwrap(), false).unwrap();
    assert_eq!(without.families, [Family::V4]);
    assert_eq!(without, planned("--ip-version 4"));
}

#[test]
fn kernels_without_nat_in_inet_get_two_tables_and_what_is_not_needed_goes() {
    let all = planned(EVERYTHING);
    assert_snapshot!("separate_nft", nft::script(&all, &nft::SEPARATE, &[nft::Table::Inet]));
    assert_eq!(nft::expected(&all, nft::Table::Ip), [("inbound", 3), ("outbound", 11)]);
    assert_eq!(nft::expected(&all, nft::Table::Inet), [("inbound", 3), ("outbound", 13)]);
}

#[test]
fn nothing_is_captured_where_nothing_was_asked_for() {
    let none = planned("--include-inbound-ports none --include-outbound-cidrs none");
    assert!(!dry_run(&none, super::BackendChoice::Nft).contains("redirect"));
    assert_eq!(none.probe_target(Family::V4), None);
    let port = planned("--include-outbound-cidrs none --include-outbound-ports 9080");
    assert_eq!(port.probe_target(Family::V6), Some("[2001:db8::1]:9080".parse().unwrap()));
}

/// Who asks another one means that one.
#[test]
fn dns_is_captured_to_the_name_servers() {
    let of = |line: &str, servers: &[&str]| {
        let servers: Vec<IpAddr> = servers.iter().map(|ip| ip.parse().unwrap()).collect();
        plan(&with_name_servers(&arguments(line).unwrap(), Some(&servers)), true).unwrap()
    };
    let two = of("--capture-dns", &["10.96.0.10", "fd00::a"]);
    let lines =
        |backend| dry_run(&two, backend).lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>();
    let to_dns =
        |lines: Vec<String>| lines.into_iter().filter(|line| line.contains("15053")).collect::<Vec<_>>();
    assert_eq!(
        to_dns(lines(super::BackendChoice::Nft)),
        [
            "ip daddr 10.96.0.10/32 udp dport 53 counter redirect to :15053",
            "ip6 daddr fd00::a/128 udp dport 53 counter redirect to :15053",
            "ip daddr 10.96.0.10/32 tcp dport 53 counter redirect to :15053",
            "ip6 daddr fd00::a/128 tcp dport 53 counter redirect to :15053",
        ]
    );
    assert_eq!(
        to_dns(lines(super::BackendChoice::Iptables)),
        [
            "-A REMORA_OUTPUT -d 10.96.0.10/32 -p udp --dport 53 -j REDIRECT --to-ports 15053",
            "-A REMORA_OUTPUT -d 10.96.0.10/32 -p tcp --dport 53 -j REDIRECT --to-ports 15053",
            "-A REMORA_OUTPUT -d fd00::a/128 -p udp --dport 53 -j REDIRECT --to-ports 15053",
            "-A REMORA_OUTPUT -d fd00::a/128 -p tcp --dport 53 -j REDIRECT --to-ports 15053",
        ]
    );
    assert_eq!(
        of("--capture-dns --dns-servers 10.96.0.10", &["10.96.0.11"]),
        of("--capture-dns", &["10.96.0.10"])
    );
    // Whom a stub asks is not known; nor are the servers of a pod on its node.
    let all = planned("--capture-dns --dns-servers *");
    let unknown = plan(&with_name_servers(&arguments("--capture-dns").unwrap(), None), true).unwrap();
    assert_eq!((unknown, planned("--capture-dns")), (all.clone(), all));
    // What is written has rules; what a file names has them where its version of IP has.
    let unused = refused("--capture-dns --dns-servers 10.0.0.1 --ip-version 6");
    assert!(unused.contains("10.0.0.1/32 is IPv4, and --ip-version is 6"), "{unused}");
    let dns_row = |plan: &Plan| {
        let rows = summary::rows(plan, &Applied::Nft(Vec::new()), true, &[], std::time::Duration::ZERO);
        rows.into_iter().find(|(name, _)| *name == "dns").map(|(_, said)| said).unwrap_or_default()
    };
    let both = ["10.96.0.10", "fd00::a"];
    let row = dns_row(&of("--capture-dns --ip-version 6", &both));
    assert_eq!(row, "port 53 (UDP, TCP) of fd00::a/128 -> 15053");
    let row = dns_row(&of("--capture-dns --ip-version 6", &both[..1]));
    assert!(row.starts_with("nothing: no name server"), "{row}");
    assert!(refused("--capture-dns --dns-servers none").contains("--dns-servers names nobody"));
    assert!(refused("--capture-dns --dns-servers name.test").contains("is not a CIDR"));
}

#[test]
fn the_probe_goes_where_traffic_is_captured() {
    let target = |line: &str, family| planned(line).probe_target(family).map(|target| target.to_string());
    assert_eq!(target("", Family::V4).unwrap(), "192.0.2.1:9");
    assert_eq!(target("", Family::V6).unwrap(), "[2001:db8::1]:9");
    assert_eq!(target("--exclude-outbound-ports 9,10", Family::V4).unwrap(), "192.0.2.1:11");
    assert_eq!(target("--include-outbound-cidrs 10.0.0.0/8", Family::V4).unwrap(), "10.0.0.1:9");
    assert_eq!(target("--include-outbound-cidrs 10.0.0.0/8", Family::V6), None);
    assert_eq!(target("--exclude-outbound-cidrs 192.0.0.0/8", Family::V4), None);
    assert!(planned("").captures(0, 0));
    for line in ["--proxy-uid 0", "--proxy-gid 0", "--exclude-uids 5,0"] {
        assert!(!planned(line).captures(0, 0), "{line}");
    }
}

#[test]
fn wrong_arguments_are_told_with_what_to_write() {
    let wrong = [
        "--inbound-port 0",
        "--include-inbound-ports 80,http",
        "--exclude-inbound-ports 70000",
        "--exclude-outbound-cidrs 10.0.0.0/33",
        "--include-outbound-cidrs example.com",
        "--exclude-interfaces eth0;drop",
        "--exclude-interfaces a-name-that-is-too-long",
        "--proxy-uid root",
        "--proxy-mark 0",
        "--mode transparent",
        "--ip-version 5",
        "--dry-run --clean",
        "--inbound-port 15001",
        "--capture-dns --dns-port 15006",
        "--include-inbound-ports 80,22,15021 --exclude-inbound-ports 22",
        "--include-outbound-ports 80 --exclude-outbound-ports 80",
        "--include-outbound-cidrs 10.1.0.0/16 --exclude-outbound-cidrs 10.0.0.0/8",
        "--ip-version 4 --exclude-outbound-cidrs fd00::/8",
    ];
    let told = |line: &&str| format!("{line}\n  {}\n", refused(line).lines().next().unwrap_or_default());
    assert_snapshot!("wrong", wrong.iter().map(told).collect::<String>());
    let no_ipv6 = plan(&arguments("--ip-version both").unwrap(), false);
    assert!(matches!(no_ipv6, Err(NoPlan::Kernel(why)) if why.contains("switched off")));
}

#[test]
fn a_second_run_of_iptables_puts_one_jump_where_there_were_some() {
    let saved = "*nat\n:REMORA_OUTPUT - [0:0]\n-A OUTPUT -p tcp -j REMORA_OUTPUT\n-A OUTPUT -j REMORA_OUTPUT\n-A OUTPUT -j OTHER\nCOMMIT\n";
    let text = iptables::install(&planned(""), Family::V4, saved);
    let of_jumps = |line: &&str| line.starts_with("-D") || line.starts_with("-I");
    let jumps: Vec<_> = text.lines().filter(of_jumps).collect();
    assert_eq!(
        jumps,
        [
            "-I PREROUTING 1 -j REMORA_INBOUND",
            "-D OUTPUT -p tcp -j REMORA_OUTPUT",
            "-D OUTPUT -j REMORA_OUTPUT",
            "-I OUTPUT 1 -j REMORA_OUTPUT"
        ]
    );
    let removal = "*nat\n-D OUTPUT -p tcp -j REMORA_OUTPUT\n-D OUTPUT -j REMORA_OUTPUT\n-F REMORA_OUTPUT\n-X REMORA_OUTPUT\nCOMMIT\n";
    assert_eq!(iptables::removal(saved).as_deref(), Some(removal));
    assert_eq!(iptables::removal("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"), None);
}

#[test]
fn a_table_ends_where_it_is_committed() {
    let saved = "*nat\n:COMMITTED - [0:0]\n-A OUTPUT -j REMORA_OUTPUT\nCOMMIT\n*mangle\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n";
    assert!(iptables::of_table(saved, "nat").ends_with("-j REMORA_OUTPUT"));
    assert!(iptables::of_table(saved, "mangle").ends_with(":PREROUTING ACCEPT [0:0]"));
    assert_eq!(iptables::of_table("*nat\nCOMMIT\n*mangle\n:A - [0:0]\nCOMMIT\n", "nat"), "*nat");
    assert_eq!(iptables::of_table(saved, "raw"), "");
}

#[test]
fn rules_are_counted_in_what_nft_prints() {
    let listing = "table inet remora {\n\tchain inbound {\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n\t\tiifname \"lo\" return
\t\tip daddr { 10.0.0.0/8, 10.1.0.0/16,\n\t\t\t   10.2.0.0/16 } return\n\t\tmeta l4proto tcp counter packets 0 bytes 0 redirect to :15006\n\t}\n}\n";
    assert_eq!(nft::count(listing, "inbound"), Some(3));
    assert_eq!(nft::count(listing, "outbound"), None);
    assert_eq!(nft::count("table inet remora {\n\tchain inbound {\n\t}\n}\n", "inbound"), None);
}

#[test]
fn ipv6_is_on_when_an_interface_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let conf = folder.path().join("conf");
    let set = |name: &str, value: &str| {
        std::fs::create_dir_all(conf.join(name)).unwrap();
        std::fs::write(conf.join(name).join("disable_ipv6"), format!("{value}\n")).unwrap();
    };
    let (none, lines) = (folder.path().join("none"), folder.path().join("if_inet6"));
    let ipv6_is_on = |switches: &Path| ipv6_is_on(switches, &lines);
    assert!(!ipv6_is_on(&none), "ipv6.disable=1");
    for (name, value) in [("all", "0"), ("lo", "0"), ("default", "1"), ("eth0", "1")] {
        set(name, value);
    }
    assert!(!ipv6_is_on(&conf), "only loopback has it");
    set("eth0", "0");
    set("all", "1");
    assert!(ipv6_is_on(&conf), "switched on again for one interface");
    // What cannot be read is not off.
    set("eth0", "1");
    std::fs::remove_file(conf.join("eth0/disable_ipv6")).unwrap();
    assert!(!ipv6_is_on(&conf), "gone meanwhile");
    std::fs::create_dir(conf.join("eth0/disable_ipv6")).unwrap();
    assert!(ipv6_is_on(&conf), "a switch that cannot be read");
    std::fs::remove_dir(conf.join("eth0/disable_ipv6")).unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(ipv6_is_on(&file), "switches that cannot be read");
    let address = |name: &str| format!("fe80000000000000042f19fffe1f1c5a 02 40 20 80     {name}\n");
    std::fs::write(&lines, address("lo")).unwrap();
    assert!(!ipv6_is_on(&conf), "only loopback has an address");
    assert!(ipv6_is_on(&none), "the switches are hidden");
    std::fs::write(&lines, address("eth0")).unwrap();
    assert!(ipv6_is_on(&conf), "an interface has an address");
}

#[test]
fn what_is_sent_from_loopback_to_others_is_noted_with_tproxy() {
    let conf = tempfile::tempdir().unwrap();
    for (name, value) in [("all", "0"), ("docker0", "1"), ("br-1", "1"), ("eth0", "0")] {
        std::fs::create_dir(conf.path().join(name)).unwrap();
        std::fs::write(conf.path().join(name).join("route_localnet"), format!("{value}\n")).unwrap();
    }
    let note = |line: &str, conf: &Path| routes::note(&planned(line), conf);
    assert!(note("--mode tproxy", conf.path()).unwrap().contains("(br-1, docker0)"));
    for line in ["", "--mode tproxy --ip-version 6"] {
        assert_eq!(note(line, conf.path()), None, "{line}");
    }
    assert_eq!(note("--mode tproxy", &conf.path().join("none")), None);
}

#[test]
fn the_summary_says_what_is_not_captured() {
    let text = |line: &str, terminal| {
        let plan = planned(line);
        let applied = Applied::Nft(nft::tables(&plan));
        let took = std::time::Duration::from_micros(12_345);
        let shown = ["192.0.2.1:9 was redirected".to_owned()];
        summary::text(&summary::rows(&plan, &applied, true, &shown, took), terminal)
    };
    assert_snapshot!("summary_terminal", text("", true));
    assert_snapshot!("summary_pipe", text(&format!("{EVERYTHING} --ip-version both"), false));
    assert!(text("--ip-version 4", false).contains("ip: IPv4 only; IPv6 is on here and NOT captured\n"));
}

#[test]
fn questions_that_would_go_in_a_circle_are_noted() {
    let note = |line: &str, only_here: bool| summary::circle(&planned(line), || only_here);
    assert!(note("--capture-dns", true).unwrap().contains("--exclude-uids"));
    for (line, only_here) in
        [("", true), ("--capture-dns", false), ("--capture-dns --dns-servers 10.0.0.1", true)]
    {
        assert_eq!(note(line, only_here), None, "{line}");
    }
}

#[test]
fn the_page_shows_these_rules_and_every_option() {
    let page = include_str!("../../../../docs/reference/interception.md");
    assert!(page.contains(dry_run(&planned(""), super::BackendChoice::Nft).trim()));
    let tproxy = dry_run(&planned("--mode tproxy"), super::BackendChoice::Nft);
    assert!(page.contains(tproxy.split("    chain outbound").next().unwrap().trim_end()), "{tproxy}");
    for option in Arguments::command().get_arguments().filter_map(clap::Arg::get_long) {
        assert!(
            page.contains(&format!("--{option}`")) || page.contains(&format!("`--{option} ")),
            "--{option}"
        );
    }
}
