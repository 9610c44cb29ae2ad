//! Routes beside TPROXY: what programs on loopback answer to the addresses of their clients is for this machine. The text is pure; `ip`
//! (iproute2) applies it.

use std::fmt::Write;
use std::path::Path;

use anyhow::ensure;

use super::args::Mode;
use super::plan::{Family, Plan};
use super::tool::{self, Failed};

/// A routing table of our own.
const TABLE: &str = "15006";
/// Its one route.
const ROUTE: &str = "local default dev lo";
/// Right behind the table `local`, and in front of the rules of VPNs, which send all of this machine elsewhere (Tailscale's begin at 5210).
const PRIORITY: &str = "1";

/// `ip` for one version of IP.
pub(super) const fn version(family: Family) -> &'static str {
    match family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    }
}

/// The rule that leads to the table, as `ip rule show` has it behind its priority. What comes from elsewhere cannot have such a source.
fn rule(family: Family) -> String {
    let loopback = match family {
        Family::V4 => "127.0.0.0/8",
        Family::V6 => "::1",
    };
    format!("from {loopback} iif lo lookup {TABLE}")
}

/// Rules that lead to our table, of what `ip rule show` said: priority, and the rest.
fn ours(shown: &str) -> Vec<(&str, String)> {
    shown.lines().filter_map(split).filter(|(_, rest)| rest.ends_with(&format!("lookup {TABLE}"))).collect()
}

fn split(line: &str) -> Option<(&str, String)> {
    let (priority, rest) = line.split_once(':')?;
    Some((priority.trim(), rest.split_whitespace().collect::<Vec<_>>().join(" ")))
}

fn is_there(family: Family, shown: &str) -> bool {
    ours(shown) == [(PRIORITY, rule(family))]
}

/// What `ip -batch -` is told to put the routes in place, where `shown` is what `ip rule show` says.
pub(super) fn install(family: Family, shown: &str) -> String {
    let mut out = format!("route replace {ROUTE} table {TABLE}\n");
    if !is_there(family, shown) {
        remove_rules(&mut out, shown);
        // Writing to a String does not fail.
        let _ = writeln!(out, "rule add {} priority {PRIORITY}", rule(family));
    }
    out
}

fn remove_rules(out: &mut String, shown: &str) {
    for (priority, rest) in ours(shown) {
        let _ = writeln!(out, "rule del {rest} priority {priority}");
    }
}

/// What takes them away; None when there are none. `route`: what `ip route show` says of our table.
fn removal(shown: &str, route: &str) -> Option<String> {
    let mut out = String::new();
    remove_rules(&mut out, shown);
    if !route.trim().is_empty() {
        let _ = writeln!(out, "route flush table {TABLE}");
    }
    (!out.is_empty()).then_some(out)
}

/// Puts the routes in place that a plan needs. Gives the versions of IP that had none before, for [`undo`].
///
/// # Errors
/// There is no `ip`, or what it says. What was put there is gone again, unless it says so.
pub(super) async fn establish(plan: &Plan) -> anyhow::Result<Vec<Family>> {
    let mut new = Vec::new();
    if plan.mode != Mode::Tproxy {
        return Ok(new);
    }
    ensure!(
        tool::find("ip").is_some(),
        "TPROXY needs routes of its own, and ip is not installed: install the package iproute2. Nothing was changed"
    );
    for family in &plan.families {
        if let Err(failed) = put(*family, &mut new).await {
            return Err(undo(&new, anyhow::Error::new(failed).context("no rules were changed")).await);
        }
    }
    Ok(new)
}

async fn put(family: Family, new: &mut Vec<Family>) -> Result<(), Failed> {
    let shown = show_rules(family).await?;
    // Before: of a batch that fails something may be there.
    if ours(&shown).is_empty() {
        new.push(family);
    }
    batch(family, &install(family, &shown)).await
}

/// Takes routes away that [`establish`] has put where there were none, because of `why`. Gives why, and whether any stay.
pub(super) async fn undo(new: &[Family], mut why: anyhow::Error) -> anyhow::Error {
    for family in new {
        if let Err(error) = remove(*family).await {
            let name = family.name();
            why = why.context(format!("routes of {name} stay ({error}): see remora init --clean"));
        }
    }
    why
}

/// Takes the routes away that a plan does not need: those of the other version of IP, or of an earlier run with another mode.
///
/// # Errors
/// What `ip` says.
pub(super) async fn remove_others(plan: &Plan) -> Result<(), Failed> {
    for family in [Family::V4, Family::V6] {
        if plan.mode != Mode::Tproxy || !plan.families.contains(&family) {
            remove(family).await?;
        }
    }
    Ok(())
}

