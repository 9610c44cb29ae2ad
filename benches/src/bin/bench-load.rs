//! The load generator as a command.

use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use remora_benches::load::{self, Mode, Options, Protocol};

/// Requests at a fixed rate (open loop, latency counted from when a request was due), or as fast as answers come.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Where to send requests: `http://host:port/path`, plaintext.
    url: http::Uri,
    /// Protocol; h2 is HTTP/2 with prior knowledge.
    #[arg(long, value_enum, default_value = "h1")]
    protocol: Protocol,
    /// Requests per second.
    #[arg(long, default_value_t = 1000.0, conflicts_with = "closed")]
    rate: f64,
    /// Requests that are due together: 1 spaces them evenly.
    #[arg(long, default_value_t = 1, conflicts_with = "closed")]
    burst: u32,
    /// Closed loop: every connection (or stream) sends its next request when the last was answered.
    #[arg(long)]
    closed: bool,
    /// Connections, all opened before the run.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Most requests in flight on one HTTP/2 connection.
    #[arg(long, default_value_t = 8)]
    streams: usize,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Seconds of load before them.
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// Print the result as JSON; the line for a person goes to standard error.
    #[arg(long)]
    json: bool,
}

impl Args {
    async fn options(&self) -> anyhow::Result<Options> {
        let authority = self.url.authority().context("the URL has no host")?;
        let port = authority.port_u16().unwrap_or(80);
        let host = authority.host().trim_matches(['[', ']']);
        let target =
            tokio::net::lookup_host((host, port)).await?.next().context("the host has no address")?;
        Ok(Options {
            target,
            protocol: self.protocol,
            handshake: None,
            mode: if self.closed { Mode::Closed } else { Mode::Rate { rate: self.rate, burst: self.burst } },
            connections: self.connections,
            streams: self.streams,
            authority: authority.to_string(),
            path: self.url.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
            warmup: Duration::try_from_secs_f64(self.warmup).context("--warmup")?,
            window: Duration::try_from_secs_f64(self.seconds).context("--seconds")?,
        })
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let report = remora_benches::local_runtime()?.block_on(async {
        let options = args.options().await?;
        load::run(&options, &mut |_| {}).await
    })?;
    if args.json {
        eprintln!("{}", report.line());
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.line());
    }
    anyhow::ensure!(report.ok > 0, "no request succeeded");
    Ok(())
}
