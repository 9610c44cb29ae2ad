//! Peak EWMA: power of two choices by latency and load.
//!
//! The latency of an endpoint is an exponentially weighted moving average that a slower answer than it moves at once and faster ones only
//! with time (Finagle's `Balancers.p2cPeakEwma`, Linkerd's only policy). While nobody asks an endpoint its average sinks towards zero, so
//! that one that was slow is tried again after a while. What is compared is average times requests in flight.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::context::Tick;

/// The settings of the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeakEwma {
    /// `decay`, default 10 s: after that time a latency counts for 1/e.
    pub decay: Duration,
    /// `failure_penalty`, default 1 s: what failed counts as if it had taken at least this long.
    pub failure_penalty: Duration,
}

impl Default for PeakEwma {
    fn default() -> Self {
        Self { decay: Duration::from_secs(10), failure_penalty: Duration::from_secs(1) }
    }
}

impl PeakEwma {
    /// Tells `latency` of an attempt that ended after `took`.
    pub fn observe(&self, latency: &Latency, took: Duration, failed: bool, now: Tick) {
        let took = if failed { took.max(self.failure_penalty) } else { took };
        latency.update(|word| next(word, took, now, self.decay));
    }

    /// Tells `latency` of an attempt that would have taken longer than `took`. It counts when that is longer than was expected.
    pub fn observe_more(&self, latency: &Latency, took: Duration, now: Tick) {
        #[expect(clippy::cast_precision_loss, reason = "seven digits are enough")]
        let micros = took.as_micros() as f32;
        if self.estimate(latency, now).is_some_and(|expected| micros > expected) {
            self.observe(latency, took, false, now);
        }
    }

    /// The latency at `now` in microseconds. None: nothing is known.
    #[must_use]
    pub fn estimate(&self, latency: &Latency, now: Tick) -> Option<f32> {
        let (average, at) = unpack(latency.0.load(Ordering::Relaxed))?;
        Some(average * remaining(at, now, self.decay))
    }
}

/// What an endpoint's answers took. One word: the average in microseconds (the bits of an `f32`) above the tick of its last
/// update; zero when nothing is known.
#[derive(Debug, Default)]
pub struct Latency(AtomicU64);

impl Latency {
    fn update(&self, next: impl Fn(u64) -> u64) {
        let mut word = self.0.load(Ordering::Relaxed);
        while let Err(other) =
            self.0.compare_exchange_weak(word, next(word), Ordering::Relaxed, Ordering::Relaxed)
        {
            word = other;
        }
    }
}

/// The word after an answer that took `took` came at `now`.
#[must_use]
pub fn next(word: u64, took: Duration, now: Tick, decay: Duration) -> u64 {
    #[expect(clippy::cast_precision_loss, reason = "seven digits are enough")]
    let took = (took.as_micros() as f32).max(1.0);
    let Some((average, at)) = unpack(word) else { return pack(took, now) };
    let left = remaining(at, now, decay);
    // A peak is believed at once.
    let average = if took >= average * left { took } else { average.mul_add(left, took * (1.0 - left)) };
    // Of two workers that race the later time stays.
    let latest = if at.since(now) > 0 { at } else { now };
    pack(average.max(1.0), latest)
}

fn remaining(at: Tick, now: Tick, decay: Duration) -> f32 {
    if now.since(at) == 0 {
        return 1.0;
    }
    #[expect(clippy::cast_precision_loss, reason = "seven digits are enough")]
    let passed = now.since(at) as f32;
    (-passed / (decay.as_secs_f32() * 1000.0)).exp()
}

/// An average is at least 1, so its bits are not zero.
fn pack(average: f32, at: Tick) -> u64 {
    u64::from(average.to_bits()) << 32 | u64::from(at.0)
}

fn unpack(word: u64) -> Option<(f32, Tick)> {
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the word")]
    let (average, at) = ((word >> 32) as u32, word as u32);
    (word != 0).then(|| (f32::from_bits(average), Tick(at)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPEC: PeakEwma =
        PeakEwma { decay: Duration::from_secs(10), failure_penalty: Duration::from_secs(1) };

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn near(got: Option<f32>, want_ms: f32) {
        let got = got.expect("known") / 1000.0;
        assert!((got - want_ms).abs() < want_ms * 0.01, "{got} ms, not {want_ms}");
    }

    #[test]
    fn peaks_count_at_once_and_sink_with_time() {
        let latency = Latency::default();
        assert_eq!(SPEC.estimate(&latency, Tick(0)), None);
        SPEC.observe(&latency, ms(10), false, Tick(0));
        near(SPEC.estimate(&latency, Tick(0)), 10.0);
        SPEC.observe(&latency, ms(200), false, Tick(10));
        near(SPEC.estimate(&latency, Tick(10)), 200.0);
        near(SPEC.estimate(&latency, Tick(10_010)), 200.0 / std::f32::consts::E);
        // Ten seconds of answers of 10 ms, one each 100 ms.
        (1..=100).for_each(|i| SPEC.observe(&latency, ms(10), false, Tick(10 + i * 100)));
        near(SPEC.estimate(&latency, Tick(10_010)), 10.0 + 190.0 / std::f32::consts::E);
    }

    #[test]
    fn what_failed_does_not_look_fast() {
        let latency = Latency::default();
        SPEC.observe(&latency, Duration::ZERO, true, Tick(5));
        near(SPEC.estimate(&latency, Tick(5)), 1000.0);
        SPEC.observe(&latency, ms(3000), true, Tick(5));
        near(SPEC.estimate(&latency, Tick(5)), 3000.0);
    }

    #[test]
    fn the_clock_may_wrap_and_be_read_out_of_order() {
        let latency = Latency::default();
        SPEC.observe(&latency, ms(100), false, Tick(u32::MAX - 4_999));
        near(SPEC.estimate(&latency, Tick(5_000)), 100.0 / std::f32::consts::E);
        SPEC.observe(&latency, ms(50), false, Tick(u32::MAX - 9_999));
        near(SPEC.estimate(&latency, Tick(5_000)), 100.0 / std::f32::consts::E);
    }

    proptest! {
        /// The average stays between the least and the greatest answer, less what time took off.
        #[test]
        fn the_average_is_one_of_what_was_seen(answers in prop::collection::vec((1_u64..5_000, 0_u32..20_000), 1..50)) {
            let latency = Latency::default();
            let mut now = Tick(u32::MAX - 100_000);
            let mut peak = 0;
            for (took, pause) in answers {
                now = Tick(now.0.wrapping_add(pause));
                SPEC.observe(&latency, ms(took), false, now);
                peak = peak.max(took);
                let got = SPEC.estimate(&latency, now).unwrap();
                prop_assert!(got >= took as f32 * 999.0 && got <= peak as f32 * 1001.0, "{}", got);
            }
        }

        #[test]
        fn any_word_gives_a_word_that_can_be_read(word: u64, took: u64, now: u32) {
            let word = if f32::from_bits((word >> 32) as u32).is_finite() { word } else { 0 };
            let after = next(word, Duration::from_micros(took), Tick(now), ms(10_000));
            let (average, _) = unpack(after).unwrap();
            prop_assert!(average >= 1.0);
        }
    }
}
