//! The side-by-side run: every proxy under the same load, measured from outside.
//!
//! What counts is CPU per request at a fixed rate. On two cores it is the only figure that the neighbours of the
//! machine, and the load generator itself, do not decide.

pub(crate) mod certs;
mod measure;
pub(crate) mod procfs;
mod proxies;
pub(crate) mod report;
pub(crate) mod spawn;
mod stats;
mod targets;

pub(crate) use measure::Origin;
pub use measure::{Plan, run};
pub use proxies::{Programs, Proxy, Scenario};
pub use report::{Results, table};
pub use spawn::Placement;
pub use targets::{Check, checks};
