//! A bucket of tokens in one word, shared by all workers.
//!
//! The word is the time at which the bucket would be full again (GCRA, ITU-T I.371 annex A): a token moves it on by the time that
//! one takes to come, and may not move it beyond now. Nothing is admitted beyond the burst and the rate, whatever the interleaving: times are
//! rounded against the client, and a clock that jumps back finds the bucket as it was.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Ticks of a nanosecond: the time of one token is a whole number of ticks. 64 bits are then 36 years.
const TICKS: u128 = 16;
/// The longest time that an empty bucket may take to be full.
pub const MAX_FILL: Duration = Duration::from_secs(5 * 365 * 24 * 3600);

/// `envoy.type.v3.TokenBucket`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketSpec {
    /// `max_tokens`.
    pub max: u32,
    /// `tokens_per_fill`, default 1.
    pub per_fill: u32,
    /// `fill_interval`.
    pub interval: Duration,
}

impl BucketSpec {
    /// Ticks until one more token is there, rounded up.
    fn per_token(&self) -> u64 {
        let ticks = (self.interval.as_nanos() * TICKS).div_ceil(u128::from(self.per_fill.max(1)));
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// Whether time can be counted for it.
    #[must_use]
    pub fn is_countable(&self) -> bool {
        u128::from(self.per_token()) * u128::from(self.max) <= MAX_FILL.as_nanos() * TICKS
    }

    /// Tokens a second: of two buckets the one with fewer refuses first.
    #[must_use]
    pub fn rate(&self) -> f64 {
        f64::from(self.per_fill) / self.interval.as_secs_f64()
    }
}

/// See the module.
#[derive(Debug)]
pub struct Bucket {
    full_at: AtomicU64,
    per_token: u64,
    burst: u64,
    start: Instant,
    spec: BucketSpec,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn new(spec: BucketSpec, now: Instant) -> Self {
        let per_token = spec.per_token();
        let burst = per_token.saturating_mul(u64::from(spec.max));
        Self { full_at: AtomicU64::new(0), per_token, burst, start: now, spec }
    }

    /// An empty bucket.
    #[must_use]
    pub fn empty(spec: BucketSpec, now: Instant) -> Self {
        let mut bucket = Self::new(spec, now);
        bucket.full_at = AtomicU64::new(bucket.burst);
        bucket
    }

    /// A bucket with what is in `other`, also with a part of a token, as far as it fits: whatever changes often would never fill otherwise.
    #[must_use]
    pub fn after(other: &Self, spec: BucketSpec, now: Instant) -> Self {
        let mut bucket = Self::new(spec, now);
        let held = u128::from(other.held(now)) * u128::from(bucket.per_token);
        let held = u64::try_from(held / u128::from(other.per_token.max(1))).unwrap_or(u64::MAX);
        bucket.full_at = AtomicU64::new(bucket.burst.saturating_sub(held));
        bucket
    }

    /// What it was made of.
    #[must_use]
    pub const fn spec(&self) -> &BucketSpec {
        &self.spec
    }

    /// Counted from the burst on, so that a full bucket lies before it.
    fn ticks(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.start).as_nanos() * TICKS;
        self.burst.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }

