//! Overload: a service gets twice as many requests as it can serve, with and without a limit on them that its sidecar finds by itself.
//! See docs/experiments/overload.md.

use std::time::Duration;

use remora_tests::config::{Listener, cluster, merge, no_breakers, to_cluster};
use remora_tests::ledger::{Entry, Offer, Outcome, quantile};
use remora_tests::proxy::Proxy;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::plot::{Curve, Plot, csv, svg};
use crate::service::Planned;
use crate::{long, ms, record};

const WORKERS: usize = 10;
const WORK: Duration = ms(50);
/// Requests a second that the workers can serve, exactly.
const CAPACITY: u32 = 200;
/// The longest that callers wait, and a fraction of what the service lets them.
const PATIENCE: &str = "1s";
const QUEUE: Duration = ms(5000);
/// What is left out at the beginning of each phase.
const UNSTEADY: Duration = ms(3000);
/// Values of the curves a second.
const STEPS: f64 = 2.0;

/// The example of docs/reference/traffic.md.
fn limited() -> Value {
    let of = |filter: &str| format!("type.googleapis.com/envoy.extensions.filters.http.{filter}");
    json!({ "http_filters": [
        { "name": "envoy.filters.http.adaptive_concurrency", "typed_config": {
            "@type": of("adaptive_concurrency.v3.AdaptiveConcurrency"),
            "gradient_controller_config": {
                "concurrency_limit_params": { "max_concurrency_limit": 1000, "concurrency_update_interval": "0.1s" },
                "min_rtt_calc_params": { "interval": "60s" },
            },
        } },
        { "name": "envoy.filters.http.router", "typed_config": { "@type": of("router.v3.Router") } },
    ] })
}

/// A time of one load, without its beginning.
#[derive(Debug, Clone, Copy)]
struct Phase {
    rate: u32,
    began: Instant,
    end: Instant,
}

/// What was seen.
struct Run {
    /// Unloaded, as much as can be served, twice as much, unloaded.
    phases: Vec<Phase>,
    entries: Vec<Entry>,
}

fn answered_at(entry: &Entry) -> Instant {
    entry.sent + entry.took
}

fn refused(entry: &Entry) -> bool {
    entry.outcome == Outcome::Refused(503, "concurrency_limit".into())
}

async fn run(manager: Value) -> Run {
    let service = Planned::start(WORKERS, WORK, QUEUE).await;
    let mut own = cluster("own", &[service.address]);
    merge(&mut own, no_breakers());
    let mut route = to_cluster("/", "own");
    merge(&mut route, json!({ "route": { "timeout": PATIENCE } }));
    let listener = Listener::http("inbound").manager(manager).route(route);
    let proxy = Proxy::builder().listener(listener).cluster(own).start().await;

    let (short, full) = if long() { (10_000, 30_000) } else { (6000, 10_000) };
    let loads =
        [(CAPACITY * 3 / 10, short), (CAPACITY, short), (CAPACITY * 2, full), (CAPACITY * 3 / 10, short)];
    let mut run = Run { phases: Vec::new(), entries: Vec::new() };
    let mut before = None;
    for (rate, millis) in loads {
        let began = Instant::now();
        let load = Offer::gets(proxy.address("inbound"), rate).start();
        // Nobody waits for what was asked before: load goes on without a gap.
        run.finish(before.take()).await;
        load.lasts(ms(millis).saturating_sub(began.elapsed())).await;
        run.phases.push(Phase { rate, began, end: Instant::now() });
        before = Some(load);
    }
    run.finish(before).await;
    run
}

impl Run {
    async fn finish(&mut self, load: Option<remora_tests::ledger::Load>) {
        if let Some(load) = load {
            self.entries.extend(load.end().await.entries);
        }
    }

    /// Answers a second in the steady part of a phase, by when they came.
    fn goodput(&self, phase: usize) -> f64 {
        let (from, end) = self.steady(phase);
        let good = self.entries.iter().filter(|e| e.is_answered() && (from..end).contains(&answered_at(e)));
        good.count() as f64 / (end - from).as_secs_f64()
    }

