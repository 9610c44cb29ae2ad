use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use proptest::prelude::*;

use super::*;

fn spec() -> ConcurrencySpec {
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
    // Where half of it and its square root are itself.
    assert_eq!(gradient.limit(&fixed), 4);
}

/// Requests come by chance, wait for one of some workers, and are served in their order.
struct Simulation {
    /// At a time, how many requests come a second.
    rate: fn(f64) -> f64,
    workers: usize,
    /// At a time, how long one takes, seconds.
    service: fn(f64) -> f64,
    /// The time one takes is exponentially distributed, or else always the same.
    random: bool,
    seconds: f64,
    /// What comes before this is not counted.
    from: f64,
}

/// What came of it.
struct Seen {
    served: f64,
    p99: f64,
    refused: f64,
    view: View,
}

impl Simulation {
    fn run(&self) -> Seen {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut exponential = |mean: f64| -mean * (1.0 - rng.f64()).ln();
        let start = Instant::now();
        let at = |nanos: u64| start + Duration::from_nanos(nanos);
        let nanos = |seconds: f64| Duration::from_secs_f64(seconds).as_nanos() as u64;
        let controller = Arc::new(Controller::new(spec(), start));
        let (from, end) = (nanos(self.from), nanos(self.seconds));
        // None: a request comes. Some: it is served.
        let mut events: BinaryHeap<Reverse<(u64, u64, Option<u64>)>> =
            BinaryHeap::from([Reverse((0, 0, None))]);
        let mut places: foldhash::HashMap<u64, (u64, Place)> = foldhash::HashMap::default();
        let mut waiting = VecDeque::new();
        let (mut free, mut number, mut came, mut refused) = (self.workers, 0, 0_u32, 0_u32);
        let mut latencies = Vec::new();
        while let Some(Reverse((now, _, what))) = events.pop().filter(|Reverse((now, ..))| *now < end) {
            let seconds = now as f64 / 1e9;
            number += 1;
            let counts = now >= from;
            if let Some(id) = what {
                let (began, place) = places.remove(&id).unwrap();
                place.answered(at(now));
                free += 1;
                if counts {
                    latencies.push(now - began);
                }
            } else {
                let next = now + nanos(exponential(1.0 / (self.rate)(seconds)));
                events.push(Reverse((next, number, None)));
                came += u32::from(counts);
                match controller.try_acquire(Priority::Default, at(now)) {
                    Some(place) => {
                        places.insert(number, (now, place));
                        waiting.push_back(number);
                    }
                    None => refused += u32::from(counts),
                }
            }
            while let Some(id) = waiting.pop_front_if(|_| free > 0) {
                free -= 1;
                let mean = (self.service)(seconds);
                let takes = if self.random { exponential(mean) } else { mean };
                events.push(Reverse((now + nanos(takes), id, Some(id))));
            }
        }
        latencies.sort_unstable();
        Seen {
            served: latencies.len() as f64 / (self.seconds - self.from),
            p99: latencies[latencies.len() * 99 / 100] as f64 / 1e9,
            refused: f64::from(refused) / f64::from(came),
            view: controller.view(),
        }
    }
}

/// At twice the capacity nearly all of it is used, and those who are let in do not wait long.
#[test]
fn an_overloaded_upstream_does_as_much_as_it_can_and_is_not_slow() {
    let slow = Simulation {
        rate: |_| 160.0,
        workers: 4,
        service: |_| 0.05,
        random: false,
        seconds: 70.0,
        from: 10.0,
    };
    let quick = Simulation { rate: |_| 3200.0, workers: 16, service: |_| 0.01, ..slow };
    let wide = Simulation { rate: |_| 10_000.0, workers: 100, service: |_| 0.02, ..slow };
    for simulation in [slow, quick, wide] {
        for random in [false, true] {
            let simulation = Simulation { random, ..simulation };
            let (workers, service) = (simulation.workers as f64, (simulation.service)(0.0));
            // 99 % of an exponential distribution are below 4.6 times its mean.
            let unloaded = if random { 4.605 * service } else { service };
            let seen = simulation.run();
            let goodput = seen.served / (workers / service);
            assert!(goodput >= 0.95, "{workers} workers, random {random}: goodput {goodput}");
            let slower = seen.p99 / unloaded;
            assert!(slower <= 3.0, "{workers} workers, random {random}: p99 is {slower} of the unloaded one");
        }
    }
}

/// The queue that the limit allows does not become what it compares with, however long the overload lasts.
#[test]
fn the_limit_does_not_creep() {
    let hour = Simulation {
        rate: |_| 400.0,
        workers: 4,
        service: |_| 0.02,
        random: true,
        seconds: 1800.0,
        from: 1700.0,
    };
    let seen = hour.run();
    assert!(seen.p99 < 3.0 * 4.605 * 0.02, "{}", seen.p99);
    assert!(seen.view.limit < 20, "{:?}", seen.view);
}

/// What is slower, but not overloaded, is not held down.
#[test]
fn an_upstream_that_became_slower_is_not_taken_for_a_queue() {
    let simulation = Simulation {
        rate: |_| 1000.0,
        workers: 60,
        service: |now| if now < 20.0 { 0.01 } else { 0.03 },
        random: true,
        seconds: 40.0,
        from: 25.0,
    };
    let seen = simulation.run();
    assert!(seen.refused < 0.01, "{}", seen.refused);
    assert!((0.02..0.04).contains(&seen.view.unloaded), "{:?}", seen.view);
}

#[test]
fn without_overload_nothing_is_refused_and_a_cold_start_is_short() {
    let half = Simulation {
        rate: |_| 12_500.0,
        workers: 500,
        service: |_| 0.02,
        random: true,
        seconds: 6.0,
        from: 4.0,
    };
    let seen = half.run();
    assert_eq!(seen.refused, 0.0, "{:?}", seen.view);
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
