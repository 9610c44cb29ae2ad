use proptest::prelude::*;

use super::*;
use crate::dns::wire::{self, IN, kind};

fn key(name: &str) -> Key {
    let name = wire::labels(name).unwrap();
    Key { name, kind: kind::A, class: IN, signatures: false, unchecked: false }
}

/// An answer with one address and this TTL.
fn reply(key: &Key, ttl: u32) -> Arc<Reply> {
    let mut message = vec![0, 0, 0x80, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
    message.extend_from_slice(&key.name);
    message.extend([0, 1, 0, 1, 0xc0, 12, 0, 1, 0, 1]);
    message.extend(ttl.to_be_bytes());
    message.extend([0, 4, 10, 0, 0, 1]);
    Arc::new(Reply::read(key, &message).unwrap())
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn an_answer_is_fresh_then_stale_then_gone() {
    let (mut cache, now, key) = (Cache::default(), Instant::now(), key("a.b"));
    assert_eq!(cache.get(&key, now), Found::Missing);
    let reply = reply(&key, 60);
    cache.put(&key, &reply, now);
    assert_eq!(cache.get(&key, now + seconds(59)), Found::Fresh(Arc::clone(&reply), seconds(59)));
    assert_eq!(cache.get(&key, now + seconds(60)), Found::Stale(Arc::clone(&reply), true));
    let end = seconds(60) + STALE;
    assert_eq!(cache.get(&key, now + end - seconds(1)), Found::Stale(reply, true));
    assert_eq!(cache.get(&key, now + end), Found::Missing);
    assert_eq!(cache.size(), (0, 0));
}

#[test]
fn after_a_failure_nobody_is_asked_for_a_while() {
    let (mut cache, now, key) = (Cache::default(), Instant::now(), key("a.b"));
    let reply = reply(&key, 1);
    cache.put(&key, &reply, now);
    let later = now + seconds(10);
    cache.failed(&key, later);
    assert_eq!(cache.get(&key, later + seconds(4)), Found::Stale(Arc::clone(&reply), false));
    assert_eq!(cache.get(&key, later + RECHECK), Found::Stale(Arc::clone(&reply), true));
    cache.put(&key, &reply, later + seconds(6));
    assert_eq!(cache.get(&key, later + seconds(6)), Found::Fresh(reply, Duration::ZERO));
}

/// Programs ask again and again for what does not work.
#[test]
fn what_has_failed_fails_at_once_for_a_moment() {
    let (mut cache, now, key) = (Cache::default(), Instant::now(), key("a.b"));
    cache.failed(&key, now);
    assert_eq!(cache.get(&key, now), Found::Failed);
    assert_eq!(cache.get(&key, now + FAILED), Found::Missing);
    let (again, other) = (now + FAILED, self::key("c.d"));
    cache.failed(&key, again);
    cache.failed(&key, again + FAILED / 2);
    cache.failed(&other, again + FAILED);
    assert_eq!(cache.get(&key, again + FAILED), Found::Failed, "the second time counts");
    assert_eq!(cache.get(&key, again + FAILED / 2 + FAILED), Found::Missing);
    let reply = reply(&key, 60);
    cache.put(&key, &reply, again);
    assert_eq!(cache.get(&key, again), Found::Fresh(reply, Duration::ZERO));
    cache.clear();
    assert_eq!(cache.get(&other, again + FAILED), Found::Missing, "other servers may have an answer");
}

#[test]
fn failures_are_bounded_and_the_oldest_goes() {
    let (mut cache, mut now) = (Cache::default(), Instant::now());
    let keys: Vec<_> = (0..=MOST_FAILED).map(|number| key(&format!("n{number}.b"))).collect();
    let instant = Duration::from_micros(1);
    for key in &keys {
        now += instant;
        cache.failed(key, now);
        let failures = &cache.failures;
        assert!(failures.at.len() == failures.order.len() && failures.order.len() <= MOST_FAILED);
    }
    assert_eq!(cache.get(&keys[0], now), Found::Missing);
    assert_eq!(cache.get(&keys[1], now), Found::Failed);
    // One that fails again is the youngest, whatever is known of before.
    cache.failed(&keys[1], now + instant);
    for key in &keys[2..] {
        cache.failed(key, now + 2 * instant);
    }
    assert_eq!(cache.get(&keys[1], now + 2 * instant), Found::Failed);
    assert_eq!(cache.failures.order.len(), MOST_FAILED);
    cache.failed(&keys[0], now + 2 * FAILED);
    assert_eq!((cache.failures.order.len(), cache.failures.at.len()), (1, 1), "what is over goes");
    assert_eq!(cache.size(), (0, 0), "none of them takes the place of an answer");
}

#[test]
fn what_is_not_to_be_kept_takes_the_place_of_what_was() {
    let (mut cache, now, key) = (Cache::default(), Instant::now(), key("a.b"));
    cache.put(&key, &reply(&key, 60), now);
    cache.put(&key, &reply(&key, 0), now);
    assert_eq!(cache.get(&key, now), Found::Missing);
    assert_eq!(cache.size(), (0, 0));
}

#[test]
fn the_one_that_was_used_least_recently_goes() {
    let limits = Limits { answers: 2, bytes: 1 << 20 };
    let (mut cache, now) = (Cache::new(limits), Instant::now());
    let [one, two, three] = ["one.b", "two.b", "three.b"].map(key);
    for key in [&one, &two] {
        cache.put(key, &reply(key, 60), now);
    }
    assert!(matches!(cache.get(&one, now), Found::Fresh(..)));
    cache.put(&three, &reply(&three, 60), now);
    assert_eq!(cache.get(&two, now), Found::Missing);
    assert!(matches!(cache.get(&one, now), Found::Fresh(..)));
    assert!(matches!(cache.get(&three, now), Found::Fresh(..)));
    cache.clear();
    assert_eq!((cache.size(), cache.get(&one, now)), ((0, 0), Found::Missing));
}

proptest! {
    /// Puts and gets in any order: the bounds hold, and what is counted is what is there.
    #[test]
    fn it_stays_within_its_bounds(steps in proptest::collection::vec((0_u8..12, 0_u32..100, any::<bool>()), 0..200)) {
        let limits = Limits { answers: 5, bytes: 1500 };
        let (mut cache, mut now) = (Cache::new(limits), Instant::now());
        for (name, ttl, put) in steps {
            let key = key(&format!("{}.b", "n".repeat(usize::from(name) + 1)));
            now += seconds(ttl.into());
            if put {
                cache.put(&key, &reply(&key, ttl), now);
            } else {
                cache.get(&key, now);
            }
            let bytes: usize = cache.entries.iter().map(|(key, entry)| cost(key, &entry.reply)).sum();
            prop_assert!(cache.entries.len() <= limits.answers && bytes <= limits.bytes);
            prop_assert_eq!(cache.size(), (cache.order.len(), bytes));
        }
    }
}
