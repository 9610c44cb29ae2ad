//! The rounds: A B C, A B C, A B C, so that a slow minute of the machine meets everybody.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::sleep;

use super::certs;
use super::procfs::{self, Cpu};
use super::proxies::{self, Part, Programs, Proxy, Scenario, Site};
use super::report::{Results, Row};
use super::spawn::{self, Cores, Placement, Running};
use super::stats::{Round, summarise};
use crate::load::handshake::Handshake;
use crate::load::{self, Mark, Mode, Protocol, bulk};

/// Between the first answer and the look at idle memory.
const SETTLE: Duration = Duration::from_millis(500);

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the programs are.
    pub programs: Programs,
    /// What is carried.
    pub scenarios: Vec<Scenario>,
    /// Who carries it.
    pub proxies: Vec<Proxy>,
    /// How often everything is repeated.
    pub rounds: usize,
    /// Requests per second of the fixed-rate run.
    pub rate: f64,
    /// Handshakes per second of the fixed-rate run.
    pub handshake_rate: f64,
    /// Requests (or handshakes) of the fixed-rate run that are due together.
    pub burst: u32,
    /// HTTP/1 connections.
    pub connections: usize,
    /// HTTP/2 connections.
    pub h2_connections: usize,
    /// Most requests in flight on one HTTP/2 connection.
    pub h2_streams: usize,
    /// Connections that carry bulk bytes.
    pub bulk_connections: usize,
    /// The path of every request: `/` for 1 KiB, `/N` for N bytes.
    pub path: String,
    /// The measured window of the fixed-rate run, and of the bulk run.
    pub window: Duration,
    /// Load before each window.
    pub warmup: Duration,
    /// The measured window of the closed loop; zero leaves it out.
    pub ceiling: Duration,
    /// Where the proxies run in the fixed-rate run.
    pub placement: Placement,
    /// Configs, certificates and logs go here.
    pub folder: PathBuf,
}

impl Plan {
    /// Requests per second of a scenario's fixed-rate run.
    pub(super) fn rate_of(&self, scenario: Scenario) -> f64 {
        if scenario.handshake().is_some() { self.handshake_rate } else { self.rate }
    }
}

/// The running origin.
#[derive(Debug)]
pub(crate) struct Origin {
    child: Child,
    pub(crate) ports: Ports,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Ports {
    pub(crate) h1: SocketAddr,
    h2: SocketAddr,
    bulk: SocketAddr,
}

impl Origin {
    pub(crate) async fn start(program: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(program)
            .arg("--end-with-parent")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| program.display().to_string())?;
        let output = child.stdout.take().context("the origin has no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).await?;
        let ports = serde_json::from_str(&line).context("the origin's first line")?;
        Ok(Self { child, ports })
    }

    fn port(&self, scenario: Scenario) -> u16 {
        match scenario {
            Scenario::H2 => self.ports.h2.port(),
            Scenario::Tcp => self.ports.bulk.port(),
            // Proxies that only shake hands answer themselves.
            _ => self.ports.h1.port(),
        }
    }
}

/// Runs the plan on the current local runtime; `progress` hears what happens. A proxy that fails is a row with the
/// reason: the others still run.
///
/// # Errors
/// When the origin, the certificates or the cores cannot be had.
pub async fn run(plan: &Plan, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Results> {
    // Before this process stands on one core only.
    let machine = procfs::machine();
    let cores = Cores::new(plan.placement)?;
    certs::write(&plan.folder)?;
    let origin = Origin::start(&plan.programs.origin).await?;
    let rig = Rig { plan, cores, origin, count: machine.cores };
    let mut rows = Vec::new();
    for &scenario in &plan.scenarios {
        let mut group: Vec<Row> = plan
            .proxies
            .iter()
            .filter(|p| proxies::can(**p, scenario))
            .map(|p| Row::new(scenario, *p))
            .collect();
        for round in 1..=plan.rounds {
            for row in group.iter_mut().filter(|row| row.failure.is_none()) {
                let title = format!(
                    "{} round {round}/{} {}",
                    proxies::name(&scenario),
                    plan.rounds,
                    proxies::name(&row.proxy)
                );
                progress(&title);
                match rig.round(scenario, row.proxy).await {
                    Ok(result) => row.rounds.push(result),
                    Err(error) => row.failure = Some(format!("{error:#}")),
                }
            }
        }
        rows.extend(group.into_iter().map(|mut row| {
            row.median = summarise(&row.rounds);
            row
        }));
    }
    let versions = versions(plan).await;
    Ok(Results::new(plan, machine, versions, rows))
}

/// What the programs say about themselves.
async fn versions(plan: &Plan) -> Vec<(Proxy, String)> {
    let mut versions = Vec::new();
    for &proxy in &plan.proxies {
        let Some(program) = plan.programs.of(proxy) else { continue };
        let flag = if matches!(proxy, Proxy::Haproxy | Proxy::Nginx) { "-v" } else { "--version" };
        let Ok(output) = Command::new(program).arg(flag).output().await else { continue };
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().map(str::trim).find(|line| line.chars().any(|c| c.is_ascii_digit()));
        let line = line.unwrap_or("unknown");
        // Envoy begins with the path of its program.
        let line = line.rsplit_once("version: ").map_or(line, |(_, rest)| rest);
        versions.push((proxy, line.to_owned()));
    }
    versions
}

struct Rig<'a> {
    plan: &'a Plan,
    cores: Cores,
    origin: Origin,
    /// Cores of the machine.
    count: usize,
}

/// The started processes of one proxy, and where requests go.
struct Deployed {
    running: Vec<Running>,
    target: SocketAddr,
    ready: Duration,
}

/// What was used between two moments.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    proxy: Cpu,
    own: Cpu,
    machine: f64,
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

impl Rig<'_> {
    async fn round(&self, scenario: Scenario, proxy: Proxy) -> anyhow::Result<Round> {
        let deployed = self.deploy(scenario, proxy).await?;
        let result = self.measure(scenario, &deployed).await;
        for running in deployed.running {
            running.stop().await?;
        }
        result
    }

