//! The stream idle timeout without a timer per request: one timer per connection looks every quarter of the timeout
//! whether a counter moved.

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::worker::timer::Timer;

/// See the module.
#[derive(Debug)]
pub struct Watchdog {
    tick: Duration,
    timer: Option<Timer>,
    seen: u64,
    still: u8,
}

impl Watchdog {
    /// Barks after `timeout` without a movement (up to a quarter later); never with None.
    #[must_use]
    pub fn new(timeout: Option<Duration>) -> Self {
        let tick = timeout.map_or(Duration::MAX, |t| t / 4);
        Self { tick, timer: timeout.map(|_| Timer::after(tick)), seen: 0, still: 0 }
    }

    /// A new stream starts: what came before does not count.
    pub const fn start(&mut self) {
        self.still = 0;
        self.seen = u64::MAX;
    }

    /// Ready when `moved` stood still for the timeout.
    pub fn poll(&mut self, cx: &mut Context<'_>, moved: impl Fn() -> u64) -> Poll<()> {
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        while timer.poll(cx).is_ready() {
            let now = moved();
            self.still = if now == self.seen { self.still + 1 } else { 0 };
            self.seen = now;
            if self.still >= 4 {
                return Poll::Ready(());
            }
            timer.reset(Instant::now() + self.tick);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn it_barks_when_nothing_moves_and_not_before() {
        let moved = Cell::new(0);
        let mut dog = Watchdog::new(Some(Duration::from_secs(8)));
        dog.start();
        let start = Instant::now();
        tokio::select! {
            () = poll_fn(|cx| dog.poll(cx, || moved.get())) => {}
            () = async { loop { tokio::time::sleep(Duration::from_secs(5)).await; if moved.get() < 3 { moved.set(moved.get() + 1) } } } => {}
        }
        let barked = start.elapsed();
        assert!(
            barked >= Duration::from_secs(15 + 8) && barked <= Duration::from_secs(15 + 11),
            "{barked:?}"
        );
    }
}
