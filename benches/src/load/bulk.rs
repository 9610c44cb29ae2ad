//! Bulk bytes over plain TCP: what an L4 proxy carries in a second.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Mark;
use crate::origin::{self, Bulk};

/// Bytes per read and write; large, so that this side costs little.
const BLOCK: usize = 256 * 1024;

/// A bulk run: half of the connections download, half upload (one connection downloads).
#[derive(Debug, Clone)]
pub struct Options {
    /// The bulk port of the origin, or a proxy before it.
    pub target: SocketAddr,
    /// Connections that carry bytes all the time.
    pub connections: usize,
    /// Time under load before the window.
    pub warmup: Duration,
    /// Time that is measured.
    pub window: Duration,
}

/// What a bulk run found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Bytes that the generator received and sent in the window.
    pub bytes: u64,
    /// The window's exact length in seconds.
    pub seconds: f64,
    /// Gigabytes (10⁹) per second.
    pub gb_per_second: f64,
    /// Connections that failed.
    pub errors: u64,
    /// The first failure, in words.
    pub first_error: Option<String>,
}

/// Carries bytes in both directions on the current local runtime; `mark` is called at both edges of the window.
///
/// # Errors
/// When there is no connection to open.
pub async fn run(options: &Options, mark: &mut dyn FnMut(Mark)) -> anyhow::Result<Report> {
    if options.connections == 0 {
        bail!("at least one connection is needed");
    }
    let bytes = Rc::new(Cell::new(0_u64));
    let mut tasks = JoinSet::new();
    for index in 0..options.connections {
        let kind = if index % 2 == 0 { Bulk::Get } else { Bulk::Put };
        tasks.spawn_local(carry(options.target, kind, Rc::clone(&bytes)));
    }
    let begin = Instant::now();
    sleep_until(begin + options.warmup).await;
    let start = Instant::now();
    let before = bytes.get();
    mark(Mark::Start);
    sleep_until(start + options.window).await;
    mark(Mark::End);
    let seconds = start.elapsed().as_secs_f64();
    let carried = bytes.get() - before;
    let mut failed = Vec::new();
    while let Some(Ok(error)) = tasks.try_join_next() {
        failed.push(format!("{error:#}"));
    }
    Ok(Report {
        bytes: carried,
        seconds,
        gb_per_second: carried as f64 / 1e9 / seconds,
        errors: failed.len() as u64,
        first_error: failed.into_iter().next(),
    })
}

/// One connection that carries bytes until it is dropped; ends only by failing.
async fn carry(target: SocketAddr, kind: Bulk, bytes: Rc<Cell<u64>>) -> anyhow::Error {
    let count = |n: usize| bytes.set(bytes.get() + n as u64);
    let run = async {
        let mut stream = TcpStream::connect(target).await.context("connect")?;
        stream.write_all(&origin::bulk_order(kind, u64::MAX)).await.context("write")?;
        let mut block = vec![0; BLOCK];
        loop {
            let n = match kind {
                Bulk::Get => stream.read(&mut block).await.context("read")?,
                Bulk::Put => stream.write(&block).await.context("write")?,
            };
            if n == 0 {
                bail!("the connection was closed");
            }
            count(n);
        }
    };
    let outcome: anyhow::Result<std::convert::Infallible> = run.await;
    match outcome {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

/// Fetches one byte; the probe that decides whether an L4 proxy is ready.
///
/// # Errors
/// When the connection fails or ends without the byte.
pub async fn probe(target: SocketAddr) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(target).await?;
    stream.write_all(&origin::bulk_order(Bulk::Get, 1)).await?;
    stream.read_u8().await?;
    Ok(())
}