    /// Takes `n` tokens, or none. Whether they were there.
    pub fn take(&self, n: u64, now: Instant) -> bool {
        let now = self.ticks(now);
        let (cost, full) = (self.per_token.checked_mul(n), now.saturating_sub(self.burst));
        let Some(cost) = cost else { return false };
        let next = |at: u64| at.max(full).checked_add(cost).filter(|next| *next <= now);
        self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    /// What is there, in ticks.
    fn held(&self, now: Instant) -> u64 {
        let now = self.ticks(now);
        now.saturating_sub(self.full_at.load(Ordering::Relaxed).max(now.saturating_sub(self.burst)))
    }

    /// Whole tokens that are there.
    #[must_use]
    pub fn remaining(&self, now: Instant) -> u64 {
        self.held(now) / self.per_token.max(1)
    }

    /// How long until a token is there; zero when there is one.
    #[must_use]
    pub fn until_next(&self, now: Instant) -> Duration {
        let now = self.ticks(now);
        let next = self.full_at.load(Ordering::Relaxed).saturating_add(self.per_token);
        Duration::from_nanos(next.saturating_sub(now).div_ceil(TICKS as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn spec(max: u32, per_fill: u32, millis: u64) -> BucketSpec {
        BucketSpec { max, per_fill, interval: Duration::from_millis(millis) }
    }

    #[test]
    fn a_bucket_is_full_then_empty_then_fills_at_its_rate() {
        let start = Instant::now();
        let bucket = Bucket::new(spec(3, 2, 1000), start);
        assert_eq!(bucket.remaining(start), 3);
        assert!((0..3).all(|_| bucket.take(1, start)));
        assert!(!bucket.take(1, start));
        assert_eq!(bucket.until_next(start), Duration::from_millis(500));
        let later = start + Duration::from_millis(500);
        assert_eq!((bucket.remaining(later), bucket.until_next(later)), (1, Duration::ZERO));
        assert!(bucket.take(1, later) && !bucket.take(1, later));
        let full = start + Duration::from_secs(3600);
        assert_eq!(bucket.remaining(full), 3, "never more than it holds");
        assert!(!bucket.take(4, full) && bucket.take(3, full));
    }

    #[test]
    fn a_clock_that_jumps_back_gives_nothing() {
        let start = Instant::now() + Duration::from_secs(1000);
        let bucket = Bucket::new(spec(1, 1, 1000), start);
        assert!(bucket.take(1, start + Duration::from_secs(5)));
        for back in [5, 4, 1, 0] {
            assert!(!bucket.take(1, start + Duration::from_secs(back)));
        }
        assert!(!bucket.take(1, start.checked_sub(Duration::from_secs(100)).unwrap()));
        assert_eq!(bucket.remaining(start), 0);
        assert!(bucket.take(1, start + Duration::from_secs(6)));
    }

    #[test]
    fn a_bucket_begins_with_what_was_in_the_one_before() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(Bucket::empty(spec(3, 1, 1000), start).remaining(start), 0);
        let old = Bucket::new(spec(4, 1, 1000), start);
        assert!((0..3).all(|_| old.take(1, start)));
        for max in 1..6 {
            let bucket = Bucket::after(&old, spec(max, 5, 1000), start);
            assert_eq!(bucket.remaining(start), 1);
            assert_eq!(bucket.remaining(at(200)), 2.min(u64::from(max)));
        }
        assert_eq!(
            Bucket::after(&old, spec(2, 1, 1000), at(9000)).remaining(at(9000)),
            2,
            "as far as they fit"
        );
    }

    #[test]
    fn parts_of_tokens_survive_any_number_of_changes() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut bucket = Bucket::empty(spec(3, 3, 60_000), start);
        let mut taken = 0;
        for second in 1..=120 {
            let now = at(second * 1000);
            bucket = Bucket::after(&bucket, spec(3, 3 + u32::from(second % 2 == 0), 60_000), now);
            taken += u32::from(bucket.take(1, now));
        }
        assert!((6..=7).contains(&taken), "{taken} of 3 or 4 a minute, for two minutes");
    }

    #[test]
    fn what_cannot_be_counted_is_known() {
        assert!(spec(u32::MAX, 1, 30).is_countable());
        assert!(!spec(u32::MAX, 1, 60_000).is_countable());
    }

    #[test]
    fn several_threads_get_exactly_what_is_there() {
        let now = Instant::now();
        let bucket = Arc::new(Bucket::new(spec(1000, 1, 1000), now));
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..1000).filter(|_| bucket.take(1, now)).count())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 1000);
    }

    proptest! {
        /// Within every span of time no more is admitted than the burst and what the rate gives in it, in whatever order workers come, with
        /// clocks that differ.
        #[test]
        fn never_more_than_burst_and_rate(
            max in 1u32..50,
            per_fill in 1u32..50,
            millis in 50u64..2000,
            steps in proptest::collection::vec((0u64..400, 1u64..4, 0u64..30), 1..200),
        ) {
            let start = Instant::now() + Duration::from_secs(10);
            let spec = spec(max, per_fill, millis);
            let bucket = Bucket::new(spec, start);
            let mut now = start;
            let mut admitted: Vec<(Instant, u64)> = Vec::new();
            for (pause, n, behind) in steps {
                now += Duration::from_millis(pause);
                if bucket.take(n, now - Duration::from_millis(behind)) {
                    admitted.push((now, n));
                }
            }
            for (i, (from, _)) in admitted.iter().enumerate() {
                let mut sum = 0;
                for (until, n) in &admitted[i..] {
                    sum += n;
                    // A clock that is 30 ms behind may have been right before.
                    let span = (*until - *from).as_secs_f64() + 0.03;
                    prop_assert!(sum as f64 <= f64::from(max) + span * spec.rate() + 1e-6);
                }
            }
        }

        /// One client that never pauses gets its rate, to within one token.
        #[test]
        fn not_less_than_the_rate_either(max in 1u32..20, per_fill in 1u32..50, millis in 50u64..500) {
            let start = Instant::now();
            let spec = spec(max, per_fill, millis);
            let bucket = Bucket::new(spec, start);
            let span = Duration::from_millis(millis * 7);
            let mut now = start;
            let mut count = 0u64;
            while now <= start + span {
                if bucket.take(1, now) {
                    count += 1;
                } else {
                    now += bucket.until_next(now);
                }
            }
            let promised = u64::from(max) + 7 * u64::from(per_fill);
            prop_assert!(count <= promised && count + 1 >= promised, "{count} of {promised}");
        }
    }
}
