//! Remote key sets (`remote_jwks`): fetched before they are needed, and again before they are too old.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::config::snapshot::Snapshot;
use crate::config::spec::{HttpFilter, NetworkFilter};
use crate::policy::jwt::keys::{Fetched, KeySet, Keys, MAX_KEY_SET, RemoteKeys};
use crate::upstream::fetch;

/// Between attempts, whatever the configuration says.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// Between attempts because of tokens whose key is not known, however many strangers make some up.
const EARLIEST: Duration = Duration::from_secs(10);

/// What was fetched, by URI and cluster: a new version of a listener goes on with it.
type Known = Arc<Mutex<HashMap<(http::Uri, Arc<str>), Arc<Fetched>>>>;

/// The key sets that the configuration names.
#[derive(Debug, Default)]
pub(super) struct KeySets {
    followed: Vec<(Weak<RemoteKeys>, AbortHandle)>,
    known: Known,
}

impl KeySets {
    /// Begins to fetch what `snapshot` names and nobody fetches yet. It may be in force from now on: what is known of the same
    /// key set is given to its new version at once. `config` is asked for clusters.
    pub(super) fn follow(&mut self, snapshot: &Snapshot, config: &Arc<ArcSwap<Snapshot>>) {
        let named: Vec<Arc<RemoteKeys>> = remote_keys(snapshot).cloned().collect();
        self.followed.retain(|(old, task)| {
            let is_used = old.strong_count() > 0;
            if !is_used {
                task.abort();
            }
            is_used
        });
        lock(&self.known).retain(|key, _| named.iter().any(|keys| key_of(keys) == *key));
        for keys in named {
            if self.followed.iter().any(|(old, _)| std::ptr::eq(old.as_ptr(), Arc::as_ptr(&keys))) {
                continue;
            }
            let known = lock(&self.known).get(&key_of(&keys)).cloned();
            let mut begin = Instant::now();
            if let Some(known) = known.filter(|known| begin < known.until) {
                begin += pause_before(&keys, known.until - begin);
                keys.state.put(Some(known));
            }
            let weak = Arc::downgrade(&keys);
            let task = tokio::spawn(keep(weak.clone(), begin, Arc::clone(&self.known), Arc::clone(config)));
            self.followed.push((weak, task.abort_handle()));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key_of(keys: &RemoteKeys) -> (http::Uri, Arc<str>) {
    (keys.uri.clone(), Arc::clone(&keys.cluster))
}

fn remote_keys(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<RemoteKeys>> {
    let chains = snapshot.listeners.iter().flat_map(|listener| &listener.chains);
    let filters = chains.flat_map(|chain| match &chain.filter {
        NetworkFilter::Http(http) => &http.filters[..],
        NetworkFilter::Tcp(_) => &[],
    });
    let providers = filters.flat_map(|filter| match filter {
        HttpFilter::Jwt(_, jwt) => &jwt.providers[..],
        _ => &[],
    });
    providers.filter_map(|provider| match &provider.keys {
        Keys::Remote(keys) => Some(keys),
        Keys::Local(_) => None,
    })
}

/// How long a set that is believed for `left` needs no attempt: early enough for some before it is too old.
fn pause_before(keys: &RemoteKeys, left: Duration) -> Duration {
    left.min(keys.cache).saturating_sub(keys.cache / 4)
}

/// Keeps a key set fresh from `begin` on, until no configuration has it any more.
async fn keep(keys: Weak<RemoteKeys>, begin: Instant, known: Known, config: Arc<ArcSwap<Snapshot>>) {
    let Some(unknown) = keys.upgrade().map(|keys| Arc::clone(keys.state.unknown())) else { return };
    wait(begin.saturating_duration_since(Instant::now()), &unknown).await;
    let mut failures = 0;
    for turn in 0.. {
        let Some(keys) = keys.upgrade() else { return };
        let pause = match attempt(&keys, turn, &config).await {
            Ok(fetched) => {
                failures = 0;
                let fetched = Arc::new(fetched);
                lock(&known).insert(key_of(&keys), Arc::clone(&fetched));
                keys.state.put(Some(fetched));
                pause_before(&keys, keys.cache)
            }
            Err(error) => {
                if failures == 0 {
                    let (uri, cluster) = (&keys.uri, &*keys.cluster);
                    tracing::warn!(%uri, cluster, error, "a key set cannot be fetched; trying again");
                }
                failures += 1;
                keys.state.put(None);
                keys.retry
            }
        };
        drop(keys);
        wait(pause.max(SHORTEST_PAUSE), &unknown).await;
    }
}

/// Until `pause` is over, or a key is missed.
async fn wait(pause: Duration, unknown: &Notify) {
    let missed = async {
        tokio::time::sleep(EARLIEST).await;
        unknown.notified().await;
    };
    // Either way it is time.
    let _ = tokio::time::timeout(pause, missed).await;
}

async fn attempt(keys: &RemoteKeys, turn: usize, config: &ArcSwap<Snapshot>) -> Result<Fetched, String> {
    let cluster = config.load().cluster_by_name(&keys.cluster).cloned();
    let cluster = cluster.ok_or_else(|| format!("there is no cluster {:?}", keys.cluster))?;
    let began = Instant::now();
    let answer = tokio::time::timeout(keys.timeout, fetch::get(&cluster, turn, &keys.uri, MAX_KEY_SET)).await;
    let body = answer.map_err(|_| "no answer in time".to_owned())?.map_err(|error| error.to_string())?;
    let set = KeySet::parse(&body).map_err(|error| format!("the answer {error}"))?;
    Ok(Fetched { keys: set, until: began + keys.cache })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_missed_is_fetched_early_but_not_too_often() {
        let (unknown, long) = (Notify::new(), Duration::from_secs(450));
        let seconds = async |pause| {
            let began = Instant::now();
            wait(pause, &unknown).await;
            began.elapsed().as_secs()
        };
        assert_eq!(seconds(long).await, 450);
        for _ in 0..3 {
            unknown.notify_one();
            unknown.notify_one();
            assert_eq!(seconds(long).await, EARLIEST.as_secs());
        }
        assert_eq!(seconds(long).await, 450, "once for all of them");
        unknown.notify_one();
        assert_eq!(seconds(Duration::from_secs(1)).await, 1);
    }
}
