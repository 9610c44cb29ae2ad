//! How long and how often a connection may be used: `max_connection_duration` with its jitter, and
//! `max_requests_per_connection`.

use std::time::Duration;

use tokio::time::Instant;

use super::cluster::UpstreamHttp;

/// What the cluster says about its connections.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// At rest.
    pub idle: Option<Duration>,
    age: Option<Duration>,
    age_jitter: f64,
    uses: Option<u32>,
}

impl Limits {
    /// The limits of `http`.
    #[must_use]
    pub const fn of(http: &UpstreamHttp) -> Self {
        Self {
            idle: http.idle_timeout,
            age: http.max_connection_age,
            age_jitter: http.max_connection_age_jitter,
            uses: http.max_requests,
        }
    }
}

/// The life of one connection so far.
#[derive(Debug, Clone, Copy)]
pub struct Lifespan {
    born: Instant,
    uses: u32,
    /// This connection's share of the jitter, from 0 to 1.
    share: f64,
}

impl Lifespan {
    /// A connection made at `now`. Its `share` of the jitter is a random number from 0 to 1.
    #[must_use]
    pub const fn new(now: Instant, share: f64) -> Self {
        Self { born: now, uses: 0, share }
    }

    /// A request takes the connection.
    pub const fn count_use(&mut self) {
        self.uses = self.uses.saturating_add(1);
    }

    /// Requests that took it.
    #[must_use]
    pub const fn uses(&self) -> u32 {
        self.uses
    }

    /// Whether no further request may take it.
    #[must_use]
    pub fn is_over(&self, limits: &Limits, now: Instant) -> bool {
        let worn = limits.uses.is_some_and(|max| self.uses >= max);
        worn || limits.age.is_some_and(|age| {
            // Envoy adds up to `max_connection_duration_jitter` percent.
            now - self.born >= age.mul_f64(1.0 + limits.age_jitter / 100.0 * self.share)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_jitter_and_uses_end_a_life() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let aged = Limits { age: Some(Duration::from_millis(1000)), age_jitter: 50.0, ..Limits::default() };
        for (share, last) in [(0.0, 1000), (0.5, 1250), (1.0, 1500)] {
            let life = Lifespan::new(start, share);
            assert!(!life.is_over(&aged, after(last - 1)) && life.is_over(&aged, after(last)), "{share}");
            assert!(!life.is_over(&Limits::default(), after(1 << 40)));
        }
        let worn = Limits { uses: Some(2), ..Limits::default() };
        let mut life = Lifespan::new(start, 0.0);
        life.count_use();
        assert!(!life.is_over(&worn, start));
        life.count_use();
        assert!(life.is_over(&worn, start));
    }
}
