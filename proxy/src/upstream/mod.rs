//! Upstream: clusters, their endpoints, name resolution, connections and their pools.

pub mod census;
pub mod cluster;
pub mod connect;
pub mod connects;
pub mod dns;
pub mod endpoint;
pub mod fetch;
pub mod health;
pub mod lease;
pub mod lifespan;
pub mod original_dst;
pub mod outcome;
pub mod outlier;
pub mod pool;
pub mod server;
pub mod sweep;
pub mod transport;
