//! Buckets that are made when they are first asked for, of which the most recently used ones are kept.

use std::sync::Arc;

use foldhash::{HashMap, HashMapExt};

use super::bucket::Bucket;

/// Marks the end of the list.
const END: usize = usize::MAX;

/// At most `most` buckets by their key. Each operation takes constant time.
#[derive(Debug)]
pub struct Recent {
    by_key: HashMap<Arc<str>, usize>,
    slots: Vec<Slot>,
    newest: usize,
    oldest: usize,
    most: usize,
}

#[derive(Debug)]
struct Slot {
    key: Arc<str>,
    bucket: Arc<Bucket>,
    newer: usize,
    older: usize,
}

impl Recent {
    /// None yet; `most` is at least 1.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { by_key: HashMap::new(), slots: Vec::new(), newest: END, oldest: END, most: most.max(1) }
    }

    /// The bucket of `key`, which is the most recently used one now.
    pub fn get(&mut self, key: &str, make: impl FnOnce() -> Bucket) -> Arc<Bucket> {
        if let Some(&at) = self.by_key.get(key) {
            self.unlink(at);
            self.link(at);
            return Arc::clone(&self.slots[at].bucket);
        }
        let (key, bucket): (Arc<str>, _) = (key.into(), Arc::new(make()));
        let slot = Slot { key: Arc::clone(&key), bucket: Arc::clone(&bucket), newer: END, older: END };
        let at = if self.slots.len() < self.most {
            self.slots.push(slot);
            self.slots.len() - 1
        } else {
            let at = self.oldest;
            self.unlink(at);
            let gone = std::mem::replace(&mut self.slots[at], slot);
            self.by_key.remove(&gone.key);
            at
        };
        self.by_key.insert(key, at);
        self.link(at);
        bucket
    }

    fn link(&mut self, at: usize) {
        self.slots[at].newer = END;
        self.slots[at].older = self.newest;
        match self.newest {
            END => self.oldest = at,
            before => self.slots[before].newer = at,
        }
        self.newest = at;
    }

    fn unlink(&mut self, at: usize) {
        let Slot { newer, older, .. } = self.slots[at];
        match newer {
            END => self.newest = older,
            newer => self.slots[newer].older = older,
        }
        match older {
            END => self.oldest = newer,
            older => self.slots[older].newer = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::limit::bucket::BucketSpec;
    use proptest::prelude::*;
    use std::time::Duration;
    use tokio::time::Instant;

    proptest! {
        /// Against a list that is searched from its end.
        #[test]
        fn the_most_recently_used_are_kept(most in 1usize..6, keys in proptest::collection::vec(0u8..9, 1..100)) {
            let now = Instant::now();
            let mut recent = Recent::new(most);
            let mut model: Vec<u8> = Vec::new();
            for key in keys {
                let spec = BucketSpec { max: 1, per_fill: 1, interval: Duration::from_secs(1) };
                let mut made = false;
                recent.get(&key.to_string(), || {
                    made = true;
                    Bucket::new(spec, now)
                });
                prop_assert_eq!(made, !model.contains(&key));
                model.retain(|other| *other != key);
                model.push(key);
                if model.len() > most {
                    model.remove(0);
                }
                prop_assert_eq!(recent.by_key.len(), model.len());
            }
        }
    }
}
