//! Mesh documents -> xDS resources.
//!
//! People write Kubernetes-style documents (`apiVersion`, `kind`, `metadata`, `spec`): Service, Workload, HTTPRoute attached to a
//! Service (the Gateway API's mesh shape), TrafficPolicy. [`Documents::read`] takes their texts and checks them, each on its own and
//! all together; every mistake has file, line, field and, where it is known, a fix. [`compile()`] makes of them what one sidecar
//! needs, and nothing else. [`files()`] writes that down as the bootstrap and the watched files of that sidecar.
//!
//! All of it is pure: no I/O, no clock, no async. The same documents give the same resources, to the byte.

pub mod document;

mod check;
mod compile;
mod de;
mod files;
mod read;
mod span;

pub use compile::names;
pub use compile::{Credentials, Delivery, Listening, Resources, Sidecar, UnknownWorkload, compile};
pub use files::{File, files};
pub use read::{Documents, split};
pub use span::Span;
