//! `remora ready`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use http::Method;
use tokio::time::{Instant, sleep};

use super::run;
use crate::client::Server;
use crate::run::time;

/// Between two questions.
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  remora ready                    is the sidecar of this pod or machine ready?
  remora ready --for 60s          wait for it: listeners, first configuration and certificate
  remora ready --admin 127.0.0.1:15000

Exit status: 0 when it is ready, 1 when it is not in time, 2 for wrong arguments.")]
pub(crate) struct ReadyArgs {
    /// Admin page of the proxy
    #[arg(long, value_name = "HOST:PORT", env = "REMORA_ADMIN", default_value = "127.0.0.1:15000")]
    admin: String,
    /// How long to wait
    #[arg(long = "for", value_name = "TIME", default_value = "0s", value_parser = time)]
    patience: Duration,
}

pub(crate) fn ready(args: &ReadyArgs) -> ExitCode {
    run("ready", 1, async {
        let proxy = Server::proxy(&args.admin)?;
        let deadline = Instant::now() + args.patience;
        loop {
            let why = match proxy.ask(Method::GET, "/ready", None).await {
                Ok(answer) if answer.status.is_success() => return Ok(0),
                Ok(answer) => format!("/ready answers {}", answer.status),
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() >= deadline {
                bail!("not ready: {why}");
            }
            sleep(POLL).await;
        }
    })
}
