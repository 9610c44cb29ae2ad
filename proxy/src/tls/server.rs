//! TLS towards downstream.

/// A compiled `DownstreamTlsContext`.
#[derive(Debug)]
pub struct ServerTls;
