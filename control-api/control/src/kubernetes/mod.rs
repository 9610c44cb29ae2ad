//! Kubernetes as a source of documents and instances: its objects are in the registry like what people write here, and change with
//! them; and the server of the injection webhook ([0018](../../../../docs/decisions/0018-kubernetes.md)).

pub mod crds;
pub mod map;
pub mod pods;

#[cfg(test)]
mod fake;
mod leader;
mod mirror;
mod parents;
mod plain;
mod roots;
mod status;
mod watch;
mod webhook;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::board::Board;
use crate::quota::Owner;
use crate::registry::Registry;
use crate::store::Write;

pub(crate) use mirror::KIND as SOURCE;
pub use plain::PlaintextTo;
pub(crate) use roots::keep as keep_roots;
pub(crate) use webhook::{Webhook, names};

/// Events that wait to be taken.
const WAITING: usize = 1024;

/// How the API server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// As a pod of the cluster.
    InCluster,
    /// By a kubeconfig and its current context.
    File(PathBuf),
}

impl FromStr for Access {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "in-cluster" => Ok(Self::InCluster),
            "" => Err("write in-cluster, or the path of a kubeconfig".into()),
            path => Ok(Self::File(path.into())),
        }
    }
}

impl Access {
    /// A client of the API server. It is not asked anything yet.
    ///
    /// # Errors
    /// There is no access: this is no pod, or the file is no kubeconfig. The text says what is wrong.
    pub async fn client(&self) -> Result<Client, String> {
        let config = match self {
            Self::InCluster => Config::incluster().map_err(|e| {
                format!("this is no pod of a cluster: {e} (outside of one: --kubernetes=KUBECONFIG)")
            })?,
            Self::File(path) => by(path, read(path)?).await?,
        };
        Client::try_from(config).map_err(|e| e.to_string())
    }
}

/// A client as [`Access::File`] has it, but past the HTTP proxy that the file or the environment names.
///
/// # Errors
/// As [`Access::client`].
pub(crate) async fn direct(kubeconfig: &Path) -> Result<Client, String> {
    past_proxies(kubeconfig, read(kubeconfig)?).await
}

/// The same by the text of a kubeconfig. `named`: what it is, for the error.
///
/// # Errors
/// As [`Access::client`].
pub(crate) async fn direct_by(kubeconfig: &str, named: &Path) -> Result<Client, String> {
    let file = Kubeconfig::from_yaml(kubeconfig).map_err(|e| format!("{}: {e}", named.display()))?;
    past_proxies(named, file).await
}

async fn past_proxies(named: &Path, mut file: Kubeconfig) -> Result<Client, String> {
    for cluster in file.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
        // Where the file names one, the environment's is not even read: it may be no URI.
        cluster.proxy_url = Some("http://localhost".into());
    }
    let mut config = by(named, file).await?;
    config.proxy_url = None;
    Client::try_from(config).map_err(|e| e.to_string())
}

fn read(path: &Path) -> Result<Kubeconfig, String> {
    Kubeconfig::read_from(path).map_err(|e| format!("{}: {e}", path.display()))
}

async fn by(path: &Path, file: Kubeconfig) -> Result<Config, String> {
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    config.map_err(|e| format!("{}: {e}", path.display()))
}

/// Waits until proxies may be served: until Kubernetes was read once, now or earlier, by this control plane or another one of the store.
/// A proxy must not be told that Services are gone because they were not read yet.
pub(crate) async fn read_once(registry: &Registry) {
    let mut progress = registry.progress();
    while registry.get(&mirror::marker()).is_none() {
        // The sender is a part of the registry.
        if progress.changed().await.is_err() {
            return;
        }
    }
}

/// Follows Kubernetes, and writes what is made of it there, while no other control plane of the store does.
/// `to`: the Services that may be called in plaintext while they are known to have no sidecars.
pub(crate) async fn follow(
    client: Client,
    registry: Arc<Registry>,
    board: Arc<Board>,
    owner: Arc<Owner>,
    to: Vec<PlaintextTo>,
) {
    registry.filled().await;
    let leads = Arc::clone(&owner);
    let start = |tasks: &mut JoinSet<()>, fence: Option<Write>| {
        let (told, events) = mpsc::channel(WAITING);
        for what in watch::What::all() {
            let registry = Arc::clone(&registry);
            let kept = move || mirror::has(&registry, what);
            tasks.spawn(watch::follow(client.clone(), what, kept, told.clone()));
        }
        let mirror = mirror::Mirror::new(Arc::clone(&registry), Arc::clone(&board));
        tasks.spawn(mirror.plaintext_to(to.clone()).led_by(Arc::clone(&leads), fence).follow(events));
        tasks.spawn(status::keep(client.clone(), Arc::clone(&registry), Arc::clone(&board)));
    };
    leader::lead(owner, start).await;
}
