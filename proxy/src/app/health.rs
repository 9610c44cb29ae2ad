//! Health's part of the wiring: what outlier detection has to do on the control runtime.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::App;
use crate::clock::at;
use crate::config::manager::Changes;
use crate::config::snapshot::Snapshot;
use crate::resilience::outlier::Cause;
use crate::telemetry::metrics::{Collect, MetricFamily, counters, gauges};
use crate::upstream::cluster::Cluster;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::health::{Checks, Report};
use crate::upstream::outlier;
use crate::upstream::sweep::Sweep;

/// What the control runtime remembers of health.
#[derive(Debug, Default)]
pub(super) struct Health {
    pub(super) sweep: Sweep,
    pub(super) checks: Checks,
    rng: fastrand::Rng,
}

impl Health {
    /// Until there is something to do. Nothing is lost when this is dropped.
    pub(super) async fn next(&mut self) -> Option<Report> {
        let due = self.sweep.due();
        tokio::select! {
            () = outlier::happened() => None,
            () = at(due) => None,
            report = self.checks.next() => Some(report),
        }
    }
}

impl App {
    /// Follows ejections and health checks: whatever number of endpoints changed, the index is built once.
    pub(super) async fn health_changed(&mut self, mut report: Option<Report>) {
        let snapshot = self.shared.config.load_full();
        let Health { sweep, checks, rng } = &mut self.health;
        let mut changed = sweep.turn(&snapshot, Instant::now(), rng);
        let mut warms = false;
        while let Some(ended) = report.take() {
            if let Some(told) = ended.apply(&snapshot) {
                let spec = told.cluster.spec().outlier.as_ref();
                if told.healthy && spec.is_some_and(|spec| spec.uneject_on_health_check) {
                    sweep.restore(&told.cluster, &told.endpoint);
                }
                warms |= told.warms;
                changed.push(Arc::clone(&told.cluster.spec().name));
            }
            report = checks.try_next();
        }
        changed.sort_unstable();
        changed.dedup();
        if !changed.is_empty() {
            self.manager.rebalance(&changed);
            self.publish().await;
        }
        if warms {
            // Routes and listeners may have waited for it.
            self.follow_promoted(Changes::default()).await;
        }
    }
}

/// What is exposed of the health of endpoints.
pub(super) struct HealthMetrics(pub(super) Arc<ArcSwap<Snapshot>>);

impl Collect for HealthMetrics {
    fn collect(&self, out: &mut Vec<MetricFamily>) {
        let snapshot = self.0.load();
        let of = |wanted: fn(&Cluster) -> bool| snapshot.clusters().filter(move |cluster| wanted(cluster));
        let panics = of(|cluster| !cluster.endpoints().is_empty())
            .map(|cluster| (labels(cluster), f64::from(u8::from(cluster.endpoints().in_panic()))));
        let help = "1 while too few endpoints of the cluster are healthy, so that health is ignored.";
        out.push(gauges("remora_upstream_panic", help, panics));
        let watched = |cluster: &Cluster| cluster.spec().outlier.is_some();
        let ejected =
            of(watched).map(|cluster| (labels(cluster), f64::from(cluster.state().census().ejected())));
        let help = "Endpoints that outlier detection keeps out at the moment.";
        out.push(gauges("remora_outlier_ejections_active", help, ejected));
        let by_cause = |count: fn(&Cluster, Cause) -> u64| {
            of(watched).flat_map(move |cluster| {
                Cause::ALL.map(|cause| {
                    (
                        vec![("cluster", &*cluster.spec().name), ("type", cause.as_str())],
                        count(cluster, cause),
                    )
                })
            })
        };
        let help = "Findings of outlier detection, by type, whether or not they were followed by ejection.";
        let detected =
            by_cause(|cluster, cause| cluster.state().known_outlier().map_or(0, |c| c.detected(cause)));
        out.push(counters("remora_outlier_detected_total", help, detected));
        let help = "Endpoints that outlier detection ejected, by type.";
        let enforced =
            by_cause(|cluster, cause| cluster.state().known_outlier().map_or(0, |c| c.enforced(cause)));
        out.push(counters("remora_outlier_ejections_total", help, enforced));
        let kept = of(watched).flat_map(|cluster| {
            let counts = cluster.state().known_outlier();
            let name = &*cluster.spec().name;
            [
                (
                    vec![("cluster", name), ("reason", "max_ejection_percent")],
                    counts.map_or(0, |c| c.overflow()),
                ),
                (vec![("cluster", name), ("reason", "last_endpoint")], counts.map_or(0, |c| c.last_one())),
            ]
        });
        let checked = |cluster: &Cluster| cluster.spec().health_check.is_some();
        let checks = of(checked).flat_map(|cluster| {
            let [passed, failed] = cluster.state().checks();
            let name = &*cluster.spec().name;
            [("passed", passed), ("failed", failed)]
                .map(|(result, count)| (vec![("cluster", name), ("result", result)], count))
        });
        out.push(counters("remora_health_checks_total", "Active health checks that ended.", checks));
        let failing = of(checked).map(|cluster| {
            let failing = |endpoint: &&Arc<Endpoint>| endpoint.state.standing().has_failed_health_check();
            let count = cluster.endpoints().endpoints().iter().filter(failing).count();
            (labels(cluster), f64::from(u32::try_from(count).unwrap_or(u32::MAX)))
        });
        let help = "Endpoints that active health checks keep out at the moment.";
        out.push(gauges("remora_health_checks_failing", help, failing));
        let help = "Endpoints that were not ejected although they should have been.";
        out.push(counters("remora_outlier_ejections_refused_total", help, kept));
        circuit_metrics(&snapshot, Instant::now(), out);
    }
}

