//! When to ask for a certificate. Times are of the wall clock, since 1970: that is what certificates end by.

use std::time::Duration;

use crate::resilience::backoff::Backoff;

/// Between attempts that fail: the wait grows to this.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A clock that is set back by less than this only makes a wait so much longer.
const STEP: Duration = Duration::from_secs(60);

/// See the module. A certificate is renewed at half of its life, a tenth earlier or later, so that those who started together
/// do not renew together.
#[derive(Debug)]
pub(super) struct Schedule {
    due: Duration,
    /// When `due` was decided.
    since: Duration,
    failures: u32,
    life: Option<Life>,
}

/// The life of a certificate in this process's hands.
#[derive(Debug)]
struct Life {
    began: Duration,
    ends: Duration,
    warned: Option<Warning>,
}

/// A certificate is not being renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Warning {
    /// A third of its life is left, or less.
    Ending,
    /// It has ended.
    Ended,
}

impl Schedule {
    /// At once. `held` is the end of a certificate of an earlier process: how old it is nobody knows any more.
    pub(super) fn new(now: Duration, held: Option<Duration>) -> Self {
        let life = held.map(|ends| Life { began: now, ends, warned: None });
        Self { due: now, since: now, failures: 0, life }
    }

    /// How long to wait before asking. Not at all when the clock was set back: `due` was a time of the clock before.
    pub(super) fn wait(&self, now: Duration) -> Duration {
        if now + STEP < self.since { Duration::ZERO } else { self.due.saturating_sub(now) }
    }

    /// There is a new certificate. False: by our clock it has ended already, which is a failure like others.
    pub(super) fn renewed(&mut self, now: Duration, ends: Duration, rng: &mut fastrand::Rng) -> bool {
        let life = ends.saturating_sub(now);
        if life.is_zero() {
            self.failed(now, rng);
            return false;
        }
        let wait = life.mul_f64(0.45 + 0.1 * rng.f64()).max(Duration::from_secs(1));
        (self.due, self.since) = (now + wait, now);
        self.failures = 0;
        self.life = Some(Life { began: now, ends, warned: None });
        true
    }

    /// There is none. The next attempt comes later, but well before the end of the certificate that there is.
    pub(super) fn failed(&mut self, now: Duration, rng: &mut fastrand::Rng) {
        self.failures = self.failures.saturating_add(1);
        let half = Duration::from_millis(250);
        let mut wait = half + Backoff::new(half, Some(LONGEST_WAIT)).delay(self.failures, rng);
        if let Some(left) = self.life.as_ref().map(|life| life.ends.saturating_sub(now))
            && !left.is_zero()
        {
            wait = wait.min((left / 4).max(half));
        }
        (self.due, self.since) = (now + wait, now);
    }

    /// What to warn of, once each.
    pub(super) fn warning(&mut self, now: Duration) -> Option<Warning> {
        let life = self.life.as_mut()?;
        let whole = life.ends.saturating_sub(life.began);
        let left = life.ends.saturating_sub(now);
        let warning = match left {
            Duration::ZERO => Warning::Ended,
            _ if left <= whole / 3 => Warning::Ending,
            _ => return None,
        };
        (life.warned < Some(warning)).then(|| {
            life.warned = Some(warning);
            warning
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_certificate_is_renewed_around_half_of_its_life() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut schedule = Schedule::new(s(100.0), None);
        assert_eq!(schedule.due, s(100.0));
        let mut all = Vec::new();
        for _ in 0..1000 {
            assert!(schedule.renewed(s(100.0), s(1100.0), &mut rng));
            all.push(schedule.due);
        }
        let (first, last) = (all.iter().min().unwrap(), all.iter().max().unwrap());
        assert!(*first >= s(550.0) && *first < s(560.0), "{first:?}");
        assert!(*last <= s(650.0) && *last > s(640.0), "{last:?}");
    }

    #[test]
    fn failures_wait_longer_and_longer_but_not_past_the_end() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut schedule = Schedule::new(s(0.0), None);
        let mut now = s(0.0);
        for _ in 0..40 {
            schedule.failed(now, &mut rng);
            let wait = schedule.due - now;
            assert!(wait >= s(0.25) && wait <= LONGEST_WAIT + s(0.25), "{wait:?}");
            now = schedule.due;
        }
        assert!(schedule.renewed(now, now + s(20.0), &mut rng));
        for _ in 0..40 {
            schedule.failed(now, &mut rng);
            assert!(schedule.due - now <= s(5.0));
        }
    }

    #[test]
    fn a_clock_that_is_set_back_is_no_reason_to_wait() {
        let (hour, mut rng) = (3600.0, fastrand::Rng::with_seed(1));
        let mut schedule = Schedule::new(s(9.0 * hour), None);
        schedule.failed(s(9.0 * hour), &mut rng);
        assert!(schedule.wait(s(9.0 * hour)) > Duration::ZERO);
        assert_eq!(schedule.wait(s(8.0 * hour)), Duration::ZERO);
        // Asked in vain once more: from there on the new clock counts.
        schedule.failed(s(8.0 * hour), &mut rng);
        let wait = schedule.wait(s(8.0 * hour));
        assert!(wait > Duration::ZERO && wait < LONGEST_WAIT, "{wait:?}");
        // A clock that is corrected by a second is none that was set back.
        assert!(schedule.wait(s(8.0 * hour - 1.0)) > wait);
    }

    #[test]
    fn the_end_is_announced_once_at_a_third_and_once_when_it_comes() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut schedule = Schedule::new(s(0.0), None);
        assert_eq!(schedule.warning(s(0.0)), None);
        assert!(schedule.renewed(s(0.0), s(30.0), &mut rng));
        assert_eq!(schedule.warning(s(19.0)), None);
        assert_eq!(schedule.warning(s(20.0)), Some(Warning::Ending));
        assert_eq!(schedule.warning(s(25.0)), None);
        assert_eq!(schedule.warning(s(30.0)), Some(Warning::Ended));
        assert_eq!(schedule.warning(s(31.0)), None);
        assert!(schedule.renewed(s(31.0), s(61.0), &mut rng));
        assert_eq!(schedule.warning(s(31.0)), None);
    }

    #[test]
    fn a_ca_that_gives_out_what_has_ended_is_not_asked_in_a_loop() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut schedule = Schedule::new(s(10.0), None);
        let mut now = s(10.0);
        for _ in 0..10 {
            assert!(!schedule.renewed(now, s(5.0), &mut rng));
            now = schedule.due;
        }
        assert!(now > s(60.0), "{now:?}");
        assert!(schedule.renewed(now, now + s(10.0), &mut rng));
    }
}
