//! An origin that is a process of its own, so that it can be frozen, killed and started again. Its log survives it.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::ledger::Execution;
use crate::process::{beside, signal};
use crate::wait::{eventually, within};

/// A running origin. Dropping it kills it.
#[derive(Debug)]
pub struct Origin {
    process: Child,
    /// Where it listens.
    pub address: SocketAddr,
    log: PathBuf,
}

impl Origin {
    /// Starts one that works for `work` on each request and appends to the log `log`. Port 0 is any.
    ///
    /// # Panics
    /// When it does not start, or says nothing in time.
    pub async fn start(address: SocketAddr, log: &Path, work: Duration) -> Self {
        let program = beside("ledger-origin").expect("ledger-origin beside the tests");
        let started = tokio::task::spawn_blocking({
            let log = log.to_owned();
            move || {
                let mut process = Command::new(program)
                    .arg(address.to_string())
                    .arg(log)
                    .arg(work.as_micros().to_string())
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .spawn()
                    .expect("start of an origin");
                let mut line = String::new();
                let stdout = process.stdout.take().expect("stdout");
                BufReader::new(stdout).read_line(&mut line).expect("its address");
                (process, line)
            }
        });
        let (process, line) = within("start of an origin", started).await.expect("start of an origin");
        let address = line.trim().parse().unwrap_or_else(|_| panic!("an origin at {address} said {line:?}"));
        Self { process, address, log: log.to_owned() }
    }

    /// Sends a signal by its name, as [`signal`] knows it.
    pub fn signal(&self, name: &str) {
        signal(self.process.id(), name);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn ended(&mut self) {
        eventually("end of an origin", || self.process.try_wait().expect("wait").is_some()).await;
    }

    /// What it executed, its predecessors with the same log included.
    ///
    /// # Panics
    /// When its log cannot be read.
    #[must_use]
    pub fn executed(&self) -> Vec<Execution> {
        executed(&self.log)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _status = self.process.wait();
    }
}

/// What a log says.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn executed(log: &Path) -> Vec<Execution> {
    let text = std::fs::read_to_string(log).expect("log of an origin");
    let line = |line: &str| {
        let mut words = line.splitn(3, ' ').map(str::to_owned);
        let mut word = || words.next().unwrap_or_default();
        Execution { method: word(), target: word(), body: word() }
    };
    text.lines().map(line).collect()
}
