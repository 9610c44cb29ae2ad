//! Active health checks: when an endpoint is checked, and what its answers mean (`envoy.config.core.v3.HealthCheck`).

use std::time::Duration;

/// The schedule and the thresholds of a cluster's health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// `timeout` of one check.
    pub timeout: Duration,
    /// `interval`.
    pub interval: Duration,
    /// `unhealthy_interval`, default `interval`: while checks fail.
    pub unhealthy_interval: Duration,
    /// `unhealthy_edge_interval`, default `unhealthy_interval`: while it takes more failures to take the endpoint out.
    pub unhealthy_edge_interval: Duration,
    /// `healthy_edge_interval`, default `interval`: while it takes more successes to take it in.
    pub healthy_edge_interval: Duration,
    /// `no_traffic_interval`, default 60 s: while nobody uses the cluster and checks fail.
    pub no_traffic_interval: Duration,
    /// `no_traffic_healthy_interval`, default `no_traffic_interval`: while nobody uses the cluster and checks pass.
    pub no_traffic_healthy_interval: Duration,
    /// `initial_jitter`: the first check comes within this time.
    pub initial_jitter: Duration,
    /// `interval_jitter`: up to this is added to every interval.
    pub interval_jitter: Duration,
    /// `interval_jitter_percent`: up to this share of it is added too.
    pub interval_jitter_percent: u32,
    /// `unhealthy_threshold`: failures in a row that take it out.
    pub unhealthy_threshold: u32,
    /// `healthy_threshold`: successes in a row that take it in again.
    pub healthy_threshold: u32,
}

/// What came of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// The endpoint says that it is healthy.
    Passed,
    /// It says that it is not: that counts at once.
    Refused,
    /// It did not answer, or with a status of `retriable_statuses`: that counts when it happens several times in a row.
    Failed,
}

/// The checks of one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    healthy: bool,
    /// No check has ended yet: the first that passes takes it in, whatever the threshold.
    first: bool,
    in_a_row: u32,
    /// How the last check ended, and whether it changed anything.
    last: (bool, bool),
}

impl Checked {
    /// An endpoint that no check has ended for; `healthy` says what it is until then.
    #[must_use]
    pub const fn new(healthy: bool) -> Self {
        Self { healthy, first: true, in_a_row: 0, last: (healthy, false) }
    }

    /// The same, for checks that go on where others ended.
    pub const fn resume(&mut self) {
        self.first = false;
    }

    /// Whether no check has ended yet.
    #[must_use]
    pub const fn is_first(&self) -> bool {
        self.first
    }

    /// Whether it is to get requests.
    #[must_use]
    pub const fn is_healthy(&self) -> bool {
        self.healthy
    }

    /// A check ended. Answers whether the health changed.
    pub fn ended(&mut self, schedule: &Schedule, finding: Finding) -> bool {
        let passed = finding == Finding::Passed;
        // A row of the same kind goes on; another begins.
        self.in_a_row =
            if self.last.0 == passed && !self.first { self.in_a_row.saturating_add(1) } else { 1 };
        let enough = match finding {
            Finding::Passed => self.first || self.in_a_row >= schedule.healthy_threshold,
            Finding::Refused => true,
            Finding::Failed => self.in_a_row >= schedule.unhealthy_threshold,
        };
        let changed = self.healthy != passed && enough;
        if changed {
            self.healthy = passed;
        }
        self.first = false;
        self.last = (passed, passed != self.healthy);
        changed
    }

    /// How long to wait for the first check.
    pub fn first_wait(schedule: &Schedule, rng: &mut fastrand::Rng) -> Duration {
        up_to(schedule.initial_jitter, rng)
    }

    /// How long to wait for the next check: by the edge intervals while it takes more of its kind to change the health. `used`: the cluster
    /// has had traffic.
    pub fn wait(&self, schedule: &Schedule, used: bool, rng: &mut fastrand::Rng) -> Duration {
        let base = match (used, self.last) {
            (false, (true, false)) => schedule.no_traffic_healthy_interval,
            (false, _) => schedule.no_traffic_interval,
            (true, (true, true)) => schedule.healthy_edge_interval,
            (true, (true, false)) => schedule.interval,
            (true, (false, true)) => schedule.unhealthy_edge_interval,
            (true, (false, false)) => schedule.unhealthy_interval,
        };
        let share = base.saturating_mul(schedule.interval_jitter_percent) / 100;
        base.saturating_add(up_to(schedule.interval_jitter, rng)).saturating_add(up_to(share, rng))
    }
}

