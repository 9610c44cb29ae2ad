//! The task that keeps a registry up to date.

use std::sync::Arc;
use std::time::Duration;

use tracing::{error, warn};

use super::{Health, Registry};
use crate::store::{Revision, Scope, StoreError};

/// Between attempts while the store is away: it doubles from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Follows the store of `registry` for ever. While it is away, what was read last stays.
pub async fn follow(registry: Arc<Registry>) {
    let mut read: Option<Revision> = None;
    let mut pause = RETRY.0;
    loop {
        let before = read;
        let error = match run(&registry, &mut read).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        if matches!(error, StoreError::Compacted { .. }) {
            warn!(%error, "the store is read anew");
            read = None;
        } else {
            error!(%error, store = registry.store.describe(), "the store does not answer");
            registry.health.send_replace(Health::Away(error.to_string()));
        }
        if read > before {
            pause = RETRY.0;
        }
        tokio::time::sleep(pause).await;
        pause = RETRY.1.min(pause * 2);
    }
}

enum Never {}

async fn run(registry: &Registry, read: &mut Option<Revision>) -> Result<Never, StoreError> {
    let after = match *read {
        Some(revision) => revision,
        None => {
            let listing = registry.store.list(&Scope::All).await?;
            registry.change(|state| complain(&state.reset(&listing)));
            *read = Some(listing.revision);
            listing.revision
        }
    };
    let mut watch = registry.store.watch(after).await?;
    registry.health.send_replace(Health::Following);
    loop {
        let events = watch.next().await?;
        if let Some(last) = events.last() {
            *read = Some(last.revision());
        }
        registry.change(|state| complain(&state.apply(&events)));
    }
}

fn complain(wrong: &[String]) {
    for text in wrong {
        error!(%text, "an entry of the store is no document, and is left out");
    }
}