    /// Starts the processes of a proxy, the one next to the origin first, and waits until each is ready.
    async fn deploy(&self, scenario: Scenario, proxy: Proxy) -> anyhow::Result<Deployed> {
        let mut upstream = self.origin.port(scenario);
        let mut running: Vec<Running> = Vec::new();
        let mut ready = Duration::ZERO;
        for &part in proxies::parts(proxy, scenario) {
            let listen = spawn::free_port().await?;
            let site = Site { folder: &self.plan.folder, listen, upstream };
            let arguments = proxies::arguments(&self.plan.programs, proxy, part, &site)?;
            let program = self.plan.programs.of(proxy).context("nothing to start")?;
            let log = self.plan.folder.join(format!("{}-{}.log", proxies::name(&proxy), part.name()));
            let mut process = spawn::start(self.cores, program, &arguments, log)?;
            let options = self.load(scenario, loopback(listen), Mode::Closed, Duration::ZERO)?;
            let took = process
                .ready(|| async {
                    match part {
                        Part::Tcp => bulk::probe(options.target).await,
                        // It wants a client certificate: the other half will ask it properly.
                        Part::MtlsB | Part::MtlsBPolicy => {
                            Ok(TcpStream::connect(options.target).await.map(|_| ())?)
                        }
                        _ => load::probe(&options).await,
                    }
                })
                .await
                .with_context(|| part.name())?;
            ready = ready.max(took);
            upstream = listen;
            running.push(process);
        }
        Ok(Deployed { running, target: loopback(upstream), ready })
    }

    fn load(
        &self,
        scenario: Scenario,
        target: SocketAddr,
        mode: Mode,
        window: Duration,
    ) -> anyhow::Result<load::Options> {
        let h2 = scenario == Scenario::H2;
        let handshake = scenario.handshake().map(|kind| Handshake::new(kind, &self.plan.folder));
        Ok(load::Options {
            target,
            protocol: if h2 { Protocol::H2 } else { Protocol::H1 },
            handshake: handshake.transpose()?,
            mode,
            connections: if h2 { self.plan.h2_connections } else { self.plan.connections },
            streams: if h2 { self.plan.h2_streams } else { 1 },
            authority: "origin.bench".to_owned(),
            path: self.plan.path.clone(),
            warmup: self.plan.warmup,
            window,
        })
    }

    async fn measure(&self, scenario: Scenario, deployed: &Deployed) -> anyhow::Result<Round> {
        sleep(SETTLE).await;
        let pids: Vec<u32> = deployed.running.iter().map(|running| running.pid).collect();
        let mut round = Round {
            ready_ms: deployed.ready.as_secs_f64() * 1e3,
            idle: procfs::memory(&pids),
            processes: pids.len(),
            ..Round::default()
        };
        if scenario == Scenario::Tcp {
            self.measure_bulk(deployed.target, &pids, &mut round).await?;
        } else {
            self.measure_rate(scenario, deployed.target, &pids, &mut round).await?;
            if !self.plan.ceiling.is_zero() {
                self.measure_ceiling(scenario, deployed.target, &pids, &mut round).await?;
            }
        }
        round.loaded = procfs::memory(&pids);
        Ok(round)
    }

