//! The state of one circuit breaker in one word, so that every transition is one compare-and-swap.
//!
//! The word holds the state, how often it changed (a call counts in the state that let it through, and in no later one), and either when
//! the circuit opened or, half open, how many calls were let through, ended, failed and were slow.

use super::window::{Call, Totals, Window};
use crate::sync::atomic::{AtomicU64, Ordering};

/// CLOSED, OPEN and HALF_OPEN, as Resilience4j defines them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// All calls pass.
    Closed,
    /// None does.
    Open,
    /// Some do, to see whether the destination works again.
    HalfOpen,
}

/// The numbers by which it decides. Times are milliseconds, rates percent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// `failureRateThreshold`.
    pub failure_rate: f64,
    /// `slowCallRateThreshold`.
    pub slow_rate: f64,
    /// `minimumNumberOfCalls`, at least 1.
    pub minimum_calls: u32,
    /// `permittedNumberOfCallsInHalfOpenState`, from 1 to [`MAX_PERMITTED`].
    pub permitted: u32,
    /// `waitDurationInOpenState`.
    pub wait_open: u64,
    /// `maxWaitDurationInHalfOpenState`; None waits without limit.
    pub wait_half_open: Option<u64>,
}

impl Limits {
    fn is_exceeded(&self, totals: Totals) -> bool {
        let calls = f64::from(totals.calls.max(1));
        100.0 * f64::from(totals.failed) / calls >= self.failure_rate
            || 100.0 * f64::from(totals.slow) / calls >= self.slow_rate
    }
}

/// The largest `permittedNumberOfCallsInHalfOpenState`.
pub const MAX_PERMITTED: u32 = COUNT as u32;

/// The right to make one call, given in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permission(u64);

/// A call is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Milliseconds until one may pass again, when that is known.
    pub retry_after: Option<u64>,
}

/// The state changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// From.
    pub from: Phase,
    /// To.
    pub to: Phase,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Cell {
    word: AtomicU64,
    /// When it became half open.
    since: AtomicU64,
}

/// Layout: 2 bits of phase, 22 of generation, 40 of payload: a time, or four counts of 10.
const PAYLOAD: u64 = (1 << 40) - 1;
const GENERATION: u64 = (1 << 22) - 1;
const COUNT: u64 = (1 << 10) - 1;

#[derive(Clone, Copy)]
struct Word(u64);

impl Word {
    const fn new(phase: Phase, generation: u64, payload: u64) -> Self {
        Self((phase as u64) << 62 | (generation & GENERATION) << 40 | payload & PAYLOAD)
    }

    const fn phase(self) -> Phase {
        match self.0 >> 62 {
            0 => Phase::Closed,
            1 => Phase::Open,
            _ => Phase::HalfOpen,
        }
    }

    const fn generation(self) -> u64 {
        self.0 >> 40 & GENERATION
    }

    const fn payload(self) -> u64 {
        self.0 & PAYLOAD
    }

    /// Another phase, and so a new generation.
    const fn next(self, phase: Phase, payload: u64) -> Self {
        Self::new(phase, self.generation() + 1, payload)
    }

    const fn half_open(self) -> HalfOpen {
        let p = self.payload();
        HalfOpen { taken: p & COUNT, ended: p >> 10 & COUNT, failed: p >> 20 & COUNT, slow: p >> 30 & COUNT }
    }

    const fn with(self, half: HalfOpen) -> Self {
        let payload = half.taken | half.ended << 10 | half.failed << 20 | half.slow << 30;
        Self::new(Phase::HalfOpen, self.generation(), payload)
    }
}

#[derive(Clone, Copy)]
struct HalfOpen {
    taken: u64,
    ended: u64,
    failed: u64,
    slow: u64,
}

