//! Arguments of `remora init`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use clap::{Args, ValueEnum};
use ipnet::IpNet;

#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  remora init                                      all connections in and out, to 15006 and 15001
  remora init --dry-run                            only show the rules; needs no root
  remora init --exclude-inbound-ports 22           on a VM: ssh does not depend on the proxy
  remora init --include-outbound-cidrs 10.0.0.0/8 --exclude-outbound-ports 3306,5432
  remora init --mode tproxy --proxy-gid 1337       the program sees the addresses of its clients
  remora init --clean                              remove the rules
  remora init --check                              whether the rules that a CNI plugin made redirect

Runs before the application starts, as root or with NET_ADMIN. Running it again replaces the rules whole. Not captured: what the proxy
sends (--proxy-uid, --proxy-gid, --proxy-mark), loopback, and what is excluded. With Istio's or Linkerd's rules in place it refuses.

Exit status: 0 when the rules are there and redirect, 1 when not, 2 for wrong arguments.")]
pub(crate) struct InitArgs {
    /// How connections come to the proxy
    #[arg(long, value_enum, default_value = "redirect")]
    pub(super) mode: Mode,
    /// Users of the proxy, whose connections are not captured
    #[arg(long, value_name = "UID,…", value_delimiter = ',', default_value = "1337")]
    pub(super) proxy_uid: Vec<u32>,
    /// Groups of the proxy, likewise
    #[arg(long, value_name = "GID,…", value_delimiter = ',')]
    pub(super) proxy_gid: Vec<u32>,
    /// Mark of the proxy's sockets (SO_MARK), likewise; decimal or 0x…
    #[arg(long, value_name = "MARK", value_parser = mark)]
    pub(super) proxy_mark: Option<u32>,
    /// Port of the proxy for connections from others
    #[arg(long, value_name = "PORT", default_value = "15006", value_parser = port)]
    pub(super) inbound_port: u16,
    /// Port of the proxy for connections to others
    #[arg(long, value_name = "PORT", default_value = "15001", value_parser = port)]
    pub(super) outbound_port: u16,
    /// Ports that are captured inbound: *, none, or a list
    #[arg(long, value_name = "PORT,…", default_value = "*", value_parser = ports)]
    pub(super) include_inbound_ports: Selection<u16>,
    /// Ports that are not captured inbound
    #[arg(long, value_name = "PORT,…", value_delimiter = ',', value_parser = port)]
    pub(super) exclude_inbound_ports: Vec<u16>,
    /// Destinations that are captured: *, none, or a list
    #[arg(long, value_name = "CIDR,…", default_value = "*", value_parser = cidrs)]
    pub(super) include_outbound_cidrs: Selection<IpNet>,
    /// Destinations that are not captured
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',', value_parser = cidr)]
    pub(super) exclude_outbound_cidrs: Vec<IpNet>,
    /// Ports that are captured whatever --include-outbound-cidrs says
    #[arg(long, value_name = "PORT,…", value_delimiter = ',', value_parser = port)]
    pub(super) include_outbound_ports: Vec<u16>,
    /// Ports of destinations that are not captured
    #[arg(long, value_name = "PORT,…", value_delimiter = ',', value_parser = port)]
    pub(super) exclude_outbound_ports: Vec<u16>,
    /// Interfaces on which nothing is captured, in either direction
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = interface)]
    pub(super) exclude_interfaces: Vec<String>,
    /// Users whose connections are not captured
    #[arg(long, value_name = "UID,…", value_delimiter = ',')]
    pub(super) exclude_uids: Vec<u32>,
    /// Capture DNS (port 53, UDP and TCP): the proxy answers names of the mesh itself, if its node says DNS_CAPTURE
    #[arg(long)]
    pub(super) capture_dns: bool,
    /// Name servers to which DNS is captured: resolv.conf (those that this machine has now), *, or a list
    #[arg(long, value_name = "CIDR,…", default_value = "resolv.conf", value_parser = dns_servers)]
    pub(super) dns_servers: DnsServers,
    /// Port of the DNS listener
    #[arg(long, value_name = "PORT", default_value = "15053", value_parser = port)]
    pub(super) dns_port: u16,
    /// For which IP; auto: IPv6 only where the kernel has it
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) ip_version: IpVersion,
    /// What applies the rules; auto: nft, and iptables where nft is missing
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) backend: BackendChoice,
    /// Only print the exact rules
    #[arg(long, conflicts_with_all = ["clean", "verify"])]
    pub(super) dry_run: bool,
    /// Only prove that the rules redirect, whoever made them; needs no capability
    #[arg(long, conflicts_with_all = ["clean", "dry_run", "verify", "no_verify"])]
    pub(super) check: bool,
    /// Remove the rules of earlier runs
    #[arg(long, conflicts_with_all = ["verify", "no_verify"])]
    pub(super) clean: bool,
    /// Prove with a connection that the rules redirect (the default)
    #[arg(long, overrides_with = "no_verify")]
    pub(super) verify: bool,
    /// Leave that proof out
    #[arg(long, overrides_with = "verify")]
    pub(super) no_verify: bool,
}

