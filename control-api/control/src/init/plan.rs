//! What is to be captured: arguments -> plan -> rules. Pure; both backends write down the same rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::args::{DnsServers, InitArgs, IpVersion, Mode, Selection, sorted};

/// Mark of connections that began while TPROXY was there: others go on as they are. Packets get none: the kernel would look for the way
/// back to their source by it (`src_valid_mark`, as WireGuard sets it), and what is captured is for this machine anyway.
pub(super) const CONNECTION_MARK: u32 = 0x53a;

/// Ports that others reach on the proxy itself: HBONE, Istio's agent, readiness, metrics.
pub(crate) const PROXY_PORTS: [u16; 4] = [15008, 15020, 15021, 15090];
pub(super) const DNS: u16 = 53;
/// Addresses that nobody has: TEST-NET-1, 2001:db8::/32.
pub(super) const NOBODY: (IpAddr, IpAddr) =
    (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)));

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const fn has(self, net: &IpNet) -> bool {
        matches!((self, net), (Self::V4, IpNet::V4(_)) | (Self::V6, IpNet::V6(_)))
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// What a rule looks at. A list matches when one of it does; no list here is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Match {
    From(Vec<String>),
    Through(Vec<String>),
    Uid(Vec<u32>),
    Gid(Vec<u32>),
    Mark(u32),
    To(Vec<IpNet>),
    Tcp,
    TcpTo(Vec<IpNet>),
    TcpPort(Vec<u16>),
    UdpPort(Vec<u16>),
    /// [`DNS`] of these servers.
    TcpDns(Vec<IpNet>),
    UdpDns(Vec<IpNet>),
}

/// What a rule does with a connection. The first rule that matches decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Pass,
    Redirect(u16),
    /// Begins to be led to the inbound port unchanged, if it is for an address of this machine; see [`Plan::mode`].
    Divert,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) matches: Match,
    pub(super) verdict: Verdict,
}

/// DNS that is captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CapturedDns {
    /// Of the proxy.
    pub(super) port: u16,
    pub(super) servers: Selection<IpNet>,
}

/// Arguments that were checked; lists are sorted, and CIDRs do not overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// How what comes in gets to the proxy.
    pub(super) mode: Mode,
    pub(super) families: Vec<Family>,
    pub(super) proxy_uids: Vec<u32>,
    pub(super) proxy_gids: Vec<u32>,
    pub(super) proxy_mark: Option<u32>,
    pub(super) exclude_uids: Vec<u32>,
    pub(super) exclude_interfaces: Vec<String>,
    pub(super) inbound_port: u16,
    pub(super) outbound_port: u16,
    pub(super) inbound: Selection<u16>,
    pub(super) exclude_inbound: Vec<u16>,
    pub(super) outbound: Selection<IpNet>,
    pub(super) exclude_outbound: Vec<IpNet>,
    pub(super) include_ports: Vec<u16>,
    pub(super) exclude_ports: Vec<u16>,
    pub(super) dns: Option<CapturedDns>,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoPlan {
    /// Arguments that contradict each other, all of them.
    Arguments(Vec<String>),
    /// What the kernel does not have.
    Kernel(String),
}

/// The plan for a kernel with (`ipv6`) or without IPv6.
///
/// # Errors
/// What contradicts itself, or is not there.
pub(super) fn plan(args: &InitArgs, ipv6: bool) -> Result<Plan, NoPlan> {
    // It is there already; and where nobody listens TPROXY would leave a caller without an answer.
    let own = if args.mode == Mode::Tproxy { std::slice::from_ref(&args.inbound_port) } else { &[] };
    let plan = Plan {
        mode: args.mode,
        families: families(args.ip_version, ipv6),
        proxy_uids: sorted(&args.proxy_uid),
        proxy_gids: sorted(&args.proxy_gid),
        proxy_mark: args.proxy_mark,
        exclude_uids: sorted(&args.exclude_uids),
        exclude_interfaces: sorted(&args.exclude_interfaces),
        inbound_port: args.inbound_port,
        outbound_port: args.outbound_port,
        inbound: match &args.include_inbound_ports {
            Selection::All => Selection::All,
            Selection::Only(ports) => Selection::Only(sorted(ports)),
        },
        exclude_inbound: sorted(&[&PROXY_PORTS[..], &args.exclude_inbound_ports, own].concat()),
        outbound: match &args.include_outbound_cidrs {
            Selection::All => Selection::All,
            Selection::Only(nets) => Selection::Only(merged(nets)),
        },
        exclude_outbound: merged(&args.exclude_outbound_cidrs),
        include_ports: sorted(&args.include_outbound_ports),
        exclude_ports: sorted(&args.exclude_outbound_ports),
        dns: args.capture_dns.then(|| CapturedDns {
            port: args.dns_port,
            servers: match &args.dns_servers {
                DnsServers::ResolvConf | DnsServers::These(Selection::All) => Selection::All,
                DnsServers::Found(nets) | DnsServers::These(Selection::Only(nets)) => {
                    Selection::Only(merged(nets))
                }
            },
        }),
    };
    let wrong = contradictions(args, &plan);
    if !wrong.is_empty() {
        return Err(NoPlan::Arguments(wrong));
    }
    if !ipv6 && matches!(args.ip_version, IpVersion::V6 | IpVersion::Both) {
        let why = "IPv6 is switched off in this network namespace: use --ip-version auto or 4".to_owned();
        return Err(NoPlan::Kernel(why));
    }
    Ok(plan)
}

