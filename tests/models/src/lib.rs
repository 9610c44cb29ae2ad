//! The proxy's shared state machines over loom's atomics; see tests/.
#![allow(missing_docs, dead_code, unreachable_pub, reason = "what the files say is said in the proxy")]

mod sync {
    pub(crate) mod atomic {
        pub(crate) use loom::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
    }
}

#[path = "../../../proxy/src/resilience"]
pub mod resilience {
    pub mod breaker;
    pub mod budget;
}

#[path = "../../../proxy/src/upstream"]
pub mod upstream {
    pub mod census;
}

#[path = "../../../proxy/src/resilience/circuit"]
pub mod circuit {
    pub mod cell;
    pub mod window;
}
