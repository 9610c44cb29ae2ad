//! The last good answer of a destination whose circuit breaker refuses a call: which request it is for, and the copy of an answer on its way.
//! What may be kept is in [`crate::resilience::circuit::last_good`].

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderValue, Method, StatusCode};
use http_body::Frame;
use tokio::time::Instant;

use super::body::Body;
use super::context::RequestCtx;
use super::head::ResponseHead;
use super::local_reply::REASON_HEADER;
use super::response::Response;
use crate::error::Reason;
use crate::resilience::circuit::Circuit;
use crate::resilience::circuit::last_good::rules::{self, Vary};
use crate::resilience::circuit::last_good::shelves::Shelf;
use crate::resilience::circuit::last_good::{Again, Draft};
use crate::upstream::cluster::{Cluster, Discovery};

/// A request whose answer may be kept, or come from what is kept, or make it forgotten.
#[derive(Debug)]
pub(super) struct LastGood {
    /// Where its answer is kept. None: it is not, but may say that what is kept is not so any more.
    shelf: Option<Rc<Shelf>>,
    /// What it is for, whatever the cluster: who changes a thing may go another way than who reads it.
    key: Arc<str>,
    cluster: Arc<str>,
    /// How often the thing had changed when it was asked for.
    changes: u32,
}

impl LastGood {
    /// Of a request to `cluster`, as it is forwarded and before an endpoint is chosen. `of_route` is the circuit breaker of its route, which
    /// goes before the cluster's. `general`: it is not for a subset, and has no body. None when neither keeps answers and it changes
    /// nothing that is kept for others.
    pub(super) fn of(
        ctx: &RequestCtx,
        of_route: Option<&Arc<Circuit>>,
        cluster: &Cluster,
        general: bool,
    ) -> Option<Box<Self>> {
        let circuits = [of_route, cluster.spec().circuit.as_ref()];
        let circuit = circuits.into_iter().flatten().find(|circuit| circuit.last_good.is_some());
        let matters =
            circuit.is_some() || (!ctx.head.method.is_safe() && !ctx.downstream.worker.last_good.is_empty());
        if matters { Self::new(ctx, circuit, cluster, general) } else { None }
    }

    #[cold]
    fn new(
        ctx: &RequestCtx,
        circuit: Option<&Arc<Circuit>>,
        cluster: &Cluster,
        general: bool,
    ) -> Option<Box<Self>> {
        let head = &ctx.head;
        if ctx.upgrade.is_some() || head.method == Method::CONNECT || head.is_grpc() {
            return None;
        }
        // What a body asks for is not in the key, and neither is an endpoint that the client chose. A token that was verified is taken
        // away, mostly: the request would look like everybody's.
        let fits = is_read(&head.method)
            && general
            && !matches!(cluster.spec().discovery, Discovery::OriginalDst(_))
            && !ctx.policy.as_ref().is_some_and(|findings| findings.is_personal());
        let worker = &ctx.downstream.worker.last_good;
        let shelf = circuit.filter(|_| fits).and_then(|circuit| worker.of(circuit));
        if shelf.is_none() && head.method.is_safe() {
            return None;
        }
        let host = head.authority.as_ref().map_or("", Authority::as_str).to_ascii_lowercase();
        // None of the parts has a space.
        let key = format!("{} {host} {}", head.scheme, head.path);
        let changes = worker.changes(&key);
        Some(Box::new(Self { shelf, key: key.into(), cluster: Arc::clone(&cluster.spec().name), changes }))
    }

    /// The last good answer, in the place of a refusal by a circuit breaker that wants this.
    pub(super) fn answer(&self, ctx: &mut RequestCtx) -> Option<Response> {
        let circuit = &ctx.circuit.as_ref()?.circuit;
        circuit.last_good.as_ref()?;
        let wish = rules::wish(&ctx.head.method, &ctx.head.headers)?;
        let store = self.shelf.as_ref()?.store.borrow();
        let again = store.find((&self.key, &self.cluster), &ctx.head.headers, &wish, Instant::now());
        let Again { headers, body } = again?;
        circuit.count_last_good();
        ctx.reason = Some(Reason::CircuitOpen);
        let mut head = ResponseHead::new(StatusCode::OK);
        head.headers = headers;
        head.headers.insert(REASON_HEADER, HeaderValue::from_static(Reason::CircuitOpen.id()));
        let none = ctx.head.method == Method::HEAD || body.is_empty();
        Some(Response { head, body: if none { Body::Empty } else { Body::Full(body) }, upgraded: None })
    }

