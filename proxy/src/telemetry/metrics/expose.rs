//! Shards -> Prometheus.

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use tokio::time::Instant;

use super::refusal::Refusal;
use super::worker::{self, BYTE_BOUNDS, ClusterCount, DURATION_BOUNDS_US, ListenerCount};
use super::{Registry, lock};
use crate::error::Reason;
use crate::telemetry::labels::LabelSet;

pub(super) fn family(name: String, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name);
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

pub(super) fn pair(name: &str, value: impl Into<String>) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.into());
    pair
}

pub(super) fn counter(labels: Vec<LabelPair>, value: u64) -> Metric {
    let mut metric = Metric::from_label(labels);
    let mut counter = Counter::default();
    counter.set_value(value as f64);
    metric.set_counter(counter);
    metric
}

fn gauge(labels: Vec<LabelPair>, value: f64) -> Metric {
    let mut metric = Metric::from_label(labels);
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    metric.set_gauge(gauge);
    metric
}

/// A family of counters, for [`Collect`](super::Collect).
#[must_use]
pub fn counters<'a>(
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Vec<(&'a str, &'a str)>, u64)>,
) -> MetricFamily {
    let metrics = values.into_iter().map(|(labels, value)| counter(pairs(labels), value)).collect();
    family(name.to_owned(), help, MetricType::COUNTER, metrics)
}

/// A family of gauges, for [`Collect`](super::Collect).
#[must_use]
pub fn gauges<'a>(
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Vec<(&'a str, &'a str)>, f64)>,
) -> MetricFamily {
    let metrics = values.into_iter().map(|(labels, value)| gauge(pairs(labels), value)).collect();
    family(name.to_owned(), help, MetricType::GAUGE, metrics)
}

fn pairs(labels: Vec<(&str, &str)>) -> Vec<LabelPair> {
    labels.into_iter().map(|(name, value)| pair(name, value)).collect()
}

/// Label pairs of a series; None is the series `other`.
pub(super) fn label_pairs<L: LabelSet>(labels: Option<&L>) -> Vec<LabelPair> {
    let mut values = Vec::with_capacity(L::NAMES.len());
    match labels {
        Some(labels) => labels.values(&mut values),
        None => values.resize(L::NAMES.len(), "other".to_owned()),
    }
    L::NAMES.iter().zip(values).map(|(name, value)| pair(name, value)).collect()
}

/// A histogram of `cells`: a count for each bound, one for what is larger, the sum. `unit` of the cells make one of
/// the metric's units.
fn histogram(labels: Vec<LabelPair>, bounds: &[u64], cells: &[u64], unit: f64) -> Metric {
    let mut histogram = Histogram::default();
    let mut count = 0;
    let mut buckets = Vec::with_capacity(bounds.len());
    for (bound, cell) in bounds.iter().zip(cells) {
        count += cell;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound as f64 / unit);
        bucket.set_cumulative_count(count);
        buckets.push(bucket);
    }
    histogram.set_bucket(buckets);
    histogram.set_sample_count(count + cells[bounds.len()]);
    histogram.set_sample_sum(cells[bounds.len() + 1] as f64 / unit);
    let mut metric = Metric::from_label(labels);
    metric.set_histogram(histogram);
    metric
}

impl Registry {
    /// Everything that workers count.
    pub(super) fn collect_series(&self, now: Instant, out: &mut Vec<MetricFamily>) {
        self.collect_requests(now, out);
        self.collect_tcp(now, out);
        self.collect_clusters(now, out);
        self.collect_listeners(now, out);
        self.collect_policies(now, out);
        self.collect_workers(out);
        let refused = [
            (vec![("family", "requests")], self.requests.refused()),
            (vec![("family", "tcp")], self.tcp.refused()),
            (vec![("family", "clusters")], self.clusters.refused()),
            (vec![("family", "listeners")], self.listeners.refused()),
            (vec![("family", "policies")], self.policies.refused()),
        ];
        let help = "Label sets beyond the limit of series; their counts are in the series `other`.";
        out.push(counters("remora_metrics_series_overflow_total", help, refused));
    }

