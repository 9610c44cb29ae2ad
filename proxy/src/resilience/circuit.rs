//! The circuit breaker with the states CLOSED, OPEN and HALF_OPEN, as Resilience4j defines it: per destination (cluster) and per route.
//!
//! [`cell::Cell`] is the state and [`window::Window`] the calls of late, both shared by all workers and older than the configuration; what
//! they decide by comes from the snapshot with every call.

pub mod cell;
pub mod last_good;
pub mod registry;
pub mod window;

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use self::cell::{Cell, Limits, Permission, Phase, Transition};
use self::last_good::LastGoodSpec;
use self::window::{Call, Length, Totals, Window};
use crate::config::names::ClusterId;
use crate::upstream::outcome::{Ended, Outcome, Verdict, http_status_of_grpc};

/// `remora.circuit_breaker` of a cluster or route.
#[derive(Debug, Clone, PartialEq)]
pub struct CircuitSpec {
    /// `sliding_window_type` and `sliding_window_size`.
    pub length: Length,
    /// Thresholds and times.
    pub limits: Limits,
    /// `slow_call_duration_threshold`.
    pub slow: Duration,
    /// `automatic_transition_from_open_to_half_open`.
    pub automatic: bool,
    /// `failure_statuses`: what counts as failure besides what never came. A gRPC status counts as the HTTP status that means the same.
    pub failures: Box<[std::ops::RangeInclusive<u16>]>,
    /// `fallback`, when there is no last good answer.
    pub fallback: Option<Fallback>,
    /// `fallback.last_good`.
    pub last_good: Option<LastGoodSpec>,
}

impl CircuitSpec {
    /// What an attempt says about the destination. None: nothing.
    #[must_use]
    pub fn judge(&self, outcome: &Outcome) -> Option<Call> {
        let failed = match outcome.ended {
            Ended::Answered { status, grpc } => {
                let status = grpc.map_or(status.as_u16(), http_status_of_grpc);
                self.failures.iter().any(|range| range.contains(&status))
            }
            _ => match outcome.verdict() {
                Verdict::Neither => return None,
                Verdict::Good => false,
                Verdict::ServerError(_) | Verdict::LocalOrigin(_) => true,
            },
        };
        Some(Call { failed, slow: outcome.took > self.slow })
    }
}

/// What a request gets in the place of a refusal, besides the last good answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Fallback {
    /// A fixed answer.
    Answer(Arc<FixedAnswer>),
    /// Another destination.
    Cluster(ClusterId),
}

/// `fallback.answer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedAnswer {
    /// `status`.
    pub status: StatusCode,
    /// `headers`.
    pub headers: HeaderMap,
    /// `body`.
    pub body: Bytes,
}

/// What an operator has decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Override {
    /// Nothing.
    None,
    /// FORCED_OPEN: no call passes.
    ForcedOpen,
    /// DISABLED: all calls pass, and none is counted.
    Disabled,
    /// METRICS_ONLY: all calls pass and are counted, and nothing follows.
    MetricsOnly,
}

impl Override {
    const ALL: [Self; 4] = [Self::None, Self::ForcedOpen, Self::Disabled, Self::MetricsOnly];
}

/// What outlives edits.
#[derive(Debug)]
struct Shared {
    cell: Cell,
    window: Window,
    operator: AtomicU8,
    refused: AtomicU64,
    last_good: AtomicU64,
    calls: [AtomicU64; 3],
    transitions: [AtomicU64; 3],
}

impl Shared {
    fn new(cell: Cell, length: Length, operator: Override) -> Self {
        Self {
            cell,
            window: Window::new(length),
            operator: AtomicU8::new(operator as u8),
            refused: AtomicU64::new(0),
            last_good: AtomicU64::new(0),
            calls: Default::default(),
            transitions: Default::default(),
        }
    }

    fn operator(&self) -> Override {
        let at = usize::from(self.operator.load(Ordering::Relaxed));
        Override::ALL.get(at).copied().unwrap_or(Override::None)
    }
}

/// A circuit breaker in force.
#[derive(Debug)]
pub struct Circuit {
    /// What it is the breaker of: `cluster/NAME` or `route/TABLE/VIRTUAL HOST/NAME`.
    pub name: Arc<str>,
    /// What the configuration says.
    pub spec: CircuitSpec,
    /// [`CircuitSpec::last_good`], the same as long as it does not change: workers keep answers for this one.
    pub last_good: Option<Arc<LastGoodSpec>>,
    shared: Arc<Shared>,
}

/// Why a call is refused.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// By whom.
    pub circuit: Arc<Circuit>,
    /// When to come again, when that is known.
    pub retry_after: Option<Duration>,
}

/// What is shown of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// The state in Resilience4j's words.
    pub state: &'static str,
    /// Calls of the window.
    pub totals: Totals,
    /// Failed and slow calls in percent; None below the minimum of calls.
    pub rates: Option<(f64, f64)>,
    /// Calls that were refused.
    pub refused: u64,
    /// Refused calls that the last good answer was given to.
    pub last_good: u64,
    /// Calls that succeeded, failed, were slow.
    pub calls: [u64; 3],
    /// How often it closed, opened, became half open.
    pub transitions: [u64; 3],
}

impl Circuit {
    /// The circuit breaker `name`; it goes on where `old`, of the same name, is.
    #[must_use]
    pub fn new(name: Arc<str>, spec: CircuitSpec, old: Option<&Self>) -> Arc<Self> {
        LazyLock::force(&START);
        let shared = match old {
            Some(old) if old.shared.window.length() == spec.length => Arc::clone(&old.shared),
            Some(old) => Arc::new(Shared::new(old.shared.cell.copy(), spec.length, old.shared.operator())),
            None => Arc::new(Shared::new(Cell::default(), spec.length, Override::None)),
        };
        let known = old.and_then(|old| old.last_good.as_ref());
        let last_good = spec.last_good.map(|new| match known {
            Some(known) if **known == new => Arc::clone(known),
            _ => Arc::new(new),
        });
        Arc::new(Self { name, spec, last_good, shared })
    }

