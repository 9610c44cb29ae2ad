//! The control plane under a large mesh: how fast a change reaches whom it concerns, in how many bytes, and what it all costs.

mod mesh;
mod node;
pub(crate) mod rest;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::samples::Samples;
use super::watch::Watch;
use super::{Column, Found};
use crate::compare::Placement;
use crate::compare::spawn::{self, Cores, Running};

pub use mesh::Mesh;

use mesh::Instance;
use node::{Heard, Node};
use rest::Rest;

/// Responses that nobody has looked at yet; more than all nodes get when they connect.
const HEARD: usize = 1 << 16;
/// Instances that register at one time.
const REGISTERING: usize = 32;
/// How long anything may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the counters of the control plane.
const LOOK: Duration = Duration::from_millis(20);
/// How long a message that nobody should get has time to come.
const QUIET: Duration = Duration::from_millis(300);

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The program `remora`.
    pub remora: PathBuf,
    /// The mesh.
    pub mesh: Mesh,
    /// Changes of one endpoint of a Service that some nodes call.
    pub changes: usize,
    /// The same of the Service that all nodes call.
    pub common_changes: usize,
    /// Changes a second.
    pub rate: f64,
    /// Data and logs go here.
    pub folder: PathBuf,
}

/// Runs the plan; `progress` hears what happens.
///
/// # Errors
/// When the control plane does not start, refuses something, or leaves something undone for a minute.
pub async fn run(plan: &Plan, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Column> {
    let Mesh { services, instances, nodes, egress } = plan.mesh;
    ensure!(
        services >= 2 && (1..=services).contains(&nodes),
        "a node is an instance of a Service of its own"
    );
    ensure!(instances >= 2 && (1..services).contains(&egress), "too few instances or Services");
    progress("starting the control plane");
    let mut rig = Rig::start(plan).await?;
    let mut found = Vec::new();
    progress("loading the mesh");
    rig.load(&mut found).await?;
    progress("connecting the nodes");
    rig.first_connect(&mut found).await?;
    progress("changing endpoints");
    // Steps of a prime number: one after the other they are of different Services.
    let cost = rig.changes((0..plan.changes).map(|i| 1 + i * 7919 % (services - 1))).await?;
    found.extend(cost.found([
        "one change: heard by its callers, p50",
        "one change: p99",
        "one change: the slowest",
        "one change: largest message",
        "one change: messages to others",
        "one change: CPU",
    ]));
    let cost = rig.changes(std::iter::repeat_n(0, plan.common_changes)).await?;
    found.extend(cost.found([
        "change for all: heard by all nodes, p50",
        "change for all: p99",
        "change for all: the slowest",
        "change for all: largest message",
        "change for all: other messages",
        "change for all: CPU",
    ]));
    progress("reconnecting all nodes");
    let (warm, warm_cpu) = rig.reconnect(true).await?;
    let (cold, cold_cpu) = rig.reconnect(false).await?;
    found.extend([
        Found::new("all reconnect with what they have: settled in", "s", warm).at_most(5.0),
        Found::new("all reconnect with what they have: CPU", "s", warm_cpu),
        Found::new("all reconnect with nothing: settled in", "s", cold).at_most(5.0),
        Found::new("all reconnect with nothing: CPU", "s", cold_cpu),
    ]);
    found.push(Found::new("end: memory", "MB", rig.watch.settled().await).at_most(150.0));
    found.push(Found::new("end: memory at most", "MB", rig.watch.peak()));
    found.push(Found::new("end: CPU in all", "s", rig.watch.cpu()));
    let column = Column { program: "remora control".into(), found, noise: rig.watch.noise() };
    rig.disconnect().await?;
    rig.running.stop().await?;
    Ok(column)
}

/// The running control plane and its nodes.
struct Rig<'a> {
    plan: &'a Plan,
    running: Running,
    watch: Watch,
    xds: SocketAddr,
    rest_at: SocketAddr,
    rest: Rest,
    /// Connected nodes; they come back when they are told to stop.
    streams: JoinSet<anyhow::Result<Node>>,
    stop: watch::Sender<()>,
    heard: mpsc::Receiver<Heard>,
    tell: mpsc::Sender<Heard>,
    /// Resources that all nodes have together.
    resources: u64,
}

