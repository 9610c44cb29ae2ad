//! Shutting down without losing a request.
//!
//! One [`Drain`] for the process; every worker holds a [`Watch`] on it. The phases, in their order:
//!
//! 1. [`Phase::Serving`].
//! 2. [`Phase::Draining`]: readiness fails, so that clients stop coming. Listeners still accept, because clients are
//!    told late; HTTP/1 answers carry `Connection: close`, HTTP/2 connections get GOAWAY, each at the peer's pace.
//! 3. [`Phase::Closed`], after [`Plan::accept`], or once nothing was open for a second: listeners are closed, what is open goes on.
//! 4. [`Phase::Forced`], at [`Plan::deadline`] or by a second signal: what is still open is closed with its reason.
//!
//! The process ends as soon as nothing is open any more after listeners were closed, at the deadline at the latest. A connection is open
//! from the moment it is accepted, and a listener until it has served whom the kernel had let in.

use std::rc::Rc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// How often open connections are counted while draining.
const POLL: Duration = Duration::from_millis(20);
/// A process that has had nothing open for this long while draining closes its listeners early.
const QUIET: Duration = Duration::from_secs(1);

/// Where the process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Normal work.
    Serving,
    /// Peers are asked to go; new connections are still served.
    Draining,
    /// Listeners are closed.
    Closed,
    /// Everything is to be closed now.
    Forced,
}

/// How long draining takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// How long listeners still accept after draining began.
    pub accept: Duration,
    /// When everything is closed, counted from the beginning of draining.
    pub deadline: Duration,
}

impl Default for Plan {
    /// 5 s (Istio's MINIMUM_DRAIN_DURATION) and 45 s (Istio's drainDuration).
    fn default() -> Self {
        Self { accept: Duration::from_secs(5), deadline: Duration::from_secs(45) }
    }
}

/// How draining ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was open any more.
    Complete,
    /// The deadline came, or somebody asked for an immediate end, while these were open.
    Forced {
        /// Connections.
        connections: u64,
        /// Requests and streams.
        streams: u64,
    },
}

/// Begins and runs draining. A clone is the same drain.
#[derive(Debug, Clone)]
pub struct Drain(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// For those who wait.
    phase: watch::Sender<Phase>,
    /// The same, for those who ask: requests do, and a watch has a lock.
    now: AtomicU8,
    workers: Mutex<Vec<Arc<Open>>>,
}

/// What one worker has open. Only this worker writes it, with plain loads and stores.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Open {
    /// Loops that accept.
    accepting: AtomicU64,
    connections: AtomicU64,
    streams: AtomicU64,
}

/// What is counted.
#[derive(Debug, Clone, Copy)]
enum What {
    Accepting,
    Connection,
    Stream,
}

/// Follows the phase; every task may have one.
#[derive(Debug, Clone)]
pub struct Watch {
    shared: Arc<Shared>,
    phase: watch::Receiver<Phase>,
}

/// Counts what one worker has open. A clone is the same counters; it stays on its worker.
#[derive(Debug, Clone)]
pub struct OpenCounts(Rc<Worker>);

#[derive(Debug)]
struct Worker {
    open: Arc<Open>,
}

/// Something is open until this is dropped. It stays on its worker.
#[derive(Debug)]
#[must_use = "counted as closed as soon as it is dropped"]
pub struct OpenGuard {
    counts: OpenCounts,
    what: What,
}

impl Default for Drain {
    fn default() -> Self {
        let phase = watch::Sender::new(Phase::Serving);
        Self(Arc::new(Shared { phase, now: AtomicU8::new(Phase::Serving as u8), workers: Mutex::default() }))
    }
}

impl Drain {
    /// A drain of a process that serves.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins draining; [`Self::run`] does the rest. Without effect when it has begun.
    pub fn start(&self) {
        self.advance(Phase::Draining);
    }

