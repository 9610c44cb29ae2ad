//! xDS v3 as Remora speaks it: the protobuf types, the YAML/JSON codec that knows the line of every field,
//! and the checks that decide whether a resource is accepted.
//!
//! - [`pb`]: the Envoy v3 API (crate `envoy-types`).
//! - [`Schema`]: text -> message with every mistake located ([`Schema::parse`]), the same checks for protobuf bytes
//!   ([`Schema::check_any`]), and messages as JSON and YAML.
//! - [`diag`]: configuration errors with file, line, field path and a suggested fix.
//! - [`any`][mod@any]: packing and unpacking of `google.protobuf.Any`.
//!
//! Which fields are supported stands in `supported.txt` and, made from it, in `docs/reference/envoy-fields.md`.

pub mod any;
pub mod diag;
pub mod yaml;

mod blob;
mod check;
mod codec;
mod duration;
mod json;
mod pgv;
mod schema;
mod suggest;
#[cfg(test)]
mod supported;
mod transcode;
mod yaml_out;

pub use codec::Parsed;
/// The Envoy v3 API as Rust types. No type from here passes the data plane's compiler.
pub use envoy_types::pb;
pub use schema::Schema;
pub use suggest::nearest;
pub use yaml_out::write as write_yaml;
