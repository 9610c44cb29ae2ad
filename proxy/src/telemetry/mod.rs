//! Observability: access logs and their format strings, metrics.

pub mod access_log;
pub mod flags;
pub mod format;
pub mod labels;
pub mod metrics;
pub mod record;
