//! Documents between what a person wrote and what a store keeps.

mod diff;
mod json;
mod read;
mod record;

pub use diff::{diff, normal};
pub use read::{Incoming, Mistake, Text, read};
pub use record::Record;
