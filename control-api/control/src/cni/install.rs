//! Brings the plugin to a node, keeps it there, and takes it away when its DaemonSet goes.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::Pin;
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
use super::end::{End, Next};
use super::folders::{Folders, KUBECONFIG, replace};
use super::rewrites::Rewrites;
use super::token::{Answer, Files, Token};

/// Between two questions for a token that was refused, and between two trials of the one that the plugin has: pods do not start meanwhile.
const PAUSE: Duration = Duration::from_secs(30);
/// The same in looks, where those are closer.
const LOOKS: u32 = 6;

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
    /// At the end, ask again so long while the API server refuses to say whether the DaemonSet stands; a kubelet waits 30 s, and a question may take 10
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = crate::run::time)]
    pub(super) decide_within: Duration,
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
    /// The list that was looked at once.
    network: Option<PathBuf>,
    /// Whether a file could not be written.
    failed: bool,
}

/// A question that the API server was asked, and that nothing else waits for.
#[derive(Default)]
struct Asked(Option<Pin<Box<dyn Future<Output = Answer>>>>);

impl Asked {
    /// Waits for ever where nothing was asked.
    async fn answer(&mut self) -> Answer {
        let Some(asked) = &mut self.0 else { return std::future::pending().await };
        let answer = asked.await;
        self.0 = None;
        answer
    }
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
    let (mut said, mut seen, mut asked) = (String::new(), Seen::default(), Asked::default());
    loop {
        seen.failed = false;
        // What is wrong may be repaired by others: a list of another version, a token that is being replaced.
        let state = match args.look(&own, &mut seen) {
            Ok(state) => state,
            Err(why) => format!("not in place: {why:#}; trying again"),
        };
        if state != said {
            eprintln!("remora cni install: {state}");
            said = state;
        }
        let looked = Instant::now();
        args.ask(&seen.token, &mut asked, looked);
        // Who takes the plugin out each time does not get an answer to each. What cannot be written is itself a change of the folder.
        let contested = seen.rewrites.are_many(looked);
        let mut longest = if contested { args.every.min(CONTESTED) } else { args.every };
        if let Some(wakes) = seen.token.wakes().filter(|_| asked.0.is_none()) {
            longest = longest.min(wakes.saturating_duration_since(looked));
        }
        tokio::select! {
            () = tokio::time::sleep(longest) => {}
            () = changes.next(looked), if !contested && !seen.failed => {}
            answer = asked.answer() => seen.token.answered(answer, Instant::now(), args.pause()),
            _ = term.recv() => break,
            _ = int.recv() => break,
        }
    }
    // A question that is under way has a connection that nobody would serve any more.
    drop(asked);
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
    /// Writes what is missing or has changed: program, kubeconfig, then the list that names both. Says what there is now. It waits for nobody:
    /// a pod that is made before the plugin is in the list does not recover.
    fn look(&self, own: &Path, seen: &mut Seen) -> anyhow::Result<String> {
        let folders = &self.folders;
        if !folders.program().is_file() {
            folders.copy(own)?;
        }
        self.kubeconfig(seen)?;
        let Some(network) = folders.network()? else {
            return Ok(format!("no network in {} yet; waiting", folders.net_dir.display()));
        };
        let named = network.file.display();
        let entry = chain::entry(&self.node_net_dir.join(KUBECONFIG), &self.exclude_namespaces);
        let wanted = chain::with(&network.list, &entry).map_err(|why| anyhow::anyhow!("{named} {why}"))?;
        // In an update two installers are here, and may want different entries: each writes its own once.
        let known = seen.network.as_ref() == Some(&network.file) && chain::is_last(&network.list);
        if wanted != network.list && !known {
            let written = network.write(&wanted);
            seen.failed = written.is_err();
            ensure!(written?, "{named} is being written by somebody else");
            seen.rewrites.add(Instant::now());
        }
        let mut state = format!("in place: {named}");
        seen.network = Some(network.file);
        if seen.rewrites.are_many(Instant::now()) {
            state += ", but something takes the plugin out of it again and again, and pods that are made meanwhile do not start: \
                      Cilium does so unless its value cni.exclusive is false";
        }
        if let Some(why) = seen.token.wrong() {
            state += &format!(", but {why}; trying again");
        }
        Ok(state)
    }

    /// Writes the kubeconfig where it is missing or has changed, or its token is no good, and where there is another one.
    fn kubeconfig(&self, seen: &mut Seen) -> anyhow::Result<()> {
        let path = self.folders.net_dir.join(KUBECONFIG);
        let authority = self.authority()?;
        let with = |token: &str| chain::kubeconfig(&self.server, &authority, token);
        let own = with(self.read("token")?.trim());
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        let wanted = match self.service_account {
            None => Some(own).filter(|own| *own != found),
            Some(_) => seen.token.wanted(Files {
                granted: seen.token.granted().map(with),
                fits: chain::is_for(&found, &self.server, &authority),
                own,
                found,
            }),
        };
        if let Some(text) = wanted {
            let written = replace(&path, 0o600, |file| file.write_all(text.as_bytes()));
            seen.failed = written.is_err();
            written?;
            seen.token.wrote(text);
        }
        Ok(())
    }

    /// Asks what is due, one question at a time.
    fn ask(&self, token: &Token, asked: &mut Asked, now: Instant) {
        let Some(whose) = self.service_account.as_ref().filter(|_| asked.0.is_none()) else { return };
        if let Some(question) = token.due(now) {
            asked.0 = Some(Box::pin(account::ask(question, whose.clone())));
        }
    }

    /// Until the API server is asked again.
    fn pause(&self) -> Duration {
        PAUSE.min(self.every.saturating_mul(LOOKS))
    }

    fn read(&self, name: &str) -> anyhow::Result<String> {
        let path = self.account.join(name);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    fn authority(&self) -> anyhow::Result<String> {
        Ok(STANDARD.encode(self.read("ca.crt")?))
    }

    /// Whether another installer comes.
    async fn standing(&self) -> Standing {
        let Some(daemon_set) = &self.daemon_set else { return Standing::Gone };
        let mut end = End::new(Instant::now(), self.decide_within);
        let mut told = false;
        loop {
            let said = self.asked(daemon_set).await;
            if let Err(why) = &said
                && !std::mem::replace(&mut told, true)
            {
                eprintln!(
                    "remora cni install: the API server refuses to say whether the DaemonSet stands: {why}; asking again"
                );
            }
            match end.heard(said, Instant::now()) {
                Next::Decided(standing) => return standing,
                Next::Again(at) => tokio::time::sleep_until(at).await,
            }
        }
    }

    async fn asked(&self, daemon_set: &Named) -> Result<Standing, String> {
        let own = self.authority().and_then(|authority| {
            Ok(chain::kubeconfig(&self.server, &authority, self.read("token")?.trim()))
        });
        match own {
            Ok(own) => account::standing(&self.folders.net_dir.join(KUBECONFIG), &own, daemon_set).await,
            Err(why) => Ok(Standing::Unknown(format!("{why:#}"))),
        }
    }
}
