//! Opens a TCP connection to an endpoint. TLS is the caller's next step.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

use crate::config::spec::Keepalive;
use crate::error::Reason;

/// How connections to the endpoints of a cluster are opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectSpec {
    /// `connect_timeout`, default 5 s. The caller lets it cover the TLS handshake too, as Envoy does.
    pub timeout: Duration,
    /// `upstream_connection_options.tcp_keepalive`.
    pub keepalive: Option<Keepalive>,
    /// TCP_USER_TIMEOUT, from `upstream_bind_config.socket_options` (level 6, name 18, milliseconds).
    pub user_timeout: Option<Duration>,
    /// `upstream_bind_config.source_address`.
    pub source: Option<SocketAddr>,
}

impl Default for ConnectSpec {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(5), keepalive: None, user_timeout: None, source: None }
    }
}

/// Whose address a connection has instead of our own: the client's (`envoy.filters.listener.original_src`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The client's address. Its port is not kept.
    pub ip: IpAddr,
    /// SO_MARK; 0 is none.
    pub mark: u32,
}

/// Why a connection was not opened.
#[derive(Debug, thiserror::Error)]
#[error("{}: {}: {error}", reason.id(), address)]
pub struct ConnectError {
    /// [`Reason::ConnectFailure`], [`Reason::ConnectTimeout`], or [`Reason::Overloaded`] when there was no file for it.
    pub reason: Reason,
    /// Where to.
    pub address: SocketAddr,
    /// What the system said; its kind goes into the access log.
    #[source]
    pub error: io::Error,
}

impl ConnectError {
    /// `error` as it happened on the way to `address`. A kernel's ETIMEDOUT counts as a timeout.
    #[must_use]
    pub fn new(address: SocketAddr, error: io::Error) -> Self {
        let reason = match error.kind() {
            io::ErrorKind::TimedOut => Reason::ConnectTimeout,
            // Not the endpoint's fault.
            _ if lacks_files(&error) => Reason::Overloaded,
            _ => Reason::ConnectFailure,
        };
        Self { reason, address, error }
    }

    /// The kind of error, for the access log.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.error.kind()
    }
}

/// Whether `error` says that the process, or the machine, may open no more files.
#[must_use]
pub fn lacks_files(error: &io::Error) -> bool {
    let own = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].map(rustix::io::Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| own.contains(&code))
}

/// Connects to `address` with TCP_NODELAY set, within `spec.timeout`.
///
/// # Errors
/// Connection refused, unreachable, or not established in time.
pub async fn connect(address: SocketAddr, spec: &ConnectSpec) -> Result<TcpStream, ConnectError> {
    connect_from(address, spec, None).await
}

/// The same with the address of `origin`, if there is one. A loopback address is then that of its version of IP: who listens on 127.0.0.1
/// has clients of IPv6 on ::1.
///
/// # Errors
/// As [`connect`]; there is no CAP_NET_ADMIN; or `address` is of the other version of IP.
pub async fn connect_from(
    address: SocketAddr,
    spec: &ConnectSpec,
    origin: Option<Origin>,
) -> Result<TcpStream, ConnectError> {
    let address = origin.map_or(address, |origin| loopback_of(address, origin));
    let attempt = async {
        let socket = open(address, spec, origin)?;
        let stream = socket.connect(address).await?;
        // A port of the ephemeral range that nobody listens on can be given to this very socket, which then talks to itself.
        if stream.local_addr()? == address {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "connected to itself"));
        }
        Ok(stream)
    };
    match tokio::time::timeout(spec.timeout, attempt).await {
        Ok(done) => done.map_err(|error| ConnectError::new(address, error)),
        Err(_) => Err(ConnectError::new(address, io::ErrorKind::TimedOut.into())),
    }
}

fn loopback_of(address: SocketAddr, origin: Origin) -> SocketAddr {
    let ip = match origin.ip {
        _ if !address.ip().is_loopback() || origin.ip.is_ipv4() == address.is_ipv4() => address.ip(),
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    SocketAddr::new(ip, address.port())
}

/// Binds a socket to an address that is not ours (IP_TRANSPARENT), so that the endpoint sees the client's.
fn pose(socket: &TcpSocket, address: SocketAddr, origin: Origin) -> io::Result<()> {
    if origin.ip.is_ipv4() != address.is_ipv4() {
        let why = format!("the client's address, {}, is of the other version of IP", origin.ip);
        return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, why));
    }
    let options = SockRef::from(socket);
    let set = match origin.ip {
        IpAddr::V4(_) => options.set_ip_transparent_v4(true),
        IpAddr::V6(_) => options.set_ip_transparent_v6(true),
    };
    let set = set.and_then(|()| if origin.mark == 0 { Ok(()) } else { options.set_mark(origin.mark) });
    set.map_err(|error| {
        let why = format!("the client's address needs the capability NET_ADMIN (original_src): {error}");
        io::Error::new(error.kind(), why)
    })?;
    leave_port_to_connect(socket);
    socket.bind(SocketAddr::new(origin.ip, 0))
}

/// `bind` takes a port for this socket alone, of which an address has some 28,000; `connect` shares one among all whose endpoints differ, and
/// takes it again after TIME_WAIT of another one (IP_BIND_ADDRESS_NO_PORT, which sockets of IPv6 have, too). Before Linux 4.2 it stays as it is.
fn leave_port_to_connect(socket: &TcpSocket) {
    let _ = setsockopt(socket, IpBindAddressNoPort, &true);
}

