//! Steady traffic: so many requests a second, whether answers come or not, and what became of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use http::StatusCode;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::client::Client;

/// Most requests at once: a demo whose answers do not come must not eat the machine.
const MOST: u64 = 1000;
/// Failures whose text is kept.
const KEPT: usize = 5;

/// How requests were split while one version of the route held.
#[derive(Debug, Clone, Default)]
pub(super) struct Phase {
    /// What the route says: percent for v1.
    pub(super) wanted: u32,
    pub(super) v1: u64,
    pub(super) v2: u64,
}

impl Phase {
    pub(super) const fn answers(&self) -> u64 {
        self.v1 + self.v2
    }

    /// Percent of v1.
    pub(super) fn share(&self) -> f64 {
        if self.answers() == 0 { 0.0 } else { self.v1 as f64 * 100.0 / self.answers() as f64 }
    }
}

/// What became of the requests.
pub(super) struct Tally {
    pub(super) sent: u64,
    pub(super) done: u64,
    pub(super) failed: u64,
    /// Not sent because too many were without an answer.
    pub(super) skipped: u64,
    /// Microseconds, from when the request was due.
    pub(super) latency: Histogram<u64>,
    /// The last one is the one that holds, when `open`.
    pub(super) phases: Vec<Phase>,
    /// Whether every sidecar has the route of the last phase.
    pub(super) open: bool,
    /// `failed` when the route was edited last.
    pub(super) failed_before_edit: Option<u64>,
    pub(super) failures: Vec<String>,
}

#[derive(Clone)]
pub(super) struct Visitors {
    tally: Arc<Mutex<Tally>>,
}

impl Visitors {
    pub(super) fn new(wanted: u32) -> anyhow::Result<Self> {
        let tally = Tally {
            sent: 0,
            done: 0,
            failed: 0,
            skipped: 0,
            latency: Histogram::new_with_bounds(1, 60_000_000, 3)?,
            phases: vec![Phase { wanted, ..Phase::default() }],
            open: true,
            failed_before_edit: None,
            failures: Vec::new(),
        };
        Ok(Self { tally: Arc::new(Mutex::new(tally)) })
    }

    pub(super) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends `rate` requests a second until the task is aborted.
    pub(super) fn start(&self, client: Client, rate: u32) -> JoinHandle<()> {
        let this = self.clone();
        tokio::spawn(async move {
            let mut clock = interval(Duration::from_secs(1) / rate);
            clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
            loop {
                let due = clock.tick().await;
                let mut tally = this.tally();
                if tally.sent - tally.done >= MOST {
                    tally.skipped += 1;
                    continue;
                }
                tally.sent += 1;
                let phase = tally.open.then_some(tally.phases.len());
                drop(tally);
                tokio::spawn(this.clone().visit(client.clone(), due, phase));
            }
        })
    }

    async fn visit(self, client: Client, due: Instant, phase: Option<usize>) {
        let answer = client.get("shop", "/").await;
        let micros = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut tally = self.tally();
        tally.done += 1;
        tally.latency.saturating_record(micros);
        let failure = match answer {
            Ok(answer) if answer.status == StatusCode::OK => {
                tally.count_version(phase, &answer.body);
                return;
            }
            Ok(answer) => {
                let why =
                    answer.reason.unwrap_or_else(|| String::from_utf8_lossy(&answer.body).trim().to_owned());
                format!("{}: {why}", answer.status)
            }
            Err(error) => format!("{error:#}"),
        };
        tally.failed += 1;
        if tally.failures.len() < KEPT {
            tally.failures.push(failure);
        }
    }

    /// Waits for the answers that are still missing.
    pub(super) async fn settle(&self, most: Duration) {
        let deadline = Instant::now() + most;
        while Instant::now() < deadline && {
            let t = self.tally();
            t.done < t.sent
        } {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Tally {
    /// Which version answered; a request that was under way while the route changed may have met either.
    fn count_version(&mut self, phase: Option<usize>, body: &[u8]) {
        if !self.open || phase != Some(self.phases.len()) {
            return;
        }
        let answer: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let Some(last) = self.phases.last_mut() else { return };
        match answer["stock"].as_str() {
            Some("v1") => last.v1 += 1,
            Some("v2") => last.v2 += 1,
            _ => {}
        }
    }

    /// Milliseconds that this share of the requests took at most.
    pub(super) fn millis(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }
}
