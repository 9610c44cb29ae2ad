//! Peak EWMA: power of two choices by latency and load.
//!
//! The latency of an endpoint is an exponentially weighted moving average that a slower answer than it moves at once and faster ones only
//! with time (Finagle's `Balancers.p2cPeakEwma`, Linkerd's only policy). While nobody asks an endpoint its average sinks towards zero, so
//! that one that was slow is tried again after a while. What is compared is average times (others in flight for the weight, and this one).
//!
//! An attempt that failed says nothing about latency, but must not look fast. It counts as a few times what was expected, so that an
//! endpoint that is back is asked again as soon as the others' latencies warrant it, whatever their scale.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::context::Tick;

/// The settings of the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeakEwma {
    /// `decay`, default 10 s: after that time a latency counts for 1/e.
    pub decay: Duration,
    /// `failure_penalty`, default 1 s: at most this long counts what failed sooner. That is what counts for a decay's time while no
    /// latency of the endpoint is known.
    pub failure_penalty: Duration,
}

impl Default for PeakEwma {
    fn default() -> Self {
        Self { decay: Duration::from_secs(10), failure_penalty: Duration::from_secs(1) }
    }
}

impl PeakEwma {
    /// Tells `latency` of an attempt that was answered after `took`.
    pub fn observe(&self, latency: &Latency, took: Duration, now: Tick) {
        latency.update(|word| next(word, micros(took), now, self.decay));
    }

    /// Tells `latency` of an attempt that failed after `took`.
    pub fn observe_failure(&self, latency: &Latency, took: Duration, now: Tick) {
        let penalty = micros(self.failure_penalty);
        latency.update(|word| match unpack(word) {
            Some(Known::Latency(average, at)) => {
                let expected = average * remaining(at, now, self.decay);
                next(word, micros(took).max((expected * FAILURE).min(penalty)), now, self.decay)
            }
            _ => pack(Known::Failed(micros(took).max(penalty), now)),
        });
    }

    /// Tells `latency` of an attempt that would have taken longer than `took`. It counts when that is longer than was expected.
    pub fn observe_more(&self, latency: &Latency, took: Duration, now: Tick) {
        if self.estimate(latency, now).is_some_and(|expected| micros(took) > expected) {
            self.observe(latency, took, now);
        }
    }

    /// The latency at `now` in microseconds. None: nothing is known.
    #[must_use]
    pub fn estimate(&self, latency: &Latency, now: Tick) -> Option<f32> {
        match unpack(latency.0.load(Ordering::Relaxed))? {
            Known::Latency(average, at) => Some(average * remaining(at, now, self.decay)),
            Known::Failed(penalty, at) => {
                (u128::from(now.since(at)) < self.decay.as_millis()).then_some(penalty)
            }
        }
    }
}

/// What failed counts as this many times what was expected: with the default decay an idle endpoint is back after 14 s.
const FAILURE: f32 = 4.0;

#[expect(clippy::cast_precision_loss, reason = "seven digits are enough")]
fn micros(time: Duration) -> f32 {
    (time.as_secs() as f32).mul_add(1e6, time.subsec_micros() as f32).max(1.0)
}

/// What an endpoint's attempts took. One word: the average in microseconds (the bits of an `f32`, negative while it has only failed)
/// above the tick of its last update; zero when nothing is known.
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

/// What is known of an endpoint, in microseconds, since a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Known {
    /// The average of its answers.
    Latency(f32, Tick),
    /// It has not answered yet. What that counts as.
    Failed(f32, Tick),
}

