//! The program, which is a child of this one.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

pub(super) struct Program {
    child: Child,
}

impl Program {
    pub(super) fn start(command: &[String]) -> anyhow::Result<Self> {
        let (program, arguments) = command.split_first().context("no program")?;
        let child = Command::new(program).args(arguments).kill_on_drop(true).spawn();
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

/// SIGTERM or SIGINT.
pub(super) async fn asked_to_end() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
