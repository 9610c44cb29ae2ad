//! Brings the plugin to a node, keeps it there, and takes it away when its DaemonSet goes.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use remora_proxy::config::source::file::FileWatcher;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::account::{self, Named};
use super::chain::{self, Standing};
use super::folders::{Folders, KUBECONFIG, replace};
use super::rewrites::Rewrites;

/// Tokens in the life of one: most of it is left when no installer comes any more.
const RENEWALS: u32 = 4;
/// Looks between two questions for a token that was refused.
const PAUSE: u32 = 6;

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
    /// The name of that account: the plugin gets a token of it that is bound to no pod; without, the one of the folder
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = named)]
    pub(super) service_account: Option<Named>,
    /// Namespaces whose pods are left alone, whatever the API server would say
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        default_value = "kube-system,kube-public,kube-node-lease,remora-system"
    )]
    pub(super) exclude_namespaces: Vec<String>,
    /// At the end, leave everything in place while this DaemonSet stands; without, everything is taken away
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = named)]
    pub(super) daemon_set: Option<Named>,
    /// How often to look whether everything is still there, besides when the folder of configurations changes
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = crate::run::time)]
    pub(super) every: Duration,
}

/// Between two looks where something else takes the plugin out each time; often enough that it is still noticed.
const CONTESTED: Duration = Duration::from_secs(5);
/// Between two looks, whatever changes.
const PACE: Duration = Duration::from_millis(200);

/// Changes in the folder of configurations: a pod that is made before the plugin is in the list does not recover.
#[derive(Debug)]
struct Changes(Option<FileWatcher>);

impl Changes {
    /// Where they cannot be seen there are none, and looking every now and then has to do.
    fn of(folder: &Path) -> Self {
        let mut watcher = FileWatcher::new().ok();
        if let Some(watcher) = &mut watcher {
            watcher.watch(&BTreeSet::new(), BTreeSet::from([folder.to_path_buf()]));
        }
        Self(watcher)
    }

    /// Waits for the next one, and for [`PACE`] since it was `looked`.
    async fn next(&mut self, looked: Instant) {
        let Some(watcher) = &mut self.0 else { return std::future::pending().await };
        watcher.changed().await;
        tokio::time::sleep_until(looked + PACE).await;
    }
}

/// What is known from one look to the next.
#[derive(Debug, Default)]
struct Seen {
    token: Token,
    rewrites: Rewrites,
}

/// The token in the kubeconfig, where the plugin is to have one of its own.
#[derive(Debug, Default)]
struct Token {
    /// When the next one is asked for. None: now.
    next: Option<Instant>,
    /// Why there is none, if so.
    missing: Option<String>,
    /// The kubeconfig with the installer's own, if that was written meanwhile.
    lent: Option<String>,
}

/// The API server's address that every pod knows.
fn server() -> String {
    let get = |name: &str| std::env::var(name).ok();
    let host = get("KUBERNETES_SERVICE_HOST").unwrap_or_else(|| "kubernetes.default.svc".into());
    let port = get("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".into());
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    format!("https://{host}:{port}")
}

fn named(text: &str) -> Result<Named, String> {
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
    let mut changes = Changes::of(&args.folders.net_dir);
    let (mut said, mut seen) = (String::new(), Seen::default());
    loop {
        // What is wrong may be repaired by others: a list of another version, a token that is being replaced.
        let state = match args.look(&own, &mut seen).await {
            Ok(state) => state,
            Err(why) => format!("not in place: {why:#}; trying again"),
        };
        if state != said {
            eprintln!("remora cni install: {state}");
            said = state;
        }
        // Who takes the plugin out each time does not get an answer to each.
        let looked = Instant::now();
        let contested = seen.rewrites.are_many(looked);
        let longest = if contested { args.every.min(CONTESTED) } else { args.every };
        tokio::select! {
            () = tokio::time::sleep(longest) => {}
            () = changes.next(looked), if !contested => {}
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
            let _status = args.folders.uninstall(false)?;
        }
    }
    Ok(0)
}

impl InstallArgs {
    /// Writes what is missing or has changed: program, kubeconfig, then the list that names both. Says what there is now.
    async fn look(&self, own: &Path, seen: &mut Seen) -> anyhow::Result<String> {
        let folders = &self.folders;
        if !folders.program().is_file() {
            folders.copy(own)?;
        }
        self.kubeconfig(&mut seen.token).await?;
        let Some(network) = folders.network()? else {
            return Ok(format!("no network in {} yet; waiting", folders.net_dir.display()));
        };
        let named = network.file.display();
        let entry = chain::entry(&self.node_net_dir.join(KUBECONFIG), &self.exclude_namespaces);
        let wanted = chain::with(&network.list, &entry).map_err(|why| anyhow::anyhow!("{named} {why}"))?;
        if wanted != network.list {
            ensure!(network.write(&wanted)?, "{named} is being written by somebody else");
            seen.rewrites.add(Instant::now());
        }
        let mut state = format!("in place: {named}");
        if seen.rewrites.are_many(Instant::now()) {
            state += ", but something takes the plugin out of it again and again, and pods that are made meanwhile do not start: \
                      Cilium does so unless its value cni.exclusive is false";
        }
        if let Some(why) = &seen.token.missing {
            state += &format!(", but {why}; trying again");
        }
        Ok(state)
    }

    /// Writes the kubeconfig where it is missing or has changed, and when another token is due.
    async fn kubeconfig(&self, token: &mut Token) -> anyhow::Result<()> {
        let path = self.folders.net_dir.join(KUBECONFIG);
        let write = |text: &str| replace(&path, 0o600, |file| file.write_all(text.as_bytes()));
        let read = |name: &str| {
            let path = self.account.join(name);
            std::fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        let authority = STANDARD.encode(read("ca.crt")?);
        let own = chain::kubeconfig(&self.server, &authority, read("token")?.trim());
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        let Some(whose) = &self.service_account else {
            return if found == own { Ok(()) } else { write(&own) };
        };
        // Another token is no reason to write: while the DaemonSet is updated, two installers are here, each with its own.
        let fits = chain::is_for(&found, &self.server, &authority);
        let now = Instant::now();
        if !fits || token.next.is_none_or(|next| next <= now) {
            match account::token(&own, whose).await {
                Ok((text, life)) => {
                    write(&chain::kubeconfig(&self.server, &authority, &text))?;
                    *token = Token { next: Some(now + life / RENEWALS), ..Token::default() };
                    return Ok(());
                }
                Err(why) => {
                    token.next = now.checked_add(self.every.saturating_mul(PAUSE));
                    token.missing = Some(format!("without a new token of {}/{}: {why}", whose.0, whose.1));
                }
            }
        }
        // What is there may be good for a while. Where nothing is, the installer's own will do, which is good as long as its pod is here; it is
        // followed, but not put in the place of what another installer got meanwhile.
        if (!fits || token.lent.as_ref() == Some(&found)) && found != own {
            write(&own)?;
            token.lent = Some(own);
        }
        Ok(())
    }

    async fn standing(&self) -> Standing {
        let Some(daemon_set) = &self.daemon_set else { return Standing::Gone };
        account::standing(&self.folders.net_dir.join(KUBECONFIG), daemon_set).await
    }
}
