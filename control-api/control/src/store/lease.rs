//! Who must say that it is alive, and by when. Pure: `now` is an argument.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// Holders of leases by their ids.
#[derive(Debug)]
pub struct Leases<Id> {
    held: HashMap<Id, (Duration, Instant)>,
    /// The same, by when they end.
    ends: BTreeSet<(Instant, Id)>,
}

impl<Id> Default for Leases<Id> {
    fn default() -> Self {
        Self { held: HashMap::new(), ends: BTreeSet::new() }
    }
}

impl<Id: Clone + Ord + Hash> Leases<Id> {
    /// A lease of `ttl` for `id`, in place of the one that it may have.
    pub fn grant(&mut self, id: Id, ttl: Duration, now: Instant) {
        self.revoke(&id);
        let end = now + ttl;
        self.ends.insert((end, id.clone()));
        self.held.insert(id, (ttl, end));
    }

    /// Its whole time again. False: it has none, or it is over.
    pub fn renew(&mut self, id: &Id, now: Instant) -> bool {
        match self.held.get(id) {
            Some(&(ttl, end)) if end > now => {
                self.grant(id.clone(), ttl, now);
                true
            }
            _ => false,
        }
    }

    /// Ends a lease. False: there was none.
    pub fn revoke(&mut self, id: &Id) -> bool {
        let Some((_, end)) = self.held.remove(id) else { return false };
        self.ends.remove(&(end, id.clone()))
    }

    /// Ends the leases whose time is over at `now`, and answers whose they were, the oldest first.
    pub fn expire(&mut self, now: Instant) -> Vec<Id> {
        let mut over = Vec::new();
        while let Some((end, _)) = self.ends.first()
            && *end <= now
            && let Some((_, id)) = self.ends.pop_first()
        {
            self.held.remove(&id);
            over.push(id);
        }
        over
    }

    /// When the next one ends.
    #[must_use]
    pub fn next_end(&self) -> Option<Instant> {
        self.ends.first().map(|(end, _)| *end)
    }

    /// Whether `id` has one.
    #[must_use]
    pub fn has(&self, id: &Id) -> bool {
        self.held.contains_key(id)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TTL: Duration = Duration::from_millis(1500);

    #[test]
    fn a_lease_lives_as_long_as_it_is_renewed_in_time() {
        let (start, mut leases) = (Instant::now(), Leases::default());
        let at = |millis| start + Duration::from_millis(millis);
        leases.grant("a", TTL, at(0));
        leases.grant("b", TTL, at(100));
        assert!(leases.renew(&"a", at(1400)));
        assert_eq!(leases.next_end(), Some(at(1600)));
        assert_eq!(leases.expire(at(1599)), Vec::<&str>::new());
        assert_eq!(leases.expire(at(1600)), ["b"]);
        assert!(!leases.renew(&"b", at(1601)), "it is over");
        assert!(!leases.renew(&"a", at(2900)), "over, though nobody has taken it away yet");
        assert_eq!(leases.expire(at(2900)), ["a"]);
        assert!(leases.is_empty() && leases.next_end().is_none());
    }

    #[test]
    fn a_lease_that_is_granted_again_has_its_new_time_only() {
        let (now, mut leases) = (Instant::now(), Leases::default());
        leases.grant("a", TTL, now);
        leases.grant("a", TTL * 4, now);
        assert_eq!(leases.expire(now + TTL), Vec::<&str>::new());
        assert!(leases.revoke(&"a") && !leases.revoke(&"a"));
        assert_eq!(leases.expire(now + TTL * 4), Vec::<&str>::new());
    }

    proptest! {
        /// Against a plain map that is searched as a whole.
        #[test]
        fn it_does_what_a_plain_map_does(steps in prop::collection::vec((0..4u8, 0..5u8, 1..50u64, 0..20u64), 0..80)) {
            let (mut now, mut leases) = (Instant::now(), Leases::default());
            let mut plain: std::collections::BTreeMap<u8, (Duration, Instant)> = Default::default();
            for (what, id, ttl, pause) in steps {
                now += Duration::from_millis(pause);
                let ttl = Duration::from_millis(ttl);
                match what {
                    0 => {
                        leases.grant(id, ttl, now);
                        plain.insert(id, (ttl, now + ttl));
                    }
                    1 => {
                        let live = plain.get_mut(&id).filter(|(_, end)| *end > now);
                        prop_assert_eq!(leases.renew(&id, now), live.is_some());
                        if let Some((ttl, end)) = live {
                            *end = now + *ttl;
                        }
                    }
                    2 => prop_assert_eq!(leases.revoke(&id), plain.remove(&id).is_some()),
                    _ => {
                        let mut over = leases.expire(now);
                        over.sort_unstable();
                        let expected: Vec<_> =
                            plain.iter().filter(|(_, (_, end))| *end <= now).map(|(id, _)| *id).collect();
                        plain.retain(|_, (_, end)| *end > now);
                        prop_assert_eq!(over, expected);
                    }
                }
                prop_assert_eq!(leases.len(), plain.len());
                prop_assert_eq!(leases.next_end(), plain.values().map(|(_, end)| *end).min());
            }
        }
    }
}