    async fn measure_rate(
        &self,
        scenario: Scenario,
        target: SocketAddr,
        pids: &[u32],
        round: &mut Round,
    ) -> anyhow::Result<()> {
        let mode = Mode::Rate { rate: self.plan.rate_of(scenario), burst: self.plan.burst };
        let options = self.load(scenario, target, mode, self.plan.window)?;
        let mut meter = Meter::new(self, pids);
        // The client's half of a handshake costs as much as the server's: it is kept away from the server's caches.
        if options.handshake.is_none() {
            self.cores.for_rate(&meter.proxy)?;
        }
        let report = load::run(&options, &mut |mark| meter.mark(mark)).await?;
        self.cores.for_ceiling(&meter.proxy)?;
        let used = meter.used();
        let requests = report.ok.max(1) as f64;
        round.cpu_us = used.proxy.total * 1e6 / requests;
        round.user_us = used.proxy.user * 1e6 / requests;
        round.system_us = used.proxy.system * 1e6 / requests;
        round.rate = report.rate;
        round.p50_us = report.latency.p50_us as f64;
        round.p99_us = report.latency.p99_us as f64;
        round.noise = self.noise(used, report.seconds);
        round.errors += report.errors + report.unsent;
        round.first_error = report.first_error;
        Ok(())
    }

    async fn measure_ceiling(
        &self,
        scenario: Scenario,
        target: SocketAddr,
        pids: &[u32],
        round: &mut Round,
    ) -> anyhow::Result<()> {
        let options = self.load(scenario, target, Mode::Closed, self.plan.ceiling)?;
        let mut meter = Meter::new(self, pids);
        let report = load::run(&options, &mut |mark| meter.mark(mark)).await?;
        round.ceiling = report.rate;
        let used = meter.used();
        round.full_us = used.proxy.total * 1e6 / report.ok.max(1) as f64;
        round.ceiling_cores = used.proxy.total / report.seconds;
        round.errors += report.errors;
        round.first_error = round.first_error.take().or(report.first_error);
        Ok(())
    }

    async fn measure_bulk(&self, target: SocketAddr, pids: &[u32], round: &mut Round) -> anyhow::Result<()> {
        let options = bulk::Options {
            target,
            connections: self.plan.bulk_connections,
            warmup: self.plan.warmup,
            window: self.plan.window,
        };
        let mut meter = Meter::new(self, pids);
        let report = bulk::run(&options, &mut |mark| meter.mark(mark)).await?;
        let used = meter.used();
        let gigabytes = (report.bytes as f64 / 1e9).max(f64::MIN_POSITIVE);
        round.cpu_us = used.proxy.total * 1e6 / gigabytes;
        round.user_us = used.proxy.user * 1e6 / gigabytes;
        round.system_us = used.proxy.system * 1e6 / gigabytes;
        round.ceiling = report.gb_per_second;
        round.ceiling_cores = used.proxy.total / report.seconds;
        round.noise = self.noise(used, report.seconds);
        round.errors = report.errors;
        round.first_error = report.first_error;
        Ok(())
    }

    /// The part of the machine that neither the proxy nor this run used.
    fn noise(&self, used: Used, seconds: f64) -> f64 {
        let others = used.machine - used.proxy.total - used.own.total;
        (others / (seconds * self.count as f64)).clamp(0.0, 1.0)
    }
}

/// Reads the counters at the edges of a window.
struct Meter {
    proxy: Vec<u32>,
    own: Vec<u32>,
    start: Used,
    end: Used,
}

impl Meter {
    /// Looks up the children now, so that a mark costs a few reads only and disturbs no latency.
    fn new(rig: &Rig<'_>, pids: &[u32]) -> Self {
        let own = rig.origin.child.id().into_iter().chain([std::process::id()]).collect();
        Self { proxy: procfs::family(pids), own, start: Used::default(), end: Used::default() }
    }

    fn mark(&mut self, mark: Mark) {
        let proxy = procfs::cpu(&self.proxy);
        let now = Used { proxy, own: procfs::cpu(&self.own), machine: procfs::machine_busy() };
        match mark {
            Mark::Start => self.start = now,
            Mark::End => self.end = now,
        }
    }

    fn used(&self) -> Used {
        Used {
            proxy: self.end.proxy - self.start.proxy,
            own: self.end.own - self.start.own,
            machine: self.end.machine - self.start.machine,
        }
    }
}
