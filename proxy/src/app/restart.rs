//! Hot restart's part of the wiring: which sockets came from a predecessor, and what becomes of them when an heir asks.

use std::net::TcpListener;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{App, StartError};
use crate::config::snapshot::Snapshot;
use crate::drain::Phase;
use crate::listener::socket;
use crate::restart::heir::Taken;
use crate::restart::keeper::Door;
use crate::restart::{Heir, Held, Keeper, Link, Place, Request, SocketId};
use crate::worker::run::Command;

/// What this process knows of predecessor, supervisor and heirs.
pub(super) struct Restart {
    keeper: Option<Keeper>,
    /// What the predecessor left, until this process has taken over.
    heir: Option<Heir>,
    /// Where heirs ask, until this process has taken over.
    door: Option<Door>,
    /// The supervisor, once this process serves.
    link: Option<Link>,
    /// What is open.
    open: Vec<Open>,
    /// Each heir that was given sockets has one of these, for as long as it is there.
    heirs: Arc<()>,
    handed_over: bool,
    /// Another heir was faster.
    late: bool,
    ask: mpsc::Sender<Request>,
    requests: mpsc::Receiver<Request>,
}

/// A socket that somebody accepts on.
struct Open {
    place: Place,
    id: SocketId,
    /// A copy for those who ask. None: a supervisor has its own.
    copy: Option<TcpListener>,
    /// It is the predecessor's.
    inherited: bool,
}

impl Open {
    fn held(&self) -> Option<Held> {
        Some(Held { place: self.place.clone(), socket: self.copy.as_ref()?.try_clone().ok()? })
    }
}

impl Restart {
    /// Takes the sockets of a predecessor, if there is one.
    ///
    /// # Errors
    /// There is something else in its place.
    pub(super) async fn claim(keeper: Option<Keeper>) -> Result<Self, StartError> {
        let (ask, requests) = mpsc::channel(16);
        let heir = match &keeper {
            Some(keeper) => Heir::claim(keeper, ask.clone()).await.map_err(|error| failed(keeper, &error))?,
            None => None,
        };
        Ok(Self {
            keeper,
            heir,
            door: None,
            link: None,
            open: Vec::new(),
            heirs: Arc::default(),
            handed_over: false,
            late: false,
            ask,
            requests,
        })
    }

    /// Whether another process serves until this one takes over.
    pub(super) fn succeeds(&self) -> bool {
        self.heir.as_ref().is_some_and(Heir::succeeds)
    }

    /// Whether that other process does not answer.
    pub(super) fn is_stuck(&self) -> bool {
        self.heir.as_ref().is_some_and(Heir::is_stuck)
    }

    /// Whether this process has taken over, or has nobody to take over from: what is on disk is its own.
    pub(super) const fn is_in_charge(&self) -> bool {
        self.heir.is_none()
    }

    /// Whether an heir has taken over from this process.
    pub(super) const fn is_handed_over(&self) -> bool {
        self.handed_over
    }

    /// The predecessor's sockets at a place.
    pub(super) fn inherit(&mut self, wanted: &Place) -> Vec<TcpListener> {
        self.heir.as_mut().map(|heir| heir.take(wanted)).unwrap_or_default()
    }

    /// Remembers open sockets, the first `inherited` of which are the predecessor's.
    pub(super) async fn opened(&mut self, place: &Place, sockets: &[TcpListener], inherited: usize) {
        if self.keeper.is_none() {
            return;
        }
        for (n, socket) in sockets.iter().enumerate() {
            let id = SocketId::of(place.address, socket);
            let mut copy = match socket.try_clone() {
                Ok(socket) => Some(socket),
                Err(error) => {
                    tracing::warn!(address = %place.address, %error, "a hot restart will not have this socket");
                    None
                }
            };
            if let Some(link) = &self.link
                && let Some(socket) = copy.take()
            {
                link.give(&Held { place: place.clone(), socket }).await;
            }
            self.open.push(Open { place: place.clone(), id, copy, inherited: n < inherited });
        }
    }

