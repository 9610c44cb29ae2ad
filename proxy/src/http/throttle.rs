//! The body of an answer that comes slowly, as fault injection wants it.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use tokio::time::Instant;

use super::body::Body;
use crate::error::Reason;
use crate::worker::timer::Timer;

/// Slices a second, as in Envoy.
const SLICES: u32 = 16;

/// A body of which a slice comes every 1/16 s. What was not sent of a slice's time is not made up for.
#[derive(Debug)]
pub struct ThrottledBody {
    body: Body,
    slice: usize,
    /// Read, and not yet delivered.
    waiting: Bytes,
    left: usize,
    next: Instant,
    timer: Option<Timer>,
}

impl ThrottledBody {
    /// `body` at `rate` bytes a second.
    #[must_use]
    pub fn new(body: Body, rate: u64, now: Instant) -> Self {
        let slice = usize::try_from(rate.div_ceil(u64::from(SLICES))).unwrap_or(usize::MAX).max(1);
        Self { body, slice, waiting: Bytes::new(), left: slice, next: now + pause(), timer: None }
    }

    pub(super) const fn inner_mut(&mut self) -> &mut Body {
        &mut self.body
    }

    /// Whether nothing more will come.
    #[must_use]
    pub fn is_end(&self) -> bool {
        self.waiting.is_empty() && self.body.is_end()
    }

    /// Bytes still to come, when that is known.
    #[must_use]
    pub fn exact_len(&self) -> Option<u64> {
        self.body.exact_len().map(|rest| rest + self.waiting.len() as u64)
    }

    /// See [`Body::poll_next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        if self.waiting.is_empty() {
            match ready!(self.body.poll_next(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.waiting = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end => return Poll::Ready(end),
            }
        }
        if self.left == 0 {
            let next = self.next;
            ready!(self.timer.get_or_insert_with(|| Timer::at(next)).poll(cx));
            self.timer = None;
            self.left = self.slice;
            self.next = Instant::now() + pause();
        }
        let data = self.waiting.split_to(self.waiting.len().min(self.left));
        self.left -= data.len();
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}

fn pause() -> Duration {
    Duration::from_secs(1) / SLICES
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn a_body_takes_as_long_as_its_rate_says() {
        let text = Bytes::from(vec![b'x'; 4096]);
        let start = Instant::now();
        let mut body = ThrottledBody::new(Body::Full(text.clone()), 1024, start);
        assert_eq!(body.exact_len(), Some(4096));
        let mut out = Vec::new();
        while let Some(frame) = poll_fn(|cx| body.poll_next(cx)).await {
            out.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
        assert_eq!(out, text);
        // 64 slices, of which the first leaves at once.
        let taken = start.elapsed().as_millis();
        assert!((3900..4100).contains(&taken), "{taken}");
    }
}
