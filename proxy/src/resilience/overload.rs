//! The overload manager (`envoy.config.overload.v3.OverloadManager`): how much of what it has the process uses, and what it gives up for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What is watched, how often, and what is done about it.
#[derive(Debug, Clone, PartialEq)]
pub struct OverloadSpec {
    /// `refresh_interval`, default 1 s.
    pub interval: Duration,
    /// `fixed_heap`: `max_heap_size_bytes`.
    pub heap: Option<u64>,
    /// `cgroup_memory`.
    pub cgroup: Option<CgroupSpec>,
    /// `global_downstream_max_connections`: `max_active_downstream_connections`. It refuses by itself and triggers nothing.
    pub connections: Option<u64>,
    /// `actions`.
    pub actions: Vec<(Action, Vec<Trigger>)>,
}

/// `cgroup_memory`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CgroupSpec {
    /// `max_memory_bytes`: for the process's own cgroup, beside the limits that the kernel knows.
    pub max: Option<u64>,
    /// Whoever uses the memory, in its cgroup and those above it. Otherwise only its own cgroup counts, and only while a relevant part of
    /// it is the process's own: what others have taken is not given back by refusing requests.
    pub whole: bool,
}

/// The part of its cgroup's limit that a process has to have before it gives anything up by itself.
const RELEVANT: u64 = 4;

/// What is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// `envoy.overload_actions.disable_http_keepalive`: connections end after their request.
    DisableKeepalive,
    /// `envoy.overload_actions.stop_accepting_requests`.
    RefuseRequests,
    /// `envoy.overload_actions.stop_accepting_connections`: they wait in the kernel's queue.
    StopAccepting,
}

impl Action {
    /// All, in the order of their places in [`Effects`].
    pub const ALL: [Self; 3] = [Self::DisableKeepalive, Self::RefuseRequests, Self::StopAccepting];

    /// Name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DisableKeepalive => "envoy.overload_actions.disable_http_keepalive",
            Self::RefuseRequests => "envoy.overload_actions.stop_accepting_requests",
            Self::StopAccepting => "envoy.overload_actions.stop_accepting_connections",
        }
    }
}

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Monitor {
    /// `envoy.resource_monitors.fixed_heap`.
    Heap,
    /// `envoy.resource_monitors.cgroup_memory`.
    Cgroup,
}

impl Monitor {
    /// All.
    pub const ALL: [Self; 2] = [Self::Heap, Self::Cgroup];

    /// Name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Heap => "envoy.resource_monitors.fixed_heap",
            Self::Cgroup => "envoy.resource_monitors.cgroup_memory",
        }
    }
}

/// When an action begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trigger {
    /// Of which monitor.
    pub monitor: Monitor,
    /// `scaling_threshold`: above it the action begins. Of `threshold` the same as `full`.
    pub from: f64,
    /// `saturation_threshold`: there it is whole. Of `threshold` its `value`.
    pub full: f64,
}

impl Trigger {
    /// How much of the action there is at that pressure, 0 to 1.
    #[must_use]
    pub fn state(&self, pressure: f64) -> f64 {
        ramp(self.from, self.full, pressure)
    }
}

/// 0 up to `from`, 1 from `full` on.
fn ramp(from: f64, full: f64, value: f64) -> f64 {
    if value >= full {
        1.0
    } else if value > from {
        (value - from) / (full - from)
    } else {
        0.0
    }
}

impl Default for OverloadSpec {
    /// What holds without configuration: memory up to the cgroup's limit. Ending connections gives their buffers back before requests are
    /// refused, and both come before the kernel ends the process.
    fn default() -> Self {
        let at = |value| vec![Trigger { monitor: Monitor::Cgroup, from: value, full: value }];
        Self {
            interval: Duration::from_secs(1),
            heap: None,
            cgroup: Some(CgroupSpec { max: None, whole: false }),
            connections: None,
            actions: vec![(Action::DisableKeepalive, at(0.92)), (Action::RefuseRequests, at(0.95))],
        }
    }
}

/// Memory of a cgroup, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What cannot be given back at once.
    pub used: u64,
    /// What it may use, if somebody said so.
    pub limit: Option<u64>,
}

impl Memory {
    /// The share of its limit that is used; zero without one.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.limit.map_or(0.0, |limit| share_of(self.used, limit))
    }
}

/// What was found. None: nobody says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Readings {
    /// Resident memory of the process, bytes.
    pub heap: Option<u64>,
    /// Memory of the process's own cgroup.
    pub own: Option<Memory>,
    /// Of its own and those above it the one that is nearest to its limit.
    pub nearest: Option<Memory>,
    /// Nearly all files that the process may have open are.
    pub crowded: bool,
}

#[expect(clippy::cast_precision_loss, reason = "exact below 2^53 bytes")]
fn share_of(used: u64, most: u64) -> f64 {
    used as f64 / most.max(1) as f64
}

/// How much of each action there is, 0 to 1, in the order of [`Action::ALL`].
pub type Effects = [f64; 3];

impl OverloadSpec {
    /// The share of what it watches that is used; None when that is not known, or unlimited.
    #[must_use]
    pub fn pressure(&self, monitor: Monitor, readings: &Readings) -> Option<f64> {
        match monitor {
            Monitor::Heap => Some(share_of(readings.heap?, self.heap?)),
            Monitor::Cgroup if !self.cgroup?.whole => {
                let own = readings.own?;
                let is_part = readings.heap? >= own.limit? / RELEVANT;
                Some(if is_part { own.share() } else { 0.0 })
            }
            Monitor::Cgroup => {
                let max = self.cgroup?.max;
                let own = readings.own.zip(max).map(|(own, max)| share_of(own.used, max));
                let nearest = readings.nearest.filter(|memory| memory.limit.is_some());
                own.into_iter().chain(nearest.map(|memory| memory.share())).reduce(f64::max)
            }
        }
    }

