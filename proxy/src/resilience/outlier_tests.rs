use super::*;

const ERROR: Verdict = Verdict::ServerError(500);
const GATEWAY: Verdict = Verdict::ServerError(503);

fn notes(monitor: &Monitor, spec: &OutlierSpec, verdicts: &[Verdict]) -> Vec<Cause> {
    verdicts.iter().flat_map(|verdict| monitor.note(spec, *verdict, true)).flatten().collect()
}

#[test]
fn failures_in_a_row_reach_the_limit_and_begin_again() {
    let (monitor, spec) = (Monitor::default(), OutlierSpec::default());
    assert_eq!(notes(&monitor, &spec, &[ERROR; 4]), []);
    assert_eq!(notes(&monitor, &spec, &[Verdict::Neither, ERROR]), [Cause::Consecutive5xx]);
    assert_eq!(notes(&monitor, &spec, &[ERROR; 4]), []);
    assert_eq!(notes(&monitor, &spec, &[Verdict::Good, ERROR]), []);
    assert_eq!(notes(&monitor, &spec, &[ERROR; 3]), []);
    monitor.forget_rows();
    assert_eq!(notes(&monitor, &spec, &[ERROR; 4]), []);
    assert_eq!(notes(&monitor, &spec, &[ERROR]), [Cause::Consecutive5xx]);
}

#[test]
fn a_gateway_failure_is_a_5xx_too() {
    let (monitor, spec) = (Monitor::default(), OutlierSpec::default());
    let both = [Cause::ConsecutiveGatewayFailure, Cause::Consecutive5xx];
    assert_eq!(notes(&monitor, &spec, &[GATEWAY; 5]), both);
    assert_eq!(notes(&monitor, &spec, &[GATEWAY, GATEWAY, ERROR, GATEWAY]), []);
    assert_eq!(notes(&monitor, &spec, &[GATEWAY]), [Cause::Consecutive5xx]);
    assert_eq!(notes(&monitor, &spec, &[Verdict::LocalOrigin(504); 3]), [Cause::ConsecutiveGatewayFailure]);
}

#[test]
fn local_origin_is_told_apart_when_that_is_asked_for() {
    let spec = OutlierSpec { split: true, ..OutlierSpec::default() };
    let (monitor, local) = (Monitor::default(), Verdict::LocalOrigin(503));
    assert_eq!(notes(&monitor, &spec, &[local; 5]), [Cause::ConsecutiveLocalOriginFailure]);
    assert_eq!(notes(&monitor, &spec, &[local, local, local, local, ERROR, local]), []);
    assert_eq!(monitor.take_rates(), [Volume { all: 1, good: 0 }, Volume { all: 11, good: 1 }]);
}

#[test]
fn how_many_may_be_ejected() {
    let mut spec = OutlierSpec::default();
    assert_eq!([9, 10, 29, 100].map(|hosts| spec.limit(hosts)), [0, 1, 2, 10]);
    spec.always_eject_one = true;
    assert_eq!([1, 9, 29].map(|hosts| spec.limit(hosts)), [1, 1, 2]);
    spec.max_ejection_percent = 100;
    assert_eq!(spec.limit(3), 3);
}

#[test]
fn enforcement_is_a_share() {
    let spec = OutlierSpec::default();
    assert!(spec.enforces(Cause::Consecutive5xx, 99));
    assert!(!spec.enforces(Cause::ConsecutiveGatewayFailure, 0));
}

fn volume(all: u32, good: u32) -> Volume {
    Volume { all, good }
}

#[test]
fn a_success_rate_far_below_the_others_is_conspicuous() {
    let spec = OutlierSpec::default();
    let monitors: Vec<Monitor> = (0..6).map(|_| Monitor::default()).collect();
    let with = |volumes: [Volume; 6]| {
        let hosts: Vec<_> = monitors.iter().zip(volumes).collect();
        outliers(&spec, 6, &hosts, false)
    };
    let good = volume(100, 100);
    assert_eq!(with([good; 6]), []);
    assert_eq!(with([good, good, volume(100, 50), good, good, good]), [(2, Cause::SuccessRate)]);
    assert_eq!(monitors[2].success_rates(), [Some(50.0), None]);
    // Too little traffic of one, so that there are five to compare; of two, so that there are not.
    assert_eq!(with([good, good, volume(99, 0), good, good, good]), [(2, Cause::FailurePercentage)]);
    assert_eq!(monitors[2].success_rates(), [None, None]);
    assert_eq!(with([good, good, volume(100, 50), volume(99, 99), volume(0, 0), good]), []);
}

#[test]
fn failure_percentage_needs_no_comparison_but_hosts() {
    let spec = OutlierSpec { success_rate_minimum_hosts: 100, ..OutlierSpec::default() };
    let monitors: Vec<Monitor> = (0..5).map(|_| Monitor::default()).collect();
    let hosts: Vec<_> = monitors.iter().map(|monitor| (monitor, volume(100, 15))).collect();
    let all: Vec<_> = (0..5).map(|i| (i, Cause::FailurePercentageLocalOrigin)).collect();
    assert_eq!(outliers(&spec, 5, &hosts, true), all);
    assert_eq!(outliers(&spec, 4, &hosts[..4], true), []);
    let hosts: Vec<_> = monitors.iter().map(|monitor| (monitor, volume(100, 16))).collect();
    assert_eq!(outliers(&spec, 5, &hosts, true), []);
}

#[test]
fn an_ejection_lasts_longer_each_time_and_good_intervals_shorten_it() {
    let spec = OutlierSpec { max_ejection_time: Duration::from_secs(75), ..OutlierSpec::default() };
    let (mut ejection, mut rng, mut now) = (Ejection::default(), fastrand::Rng::with_seed(1), Instant::now());
    let seconds = |ejection: &mut Ejection, now: &mut Instant, rng: &mut _| {
        let length = ejection.begin(&spec, *now, rng);
        *now += length - Duration::from_millis(1);
        assert!(!ejection.tick(&spec, *now));
        *now += Duration::from_millis(1);
        assert!(ejection.tick(&spec, *now));
        ejection.end();
        length.as_secs()
    };
    let lengths = [(); 6].map(|()| seconds(&mut ejection, &mut now, &mut rng));
    assert_eq!(lengths, [30, 60, 75, 75, 75, 75]);
    for _ in 0..4 {
        assert!(!ejection.is_over() && !ejection.tick(&spec, now));
    }
    assert!(ejection.is_over());
    assert_eq!(seconds(&mut ejection, &mut now, &mut rng), 30);
}

#[test]
fn jitter_is_added() {
    let spec = OutlierSpec { jitter: Duration::from_secs(10), ..OutlierSpec::default() };
    let mut rng = fastrand::Rng::with_seed(1);
    let mut lengths: Vec<_> =
        (0..50).map(|_| Ejection::default().begin(&spec, Instant::now(), &mut rng)).collect();
    lengths.sort_unstable();
    assert!(lengths[0] >= Duration::from_secs(30) && lengths[49] <= Duration::from_secs(40));
    assert!(lengths[49] - lengths[0] > Duration::from_secs(5));
}
