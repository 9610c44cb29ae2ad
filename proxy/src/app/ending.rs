//! How the process ends, and how listeners are closed before it does.

use std::sync::Arc;
use std::time::Duration;

use super::App;
use crate::admin::DrainListeners;
use crate::config::spec::{Direction, ListenerSpec};
use crate::drain::{Outcome, Phase, Plan};
use crate::worker::run::Command;

impl App {
    /// Readiness off, clients told to leave, end at zero connections or at the deadline. Until then what changes is followed: requests
    /// that are under way may need endpoints that come now.
    pub(super) async fn end(mut self) {
        self.readiness.drain();
        self.listening = false;
        self.tell(|| Command::Drain).await;
        let plan = Plan { deadline: self.shared.options.drain_time, ..Plan::default() };
        let (drain, mut closed, mut told) = (self.drain.clone(), self.drain.watch(), false);
        let mut ended = std::pin::pin!(drain.run(plan));
        let outcome = loop {
            tokio::select! {
                outcome = &mut ended => break outcome,
                () = closed.reached(Phase::Closed), if !told => {
                    told = true;
                    self.tell(|| Command::CloseAll).await;
                }
                what = self.next() => self.take(what).await,
            }
        };
        if let Outcome::Forced { connections, .. } = outcome {
            tracing::warn!(connections, "drain time is over; closing what is left");
        }
        if let Some(control_plane) = &mut self.control_plane {
            control_plane.save_all(&self.manager).await;
        }
        self.exit().await;
    }

    pub(super) async fn drain_listeners(&self, request: DrainListeners) {
        if request.graceful && !request.inbound_only {
            self.tell(|| Command::Drain).await;
            return;
        }
        let snapshot = self.shared.config.load_full();
        let meant = |l: &&Arc<ListenerSpec>| !request.inbound_only || l.direction == Direction::Inbound;
        for listener in snapshot.listeners.iter().filter(meant) {
            self.tell(|| Command::Close(Arc::clone(&listener.name))).await;
        }
    }

    async fn exit(self) {
        if let Some(answers) = &self.answers {
            answers.written(Duration::from_millis(500)).await;
        }
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
