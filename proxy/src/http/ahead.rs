//! A request body of which the beginning was read before it is forwarded.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;

use super::body::Body;
use crate::error::Reason;

/// Smaller pieces are put together: what is held is then not much more than what was sent.
const SMALL: usize = 4096;

/// What was read ahead, then the rest.
#[derive(Debug)]
pub struct AheadBody {
    pieces: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    failed: Option<Reason>,
    rest: Body,
}

impl AheadBody {
    /// A body of which one frame was taken from in front of `rest`.
    #[must_use]
    pub fn resume(frame: Result<Frame<Bytes>, Reason>, rest: Body) -> Self {
        let mut body = Self { pieces: VecDeque::new(), trailers: None, failed: None, rest };
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => body.pieces.push_back(data),
            Ok(Err(frame)) => {
                body.trailers = frame.into_trailers().ok();
                body.rest = Body::Empty;
            }
            Err(reason) => {
                body.failed = Some(reason);
                body.rest = Body::Empty;
            }
        }
        body
    }

    /// Reads `body` until there is more than `limit` bytes of it, or its end.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub async fn read(mut body: Body, limit: usize) -> Result<Self, Reason> {
        let mut pieces = VecDeque::new();
        let mut small = BytesMut::new();
        let (mut length, mut trailers) = (0, None);
        while length <= limit && trailers.is_none() && !body.is_end() {
            let Some(frame) = poll_fn(|cx| body.poll_next(cx)).await else {
                body = Body::Empty;
                break;
            };
            match frame?.into_data() {
                Ok(data) => {
                    length += data.len();
                    let is_small = data.len() < SMALL;
                    if is_small {
                        small.extend_from_slice(&data);
                    }
                    if !small.is_empty() && (!is_small || small.len() >= SMALL) {
                        pieces.push_back(small.split().freeze());
                    }
                    if !is_small {
                        pieces.push_back(data);
                    }
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        if !small.is_empty() {
            pieces.push_back(small.freeze());
        }
        if trailers.is_some() {
            body = Body::Empty;
        }
        Ok(Self { pieces, trailers, failed: None, rest: body })
    }

    /// Bytes of the whole body, when it was read to its end and has no trailers.
    #[must_use]
    pub fn plain_len(&self) -> Option<u64> {
        self.exact_len().filter(|_| self.rest.is_end() && self.trailers.is_none())
    }

    /// Whether the body is longer than `limit`.
    #[must_use]
    pub fn is_over(&self, limit: usize) -> bool {
        self.pieces.iter().map(Bytes::len).sum::<usize>() > limit || !self.rest.is_end()
    }

    /// The first `limit` bytes of what was read, and whether the body has more.
    #[must_use]
    pub fn first(&self, limit: usize) -> (Bytes, bool) {
        let length: usize = self.pieces.iter().map(Bytes::len).sum();
        let more = self.is_over(limit);
        if let [only] = self.pieces.as_slices().0 {
            return (only.slice(..only.len().min(limit)), more);
        }
        let mut all = BytesMut::with_capacity(length.min(limit));
        for piece in &self.pieces {
            all.extend_from_slice(&piece[..piece.len().min(limit - all.len())]);
        }
        (all.freeze(), more)
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        if let Some(piece) = self.pieces.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match self.trailers.take() {
            Some(trailers) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            None if self.failed.is_some() => Poll::Ready(self.failed.take().map(Err)),
            None if self.rest.is_end() => Poll::Ready(None),
            None => self.rest.poll_next(cx),
        }
    }

    pub(super) fn is_end(&self) -> bool {
        self.pieces.is_empty() && self.trailers.is_none() && self.failed.is_none() && self.rest.is_end()
    }

    pub(super) fn exact_len(&self) -> Option<u64> {
        if self.failed.is_some() {
            return None;
        }
        let read: usize = self.pieces.iter().map(Bytes::len).sum();
        let rest = if self.rest.is_end() { 0 } else { self.rest.exact_len()? };
        Some(rest + read as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(body: AheadBody) -> Vec<u8> {
        let mut body = Body::Ahead(Box::new(body));
        let mut out = Vec::new();
        while let Some(frame) = poll_fn(|cx| body.poll_next(cx)).await {
            out.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
        assert!(body.is_end());
        out
    }

    /// A megabyte of single bytes is not a million pieces.
    #[tokio::test]
    async fn small_pieces_are_put_together() {
        let text: Vec<u8> = (0..10_000_u32).map(|i| i as u8).collect();
        let mut many = AheadBody { pieces: VecDeque::new(), trailers: None, failed: None, rest: Body::Empty };
        many.pieces.extend(text.chunks(1).map(Bytes::copy_from_slice));
        let ahead = AheadBody::read(Body::Ahead(Box::new(many)), 1 << 20).await.unwrap();
        assert_eq!(ahead.pieces.len(), 3);
        assert_eq!(ahead.first(1 << 20), (Bytes::from(text.clone()), false));
        assert_eq!(all(ahead).await, text);
    }

    #[tokio::test]
    async fn what_was_read_comes_first_and_nothing_is_lost() {
        let text = Bytes::from_static(b"hello world");
        for limit in [1, 5, 10, 11, 100] {
            let ahead = AheadBody::read(Body::Full(text.clone()), limit).await.unwrap();
            assert_eq!(ahead.first(limit), (text.slice(..limit.min(11)), limit < 11), "{limit}");
            assert_eq!(ahead.exact_len(), Some(11));
            assert_eq!(all(ahead).await, text);
        }
    }
}
