//! A worker's thread: starts the runtime, obeys commands, ends when its connections have.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Worker;
use super::timer::Ticker;
use crate::listener::accept::{self, Until};

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
    /// Stop accepting on the sockets of these addresses, which another process goes on with.
    Release(Arc<[SocketAddr]>),
    /// End now, whatever is still open.
    Exit,
}

/// Obeys `commands` until [`Command::Exit`] or the sender is gone.
pub async fn run(worker: Rc<Worker>, mut commands: mpsc::Receiver<Command>) {
    let mut listeners: HashMap<Arc<str>, Vec<Accepting>> = HashMap::new();
    let logs = worker.logs().clone();
    tokio::task::spawn_local(async move { logs.run_flusher().await });
    let lag = Arc::clone(&worker.lag);
    tokio::task::spawn_local(Ticker::install().run(move |late| lag.note(late)));
    while let Some(command) = commands.recv().await {
        match command {
            Command::Listen(name, socket) => match listening(socket) {
                Ok((address, socket)) => {
                    let (until, stopped) = watch::channel(Until::Told);
                    listeners.entry(Arc::clone(&name)).or_default().push(Accepting { address, until });
                    tokio::task::spawn_local(accept::run(Rc::clone(&worker), socket, name, stopped));
                }
                Err(error) => tracing::error!(listener = &*name, %error, "cannot listen"),
            },
    let originals = Rc::clone(&worker);
    tokio::task::spawn_local(async move { originals.forget_originals().await });
            Command::Close(name) => close_all(listeners.remove(&name).into_iter().flatten()),
            Command::CloseAll => close_all(listeners.drain().flat_map(|(_, all)| all)),
            Command::Release(addresses) => {
                for accepting in listeners
                    .values_mut()
                    .flat_map(|all| all.extract_if(.., |accepting| addresses.contains(&accepting.address)))
                {
                    accepting.until.send_replace(Until::Release);
                }
            }
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

/// A loop that accepts.
struct Accepting {
    address: SocketAddr,
    until: watch::Sender<Until>,
}

fn listening(socket: TcpListener) -> std::io::Result<(SocketAddr, tokio::net::TcpListener)> {
    Ok((socket.local_addr()?, tokio::net::TcpListener::from_std(socket)?))
}

fn close_all(loops: impl Iterator<Item = Accepting>) {
    for accepting in loops {
        accepting.until.send_replace(Until::Close);
    }
}
