//! The program, which is a child of this one.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};

pub(super) struct Program {
    child: Child,
}

impl Program {
    /// With `environment` besides what this process has.
    pub(super) fn start(command: &[String], environment: &[(&str, String)]) -> anyhow::Result<Self> {
        let (program, arguments) = command.split_first().context("no program")?;
        let variables = environment.iter().map(|(name, value)| (name, value));
        let child = Command::new(program).args(arguments).envs(variables).kill_on_drop(true).spawn();
        Ok(Self { child: child.with_context(|| format!("cannot start {program}"))? })
    }

    /// Its exit status, as a shell gives it.
    pub(super) async fn ended(&mut self) -> anyhow::Result<u8> {
        Ok(status(self.child.wait().await?))
    }

    pub(super) fn ask_to_end(&self) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

fn status(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// SIGTERM and SIGINT, taken from the beginning on: whoever sees the instance may end it.
pub(super) struct Asked {
    term: SignalStream,
    int: SignalStream,
}

impl Asked {
    pub(super) fn install() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// The next time that somebody asks this process to end.
    pub(super) async fn ending(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}
