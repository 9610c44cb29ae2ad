//! Where shared state machines take their atomics from. The model check (tests/models) includes the same files with loom's in this
//! place, and so sees every order in which threads can meet in them.

pub(crate) mod atomic {
    pub(crate) use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
}
