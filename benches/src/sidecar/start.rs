//! How soon a sidecar of a large mesh is ready.

use anyhow::Context as _;
use tokio::time::{Instant, sleep};

use super::mesh::{self, Mesh};
use super::report::{Number, Target};
use super::{Plan, bootstrap, ms};
use crate::compare::spawn::Running;

pub(super) const READY: Target = Target { what: "start in the mesh: ready, after", unit: "ms", limit: 100.0 };

/// Starts one sidecar after the other. One that is not counted goes first: for it the control plane compiles.
pub(super) async fn measure(
    plan: &Plan,
    mesh: &mut Mesh,
    progress: &mut dyn FnMut(&str),
    numbers: &mut Vec<Number>,
) -> anyhow::Result<()> {
    let (mut times, mut resources) = (Vec::new(), 0.0);
    for run in 0..=plan.starts {
        progress(&format!("start {run}/{}", plan.starts));
        let (running, took) = sidecar(plan, mesh).await?;
        if run > 0 {
            times.push(took);
        }
        resources = synced(mesh).await?;
        running.stop().await?;
    }
    numbers.push(Number::median("", "", times).at_most(&READY));
    numbers.push(Number::new("start in the mesh: resources in force", "", resources));
    Ok(())
}

/// A sidecar that has never run before; the milliseconds until it was ready.
pub(super) async fn sidecar(plan: &Plan, mesh: &Mesh) -> anyhow::Result<(Running, f64)> {
    let arguments = mesh.arguments(&mesh.bootstrap(), &[])?;
    let log = plan.folder.join("sidecar.log");
    let started = mesh::start(&plan.proxy, &arguments, bootstrap::ADMIN, log).await;
    let (running, took) = started.context("the sidecar")?;
    Ok((running, ms(took)))
}

/// Waits until the control plane knows that its sidecar has everything; gives the number of resources.
pub(super) async fn synced(mesh: &mut Mesh) -> anyhow::Result<f64> {
    let end = Instant::now() + super::PATIENCE;
    loop {
        match mesh.in_force().await {
            Ok(resources) => return Ok(resources),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => sleep(super::LOOK).await,
        }
    }
}
