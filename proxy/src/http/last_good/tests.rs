use super::*;
use crate::resilience::circuit::CircuitSpec;
use crate::resilience::circuit::cell::Limits;
use crate::resilience::circuit::last_good::LastGoodSpec;
use crate::resilience::circuit::last_good::rules::{Terms, Wish};
use crate::resilience::circuit::last_good::shelves::Shelves;
use crate::resilience::circuit::window::Length;
use http::HeaderMap;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::time::Duration;

fn spec() -> CircuitSpec {
    CircuitSpec {
        length: Length::Calls(10),
        limits: Limits {
            failure_rate: 50.0,
            slow_rate: 100.0,
            minimum_calls: 4,
            permitted: 2,
            wait_open: 1000,
            wait_half_open: None,
        },
        slow: Duration::from_secs(1),
        automatic: false,
        failures: Box::new([]),
        fallback: None,
        last_good: Some(LastGoodSpec { max_body_bytes: 10, ..LastGoodSpec::default() }),
    }
}

fn circuit(spec: CircuitSpec, old: Option<&Circuit>) -> Arc<Circuit> {
    Circuit::new("cluster/a".into(), spec, old)
}

fn recording(shelf: &Rc<Shelf>) -> Recording {
    let limit = Duration::from_secs(60);
    let terms = Terms { age: Duration::ZERO, limit, shared: false };
    let none = HeaderMap::new();
    let vary = Vary::of(&none, &none).unwrap();
    let draft = Draft::new((&"key".into(), &"cluster".into()), terms, vary, &none, Instant::now());
    Recording::begin(shelf, draft, shelf.changes.of("key")).unwrap()
}

fn kept(shelf: &Shelf) -> Option<Bytes> {
    let store = shelf.store.borrow();
    store
        .find(("key", "cluster"), &HeaderMap::new(), &Wish::default(), Instant::now())
        .map(|again| again.body)
}

/// Frames of a body, which is told of to be at its end with the last of them, or only after it.
async fn read(shelf: &Rc<Shelf>, frames: Vec<Result<Frame<Bytes>, Reason>>) -> usize {
    let mut frames = VecDeque::from(frames);
    let mut copy = Some(recording(shelf));
    let mut passed = 0;
    while let Some(frame) = frames.pop_front() {
        let rest = if frames.is_empty() { Body::Empty } else { Body::Full(Bytes::from_static(b"more")) };
        let inner = super::super::ahead::AheadBody::resume(frame, rest);
        let mut body = RememberedBody { body: Body::Ahead(Box::new(inner)), copy: copy.take() };
        assert!(!body.inner().is_end());
        let frame = poll_fn(|cx| body.poll_next(cx)).await.unwrap();
        passed += frame.map_or(0, |frame| frame.data_ref().map_or(0, Bytes::len));
        copy = body.copy.take();
    }
    passed
}

fn data(text: &'static str) -> Result<Frame<Bytes>, Reason> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

fn shelf() -> Rc<Shelf> {
    Shelves::default().of(&circuit(spec(), None)).unwrap()
}

#[tokio::test]
async fn a_whole_body_is_kept_as_it_was() {
    let shelf = shelf();
    assert_eq!(read(&shelf, vec![data("hello"), data(" you")]).await, 9);
    assert_eq!(kept(&shelf), Some(Bytes::from_static(b"hello you")));
}

#[tokio::test]
async fn what_is_too_long_breaks_off_or_has_trailers_goes_on_and_is_not_kept() {
    for frames in [
        vec![data("hello"), data(" world")],
        vec![data("hello"), Err(Reason::UpstreamBodyReset)],
        vec![data("hello"), Ok(Frame::trailers(HeaderMap::new()))],
    ] {
        let shelf = shelf();
        let shown = format!("{frames:?}");
        assert!(read(&shelf, frames).await >= 5, "{shown}");
        let store = shelf.store.borrow();
        assert_eq!((store.len(), store.bytes()), (0, 0), "{shown}");
    }
}

#[tokio::test]
async fn who_goes_away_leaves_nothing() {
    let shelf = shelf();
    let inner = Body::Full(Bytes::from_static(b"hello"));
    drop(RememberedBody { body: inner, copy: Some(recording(&shelf)) });
    assert_eq!((shelf.store.borrow().len(), shelf.store.borrow().bytes()), (0, 0));
}

#[test]
fn what_changed_on_the_way_is_not_kept_on_any_shelf() {
    let shelves = Shelves::default();
    let circuits = [circuit(spec(), None), Circuit::new("route/r/v/n".into(), spec(), None)];
    let both = circuits.each_ref().map(|circuit| shelves.of(circuit).unwrap());
    recording(&both[0]).complete();
    let mut copies = both.each_ref().map(recording);
    shelves.forget("other");
    assert!(kept(&both[0]).is_some());
    shelves.forget("key");
    copies.iter_mut().for_each(Recording::complete);
    assert_eq!(both.each_ref().map(|shelf| kept(shelf)), [None, None]);
    assert_eq!(both.each_ref().map(|shelf| shelf.store.borrow().bytes()), [0, 0]);
    recording(&both[1]).complete();
    assert!(kept(&both[1]).is_some());
}

#[test]
fn an_edit_of_the_bounds_drops_what_is_kept_and_no_other_edit() {
    let shelves = Shelves::default();
    let first = circuit(spec(), None);
    recording(&shelves.of(&first).unwrap()).complete();
    let other = circuit(CircuitSpec { slow: Duration::from_secs(2), ..spec() }, Some(&first));
    assert!(kept(&shelves.of(&other).unwrap()).is_some());
    let bounds = Some(LastGoodSpec { max_bytes: 1 << 20, ..LastGoodSpec::default() });
    let smaller = circuit(CircuitSpec { last_good: bounds, ..spec() }, Some(&other));
    assert!(kept(&shelves.of(&smaller).unwrap()).is_none());
    let off = circuit(CircuitSpec { last_good: None, ..spec() }, Some(&smaller));
    assert!(shelves.of(&off).is_none());
}

#[test]
fn what_belongs_to_a_configuration_that_is_gone_is_thrown_away() {
    let shelves = Shelves::default();
    let (cluster, route) = (circuit(spec(), None), Circuit::new("route/r/v/n".into(), spec(), None));
    let kept = [&cluster, &route].map(|circuit| Rc::downgrade(&shelves.of(circuit).unwrap()));
    let alive = || kept.each_ref().map(|shelf| shelf.strong_count());
    let held = cluster.last_good.clone().unwrap();
    let current = |name: &str| name.starts_with("cluster/").then_some(Some(&held));
    shelves.prune(current);
    assert_eq!(alive(), [1, 1]);
    drop(route);
    shelves.prune(current);
    assert_eq!(alive(), [1, 0]);
    shelves.prune(|name| name.starts_with("cluster/").then_some(None));
    assert_eq!(alive(), [0, 0], "although somebody still holds it");
}
