//! A sidecar: a process of its own, from the same binary.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::client::Client;

/// How long a start may take on a slow machine.
const STARTS_IN: Duration = Duration::from_secs(60);
/// How long an end may take.
const ENDS_IN: Duration = Duration::from_secs(8);
const POLL: Duration = Duration::from_millis(20);

pub(super) struct Process {
    /// Its Workload.
    pub(super) name: String,
    pub(super) admin: SocketAddr,
    /// Bound addresses by listener.
    pub(super) listeners: BTreeMap<String, SocketAddr>,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `remora proxy` with the bootstrap in `folder` and waits until it is ready.
    pub(super) async fn start(name: &str, folder: &Path) -> anyhow::Result<Self> {
        let (address, log) = (folder.join("admin"), folder.join("log"));
        let binary = std::env::current_exe().context("where is this program?")?;
        let child = Command::new(binary)
            .arg("proxy")
            .arg("-c")
            .arg(folder.join("bootstrap.yaml"))
            .arg("--admin-address-path")
            .arg(&address)
            .args(["--concurrency", "1", "--drain-time-s", "2", "--log-level", "warn"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            // Ctrl-C is for the demo, which ends its sidecars in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a sidecar")?;
        let unbound = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut process =
            Self { name: name.to_owned(), admin: unbound, listeners: BTreeMap::new(), child, log };
        let deadline = Instant::now() + STARTS_IN;
        loop {
            if let Some(status) = process.ended() {
                bail!("sidecar {name} ended with {status}:\n{}", process.last_words());
            }
            if let Ok(text) = std::fs::read_to_string(&address)
                && let Ok(admin) = text.parse()
            {
                process.admin = admin;
                if process.admin_page("/ready").await.is_ok() {
                    break;
                }
            }
            if Instant::now() > deadline {
                bail!(
                    "sidecar {name} is not ready after {} s:\n{}",
                    STARTS_IN.as_secs(),
                    process.last_words()
                );
            }
            tokio::time::sleep(POLL).await;
        }
        process.listeners = listeners(&process.admin_page("/listeners?format=json").await?)?;
        Ok(process)
    }

    /// Body of an admin page that answers 200.
    pub(super) async fn admin_page(&self, path: &str) -> anyhow::Result<String> {
        let answer = Client::new(self.admin).get("localhost", path).await?;
        if !answer.status.is_success() {
            bail!("{}: {path} answers {}", self.name, answer.status);
        }
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// Its exit status, when it has one already.
    pub(super) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// The end of its log.
    pub(super) fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Asks it to end; [`Self::wait`] waits for that.
    pub(super) fn ask_to_end(&self) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Waits for its end, and forces it when that takes too long.
    pub(super) async fn wait(mut self) {
        if tokio::time::timeout(ENDS_IN, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

/// `/listeners?format=json`.
fn listeners(text: &str) -> anyhow::Result<BTreeMap<String, SocketAddr>> {
    let page: serde_json::Value = serde_json::from_str(text)?;
    let mut found = BTreeMap::new();
    for status in page["listener_statuses"].as_array().into_iter().flatten() {
        let socket = &status["local_address"]["socket_address"];
        let (name, ip, port) =
            (status["name"].as_str(), socket["address"].as_str(), socket["port_value"].as_u64());
        let (Some(name), Some(ip), Some(port)) = (name, ip, port) else {
            bail!("unexpected answer of /listeners: {text}")
        };
        found.insert(name.to_owned(), SocketAddr::new(ip.parse()?, u16::try_from(port)?));
    }
    Ok(found)
}
