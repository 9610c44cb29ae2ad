//! Without name servers: what they say is given.

use tokio::time::advance;

use super::*;
use crate::dns::wire::{self, IN, kind};

const MOST: usize = 4;

fn forwarder() -> Arc<Forwarder> {
    Forwarder::new(Arc::default(), Vec::new())
}

fn key(name: &str) -> Key {
    let name = wire::labels(name).unwrap();
    Key { name, kind: kind::A, class: IN, signatures: false, unchecked: false }
}

/// An answer with one address and this TTL.
fn reply(key: &Key, ttl: u32) -> Reply {
    let mut message = vec![0, 0, 0x80, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
    message.extend_from_slice(&key.name);
    message.extend([0, 1, 0, 1, 0xc0, 12, 0, 1, 0, 1]);
    message.extend(ttl.to_be_bytes());
    message.extend([0, 4, 10, 0, 0, 1]);
    Reply::read(key, &message).unwrap()
}

/// Answers that held for a second, two seconds ago.
async fn with_stale<const N: usize>(names: [&str; N]) -> (Arc<Forwarder>, [Key; N]) {
    let (forwarder, keys) = (forwarder(), names.map(key));
    for key in &keys {
        forwarder.state().cache.put(key, &Arc::new(reply(key, 1)), Instant::now());
    }
    advance(Duration::from_secs(2)).await;
    (forwarder, keys)
}

fn decide(forwarder: &Arc<Forwarder>, key: &Key) -> (Looked, Option<Asking>) {
    forwarder.decide(key, MOST, Instant::now())
}

fn asking(forwarder: &Arc<Forwarder>, key: &Key) -> Asking {
    decide(forwarder, key).1.expect("a question")
}

/// As [`Asking::run`] does.
fn end(asking: &Asking, told: Told) {
    if told != Told::Silence {
        asking.forwarder.heard(asking.servers);
    }
    asking.end(told, Instant::now());
}

fn later(looked: Looked) -> Waiting {
    match looked {
        Looked::Later(waiting) => waiting,
        Looked::Now(resolved) => panic!("{resolved:?}"),
    }
}

/// How long a client would wait.
fn patience(forwarder: &Arc<Forwarder>, key: &Key) -> Duration {
    later(decide(forwarder, key).0).until - Instant::now()
}

fn is_stale(resolved: &Resolved) -> bool {
    matches!(resolved, Resolved::Answer(_, left) if *left == Left::Fixed(STALE_TTL))
}

fn is_stale_at_once(looked: &Looked) -> bool {
    matches!(looked, Looked::Now(resolved) if is_stale(resolved))
}

#[tokio::test(start_paused = true)]
async fn clients_wait_together_and_find_the_answer() {
    let (forwarder, key) = (forwarder(), key("a.b"));
    let (first, asking) = decide(&forwarder, &key);
    let (second, none) = decide(&forwarder, &key);
    assert!(none.is_none(), "it is asked once");
    assert_eq!(forwarder.stats.get(Count::Coalesced), 1);
    end(&asking.unwrap(), Told::Answer(reply(&key, 60)));
    for waiting in [first, second].map(later) {
        let resolved = waiting.answer().await;
        assert_eq!(resolved, Resolved::Answer(Arc::new(reply(&key, 60)), Left::After(Duration::ZERO)));
    }
    assert!(matches!(decide(&forwarder, &key).0, Looked::Now(Resolved::Answer(_, Left::After(_)))));
    let state = forwarder.state();
    assert_eq!((state.waiting, state.asked.len()), (0, 0));
}

/// 1.8 s are for the question, not for each of its clients.
#[tokio::test(start_paused = true)]
async fn who_comes_late_waits_for_what_is_left() {
    let (forwarder, [key]) = with_stale(["a.b"]).await;
    let (_first, _asking) = decide(&forwarder, &key);
    advance(PATIENCE / 2).await;
    let second = later(decide(&forwarder, &key).0);
    let began = Instant::now();
    assert!(is_stale(&second.answer().await));
    let waited = began.elapsed();
    assert!(waited >= PATIENCE / 2 && waited < PATIENCE / 2 + Duration::from_millis(5), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn who_comes_after_that_does_not_wait() {
    let (forwarder, [key]) = with_stale(["a.b"]).await;
    let (_first, _asking) = decide(&forwarder, &key);
    advance(PATIENCE).await;
    let (second, none) = decide(&forwarder, &key);
    assert!(is_stale_at_once(&second) && none.is_none());
    assert_eq!(forwarder.state().waiting, 1);
}

/// A program that needs ten names in an outage waits for one of them.
#[tokio::test(start_paused = true)]
async fn while_servers_are_silent_nobody_waits_long_who_has_something() {
    let (forwarder, [one, two, three]) = with_stale(["one.b", "two.b", "three.b"]).await;
    end(&asking(&forwarder, &one), Told::Silence);
    assert!(is_stale_at_once(&decide(&forwarder, &one).0));
    let (looked, behind) = decide(&forwarder, &two);
    let behind = behind.expect("a question");
    let began = Instant::now();
    assert!(is_stale(&later(looked).answer().await));
    assert!(began.elapsed() < MOMENT + Duration::from_millis(5), "{:?}", began.elapsed());
    // It is still asked: once.
    let (looked, none) = decide(&forwarder, &two);
    assert!(is_stale_at_once(&looked) && none.is_none());
    assert!(matches!(decide(&forwarder, &key("new.b")).0, Looked::Later(_)), "nothing to give");
    // The servers are there again.
    end(&behind, Told::Answer(reply(&two, 60)));
    drop(behind);
    assert!(matches!(decide(&forwarder, &two).0, Looked::Now(Resolved::Answer(_, Left::After(_)))));
    assert_eq!(patience(&forwarder, &three), PATIENCE);
}

/// One name, asked for each second while an outage goes on: the question is repeated, and nobody waits for it.
#[tokio::test(start_paused = true)]
async fn in_a_long_outage_nobody_waits_a_second_time() {
    let (forwarder, [key]) = with_stale(["a.b"]).await;
    end(&asking(&forwarder, &key), Told::Silence);
    let mut asked = 0;
    for _ in 0..100 {
        advance(Duration::from_secs(1)).await;
        let (looked, behind) = decide(&forwarder, &key);
        assert!(is_stale_at_once(&looked));
        if let Some(behind) = behind {
            end(&behind, Told::Silence);
            asked += 1;
        }
    }
    assert_eq!(asked, 20, "every five seconds");
}

/// The name servers of a zone are gone, those that we ask are not.
#[tokio::test(start_paused = true)]
async fn one_slow_name_does_not_make_others_stale() {
    for it_ended in [false, true] {
        let (forwarder, [slow, other, third]) = with_stale(["slow.b", "other.b", "third.b"]).await;
        let (first, behind) = decide(&forwarder, &slow);
        assert!(is_stale(&later(first).answer().await));
        if it_ended {
            end(behind.as_ref().unwrap(), Told::Silence);
        }
        let (second, asking) = decide(&forwarder, &other);
        let waiting = tokio::spawn(later(second).answer());
        advance(MOMENT / 2).await;
        end(&asking.unwrap(), Told::Answer(reply(&other, 60)));
        assert!(matches!(waiting.await.unwrap(), Resolved::Answer(_, Left::After(_))), "the new one");
        // Somebody has spoken: this one has all the time.
        let began = Instant::now();
        let (looked, _asking) = decide(&forwarder, &third);
        assert!(is_stale(&later(looked).answer().await));
        assert!(began.elapsed() >= PATIENCE);
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_while_a_client_waits_again() {
    let (forwarder, [one, two]) = with_stale(["one.b", "two.b"]).await;
    end(&asking(&forwarder, &one), Told::Silence);
    assert_eq!(patience(&forwarder, &two), MOMENT);
    advance(SILENCE).await;
    assert_eq!(patience(&forwarder, &two), PATIENCE);
}

/// A name whose own servers fail says nothing of other names.
#[tokio::test(start_paused = true)]
async fn a_server_that_fails_for_one_name_is_not_silent() {
    let (forwarder, [one, two]) = with_stale(["one.b", "two.b"]).await;
    end(&asking(&forwarder, &one), Told::Failed);
    assert!(is_stale_at_once(&decide(&forwarder, &one).0), "this one is not asked again at once");
    assert_eq!(patience(&forwarder, &two), PATIENCE);
}

/// The end of a question may be far: with servers that are silent, others know when the first client has waited enough.
#[tokio::test(start_paused = true)]
async fn silence_is_known_when_a_client_has_waited() {
    for something_is_heard in [false, true] {
        let (forwarder, [one, two, three]) = with_stale(["one.b", "two.b", "three.b"]).await;
        let (first, _asking) = decide(&forwarder, &one);
        if something_is_heard {
            end(&asking(&forwarder, &two), Told::Failed);
        }
        assert!(is_stale(&later(first).answer().await));
        let waits = if something_is_heard { PATIENCE } else { MOMENT };
        assert_eq!(patience(&forwarder, &three), waits);
    }
}

/// With nothing to give, a name that failed is not asked for by each who comes.
#[tokio::test(start_paused = true)]
async fn a_failure_is_remembered_for_a_moment() {
    let (forwarder, key) = (forwarder(), key("a.b"));
    end(&asking(&forwarder, &key), Told::Failed);
    let (looked, none) = decide(&forwarder, &key);
    assert!(matches!(looked, Looked::Now(Resolved::Failed)) && none.is_none());
    assert_eq!(forwarder.stats.get(Count::FailedAgain), 1);
    advance(Duration::from_secs(2)).await;
    assert!(decide(&forwarder, &key).1.is_some());
}

#[tokio::test(start_paused = true)]
async fn questions_and_clients_are_bounded() {
    let forwarder = forwarder();
    let keys = ["a", "b", "c", "d", "e"].map(key);
    let under_way: Vec<_> = keys[..MOST].iter().map(|key| decide(&forwarder, key)).collect();
    let (looked, none) = decide(&forwarder, &keys[MOST]);
    assert!(matches!(looked, Looked::Now(Resolved::Failed)) && none.is_none());
    // Nor may more wait for those that are asked.
    assert!(matches!(decide(&forwarder, &keys[0]).0, Looked::Now(Resolved::Failed)));
    assert_eq!(forwarder.stats.get(Count::Overflow), 2);
    drop(under_way);
    assert!(matches!(decide(&forwarder, &keys[MOST]).0, Looked::Later(_)));
}

#[tokio::test(start_paused = true)]
async fn what_other_servers_said_is_not_kept() {
    let (forwarder, [old, two]) = with_stale(["old.b", "two.b"]).await;
    let (waiting, before) = decide(&forwarder, &old);
    end(&asking(&forwarder, &two), Told::Silence);
    forwarder.forget();
    let (other, after) = decide(&forwarder, &old);
    let (before, after) = (before.unwrap(), after.expect("asked anew"));
    end(&before, Told::Answer(reply(&old, 60)));
    drop(before);
    // Who waited for it has it.
    assert!(matches!(later(waiting).answer().await, Resolved::Answer(..)));
    assert!(decide(&forwarder, &old).1.is_none(), "the other question is still under way");
    assert!(!forwarder.state().health.is_silent(Instant::now()));
    end(&after, Told::Silence);
    assert_eq!(later(other).answer().await, Resolved::Failed, "nothing is left of before");
}

/// However a question ends, nobody waits for ever.
#[tokio::test(start_paused = true)]
async fn a_question_that_is_dropped_fails() {
    let (forwarder, key) = (forwarder(), key("a.b"));
    let (looked, asking) = decide(&forwarder, &key);
    drop(asking);
    assert_eq!(later(looked).answer().await, Resolved::Failed);
    assert!(decide(&forwarder, &key).1.is_some());
}
