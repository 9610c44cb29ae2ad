//! `remora demo`: a mesh on one machine. Two services with two instances each and their visitors, a sidecar process beside every
//! one of them, mTLS between the sidecars, an instance that misbehaves, a route that is edited while everything runs.

mod apps;
mod client;
mod metrics;
mod play;
mod report;
mod screen;
mod sidecar;
mod stage;
mod streams;
mod visitors;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use remora_mesh::Span;

#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  remora demo              until Ctrl-C
  remora demo --for 20s    ends by itself, with a report
  remora demo --for 20s | cat

Exit status: 0 when every check of the report held, 1 when one did not or the demo could not start.")]
pub(crate) struct DemoArgs {
    /// End after this time with a report, such as 20s or 1m
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    duration: Option<Duration>,
    /// Requests per second
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=2000))]
    rate: u32,
    /// Lines instead of a table that is drawn anew, also on a terminal
    #[arg(long)]
    plain: bool,
}

fn time(text: &str) -> Result<Duration, String> {
    match Span::parse(text) {
        Some(Span(time)) if time >= Duration::from_secs(4) => Ok(time),
        Some(_) => Err("the demo needs 4s to show anything".into()),
        None => Err("write it as 20s, 1m30s or 500ms".into()),
    }
}

pub(crate) fn run(args: &DemoArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("remora demo: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(play::play(args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("remora demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