    /// What is to be given up: of an action the most that one of its triggers wants. The last files are for the admin page and the
    /// control plane, whatever is configured.
    #[must_use]
    pub fn effects(&self, readings: &Readings) -> Effects {
        let state = |trigger: &Trigger| {
            self.pressure(trigger.monitor, readings).map_or(0.0, |pressure| trigger.state(pressure))
        };
        let of = |action| {
            let triggers = self.actions.iter().filter(|(own, _)| *own == action).flat_map(|(_, list)| list);
            let least = if readings.crowded && action == Action::StopAccepting { 1.0 } else { 0.0 };
            triggers.map(state).fold(least, f64::max)
        };
        Action::ALL.map(of)
    }
}

/// A share of an action in the word that workers see: this is all of it.
const ALL: u32 = 255;

fn part_of(share: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 8 bits")]
    let part = (share.clamp(0.0, 1.0) * f64::from(ALL)).ceil() as u32;
    part
}

const fn is_taken(part: u32, random: u8) -> bool {
    part == ALL || (random as u32) < part
}

/// What is given up now. One word, which the control runtime writes and workers read; zero is the rule.
#[derive(Debug, Default)]
pub struct Overload {
    spec: OverloadSpec,
    word: AtomicU32,
    /// Somebody found that files run out.
    crowd: Notify,
    connections: AtomicU64,
    lags: Mutex<Vec<Arc<Lag>>>,
}

impl Overload {
    /// Nothing is given up yet.
    #[must_use]
    pub fn new(spec: OverloadSpec) -> Self {
        Self { spec, ..Self::default() }
    }

    /// What is watched.
    #[must_use]
    pub const fn spec(&self) -> &OverloadSpec {
        &self.spec
    }

    /// From now on.
    pub fn set(&self, effects: &Effects) {
        let place = |word, (i, share): (usize, &f64)| word | part_of(*share) << (8 * i);
        self.word.store(effects.iter().enumerate().fold(0, place), Ordering::Relaxed);
    }

    /// A worker found that files run out: nothing is accepted until somebody has looked.
    pub fn files_run_out(&self) {
        let all = ALL << (8 * Action::StopAccepting as u32);
        if self.word.fetch_or(all, Ordering::Relaxed) & all != all {
            self.crowd.notify_one();
        }
    }

    /// Returns when a worker found that files run out.
    pub async fn crowded(&self) {
        self.crowd.notified().await;
    }

    /// Nothing is given up: the rule, and one load.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        self.word.load(Ordering::Relaxed) == 0
    }

    /// How much of an action there is, 0 to 1.
    #[must_use]
    pub fn share(&self, action: Action) -> f64 {
        f64::from(self.part(action)) / f64::from(ALL)
    }

    /// Whether all of an action is taken.
    #[must_use]
    pub fn is_full(&self, action: Action) -> bool {
        self.part(action) == ALL
    }

    /// Whether an action is taken by whoever drew `random`.
    #[must_use]
    pub fn takes(&self, action: Action, random: u8) -> bool {
        is_taken(self.part(action), random)
    }

    fn part(&self, action: Action) -> u32 {
        self.word.load(Ordering::Relaxed) >> (8 * action as u32) & ALL
    }

    /// Counts a downstream connection where they are limited; None: it is one too many. Exact, on all workers together.
    pub fn try_connect(self: &Arc<Self>) -> Option<Connected> {
        let Some(most) = self.spec.connections else { return Some(Connected(None)) };
        if self.connections.fetch_add(1, Ordering::Relaxed) >= most {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Connected(Some(Arc::clone(self))))
    }

    /// The lag of one more worker.
    #[must_use]
    pub fn worker(&self) -> Arc<Lag> {
        let lag = Arc::default();
        self.lags().push(Arc::clone(&lag));
        lag
    }

    /// How late each worker was last.
    #[must_use]
    pub fn late(&self) -> Vec<Duration> {
        self.lags().iter().map(|lag| Duration::from_micros(lag.last.load(Ordering::Relaxed))).collect()
    }

    fn lags(&self) -> MutexGuard<'_, Vec<Arc<Lag>>> {
        self.lags.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that counts until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Connected(Option<Arc<Overload>>);

impl Drop for Connected {
    fn drop(&mut self) {
        if let Some(overload) = &self.0 {
            overload.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A worker that is later than this refuses some requests, seconds: what it takes now waits for as long.
const LATE: f64 = 1.0;
/// And one that is so late all of them.
const TOO_LATE: f64 = 3.0;

/// How late a worker comes to what is due: its requests wait for a CPU. Written by the worker alone.
#[derive(Debug, Default)]
pub struct Lag {
    /// Microseconds.
    last: AtomicU64,
    part: AtomicU32,
}

impl Lag {
    /// The worker came so late to something. Once is a pause of the machine, or one long step; twice in succession is overload.
    pub fn note(&self, late: Duration) {
        let micros = u64::try_from(late.as_micros()).unwrap_or(u64::MAX);
        let before = Duration::from_micros(self.last.swap(micros, Ordering::Relaxed));
        let lag = late.min(before).as_secs_f64();
        self.part.store(part_of(ramp(LATE, TOO_LATE, lag)), Ordering::Relaxed);
    }

    /// The worker keeps up.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        self.part.load(Ordering::Relaxed) == 0
    }

    /// Whether a request that drew `random` is refused.
    #[must_use]
    pub fn refuses(&self, random: u8) -> bool {
        is_taken(self.part.load(Ordering::Relaxed), random)
    }
}

#[cfg(test)]
mod tests;