fn up_to(most: Duration, rng: &mut fastrand::Rng) -> Duration {
    Duration::from_micros(rng.u64(0..=u64::try_from(most.as_micros()).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Finding::{Failed, Passed, Refused};

    fn schedule() -> Schedule {
        let seconds = Duration::from_secs;
        Schedule {
            timeout: seconds(1),
            interval: seconds(10),
            unhealthy_interval: seconds(5),
            unhealthy_edge_interval: seconds(2),
            healthy_edge_interval: seconds(3),
            no_traffic_interval: seconds(60),
            no_traffic_healthy_interval: seconds(70),
            initial_jitter: Duration::ZERO,
            interval_jitter: Duration::ZERO,
            interval_jitter_percent: 0,
            unhealthy_threshold: 3,
            healthy_threshold: 2,
        }
    }

    /// After which of the findings the health changed, and what it is in the end.
    fn changes(checked: &mut Checked, findings: &[Finding]) -> (Vec<usize>, bool) {
        let schedule = schedule();
        let at = findings.iter().enumerate().filter(|(_, finding)| checked.ended(&schedule, **finding));
        (at.map(|(i, _)| i).collect(), checked.is_healthy())
    }

    #[test]
    fn the_first_success_takes_an_endpoint_in() {
        assert_eq!(changes(&mut Checked::new(false), &[Passed]), (vec![0], true));
        // Once a check has failed, the threshold holds.
        assert_eq!(changes(&mut Checked::new(false), &[Failed, Passed, Passed]), (vec![2], true));
    }

    #[test]
    fn failures_count_in_a_row() {
        let mut checked = Checked::new(true);
        assert_eq!(changes(&mut checked, &[Failed, Failed, Passed, Failed, Failed]), (vec![], true));
        assert_eq!(changes(&mut checked, &[Failed, Passed, Failed, Passed]), (vec![0], false));
        assert_eq!(changes(&mut checked, &[Passed]), (vec![0], true));
    }

    #[test]
    fn what_the_endpoint_says_itself_counts_at_once() {
        let mut checked = Checked::new(false);
        assert_eq!(changes(&mut checked, &[Passed, Refused, Refused, Passed, Passed]), (vec![0, 1, 4], true));
    }

    #[test]
    fn the_wait_depends_on_what_happened() {
        let (schedule, mut rng) = (schedule(), fastrand::Rng::with_seed(1));
        let mut checked = Checked::new(false);
        let mut wait = |finding, used| {
            checked.ended(&schedule, finding);
            checked.wait(&schedule, used, &mut rng).as_secs()
        };
        assert_eq!(wait(Passed, true), 10);
        assert_eq!(wait(Failed, true), 2);
        assert_eq!(wait(Failed, true), 2);
        assert_eq!(wait(Failed, true), 5);
        assert_eq!(wait(Passed, true), 3);
        assert_eq!(wait(Passed, true), 10);
        assert_eq!(wait(Refused, true), 5);
        assert_eq!(wait(Failed, false), 60);
        assert_eq!(wait(Passed, false), 60);
        assert_eq!(wait(Passed, false), 70);
    }

    #[test]
    fn jitter_only_adds() {
        let mut schedule = schedule();
        schedule.interval_jitter = Duration::from_secs(1);
        schedule.interval_jitter_percent = 50;
        schedule.initial_jitter = Duration::from_secs(4);
        let mut rng = fastrand::Rng::with_seed(1);
        let mut checked = Checked::new(true);
        checked.ended(&schedule, Passed);
        let mut waits: Vec<_> = (0..200).map(|_| checked.wait(&schedule, true, &mut rng)).collect();
        waits.sort_unstable();
        assert!(waits[0] >= Duration::from_secs(10) && waits[199] <= Duration::from_secs(16));
        assert!(waits[199] - waits[0] > Duration::from_secs(3));
        assert!((0..200).all(|_| Checked::first_wait(&schedule, &mut rng) <= Duration::from_secs(4)));
    }
}
