//! How connections to the endpoints of a cluster began. They are few beside requests: all workers count in one place.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Reason;

/// What came of connecting. Outlives edits of the cluster.
#[derive(Debug, Default)]
pub struct Connects {
    established: AtomicU64,
    failed: [AtomicU64; 3],
}

impl Connects {
    const FAILURES: [Reason; 3] = [Reason::ConnectFailure, Reason::ConnectTimeout, Reason::UpstreamTls];

    /// A connection is ready for use, or failed for this reason.
    pub(super) fn ended(&self, failed: Option<Reason>) {
        let count = match failed {
            None => &self.established,
            Some(Reason::ConnectTimeout) => &self.failed[1],
            Some(Reason::UpstreamTls) => &self.failed[2],
            // It was never tried.
            Some(Reason::Overloaded) => return,
            Some(_) => &self.failed[0],
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Connections that were established, TLS included.
    #[must_use]
    pub fn established(&self) -> u64 {
        self.established.load(Ordering::Relaxed)
    }

    /// Those that were not, by reason.
    #[must_use]
    pub fn failed(&self) -> [(Reason, u64); 3] {
        let counts = [0, 1, 2].map(|i: usize| self.failed[i].load(Ordering::Relaxed));
        [0, 1, 2].map(|i: usize| (Self::FAILURES[i], counts[i]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_is_counted_once_under_its_reason() {
        let connects = Connects::default();
        let ends = [None, None, Some(Reason::ConnectFailure), Some(Reason::UpstreamTls)];
        ends.into_iter().for_each(|end| connects.ended(end));
        let failed = [(Reason::ConnectFailure, 1), (Reason::ConnectTimeout, 0), (Reason::UpstreamTls, 1)];
        assert_eq!((connects.established(), connects.failed()), (2, failed));
    }
}
