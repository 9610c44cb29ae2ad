//! The numbers of the control plane, and of proxies that it gives a large configuration, as a command.

use std::fs;
use std::io::{IsTerminal as _, stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use remora_benches::compare::Check;
use remora_benches::xds::{Results, plane, proxy};
use tokio::signal::unix::{SignalKind, signal};

/// How fast a change gets from the control plane into force, and what a large mesh costs on either side.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  bench-xds plane                                  10,000 endpoints, 500 nodes, about a minute
  bench-xds plane --services 100 --nodes 50        a quick look
  bench-xds proxy --envoy target/bench-venv/lib/python3.11/site-packages/envoy/_bin/envoy
  bench-xds plane --assert && bench-xds proxy --assert

A table on a terminal, lines with tabs in a pipe. Exit status: 0, 1 when something failed or --assert found a target missed, 2 for
wrong arguments."
)]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// `remora control` with many endpoints and connected nodes
    Plane(PlaneArgs),
    /// `remora proxy` with many clusters, by ADS
    Proxy(ProxyArgs),
}

#[derive(Debug, Args)]
struct Common {
    /// The program `remora`; without this, the one beside this program
    #[arg(long, value_name = "FILE")]
    remora: Option<PathBuf>,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
    /// Exit with status 1 unless every target is reached
    #[arg(long)]
    assert: bool,
    /// Keep configs, data and logs in this folder
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct PlaneArgs {
    #[command(flatten)]
    common: Common,
    /// Services; the first is called by every node
    #[arg(long, default_value_t = 1000)]
    services: usize,
    /// Instances of each Service
    #[arg(long, default_value_t = 10)]
    instances: usize,
    /// Connected nodes
    #[arg(long, default_value_t = 500)]
    nodes: usize,
    /// Services that each node calls
    #[arg(long, default_value_t = 20)]
    egress: usize,
    /// Changes of one endpoint
    #[arg(long, default_value_t = 200)]
    changes: usize,
    /// Changes of an endpoint of the Service that all nodes call
    #[arg(long, default_value_t = 50)]
    common_changes: usize,
    /// Changes a second
    #[arg(long, default_value_t = 10.0)]
    rate: f64,
}

#[derive(Debug, Args)]
struct ProxyArgs {
    #[command(flatten)]
    common: Common,
    /// Envoy, to be measured too
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
    /// Clusters; each has a virtual host
    #[arg(long, default_value_t = 5000)]
    clusters: usize,
    /// Endpoints of each cluster
    #[arg(long, default_value_t = 10)]
    endpoints: usize,
    /// Changes of one endpoint
    #[arg(long, default_value_t = 100)]
    changes: usize,
    /// Changes a second
    #[arg(long, default_value_t = 10.0)]
    rate: f64,
    /// Requests a second meanwhile
    #[arg(long, default_value_t = 1000.0)]
    requests: f64,
}

/// One status line on a terminal, plain lines elsewhere.
fn progress(text: &str) {
    if stderr().is_terminal() { eprint!("\r\x1b[K{text}") } else { eprintln!("{text}") }
}

fn remora(common: &Common) -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe().context("this program's path")?;
    let remora = common.remora.clone().unwrap_or_else(|| here.with_file_name("remora"));
    anyhow::ensure!(
        remora.is_file(),
        "{} is missing: cargo build --release -p remora-control",
        remora.display()
    );
    Ok(remora)
}

async fn measure(what: &What, folder: &Path) -> anyhow::Result<Results> {
    let folder = folder.canonicalize()?;
    match what {
        What::Plane(args) => {
            let mesh = plane::Mesh {
                services: args.services,
                instances: args.instances,
                nodes: args.nodes,
                egress: args.egress,
            };
            let plan = plane::Plan {
                remora: remora(&args.common)?,
                mesh,
                changes: args.changes,
                common_changes: args.common_changes,
                rate: args.rate,
                folder,
            };
            let column = plane::run(&plan, &mut progress).await?;
            let endpoints = args.services * args.instances;
            let title = format!("{endpoints} endpoints in {} Services, {} nodes", args.services, args.nodes);
            Ok(Results::new(title, vec![column]))
        }
        What::Proxy(args) => {
            let plan = proxy::Plan {
                remora: remora(&args.common)?,
                envoy: args.envoy.clone(),
                clusters: args.clusters,
                endpoints: args.endpoints,
                changes: args.changes,
                rate: args.rate,
                requests: args.requests,
                folder,
            };
            let columns = proxy::run(&plan, &mut progress).await?;
            let title = format!("{} clusters of {} endpoints", args.clusters, args.endpoints);
            Ok(Results::new(title, columns))
        }
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let what = Command::parse().what;
    let common = match &what {
        What::Plane(args) => &args.common,
        What::Proxy(args) => &args.common,
    };
    let temporary = tempfile::tempdir().context("temporary folder")?;
    let folder = common.keep.clone().unwrap_or_else(|| temporary.path().to_owned());
    fs::create_dir_all(&folder)?;
    let results = remora_benches::local_runtime()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        tokio::select! {
            results = measure(&what, &folder) => results,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })?;
    if stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    if common.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else if stdout().is_terminal() {
        print!("{}", results.table());
    } else {
        print!("{}", results.lines());
    }
    let missed: Vec<_> = results.checks().into_iter().filter(|check| !check.passed()).collect();
    if common.assert {
        missed.iter().map(Check::line).for_each(|line| eprintln!("{line}"));
    }
    Ok(if common.assert && !missed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
