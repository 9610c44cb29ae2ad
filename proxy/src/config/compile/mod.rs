//! Resources in, an immutable indexed plan out. Pure: no I/O but the certificate files that a TLS context names, no
//! clock, no running state. Each kind of resource has one module; all mistakes go into one [`Errors`].

pub mod access_log;
pub mod circuit;
pub mod cluster;
pub mod common;
pub(crate) mod fields;
pub mod listener;
pub mod overload;
pub mod policy;
pub mod route;
pub mod tls;
pub mod traffic;

use remora_xds::diag::Errors;

use crate::config::names::Names;

/// What every compile function gets: where to put mistakes, and the numbers of names.
#[derive(Debug)]
pub struct Scope<'a> {
    /// Mistakes found.
    pub errors: &'a mut Errors,
    /// Numbers of cluster, route table and chain names.
    pub names: &'a mut Names,
}
