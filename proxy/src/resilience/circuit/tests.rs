use super::*;
use crate::error::Reason;
use proptest::prelude::*;

/// Ten calls, half of them may fail; two are let through after a second.
pub(super) fn spec() -> CircuitSpec {
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
        slow: Duration::from_millis(100),
        automatic: false,
        failures: Box::new([500..=599]),
        fallback: None,
        last_good: None,
    }
}

fn circuit(spec: CircuitSpec) -> Arc<Circuit> {
    Circuit::new("cluster/a".into(), spec, None)
}

fn answer(status: u16, took: u64) -> Outcome {
    let status = StatusCode::from_u16(status).unwrap();
    Outcome::new(Ended::Answered { status, grpc: None }, Duration::from_millis(took))
}

const OK: u16 = 200;
const BAD: u16 = 503;

/// A call that may pass and ends at once.
fn call(circuit: &Arc<Circuit>, status: u16, now: Instant) -> bool {
    circuit.try_acquire(now).map(|pass| pass.settle(&answer(status, 1), now)).is_ok()
}

fn state(circuit: &Circuit, now: Instant) -> &'static str {
    circuit.view(now).state
}

fn after(now: Instant, ms: u64) -> Instant {
    now + Duration::from_millis(ms)
}

#[test]
fn it_opens_at_the_rate_half_opens_after_the_wait_and_closes_again() {
    let (circuit, now) = (circuit(spec()), Instant::now());
    for status in [OK, OK, BAD] {
        assert!(call(&circuit, status, now));
    }
    assert_eq!((state(&circuit, now), circuit.view(now).rates), ("CLOSED", None));
    assert!(call(&circuit, BAD, now));
    assert_eq!(state(&circuit, now), "OPEN", "two of four");
    let refused = circuit.try_acquire(after(now, 400)).unwrap_err();
    assert_eq!(refused.retry_after, Some(Duration::from_millis(600)));
    let later = after(now, 1000);
    let passes = [circuit.try_acquire(later).unwrap(), circuit.try_acquire(later).unwrap()];
    assert_eq!(state(&circuit, later), "HALF_OPEN");
    assert_eq!(circuit.try_acquire(later).unwrap_err().retry_after, None, "exactly as many as are permitted");
    passes.into_iter().for_each(|pass| pass.settle(&answer(OK, 1), later));
    assert_eq!(state(&circuit, later), "CLOSED");
    let view = circuit.view(later);
    assert_eq!((view.refused, view.calls, view.transitions), (2, [4, 2, 0], [1, 1, 1]));
    assert_eq!(view.totals, Totals::default(), "the window is new");
}

#[test]
fn half_open_it_opens_again_when_those_who_passed_fail() {
    let (circuit, now) = (circuit(spec()), Instant::now());
    (0..4).for_each(|_| assert!(call(&circuit, BAD, now)));
    let later = after(now, 1000);
    assert!(call(&circuit, OK, later));
    assert_eq!(state(&circuit, later), "HALF_OPEN", "all that are permitted have to end");
    assert!(call(&circuit, BAD, later));
    assert_eq!(state(&circuit, later), "OPEN", "one of two is the threshold");
    assert!(!call(&circuit, OK, after(later, 999)));
    assert!(call(&circuit, OK, after(later, 1000)));
}

/// Two of two have ended when an edit permits one only: it decides by those, and does not wait for a call that nobody may make.
#[test]
fn an_edit_that_permits_fewer_calls_decides_by_those_that_ended() {
    let (now, cell, window) = (0, Cell::default(), Window::new(Length::Calls(10)));
    let many = Limits { permitted: 5, ..spec().limits };
    let good = Call { failed: false, slow: false };
    let bad = Call { failed: true, ..good };
    for _ in 0..4 {
        let (pass, _) = cell.try_acquire(&many, now);
        cell.record(pass.unwrap(), bad, (&many, &window), now);
    }
    for _ in 0..2 {
        let (pass, _) = cell.try_acquire(&many, 1000);
        cell.record(pass.unwrap(), good, (&many, &window), 1000);
    }
    assert_eq!(cell.phase().0, Phase::HalfOpen);
    let (pass, change) = cell.try_acquire(&Limits { permitted: 2, ..many }, 1001);
    assert!(pass.is_ok() && change.is_some_and(|change| change.to == Phase::Closed));
}

#[test]
fn slow_calls_open_it_too() {
    let mut spec = spec();
    spec.limits.slow_rate = 75.0;
    let (circuit, now) = (circuit(spec), Instant::now());
    for took in [100, 101, 101, 101] {
        circuit.try_acquire(now).unwrap().settle(&answer(OK, took), now);
    }
    assert_eq!(state(&circuit, now), "OPEN");
}

#[test]
fn a_call_that_says_nothing_gives_its_place_back() {
    let (circuit, now) = (circuit(spec()), Instant::now());
    (0..4).for_each(|_| assert!(call(&circuit, BAD, now)));
    let later = after(now, 1000);
    let first = circuit.try_acquire(later).unwrap();
    let second = circuit.try_acquire(later).unwrap();
    drop(first);
    let abandoned = Outcome::new(Ended::Abandoned, Duration::ZERO);
    second.settle(&abandoned, later);
    assert_eq!(circuit.view(later).calls, [0, 4, 0]);
    assert!(call(&circuit, OK, later) && call(&circuit, OK, later));
    assert_eq!(state(&circuit, later), "CLOSED");
}

