//! What rules are there already: ours of earlier runs, and those of others.

use super::iptables;
use super::nft::{TABLE, Table};
use super::plan::Family;
use super::tool::{self, Failed};

/// The two programs that are called iptables: one writes nftables, the other the old tables of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Nft,
    Legacy,
}

impl Kind {
    /// The kind that `iptables` is on this machine; None when there is none.
    pub(super) fn default_here() -> Option<Self> {
        let program = tool::find("iptables-restore")?;
        let real = program.canonicalize().unwrap_or(program);
        Some(if real.to_string_lossy().contains("legacy") { Self::Legacy } else { Self::Nft })
    }

    /// The name of `iptables-save` or `-restore` for a kind and version of IP: the plain one if that is it.
    pub(super) fn program(self, family: Family, verb: &str) -> String {
        let base = if family == Family::V4 { "iptables" } else { "ip6tables" };
        match self {
            kind if Self::default_here() == Some(kind) => format!("{base}-{verb}"),
            Self::Nft => format!("{base}-nft-{verb}"),
            Self::Legacy => format!("{base}-legacy-{verb}"),
        }
    }
}

/// The tables nat and, where it matters, mangle of one kind of iptables and one version of IP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) kind: Kind,
    pub(super) family: Family,
    pub(super) text: String,
}

/// What is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// Tables of ours in nftables.
    pub(super) tables: Vec<Table>,
    pub(super) saved: Vec<Saved>,
    /// Rules of others that capture traffic, each named.
    pub(super) foreign: Vec<String>,
    /// Tables of iptables that could not be looked at.
    pub(super) unread: Vec<Unread>,
}

/// A table of iptables that could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unread {
    /// Its name.
    pub(super) table: &'static str,
    pub(super) why: Failed,
    /// There is something in it.
    pub(super) used: bool,
}

/// Chains of other meshes begin so, in whatever table.
const FOREIGN: [(&str, &str); 5] = [
    ("ISTIO_", "Istio"),
    ("PROXY_INIT_", "Linkerd"),
    ("CONSUL_", "Consul"),
    ("KUMA_", "Kuma"),
    ("MESH_", "Kuma"),
];
/// Tables that Istio writes with nft itself.
const FOREIGN_TABLE: &str = "istio-";

/// Looks at nftables if there is `nft`, and at the tables of iptables where something may be: always when iptables is what will be
/// used, the old kind only if its table is in use, since looking would load it. `mangle`: that table matters, whether it is in use or not.
///
/// # Errors
/// `nft` cannot look: what is there would stay unseen. Tools of iptables that cannot are in [`Survey::unread`].
pub(super) async fn survey(families: &[Family], with_iptables: bool, mangle: bool) -> Result<Survey, Failed> {
    let mut found = Survey::default();
    let mut of_nft = Vec::new();
    if tool::find("nft").is_some() {
        let chains = match tool::run("nft", &["list", "chains"], "").await {
            // A kernel without nftables has no rules there.
            Err(failed) if with_iptables && failed.is_unsupported() => String::new(),
            listed => listed?,
        };
        found.tables = own_tables(&chains);
        found.foreign = foreign_in_nft(&chains);
        of_nft = iptables::TABLES.map(|table| own_iptables(&chains, table)).to_vec();
    }
    let default = Kind::default_here();
    for family in [Family::V4, Family::V6] {
        for kind in [Kind::Nft, Kind::Legacy] {
            let needed = with_iptables && default == Some(kind) && families.contains(&family);
            let program = kind.program(family, "save");
            let mut saved = None;
            for (n, table) in iptables::TABLES.into_iter().enumerate() {
                let used = match kind {
                    Kind::Nft => of_nft.get(n).is_some_and(|families| families.contains(&family)),
                    Kind::Legacy => legacy_in_use(family, table),
                };
                let needed = needed && (mangle || table == "nat");
                if !(needed || used && tool::find(&program).is_some()) {
                    continue;
                }
                let text = match tool::run(&program, &["-t", table], "").await {
                    Ok(text) => text,
                    Err(why) => {
                        found.unread.push(Unread { table, why, used });
                        continue;
                    }
                };
                for named in foreign_in_save(&text, table, &program) {
                    if !found.foreign.contains(&named) {
                        found.foreign.push(named);
                    }
                }
                saved.get_or_insert_with(String::new).push_str(&text);
            }
            found.saved.extend(saved.map(|text| Saved { kind, family, text }));
        }
    }
    Ok(found)
}

impl Survey {
    pub(super) fn saved(&self, kind: Kind, family: Family) -> &str {
        let found = self.saved.iter().find(|saved| saved.kind == kind && saved.family == family);
        found.map_or("", |saved| &saved.text)
    }
}

