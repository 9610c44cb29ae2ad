use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn memory(used: u64, limit: Option<u64>) -> Readings {
    let memory = Some(Memory { used: used * MIB, limit: limit.map(|limit| limit * MIB) });
    // All of it is its own.
    Readings { heap: Some(used * MIB), own: memory, nearest: memory, ..Readings::default() }
}

#[test]
fn without_configuration_memory_is_protected() {
    let of = |readings| OverloadSpec::default().effects(&readings);
    assert_eq!(of(memory(919, Some(1000))), [0.0, 0.0, 0.0]);
    assert_eq!(of(memory(920, Some(1000))), [1.0, 0.0, 0.0]);
    assert_eq!(of(memory(950, Some(1000))), [1.0, 1.0, 0.0]);
    assert_eq!(of(memory(1_000_000, None)), [0.0; 3], "no limit");
    assert_eq!(of(Readings::default()), [0.0; 3], "nobody says");
}

/// A program in the same cgroup, or one above, may use all of its memory for as long as it wants.
#[test]
fn what_others_use_is_no_reason_by_itself() {
    let full = memory(990, Some(1000));
    let beside = Readings { heap: Some(30 * MIB), ..full };
    let own = Some(Memory { used: 300 * MIB, limit: Some(1000 * MIB) });
    let above = Readings { own, heap: Some(290 * MIB), ..full };
    for readings in [beside, above] {
        assert_eq!(OverloadSpec::default().effects(&readings), [0.0; 3]);
        let asked =
            OverloadSpec { cgroup: Some(CgroupSpec { max: None, whole: true }), ..OverloadSpec::default() };
        assert_eq!(asked.effects(&readings), [1.0, 1.0, 0.0], "who configures it wants to know");
    }
}

#[test]
fn the_lower_limit_counts() {
    let spec =
        |max| OverloadSpec { cgroup: Some(CgroupSpec { max, whole: true }), ..OverloadSpec::default() };
    let pressure = |max, readings| spec(max).pressure(Monitor::Cgroup, &readings);
    assert_eq!(pressure(Some(500 * MIB), memory(250, Some(1000))), Some(0.5));
    assert_eq!(pressure(Some(2000 * MIB), memory(250, Some(1000))), Some(0.25));
    assert_eq!(pressure(Some(500 * MIB), memory(250, None)), Some(0.5));
    assert_eq!(pressure(None, memory(250, None)), None);
    // A limit above is one of everybody below it.
    let above = Some(Memory { used: 900 * MIB, limit: Some(1000 * MIB) });
    let readings = Readings { nearest: above, ..memory(250, None) };
    assert_eq!(pressure(Some(500 * MIB), readings), Some(0.9));
}

#[test]
fn a_scaled_trigger_begins_by_and_by() {
    let trigger = Trigger { monitor: Monitor::Heap, from: 0.5, full: 0.9 };
    let later = Trigger { from: 0.95, full: 0.95, ..trigger };
    let spec = OverloadSpec {
        heap: Some(100),
        actions: vec![(Action::StopAccepting, vec![later, trigger])],
        ..OverloadSpec::default()
    };
    let of = |heap| spec.effects(&Readings { heap: Some(heap), ..Readings::default() })[2];
    assert_eq!((of(50), of(90), of(100)), (0.0, 1.0, 1.0));
    assert!((of(70) - 0.5).abs() < 1e-9);
}

#[test]
fn the_last_files_are_not_for_clients() {
    let crowded = Readings { crowded: true, ..Readings::default() };
    assert_eq!(OverloadSpec::default().effects(&crowded), [0.0, 0.0, 1.0]);
}

#[test]
fn connections_are_limited_exactly() {
    let limited = OverloadSpec { connections: Some(2), ..OverloadSpec::default() };
    let overload = Arc::new(Overload::new(limited));
    let held: Vec<_> = std::iter::from_fn(|| overload.try_connect()).collect();
    assert_eq!(held.len(), 2);
    drop(held);
    assert!(overload.try_connect().is_some());
    let free = Arc::new(Overload::default());
    assert!((0..10).map(|_| free.try_connect()).all(|connected| connected.is_some()));
}

#[test]
fn workers_see_one_word() {
    let overload = Overload::default();
    assert!(overload.is_calm() && !overload.takes(Action::RefuseRequests, 0));
    overload.set(&[0.0, 0.5, 1.0]);
    let taken = |action| (0..=255).filter(|random| overload.takes(action, *random)).count();
    assert_eq!(Action::ALL.map(taken), [0, 128, 256]);
    overload.set(&[0.0; 3]);
    assert!(overload.is_calm());
}

#[test]
fn a_worker_says_that_files_run_out() {
    let overload = Overload::new(OverloadSpec::default());
    overload.set(&[0.5, 0.0, 0.0]);
    overload.files_run_out();
    assert!(overload.is_full(Action::StopAccepting) && !overload.is_full(Action::DisableKeepalive));
    assert_eq!(overload.share(Action::RefuseRequests), 0.0);
    overload.set(&[0.0; 3]);
    assert!(overload.is_calm());
}

#[tokio::test]
async fn who_looks_after_files_is_woken_once() {
    let overload = Overload::default();
    overload.files_run_out();
    overload.files_run_out();
    overload.crowded().await;
    assert!(tokio::time::timeout(Duration::ZERO, overload.crowded()).await.is_err());
}

#[test]
fn a_worker_that_is_late_twice_refuses_requests() {
    let (overload, seconds) = (Overload::default(), Duration::from_secs_f64);
    let lag = overload.worker();
    let refused = || (0..=255).filter(|random| lag.refuses(*random)).count();
    lag.note(seconds(60.0));
    assert!(lag.is_calm() && refused() == 0, "the machine slept");
    lag.note(seconds(2.0));
    assert_eq!(refused(), 128);
    lag.note(seconds(4.0));
    assert_eq!(refused(), 128, "the less of both");
    lag.note(seconds(3.0));
    assert_eq!(refused(), 256);
    assert_eq!(overload.late(), [seconds(3.0)]);
    lag.note(seconds(0.0));
    assert!(lag.is_calm() && refused() == 0);
}

proptest! {
    #[test]
    fn more_pressure_is_never_less_of_an_action(
        from in 0.0_f64..1.0, more in 0.0_f64..0.5, one in 0.0_f64..2.0, other in 0.0_f64..2.0
    ) {
        let trigger = Trigger { monitor: Monitor::Heap, from, full: from + more };
        let (low, high) = (one.min(other), one.max(other));
        prop_assert!(trigger.state(low) <= trigger.state(high));
        prop_assert!((0.0..=1.0).contains(&trigger.state(one)));
    }
}