    /// Within which 99 % of the answers came of what was asked in the steady part of a phase, and was answered.
    fn p99(&self, phase: usize) -> Duration {
        let (from, end) = self.steady(phase);
        let accepted = self.entries.iter().filter(|e| e.is_answered() && (from..end).contains(&e.sent));
        quantile(accepted.map(|e| e.took).collect(), 0.99)
    }

    fn steady(&self, phase: usize) -> (Instant, Instant) {
        let Phase { began, end, .. } = self.phases[phase];
        (began + UNSTEADY, end)
    }

    fn print(&self, name: &str) {
        for (number, phase) in self.phases.iter().enumerate() {
            println!(
                "overload {name}: {} a second: {:.1} answered a second, p99 {:.1?}",
                phase.rate,
                self.goodput(number),
                self.p99(number)
            );
        }
    }

    fn seconds(&self, at: Instant) -> f64 {
        at.duration_since(self.phases[0].began).as_secs_f64()
    }

    /// A value for each step of the run, made of the entries that fall into it by `at`.
    fn steps(&self, at: impl Fn(&Entry) -> Instant, add: impl Fn(f64, &Entry) -> f64) -> Vec<f64> {
        let end = self.phases.last().map_or(0.0, |phase| self.seconds(phase.end));
        let mut values = vec![0.0; (end * STEPS) as usize];
        for entry in &self.entries {
            if let Some(value) = values.get_mut((self.seconds(at(entry)) * STEPS) as usize) {
                *value = add(*value, entry);
            }
        }
        values
    }

    fn answers(&self) -> Vec<f64> {
        self.steps(answered_at, |rate, entry| rate + if entry.is_answered() { STEPS } else { 0.0 })
    }

    /// The longest wait of those that were let in, milliseconds.
    fn waits(&self) -> Vec<f64> {
        let took = |entry: &Entry| if refused(entry) { 0.0 } else { entry.took.as_secs_f64() * 1e3 };
        self.steps(|entry| entry.sent, |most, entry| most.max(took(entry)))
    }
}

fn plots(without: &Run, with: &Run) -> Vec<Plot> {
    let trouble = (with.seconds(with.phases[2].began), with.seconds(with.phases[2].end));
    let plot = |title: &str, curves| Plot { title: title.into(), step: 1.0 / STEPS, trouble, curves };
    let curves = |without, with| {
        vec![
            Curve { name: "without a limit", colour: "#c0392b", values: without },
            Curve { name: "adaptive concurrency", colour: "#2471a3", values: with },
        ]
    };
    let mut answers = curves(without.answers(), with.answers());
    let offered = with.steps(|entry| entry.sent, |rate, _| rate + STEPS);
    answers.push(Curve { name: "offered", colour: "#7f8c8d", values: offered });
    vec![
        plot("requests a second that were answered", answers),
        plot("longest wait of those that were not refused, ms", curves(without.waits(), with.waits())),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "an experiment in time, for a machine that does nothing else: just experiments"]
async fn a_limit_that_finds_itself_keeps_an_overloaded_service_useful() {
    let without = run(json!({})).await;
    without.print("without a limit");
    let with = run(limited()).await;
    with.print("with adaptive concurrency");
    let plots = plots(&without, &with);
    record("overload.csv", &csv(&plots));
    record("overload.svg", &svg(&plots));
    let capacity = f64::from(CAPACITY);
    let (collapsed, lost) = (without.goodput(2) / capacity, without.p99(2));
    assert!(
        collapsed < 0.5 || lost > 3 * without.p99(0),
        "no overload: the experiment proves nothing ({collapsed:.2}, {lost:?})"
    );
    // Nobody is let in and then left without an answer: it would be missing in the p99.
    let other = with.entries.iter().find(|entry| !entry.is_answered() && !refused(entry));
    assert!(other.is_none(), "{other:?}");
    let goodput = with.goodput(2) / capacity;
    assert!(goodput >= 0.95, "goodput is {goodput:.3} of the capacity");
    let (p99, unloaded) = (with.p99(2), with.p99(0));
    assert!(p99 <= 3 * unloaded, "{p99:?}, and {unloaded:?} without load");
}
