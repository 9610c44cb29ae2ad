//! The body of an answer under the time limits of its request: a route's timeout and idle timeout go on after the head.

use std::cell::OnceCell;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use tokio::time::Instant;

use super::body::{Body, BodyProgress};
use super::context::Deadline;
use crate::error::Reason;
use crate::upstream::outcome::Unsettled;
use crate::worker::timer::Timer;

/// See the module.
#[derive(Debug)]
pub struct GuardedBody {
    body: Body,
    limits: TimeLimits,
    trailers: Option<Trailers>,
}

/// What ends an answer before its end.
#[derive(Debug, Default)]
pub struct TimeLimits {
    /// The time is up.
    pub deadline: Deadline,
    /// Nothing came for too long, and what that is called.
    pub idle: Option<(Idle, Reason)>,
    /// The answer overtook its request, whose end the route's timeout counts from.
    pub from_request: Option<(Rc<BodyProgress>, Duration)>,
    /// The request, which may still move while the answer rests, and what of it had come when it was last looked at.
    pub request: Option<(Rc<BodyProgress>, u64)>,
}

impl TimeLimits {
    /// Whether there is any.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.idle.is_some() || self.deadline.at().is_some() || self.from_request.is_some()
    }
}

/// Who wants the trailers of an answer.
#[derive(Debug)]
pub struct Trailers {
    /// The record of the request.
    pub cell: Rc<OnceCell<HeaderMap>>,
    /// Those who are told how the attempt ended.
    pub unsettled: Option<Box<Unsettled>>,
}

impl Trailers {
    fn came(&mut self, trailers: &HeaderMap) {
        self.cell.get_or_init(|| trailers.clone());
        if let Some(mut unsettled) = self.unsettled.take() {
            unsettled.trailers(trailers);
        }
    }

    fn goes_on(&mut self) {
        if let Some(unsettled) = &mut self.unsettled {
            unsettled.goes_on();
        }
    }

    fn failed(&mut self, reason: Reason) {
        if let Some(mut unsettled) = self.unsettled.take() {
            unsettled.failed(reason);
        }
    }
}

impl GuardedBody {
    /// `body` within `limits`. Its trailers are told to `trailers`.
    #[must_use]
    pub const fn new(body: Body, limits: TimeLimits, trailers: Option<Trailers>) -> Self {
        Self { body, limits, trailers }
    }

    /// The body inside.
    #[must_use]
    pub const fn inner(&self) -> &Body {
        &self.body
    }

    /// See [`Body::poll_next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        match self.body.poll_next(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some((idle, _)) = &mut self.limits.idle {
                    idle.moved();
                }
                if let Some(wanted) = &mut self.trailers {
                    match frame.trailers_ref() {
                        Some(trailers) => wanted.came(trailers),
                        // Some servers send their status behind a frame that says nothing.
                        None if frame.data_ref().is_some_and(|data| !data.is_empty()) => wanted.goes_on(),
                        None => {}
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(end) => {
                if let Some(Err(reason)) = &end {
                    self.failed(*reason);
                }
                Poll::Ready(end)
            }
            Poll::Pending => {
                if let Poll::Ready(reason) = self.poll_limits(cx) {
                    return Poll::Ready(Some(Err(self.failed(reason))));
                }
                let TimeLimits { idle, request, .. } = &mut self.limits;
                let Some((idle, reason)) = idle else { return Poll::Pending };
                if let Some((progress, seen)) = request
                    && std::mem::replace(seen, progress.bytes.get()) != progress.bytes.get()
                {
                    idle.moved();
                }
                let reason = *reason;
                idle.poll(cx).map(|()| Some(Err(self.failed(reason))))
            }
        }
    }

    /// See [`Body::poll_limits`]. A pause of the endpoint is none of them: while the client is slow nobody asks whether there is one.
    pub fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        let TimeLimits { deadline, from_request, .. } = &mut self.limits;
        if let Some((progress, limit)) = from_request {
            if let Body::Early(early) = &mut self.body {
                early.watch_upload(cx);
            }
            if progress.done.get() {
                if let Some(at) = Instant::now().checked_add(*limit) {
                    deadline.limit(at, Reason::UpstreamTimeout);
                }
                *from_request = None;
            }
        }
        // Who is asked by the server learns nothing about the endpoint: it is the client that takes so long, or we ourselves.
        match deadline.poll(cx) {
            // What only the client still has to take has no route timeout, as in Envoy.
            Poll::Ready(Reason::UpstreamTimeout) if self.body.is_end() => Poll::Pending,
            other => other,
        }
    }

    fn failed(&mut self, reason: Reason) -> Reason {
        if let Some(wanted) = &mut self.trailers {
            wanted.failed(reason);
        }
        reason
    }
}

/// A pause that must not last too long.
#[derive(Debug)]
pub struct Idle {
    limit: Duration,
    timer: Option<Timer>,
}

impl Idle {
    /// Its first pause begins with the first poll.
    #[must_use]
    pub const fn new(limit: Duration) -> Self {
        Self { limit, timer: None }
    }

    /// The pause is over.
    pub fn moved(&mut self) {
        if let Some(timer) = &mut self.timer {
            timer.reset(Instant::now() + self.limit);
        }
    }

    /// Ready when the pause was too long.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        self.timer.get_or_insert_with(|| Timer::after(limit)).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn a_pause_counts_from_the_last_movement() {
        let mut idle = Idle::new(Duration::from_secs(4));
        let start = Instant::now();
        let early = tokio::time::timeout(Duration::from_secs(3), poll_fn(|cx| idle.poll(cx))).await;
        assert!(early.is_err());
        idle.moved();
        poll_fn(|cx| idle.poll(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_there_is_delivered_whatever_the_time() {
        let mut deadline = Deadline::default();
        deadline.limit(Instant::now(), Reason::UpstreamTimeout);
        let limits = TimeLimits { deadline, ..TimeLimits::default() };
        let mut body = GuardedBody::new(Body::Full(Bytes::from_static(b"x")), limits, None);
        let frame = poll_fn(|cx| body.poll_next(cx)).await;
        assert!(frame.is_some_and(|f| f.is_ok()));
        assert!(poll_fn(|cx| body.poll_next(cx)).await.is_none());
    }
}
