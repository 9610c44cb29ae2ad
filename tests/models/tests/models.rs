//! What holds in whatever order threads meet.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use remora_models::circuit::cell::{Cell, Limits, Phase};
use remora_models::circuit::window::{Call, Length, Totals, Window};
use remora_models::resilience::breaker::{Breaker, Holder, Resource, Thresholds};
use remora_models::resilience::budget::{self, BudgetSpec};
use remora_models::upstream::census::{Census, Out, Standing};

/// Every order with at most three preemptions: beyond that loom's authors have seen no further defects, and it ends in seconds.
fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(f);
}

struct Shared(Arc<Breaker>);

impl Holder for Shared {
    fn breaker(&self) -> &Breaker {
        &self.0
    }
}

#[test]
fn permits_are_exact() {
    model(|| {
        let (breaker, held) = (Arc::new(Breaker::default()), Arc::new(AtomicU32::new(0)));
        let work = {
            let (breaker, held) = (breaker.clone(), held.clone());
            move || {
                if let Some(permit) = Breaker::try_acquire(Shared(breaker.clone()), Resource::Requests, 1) {
                    assert_eq!(held.fetch_add(1, Ordering::SeqCst), 0, "two hold what one may");
                    held.fetch_sub(1, Ordering::SeqCst);
                    drop(permit);
                }
            }
        };
        let other = thread::spawn(work.clone());
        work();
        other.join().unwrap();
        assert_eq!(breaker.active(Resource::Requests), 0);
        assert!(Breaker::try_acquire(Shared(breaker), Resource::Requests, 1).is_some(), "nothing was lost");
    });
}

#[test]
fn the_retry_budget_is_exact() {
    model(|| {
        let (breaker, held) = (Arc::new(Breaker::default()), Arc::new(AtomicU32::new(0)));
        let spec = BudgetSpec { percent: 0.0, min_concurrency: 1, interval: std::time::Duration::ZERO };
        let thresholds = Thresholds { retry_budget: Some(spec), ..Thresholds::default() };
        let now = tokio::time::Instant::now();
        let work = {
            let (breaker, held) = (breaker.clone(), held.clone());
            move || {
                if let Some(permit) = budget::try_retry(Shared(breaker.clone()), &thresholds, true, now) {
                    assert_eq!(held.fetch_add(1, Ordering::SeqCst), 0, "two retry where one may");
                    held.fetch_sub(1, Ordering::SeqCst);
                    drop(permit);
                }
            }
        };
        let other = thread::spawn(work.clone());
        work();
        other.join().unwrap();
        assert_eq!(breaker.active(Resource::Retries), 0);
    });
}

/// What the census should say of these.
fn recount(all: &[Standing]) -> (u32, u32) {
    let is_in = all.iter().filter(|one| !one.is_out() && !one.is_gone()).count();
    let ejected = all.iter().filter(|one| one.is_ejected()).count();
    (u32::try_from(is_in).unwrap(), u32::try_from(ejected).unwrap())
}

fn listed(n: usize) -> Arc<(Census, Vec<Standing>)> {
    let (census, all) = (Census::default(), (0..n).map(|_| Standing::default()).collect::<Vec<_>>());
    all.iter().for_each(|one| census.join(one));
    Arc::new((census, all))
}

#[test]
fn of_two_that_fail_at_once_one_stays() {
    model(|| {
        let shared = listed(2);
        let threads: Vec<_> = (0..2)
            .map(|i| {
                let shared = shared.clone();
                thread::spawn(move || shared.0.eject(&shared.1[i], 2).is_ok())
            })
            .collect();
        let ejected = threads.into_iter().map(|thread| thread.join().unwrap()).filter(|ok| *ok).count();
        assert_eq!(ejected, 1);
        assert_eq!((shared.0.is_in(), shared.0.ejected()), (1, 1));
        assert_eq!(recount(&shared.1), (1, 1));
    });
}

#[test]
fn an_endpoint_that_two_eject_is_ejected_once() {
    model(|| {
        let shared = listed(3);
        let other = {
            let shared = shared.clone();
            thread::spawn(move || shared.0.eject(&shared.1[0], 3).is_ok())
        };
        let mine = shared.0.eject(&shared.1[0], 3).is_ok();
        assert!(mine ^ other.join().unwrap());
        assert_eq!((shared.0.is_in(), shared.0.ejected()), (2, 1));
    });
}

#[test]
fn the_count_is_right_whoever_changes_an_endpoint() {
    model(|| {
        let shared = listed(2);
        let ejecting = {
            let shared = shared.clone();
            thread::spawn(move || shared.0.eject(&shared.1[0], 2))
        };
        let checking = {
            let shared = shared.clone();
            thread::spawn(move || {
                shared.0.set(&shared.1[0], Out::HealthCheck, true);
                shared.0.set(&shared.1[0], Out::HealthCheck, false);
            })
        };
        shared.0.restore(&shared.1[0]);
        let _ = ejecting.join().unwrap();
        checking.join().unwrap();
        assert_eq!((shared.0.is_in(), shared.0.ejected()), recount(&shared.1));
    });
}

