//! Plan -> text for iptables-restore, for machines without nft. Pure.

use std::fmt::Write;

use super::plan::{Family, Match, Plan, Rule, Verdict};

/// Our chains, and where one jump to each stands.
pub(super) const CHAINS: [(&str, &str); 2] = [("REMORA_INBOUND", "PREROUTING"), ("REMORA_OUTPUT", "OUTPUT")];

/// What puts the rules of one version of IP in place, in one transaction. `saved` is what iptables-save says of the table before.
pub(super) fn install(plan: &Plan, family: Family, saved: &str) -> String {
    let mut out = "*nat\n".to_owned();
    for (chain, _) in CHAINS {
        // Makes the chain, or empties it.
        add(&mut out, &format!(":{chain} - [0:0]"));
    }
    for (chain, rules) in [(CHAINS[0].0, plan.inbound_rules()), (CHAINS[1].0, plan.outbound_rules())] {
        for text in rules.iter().flat_map(|rule| written(rule, family)) {
            add(&mut out, &format!("-A {chain} {text}"));
        }
    }
    for (chain, hook) in CHAINS {
        for jump in jumps(saved, chain, hook) {
            add(&mut out, &jump);
        }
        add(&mut out, &format!("-I {hook} 1 -j {chain}"));
    }
    out.push_str("COMMIT\n");
    out
}

/// What takes our chains and the jumps to them away; None when there are none.
pub(super) fn removal(saved: &str) -> Option<String> {
    let there: Vec<_> = CHAINS.iter().filter(|(chain, _)| has_chain(saved, chain)).collect();
    if there.is_empty() {
        return None;
    }
    let mut out = "*nat\n".to_owned();
    for (chain, hook) in &there {
        for jump in jumps(saved, chain, hook) {
            add(&mut out, &jump);
        }
        add(&mut out, &format!("-F {chain}"));
        add(&mut out, &format!("-X {chain}"));
    }
    out.push_str("COMMIT\n");
    Some(out)
}

/// The rules that [`install`] puts into each chain.
pub(super) fn expected(plan: &Plan, family: Family) -> [(&'static str, usize); 2] {
    let count = |rules: Vec<Rule>| rules.iter().flat_map(|rule| written(rule, family)).count();
    [(CHAINS[0].0, count(plan.inbound_rules())), (CHAINS[1].0, count(plan.outbound_rules()))]
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
    };
    let each = |all: &mut dyn Iterator<Item = String>| -> Vec<String> {
        all.map(|text| format!("{text} {verdict}")).collect()
    };
    match &rule.matches {
        Match::From(names) => each(&mut names.iter().map(|name| format!("-i {name}"))),
        Match::Through(names) => each(&mut names.iter().map(|name| format!("-o {name}"))),
        Match::Uid(ids) => each(&mut ids.iter().map(|id| format!("-m owner --uid-owner {id}"))),
        Match::Gid(ids) => each(&mut ids.iter().map(|id| format!("-m owner --gid-owner {id}"))),
        Match::Mark(mark) => each(&mut [format!("-m mark --mark {mark:#x}")].into_iter()),
        Match::Tcp => each(&mut ["-p tcp".to_owned()].into_iter()),
        Match::TcpPort(ports) => each(&mut ports.iter().map(|port| format!("-p tcp --dport {port}"))),
        Match::UdpPort(ports) => each(&mut ports.iter().map(|port| format!("-p udp --dport {port}"))),
        Match::To(nets) => {
            each(&mut nets.iter().filter(|net| family.has(net)).map(|net| format!("-d {net}")))
        }
        Match::TcpTo(nets) => {
            each(&mut nets.iter().filter(|net| family.has(net)).map(|net| format!("-d {net} -p tcp")))
        }
    }
}
