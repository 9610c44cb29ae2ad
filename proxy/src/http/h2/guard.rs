//! A budget for frames that make us work and move nothing (reliability.md §2.6, features.md C3).
//!
//! The h2 crate bounds resets, CONTINUATION, empty DATA and header lists; PING, SETTINGS, PRIORITY, WINDOW_UPDATE and
//! unknown frames are answered or dropped for as long as they come. This wrapper around the transport reads the nine
//! bytes in front of each frame as they pass and charges such frames to a budget that real traffic refills.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Duration, Instant};

/// Frames of no use that a connection may send at once.
const CAPACITY: u32 = 2_000;
/// Refill per second without any traffic: PINGs and SETTINGS of a well-behaved peer are far below it.
const REFILL_PER_SECOND: u32 = 50;
/// The preface that precedes the first frame (RFC 9113 §3.4).
const PREFACE: usize = 24;

/// Tells the connection's task that the budget is gone.
#[derive(Debug, Clone, Default)]
pub struct Flooded(Rc<Cell<bool>>);

impl Flooded {
    /// Whether it is.
    #[must_use]
    pub fn get(&self) -> bool {
        self.0.get()
    }
}

/// The budget and the frame reader; pure but for the clock that is passed in.
#[derive(Debug)]
pub struct Budget {
    left: u32,
    refilled: Option<Instant>,
    /// Bytes of preface or payload before the next frame header.
    skip: usize,
    header: [u8; 9],
    have: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: CAPACITY, refilled: None, skip: PREFACE, header: [0; 9], have: 0 }
    }
}

impl Budget {
    /// Looks at received bytes. False: the budget is gone.
    pub fn received(&mut self, mut bytes: &[u8], now: Instant) -> bool {
        loop {
            let n = self.skip.min(bytes.len());
            self.skip -= n;
            bytes = &bytes[n..];
            if self.skip > 0 || bytes.is_empty() {
                return true;
            }
            let n = (9 - self.have).min(bytes.len());
            self.header[self.have..self.have + n].copy_from_slice(&bytes[..n]);
            self.have += n;
            bytes = &bytes[n..];
            if self.have < 9 {
                return true;
            }
            self.have = 0;
            let length = usize::from(self.header[0]) << 16
                | usize::from(self.header[1]) << 8
                | usize::from(self.header[2]);
            self.skip = length;
            if !self.charge(self.header[3], length, now) {
                return false;
            }
        }
    }

    /// What we send is traffic the peer asked for: its WINDOW_UPDATEs are paid by it.
    pub fn sent(&mut self, bytes: usize) {
        self.refill(u32::try_from(bytes / 1024).unwrap_or(u32::MAX));
    }

    fn charge(&mut self, kind: u8, length: usize, now: Instant) -> bool {
        match kind {
            // DATA that carries something, and requests.
            0x0 if length > 64 => self.refill(1 + u32::try_from(length / 1024).unwrap_or(0)),
            0x1 => self.refill(4),
            _ if self.left > 0 => self.left -= 1,
            _ => return self.refill_by_time(now),
        }
        true
    }

    /// The clock is read only when the budget looks empty.
    fn refill_by_time(&mut self, now: Instant) -> bool {
        let since = self.refilled.replace(now);
        let Some(since) = since else { return false };
        let earned = (now - since).as_millis() * u128::from(REFILL_PER_SECOND) / 1000;
        self.refill(u32::try_from(earned).unwrap_or(u32::MAX));
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        true
    }

    fn refill(&mut self, n: u32) {
        self.left = self.left.saturating_add(n).min(CAPACITY);
    }

    /// Starts the clock of the refill.
    pub const fn opened(&mut self, now: Instant) {
        self.refilled = Some(now);
    }
}

/// The transport of a downstream HTTP/2 connection.
#[derive(Debug)]
pub struct Guard<T> {
    io: T,
    budget: Budget,
    flooded: Flooded,
}

impl<T> Guard<T> {
    /// Guards `io`; the flag is raised when its peer overdoes it.
    #[must_use]
    pub fn new(io: T) -> (Self, Flooded) {
        let flooded = Flooded::default();
        let mut budget = Budget::default();
        budget.opened(Instant::now());
        (Self { io, budget, flooded: flooded.clone() }, flooded)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Guard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.flooded.get() {
            // Nothing more is read; the connection's task sees the flag after this poll.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let new = &buf.filled()[before..];
        if !new.is_empty() && !self.budget.received(new, Instant::now()) {
            self.flooded.0.set(true);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guard<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        self.budget.sent(n);
        Poll::Ready(Ok(n))
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs))?;
        self.budget.sent(n);
        Poll::Ready(Ok(n))
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// How long a flooding peer has to take our GOAWAY.
pub const GOAWAY_GRACE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![(length >> 16) as u8, (length >> 8) as u8, length as u8, kind, 0, 0, 0, 0, 0];
        bytes.resize(9 + length, 0);
        bytes
    }

    /// How many frames of `kind` get through at once.
    fn allowed(kind: u8, length: usize) -> usize {
        let now = Instant::now();
        let mut budget = Budget::default();
        budget.opened(now);
        budget.received(&[0; PREFACE], now);
        (0..100_000).take_while(|_| budget.received(&frame(kind, length), now)).count()
    }

    #[test]
    fn useless_frames_run_out_and_useful_ones_do_not() {
        for (kind, length) in
            [(0x6, 8), (0x4, 0), (0x2, 5), (0x8, 4), (0xbe, 0), (0x0, 0), (0x0, 1), (0x3, 4)]
        {
            assert!(allowed(kind, length) <= CAPACITY as usize, "frame type {kind:#x}");
        }
        assert_eq!(allowed(0x1, 30), 100_000);
        assert_eq!(allowed(0x0, 16_384), 100_000);
    }

    #[test]
    fn window_updates_are_paid_by_what_we_send() {
        let now = Instant::now();
        let mut budget = Budget::default();
        budget.received(&[0; PREFACE], now);
        for _ in 0..100_000 {
            budget.sent(16 * 1024);
            assert!(budget.received(&frame(0x8, 4), now));
        }
    }

    proptest! {
        #[test]
        fn frames_are_counted_the_same_however_they_are_cut(cuts in proptest::collection::vec(1usize..40, 1..60)) {
            let now = Instant::now();
            let mut wire = vec![0; PREFACE];
            for length in [0, 8, 3, 100, 0, 17] {
                wire.extend(frame(0x6, length));
            }
            let mut budget = Budget::default();
            let mut rest = &wire[..];
            for cut in cuts.into_iter().chain([wire.len()]) {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                prop_assert!(budget.received(head, now));
                rest = tail;
            }
            prop_assert_eq!(budget.left, CAPACITY - 6);
        }
    }
}
