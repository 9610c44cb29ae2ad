//! How the load is shared between priorities, and when health is ignored.
//!
//! The arithmetic is Envoy's, in integer percent
//! (<https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/priority>): a priority's health is its
//! share of healthy endpoints times the overprovisioning factor, at most 100; priorities are filled in their order, healthy
//! endpoints of all priorities before degraded ones. When all priorities together are less than 100 % healthy, a priority
//! below the panic threshold uses all its endpoints.

use crate::upstream::endpoint::Health;

/// Endpoints of one priority, counted or weighed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Healthy endpoints, for the load.
    pub healthy: u64,
    /// Degraded endpoints, for the load.
    pub degraded: u64,
    /// All endpoints, for the load.
    pub total: u64,
    /// Healthy and degraded endpoints by number, for panic mode.
    pub available_hosts: u64,
    /// All endpoints by number, for panic mode.
    pub hosts: u64,
}

impl Count {
    /// Adds an endpoint that counts for `weight`.
    pub fn add(&mut self, health: Health, weight: u64) {
        self.hosts += 1;
        self.total += weight;
        match health {
            Health::Healthy => self.healthy += weight,
            Health::Degraded => self.degraded += weight,
            Health::Unhealthy => return,
        }
        self.available_hosts += 1;
    }

    fn percent(&self, part: u64, overprovisioning: u32) -> u32 {
        if self.total == 0 {
            return 0;
        }
        let percent = u128::from(overprovisioning) * u128::from(part) / u128::from(self.total);
        u32::try_from(percent).unwrap_or(100).min(100)
    }

    fn below(&self, panic_threshold: u32) -> bool {
        self.hosts == 0 && panic_threshold > 0
            || self.available_hosts * 100 < u64::from(panic_threshold) * self.hosts
    }
}

/// What one priority and health class gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// The priority.
    pub priority: u32,
    /// The endpoints that get it; all of the priority's in panic mode.
    pub health: Health,
    /// Share of the requests in percent. All loads together are 100, unless there is nothing to use.
    pub percent: u32,
    /// The priority is in panic mode.
    pub panic: bool,
}

/// The loads of all priorities, healthy before degraded, each in the order of priorities. `counts` is indexed by priority.
#[must_use]
pub fn loads(counts: &[Count], overprovisioning: u32, panic_threshold: u32) -> Vec<Load> {
    let healthy: Vec<u32> = counts.iter().map(|c| c.percent(c.healthy, overprovisioning)).collect();
    let degraded: Vec<u32> = counts.iter().map(|c| c.percent(c.degraded, overprovisioning)).collect();
    let available: u64 = healthy.iter().chain(&degraded).map(|p| u64::from(*p)).sum();
    let available = u32::try_from(available.min(100)).unwrap_or(100);

    let panic: Vec<bool> = counts.iter().map(|c| available < 100 && c.below(panic_threshold)).collect();
    if panic.iter().all(|p| *p) {
        return total_panic(counts);
    }
    if available == 0 {
        return Vec::new();
    }
    let mut left = 100;
    let mut loads = Vec::with_capacity(counts.len());
    for (health, shares) in [(Health::Healthy, &healthy), (Health::Degraded, &degraded)] {
        for (priority, share) in (0_u32..).zip(shares) {
            let percent = (share * 100 / available).min(left);
            left -= percent;
            let panic = panic[priority as usize];
            loads.push(Load { priority, health, percent, panic });
        }
    }
    give_remainder(&mut loads, left);
    loads
}

/// Every priority is below the threshold: the load follows the number of endpoints.
fn total_panic(counts: &[Count]) -> Vec<Load> {
    let hosts: u64 = counts.iter().map(|c| c.hosts).sum();
    if hosts == 0 {
        return Vec::new();
    }
    let mut left = 100;
    let mut loads = Vec::with_capacity(counts.len());
    for (priority, count) in (0_u32..).zip(counts) {
        let percent = u32::try_from(u128::from(count.hosts) * 100 / u128::from(hosts)).unwrap_or(0);
        left -= percent;
        loads.push(Load { priority, health: Health::Healthy, percent, panic: true });
    }
    // The remainder must not go to an empty priority: nothing could be picked there.
    let first = loads.iter_mut().find(|l| counts[l.priority as usize].hosts > 0);
    if let Some(load) = first {
        load.percent += left;
    }
    loads
}

