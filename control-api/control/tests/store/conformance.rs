//! The conformance test of stores.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use remora_control::store::{
    Event, Expect, Key, LeaseId, MAX_VALUE, MAX_WRITES, Put, Scope, Store, StoreError, Watch, Write,
};
use tokio::time::{Instant, timeout};

/// Longest that anything here takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Two seconds is the least that etcd gives.
const TTL: Duration = Duration::from_secs(2);

/// A kind of store.
pub(crate) trait Rig {
    /// An empty store.
    async fn fresh(&self) -> Arc<dyn Store>;
    /// Makes `store` forget its changes so far.
    async fn compact(&self, store: &Arc<dyn Store>);
}

/// Everything.
pub(crate) async fn run(rig: &impl Rig) {
    writes_are_compared_and_swapped(rig.fresh().await).await;
    a_transaction_is_made_whole_or_not_at_all(rig.fresh().await).await;
    what_is_checked_stays_and_has_no_revision(rig.fresh().await).await;
    a_counter_that_many_increment_loses_nothing(rig.fresh().await).await;
    a_listing_has_its_scope_in_order(rig.fresh().await).await;
    a_watch_goes_on_from_a_listing(rig.fresh().await).await;
    a_watch_from_the_future_must_list_again(rig.fresh().await).await;
    what_is_compacted_must_be_listed_again(rig).await;
    a_key_goes_away_with_its_lease(rig.fresh().await).await;
    a_key_can_leave_its_lease(rig.fresh().await).await;
    a_value_that_is_too_large_is_refused(rig.fresh().await).await;
}

pub(crate) fn key(name: &str) -> Key {
    Key::new("Service", "default", name)
}

fn put(key: Key, value: &str, expect: Expect, lease: Option<LeaseId>) -> Put {
    Put { key, value: Bytes::copy_from_slice(value.as_bytes()), expect, lease }
}

pub(crate) async fn write(store: &Arc<dyn Store>, name: &str, value: &str) -> u64 {
    store.put(put(key(name), value, Expect::Any, None)).await.unwrap()
}

async fn next(watch: &mut Box<dyn Watch>) -> Vec<Event> {
    timeout(PATIENCE, watch.next()).await.expect("a change").unwrap()
}

/// The next `count` changes.
async fn take(watch: &mut Box<dyn Watch>, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < count {
        events.extend(next(watch).await);
    }
    assert_eq!(events.len(), count, "{events:?}");
    events
}

fn told(events: &[Event]) -> Vec<(String, Option<String>)> {
    let tell = |event: &Event| {
        let value = match event {
            Event::Put(entry) => Some(String::from_utf8(entry.value.to_vec()).unwrap()),
            Event::Delete { .. } => None,
        };
        (event.key().name.to_string(), value)
    };
    events.iter().map(tell).collect()
}

fn pair(name: &str, value: Option<&str>) -> (String, Option<String>) {
    (name.to_owned(), value.map(str::to_owned))
}

#[track_caller]
fn is_conflict<T: std::fmt::Debug>(done: Result<T, StoreError>, expected: Option<u64>) {
    match done {
        Err(StoreError::Conflict { current, .. }) => assert_eq!(current, expected),
        other => panic!("{other:?}"),
    }
}

async fn writes_are_compared_and_swapped(store: Arc<dyn Store>) {
    assert_eq!(store.get(&key("a")).await.unwrap(), None);
    is_conflict(store.delete(&key("a"), Expect::Any).await, None);
    is_conflict(store.put(put(key("a"), "0", Expect::Revision(1), None)).await, None);

    let first = store.put(put(key("a"), "1", Expect::Absent, None)).await.unwrap();
    is_conflict(store.put(put(key("a"), "2", Expect::Absent, None)).await, Some(first));
    is_conflict(store.put(put(key("a"), "2", Expect::Revision(first + 1), None)).await, Some(first));
    let entry = store.get(&key("a")).await.unwrap().unwrap();
    assert_eq!((entry.value.as_ref(), entry.revision, entry.lease), (&b"1"[..], first, None));

    let second = store.put(put(key("a"), "2", Expect::Revision(first), None)).await.unwrap();
    assert!(second > first);
    is_conflict(store.delete(&key("a"), Expect::Revision(first)).await, Some(second));
    let third = store.delete(&key("a"), Expect::Revision(second)).await.unwrap();
    assert!(third > second);
    assert_eq!(store.get(&key("a")).await.unwrap(), None);
    store.put(put(key("a"), "3", Expect::Absent, None)).await.unwrap();
    store.delete(&key("a"), Expect::Any).await.unwrap();
}

