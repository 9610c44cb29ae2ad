//! A request body that can be sent again: recorded as it streams, up to a bound, after which the request cannot be
//! retried any more (features.md B9; linkerd2-proxy's replay body is the model of the behaviour).

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use super::body::Body;
use crate::error::Reason;

/// Pieces are put together up to this size: a body of single bytes takes not much more than its length.
const SMALL: usize = 1024;

/// What was recorded, shared by the attempts of one request.
#[derive(Debug)]
struct Recording {
    rest: Body,
    pieces: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    bytes: usize,
    limit: usize,
    ended: bool,
    failed: Option<Reason>,
    /// Someone reads the live end.
    overflowed: bool,
}

impl Recording {
    /// Whoever reads the live end has read all that is here: pieces may grow.
    fn keep(&mut self, data: &Bytes) {
        match self.pieces.last_mut() {
            Some(last) if last.len() + data.len() <= SMALL => {
                *last = [last.as_ref(), data.as_ref()].concat().into();
            }
            _ => self.pieces.push(data.clone()),
        }
    }
}

/// Gives out the body of one request, once for each attempt.
#[derive(Debug, Clone)]
pub struct Replay(Rc<RefCell<Recording>>);

impl Replay {
    /// Records at most `limit` bytes of `body`.
    #[must_use]
    pub fn new(body: Body, limit: usize) -> Self {
        let overflowed = body.exact_len().is_some_and(|n| n > limit as u64);
        Self(Rc::new(RefCell::new(Recording {
            rest: body,
            pieces: Vec::new(),
            trailers: None,
            bytes: 0,
            limit,
            ended: false,
            failed: None,
            overflowed,
        })))
    }

    /// The body from its start.
    #[must_use]
    pub fn body(&self) -> Body {
        Body::Replay(Box::new(ReplayBody { recording: Rc::clone(&self.0), at: 0, trailers_sent: false }))
    }

    /// Whether another attempt would get the whole body. An earlier one must not read any more: its upload ends with its answer.
    #[must_use]
    pub fn can_replay(&self) -> bool {
        let recording = self.0.borrow();
        // Of a body that is too long nothing may have been read yet.
        recording.failed.is_none() && (!recording.overflowed || recording.bytes == 0)
    }

    /// Whether all of it was read and is kept: several attempts may send it at the same time.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let recording = self.0.borrow();
        recording.failed.is_none() && !recording.overflowed && (recording.ended || recording.rest.is_end())
    }
}

/// One attempt's view of the body.
#[derive(Debug)]
pub struct ReplayBody {
    recording: Rc<RefCell<Recording>>,
    at: usize,
    trailers_sent: bool,
}

impl ReplayBody {
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        let mut recording = self.recording.borrow_mut();
        let recording = &mut *recording;
        if let Some(piece) = recording.pieces.get(self.at) {
            self.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        if recording.ended {
            return Poll::Ready(match (&recording.trailers, self.trailers_sent) {
                (Some(trailers), false) => {
                    self.trailers_sent = true;
                    Some(Ok(Frame::trailers(trailers.clone())))
                }
                _ => None,
            });
        }
        if let Some(reason) = recording.failed {
            return Poll::Ready(Some(Err(reason)));
        }
        match ready!(recording.rest.poll_next(cx)) {
            None => {
                recording.ended = true;
                Poll::Ready(None)
            }
            Some(Err(reason)) => {
                recording.failed = Some(reason);
                Poll::Ready(Some(Err(reason)))
            }
            Some(Ok(frame)) => {
                Poll::Ready(Some(Ok(self_record(recording, frame, &mut self.at, &mut self.trailers_sent))))
            }
        }
    }

    pub(super) fn is_end(&self) -> bool {
        let recording = self.recording.borrow();
        self.at >= recording.pieces.len()
            && (recording.ended || recording.rest.is_end())
            && (recording.trailers.is_none() || self.trailers_sent)
    }

    pub(super) fn exact_len(&self) -> Option<u64> {
        let recording = self.recording.borrow();
        let recorded: usize = recording.pieces[self.at..].iter().map(Bytes::len).sum();
        recording.rest.exact_len().map(|n| n + recorded as u64)
    }
}

fn self_record(
    recording: &mut Recording,
    frame: Frame<Bytes>,
    at: &mut usize,
    trailers_sent: &mut bool,
) -> Frame<Bytes> {
    match frame.into_data() {
        Ok(data) => {
            recording.bytes += data.len();
            recording.overflowed |= recording.bytes > recording.limit;
            if recording.overflowed {
                // No further attempt will read it.
                recording.pieces.clear();
                *at = 0;
            } else {
                recording.keep(&data);
                *at = recording.pieces.len();
            }
            Frame::data(data)
        }
        Err(frame) => {
            let trailers = frame.into_trailers().unwrap_or_default();
            recording.trailers = Some(trailers.clone());
            recording.ended = true;
            *trailers_sent = true;
            Frame::trailers(trailers)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::ahead::AheadBody;
    use std::future::poll_fn;

    async fn read(mut body: Body) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some(frame) = poll_fn(|cx| body.poll_next(cx)).await {
            if let Ok(data) = frame.unwrap().into_data() {
                out.extend_from_slice(&data);
            }
        }
        out
    }

    #[tokio::test]
    async fn a_second_attempt_gets_the_same_bytes() {
        let replay = Replay::new(Body::Full(Bytes::from_static(b"hello")), 10);
        assert_eq!(replay.body().exact_len(), Some(5));
        assert_eq!(read(replay.body()).await, b"hello");
        assert!(replay.can_replay());
        assert_eq!(read(replay.body()).await, b"hello");
    }

    /// One attempt reads a part, the next one all of it from its start.
    #[tokio::test]
    async fn small_pieces_are_put_together_and_an_attempt_may_break_off() {
        let text: Vec<u8> = (0..3_000_u32).map(|i| i as u8).collect();
        let mut rest = Body::Empty;
        for piece in text.chunks(10).rev() {
            let frame = Ok(Frame::data(Bytes::copy_from_slice(piece)));
            rest = Body::Ahead(Box::new(AheadBody::resume(frame, rest)));
        }
        let replay = Replay::new(rest, 10_000);
        let mut first = replay.body();
        for piece in text[..1500].chunks(10) {
            let frame = poll_fn(|cx| first.poll_next(cx)).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), piece);
        }
        drop(first);
        assert_eq!(read(replay.body()).await, text);
        assert_eq!(replay.0.borrow().pieces.len(), 3);
    }

    #[tokio::test]
    async fn it_is_complete_when_all_of_it_is_kept() {
        let replay = Replay::new(Body::Full(Bytes::from_static(b"hello")), 10);
        assert!(!replay.is_complete());
        let mut first = replay.body();
        poll_fn(|cx| first.poll_next(cx)).await.unwrap().unwrap();
        assert!(replay.is_complete());
        assert_eq!(read(replay.body()).await, b"hello", "beside the first one");
        assert!(poll_fn(|cx| first.poll_next(cx)).await.is_none());
        let long = Replay::new(Body::Full(Bytes::from_static(b"hello")), 4);
        read(long.body()).await;
        assert!(!long.is_complete());
    }

    #[tokio::test]
    async fn over_the_limit_it_streams_once() {
        let replay = Replay::new(Body::Full(Bytes::from_static(b"hello")), 4);
        assert!(replay.can_replay(), "nothing of it was read");
        assert_eq!(read(replay.body()).await, b"hello");
        assert!(!replay.can_replay());
    }
}
