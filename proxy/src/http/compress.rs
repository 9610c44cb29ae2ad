//! The body of an answer that is compressed on its way: piece by piece, and nothing waits longer than the body itself.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http_body::Frame;
use smallvec::smallvec;

use super::body::Body;
use super::context::RequestCtx;
use super::filters::Answering;
use super::response::Response;
use crate::error::Reason;
use crate::policy::overrides::Override;
use crate::traffic::compress::{Compressor, Encoder, choose, vary};

/// So much is gathered before it goes on.
const GATHER: usize = 16 * 1024;

/// Compresses an answer with the one of `offered` that the client wants (`accept`), if it is one to compress.
pub fn compress(offered: &[Arc<Compressor>], accept: &HeaderValue, response: &mut Response) {
    // Of an answer to HEAD the head tells.
    let told = response.head.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let length = told.or_else(|| response.body.exact_len());
    if response.upgraded.is_some() || !offered.iter().any(|one| one.fits(&response.head, length)) {
        return;
    }
    let chosen = accept.to_str().ok().and_then(|accept| choose(accept, offered));
    let chosen = chosen.filter(|one| !response.body.is_end() && one.fits(&response.head, length));
    if let Some(compressor) = chosen
        && let Ok(encoder) = Encoder::new(compressor.coding)
    {
        compressor.mark(&mut response.head.headers);
        let body = std::mem::take(&mut response.body);
        let state = State::Open(encoder, false);
        response.body = Body::Compressed(Box::new(CompressedBody { body, state }));
    }
    vary(&mut response.head.headers);
}

/// The filter will compress the answer, if the client accepts that.
pub fn offer(ctx: &mut RequestCtx, name: &Arc<str>, filter: &Arc<Compressor>, said: Option<&Override>) {
    let (enabled, remove) = match said {
        Some(Override::Disabled) => return,
        Some(Override::Compressor(remove)) => (true, remove.unwrap_or(filter.remove_accept_encoding)),
        _ => (filter.enabled, filter.remove_accept_encoding),
    };
    if !enabled {
        return;
    }
    let accept = accepted(&ctx.head.headers);
    // Of several filters the one that the client wants most compresses.
    if let Some(Answering::Compress(offered, first)) =
        ctx.answering.iter_mut().find(|step| matches!(step, Answering::Compress(..)))
    {
        offered.push(Arc::clone(filter));
        if first.is_empty() {
            *first = accept;
        }
    } else {
        ctx.answering.push(Answering::Compress(smallvec![Arc::clone(filter)], accept));
    }
    if remove && ctx.head.headers.contains_key(header::ACCEPT_ENCODING) {
        ctx.note_stage(name);
        ctx.head.headers.remove(header::ACCEPT_ENCODING);
    }
}

/// What a client accepts; empty when it does not say.
fn accepted(headers: &http::HeaderMap) -> HeaderValue {
    let mut joined = Vec::new();
    for value in headers.get_all(header::ACCEPT_ENCODING) {
        if !joined.is_empty() {
            joined.push(b',');
        }
        joined.extend_from_slice(value.as_bytes());
    }
    HeaderValue::from_bytes(&joined).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// See the module.
#[derive(Debug)]
pub struct CompressedBody {
    body: Body,
    state: State,
}

#[derive(Debug)]
enum State {
    /// With something in it that was not flushed, or nothing.
    Open(Encoder, bool),
    /// The last bytes were given; these trailers follow.
    Ended(Option<http::HeaderMap>),
}

impl CompressedBody {
    pub(super) const fn inner_mut(&mut self) -> &mut Body {
        &mut self.body
    }

    /// Whether nothing more will come.
    #[must_use]
    pub const fn is_end(&self) -> bool {
        matches!(self.state, State::Ended(None))
    }

    /// See [`Body::poll_next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        loop {
            let (encoder, waits) = match &mut self.state {
                State::Open(encoder, waits) => (encoder, waits),
                State::Ended(trailers) => {
                    return Poll::Ready(trailers.take().map(|map| Ok(Frame::trailers(map))));
                }
            };
            let trailers = match self.body.poll_next(cx) {
                Poll::Pending if *waits => {
                    *waits = false;
                    if encoder.flush().is_err() {
                        return Poll::Ready(Some(Err(Reason::UpstreamBodyReset)));
                    }
                    let ready = encoder.take();
                    if ready.is_empty() {
                        return Poll::Pending;
                    }
                    return Poll::Ready(Some(Ok(Frame::data(ready))));
                }
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Err(reason))) => return Poll::Ready(Some(Err(reason))),
                Poll::Ready(None) => None,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        if encoder.write(&data).is_err() {
                            return Poll::Ready(Some(Err(Reason::UpstreamBodyReset)));
                        }
                        *waits = true;
                        if encoder.len() >= GATHER {
                            return Poll::Ready(Some(Ok(Frame::data(encoder.take()))));
                        }
                        continue;
                    }
                    Err(frame) => frame.into_trailers().ok(),
                },
            };
            let State::Open(encoder, _) = std::mem::replace(&mut self.state, State::Ended(trailers)) else {
                return Poll::Ready(None);
            };
            let rest = encoder.finish().map(Frame::data).map_err(|_| Reason::UpstreamBodyReset);
            return Poll::Ready(Some(rest));
        }
    }
}
