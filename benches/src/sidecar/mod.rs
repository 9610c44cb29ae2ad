//! The numbers of a sidecar in a pod: its rules, its start in a large mesh, what interception costs, what it uses when idle, and whether
//! anybody notices an upgrade.
//!
//! Everything runs in network namespaces that the run makes, and removes: it needs root.

mod bootstrap;
mod idle;
mod init;
mod interception;
mod mesh;
mod meter;
mod netns;
mod report;
mod start;
mod upgrade;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use tokio::time::timeout;

use mesh::Mesh;
use meter::Meter;
use netns::Namespace;

pub use netns::missing;
pub use report::{Number, Results, Section, Target};

/// How long anything may take that has no time of its own.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most that one part may take.
const PART: Duration = Duration::from_secs(600);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// A part of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// `remora init` in fresh namespaces.
    Init,
    /// From the start of a sidecar to its readiness.
    Start,
    /// A sidecar, and the smallest proxy, that nobody calls.
    Idle,
    /// A sidecar that is replaced under load.
    Upgrade,
    /// Connections that rules lead to the sidecar.
    Interception,
}

impl Part {
    /// As in `--only`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Start => "start",
            Self::Idle => "idle",
            Self::Upgrade => "upgrade",
            Self::Interception => "interception",
        }
    }

    /// What must hold.
    fn targets(self) -> Vec<&'static Target> {
        match self {
            Self::Init => vec![&init::TARGET],
            Self::Start => vec![&start::READY],
            Self::Idle => idle::targets().collect(),
            Self::Upgrade => upgrade::targets().collect(),
            Self::Interception => vec![&interception::CPU, &interception::FAILED],
        }
    }
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The program `remora`.
    pub remora: PathBuf,
    /// The program `remora-proxy`.
    pub proxy: PathBuf,
    /// The program `bench-origin`.
    pub origin: PathBuf,
    /// The parts; the order is that of [`Part`].
    pub parts: Vec<Part>,
    /// Services of the mesh.
    pub services: usize,
    /// Endpoints of each.
    pub endpoints: usize,
    /// Services that the program of the sidecar calls; `None` when it does not say, and gets all of them.
    pub egress: Option<usize>,
    /// Runs of `remora init`.
    pub init_runs: usize,
    /// Starts of a sidecar.
    pub starts: usize,
    /// Rounds of both ways to a sidecar.
    pub rounds: usize,
    /// Requests a second.
    pub rate: f64,
    /// Requests that are due together.
    pub burst: u32,
    /// A window of load; an upgrade has two.
    pub window: Duration,
    /// How long nothing happens before idle CPU is counted.
    pub warmup: Duration,
    /// How long it is counted.
    pub idle: Duration,
    /// Data, configs and logs go here.
    pub folder: PathBuf,
}

/// Runs the plan on the current [`tokio::runtime::LocalRuntime`]; `progress` hears what happens. A part that fails is in the results with its
/// reason, and its targets are missed: the others still run.
pub async fn run(plan: &Plan, progress: &mut dyn FnMut(&str)) -> Results {
    let wanted = |part: &Part| plan.parts.contains(part);
    let mut sections = Vec::new();
    if wanted(&Part::Init) {
        let mut section = Open::new(Part::Init);
        let done = timeout(PART, init::measure(plan, progress, &mut section.numbers)).await;
        sections.push(section.close(done.context("it does not end").flatten()));
    }
    let in_mesh: Vec<_> = [Part::Start, Part::Idle, Part::Upgrade].into_iter().filter(wanted).collect();
    if !in_mesh.is_empty() {
        sections.extend(mesh_parts(plan, &in_mesh, progress).await);
    }
    if wanted(&Part::Interception) {
        let mut section = Open::new(Part::Interception);
        let done = timeout(PART, interception::measure(plan, progress, &mut section.numbers)).await;
        sections.push(section.close(done.context("it does not end").flatten()));
    }
    Results::new(plan, sections)
}

/// The parts with a control plane, which they share.
async fn mesh_parts(plan: &Plan, parts: &[Part], progress: &mut dyn FnMut(&str)) -> Vec<Section> {
    let ready = async {
        let namespace = Namespace::new("mesh")?;
        let inside = namespace.enter()?;
        let mesh = Mesh::start(plan, progress).await?;
        anyhow::Ok((namespace, inside, mesh))
    };
    let ready = timeout(PART, ready).await.context("the mesh is not loaded in time").flatten();
    let (_namespace, _inside, mut mesh) = match ready {
        Ok(ready) => ready,
        Err(error) => {
            let failed = |part: &Part| Open::new(*part).close(Err(anyhow::anyhow!("{error:#}")));
            return parts.iter().map(failed).collect();
        }
    };
    let mut sections = Vec::new();
    for part in parts {
        let mut section = Open::new(*part);
        let numbers = &mut section.numbers;
        let measured = async {
            match part {
                Part::Start => start::measure(plan, &mut mesh, progress, numbers).await,
                Part::Idle => idle::measure(plan, &mut mesh, progress, numbers).await,
                _ => upgrade::measure(plan, &mut mesh, progress, numbers).await,
            }
        };
        let done = timeout(PART, measured).await.context("it does not end").flatten();
        sections.push(section.close(done));
    }
    sections
}

/// A part that runs.
struct Open {
    part: Part,
    numbers: Vec<Number>,
    meter: Meter,
}

impl Open {
    fn new(part: Part) -> Self {
        Self { part, numbers: Vec::new(), meter: Meter::new() }
    }

    /// The targets of what was not measured are missed.
    fn close(self, done: anyhow::Result<()>) -> Section {
        let Self { part, mut numbers, meter } = self;
        let measured = |target: &Target| numbers.iter().any(|number| number.what == target.what);
        let missing: Vec<_> = part.targets().into_iter().filter(|target| !measured(target)).collect();
        numbers.extend(missing.into_iter().map(Number::missing));
        let failure = done.err().map(|error| format!("{error:#}"));
        Section { part, numbers, failure, noise: meter.noise() }
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
