//! A port that answers no SYN: to whoever connects, the same as a network that drops everything.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;

/// A listener with a full queue that nobody accepts from.
#[derive(Debug)]
pub struct Hole {
    /// Where nothing is answered.
    pub address: SocketAddr,
    _socket: Socket,
    _queue: Vec<TcpStream>,
}

impl Hole {
    /// Opens one.
    ///
    /// # Errors
    /// When no loopback port is free.
    pub async fn open() -> std::io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        socket.listen(0)?;
        let address = socket.local_addr()?.as_socket().ok_or(std::io::ErrorKind::Unsupported)?;
        // Once the queue is full, further SYNs are dropped.
        let mut queue = Vec::new();
        while let Ok(Ok(stream)) =
            tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
        {
            queue.push(stream);
        }
        Ok(Self { address, _socket: socket, _queue: queue })
    }
}
