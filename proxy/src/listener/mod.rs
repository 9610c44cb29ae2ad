//! Listeners: accept, original destination, detection, filter chain match, and a connection's way to its codec.

pub mod accept;
pub mod admission;
pub mod chain_match;
pub mod connection;
pub mod detect;
pub mod original_dst;
pub mod socket;