impl<'a> Rig<'a> {
    async fn start(plan: &'a Plan) -> anyhow::Result<Self> {
        // A folder that is kept may be an earlier run's.
        let folder = tempfile::tempdir_in(&plan.folder)?.keep();
        let addresses = folder.join("addresses.json");
        let words = [
            "control",
            "--listen-xds",
            "127.0.0.1:0",
            "--listen-tls",
            "127.0.0.1:0",
            "--listen-rest",
            "127.0.0.1:0",
            "-l",
            "warn",
        ];
        let mut arguments: Vec<_> = words.map(Into::into).into();
        arguments.extend(["--data".into(), folder.join("data").into_os_string()]);
        arguments.extend(["--address-path".into(), addresses.clone().into_os_string()]);
        let log = folder.join("control.log");
        let mut running = spawn::start(Cores::new(Placement::Free)?, &plan.remora, &arguments, log)?;
        let at = |name: &str| -> anyhow::Result<SocketAddr> {
            let text: Value = serde_json::from_str(&fs::read_to_string(&addresses)?)?;
            Ok(text[name].as_str().context("no address")?.parse()?)
        };
        running.ready(async || at("rest").map(drop)).await?;
        let (xds, rest_at) = (at("xds")?, at("rest")?);
        let (tell, heard) = mpsc::channel(HEARD);
        Ok(Self {
            plan,
            watch: Watch::new(running.pid),
            running,
            xds,
            rest_at,
            rest: Rest::connect(rest_at).await?,
            streams: JoinSet::new(),
            stop: watch::Sender::new(()),
            heard,
            tell,
            resources: 0,
        })
    }

    /// Services as documents, their instances as registrations.
    async fn load(&mut self, found: &mut Vec<Found>) -> anyhow::Result<()> {
        found.push(Found::new("start: memory", "MB", self.watch.settled().await));
        let began = Instant::now();
        self.rest.apply(&self.plan.mesh.documents()).await?;
        found.push(Found::new("load: Services written in", "s", began.elapsed().as_secs_f64()));
        let began = Instant::now();
        self.register().await?;
        found.push(Found::new("load: instances registered in", "s", began.elapsed().as_secs_f64()));
        found.push(Found::new("load: CPU", "s", self.watch.cpu()));
        found.push(Found::new("load: memory", "MB", self.watch.settled().await));
        Ok(())
    }

    async fn register(&self) -> anyhow::Result<()> {
        let mesh = self.plan.mesh;
        let waiting = Arc::new(Mutex::new(mesh.all()));
        let mut clients = JoinSet::new();
        for _ in 0..REGISTERING {
            let (mut rest, waiting) = (Rest::connect(self.rest_at).await?, Arc::clone(&waiting));
            clients.spawn(async move {
                loop {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(instance) = next else { return anyhow::Ok(()) };
                    rest.register(&instance.name(), &mesh.registration(instance, 0)).await?;
                }
            });
        }
        while let Some(client) = clients.join_next().await {
            client??;
        }
        Ok(())
    }

    fn connect(&mut self, nodes: impl IntoIterator<Item = Node>) {
        for mut node in nodes {
            let (to, tell, mut stop) = (self.xds, self.tell.clone(), self.stop.subscribe());
            self.streams.spawn(async move {
                tokio::select! {
                    ended = node.run(to, &tell) => ended.map(|()| node),
                    _ = stop.changed() => Ok(node),
                }
            });
        }
    }

    fn fresh(&self) -> impl Iterator<Item = Node> + use<> {
        let name = |number| Instance { service: number, number: 0 }.name();
        (0..self.plan.mesh.nodes).map(move |number| Node::new(number, &name(number)))
    }

    /// Ends all streams at once.
    async fn disconnect(&mut self) -> anyhow::Result<Vec<Node>> {
        self.stop.send_replace(());
        let mut nodes = Vec::new();
        while let Some(node) = self.streams.join_next().await {
            nodes.push(node??);
        }
        Ok(nodes)
    }

    /// Fails when a node does not run any more.
    fn all_run(&mut self) -> anyhow::Result<()> {
        match self.streams.try_join_next() {
            Some(ended) => ended?.and_then(|_| bail!("a node has stopped")),
            None => Ok(()),
        }
    }

