//! Who may do what, compiled from Envoy's policy filters. Pure: a [`View`](view::View) in, a verdict out; no clock, no I/O.
//!
//! - [`view`]: what a rule may look at.
//! - [`rbac`]: `envoy.config.rbac.v3.RBAC`, for requests and for connections.
//! - [`index`]: which policies of many can match at all.
//! - [`jwt`]: tokens, and who must show which.
//! - [`authz`]: what an external service is asked, and what its answer means.
//! - [`overrides`]: what routes say about the filters of their listener.

pub mod authz;
pub mod index;
pub mod jwt;
pub mod overrides;
pub mod rbac;
pub mod view;
