//! Metrics and access logs.

pub mod access_log;
