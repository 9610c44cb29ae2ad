//! Addresses and socket options of a listener.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3::address::Address as AddressKind;
use remora_xds::pb::envoy::config::core::v3::socket_address::{PortSpecifier, Protocol};
use remora_xds::pb::envoy::config::core::v3::socket_option::Value;
use remora_xds::pb::envoy::config::core::v3::{Address, SocketAddress, SocketOption, TcpKeepalive};
use remora_xds::pb::envoy::config::listener::v3::{AdditionalAddress, Listener};

use crate::config::compile::Scope;
use crate::config::compile::common::unsupported;
use crate::config::compile::fields::{boolean, number, refuse};
use crate::config::spec::{Keepalive, SocketSpec};

/// Where a listener listens.
pub(super) struct Bound {
    pub(super) address: SocketAddr,
    pub(super) additional: Vec<SocketAddr>,
    pub(super) socket: SocketSpec,
}

pub(super) fn compile(pb: &Listener, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Bound> {
    let udp = super::dns::is_udp(pb);
    let (first, ipv4_compat) = address(pb.address.as_ref(), udp, &at.field("address"), scope)?;
    let mut rest = Vec::new();
    let list = at.field("additional_addresses");
    for (i, additional) in pb.additional_addresses.iter().enumerate() {
        let at = list.index(i);
        let AdditionalAddress { address: pb, socket_options, tcp_keepalive } = additional;
        refuse!(scope, &at; socket_options, tcp_keepalive);
        let at = at.field("address");
        let (address, compat) = address(pb.as_ref(), udp, &at, scope)?;
        if compat != ipv4_compat && address.is_ipv6() {
            let at = at.field("socket_address");
            scope.errors.report(&at.field("ipv4_compat"), "must be as in the listener's first address");
        }
        rest.push(address);
    }
    let at_backlog = at.field("tcp_backlog_size");
    let backlog = number(pb.tcp_backlog_size.as_ref(), 1..=i32::MAX.unsigned_abs(), &at_backlog, scope);
    let mut socket = SocketSpec {
        backlog,
        transparent: boolean(pb.transparent.as_ref(), false),
        freebind: boolean(pb.freebind.as_ref(), false),
        ipv4_compat,
        keepalive: pb.tcp_keepalive.as_ref().map(keepalive),
    };
    let list = at.field("socket_options");
    for (i, option) in pb.socket_options.iter().enumerate() {
        socket_option(option, &mut socket, &list.index(i), scope);
    }
    Some(Bound { address: first, additional: rest, socket })
}

/// An address with its `ipv4_compat`.
fn address(
    pb: Option<&Address>,
    udp: bool,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<(SocketAddr, bool)> {
    let Some(AddressKind::SocketAddress(pb)) = pb.and_then(|a| a.address.as_ref()) else {
        let error = scope.errors.report(at, "is not an IP address and port");
        error.fix("use socket_address: {address: 127.0.0.1, port_value: 8080}");
        return None;
    };
    let at = at.field("socket_address");
    let SocketAddress {
        protocol,
        address,
        resolver_name,
        ipv4_compat,
        network_namespace_filepath,
        port_specifier,
    } = pb;
    refuse!(scope, &at; resolver_name, network_namespace_filepath);
    // Which it is, the first address says.
    let wanted = if udp { Protocol::Udp } else { Protocol::Tcp };
    if *protocol != wanted as i32 {
        let error = scope.errors.report(&at.field("protocol"), "is not that of the listener's first address");
        error.fix("give all addresses one protocol, TCP or UDP");
    }
    let port = match port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(*port).ok(),
        Some(PortSpecifier::NamedPort(_)) | None => None,
    };
    let Some(port) = port else {
        scope.errors.report(&at.field("port_value"), "is not a port").fix("use 0 (any free port) to 65535");
        return None;
    };
    let Ok(ip) = address.parse::<IpAddr>() else {
        let message = format!("`{address}` is not an IP address");
        scope
            .errors
            .report(&at.field("address"), message)
            .fix("a listener binds to an address such as 0.0.0.0 or ::");
        return None;
    };
    if *ipv4_compat && !(ip.is_ipv6() && ip.is_unspecified()) {
        let error = scope.errors.report(&at.field("ipv4_compat"), "is for the address `::` only");
        error.fix("remove it");
    }
    Some((SocketAddr::new(ip, port), *ipv4_compat))
}

fn keepalive(pb: &TcpKeepalive) -> Keepalive {
    let TcpKeepalive { keepalive_probes, keepalive_time, keepalive_interval } = pb;
    let seconds = |n: u32| Duration::from_secs(n.into());
    Keepalive {
        probes: keepalive_probes.as_ref().map(|n| n.value),
        time: keepalive_time.as_ref().map(|n| seconds(n.value)),
        interval: keepalive_interval.as_ref().map(|n| seconds(n.value)),
    }
}

/// The options that people set by number, where we have a name for them.
fn socket_option(option: &SocketOption, socket: &mut SocketSpec, at: &At<'_>, scope: &mut Scope<'_>) {
    // Accepted sockets inherit these options, whenever they are set on the listening one.
    let SocketOption { description: _, level, name, state: _, r#type, ip_version, value } = option;
    refuse!(scope, at; ip_version);
    if r#type.is_some() {
        unsupported(true, &at.field("type"), scope);
    }
    let number = match value {
        Some(Value::IntValue(number)) => u32::try_from(*number).ok(),
        Some(Value::BufValue(_)) | None => None,
    };
    let keepalive = || socket.keepalive.unwrap_or_default();
    let seconds = |n: u32| Some(Duration::from_secs(n.into()));
    // Linux numbers: SOL_SOCKET is 1 and SO_KEEPALIVE 9; IPPROTO_TCP is 6 with TCP_NODELAY 1, TCP_KEEPIDLE 4,
    // TCP_KEEPINTVL 5 and TCP_KEEPCNT 6; IPPROTO_IP is 0 with IP_FREEBIND 15 and IP_TRANSPARENT 19.
    match (*level, *name, number) {
        (1, 9, Some(1)) => socket.keepalive = Some(keepalive()),
        (6, 1, Some(1)) => {} // always on
        (6, 4, Some(n)) => socket.keepalive = Some(Keepalive { time: seconds(n), ..keepalive() }),
        (6, 5, Some(n)) => socket.keepalive = Some(Keepalive { interval: seconds(n), ..keepalive() }),
        (6, 6, Some(n)) => socket.keepalive = Some(Keepalive { probes: Some(n), ..keepalive() }),
        (0, 15, Some(1)) => socket.freebind = true,
        (0, 19, Some(1)) => socket.transparent = true,
        (level, name, _) => {
            let message = format!("the option {name} of level {level} with this value is not supported");
            scope.errors.report(at, message).fix("use tcp_keepalive, freebind or transparent");
        }
    }
}
