//! Outlier detection on the request path: counts an attempt, and ejects at once when it was one failure too many.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Notify;

use super::census::Kept;
use super::cluster::Cluster;
use super::endpoint::Endpoint;
use super::outcome::Verdict;
use crate::resilience::outlier::{Cause, OutlierSpec};

/// Something is to be done by the control runtime ([`super::sweep`]): an ejection, or the first attempt since it looked last.
static HAPPENED: Notify = Notify::const_new();

/// Waits until something is to be done. Nothing is lost when this is dropped.
pub(crate) async fn happened() {
    HAPPENED.notified().await;
}

/// Counters of one cluster, by [`Cause`].
#[derive(Debug, Default)]
pub struct OutlierCounts {
    detected: [AtomicU64; Cause::ALL.len()],
    enforced: [AtomicU64; Cause::ALL.len()],
    overflow: AtomicU64,
    last_one: AtomicU64,
    stirred: AtomicBool,
}

impl OutlierCounts {
    /// How often `cause` was found (Envoy `ejections_detected_…`).
    #[must_use]
    pub fn detected(&self, cause: Cause) -> u64 {
        self.detected[cause as usize].load(Ordering::Relaxed)
    }

    /// How often an endpoint was ejected because of it (Envoy `ejections_enforced_…`).
    #[must_use]
    pub fn enforced(&self, cause: Cause) -> u64 {
        self.enforced[cause as usize].load(Ordering::Relaxed)
    }

    /// How often one stayed because of `max_ejection_percent` (Envoy `ejections_overflow`).
    #[must_use]
    pub fn overflow(&self) -> u64 {
        self.overflow.load(Ordering::Relaxed)
    }

    /// How often one stayed because it was the last that could be used.
    #[must_use]
    pub fn last_one(&self) -> u64 {
        self.last_one.load(Ordering::Relaxed)
    }

    /// Whether there were attempts since this was asked.
    pub(super) fn take_stirred(&self) -> bool {
        self.stirred.swap(false, Ordering::Relaxed)
    }

    fn stir(&self) {
        if !self.stirred.load(Ordering::Relaxed) && !self.stirred.swap(true, Ordering::Relaxed) {
            HAPPENED.notify_one();
        }
    }
}

/// Counts an attempt at `endpoint` that ended with `verdict`.
pub(super) fn note(cluster: &Cluster, endpoint: &Endpoint, spec: &OutlierSpec, verdict: Verdict) {
    if endpoint.state.standing().is_ejected() {
        return;
    }
    let rates = spec.wants_rates(cluster.endpoints().len());
    if rates {
        cluster.state().outlier().stir();
    }
    // A success of an endpoint that never failed has nothing to interrupt.
    let monitor = match endpoint.state.known_monitor() {
        None if verdict == Verdict::Good && !rates => return,
        _ => endpoint.state.monitor(),
    };
    for cause in monitor.note(spec, verdict, rates).into_iter().flatten() {
        eject(cluster, endpoint, cause, fastrand::u32(0..100));
    }
}

/// Ejects an endpoint that was found conspicuous, if that is enforced (`roll` is from 0 to 99) and possible.
pub(super) fn eject(cluster: &Cluster, endpoint: &Endpoint, cause: Cause, roll: u32) {
    let Some(spec) = &cluster.spec().outlier else { return };
    let counts = cluster.state().outlier();
    counts.detected[cause as usize].fetch_add(1, Ordering::Relaxed);
    if !spec.enforces(cause, roll) {
        return;
    }
    let limit = spec.limit(cluster.endpoints().len());
    let (name, address) = (&*cluster.spec().name, endpoint.spec.address);
    match cluster.state().census().eject(endpoint.state.standing(), limit) {
        Ok(()) => {
            counts.enforced[cause as usize].fetch_add(1, Ordering::Relaxed);
            tracing::warn!(cluster = name, endpoint = %address, cause = cause.as_str(), "ejected");
            HAPPENED.notify_one();
        }
        Err(Kept::Already) => {}
        Err(Kept::Limit) => {
            counts.overflow.fetch_add(1, Ordering::Relaxed);
            let cause = cause.as_str();
            tracing::debug!(cluster = name, endpoint = %address, cause, "not ejected: max_ejection_percent");
        }
        Err(Kept::Last) => {
            counts.last_one.fetch_add(1, Ordering::Relaxed);
            let cause = cause.as_str();
            tracing::debug!(cluster = name, endpoint = %address, cause, "not ejected: no other may be used");
        }
    }
}
