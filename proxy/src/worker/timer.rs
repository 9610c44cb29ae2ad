//! Time limits that mostly never come due.
//!
//! Every request carries limits (route timeout, stream idle, connection idle) and nearly every one ends long before them. A
//! timer of the runtime costs a registration and a removal; and when it is the earliest of the moment, a write to the
//! runtime's eventfd and a poll of nothing. So a limit that is far away waits in a list of this thread. A [`Ticker`]
//! looks at the list now and then, and wakes the owners of limits that come near: these become timers of the runtime, which
//! fire on time. On a thread without a ticker every limit is a timer of the runtime.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::time::{Instant, Sleep};

/// How often the list is looked at, while there is something on it.
const TICK: Duration = Duration::from_millis(500);
/// A limit is near when it may come due before the tick after the next.
const NEAR: Duration = Duration::from_millis(1_500);

thread_local! {
    static FAR: RefCell<FarLimits> = const { RefCell::new(FarLimits { list: Slab::new(), ticker: TickerState::Absent }) };
}

#[derive(Debug)]
struct FarLimits {
    list: Slab<FarLimit>,
    ticker: TickerState,
}

#[derive(Debug)]
struct FarLimit {
    at: Instant,
    /// None once its owner was woken because it came near.
    owner: Option<Waker>,
}

#[derive(Debug)]
enum TickerState {
    /// No ticker on this thread.
    Absent,
    /// The list was empty: whoever fills it starts the ticker.
    Resting(Waker),
    Running,
}

impl FarLimits {
    fn add(&mut self, at: Instant, owner: Waker) -> usize {
        if let TickerState::Resting(ticker) = std::mem::replace(&mut self.ticker, TickerState::Running) {
            ticker.wake();
        }
        self.list.insert(FarLimit { at, owner: Some(owner) })
    }

    /// Wakes who owns a limit that comes near. False: the list is empty.
    fn tick(&mut self, now: Instant) -> bool {
        for (_, limit) in &mut self.list {
            if limit.at < now + NEAR
                && let Some(owner) = limit.owner.take()
            {
                owner.wake();
            }
        }
        !self.list.is_empty()
    }
}

/// Looks after the far limits of its thread until it is dropped.
#[derive(Debug)]
pub struct Ticker(());

impl Ticker {
    /// The ticker of this thread.
    #[must_use]
    pub fn install() -> Self {
        FAR.with_borrow_mut(|far| far.ticker = TickerState::Running);
        Self(())
    }

    /// Runs for ever, and tells `late` after each look how late it was: like all that the thread had to do.
    pub async fn run(self, late: impl Fn(Duration)) {
        loop {
            poll_fn(|cx| {
                FAR.with_borrow_mut(|far| {
                    if !far.list.is_empty() {
                        far.ticker = TickerState::Running;
                        return Poll::Ready(());
                    }
                    far.ticker = TickerState::Resting(cx.waker().clone());
                    Poll::Pending
                })
            })
            .await;
            let due = Instant::now() + TICK;
            tokio::time::sleep_until(due).await;
            let busy = FAR.with_borrow_mut(|far| far.tick(Instant::now()));
            // Nobody is there for whom it would be late, and whoever comes next is not to be told of the past.
            late(if busy { due.elapsed() } else { Duration::ZERO });
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        // Nobody would wake the owners of far limits any more: they are woken now, and go on with the runtime's timers.
        FAR.with_borrow_mut(|far| {
            far.ticker = TickerState::Absent;
            far.list.iter_mut().filter_map(|(_, limit)| limit.owner.take()).for_each(Waker::wake);
        });
    }
}

/// A moment that is waited for, but seldom reached.
#[derive(Debug)]
pub struct Timer {
    at: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    New,
    Far(usize),
    Near(Pin<Box<Sleep>>),
}

impl Timer {
    /// Ready at `at`. Costs nothing until it is polled.
    #[must_use]
    pub const fn at(at: Instant) -> Self {
        Self { at, state: State::New }
    }

    /// Ready after `limit`.
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        Self::at(Instant::now() + limit)
    }

    /// When it is ready.
    #[must_use]
    pub const fn deadline(&self) -> Instant {
        self.at
    }

    /// Moves it. The task that waits must poll it again.
    pub fn reset(&mut self, at: Instant) {
        self.at = at;
        match &mut self.state {
            State::New => {}
            State::Near(sleep) => sleep.as_mut().reset(at),
            // Later: the list has to know only when the limit comes near.
            State::Far(key) => {
                let key = *key;
                let known = FAR.with_borrow_mut(|far| match far.list.get_mut(key) {
                    Some(limit) if limit.owner.is_some() && limit.at <= at => {
                        limit.at = at;
                        true
                    }
                    _ => false,
                });
                if !known {
                    self.leave();
                }
            }
        }
    }