    /// To be called before sockets are closed: those of the workers must be the last. True: they are not, because an heir that starts has
    /// them, too, and may go on with them.
    pub(super) async fn closing(&mut self, places: &[Place]) -> bool {
        let closed = self.open.extract_if(.., |open| places.contains(&open.place));
        let closed: Vec<_> = closed.map(|open| open.id).collect();
        if self.handed_over {
            return false;
        }
        let mut shared = Arc::strong_count(&self.heirs) > 1;
        if let Some(link) = &self.link {
            shared |= link.forget(closed).await;
        }
        shared
    }

    /// The next request; never, without a keeper.
    pub(super) async fn next(&mut self) -> Request {
        match self.requests.recv().await {
            Some(request) => request,
            // There is one sender here.
            None => std::future::pending().await,
        }
    }

    /// The predecessor's sockets that this process accepts on.
    fn inherited(&self) -> Vec<SocketId> {
        self.open.iter().filter(|open| open.inherited).map(|open| open.id).collect()
    }

    fn copies_of_all(&self) -> Vec<Held> {
        self.open.iter().filter_map(Open::held).collect()
    }

    /// Gets all that a take-over may fail for: before this process accepts anything, because the predecessor goes on then.
    pub(super) async fn prepare(&mut self) -> Result<(), StartError> {
        let Some(keeper) = &self.keeper else { return Ok(()) };
        if let Some(heir) = &self.heir {
            heir.prepare().await.map_err(|error| failed(keeper, &error))?;
        }
        if let Keeper::Process(path) = keeper {
            self.door = Some(Door::beside(path).map_err(|error| failed(keeper, &error))?);
        }
        Ok(())
    }

    /// Takes over, if there is somebody to take over from, and lets heirs ask this process. The listeners are those of `config`.
    async fn take_over(&mut self, config: &Snapshot) -> Result<Option<Taken>, StartError> {
        let door = self.door.take().zip(self.keeper.as_ref());
        let (mut taken, mut link) = (None, None);
        if let Some(heir) = self.heir.take() {
            let kept = self.inherited();
            let opened: Vec<_> =
                self.open.iter().filter(|open| !open.inherited).filter_map(Open::held).collect();
            let done = heir.take_over(&kept, &opened, self.ask.clone()).await;
            let (how, to) = done
                .map_err(|e| StartError::Resource("process that is to be succeeded".into(), e.to_string()))?;
            (taken, link) = (Some(how), to);
        }
        let is_in_charge = !matches!(taken, Some(Taken::Refused));
        if let Some((mut door, keeper)) = door.filter(|_| is_in_charge) {
            match door.take_place() {
                Ok(()) => {
                    tokio::spawn(door.serve(self.ask.clone()));
                }
                Err(error) if taken.is_none() => return Err(failed(keeper, &error)),
                // There is nobody else any more.
                Err(error) => tracing::error!("{}", failed(keeper, &error)),
            }
        }
        // A proxy keeps its own door open until now.
        self.link = link.filter(Link::is_supervised);
        if is_in_charge {
            self.make_own(config);
        }
        Ok(taken)
    }

    /// The sockets are nobody else's any more: they follow the configuration of this process.
    fn make_own(&mut self, config: &Snapshot) {
        let supervised = self.link.is_some();
        for open in &mut self.open {
            if let Some(copy) = open.copy.as_ref().filter(|_| open.inherited) {
                let listener = config.listener(&open.place.listener);
                socket::make_own(copy, listener.map(|listener| &listener.socket));
            }
            open.copy = open.copy.take().filter(|_| !supervised);
        }
    }
}

fn failed(keeper: &Keeper, error: &std::io::Error) -> StartError {
    let what = match keeper {
        Keeper::Process(path) => format!("--hot-restart-path {}", path.display()),
        Keeper::Supervisor => "--supervised is for --supervise only: standard input".into(),
    };
    StartError::Resource(what, error.to_string())
}

