//! The endpoints that get requests: each answers with its own address, so that whoever asks knows which one it was.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// Longest head of a request or answer.
const HEAD: usize = 16 * 1024;

/// Endpoints on loopback addresses, all on one port. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) port: u16,
    runtime: Option<Runtime>,
}

impl Origin {
    /// Listens on each of the addresses, on a thread of its own.
    pub(crate) fn start(addresses: impl IntoIterator<Item = Ipv4Addr>) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut port = 0;
        for address in addresses {
            let listener = runtime.block_on(TcpListener::bind((address, port)));
            let listener = listener.with_context(|| format!("{address}:{port}"))?;
            port = listener.local_addr()?.port();
            runtime.spawn(serve(listener, address.to_string()));
        }
        Ok(Self { port, runtime: Some(runtime) })
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(listener: TcpListener, name: String) {
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
    while let Ok((stream, _)) = listener.accept().await {
        let answer = answer.clone();
        // A connection that breaks is seen by its client.
        tokio::spawn(async move { answer_all(stream, answer.as_bytes()).await });
    }
}

/// Answers requests without bodies until the client has no more.
async fn answer_all(mut stream: TcpStream, answer: &[u8]) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::new();
    loop {
        if let Some(end) = end_of_head(&head) {
            head.drain(..end);
            stream.write_all(answer).await?;
        } else if head.len() > HEAD || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// Which endpoint of a Service a proxy sends a request to: its address.
pub(crate) async fn ask(stream: &mut TcpStream, authority: &str) -> anyhow::Result<Ipv4Addr> {
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: {authority}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    loop {
        if let Some(end) = end_of_head(&answer) {
            ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
            let head = String::from_utf8_lossy(answer.get(..end).unwrap_or_default()).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = length.context("no content-length")?.trim().parse()?;
            if let Some(body) = answer.get(end..end + length) {
                return Ok(std::str::from_utf8(body)?.parse()?);
            }
        }
        if answer.len() > HEAD || stream.read_buf(&mut answer).await? == 0 {
            bail!("the proxy closed the connection");
        }
    }
}

/// A new connection to a proxy.
pub(crate) async fn connect(to: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_endpoint_says_its_address() {
        let addresses = [Ipv4Addr::new(127, 1, 2, 3), Ipv4Addr::new(127, 4, 5, 6)];
        let origin = tokio::task::spawn_blocking(move || Origin::start(addresses)).await.unwrap().unwrap();
        for address in addresses {
            let mut stream = connect((address, origin.port).into()).await.unwrap();
            for _ in 0..3 {
                assert_eq!(ask(&mut stream, "any").await.unwrap(), address);
            }
        }
        tokio::task::spawn_blocking(move || drop(origin)).await.unwrap();
    }
}
