//! Retry budgets: retries in flight as a share of the requests in flight, so that retries never multiply an outage.
//!
//! With an interval they are a share of the requests of that time which needed no retry, as successes earn the tokens of gRPC's retry
//! throttling (proposal A6): what fails earns nothing, so the share shrinks with the health of the destination.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::Instant;

use super::breaker::{Breaker, Holder, Permit, Resource, Thresholds};
use crate::sync::atomic::{AtomicU64, Ordering};

/// `CircuitBreakers.Thresholds.RetryBudget`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BudgetSpec {
    /// `budget_percent`, default 20, of active and pending requests.
    pub percent: f64,
    /// `min_retry_concurrency`, default 3: so many retries are always allowed.
    pub min_concurrency: u32,
    /// `budget_interval`: count the requests begun in this time that asked for no retry, not only those in flight, and the retries
    /// begun in it, too: a share of what goes well, not of what is there at a moment. Zero (the default) is off.
    pub interval: Duration,
}

impl Default for BudgetSpec {
    fn default() -> Self {
        Self { percent: 20.0, min_concurrency: 3, interval: Duration::ZERO }
    }
}

/// Takes a permit for one retry, or hedge: by the budget when `thresholds` has one, else by `max_retries`. `is_first`: the request has not
/// asked before. Hold it until the retry has ended. None is counted as an overflow.
pub fn try_retry<H: Holder>(
    holder: H,
    thresholds: &Thresholds,
    is_first: bool,
    now: Instant,
) -> Option<Permit<H>> {
    let breaker = holder.breaker();
    let interval = thresholds.retry_budget.as_ref().map_or(Duration::ZERO, |budget| budget.interval);
    if is_first {
        breaker.failing.add(interval, now);
    }
    let limit = retry_limit(breaker, thresholds, now);
    if breaker.retried.count(interval, now) >= u64::from(limit) {
        // None is free: counted as such.
        return Breaker::try_acquire(holder, Resource::Retries, 0);
    }
    let permit = Breaker::try_acquire(holder, Resource::Retries, limit)?;
    permit.breaker().retried.add(interval, now);
    Some(permit)
}

/// How many retries may be in flight at the moment.
#[must_use]
pub fn retry_limit(breaker: &Breaker, thresholds: &Thresholds, now: Instant) -> u32 {
    let Some(budget) = &thresholds.retry_budget else { return thresholds.max_retries };
    let in_flight =
        u64::from(breaker.active(Resource::Requests)) + u64::from(breaker.active(Resource::Pending));
    let asked = breaker.recent.count(budget.interval, now);
    let base = in_flight.max(asked.saturating_sub(breaker.failing.count(budget.interval, now)));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float to integer cast saturates"
    )]
    #[expect(clippy::cast_precision_loss, reason = "exact below 2^53 requests")]
    let share = (base as f64 * budget.percent / 100.0) as u32;
    share.max(budget.min_concurrency)
}

/// Tells the budget of a new request (not of a retry). Free unless the budget has an interval.
pub fn record_request(breaker: &Breaker, thresholds: &Thresholds, now: Instant) {
    if let Some(budget) = &thresholds.retry_budget {
        breaker.recent.add(budget.interval, now);
    }
}

const SLOTS: u64 = 8;

/// Requests of the last interval, counted in slots of a seventh of it: a request leaves the count between 7/7 and 8/7 of the
/// interval after it came. Most clusters that a sidecar knows are never called: they have no slots.
#[derive(Debug, Default)]
pub(super) struct Recent(OnceLock<Box<Slots>>);

#[derive(Debug)]
struct Slots {
    start: Instant,
    /// Number of the slot in the upper half, requests in the lower.
    slots: [AtomicU64; SLOTS as usize],
}

impl Recent {
    fn add(&self, interval: Duration, now: Instant) {
        if !interval.is_zero() {
            let slots = self.0.get_or_init(|| Box::new(Slots { start: now, slots: Default::default() }));
            slots.add(interval, now);
        }
    }

    fn count(&self, interval: Duration, now: Instant) -> u64 {
        self.0.get().map_or(0, |slots| slots.count(interval, now))
    }
}

impl Slots {
    /// Number of the slot of `now`; None without an interval. It starts above zero, so that an empty slot counts as past.
    fn slot(&self, interval: Duration, now: Instant) -> Option<u32> {
        let width = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX).div_ceil(SLOTS - 1);
        let at = u64::try_from(now.saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX);
        let slot = at.checked_div(width)?;
        #[expect(clippy::cast_possible_truncation, reason = "wraps: only differences count")]
        Some((slot as u32).wrapping_add(2 * SLOTS as u32))
    }

    fn add(&self, interval: Duration, now: Instant) {
        let Some(slot) = self.slot(interval, now) else { return };
        let cell = &self.slots[(u64::from(slot) % SLOTS) as usize];
        let change = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| {
            let (of, count) = unpack(old);
            Some(pack(slot, if of == slot { count.saturating_add(1) } else { 1 }))
        });
        debug_assert!(change.is_ok(), "the closure always answers");
    }

    fn count(&self, interval: Duration, now: Instant) -> u64 {
        let Some(slot) = self.slot(interval, now) else { return 0 };
        let live = |old: u64| {
            let (of, count) = unpack(old);
            if u64::from(slot.wrapping_sub(of)) < SLOTS { u64::from(count) } else { 0 }
        };
        self.slots.iter().map(|cell| live(cell.load(Ordering::Relaxed))).sum()
    }
}

