//! Upstream: clusters, their endpoints, name resolution and connecting.

pub mod cluster;
pub mod connect;
pub mod dns;
pub mod endpoint;
pub mod original_dst;
