//! `remora init`: the rules that bring the traffic of a network namespace to its proxy.
//!
//! `args` -> `plan` -> `nft` or `iptables` is pure; `survey` looks at what is there, `apply` changes it, `verify` proves it.

mod apply;
mod args;
mod iptables;
mod nft;
mod plan;
mod routes;
mod summary;
mod survey;
#[cfg(test)]
mod tests;
mod tool;
mod verify;

use std::io::IsTerminal;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use ipnet::IpNet;
use remora_proxy::dns::servers;
use tokio::time::Instant;

use crate::commands;
use apply::{Applied, Backend};
use args::{BackendChoice, DnsServers, IpVersion, Mode};
pub(crate) use args::{InitArgs, interface};
pub(crate) use plan::PROXY_PORTS;
use plan::{NoPlan, Plan};

/// Exit status when the arguments are wrong.
const WRONG: u8 = 2;

const IPV6_SWITCHES: &str = "/proc/sys/net/ipv6/conf";
const INTERFACES: &str = "/proc/sys/net/ipv4/conf";
const IPV6_ADDRESSES: &str = "/proc/net/if_inet6";

pub(crate) fn run(args: &InitArgs) -> ExitCode {
    commands::run("init", 1, init(args))
}

async fn init(args: &InitArgs) -> anyhow::Result<u8> {
    let began = Instant::now();
    if args.clean {
        apply::allowed()?;
        let removed = apply::clean().await?;
        let what = if removed.is_empty() { "nothing to remove".to_owned() } else { removed.join("; ") };
        let rows = [("removed", what), ("time", format!("{:.1} ms", began.elapsed().as_secs_f64() * 1000.0))];
        print!("{}", summary::text(&rows, std::io::stdout().is_terminal()));
        return Ok(0);
    }
    let ipv6 = ipv6_is_on(Path::new(IPV6_SWITCHES), Path::new(IPV6_ADDRESSES));
    // A dry run may be for another machine.
    let assumed = ipv6 || args.dry_run && args.ip_version != IpVersion::Auto;
    let named = args.capture_dns.then(servers::to_capture).flatten();
    let plan = match plan::plan(&with_name_servers(args, named.as_deref()), assumed) {
        Ok(plan) => plan,
        Err(NoPlan::Arguments(wrong)) => {
            for mistake in wrong {
                eprintln!("error: {mistake}");
            }
            return Ok(WRONG);
        }
        Err(NoPlan::Kernel(why)) => anyhow::bail!(why),
    };
    if args.dry_run {
        print!("{}", dry_run(&plan, args.backend));
        return Ok(0);
    }
    if args.check {
        let why = "nothing leads connections to the proxy here, and this pod will not recover: the CNI plugin of this node is missing, or came after it. \
                   Delete the pod once the plugin is there";
        routes::read_back(&plan).await.context(why)?;
        let shown = verify::prove(&plan, "not proved").await.context(why)?;
        let rows = [("self-test", shown.join("; "))];
        print!("{}", summary::text(&rows, std::io::stdout().is_terminal()));
        return Ok(0);
    }
    let backend = apply::backend(args.backend)?;
    apply::allowed()?;
    let applied = apply::apply(&plan, backend).await?;
    let shown = if args.no_verify {
        Vec::new()
    } else {
        let failed = "the rules are in place, but the self-test failed; they stay, so that nothing passes by unseen (remora init --clean removes them)";
        verify::verify(&plan, &applied).await.context(failed)?
    };
    let mut rows = summary::rows(&plan, &applied, ipv6, &shown, began.elapsed());
    rows.extend(routes::note(&plan, Path::new(INTERFACES)).map(|note| ("note", note)));
    rows.extend(summary::circle(&plan, servers::asks_only_here).map(|note| ("note", note)));
    print!("{}", summary::text(&rows, std::io::stdout().is_terminal()));
    Ok(0)
}

/// With the name servers of this machine in the place of `resolv.conf`, where only these are asked from here.
fn with_name_servers(args: &InitArgs, servers: Option<&[IpAddr]>) -> InitArgs {
    let mut args = args.clone();
    if let (DnsServers::ResolvConf, Some(servers)) = (&args.dns_servers, servers) {
        args.dns_servers = DnsServers::Found(servers.iter().copied().map(IpNet::from).collect());
    }
    args
}

/// Whether `remora init` takes these arguments (the first is its name) where the kernel has IPv4 and IPv6.
///
/// # Errors
/// Every mistake that it would name.
pub(crate) fn check(arguments: &[String]) -> Result<(), Vec<String>> {
    match plan::plan(&parse(arguments)?, true) {
        Ok(_) => Ok(()),
        Err(NoPlan::Arguments(wrong)) => Err(wrong),
        Err(NoPlan::Kernel(why)) => Err(vec![why]),
    }
}

fn parse(arguments: &[String]) -> Result<InitArgs, Vec<String>> {
    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: InitArgs,
    }
    let first = |error: clap::Error| {
        let text = error.to_string();
        vec![text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()]
    };
    <Command as clap::Parser>::try_parse_from(arguments).map(|parsed| parsed.args).map_err(first)
}

