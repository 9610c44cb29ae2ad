//! How many endpoints of a cluster may be used: what keeps the last one from being ejected.
//!
//! Three sources say that an endpoint is out: discovery, health checks, ejection. Each has a bit in the endpoint's [`Standing`]; who turns
//! the first bit on takes the endpoint out of the [`Census`], who turns the last one off puts it back, so that the count is exact
//! whatever order threads come in. Ejection takes its place in the count before it sets its bit, and only while another is in.

use crate::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Listed. An endpoint is in when this bit is set and none that says it is out.
const COUNTED: u8 = 1;
const EJECTED: u8 = 2;
const FAILED_HEALTH_CHECK: u8 = 4;
const BY_DISCOVERY: u8 = 8;
const GONE: u8 = 16;
const CHECKED: u8 = 32;

/// That nobody lists it is no reason to count it differently: [`Census::forget`] does that. Nor is whether it was ever checked.
const fn is_in(bits: u8) -> bool {
    bits & !(GONE | CHECKED) == COUNTED
}

/// Why an endpoint is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Out {
    /// Active health checks fail.
    HealthCheck,
    /// Discovery says that it is unhealthy or drains.
    Discovery,
}

impl Out {
    const fn bit(self) -> u8 {
        match self {
            Self::HealthCheck => FAILED_HEALTH_CHECK,
            Self::Discovery => BY_DISCOVERY,
        }
    }
}

/// What is said of one endpoint.
#[derive(Debug, Default)]
pub struct Standing(AtomicU8);

impl Standing {
    fn bits(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    /// Ejected or failed by health checks: what the proxy itself found out.
    #[must_use]
    pub fn is_out(&self) -> bool {
        self.bits() & (EJECTED | FAILED_HEALTH_CHECK) != 0
    }

    /// Ejected.
    #[must_use]
    pub fn is_ejected(&self) -> bool {
        self.bits() & EJECTED != 0
    }

    /// Failed by health checks.
    #[must_use]
    pub fn has_failed_health_check(&self) -> bool {
        self.bits() & FAILED_HEALTH_CHECK != 0
    }

    /// A first health check has ended.
    #[must_use]
    pub fn was_checked(&self) -> bool {
        self.bits() & CHECKED != 0
    }

    /// See [`Self::was_checked`]. False: nobody checks it any more.
    pub fn checked(&self, checked: bool) {
        self.set(CHECKED, checked);
    }

    /// Nobody lists the endpoint any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.bits() & GONE != 0
    }

    /// See [`Self::is_gone`]. For good.
    pub fn leave(&self) {
        self.0.fetch_or(GONE, Ordering::AcqRel);
    }

    /// Turns a bit on or off. Answers what was there before.
    fn set(&self, bit: u8, on: bool) -> u8 {
        if on { self.0.fetch_or(bit, Ordering::AcqRel) } else { self.0.fetch_and(!bit, Ordering::AcqRel) }
    }

    /// For tests of those who only read: as if nobody counted.
    #[cfg(test)]
    pub(crate) fn set_out(&self, why: Option<Out>, on: bool) -> bool {
        let bit = why.map_or(EJECTED, Out::bit);
        (self.set(bit, on) & bit != 0) != on
    }
}

/// Why an endpoint is not ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is already.
    Already,
    /// As many are ejected as may be.
    Limit,
    /// No other endpoint is in.
    Last,
}

/// The counts of one cluster: ejected in the upper half, in (see [`Standing`]) in the lower.
#[derive(Debug, Default)]
pub struct Census(AtomicU64);

const ONE_EJECTED: u64 = 1 << 32;
const ONE_IN: u64 = 1;

