//! The retry storm: three hops, each with its sidecar, and a last one that loses half of its capacity for a while.
//! See docs/experiments/retry-storm.md.

use std::time::Duration;

use remora_tests::config::{Listener, budget, careful, cluster, merge, no_breakers};
use remora_tests::ledger::{Ledger, Offer};
use remora_tests::proxy::Proxy;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::plot::{Curve, Plot, csv, svg};
use crate::service::{Middle, Service};
use crate::{long, ms, record};

/// Requests a second that are offered: 70 % of what the last hop can do.
const RATE: u32 = 140;
const WORKERS: u32 = 10;
const WORK: Duration = ms(50);
/// So long that the last of it is still answered in time when half of the workers are gone.
const QUEUE: usize = 15;
/// Values of the curves a second.
const STEPS: f64 = 4.0;

/// How long it is well, ill, and watched afterwards.
struct Times {
    before: Duration,
    ill: Duration,
    after: Duration,
}

impl Times {
    fn of_this_run() -> Self {
        if long() {
            Self { before: ms(10_000), ill: ms(30_000), after: ms(20_000) }
        } else {
            Self { before: ms(2000), ill: ms(10_000), after: ms(6000) }
        }
    }
}

/// Retries are a fifth of the requests of the last ten seconds, or ten a second if that is more: the default of TrafficPolicy.
fn fifth() -> Value {
    let mut limits = budget(20, 100);
    merge(
        &mut limits["circuit_breakers"]["thresholds"][0]["retry_budget"],
        json!({ "budget_interval": "10s" }),
    );
    limits
}

/// What was seen.
struct Run {
    began: Instant,
    ill: Instant,
    healed: Instant,
    ledger: Ledger,
    arrivals: Vec<Instant>,
}

/// What holds a storm back.
struct Defence {
    limits: Value,
    /// Whether services pass on that retries below were in vain.
    marks: bool,
}

/// A sidecar of one hop: every hop retries twice. The time of a try is longer than that of all tries below it.
async fn sidecar(next: std::net::SocketAddr, per_try: &str, limits: &Value) -> Proxy {
    let policy = json!({
        "num_retries": 2,
        "per_try_timeout": per_try,
        "retry_back_off": { "base_interval": "0.025s", "max_interval": "0.25s" },
    });
    let mut origin = cluster("origin", &[next]);
    merge(&mut origin, limits.clone());
    let [gets, others] = careful("origin", &policy);
    Proxy::builder()
        .listener(Listener::http("ingress").route(gets).route(others))
        .cluster(origin)
        .start()
        .await
}

async fn run(Defence { limits, marks }: Defence) -> Run {
    let last = Service::start(WORKERS as usize, WORK, QUEUE).await;
    let third = sidecar(last.address, "0.25s", &limits).await;
    let second_app = Middle::start(third.address("ingress"), marks).await;
    let second = sidecar(second_app.address, "1.5s", &limits).await;
    let first_app = Middle::start(second.address("ingress"), marks).await;
    let first = sidecar(first_app.address, "5s", &limits).await;

    let times = Times::of_this_run();
    let began = Instant::now();
    let load = Offer::gets(first.address("ingress"), RATE).start();
    tokio::time::sleep(times.before).await;
    let ill = Instant::now();
    last.shrink(WORKERS / 2).await;
    tokio::time::sleep(times.ill.saturating_sub(ill.elapsed())).await;
    last.grow(WORKERS / 2);
    let healed = Instant::now();
    tokio::time::sleep(times.after).await;
    let ledger = load.end().await;
    Run { began, ill, healed, ledger, arrivals: last.arrivals() }
}

impl Run {
    /// Requests that reached the last hop for each that was offered, while it was ill.
    fn amplification(&self) -> f64 {
        let within = |at: &Instant| *at >= self.ill && *at < self.healed;
        let offered = self.ledger.entries.iter().filter(|e| within(&e.sent)).count();
        self.arrivals.iter().filter(|at| within(at)).count() as f64 / offered as f64
    }