fn families(version: IpVersion, ipv6: bool) -> Vec<Family> {
    match version {
        IpVersion::V4 => vec![Family::V4],
        IpVersion::V6 => vec![Family::V6],
        IpVersion::Auto if !ipv6 => vec![Family::V4],
        IpVersion::Auto | IpVersion::Both => vec![Family::V4, Family::V6],
    }
}

/// Without overlaps, which nft refuses, in order.
fn merged(nets: &[IpNet]) -> Vec<IpNet> {
    sorted(&IpNet::aggregate(&nets.to_vec()))
}

fn contradictions(args: &InitArgs, plan: &Plan) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut proxy = vec![("--inbound-port", plan.inbound_port), ("--outbound-port", plan.outbound_port)];
    proxy.extend(plan.dns.as_ref().map(|dns| ("--dns-port", dns.port)));
    for (n, (name, port)) in proxy.iter().enumerate() {
        if let Some((other, _)) = proxy[..n].iter().find(|(_, other)| other == port) {
            wrong.push(format!("{other} and {name} are both {port}: give each a port of its own"));
        }
    }
    if plan.dns.as_ref().is_some_and(|dns| dns.servers == Selection::Only(Vec::new())) {
        wrong.push("--dns-servers names nobody: write *, or leave --capture-dns out".to_owned());
    }
    if let Selection::Only(included) = &plan.inbound {
        let excluded = |port: &&u16| args.exclude_inbound_ports.contains(port);
        for port in included.iter().filter(excluded) {
            wrong.push(format!("port {port} is in --include-inbound-ports and --exclude-inbound-ports"));
        }
        for port in included.iter().filter(|port| PROXY_PORTS.contains(port)) {
            wrong.push(format!("--include-inbound-ports: {port} is a port of the proxy itself"));
        }
    }
    for port in plan.include_ports.iter().filter(|port| plan.exclude_ports.contains(port)) {
        wrong.push(format!("port {port} is in --include-outbound-ports and --exclude-outbound-ports"));
    }
    if let Selection::Only(included) = &plan.outbound {
        for net in included.iter().filter(|net| plan.exclude_outbound.iter().any(|e| e.contains(*net))) {
            wrong.push(format!(
                "--exclude-outbound-cidrs leaves nothing of {net} in --include-outbound-cidrs"
            ));
        }
    }
    let unused = match args.ip_version {
        IpVersion::V4 => Some((Family::V6, "4")),
        IpVersion::V6 => Some((Family::V4, "6")),
        IpVersion::Auto | IpVersion::Both => None,
    };
    if let Some((family, version)) = unused {
        let included = match &plan.outbound {
            Selection::All => &[][..],
            Selection::Only(nets) => nets,
        };
        // Those that a file names may be of both.
        let servers = match (&args.dns_servers, &plan.dns) {
            (DnsServers::These(_), Some(CapturedDns { servers: Selection::Only(nets), .. })) => nets,
            _ => &[][..],
        };
        let all = included.iter().chain(&plan.exclude_outbound).chain(servers);
        for net in all.filter(|net| family.has(net)) {
            wrong.push(format!("{net} is {}, and --ip-version is {version}", family.name()));
        }
    }
    wrong
}

