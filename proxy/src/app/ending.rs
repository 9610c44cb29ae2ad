//! How the process ends, and how listeners are closed before it does.

use std::sync::Arc;
use std::time::Duration;

use super::App;
use crate::admin::DrainListeners;
use crate::config::spec::{Direction, ListenerSpec};
use crate::drain::{Outcome, Phase, Plan};
use crate::listener::accept::Newcomers;
use crate::restart::Place;
use crate::worker::run::Command;

impl App {
    /// Readiness off, clients told to leave, end at zero connections or at the deadline. Until then what changes is followed: requests
    /// that are under way may need endpoints that come now.
    pub(super) async fn end(mut self) {
        self.readiness.drain();
        self.listening = false;
        self.tell(|| Command::Drain).await;
        let mut plan = Plan { deadline: self.shared.options.drain_time, ..Plan::default() };
        if self.restart.is_handed_over() {
            // Who comes now comes to the heir.
            plan.accept = Duration::ZERO;
        }
        let (drain, mut closed, mut told) = (self.drain.clone(), self.drain.watch(), false);
        let mut ended = std::pin::pin!(drain.run(plan));
        let outcome = loop {
            tokio::select! {
                outcome = &mut ended => break outcome,
                () = closed.reached(Phase::Closed), if !told => {
                    told = true;
                    let newcomers = self.closing_all().await;
                    self.tell(|| Command::CloseAll { newcomers }).await;
                }
                what = self.next() => self.take(what).await,
            }
        };
        if let Outcome::Forced { connections, .. } = outcome {
            tracing::warn!(connections, "drain time is over; closing what is left");
        }
        if let Some(control_plane) = &mut self.control_plane
            && self.restart.is_in_charge()
        {
            control_plane.save_all(&self.manager).await;
        }
        self.exit().await;
    }

    async fn closing_all(&mut self) -> Newcomers {
        let bound = self.shared.bound.load_full();
        let places = bound.iter().flat_map(|(name, all)| all.iter().map(move |at| Place::of(name, *at)));
        let places: Vec<_> = places.chain(self.admin.address().map(Place::admin)).collect();
        match self.restart.closing(&places).await {
            // The heir may go on with them.
            true => Newcomers::Wait,
            // It has sockets at the same addresses, and these are among them for a moment longer.
            false if self.restart.is_handed_over() => Newcomers::Ignored,
            // Nobody listens here any more.
            false => Newcomers::Refused,
        }
    }

    pub(super) async fn drain_listeners(&mut self, request: DrainListeners) {
        if request.graceful && !request.inbound_only {
            self.tell(|| Command::Drain).await;
            return;
        }
        let snapshot = self.shared.config.load_full();
        let meant = |l: &&Arc<ListenerSpec>| !request.inbound_only || l.direction == Direction::Inbound;
        let bound = self.shared.bound.load_full();
        for listener in snapshot.listeners.iter().filter(meant) {
            let at = bound.get(&listener.name).map_or(&[][..], Vec::as_slice);
            self.close_listener(&listener.name, at).await;
        }
    }

    async fn exit(self) {
        self.admin.written(Duration::from_millis(500)).await;
        self.tell(|| Command::Exit).await;
        drop(self.workers);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker ended badly");
            }
        }
        self.logs.shutdown(Duration::from_secs(1));
    }
}