#[test]
fn a_call_counts_in_the_state_that_let_it_through() {
    let (circuit, now) = (circuit(spec()), Instant::now());
    let late = circuit.try_acquire(now).unwrap();
    (0..4).for_each(|_| assert!(call(&circuit, BAD, now)));
    let later = after(now, 1000);
    let half_open = circuit.try_acquire(later).unwrap();
    late.settle(&answer(BAD, 1), later);
    half_open.settle(&answer(OK, 1), later);
    assert!(call(&circuit, OK, later));
    assert_eq!(state(&circuit, later), "CLOSED");
}

#[test]
fn half_open_does_not_wait_longer_than_it_is_told() {
    let mut spec = spec();
    spec.limits.wait_half_open = Some(500);
    let (circuit, now) = (circuit(spec), Instant::now());
    (0..4).for_each(|_| assert!(call(&circuit, BAD, now)));
    let later = after(now, 1000);
    let stuck = circuit.try_acquire(later).unwrap();
    assert!(circuit.try_acquire(after(later, 499)).is_ok());
    let refused = circuit.try_acquire(after(later, 700)).unwrap_err();
    assert_eq!(
        refused.retry_after,
        Some(Duration::from_millis(800)),
        "it opened 500 ms after it half opened"
    );
    stuck.settle(&answer(OK, 1), after(later, 700));
    assert_eq!(state(&circuit, after(later, 700)), "OPEN");
    assert!(circuit.try_acquire(after(later, 1500)).is_ok());
}

#[test]
fn an_operator_may_decide() {
    let (circuit, now) = (circuit(spec()), Instant::now());
    assert!(circuit.set_state("OPEN").is_err());
    circuit.set_state("FORCED_OPEN").unwrap();
    assert!(!call(&circuit, OK, now));
    circuit.set_state("METRICS_ONLY").unwrap();
    (0..9).for_each(|_| assert!(call(&circuit, BAD, now)));
    assert_eq!(circuit.view(now).rates, Some((100.0, 0.0)));
    circuit.set_state("DISABLED").unwrap();
    (0..9).for_each(|_| assert!(call(&circuit, BAD, now)));
    assert_eq!(circuit.view(now).calls, [0, 9, 0]);
    circuit.set_state("CLOSED").unwrap();
    assert_eq!(circuit.view(now).totals.calls, 0);
    (0..4).for_each(|_| assert!(call(&circuit, BAD, now)));
    assert!(!call(&circuit, OK, now));
}

#[test]
fn what_counts_as_a_failure() {
    let spec = CircuitSpec { failures: Box::new([429..=429, 500..=503]), ..spec() };
    let judge = |ended| spec.judge(&Outcome::new(ended, Duration::ZERO)).map(|call| call.failed);
    let answered =
        |status: u16, grpc| Ended::Answered { status: StatusCode::from_u16(status).unwrap(), grpc };
    assert_eq!(judge(answered(429, None)), Some(true));
    assert_eq!(judge(answered(504, None)), Some(false));
    assert_eq!(judge(answered(200, Some(14))), Some(true));
    assert_eq!(judge(answered(200, Some(0))), Some(false));
    assert_eq!(judge(Ended::Failed(Reason::ConnectFailure)), Some(true));
    assert_eq!(judge(Ended::Failed(Reason::UpstreamOverflow)), None);
}

proptest! {
    #[test]
    fn the_ring_counts_exactly_the_last_calls(
        calls in prop::collection::vec((any::<bool>(), any::<bool>()), 1..200), size in 1_u32..50
    ) {
        let window = Window::new(Length::Calls(size));
        for (i, (failed, slow)) in calls.iter().enumerate() {
            let totals = window.record(Call { failed: *failed, slow: *slow }, 0);
            let last = &calls[(i + 1).saturating_sub(size as usize)..=i];
            let count = |is: fn(&(bool, bool)) -> bool| last.iter().filter(|call| is(call)).count() as u32;
            let expected = Totals { calls: last.len() as u32, failed: count(|c| c.0), slow: count(|c| c.1) };
            prop_assert_eq!(totals, expected);
        }
        window.clear();
        prop_assert_eq!(window.totals(0), Totals::default());
    }

    #[test]
    fn slices_count_the_calls_of_the_window(
        steps in prop::collection::vec(0_u64..3000, 1..200), seconds in 1_u64..20
    ) {
        let window = Window::new(Length::Millis(seconds * 1000));
        let (mut now, mut times) = (5, Vec::new());
        for step in steps {
            now += step;
            times.push(now);
            let totals = window.record(Call { failed: true, slow: false }, now);
            let within = |ms: u64| times.iter().filter(|at| now - **at < ms).count() as u32;
            prop_assert!(totals.calls >= within(seconds * 1000), "{:?}", totals);
            prop_assert!(totals.calls <= within(seconds * 1000 * 16 / 15 + 16), "{:?}", totals);
            prop_assert_eq!(totals.calls, totals.failed);
        }
    }
}

#[test]
fn a_slice_that_is_full_keeps_its_rates() {
    let window = Window::new(Length::Millis(60_000));
    let mut totals = Totals::default();
    for i in 0..100_000 {
        totals = window.record(Call { failed: i % 4 == 0, slow: false }, 1000);
    }
    let rate = f64::from(totals.failed) / f64::from(totals.calls);
    assert!((rate - 0.25).abs() < 0.01 && totals.calls > 8000, "{totals:?}");
}
