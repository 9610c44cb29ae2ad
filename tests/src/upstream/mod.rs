//! Upstreams that record what the proxy forwards and answer by script, misbehaving ones included.

pub mod http1;
pub mod http2;

use std::net::SocketAddr;

/// Something that listens.
pub trait Upstream {
    /// Where it listens.
    fn address(&self) -> SocketAddr;

    /// Whether the proxy must speak HTTP/2 to it.
    fn is_http2(&self) -> bool {
        false
    }
}
