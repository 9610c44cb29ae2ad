//! A worker's thread: starts the runtime, obeys commands, ends when its connections have.

use std::collections::HashMap;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Worker;
use super::timer::Ticker;
use crate::listener::accept;

/// What the control runtime tells a worker.
#[derive(Debug)]
pub enum Command {
    /// Accept on this socket for the listener of this name.
    Listen(Arc<str>, TcpListener),
    /// Stop accepting for the listener; its connections go on.
    Close(Arc<str>),
    /// Pools, cursors and labels follow the newest configuration; policy judges again what is open.
    Changed,
    /// Certificates were revoked: open connections are judged again.
    Revoked,
    /// Finish what is running and take nothing new: answers carry `Connection: close` or GOAWAY. Listeners stay open.
    Drain,
    /// Stop accepting for all listeners.
    CloseAll,
    /// End now, whatever is still open.
    Exit,
}

/// Obeys `commands` until [`Command::Exit`] or the sender is gone.
pub async fn run(worker: Rc<Worker>, mut commands: mpsc::Receiver<Command>) {
    let mut listeners: HashMap<Arc<str>, Vec<watch::Sender<bool>>> = HashMap::new();
    let logs = worker.logs().clone();
    tokio::task::spawn_local(async move { logs.run_flusher().await });
    let lag = Arc::clone(&worker.lag);
    tokio::task::spawn_local(Ticker::install().run(move |late| lag.note(late)));
    while let Some(command) = commands.recv().await {
        match command {
            Command::Listen(name, socket) => match tokio::net::TcpListener::from_std(socket) {
                Ok(socket) => {
                    let (stop, stopped) = watch::channel(false);
                    listeners.entry(Arc::clone(&name)).or_default().push(stop);
                    tokio::task::spawn_local(accept::run(Rc::clone(&worker), socket, name, stopped));
                }
                Err(error) => tracing::error!(listener = &*name, %error, "cannot listen"),
            },
            Command::Close(name) => stop_all(listeners.remove(&name).into_iter().flatten()),
            Command::CloseAll => stop_all(listeners.drain().flat_map(|(_, stops)| stops)),
            Command::Changed => {
                worker.prune();
                worker.metrics.forget_labels();
                worker.announce_changes();
            }
            Command::Revoked => worker.changes.announce(),
            Command::Drain => worker.drain.start(Instant::now()),
            Command::Exit => break,
        }
    }
    worker.logs().flush_all();
}

fn stop_all(stops: impl Iterator<Item = watch::Sender<bool>>) {
    for stop in stops {
        stop.send_replace(true);
    }
}