#[test]
fn an_endpoint_that_leaves_while_it_is_ejected_is_forgotten() {
    model(|| {
        let shared = listed(3);
        let ejecting = {
            let shared = shared.clone();
            thread::spawn(move || shared.0.eject(&shared.1[0], 3))
        };
        shared.0.forget(&shared.1[0]);
        let _ = ejecting.join().unwrap();
        assert_eq!((shared.0.is_in(), shared.0.ejected()), (2, 0));
    });
}

const BAD: Call = Call { failed: true, slow: false };
const GOOD: Call = Call { failed: false, slow: false };

#[test]
fn the_ring_loses_no_call_and_counts_none_twice() {
    for size in [1, 2] {
        model(move || {
            let window = Arc::new(Window::new(Length::Calls(size)));
            let other = {
                let window = window.clone();
                thread::spawn(move || {
                    window.record(BAD, 0);
                    window.record(GOOD, 0);
                })
            };
            window.record(BAD, 0);
            other.join().unwrap();
            let totals = window.totals(0);
            assert_eq!(totals.calls, size.min(3));
            assert!(totals.failed <= totals.calls);
            // The totals are what the places hold.
            window.clear();
            assert_eq!(window.totals(0), Totals::default());
        });
    }
}

#[test]
fn a_slice_loses_no_call() {
    model(|| {
        let window = Arc::new(Window::new(Length::Millis(15_000)));
        let other = {
            let window = window.clone();
            thread::spawn(move || window.record(BAD, 20))
        };
        window.record(GOOD, 20);
        other.join().unwrap();
        assert_eq!(window.totals(20), Totals { calls: 2, failed: 1, slow: 0 });
    });
}

fn limits(permitted: u32) -> Limits {
    Limits {
        failure_rate: 50.0,
        slow_rate: 100.0,
        minimum_calls: 2,
        permitted,
        wait_open: 100,
        wait_half_open: None,
    }
}

fn open(cell: &Cell, window: &Window, limits: &Limits) {
    for _ in 0..2 {
        let permission = cell.try_acquire(limits, 0).0.unwrap();
        cell.record(permission, BAD, (limits, window), 0);
    }
    assert_eq!(cell.phase(), (Phase::Open, Some(0)));
}

#[test]
fn a_circuit_opens_once() {
    model(|| {
        let shared = Arc::new((Cell::default(), Window::new(Length::Calls(2))));
        let work = |shared: Arc<(Cell, Window)>| {
            move || {
                let limits = limits(1);
                let Ok(permission) = shared.0.try_acquire(&limits, 0).0 else { return 0 };
                u32::from(shared.0.record(permission, BAD, (&limits, &shared.1), 0).is_some())
            }
        };
        let other = thread::spawn(work(shared.clone()));
        let mine = work(shared.clone())();
        assert_eq!(mine + other.join().unwrap(), 1);
        assert_eq!(shared.0.phase().0, Phase::Open);
    });
}

#[test]
fn half_open_exactly_as_many_pass_as_are_permitted() {
    for permitted in [1, 2] {
        model(move || {
            let limits = limits(permitted);
            let shared = Arc::new((Cell::default(), Window::new(Length::Calls(2))));
            open(&shared.0, &shared.1, &limits);
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let shared = shared.clone();
                    thread::spawn(move || shared.0.try_acquire(&limits, 100).0.ok())
                })
                .collect();
            let mut passed: Vec<_> =
                threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
            passed.extend(shared.0.try_acquire(&limits, 100).0);
            assert_eq!(passed.len(), permitted as usize);
            for permission in passed {
                shared.0.record(permission, GOOD, (&limits, &shared.1), 100);
            }
            assert_eq!(shared.0.phase().0, Phase::Closed);
        });
    }
}

#[test]
fn a_place_that_is_given_back_is_not_lost() {
    model(|| {
        let limits = limits(1);
        let shared = Arc::new((Cell::default(), Window::new(Length::Calls(2))));
        open(&shared.0, &shared.1, &limits);
        let permission = shared.0.try_acquire(&limits, 100).0.unwrap();
        let other = {
            let shared = shared.clone();
            thread::spawn(move || shared.0.try_acquire(&limits, 100).0.ok())
        };
        shared.0.release(permission);
        let passed = other.join().unwrap().or_else(|| shared.0.try_acquire(&limits, 100).0.ok());
        assert!(passed.is_some() && shared.0.try_acquire(&limits, 100).0.is_err());
    });
}
