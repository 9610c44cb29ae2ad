//! Plan -> nft script. Pure.

use std::fmt::Write;

use super::args::Mode;
use super::plan::{CONNECTION_MARK, DNS, Family, Match, Plan, Rule, Verdict};

/// Name of our table, in each family.
pub(super) const TABLE: &str = "remora";

/// In front of dstnat (-100), where the NAT of others stands, Docker's too. At the same priority the kernel asks the chain that came last first,
/// and the first that translates a connection has it.
const PRIORITY: i32 = -101;

/// What a chain is, and its priority.
const NAT: (&str, i32) = ("nat", PRIORITY);
/// Where TPROXY stands (`mangle`): behind conntrack, whose marks it needs, and in front of NAT.
const MANGLE: (&str, i32) = ("filter", -150);

/// The family of a table of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Inet,
    Ip,
    Ip6,
}

impl Table {
    pub(super) const ALL: [Self; 3] = [Self::Inet, Self::Ip, Self::Ip6];

    pub(super) const fn family(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }

    const fn holds(self, family: Family) -> bool {
        matches!((self, family), (Self::Inet, _) | (Self::Ip, Family::V4) | (Self::Ip6, Family::V6))
    }
}

/// The tables of a plan: one of `inet` for both versions of IP.
pub(super) fn tables(plan: &Plan) -> Vec<Table> {
    match plan.families[..] {
        [Family::V4] => vec![Table::Ip],
        [Family::V6] => vec![Table::Ip6],
        _ => vec![Table::Inet],
    }
}

/// For kernels before 5.2, which have no NAT in `inet`.
pub(super) const SEPARATE: [Table; 2] = [Table::Ip, Table::Ip6];

/// The script that puts `tables` in place in one transaction, and takes tables of ours that are there, and not needed, away.
pub(super) fn script(plan: &Plan, tables: &[Table], there: &[Table]) -> String {
    let mut out = String::new();
    for table in there.iter().filter(|table| !tables.contains(table)) {
        line(&mut out, 0, &format!("delete table {} {TABLE}", table.family()));
    }
    for table in tables {
        let family = table.family();
        // Created first, so that there is something to delete: this works whatever was there before.
        line(&mut out, 0, &format!("table {family} {TABLE}"));
        line(&mut out, 0, &format!("delete table {family} {TABLE}"));
        line(&mut out, 0, &format!("table {family} {TABLE} {{"));
        let inbound = match plan.mode {
            Mode::Redirect => NAT,
            Mode::Tproxy => MANGLE,
        };
        chain(&mut out, ("inbound", inbound, "prerouting"), &inbound_rules(plan, *table));
        chain(&mut out, ("outbound", NAT, "output"), &rules(plan, &plan.outbound_rules(), *table));
        line(&mut out, 0, "}");
    }
    out
}

/// The script that takes tables away.
pub(super) fn removal(there: &[Table]) -> String {
    there.iter().map(|table| format!("delete table {} {TABLE}\n", table.family())).collect()
}

