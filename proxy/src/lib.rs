//! The Remora data plane: a sidecar proxy that is configured by xDS v3 and by nothing else.
//!
//! Module names are the boxes of the diagrams in ARCHITECTURE.md.

pub mod balance;
pub mod config;
pub mod error;
pub mod http;
pub mod listener;
pub mod resilience;
pub mod route;
pub mod telemetry;
pub mod tls;
pub mod upstream;
