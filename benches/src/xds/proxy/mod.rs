//! A proxy with a large configuration by ADS: what it costs in memory, how long it takes to come into force, and how fast and how
//! quietly one endpoint changes.

mod origin;
mod resources;
mod server;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use remora_xds::{Kind, NodeSnapshot, Resource};
use tokio::net::TcpStream;
use tokio::time::{Instant, interval, sleep, timeout};

use super::samples::Samples;
use super::watch::Watch;
use super::{Column, Found};
use crate::compare::Placement;
use crate::compare::spawn::{self, Cores, Running};
use crate::load::{self, Mode, Protocol};

use origin::{Origin, ask, connect};
use resources::{Size, address, authority};
use server::{Said, Server};

/// How long anything may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two requests that look whether something is in force.
const LOOK: Duration = Duration::from_micros(500);
/// Connections of the traffic.
const CONNECTIONS: usize = 16;
/// Load before each window, in which connections to all endpoints are opened.
const WARMUP: Duration = Duration::from_secs(1);
/// The cluster that the traffic goes to.
const BUSY: usize = 0;

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The program `remora`.
    pub remora: PathBuf,
    /// Envoy, to be measured too.
    pub envoy: Option<PathBuf>,
    /// Clusters, each with a virtual host.
    pub clusters: usize,
    /// Endpoints of each.
    pub endpoints: usize,
    /// Changes of one endpoint of the last cluster.
    pub changes: usize,
    /// Changes a second.
    pub rate: f64,
    /// Requests a second meanwhile, to the first cluster.
    pub requests: f64,
    /// Configs and logs go here.
    pub folder: PathBuf,
}

impl Plan {
    const fn last(&self) -> usize {
        self.clusters - 1
    }
}

