//! Everything that runs: programs, sidecars, and the files that connect them. This is the control plane of the demo: it compiles the
//! documents for every sidecar and renames the files that changed.

use std::collections::BTreeMap;
use std::fs::{OpenOptions, Permissions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use remora_mesh::{Credentials, Delivery, Documents, Listening, Profile, Sidecar, compile, files, names};
use remora_xds::Schema;
use tokio::time::Instant;

use super::apps::App;
use super::authority::Authority;
use super::metrics::{self, View};
use super::sidecar::Process;

const DOCUMENTS: &str = include_str!("../../../../deploy/examples/demo.yaml");
const TRUST_DOMAIN: &str = "demo.remora";
const NAMESPACE: &str = "default";

/// Share of v1 in the documents.
pub(super) const FIRST_SPLIT: u32 = 90;
/// Share of v1 after the edit.
pub(super) const SECOND_SPLIT: u32 = 50;

pub(super) struct Stage {
    folder: tempfile::TempDir,
    schema: Schema,
    text: String,
    /// Kept: a program ends with its handle.
    apps: BTreeMap<&'static str, App>,
    pub(super) sidecars: Vec<Process>,
}

/// Workloads, in the order in which they are shown.
pub(super) const WORKLOADS: [&str; 5] = ["visitors", "shop-1", "shop-2", "stock-1", "stock-2"];

impl Stage {
    /// Starts everything.
    pub(super) async fn build() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("remora-demo-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .context("no temporary folder")?;
        let apps = BTreeMap::from([
            ("shop-1", App::shop("shop-1").await?),
            ("shop-2", App::shop("shop-2").await?),
            ("stock-1", App::stock("v1", false).await?),
            ("stock-2", App::stock("v2", true).await?),
        ]);
        let mut stage =
            Self { folder, schema: Schema::load(), text: DOCUMENTS.to_owned(), apps, sidecars: Vec::new() };
        stage.issue_certificates()?;
        // First every sidecar for itself, to learn its ports; then all know each other.
        let documents = stage.documents()?;
        for name in WORKLOADS {
            let mut alone = documents.clone();
            alone.workloads.retain(|w| w.metadata.name == name);
            std::fs::create_dir(stage.folder_of(name))?;
            stage.publish(&alone, name)?;
        }
        for name in WORKLOADS {
            let process = Process::start(name, &stage.folder_of(name)).await?;
            stage.sidecars.push(process);
        }
        for (name, app) in &stage.apps {
            if name.starts_with("shop") {
                app.calls(stage.outbound(name, "stock")?);
            }
        }
        stage.spread().await?;
        Ok(stage)
    }

    fn folder_of(&self, workload: &str) -> PathBuf {
        self.folder.path().join(workload)
    }

    fn issue_certificates(&self) -> anyhow::Result<()> {
        let authority = Authority::new()?;
        let folder = self.folder.path();
        private_file(&folder.join("roots.pem"), &authority.roots)?;
        for workload in self.documents()?.workloads {
            let account = &workload.spec.service_account;
            let identity = authority.issue(&names::spiffe(TRUST_DOMAIN, NAMESPACE, account))?;
            let name = &workload.metadata.name;
            private_file(&folder.join(format!("{name}.chain.pem")), &identity.chain)?;
            private_file(&folder.join(format!("{name}.key.pem")), &identity.key)?;
        }
        Ok(())
    }

    /// The documents with the ports that things really have.
    fn documents(&self) -> anyhow::Result<Documents> {
        let read = Documents::read([("demo.yaml", self.text.as_str())]);
        let mut documents = read.map_err(|errors| {
            anyhow!(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        })?;
        for workload in &mut documents.workloads {
            let name = workload.metadata.name.as_str();
            if let (Some(app), Some(port)) = (self.apps.get(name), workload.spec.ports.first_mut()) {
                port.port = app.address.port();
            }
            let sidecar = self.sidecars.iter().find(|s| s.name == name);
            if let Some(address) = sidecar.and_then(|s| s.listeners.get(names::INBOUND)) {
                workload.spec.inbound_port = address.port();
            }
        }
        Ok(documents)
    }

    /// Writes the files of one sidecar that differ from what is there. True: some did.
    fn publish(&self, documents: &Documents, name: &str) -> anyhow::Result<bool> {
        let folder = self.folder_of(name);
        let at = |path: PathBuf| path.display().to_string();
        let pem = |name: String| at(self.folder.path().join(name));
        let credentials = Credentials::Files {
            certificate: pem(format!("{name}.chain.pem")),
            key: pem(format!("{name}.key.pem")),
            roots: pem("roots.pem".into()),
        };
        let sidecar = Sidecar {
            namespace: NAMESPACE.into(),
            workload: name.into(),
            profile: Profile {
                trust_domain: TRUST_DOMAIN.into(),
                credentials,
                delivery: Delivery::Files(at(folder.clone())),
                listening: Listening::Ephemeral,
            },
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        let resources = compile(documents, &sidecar)?;
        let mut changed = false;
        for file in files(&self.schema, &at(folder.clone()), &resources) {
            let path = folder.join(file.name);
            if std::fs::read_to_string(&path).is_ok_and(|old| old == file.text) {
                continue;
            }
            // Whoever reads meets the old text or the new one, never half of it.
            let fresh = folder.join(format!(".{}.new", file.name));
            private_file(&fresh, &file.text)?;
            std::fs::rename(&fresh, &path)?;
            changed = true;
        }
        Ok(changed)
    }

    /// Compiles the documents for every sidecar and waits until those that it changes something for have it.
    async fn spread(&self) -> anyhow::Result<Duration> {
        let documents = self.documents()?;
        let began = Instant::now();
        let mut waiting = Vec::new();
        for sidecar in &self.sidecars {
            let before = version(sidecar).await?;
            if self.publish(&documents, &sidecar.name)? {
                waiting.push((sidecar, before));
            }
        }
        for (sidecar, before) in waiting {
            while version(sidecar).await? <= before {
                if began.elapsed() > Duration::from_secs(20) {
                    anyhow::bail!(
                        "{} did not take its new configuration:\n{}",
                        sidecar.name,
                        sidecar.last_words()
                    );
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        Ok(began.elapsed())
    }

    /// Edits the route in the documents: this share of v1, the rest for v2. Answers how long the sidecars took to have it.
    pub(super) async fn split(&mut self, v1: u32) -> anyhow::Result<Duration> {
        self.text = with_split(&self.text, v1);
        self.spread().await
    }

    /// Where the sidecar of `workload` listens for calls to `service`.
    pub(super) fn outbound(&self, workload: &str, service: &str) -> anyhow::Result<SocketAddr> {
        let sidecar = self.sidecars.iter().find(|s| s.name == workload);
        let name = names::outbound(NAMESPACE, service, 8080);
        let found = sidecar.and_then(|s| s.listeners.get(&name)).copied();
        found.with_context(|| format!("the sidecar of {workload} has no listener {name}"))
    }

    /// What the sidecars have counted so far. One that does not answer is left out.
    pub(super) async fn view(&self) -> View {
        let mut view = View::default();
        for sidecar in &self.sidecars {
            if let Ok(page) = sidecar.admin_page("/stats/prometheus").await {
                view.add(&page);
            }
        }
        view
    }

    /// Sidecars that are no longer there, with the end of their logs.
    pub(super) fn dead(&mut self) -> Vec<String> {
        let ended = |s: &mut Process| {
            s.ended().map(|status| format!("{} ended with {status}: {}", s.name, s.last_words()))
        };
        self.sidecars.iter_mut().filter_map(ended).collect()
    }

    /// Ends everything and removes the folder.
    pub(super) async fn end(self) {
        for sidecar in &self.sidecars {
            sidecar.ask_to_end();
        }
        for sidecar in self.sidecars {
            sidecar.wait().await;
        }
        if let Err(error) = self.folder.close() {
            eprintln!("remora demo: the temporary folder stays: {error}");
        }
    }
}

async fn version(sidecar: &Process) -> anyhow::Result<f64> {
    let page = sidecar.admin_page("/stats/prometheus").await?;
    metrics::plain(&page, "remora_config_version").context("no remora_config_version in the metrics")
}

fn private_file(path: &Path, text: &str) -> std::io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(text.as_bytes())
}

/// The documents with other weights.
fn with_split(text: &str, v1: u32) -> String {
    let weight = |line: &str| {
        let (name, rest) = line.split_once(", port: 8080, weight: ")?;
        let share = if name.ends_with("stock-v1") { v1 } else { 100 - v1 };
        Some(format!(
            "{name}, port: 8080, weight: {share}{}",
            rest.trim_start_matches(|c: char| c.is_ascii_digit())
        ))
    };
    let lines = text.split_inclusive('\n');
    lines.map(|line| weight(line).unwrap_or_else(|| line.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_say_the_first_split_and_an_edit_changes_two_lines() {
        assert_eq!(with_split(DOCUMENTS, FIRST_SPLIT), DOCUMENTS);
        let edited = with_split(DOCUMENTS, SECOND_SPLIT);
        let changed: Vec<_> =
            DOCUMENTS.lines().zip(edited.lines()).filter(|(a, b)| a != b).map(|(_, b)| b).collect();
        assert_eq!(changed.len(), 2, "{changed:?}");
        assert!(changed.iter().all(|line| line.contains("weight: 50")), "{changed:?}");
    }
}
