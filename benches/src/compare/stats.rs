//! One proxy in one scenario: the rounds, and their medians.

use serde::Serialize;

use super::procfs::Memory;

/// What one round found for one proxy in one scenario.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Round {
    /// From starting the process to the first answered request, in milliseconds; the slower one of a pair.
    pub ready_ms: f64,
    /// Memory after the first answer, before the load.
    pub idle: Memory,
    /// Memory after the load.
    pub loaded: Memory,
    /// Processes that make up this proxy (2 for a pair).
    pub processes: usize,
    /// CPU of the proxy per request at the fixed rate, or per gigabyte in the TCP scenario: microseconds.
    pub cpu_us: f64,
    /// The part in user space.
    pub user_us: f64,
    /// The part in the kernel.
    pub system_us: f64,
    /// Requests per second that were answered at the fixed rate.
    pub rate: f64,
    /// Latency at the fixed rate, median, in microseconds.
    pub p50_us: f64,
    /// Latency at the fixed rate, 99th percentile, in microseconds.
    pub p99_us: f64,
    /// Requests per second in the closed loop, or gigabytes per second in the TCP scenario.
    pub ceiling: f64,
    /// CPU of the proxy per request in the closed loop, in microseconds.
    pub full_us: f64,
    /// Cores that the proxy used meanwhile: at 1.0 per process the ceiling is its own, below that the generator's.
    pub ceiling_cores: f64,
    /// Failed and unsent requests in both runs.
    pub errors: u64,
    /// The first failure, in words.
    pub first_error: Option<String>,
    /// Part of the machine that others used while the CPU was measured.
    pub noise: f64,
}

/// The median of what `pick` takes from each round; the mean of the middle two of an even number.
pub(super) fn median(rounds: &[Round], pick: impl Fn(&Round) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(pick).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.len() % 2, values.get(middle), middle.checked_sub(1).and_then(|below| values.get(below))) {
        (1, Some(value), _) => *value,
        (_, Some(above), Some(below)) => f64::midpoint(*above, *below),
        _ => 0.0,
    }
}

/// Medians of the rounds; counts are sums.
pub(super) fn summarise(rounds: &[Round]) -> Round {
    let bytes = |pick: fn(&Round) -> u64| median(rounds, |round| pick(round) as f64) as u64;
    Round {
        ready_ms: median(rounds, |r| r.ready_ms),
        idle: Memory { resident: bytes(|r| r.idle.resident), peak: bytes(|r| r.idle.peak) },
        loaded: Memory { resident: bytes(|r| r.loaded.resident), peak: bytes(|r| r.loaded.peak) },
        processes: rounds.iter().map(|r| r.processes).max().unwrap_or_default(),
        cpu_us: median(rounds, |r| r.cpu_us),
        user_us: median(rounds, |r| r.user_us),
        system_us: median(rounds, |r| r.system_us),
        rate: median(rounds, |r| r.rate),
        p50_us: median(rounds, |r| r.p50_us),
        p99_us: median(rounds, |r| r.p99_us),
        ceiling: median(rounds, |r| r.ceiling),
        full_us: median(rounds, |r| r.full_us),
        ceiling_cores: median(rounds, |r| r.ceiling_cores),
        errors: rounds.iter().map(|r| r.errors).sum(),
        first_error: rounds.iter().find_map(|r| r.first_error.clone()),
        noise: median(rounds, |r| r.noise),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_take_the_middle() {
        let rounds: Vec<Round> =
            [30.0, 10.0, 20.0, 1000.0].map(|cpu_us| Round { cpu_us, errors: 1, ..Round::default() }).into();
        assert!((median(&rounds, |r| r.cpu_us) - 25.0).abs() < 1e-9);
        assert!((median(&rounds[..3], |r| r.cpu_us) - 20.0).abs() < 1e-9);
        assert!(median(&[], |r| r.cpu_us).abs() < 1e-9);
        assert_eq!(summarise(&rounds).errors, 4);
    }
}
