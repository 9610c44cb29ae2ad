//! Brings the plugin to a node, keeps it there, and takes it away when its DaemonSet goes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::chain::{self, Standing};
use super::folders::{Folders, KUBECONFIG, replace, write_list};
use crate::kubernetes;

/// For the API server, at the end.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct InstallArgs {
    #[command(flatten)]
    pub(super) folders: Folders,
    /// --net-dir as the node has it: the plugin runs there
    #[arg(long, value_name = "FOLDER", default_value = "/etc/cni/net.d")]
    pub(super) node_net_dir: PathBuf,
    /// API server, as the node reaches it
    #[arg(long, value_name = "URL", default_value_t = server())]
    pub(super) server: String,
    /// Folder with token and ca.crt of a service account that may read pods
    #[arg(long, value_name = "FOLDER", default_value = "/var/run/secrets/kubernetes.io/serviceaccount")]
    pub(super) account: PathBuf,
    /// Namespaces whose pods are left alone, whatever the API server would say
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        default_value = "kube-system,kube-public,kube-node-lease,remora-system"
    )]
    pub(super) exclude_namespaces: Vec<String>,
    /// At the end, leave everything in place while this DaemonSet stands; without, everything is taken away
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = daemon_set)]
    pub(super) daemon_set: Option<(String, String)>,
    /// How often to look whether everything is still there
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = crate::run::time)]
    pub(super) every: Duration,
}

/// The API server's address that every pod knows.
fn server() -> String {
    let get = |name: &str| std::env::var(name).ok();
    let host = get("KUBERNETES_SERVICE_HOST").unwrap_or_else(|| "kubernetes.default.svc".into());
    let port = get("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".into());
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    format!("https://{host}:{port}")
}

fn daemon_set(text: &str) -> Result<(String, String), String> {
    let plain = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
    };
    match text.split_once('/') {
        Some((namespace, name)) if plain(namespace) && plain(name) => Ok((namespace.into(), name.into())),
        _ => Err("write it as remora-system/remora-cni".into()),
    }
}

/// Keeps the plugin there until SIGTERM or SIGINT.
///
/// # Errors
/// The folder of programs is not there, or cannot be written. Whatever else is missing is said, and waited for.
pub(super) async fn install(args: InstallArgs) -> anyhow::Result<u8> {
    // Before anything is written: what comes from now on ends in order.
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let own = std::env::current_exe().context("this program")?;
    // Whatever is there may be of another version.
    args.folders.copy(&own)?;
    let mut said = String::new();
    loop {
        // What is wrong may be repaired by others: a list of another version, a token that is being replaced.
        let state = match args.step(&own) {
            Ok(Some(file)) => format!("in place: {}", file.display()),
            Ok(None) => format!("no network in {} yet; waiting", args.folders.net_dir.display()),
            Err(why) => format!("not in place: {why:#}; trying again"),
        };
        if state != said {
            eprintln!("remora cni install: {state}");
            said = state;
        }
        tokio::select! {
            () = tokio::time::sleep(args.every) => {}
            _ = term.recv() => break,
            _ = int.recv() => break,
        }
    }
    match args.standing().await {
        Standing::Stands => eprintln!("remora cni install: the DaemonSet stands: all stays"),
        Standing::Unknown(why) => {
            eprintln!("remora cni install: all stays, as nobody says whether the DaemonSet does: {why}");
        }
        Standing::Gone => {
            let _status = args.folders.uninstall()?;
        }
    }
    Ok(0)
}

impl InstallArgs {
    /// Writes what is missing or has changed: program, kubeconfig, then the list that names both. Gives the list's file, if there is one.
    pub(super) fn step(&self, own: &Path) -> anyhow::Result<Option<PathBuf>> {
        let folders = &self.folders;
        if !folders.program().is_file() {
            folders.copy(own)?;
        }
        let read = |name: &str| {
            let path = self.account.join(name);
            std::fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        let text = chain::kubeconfig(&self.server, &STANDARD.encode(read("ca.crt")?), read("token")?.trim());
        let kubeconfig = folders.net_dir.join(KUBECONFIG);
        if std::fs::read_to_string(&kubeconfig).ok().as_ref() != Some(&text) {
            replace(&kubeconfig, 0o600, |file| file.write_all(text.as_bytes()))?;
        }
        let Some((file, list)) = folders.network()? else { return Ok(None) };
        let entry = chain::entry(&self.node_net_dir.join(KUBECONFIG), &self.exclude_namespaces);
        let wanted = chain::with(&list, &entry).map_err(|why| anyhow::anyhow!("{} {why}", file.display()))?;
        if wanted != list {
            write_list(&file, &wanted)?;
        }
        Ok(Some(file))
    }

    async fn standing(&self) -> Standing {
        let Some((namespace, name)) = &self.daemon_set else { return Standing::Gone };
        // As the plugin asks, which has to work as long as it stays.
        let kubeconfig = self.folders.net_dir.join(KUBECONFIG);
        let asked = async {
            let client = kubernetes::direct(&kubeconfig).await.map_err(|why| (None::<u16>, why))?;
            let path = format!("/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}");
            let request = http::Request::get(path)
                .body(Vec::new())
                .map_err(|error| (None::<u16>, error.to_string()))?;
            client.request::<Value>(request).await.map_err(|error| match &error {
                kube::Error::Api(status) => (Some(status.code), status.message.clone()),
                other => (None, other.to_string()),
            })
        };
        let late = || Err((None, format!("the API server did not answer within {} s", PATIENCE.as_secs())));
        chain::standing(tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| late()))
    }
}
