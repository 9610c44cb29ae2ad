//! What a sidecar of a large mesh, and the smallest proxy, use when nobody wants anything from them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::time::{Instant, sleep, sleep_until};

use super::mesh::{self, Mesh};
use super::report::{Number, Target};
use super::{Plan, bootstrap, start};
use crate::compare::{procfs, spawn};
use crate::xds::watch::Watch;

/// Between two looks at the threads.
const LOOK: Duration = Duration::from_secs(1);

/// Targets of one idle proxy.
#[derive(Debug)]
pub(super) struct Idle {
    memory: Target,
    cpu: Target,
    anonymous: &'static str,
    file: &'static str,
}

pub(super) const IDLE: [Idle; 2] = [
    Idle {
        memory: Target { what: "idle in the mesh: memory (VmRSS)", unit: "MB", limit: 10.0 },
        cpu: Target { what: "idle in the mesh: CPU", unit: "% of a core", limit: 0.1 },
        anonymous: "idle in the mesh: of it anonymous (RssAnon)",
        file: "idle in the mesh: of it files (RssFile)",
    },
    Idle {
        memory: Target { what: "idle, minimal: memory (VmRSS)", unit: "MB", limit: 10.0 },
        cpu: Target { what: "idle, minimal: CPU", unit: "% of a core", limit: 0.1 },
        anonymous: "idle, minimal: of it anonymous (RssAnon)",
        file: "idle, minimal: of it files (RssFile)",
    },
];

/// The targets, for a run that does not get there.
pub(super) fn targets() -> impl Iterator<Item = &'static Target> {
    IDLE.iter().flat_map(|idle| [&idle.memory, &idle.cpu])
}

/// Leaves a sidecar and a proxy with the smallest bootstrap alone, both at the same time.
pub(super) async fn measure(
    plan: &Plan,
    mesh: &mut Mesh,
    progress: &mut dyn FnMut(&str),
    numbers: &mut Vec<Number>,
) -> anyhow::Result<()> {
    progress("starting what is to be idle");
    let (mut sidecar, _) = start::sidecar(plan, mesh).await?;
    start::synced(mesh).await?;
    let admin = spawn::free_port().await?;
    let folder = tempfile::tempdir_in(&plan.folder)?.keep();
    let arguments = mesh::arguments(&folder, &bootstrap::minimal(admin))?;
    let (mut minimal, _) = mesh::start(&plan.proxy, &arguments, admin, folder.join("log")).await?;
    progress(&format!("{} s in which nothing happens", (plan.warmup + plan.idle).as_secs()));
    for running in [&sidecar, &minimal] {
        Watch::new(running.pid).settled().await;
    }
    sleep(plan.warmup).await;
    let pids = [sidecar.pid, minimal.pid];
    let cpu = used(pids, plan.idle).await?;
    sidecar.still_runs().context("the idle sidecar")?;
    minimal.still_runs().context("the idle minimal proxy")?;
    for ((pid, cpu), idle) in pids.into_iter().zip(cpu).zip(&IDLE) {
        let split = procfs::resident(pid);
        ensure!(split.all > 0, "process {pid} has no memory: it has ended");
        let mb = |bytes: u64| bytes as f64 / 1e6;
        numbers.extend([
            Number::new("", "", mb(split.all)).at_most(&idle.memory),
            Number::new(idle.anonymous, "MB", mb(split.anonymous)),
            Number::new(idle.file, "MB", mb(split.file)),
            Number::new("", "", cpu).at_most(&idle.cpu),
        ]);
    }
    minimal.stop().await?;
    sidecar.stop().await
}

/// CPU of the two processes over a time, in percent of a core. Threads that end meanwhile (those that wait for files do) take their
/// count along, so that it is read every second.
///
/// # Errors
/// As [`threads`].
async fn used(pids: [u32; 2], time: Duration) -> anyhow::Result<[f64; 2]> {
    let (began, mut next) = (Instant::now(), Instant::now());
    let mut seen = [Threads::new(threads(pids[0])?), Threads::new(threads(pids[1])?)];
    while next < began + time {
        next = (next + LOOK).min(began + time);
        sleep_until(next).await;
        for (seen, pid) in seen.iter_mut().zip(pids) {
            seen.see(threads(pid)?);
        }
    }
    Ok(seen.map(|threads| threads.used() as f64 / 1e9 / began.elapsed().as_secs_f64() * 100.0))
}

/// Nanoseconds of the threads that a process has now.
///
/// # Errors
/// There are none: nothing can be said of it, which is not that it used nothing.
fn threads(pid: u32) -> anyhow::Result<BTreeMap<OsString, u64>> {
    let all = procfs::threads(pid);
    ensure!(!all.is_empty(), "process {pid} has ended, or this kernel does not count (CONFIG_SCHED_INFO)");
    Ok(all)
}

/// Nanoseconds of threads: at the start (none for those that came later), and when each was last seen.
#[derive(Debug, Default)]
struct Threads {
    start: BTreeMap<OsString, u64>,
    last: BTreeMap<OsString, u64>,
}

impl Threads {
    fn new(start: BTreeMap<OsString, u64>) -> Self {
        Self { last: start.clone(), start }
    }

    fn see(&mut self, now: BTreeMap<OsString, u64>) {
        self.last.extend(now);
    }

    fn used(&self) -> u64 {
        let used = |(thread, last): (&OsString, &u64)| {
            last.saturating_sub(self.start.get(thread).copied().unwrap_or_default())
        };
        self.last.iter().map(used).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_has_ended_is_not_idle() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let (own, gone) = (std::process::id(), child.id());
        child.wait().unwrap();
        let why = used([own, gone], Duration::ZERO).await.unwrap_err().to_string();
        assert!(why.contains(&gone.to_string()), "{why}");
        assert!(used([own, own], Duration::ZERO).await.is_ok());
    }

    #[test]
    fn threads_that_come_and_go_are_counted() {
        let of = |all: &[(&str, u64)]| all.iter().map(|(thread, ns)| ((*thread).into(), *ns)).collect();
        let mut threads = Threads::new(of(&[("1", 100), ("2", 1000)]));
        assert_eq!(threads.used(), 0);
        threads.see(of(&[("1", 110), ("2", 1001), ("3", 5)]));
        threads.see(of(&[("1", 120), ("3", 6)]));
        assert_eq!(threads.used(), 20 + 1 + 6);
    }
}
