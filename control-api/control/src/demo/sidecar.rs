//! A sidecar of the demo, with its log and its admin page.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::bail;

use super::client::Client;
use crate::sidecar::{Options, Sidecar};

pub(super) struct Process {
    /// Its Workload.
    pub(super) name: String,
    pub(super) admin: SocketAddr,
    /// Bound addresses by listener.
    pub(super) listeners: BTreeMap<String, SocketAddr>,
    sidecar: Sidecar,
    log: PathBuf,
}

impl Process {
    /// Starts it in `folder` and waits until it is ready.
    pub(super) async fn start(
        control: SocketAddr,
        token: &str,
        name: &str,
        labels: &BTreeMap<String, String>,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let log = folder.join("log");
        let options = Options {
            control,
            token,
            namespace: super::stage::NAMESPACE,
            workload: name,
            labels,
            address: Ipv4Addr::LOCALHOST.into(),
            folder,
            log: Some(File::create(&log)?),
            drain: Duration::from_secs(2),
        };
        let sidecar = match Sidecar::start(options).await {
            Ok(sidecar) => sidecar,
            Err(error) => bail!("{name}: {error:#}\n{}", end_of(&log)),
        };
        let admin = sidecar.admin;
        let mut process = Self { name: name.to_owned(), admin, listeners: BTreeMap::new(), sidecar, log };
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
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.sidecar.ended()
    }

    /// The end of its log.
    pub(super) fn last_words(&self) -> String {
        end_of(&self.log)
    }

    /// Asks it to end; [`Self::end`] waits for that.
    pub(super) fn ask_to_end(&self) {
        self.sidecar.ask_to_end();
    }

    pub(super) async fn end(self) {
        self.sidecar.end().await;
    }
}

fn end_of(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
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
