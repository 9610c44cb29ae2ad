//! Where a redirected connection was going before iptables or nftables redirected it.

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

/// Finds the original destination of an accepted connection.
pub trait OriginalDst: std::fmt::Debug {
    /// The destination that the client asked for, when it is not the address that accepted the connection. `None` when
    /// the connection was not redirected.
    ///
    /// # Errors
    /// The kernel's answer, other than "not redirected".
    fn original_dst(&self, stream: &TcpStream) -> io::Result<Option<SocketAddr>>;
}

/// Asks the kernel: `SO_ORIGINAL_DST` for IPv4 and IPv6, which conntrack answers for REDIRECT and DNAT. Under TPROXY
/// (`transparent`) there is nothing to ask, because the local address is the original destination.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kernel;

impl OriginalDst for Kernel {
    fn original_dst(&self, stream: &TcpStream) -> io::Result<Option<SocketAddr>> {
        let local = canonical(stream.local_addr()?);
        let socket = SockRef::from(stream);
        // An IPv4 connection on an IPv6 socket (`ipv4_compat`) is an IPv4 connection to conntrack.
        let answer = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
        let original = match answer {
            Ok(address) => address.as_socket().map(canonical),
            Err(error) if is_not_redirected(&error) => None,
            Err(error) => return Err(error),
        };
        Ok(original.filter(|original| *original != local))
    }
}

/// An IPv4 address that stands in an IPv6 one, as itself.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// ENOENT: no conntrack entry. ENOPROTOOPT: conntrack or ip6tables is not in this kernel. EOPNOTSUPP: neither is the option.
fn is_not_redirected(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let code = error.raw_os_error();
    [Errno::NOENT, Errno::NOPROTOOPT, Errno::OPNOTSUPP].iter().any(|e| code == Some(e.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn accepted(address: &str) -> Option<TcpStream> {
        // Machines without IPv6 exist.
        let listener = TcpListener::bind(address).await.ok()?;
        let client = TcpStream::connect(listener.local_addr().ok()?);
        let (client, server) = tokio::join!(client, listener.accept());
        client.ok()?;
        Some(server.ok()?.0)
    }

    #[tokio::test]
    async fn a_direct_connection_was_not_redirected() {
        let v4 = accepted("127.0.0.1:0").await.unwrap();
        assert_eq!(Kernel.original_dst(&v4).unwrap(), None);
        if let Some(v6) = accepted("[::1]:0").await {
            assert_eq!(Kernel.original_dst(&v6).unwrap(), None);
        }
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        assert_eq!(canonical("[::ffff:10.0.0.1]:80".parse().unwrap()), "10.0.0.1:80".parse().unwrap());
        assert_eq!(canonical("[::1]:80".parse().unwrap()), "[::1]:80".parse().unwrap());
    }
}
