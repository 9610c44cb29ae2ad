//! How many requests at a time are good for an upstream: a limit that follows the latency, window by window.
//!
//! The rule is that of Gradient2 (Netflix concurrency-limits): latency over that of an upstream that is not loaded means that requests
//! wait somewhere, and the limit shrinks in that proportion; a queue of its square root is always allowed, so that it grows as long as
//! nothing waits. The weak place of that rule is the latency that it compares with. An average that runs along takes a queue that
//! stays for the upstream's nature, and the limit grows without end; Envoy measures at intervals by letting almost nothing through. Here
//! the limit **dips**: when there is a queue, it is lowered to what Little's law says is needed without one. If latency follows, it was a
//! queue, of requests that are refused anyway. If it does not, the upstream became slower, and that is the latency to compare with.

use std::time::Duration;

/// Settings (`GradientControllerConfig`).
#[derive(Debug, Clone, PartialEq)]
pub struct ConcurrencySpec {
    /// The lowest limit: `min_concurrency_limit`, or else `min_concurrency`, default 3.
    pub min: u32,
    /// The highest limit: `max_concurrency_limit`, default 1000.
    pub max: u32,
    /// A window lasts for so long at least: `concurrency_update_interval`.
    pub interval: Duration,
    /// And has so many samples at least: `request_count`, default 50.
    pub samples: u32,
    /// Latency over the unloaded one that does not count, as a share of that: `buffer`, default 0.25.
    pub buffer: f64,
    /// The latency of the unloaded upstream, when somebody knows it: `fixed_value`.
    pub fixed: Option<Duration>,
}

/// The limit before anything is known.
const FIRST: f64 = 10.0;
/// How much of the way to its target the limit goes in a window.
const SMOOTHING: f64 = 0.2;
/// The limit loses at most so much of itself for a latency, whatever that is. With a half, four would be the least that it comes to.
const STEEPEST: f64 = 0.3;
/// How much of the way to the latest latency the unloaded one goes in a window.
const FOLLOW: f64 = 0.1;
/// Growth in a window in which requests were refused though nothing waited.
const LEAP: f64 = 1.5;
/// Windows from one dip to the next.
const BETWEEN_DIPS: u32 = 20;
/// The same as long as each dip finds a lower latency than the one before: the upstream was not seen unloaded yet.
const BETWEEN_FIRST_DIPS: u32 = 3;
/// A dip goes below what Little's law says, so that a queue is sure to be gone.
const DEPTH: f64 = 0.8;
/// The first ones go deeper: nothing is known.
const FIRST_DEPTH: f64 = 0.5;
/// A dip that finds less than this of the unloaded latency shows that it was none.
const LOWER: f64 = 0.9;

/// What was seen in one window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Mean latency, seconds; more than zero.
    pub latency: f64,
    /// Requests at a time, on average.
    pub busy: f64,
    /// Whether some were refused.
    pub refused: bool,
}

/// The limit and what it goes by. Latencies are in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradient {
    limit: f64,
    unloaded: Option<f64>,
    latency: f64,
    /// A dip has found the unloaded latency confirmed.
    learned: bool,
    phase: Phase,
}

/// With the number of windows since the last dip, or the limit of this one.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// Of the next window some requests are from before, or the very first ones, which say little.
    Settling(u32),
    /// The limit follows the latency.
    Steady(u32),
    /// A dip: requests from before are still there.
    Draining(Dip),
    /// A dip: what is measured is what the limit makes of it.
    Measuring(Dip),
}

/// A dip, and what was before it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Dip {
    limit: f64,
    before: u32,
    /// Answers a second before it.
    rate: f64,
}

impl Gradient {
    /// Before the first window.
    #[must_use]
    pub fn new(spec: &ConcurrencySpec) -> Self {
        Self {
            limit: FIRST.clamp(f64::from(spec.min), f64::from(spec.max)),
            unloaded: spec.fixed.map(|fixed| fixed.as_secs_f64()),
            latency: 0.0,
            learned: false,
            phase: Phase::Settling(BETWEEN_DIPS),
        }
    }

