//! A bucket as the control runtime leads it: when it is reported, and what holds when (`rlqs.proto`).

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::{Lead, Meter, Strategy};

/// A report of one bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Since the report before it.
    pub elapsed: Duration,
    /// Requests that went on.
    pub allowed: u64,
    /// Requests that were refused.
    pub denied: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody asks: it is not reported.
    Abandoned,
    /// `no_assignment_behavior` holds.
    Unassigned,
    /// What the service said holds, until then or for ever.
    Assigned(Strategy, Option<Instant>),
    /// `expired_assignment_behavior` holds until then.
    Expired(Instant),
}

/// See the module.
#[derive(Debug)]
pub struct Tracker {
    meter: Arc<Meter>,
    pub(super) lead: Arc<Lead>,
    state: State,
    reported: Instant,
    /// The next report.
    due: Instant,
}

impl Tracker {
    /// Begins to lead `meter`. A share that it has from one who led it before, and who cannot end it any more, is over.
    #[must_use]
    pub fn new(meter: Arc<Meter>, lead: Arc<Lead>, now: Instant) -> Self {
        meter.set(lead.unassigned, now);
        Self { meter, lead, state: State::Abandoned, reported: now, due: now }
    }

    /// The bucket.
    #[must_use]
    pub const fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Another configuration.
    pub fn lead(&mut self, lead: &Arc<Lead>, now: Instant) {
        let old = mem::replace(&mut self.lead, Arc::clone(lead));
        if old.unassigned != lead.unassigned && matches!(self.state, State::Abandoned | State::Unassigned) {
            self.meter.set(lead.unassigned, now);
        }
        self.due = self.due.min(now + lead.interval);
    }

    /// Whether it is reported.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.state != State::Abandoned
    }

    /// When [`Self::turn`] or [`Self::report`] has something to do; None: when there is a request.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        match self.state {
            State::Abandoned => None,
            State::Unassigned | State::Assigned(_, None) => Some(self.due),
            State::Assigned(_, Some(end)) | State::Expired(end) => Some(self.due.min(end)),
        }
    }

    /// When what holds ends by itself.
    #[must_use]
    pub const fn end(&self) -> Option<Instant> {
        match self.state {
            State::Assigned(_, end) => end,
            State::Expired(end) => Some(end),
            State::Abandoned | State::Unassigned => None,
        }
    }

    /// Follows time and the first request.
    pub fn turn(&mut self, now: Instant) {
        if self.state == State::Abandoned && self.meter.asked.load(Ordering::Acquire) {
            self.state = State::Unassigned;
            (self.reported, self.due) = (now, now);
        }
        if let State::Assigned(_, Some(end)) = self.state
            && end <= now
        {
            match self.lead.expired {
                Some(expired) => {
                    if let Some(strategy) = expired.strategy {
                        self.meter.set(strategy, now);
                    }
                    self.state = State::Expired(end + expired.lasts);
                }
                None => self.abandon(now),
            }
        }
        if let State::Expired(end) = self.state
            && end <= now
        {
            self.abandon(now);
        }
    }

    /// A new stream begins: whoever is at its other end knows nothing of this bucket.
    pub fn subscribe(&mut self, now: Instant) {
        if self.is_active() {
            self.due = now;
        }
    }

    /// Whether there is something to report.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        self.is_active() && self.due <= now
    }

    /// The report, if it is due.
    pub fn report(&mut self, now: Instant) -> Option<Usage> {
        if !self.is_due(now) {
            return None;
        }
        let elapsed = now.saturating_duration_since(self.reported).max(Duration::from_nanos(1));
        (self.reported, self.due) = (now, now + self.lead.interval);
        let take = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        Some(Usage { elapsed, allowed: take(&self.meter.allowed), denied: take(&self.meter.denied) })
    }

    /// `QuotaAssignmentAction`: `strategy` holds for `lasts`, or for ever.
    pub fn assign(&mut self, strategy: Strategy, lasts: Option<Duration>, now: Instant) {
        if !self.is_active() {
            return;
        }
        self.turn(now);
        let is_new = !matches!(self.state, State::Assigned(active, _) if active == strategy);
        if is_new {
            self.meter.set(strategy, now);
        }
        self.state = State::Assigned(strategy, lasts.map(|lasts| now + lasts));
        self.turn(now);
    }

    /// `AbandonAction`: as if there had been no request. The next one begins anew.
    pub fn abandon(&mut self, now: Instant) {
        self.state = State::Abandoned;
        self.meter.set(self.lead.unassigned, now);
        for count in [&self.meter.allowed, &self.meter.denied] {
            count.store(0, Ordering::Relaxed);
        }
        self.meter.asked.store(false, Ordering::Release);
    }
}
