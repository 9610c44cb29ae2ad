//! Everything that runs: a control plane, programs, and a sidecar beside each, which takes its configuration from the control plane.

mod documents;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use http::Method;
use remora_mesh::{Listening, names};
use tokio::process::Command;
use tokio::time::Instant;

use super::apps::App;
use super::metrics::View;
use super::sidecar::Process;
use crate::ca::issued::Entry;
use crate::ca::{Overlap, Phase};
use crate::client::Server;
use crate::control;
use crate::files::private;
use crate::rest::Shown;
use crate::sidecar::join_token;

use documents::Documents;

pub(super) use documents::{FIRST_SPLIT, SECOND_SPLIT};

const TRUST_DOMAIN: &str = "demo.remora";
pub(super) const NAMESPACE: &str = "default";

/// Life of a certificate: each is renewed several times while people look.
pub(super) const LIFE: Duration = Duration::from_secs(30);
/// A new root is announced for so long, and at most, before it signs.
const OVERLAP: Overlap = Overlap { least: Duration::from_secs(5), most: Duration::from_secs(60) };

pub(super) struct Stage {
    folder: tempfile::TempDir,
    documents: Documents,
    plane: control::Plane,
    /// Kept: a program ends with its handle.
    apps: BTreeMap<&'static str, App>,
    pub(super) sidecars: Vec<Process>,
}

/// Workloads, in the order in which they are shown.
pub(super) const WORKLOADS: [&str; 5] = ["visitors", "shop-1", "shop-2", "stock-1", "stock-2"];

/// Whom everybody's certificate is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Authority {
    /// The root that signs.
    pub(super) root: String,
    /// Certificates of sidecars that it signed.
    pub(super) certificates: usize,
    /// Identities that have one.
    pub(super) identities: usize,
}

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
        let mut documents = Documents::read()?;
        for (name, app) in &apps {
            documents.set_program_port(name, app.address.port())?;
        }
        let plane = control::Plane::start(options(folder.path())).await?;
        let mut stage = Self { folder, documents, plane, apps, sidecars: Vec::new() };
        stage.apply(&stage.documents.text()).await?;
        stage.start_sidecars().await?;
        // Now that they listen, all can know where.
        for sidecar in &stage.sidecars {
            if let Some(address) = sidecar.listeners.get(names::INBOUND) {
                stage.documents.set_inbound_port(&sidecar.name, address.port())?;
            }
        }
        stage.apply(&stage.documents.text()).await?;
        for (name, app) in stage.apps.iter().filter(|(name, _)| name.starts_with("shop")) {
            app.calls(stage.outbound(name, "stock")?);
        }
        Ok(stage)
    }

    async fn start_sidecars(&mut self) -> anyhow::Result<()> {
        for name in WORKLOADS {
            let folder = self.folder.path().join(name);
            std::fs::create_dir(&folder)?;
            let labels = self.documents.labels(name)?;
            let account = self.documents.service_account(name)?;
            let token = join_token(&self.rest()?, NAMESPACE, account).await?;
            self.sidecars.push(Process::start(self.plane.tls, &token, name, &labels, &folder).await?);
        }
        Ok(())
    }

    /// The control plane, for `remora --server`.
    pub(super) fn server(&self) -> String {
        format!("http://{}", self.plane.rest)
    }

    /// Announces a new root, which signs when every sidecar trusts it.
    pub(super) async fn rotate_root(&self) -> anyhow::Result<()> {
        self.rest()?.call(Method::POST, "/remora/v1/ca/rotate", None).await.map(drop)
    }

    /// What the authority is now.
    pub(super) async fn authority(&self) -> anyhow::Result<Authority> {
        let shown: Shown =
            serde_json::from_value(self.rest()?.call(Method::GET, "/remora/v1/ca", None).await?)?;
        let signing = shown.roots.into_iter().find(|root| root.phase == Phase::Signing);
        let signing = signing.context("no root signs")?;
        let of_it = |entry: &&Entry| entry.time >= signing.since && entry.credential != "control";
        let certificates = shown.issued.iter().filter(of_it).count();
        let identities: BTreeSet<_> =
            shown.issued.iter().filter(of_it).map(|entry| entry.identity.clone()).collect();
        Ok(Authority { root: signing.id, certificates, identities: identities.len() })
    }

    fn rest(&self) -> anyhow::Result<Server> {
        Server::at(&self.server())
    }

    /// `remora apply --wait`, as a person would do it.
    async fn apply(&self, text: &str) -> anyhow::Result<Duration> {
        let file: PathBuf = self.folder.path().join("mesh.yaml");
        private(&file, text)?;
        let began = Instant::now();
        let done = Command::new(std::env::current_exe().context("where is this program?")?)
            .args(["apply", "--wait", "--timeout", "20s", "--server", &self.server(), "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .output()
            .await
            .context("cannot start remora apply")?;
        if !done.status.success() {
            bail!("remora apply: {}{}", String::from_utf8_lossy(&done.stderr).trim(), self.last_words());
        }
        Ok(began.elapsed())
    }

    fn last_words(&self) -> String {
        let said = self.sidecars.iter().map(|sidecar| (&sidecar.name, sidecar.last_words()));
        said.filter(|(_, words)| !words.is_empty())
            .map(|(name, words)| format!("\n{name}: {words}"))
            .collect()
    }

    /// Edits the route: this share of v1, the rest for v2. How long it took until every sidecar had it, `remora apply` included.
    pub(super) async fn split(&mut self, v1: u32) -> anyhow::Result<Duration> {
        self.documents.set_split(v1)?;
        self.apply(&self.documents.route()?).await
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
            sidecar.end().await;
        }
        drop(self.plane);
        if let Err(error) = self.folder.close() {
            eprintln!("remora demo: the temporary folder stays: {error}");
        }
    }
}

/// A control plane on free ports, for sidecars on free ports, whose certificates do not live long.
fn options(folder: &Path) -> control::Options {
    control::Options {
        authority: control::AuthorityOptions { ttl: LIFE, overlap: OVERLAP, ..Default::default() },
        listening: Listening::Ephemeral,
        ..control::Options::on_loopback(folder.join("control"), TRUST_DOMAIN)
    }
}
