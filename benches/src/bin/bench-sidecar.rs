//! The numbers of a sidecar in a pod, as a command.

use std::fs;
use std::io::{IsTerminal as _, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Parser, ValueEnum as _};
use remora_benches::sidecar::{self, Part, Plan, Results};
use tokio::signal::unix::{SignalKind, signal};

/// What a sidecar costs a pod: its rules, its start, interception, idling, an upgrade.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  bench-sidecar --assert                           everything, about four minutes
  bench-sidecar --only init,start                  two parts
  bench-sidecar --only idle --idle 120             two minutes of nothing

Needs root, and the programs ip, nft and setpriv: it works in network namespaces that it makes and removes. Without them it says so and
measures nothing. Exit status: 0, 1 when a part failed or --assert found a target missed (or nothing measured), 2 for wrong arguments."
)]
struct Args {
    /// Parts to run; all without this
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Services of the mesh
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    services: u16,
    /// Endpoints of each Service
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=100))]
    endpoints: u8,
    /// The sidecar's Workload says that it calls this many of them; without this it says nothing, and has all
    #[arg(long, value_name = "N")]
    egress: Option<u16>,
    /// Runs of `remora init`
    #[arg(long, default_value_t = 15)]
    init_runs: usize,
    /// Starts of a sidecar
    #[arg(long, default_value_t = 9)]
    starts: usize,
    /// Rounds with and without interception
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Requests per second
    #[arg(long, default_value_t = 2000.0)]
    rate: f64,
    /// Requests that are due together
    #[arg(long, default_value_t = 8)]
    burst: u32,
    /// Seconds of a window of load; an upgrade has two
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Seconds that idle proxies are watched
    #[arg(long, default_value_t = 30.0)]
    idle: f64,
    /// The program `remora`; without this, the one beside this program
    #[arg(long, value_name = "FILE")]
    remora: Option<PathBuf>,
    /// The program `remora-proxy`; without this, the one beside this program
    #[arg(long, value_name = "FILE")]
    proxy: Option<PathBuf>,
    /// Where the results go as JSON; without this, bench-sidecar.json above this program
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep configs, data and logs in this folder
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
    /// Exit with status 1 unless every target is reached
    #[arg(long)]
    assert: bool,
}

/// Before idle CPU is counted.
const WARMUP: Duration = Duration::from_secs(5);

/// One status line on a terminal, plain lines elsewhere.
fn progress(text: &str) {
    if stderr().is_terminal() { eprint!("\r\x1b[K{text}") } else { eprintln!("{text}") }
}

fn seconds(value: f64, flag: &str) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(value).with_context(|| flag.to_owned())
}

fn plan(args: &Args, here: &Path, folder: PathBuf) -> anyhow::Result<Plan> {
    let program = |given: &Option<PathBuf>, name: &str| -> anyhow::Result<PathBuf> {
        let path = given.clone().unwrap_or_else(|| here.join(name));
        let build = "cargo build --release -p remora-benches -p remora-control -p remora-proxy --bins";
        ensure!(path.is_file(), "{} is missing: {build}", path.display());
        Ok(path.canonicalize()?)
    };
    Ok(Plan {
        remora: program(&args.remora, "remora")?,
        proxy: program(&args.proxy, "remora-proxy")?,
        origin: program(&None, "bench-origin")?,
        parts: if args.only.is_empty() { Part::value_variants().into() } else { args.only.clone() },
        services: args.services.into(),
        endpoints: args.endpoints.into(),
        egress: args.egress.map(|egress| egress.min(args.services).into()),
        init_runs: args.init_runs.max(1),
        starts: args.starts.max(1),
        rounds: args.rounds.max(1),
        rate: args.rate,
        burst: args.burst,
        window: seconds(args.seconds, "--seconds")?,
        warmup: WARMUP,
        idle: seconds(args.idle, "--idle")?,
        folder,
    })
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if let Some(why) = sidecar::missing() {
        eprintln!("SKIPPED: bench-sidecar: {why}");
        return Ok(if args.assert { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let program = std::env::current_exe().context("this program's path")?;
    let here = program.parent().context("this program's folder")?;
    let temporary = tempfile::tempdir().context("temporary folder")?;
    let folder = args.keep.clone().unwrap_or_else(|| temporary.path().to_owned());
    fs::create_dir_all(&folder)?;
    let plan = plan(&args, here, folder.canonicalize()?)?;
    let mut hear = progress;
    let results = remora_benches::local_runtime()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        tokio::select! {
            results = sidecar::run(&plan, &mut hear) => Ok(results),
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })?;
    if stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    finish(&args, here.parent().unwrap_or(here), &results)
}

/// Prints and stores what was found, and decides the exit status.
fn finish(args: &Args, target: &Path, results: &Results) -> anyhow::Result<ExitCode> {
    print!("{}", results.table());
    let file = args.json.clone().unwrap_or_else(|| target.join("bench-sidecar.json"));
    fs::write(&file, serde_json::to_string_pretty(results)?).with_context(|| file.display().to_string())?;
    println!("Every measurement: {}", file.display());
    let held = results.checks().iter().all(|check| check.passed());
    let good = results.complete() && (held || !args.assert);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