impl Cell {
    fn load(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    fn swap(&self, old: Word, new: Word) -> bool {
        self.word.compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The phase, and when it opened.
    #[must_use]
    pub fn phase(&self) -> (Phase, Option<u64>) {
        let word = self.load();
        let opened = (word.phase() == Phase::Open).then(|| word.payload());
        (word.phase(), opened)
    }

    /// May a call pass at `now`? The transition that this makes, if any, is the second of the answer.
    ///
    /// # Errors
    /// It may not.
    pub fn try_acquire(
        &self,
        limits: &Limits,
        now: u64,
    ) -> (Result<Permission, Refused>, Option<Transition>) {
        loop {
            let word = self.load();
            let done = match word.phase() {
                Phase::Closed => return (Ok(Permission(word.generation())), None),
                Phase::Open => self.pass_open(word, limits, now),
                Phase::HalfOpen => self.pass_half_open(word, limits, now),
            };
            if let Some(done) = done {
                return done;
            }
        }
    }

    /// None: another thread was faster.
    fn pass_open(&self, word: Word, limits: &Limits, now: u64) -> Option<Asked> {
        let until =
            if word.phase() == Phase::Open { word.payload().saturating_add(limits.wait_open) } else { now };
        if now < until {
            return Some((Err(Refused { retry_after: Some(until - now) }), None));
        }
        self.since.fetch_max(now, Ordering::AcqRel);
        let half = HalfOpen { taken: 1, ended: 0, failed: 0, slow: 0 };
        let next = word.next(Phase::HalfOpen, 0).with(half);
        let change = Transition { from: Phase::Open, to: Phase::HalfOpen };
        self.swap(word, next).then(|| (Ok(Permission(next.generation())), Some(change)))
    }

    fn pass_half_open(&self, word: Word, limits: &Limits, now: u64) -> Option<Asked> {
        let opened =
            limits.wait_half_open.map(|wait| self.since.load(Ordering::Acquire).saturating_add(wait));
        if let Some(opened) = opened.filter(|opened| now >= *opened) {
            // It waited long enough: since then it is open, or half open anew when that was long ago too.
            let open = word.next(Phase::Open, opened);
            let until = opened.saturating_add(limits.wait_open);
            if now >= until {
                return self.pass_open(word, limits, now);
            }
            let change = Transition { from: Phase::HalfOpen, to: Phase::Open };
            let refused = Refused { retry_after: Some(until - now) };
            return self.swap(word, open).then_some((Err(refused), Some(change)));
        }
        let mut half = word.half_open();
        if half.ended >= limits.permitted.into() {
            // An edit permits no more than have ended already.
            let (next, change) = decided(word, half, limits, now);
            let asked = match next.phase() {
                Phase::Open => Err(Refused { retry_after: Some(limits.wait_open) }),
                _ => Ok(Permission(next.generation())),
            };
            return self.swap(word, next).then_some((asked, Some(change)));
        }
        if half.taken >= limits.permitted.into() {
            return Some((Err(Refused { retry_after: None }), None));
        }
        half.taken += 1;
        self.swap(word, word.with(half)).then(|| (Ok(Permission(word.generation())), None))
    }

    /// A call ended. It counts if the state that let it through is still the state.
    pub fn record(
        &self,
        permission: Permission,
        call: Call,
        (limits, window): (&Limits, &Window),
        now: u64,
    ) -> Option<Transition> {
        loop {
            let word = self.load();
            if word.generation() != permission.0 {
                return None;
            }
            match word.phase() {
                Phase::Closed => return self.record_closed(word, call, (limits, window), now),
                // Nobody is let through by an open circuit.
                Phase::Open => return None,
                Phase::HalfOpen => {
                    let (next, change) = after(word, call, limits, now);
                    if self.swap(word, next) {
                        return change;
                    }
                }
            }
        }
    }

    fn record_closed(
        &self,
        word: Word,
        call: Call,
        (limits, window): (&Limits, &Window),
        now: u64,
    ) -> Option<Transition> {
        let totals = window.record(call, now);
        if totals.calls < limits.minimum_calls || !limits.is_exceeded(totals) {
            return None;
        }
        // Closed has no payload, so that this fails only when another thread opened it.
        self.swap(word, word.next(Phase::Open, now)).then(|| {
            window.clear();
            Transition { from: Phase::Closed, to: Phase::Open }
        })
    }

    /// A call ended that says nothing about the destination: another may be made in its place.
    pub fn release(&self, permission: Permission) {
        loop {
            let word = self.load();
            if word.generation() != permission.0 || word.phase() != Phase::HalfOpen {
                return;
            }
            let mut half = word.half_open();
            half.taken = half.taken.saturating_sub(1);
            if self.swap(word, word.with(half)) {
                return;
            }
        }
    }

    /// An operator closes it.
    pub fn close(&self, window: &Window) {
        loop {
            let word = self.load();
            if self.swap(word, word.next(Phase::Closed, 0)) {
                return window.clear();
            }
        }
    }

    /// The same state for another window: of an edited circuit breaker.
    #[must_use]
    pub fn copy(&self) -> Self {
        let word = self.load();
        // Half open, those who were let through would not be heard of here.
        let word = if word.phase() == Phase::HalfOpen { word.next(Phase::Open, 0) } else { word };
        Self { word: AtomicU64::new(word.0), since: AtomicU64::new(self.since.load(Ordering::Acquire)) }
    }
}

type Asked = (Result<Permission, Refused>, Option<Transition>);

/// What follows when a half-open call ended: when all have, the circuit closes or opens again.
fn after(word: Word, call: Call, limits: &Limits, now: u64) -> (Word, Option<Transition>) {
    let mut half = word.half_open();
    half.ended += 1;
    half.failed += u64::from(call.failed);
    half.slow += u64::from(call.slow);
    if half.ended < limits.permitted.into() {
        return (word.with(half), None);
    }
    let (next, change) = decided(word, half, limits, now);
    (next, Some(change))
}

/// What follows when enough have ended: the circuit closes or opens again.
fn decided(word: Word, half: HalfOpen, limits: &Limits, now: u64) -> (Word, Transition) {
    #[expect(clippy::cast_possible_truncation, reason = "10 bits")]
    let totals = Totals { calls: half.ended as u32, failed: half.failed as u32, slow: half.slow as u32 };
    let from = Phase::HalfOpen;
    if limits.is_exceeded(totals) {
        (word.next(Phase::Open, now), Transition { from, to: Phase::Open })
    } else {
        (word.next(Phase::Closed, 0), Transition { from, to: Phase::Closed })
    }
}
