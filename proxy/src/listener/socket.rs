//! Listening sockets, one per worker, and the options of connections.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::num::NonZeroU32;
use std::time::Duration;

use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, TcpKeepalive, Type};

use crate::config::spec::{Keepalive, SocketSpec};

/// Backlog without `tcp_backlog_size`.
const BACKLOG: u32 = 1024;

/// Opens the listening sockets of one address: one per worker, non-blocking, sharing the address by SO_REUSEPORT so
/// that the kernel spreads connections. With port 0 the first one finds a free port and the others join it; read it
/// back from any of them.
///
/// # Errors
/// The address is taken, not ours, or not allowed; or an option is not permitted (`transparent` needs CAP_NET_ADMIN).
/// No socket stays open then.
pub fn listen(address: SocketAddr, spec: &SocketSpec, workers: usize) -> io::Result<Vec<TcpListener>> {
    let mut address = address;
    let mut sockets = Vec::with_capacity(workers);
    for _ in 0..workers {
        let socket = listen_one(address, spec)?;
        address = socket.local_addr()?;
        sockets.push(socket);
    }
    Ok(sockets)
}

/// How often a free port is looked for that is free for UDP and TCP.
const PORT_TRIES: usize = 32;

/// Opens the sockets of a name server: UDP and TCP at one address, non-blocking. A successor may have them, too (SO_REUSEPORT). With port 0 they
/// have a free port.
///
/// # Errors
/// As [`listen`].
pub fn listen_both(address: SocketAddr, spec: &SocketSpec) -> io::Result<(UdpSocket, TcpListener)> {
    let mut left = if address.port() == 0 { PORT_TRIES } else { 1 };
    loop {
        left -= 1;
        let datagrams = datagrams(address, spec)?;
        match listen_one(datagrams.local_addr()?, spec) {
            Ok(listener) => return Ok((datagrams, listener)),
            Err(error) if left == 0 || error.kind() != io::ErrorKind::AddrInUse => return Err(error),
            Err(_) => {}
        }
    }
}

fn datagrams(address: SocketAddr, spec: &SocketSpec) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6(address, spec))?;
    }
    set_options(&SockRef::from(&socket), address, &SocketSpec { keepalive: None, ..spec.clone() })?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Sockets that a predecessor opened, as they are: until it is succeeded, they are its own. None, if it opened them for other
/// protocols: with or without IPv4 is decided once, before an address is bound.
///
/// # Errors
/// One is no socket.
pub fn adopt(sockets: Vec<TcpListener>, spec: &SocketSpec) -> io::Result<Vec<TcpListener>> {
    for listener in &sockets {
        let (address, socket) = (listener.local_addr()?, SockRef::from(listener));
        if address.is_ipv6() && socket.only_v6()? != only_v6(address, spec) {
            return Ok(Vec::new());
        }
    }
    Ok(sockets)
}

/// Gives a socket of a predecessor, which was succeeded, the options of now; its backlog, keepalive and the like are left behind. `spec` is
/// that of its listener; the admin port has none. What is not permitted stays as it is: this process may have fewer capabilities.
pub fn make_own(listener: &TcpListener, spec: Option<&SocketSpec>) {
    // The predecessor may have been told to end.
    let_everybody_in(listener);
    let Some(spec) = spec else { return };
    let socket = SockRef::from(listener);
    let set = listener.local_addr().and_then(|address| {
        set_options(&socket, address, spec)?;
        // Listening again changes the length of the queue, and nothing else.
        socket.listen(backlog(spec))
    });
    if let Err(error) = set {
        tracing::warn!(?listener, %error, "an option of the predecessor's socket stays as it was");
    }
}

fn only_v6(address: SocketAddr, spec: &SocketSpec) -> bool {
    let any = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    !(any && spec.ipv4_compat)
}

fn backlog(spec: &SocketSpec) -> i32 {
    i32::try_from(spec.backlog.unwrap_or(BACKLOG)).unwrap_or(i32::MAX)
}

fn listen_one(address: SocketAddr, spec: &SocketSpec) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6(address, spec))?;
    }
    set_options(&SockRef::from(&socket), address, spec)?;
    socket.bind(&address.into())?;
    socket.listen(backlog(spec))?;
    Ok(socket.into())
}

