//! xDS v3 as Remora speaks it: the protobuf types, the YAML/JSON codec that knows the line of every field,
//! and the checks that decide whether a resource is accepted.
//!
//! - [`pb`]: the Envoy v3 API (crate `envoy-types`).
//! - [`diag`]: configuration errors with file, line, field path and a suggested fix.

pub mod diag;

/// The Envoy v3 API as Rust types. No type from here passes the data plane's compiler.
pub use envoy_types::pb;
