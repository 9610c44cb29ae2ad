//! The side-by-side run as a command.

use std::fs;
use std::io::{IsTerminal as _, stderr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Parser, ValueEnum as _};
use remora_benches::compare::{self, Placement, Plan, Programs, Proxy, Scenario};
use tokio::signal::unix::{SignalKind, signal};

/// Runs every proxy with one worker under the same load and prints one table: CPU per request at a fixed rate, latency,
/// ceiling, memory, time to ready, and the ratios to HAProxy and Envoy.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Scenarios to run; all without this.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Scenario>,
    /// Proxies to run; without this, all that are installed.
    #[arg(long, value_enum, value_delimiter = ',')]
    proxies: Vec<Proxy>,
    /// Repetitions, interleaved; the table shows medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each fixed-rate window; the closed loop takes half as long.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Seconds of load before each window.
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// Requests per second at the fixed rate.
    #[arg(long, default_value_t = 2000.0)]
    rate: f64,
    /// Handshakes per second at the fixed rate.
    #[arg(long, default_value_t = 400.0)]
    handshake_rate: f64,
    /// Requests, or handshakes, at the fixed rate that are due together.
    #[arg(long, default_value_t = 8)]
    burst: u32,
    /// HTTP/1 connections.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// HTTP/2 connections.
    #[arg(long, default_value_t = 4)]
    h2_connections: usize,
    /// Most requests in flight on one HTTP/2 connection.
    #[arg(long, default_value_t = 8)]
    h2_streams: usize,
    /// Connections of the bulk run; every second one uploads.
    #[arg(long, default_value_t = 4)]
    bulk_connections: usize,
    /// Path of every request: / is 1 KiB, /N is N bytes.
    #[arg(long, default_value = "/")]
    path: String,
    /// Leave the closed loop out.
    #[arg(long)]
    no_ceiling: bool,
    /// Where the proxies run at the fixed rate: on the core of the load (together), on their own (split), or where the
    /// scheduler wants them (free).
    #[arg(long, value_enum, default_value = "together")]
    placement: Placement,
    /// HAProxy.
    #[arg(long, default_value = "haproxy")]
    haproxy: PathBuf,
    /// nginx.
    #[arg(long, default_value = "nginx")]
    nginx: PathBuf,
    /// Envoy; without this, the one that benches/setup.sh installed, or the one in PATH.
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// Remora's data plane; without this, the one beside this program.
    #[arg(long)]
    remora: Option<PathBuf>,
    /// One more argument for Remora (repeatable).
    #[arg(long, allow_hyphen_values = true)]
    remora_arg: Vec<String>,
    /// Where the results go as JSON; without this, bench-compare.json above this program.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Keep configs, certificates and logs in this folder.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Exit with status 1 unless Remora reaches its targets.
    #[arg(long)]
    assert: bool,
}

/// A program by its path, or by its name in PATH and the folders of system programs.
fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.exists().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// The Envoy of benches/setup.sh: a wheel in a virtual environment, whose own start script is left out.
fn installed_envoy(target: &Path) -> Option<PathBuf> {
    let environment = std::env::var_os("BENCH_VENV").map_or_else(|| target.join("bench-venv"), PathBuf::from);
    let versions = fs::read_dir(environment.join("lib")).ok()?;
    let programs = versions.flatten().map(|entry| entry.path().join("site-packages/envoy/_bin/envoy"));
    programs.into_iter().find(|path| path.is_file())
}

/// The programs, and the proxies among them that are there.
fn programs(args: &Args, here: &Path, target: &Path) -> anyhow::Result<(Programs, Vec<Proxy>)> {
    let missing = |path: &Path| find(path).unwrap_or_else(|| path.to_owned());
    let envoy = args.envoy.clone().or_else(|| installed_envoy(target)).unwrap_or_else(|| "envoy".into());
    let programs = Programs {
        haproxy: missing(&args.haproxy),
        nginx: missing(&args.nginx),
        envoy: missing(&envoy),
        hyper_floor: here.join("hyper-floor"),
        remora: args.remora.clone().unwrap_or_else(|| here.join("remora-proxy")),
        remora_args: args.remora_arg.clone(),
        origin: here.join("bench-origin"),
    };
    let there = |proxy: &Proxy| programs.of(*proxy).is_none_or(|path| path.is_file());
    let wanted = if args.proxies.is_empty() { Proxy::value_variants() } else { &args.proxies };
    let (present, absent): (Vec<Proxy>, Vec<Proxy>) = wanted.iter().copied().partition(there);
    for proxy in absent {
        let path = programs.of(proxy).unwrap_or_else(|| Path::new("?")).display();
        let text = format!(
            "{path} is missing (benches/setup.sh installs the rivals, compare.sh builds our programs)"
        );
        if !args.proxies.is_empty() {
            bail!(text);
        }
        eprintln!("left out: {text}");
    }
    ensure!(programs.origin.is_file(), "{} is missing", programs.origin.display());
    Ok((programs, present))
}

fn seconds(value: f64, flag: &str) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(value).with_context(|| flag.to_owned())
}

/// One status line on a terminal, plain lines elsewhere.
fn progress(text: &str) {
    if stderr().is_terminal() { eprint!("\r\x1b[K{text}") } else { eprintln!("{text}") }
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let program = std::env::current_exe().context("this program's path")?;
    let here = program.parent().context("this program's folder")?;
    let target = here.parent().unwrap_or(here);
    let (programs, proxies) = programs(&args, here, target)?;
    let temporary = tempfile::tempdir().context("temporary folder")?;
    let folder = args.keep.clone().unwrap_or_else(|| temporary.path().to_owned());
    fs::create_dir_all(&folder)?;
    // nginx gives up its rights before it enters the folder.
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o711))?;
    let window = seconds(args.seconds, "--seconds")?;
    let plan = Plan {
        programs,
        scenarios: if args.only.is_empty() { Scenario::value_variants().into() } else { args.only.clone() },
        proxies,
        rounds: args.rounds.max(1),
        rate: args.rate,
        handshake_rate: args.handshake_rate,
        burst: args.burst,
        connections: args.connections,
        h2_connections: args.h2_connections,
        h2_streams: args.h2_streams,
        bulk_connections: args.bulk_connections,
        path: args.path.clone(),
        window,
        warmup: seconds(args.warmup, "--warmup")?,
        ceiling: if args.no_ceiling { Duration::ZERO } else { window / 2 },
        placement: args.placement,
        folder: folder.canonicalize()?,
    };
    let mut hear = progress;
    let results = remora_benches::local_runtime()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        tokio::select! {
            results = compare::run(&plan, &mut hear) => results,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })?;
    if stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    finish(&args, target, &results)
}

/// Prints and stores what was found, and decides the exit status.
fn finish(args: &Args, target: &Path, results: &compare::Results) -> anyhow::Result<ExitCode> {
    let mut good = results.rows.iter().all(|row| row.failure.is_none());
    print!("{}", compare::table(results));
    let file = args.json.clone().unwrap_or_else(|| target.join("bench-compare.json"));
    fs::write(&file, serde_json::to_string_pretty(results)?).with_context(|| file.display().to_string())?;
    println!("Every round: {}", file.display());
    let checks = compare::checks(results);
    for check in &checks {
        println!("{}", check.line());
    }
    if args.assert {
        good &= checks.iter().all(compare::Check::passed);
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