fn set_options(socket: &SockRef<'_>, address: SocketAddr, spec: &SocketSpec) -> io::Result<()> {
    if spec.transparent {
        set_transparent(socket, address).map_err(|error| without_right("transparent", &error))?;
    }
    if spec.freebind {
        match address {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
    }
    if let Some(keepalive) = &spec.keepalive {
        // Accepted connections inherit it.
        set_keepalive(socket, keepalive)?;
    }
    Ok(())
}

fn set_transparent(socket: &SockRef<'_>, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

fn without_right(field: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{field} needs the capability NET_ADMIN: {error}"))
}

/// Whether connections may have addresses of others, as `field` wants: those of clients (`original_src`), or those that were called
/// (`transparent`). So it is known before the first of them comes.
///
/// # Errors
/// There is no CAP_NET_ADMIN.
pub fn may_be_transparent(address: SocketAddr, field: &str) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    let set = set_transparent(&SockRef::from(&socket), address);
    set.map_err(|error| without_right(field, &error))
}

/// An interface that no machine has.
const NOWHERE: NonZeroU32 = NonZeroU32::new(i32::MAX.unsigned_abs()).unwrap();

/// Refuses whoever connects from now on, as if the socket were closed; who has begun is let in, and waits to be accepted. The kernel looks for
/// the listener of a new connection by interface, too, so the socket is bound to one that is not there (SO_BINDTOIFINDEX): each handshake that has begun
/// has found it already. It is for good, because undoing it needs privileges: only for sockets that no other process has.
///
/// Before Linux 5.7 that is not permitted to everybody: then newcomers are ignored. So they are where another socket listens at the same address.
///
/// # Errors
/// The kernel can do neither for us.
pub fn refuse_newcomers<S: std::os::fd::AsFd>(listener: &S) -> io::Result<()> {
    // The option is the same for IPv6.
    SockRef::from(listener).bind_device_by_index_v4(Some(NOWHERE)).or_else(|_| ignore_newcomers(listener))
}

/// Drops the first packet of each new connection. Nobody is told: a client that begins now tries again after a second (RFC 6298 §2).
///
/// # Errors
/// Socket filters are not permitted.
pub fn ignore_newcomers<S: std::os::fd::AsFd>(listener: &S) -> io::Result<()> {
    // What a filter of a TCP socket sees begins with the TCP header (RFC 9293 §3.1); its 14th byte has the flags.
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const SYN: u32 = 0x02;
    const SYN_ACK: u32 = 0x12;
    SockRef::from(listener).attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, 13),
        SockFilter::new(AND, 0, 0, SYN_ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ])
}

/// Undoes [`ignore_newcomers`], which a predecessor may have called.
fn let_everybody_in<S: std::os::fd::AsFd>(listener: &S) {
    // Mostly there is no filter, which is an error for the kernel.
    let _ = SockRef::from(listener).detach_filter();
}

/// Options of a connection, accepted or made: no delay (Nagle off), as every proxy; keepalive; and how long data may
/// stay unacknowledged before the kernel gives the connection up (TCP_USER_TIMEOUT).
///
/// # Errors
/// The socket refuses an option. For a connection that has just been reset this can be EINVAL: close it.
pub fn tune<S: std::os::fd::AsFd>(
    stream: &S,
    keepalive: Option<&Keepalive>,
    user_timeout: Option<Duration>,
) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    if let Some(keepalive) = keepalive {
        set_keepalive(&socket, keepalive)?;
    }
    if user_timeout.is_some() {
        socket.set_tcp_user_timeout(user_timeout)?;
    }
    Ok(())
}