    fn collect_requests(&self, now: Instant, out: &mut Vec<MetricFamily>) {
        let (mut totals, mut durations, mut received, mut sent) = (vec![], vec![], vec![], vec![]);
        self.requests.scrape(now, |labels, cells| {
            let labels = label_pairs(labels);
            let (duration, bytes) = cells.split_at(DURATION_BOUNDS_US.len() + 2);
            let (request, response) = bytes.split_at(BYTE_BOUNDS.len() + 2);
            totals.push(counter(labels.clone(), duration[..=DURATION_BOUNDS_US.len()].iter().sum()));
            durations.push(histogram(labels.clone(), &DURATION_BOUNDS_US, duration, 1000.0));
            received.push(histogram(labels.clone(), &BYTE_BOUNDS, request, 1.0));
            sent.push(histogram(labels, &BYTE_BOUNDS, response, 1.0));
        });
        let prefix = &self.options.istio_prefix;
        let name = |name: &str| format!("{prefix}{name}");
        out.push(family(name("requests_total"), "Requests that ended.", MetricType::COUNTER, totals));
        let help = "Time from the first byte of the request to the last byte of the response.";
        out.push(family(name("request_duration_milliseconds"), help, MetricType::HISTOGRAM, durations));
        out.push(family(name("request_bytes"), "Request body bytes.", MetricType::HISTOGRAM, received));
        out.push(family(name("response_bytes"), "Response body bytes.", MetricType::HISTOGRAM, sent));
    }

    fn collect_tcp(&self, now: Instant, out: &mut Vec<MetricFamily>) {
        let mut metrics: [Vec<Metric>; worker::TCP_CELLS] = Default::default();
        self.tcp.scrape(now, |labels, cells| {
            let labels = label_pairs(labels);
            for (list, value) in metrics.iter_mut().zip(cells) {
                list.push(counter(labels.clone(), *value));
            }
        });
        let prefix = &self.options.istio_prefix;
        for ((name, help), metrics) in worker::TCP_NAMES.iter().zip(metrics) {
            out.push(family(format!("{prefix}{name}"), help, MetricType::COUNTER, metrics));
        }
    }

    fn collect_clusters(&self, now: Instant, out: &mut Vec<MetricFamily>) {
        let mut lists = [const { Vec::new() }; ClusterCount::ALL.len()];
        self.clusters.scrape(now, |labels, cells| {
            let labels = label_pairs(labels);
            for (count, list) in ClusterCount::ALL.iter().zip(&mut lists) {
                list.push(counter(labels.clone(), cells[*count as usize]));
            }
        });
        for (count, list) in ClusterCount::ALL.iter().zip(lists) {
            let (name, help) = count.metric();
            out.push(family(name.to_owned(), help, MetricType::COUNTER, list));
        }
    }

    fn collect_listeners(&self, now: Instant, out: &mut Vec<MetricFamily>) {
        let (mut open, mut opened, mut handshakes) = (Vec::new(), Vec::new(), Vec::new());
        self.listeners.scrape(now, |labels, cells| {
            let labels = label_pairs(labels);
            open.push(gauge(labels.clone(), worker::open_downstream(cells) as f64));
            opened.push(counter(labels.clone(), cells[ListenerCount::Accepted as usize]));
            handshakes.push(counter(labels, cells[ListenerCount::TlsHandshakes as usize]));
        });
        let help = "Open connections from clients.";
        out.push(family("remora_downstream_connections".to_owned(), help, MetricType::GAUGE, open));
        let help = "Connections that were accepted.";
        out.push(family("remora_downstream_connections_total".to_owned(), help, MetricType::COUNTER, opened));
        let help = "TLS handshakes with clients that succeeded.";
        out.push(family(
            "remora_downstream_tls_handshakes_total".to_owned(),
            help,
            MetricType::COUNTER,
            handshakes,
        ));
    }

    fn collect_workers(&self, out: &mut Vec<MetricFamily>) {
        let mut sum = [0; worker::WORKER_CELLS];
        for shard in lock(&self.workers).iter() {
            super::shard::add_all(&mut sum, &shard.read());
        }
        let refused = Refusal::all().map(|r| (vec![("reason", r.as_str())], sum[r.cell()]));
        let help = "Connections that were refused before any request.";
        out.push(counters("remora_downstream_rejected_total", help, refused));
        let replies = Reason::ALL
            .iter()
            .map(|r| (vec![("reason", r.id()), ("party", r.party().as_str())], sum[worker::reason_cell(*r)]));
        let help = "Requests that the proxy answered or lost itself, by reason id and by who ended them.";
        out.push(counters("remora_local_replies_total", help, replies));
        let floods = std::iter::once((Vec::new(), sum[worker::FLOOD_CELL]));
        let help =
            "Connections that were closed because the peer sent too many control frames, resets or errors.";
        out.push(counters("remora_http2_flood_closes_total", help, floods));
    }
}