    /// Ends everything now.
    pub fn force(&self) {
        self.advance(Phase::Forced);
    }

    /// The phase now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.0.phase()
    }

    /// Follows the phase.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch { shared: Arc::clone(&self.0), phase: self.0.phase.subscribe() }
    }

    /// Counters for one worker; to be made on the worker.
    #[must_use]
    pub fn counts(&self) -> OpenCounts {
        let open = Arc::<Open>::default();
        self.0.workers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&open));
        OpenCounts(Rc::new(Worker { open }))
    }

    /// Open connections and streams of all workers.
    #[must_use]
    pub fn open(&self) -> (u64, u64) {
        let workers = self.0.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.iter().fold((0, 0), |(connections, streams), open| {
            let now = (open.connections.load(Ordering::Acquire), open.streams.load(Ordering::Acquire));
            (connections + now.0, streams + now.1)
        })
    }

    /// Whether nobody accepts any more.
    fn deaf(&self) -> bool {
        let workers = self.0.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.iter().all(|open| open.accepting.load(Ordering::Acquire) == 0)
    }

    /// Waits until draining begins, then takes the process through the phases.
    pub async fn run(&self, plan: Plan) -> Outcome {
        let mut watch = self.watch();
        watch.reached(Phase::Draining).await;
        let begin = Instant::now();
        let accept = plan.accept.min(plan.deadline);
        tokio::select! {
            () = sleep_until(begin + accept) => self.advance(Phase::Closed),
            () = self.quiet() => self.advance(Phase::Closed),
            () = watch.reached(Phase::Closed) => {}
        }
        let deadline = begin + plan.deadline;
        while Instant::now() < deadline && self.phase() < Phase::Forced {
            // In this order: what a listener accepts last is open before it is deaf.
            if self.deaf() && self.open() == (0, 0) {
                return Outcome::Complete;
            }
            tokio::select! {
                () = sleep_until((Instant::now() + POLL).min(deadline)) => {}
                () = watch.reached(Phase::Forced) => {}
            }
        }
        self.advance(Phase::Forced);
        match self.open() {
            (0, 0) => Outcome::Complete,
            (connections, streams) => Outcome::Forced { connections, streams },
        }
    }

    /// Returns when nothing was open for [`QUIET`]: nobody comes any more.
    async fn quiet(&self) {
        let mut since = Instant::now();
        while since.elapsed() < QUIET {
            tokio::time::sleep(POLL).await;
            if self.open() != (0, 0) {
                since = Instant::now();
            }
        }
    }

    /// Phases only go forward.
    fn advance(&self, to: Phase) {
        self.0.phase.send_if_modified(|phase| {
            let forward = *phase < to;
            if forward {
                *phase = to;
                // Under the lock of the watch: the two are never set in a different order.
                self.0.now.store(to as u8, Ordering::Release);
            }
            forward
        });
    }
}

impl Shared {
    /// One load: for the request path.
    fn phase(&self) -> Phase {
        match self.now.load(Ordering::Acquire) {
            0 => Phase::Serving,
            1 => Phase::Draining,
            2 => Phase::Closed,
            _ => Phase::Forced,
        }
    }
}

impl Watch {
    /// The phase now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.shared.phase()
    }

    /// Whether peers are to be asked to go.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.phase() >= Phase::Draining
    }

    /// Waits until `phase` or a later one.
    pub async fn reached(&mut self, phase: Phase) {
        if self.phase.wait_for(|now| *now >= phase).await.is_err() {
            // The sender lives as long as this watch.
            std::future::pending::<()>().await;
        }
    }
}

impl OpenCounts {
    /// Somebody accepts connections.
    pub fn accepting(&self) -> OpenGuard {
        self.guard(What::Accepting)
    }

    /// A connection is open.
    pub fn connection(&self) -> OpenGuard {
        self.guard(What::Connection)
    }