/// The word after an answer that took `took` microseconds came at `now`.
fn next(word: u64, took: f32, now: Tick, decay: Duration) -> u64 {
    let Some(Known::Latency(average, at)) = unpack(word) else { return pack(Known::Latency(took, now)) };
    let left = remaining(at, now, decay);
    // A peak is believed at once.
    let average = if took >= average * left { took } else { average.mul_add(left, took * (1.0 - left)) };
    // Of two workers that race the later time stays.
    let latest = if now.since(at) == 0 { at } else { now };
    pack(Known::Latency(average.max(1.0), latest))
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
fn pack(known: Known) -> u64 {
    let (average, at) = match known {
        Known::Latency(average, at) => (average, at),
        Known::Failed(penalty, at) => (-penalty, at),
    };
    u64::from(average.to_bits()) << 32 | u64::from(at.0)
}

fn unpack(word: u64) -> Option<Known> {
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the word")]
    let (average, at) = (f32::from_bits((word >> 32) as u32), Tick(word as u32));
    match word {
        0 => None,
        _ if average < 0.0 => Some(Known::Failed(-average, at)),
        _ => Some(Known::Latency(average, at)),
    }
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
        SPEC.observe(&latency, ms(10), Tick(0));
        near(SPEC.estimate(&latency, Tick(0)), 10.0);
        SPEC.observe(&latency, ms(200), Tick(10));
        near(SPEC.estimate(&latency, Tick(10)), 200.0);
        near(SPEC.estimate(&latency, Tick(10_010)), 200.0 / std::f32::consts::E);
        // Ten seconds of answers of 10 ms, one each 100 ms.
        (1..=100).for_each(|i| SPEC.observe(&latency, ms(10), Tick(10 + i * 100)));
        near(SPEC.estimate(&latency, Tick(10_010)), 10.0 + 190.0 / std::f32::consts::E);
    }

    #[test]
    fn what_failed_does_not_look_fast() {
        let latency = Latency::default();
        SPEC.observe(&latency, ms(10), Tick(5));
        SPEC.observe_failure(&latency, Duration::ZERO, Tick(5));
        near(SPEC.estimate(&latency, Tick(5)), 40.0);
        (0..10).for_each(|_| SPEC.observe_failure(&latency, Duration::ZERO, Tick(5)));
        near(SPEC.estimate(&latency, Tick(5)), 1000.0);
        SPEC.observe_failure(&latency, ms(3000), Tick(5));
        near(SPEC.estimate(&latency, Tick(5)), 3000.0);
    }

    /// A new instance whose port was not open yet: it is asked again when the time is up, and its first answer counts alone.
    #[test]
    fn what_has_only_failed_is_left_alone_for_a_decay() {
        let latency = Latency::default();
        SPEC.observe_failure(&latency, Duration::ZERO, Tick(5));
        near(SPEC.estimate(&latency, Tick(5)), 1000.0);
        near(SPEC.estimate(&latency, Tick(10_004)), 1000.0);
        assert_eq!(SPEC.estimate(&latency, Tick(10_005)), None);
        SPEC.observe(&latency, ms(2), Tick(6));
        near(SPEC.estimate(&latency, Tick(6)), 2.0);
    }

    #[test]
    fn the_clock_may_wrap_and_be_read_out_of_order() {
        let latency = Latency::default();
        SPEC.observe(&latency, ms(100), Tick(u32::MAX - 4_999));
        near(SPEC.estimate(&latency, Tick(5_000)), 100.0 / std::f32::consts::E);
        SPEC.observe(&latency, ms(50), Tick(u32::MAX - 9_999));
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
                SPEC.observe(&latency, ms(took), now);
                peak = peak.max(took);
                let got = SPEC.estimate(&latency, now).unwrap();
                prop_assert!(got >= took as f32 * 999.0 && got <= peak as f32 * 1001.0, "{}", got);
            }
        }

        #[test]
        fn any_word_gives_a_word_that_can_be_read(word: u64, took: u64, now: u32) {
            let word = if f32::from_bits((word >> 32) as u32).is_finite() { word } else { 0 };
            let after = next(word, micros(Duration::from_micros(took)), Tick(now), ms(10_000));
            prop_assert!(matches!(unpack(after), Some(Known::Latency(1.0.., _))));
        }
    }
}
