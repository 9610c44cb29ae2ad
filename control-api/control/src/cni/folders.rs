//! The node's files: the plugin's program and kubeconfig, and the list that names them. Every file is written beside, and renamed.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;
use tempfile::NamedTempFile;

use super::NAME;
use super::chain;

/// The file by which the plugin asks the API server. Not a name that runtimes read.
pub(super) const KUBECONFIG: &str = "remora-cni.kubeconfig";

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

/// A list of plugins, as it was read.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) file: PathBuf,
    text: String,
    pub(super) list: Value,
}

#[derive(Debug, Args)]
pub(super) struct UninstallArgs {
    #[command(flatten)]
    pub(super) folders: Folders,
    /// Remove the program, too: only when the pods that were made with it have ended, for some runtimes call it then
    #[arg(long)]
    pub(super) program: bool,
}

impl Folders {
    pub(super) fn program(&self) -> PathBuf {
        self.bin_dir.join(NAME)
    }

    pub(super) fn copy(&self, own: &Path) -> anyhow::Result<()> {
        replace(&self.program(), 0o755, |file| std::io::copy(&mut std::fs::File::open(own)?, file).map(drop))
    }

    /// The list that is in force: runtimes take the first file by name that they can read.
    ///
    /// # Errors
    /// The folder cannot be read, or the first file has one plugin alone.
    pub(super) fn network(&self) -> anyhow::Result<Option<Network>> {
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
            // One that is being written, or is gone, is looked at again soon. One that is broken, or has what belongs in the other kind of
            // file, CRI-O passes over; containerd has no network then, and nothing to be chained to.
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let Ok(value) = serde_json::from_str::<Value>(&text) else { continue };
            let is_list = path.extension().is_some_and(|name| name == "conflist");
            if is_list && value["plugins"].is_array() {
                return Ok(Some(Network { file: path, text, list: value }));
            }
            if !is_list && value["type"].is_string() {
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
            Some(network) if chain::has(&network.list) => Ok(0),
            Some(network) => bail!("{} does not have the plugin", network.file.display()),
            None => bail!("there is no network in {}", self.net_dir.display()),
        }
    }

    /// Takes it out of every list, then removes the kubeconfig, and the program if that is wanted, too: CRI-O keeps the list of a pod until its
    /// end, and calls what that names (DEL, which needs nothing else). What is not there is no mistake.
    pub(super) fn uninstall(&self, program: bool) -> anyhow::Result<u8> {
        for found in std::fs::read_dir(&self.net_dir).with_context(|| self.net_dir.display().to_string())? {
            let file = found?.path();
            if file.extension().is_some_and(|name| name == "conflist") {
                // Until nobody else wrote it meanwhile.
                while !taken_out(&file)? {}
            }
        }
        let program = program.then(|| self.program());
        for path in program.into_iter().chain([self.net_dir.join(KUBECONFIG)]) {
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

/// Whether the plugin is not in this file now. False: somebody else wrote it at this moment.
fn taken_out(file: &Path) -> anyhow::Result<bool> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let Ok(list) = serde_json::from_str::<Value>(&text) else { return Ok(true) };
    let Some(without) = chain::without(&list) else { return Ok(true) };
    let done = Network { file: file.to_owned(), text, list }.write(&without)?;
    if done {
        eprintln!("remora cni: taken out of {}", file.display());
    }
    Ok(done)
}

impl Network {
    /// Writes `list` instead of what was read, and gives true; false, when the file has something else by now: whoever wrote that would lose it.
    pub(super) fn write(&self, list: &Value) -> anyhow::Result<bool> {
        let text = serde_json::to_string_pretty(list)?;
        let mode = std::fs::metadata(&self.file).map_or(0o644, |found| found.permissions().mode() & 0o777);
        let beside = beside(&self.file, mode, |file| writeln!(file, "{text}"))?;
        if std::fs::read_to_string(&self.file).ok().as_ref() != Some(&self.text) {
            return Ok(false);
        }
        beside.persist(&self.file).with_context(|| self.file.display().to_string())?;
        Ok(true)
    }
}

/// Whoever reads `path` finds what was there, or all of what `write` writes.
pub(super) fn replace(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut std::fs::File) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    beside(path, mode, write)?.persist(path).with_context(|| path.display().to_string())?;
    Ok(())
}

/// What is to be at `path`, on the disk under another name. It is removed when dropped.
fn beside(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut std::fs::File) -> std::io::Result<()>,
) -> anyhow::Result<NamedTempFile> {
    let named = || path.display().to_string();
    let folder = path.parent().context("a file has a folder").with_context(named)?;
    let mut beside = NamedTempFile::with_prefix_in(".remora-cni-", folder).with_context(named)?;
    write(beside.as_file_mut()).with_context(named)?;
    let file = beside.as_file();
    file.set_permissions(std::fs::Permissions::from_mode(mode)).with_context(named)?;
    file.sync_all().with_context(named)?;
    Ok(beside)
}
