//! How the process begins to serve.

use std::time::Duration;

use tokio::time::Instant;

use super::{App, StartError};
use crate::drain::Phase;
use crate::readiness::ReadyGuard;

/// A process that cannot take over within this time has failed: its predecessor serves, and whoever started it is to know.
const READY_WITHIN: Duration = Duration::from_secs(300);

impl App {
    /// Gets what is needed to serve, opens the listeners, and takes over from a predecessor. False: told to end before.
    pub(super) async fn start(&mut self, starting: ReadyGuard) -> Result<bool, StartError> {
        if !self.restart.succeeds() {
            self.open_identity_socket()?;
        }
        self.start_control_plane();
        self.watch();
        self.publish().await;
        let began = Instant::now();
        self.warm_up(began).await;
        self.wait_while_other_serves(began + READY_WITHIN).await?;
        self.restart.prepare().await?;
        if self.is_called_off() {
            return Ok(false);
        }
        self.listening = true;
        self.open_first().await?;
        drop(starting);
        self.take_over().await?;
        Ok(true)
    }

    /// Waits for the first endpoints of clusters that have to find them, and for their first health checks.
    async fn warm_up(&mut self, began: Instant) {
        let mut quit = self.drain.watch();
        while !self.manager.is_warm() {
            let deadline = began + self.manager.patience();
            tokio::select! {
                what = self.next() => self.take(what).await,
                () = tokio::time::sleep_until(deadline) => {
                    if !self.restart.succeeds() || self.restart.is_stuck() {
                        tracing::warn!("some endpoints, health checks, routes or secrets have not come; listening without them");
                    }
                    return;
                }
                () = quit.reached(Phase::Draining) => return,
            }
        }
    }
}