/// How many rules the chains `inbound` and `outbound` of a table have to have.
pub(super) fn expected(plan: &Plan, table: Table) -> [(&'static str, usize); 2] {
    let outbound = rules(plan, &plan.outbound_rules(), table).len();
    [("inbound", inbound_rules(plan, table).len()), ("outbound", outbound)]
}

/// How many rules a chain has in what `nft list table` printed; None when it is not there.
pub(super) fn count(listing: &str, chain: &str) -> Option<usize> {
    let head = format!("chain {chain} {{");
    let lines = listing.lines().map(str::trim).skip_while(|line| *line != head).skip(1);
    let mut inside = lines.take_while(|line| *line != "}").peekable();
    inside.peek()?;
    // A long set goes over several lines: the last one has the verdict.
    let ends = [" return", " drop"];
    let holds = [" redirect to :", " ct mark set ", " tproxy to :"];
    let is_rule = |line: &&str| {
        ends.iter().any(|end| line.ends_with(end)) || holds.iter().any(|text| line.contains(text))
    };
    Some(inside.filter(is_rule).count())
}

fn chain(out: &mut String, (name, (kind, priority), hook): (&str, (&str, i32), &str), rules: &[String]) {
    line(out, 1, &format!("chain {name} {{"));
    line(out, 2, &format!("type {kind} hook {hook} priority {priority}; policy accept;"));
    for rule in rules {
        line(out, 2, rule);
    }
    line(out, 1, "}");
}

fn line(out: &mut String, depth: usize, text: &str) {
    // Writing to a String does not fail.
    let _ = writeln!(out, "{:1$}{text}", "", depth * 4);
}

/// Those of the plan, and with TPROXY what it does with every packet of a connection that is diverted. Its rule does not match while
/// nobody listens: then nothing passes by.
fn inbound_rules(plan: &Plan, table: Table) -> Vec<String> {
    let mut all = rules(plan, &plan.inbound_rules(), table);
    if plan.mode == Mode::Tproxy {
        let diverted = format!("meta l4proto tcp ct mark {CONNECTION_MARK:#x} counter");
        let port = plan.inbound_port;
        all.push(format!("{diverted} tproxy to :{port} accept"));
        all.push(format!("{diverted} drop"));
    }
    all
}

fn rules(plan: &Plan, rules: &[Rule], table: Table) -> Vec<String> {
    let families: Vec<_> = plan.families.iter().copied().filter(|family| table.holds(*family)).collect();
    rules.iter().flat_map(|rule| written(rule, &families)).collect()
}

/// One rule, or one for each version of IP when it names addresses.
fn written(rule: &Rule, families: &[Family]) -> Vec<String> {
    let verdict = match rule.verdict {
        Verdict::Pass => "return".to_owned(),
        // Counted, so that people see whether it does anything.
        Verdict::Redirect(port) => format!("counter redirect to :{port}"),
        // In words that nft before 0.9.9 knows, too.
        Verdict::Divert => format!(
            "tcp flags & (fin|syn|rst|ack) == syn fib daddr type local ct mark set {CONNECTION_MARK:#x}"
        ),
    };
    let quoted = |names: &[String]| set(names.iter().map(|name| format!("\"{name}\"")));
    let one = match &rule.matches {
        Match::From(names) => format!("iifname {}", quoted(names)),
        Match::Through(names) => format!("oifname {}", quoted(names)),
        Match::Uid(ids) => format!("meta skuid {}", set(ids)),
        Match::Gid(ids) => format!("meta skgid {}", set(ids)),
        Match::Mark(mark) => format!("meta mark {mark:#x}"),
        Match::Tcp => "meta l4proto tcp".to_owned(),
        Match::TcpPort(ports) => format!("tcp dport {}", set(ports)),
        Match::UdpPort(ports) => format!("udp dport {}", set(ports)),
        Match::To(nets) | Match::TcpTo(nets) | Match::TcpDns(nets) | Match::UdpDns(nets) => {
            let what = match rule.matches {
                Match::TcpTo(_) => "meta l4proto tcp ".to_owned(),
                Match::TcpDns(_) => format!("tcp dport {DNS} "),
                Match::UdpDns(_) => format!("udp dport {DNS} "),
                _ => String::new(),
            };
            let of = |family: &Family| {
                let mine: Vec<_> = nets.iter().filter(|net| family.has(net)).collect();
                let word = if *family == Family::V4 { "ip" } else { "ip6" };
                (!mine.is_empty()).then(|| format!("{word} daddr {} {what}{verdict}", set(mine)))
            };
            return families.iter().filter_map(of).collect();
        }
    };
    vec![format!("{one} {verdict}")]
}

/// One as itself, several in braces.
fn set(items: impl IntoIterator<Item = impl ToString>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    match &items[..] {
        [one] => one.clone(),
        all => format!("{{ {} }}", all.join(", ")),
    }
}
