//! Which server to try next, and when.

use std::time::Duration;

/// The longest first wait; it doubles with every failed round.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(30);

/// Tries the servers one after the other without delay; when all have failed, waits for a random time up to a limit that doubles
/// from 100 ms to 30 s ("full jitter"), so that the clients of a server that restarts do not come all at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failover {
    current: usize,
    failed: usize,
    rounds: u32,
}

impl Failover {
    /// Begins with a random server.
    #[must_use]
    pub fn new(rng: &mut fastrand::Rng) -> Self {
        Self { current: rng.usize(..1 << 16), failed: 0, rounds: 0 }
    }

    /// The server to try, of so many.
    #[must_use]
    pub fn server(&self, servers: usize) -> usize {
        self.current % servers.max(1)
    }

    /// The server answers: the next failure is the first one.
    pub fn healthy(&mut self) {
        self.failed = 0;
        self.rounds = 0;
    }

    /// The server failed, one of so many: how long to wait before the next is tried.
    pub fn failed(&mut self, servers: usize, rng: &mut fastrand::Rng) -> Duration {
        self.current = self.current.wrapping_add(1);
        self.failed += 1;
        if self.failed < servers {
            return Duration::ZERO;
        }
        self.failed = 0;
        let limit = FIRST.saturating_mul(1 << self.rounds.min(16)).min(LONGEST);
        self.rounds = self.rounds.saturating_add(1);
        limit.mul_f64(rng.f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_servers_are_tried_before_it_waits() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut failover = Failover::new(&mut rng);
        let first = failover.server(3);
        assert_eq!(failover.failed(3, &mut rng), Duration::ZERO);
        assert_eq!(failover.failed(3, &mut rng), Duration::ZERO);
        assert_ne!(failover.server(3), first);
        assert!(failover.failed(3, &mut rng) > Duration::ZERO);
        assert_eq!(failover.server(3), first);
    }

    #[test]
    fn waits_grow_to_a_limit_and_begin_anew_when_a_server_answers() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut failover = Failover::new(&mut rng);
        let longest = |failover: &Failover| {
            (0..1000)
                .map(|seed| failover.clone().failed(1, &mut fastrand::Rng::with_seed(seed)))
                .max()
                .unwrap()
        };
        for limit in [100, 200, 400, 800] {
            let longest = longest(&failover);
            let limit = Duration::from_millis(limit);
            assert!(longest <= limit && longest > limit / 10 * 9, "{longest:?}");
            failover.failed(1, &mut rng);
        }
        for _ in 0..100 {
            failover.failed(1, &mut rng);
        }
        assert!(longest(&failover) <= LONGEST);
        failover.healthy();
        assert!(longest(&failover) <= FIRST);
    }
}
