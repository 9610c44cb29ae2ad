//! Outlier detection (`envoy.config.cluster.v3.OutlierDetection`): what is counted of each endpoint, and when that is too much.
//!
//! [`Monitor`] counts on the workers; [`Ejection`] and [`outliers`] are the control runtime's, once an interval. Who is ejected in the end
//! is decided by [`crate::upstream::census`].

use std::time::Duration;

use tokio::time::Instant;

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::upstream::outcome::Verdict;

/// Why an endpoint is ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// `consecutive_5xx`.
    Consecutive5xx,
    /// `consecutive_gateway_failure`.
    ConsecutiveGatewayFailure,
    /// `consecutive_local_origin_failure`.
    ConsecutiveLocalOriginFailure,
    /// Success rate.
    SuccessRate,
    /// Success rate of what does not come from the endpoint.
    SuccessRateLocalOrigin,
    /// `failure_percentage_threshold`.
    FailurePercentage,
    /// The same for what does not come from the endpoint.
    FailurePercentageLocalOrigin,
}

impl Cause {
    /// All of them, in their order.
    pub const ALL: [Self; 7] = [
        Self::Consecutive5xx,
        Self::ConsecutiveGatewayFailure,
        Self::ConsecutiveLocalOriginFailure,
        Self::SuccessRate,
        Self::SuccessRateLocalOrigin,
        Self::FailurePercentage,
        Self::FailurePercentageLocalOrigin,
    ];

    /// Name in logs and metrics (Envoy `OutlierEjectionType`).
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "consecutive_5xx",
            Self::ConsecutiveGatewayFailure => "consecutive_gateway_failure",
            Self::ConsecutiveLocalOriginFailure => "consecutive_local_origin_failure",
            Self::SuccessRate => "success_rate",
            Self::SuccessRateLocalOrigin => "success_rate_local_origin",
            Self::FailurePercentage => "failure_percentage",
            Self::FailurePercentageLocalOrigin => "failure_percentage_local_origin",
        }
    }
}

/// `OutlierDetection`. Percentages are from 0 to 100.
#[derive(Debug, Clone, PartialEq)]
pub struct OutlierSpec {
    /// `consecutive_5xx`, default 5.
    pub consecutive_5xx: u32,
    /// `consecutive_gateway_failure`, default 5.
    pub consecutive_gateway_failure: u32,
    /// `consecutive_local_origin_failure`, default 5.
    pub consecutive_local_origin_failure: u32,
    /// `enforcing_…` of each cause: how many of a hundred that are found are ejected.
    pub enforcing: [u32; Cause::ALL.len()],
    /// `interval`, default 10 s.
    pub interval: Duration,
    /// `base_ejection_time`, default 30 s.
    pub base_ejection_time: Duration,
    /// `max_ejection_time`, default 300 s or the base, whichever is longer.
    pub max_ejection_time: Duration,
    /// `max_ejection_time_jitter`, default 0.
    pub jitter: Duration,
    /// `max_ejection_percent`, default 10.
    pub max_ejection_percent: u32,
    /// `always_eject_one_host`.
    pub always_eject_one: bool,
    /// `success_rate_minimum_hosts`, default 5.
    pub success_rate_minimum_hosts: usize,
    /// `success_rate_request_volume`, default 100.
    pub success_rate_request_volume: u32,
    /// `success_rate_stdev_factor`, default 1900: thousandths.
    pub success_rate_stdev_factor: u32,
    /// `failure_percentage_threshold`, default 85.
    pub failure_percentage_threshold: u32,
    /// `failure_percentage_minimum_hosts`, default 5.
    pub failure_percentage_minimum_hosts: usize,
    /// `failure_percentage_request_volume`, default 50.
    pub failure_percentage_request_volume: u32,
    /// `split_external_local_origin_errors`.
    pub split: bool,
    /// `successful_active_health_check_uneject_host`, default true.
    pub uneject_on_health_check: bool,
}

impl Default for OutlierSpec {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway_failure: 5,
            consecutive_local_origin_failure: 5,
            enforcing: [100, 0, 100, 100, 100, 0, 0],
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            jitter: Duration::ZERO,
            max_ejection_percent: 10,
            always_eject_one: false,
            success_rate_minimum_hosts: 5,
            success_rate_request_volume: 100,
            success_rate_stdev_factor: 1900,
            failure_percentage_threshold: 85,
            failure_percentage_minimum_hosts: 5,
            failure_percentage_request_volume: 50,
            split: false,
            uneject_on_health_check: true,
        }
    }
}

impl OutlierSpec {
    /// How many of `hosts` endpoints may be ejected at once.
    #[must_use]
    pub fn limit(&self, hosts: usize) -> u32 {
        let share = hosts as u64 * u64::from(self.max_ejection_percent.min(100)) / 100;
        u32::try_from(share).unwrap_or(u32::MAX).max(self.always_eject_one.into())
    }