fn set_keepalive(socket: &SockRef<'_>, keepalive: &Keepalive) -> io::Result<()> {
    let mut params = TcpKeepalive::new();
    if let Some(time) = keepalive.time {
        params = params.with_time(time);
    }
    if let Some(interval) = keepalive.interval {
        params = params.with_interval(interval);
    }
    if let Some(probes) = keepalive.probes {
        params = params.with_retries(probes);
    }
    socket.set_tcp_keepalive(&params)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[test]
    fn workers_share_a_free_port() {
        let sockets = listen(loopback(), &SocketSpec::default(), 3).unwrap();
        let port = sockets[0].local_addr().unwrap().port();
        assert_ne!(port, 0);
        assert!(sockets.iter().all(|s| s.local_addr().unwrap().port() == port));
        // Listening, and not blocking.
        assert_eq!(sockets[1].accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        std::net::TcpStream::connect(sockets[0].local_addr().unwrap()).unwrap();
    }

    #[test]
    fn a_name_server_has_one_port_for_both_and_a_successor_joins() {
        let spec = SocketSpec::default();
        let (udp, tcp) = listen_both(loopback(), &spec).unwrap();
        let address = udp.local_addr().unwrap();
        assert_eq!(tcp.local_addr().unwrap(), address);
        let (heir, _) = listen_both(address, &spec).unwrap();
        assert_eq!(heir.local_addr().unwrap(), address);
    }

    #[test]
    fn a_socket_that_refuses_newcomers_keeps_whom_it_has() {
        use std::io::{Read, Write};
        let listener = listen(loopback(), &SocketSpec::default(), 1).unwrap().remove(0);
        let address = listener.local_addr().unwrap();
        let mut early = std::net::TcpStream::connect(address).unwrap();
        refuse_newcomers(&listener).unwrap();
        let late = std::net::TcpStream::connect(address);
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let (mut accepted, _) = listener.accept().unwrap();
        drop(listener);
        early.write_all(b"hello").unwrap();
        let mut said = [0; 5];
        accepted.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"hello");
    }

    /// It has not joined those that refuse.
    #[test]
    fn an_address_whose_socket_refuses_newcomers_can_be_listened_on_again() {
        let spec = SocketSpec::default();
        let old = listen(loopback(), &spec, 2).unwrap();
        let address = old[0].local_addr().unwrap();
        old.iter().try_for_each(refuse_newcomers).unwrap();
        let new = listen(address, &spec, 1).unwrap().remove(0);
        for _ in 0..20 {
            std::net::TcpStream::connect(address).unwrap();
            new.accept().unwrap();
        }
    }

    #[test]
    fn a_socket_is_the_predecessors_until_it_is_succeeded() {
        let keepalive = Keepalive { probes: None, time: None, interval: None };
        let spec = SocketSpec { keepalive: Some(keepalive), ..SocketSpec::default() };
        let predecessor = listen(loopback(), &SocketSpec::default(), 1).unwrap().remove(0);
        let adopted = adopt(vec![predecessor.try_clone().unwrap()], &spec).unwrap();
        assert!(!SockRef::from(&predecessor).keepalive().unwrap());
        // A filter may need privileges.
        let filtered = ignore_newcomers(&predecessor).is_ok();
        make_own(&adopted[0], Some(&spec));
        assert!(SockRef::from(&predecessor).keepalive().unwrap());
        let address = predecessor.local_addr().unwrap();
        std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
        assert!(filtered || !rustix::process::geteuid().is_root());
    }

    #[test]
    fn transparent_sockets_need_a_right_and_say_so() {
        let spec = SocketSpec { transparent: true, ..SocketSpec::default() };
        let listened = listen(loopback(), &spec, 1);
        if let Ok(sockets) = &listened {
            assert!(SockRef::from(&sockets[0]).ip_transparent_v4().unwrap());
            let without = listen(loopback(), &SocketSpec::default(), 1).unwrap().remove(0);
            assert!(!SockRef::from(&without).ip_transparent_v4().unwrap());
            // Who may the one may the other.
            may_be_transparent(loopback(), "original_src").unwrap();
            return;
        }
        // As root in a container without it, too.
        for (field, outcome) in [
            ("transparent", listened.map(drop)),
            ("original_src", may_be_transparent(loopback(), "original_src")),
        ] {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            assert!(
                error.to_string().starts_with(&format!("{field} needs the capability NET_ADMIN")),
                "{error}"
            );
        }
    }

    #[test]
    fn an_address_that_is_not_ours_needs_freebind() {
        let address = "192.0.2.1:0".parse().unwrap();
        assert_eq!(
            listen(address, &SocketSpec::default(), 1).unwrap_err().kind(),
            io::ErrorKind::AddrNotAvailable
        );
        let spec = SocketSpec { freebind: true, ..SocketSpec::default() };
        listen(address, &spec, 2).unwrap();
    }

    #[test]
    fn connections_get_their_options() {
        let keepalive = Keepalive {
            probes: Some(4),
            time: Some(Duration::from_secs(30)),
            interval: Some(Duration::from_secs(5)),
        };
        let spec = SocketSpec { keepalive: Some(keepalive), ..SocketSpec::default() };
        let listener = listen(loopback(), &spec, 1).unwrap().remove(0);
        listener.set_nonblocking(false).unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted_options = SockRef::from(&accepted);
        assert!(accepted_options.keepalive().unwrap(), "inherited");
        assert_eq!(accepted_options.tcp_keepalive_time().unwrap(), Duration::from_secs(30));
        tune(&client, Some(&keepalive), Some(Duration::from_secs(20))).unwrap();
        let options = SockRef::from(&client);
        assert!(options.tcp_nodelay().unwrap() && options.keepalive().unwrap());
        assert_eq!(options.tcp_keepalive_retries().unwrap(), 4);
        assert_eq!(options.tcp_keepalive_interval().unwrap(), Duration::from_secs(5));
        assert_eq!(options.tcp_user_timeout().unwrap(), Some(Duration::from_secs(20)));
    }

    #[test]
    fn an_ipv6_listener_takes_ipv4_only_when_told() {
        let any = "[::]:0".parse().unwrap();
        let Ok(strict) = listen(any, &SocketSpec::default(), 1) else { return }; // no IPv6 on this machine
        assert!(SockRef::from(&strict[0]).only_v6().unwrap());
        let both = listen(any, &SocketSpec { ipv4_compat: true, ..SocketSpec::default() }, 1).unwrap();
        assert!(!SockRef::from(&both[0]).only_v6().unwrap());
    }
}
