//! Commands that ask a control plane, with kubectl's habits, and `why`, which asks a proxy.

mod apply;
mod certs;
mod delete;
mod diff;
mod files;
mod get;
mod ready;
mod status;
mod table;
mod token;
mod wait;
mod why;

use std::future::Future;
use std::process::ExitCode;

use clap::Args;

use crate::client::Server;

pub(crate) use apply::{ApplyArgs, apply};
pub(crate) use certs::{CertsArgs, certs};
pub(crate) use delete::{DeleteArgs, delete};
pub(crate) use diff::{DiffArgs, diff};
pub(crate) use files::FileArgs;
pub(crate) use get::{GetArgs, get};
pub(crate) use ready::{ReadyArgs, ready};
pub(crate) use status::{StatusArgs, status};
pub(crate) use token::{TokenArgs, token};
pub(crate) use why::{WhyArgs, why};

/// Where the control plane is.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerArgs {
    /// REST address of the control plane
    #[arg(
        long,
        value_name = "URL",
        env = "REMORA_SERVER",
        default_value = "http://127.0.0.1:15014",
        global = true
    )]
    pub(crate) server: String,
}

impl ServerArgs {
    pub(crate) fn open(&self) -> anyhow::Result<Server> {
        Server::at(&self.server)
    }
}

/// Whether anything is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DryRun {
    /// It is.
    None,
    /// The control plane does everything but write.
    Server,
}

impl DryRun {
    /// What comes behind a line about a document.
    const fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Server => " (server dry run)",
        }
    }
}

/// Runs a command. `failed` is the exit status of an error.
pub(crate) fn run(name: &str, failed: u8, command: impl Future<Output = anyhow::Result<u8>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("remora {name}: {error}");
            return ExitCode::from(failed);
        }
    };
    match runtime.block_on(command) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            match error.downcast_ref::<crate::client::Refused>() {
                Some(refused) => eprintln!("{refused}"),
                None => eprintln!("remora {name}: {error:#}"),
            }
            ExitCode::from(failed)
        }
    }
}

/// The query of a request that writes, with those of `flags` that are set.
fn query(dry_run: DryRun, flags: &[(&str, bool)]) -> String {
    let dry_run = (dry_run == DryRun::Server).then(|| "dryRun=All".to_owned());
    let set = flags.iter().filter(|(_, set)| *set).map(|(name, _)| format!("{name}=true"));
    let all: Vec<_> = dry_run.into_iter().chain(set).collect();
    if all.is_empty() { String::new() } else { format!("?{}", all.join("&")) }
}