async fn a_transaction_is_made_whole_or_not_at_all(store: Arc<dyn Store>) {
    let kept = write(&store, "kept", "1").await;
    let change = |name: &str, value: &str, expect| Write::Put(put(key(name), value, expect, None));
    let delete = |name: &str, expect| Write::Delete { key: key(name), expect };
    let mut watch = store.watch(store.list(&Scope::All).await.unwrap().revision).await.unwrap();

    let before = store.list(&Scope::All).await.unwrap().entries;
    for last in [
        change("kept", "2", Expect::Absent),
        change("kept", "2", Expect::Revision(kept + 1)),
        delete("kept", Expect::Revision(kept + 1)),
    ] {
        let done = store.transact(vec![change("a", "1", Expect::Absent), last]).await;
        assert!(matches!(&done, Err(StoreError::Conflict { key: at, .. }) if *at == key("kept")), "{done:?}");
        is_conflict(done, Some(kept));
    }
    is_conflict(store.transact(vec![change("a", "1", Expect::Any), delete("b", Expect::Any)]).await, None);
    let large = "x".repeat(MAX_VALUE + 1);
    let done = store.transact(vec![change("a", "1", Expect::Any), change("b", &large, Expect::Any)]).await;
    assert!(matches!(done, Err(StoreError::TooLarge { .. })), "{done:?}");
    let leased = Write::Put(put(key("b"), "1", Expect::Any, Some(LeaseId(987_654))));
    let done = store.transact(vec![change("a", "1", Expect::Any), leased]).await;
    assert!(matches!(done, Err(StoreError::NoLease(_))), "{done:?}");
    assert_eq!(store.list(&Scope::All).await.unwrap().entries, before, "nothing of all that was written");

    let many: Vec<_> =
        (0..MAX_WRITES - 1).map(|i| change(&format!("n{i:03}"), "1", Expect::Absent)).collect();
    let all = [many, vec![delete("kept", Expect::Revision(kept))]].concat();
    let revisions = store.transact(all).await.unwrap();
    assert_eq!(revisions.len(), MAX_WRITES);
    let events = take(&mut watch, MAX_WRITES).await;
    assert_eq!(events.iter().map(Event::revision).collect::<Vec<_>>(), revisions);
    assert_eq!(told(&events)[MAX_WRITES - 1], pair("kept", None));
    let entry = store.get(&key("n007")).await.unwrap().unwrap();
    assert_eq!(entry.revision, revisions[7]);
    store.put(put(key("n007"), "2", Expect::Revision(revisions[7]), None)).await.unwrap();
}

async fn what_is_checked_stays_and_has_no_revision(store: Arc<dyn Store>) {
    let held = write(&store, "held", "1").await;
    let check = |name: &str, expect| Write::Check { key: key(name), expect };
    let change = || Write::Put(put(key("a"), "1", Expect::Any, None));
    for wrong in [check("held", Expect::Absent), check("held", Expect::Revision(held + 1))] {
        is_conflict(store.transact(vec![wrong, change()]).await, Some(held));
    }
    is_conflict(store.transact(vec![check("none", Expect::Revision(held)), change()]).await, None);
    assert_eq!(store.get(&key("a")).await.unwrap(), None);
    let mut watch = store.watch(store.list(&Scope::All).await.unwrap().revision).await.unwrap();
    let all = [check("held", Expect::Revision(held)), change(), check("none", Expect::Absent)];
    let revisions = store.transact(all.to_vec()).await.unwrap();
    assert_eq!(store.get(&key("a")).await.unwrap().map(|entry| vec![entry.revision]), Some(revisions));
    store.transact(vec![check("held", Expect::Any), check("none", Expect::Any), change()]).await.unwrap();
    assert_eq!(store.get(&key("held")).await.unwrap().map(|entry| entry.revision), Some(held));
    assert_eq!(told(&take(&mut watch, 2).await), [pair("a", Some("1")), pair("a", Some("1"))]);
}