    /// Whether the rates of `hosts` endpoints are compared at all.
    #[must_use]
    pub fn wants_rates(&self, hosts: usize) -> bool {
        hosts >= self.success_rate_minimum_hosts.min(self.failure_percentage_minimum_hosts)
    }

    /// Whether a finding is followed by ejection; `roll` is from 0 to 99.
    #[must_use]
    pub const fn enforces(&self, cause: Cause, roll: u32) -> bool {
        roll < self.enforcing[cause as usize]
    }
}

/// Good and all attempts of an interval.
#[derive(Debug, Default)]
struct Rate(AtomicU64);

impl Rate {
    fn add(&self, good: bool) {
        self.0.fetch_add(1 << 32 | u64::from(good), Ordering::Relaxed);
    }

    /// The interval is over: (all, good).
    #[expect(clippy::cast_possible_truncation, reason = "halves")]
    fn take(&self) -> (u32, u32) {
        let word = self.0.swap(0, Ordering::Relaxed);
        ((word >> 32) as u32, word as u32)
    }
}

/// What is counted of one endpoint, by all workers.
#[derive(Debug, Default)]
pub struct Monitor {
    errors: AtomicU32,
    gateway: AtomicU32,
    local: AtomicU32,
    external_rate: Rate,
    local_rate: Rate,
    /// Of the last interval, in thousandths of a percent plus one; 0 when there was not enough traffic.
    shown: [AtomicU32; 2],
}

/// Counts one more in a row; true when that makes `limit`, after which it begins again.
fn reaches(row: &AtomicU32, limit: u32) -> bool {
    let reached = row.fetch_add(1, Ordering::Relaxed).wrapping_add(1) == limit;
    if reached {
        row.store(0, Ordering::Relaxed);
    }
    reached
}

/// A success mostly finds nothing to write.
fn interrupt(row: &AtomicU32) {
    if row.load(Ordering::Relaxed) != 0 {
        row.store(0, Ordering::Relaxed);
    }
}

impl Monitor {
    /// Counts an attempt, for its rate too when `rates`. Answers which limits it reached, in the order in which Envoy asks.
    pub fn note(&self, spec: &OutlierSpec, verdict: Verdict, rates: bool) -> [Option<Cause>; 2] {
        match verdict {
            Verdict::Neither => [None, None],
            Verdict::LocalOrigin(_) if spec.split => {
                if rates {
                    self.local_rate.add(false);
                }
                let reached = reaches(&self.local, spec.consecutive_local_origin_failure);
                [reached.then_some(Cause::ConsecutiveLocalOriginFailure), None]
            }
            Verdict::LocalOrigin(status) | Verdict::ServerError(status) => {
                self.reached(spec, rates);
                if rates {
                    self.external_rate.add(false);
                }
                let gateway = matches!(status, 502..=504);
                if !gateway {
                    interrupt(&self.gateway);
                }
                let gateway = gateway && reaches(&self.gateway, spec.consecutive_gateway_failure);
                let errors = reaches(&self.errors, spec.consecutive_5xx);
                [gateway.then_some(Cause::ConsecutiveGatewayFailure), errors.then_some(Cause::Consecutive5xx)]
            }
            Verdict::Good => {
                self.reached(spec, rates);
                if rates {
                    self.external_rate.add(true);
                }
                interrupt(&self.errors);
                interrupt(&self.gateway);
                [None, None]
            }
        }
    }

    /// The endpoint was reached.
    fn reached(&self, spec: &OutlierSpec, rates: bool) {
        if spec.split {
            interrupt(&self.local);
            if rates {
                self.local_rate.add(true);
            }
        }
    }

    /// Nothing is in a row any more: after an ejection ended, so that one failure does not eject it again.
    pub fn forget_rows(&self) {
        [&self.errors, &self.gateway, &self.local].into_iter().for_each(interrupt);
        let _before = self.take_rates();
    }

    /// The interval is over: the rates of it.
    pub fn take_rates(&self) -> [Volume; 2] {
        [&self.external_rate, &self.local_rate].map(|rate| {
            let (all, good) = rate.take();
            Volume { all, good }
        })
    }

    /// Success rates of the last interval in percent, when there was enough traffic: of answers, of local origin.
    #[must_use]
    pub fn success_rates(&self) -> [Option<f64>; 2] {
        self.shown.each_ref().map(|cell| {
            let thousandths = cell.load(Ordering::Relaxed).checked_sub(1)?;
            Some(f64::from(thousandths) / 1000.0)
        })
    }

    /// Shows the rate of an interval; `which` is 0 for answers, 1 for local origin.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100,000")]
    fn show(&self, which: usize, rate: Option<f64>) {
        let value = rate.map_or(0, |rate| (rate * 1000.0).round() as u32 + 1);
        self.shown[which].store(value, Ordering::Relaxed);
    }
}

