//! xDS v3 as Remora speaks it: the protobuf types, the YAML/JSON codec that knows the line of every field,
//! and the checks that decide whether a resource is accepted.
//!
//! - [`pb`]: the Envoy v3 API (crate `envoy-types`).
//! - [`Schema`]: text -> message with every mistake located ([`Schema::parse`]), the same checks for protobuf bytes
//!   ([`Schema::check_any`]), and messages as JSON and YAML.
//! - [`diag`]: configuration errors with file, line, field path and a suggested fix.
//! - [`any`][mod@any]: packing and unpacking of `google.protobuf.Any`.
//! - [`canonical`]: the same, so that equal messages give equal bytes.
//! - [`Kind`]: the kinds of resources that a stream carries, their order and what refers to what.
//! - feature `server`: [`Resource`] and [`NodeSnapshot`], [`stream`] (pure state machines of a control plane's streams), and
//!   [`server`], the gRPC service made of them.
//! - feature `client`: [`client`], the data plane's side of the protocol.
//!
//! Which fields are supported stands in `supported.txt` and, made from it, in `docs/reference/envoy-fields.md`.

pub mod any;
pub mod canonical;
#[cfg(feature = "client")]
pub mod client;
pub mod diag;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod stream;
pub mod typed_struct;
pub mod wire;
pub mod yaml;

mod blob;
mod check;
mod codec;
mod duration;
mod glance;
mod json;
mod kind;
#[cfg(feature = "server")]
mod node_snapshot;
mod pgv;
#[cfg(feature = "server")]
mod resource;
mod schema;
mod suggest;
#[cfg(test)]
mod supported;
mod transcode;
mod yaml_out;

pub use codec::Parsed;
pub use duration::parse_text as parse_duration;
/// The Envoy v3 API as Rust types. No type from here passes the data plane's compiler.
pub use envoy_types::pb;
pub use glance::Seen;
pub use kind::{Kind, Named};
#[cfg(feature = "server")]
pub use node_snapshot::{NodeSnapshot, Resources};
#[cfg(feature = "server")]
pub use resource::Resource;
pub use schema::Schema;
pub use suggest::nearest;
pub use yaml_out::write as write_yaml;
