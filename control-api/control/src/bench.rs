//! `remora bench`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    command: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Compare Remora with Envoy, HAProxy and nginx, side by side on this machine
    #[command(after_help = "Examples:
  remora bench compare
  remora bench compare --only h1 --proxies haproxy,remora --rounds 1 --seconds 3

Runs benches/compare.sh of the checkout around the current folder; all arguments go to it.")]
    Compare {
        /// Arguments of benches/compare.sh
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

const SCRIPT: &str = "benches/compare.sh";

pub(crate) fn run(args: &BenchArgs) -> ExitCode {
    let Bench::Compare { args } = &args.command;
    let found = std::env::current_dir().ok().and_then(|folder| checkout(&folder));
    let Some(root) = found else {
        eprintln!("remora bench compare: there is no {SCRIPT} here or in a folder above.");
        eprintln!(
            "It builds the programs that it compares, so it needs the sources: clone the repository and run it there."
        );
        return ExitCode::FAILURE;
    };
    match std::process::Command::new(root.join(SCRIPT)).args(args).current_dir(&root).status() {
        Ok(status) => ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)),
        Err(error) => {
            eprintln!("remora bench compare: {}: {error}", root.join(SCRIPT).display());
            ExitCode::FAILURE
        }
    }
}

fn checkout(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().find(|f| f.join(SCRIPT).is_file()).map(Path::to_path_buf)
}
