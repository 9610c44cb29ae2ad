//! Resilience: limits and budgets; plain objects with `now` and `rng` passed in.

pub mod breaker;
pub mod budget;
