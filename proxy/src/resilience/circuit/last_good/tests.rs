use super::*;
use http::Method;
use proptest::prelude::*;

const SPEC: LastGoodSpec =
    LastGoodSpec { max_age: Duration::from_secs(300), max_body_bytes: 4096, max_bytes: 24 * 1024 };

fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    lines.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
}

const TERMS: Terms = Terms { age: Duration::from_secs(2), limit: Duration::from_secs(60), shared: false };

fn draft(key: &str, vary: Vary, now: Instant) -> Draft {
    Draft::new(
        (&key.into(), &"c".into()),
        TERMS,
        vary,
        &headers(&[("content-type", "text/plain"), ("age", "2")]),
        now,
    )
}

fn all() -> Vary {
    Vary::of(&HeaderMap::new(), &HeaderMap::new()).unwrap()
}

fn keep(store: &mut Store, key: &str, body: &str, now: Instant) {
    store.keep(draft(key, all(), now), Bytes::copy_from_slice(body.as_bytes()), now);
}

fn find(store: &Store, key: &str, now: Instant) -> Option<String> {
    let again = store.find((key, "c"), &HeaderMap::new(), &Wish::default(), now)?;
    Some(String::from_utf8(again.body.to_vec()).unwrap())
}

fn after(now: Instant, seconds: u64) -> Instant {
    now + Duration::from_secs(seconds)
}

#[test]
fn the_newest_answer_is_given_with_its_age_and_until_it_is_too_old() {
    let (mut store, now) = (Store::new(SPEC), Instant::now());
    keep(&mut store, "a", "old", now);
    keep(&mut store, "a", "new", now);
    assert_eq!((store.len(), find(&store, "b", now)), (1, None));
    let again = store.find(("a", "c"), &HeaderMap::new(), &Wish::default(), after(now, 7)).unwrap();
    assert_eq!(again.body, "new");
    let expected = headers(&[("content-type", "text/plain"), ("age", "9"), ("content-length", "3")]);
    assert_eq!(again.headers, expected);
    assert!(find(&store, "a", after(now, 58)).is_some());
    assert_eq!(find(&store, "a", after(now, 59)), None, "a limit of 60 s, and it was 2 s old");
}

#[test]
fn a_request_may_want_none_that_is_older() {
    let (mut store, now) = (Store::new(SPEC), Instant::now());
    keep(&mut store, "a", "x", now);
    let wish = rules::wish(&Method::GET, &headers(&[("cache-control", "max-age=10")])).unwrap();
    let at = |seconds| store.find(("a", "c"), &HeaderMap::new(), &wish, after(now, seconds)).is_some();
    assert_eq!((at(8), at(9)), (true, false));
}

#[test]
fn answers_that_differ_by_a_header_are_kept_apart() {
    let (mut store, now) = (Store::new(SPEC), Instant::now());
    let languages = [headers(&[("accept-language", "de")]), headers(&[("accept-language", "fr")])];
    for (language, body) in languages.iter().zip(["hallo", "bonjour"]) {
        let vary = Vary::of(&headers(&[("vary", "accept-language")]), language).unwrap();
        store.keep(draft("a", vary, now), Bytes::from_static(body.as_bytes()), now);
    }
    let find =
        |asked: &HeaderMap| store.find(("a", "c"), asked, &Wish::default(), now).map(|again| again.body);
    assert_eq!(languages.each_ref().map(find), [Some("hallo".into()), Some("bonjour".into())]);
    assert_eq!(find(&HeaderMap::new()), None);
}

#[test]
fn of_one_thing_only_so_many_are_kept() {
    let (mut store, now) = (Store::new(SPEC), Instant::now());
    let asked = |n: usize| {
        let mut headers = HeaderMap::new();
        headers.insert("x-n", HeaderValue::from(n));
        headers
    };
    for n in 0..=MAX_VARIANTS {
        let vary = Vary::of(&headers(&[("vary", "x-n")]), &asked(n)).unwrap();
        store.keep(draft("a", vary, now), Bytes::new(), now);
    }
    assert_eq!(store.len(), MAX_VARIANTS);
    assert!(store.find(("a", "c"), &asked(0), &Wish::default(), now).is_none(), "the oldest left");
    assert!(store.find(("a", "c"), &asked(1), &Wish::default(), now).is_some());
}

#[test]
fn who_tells_who_asks_gets_only_what_is_for_everybody() {
    let (mut store, now) = (Store::new(SPEC), Instant::now());
    keep(&mut store, "a", "anonymous", now);
    let user = headers(&[("authorization", "Bearer x")]);
    assert!(store.find(("a", "c"), &user, &Wish::default(), now).is_none());
    let mut public = draft("a", all(), now);
    public.terms.shared = true;
    store.keep(public, Bytes::new(), now);
    assert!(store.find(("a", "c"), &user, &Wish::default(), now).is_some());
}

