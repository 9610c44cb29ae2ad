//! What the workers, the pacer and the run share: the requests that are due, and the counts.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use rustix::fd::OwnedFd;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Latency, Mode, Report};

/// Latencies above this are recorded as this: one minute, in microseconds.
const HIGHEST_US: u64 = 60_000_000;

/// Most requests that may be due and unsent; those beyond it are counted at once.
const BACKLOG: usize = 1 << 16;

pub(super) struct Shared {
    closed_loop: bool,
    due: RefCell<VecDeque<Instant>>,
    wake: Notify,
    start: Cell<Option<Instant>>,
    end: Cell<Option<Instant>>,
    in_flight: Cell<u64>,
    ok: Cell<u64>,
    bytes: Cell<u64>,
    errors: Cell<u64>,
    unsent: Cell<u64>,
    first_error: RefCell<Option<String>>,
    latency: RefCell<Histogram<u64>>,
}

fn add(cell: &Cell<u64>, n: u64) {
    cell.set(cell.get() + n);
}

impl Shared {
    pub(super) fn new(mode: Mode) -> anyhow::Result<Self> {
        let latency = Histogram::new_with_bounds(1, HIGHEST_US, 3).context("histogram bounds")?;
        Ok(Self {
            closed_loop: mode == Mode::Closed,
            due: RefCell::default(),
            wake: Notify::new(),
            start: Cell::new(None),
            end: Cell::new(None),
            in_flight: Cell::new(0),
            ok: Cell::new(0),
            bytes: Cell::new(0),
            errors: Cell::new(0),
            unsent: Cell::new(0),
            first_error: RefCell::default(),
            latency: RefCell::new(latency),
        })
    }

    pub(super) fn stopped(&self) -> bool {
        self.end.get().is_some()
    }

    /// The moment at which the next request is due, when it is time to send it; `None` after the window, when everything
    /// that was due in it is sent.
    pub(super) async fn next(&self) -> Option<Instant> {
        loop {
            if self.closed_loop {
                return (!self.stopped()).then(Instant::now);
            }
            let due = self.due.borrow_mut().pop_front();
            if due.is_some() || self.stopped() {
                return due;
            }
            self.wake.notified().await;
        }
    }

    /// Queues a request that is due.
    fn push(&self, due: Instant) {
        let mut queue = self.due.borrow_mut();
        if queue.len() < BACKLOG {
            queue.push_back(due);
            self.wake.notify_one();
        } else if self.in_window(due) {
            add(&self.unsent, 1);
        }
    }

    fn in_window(&self, due: Instant) -> bool {
        self.start.get().is_some_and(|start| due >= start) && self.end.get().is_none_or(|end| due < end)
    }

    pub(super) fn sent(&self) {
        add(&self.in_flight, 1);
    }

    /// Records the outcome of the request that was due at `due`: a count if it ends inside the window, a latency if it
    /// was due inside it.
    pub(super) fn done(&self, due: Instant, outcome: anyhow::Result<u64>) {
        self.in_flight.set(self.in_flight.get().saturating_sub(1));
        let open = self.start.get().is_some() && !self.stopped();
        match outcome {
            Ok(length) => {
                if open {
                    add(&self.ok, 1);
                    add(&self.bytes, length);
                }
                if self.in_window(due) {
                    self.record(Instant::now() - due);
                }
            }
            Err(error) if open || self.in_window(due) => {
                add(&self.errors, 1);
                self.first_error.borrow_mut().get_or_insert_with(|| format!("{error:#}"));
            }
            Err(_) => {}
        }
    }

    fn record(&self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(HIGHEST_US);
        self.latency.borrow_mut().saturating_record(us.clamp(1, HIGHEST_US));
    }

    /// Opens the window now.
    pub(super) fn open_window(&self) -> Instant {
        let now = Instant::now();
        self.start.set(Some(now));
        now
    }

    /// Closes the window now: nothing more becomes due.
    pub(super) fn close_window(&self) -> Instant {
        let now = Instant::now();
        self.end.set(Some(now));
        self.wake.notify_waiters();
        now
    }

    /// Counts what is in flight as errors, because it had its time, and what is still queued as unsent, with the time
    /// that it has waited as its latency, which is the least that it would have been.
    pub(super) fn abandon(&self) {
        let now = Instant::now();
        for due in std::mem::take(&mut *self.due.borrow_mut()) {
            if self.in_window(due) {
                add(&self.unsent, 1);
                self.record(now - due);
            }
        }
        let left = self.in_flight.take();
        if left > 0 {
            add(&self.errors, left);
            self.first_error
                .borrow_mut()
                .get_or_insert_with(|| format!("{left} requests were never answered"));
        }
    }