    /// Looks at an answer of the destination, the last one to the request: whether it is one to keep, or says that what is kept is not so
    /// any more (RFC 9111 §4.4).
    pub(super) fn see(&self, ctx: &RequestCtx, response: &mut Response) {
        let status = response.head.status;
        let read = is_read(&ctx.head.method);
        let changed = !ctx.head.method.is_safe();
        if (changed && (status.is_success() || status.is_redirection()))
            || (read && matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE))
        {
            ctx.downstream.worker.last_good.forget(&self.key);
        } else if ctx.head.method == Method::GET
            && status == StatusCode::OK
            && let Some(shelf) = &self.shelf
        {
            self.copy(shelf, ctx, response);
        }
    }

    /// Has a copy of the answer kept when its body ends, if it is one to keep.
    fn copy(&self, shelf: &Rc<Shelf>, ctx: &RequestCtx, response: &mut Response) {
        let (now, asked, answer) = (Instant::now(), &ctx.head.headers, &response.head.headers);
        let spec = *shelf.store.borrow().spec();
        let length = response.body.exact_len();
        if length.is_some_and(|length| length > spec.max_body_bytes as u64)
            || matches!(response.body, Body::Early(_))
        {
            return;
        }
        let Some(vary) = Vary::of(answer, asked) else { return };
        let took = now.saturating_duration_since(ctx.start);
        let of = (response.head.status, answer);
        let Some(terms) = rules::terms(asked, of, &vary, took, spec.max_age) else { return };
        let draft = Draft::new((&self.key, &self.cluster), terms, vary, answer, now);
        let Some(mut copy) = Recording::begin(shelf, draft, self.changes) else { return };
        if response.body.is_end() {
            copy.complete();
            return;
        }
        let body = std::mem::take(&mut response.body);
        response.body = Body::Remembered(Box::new(RememberedBody { body, copy: Some(copy) }));
    }
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// A copy of an answer on its way. Dropped before it is complete, or complete when the thing has changed, it leaves nothing.
#[derive(Debug)]
struct Recording {
    shelf: Rc<Shelf>,
    draft: Option<Draft>,
    body: Vec<u8>,
    max_body: usize,
    reserved: usize,
    /// How often the thing had changed when it was asked for.
    changes: u32,
}

impl Recording {
    fn begin(shelf: &Rc<Shelf>, draft: Draft, changes: u32) -> Option<Self> {
        let bytes = draft.bytes();
        let mut store = shelf.store.borrow_mut();
        let (room, max_body) = (store.reserve(bytes), store.spec().max_body_bytes);
        let shelf = Rc::clone(shelf);
        room.then(|| Self { shelf, draft: Some(draft), body: Vec::new(), max_body, reserved: bytes, changes })
    }

    /// Takes a piece. False: it is too much.
    fn push(&mut self, data: &[u8]) -> bool {
        let fits = self.body.len() + data.len() <= self.max_body;
        if !fits || !self.shelf.store.borrow_mut().reserve(data.len()) {
            return false;
        }
        self.reserved += data.len();
        self.body.extend_from_slice(data);
        true
    }

    fn complete(&mut self) {
        let Some(draft) = self.draft.take() else { return };
        // Exactly as long as it is: what a vector has to spare would not be counted.
        let body = Bytes::from(std::mem::take(&mut self.body).into_boxed_slice());
        let mut store = self.shelf.store.borrow_mut();
        store.release(std::mem::take(&mut self.reserved));
        if self.shelf.changes.of(draft.key()) == self.changes {
            store.keep(draft, body, Instant::now());
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.shelf.store.borrow_mut().release(self.reserved);
    }
}

/// The body of an answer of which a copy is kept, if it ends well. It goes on as it comes, whatever becomes of the copy.
#[derive(Debug)]
pub struct RememberedBody {
    body: Body,
    copy: Option<Recording>,
}

impl RememberedBody {
    pub(super) const fn inner(&self) -> &Body {
        &self.body
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        let polled = self.body.poll_next(cx);
        if let Poll::Ready(frame) = &polled
            && self.copy.is_some()
        {
            self.see(frame.as_ref());
        }
        polled
    }

    fn see(&mut self, frame: Option<&Result<Frame<Bytes>, Reason>>) {
        let Some(copy) = &mut self.copy else { return };
        let ended = match frame {
            None => true,
            Some(Ok(frame)) if frame.data_ref().is_some_and(|data| copy.push(data)) => {
                // Who takes the last piece may never ask for more.
                if !self.body.is_end() {
                    return;
                }
                true
            }
            // Too much, trailers, or a failure.
            Some(_) => false,
        };
        if ended {
            copy.complete();
        }
        self.copy = None;
    }
}

#[cfg(test)]
mod tests;
