//! What is exposed of adaptive concurrency limits.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::config::snapshot::Snapshot;
use crate::config::spec::{HttpFilter, NetworkFilter};
use crate::resilience::concurrency::{Priority, View};
use crate::telemetry::metrics::{Collect, MetricFamily, counters, gauges};

/// See the module.
pub(super) struct ConcurrencyMetrics(pub(super) Arc<ArcSwap<Snapshot>>);

/// Whose limit it is: listener, filter chain, filter.
type Owner<'s> = [&'s str; 3];

impl Collect for ConcurrencyMetrics {
    fn collect(&self, out: &mut Vec<MetricFamily>) {
        let snapshot = self.0.load();
        let all = limits(&snapshot);
        let limit = all.iter().map(|(owner, view)| (labels(owner), f64::from(view.limit)));
        out.push(gauges("remora_concurrency_limit", "Requests that may be on their way at a time.", limit));
        let busy = all.iter().map(|(owner, view)| (labels(owner), f64::from(view.in_flight)));
        let help = "Requests that wait for the head of their answer.";
        out.push(gauges("remora_concurrency_in_flight", help, busy));
        let latency = all.iter().flat_map(|(owner, view)| {
            [("current", view.latency), ("unloaded", view.unloaded)]
                .map(|(of, seconds)| (with(owner, "of", of), seconds))
        });
        let help = "Time to the head of an answer: of the last window, and what it is compared with.";
        out.push(gauges("remora_concurrency_latency_seconds", help, latency));
        let refused = all.iter().flat_map(|(owner, view)| {
            let each = Priority::ALL.into_iter().zip(view.refused);
            each.map(|(priority, count)| (with(owner, "priority", priority.as_str()), count))
        });
        let help = "Refused by an adaptive concurrency limit.";
        out.push(counters("remora_concurrency_refused_total", help, refused));
    }
}

/// All limits. Of filters that have their name twice in a chain the first one's is shown.
fn limits(snapshot: &Snapshot) -> Vec<(Owner<'_>, View)> {
    let mut all: Vec<(Owner<'_>, View)> = Vec::new();
    for listener in &snapshot.listeners {
        for chain in &listener.chains {
            let NetworkFilter::Http(http) = &chain.filter else { continue };
            for filter in &http.filters {
                let HttpFilter::Concurrency(name, filter) = filter else { continue };
                let owner = [&*listener.name, &*chain.name, &**name];
                if all.iter().all(|(other, _)| *other != owner) {
                    all.push((owner, filter.controller.view()));
                }
            }
        }
    }
    all
}

fn labels<'s>([listener, chain, filter]: &Owner<'s>) -> Vec<(&'s str, &'s str)> {
    vec![("listener", listener), ("filter_chain", chain), ("filter", filter)]
}

fn with<'s>(owner: &Owner<'s>, name: &'s str, value: &'s str) -> Vec<(&'s str, &'s str)> {
    let mut labels = labels(owner);
    labels.push((name, value));
    labels
}
