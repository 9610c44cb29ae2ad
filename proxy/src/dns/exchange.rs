//! One question to name servers, by UDP and, where an answer does not fit or may be forged, by TCP.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::ForwardSpec;
use super::reply::{Asked, Fit, Reply, code_of, is_truncated};
use super::stats::{Count, Stats};
use super::wire::{self, Key, code};

/// All servers and repeats together take no longer: a client has given up by then.
const WHOLE: Duration = Duration::from_secs(10);
/// What a UDP answer may have: more than we say, for servers that do not listen.
const BUFFER: usize = 4096;

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// This.
    Answer(Reply),
    /// At least one server has said something, and none has an answer.
    Failed,
    /// No server has said anything.
    Silence,
}

/// Asks one server after the other until one has an answer. Repeated is what was lost: a server that has failed would say the same again.
/// `heard` is called whenever a server has said something, also while others are still asked.
pub async fn ask(
    key: &Key,
    spec: &ForwardSpec,
    servers: &[SocketAddr],
    stats: &Stats,
    heard: &(dyn Fn() + Sync),
) -> Told {
    let mut said = vec![false; servers.len()];
    let all = async {
        for _ in 0..=spec.retries {
            for (server, said) in servers.iter().zip(&mut said) {
                if *said {
                    continue;
                }
                let other_letters = AtomicBool::new(false);
                let asked = one(key, *server, spec.servers.tcp, &other_letters);
                let came = timeout(spec.timeout, asked).await;
                if matches!(came, Ok(Err(_)) | Err(_)) && other_letters.into_inner() {
                    tell_letters(*server, stats);
                }
                if matches!(came, Ok(Ok(_))) {
                    heard();
                }
                match came {
                    Ok(Ok(Some(reply))) => return Some(reply),
                    Ok(Ok(None)) => {
                        *said = true;
                        tracing::debug!(%server, name = wire::text(&key.name), "no usable answer");
                    }
                    Ok(Err(error)) => {
                        tracing::debug!(%server, name = wire::text(&key.name), %error, "not answered");
                    }
                    Err(_) => tracing::debug!(%server, name = wire::text(&key.name), "no answer in time"),
                }
            }
        }
        None
    };
    let answered = timeout(WHOLE, all).await.ok().flatten();
    match answered {
        Some(reply) => Told::Answer(reply),
        None if said.contains(&true) => Told::Failed,
        None => Told::Silence,
    }
}

/// A server whose answers are not taken, for good: people have to know, once.
fn tell_letters(server: SocketAddr, stats: &Stats) {
    if stats.get(Count::OtherLetters) == 0 {
        tracing::warn!(
            %server,
            "a name server changes the letters of names, by which forged answers are known, and does not answer by TCP: its answers are not taken"
        );
    }
    stats.count(Count::OtherLetters);
}

/// The answer of one server. None: it is malformed, or the server has failed.
async fn one(
    key: &Key,
    server: SocketAddr,
    tcp: bool,
    other_letters: &AtomicBool,
) -> io::Result<Option<Reply>> {
    let answer = exchange(key, server, (tcp, true), other_letters).await?;
    // A server of before 1999, or a middlebox that has heard of no EDNS.
    let answer = if matches!(code_of(&answer), code::FORM_ERR | code::NOT_IMP) {
        exchange(key, server, (tcp, false), other_letters).await?
    } else {
        answer
    };
    Ok(Reply::read(key, &answer))
}

/// `other_letters` is set where the server answers by UDP with other letters, so that TCP decides.
async fn exchange(
    key: &Key,
    server: SocketAddr,
    (tcp, edns): (bool, bool),
    other_letters: &AtomicBool,
) -> io::Result<Vec<u8>> {
    if !tcp {
        let asked = new_question(key, edns)?;
        let (answer, fit) = by_udp(&asked, server).await?;
        if fit == Fit::Yes && !is_truncated(&answer) {
            return Ok(answer);
        }
        other_letters.fetch_or(fit == Fit::OtherCase, Ordering::Relaxed);
    }
    by_tcp(&new_question(key, edns)?, server).await
}

/// With an ID and a spelling that nobody can foretell.
fn new_question(key: &Key, edns: bool) -> io::Result<Asked> {
    let mut random = [0; 34];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| io::Error::other("no random numbers"))?;
    let [high, low, spelling @ ..] = random;
    Ok(Asked::new(key, u16::from_be_bytes([high, low]), &spelling, edns))
}

/// What fits of what comes, whether exactly or not.
async fn by_udp(asked: &Asked, server: SocketAddr) -> io::Result<(Vec<u8>, Fit)> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A port of its own for each question. Connected, it hears nobody else.
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&asked.message).await?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let fit = asked.fits(&buffer[..length]);
        if fit != Fit::No {
            buffer.truncate(length);
            return Ok((buffer, fit));
        }
    }
}

/// Messages have their length in front (RFC 1035 §4.2.2). A connection is the server's: the case of letters does not matter.
async fn by_tcp(asked: &Asked, server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&framed(&asked.message)).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    match asked.fits(&answer) {
        Fit::Yes | Fit::OtherCase if !is_truncated(&answer) => Ok(answer),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is to another question")),
    }
}

/// A message for TCP. What is longer than its length can say is cut, which no message of ours is.
#[must_use]
pub fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut out = Vec::with_capacity(2 + usize::from(length));
    out.extend(length.to_be_bytes());
    out.extend(&message[..usize::from(length)]);
    out
}

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod tests;
