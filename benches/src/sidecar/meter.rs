//! What others use of the machine meanwhile.

use tokio::time::Instant;

use crate::compare::procfs;

/// Counts from when it was made.
#[derive(Debug)]
pub(super) struct Meter {
    began: Instant,
    /// CPU seconds of this process and of everything that it has started.
    family: f64,
    /// CPU seconds of the machine.
    machine: f64,
}

impl Meter {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), family: family(), machine: procfs::machine_busy() }
    }

    /// Part of the machine that neither this process nor what it started used since then.
    pub(super) fn noise(&self) -> f64 {
        let others = procfs::machine_busy() - self.machine - (family() - self.family);
        let cores = procfs::machine().cores.max(1) as f64;
        (others / cores / self.began.elapsed().as_secs_f64()).clamp(0.0, 1.0)
    }
}

fn family() -> f64 {
    procfs::with_ended_children(&procfs::family(&[std::process::id()]))
}
