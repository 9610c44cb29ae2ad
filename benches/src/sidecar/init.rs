//! How long `remora init` takes in a namespace that has no rules yet.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::process::Command;
use tokio::time::{Instant, timeout};

use super::netns::Namespace;
use super::report::{Number, Target};
use super::{Plan, ms};

/// The most that a run may take.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) const TARGET: Target =
    Target { what: "init: rules applied and proven, in", unit: "ms", limit: 50.0 };

/// Runs it in one fresh namespace after the other.
pub(super) async fn measure(
    plan: &Plan,
    progress: &mut dyn FnMut(&str),
    numbers: &mut Vec<Number>,
) -> anyhow::Result<()> {
    let (mut applied, mut shown) = (Vec::new(), Vec::new());
    for run in 1..=plan.init_runs {
        progress(&format!("init {run}/{}", plan.init_runs));
        let namespace = Namespace::new("init")?;
        let _inside = namespace.enter()?;
        shown.push(remora_init(plan, &["--dry-run"]).await?.0);
        let (took, said) = remora_init(plan, &[]).await?;
        ensure!(said.contains("was redirected"), "remora init has proven nothing: {said}");
        applied.push(took);
    }
    numbers.push(Number::median("", "", applied).at_most(&TARGET));
    numbers.push(Number::median("init --dry-run, in", "ms", shown));
    Ok(())
}

/// Runs `remora init`; gives the milliseconds from its start to its end, and what it printed.
pub(super) async fn remora_init(plan: &Plan, arguments: &[&str]) -> anyhow::Result<(f64, String)> {
    let mut command = Command::new(&plan.remora);
    command.arg("init").args(arguments).kill_on_drop(true);
    let began = Instant::now();
    let output = timeout(PATIENCE, command.output()).await.context("remora init does not end")?;
    let took = ms(began.elapsed());
    let output = output.context("remora init")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "remora init {}: {error}", arguments.join(" "));
    Ok((took, String::from_utf8_lossy(&output.stdout).into_owned()))
}
