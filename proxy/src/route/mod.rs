//! Routing: pure matching and rewriting.

/// A compiled route configuration.
#[derive(Debug, Default)]
pub struct RouteTable;
