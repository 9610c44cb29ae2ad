//! Mesh documents -> xDS resources.
//!
//! People write Kubernetes-style documents (`apiVersion`, `kind`, `metadata`, `spec`): Service, Workload, HTTPRoute attached to a
//! Service (the Gateway API's mesh shape), TrafficPolicy. [`Documents::read`] takes their texts and checks them, each on its own and
//! all together; every mistake has file, line, field and, where it is known, a fix.
//!
//! A [`Mesh`] holds documents and registered instances, indexed. A [`Compiler`] keeps what every Service gives to its callers
//! ([`ServiceResources`]), compiles after a [`Change`] only what it touched, and puts together what a node gets
//! ([`NodeResources`]).
//!
//! All of it is pure: no I/O, no clock, no async. The same documents give the same resources, to the byte.

pub mod document;

mod check;
mod compile;
mod de;
mod kinds;
mod mesh;
mod name;
mod read;
mod resource;
pub mod schema;
mod span;

pub use check::{Finding, Lack, Related, Rule, Severity, findings, senseless};
pub use compile::names;
pub use compile::{
    BadNode, Callers, Compiler, Credentials, Lease, Listening, NodeKind, NodeRequest, NodeResources,
    OutboundTraffic, PortResources, Problem, Profile, ServiceResources, UnknownWorkload, leases,
    node_resources, service_resources,
};
pub use kinds::{AnyDocument, Documents, Kind};
pub use mesh::{Change, Health, Instance, Mesh, Touched};
pub use name::{ByName, Key, Name};
pub use read::split;
pub use resource::{Resource, ResourceKind};
pub use span::Span;