impl Plan {
    /// For connections that come in.
    pub(super) fn inbound_rules(&self) -> Vec<Rule> {
        let lo = [&["lo".to_owned()][..], &self.exclude_interfaces].concat();
        let mut rules =
            vec![pass(Match::From(sorted(&lo))), pass(Match::TcpPort(self.exclude_inbound.clone()))];
        let verdict = match self.mode {
            Mode::Redirect => Verdict::Redirect(self.inbound_port),
            Mode::Tproxy => Verdict::Divert,
        };
        let redirect = |matches| Rule { matches, verdict };
        match &self.inbound {
            Selection::All => rules.push(redirect(Match::Tcp)),
            Selection::Only(ports) => rules.extend(list(ports, Match::TcpPort).map(redirect)),
        }
        rules
    }

    /// For connections that begin here, in Istio's order: own traffic, loopback, DNS, exclusions, ports, addresses.
    pub(super) fn outbound_rules(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        rules.extend(list(&self.proxy_uids, Match::Uid).map(pass));
        rules.extend(list(&self.proxy_gids, Match::Gid).map(pass));
        rules.extend(self.proxy_mark.map(Match::Mark).map(pass));
        rules.extend(list(&self.exclude_uids, Match::Uid).map(pass));
        // Also what goes to an address of this machine other than 127.0.0.1.
        let lo = [&["lo".to_owned()][..], &self.exclude_interfaces].concat();
        rules.push(pass(Match::Through(sorted(&lo))));
        if let Some(dns) = &self.dns {
            let redirect = |matches| Rule { matches, verdict: Verdict::Redirect(dns.port) };
            match &dns.servers {
                Selection::All => {
                    rules.extend([Match::UdpPort(vec![DNS]), Match::TcpPort(vec![DNS])].map(redirect));
                }
                Selection::Only(servers) => {
                    rules.extend(list(servers, Match::UdpDns).map(redirect));
                    rules.extend(list(servers, Match::TcpDns).map(redirect));
                }
            }
        }
        rules.extend(list(&self.exclude_ports, Match::TcpPort).map(pass));
        rules.extend(list(&self.exclude_outbound, Match::To).map(pass));
        let redirect = |matches| Rule { matches, verdict: Verdict::Redirect(self.outbound_port) };
        rules.extend(list(&self.include_ports, Match::TcpPort).map(redirect));
        match &self.outbound {
            Selection::All => rules.push(redirect(Match::Tcp)),
            Selection::Only(nets) => rules.extend(list(nets, Match::TcpTo).map(redirect)),
        }
        rules
    }

    /// Somewhere that must be captured, and that answers nobody if the list of destinations allows: TEST-NET-1, 2001:db8::/32.
    pub(super) fn probe_target(&self, family: Family) -> Option<SocketAddr> {
        let port = match &self.outbound {
            Selection::Only(nets) if !nets.iter().any(|net| family.has(net)) => {
                *self.include_ports.first()?
            }
            _ => (9..=u16::MAX).find(|port| !self.exclude_ports.contains(port) && *port != DNS)?,
        };
        let nowhere = match family {
            Family::V4 => NOBODY.0,
            Family::V6 => NOBODY.1,
        };
        let mut candidates = vec![nowhere];
        if let Selection::Only(nets) = &self.outbound {
            let of_family = nets.iter().filter(|net| family.has(net));
            candidates.extend(of_family.filter_map(|net| net.hosts().next()));
        }
        let captured = |address: &IpAddr| {
            let included = match &self.outbound {
                Selection::All => true,
                Selection::Only(nets) => {
                    nets.iter().any(|net| net.contains(address)) || self.include_ports.contains(&port)
                }
            };
            included && !self.exclude_outbound.iter().any(|net| net.contains(address))
        };
        candidates.into_iter().find(captured).map(|address| SocketAddr::new(address, port))
    }

    /// Whether connections of this user and group are captured.
    pub(super) fn captures(&self, uid: u32, gid: u32) -> bool {
        let passes = |all: &[u32], id| all.contains(&id);
        !passes(&self.proxy_uids, uid) && !passes(&self.exclude_uids, uid) && !passes(&self.proxy_gids, gid)
    }
}

const fn pass(matches: Match) -> Rule {
    Rule { matches, verdict: Verdict::Pass }
}

fn list<T: Clone>(all: &[T], matches: fn(Vec<T>) -> Match) -> impl Iterator<Item = Match> {
    (!all.is_empty()).then(|| matches(all.to_vec())).into_iter()
}
