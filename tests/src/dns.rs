//! A name server that answers as the test says, by UDP and TCP (RFC 1035).

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinHandle, JoinSet};

/// What a UDP answer may have without EDNS (RFC 1035 §4.2.1).
const UDP_BYTES: usize = 512;

/// The answer to a question for the addresses of a name.
#[derive(Debug, Clone)]
pub enum Reply {
    /// A records with this TTL. Over UDP an answer that is too long is truncated.
    Addresses(Vec<Ipv4Addr>, u32),
    /// The same, by TCP only: over UDP there is nothing but the TC bit.
    Truncated(Vec<Ipv4Addr>),
    /// NXDOMAIN.
    NoName,
    /// No records.
    Empty,
    /// SERVFAIL.
    Failure,
    /// Nothing.
    Silence,
}

/// The name server. Names that it was not told are NXDOMAIN.
#[derive(Debug)]
pub struct NameServer {
    /// Where it listens, UDP and TCP.
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    tasks: [JoinHandle<()>; 2],
}

#[derive(Debug, Default)]
struct Zone {
    replies: HashMap<String, Reply>,
    asked: HashMap<String, usize>,
}

impl NameServer {
    /// Starts one.
    ///
    /// # Panics
    /// When there is no port that is free for both.
    pub async fn start() -> Self {
        let (tcp, udp) = sockets().await;
        let address = udp.local_addr().expect("address");
        let zone = Arc::<Mutex<Zone>>::default();
        let tasks = [
            tokio::spawn(serve_udp(udp, Arc::clone(&zone))),
            tokio::spawn(serve_tcp(tcp, Arc::clone(&zone))),
        ];
        Self { address, zone, tasks }
    }

    /// Answers so from now on.
    pub fn set(&self, name: &str, reply: Reply) {
        lock(&self.zone).replies.insert(name.into(), reply);
    }

    /// How many questions for a name have come.
    #[must_use]
    pub fn asked(&self, name: &str) -> usize {
        lock(&self.zone).asked.get(name).copied().unwrap_or(0)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn lock(zone: &Mutex<Zone>) -> MutexGuard<'_, Zone> {
    zone.lock().expect("not poisoned")
}

/// One port, both protocols.
async fn sockets() -> (TcpListener, UdpSocket) {
    for _ in 0..100 {
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().expect("address")).await {
            return (tcp, udp);
        }
    }
    panic!("no port is free for TCP and UDP")
}

async fn serve_udp(socket: UdpSocket, zone: Arc<Mutex<Zone>>) {
    let mut buffer = [0; 4096];
    while let Ok((n, peer)) = socket.recv_from(&mut buffer).await {
        if let Some(reply) = answer(&buffer[..n], &zone, true) {
            // A client that is gone needs none.
            let _ = socket.send_to(&reply, peer).await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, zone: Arc<Mutex<Zone>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(converse(stream, Arc::clone(&zone)));
    }
}

/// Messages with their length in front (RFC 1035 §4.2.2), until the client ends or breaks off.
async fn converse(mut stream: TcpStream, zone: Arc<Mutex<Zone>>) {
    while let Ok(length) = stream.read_u16().await {
        let mut question = vec![0; length.into()];
        if stream.read_exact(&mut question).await.is_err() {
            return;
        }
        let Some(reply) = answer(&question, &zone, false) else { continue };
        let length = u16::try_from(reply.len()).expect("an answer for TCP");
        if stream.write_all(&[&length.to_be_bytes()[..], &reply].concat()).await.is_err() {
            return;
        }
    }
}

fn answer(message: &[u8], zone: &Mutex<Zone>, udp: bool) -> Option<Vec<u8>> {
    const A: u16 = 1;
    let (name, end) = question(message)?;
    let kind = u16::from_be_bytes([message[end - 4], message[end - 3]]);
    let reply = {
        let mut zone = lock(zone);
        *zone.asked.entry(name.clone()).or_default() += 1;
        zone.replies.get(&name).cloned().unwrap_or(Reply::NoName)
    };
    let echo = &message[..end];
    let (addresses, ttl) = match reply {
        Reply::Silence => return None,
        Reply::NoName => return Some(packet(echo, 3, false, (&[], 0))),
        Reply::Failure => return Some(packet(echo, 2, false, (&[], 0))),
        Reply::Truncated(_) if udp => return Some(packet(echo, 0, true, (&[], 0))),
        Reply::Empty => (Vec::new(), 0),
        Reply::Addresses(addresses, ttl) => (addresses, ttl),
        Reply::Truncated(addresses) => (addresses, 60),
    };
    let addresses = if kind == A { addresses } else { Vec::new() };
    let whole = packet(echo, 0, false, (&addresses, ttl));
    Some(if udp && whole.len() > UDP_BYTES { packet(echo, 0, true, (&[], 0)) } else { whole })
}

/// Name of the first question, and where it ends.
fn question(message: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut at) = (Vec::new(), 12);
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8(message.get(at..at + length)?.to_ascii_lowercase()).ok()?);
        at += length;
    }
    let end = at + 4;
    (message.len() >= end).then(|| (labels.join("."), end))
}

/// A response to the question in `echo`: its header and the question itself.
fn packet(echo: &[u8], code: u8, truncated: bool, (addresses, ttl): (&[Ipv4Addr], u32)) -> Vec<u8> {
    let count = u16::try_from(addresses.len()).expect("few records");
    let mut out = echo.to_vec();
    // A response to a recursive query, from a server that can do that.
    out[2] = 0x81 | if truncated { 0x02 } else { 0 };
    out[3] = 0x80 | code;
    out[4..6].copy_from_slice(&1_u16.to_be_bytes());
    out[6..8].copy_from_slice(&count.to_be_bytes());
    out[8..12].fill(0);
    for address in addresses {
        // The name of the question, type A, class IN.
        out.extend([0xc0, 12, 0, 1, 0, 1]);
        out.extend(ttl.to_be_bytes());
        out.extend([0, 4]);
        out.extend(address.octets());
    }
    out
}
