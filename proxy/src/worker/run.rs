//! A worker's thread: starts the runtime, obeys commands, ends when its connections have.

use std::collections::HashMap;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Worker;
use super::timer::Ticker;
use crate::listener::accept::{self, Known, Newcomers, Until};
use crate::restart::SocketId;

/// What the control runtime tells a worker.
#[derive(Debug)]
pub enum Command {
    /// Accept on this socket for the listener of this name.
    Listen(Arc<str>, TcpListener),
    /// Stop accepting for the listener; its connections go on.
    Close {
        /// Of the listener.
        name: Arc<str>,
        /// Those who connect meanwhile.
        newcomers: Newcomers,
    },
    /// The listener is bound anew, and an heir that starts has its sockets of before. Those at addresses that it still has are accepted on as
    /// well, until the heir does or they are closed with the others: the kernel goes on giving them their share.
    Renew(Arc<str>),
    /// Pools, cursors and labels follow the newest configuration; policy judges again what is open.
    Changed,
    /// Certificates were revoked: open connections are judged again.
    Revoked,
    /// Finish what is running and take nothing new: answers carry `Connection: close` or GOAWAY. Listeners stay open.
    Drain,
    /// Stop accepting for all listeners.
    CloseAll {
        /// Those who connect meanwhile.
        newcomers: Newcomers,
    },
    /// Stop accepting on these sockets, which another process goes on with.
    Release(Arc<[SocketId]>),
    /// End now, whatever is still open.
    Exit,
}

/// Obeys `commands` until [`Command::Exit`] or the sender is gone.
pub async fn run(worker: Rc<Worker>, mut commands: mpsc::Receiver<Command>) {
    let mut listeners: HashMap<Arc<str>, Listening> = HashMap::new();
    let logs = worker.logs().clone();
    tokio::task::spawn_local(async move { logs.run_flusher().await });
    let originals = Rc::clone(&worker);
    tokio::task::spawn_local(async move { originals.forget_originals().await });
    let lag = Arc::clone(&worker.lag);
    tokio::task::spawn_local(Ticker::install().run(move |late| lag.note(late)));
    while let Some(command) = commands.recv().await {
        match command {
            Command::Listen(name, socket) => match listening(socket) {
                Ok((id, socket)) => {
                    let (until, stopped) = watch::channel(Until::Told);
                    let new = || Listening::new(&worker, &name);
                    let listening = listeners.entry(Arc::clone(&name)).or_insert_with(new);
                    listening.loops.push(Accepting { id, until });
                    let known = Rc::clone(&listening.known);
                    tokio::task::spawn_local(accept::run(Rc::clone(&worker), socket, known, stopped));
                }
                Err(error) => tracing::error!(listener = &*name, %error, "cannot listen"),
            },
            Command::Close { name, newcomers } => close_all(listeners.remove(&name), newcomers),
            Command::Renew(name) => {
                if let Some(listening) = listeners.get_mut(&name) {
                    listening.leave_others(&worker);
                }
            }
            Command::CloseAll { newcomers } => {
                close_all(listeners.drain().map(|(_, listening)| listening), newcomers);
            }
            Command::Release(sockets) => {
                let released = |accepting: &mut Accepting| accepting.id.is_in(&sockets);
                for listening in listeners.values_mut() {
                    for accepting in listening.loops.extract_if(.., released) {
                        accepting.until.send_replace(Until::Release);
                    }
                }
            }
            Command::Changed => {
                listeners.values().for_each(|listening| listening.known.follow(&worker));
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

/// A listener that this worker accepts for.
struct Listening {
    known: Rc<Known>,
    loops: Vec<Accepting>,
}

impl Listening {
    fn new(worker: &Worker, name: &Arc<str>) -> Self {
        Self { known: Known::new(worker, Arc::clone(name)), loops: Vec::new() }
    }

    /// Leaves the sockets at addresses that the listener has no longer to an heir.
    fn leave_others(&mut self, worker: &Worker) {
        let snapshot = worker.snapshot();
        let spec = snapshot.listener(&self.known.name);
        let gone = |accepting: &mut Accepting| spec.is_none_or(|spec| !spec.is_at(accepting.id.address()));
        for accepting in self.loops.extract_if(.., gone) {
            accepting.until.send_replace(Until::Close(Newcomers::Wait));
        }
    }
}

/// A loop that accepts.
struct Accepting {
    id: SocketId,
    until: watch::Sender<Until>,
}

fn listening(socket: TcpListener) -> std::io::Result<(SocketId, tokio::net::TcpListener)> {
    let id = SocketId::of(socket.local_addr()?, &socket);
    Ok((id, tokio::net::TcpListener::from_std(socket)?))
}

fn close_all(listeners: impl IntoIterator<Item = Listening>, newcomers: Newcomers) {
    for accepting in listeners.into_iter().flat_map(|listening| listening.loops) {
        accepting.until.send_replace(Until::Close(newcomers));
    }
}
