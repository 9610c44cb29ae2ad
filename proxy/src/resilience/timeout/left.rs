//! What is left of a request's time: absolute in here, relative on the wire.

use std::cell::Cell;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use super::{GRPC_TIMEOUT, Limits, grpc_timeout, non_zero};

/// Less than this is not worth a changed header.
const GRAIN: Duration = Duration::from_millis(1);

/// The time of one request, shared by what watches it and what spends it. A clone has its own queue: it is for a try beside others.
#[derive(Debug, Clone)]
pub struct TimeLeft {
    limits: Limits,
    began: Instant,
    stream: Option<Instant>,
    received: Cell<Option<Instant>>,
    queue: Cell<Queue>,
}

/// Where a try waits for a connection.
#[derive(Debug, Clone, Copy)]
enum Queue {
    Since(Instant),
    Left(Duration),
}

impl TimeLeft {
    /// The time of a request whose head came at `began`, and whose stream ends at `stream` at the latest.
    #[must_use]
    pub const fn new(limits: Limits, began: Instant, stream: Option<Instant>) -> Self {
        Self {
            limits,
            began,
            stream,
            received: Cell::new(None),
            queue: Cell::new(Queue::Left(Duration::ZERO)),
        }
    }

    /// When the stream ends at the latest.
    #[must_use]
    pub const fn stream(&self) -> Option<Instant> {
        self.stream
    }

    /// The limits.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The request was received completely: from now on its time runs. The moment when it is up.
    pub fn start(&self, now: Instant) -> Option<Instant> {
        self.received.set(Some(now));
        self.limits.request_deadline(now)
    }

    /// Whether the request's time runs.
    #[must_use]
    pub const fn runs(&self) -> bool {
        self.received.get().is_some()
    }

    /// When the time is up. None: never, as far as that is known.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        let request = self.received.get().and_then(|at| self.limits.request_deadline(at));
        match (request, self.stream) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Whether something that takes `wait` from `now` would end in time. While the request's time does not run, because nobody reads the
    /// rest of it meanwhile, that is at least not to take as long as the whole.
    #[must_use]
    pub fn allows(&self, wait: Duration, now: Instant) -> bool {
        if !self.runs() && self.limits.request.is_some_and(|whole| wait >= whole) {
            return false;
        }
        match (self.until(), now.checked_add(wait)) {
            (Some(until), Some(end)) => end < until,
            (until, _) => until.is_none(),
        }
    }

    /// A try begins to wait for a connection.
    pub fn queued(&self, now: Instant) {
        self.queue.set(Queue::Since(now));
    }

    /// It has one.
    pub fn connected(&self, now: Instant) {
        if let Queue::Since(began) = self.queue.get() {
            self.queue.set(Queue::Left(now.saturating_duration_since(began)));
        }
    }

    /// How long the last try waited for its connection. Zero when it has none.
    #[must_use]
    pub const fn waited(&self) -> Duration {
        match self.queue.get() {
            Queue::Since(_) => Duration::ZERO,
            Queue::Left(waited) => waited,
        }
    }

    /// How long a try may wait for a connection while nobody reads the request, so that its time does not run.
    #[must_use]
    pub fn queue_limit(&self) -> Option<Duration> {
        self.limits.request.filter(|_| matches!(self.queue.get(), Queue::Since(_)) && !self.runs())
    }

    /// Tells an upstream what is left `now`; see [`Limits::announce`]. What is left of a client's `grpc-timeout` is told, too.
    pub fn announce(&self, headers: &mut HeaderMap, now: Instant, suppress_expected: bool) {
        let elapsed = self.received.get().map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.limits.announce(headers, elapsed, suppress_expected);
        let Some(asked) = self.limits.asked_grpc.and_then(non_zero).filter(|_| !self.limits.rewrite_grpc)
        else {
            return;
        };
        let asked_left = asked.saturating_sub(now.saturating_duration_since(self.began));
        let left = self.until().map_or(asked_left, |end| asked_left.min(end.saturating_duration_since(now)));
        if asked.saturating_sub(left) >= GRAIN {
            headers.insert(&GRPC_TIMEOUT, grpc_timeout(left.max(GRAIN)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::EXPECTED_TIMEOUT;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn limits(request: u64) -> Limits {
        Limits { request: Some(ms(request)), ..Limits::default() }
    }

    #[test]
    fn the_time_runs_from_the_end_of_the_request_and_the_stream_ends_it_too() {
        let began = Instant::now();
        let time = TimeLeft::new(limits(100), began, Some(began + ms(500)));
        assert_eq!(time.until(), Some(began + ms(500)));
        assert_eq!(time.start(began + ms(50)), Some(began + ms(150)));
        assert_eq!(time.until(), Some(began + ms(150)));
        assert!(time.allows(ms(49), began + ms(100)) && !time.allows(ms(50), began + ms(100)));
        assert!(!time.allows(Duration::MAX, began));
        assert!(TimeLeft::new(Limits::default(), began, None).allows(Duration::MAX, began));
    }

    #[test]
    fn the_queue_has_a_limit_until_the_request_is_complete() {
        let now = Instant::now();
        let time = TimeLeft::new(limits(100), now, None);
        assert_eq!(time.queue_limit(), None);
        time.queued(now);
        assert_eq!(time.queue_limit(), Some(ms(100)));
        time.start(now);
        assert_eq!(time.queue_limit(), None, "then the deadline holds");
        assert_eq!(time.waited(), Duration::ZERO);
        time.connected(now + ms(7));
        time.connected(now + ms(9));
        assert_eq!(time.waited(), ms(7));
    }

    #[test]
    fn an_upstream_is_told_what_is_left_at_the_moment() {
        let now = Instant::now();
        let asked = Limits { asked_grpc: Some(ms(1000)), ..limits(15_000) };
        let time = TimeLeft::new(asked, now, None);
        time.start(now);
        let mut headers = HeaderMap::new();
        headers.insert(&GRPC_TIMEOUT, "1S".parse().unwrap());
        time.announce(&mut headers, now + Duration::from_micros(900), false);
        assert_eq!(
            (headers[&GRPC_TIMEOUT].as_bytes(), headers[&EXPECTED_TIMEOUT].as_bytes()),
            (&b"1S"[..], &b"14999"[..])
        );
        time.announce(&mut headers, now + ms(300), false);
        assert_eq!(
            (headers[&GRPC_TIMEOUT].as_bytes(), headers[&EXPECTED_TIMEOUT].as_bytes()),
            (&b"700m"[..], &b"14700"[..])
        );
        time.announce(&mut headers, now + ms(2000), true);
        assert_eq!(headers[&GRPC_TIMEOUT], "1m");

        let cut = TimeLeft::new(Limits { asked_grpc: Some(ms(1000)), ..limits(200) }, now, None);
        cut.start(now);
        cut.announce(&mut headers, now, true);
        assert_eq!(headers[&GRPC_TIMEOUT], "200m", "the route's timeout is shorter");
    }
}
