//! TLS on both sides.

pub mod client;
pub mod server;