    pub(super) fn report(&self, start: Instant, end: Instant) -> Report {
        let latency = self.latency.borrow();
        let seconds = (end - start).as_secs_f64();
        let ok = self.ok.get();
        Report {
            ok,
            errors: self.errors.get(),
            unsent: self.unsent.get(),
            first_error: self.first_error.borrow().clone(),
            seconds,
            rate: ok as f64 / seconds,
            bytes: self.bytes.get(),
            latency: Latency {
                p50_us: latency.value_at_quantile(0.5),
                p90_us: latency.value_at_quantile(0.9),
                p99_us: latency.value_at_quantile(0.99),
                p999_us: latency.value_at_quantile(0.999),
                max_us: latency.max(),
            },
        }
    }
}

/// A periodic timer of the kernel's high resolution, and its interval; tokio's own has a grain of one millisecond.
pub(super) fn timer(rate: f64, burst: u32) -> anyhow::Result<(AsyncFd<OwnedFd>, Duration)> {
    if !(rate.is_finite() && (0.001..=1_000_000.0).contains(&rate)) {
        bail!("the rate must be between 0.001 and 1,000,000 requests per second");
    }
    if burst == 0 {
        bail!("at least one request must be due at a time");
    }
    let interval = Duration::from_secs_f64(f64::from(burst) / rate);
    let spec = Timespec {
        tv_sec: i64::try_from(interval.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(interval.subsec_nanos()),
    };
    let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)
        .context("timerfd_create")?;
    timerfd_settime(&fd, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: spec, it_value: spec })
        .context("timerfd_settime")?;
    #[expect(
        deprecated,
        reason = "the successor is unsafe for the sake of other types; an OwnedFd stays open"
    )]
    let timer = AsyncFd::new(fd).context("timer")?;
    Ok((timer, interval))
}

/// Queues `burst` requests at every expiry of `timer`, until the window closes.
pub(super) async fn pace(shared: Rc<Shared>, timer: AsyncFd<OwnedFd>, interval: Duration, burst: u32) {
    let mut due = Instant::now();
    while !shared.stopped() {
        let Ok(mut ready) = timer.readable().await else { return };
        let mut count = [0; 8];
        let Ok(read) = ready.try_io(|fd| Ok(rustix::io::read(fd, &mut count)?)) else { continue };
        if read.is_err() {
            return;
        }
        for _ in 0..u64::from_ne_bytes(count) {
            due += interval;
            (0..burst).for_each(|_| shared.push(due));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "local")]
    async fn a_stall_is_seen_by_every_request_that_was_due_while_it_lasted() {
        let shared = Shared::new(Mode::Rate { rate: 100.0, burst: 1 }).unwrap();
        let start = shared.open_window();
        // Ten requests were due 100 ms to 10 ms ago, and one worker answers them all at once, now.
        for i in 0..10_u32 {
            shared.push(start + Duration::from_millis(10) * i);
        }
        while Instant::now() < start + Duration::from_millis(100) {
            tokio::task::yield_now().await;
        }
        for _ in 0..10 {
            let due = shared.next().await.unwrap();
            shared.sent();
            shared.done(due, Ok(1));
        }
        let end = shared.close_window();
        let report = shared.report(start, end);
        assert_eq!((report.ok, report.errors, report.unsent), (10, 0, 0));
        assert!(report.latency.max_us >= 100_000, "{report:?}");
        assert!(report.latency.p50_us >= 50_000, "{report:?}");
    }

    #[tokio::test(flavor = "local")]
    async fn what_could_not_be_sent_is_counted_and_has_a_latency() {
        let shared = Shared::new(Mode::Rate { rate: 100.0, burst: 1 }).unwrap();
        let start = shared.open_window();
        shared.push(start);
        while Instant::now() < start + Duration::from_millis(5) {
            tokio::task::yield_now().await;
        }
        let end = shared.close_window();
        shared.abandon();
        let report = shared.report(start, end);
        assert_eq!((report.ok, report.unsent), (0, 1));
        assert!(report.latency.max_us >= 5_000, "{report:?}");
        assert!(shared.next().await.is_none());
    }

    #[test]
    fn rates_without_meaning_are_refused() {
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
            assert!(timer(rate, 1).is_err(), "{rate}");
        }
        assert!(timer(1.0, 0).is_err());
    }
}