    /// From the end of the illness to the last request that was lost; None when some were still lost at the end.
    fn recovery(&self) -> Option<Duration> {
        let lost = self.ledger.entries.iter().filter(|e| !e.is_answered());
        let last = lost.map(|e| e.sent).max().unwrap_or(self.healed).max(self.healed);
        let end = self.ledger.entries.iter().map(|e| e.sent).max()?;
        (end.duration_since(last) > ms(1000)).then(|| last.duration_since(self.healed))
    }

    /// The share of the requests of the illness that were answered.
    fn answered(&self) -> f64 {
        let ill: Vec<_> =
            self.ledger.entries.iter().filter(|e| e.sent >= self.ill && e.sent < self.healed).collect();
        ill.iter().filter(|e| e.is_answered()).count() as f64 / ill.len() as f64
    }

    fn seconds(&self, at: Instant) -> f64 {
        at.duration_since(self.began).as_secs_f64()
    }

    /// Events a second.
    fn rate(&self, events: impl Iterator<Item = Instant>) -> Vec<f64> {
        let end = self.ledger.entries.iter().map(|e| self.seconds(e.sent)).fold(0.0, f64::max);
        let mut bins = vec![0.0; (end * STEPS) as usize];
        for at in events {
            if let Some(bin) = bins.get_mut((self.seconds(at) * STEPS) as usize) {
                *bin += STEPS;
            }
        }
        bins
    }

    fn print(&self, name: &str) {
        println!(
            "retry storm {name}: {:.2} requests at the last hop for each that was offered, {:.0} % answered meanwhile, recovery {:?}",
            self.amplification(),
            100.0 * self.answered(),
            self.recovery()
        );
    }
}

fn plots(without: &Run, with: &Run) -> Vec<Plot> {
    let trouble = (with.seconds(with.ill), with.seconds(with.healed));
    let plot = |title: &str, curves| Plot { title: title.into(), step: 1.0 / STEPS, trouble, curves };
    let answered =
        |run: &Run| run.rate(run.ledger.entries.iter().filter(|e| e.is_answered()).map(|e| e.sent));
    vec![
        plot(
            "requests a second at the last hop",
            vec![
                Curve {
                    name: "without budgets",
                    colour: "#c0392b",
                    values: without.rate(without.arrivals.iter().copied()),
                },
                Curve {
                    name: "with budgets",
                    colour: "#2471a3",
                    values: with.rate(with.arrivals.iter().copied()),
                },
                Curve {
                    name: "offered",
                    colour: "#7f8c8d",
                    values: with.rate(with.ledger.entries.iter().map(|e| e.sent)),
                },
            ],
        ),
        plot(
            "requests a second that were answered, by when they were sent",
            vec![
                Curve { name: "without budgets", colour: "#c0392b", values: answered(without) },
                Curve { name: "with budgets", colour: "#2471a3", values: answered(with) },
            ],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "an experiment in time, for a machine that does nothing else: just experiments"]
async fn budgets_stop_a_retry_storm() {
    let without = run(Defence { limits: no_breakers(), marks: false }).await;
    without.print("without budgets");
    let with = run(Defence { limits: fifth(), marks: true }).await;
    with.print("with budgets");
    let plots = plots(&without, &with);
    record("retry-storm.csv", &csv(&plots));
    record("retry-storm.svg", &svg(&plots));
    assert_eq!(without.ledger.wrong() + with.ledger.wrong(), 0);
    assert!(
        without.amplification() > 2.0,
        "no storm: the experiment proves nothing ({:.2})",
        without.amplification()
    );
    assert!(with.amplification() <= 1.2, "{:.2}", with.amplification());
    // Five of ten workers, of which seven would do.
    let possible = f64::from(WORKERS / 2) / WORK.as_secs_f64() / f64::from(RATE);
    assert!(with.answered() > 0.95 * possible, "{:.2} of {possible:.2}", with.answered());
    let recovery = with.recovery().expect("it recovers");
    assert!(recovery < Duration::from_secs(5), "{recovery:?}");
}