    /// A request or stream is open.
    pub fn stream(&self) -> OpenGuard {
        self.guard(What::Stream)
    }

    /// What this worker has open: connections, streams.
    #[must_use]
    pub fn open(&self) -> (u64, u64) {
        (self.0.open.connections.load(Ordering::Relaxed), self.0.open.streams.load(Ordering::Relaxed))
    }

    fn guard(&self, what: What) -> OpenGuard {
        let cell = self.cell(what);
        cell.store(cell.load(Ordering::Relaxed) + 1, Ordering::Release);
        OpenGuard { counts: self.clone(), what }
    }

    fn cell(&self, what: What) -> &AtomicU64 {
        match what {
            What::Accepting => &self.0.open.accepting,
            What::Connection => &self.0.open.connections,
            What::Stream => &self.0.open.streams,
        }
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        let cell = self.counts.cell(self.what);
        cell.store(cell.load(Ordering::Relaxed).saturating_sub(1), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan { accept: Duration::from_secs(5), deadline: Duration::from_secs(45) };

    #[tokio::test(start_paused = true)]
    async fn ends_when_nothing_is_open_after_the_listeners_closed() {
        let drain = Drain::new();
        let counts = drain.counts();
        let other = drain.counts();
        let (connection, stream) = (counts.connection(), other.stream());
        let mut watch = drain.watch();
        assert!(!watch.is_draining());
        drain.start();
        assert!(watch.is_draining());
        let begin = Instant::now();
        let (outcome, ()) = tokio::join!(drain.run(PLAN), async {
            watch.reached(Phase::Closed).await;
            assert_eq!(begin.elapsed(), PLAN.accept);
            assert_eq!(drain.open(), (1, 1));
            drop(stream);
            tokio::time::sleep(Duration::from_secs(7)).await;
            drop(connection);
        });
        assert_eq!(outcome, Outcome::Complete);
        assert!(begin.elapsed() <= Duration::from_secs(12) + POLL);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_listeners_that_still_accept() {
        let drain = Drain::new();
        let counts = drain.counts();
        let accepting = counts.accepting();
        drain.start();
        let mut watch = drain.watch();
        let begin = Instant::now();
        let (outcome, ()) = tokio::join!(drain.run(PLAN), async {
            watch.reached(Phase::Closed).await;
            // The worker hears of it later, and finds one in the queue of the kernel.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let last = counts.connection();
            drop(accepting);
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop(last);
        });
        assert_eq!(outcome, Outcome::Complete);
        assert!(begin.elapsed() >= QUIET + Duration::from_millis(3100), "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_it() {
        let drain = Drain::new();
        let counts = drain.counts();
        let _open = (counts.connection(), counts.stream(), counts.stream());
        drain.start();
        let begin = Instant::now();
        assert_eq!(drain.run(PLAN).await, Outcome::Forced { connections: 1, streams: 2 });
        assert_eq!(begin.elapsed(), PLAN.deadline);
        assert_eq!(drain.watch().phase(), Phase::Forced);
        assert_eq!(counts.open(), (1, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn force_ends_it_at_once_in_every_phase() {
        for wait in [0, 1, 10] {
            let drain = Drain::new();
            let counts = drain.counts();
            let _open = counts.connection();
            let begin = Instant::now();
            drain.start();
            let wait = Duration::from_secs(wait);
            let (outcome, ()) = tokio::join!(drain.run(PLAN), async {
                tokio::time::sleep(wait).await;
                drain.force();
                drain.start();
            });
            assert_eq!(outcome, Outcome::Forced { connections: 1, streams: 0 });
            assert!(begin.elapsed() <= wait + POLL, "{:?}", begin.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_process_still_accepts_for_a_second() {
        let drain = Drain::new();
        drain.start();
        let begin = Instant::now();
        assert_eq!(drain.run(PLAN).await, Outcome::Complete);
        assert_eq!(begin.elapsed(), QUIET);
    }
}
