//! Hot restart's part of the wiring: which sockets came from a predecessor, and what becomes of them when an heir asks.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{App, StartError};
use crate::drain::Phase;
use crate::listener::socket::let_everybody_in;
use crate::restart::heir::Taken;
use crate::restart::keeper::Door;
use crate::restart::{Heir, Held, Keeper, Link, Place, Request};
use crate::worker::run::Command;

/// What this process knows of predecessor, supervisor and heirs.
pub(super) struct Restart {
    keeper: Option<Keeper>,
    /// What the predecessor left, until this process has taken over.
    heir: Option<Heir>,
    /// The supervisor, once this process serves.
    link: Option<Link>,
    /// Copies of what is open, for those who ask. A supervisor has its own.
    copies: Vec<Copy>,
    handed_over: bool,
    /// Another heir was faster.
    late: bool,
    ask: mpsc::Sender<Request>,
    requests: mpsc::Receiver<Request>,
}

struct Copy {
    held: Held,
    /// It is the predecessor's.
    inherited: bool,
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
            link: None,
            copies: Vec::new(),
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
    /// Whether this process has taken over, or has nobody to take over from: what is on disk is its own.
    pub(super) const fn is_in_charge(&self) -> bool {
        self.heir.is_none()
    }

            return;
        }
        for (n, socket) in sockets.iter().enumerate() {
            let held = match socket.try_clone() {
                Ok(socket) => Held { place: place.clone(), socket },
                Err(error) => {
                    tracing::warn!(address = %place.address, %error, "a hot restart will not have this socket");
                    continue;
                }
            };
            match &self.link {
                Some(link) => link.give(&held).await,
                None => self.copies.push(Copy { held, inherited: n < inherited }),
            }
        }
    }

    /// To be called before sockets are closed: those of the workers must be the last.
    pub(super) async fn closing(&mut self, addresses: &[SocketAddr]) {
        self.copies.retain(|copy| !addresses.contains(&copy.held.place.address));
        if let Some(link) = self.link.as_ref().filter(|_| !self.handed_over) {
            for address in addresses {
                link.forget(*address).await;
            }
        }
    }

    /// The next request; never, without a keeper.
    pub(super) async fn next(&mut self) -> Request {
        match self.requests.recv().await {
            Some(request) => request,
            // There is one sender here.
            None => std::future::pending().await,
        }
    }

    /// Addresses of the predecessor's sockets that this process accepts on, until it has a supervisor.
    fn inherited(&self) -> BTreeSet<SocketAddr> {
        self.copies.iter().filter(|copy| copy.inherited).map(|copy| copy.held.place.address).collect()
    }

    fn copies_of_all(&self) -> Vec<Held> {
        self.copies.iter().filter_map(|copy| copy.held.copy().ok()).collect()
    }

    /// Takes over, if there is somebody to take over from.
    async fn take_over(&mut self) -> Result<Option<Taken>, StartError> {
        let Some(heir) = self.heir.take() else { return Ok(None) };
        let kept: Vec<_> = self.inherited().into_iter().collect();
        let opened = self.copies.iter().filter(|copy| !copy.inherited);
        let opened: Vec<_> = opened.filter_map(|copy| copy.held.copy().ok()).collect();
        let taken = heir.take_over(&kept, &opened, self.ask.clone()).await;
        let (taken, link) = taken
            .map_err(|e| StartError::Resource("process that is to be succeeded".into(), e.to_string()))?;
        // It may have been told to end before it was told who goes on.
        self.copies.iter().filter(|copy| copy.inherited).for_each(|copy| let_everybody_in(&copy.held.socket));
        if link.is_some() && !matches!(taken, Taken::Refused) {
            self.copies.clear();
        }
        self.link = link;
        Ok(Some(taken))
    }

    /// Lets heirs ask this process.
    fn open_door(&self) -> Result<(), StartError> {
        if let Some(keeper @ Keeper::Process(path)) = &self.keeper {
            let door = Door::open(path).map_err(|error| failed(keeper, &error))?;
            tokio::spawn(door.serve(self.ask.clone()));
        }
        Ok(())
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
    }

    /// This process serves from now on, and its predecessor does no more.
    pub(super) async fn take_over(&mut self) -> Result<(), StartError> {
        let began = Instant::now();
        let taken = self.restart.take_over().await?;
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
                let shared: Arc<[SocketAddr]> = self.restart.inherited().into_iter().collect();
                self.restart.copies.clear();
                self.tell(|| Command::Release(Arc::clone(&shared))).await;
                self.drain.start();
                return Ok(());
            }
        }
        let rest =
            [self.admin.open(&mut self.restart).await, self.open_identity_socket(), self.restart.open_door()];
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
            Request::Sockets(reply) => drop(reply.send(self.restart.copies_of_all())),
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
    async fn hand_over(&mut self, kept: Vec<SocketAddr>) {
        tracing::info!(addresses = kept.len(), "another process takes over; draining");
        self.restart.handed_over = true;
        self.restart.copies.clear();
        self.admin.release();
        let kept: Arc<[SocketAddr]> = kept.into();
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
                self.keep_nothing().await;
}
