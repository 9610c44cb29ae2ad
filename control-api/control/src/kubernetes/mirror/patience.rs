//! How long it may take until it is known who has a sidecar.

use std::time::Duration;

use tokio::time::Instant;

/// How long what was kept of slices is believed while no more of a list comes.
const SILENT: Duration = Duration::from_secs(30);
/// How long it is in any case: a list may begin again and again.
const LONGEST: Duration = Duration::from_secs(300);

/// See the module.
#[derive(Debug)]
pub(super) struct Patience {
    began: Instant,
    heard: Instant,
}

impl Patience {
    /// It begins at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, heard: now }
    }

    /// A part of a list came, and was taken at `now`.
    pub(super) fn goes_on(&mut self, now: Instant) {
        self.heard = now;
    }

    /// When it ends, if nothing more is heard.
    pub(super) fn ends(&self) -> Instant {
        (self.heard + SILENT).min(self.began + LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_counted_from_what_was_heard_last_and_not_for_ever() {
        let began = Instant::now();
        let mut patience = Patience::new(began);
        assert_eq!(patience.ends(), began + SILENT);
        // A large cluster takes its time.
        patience.goes_on(began + SILENT * 2);
        assert_eq!(patience.ends(), began + SILENT * 3);
        patience.goes_on(began + LONGEST - SILENT / 2);
        assert_eq!(patience.ends(), began + LONGEST);
    }
}
