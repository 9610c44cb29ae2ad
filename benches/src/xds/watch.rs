//! One process under watch: what it uses, and what all others use meanwhile.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::compare::procfs;

/// How long memory has to stay as it is…
const STEADY: Duration = Duration::from_secs(1);
/// …within this part of it…
const WITHIN: f64 = 0.01;
/// …and how long that is waited for.
const PATIENCE: Duration = Duration::from_secs(15);

/// See the module.
#[derive(Debug)]
pub(crate) struct Watch {
    pid: u32,
    began: Instant,
    cpu: f64,
    own: f64,
    machine: f64,
}

impl Watch {
    /// Watches the process from now on.
    pub(crate) fn new(pid: u32) -> Self {
        let (cpu, own) = (cpu(pid), cpu(std::process::id()));
        Self { pid, began: Instant::now(), cpu, own, machine: procfs::machine_busy() }
    }

    /// CPU seconds that it used since then.
    pub(crate) fn cpu(&self) -> f64 {
        cpu(self.pid) - self.cpu
    }

    /// What it has in memory now (`VmRSS`), in 10⁶ bytes.
    pub(crate) fn resident(&self) -> f64 {
        procfs::memory(&[self.pid]).resident as f64 / 1e6
    }

    /// The most that it ever had (`VmHWM`).
    pub(crate) fn peak(&self) -> f64 {
        procfs::memory(&[self.pid]).peak as f64 / 1e6
    }

    /// [`Self::resident`] when it has stopped to change: allocators give pages back by and by.
    pub(crate) async fn settled(&self) -> f64 {
        let (mut since, mut at) = (Instant::now(), self.resident());
        let end = since + PATIENCE;
        while since.elapsed() < STEADY && Instant::now() < end {
            sleep(Duration::from_millis(50)).await;
            let now = self.resident();
            if (now - at).abs() > at * WITHIN {
                (since, at) = (Instant::now(), now);
            }
        }
        self.resident()
    }

    /// Part of the machine that was neither its nor ours.
    pub(crate) fn noise(&self) -> f64 {
        let busy = procfs::machine_busy() - self.machine;
        let others = busy - self.cpu() - (cpu(std::process::id()) - self.own);
        let cores = procfs::machine().cores.max(1) as f64;
        (others / cores / self.began.elapsed().as_secs_f64()).max(0.0)
    }
}

/// In the grain of the clock tick: it has the threads that have ended too.
fn cpu(pid: u32) -> f64 {
    let cpu = procfs::cpu(&[pid]);
    cpu.user + cpu.system
}
