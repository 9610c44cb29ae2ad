//! How long to wait before a retry: Envoy's exponential back-off with full jitter.

use std::time::Duration;

/// `RetryPolicy.RetryBackOff`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// `base_interval`, default 25 ms, at least 1 ms.
    pub base: Duration,
    /// `max_interval`, default ten times the base.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_millis(25), None)
    }
}

impl Backoff {
    /// A back-off of `base`, rounded up to 1 ms, up to `max` or ten times the base.
    #[must_use]
    pub fn new(base: Duration, max: Option<Duration>) -> Self {
        let base = base.max(Duration::from_millis(1));
        let max = max.unwrap_or_else(|| base.saturating_mul(10)).max(base);
        Self { base, max }
    }

    /// The wait before retry `n` (the first is 1): evenly drawn from [0, min(base·(2ⁿ−1), max)).
    #[must_use]
    pub fn delay(&self, n: u32, rng: &mut fastrand::Rng) -> Duration {
        let factor = 2u32.checked_pow(n.clamp(1, 31)).map_or(u32::MAX, |p| p - 1);
        let limit = self.base.saturating_mul(factor).min(self.max);
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(rng.u64(0..nanos.max(1)))
    }
}

/// The wait that an upstream asked for, with jitter: evenly drawn from [wait, 1.5·wait), so that those it turned away do not
/// all come back at once.
#[must_use]
pub fn asked_for(wait: Duration, rng: &mut fastrand::Rng) -> Duration {
    let half = u64::try_from(wait.as_nanos() / 2).unwrap_or(u64::MAX);
    wait.saturating_add(Duration::from_nanos(rng.u64(0..half.max(1))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn defaults_are_envoys() {
        let ms = Duration::from_millis;
        assert_eq!(Backoff::default(), Backoff { base: ms(25), max: ms(250) });
        assert_eq!(Backoff::new(Duration::from_micros(3), None), Backoff { base: ms(1), max: ms(10) });
        assert_eq!(Backoff::new(ms(50), Some(ms(10))).max, ms(50));
    }

    #[test]
    fn the_whole_range_is_used() {
        let mut rng = fastrand::Rng::with_seed(7);
        for (n, limit) in [(1, 25), (2, 75), (3, 175), (4, 250), (9, 250)] {
            let draws: Vec<_> = (0..2000).map(|_| Backoff::default().delay(n, &mut rng)).collect();
            let limit = Duration::from_millis(limit);
            let (low, high) = (draws.iter().min().unwrap(), draws.iter().max().unwrap());
            assert!(*high < limit && *high > limit * 9 / 10, "{n}: {high:?}");
            assert!(*low < limit / 10, "{n}: {low:?}");
        }
    }

    proptest! {
        #[test]
        fn a_delay_is_within_its_bounds(base in 0u64..100_000, max in proptest::option::of(0u64..1_000_000), n in any::<u32>(), seed in any::<u64>()) {
            let b = Backoff::new(Duration::from_micros(base), max.map(Duration::from_micros));
            let delay = b.delay(n, &mut fastrand::Rng::with_seed(seed));
            prop_assert!(delay < b.max && b.max >= b.base);
            if n <= 1 {
                prop_assert!(delay < b.base);
            }
        }

        #[test]
        fn extreme_intervals_do_not_overflow(secs in any::<u64>(), n in any::<u32>()) {
            let mut rng = fastrand::Rng::with_seed(1);
            let delay = Backoff::new(Duration::from_secs(secs), None).delay(n, &mut rng);
            prop_assert!(delay <= Duration::from_nanos(u64::MAX));
            prop_assert!(asked_for(Duration::from_secs(secs), &mut rng) >= Duration::from_secs(secs));
        }
    }
}