/// Per network namespace: the old tables that are in use.
fn legacy_in_use(family: Family, table: &str) -> bool {
    let file = match family {
        Family::V4 => "/proc/net/ip_tables_names",
        Family::V6 => "/proc/net/ip6_tables_names",
    };
    std::fs::read_to_string(file).is_ok_and(|names| names.lines().any(|name| name == table))
}

/// The words of each `table FAMILY NAME {` line, with the names of its chains.
fn in_nft(chains: &str) -> Vec<(&str, &str, &str)> {
    let (mut family, mut table) = ("", "");
    let mut all = Vec::new();
    for line in chains.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["table", f, t, ..] => {
                (family, table) = (f, t);
                all.push((f, t, ""));
            }
            ["chain", chain, ..] => all.push((family, table, chain)),
            _ => {}
        }
    }
    all
}

fn own_tables(chains: &str) -> Vec<Table> {
    let ours = |table: &Table| in_nft(chains).iter().any(|(f, t, _)| *f == table.family() && *t == TABLE);
    Table::ALL.into_iter().filter(ours).collect()
}

/// The versions of IP for which iptables of the new kind has chains of ours in this table.
fn own_iptables(chains: &str, table: &str) -> Vec<Family> {
    let ours = |family: &Family| {
        let name = if *family == Family::V4 { "ip" } else { "ip6" };
        let is_ours = |chain: &str| iptables::CHAINS.iter().any(|(ours, _)| *ours == chain);
        in_nft(chains).iter().any(|(f, t, chain)| *f == name && *t == table && is_ours(chain))
    };
    [Family::V4, Family::V6].into_iter().filter(ours).collect()
}

fn foreign_in_nft(chains: &str) -> Vec<String> {
    let named = |(family, table, chain): (&str, &str, &str)| {
        if chain.is_empty() {
            let istio = table.starts_with(FOREIGN_TABLE);
            return istio.then(|| format!("Istio's table {family} {table} (nft)"));
        }
        let owner = owner(chain)?;
        Some(format!("{owner}'s chain {chain} in table {family} {table} (nft)"))
    };
    in_nft(chains).into_iter().filter_map(named).collect()
}

fn foreign_in_save(saved: &str, table: &str, program: &str) -> Vec<String> {
    let chains = saved.lines().filter_map(|line| line.strip_prefix(':')?.split_whitespace().next());
    let named = |chain: &str| Some(format!("{}'s chain {chain} in table {table} ({program})", owner(chain)?));
    chains.filter_map(named).collect()
}

fn owner(chain: &str) -> Option<&'static str> {
    FOREIGN.iter().find(|(prefix, _)| chain.starts_with(prefix)).map(|(_, owner)| *owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAINS: &str = "table inet remora {\n\tchain inbound {\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n\t}\n}
table ip nat {\n\tchain REMORA_OUTPUT {\n\t}\n\tchain ISTIO_OUTPUT {\n\t}\n\tchain DOCKER {\n\t}\n}
table inet istio-proxy-nat {\n}\ntable ip6 nat {\n\tchain PROXY_INIT_OUTPUT {\n\t}\n}\n";

    #[test]
    fn what_is_ours_is_found_in_every_family() {
        assert_eq!(own_tables(CHAINS), [Table::Inet]);
        assert_eq!(own_tables("table ip remora {\n}\ntable ip6 remora {\n}\n"), [Table::Ip, Table::Ip6]);
        assert_eq!(own_tables("table bridge remora {\n}\n"), []);
        assert_eq!(own_iptables(CHAINS, "nat"), [Family::V4]);
        assert_eq!(own_iptables(CHAINS, "mangle"), []);
    }

    #[test]
    fn rules_of_others_are_named() {
        let named = [
            "Istio's chain ISTIO_OUTPUT in table ip nat (nft)",
            "Istio's table inet istio-proxy-nat (nft)",
            "Linkerd's chain PROXY_INIT_OUTPUT in table ip6 nat (nft)",
        ];
        assert_eq!(foreign_in_nft(CHAINS), named);
        let saved = "*nat\n:OUTPUT ACCEPT [0:0]\n:PROXY_INIT_REDIRECT - [0:0]\n-A OUTPUT -j PROXY_INIT_REDIRECT\nCOMMIT\n";
        let named = "Linkerd's chain PROXY_INIT_REDIRECT in table nat (iptables-legacy-save)";
        assert_eq!(foreign_in_save(saved, "nat", "iptables-legacy-save"), [named]);
        assert!(foreign_in_save(":DOCKER - [0:0]\n", "nat", "iptables-save").is_empty());
    }
}