/// Takes the routes of every run away. Gives what it was.
///
/// # Errors
/// What `ip` says.
pub(super) async fn clean() -> Result<Vec<String>, Failed> {
    let mut removed = Vec::new();
    for family in [Family::V4, Family::V6] {
        if remove(family).await? {
            removed.push(format!("routes of {} (table {TABLE})", family.name()));
        }
    }
    Ok(removed)
}

async fn remove(family: Family) -> Result<bool, Failed> {
    let shown = match show_rules(family).await {
        Err(failed) if has_none(&failed) => return Ok(false),
        shown => shown?,
    };
    // A table that was never there is an error for it.
    let route = tool::run("ip", &[version(family), "route", "show", "table", TABLE], "").await;
    let Some(text) = removal(&shown, &route.unwrap_or_default()) else { return Ok(false) };
    batch(family, &text).await?;
    Ok(true)
}

/// Without `ip` no run has made any, nor with one that knows no rules (BusyBox may not). A kernel without this version of IP, or without
/// such rules, has none.
fn has_none(failed: &Failed) -> bool {
    failed.is_missing() || failed.is_unsupported() || failed.why.contains("'rule'")
}

/// Whether the routes of a plan are there, whole. Needs no right.
///
/// # Errors
/// They are not.
pub(super) async fn read_back(plan: &Plan) -> anyhow::Result<()> {
    if plan.mode != Mode::Tproxy {
        return Ok(());
    }
    for family in &plan.families {
        let shown = show_rules(*family).await?;
        ensure!(
            is_there(*family, &shown),
            "ip {} rule show lacks the rule of table {TABLE}, or has others",
            version(*family)
        );
        let route = tool::run("ip", &[version(*family), "route", "show", "table", TABLE], "").await?;
        ensure!(route.trim().starts_with(ROUTE), "table {TABLE} of {} has no route {ROUTE}", family.name());
    }
    Ok(())
}

/// What people should know of this machine: programs of it may send from 127.0.0.1 to others (`route_localnet` of an interface in `conf`), as
/// Docker without its userland proxy has it, and kube-proxy. Our rule takes that for an answer to a client.
pub(super) fn note(plan: &Plan, conf: &Path) -> Option<String> {
    if plan.mode != Mode::Tproxy || !plan.families.contains(&Family::V4) {
        return None;
    }
    let is_on =
        |at: &Path| std::fs::read_to_string(at.join("route_localnet")).is_ok_and(|text| text.trim() == "1");
    let interfaces = std::fs::read_dir(conf).into_iter().flatten().flatten();
    let on = interfaces.filter(|entry| is_on(&entry.path()));
    let mut names: Vec<_> = on.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    let names = names.join(", ");
    (!names.is_empty()).then(|| {
        format!(
            "route_localnet is on ({names}): what is sent from 127.0.0.1 to another machine does not arrive"
        )
    })
}

async fn show_rules(family: Family) -> Result<String, Failed> {
    tool::run("ip", &[version(family), "rule", "show"], "").await
}

async fn batch(family: Family, text: &str) -> Result<(), Failed> {
    tool::run("ip", &[version(family), "-batch", "-"], text).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str =
        "0:\tfrom all lookup local\n1:\tfrom 127.0.0.0/8 iif lo lookup 15006\n32766:\tfrom all lookup main\n";

    #[test]
    fn a_second_run_changes_no_rule_and_others_stay() {
        assert_eq!(install(Family::V4, SHOWN), "route replace local default dev lo table 15006\n");
        // Of an earlier version, and of somebody else.
        let half = "0:\tfrom all lookup local\n15006:\tfrom all fwmark 0x539 lookup 15006\n15008:\tfrom all lookup 150060\n";
        let lines: Vec<_> = install(Family::V4, half).lines().map(ToOwned::to_owned).collect();
        assert_eq!(
            lines,
            [
                "route replace local default dev lo table 15006",
                "rule del from all fwmark 0x539 lookup 15006 priority 15006",
                "rule add from 127.0.0.0/8 iif lo lookup 15006 priority 1",
            ]
        );
    }

    #[test]
    fn what_is_taken_away_is_ours() {
        assert_eq!(removal("0:\tfrom all lookup local\n", ""), None);
        let text = removal(SHOWN, "local default dev lo scope host\n").unwrap();
        assert_eq!(
            text,
            "rule del from 127.0.0.0/8 iif lo lookup 15006 priority 1\nroute flush table 15006\n"
        );
    }
}