#[test]
fn the_oldest_answers_make_room() {
    let (mut store, now) = (Store::new(SPEC), Instant::now());
    let body = "x".repeat(4096);
    for key in ["a", "b", "c"] {
        keep(&mut store, key, &body, now);
    }
    keep(&mut store, "a", &body, now);
    keep(&mut store, "d", &body, now);
    let found = ["a", "b", "c", "d"].map(|key| find(&store, key, now).is_some());
    assert_eq!(found, [true, false, true, true], "b was kept first");
    assert!(store.bytes() <= SPEC.max_bytes);
}

#[test]
fn what_is_on_its_way_counts_and_pushes_nothing_out() {
    let (mut store, now) = (Store::new(SPEC), Instant::now());
    for key in ["a", "b", "c"] {
        keep(&mut store, key, &"x".repeat(4096), now);
    }
    let kept = store.bytes();
    assert!(store.reserve(4096 + HEAD), "the longest");
    assert!(!store.reserve(1), "it has its share");
    assert_eq!((store.len(), store.bytes()), (3, kept + 4096 + HEAD));
    store.release(4096 + HEAD);
    keep(&mut store, "d", &"x".repeat(SPEC.max_bytes), now);
    assert_eq!((store.len(), store.bytes()), (3, kept), "larger than everything");
}

#[test]
fn the_least_bounds_keep_one_while_the_next_comes() {
    let spec = LastGoodSpec { max_bytes: LastGoodSpec::least(4096), ..SPEC };
    let (mut store, now) = (Store::new(spec), Instant::now());
    keep(&mut store, "a", &"x".repeat(4096), now);
    assert!(store.reserve(4096 + HEAD));
    assert!(find(&store, "a", now).is_some());
    let usual = LastGoodSpec::default();
    assert_eq!(usual.coming(), usual.max_bytes / COMING);
}

#[test]
fn what_is_too_old_leaves_with_the_next_that_comes() {
    let (mut store, now) = (Store::new(SPEC), Instant::now());
    keep(&mut store, "a", "x", now);
    keep(&mut store, "b", "x", after(now, 59));
    assert_eq!(store.len(), 1);
}

#[test]
fn it_can_be_forgotten() {
    let (mut store, now) = (Store::new(SPEC), Instant::now());
    keep(&mut store, "a", "x", now);
    keep(&mut store, "b", "x", now);
    store.forget("a");
    store.forget("none");
    assert_eq!((find(&store, "a", now), find(&store, "b", now)), (None, Some("x".into())));
}

#[test]
fn clusters_are_kept_apart_and_forgotten_together() {
    let (mut store, now) = (Store::new(SPEC), Instant::now());
    for cluster in ["c", "d"] {
        let draft = Draft::new((&"a".into(), &cluster.into()), TERMS, all(), &HeaderMap::new(), now);
        store.keep(draft, Bytes::from_static(cluster.as_bytes()), now);
    }
    let of = |store: &Store, cluster| {
        store.find(("a", cluster), &HeaderMap::new(), &Wish::default(), now).map(|again| again.body)
    };
    assert_eq!((of(&store, "c"), of(&store, "d")), (Some("c".into()), Some("d".into())));
    store.forget("a");
    assert!(store.is_empty() && store.bytes() == 0);
}

/// A step of [`the_bounds_hold_and_the_sums_are_right`].
#[derive(Debug, Clone)]
enum Step {
    Keep { key: u8, variant: u8, length: usize },
    Forget(u8),
    Reserve(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..5_u8, 0..3_u8, 0..5000_usize).prop_map(|(key, variant, length)| Step::Keep {
            key,
            variant,
            length
        }),
        (0..5_u8).prop_map(Step::Forget),
        (0..9000_usize).prop_map(Step::Reserve),
        (0..40_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn the_bounds_hold_and_the_sums_are_right(steps in prop::collection::vec(step(), 0..60)) {
        let (mut store, mut now) = (Store::new(SPEC), Instant::now());
        for step in steps {
            match step {
                Step::Keep { key, variant, length } => {
                    let mut asked = HeaderMap::new();
                    asked.insert("x-n", HeaderValue::from(u16::from(variant)));
                    let vary = Vary::of(&headers(&[("vary", "x-n")]), &asked).unwrap();
                    store.keep(draft(&key.to_string(), vary, now), vec![0; length].into(), now);
                    let found = store.find((&key.to_string(), "c"), &asked, &Wish::default(), now);
                    prop_assert!(found.is_none_or(|again| again.body.len() == length));
                }
                Step::Forget(key) => store.forget(&key.to_string()),
                Step::Reserve(bytes) => {
                    if store.reserve(bytes) {
                        prop_assert!(store.bytes() <= SPEC.max_bytes);
                        store.release(bytes);
                    }
                }
                Step::Wait(seconds) => now = after(now, seconds),
            }
            prop_assert!(store.bytes() <= SPEC.max_bytes);
            prop_assert_eq!(store.bytes(), store.kept.values().map(Kept::bytes).sum::<usize>());
            prop_assert_eq!(store.by_key.values().map(VecDeque::len).sum::<usize>(), store.len());
            for (key, numbers) in &store.by_key {
                prop_assert!(!numbers.is_empty());
                prop_assert!(numbers.iter().all(|number| store.kept[number].draft.key == *key));
            }
        }
    }
}
