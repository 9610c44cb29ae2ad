use std::time::Duration;

use super::*;
use crate::config::manager::Manager;
use crate::upstream::outcome::{Ended, Outcome, record};
use http::StatusCode;
use remora_xds::Schema;
use remora_xds::pb::envoy::config::bootstrap::v3::Bootstrap;

/// A cluster `c` of `hosts` endpoints, in panic mode below a tenth.
struct World {
    manager: Manager,
    sweep: Sweep,
    rng: fastrand::Rng,
    now: Instant,
}

impl World {
    fn new(hosts: u16, detection: &str) -> Self {
        let bootstrap = Self::bootstrap(hosts, detection);
        let parsed = Schema::load().parse::<Bootstrap>(&bootstrap, "b").unwrap();
        let manager = Manager::new(&parsed.message, "b", parsed.map, false).unwrap();
        let rng = fastrand::Rng::with_seed(1);
        Self { manager, sweep: Sweep::default(), rng, now: Instant::now() }
    }

    fn bootstrap(hosts: u16, detection: &str) -> String {
        let endpoint = |port| {
            format!(
                "{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}"
            )
        };
        let endpoints: Vec<_> = (1..=hosts).map(endpoint).collect();
        format!(
            "static_resources: {{clusters: [{{name: c, type: STATIC, outlier_detection: {detection}, \
             load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{}]}}]}}}}]}}",
            endpoints.join(", ")
        )
    }

    fn cluster(&mut self) -> Arc<Cluster> {
        Arc::clone(self.manager.snapshot().cluster_by_name("c").unwrap())
    }

    fn answers(&mut self, endpoint: usize, status: u16, times: usize) {
        let cluster = self.cluster();
        let ended = Ended::Answered { status: StatusCode::from_u16(status).unwrap(), grpc: None };
        for _ in 0..times {
            let outcome = Outcome::new(ended, Duration::from_millis(1));
            record(&cluster, &cluster.endpoints().endpoints()[endpoint], &outcome, self.now);
        }
    }

    fn turn(&mut self) -> bool {
        let snapshot = self.manager.snapshot();
        let changed = self.sweep.turn(&snapshot, self.now, &mut self.rng);
        self.manager.rebalance(&changed);
        !changed.is_empty()
    }

    fn out(&mut self) -> Vec<usize> {
        let cluster = self.cluster();
        let all = cluster.endpoints().endpoints().iter().enumerate();
        all.filter(|(_, endpoint)| endpoint.state.is_out()).map(|(i, _)| i).collect()
    }

    /// Lets the sweep do all it has to until `after` from now.
    fn pass(&mut self, after: Duration) {
        let until = self.now + after;
        while let Some(due) = self.sweep.due().filter(|due| *due <= until) {
            self.now = due;
            self.turn();
        }
        self.now = until;
    }
}

const HALF: &str = "{max_ejection_percent: 50, interval: 1s, base_ejection_time: 3s}";

#[test]
fn an_endpoint_that_fails_is_out_at_once_and_comes_back() {
    let mut world = World::new(4, HALF);
    world.answers(1, 503, 4);
    assert!(world.out().is_empty() && !world.turn() && world.sweep.due().is_none(), "nothing happened yet");
    world.answers(1, 503, 1);
    assert_eq!(world.out(), [1]);
    assert!(world.turn() && !world.turn(), "known from now on");
    world.pass(Duration::from_millis(2999));
    assert_eq!(world.out(), [1]);
    world.pass(Duration::from_millis(1));
    assert_eq!(world.out(), [0; 0]);
    // The next one lasts twice as long.
    world.answers(1, 503, 5);
    world.turn();
    world.pass(Duration::from_millis(5999));
    assert_eq!(world.out(), [1]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.out(), [0; 0]);
    world.pass(Duration::from_secs(3));
    assert!(world.sweep.due().is_none(), "nothing is left to remember");
}

#[test]
fn no_more_than_the_limit_and_never_the_last_are_ejected() {
    let mut world = World::new(4, HALF);
    (0..4).for_each(|i| world.answers(i, 500, 5));
    assert_eq!(world.out(), [0, 1]);
    let cluster = world.cluster();
    assert_eq!((cluster.state().outlier().overflow(), cluster.state().census().ejected()), (2, 2));
    let mut world = World::new(3, "{max_ejection_percent: 100}");
    (0..3).for_each(|i| world.answers(i, 500, 20));
    assert_eq!(world.out(), [0, 1]);
    assert!(world.cluster().state().outlier().last_one() > 0);
    let mut world = World::new(9, "{}");
    world.answers(0, 500, 5);
    assert_eq!(world.out(), [0; 0], "ten percent of nine is nobody");
}

#[test]
fn success_rates_are_compared_once_an_interval() {
    let mut world = World::new(5, "{max_ejection_percent: 50, interval: 1s, consecutive_5xx: 1000}");
    for i in 0..5 {
        world.answers(i, 200, 100);
    }
    world.answers(3, 500, 100);
    world.turn();
    assert!(world.sweep.due().is_some() && world.out().is_empty());
    world.pass(Duration::from_secs(1));
    assert_eq!(world.out(), [3]);
    let cluster = world.cluster();
    assert_eq!(cluster.endpoints().endpoints()[3].state.monitor().success_rates(), [Some(50.0), None]);
    assert_eq!(cluster.state().outlier().enforced(crate::resilience::outlier::Cause::SuccessRate), 1);
}

#[test]
fn an_edit_keeps_ejections_and_the_end_of_detection_ends_them() {
    let mut world = World::new(4, HALF);
    world.answers(2, 503, 5);
    world.turn();
    let cluster = world.cluster();
    let edited = |outlier| {
        let spec = cluster.spec();
        crate::upstream::cluster::ClusterSpec {
            name: Arc::clone(&spec.name),
            stat_name: Arc::clone(&spec.stat_name),
            discovery: crate::upstream::cluster::Discovery::Static(Arc::new(
                cluster.endpoints().assignment(),
            )),
            connect: spec.connect.clone(),
            lb: spec.lb.clone(),
            http: spec.http.clone(),
            tls: None,
            transport: 0,
            thresholds: spec.thresholds,
            outlier,
            health_check: None,
            circuit: None,
            buffer_limit: 1,
            close_on_host_change: false,
            metadata: None,
        }
    };
    let with = cluster.with_spec(Arc::new(edited(cluster.spec().outlier.clone())));
    assert!(with.endpoints().endpoints()[2].state.is_out());
    assert_eq!((with.state().census().is_in(), with.state().census().ejected()), (3, 1));
    let without = Arc::new(cluster.with_spec(Arc::new(edited(None))));
    assert!(restore_all(&without) && !restore_all(&without));
    assert_eq!((without.state().census().is_in(), without.state().census().ejected()), (4, 0));
}