/// How connections come to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    /// REDIRECT: the proxy asks the kernel for the original destination
    Redirect,
    /// TPROXY of what comes in, and routes by which the program sees its clients' addresses; the proxy needs NET_ADMIN
    Tproxy,
}

/// `--ip-version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum IpVersion {
    Auto,
    #[value(name = "4")]
    V4,
    #[value(name = "6")]
    V6,
    Both,
}

/// `--backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum BackendChoice {
    Auto,
    Nft,
    Iptables,
}

/// `*`, or those that are listed; none is the empty list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Selection<T> {
    All,
    Only(Vec<T>),
}

/// `--dns-servers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DnsServers {
    /// Those of this machine; where nobody has looked, all.
    ResolvConf,
    /// What [`Self::ResolvConf`] is here.
    Found(Vec<IpNet>),
    /// As written.
    These(Selection<IpNet>),
}

fn dns_servers(text: &str) -> Result<DnsServers, String> {
    match text.trim() {
        "resolv.conf" => Ok(DnsServers::ResolvConf),
        list => cidrs(list).map(DnsServers::These),
    }
}

fn selection<T>(text: &str, one: fn(&str) -> Result<T, String>) -> Result<Selection<T>, String> {
    match text.trim() {
        "*" => Ok(Selection::All),
        "none" | "" => Ok(Selection::Only(Vec::new())),
        list => list.split(',').map(one).collect::<Result<_, _>>().map(Selection::Only),
    }
}

fn ports(text: &str) -> Result<Selection<u16>, String> {
    selection(text, port)
}

fn cidrs(text: &str) -> Result<Selection<IpNet>, String> {
    selection(text, cidr)
}

fn port(text: &str) -> Result<u16, String> {
    let wrong = || format!("{text:?} is not a port: write 1 to 65535");
    text.trim().parse().ok().filter(|port| *port != 0).ok_or_else(wrong)
}

/// An address is a CIDR of one; bits behind the prefix are dropped, as iptables does.
fn cidr(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let parsed = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let wrong = || format!("{text:?} is not a CIDR: write it as 10.0.0.0/8 or fd00::/8");
    parsed.map(|net| net.trunc()).ok_or_else(wrong)
}

fn mark(text: &str) -> Result<u32, String> {
    let parsed = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u32::from_str_radix(hex, 16));
    // Every packet without a mark has the mark 0.
    parsed
        .ok()
        .filter(|mark| *mark != 0)
        .ok_or_else(|| format!("{text:?} is not a mark: write 1337 or 0x539"))
}

/// As the kernel has it: at most 15 bytes, no white space, no `/`. Quotes and wildcards would mean something to nft and iptables.
pub(crate) fn interface(text: &str) -> Result<String, String> {
    let text = text.trim();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '@');
    if (1..=15).contains(&text.len()) && text.chars().all(plain) && !text.starts_with('-') {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is not the name of an interface: at most 15 letters, digits, '.', '-', '_', '@'"))
}

/// Sorted, each once.
pub(super) fn sorted<T: Ord + Clone>(all: &[T]) -> Vec<T> {
    all.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect()
}
