//! What was done, for people.

use std::fmt::Write;
use std::time::Duration;

use ipnet::IpNet;

use super::apply::Applied;
use super::args::{Mode, Selection};
use super::nft;
use super::plan::{CapturedDns, Family, Plan};
use super::survey::Kind;

/// The lines: aligned for a terminal, `name: value` for whoever reads a log.
pub(super) fn text(rows: &[(&str, String)], terminal: bool) -> String {
    let mut out = String::new();
    for (name, value) in rows {
        // Writing to a String does not fail.
        let _ = if terminal { writeln!(out, "{name:<14}{value}") } else { writeln!(out, "{name}: {value}") };
    }
    out
}

pub(super) fn rows(
    plan: &Plan,
    applied: &Applied,
    ipv6: bool,
    shown: &[String],
    took: Duration,
) -> Vec<(&'static str, String)> {
    let rules = match applied {
        Applied::Nft(tables) => {
            let names: Vec<_> =
                tables.iter().map(|table| format!("table {} {}", table.family(), nft::TABLE)).collect();
            format!("nft, {}", names.join(" and "))
        }
        Applied::Iptables(Kind::Nft) => {
            "iptables (nf_tables), chains REMORA_INBOUND and REMORA_OUTPUT".to_owned()
        }
        Applied::Iptables(Kind::Legacy) => {
            "iptables (legacy), chains REMORA_INBOUND and REMORA_OUTPUT".to_owned()
        }
    };
    let mut rows = vec![
        ("rules", rules),
        ("ip", versions(plan, ipv6)),
        ("inbound", inbound(plan)),
        ("outbound", outbound(plan)),
    ];
    rows.extend(plan.dns.as_ref().map(|dns| ("dns", captured_dns(dns, &plan.families))));
    rows.push(("not captured", own(plan)));
    rows.push(("self-test", if shown.is_empty() { "left out".to_owned() } else { shown.join("; ") }));
    rows.push(("time", format!("{:.1} ms", took.as_secs_f64() * 1000.0)));
    rows
}

fn versions(plan: &Plan, ipv6: bool) -> String {
    match plan.families[..] {
        [Family::V4] if ipv6 => "IPv4 only; IPv6 is on here and NOT captured",
        [Family::V4] => "IPv4 only; IPv6 is switched off here",
        [Family::V6] => "IPv6 only; IPv4 is NOT captured",
        _ => "IPv4 and IPv6",
    }
    .to_owned()
}

fn inbound(plan: &Plan) -> String {
    let to = match plan.mode {
        Mode::Redirect => plan.inbound_port.to_string(),
        Mode::Tproxy => format!("{} (TPROXY; the program sees its clients)", plan.inbound_port),
    };
    match &plan.inbound {
        Selection::All => format!("all ports -> {to}, but {}", joined(&plan.exclude_inbound)),
        Selection::Only(ports) if ports.is_empty() => "nothing".to_owned(),
        Selection::Only(ports) => format!("ports {} -> {to}", joined(ports)),
    }
}

fn outbound(plan: &Plan) -> String {
    let to = plan.outbound_port;
    let mut text = match &plan.outbound {
        Selection::All => format!("everywhere -> {to}"),
        Selection::Only(nets) if nets.is_empty() && plan.include_ports.is_empty() => {
            return "nothing".to_owned();
        }
        Selection::Only(nets) if nets.is_empty() => format!("ports {} -> {to}", joined(&plan.include_ports)),
        Selection::Only(nets) if plan.include_ports.is_empty() => format!("{} -> {to}", joined(nets)),
        Selection::Only(nets) => {
            format!("{} and ports {} -> {to}", joined(nets), joined(&plan.include_ports))
        }
    };
    let ports = (!plan.exclude_ports.is_empty()).then(|| format!("ports {}", joined(&plan.exclude_ports)));
    let nets = (!plan.exclude_outbound.is_empty()).then(|| joined(&plan.exclude_outbound));
    let but: Vec<_> = ports.into_iter().chain(nets).collect();
    if !but.is_empty() {
        let _ = write!(text, ", but {}", but.join(" and "));
    }
    text
}

fn captured_dns(dns: &CapturedDns, families: &[Family]) -> String {
    let to = dns.port;
    let Selection::Only(all) = &dns.servers else {
        return format!("port 53 (UDP, TCP) -> {to}");
    };
    let has_rules = |net: &&IpNet| families.iter().any(|family| family.has(net));
    let servers: Vec<_> = all.iter().filter(has_rules).collect();
    if servers.is_empty() {
        return format!("nothing: no name server is of this version of IP ({})", joined(all));
    }
    format!("port 53 (UDP, TCP) of {} -> {to}", joined(&servers))
}

/// Where a name server of this machine may be asked by the proxy what it has asked itself.
pub(super) fn circle(plan: &Plan, asks_only_here: impl Fn() -> bool) -> Option<String> {
    let is_all = plan.dns.as_ref().is_some_and(|dns| dns.servers == Selection::All);
    (is_all && asks_only_here()).then(|| {
        "the name server is on this machine: what it asks itself comes to the proxy, which would ask it again, unless its user is excluded (--exclude-uids)"
            .to_owned()
    })
}

fn own(plan: &Plan) -> String {
    let mut all = vec!["loopback".to_owned()];
    let uids = [&plan.proxy_uids[..], &plan.exclude_uids].concat();
    if !uids.is_empty() {
        all.push(format!("UID {}", joined(&uids)));
    }
    if !plan.proxy_gids.is_empty() {
        all.push(format!("GID {}", joined(&plan.proxy_gids)));
    }
    all.extend(plan.proxy_mark.map(|mark| format!("mark {mark:#x}")));
    if !plan.exclude_interfaces.is_empty() {
        all.push(format!("interface {}", joined(&plan.exclude_interfaces)));
    }
    all.join(", ")
}

fn joined<T: ToString>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
