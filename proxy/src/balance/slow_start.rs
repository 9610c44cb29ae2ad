//! Slow start: an endpoint that is new, or healthy again, gets its share of the requests little by little.

use std::time::Duration;

use super::context::Tick;

/// `slow_start_config` of ROUND_ROBIN and LEAST_REQUEST.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlowStart {
    /// `slow_start_window`: after that time the endpoint has its whole weight.
    pub window: Duration,
    /// `aggression`, default 1: the weight grows with the 1/aggression-th power of the time, so more of it comes sooner.
    pub aggression: f64,
    /// `min_weight_percent` as a share, default 0.1: what it has at least.
    pub min: f64,
}

impl SlowStart {
    /// The share of its weight that an endpoint has when it is known or healthy `since` then.
    #[must_use]
    pub fn share(&self, since: Tick, now: Tick) -> f64 {
        let window = self.window.as_secs_f64() * 1000.0;
        let passed = f64::from(now.since(since).max(1)) / window;
        if passed >= 1.0 {
            return 1.0;
        }
        let grown = if self.aggression == 1.0 { passed } else { passed.powf(1.0 / self.aggression) };
        grown.max(self.min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: SlowStart = SlowStart { window: Duration::from_secs(10), aggression: 1.0, min: 0.1 };

    #[test]
    fn the_share_grows_from_the_minimum_to_the_whole() {
        let share = |ms: u32| SPEC.share(Tick(500), Tick(500 + ms));
        assert_eq!([0, 500, 2_500, 10_000, 60_000].map(share), [0.1, 0.1, 0.25, 1.0, 1.0]);
    }

    #[test]
    fn aggression_bends_the_line() {
        let at_a_quarter = |aggression| SlowStart { aggression, ..SPEC }.share(Tick(0), Tick(2_500));
        assert!((at_a_quarter(2.0) - 0.5).abs() < 1e-9, "sooner");
        assert!((at_a_quarter(0.5) - 0.1).abs() < 1e-9, "later, but not less than the minimum");
    }
}
