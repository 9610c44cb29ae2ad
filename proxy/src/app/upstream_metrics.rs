//! What is exposed of the connections and limits of clusters. The counts are shared atomics, read when somebody asks.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::config::snapshot::Snapshot;
use crate::resilience::breaker::{Resource, RoutingPriority};
use crate::telemetry::metrics::{Collect, MetricFamily, counters, gauges};
use crate::upstream::cluster::Cluster;

/// See the module.
pub(super) struct UpstreamMetrics(pub(super) Arc<ArcSwap<Snapshot>>);

impl Collect for UpstreamMetrics {
    fn collect(&self, out: &mut Vec<MetricFamily>) {
        let snapshot = self.0.load();
        let used: Vec<&Cluster> =
            snapshot.clusters().filter(|cluster| is_used(cluster)).map(|c| &**c).collect();
        let open = used.iter().map(|c| (labels(c), f64::from(over_priorities(c, active))));
        out.push(gauges("remora_upstream_connections", "Open connections to endpoints.", open));
        let established = used.iter().map(|c| (labels(c), c.state().connects().established()));
        let help = "Connections to endpoints that were established, TLS included.";
        out.push(counters("remora_upstream_connects_total", help, established));
        let failed = used.iter().flat_map(|c| {
            let failed = c.state().connects().failed();
            failed.map(|(reason, count)| (with(c, "reason", reason.id()), count))
        });
        let help = "Connections to endpoints that were not, by reason.";
        out.push(counters("remora_upstream_connect_failures_total", help, failed));
        let refused = used.iter().flat_map(|c| {
            Resource::ALL.map(|limit| {
                (
                    with(c, "limit", limit.as_str()),
                    over_priorities(c, |c, p| c.state().breaker(p).overflow(limit)),
                )
            })
        });
        let help = "Refused by a limit of the cluster (circuit_breakers).";
        out.push(counters("remora_upstream_overflow_total", help, refused));
    }
}

/// Nothing is said of a cluster that nobody called: there may be thousands.
fn is_used(cluster: &Cluster) -> bool {
    let connects = cluster.state().connects();
    connects.established() > 0
        || connects.failed().iter().any(|(_, count)| *count > 0)
        || Resource::ALL
            .iter()
            .any(|limit| over_priorities(cluster, |c, p| c.state().breaker(p).overflow(*limit)) > 0)
}

fn active(cluster: &Cluster, priority: RoutingPriority) -> u32 {
    cluster.state().breaker(priority).active(Resource::Connections)
}

fn over_priorities<N: std::iter::Sum>(
    cluster: &Cluster,
    count: impl Fn(&Cluster, RoutingPriority) -> N,
) -> N {
    [RoutingPriority::Default, RoutingPriority::High]
        .into_iter()
        .map(|priority| count(cluster, priority))
        .sum()
}

fn labels(cluster: &Cluster) -> Vec<(&str, &str)> {
    vec![("cluster", &cluster.spec().name)]
}

fn with<'c>(cluster: &'c Cluster, name: &'c str, value: &'c str) -> Vec<(&'c str, &'c str)> {
    vec![("cluster", &cluster.spec().name), (name, value)]
}
