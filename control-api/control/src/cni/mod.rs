//! The CNI plugin (`remora-cni`): the rules of `remora init` for pods, made on the node
//! ([0022](../../../../docs/decisions/0022-cni.md)); and what brings it there.
//!
//! `environment`, `config`, `pod`, `chain`, `rewrites`, `token`, `end` and `failure` are pure; `plugin` does what a runtime asks, `install` what a
//! DaemonSet does, with the files in `folders` and what `account` asks.

mod account;
mod chain;
mod config;
mod end;
mod environment;
mod failure;
mod folders;
mod install;
mod plugin;
mod pod;
mod rewrites;
#[cfg(test)]
mod tests;
mod token;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::commands;

/// Name of the program in the runtime's folder, and `type` in its configuration.
const NAME: &str = "remora-cni";

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  remora cni                        what a container runtime calls as remora-cni: CNI_COMMAND and the configuration on standard input
  remora cni install --daemon-set remora-system/remora-cni --service-account remora-system/remora-cni
                                    in a DaemonSet: put it on the node, and keep it there
  remora cni installed              whether it is there
  remora cni uninstall              take it away by hand

Without a subcommand: exit status 0, or 1 with an error of the CNI specification on standard output. With one: 0, 1 when it cannot,
2 for wrong arguments.")]
pub(crate) struct CniArgs {
    #[command(subcommand)]
    command: Option<CniCommand>,
}

#[derive(Debug, Subcommand)]
enum CniCommand {
    /// Put the plugin on this node, and keep it there until SIGTERM
    Install(Box<install::InstallArgs>),
    /// Whether the plugin is on this node: program and configuration
    Installed(folders::Folders),
    /// Take the plugin away from this node; its program stays for the end of pods that are there
    Uninstall(folders::UninstallArgs),
}

/// Whether this process was called by the plugin's name.
pub(crate) fn is_called(program: Option<&OsStr>) -> bool {
    program.is_some_and(|path| Path::new(path).file_name() == Some(OsStr::new(NAME)))
}

/// Does what a container runtime asks.
pub(crate) fn plugin() -> ExitCode {
    plugin::main()
}

/// The arguments of `remora init` that the plugin makes of what the injector wrote. None: it leaves the pod alone.
///
/// # Errors
/// What it says when it does not take them.
#[cfg(test)]
pub(crate) fn arguments_for(pod: &serde_json::Value) -> Result<Option<Vec<String>>, String> {
    match pod::decide(pod, None).map_err(|failure| failure.to_string())? {
        pod::Decision::Rules(arguments) => Ok(Some(arguments)),
        pod::Decision::Leave(_) => Ok(None),
    }
}

pub(crate) fn run(args: CniArgs) -> ExitCode {
    match args.command {
        None => plugin(),
        Some(CniCommand::Install(args)) => commands::run("cni install", 1, install::install(*args)),
        Some(CniCommand::Installed(folders)) => {
            commands::run("cni installed", 1, async move { folders.installed() })
        }
        Some(CniCommand::Uninstall(args)) => {
            commands::run("cni uninstall", 1, async move { args.folders.uninstall(args.program) })
        }
    }
}
