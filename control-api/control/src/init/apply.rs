//! Puts the rules in place, whole or not at all, and takes them away.

use anyhow::{Context, bail};

use super::args::{BackendChoice, Mode};
use super::nft::{self, Table};
use super::plan::{Family, Plan};
use super::survey::{Kind, Saved, Survey, Unread, survey};
use super::{iptables, routes, tool};

/// What applies the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    Nft,
    Iptables(Kind),
}

/// Where the rules are now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Applied {
    Nft(Vec<Table>),
    Iptables(Kind),
}

/// The backend that was asked for, or that is there.
///
/// # Errors
/// It is not installed: names the package.
pub(super) fn backend(choice: BackendChoice) -> anyhow::Result<Backend> {
    let nft = tool::find("nft").map(|_| Backend::Nft);
    let iptables = Kind::default_here().map(Backend::Iptables);
    let (found, missing) = match choice {
        BackendChoice::Auto => (nft.or(iptables), "neither nft nor iptables-restore is"),
        BackendChoice::Nft => (nft, "nft is not"),
        BackendChoice::Iptables => (iptables, "iptables-restore is not"),
    };
    let packages = match choice {
        BackendChoice::Auto => "nftables (or iptables)",
        BackendChoice::Nft => "nftables",
        BackendChoice::Iptables => "iptables",
    };
    found.with_context(|| format!("{missing} installed: install the package {packages}"))
}

/// Bit of CAP_NET_ADMIN in `CapEff` of /proc/self/status (capability.h).
const NET_ADMIN: u64 = 1 << 12;

/// # Errors
/// This process has no CAP_NET_ADMIN.
pub(super) fn allowed() -> anyhow::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if may_change_rules(&status) {
        return Ok(());
    }
    bail!(
        "changing rules needs the capability NET_ADMIN: run it as root, or in a pod with securityContext.capabilities.add: [NET_ADMIN]. \
         Nothing was changed"
    )
}

fn may_change_rules(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    // When the kernel does not say, the tools will.
    bits.is_none_or(|bits| bits & NET_ADMIN != 0)
}

/// Looks at what is there, and puts the rules of `plan` in its place.
///
/// # Errors
/// Rules of others, and what the tools say. Nothing was changed then, unless it says so.
pub(super) async fn apply(plan: &Plan, backend: Backend) -> anyhow::Result<Applied> {
    let with_iptables = matches!(backend, Backend::Iptables(_));
    let there =
        survey(&plan.families, with_iptables, of_mangle(plan.mode)).await.context("nothing was changed")?;
    // A kernel may not have the table mangle, which only TPROXY needs.
    let matters = |unread: &&Unread| unread.used || unread.table == "nat" || plan.mode == Mode::Tproxy;
    if let Some(unread) = there.unread.iter().find(matters) {
        return Err(unread.why.clone()).context("nothing was changed");
    }
    if !there.foreign.is_empty() {
        bail!(
            "another mesh captures traffic here, and both would capture each other's: {}. Take this pod out of the other mesh, or remove \
             its rules. Nothing was changed",
            there.foreign.join("; ")
        );
    }
    // Routes lead nothing while there are no rules, and rules nothing where there are no routes.
    let new = routes::establish(plan).await?;
    let applied = match apply_rules(plan, backend, &there).await {
        Ok(applied) => applied,
        Err(failed) => return Err(routes::undo(&new, failed).await),
    };
    // What an earlier run wrote with another tool. It goes last, so that there is no moment without rules.
    let superseded =
        |saved: &&Saved| backend != Backend::Iptables(saved.kind) || !plan.families.contains(&saved.family);
    remove_saved(there.saved.iter().filter(superseded))
        .await
        .context("the new rules are there, and older ones besides")?;
    if with_iptables && !there.tables.is_empty() {
        let removal = nft::removal(&there.tables);
        tool::run("nft", &["-f", "-"], &removal)
            .await
            .context("the new rules are there, and older ones besides")?;
    }
    routes::remove_others(plan).await.context("the new rules are there, and routes of older ones besides")?;
    Ok(applied)
}

async fn apply_rules(plan: &Plan, backend: Backend, there: &Survey) -> anyhow::Result<Applied> {
    match backend {
        Backend::Nft => Ok(Applied::Nft(apply_nft(plan, there).await?)),
        Backend::Iptables(kind) => {
            apply_iptables(plan, kind, there).await?;
            Ok(Applied::Iptables(kind))
        }
    }
}

