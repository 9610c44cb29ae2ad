//! Accepting connections: one loop per listener and worker.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::connection::{self, Accepted};
use super::socket;
use crate::config::spec::ListenerSpec;
use crate::limits::{Room, room};
use crate::resilience::overload::{Action, Connected};
use crate::telemetry::metrics::{ListenerCount, ListenerSeries, Refusal};
use crate::worker::Worker;

/// How long accepting pauses before it looks again whether there is room.
const PAUSE: Duration = Duration::from_millis(100);
/// How long connections that have begun may take until they can be accepted, before a listener closes: a round trip, to far away.
const SETTLE: Duration = Duration::from_millis(100);
/// The same where newcomers are let down meanwhile.
const SETTLE_SOON: Duration = Duration::from_millis(20);

/// How long a loop accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// It goes on.
    Told,
    /// The socket is to be closed, once whoever waits is served.
    Close(Newcomers),
    /// Another process goes on with the socket and its queue: nothing is taken out, and nothing is done to it.
    Release,
}

/// What becomes of those who connect while a socket is being closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newcomers {
    /// They are refused, for good: no other process has the socket any more, and no other socket has its address.
    Refused,
    /// They are ignored, and try again after a second: other sockets have the address, or are about to.
    Ignored,
    /// They wait for an heir that starts, and has the socket, too.
    Wait,
}

/// A listener as its loops know it: whoever waits for one that was removed is served by its last version.
#[derive(Debug)]
pub struct Known {
    /// Its name.
    pub name: Arc<str>,
    /// Followed with every change, so that nobody waits for us to let an old version go.
    last: RefCell<Option<Arc<ListenerSpec>>>,
}

impl Known {
    /// The listener of this name.
    #[must_use]
    pub fn new(worker: &Worker, name: Arc<str>) -> Rc<Self> {
        let known = Self { name, last: RefCell::default() };
        known.follow(worker);
        Rc::new(known)
    }

    /// The configuration has changed.
    pub fn follow(&self, worker: &Worker) {
        if let Some(newest) = worker.snapshot().listener(&self.name) {
            self.last.replace(Some(Arc::clone(newest)));
        }
    }

    /// The newest version.
    fn newest(&self, worker: &Worker) -> Option<Arc<ListenerSpec>> {
        worker.snapshot().listener(&self.name).cloned().or_else(|| self.last.borrow().clone())
    }
}

/// Accepts until it is told to stop. Each connection is served by the newest version of the listener.
pub async fn run(
    worker: Rc<Worker>,
    listener: TcpListener,
    known: Rc<Known>,
    mut stop: watch::Receiver<Until>,
) {
    let _accepting = worker.drain.accepting();
    let series = worker.metrics.counters.listener(&known.name);
    let mut backoff = Backoff::default();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|until| *until != Until::Told) => break,
            accepted = async {
                wanted(&worker).await;
                listener.accept().await
            } => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                backoff = Backoff::default();
                let Some(spec) = known.newest(&worker) else { return };
                start(&worker, &series, stream, peer, spec);
            }
            Err(error) if is_per_connection(&error) => {}
            Err(error) => {
                // Out of file descriptors or memory: trying again at once would only burn the CPU.
                let delay = backoff.next();
                tracing::warn!(listener = &*known.name, %error, ?delay, "accept failed");
                tokio::select! {
                    _ = stop.wait_for(|until| *until != Until::Told) => break,
                    () = tokio::time::sleep(delay) => {}
                }
            }
        }
    }
    let until = *stop.borrow();
    if let Until::Close(newcomers) = until
        && let Some(spec) = known.newest(&worker)
    {
        finish(&worker, listener, &spec, (&series, newcomers)).await;
    }
}

/// Waits until the process wants new connections. Until then they wait in the kernel's queue.
async fn wanted(worker: &Worker) {
    while worker.snapshot().overload.is_full(Action::StopAccepting) {
        tokio::time::sleep(PAUSE).await;
    }
}

/// Serves whom the kernel has let in already: closing the socket would reset them, with requests that are under way.
async fn finish(
    worker: &Rc<Worker>,
    listener: TcpListener,
    spec: &Arc<ListenerSpec>,
    (series, newcomers): (&ListenerSeries, Newcomers),
) {
    let kept_out = match newcomers {
        Newcomers::Refused => socket::refuse_newcomers(&listener),
        Newcomers::Ignored => socket::ignore_newcomers(&listener),
        Newcomers::Wait => Ok(()),
    };
    if let Err(error) = kept_out {
        tracing::debug!(listener = &*spec.name, %error, "whoever connects at this moment is reset");
    }
    let refused = newcomers == Newcomers::Refused;
    let deadline = Instant::now() + if refused { SETTLE } else { SETTLE_SOON };
    let mut settled = std::pin::pin!(tokio::time::sleep_until(deadline));
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = &mut settled => return,
        };
        match accepted {
            Ok((stream, peer)) => start(worker, series, stream, peer, Arc::clone(spec)),
            Err(error) if is_per_connection(&error) => {}
            Err(_) => return,
        }
        // Where nobody is kept out there may always be one more.
        if Instant::now() >= deadline {
            return;
        }
    }
}

/// Whether the process has room for one more.
fn admit(worker: &Worker, stream: &TcpStream) -> Result<Connected, Refusal> {
    let overload = &worker.snapshot().overload;
    let room = room(stream);
    if room != Room::Enough {
        overload.files_run_out();
    }
    if room == Room::Reserve {
        return Err(Refusal::Overloaded);
    }
    overload.try_connect().ok_or(Refusal::ConnectionLimit)
}

fn start(
    worker: &Rc<Worker>,
    series: &ListenerSeries,
    stream: TcpStream,
    peer: std::net::SocketAddr,
    spec: Arc<ListenerSpec>,
) {
    if socket::tune(&stream, spec.socket.keepalive.as_ref(), None).is_err() {
        // Reset before we looked at it.
        return;
    }
    let connected = match admit(worker, &stream) {
        Ok(connected) => connected,
        Err(refusal) => return connection::refuse_unseen(worker, &spec, &stream, peer, refusal),
    };
    let open = Open::new(series.clone());
    // Open from here on, for draining.
    let accepted = Accepted { stream, peer, drain: worker.drain.register(Instant::now()) };
    let connection = connection::serve(Rc::clone(worker), spec, accepted, series.clone());
    tokio::task::spawn_local(async move {
        connection.await;
        drop((open, connected));
    });
}

/// Counts a connection as open.
struct Open(ListenerSeries);

impl Open {
    fn new(series: ListenerSeries) -> Self {
        series.count(ListenerCount::Accepted);
        Self(series)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.count(ListenerCount::Closed);
    }
}

/// The peer was gone before it was accepted: nothing is wrong with the listener.
fn is_per_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

/// 10 ms, doubling up to a second.
#[derive(Default)]
struct Backoff(u32);

impl Backoff {
    fn next(&mut self) -> Duration {
        let delay = Duration::from_millis(10 << self.0.min(7)).min(Duration::from_secs(1));
        self.0 += 1;
        delay
    }
}