impl App {
    /// While another process serves, there is no hurry: waits for a first configuration of the control plane, a certificate, and whatever the
    /// configuration waits for, until `deadline`.
    ///
    /// # Errors
    /// It has not come, and the other process serves on.
    pub(super) async fn wait_while_other_serves(&mut self, deadline: Instant) -> Result<(), StartError> {
        let (mut quit, mut told) = (self.drain.watch(), false);
        while self.restart.succeeds()
            && let Some(missing) = self.lacks()
        {
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(missing, "not taking over without it; the old process serves on");
            }
            tokio::select! {
                what = self.next() => self.take(what).await,
                () = tokio::time::sleep_until(deadline), if !self.restart.is_stuck() => {
                    return Err(StartError::Resource(missing, "not there in time; the old process serves on".into()));
                }
                () = quit.reached(Phase::Draining) => return Ok(()),
            }
        }
        Ok(())
    }

    /// What this process has not, and the one that serves has.
    fn lacks(&self) -> Option<String> {
        if self.first_config.is_some() {
            return Some("a configuration of the control plane".to_owned());
        }
        if self.lacks_certificate() {
            return Some("a certificate".to_owned());
        }
        // One that is stopped has no endpoints for anybody.
        if self.restart.is_stuck() || self.manager.is_warm() { None } else { self.manager.missing() }
    }

    /// This process serves from now on, and its predecessor does no more.
    pub(super) async fn take_over(&mut self) -> Result<(), StartError> {
        let began = Instant::now();
        let config = self.shared.config.load_full();
        let taken = self.restart.take_over(&config).await?;
        match &taken {
            None => {}
            Some(Taken::Over) => tracing::info!(took = ?began.elapsed(), "taken over"),
            Some(Taken::Unanswered) => {
                tracing::warn!("the old process does not answer; it drains when it wakes up");
            }
            Some(Taken::Ended) => tracing::warn!(
                "the old process did not answer and was ended: connections that it had are lost, and those that waited for it were reset"
            ),
            Some(Taken::Refused) => {
                tracing::error!("another process has taken over before; this one drains");
                // They are the other one's, too: they must not be closed as if nobody went on with them.
                let shared: Arc<[SocketId]> = self.restart.inherited().into();
                self.restart.open.clear();
                self.tell(|| Command::Release(Arc::clone(&shared))).await;
                self.keep_nothing().await;
                self.drain.start();
                return Ok(());
            }
        }
        let rest = [self.admin.open(&mut self.restart).await, self.open_identity_socket()];
        for error in rest.into_iter().filter_map(Result::err) {
            if taken.is_none() {
                return Err(error);
            }
            // There is nobody else any more.
            tracing::error!("{error}");
        }
        Ok(())
    }

    /// Told to end before it took over: the other process serves on.
    pub(super) fn is_called_off(&self) -> bool {
        self.restart.late || self.restart.succeeds() && self.drain.phase() != Phase::Serving
    }

    pub(super) async fn restart_asked(&mut self, request: Request) {
        match request {
            // Who asked may be gone.
            Request::Sockets(reply) => {
                drop(reply.send((self.restart.copies_of_all(), Arc::clone(&self.restart.heirs))));
            }
            Request::TakeOver(kept, done) => {
                let first = !self.restart.handed_over;
                if first {
                    self.hand_over(kept).await;
                }
                let _ = done.send(first);
            }
            Request::Late if self.restart.heir.is_some() => {
                tracing::error!("another process has taken over before; this one ends");
                self.restart.late = true;
                self.drain.start();
            }
            Request::Late => {}
            Request::Alone => {
                if let Some(heir) = &mut self.restart.heir {
                    heir.is_alone();
                }
            }
            Request::Orphaned if self.drain.phase() == Phase::Serving => {
                tracing::warn!("the supervisor is gone; draining");
                self.drain.start();
            }
            Request::Orphaned => {}
        }
    }

    /// An heir accepts on `kept`: this process accepts nothing more, and drains.
    async fn hand_over(&mut self, kept: Vec<SocketId>) {
        tracing::info!(sockets = kept.len(), "another process takes over; draining");
        self.restart.handed_over = true;
        self.restart.open.clear();
        self.admin.release();
        let kept: Arc<[SocketId]> = kept.into();
        self.tell(|| Command::Release(Arc::clone(&kept))).await;
        self.keep_nothing().await;
        self.drain.start();
    }

    /// What is on disk is another process's.
    async fn keep_nothing(&mut self) {
        self.last_good = None;
        if let Some(control_plane) = &mut self.control_plane {
            control_plane.keep_nothing().await;
        }
    }
}
