//! Where resources come from. Nothing else knows.

pub mod file;
