//! `envoy.filters.http.adaptive_concurrency`: how many requests may be on their way at a time, by what latency says, and who goes first
//! when there are too many.

pub mod gradient;

use std::sync::{Arc, Mutex, TryLockError};
use std::time::Duration;

use tokio::time::Instant;

use self::gradient::{ConcurrencySpec, Gradient, Window};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// How much a request matters when not all can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Somebody waits for it, and much depends on it: it may have the last place.
    Critical,
    /// Somebody waits for it.
    Default,
    /// Nobody waits for it: it can come again later.
    Batch,
}

impl Priority {
    /// All, the most important one first.
    pub const ALL: [Self; 3] = [Self::Critical, Self::Default, Self::Batch];

    /// Name in the header `x-remora-priority` and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Default => "default",
            Self::Batch => "batch",
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn by_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|priority| priority.as_str().as_bytes() == name)
    }

    /// How much of the limit is there for it, percent. Batch leaves a fifth, more than the queue that the limit allows from 25 requests
    /// on, so that it is refused before anybody has to wait for it. What default leaves need not be much: critical requests are few.
    const fn share(self) -> u32 {
        match self {
            Self::Critical => 100,
            Self::Default => 95,
            Self::Batch => 80,
        }
    }

    /// How many requests may be there before one of these is refused. Never none: a small limit is one for all.
    #[must_use]
    pub fn places(self, limit: u32) -> u32 {
        let places = (u64::from(limit) * u64::from(self.share())).div_ceil(100);
        u32::try_from(places).unwrap_or(u32::MAX)
    }
}

/// A window's samples: microseconds above, their number below.
const COUNT_BITS: u32 = 20;
const COUNT: u64 = (1 << COUNT_BITS) - 1;
/// With so many samples a window ends whatever the time. Their number doubled, each of the longest, fits the word.
const FULL: u64 = 1 << (COUNT_BITS - 1);
/// No sample is longer, microseconds (16.7 s).
const LONGEST: u64 = (1 << 24) - 1;
/// A sample counts as no more than so many times the unloaded latency: steeper than the gradient gets, and one that hung is not a hundred.
const OUTLIER: f64 = 4.0;
/// The most that [`ConcurrencySpec::samples`] may be.
pub const MAX_SAMPLES: u32 = 100_000;

/// The limit of one filter, shared by all workers.
#[derive(Debug)]
pub struct Controller {
    spec: ConcurrencySpec,
    start: Instant,
    limit: AtomicU32,
    in_flight: AtomicU32,
    /// The samples of this window.
    window: AtomicU64,
    /// When it may end, microseconds since `start`.
    ends: AtomicU64,
    /// What a sample counts as at most, microseconds.
    most: AtomicU64,
    refused: [AtomicU64; 3],
    /// Whoever finds a window at its end takes it, and nobody ever waits for it.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    gradient: Gradient,
    began: u64,
    refused: u64,
}

/// What is shown of a controller.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// The limit now.
    pub limit: u32,
    /// Requests that wait for the head of their answer.
    pub in_flight: u32,
    /// Latency of the last window, seconds.
    pub latency: f64,
    /// What it is compared with, seconds; zero before the first window.
    pub unloaded: f64,
    /// Refused so far, in the order of [`Priority::ALL`].
    pub refused: [u64; 3],
}

impl Controller {
    /// Before the first request.
    #[must_use]
    pub fn new(spec: ConcurrencySpec, now: Instant) -> Self {
        let gradient = Gradient::new(&spec);
        Self {
            start: now,
            limit: AtomicU32::new(gradient.limit(&spec)),
            in_flight: AtomicU32::new(0),
            window: AtomicU64::new(0),
            ends: AtomicU64::new(micros(spec.interval)),
            most: AtomicU64::new(most(&gradient)),
            refused: Default::default(),
            state: Mutex::new(State { gradient, began: 0, refused: 0 }),
            spec,
        }
    }

    /// What it was made of.
    #[must_use]
    pub const fn spec(&self) -> &ConcurrencySpec {
        &self.spec
    }

    /// Takes a place for a request, unless those for its like are taken; a refusal is counted.
    pub fn try_acquire(self: &Arc<Self>, priority: Priority, now: Instant) -> Option<Place> {
        let places = priority.places(self.limit.load(Ordering::Relaxed));
        if self.in_flight.fetch_add(1, Ordering::Relaxed) >= places {
            self.in_flight.fetch_sub(1, Ordering::Relaxed);
            self.refused[priority as usize].fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Place { controller: Arc::clone(self), began: now })
    }

    fn sample(&self, latency: Duration, now: Instant) {
        let took = micros(latency).clamp(1, self.most.load(Ordering::Relaxed));
        let before = self.window.fetch_add(took << COUNT_BITS | 1, Ordering::Relaxed);
        let at = micros(now.saturating_duration_since(self.start));
        if self.is_over(before + 1, at) {
            self.turn(at);
        }
    }

    fn is_over(&self, window: u64, at: u64) -> bool {
        let samples = window & COUNT;
        samples >= u64::from(self.spec.samples)
            && (samples >= FULL || at >= self.ends.load(Ordering::Relaxed))
    }

    #[cold]
    fn turn(&self, at: u64) {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            // Somebody else ends it.
            Err(TryLockError::WouldBlock) => return,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
        };
        // Or has just done so.
        if !self.is_over(self.window.load(Ordering::Relaxed), at) {
            return;
        }
        let window = self.window.swap(0, Ordering::Relaxed);
        let refused = self.refused.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        #[expect(clippy::cast_precision_loss, reason = "exact below 2^53 microseconds")]
        let seen = {
            let (total, samples) = ((window >> COUNT_BITS) as f64, (window & COUNT) as f64);
            let lasted = at.saturating_sub(state.began).max(1) as f64;
            // Little's law, of those whose answers came.
            Window { latency: total / samples / 1e6, busy: total / lasted, refused: refused > state.refused }
        };
        state.gradient.turn(&self.spec, &seen);
        state.began = at;
        state.refused = refused;
        // What a new limit does is seen when those whom the old one let in are gone.
        let settled = Duration::from_secs_f64(2.0 * seen.latency).max(self.spec.interval);
        self.limit.store(state.gradient.limit(&self.spec), Ordering::Relaxed);
        self.most.store(most(&state.gradient), Ordering::Relaxed);
        self.ends.store(at.saturating_add(micros(settled)), Ordering::Relaxed);
    }

    /// How it is. For pages that somebody asks for, not for requests.
    #[must_use]
    pub fn view(&self) -> View {
        let state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        View {
            limit: self.limit.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            latency: state.gradient.latency(),
            unloaded: state.gradient.unloaded(),
            refused: std::array::from_fn(|i| self.refused[i].load(Ordering::Relaxed)),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn most(gradient: &Gradient) -> u64 {
    let unloaded = gradient.unloaded();
    if unloaded > 0.0 {
        micros(Duration::from_secs_f64((unloaded * OUTLIER).min(1e6))).clamp(1, LONGEST)
    } else {
        LONGEST
    }
}

/// A request's place below the limit, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Place {
    controller: Arc<Controller>,
    began: Instant,
}

impl Place {
    /// The head of the answer came, or would have taken longer than this.
    pub fn answered(self, now: Instant) {
        self.controller.sample(now.saturating_duration_since(self.began), now);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.controller.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
