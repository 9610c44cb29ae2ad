//! The Remora data plane: a sidecar proxy that is configured by xDS v3 and by nothing else.
//!
//! Module names are the boxes of the diagrams in ARCHITECTURE.md.

pub mod admin;
pub mod app;
pub mod balance;
pub mod bootstrap;
pub mod cli;
mod clock;
pub mod config;
pub mod dns;
pub mod drain;
pub mod error;
pub mod http;
pub mod identity;
pub mod io;
pub mod limits;
pub mod listener;
pub mod notify;
pub mod policy;
pub mod readiness;
pub mod resilience;
pub mod restart;
pub mod route;
pub mod signal;
mod sync;
pub mod tcp;
pub mod tcp_proxy;
pub mod telemetry;
pub mod tls;
pub mod traffic;
pub mod upstream;
pub mod why;
pub mod worker;
