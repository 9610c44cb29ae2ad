//! Draining as the connections of one worker see it: a flag they read, and a wake-up when it is raised.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

use foldhash::HashMap;
use tokio::time::Instant;

use crate::drain::{OpenCounts, OpenGuard};

/// The worker's side.
#[derive(Debug, Clone)]
pub struct LocalDrain(Rc<State>, OpenCounts);

#[derive(Debug, Default)]
struct State {
    since: Cell<Option<Instant>>,
    next: Cell<u64>,
    waiting: RefCell<HashMap<u64, Option<Waker>>>,
}

impl LocalDrain {
    /// Counts what is open into `counts`.
    #[must_use]
    pub fn new(counts: OpenCounts) -> Self {
        Self(Rc::default(), counts)
    }

    /// A connection that wants to know.
    #[must_use]
    pub fn register(&self) -> Registration {
        let id = self.0.next.get();
        self.0.next.set(id + 1);
        self.0.waiting.borrow_mut().insert(id, None);
        Registration {
            state: Rc::clone(&self.0),
            id,
            registered: Cell::new(false),
            _open: self.1.connection(),
        }
    }

    /// Tells every connection to finish what it does and take nothing new.
    pub fn start(&self, now: Instant) {
        if self.0.since.get().is_some() {
            return;
        }
        self.0.since.set(Some(now));
        let wakers: Vec<Waker> = self.0.waiting.borrow_mut().values_mut().filter_map(Option::take).collect();
        for waker in wakers {
            waker.wake();
        }
    }

    /// Whether draining has started.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.since.get().is_some()
    }
}

/// The connection's side. Also counts the connection as open.
#[derive(Debug)]
pub struct Registration {
    state: Rc<State>,
    id: u64,
    registered: Cell<bool>,
    _open: OpenGuard,
}

impl Registration {
    /// Whether draining has started.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.state.since.get().is_some()
    }

    /// Since when we drain. None: not yet; the task is woken when it starts. A connection stays in one task, so its
    /// waker is kept once.
    pub fn poll_draining(&self, cx: &Context<'_>) -> Option<Instant> {
        let since = self.state.since.get();
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
