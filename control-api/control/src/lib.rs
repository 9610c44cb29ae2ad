//! The commands of `remora`, the one binary that a person runs.

pub mod cli;

mod bench;
mod check;
mod demo;
