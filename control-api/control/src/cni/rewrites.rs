//! Whether somebody else takes the plugin out of the list as often as it is put there. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// More than the network's own installer makes when it starts, or another version of ours in an update.
const MANY: usize = 4;

/// Those count that are younger.
const SPAN: Duration = Duration::from_secs(60);

/// When the list was written, the last times.
#[derive(Debug, Default)]
pub(super) struct Rewrites {
    /// At most [`MANY`].
    recent: Vec<Instant>,
}

impl Rewrites {
    /// The list was written.
    pub(super) fn add(&mut self, now: Instant) {
        if self.recent.len() == MANY {
            self.recent.remove(0);
        }
        self.recent.push(now);
    }

    /// Whether that was too often.
    pub(super) fn are_many(&self, now: Instant) -> bool {
        let young = |at: &&Instant| now.saturating_duration_since(**at) < SPAN;
        self.recent.iter().filter(young).count() == MANY
    }
}
