//! The load generator.
//!
//! Open loop: requests are due at fixed moments, whatever the answers do, and latency counts from the moment a request
//! was due, not from when it could be sent. A stall is therefore seen by every request that was due while it lasted
//! (no coordinated omission). Closed loop: every worker sends its next request when the last was answered, which finds
//! the ceiling and says nothing about latency at a given load.
//!
//! With [`Options::handshake`] every request has a connection of its own, by mutual TLS.

pub mod bulk;
mod h1;
mod h2;
pub mod handshake;
mod shared;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use handshake::Handshake;
use shared::Shared;

/// How long answers may still arrive after the window, before they count as errors.
const GRACE: Duration = Duration::from_secs(2);

/// The protocol that is spoken to the target, in plaintext.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1 with one request in flight per connection.
    H1,
    /// HTTP/2 with prior knowledge (RFC 9113 §3.3).
    H2,
}

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// Open loop.
    Rate {
        /// Requests per second.
        rate: f64,
        /// Requests that are due together: 1 spaces them evenly, more makes gusts of so many.
        burst: u32,
    },
    /// Closed loop: as fast as answers come.
    Closed,
}

/// One run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where requests go.
    pub target: SocketAddr,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Every request is HTTP/1 on a new connection by mutual TLS, which is closed after the answer; plaintext without.
    pub handshake: Option<Handshake>,
    /// Open or closed loop.
    pub mode: Mode,
    /// Connections, opened before the run.
    pub connections: usize,
    /// Most requests in flight on one connection; 1 for [`Protocol::H1`].
    pub streams: usize,
    /// The authority of every request.
    pub authority: String,
    /// The path of every request.
    pub path: String,
    /// Time under load before the window.
    pub warmup: Duration,
    /// Time that is measured.
    pub window: Duration,
}

/// The edges of the measured window, for callers that measure something of their own over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The window opens now.
    Start,
    /// The window closes now.
    End,
}

/// Latency in microseconds, from the moment a request was due to the last byte of its answer.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Latency {
    /// Median.
    pub p50_us: u64,
    /// 90th percentile.
    pub p90_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// 99.9th percentile.
    pub p999_us: u64,
    /// The slowest.
    pub max_us: u64,
}

/// What a run found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Answers with status 200 that ended inside the window.
    pub ok: u64,
    /// Failed requests, other statuses, and requests that were not answered within two seconds of the window's end.
    pub errors: u64,
    /// Requests that were due in the window and could not be sent until two seconds after it, because every connection
    /// was taken.
    pub unsent: u64,
    /// The first failure, in words.
    pub first_error: Option<String>,
    /// The window's exact length in seconds.
    pub seconds: f64,
    /// Answers per second.
    pub rate: f64,
    /// Bytes of response bodies that arrived in the window.
    pub bytes: u64,
    /// Latency of the requests that were due in the window.
    pub latency: Latency,
}

impl Report {
    /// One line for a person.
    #[must_use]
    pub fn line(&self) -> String {
        let Latency { p50_us, p90_us, p99_us, p999_us, max_us } = self.latency;
        let mut line = format!(
            "{} ok, {} errors, {} unsent in {:.1} s: {:.0}/s; latency p50 {p50_us} us, p90 {p90_us} us, p99 {p99_us} us, \
             p99.9 {p999_us} us, max {max_us} us",
            self.ok, self.errors, self.unsent, self.seconds, self.rate
        );
        if let Some(error) = &self.first_error {
            line.push_str("; first error: ");
            line.push_str(error);
        }
        line
    }
}

/// A client of either protocol that makes one request at a time.
enum Client {
    H1(h1::Client),
    H2(h2::Client),
    Handshake(handshake::Client),
}

impl Client {
    /// Makes a request and reads the whole answer; returns the length of the body.
    async fn request(&mut self) -> anyhow::Result<u64> {
        match self {
            Self::H1(client) => client.request().await,
            Self::H2(client) => client.request().await,
            Self::Handshake(client) => client.request().await,
        }
    }

    async fn reconnect(&mut self) -> anyhow::Result<()> {
        match self {
            Self::H1(client) => client.reconnect().await,
            Self::H2(client) => client.reconnect().await,
            Self::Handshake(client) => client.reconnect().await,
        }
    }
}

/// Runs the load on the current [`tokio::runtime::LocalRuntime`]; `mark` is called at both edges of the window.
///
/// # Errors
/// When a connection cannot be opened before the run, the options make no sense, or the timer cannot be made.
/// Failed requests are no error of the run: they are counted.
pub async fn run(options: &Options, mark: &mut dyn FnMut(Mark)) -> anyhow::Result<Report> {
    let clients = connect(options).await?;
    let shared = Rc::new(Shared::new(options.mode)?);
    let mut tasks = JoinSet::new();
    for client in clients {
        tasks.spawn_local(worker(client, Rc::clone(&shared)));
    }
    if let Mode::Rate { rate, burst } = options.mode {
        let (timer, interval) = shared::timer(rate, burst)?;
        tasks.spawn_local(shared::pace(Rc::clone(&shared), timer, interval, burst));
    }
    let begin = Instant::now();
    sleep_until(begin + options.warmup).await;
    let start = shared.open_window();
    mark(Mark::Start);
    sleep_until(start + options.window).await;
    mark(Mark::End);
    let end = shared.close_window();
    let drained = timeout_at(end + GRACE, async { while tasks.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        shared.abandon();
    }
    Ok(shared.report(start, end))
}

/// Opens all connections, and makes one client for every request that may be in flight.
async fn connect(options: &Options) -> anyhow::Result<Vec<Client>> {
    if options.connections == 0 || options.streams == 0 {
        bail!("at least one connection and one request in flight are needed");
    }
    let mut clients = Vec::with_capacity(options.connections * options.streams);
    for _ in 0..options.connections {
        let opened = match (&options.handshake, options.protocol) {
            (Some(handshake), _) => {
                vec![Client::Handshake(handshake::Client::connect(handshake, options).await?)]
            }
            (None, Protocol::H1) => vec![Client::H1(h1::Client::connect(options).await?)],
            (None, Protocol::H2) => {
                let first = h2::Client::connect(options).await?;
                let rest = (1..options.streams).map(|_| Client::H2(first.share()));
                rest.chain([Client::H2(first.share())]).collect()
            }
        };
        clients.extend(opened);
    }
    Ok(clients)
}

async fn worker(mut client: Client, shared: Rc<Shared>) {
    while let Some(due) = shared.next().await {
        shared.sent();
        let outcome = client.request().await;
        let failed = outcome.is_err();
        shared.done(due, outcome);
        // A target that is gone must not turn this loop into a busy one.
        while failed && !shared.stopped() && client.reconnect().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Makes one plain HTTP request and waits for status 200; the probe that decides whether a proxy is ready.
///
/// # Errors
/// When the connection or the request fails, or the status is another.
pub async fn probe(options: &Options) -> anyhow::Result<()> {
    let mut clients = connect(&Options { connections: 1, streams: 1, ..options.clone() }).await?;
    let client = clients.first_mut().context("one connection makes one client")?;
    client.request().await.map(|_| ())
}