/// What integer division left over goes to the first that gets anything.
fn give_remainder(loads: &mut [Load], left: u32) {
    if let Some(load) = loads.iter_mut().find(|l| l.percent > 0) {
        load.percent += left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn level(healthy: u64, degraded: u64, total: u64) -> Count {
        let hosts = total;
        Count { healthy, degraded, total, available_hosts: healthy + degraded, hosts }
    }

    fn percents(levels: &[Count], threshold: u32) -> Vec<(u32, Health, u32, bool)> {
        let loads = loads(levels, 140, threshold);
        loads.iter().filter(|l| l.percent > 0).map(|l| (l.priority, l.health, l.percent, l.panic)).collect()
    }

    use Health::{Degraded, Healthy};

    /// The table of Envoy's documentation, two levels, P=1 all healthy.
    #[test]
    fn traffic_trickles_to_lower_priorities() {
        let table = [(100, 100, 0), (72, 100, 0), (71, 99, 1), (50, 70, 30), (25, 35, 65), (0, 0, 100)];
        for (healthy, p0, p1) in table {
            let got = percents(&[level(healthy, 0, 100), level(100, 0, 100)], 50);
            let want: Vec<_> = [(0, Healthy, p0, false), (1, Healthy, p1, false)].into();
            let want: Vec<_> = want.into_iter().filter(|l| l.2 > 0).collect();
            assert_eq!(got, want, "{healthy} % healthy");
        }
    }

    /// Total health below 100 is scaled up: 20 % and 20 % healthy is 28 + 28 = 56, so each gets half.
    #[test]
    fn health_is_normalised() {
        let got = percents(&[level(20, 0, 100), level(20, 0, 100)], 0);
        assert_eq!(got, [(0, Healthy, 50, false), (1, Healthy, 50, false)]);
    }

    /// Envoy's table "panic threshold", threshold 50 %, and total panic, which counts endpoints.
    #[test]
    fn panic_needs_all_priorities_together_to_be_short() {
        // P0 25 %, P1 25 %: 35 + 35 = 70 < 100, both below 50 %: total panic.
        let got = percents(&[level(25, 0, 100), level(25, 0, 100)], 50);
        assert_eq!(got, [(0, Healthy, 50, true), (1, Healthy, 50, true)]);
        // P0 5 %, P1 65 %: 7 + 91 = 98 < 100, only P0 panics.
        let got = percents(&[level(5, 0, 100), level(65, 0, 100)], 50);
        assert_eq!(got, [(0, Healthy, 8, true), (1, Healthy, 92, false)]);
        // P0 0 %, P1 100 %: nobody panics.
        let got = percents(&[level(0, 0, 100), level(100, 0, 100)], 50);
        assert_eq!(got, [(1, Healthy, 100, false)]);
        // Nothing healthy: by number of endpoints, the remainder to the first.
        let got = percents(&[level(0, 0, 1), level(0, 0, 2)], 50);
        assert_eq!(got, [(0, Healthy, 34, true), (1, Healthy, 66, true)]);
        assert_eq!(percents(&[level(0, 0, 3)], 0), []);
        assert_eq!(percents(&[], 50), []);
    }

    #[test]
    fn degraded_endpoints_come_after_all_healthy_ones() {
        let got = percents(&[level(25, 75, 100), level(50, 0, 100)], 50);
        assert_eq!(got, [(0, Healthy, 35, false), (1, Healthy, 65, false)]);
        let got = percents(&[level(25, 25, 100), level(25, 0, 100)], 50);
        assert_eq!(got, [(0, Healthy, 35, false), (1, Healthy, 35, false), (0, Degraded, 30, false)]);
        let got = percents(&[level(0, 10, 10)], 50);
        assert_eq!(got, [(0, Degraded, 100, false)]);
    }

    proptest! {
        #[test]
        fn loads_are_a_hundred_or_nothing_can_be_used(
            levels in prop::collection::vec((0_u64..20, 0_u64..20, 0_u64..20), 0..6),
            factor in 0_u32..1000,
            threshold in 0_u32..=100,
        ) {
            let counts: Vec<Count> =
                levels.iter().map(|(h, d, u)| level(*h, *d, h + d + u)).collect();
            let loads = loads(&counts, factor, threshold);
            let sum: u32 = loads.iter().map(|l| l.percent).sum();
            prop_assert!(sum == 100 || sum == 0);
            for load in loads.iter().filter(|l| l.percent > 0) {
                let count = counts[load.priority as usize];
                let usable = match (load.panic, load.health) {
                    (true, _) => count.hosts,
                    (_, Healthy) => count.healthy,
                    _ => count.degraded,
                };
                prop_assert!(usable > 0, "{load:?} of {count:?}");
            }
        }
    }
}
