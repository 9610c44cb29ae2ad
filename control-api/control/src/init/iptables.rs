//! Plan -> text for iptables-restore, for machines without nft. Pure.

use std::fmt::Write;

use ipnet::IpNet;

use super::args::Mode;
use super::plan::{CONNECTION_MARK, DNS, Family, Match, Plan, Rule, Verdict};

/// Our chains, and where one jump to each stands.
pub(super) const CHAINS: [(&str, &str); 2] = [("REMORA_INBOUND", "PREROUTING"), ("REMORA_OUTPUT", "OUTPUT")];

/// The tables in which they may stand: TPROXY is possible in `mangle` only.
pub(super) const TABLES: [&str; 2] = ["nat", "mangle"];

/// The part of what iptables-save said that is about one table.
pub(super) fn of_table<'t>(saved: &'t str, table: &str) -> &'t str {
    let Some(from) = saved.find(&format!("*{table}\n")).and_then(|at| saved.get(at..)) else { return "" };
    // A comment, or the name of a chain, may have the word in it.
    from.split_once("\nCOMMIT").map_or(from, |(own, _)| own)
}

/// The rules of a plan: for each of [`CHAINS`] its table and its lines.
fn chains(plan: &Plan, family: Family) -> [(&'static str, Vec<String>); 2] {
    let all = |rules: Vec<Rule>| rules.iter().flat_map(|rule| written(rule, family)).collect::<Vec<_>>();
    let (mut inbound, outbound) = (all(plan.inbound_rules()), all(plan.outbound_rules()));
    match plan.mode {
        Mode::Redirect => [("nat", inbound), ("nat", outbound)],
        Mode::Tproxy => {
            // What it finds no socket for it drops.
            inbound.push(format!(
                "-p tcp -m connmark --mark {CONNECTION_MARK:#x} -j TPROXY --on-port {}",
                plan.inbound_port
            ));
            [("mangle", inbound), ("nat", outbound)]
        }
    }
}

/// What puts the rules of one version of IP in place, in one transaction for each table: first the one that captures what comes in, so that
/// nothing passes by when the mode changes. `saved` is what iptables-save says of the tables before.
pub(super) fn install(plan: &Plan, family: Family, saved: &str) -> String {
    let chains = chains(plan, family);
    let order = match plan.mode {
        Mode::Redirect => ["nat", "mangle"],
        Mode::Tproxy => ["mangle", "nat"],
    };
    order.iter().filter_map(|table| of_one(table, &chains, of_table(saved, table))).collect()
}

/// The same for one table; None when nothing of it is needed or there.
fn of_one(table: &str, chains: &[(&str, Vec<String>); 2], saved: &str) -> Option<String> {
    let ours = || CHAINS.iter().zip(chains).filter(|(_, (own, _))| *own == table);
    let gone: Vec<_> = CHAINS
        .iter()
        .filter(|(chain, _)| has_chain(saved, chain) && !ours().any(|((name, _), _)| name == chain))
        .collect();
    if ours().next().is_none() && gone.is_empty() {
        return None;
    }
    let mut out = format!("*{table}\n");
    for ((chain, _), _) in ours() {
        // Makes the chain, or empties it.
        add(&mut out, &format!(":{chain} - [0:0]"));
    }
    for ((chain, _), (_, lines)) in ours() {
        for text in lines {
            add(&mut out, &format!("-A {chain} {text}"));
        }
    }
    for ((chain, hook), _) in ours() {
        for jump in jumps(saved, chain, hook) {
            add(&mut out, &jump);
        }
        add(&mut out, &format!("-I {hook} 1 -j {chain}"));
    }
    remove(&mut out, &gone, saved);
    out.push_str("COMMIT\n");
    Some(out)
}

fn remove(out: &mut String, chains: &[&(&str, &str)], saved: &str) {
    for (chain, hook) in chains {
        for jump in jumps(saved, chain, hook) {
            add(out, &jump);
        }
        add(out, &format!("-F {chain}"));
        add(out, &format!("-X {chain}"));
    }
}

/// What takes our chains and the jumps to them away; None when there are none.
pub(super) fn removal(saved: &str) -> Option<String> {
    let of = |table: &&str| {
        let saved = of_table(saved, table);
        let there: Vec<_> = CHAINS.iter().filter(|(chain, _)| has_chain(saved, chain)).collect();
        if there.is_empty() {
            return None;
        }
        let mut out = format!("*{table}\n");
        remove(&mut out, &there, saved);
        out.push_str("COMMIT\n");
        Some(out)
    };
    let all: String = TABLES.iter().filter_map(of).collect();
    Some(all).filter(|text| !text.is_empty())
}

/// For each of [`CHAINS`] its table, and how many rules [`install`] puts into it.
pub(super) fn expected(plan: &Plan, family: Family) -> [(&'static str, usize); 2] {
    chains(plan, family).map(|(table, lines)| (table, lines.len()))
}

/// How many rules a chain has, in what iptables-save said.
pub(super) fn count(saved: &str, chain: &str) -> usize {
    saved.lines().filter(|line| line.strip_prefix("-A ").is_some_and(|rest| first(rest) == chain)).count()
}

fn has_chain(saved: &str, chain: &str) -> bool {
    saved.lines().any(|line| line.strip_prefix(':').is_some_and(|rest| first(rest) == chain))
}

fn first(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

/// The deletion of every jump to `chain` that is there, as it is written there: by us one, by whoever copied it more.
pub(super) fn jumps(saved: &str, chain: &str, hook: &str) -> Vec<String> {
    let to_us =
        |line: &&str| line.starts_with(&format!("-A {hook} ")) && line.ends_with(&format!("-j {chain}"));
    saved.lines().map(str::trim_end).filter(to_us).map(|line| line.replacen("-A", "-D", 1)).collect()
}

fn add(out: &mut String, line: &str) {
    // Writing to a String does not fail.
    let _ = writeln!(out, "{line}");
}

/// One line for each item: iptables has no sets of its own, and its modules for them are not everywhere.
fn written(rule: &Rule, family: Family) -> Vec<String> {
    let verdict = match rule.verdict {
        Verdict::Pass => "-j RETURN".to_owned(),
        Verdict::Redirect(port) => format!("-j REDIRECT --to-ports {port}"),
        Verdict::Divert => {
            format!("--syn -m addrtype --dst-type LOCAL -j CONNMARK --set-mark {CONNECTION_MARK:#x}")
        }
    };
    let each = |all: &mut dyn Iterator<Item = String>| -> Vec<String> {
        all.map(|text| format!("{text} {verdict}")).collect()
    };
    let mine = |nets: &[IpNet]| nets.iter().filter(|net| family.has(net)).copied().collect::<Vec<_>>();
    match &rule.matches {
        Match::From(names) => each(&mut names.iter().map(|name| format!("-i {name}"))),
        Match::Through(names) => each(&mut names.iter().map(|name| format!("-o {name}"))),
        Match::Uid(ids) => each(&mut ids.iter().map(|id| format!("-m owner --uid-owner {id}"))),
        Match::Gid(ids) => each(&mut ids.iter().map(|id| format!("-m owner --gid-owner {id}"))),
        Match::Mark(mark) => each(&mut [format!("-m mark --mark {mark:#x}")].into_iter()),
        Match::Tcp => each(&mut ["-p tcp".to_owned()].into_iter()),
        Match::TcpPort(ports) => each(&mut ports.iter().map(|port| format!("-p tcp --dport {port}"))),
        Match::UdpPort(ports) => each(&mut ports.iter().map(|port| format!("-p udp --dport {port}"))),
        Match::To(nets) => each(&mut mine(nets).iter().map(|net| format!("-d {net}"))),
        Match::TcpTo(nets) => each(&mut mine(nets).iter().map(|net| format!("-d {net} -p tcp"))),
        Match::TcpDns(nets) => {
            each(&mut mine(nets).iter().map(|net| format!("-d {net} -p tcp --dport {DNS}")))
        }
        Match::UdpDns(nets) => {
            each(&mut mine(nets).iter().map(|net| format!("-d {net} -p udp --dport {DNS}")))
        }
    }
}
