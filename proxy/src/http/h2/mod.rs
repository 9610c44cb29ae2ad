//! HTTP/2 (RFC 9113) on the h2 crate.

pub mod client;
pub mod convert;
pub mod cork;
pub mod guard;
pub mod server;
pub mod tunnel;
