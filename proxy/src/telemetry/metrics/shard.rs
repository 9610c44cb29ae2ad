//! Counters with one writer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// `N` counters that one worker writes and a scrape reads. On cache lines of their own, so that no other worker's
/// writes slow this worker's down.
#[repr(align(64))]
#[derive(Debug)]
pub(super) struct Shard<const N: usize> {
    cells: [AtomicU64; N],
    /// The series expired: its worker is to ask for a new shard. What is still written here is not lost, though.
    retired: AtomicBool,
}

impl<const N: usize> Default for Shard<N> {
    fn default() -> Self {
        Self { cells: std::array::from_fn(|_| AtomicU64::new(0)), retired: AtomicBool::new(false) }
    }
}

impl<const N: usize> Shard<N> {
    /// Adds to a counter. Only the owning worker may call this: a load and a store, no locked instruction.
    pub(super) fn add(&self, cell: usize, n: u64) {
        let cell = &self.cells[cell];
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> [u64; N] {
        std::array::from_fn(|i| self.cells[i].load(Ordering::Relaxed))
    }
}

/// `sum += more`, cell by cell.
pub(super) fn add_all<const N: usize>(sum: &mut [u64; N], more: &[u64; N]) {
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum = sum.wrapping_add(*more);
    }
}
