//! Draining as the connections of one worker see it: a flag they read, and a wake-up when it is raised.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use foldhash::HashMap;
use tokio::time::Instant;

use crate::drain::{OpenCounts, OpenGuard};

/// How long whoever connects may take to begin.
const FIRST_WORD: Duration = Duration::from_secs(1);

/// The worker's side.
#[derive(Debug, Clone)]
pub struct LocalDrain {
    state: Rc<State>,
    counts: OpenCounts,
    /// How long a connection may take to finish.
    pub time: Duration,
}

#[derive(Debug, Default)]
struct State {
    since: Cell<Option<Instant>>,
    next: Cell<u64>,
    waiting: RefCell<HashMap<u64, Option<Waker>>>,
}

impl LocalDrain {
    /// Counts what is open into `counts`; a connection may take `time` to finish.
    #[must_use]
    pub fn new(counts: OpenCounts, time: Duration) -> Self {
        Self { state: Rc::default(), counts, time }
    }

    /// A connection that wants to know.
    #[must_use]
    pub fn register(&self, now: Instant) -> Registration {
        let id = self.state.next.get();
        self.state.next.set(id + 1);
        self.state.waiting.borrow_mut().insert(id, None);
        Registration {
            state: Rc::clone(&self.state),
            retired: Cell::new(None),
            leaving: Cell::new(None),
            begun: now,
            id,
            registered: Cell::new(false),
            _open: self.counts.connection(),
        }
    }

    /// Somebody accepts connections: the process does not end before.
    pub fn accepting(&self) -> OpenGuard {
        self.counts.accepting()
    }

    /// Tells every connection to finish what it does and take nothing new.
    pub fn start(&self, now: Instant) {
        if self.state.since.get().is_some() {
            return;
        }
        self.state.since.set(Some(now));
        let wakers: Vec<Waker> =
            self.state.waiting.borrow_mut().values_mut().filter_map(Option::take).collect();
        for waker in wakers {
            waker.wake();
        }
    }

    /// Whether draining has started.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.state.since.get().is_some()
    }
}

/// The connection's side. Also counts the connection as open.
#[derive(Debug)]
pub struct Registration {
    state: Rc<State>,
    retired: Cell<Option<Instant>>,
    leaving: Cell<Option<Instant>>,
    begun: Instant,
    id: u64,
    registered: Cell<bool>,
    _open: OpenGuard,
}

impl Registration {
    /// This connection alone begins to drain; without effect when it has begun. To be called in its task, which then looks.
    pub fn retire(&self, now: Instant) {
        self.retired.set(self.retired.get().or(Some(now)));
    }

    /// This connection alone ends after what it does, however long that takes. To be called in its task.
    pub fn wind_down(&self, now: Instant) {
        self.leaving.set(self.leaving.get().or(Some(now)));
    }

    /// Whether this connection was told to.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.retired.get().is_some()
    }

    /// Whether draining has started.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.since().is_some()
    }

    fn since(&self) -> Option<Instant> {
        self.retired.get().or_else(|| self.leaving.get()).or_else(|| self.state.since.get())
    }

    /// When a connection is given up that says nothing while it drains: `window` after that began, at `since`, but a client that has
    /// only just come gets a second for its first word.
    #[must_use]
    pub fn patience(&self, since: Instant, window: Duration) -> Instant {
        (since + window).max(self.begun + FIRST_WORD)
    }

    /// Since when we drain. None: not yet; the task is woken when it starts. A connection stays in one task, so its
    /// waker is kept once.
    pub fn poll_draining(&self, cx: &Context<'_>) -> Option<Instant> {
        let since = self.since();
        if since.is_none() && !self.registered.replace(true) {
            self.state.waiting.borrow_mut().insert(self.id, Some(cx.waker().clone()));
        }
        since
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.state.waiting.borrow_mut().remove(&self.id);
    }
}
