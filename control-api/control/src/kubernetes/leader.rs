//! Of several control planes with one store, the one that takes what Kubernetes says and writes status there.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use crate::quota::Owner;
use crate::registry::mirror::READER;

/// Between attempts to become the one, and between looks whether it still is.
const LOOK: Duration = Duration::from_millis(500);

/// Runs what `start` starts while this control plane is the one, for ever. Where a store is open in one process, it always is.
pub(super) async fn lead(owner: Arc<Owner>, start: impl Fn(&mut JoinSet<()>)) {
    loop {
        match owner.take(READER).await {
            Ok(()) => {
                info!("this control plane reads Kubernetes");
                let mut tasks = JoinSet::new();
                start(&mut tasks);
                while owner.opens(READER, Instant::now()).is_some() {
                    sleep(LOOK).await;
                }
                info!("another control plane may read Kubernetes");
            }
            Err(why) => debug!(%why, "Kubernetes is read elsewhere"),
        }
        sleep(LOOK).await;
    }
}
