//! Times, and where most of them are.

use std::time::Duration;

/// Durations of one kind.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn add(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// The smallest sample that at least the part `quantile` of all does not exceed, in milliseconds; 1 is the largest of all. Zero
    /// when there is none.
    pub(crate) fn ms(&self, quantile: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (quantile * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).map_or(0.0, |sample| sample.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let mut samples = Samples::default();
        assert!(samples.ms(0.5).abs() < 1e-9);
        (1..=200).rev().for_each(|ms| samples.add(Duration::from_millis(ms)));
        for (quantile, ms) in [(0.0, 1.0), (0.5, 100.0), (0.99, 198.0), (1.0, 200.0)] {
            assert!((samples.ms(quantile) - ms).abs() < 1e-9, "{quantile}");
        }
    }
}