    /// The limit of the next window.
    #[must_use]
    pub fn limit(&self, spec: &ConcurrencySpec) -> u32 {
        let limit = match self.phase {
            Phase::Settling(_) | Phase::Steady(_) => self.limit,
            Phase::Draining(dip) | Phase::Measuring(dip) => dip.limit.ceil(),
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 32 bits")]
        let limit = limit.clamp(f64::from(spec.min), f64::from(spec.max)) as u32;
        limit
    }

    /// Latency that is taken for that of the upstream without load. Zero: not known yet.
    #[must_use]
    pub fn unloaded(&self) -> f64 {
        self.unloaded.unwrap_or(0.0)
    }

    /// Latency of the last window.
    #[must_use]
    pub const fn latency(&self) -> f64 {
        self.latency
    }

    /// A window is over.
    pub fn turn(&mut self, spec: &ConcurrencySpec, window: &Window) {
        self.latency = window.latency;
        match self.phase {
            Phase::Settling(windows) => self.phase = Phase::Steady(windows),
            Phase::Steady(windows) => self.step(spec, window, windows.saturating_add(1)),
            Phase::Draining(dip) => self.phase = Phase::Measuring(dip),
            Phase::Measuring(dip) => self.surface(spec, dip, window),
        }
    }

    /// The dip is over.
    fn surface(&mut self, spec: &ConcurrencySpec, dip: Dip, window: &Window) {
        let (latency, unloaded) = (window.latency, self.unloaded());
        let lower = latency < unloaded * LOWER;
        let slower = latency > unloaded * (1.0 + spec.buffer);
        // The depth of a first one is a guess, and a lowest limit may be more than the upstream can do at a time.
        let shallow = !self.learned || dip.limit.ceil() < f64::from(spec.min);
        self.unloaded = Some(if slower && shallow { self.doubted(spec, dip, window) } else { latency });
        self.learned |= !lower;
        self.phase = Phase::Settling(if self.learned { 0 } else { BETWEEN_DIPS - BETWEEN_FIRST_DIPS });
    }

    /// The unloaded latency after a dip that found more than what was known: that is the upstream's own latency now, unless there still was
    /// a queue.
    fn doubted(&self, spec: &ConcurrencySpec, dip: Dip, window: &Window) -> f64 {
        let (latency, unloaded) = (window.latency, self.unloaded());
        let share = dip.limit.ceil().max(f64::from(spec.min)) / f64::from(dip.before);
        if share >= 1.0 {
            // Nothing was changed, so nothing is known. What is wrong must not hold the limit down for good.
            return (latency - unloaded).mul_add(FOLLOW, unloaded);
        }
        // Without a queue there are as many answers less as there are requests less at a time; with one, as many as before.
        let queue = window.busy / latency > dip.rate * share.sqrt();
        if queue { unloaded } else { latency }
    }

    fn step(&mut self, spec: &ConcurrencySpec, window: &Window, windows: u32) {
        let &Window { latency, busy, refused } = window;
        self.phase = Phase::Steady(windows);
        let unloaded = *self.unloaded.get_or_insert(latency);
        let idle = !refused && busy * 2.0 < self.limit;
        // With little to do the latency is the upstream's own. Near the limit a higher one may be a queue.
        if spec.fixed.is_none() && (idle || latency < unloaded) {
            self.unloaded = Some((latency - unloaded).mul_add(FOLLOW, unloaded));
        }
        if idle {
            return;
        }
        let gradient = (unloaded * (1.0 + spec.buffer) / latency).clamp(STEEPEST, 1.0);
        if gradient < 1.0 && windows > BETWEEN_DIPS && spec.fixed.is_none() {
            let depth = if self.learned { DEPTH } else { FIRST_DEPTH };
            let dip = self.limit * unloaded / latency * depth;
            self.phase = Phase::Draining(Dip { limit: dip, before: self.limit(spec), rate: busy / latency });
        }
        // At 1 nothing waits.
        self.limit = if refused && gradient >= 1.0 {
            self.limit * LEAP
        } else {
            let target = self.limit.mul_add(gradient, self.limit.sqrt());
            (target - self.limit).mul_add(SMOOTHING, self.limit)
        };
        self.limit = self.limit.clamp(f64::from(spec.min), f64::from(spec.max));
    }
}
