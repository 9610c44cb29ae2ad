//! Proves that the rules redirect: by a connection for what goes out, by reading them back for the rest.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use remora_proxy::listener::original_dst::{Kernel, OriginalDst};
use remora_proxy::listener::socket;
use remora_proxy::upstream::connect::{ConnectSpec, Origin, connect_from};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::apply::Applied;
use super::args::Mode;
use super::plan::{Family, NOBODY, Plan};
use super::{iptables, nft, routes, tool};

/// Longer than any redirected connection on one machine takes.
const LIMIT: Duration = Duration::from_secs(2);

/// What was shown, one sentence for each version of IP.
///
/// # Errors
/// What does not hold.
pub(super) async fn verify(plan: &Plan, applied: &Applied) -> anyhow::Result<Vec<String>> {
    read_back(plan, applied).await?;
    prove(plan, "only read back").await
}

/// Proves it by connections alone, for which nobody needs a right. `otherwise` is what holds where none can be made.
///
/// # Errors
/// A connection was not redirected.
pub(super) async fn prove(plan: &Plan, otherwise: &str) -> anyhow::Result<Vec<String>> {
    let mut shown = Vec::new();
    for family in &plan.families {
        let probed = match plan.probe_target(*family) {
            None => Probed::Not("no destination is captured".to_owned()),
            Some(target) => tokio::time::timeout(LIMIT, probe(plan, target)).await.unwrap_or_else(|_| {
                bail!("a connection to {target} did not come to port {} within 2 s", plan.outbound_port)
            })?,
        };
        shown.push(match probed {
            Probed::Redirected(target) => format!("{target} was redirected"),
            Probed::Not(why) => format!("{} {otherwise}: {why}", family.name()),
        });
        if plan.mode == Mode::Tproxy {
            shown.push(client(*family).await?);
        }
    }
    Ok(shown)
}

/// Whether a program on loopback answers a client by its address: without our routes what it says goes to the world.
///
/// # Errors
/// It does not. Without the right to have such an address it is only read back.
async fn client(family: Family) -> anyhow::Result<String> {
    let (loopback, ip) = match family {
        Family::V4 => (IpAddr::V4(Ipv4Addr::LOCALHOST), NOBODY.0),
        Family::V6 => (IpAddr::V6(Ipv6Addr::LOCALHOST), NOBODY.1),
    };
    if socket::may_be_transparent(SocketAddr::new(loopback, 0), "TPROXY").is_err() {
        return Ok(format!("routes of {} only read back: there is no NET_ADMIN", family.name()));
    }
    let listener = TcpListener::bind((loopback, 0)).await?;
    let spec = ConnectSpec { timeout: LIMIT, ..ConnectSpec::default() };
    let origin = Origin { ip, mark: 0 };
    let called = connect_from(listener.local_addr()?, &spec, Some(origin)).await;
    let _stream =
        called.with_context(|| format!("{loopback} does not answer a client with the address {ip}"))?;
    let (_, peer) = listener.accept().await?;
    ensure!(peer.ip() == ip, "{loopback} sees {} instead of {ip}", peer.ip());
    Ok(format!("{loopback} was called by {ip}"))
}

enum Probed {
    Redirected(SocketAddr),
    Not(String),
}

/// Connects to `target`, if that can be done here, and waits for that connection at the outbound port.
async fn probe(plan: &Plan, target: SocketAddr) -> anyhow::Result<Probed> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if !plan.captures(uid, gid) {
        return Ok(Probed::Not(format!("this user ({uid}) is not captured")));
    }
    if !plan.exclude_interfaces.is_empty() {
        return Ok(Probed::Not("an interface is excluded, and the way there may lead through it".to_owned()));
    }
    let (loopback, any) = match target {
        SocketAddr::V4(_) => (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        SocketAddr::V6(_) => (IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    };
    // Asks for a route, and sends nothing. Where loopback has the only address (others of IPv6 take a second to come), REDIRECT can be proved
    // with that; the routes of TPROXY keep what has it here.
    let asks = UdpSocket::bind((any, 0)).await?;
    let routed = asks.connect(target).await.and_then(|()| asks.local_addr());
    let provable = |own: SocketAddr| plan.mode != Mode::Tproxy || !own.ip().is_loopback();
    if routed.is_ok_and(provable) {
        return captured(plan.outbound_port, target, loopback).await;
    }
    Ok(Probed::Not("there is no route to anywhere yet".to_owned()))
}

/// Connects to `target`, and waits for that connection at `port`.
async fn captured(port: u16, target: SocketAddr, loopback: IpAddr) -> anyhow::Result<Probed> {
    // REDIRECT of what begins here goes to the loopback address.
    let listener = match TcpListener::bind((loopback, port)).await {
        Ok(listener) => listener,
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            return Ok(Probed::Not(format!("port {port} is in use, as by a proxy that runs already")));
        }
        Err(error) => return Err(error).context(format!("port {port} of {loopback}")),
    };
    let client = TcpStream::connect(target)
        .await
        .with_context(|| format!("a connection to {target} was not redirected"))?;
    let own = client.local_addr()?;
    loop {
        let (accepted, peer) = listener.accept().await?;
        if peer.port() != own.port() {
            // Somebody else on this machine.
            continue;
        }
        let original = Kernel.original_dst(&accepted)?;
        ensure!(
            original == Some(target),
            "a connection to {target} came to port {port}, but its original destination is {original:?}"
        );
        return Ok(Probed::Redirected(target));
    }
}

/// Whether loopback has its addresses, to which REDIRECT leads: in a namespace that is just being set up it may not yet.
pub(super) async fn has_loopback(plan: &Plan) -> bool {
    for family in &plan.families {
        let loopback = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        if UdpSocket::bind((loopback, 0)).await.is_err() {
            return false;
        }
    }
    true
}

/// Every chain has to be there with all of its rules, and one jump where jumps are.
pub(super) async fn read_back(plan: &Plan, applied: &Applied) -> anyhow::Result<()> {
    match applied {
        Applied::Nft(tables) => {
            for table in tables {
                let family = table.family();
                let listing = tool::run("nft", &["list", "table", family, nft::TABLE], "").await?;
                for (chain, expected) in nft::expected(plan, *table) {
                    let found = nft::count(&listing, chain);
                    ensure!(
                        found == Some(expected),
                        "chain {chain} of table {family} {} has {} rules instead of {expected}",
                        nft::TABLE,
                        found.unwrap_or(0)
                    );
                }
            }
        }
        Applied::Iptables(kind) => {
            for family in &plan.families {
                for ((chain, hook), (table, expected)) in
                    iptables::CHAINS.into_iter().zip(iptables::expected(plan, *family))
                {
                    let saved = tool::run(&kind.program(*family, "save"), &["-t", table], "").await?;
                    let found = iptables::count(&saved, chain);
                    ensure!(found == expected, "chain {chain} has {found} rules instead of {expected}");
                    let found = iptables::jumps(&saved, chain, hook).len();
                    ensure!(found == 1, "{hook} has {found} jumps to {chain} instead of one");
                }
            }
        }
    }
    routes::read_back(plan).await
}
