//! A limit before an upstream of workers with a queue, in a time of its own. The numbers are exact: nothing here depends on a machine.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::tests::spec;
use super::*;

/// How long the requests of a simulation take.
#[derive(Clone, Copy, Debug)]
enum Times {
    /// All the same.
    Same,
    /// Evenly distributed between 0.8 and 1.2 of the mean.
    Close,
    /// Exponentially distributed.
    Exponential,
}

/// Requests come by chance, wait for one of some workers, and are served in their order.
#[derive(Clone, Copy)]
struct Simulation {
    /// At a time, how many requests come a second.
    rate: fn(f64) -> f64,
    workers: usize,
    /// At a time, how long one takes on average, seconds.
    service: fn(f64) -> f64,
    times: Times,
    seconds: f64,
    /// What comes before this is not counted.
    from: f64,
    seed: u64,
}

/// What came of it.
struct Seen {
    /// Answers a second.
    served: f64,
    p99: f64,
    refused: f64,
    view: View,
}

/// What is counted of some time.
#[derive(Default)]
struct Tally {
    latencies: Vec<u64>,
    came: u32,
    refused: u32,
    view: Option<View>,
}

fn exponential(rng: &mut fastrand::Rng, mean: f64) -> f64 {
    -mean * (1.0 - rng.f64()).ln()
}

fn nanos(seconds: f64) -> u64 {
    u64::try_from(Duration::from_secs_f64(seconds).as_nanos()).unwrap()
}

impl Simulation {
    fn run(&self) -> Seen {
        self.watch([(self.from, self.seconds)]).into_iter().next().unwrap()
    }

    fn takes(&self, rng: &mut fastrand::Rng, now: f64) -> f64 {
        let mean = (self.service)(now);
        match self.times {
            Times::Same => mean,
            Times::Close => mean * 0.4f64.mul_add(rng.f64(), 0.8),
            Times::Exponential => exponential(rng, mean),
        }
    }

    /// What was seen from one time to another, each.
    fn watch<const N: usize>(&self, times: [(f64, f64); N]) -> [Seen; N] {
        let mut rng = fastrand::Rng::with_seed(self.seed);
        let start = Instant::now();
        let at = |nanos: u64| start + Duration::from_nanos(nanos);
        let controller = Arc::new(Controller::new(spec(), start));
        // None: a request comes. Some: it is served.
        let mut events: BinaryHeap<Reverse<(u64, u64, Option<u64>)>> =
            BinaryHeap::from([Reverse((0, 0, None))]);
        let mut places: foldhash::HashMap<u64, (u64, Place)> = foldhash::HashMap::default();
        let mut waiting = VecDeque::new();
        let (mut free, mut number) = (self.workers, 0);
        let mut tallies: [Tally; N] = std::array::from_fn(|_| Tally::default());
        let end = nanos(self.seconds);
        while let Some(Reverse((now, _, what))) = events.pop().filter(|Reverse((now, ..))| *now < end) {
            let seconds = now as f64 / 1e9;
            number += 1;
            let mut tally =
                times.iter().position(|(from, to)| (*from..*to).contains(&seconds)).map(|n| &mut tallies[n]);
            if let Some(id) = what {
                let (began, place) = places.remove(&id).unwrap();
                place.answered(at(now));
                free += 1;
                if let Some(tally) = &mut tally {
                    tally.latencies.push(now - began);
                    tally.view = Some(controller.view());
                }
            } else {
                let next = now + nanos(exponential(&mut rng, 1.0 / (self.rate)(seconds)));
                events.push(Reverse((next, number, None)));
                let place = controller.try_acquire(Priority::Default, at(now));
                if let Some(tally) = &mut tally {
                    tally.came += 1;
                    tally.refused += u32::from(place.is_none());
                }
                if let Some(place) = place {
                    places.insert(number, (now, place));
                    waiting.push_back(number);
                }
            }
            while let Some(id) = waiting.pop_front_if(|_| free > 0) {
                free -= 1;
                events.push(Reverse((now + nanos(self.takes(&mut rng, seconds)), id, Some(id))));
            }
        }
        let mut spans = times.iter().map(|(from, to)| to - from);
        tallies.map(|tally| tally.seen(spans.next().unwrap()))
    }
}

impl Tally {
    fn seen(mut self, seconds: f64) -> Seen {
        self.latencies.sort_unstable();
        Seen {
            served: self.latencies.len() as f64 / seconds,
            p99: self.latencies[self.latencies.len() * 99 / 100] as f64 / 1e9,
            refused: f64::from(self.refused) / f64::from(self.came),
            view: self.view.unwrap(),
        }
    }
}