/// What is exposed of circuit breakers.
fn circuit_metrics(snapshot: &Snapshot, now: Instant, out: &mut Vec<MetricFamily>) {
    let views: Vec<_> = snapshot
        .circuits
        .all()
        .into_iter()
        .map(|circuit| (Arc::clone(&circuit.name), circuit.view(now)))
        .collect();
    let states = ["CLOSED", "OPEN", "HALF_OPEN", "DISABLED", "FORCED_OPEN", "METRICS_ONLY"];
    let state = views.iter().flat_map(|(name, view)| {
        states.map(|state| {
            (vec![("name", &**name), ("state", state)], f64::from(u8::from(view.state == state)))
        })
    });
    out.push(gauges("remora_circuit_breaker_state", "1 for the state of the circuit breaker.", state));
    let calls = views.iter().flat_map(|(name, view)| {
        let [good, failed, slow] = view.calls;
        [("successful", good), ("failed", failed), ("slow", slow), ("not_permitted", view.refused)]
            .map(|(kind, count)| (vec![("name", &**name), ("kind", kind)], count))
    });
    let help = "Calls by what the circuit breaker counted them as; a slow one is successful or failed too.";
    out.push(counters("remora_circuit_breaker_calls_total", help, calls));
    let transitions = views.iter().flat_map(|(name, view)| {
        let [closed, open, half_open] = view.transitions;
        [("CLOSED", closed), ("OPEN", open), ("HALF_OPEN", half_open)]
            .map(|(state, count)| (vec![("name", &**name), ("state", state)], count))
    });
    let last_good = views.iter().map(|(name, view)| (vec![("name", &**name)], view.last_good));
    let help = "Refused calls that were given the last good answer.";
    out.push(counters("remora_circuit_breaker_last_good_answers_total", help, last_good));
    let help = "How often the circuit breaker entered a state.";
    out.push(counters("remora_circuit_breaker_transitions_total", help, transitions));
    let rates = |of: fn((f64, f64)) -> f64| {
        views.iter().map(move |(name, view)| (vec![("name", &**name)], view.rates.map_or(-1.0, of)))
    };
    let help = "Failed calls of the window in percent; -1 below the minimum of calls.";
    out.push(gauges("remora_circuit_breaker_failure_rate", help, rates(|(failed, _)| failed)));
    let help = "Slow calls of the window in percent; -1 below the minimum of calls.";
    out.push(gauges("remora_circuit_breaker_slow_call_rate", help, rates(|(_, slow)| slow)));
}

fn labels(cluster: &Cluster) -> Vec<(&str, &str)> {
    vec![("cluster", &cluster.spec().name)]
}
