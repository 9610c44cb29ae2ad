//! Waiting for times that there may not be.

use tokio::time::Instant;

/// At that time; never without one.
pub(crate) async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