fn pack(slot: u32, count: u32) -> u64 {
    u64::from(slot) << 32 | u64::from(count)
}

#[expect(clippy::cast_possible_truncation, reason = "halves")]
const fn unpack(cell: u64) -> (u32, u32) {
    ((cell >> 32) as u32, cell as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn budget(percent: f64, min_concurrency: u32, interval: Duration) -> Thresholds {
        let budget = BudgetSpec { percent, min_concurrency, interval };
        Thresholds { retry_budget: Some(budget), ..Thresholds::default() }
    }

    #[test]
    fn without_a_budget_max_retries_holds() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        let thresholds = Thresholds::default();
        let held: Vec<_> = (0..3).map(|_| try_retry(&breaker, &thresholds, true, now).unwrap()).collect();
        assert!(try_retry(&breaker, &thresholds, true, now).is_none());
        assert_eq!(breaker.overflow(Resource::Retries), 1);
        drop(held);
        assert!(try_retry(&breaker, &thresholds, true, now).is_some());
    }

    #[test]
    fn the_budget_follows_active_and_pending_requests() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        let thresholds = budget(25.0, 3, Duration::ZERO);
        assert_eq!(retry_limit(&breaker, &thresholds, now), 3);
        let take = |resource, n| -> Vec<_> {
            (0..n).map(|_| Breaker::try_acquire(&breaker, resource, 1024).unwrap()).collect()
        };
        let requests = take(Resource::Requests, 80);
        let pending = take(Resource::Pending, 20);
        assert_eq!(retry_limit(&breaker, &thresholds, now), 25);
        drop((requests, pending));
        assert_eq!(retry_limit(&breaker, &thresholds, now), 3);
    }

    #[test]
    fn with_an_interval_requests_count_until_it_is_over() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        let thresholds = budget(20.0, 0, Duration::from_millis(100));
        for _ in 0..50 {
            record_request(&breaker, &thresholds, now);
        }
        assert_eq!(retry_limit(&breaker, &thresholds, now + Duration::from_millis(80)), 10);
        assert_eq!(retry_limit(&breaker, &thresholds, now + Duration::from_millis(120)), 0);
    }

    /// Retries that end at once are no way around the budget.
    #[test]
    fn with_an_interval_retries_count_until_it_is_over() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        let thresholds = budget(20.0, 10, Duration::from_secs(10));
        let burst = |now| (0..100).filter(|_| try_retry(&breaker, &thresholds, false, now).is_some()).count();
        assert_eq!(burst(start), 10);
        for _ in 0..100 {
            record_request(&breaker, &thresholds, start);
        }
        assert_eq!(burst(start + Duration::from_secs(5)), 10, "20 in the interval, of which 10 are used");
        assert_eq!(
            burst(start + Duration::from_secs(12)),
            0,
            "requests are forgotten, the 10 of 5 s are not"
        );
        assert_eq!(burst(start + Duration::from_secs(17)), 10);
        assert_eq!(breaker.active(Resource::Retries), 0);
    }

    /// Retries of a minute for each of its 60,000 requests, of which every `nth` fails, as do their retries.
    fn share_of_retries(nth: u64) -> f64 {
        let (breaker, start) = (Breaker::default(), Instant::now());
        let thresholds = budget(20.0, 100, Duration::from_secs(10));
        let mut retries = 0_u32;
        for ms in 0..60_000 {
            let now = start + Duration::from_millis(ms);
            record_request(&breaker, &thresholds, now);
            if ms % nth == 0 {
                let more = (1..=2).take_while(|n| try_retry(&breaker, &thresholds, *n == 1, now).is_some());
                retries += u32::try_from(more.count()).unwrap();
            }
        }
        f64::from(retries) / 60_000.0
    }

    #[test]
    fn retries_of_an_outage_are_a_share_of_what_still_works() {
        let whole = share_of_retries(1);
        assert!(whole > 0.005 && whole < 0.015, "only the ten a second: {whole}");
        let half = share_of_retries(2);
        assert!(half > 0.08 && half < 0.12, "a fifth of one half: {half}");
        let little = share_of_retries(20);
        assert!((little - 0.1).abs() < 0.002, "each one that was wanted: {little}");
    }

    proptest! {
        #[test]
        fn the_window_counts_what_came_within_the_interval(
            steps in prop::collection::vec(0_u64..400, 1..300), interval in 8_u64..2000
        ) {
            let recent = Recent::default();
            let length = Duration::from_millis(interval);
            let mut times = Vec::new();
            let mut now = Instant::now();
            for step in steps {
                now += Duration::from_millis(step);
                recent.add(length, now);
                times.push(now);
            }
            let within = |d: Duration| times.iter().filter(|t| now.duration_since(**t) < d).count() as u64;
            let seen = recent.count(length, now);
            prop_assert!(seen >= within(length), "{seen}");
            prop_assert!(seen <= within(length * 8 / 7 + Duration::from_millis(1)), "{seen}");
        }
    }
}
