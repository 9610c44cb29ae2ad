use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

pub(super) fn spec() -> ConcurrencySpec {
    ConcurrencySpec {
        min: 3,
        max: 1000,
        interval: Duration::from_millis(100),
        samples: 50,
        buffer: 0.25,
        fixed: None,
    }
}

#[test]
fn who_matters_less_is_refused_earlier() {
    let limited = ConcurrencySpec { min: 20, max: 20, ..spec() };
    let (now, controller) = (Instant::now(), Arc::new(Controller::new(limited, Instant::now())));
    let fill =
        |priority| -> Vec<_> { std::iter::from_fn(|| controller.try_acquire(priority, now)).collect() };
    let (batch, default, critical) =
        (fill(Priority::Batch), fill(Priority::Default), fill(Priority::Critical));
    assert_eq!((batch.len(), default.len(), critical.len()), (16, 3, 1));
    let view = controller.view();
    assert_eq!((view.in_flight, view.limit, view.refused), (20, 20, [1, 1, 1]));
    drop(batch);
    assert_eq!(controller.view().in_flight, 4);
    assert_eq!(fill(Priority::Batch).len(), 12);
}

#[test]
fn a_small_limit_is_one_for_all() {
    for priority in Priority::ALL {
        assert_eq!(priority.places(1), 1);
        assert_eq!(Priority::by_name(priority.as_str().as_bytes()), Some(priority));
    }
    assert_eq!(Priority::by_name(b"urgent"), None);
    assert_eq!(Priority::Critical.places(u32::MAX), u32::MAX);
}

#[test]
fn a_request_without_an_answer_is_no_sample() {
    let one = ConcurrencySpec { samples: 1, ..spec() };
    let (now, controller) = (Instant::now(), Arc::new(Controller::new(one, Instant::now())));
    drop(controller.try_acquire(Priority::Default, now).unwrap());
    assert_eq!(controller.view().latency, 0.0);
    let place = controller.try_acquire(Priority::Default, now).unwrap();
    place.answered(now + Duration::from_millis(250));
    assert_eq!((controller.view().latency, controller.view().in_flight), (0.25, 0));
}

#[test]
fn a_known_latency_is_believed() {
    let fixed = ConcurrencySpec { fixed: Some(Duration::from_millis(10)), ..spec() };
    let mut gradient = Gradient::new(&fixed);
    let window = Window { latency: 0.03, busy: 10.0, refused: true };
    for _ in 0..100 {
        gradient.turn(&fixed, &window);
    }
    assert_eq!(gradient.unloaded(), 0.01);
    // Where 1.25 / 3 of it and its square root are itself: 2.9, and three are the fewest.
    assert_eq!(gradient.limit(&fixed), 3);
}

#[test]
fn the_limit_is_exact_between_threads() {
    let limited =
        ConcurrencySpec { min: 3, max: 3, samples: 1, interval: Duration::from_micros(1), ..spec() };
    let controller = Arc::new(Controller::new(limited, Instant::now()));
    let (held, peak) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    if let Some(place) = controller.try_acquire(Priority::Critical, Instant::now()) {
                        peak.fetch_max(held.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        held.fetch_sub(1, Ordering::SeqCst);
                        place.answered(Instant::now());
                    }
                }
            });
        }
    });
    assert!(peak.load(Ordering::SeqCst) <= 3);
    assert_eq!(controller.view().in_flight, 0);
}

proptest! {
    #[test]
    fn the_limit_stays_within_its_bounds(
        windows in prop::collection::vec((1e-6_f64..100.0, 0.0_f64..1e6, any::<bool>()), 1..300),
        min in 1_u32..50, more in 0_u32..2000, buffer in 0.0_f64..10.0
    ) {
        let spec = ConcurrencySpec { min, max: min + more, buffer, ..spec() };
        let mut gradient = Gradient::new(&spec);
        for (latency, busy, refused) in windows {
            gradient.turn(&spec, &Window { latency, busy, refused });
            let limit = gradient.limit(&spec);
            prop_assert!((spec.min..=spec.max).contains(&limit), "{gradient:?}");
            prop_assert!(gradient.unloaded().is_finite() && gradient.unloaded() >= 0.0);
        }
    }

    #[test]
    fn more_important_ones_have_more_places(limit in any::<u32>()) {
        let [critical, default, batch] = Priority::ALL.map(|priority| priority.places(limit));
        prop_assert!(critical == limit && critical >= default && default >= batch);
        prop_assert!(limit == 0 || batch > 0);
    }

    /// Whatever is taken, answered and dropped, what is counted is what is there.
    #[test]
    fn places_are_given_back(steps in prop::collection::vec((0_usize..3, 0_u64..500, any::<bool>()), 1..300)) {
        let (mut now, quick) = (Instant::now(), ConcurrencySpec { samples: 3, ..spec() });
        let controller = Arc::new(Controller::new(quick, now));
        let mut held = VecDeque::new();
        for (priority, wait, answered) in steps {
            now += Duration::from_millis(wait);
            held.extend(controller.try_acquire(Priority::ALL[priority], now));
            if wait % 3 == 0 && let Some(place) = held.pop_front() {
                if answered { place.answered(now) } else { drop(place) }
            }
            prop_assert_eq!(controller.view().in_flight as usize, held.len());
        }
    }
}
