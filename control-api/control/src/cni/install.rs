//! Puts the plugin on a node and takes it away. Every file is written beside, and renamed.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::Value;
use tempfile::NamedTempFile;
use tokio::signal::unix::{SignalKind, signal};

use super::NAME;
use super::chain::{self, Standing};
use crate::kubernetes;

/// The file by which the plugin asks the API server. Not a name that runtimes read.
const KUBECONFIG: &str = "remora-cni.kubeconfig";
/// For the API server, at the end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the node's files are, as seen from here.
#[derive(Debug, Clone, Args)]
pub(super) struct Folders {
    /// Where container runtimes look for plugins
    #[arg(long, value_name = "FOLDER", default_value = "/host/opt/cni/bin")]
    pub(super) bin_dir: PathBuf,
    /// Where they look for configurations
    #[arg(long, value_name = "FOLDER", default_value = "/host/etc/cni/net.d")]
    pub(super) net_dir: PathBuf,
}

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

impl Folders {
    fn program(&self) -> PathBuf {
        self.bin_dir.join(NAME)
    }

    fn copy(&self, own: &Path) -> anyhow::Result<()> {
        replace(&self.program(), 0o755, |file| std::io::copy(&mut std::fs::File::open(own)?, file).map(drop))
    }

    /// The list that is in force: runtimes take the first file by name that they can read.
    ///
    /// # Errors
    /// The folder cannot be read, or the first file has one plugin alone.
    fn network(&self) -> anyhow::Result<Option<(PathBuf, Value)>> {
        let at = |path: &Path| path.display().to_string();
        let mut files = Vec::new();
        for found in std::fs::read_dir(&self.net_dir).with_context(|| at(&self.net_dir))? {
            let path = found.with_context(|| at(&self.net_dir))?.path();
            if matches!(path.extension().and_then(|name| name.to_str()), Some("conf" | "conflist" | "json")) {
                files.push(path);
            }
        }
        files.sort();
        for path in files {
            // One that is being written, or is gone, is looked at again soon; one that is broken is passed over by runtimes, too.
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let Ok(value) = serde_json::from_str::<Value>(&text) else { continue };
            if value["plugins"].is_array() {
                return Ok(Some((path, value)));
            }
            if value["type"].is_string() {
                bail!(
                    "{} has one plugin, which no other can be chained to: make it a *.conflist with plugins",
                    at(&path)
                );
            }
        }
        Ok(None)
    }

    /// Exit status 0 when the program is there and the list in force has the plugin, 1 when not.
    pub(super) fn installed(&self) -> anyhow::Result<u8> {
        if !self.program().is_file() {
            bail!("{} is not there", self.program().display());
        }
        match self.network()? {
            Some((_, list)) if chain::has(&list) => Ok(0),
            Some((file, _)) => bail!("{} does not have the plugin", file.display()),
            None => bail!("there is no network in {}", self.net_dir.display()),
        }
    }

    /// Takes it out of every list, then removes the program and the kubeconfig. What is not there is no mistake.
    pub(super) fn uninstall(&self) -> anyhow::Result<u8> {
        for found in std::fs::read_dir(&self.net_dir).with_context(|| self.net_dir.display().to_string())? {
            let path = found?.path();
            if path.extension().is_none_or(|name| name != "conflist") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let without = serde_json::from_str::<Value>(&text).ok().and_then(|list| chain::without(&list));
            if let Some(list) = without {
                write_list(&path, &list)?;
                eprintln!("remora cni: taken out of {}", path.display());
            }
        }
        for path in [self.program(), self.net_dir.join(KUBECONFIG)] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| path.display().to_string());
                }
                _ => {}
            }
        }
        Ok(0)
    }
}

fn write_list(path: &Path, list: &Value) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(list)?;
    let mode = std::fs::metadata(path).map_or(0o644, |found| found.permissions().mode() & 0o777);
    replace(path, mode, |file| writeln!(file, "{text}"))
}

/// Whoever reads `path` finds what was there, or all of what `write` writes.
fn replace(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut std::fs::File) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let named = || path.display().to_string();
    let folder = path.parent().context("a file has a folder").with_context(named)?;
    let mut beside = NamedTempFile::with_prefix_in(".remora-cni-", folder).with_context(named)?;
    write(beside.as_file_mut()).with_context(named)?;
    let file = beside.as_file();
    file.set_permissions(std::fs::Permissions::from_mode(mode)).with_context(named)?;
    file.sync_all().with_context(named)?;
    beside.persist(path).with_context(named)?;
    Ok(())
}