/// Attempts of one interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Volume {
    /// All.
    pub all: u32,
    /// Those that succeeded.
    pub good: u32,
}

impl Volume {
    fn rate(self) -> f64 {
        100.0 * f64::from(self.good) / f64::from(self.all)
    }
}

/// Compares the rates of an interval and says who is conspicuous, with the cause. `hosts` are those that are not ejected, with what was
/// counted of them; of `total` endpoints. `local` chooses which causes there are.
#[must_use]
pub fn outliers(
    spec: &OutlierSpec,
    total: usize,
    hosts: &[(&Monitor, Volume)],
    local: bool,
) -> Vec<(usize, Cause)> {
    let mut found = Vec::new();
    let (rate_cause, percentage_cause) = if local {
        (Cause::SuccessRateLocalOrigin, Cause::FailurePercentageLocalOrigin)
    } else {
        (Cause::SuccessRate, Cause::FailurePercentage)
    };
    let with = |volume: u32| {
        let enough = move |(_, (_, v)): &(usize, &(&Monitor, Volume))| v.all > 0 && v.all >= volume;
        hosts.iter().enumerate().filter(enough).map(|(i, (_, v))| (i, v.rate())).collect::<Vec<_>>()
    };
    if !spec.wants_rates(total) {
        return found;
    }
    let rates = with(spec.success_rate_request_volume);
    hosts.iter().for_each(|(monitor, _)| monitor.show(local.into(), None));
    for (i, rate) in &rates {
        hosts[*i].0.show(local.into(), Some(*rate));
    }
    if !rates.is_empty() && rates.len() >= spec.success_rate_minimum_hosts {
        let threshold = threshold(&rates, spec.success_rate_stdev_factor);
        found.extend(rates.iter().filter(|(_, rate)| *rate < threshold).map(|(i, _)| (*i, rate_cause)));
    }
    let rates = with(spec.failure_percentage_request_volume);
    if !rates.is_empty() && rates.len() >= spec.failure_percentage_minimum_hosts {
        let limit = f64::from(spec.failure_percentage_threshold);
        found.extend(
            rates.iter().filter(|(_, rate)| 100.0 - rate >= limit).map(|(i, _)| (*i, percentage_cause)),
        );
    }
    found
}

/// Below this success rate an endpoint is conspicuous: the mean less `factor` thousandths of a standard deviation.
#[expect(clippy::cast_precision_loss, reason = "numbers of endpoints")]
fn threshold(rates: &[(usize, f64)], factor: u32) -> f64 {
    let n = rates.len() as f64;
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / n;
    let variance = rates.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / n;
    mean - f64::from(factor) / 1000.0 * variance.sqrt()
}

/// How often and since when an endpoint is ejected. The control runtime's.
#[derive(Debug, Clone, Default)]
pub struct Ejection {
    /// When it began; None when it is not ejected.
    at: Option<Instant>,
    /// How many base times it lasts. An interval without ejection takes one off.
    times: u32,
    jitter: Duration,
}

impl Ejection {
    /// Whether it is known to be ejected.
    #[must_use]
    pub const fn is_ejected(&self) -> bool {
        self.at.is_some()
    }

    /// Whether the past is forgotten, so that nothing has to be kept.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.at.is_none() && self.times == 0
    }

    /// An ejection begins. Answers how long it lasts at least.
    pub fn begin(&mut self, spec: &OutlierSpec, now: Instant, rng: &mut fastrand::Rng) -> Duration {
        self.at = Some(now);
        let (base, max) = (spec.base_ejection_time, spec.max_ejection_time);
        if base.saturating_mul(self.times) < max.saturating_add(base) {
            self.times += 1;
        }
        let most = u64::try_from(spec.jitter.as_millis()).unwrap_or(u64::MAX - 1);
        self.jitter = Duration::from_millis(rng.u64(0..=most));
        self.length(spec)
    }

    fn length(&self, spec: &OutlierSpec) -> Duration {
        let base = spec.base_ejection_time;
        let length = base.saturating_mul(self.times).min(spec.max_ejection_time).max(base);
        length.saturating_add(self.jitter)
    }

    /// Asked once an interval. True: the ejection is over.
    pub fn tick(&mut self, spec: &OutlierSpec, now: Instant) -> bool {
        match self.at {
            Some(at) => now.saturating_duration_since(at) >= self.length(spec),
            None => {
                self.times = self.times.saturating_sub(1);
                false
            }
        }
    }

    /// It is not ejected any more.
    pub const fn end(&mut self) {
        self.at = None;
    }
}

#[cfg(test)]
#[path = "outlier_tests.rs"]
mod tests;
