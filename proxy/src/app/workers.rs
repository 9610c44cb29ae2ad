//! The threads that serve connections.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Options, Shared, StartError};
use crate::drain::Drain;
use crate::telemetry::access_log::{LogControl, LogWriter};
use crate::worker::Worker;
use crate::worker::drain::LocalDrain;
use crate::worker::run::{self as worker_run, Command};
use crate::worker::telemetry::WorkerTelemetry;

type Started = (mpsc::Sender<Command>, std::thread::JoinHandle<()>);

/// A thread for each CPU that is granted, or as many as the command line says.
pub(super) fn start(
    options: &Options,
    shared: &Arc<Shared>,
    logs: &LogWriter,
    drain: &Drain,
) -> Result<Vec<Started>, StartError> {
    // The cgroup's quota counts, not the host's CPUs.
    let granted = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let count = options.concurrency.unwrap_or(granted).max(1);
    let failed = |e: std::io::Error| StartError::Resource("worker thread".into(), e.to_string());
    (0..count)
        .map(|id| {
            let (send, commands) = mpsc::channel(64);
            let (shared, control, drain) = (Arc::clone(shared), logs.control(), drain.clone());
            let thread = std::thread::Builder::new()
                .name(format!("worker-{id}"))
                .spawn(move || worker_thread(id, &shared, &control, &drain, commands))
                .map_err(failed)?;
            Ok((send, thread))
        })
        .collect()
}

fn worker_thread(
    id: usize,
    shared: &Arc<Shared>,
    logs: &LogControl,
    drain: &Drain,
    commands: mpsc::Receiver<Command>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
    match runtime {
        Ok(runtime) => runtime.block_on(async {
            let metrics = WorkerTelemetry::new(shared.registry.worker(), &shared.settings.workload);
            let (logs, stories) = (logs.worker(fastrand::Rng::new()), shared.stories.worker());
            let drain = LocalDrain::new(drain.counts(), shared.options.drain_time);
            let worker = Worker::new(id, Arc::clone(&shared.config), metrics, logs, stories, drain);
            worker_run::run(worker, commands).await;
        }),
        Err(error) => tracing::error!(worker = id, %error, "no runtime"),
    }
}
