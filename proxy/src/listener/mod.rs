//! Listeners: accept, original destination, detection, filter chain match.

pub mod chain_match;
