//! Picks the filter chain of a connection (Envoy `FilterChainMatch`).

/// Compiled filter chain matches of one listener.
#[derive(Debug, Default)]
pub struct ChainMatcher;
