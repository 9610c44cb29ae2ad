//! Load generator, origin, the bare-hyper floor, and the side-by-side run that compares Remora with other proxies.
//!
//! - [`load`] makes requests at a fixed rate (open loop) or as fast as they are answered (closed loop).
//! - [`origin`] answers them with as little CPU as possible.
//! - [`floor`] is a reverse proxy that does nothing but hyper: what the codec costs before any feature.
//! - [`compare`] runs every proxy under the same load and measures its CPU, memory, latency and ceiling.
//! - [`sidecar`] measures what a sidecar costs the pod that it stands in.
//! - [`xds`] measures the control plane under a large mesh, and proxies under a large configuration.
//!
//! Everything runs on one thread per process: the machine may have two cores only, and one of them is the proxy's.

pub mod compare;
pub mod floor;
pub mod load;
pub mod origin;
pub mod sidecar;
pub mod xds;

use std::io;

/// A single-threaded runtime whose tasks need not be `Send`, as in the data plane's workers.
///
/// # Errors
/// When the I/O driver cannot be created.
pub fn local_runtime() -> io::Result<tokio::runtime::LocalRuntime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
}

/// Asks the kernel to end this process with SIGTERM when its parent ends, so that no run leaves anything behind.
///
/// # Errors
/// The error of prctl(2).
pub fn end_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?)
}
