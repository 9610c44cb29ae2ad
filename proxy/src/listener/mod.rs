//! Listeners: accept, original destination, detection, filter chain match.

pub mod chain_match;
pub mod detect;
pub mod original_dst;
pub mod socket;
