//! The calls of late, counted by all workers without a lock.
//!
//! By count, the window is a ring of the last calls, exact: a call takes the next place of the ring, and the totals change by the difference
//! to what stood there. By time, it is sixteen slices of a fifteenth of the window each, so that a call leaves the totals between one and
//! 16/15 windows after it came; a slice that has counted 16,383 calls is halved, which keeps its rates.

use crate::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// What a window counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// All calls.
    pub calls: u32,
    /// Those that failed.
    pub failed: u32,
    /// Those that were slow.
    pub slow: u32,
}

/// How long a window is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// The last calls, at most [`MAX_CALLS`].
    Calls(u32),
    /// The last milliseconds.
    Millis(u64),
}

/// The longest window by count.
pub const MAX_CALLS: u32 = 100_000;

/// A call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// It failed.
    pub failed: bool,
    /// It was slow.
    pub slow: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Window {
    length: Length,
    counted: Counted,
}

#[derive(Debug)]
enum Counted {
    Ring { next: AtomicU64, places: Box<[AtomicU8]>, totals: AtomicU64 },
    Slices([AtomicU64; SLICES as usize]),
}

const USED: u8 = 1;
const FAILED: u8 = 2;
const SLOW: u8 = 4;

/// Three counts in one word, each of 21 bits. They begin at a bias: between two threads that change the same place of a small ring a count
/// may go below zero for a moment, and must not borrow from its neighbour.
const BITS: u32 = 21;
const MASK: u64 = (1 << BITS) - 1;
const BIAS: u64 = 1024;
const START: u64 = BIAS | BIAS << BITS | BIAS << (2 * BITS);

const SLICES: u64 = 16;
const SLICE_BITS: u32 = 14;
const SLICE_MASK: u64 = (1 << SLICE_BITS) - 1;
const STAMP_MASK: u64 = (1 << 22) - 1;

impl Window {
    /// An empty window.
    #[must_use]
    pub fn new(length: Length) -> Self {
        let counted = match length {
            Length::Calls(n) => Counted::Ring {
                next: AtomicU64::new(0),
                places: (0..n.clamp(1, MAX_CALLS)).map(|_| AtomicU8::new(0)).collect(),
                totals: AtomicU64::new(START),
            },
            Length::Millis(_) => Counted::Slices(std::array::from_fn(|_| AtomicU64::new(0))),
        };
        Self { length, counted }
    }

    /// How long it is.
    #[must_use]
    pub const fn length(&self) -> Length {
        self.length
    }

    /// Counts a call that ended at `now` (milliseconds of any clock that does not go back). Answers the totals with it.
    pub fn record(&self, call: Call, now: u64) -> Totals {
        match &self.counted {
            Counted::Ring { next, places, totals } => {
                let at = next.fetch_add(1, Ordering::Relaxed) % places.len() as u64;
                let new = USED | if call.failed { FAILED } else { 0 } | if call.slow { SLOW } else { 0 };
                let old = places[at as usize].swap(new, Ordering::AcqRel);
                let change = weight(new).wrapping_sub(weight(old));
                unpack(totals.fetch_add(change, Ordering::AcqRel).wrapping_add(change))
            }
            Counted::Slices(slices) => {
                let stamp = self.stamp(now);
                let cell = &slices[(stamp % SLICES) as usize];
                let mut old = cell.load(Ordering::Relaxed);
                loop {
                    let new = add_to_slice(old, stamp, call);
                    match cell.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Relaxed) {
                        Ok(_) => return self.totals(now),
                        Err(seen) => old = seen,
                    }
                }
            }
        }
    }

    /// What it counts at `now`.
    #[must_use]
    pub fn totals(&self, now: u64) -> Totals {
        match &self.counted {
            Counted::Ring { totals, .. } => unpack(totals.load(Ordering::Acquire)),
            Counted::Slices(slices) => {
                let stamp = self.stamp(now);
                slices.iter().fold(Totals::default(), |sum, cell| {
                    let (of, slice) = unpack_slice(cell.load(Ordering::Acquire));
                    if of == 0 || stamp.wrapping_sub(of) & STAMP_MASK >= SLICES {
                        return sum;
                    }
                    Totals {
                        calls: sum.calls + slice.calls,
                        failed: sum.failed + slice.failed,
                        slow: sum.slow + slice.slow,
                    }
                })
            }
        }
    }

    /// Forgets all calls. One that is counted at the same time may stay.
    pub fn clear(&self) {
        match &self.counted {
            Counted::Ring { places, totals, .. } => {
                for place in places {
                    let old = place.swap(0, Ordering::AcqRel);
                    if old != 0 {
                        totals.fetch_sub(weight(old), Ordering::AcqRel);
                    }
                }
            }
            Counted::Slices(slices) => slices.iter().for_each(|cell| cell.store(0, Ordering::Release)),
        }
    }

    /// The number of the slice of `now`; never 0, which is what an empty slice has.
    fn stamp(&self, now: u64) -> u64 {
        let width = match self.length {
            Length::Calls(_) => return 1,
            Length::Millis(length) => length.div_ceil(SLICES - 1).max(1),
        };
        (now / width % STAMP_MASK) + 1
    }
}

/// What a place of the ring adds to the totals.
const fn weight(place: u8) -> u64 {
    let (used, failed, slow) = (place & USED != 0, place & FAILED != 0, place & SLOW != 0);
    used as u64 | (failed as u64) << BITS | (slow as u64) << (2 * BITS)
}

const fn unpack(word: u64) -> Totals {
    Totals {
        calls: (word & MASK).saturating_sub(BIAS) as u32,
        failed: (word >> BITS & MASK).saturating_sub(BIAS) as u32,
        slow: (word >> (2 * BITS) & MASK).saturating_sub(BIAS) as u32,
    }
}

const fn unpack_slice(word: u64) -> (u64, Totals) {
    let totals = Totals {
        calls: (word & SLICE_MASK) as u32,
        failed: (word >> SLICE_BITS & SLICE_MASK) as u32,
        slow: (word >> (2 * SLICE_BITS) & SLICE_MASK) as u32,
    };
    (word >> (3 * SLICE_BITS), totals)
}

fn add_to_slice(word: u64, stamp: u64, call: Call) -> u64 {
    let (of, mut totals) = unpack_slice(word);
    if of != stamp {
        totals = Totals::default();
    }
    if u64::from(totals.calls) == SLICE_MASK {
        totals = Totals { calls: totals.calls / 2, failed: totals.failed / 2, slow: totals.slow / 2 };
    }
    let calls = u64::from(totals.calls) + 1;
    let failed = u64::from(totals.failed) + u64::from(call.failed);
    let slow = u64::from(totals.slow) + u64::from(call.slow);
    stamp << (3 * SLICE_BITS) | slow << (2 * SLICE_BITS) | failed << SLICE_BITS | calls
}
