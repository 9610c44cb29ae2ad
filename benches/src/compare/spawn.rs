//! Processes under measurement: started on their core, ended by their id, and gone when this process is gone.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// How long a process may take to answer its first request.
const READY: Duration = Duration::from_secs(20);
/// How long a process may take to end.
const END: Duration = Duration::from_secs(3);

/// Which cores the proxies, and the load generator with the origin, run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// At the fixed rate everything shares one core: no wake-up crosses cores, so their price, which is the machine's
    /// and not the proxy's, stays out. The ceiling is measured as in [`Self::Split`].
    Together,
    /// The proxies have a core of their own.
    Split,
    /// The scheduler decides.
    Free,
}

/// Which cores belong to whom. A child inherits the core of the thread that starts it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cores {
    placement: Placement,
    /// The proxies' core and that of everything else.
    split: Option<(usize, usize)>,
}

fn only(core: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(core);
    set
}

impl Cores {
    /// Gives the first allowed core to the proxies and the second to the rest, this process included. With a single core
    /// the scheduler decides.
    pub(crate) fn new(placement: Placement) -> anyhow::Result<Self> {
        let allowed = sched_getaffinity(None).context("sched_getaffinity")?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let split = if placement == Placement::Free { None } else { cores.next().zip(cores.next()) };
        let cores = Self { placement, split };
        cores.stand_on(split.map(|(_, rest)| rest))?;
        Ok(cores)
    }

    fn stand_on(self, core: Option<usize>) -> anyhow::Result<()> {
        let Some(core) = core else { return Ok(()) };
        sched_setaffinity(None, &only(core)).context("sched_setaffinity")
    }

    /// Moves the proxies to where the fixed-rate run wants them.
    pub(crate) fn for_rate(self, processes: &[u32]) -> anyhow::Result<()> {
        match (self.placement, self.split) {
            (Placement::Together, Some((_, rest))) => place(processes, rest),
            _ => Ok(()),
        }
    }

    /// Moves the proxies to where the closed loop wants them.
    pub(crate) fn for_ceiling(self, processes: &[u32]) -> anyhow::Result<()> {
        match self.split {
            Some((proxy, _)) => place(processes, proxy),
            None => Ok(()),
        }
    }
}

/// Moves every thread of the processes to one core.
fn place(processes: &[u32], core: usize) -> anyhow::Result<()> {
    for process in processes {
        for thread in fs::read_dir(format!("/proc/{process}/task")).context("the proxy has ended")?.flatten()
        {
            let id = thread.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            match sched_setaffinity(id, &only(core)) {
                // A thread may end between the two calls.
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error).context("sched_setaffinity"),
            }
        }
    }
    Ok(())
}

/// A started process.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) pid: u32,
    pub(crate) began: Instant,
    child: Child,
    log: PathBuf,
}

/// Starts a proxy on the proxies' core. Standard output and error go to a file, whose end is shown if it fails.
pub(crate) fn start(
    cores: Cores,
    program: &Path,
    arguments: &[OsString],
    log: PathBuf,
) -> anyhow::Result<Running> {
    let output = File::create(&log).with_context(|| log.display().to_string())?;
    // Ends the process with this one even if this one is killed; it replaces itself, so the id stays.
    let setpriv = Path::new("/usr/bin/setpriv");
    let mut command = if setpriv.exists() {
        let mut command = Command::new(setpriv);
        command.args(["--pdeathsig", "TERM", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.args(arguments).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    cores.stand_on(cores.split.map(|(proxy, _)| proxy))?;
    let began = Instant::now();
    let child = command.spawn().with_context(|| program.display().to_string());
    cores.stand_on(cores.split.map(|(_, rest)| rest))?;
    let child = child?;
    let pid = child.id().context("the process has ended at once")?;
    Ok(Running { pid, began, child, log })
}

impl Running {
    /// Repeats `probe` until it succeeds; returns the time since the start of the process.
    pub(crate) async fn ready<P>(&mut self, mut probe: impl FnMut() -> P) -> anyhow::Result<Duration>
    where
        P: Future<Output = anyhow::Result<()>>,
    {
        loop {
            let outcome = timeout(READY, probe()).await.context("no answer")?;
            if outcome.is_ok() {
                return Ok(self.began.elapsed());
            }
            self.still_runs()?;
            if self.began.elapsed() > READY {
                let error = outcome.err().map(|error| format!("{error:#}")).unwrap_or_default();
                bail!("not ready after {} s ({error}): {}", READY.as_secs(), self.last_words());
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// What `/proc` says of one that has ended reads like one that uses nothing.
    ///
    /// # Errors
    /// It has ended: with which status, and its last words.
    pub(crate) fn still_runs(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("ended with {status}: {}", self.last_words()),
            None => Ok(()),
        }
    }

    /// Waits for it to end by itself.
    pub(crate) async fn end(&mut self) -> anyhow::Result<ExitStatus> {
        self.child.wait().await.context("wait")
    }

    fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let skip = lines.len().saturating_sub(5);
        lines.into_iter().skip(skip).collect::<Vec<_>>().join(" / ")
    }

    /// Sends SIGTERM, unless the process has been waited for: then its id may be another's.
    fn ask(&self) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = id {
            // It may have ended by itself a moment ago.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Asks the process to end, and ends it if it does not.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.ask();
        if timeout(END, self.child.wait()).await.is_err() {
            self.child.kill().await.context("kill")?;
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // SIGTERM, not SIGKILL: nginx must be able to end its worker.
        self.ask();
    }
}

/// A port that was free a moment ago.
pub(crate) async fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port")?;
    Ok(listener.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_has_ended_does_not_run() {
        let folder = tempfile::tempdir().unwrap();
        let cores = Cores { placement: Placement::Free, split: None };
        let shell = |script: &str| {
            let arguments: [OsString; 2] = ["-c".into(), script.into()];
            start(cores, Path::new("/bin/sh"), &arguments, folder.path().join("log")).unwrap()
        };
        let mut ended = shell("echo its last words; exit 3");
        ended.end().await.unwrap();
        let why = ended.still_runs().unwrap_err().to_string();
        assert!(why.contains("exit status: 3") && why.contains("its last words"), "{why}");
        let mut running = shell("exec sleep 60");
        assert!(running.still_runs().is_ok());
        running.child.kill().await.unwrap();
        assert!(running.still_runs().is_err());
    }
}
