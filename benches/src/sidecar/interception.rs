//! What it costs a sidecar that connections come to it by rules, and not because somebody called it.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::thread::{sched_getaffinity, sched_setaffinity};

use super::init::remora_init;
use super::netns::Namespace;
use super::report::{Number, Target};
use super::{Plan, bootstrap, mesh};
use crate::compare::spawn::{self, Cores, Placement, Running};
use crate::compare::{Origin, procfs};
use crate::load::{self, Mark, Mode};

pub(super) const CPU: Target = Target {
    what: "interception: CPU of the sidecar a request, over called directly",
    unit: "×",
    limit: 1.03,
};
pub(super) const FAILED: Target = Target { what: "interception: failed requests", unit: "", limit: 0.0 };

/// Address of a Service, which nobody has.
const VIP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)), 80);
/// The listener that is called directly.
const DIRECT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15_080);
/// The user whose connections the rules leave alone, with the right to read the files of this run.
const AS_PROXY: [&str; 13] = [
    "--reuid",
    "1337",
    "--regid",
    "1337",
    "--clear-groups",
    "--inh-caps",
    "+dac_override",
    "--ambient-caps",
    "+dac_override",
    // After the change of user, which forgets it.
    "--pdeathsig",
    "TERM",
    "--no-new-privs",
    "--",
];

/// Where requests go, and whether rules are there meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Intercepted,
    Direct,
}

/// What one window found, in microseconds a request.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    sidecar: f64,
    caller: f64,
}

/// Rounds of both ways; each round begins with the other one.
pub(super) async fn measure(
    plan: &Plan,
    progress: &mut dyn FnMut(&str),
    numbers: &mut Vec<Number>,
) -> anyhow::Result<()> {
    let allowed = sched_getaffinity(None).context("sched_getaffinity")?;
    let done = rounds(plan, progress, numbers).await;
    // The rig stands on one core.
    sched_setaffinity(None, &allowed).context("sched_setaffinity")?;
    done
}

async fn rounds(
    plan: &Plan,
    progress: &mut dyn FnMut(&str),
    numbers: &mut Vec<Number>,
) -> anyhow::Result<()> {
    let namespace = Namespace::new("pod")?;
    let _inside = namespace.enter()?;
    // While nobody listens there, the rules can be proven.
    remora_init(plan, &[]).await?;
    let mut rig = Rig::start(plan).await?;
    let [mut intercepted, mut direct] = [Vec::new(), Vec::new()];
    for round in 1..=plan.rounds {
        let mut order = [Way::Intercepted, Way::Direct];
        if round % 2 == 0 {
            order.reverse();
        }
        for way in order {
            progress(&format!("interception {round}/{}: {way:?}", plan.rounds));
            let cost = rig.window(way).await?;
            if way == Way::Intercepted { intercepted.push(cost) } else { direct.push(cost) }
        }
    }
    let ratios = |pick: fn(&Cost) -> f64| -> Vec<f64> {
        intercepted.iter().zip(&direct).map(|(on, off)| pick(on) / pick(off)).collect()
    };
    numbers.extend([
        Number::median("", "", ratios(|cost| cost.sidecar)).at_most(&CPU),
        Number::median(
            "interception: CPU of the caller a request, likewise",
            "×",
            ratios(|cost| cost.caller),
        ),
        Number::median("interception: CPU of the sidecar a request", "us", sidecar(&intercepted)),
        Number::median("called directly: CPU of the sidecar a request", "us", sidecar(&direct)),
        Number::new("", "", rig.failed as f64).at_most(&FAILED),
    ]);
    rig.running.stop().await?;
    rig.first_error.map_or(Ok(()), |error| bail!("the first that failed: {error}"))
}

fn sidecar(costs: &[Cost]) -> Vec<f64> {
    costs.iter().map(|cost| cost.sidecar).collect()
}

/// The sidecar and its origin.
struct Rig<'a> {
    plan: &'a Plan,
    cores: Cores,
    _origin: Origin,
    running: Running,
    failed: u64,
    first_error: Option<String>,
}

impl<'a> Rig<'a> {
    async fn start(plan: &'a Plan) -> anyhow::Result<Self> {
        let cores = Cores::new(Placement::Together)?;
        let origin = Origin::start(&plan.origin).await?;
        let mut config = bootstrap::minimal(bootstrap::ADMIN);
        let listeners = vec![
            bootstrap::catch_all(),
            bootstrap::to_origin("service", VIP, false),
            bootstrap::to_origin("direct", DIRECT, true),
        ];
        bootstrap::add(&mut config, bootstrap::origin(origin.ports.h1), listeners);
        let folder = tempfile::tempdir_in(&plan.folder)?.keep();
        let mut arguments: Vec<OsString> = AS_PROXY.map(OsString::from).into();
        arguments.push(plan.proxy.clone().into());
        arguments.extend(mesh::arguments(&folder, &config)?);
        let mut running = spawn::start(cores, Path::new("setpriv"), &arguments, folder.join("log"))?;
        mesh::ready(&mut running, bootstrap::ADMIN).await?;
        cores.for_rate(&[running.pid])?;
        Ok(Self { plan, cores, _origin: origin, running, failed: 0, first_error: None })
    }

    /// One window of load. Directly means without rules: with them, the kernel follows all connections of the pod, and that is a part of
    /// the price.
    async fn window(&mut self, way: Way) -> anyhow::Result<Cost> {
        let (rules, target) = match way {
            Way::Intercepted => ("--no-verify", VIP),
            Way::Direct => ("--clean", DIRECT),
        };
        remora_init(self.plan, &[rules]).await?;
        let mode = Mode::Rate { rate: self.plan.rate, burst: self.plan.burst };
        let options = load::Options {
            window: self.plan.window,
            warmup: Duration::from_millis(500),
            ..mesh::requests(target, mode)
        };
        self.cores.for_rate(&[self.running.pid])?;
        let pids = [[self.running.pid], [std::process::id()]];
        let mut marks = Vec::new();
        let mut look = |_: Mark| marks.push(pids.map(|pid| procfs::cpu(&pid).total));
        let report = load::run(&options, &mut look).await?;
        self.failed += report.errors + report.unsent;
        self.first_error = self.first_error.take().or(report.first_error);
        let (Some(start), Some(end)) = (marks.first(), marks.last()) else {
            bail!("a window without edges");
        };
        let each = |end: f64, start: f64| (end - start) * 1e6 / report.ok.max(1) as f64;
        Ok(Cost { sidecar: each(end[0], start[0]), caller: each(end[1], start[1]) })
    }
}