/// Of docs/experiments/overload.md, the simulated rows: unloaded, then as much as can be served, then twice as much; each without its first
/// three seconds.
#[test]
fn at_twice_the_capacity_goodput_and_latency_hold() {
    let ten = Simulation {
        rate: |now| {
            if now < 20.0 {
                60.0
            } else if now < 40.0 {
                200.0
            } else {
                400.0
            }
        },
        workers: 10,
        service: |_| 0.05,
        times: Times::Close,
        seconds: 100.0,
        from: 0.0,
        seed: 0,
    };
    let hundred = Simulation {
        rate: |now| {
            if now < 20.0 {
                1500.0
            } else if now < 40.0 {
                5000.0
            } else {
                10_000.0
            }
        },
        workers: 100,
        service: |_| 0.02,
        ..ten
    };
    for (simulation, capacity) in [(ten, 200.0), (hundred, 5000.0)] {
        for (times, seed) in
            [(Times::Same, 1), (Times::Close, 2), (Times::Exponential, 3), (Times::Exponential, 4)]
        {
            let [unloaded, full, twice] =
                Simulation { times, seed, ..simulation }.watch([(3.0, 20.0), (23.0, 40.0), (43.0, 100.0)]);
            let [full, goodput] = [&full, &twice].map(|seen| seen.served / capacity);
            let slower = twice.p99 / unloaded.p99;
            println!(
                "{times:?}, {capacity} a second: {full:.3} at the capacity, {goodput:.3} at twice; p99 {slower:.2} of the unloaded one"
            );
            assert!(goodput >= 0.95, "{times:?}, {capacity} a second: goodput {goodput}");
            assert!(slower <= 3.0, "{times:?}, {capacity} a second: p99 is {slower} of the unloaded one");
        }
    }
}

/// When the lowest limit is more than an upstream can do at a time, a dip cannot show what it is without a queue, and must not pretend to.
#[test]
fn the_lowest_limit_is_not_taken_for_an_unloaded_upstream() {
    for (workers, seed) in [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (2, 6)] {
        let simulation = Simulation {
            rate: if workers == 1 {
                |now| if now < 20.0 { 30.0 } else { 200.0 }
            } else {
                |now| if now < 20.0 { 60.0 } else { 400.0 }
            },
            workers,
            service: |_| 0.01,
            times: Times::Close,
            seconds: 120.0,
            from: 60.0,
            seed,
        };
        let [unloaded, twice] = simulation.watch([(3.0, 20.0), (60.0, 120.0)]);
        let (slower, known) = (twice.p99 / unloaded.p99, twice.view.unloaded / unloaded.view.unloaded);
        assert!(
            slower <= 3.0 && known < 1.5,
            "{workers} workers: p99 {slower}, unloaded {known}, {:?}",
            twice.view
        );
        assert!(twice.served >= 95.0 * workers as f64, "{workers} workers: {}", twice.served);
    }
}

/// At twice the capacity nearly all of it is used, and those who are let in do not wait long.
#[test]
fn an_overloaded_upstream_does_as_much_as_it_can_and_is_not_slow() {
    let slow = Simulation {
        rate: |_| 160.0,
        workers: 4,
        service: |_| 0.05,
        times: Times::Same,
        seconds: 70.0,
        from: 10.0,
        seed: 7,
    };
    let quick = Simulation { rate: |_| 3200.0, workers: 16, service: |_| 0.01, ..slow };
    let wide = Simulation { rate: |_| 10_000.0, workers: 100, service: |_| 0.02, ..slow };
    for simulation in [slow, quick, wide] {
        for times in [Times::Same, Times::Exponential] {
            let simulation = Simulation { times, ..simulation };
            let (workers, service) = (simulation.workers as f64, (simulation.service)(0.0));
            // 99 % of an exponential distribution are below 4.6 times its mean.
            let unloaded = if matches!(times, Times::Exponential) { 4.605 * service } else { service };
            let seen = simulation.run();
            let goodput = seen.served / (workers / service);
            assert!(goodput >= 0.95, "{workers} workers, {times:?}: goodput {goodput}");
            let slower = seen.p99 / unloaded;
            assert!(slower <= 3.0, "{workers} workers, {times:?}: p99 is {slower} of the unloaded one");
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
        times: Times::Exponential,
        seconds: 1800.0,
        from: 1700.0,
        seed: 7,
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
        times: Times::Exponential,
        seconds: 40.0,
        from: 25.0,
        seed: 7,
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
        times: Times::Exponential,
        seconds: 6.0,
        from: 4.0,
        seed: 7,
    };
    let seen = half.run();
    assert_eq!(seen.refused, 0.0, "{:?}", seen.view);
}