/// Runs the plan for Remora, and for Envoy if there is one; `progress` hears what happens.
///
/// # Errors
/// When a proxy does not start, refuses something, or leaves something undone for a minute.
pub async fn run(plan: &Plan, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Column>> {
    ensure!((2..=20_000).contains(&plan.clusters), "--clusters must be from 2 to 20000");
    ensure!((1..250).contains(&plan.endpoints) && plan.changes < 250, "too many endpoints and changes");
    let mut columns = vec![measure(plan, "remora proxy", progress).await?];
    if plan.envoy.is_some() {
        columns.push(measure(plan, "envoy", progress).await?);
    }
    Ok(columns)
}

async fn measure(plan: &Plan, program: &str, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Column> {
    progress(&format!("starting {program}"));
    let mut rig = Rig::start(plan, program).await?;
    let mut found = Vec::new();
    progress(&format!("giving {program} {} clusters", plan.clusters));
    rig.push(&mut found).await?;
    progress(&format!("traffic through {program} without changes"));
    let quiet = load::run(&rig.traffic()?, &mut |_| {}).await?;
    progress(&format!("traffic through {program} with changes"));
    let traffic = rig.traffic()?;
    let mut unmarked = |_| {};
    let (busy, changes) = tokio::join!(load::run(&traffic, &mut unmarked), rig.changes());
    let (busy, Changes { applied, served }) = (busy?, changes?);
    let ms = |us: u64| us as f64 / 1e3;
    let bump = ms(busy.latency.p99_us) - ms(quiet.latency.p99_us);
    let failed = quiet.errors + quiet.unsent + busy.errors + busy.unsent;
    found.extend([
        Found::new("one change: acknowledged after, p50", "ms", applied.ms(0.5)),
        Found::new("one change: acknowledged after, p99", "ms", applied.ms(0.99)).at_most(5.0),
        Found::new("one change: first request there after, p50", "ms", served.ms(0.5)),
        Found::new("one change: first request there after, p99", "ms", served.ms(0.99)),
        Found::new("traffic without changes: p50", "ms", ms(quiet.latency.p50_us)),
        Found::new("traffic without changes: p99", "ms", ms(quiet.latency.p99_us)),
        Found::new("traffic with changes: p50", "ms", ms(busy.latency.p50_us)),
        Found::new("traffic with changes: p99", "ms", ms(busy.latency.p99_us)),
        Found::new("traffic with changes: added to p99", "ms", bump).at_most(0.5),
        Found::new("traffic: failed requests", "", failed as f64).at_most(0.0),
        Found::new("end: memory", "MB", rig.watch.settled().await),
    ]);
    let column = Column { program: program.into(), found, noise: rig.watch.noise() };
    rig.running.stop().await?;
    Ok(column)
}

/// A running proxy between its control plane and its endpoints.
struct Rig<'a> {
    plan: &'a Plan,
    size: Size,
    server: Server,
    _origin: Origin,
    running: Running,
    watch: Watch,
    listen: SocketAddr,
    everything: NodeSnapshot,
}

/// What changes of one endpoint took.
#[derive(Debug, Default)]
struct Changes {
    /// From the last byte sent to the acknowledgement.
    applied: Samples,
    /// From the last byte sent to the first request that went to the new endpoint.
    served: Samples,
}

impl<'a> Rig<'a> {
    async fn start(plan: &'a Plan, program: &str) -> anyhow::Result<Self> {
        let ends = |cluster| (0..plan.endpoints).map(move |endpoint| address(cluster, endpoint, 0));
        let fresh = Size { clusters: plan.clusters, endpoints: plan.endpoints, port: 0 };
        let to_come = (1..=plan.changes).map(|life| fresh.fresh(plan.last(), life));
        let addresses: Vec<_> = ends(BUSY).chain(ends(plan.last())).chain(to_come).collect();
        // They have runtimes of their own, which must not be started inside of one.
        let (origin, server) = std::thread::scope(|scope| {
            let started = scope.spawn(|| anyhow::Ok((Origin::start(addresses)?, Server::start()?)));
            started.join().map_err(|_| anyhow::anyhow!("the thread that starts the servers has panicked"))
        })??;
        let size = Size { port: origin.port, ..fresh };
        let port = spawn::free_port().await?;
        let everything = size.all(port)?.into_iter().collect();
        let arguments = arguments(plan, program, server.address.port())?;
        let path = if program == "envoy" { plan.envoy.as_ref().context("no Envoy")? } else { &plan.remora };
        let log = plan.folder.join(format!("{program}.log"));
        let running = spawn::start(Cores::new(Placement::Free)?, path, &arguments, log)?;
        let watch = Watch::new(running.pid);
        let listen = (Ipv4Addr::LOCALHOST, port).into();
        let mut rig = Self { plan, size, server, _origin: origin, running, watch, listen, everything };
        rig.opened().await?;
        Ok(rig)
    }

    /// The next thing that the control plane tells.
    async fn said(&mut self) -> anyhow::Result<Said> {
        let said = timeout(PATIENCE, self.server.said.recv()).await.context("the proxy does not answer")?;
        match said.context("the control plane has ended")? {
            Said::Refused(what) => bail!("the proxy refuses {what}"),
            said => Ok(said),
        }
    }

    async fn opened(&mut self) -> anyhow::Result<()> {
        while !matches!(self.said().await?, Said::Opened) {}
        Ok(())
    }

    /// Gives the proxy everything.
    async fn push(&mut self, found: &mut Vec<Found>) -> anyhow::Result<()> {
        found.push(Found::new("start: memory", "MB", self.watch.settled().await));
        let id = |resource: &Arc<Resource>| (resource.kind(), Arc::clone(resource.name()));
        let mut waiting: BTreeSet<(Kind, Arc<str>)> = self.everything.iter().map(id).collect();
        let (cpu, began) = (self.watch.cpu(), Instant::now());
        self.server.publish(self.everything.clone());
        let (listen, last) = (self.listen, self.plan.last());
        let in_force = tokio::spawn(async move { first_answer(listen, last).await });
        let (mut sent, mut bytes, mut answered) = (None, 0, began);
        let mut first = None;
        while !waiting.is_empty() {
            match self.said().await? {
                Said::Sent { at, bytes: more } => {
                    first.get_or_insert(at);
                    (sent, bytes) = (Some(at), bytes + more);
                }
                Said::Accepted { at, resource } => {
                    waiting.remove(&id(&resource));
                    answered = at;
                }
                Said::Opened | Said::Refused(_) => bail!("the proxy has opened a second stream"),
            }
        }
        let (first, sent) = first.zip(sent).context("nothing was sent")?;
        let in_force = in_force.await??;
        let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
        found.extend([
            Found::new("push: sent", "MB", bytes as f64 / 1e6),
            Found::new("push: acknowledged, from the first byte", "s", seconds(first, answered)),
            Found::new("push: acknowledged, from the last byte", "s", seconds(sent, answered)),
            Found::new("push: last cluster serves, from the first byte", "s", seconds(first, in_force))
                .at_most(0.5),
            Found::new("push: CPU", "s", self.watch.cpu() - cpu),
            Found::new("push: memory", "MB", self.watch.settled().await).at_most(45.0),
            Found::new("push: memory at most", "MB", self.watch.peak()),
        ]);
        Ok(())
    }

    fn traffic(&self) -> anyhow::Result<load::Options> {
        let changes = self.plan.changes as f64 / self.plan.rate;
        Ok(load::Options {
            target: self.listen,
            protocol: Protocol::H1,
            handshake: None,
            mode: Mode::Rate { rate: self.plan.requests, burst: 1 },
            connections: CONNECTIONS,
            streams: 1,
            authority: authority(BUSY),
            path: "/".into(),
            warmup: WARMUP,
            window: Duration::try_from_secs_f64(changes).context("--rate")?,
        })
    }

    /// Changes one endpoint after the other while the window of the traffic is open.
    async fn changes(&mut self) -> anyhow::Result<Changes> {
        let mut changes = Changes::default();
        let mut stream = connect(self.listen).await?;
        sleep(WARMUP).await;
        let mut ticks = interval(Duration::try_from_secs_f64(1.0 / self.plan.rate).context("--rate")?);
        for life in 1..=self.plan.changes {
            ticks.tick().await;
            let (sent, acknowledged, served) = self.change(life, &mut stream).await?;
            changes.applied.add(acknowledged.saturating_duration_since(sent));
            changes.served.add(served.saturating_duration_since(sent));
        }
        Ok(changes)
    }

    /// Replaces an endpoint of the last cluster: when that was sent, acknowledged, and seen by a request.
    async fn change(
        &mut self,
        life: usize,
        stream: &mut TcpStream,
    ) -> anyhow::Result<(Instant, Instant, Instant)> {
        let last = self.plan.last();
        let wanted = Arc::new(self.size.assignment(last, life));
        let (fresh, authority) = (self.size.fresh(last, life), authority(last));
        self.everything.insert(Arc::clone(&wanted));
        self.server.publish(self.everything.clone());
        let mut sent = None;
        while sent.is_none() {
            if let Said::Sent { at, .. } = self.said().await? {
                sent = Some(at);
            }
        }
        let sent = sent.context("nothing was sent")?;
        let deadline = sent + PATIENCE;
        while ask(stream, &authority).await? != fresh {
            ensure!(Instant::now() < deadline, "no request went to the new endpoint");
        }
        let served = Instant::now();
        loop {
            if let Said::Accepted { at, resource } = self.said().await?
                && resource.version() == wanted.version()
            {
                return Ok((sent, at, served));
            }
        }
    }
}

/// When a request to a cluster was answered for the first time.
async fn first_answer(listen: SocketAddr, cluster: usize) -> anyhow::Result<Instant> {
    let deadline = Instant::now() + PATIENCE;
    let authority = authority(cluster);
    loop {
        let answer = async { ask(&mut connect(listen).await?, &authority).await };
        match answer.await {
            Ok(_) => return Ok(Instant::now()),
            Err(error) if Instant::now() > deadline => return Err(error.context("never in force")),
            Err(_) => sleep(LOOK).await,
        }
    }
}

/// The arguments of a proxy; writes its bootstrap.
fn arguments(plan: &Plan, program: &str, control: u16) -> anyhow::Result<Vec<OsString>> {
    let file = plan.folder.join(format!("{program}.yaml"));
    let text = include_str!("../../../configs/envoy/ads.yaml").replace("@CONTROL@", &control.to_string());
    fs::write(&file, text).with_context(|| file.display().to_string())?;
    let envoy = ["--disable-hot-restart", "--log-level", "error"];
    let (before, after): (&[&str], &[&str]) =
        if program == "envoy" { (&[], &envoy) } else { (&["proxy"], &["--log-level", "warn"]) };
    let before = before.iter().map(OsString::from).chain(["-c".into(), file.into_os_string()]);
    Ok(before.chain(["--concurrency", "1"].iter().chain(after).map(OsString::from)).collect())
}