/// Why there are no rules.
#[derive(Debug)]
pub(crate) enum NotDone {
    /// Every mistake of the arguments.
    Arguments(Vec<String>),
    /// What the kernel or a tool says.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for NotDone {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// Makes the rules of `remora init` with these arguments (the first is its name) in the network namespace of this thread, and gives what
/// was shown of them. The thread has to be the main one: what is read in /proc/self is about that. DNS is captured to every server: the files
/// here are the node's, and name its servers, not the pod's.
///
/// # Errors
/// As `remora init`.
pub(crate) async fn establish(arguments: &[String]) -> Result<Vec<String>, NotDone> {
    let (choice, plan) = planned(arguments)?;
    let backend = apply::backend(choice)?;
    apply::allowed()?;
    let applied = apply::apply(&plan, backend).await?;
    if verify::has_loopback(&plan).await {
        return Ok(verify::verify(&plan, &applied).await?);
    }
    verify::read_back(&plan, &applied).await?;
    Ok(vec!["only read back: lo is not up yet".to_owned()])
}

/// Whether the rules that [`establish`] makes are there, whole.
///
/// # Errors
/// They are not: says what is missing.
pub(crate) async fn holds(arguments: &[String]) -> Result<(), NotDone> {
    let (choice, plan) = planned(arguments)?;
    let first = match apply::backend(choice)? {
        Backend::Nft => Applied::Nft(nft::tables(&plan)),
        Backend::Iptables(kind) => Applied::Iptables(kind),
    };
    let Err(missing) = verify::read_back(&plan, &first).await else { return Ok(()) };
    // Where the kernel has no NAT in `inet`.
    if first == Applied::Nft(vec![nft::Table::Inet])
        && verify::read_back(&plan, &Applied::Nft(nft::SEPARATE.to_vec())).await.is_ok()
    {
        return Ok(());
    }
    Err(missing.into())
}

fn planned(arguments: &[String]) -> Result<(BackendChoice, Plan), NotDone> {
    let args = parse(arguments).map_err(NotDone::Arguments)?;
    match plan::plan(&args, ipv6_is_on(Path::new(IPV6_SWITCHES), Path::new(IPV6_ADDRESSES))) {
        Ok(plan) => Ok((args.backend, plan)),
        Err(NoPlan::Arguments(wrong)) => Err(NotDone::Arguments(wrong)),
        Err(NoPlan::Kernel(why)) => Err(NotDone::Failed(anyhow::anyhow!(why))),
    }
}

/// The exact rules, for a namespace in which there are none yet. Without any tool, as nft would have them.
fn dry_run(plan: &Plan, choice: BackendChoice) -> String {
    let iptables = match choice {
        BackendChoice::Auto => matches!(apply::backend(choice), Ok(Backend::Iptables(_))),
        BackendChoice::Nft => false,
        BackendChoice::Iptables => true,
    };
    let routes: String = match plan.mode {
        Mode::Redirect => String::new(),
        Mode::Tproxy => {
            let of = |family: &plan::Family| {
                format!("# ip {} -batch -\n{}", routes::version(*family), routes::install(*family, ""))
            };
            plan.families.iter().map(of).collect()
        }
    };
    if !iptables {
        return format!("{routes}# nft -f -\n{}", nft::script(plan, &nft::tables(plan), &[]));
    }
    let of = |family: &plan::Family| {
        let program = if *family == plan::Family::V4 { "iptables-restore" } else { "ip6tables-restore" };
        format!("# {program} --noflush\n{}", iptables::install(plan, *family, ""))
    };
    routes + &plan.families.iter().map(of).collect::<String>()
}

/// Whether any interface but loopback has IPv6, or a new one would, by the switches in `conf` and the addresses in `addresses`
/// (`if_inet6`). Neither is there: the kernel has none (`ipv6.disable=1`). What cannot be read counts as on: IPv6 that is taken for
/// off passes by.
fn ipv6_is_on(conf: &Path, addresses: &Path) -> bool {
    let missing = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let addresses = std::fs::read_to_string(addresses);
    let interfaces = match std::fs::read_dir(conf) {
        Ok(interfaces) => interfaces,
        // Hidden from this container, say.
        Err(error) => return !missing(&error) || !addresses.is_err_and(|error| missing(&error)),
    };
    // `all` only says what was written last to all of them.
    let counts = |name: &std::ffi::OsStr| name != "all" && name != "lo";
    let on = |folder: &Path| match std::fs::read_to_string(folder.join("disable_ipv6")) {
        Ok(text) => text.trim() == "0",
        // An interface may have gone meanwhile.
        Err(error) => !missing(&error),
    };
    let switched =
        interfaces.flatten().filter(|entry| counts(&entry.file_name())).any(|entry| on(&entry.path()));
    let other = |line: &str| line.split_whitespace().last().is_some_and(|name| name != "lo");
    switched || addresses.is_ok_and(|text| text.lines().any(other))
}