    /// Ready when its time has come.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let State::Far(key) = self.state {
            let waits =
                FAR.with_borrow_mut(|far| match far.list.get_mut(key).and_then(|l| l.owner.as_mut()) {
                    Some(owner) => {
                        owner.clone_from(cx.waker());
                        true
                    }
                    None => false,
                });
            if waits {
                return Poll::Pending;
            }
            self.leave();
        }
        if matches!(self.state, State::New) {
            if let Some(key) = self.wait_afar(cx) {
                self.state = State::Far(key);
                return Poll::Pending;
            }
            self.state = State::Near(Box::pin(tokio::time::sleep_until(self.at)));
        }
        match &mut self.state {
            State::Near(sleep) => sleep.as_mut().poll(cx),
            _ => Poll::Pending,
        }
    }

    /// A place on the list, when the limit is far and the list is looked after.
    fn wait_afar(&self, cx: &Context<'_>) -> Option<usize> {
        FAR.with_borrow_mut(|far| {
            let looked_after = !matches!(far.ticker, TickerState::Absent);
            (looked_after && self.at >= Instant::now() + NEAR).then(|| far.add(self.at, cx.waker().clone()))
        })
    }

    fn leave(&mut self) {
        if let State::Far(key) = std::mem::replace(&mut self.state, State::New) {
            FAR.with_borrow_mut(|far| far.list.remove(key));
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting() -> usize {
        FAR.with_borrow(|far| far.list.len())
    }

    async fn wait(timer: &mut Timer) -> Duration {
        let start = Instant::now();
        poll_fn(|cx| timer.poll(cx)).await;
        start.elapsed()
    }

    fn exact(waited: Duration, wanted: Duration) {
        assert!(
            waited >= wanted && waited <= wanted + Duration::from_millis(2),
            "{waited:?}, not {wanted:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn near_and_far_limits_fire_on_time_with_a_ticker_and_without() {
        let limits = [0, 1, 700, 1_499, 1_500, 1_501, 2_000, 15_000, 300_000].map(Duration::from_millis);
        for limit in limits {
            exact(wait(&mut Timer::after(limit)).await, limit);
        }
        let checks = async {
            for limit in limits {
                exact(wait(&mut Timer::after(limit)).await, limit);
            }
        };
        tokio::select! { () = Ticker::install().run(|_| {}) => {}, () = checks => {} }
        assert_eq!(waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_moved_limit_fires_at_its_new_time() {
        let seconds = Duration::from_secs;
        let checks = async {
            for (first, pause, second) in [(10, 3, 20), (20, 3, 5), (2, 1, 1), (60, 0, 1), (3, 2, 60)] {
                let mut timer = Timer::after(seconds(first));
                let early = tokio::time::timeout(seconds(pause), poll_fn(|cx| timer.poll(cx))).await;
                assert!(early.is_err());
                timer.reset(Instant::now() + seconds(second));
                exact(wait(&mut timer).await, seconds(second));
            }
        };
        tokio::select! { () = Ticker::install().run(|_| {}) => {}, () = checks => {} }
        assert_eq!(waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_is_dropped_leaves_the_list_and_an_empty_list_costs_no_ticks() {
        let checks = async {
            let mut timer = Timer::after(Duration::from_secs(60));
            let early = tokio::time::timeout(Duration::from_secs(1), poll_fn(|cx| timer.poll(cx))).await;
            assert!(early.is_err());
            assert_eq!(waiting(), 1);
            drop(timer);
            assert_eq!(waiting(), 0);
            tokio::time::sleep(TICK * 2).await;
            assert!(FAR.with_borrow(|far| matches!(far.ticker, TickerState::Resting(_))));
        };
        tokio::select! { () = Ticker::install().run(|_| {}) => {}, () = checks => {} }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tick_says_how_late_the_thread_is() {
        let seen = RefCell::new(Vec::new());
        let checks = async {
            let mut timer = Timer::after(Duration::from_secs(60));
            let mut wait =
                async |time| tokio::time::timeout(time, poll_fn(|cx| timer.poll(cx))).await.is_err();
            assert!(wait(Duration::from_millis(1_100)).await);
            exact(seen.take().into_iter().sum(), Duration::ZERO);
            // The thread does something else for three seconds, or is not let run.
            tokio::time::advance(Duration::from_secs(3)).await;
            assert!(wait(TICK / 2).await);
            let late = seen.take();
            assert_eq!(late.len(), 1, "{late:?}");
            assert!((Duration::from_millis(2_400)..Duration::from_secs(3)).contains(&late[0]), "{late:?}");
            drop(timer);
            tokio::time::advance(Duration::from_secs(3)).await;
            tokio::time::sleep(TICK).await;
            assert_eq!(seen.take(), [Duration::ZERO], "nobody is there to wait");
        };
        let note = |late| seen.borrow_mut().push(late);
        tokio::select! { () = Ticker::install().run(note) => {}, () = checks => {} }
    }

    #[tokio::test(start_paused = true)]
    async fn limits_outlive_their_ticker() {
        let mut ticker = Box::pin(Ticker::install().run(|_| {}));
        let mut timer = Timer::after(Duration::from_secs(60));
        tokio::select! {
            () = &mut ticker => {}
            () = poll_fn(|cx| timer.poll(cx)) => {}
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
        }
        drop(ticker);
        exact(wait(&mut timer).await, Duration::from_secs(58));
    }
}
