//! Experiments: what becomes of a whole system of services and sidecars when something goes wrong in it. What is measured in time runs when it
//! is asked for; what is counted is a test of a size for CI. With `REMORA_LONG=1` each runs as long as docs/experiments says, and writes its curves there (`just experiments`).
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod overload;
mod plot;
mod rollout;
mod service;
mod slow_endpoint;
mod storm;

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Whether this is a long run.
fn long() -> bool {
    std::env::var_os("REMORA_LONG").is_some_and(|value| value == "1")
}

/// Writes a file of a long run into docs/experiments.
fn record(name: &str, text: &str) {
    if long() {
        let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/experiments");
        std::fs::write(folder.join(name), text).unwrap();
    }
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
