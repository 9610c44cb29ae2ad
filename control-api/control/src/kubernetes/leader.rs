//! Of several control planes with one store, the one that takes what Kubernetes says and writes status there.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::quota::Owner;
use crate::quota::owner::NotOwner;
use crate::registry::mirror::READER;
use crate::store::Write;

/// Between attempts to become the one, and between looks whether it still is.
const LOOK: Duration = Duration::from_millis(500);
/// After so long without an answer to whether it is the one, an operator is told.
const LONG: Duration = Duration::from_secs(10);

/// For how long it could not be said which control plane is the one, or this one was it and could not begin.
#[derive(Debug, Default)]
struct Stuck {
    since: Option<Instant>,
    told: bool,
}

impl Stuck {
    /// At `now` it is so again. Whether that is to be told: once.
    fn again(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        now.duration_since(since) >= LONG && !std::mem::replace(&mut self.told, true)
    }
}

/// Runs what `start` starts while this control plane is the one, for ever. Where a store is open in one process, it always is. What is started
/// begins with what the one before wrote last, and gets the fence of its own writes ([`Owner::fence`]).
pub(super) async fn lead(owner: Arc<Owner>, start: impl Fn(&mut JoinSet<()>, Option<Write>)) {
    let mut stuck = Stuck::default();
    loop {
        let taken = async {
            owner.take(READER).await?;
            owner.fence(READER).await
        };
        match taken.await {
            Ok(fence) => {
                stuck = Stuck::default();
                info!("this control plane reads Kubernetes");
                let mut tasks = JoinSet::new();
                start(&mut tasks, fence);
                while owner.opens(READER, Instant::now()).is_some() {
                    sleep(LOOK).await;
                }
                info!("another control plane may read Kubernetes");
            }
            Err(why @ NotOwner::Another(_)) => {
                stuck = Stuck::default();
                debug!(%why, "Kubernetes is read elsewhere");
            }
            Err(NotOwner::Store(why)) if stuck.again(Instant::now()) => {
                warn!(%why, "this control plane cannot begin to read Kubernetes, for {} s by now; tried again", LONG.as_secs());
            }
            Err(NotOwner::Store(why)) => debug!(%why, "Kubernetes cannot be read yet"),
        }
        sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_cannot_begin_for_long_says_so_once() {
        let (mut stuck, began) = (Stuck::default(), Instant::now());
        let told: Vec<_> = (0..30).filter(|second| stuck.again(began + LONG / 10 * *second)).collect();
        assert_eq!(told, [10]);
    }
}