fn open(address: SocketAddr, spec: &ConnectSpec, origin: Option<Origin>) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    let options = SockRef::from(&socket);
    if let Some(keepalive) = &spec.keepalive {
        let mut params = socket2::TcpKeepalive::new();
        if let Some(time) = keepalive.time {
            params = params.with_time(time);
        }
        if let Some(interval) = keepalive.interval {
            params = params.with_interval(interval);
        }
        if let Some(probes) = keepalive.probes {
            params = params.with_retries(probes);
        }
        options.set_tcp_keepalive(&params)?;
    }
    if spec.user_timeout.is_some() {
        options.set_tcp_user_timeout(spec.user_timeout)?;
    }
    if let Some(origin) = origin {
        pose(&socket, address, origin)?;
        return Ok(socket);
    }
    // A source of the other address family cannot reach the endpoint; Envoy leaves such a connection unbound too.
    if let Some(source) = spec.source.filter(|s| s.is_ipv4() == address.is_ipv4()) {
        if source.port() == 0 {
            leave_port_to_connect(&socket);
        }
        socket.bind(source)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn local() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[tokio::test]
    async fn options_are_set_on_the_socket() {
        let listener = TcpListener::bind(local()).await.unwrap();
        let keepalive = Keepalive {
            probes: Some(4),
            time: Some(Duration::from_secs(33)),
            interval: Some(Duration::from_secs(11)),
        };
        let spec = ConnectSpec {
            keepalive: Some(keepalive),
            user_timeout: Some(Duration::from_secs(7)),
            source: Some("127.0.0.6:0".parse().unwrap()),
            ..ConnectSpec::default()
        };
        let stream = connect(listener.local_addr().unwrap(), &spec).await.unwrap();
        let socket = SockRef::from(&stream);
        assert!(stream.nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(33));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(11));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 4);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(7)));
        assert_eq!(stream.local_addr().unwrap().ip().to_string(), "127.0.0.6");
        assert!(nix::sys::socket::getsockopt(&stream, IpBindAddressNoPort).unwrap());
    }

    #[test]
    fn loopback_is_that_of_the_client() {
        let of = |address: &str, ip: &str| {
            let origin = Origin { ip: ip.parse().unwrap(), mark: 0 };
            loopback_of(address.parse().unwrap(), origin).to_string()
        };
        assert_eq!(of("127.0.0.1:80", "10.0.0.9"), "127.0.0.1:80");
        assert_eq!(of("127.0.0.1:80", "fd00::9"), "[::1]:80");
        assert_eq!(of("[::1]:80", "10.0.0.9"), "127.0.0.1:80");
        assert_eq!(of("[::1]:80", "fd00::9"), "[::1]:80");
        assert_eq!(of("10.0.0.1:80", "fd00::9"), "10.0.0.1:80");
    }

    #[tokio::test]
    async fn an_endpoint_of_the_other_version_of_ip_is_not_called_from_elsewhere() {
        let origin = Origin { ip: "fd00::9".parse().unwrap(), mark: 0 };
        let spec = ConnectSpec::default();
        let error = connect_from("192.0.2.1:80".parse().unwrap(), &spec, Some(origin)).await.unwrap_err();
        assert_eq!((error.reason, error.kind()), (Reason::ConnectFailure, io::ErrorKind::AddrNotAvailable));
    }

    /// Who has the right may pose as anybody; others, root in many a container too, are told what is missing.
    #[tokio::test]
    async fn the_endpoint_sees_the_origin() {
        let listener = TcpListener::bind(local()).await.unwrap();
        let origin = Origin { ip: "127.0.0.77".parse().unwrap(), mark: 0 };
        let spec = ConnectSpec::default();
        match connect_from(listener.local_addr().unwrap(), &spec, Some(origin)).await {
            Ok(_stream) => assert_eq!(listener.accept().await.unwrap().1.ip(), origin.ip),
            Err(error) => {
                let may = crate::listener::socket::may_be_transparent(local(), "original_src");
                assert!(may.is_err() && error.to_string().contains("NET_ADMIN"), "{error}");
            }
        }
    }

    #[test]
    fn files_that_ran_out_are_not_the_endpoints_fault() {
        let of = |errno: rustix::io::Errno| ConnectError::new(local(), errno.into()).reason;
        assert_eq!(of(rustix::io::Errno::MFILE), Reason::Overloaded);
        assert_eq!(of(rustix::io::Errno::NFILE), Reason::Overloaded);
        assert_eq!(of(rustix::io::Errno::TIMEDOUT), Reason::ConnectTimeout);
        assert_eq!(of(rustix::io::Errno::HOSTUNREACH), Reason::ConnectFailure);
    }

    #[tokio::test]
    async fn a_refused_connection_is_a_connect_failure() {
        let address = TcpListener::bind(local()).await.unwrap().local_addr().unwrap();
        let error = connect(address, &ConnectSpec::default()).await.unwrap_err();
        assert_eq!((error.reason, error.kind()), (Reason::ConnectFailure, io::ErrorKind::ConnectionRefused));
        assert_eq!(error.address, address);
    }

    #[tokio::test]
    async fn a_listener_that_does_not_answer_is_a_connect_timeout() {
        // A full accept queue drops further SYNs: the connection hangs as it does with a silent host.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&local().into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let spec = ConnectSpec { timeout: Duration::from_millis(200), ..ConnectSpec::default() };
        let mut held = Vec::new();
        let error = loop {
            match connect(address, &spec).await {
                Ok(stream) => held.push(stream),
                Err(error) => break error,
            }
            assert!(held.len() < 10, "the queue never fills");
        };
        assert_eq!((error.reason, error.kind()), (Reason::ConnectTimeout, io::ErrorKind::TimedOut));
    }
}
