//! Access logs.

/// A compiled access log.
#[derive(Debug, Default)]
pub struct AccessLog;