    /// May a call pass?
    ///
    /// # Errors
    /// It may not.
    pub fn try_acquire(self: &Arc<Self>, now: Instant) -> Result<Pass, Refusal> {
        let now = millis(now);
        let permission = match self.shared.operator() {
            Override::Disabled => None,
            Override::ForcedOpen => return Err(self.refuse(None)),
            Override::MetricsOnly => Some(None),
            Override::None => {
                let (asked, change) = self.shared.cell.try_acquire(&self.spec.limits, now);
                self.tell(change);
                match asked {
                    Ok(permission) => Some(Some(permission)),
                    Err(refused) => return Err(self.refuse(refused.retry_after.map(Duration::from_millis))),
                }
            }
        };
        Ok(Pass { circuit: Arc::clone(self), permission })
    }

    /// A refused call is given the last good answer.
    pub fn count_last_good(&self) {
        self.shared.last_good.fetch_add(1, Ordering::Relaxed);
    }

    fn refuse(self: &Arc<Self>, retry_after: Option<Duration>) -> Refusal {
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
        Refusal { circuit: Arc::clone(self), retry_after }
    }

    fn record(&self, permission: Option<Permission>, call: Call, now: u64) {
        let kinds = [!call.failed, call.failed, call.slow];
        for (count, _) in self.shared.calls.iter().zip(kinds).filter(|(_, is)| *is) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        match permission {
            None => drop(self.shared.window.record(call, now)),
            Some(permission) => {
                let by = (&self.spec.limits, &self.shared.window);
                self.tell(self.shared.cell.record(permission, call, by, now));
            }
        }
    }

    fn tell(&self, change: Option<Transition>) {
        let Some(Transition { from, to }) = change else { return };
        self.shared.transitions[to as usize].fetch_add(1, Ordering::Relaxed);
        let (name, from, to_word) = (&*self.name, word(from), word(to));
        if to == Phase::Open {
            tracing::warn!(circuit_breaker = name, from, to = to_word, "circuit breaker");
        } else {
            tracing::info!(circuit_breaker = name, from, to = to_word, "circuit breaker");
        }
    }

    /// Does what an operator says: a state that holds until another is set. CLOSED gives it back to itself, closed.
    ///
    /// # Errors
    /// There is no such state to be set.
    pub fn set_state(&self, state: &str) -> Result<(), &'static str> {
        let operator = match state {
            "CLOSED" => {
                self.shared.cell.close(&self.shared.window);
                Override::None
            }
            "FORCED_OPEN" => Override::ForcedOpen,
            "DISABLED" => Override::Disabled,
            "METRICS_ONLY" => Override::MetricsOnly,
            _ => return Err("state is one of CLOSED, FORCED_OPEN, DISABLED, METRICS_ONLY"),
        };
        self.shared.operator.store(operator as u8, Ordering::Relaxed);
        tracing::warn!(circuit_breaker = &*self.name, state, "circuit breaker: set by an operator");
        Ok(())
    }

    /// What is shown of it.
    #[must_use]
    pub fn view(&self, now: Instant) -> View {
        let now = millis(now);
        let (phase, opened) = self.shared.cell.phase();
        let waited = opened.is_some_and(|at| now >= at.saturating_add(self.spec.limits.wait_open));
        let state = match self.shared.operator() {
            Override::ForcedOpen => "FORCED_OPEN",
            Override::Disabled => "DISABLED",
            Override::MetricsOnly => "METRICS_ONLY",
            Override::None if waited && self.spec.automatic => word(Phase::HalfOpen),
            Override::None => word(phase),
        };
        let totals = self.shared.window.totals(now);
        let percent = |n: u32| 100.0 * f64::from(n) / f64::from(totals.calls.max(1));
        let enough = totals.calls >= self.spec.limits.minimum_calls;
        let load = |cells: &[AtomicU64; 3]| cells.each_ref().map(|cell| cell.load(Ordering::Relaxed));
        View {
            state,
            totals,
            rates: enough.then(|| (percent(totals.failed), percent(totals.slow))),
            refused: self.shared.refused.load(Ordering::Relaxed),
            last_good: self.shared.last_good.load(Ordering::Relaxed),
            calls: load(&self.shared.calls),
            transitions: load(&self.shared.transitions),
        }
    }
}

const fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Closed => "CLOSED",
        Phase::Open => "OPEN",
        Phase::HalfOpen => "HALF_OPEN",
    }
}

/// When the clock that all circuit breakers share began: before any of them.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds on that clock.
fn millis(now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(*START).as_millis()).unwrap_or(u64::MAX)
}

/// A call that was let through. Dropped without an outcome, it gives its place back.
#[derive(Debug)]
#[must_use]
pub struct Pass {
    circuit: Arc<Circuit>,
    /// None: nothing is counted. Of `Some(None)`, nothing follows.
    permission: Option<Option<Permission>>,
}

impl Pass {
    /// The call ended.
    pub fn settle(mut self, outcome: &Outcome, now: Instant) {
        if let Some(call) = self.circuit.spec.judge(outcome)
            && let Some(permission) = self.permission.take()
        {
            self.circuit.record(permission, call, millis(now));
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(Some(permission)) = self.permission {
            self.circuit.shared.cell.release(permission);
        }
    }
}

#[cfg(test)]
#[path = "circuit/tests.rs"]
mod tests;
