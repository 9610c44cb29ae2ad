//! Opens a TCP connection to an endpoint. TLS is the caller's next step.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

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
    let attempt = async {
        let socket = open(address, spec)?;
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

fn open(address: SocketAddr, spec: &ConnectSpec) -> io::Result<TcpSocket> {
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
    // A source of the other address family cannot reach the endpoint; Envoy leaves such a connection unbound too.
    if let Some(source) = spec.source.filter(|s| s.is_ipv4() == address.is_ipv4()) {
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
