//! What Remora must reach, as checks over a run.

use clap::ValueEnum as _;
use serde::Serialize;

use super::proxies::{Proxy, Scenario, name};
use super::report::Results;

/// Most CPU per request, over HAProxy's.
const OVER_HAPROXY: f64 = 1.25;
/// Most CPU per request, over Envoy's.
const OVER_ENVOY: f64 = 0.5;
/// Most CPU per connection with a handshake, over Envoy's.
const HANDSHAKE_OVER_ENVOY: f64 = 1.0;
/// Most CPU per request with everything for resilience on, over that without.
const RESILIENCE: f64 = 1.05;
/// Most resident memory of one idle process, in MB (10⁶ bytes).
const IDLE_MB: f64 = 10.0;
/// Most time from the start of a process to its first answer, in milliseconds.
const READY_MS: f64 = 50.0;

/// One target.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What is compared.
    pub what: String,
    /// What was measured; `None` if it was not.
    pub value: Option<f64>,
    /// The most that is allowed.
    pub limit: f64,
}

impl Check {
    /// Whether it was measured and is within the limit.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.value.is_some_and(|value| value <= self.limit)
    }

    /// One line for a person.
    #[must_use]
    pub fn line(&self) -> String {
        let mark = if self.passed() { "ok  " } else { "MISS" };
        let value = self.value.map_or_else(|| "not measured".to_owned(), |value| format!("{value:.2}"));
        format!("{mark} {}: {value} (at most {})", self.what, self.limit)
    }
}

/// The most CPU per request in a scenario, over that of others.
const fn ratios(scenario: Scenario) -> &'static [(Proxy, f64)] {
    match scenario {
        Scenario::H1 | Scenario::H2 | Scenario::MtlsPair | Scenario::MtlsPairPolicy => {
            &[(Proxy::Haproxy, OVER_HAPROXY), (Proxy::Envoy, OVER_ENVOY)]
        }
        Scenario::Handshake | Scenario::HandshakeHybrid | Scenario::HandshakeResumed => {
            &[(Proxy::Envoy, HANDSHAKE_OVER_ENVOY)]
        }
        Scenario::FourEndpoints | Scenario::Resilience | Scenario::Tcp => &[],
    }
}

/// The checks for the scenarios that were run.
#[must_use]
pub fn checks(results: &Results) -> Vec<Check> {
    let mut checks = Vec::new();
    let ran = |scenario: Scenario| results.rows.iter().any(|row| row.scenario == scenario);
    for &scenario in Scenario::value_variants().iter().filter(|scenario| ran(**scenario)) {
        for &(to, limit) in ratios(scenario) {
            let what = format!("{} CPU per request over {}", name(&scenario), name(&to));
            checks.push(Check { what, value: results.ratio(scenario, Proxy::Remora, to), limit });
        }
    }
    if ran(Scenario::FourEndpoints) && ran(Scenario::Resilience) {
        let cpu = |scenario| Some(results.of(scenario, Proxy::Remora)?.cpu_us).filter(|cpu| *cpu > 0.0);
        checks.push(Check {
            what: "resilience CPU per request over four-endpoints".into(),
            value: cpu(Scenario::Resilience).zip(cpu(Scenario::FourEndpoints)).map(|(on, off)| on / off),
            limit: RESILIENCE,
        });
    }
    let remora = results.rows.iter().filter(|row| row.proxy == Proxy::Remora);
    let measured = remora.clone().filter_map(|row| results.of(row.scenario, row.proxy));
    let worst = |values: Vec<f64>| values.into_iter().reduce(f64::max);
    let idle = measured.clone().map(|r| r.idle.resident as f64 / 1e6 / r.processes.max(1) as f64);
    checks.push(Check {
        what: "idle memory of a process, MB".into(),
        value: worst(idle.collect()),
        limit: IDLE_MB,
    });
    let ready = measured.clone().map(|r| r.ready_ms);
    checks.push(Check {
        what: "ready after start, ms".into(),
        value: worst(ready.collect()),
        limit: READY_MS,
    });
    let errors = measured.map(|r| r.errors as f64);
    checks.push(Check { what: "failed requests".into(), value: worst(errors.collect()), limit: 0.0 });
    checks
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::results;
    use super::*;

    #[test]
    fn targets_are_met_exactly_at_their_limits() {
        let results = results(&[(Proxy::Haproxy, 20.0), (Proxy::Envoy, 50.0), (Proxy::Remora, 25.0)]);
        let checks = checks(&results);
        assert_eq!(checks.len(), 9);
        // 8 MB are one process, or two of 4 MB.
        assert!(checks.iter().all(Check::passed), "{checks:?}");
    }

    #[test]
    fn a_miss_and_a_rival_that_was_not_measured_both_fail() {
        let results = results(&[(Proxy::Haproxy, 20.0), (Proxy::Remora, 26.0)]);
        let failed = checks(&results).iter().filter(|check| !check.passed()).count();
        assert_eq!(failed, 6);
    }
}