    async fn first_connect(&mut self, found: &mut Vec<Found>) -> anyhow::Result<()> {
        let (began, cpu) = (Instant::now(), self.watch.cpu());
        let fresh = self.fresh();
        self.connect(fresh);
        loop {
            let (known, synced, wanted) = self.rest.proxies().await?;
            if (known, synced) == (self.plan.mesh.nodes, known) {
                self.resources = wanted;
                break;
            }
            self.forget_heard();
            self.all_run()?;
            ensure!(began.elapsed() < PATIENCE, "only {synced} of {known} nodes are in sync");
            sleep(LOOK * 5).await;
        }
        found.push(Found::new("connect: all settled in", "s", began.elapsed().as_secs_f64()));
        found.push(Found::new("connect: CPU", "s", self.watch.cpu() - cpu));
        found.push(Found::new("connect: memory", "MB", self.watch.settled().await).at_most(150.0));
        Ok(())
    }

    /// Changes one endpoint of each of `services`, one after the other, and waits until everybody whom it concerns has heard of it.
    async fn changes(&mut self, services: impl Iterator<Item = usize>) -> anyhow::Result<Cost> {
        let mesh = self.plan.mesh;
        let mut ticks = interval(Duration::try_from_secs_f64(1.0 / self.plan.rate).context("--rate")?);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut cost = Cost { cpu: self.watch.cpu(), ..Cost::default() };
        self.forget_heard();
        for (count, service) in services.enumerate() {
            let mut waiting: BTreeSet<_> = mesh.callers(service).into_iter().collect();
            let instance = Instance { service, number: 1 + count % (mesh.instances - 1) };
            let said = mesh.registration(instance, 1 + count);
            ticks.tick().await;
            let began = Instant::now();
            self.rest.register(&instance.name(), &said).await?;
            while !waiting.is_empty() {
                let heard = timeout(PATIENCE, self.heard.recv()).await;
                let heard = heard.with_context(|| format!("{} nodes heard nothing", waiting.len()))?;
                let heard = heard.context("the nodes have stopped")?;
                if heard.is_of(&Mesh::assignment(service)) && waiting.remove(&heard.node) {
                    cost.latency.add(heard.at - began);
                    cost.bytes = cost.bytes.max(heard.bytes);
                } else {
                    cost.strangers += 1;
                }
            }
            cost.count += 1;
        }
        cost.cpu = self.watch.cpu() - cost.cpu;
        sleep(QUIET).await;
        cost.strangers += self.forget_heard();
        self.all_run()?;
        Ok(cost)
    }

    fn forget_heard(&mut self) -> usize {
        std::iter::from_fn(|| self.heard.try_recv().ok()).count()
    }

    /// All nodes lose their streams and open new ones at once; how long until the control plane knows of every resource that it is
    /// in force, and the CPU of that.
    async fn reconnect(&mut self, warm: bool) -> anyhow::Result<(f64, f64)> {
        let accepted = "remora_control_xds_accepted_total";
        let target = self.rest.metric(accepted).await? + self.resources;
        let (began, cpu) = (Instant::now(), self.watch.cpu());
        let nodes = self.disconnect().await?;
        let nodes = if warm { nodes } else { self.fresh().collect() };
        self.connect(nodes);
        loop {
            self.forget_heard();
            let now = self.rest.metric(accepted).await?;
            if now >= target {
                break;
            }
            self.all_run()?;
            ensure!(began.elapsed() < PATIENCE, "{} resources are not in force", target - now);
            sleep(LOOK).await;
        }
        let took = (began.elapsed().as_secs_f64(), self.watch.cpu() - cpu);
        let (known, synced, _) = self.rest.proxies().await?;
        ensure!(known == synced, "only {synced} of {known} nodes are in sync");
        Ok(took)
    }
}

/// What changes of one kind cost.
#[derive(Debug, Default)]
struct Cost {
    count: usize,
    latency: Samples,
    bytes: usize,
    /// Messages that were no such change, or to nodes that do not call the Service.
    strangers: usize,
    cpu: f64,
}

impl Cost {
    fn found(&self, whats: [&'static str; 6]) -> [Found; 6] {
        let [p50, p99, max, bytes, strangers, cpu] = whats;
        [
            Found::new(p50, "ms", self.latency.ms(0.5)),
            Found::new(p99, "ms", self.latency.ms(0.99)).at_most(100.0),
            Found::new(max, "ms", self.latency.ms(1.0)),
            Found::new(bytes, "bytes", self.bytes as f64).at_most(1000.0),
            Found::new(strangers, "", self.strangers as f64).at_most(0.0),
            Found::new(cpu, "ms", self.cpu * 1e3 / self.count.max(1) as f64),
        ]
    }
}
