//! Waiting for conditions. No test sleeps to let something happen: it waits until it has happened, or fails.

use std::future::Future;
use std::time::Duration;

/// How long a test waits for something that must happen: 10 s, or `REMORA_TEST_PATIENCE` seconds.
#[must_use]
pub fn patience() -> Duration {
    let seconds = std::env::var("REMORA_TEST_PATIENCE").ok().and_then(|v| v.parse().ok()).unwrap_or(10);
    Duration::from_secs(seconds)
}

/// The output of `future`, which must come within [`patience`].
///
/// # Panics
/// When it does not; `what` names it.
pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(patience(), future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: did not happen within {:?}", patience()),
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not hold within [`patience`]; `what` names it.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    within(what, async {
        while !condition() {
            poll_pause().await;
        }
    })
    .await;
}

/// Like [`eventually`], for a condition that has to ask somebody.
///
/// # Panics
/// When it does not hold within [`patience`]; `what` names it.
pub async fn eventually_async(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !condition().await {
            poll_pause().await;
        }
    })
    .await;
}

/// Waits until `condition` holds, and gives the time that it took.
///
/// # Panics
/// When it does not hold within `limit`; `what` names it.
pub async fn reached(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let began = tokio::time::Instant::now();
    let reach = async {
        while !condition().await {
            poll_pause().await;
        }
    };
    match tokio::time::timeout(limit, reach).await {
        Ok(()) => began.elapsed(),
        Err(_) => panic!("{what}: did not happen within {limit:?}"),
    }
}

/// The time between two looks at a condition.
pub async fn poll_pause() {
    tokio::time::sleep(Duration::from_millis(2)).await;
}
