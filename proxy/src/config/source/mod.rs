//! Where resources come from. Nothing else knows.

pub mod ads;
pub mod disk;
pub mod file;