async fn apply_nft(plan: &Plan, there: &Survey) -> anyhow::Result<Vec<Table>> {
    let tables = nft::tables(plan);
    let Err(first) = tool::run("nft", &["-f", "-"], &nft::script(plan, &tables, &there.tables)).await else {
        return Ok(tables);
    };
    // No NAT in `inet`: then a table for each version of IP.
    if tables == [Table::Inet] && !first.is_forbidden() {
        let script = nft::script(plan, &nft::SEPARATE, &there.tables);
        if tool::run("nft", &["-f", "-"], &script).await.is_ok() {
            return Ok(nft::SEPARATE.to_vec());
        }
    }
    Err(first).context("the rules were refused as a whole, and nothing was changed")
}

/// Whether the table mangle has to be looked at. Without nft nobody else says what is in it.
fn of_mangle(mode: Mode) -> bool {
    mode == Mode::Tproxy || tool::find("nft").is_none()
}

/// IPv4 and IPv6 are two transactions: when one fails, neither stays.
async fn apply_iptables(plan: &Plan, kind: Kind, there: &Survey) -> anyhow::Result<()> {
    for family in &plan.families {
        let text = iptables::install(plan, *family, there.saved(kind, *family));
        let program = kind.program(*family, "restore");
        let Err(failed) = tool::run(&program, &["--noflush", "-w", "5"], &text).await else { continue };
        let gone = undo(plan, kind).await;
        let now = match gone {
            Ok(()) => "what was applied before it was removed again: nothing is captured now".to_owned(),
            Err(error) => format!(
                "what was applied before it could not be removed ({error:#}): see remora init --clean"
            ),
        };
        let hint = match family {
            Family::V6 => ". --ip-version 4 leaves IPv6 as it is, uncaptured",
            Family::V4 => "",
        };
        return Err(failed)
            .with_context(|| format!("the rules for {} were refused; {now}{hint}", family.name()));
    }
    Ok(())
}

async fn undo(plan: &Plan, kind: Kind) -> anyhow::Result<()> {
    for family in &plan.families {
        // A table that cannot be read has no rules of ours: they would have been refused, too.
        for table in iptables::TABLES {
            let program = kind.program(*family, "save");
            let Ok(text) = tool::run(&program, &["-t", table], "").await else { continue };
            let saved = Saved { kind, family: *family, text };
            remove_saved([&saved].into_iter()).await?;
        }
    }
    Ok(())
}

async fn remove_saved(saved: impl Iterator<Item = &Saved>) -> Result<Vec<String>, tool::Failed> {
    let mut removed = Vec::new();
    for saved in saved {
        let Some(text) = iptables::removal(&saved.text) else { continue };
        let program = saved.kind.program(saved.family, "restore");
        tool::run(&program, &["--noflush", "-w", "5"], &text).await?;
        removed.push(format!("chains REMORA_* of {} ({program})", saved.family.name()));
    }
    Ok(removed)
}

/// Removes everything that earlier runs left, by whatever tool. Gives what it was.
///
/// # Errors
/// What the tools say. A table that is in use and cannot be looked at is told after everything else was removed.
pub(super) async fn clean() -> anyhow::Result<Vec<String>> {
    backend(BackendChoice::Auto)?;
    let families: &[Family] = if Kind::default_here().is_some() { &[Family::V4, Family::V6] } else { &[] };
    // Without nft nobody else says whether iptables has something.
    let there = survey(families, tool::find("nft").is_none(), of_mangle(Mode::Redirect)).await?;
    let mut removed = Vec::new();
    if !there.tables.is_empty() {
        tool::run("nft", &["-f", "-"], &nft::removal(&there.tables)).await?;
        removed.extend(there.tables.iter().map(|table| format!("table {} {}", table.family(), nft::TABLE)));
    }
    removed.extend(remove_saved(there.saved.iter()).await?);
    let of_routes = routes::clean().await;
    let of_routes = of_routes.with_context(|| format!("{}; routes may still be there", told(&removed)))?;
    removed.extend(of_routes);
    // One that is not in use has no rules of ours.
    if let Some(unread) = there.unread.iter().find(|unread| unread.used) {
        return Err(unread.why.clone()).with_context(|| {
            format!("{}; the rules that could not be read may still be there", told(&removed))
        });
    }
    Ok(removed)
}

fn told(removed: &[String]) -> String {
    format!("removed: {}", if removed.is_empty() { "nothing".to_owned() } else { removed.join("; ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capability_is_one_bit() {
        assert!(may_change_rules("Name:\tremora\nCapEff:\t0000000000001000\n"));
        assert!(may_change_rules("CapEff:\t000001ffffffffff\n"));
        assert!(!may_change_rules("CapEff:\t000001ffffffefff\n"));
        assert!(!may_change_rules("CapEff:\t0000000000000000\n"));
        assert!(may_change_rules(""));
    }
}