async fn a_counter_that_many_increment_loses_nothing(store: Arc<dyn Store>) {
    write(&store, "counter", "0").await;
    let increment = async |store: Arc<dyn Store>| {
        for _ in 0..10 {
            loop {
                let entry = store.get(&key("counter")).await.unwrap().unwrap();
                let count: u32 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                let more = (count + 1).to_string();
                match store.put(put(key("counter"), &more, Expect::Revision(entry.revision), None)).await {
                    Ok(_) => break,
                    Err(StoreError::Conflict { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
        }
    };
    let tasks: Vec<_> = (0..6).map(|_| tokio::spawn(increment(Arc::clone(&store)))).collect();
    for task in tasks {
        timeout(PATIENCE, task).await.unwrap().unwrap();
    }
    assert_eq!(store.get(&key("counter")).await.unwrap().unwrap().value, "60");
}

async fn a_listing_has_its_scope_in_order(store: Arc<dyn Store>) {
    assert!(store.list(&Scope::All).await.unwrap().entries.is_empty());
    let keys = [
        Key::new("HTTPRoute", "default", "b"),
        Key::new("Service", "default", "a"),
        Key::new("Service", "default", "b"),
        Key::new("Service", "default2", "c"),
        Key::new("Service2", "default", "d"),
    ];
    for (count, key) in keys.iter().rev().enumerate() {
        store.put(put(key.clone(), &count.to_string(), Expect::Absent, None)).await.unwrap();
    }
    let list = async |scope: Scope| {
        let listing = store.list(&scope).await.unwrap();
        listing.entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>()
    };
    assert_eq!(list(Scope::All).await, keys);
    assert_eq!(list(Scope::Kind("Service".into())).await, keys[1..4]);
    assert_eq!(list(Scope::Namespace("Service".into(), "default".into())).await, keys[1..3]);
    // More than one page.
    for i in 0..450 {
        write(&store, &format!("many-{i:03}"), "x").await;
    }
    assert_eq!(list(Scope::Kind("Service".into())).await.len(), 453);
}

async fn a_watch_goes_on_from_a_listing(store: Arc<dyn Store>) {
    let start = store.list(&Scope::All).await.unwrap().revision;
    write(&store, "a", "1").await;
    write(&store, "b", "1").await;
    let listing = store.list(&Scope::All).await.unwrap();
    assert_eq!(listing.entries.len(), 2);
    let mut watch = store.watch(listing.revision).await.unwrap();
    write(&store, "a", "2").await;
    store.delete(&key("b"), Expect::Any).await.unwrap();
    let last = write(&store, "b", "2").await;
    let events = take(&mut watch, 3).await;
    let after = [pair("a", Some("2")), pair("b", None), pair("b", Some("2"))];
    assert_eq!(told(&events), after);
    assert!(events.windows(2).all(|two| two[0].revision() < two[1].revision()), "{events:?}");
    assert_eq!(events[2].revision(), last);

    // From the beginning, and from the middle.
    let mut all = store.watch(start).await.unwrap();
    let expected = [&[pair("a", Some("1")), pair("b", Some("1"))][..], &after].concat();
    assert_eq!(told(&take(&mut all, 5).await), expected);
    let mut rest = store.watch(events[0].revision()).await.unwrap();
    assert_eq!(told(&take(&mut rest, 2).await), after[1..]);
    // Nothing more comes until something more happens.
    assert!(timeout(Duration::from_millis(100), all.next()).await.is_err());
    write(&store, "c", "1").await;
    for watch in [&mut watch, &mut rest] {
        assert_eq!(told(&take(watch, 1).await), [pair("c", Some("1"))]);
    }
}

async fn a_watch_from_the_future_must_list_again(store: Arc<dyn Store>) {
    let now = write(&store, "a", "1").await;
    let mut seen = store.watch(now + 1000).await.map(drop);
    if seen.is_ok() {
        seen = Err(StoreError::Busy);
    }
    assert!(matches!(seen, Err(StoreError::Compacted { .. })), "{seen:?}");
}

async fn what_is_compacted_must_be_listed_again(rig: &impl Rig) {
    let store = rig.fresh().await;
    let old = write(&store, "a", "1").await;
    for value in ["1.5", "2"] {
        write(&store, "a", value).await;
    }
    rig.compact(&store).await;
    // It may show when the watch is made, or when it is asked.
    let error = match store.watch(old).await {
        Err(error) => error,
        Ok(mut watch) => timeout(PATIENCE, watch.next()).await.unwrap().unwrap_err(),
    };
    assert!(matches!(error, StoreError::Compacted { .. }), "{error}");
    let listing = store.list(&Scope::Namespace("Service".into(), "default".into())).await.unwrap();
    assert_eq!(listing.entries.iter().find(|e| e.key == key("a")).unwrap().value, "2");
    let mut watch = store.watch(listing.revision).await.unwrap();
    write(&store, "a", "3").await;
    assert_eq!(told(&take(&mut watch, 1).await), [pair("a", Some("3"))]);
}

async fn a_key_goes_away_with_its_lease(store: Arc<dyn Store>) {
    let lease = store.grant(TTL).await.unwrap();
    store.put(put(key("kept"), "x", Expect::Any, None)).await.unwrap();
    let at = store.put(put(key("leased"), "x", Expect::Any, Some(lease))).await.unwrap();
    assert_eq!(store.get(&key("leased")).await.unwrap().unwrap().lease, Some(lease));
    // Alive for twice its time.
    let end = Instant::now() + TTL * 2;
    while Instant::now() < end {
        store.keep_alive(lease).await.unwrap();
        tokio::time::sleep(TTL / 4).await;
    }
    assert!(store.get(&key("leased")).await.unwrap().is_some());
    let mut watch = store.watch(at).await.unwrap();
    assert_eq!(told(&take(&mut watch, 1).await), [pair("leased", None)]);
    assert!(store.get(&key("kept")).await.unwrap().is_some());
    for error in [
        store.keep_alive(lease).await.unwrap_err(),
        store.revoke(lease).await.unwrap_err(),
        store.put(put(key("leased"), "x", Expect::Any, Some(lease))).await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::NoLease(gone) if gone == lease), "{error}");
    }
}

async fn a_key_can_leave_its_lease(store: Arc<dyn Store>) {
    let (one, two) = (store.grant(PATIENCE).await.unwrap(), store.grant(PATIENCE).await.unwrap());
    assert_ne!(one, two);
    for name in ["stays", "moves", "goes"] {
        store.put(put(key(name), "x", Expect::Any, Some(one))).await.unwrap();
    }
    store.put(put(key("stays"), "x", Expect::Any, None)).await.unwrap();
    store.put(put(key("moves"), "x", Expect::Any, Some(two))).await.unwrap();
    store.revoke(one).await.unwrap();
    let listing = store.list(&Scope::All).await.unwrap();
    let left: Vec<_> = listing.entries.iter().map(|e| (&*e.key.name, e.lease)).collect();
    assert_eq!(left, [("moves", Some(two)), ("stays", None)]);
    store.revoke(two).await.unwrap();
    assert_eq!(store.list(&Scope::All).await.unwrap().entries.len(), 1);
}

async fn a_value_that_is_too_large_is_refused(store: Arc<dyn Store>) {
    let largest = Bytes::from(vec![b'x'; MAX_VALUE]);
    let put = |value| Put { key: key("a"), value, expect: Expect::Any, lease: None };
    store.put(put(largest.clone())).await.unwrap();
    assert_eq!(store.get(&key("a")).await.unwrap().unwrap().value, largest);
    let error = store.put(put(Bytes::from(vec![b'x'; MAX_VALUE + 1]))).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
}