#[expect(clippy::cast_possible_truncation, reason = "halves")]
const fn halves(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

impl Census {
    /// Endpoints that are in.
    #[must_use]
    pub fn is_in(&self) -> u32 {
        halves(self.0.load(Ordering::Relaxed)).1
    }

    /// Endpoints that are ejected.
    #[must_use]
    pub fn ejected(&self) -> u32 {
        halves(self.0.load(Ordering::Relaxed)).0
    }

    /// Ejects an endpoint, unless `limit` are ejected or it is the last that is in.
    ///
    /// # Errors
    /// Why it stays.
    pub fn eject(&self, standing: &Standing, limit: u32) -> Result<(), Kept> {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            if standing.is_ejected() {
                return Err(Kept::Already);
            }
            let (ejected, is_in) = halves(word);
            if ejected >= limit {
                return Err(Kept::Limit);
            }
            if is_in <= 1 {
                return Err(Kept::Last);
            }
            let next = word + ONE_EJECTED - ONE_IN;
            match self.0.compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        let before = standing.set(EJECTED, true);
        if before & EJECTED != 0 {
            // Somebody else was faster: one ejection, one place.
            self.0.fetch_sub(ONE_EJECTED.wrapping_sub(ONE_IN), Ordering::AcqRel);
            return Err(Kept::Already);
        }
        if !is_in(before) {
            // It was out before, so that nobody left.
            self.0.fetch_add(ONE_IN, Ordering::AcqRel);
        }
        if before & COUNTED == 0 {
            // It has gone since it was picked.
            self.restore(standing);
            return Err(Kept::Already);
        }
        Ok(())
    }

    /// Ends an ejection. False: there was none.
    pub fn restore(&self, standing: &Standing) -> bool {
        let before = standing.set(EJECTED, false);
        if before & EJECTED == 0 {
            return false;
        }
        let back = if is_in(before & !EJECTED) { ONE_IN } else { 0 };
        self.0.fetch_sub(ONE_EJECTED.wrapping_sub(back), Ordering::AcqRel);
        true
    }

    /// Takes an endpoint out for another reason than ejection, or ends that. Answers whether that was a change.
    pub fn set(&self, standing: &Standing, why: Out, out: bool) -> bool {
        let bit = why.bit();
        let before = standing.set(bit, out);
        let after = if out { before | bit } else { before & !bit };
        match (is_in(before), is_in(after)) {
            (true, false) => self.0.fetch_sub(ONE_IN, Ordering::AcqRel),
            (false, true) => self.0.fetch_add(ONE_IN, Ordering::AcqRel),
            _ => 0,
        };
        before != after
    }

    /// Counts an endpoint that is listed. Once, however often it is called.
    pub fn join(&self, standing: &Standing) {
        let before = standing.set(COUNTED, true);
        if !is_in(before) && is_in(before | COUNTED) {
            self.0.fetch_add(ONE_IN, Ordering::AcqRel);
        }
    }

    /// Counts an endpoint no longer that nobody lists any more ([`Standing::leave`]).
    pub fn forget(&self, standing: &Standing) {
        standing.leave();
        if is_in(standing.set(COUNTED, false)) {
            self.0.fetch_sub(ONE_IN, Ordering::AcqRel);
        }
        self.restore(standing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(n: usize) -> (Census, Vec<Standing>) {
        let (census, all) = (Census::default(), (0..n).map(|_| Standing::default()).collect::<Vec<_>>());
        all.iter().for_each(|one| census.join(one));
        (census, all)
    }

    #[test]
    fn the_last_one_stays_in() {
        let (census, all) = listed(3);
        assert_eq!(census.eject(&all[0], 3), Ok(()));
        assert_eq!(census.eject(&all[0], 3), Err(Kept::Already));
        assert!(census.set(&all[1], Out::Discovery, true));
        assert_eq!((census.is_in(), census.ejected()), (1, 1));
        assert_eq!(census.eject(&all[2], 3), Err(Kept::Last));
        assert!(census.restore(&all[0]) && !census.restore(&all[0]));
        assert_eq!(census.eject(&all[2], 3), Ok(()));
        assert_eq!((census.is_in(), census.ejected()), (1, 1));
    }

    #[test]
    fn the_limit_counts_ejections_only() {
        let (census, all) = listed(10);
        assert!(census.set(&all[9], Out::HealthCheck, true));
        assert_eq!(census.eject(&all[0], 1), Ok(()));
        assert_eq!(census.eject(&all[1], 1), Err(Kept::Limit));
        assert_eq!(census.eject(&all[1], 0), Err(Kept::Limit));
    }

    #[test]
    fn an_endpoint_that_is_out_twice_counts_once() {
        let (census, all) = listed(3);
        assert_eq!(census.eject(&all[0], 3), Ok(()));
        assert!(census.set(&all[0], Out::HealthCheck, true));
        assert!(!census.set(&all[0], Out::HealthCheck, true));
        assert_eq!(census.is_in(), 2);
        census.restore(&all[0]);
        assert_eq!((census.is_in(), census.ejected()), (2, 0));
        census.set(&all[0], Out::HealthCheck, false);
        assert_eq!(census.is_in(), 3);
        assert!(census.set(&all[1], Out::HealthCheck, true));
        assert_eq!(census.eject(&all[1], 3), Ok(()));
        assert_eq!((census.is_in(), census.ejected()), (2, 1));
    }

    #[test]
    fn a_check_that_ended_counts_nobody() {
        let (census, all) = listed(2);
        all[0].checked(true);
        assert!(all[0].was_checked() && !all[1].was_checked());
        assert!(census.set(&all[0], Out::HealthCheck, true));
        assert_eq!(census.is_in(), 1);
        assert!(census.set(&all[0], Out::HealthCheck, false));
        assert_eq!(census.is_in(), 2);
        census.forget(&all[0]);
        assert_eq!(census.is_in(), 1);
    }

    #[test]
    fn those_who_leave_are_forgotten_with_their_ejection() {
        let (census, all) = listed(3);
        assert_eq!(census.eject(&all[0], 3), Ok(()));
        census.forget(&all[0]);
        census.forget(&all[1]);
        census.forget(&all[1]);
        assert_eq!((census.is_in(), census.ejected()), (1, 0));
        assert_eq!(census.eject(&all[2], 3), Err(Kept::Last));
        census.join(&all[2]);
        assert_eq!(census.is_in(), 1);
        let (census, all) = listed(4);
        all[0].leave();
        census.forget(&all[1]);
        assert_eq!(census.eject(&all[1], 3), Err(Kept::Already));
        assert_eq!(census.eject(&all[0], 3), Ok(()));
        census.forget(&all[0]);
        assert_eq!((census.is_in(), census.ejected()), (2, 0));
    }
}
