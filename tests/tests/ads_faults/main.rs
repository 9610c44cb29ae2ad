//! Faults of a control plane and of the way to it, rows C1 and C7 to C10 of docs/reference/control-plane-faults.md: traffic flows on the
//! last good state, and none is lost. The other rows are in `ads.rs` and `ads_churn.rs`.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod dns;
mod identity;
mod outage;
mod oversize;
mod silence;

use std::time::Duration;

use remora_tests::proxy::Proxy;
use remora_tests::resources::version;
use remora_tests::wait::{eventually_async, reached};

/// The longest wait between two attempts to reach a control plane, and some time for the attempt.
const RECONNECTED: Duration = Duration::from_secs(35);

/// Waits until a version of the routes is in force.
async fn converged(proxy: &Proxy, wanted: u32, limit: Duration) -> Duration {
    let mut client = proxy.http1().await;
    reached("the new routes", limit, async || version(&mut client).await == wanted).await
}

/// Waits until `/config_dump` says why the control plane is not connected.
async fn says_why(proxy: &Proxy, reason: &str) {
    eventually_async(reason, async || {
        let dump = proxy.admin("GET", "/config_dump").await.unwrap();
        let dump: serde_json::Value = serde_json::from_slice(&dump.body).unwrap();
        let sections = dump["configs"].as_array().unwrap();
        let error = sections.iter().find_map(|section| section["control_plane"]["error"].as_str());
        error.is_some_and(|error| error.contains(reason))
    })
    .await;
}
