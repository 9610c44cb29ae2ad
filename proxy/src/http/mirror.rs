//! `request_mirror_policies`: a copy of a request goes to another cluster, and its answer nowhere.
//!
//! The copy never delays the request: it has what the request's own upstream was given, from a queue of bounded length, and is given up when
//! it falls behind. It counts against the limits of its own cluster.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderMap, HeaderName};
use http_body::Frame;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::attempt::Exchange;
use super::body::Body;
use super::context::RequestCtx;
use super::head::RequestHead;
use super::interim::InterimSink;
use crate::balance::context::LbContext;
use crate::error::Reason;
use crate::resilience::breaker::Resource;
use crate::route::RouteAction;
use crate::route::action::{MirrorPolicy, NamedCluster};
use crate::upstream::cluster::Cluster;
use crate::worker::Worker;

/// A copy may be behind by so many bytes (Envoy's limit of a connection's buffer).
const MAX_BEHIND: usize = 1024 * 1024;
/// What a piece takes besides its bytes, so that many small ones count too.
const PIECE: usize = 128;
/// How long a copy may take where the route has no timeout.
const LONGEST: Duration = Duration::from_secs(60);

static EXPECT: HeaderName = http::header::EXPECT;

/// Starts copies of the request, as the route says. Gives the body to go on with.
pub fn start(ctx: &RequestCtx, action: &RouteAction, limit: Option<Duration>, body: Body) -> Body {
    // What is sent after an upgrade or a CONNECT is no request.
    if action.mirrors.is_empty() || ctx.may_tunnel() {
        return body;
    }
    let mut copies: SmallVec<[Rc<Queue>; 1]> = SmallVec::new();
    for policy in action.mirrors.iter() {
        let drawn = ctx.downstream.worker.with_rng(|rng| rng.u64(..));
        if !policy.share.is_none_or(|share| share.contains(drawn)) {
            continue;
        }
        let cluster = match policy.cluster.resolve(&ctx.head) {
            NamedCluster::Id(id) => ctx.snapshot.cluster(id),
            NamedCluster::Name(name) => ctx.snapshot.cluster_by_name(name),
            NamedCluster::Missing => None,
        };
        let Some(cluster) = cluster else { continue };
        let queue = Rc::new(Queue::default());
        let copy = if body.is_end() {
            Body::Empty
        } else {
            copies.push(Rc::clone(&queue));
            Body::Copy(Box::new(CopyBody { queue, length: body.exact_len() }))
        };
        let mirror = Mirror {
            worker: Rc::clone(&ctx.downstream.worker),
            cluster: Arc::clone(cluster),
            head: head(&ctx.head, policy),
            limit: limit.unwrap_or(LONGEST),
        };
        tokio::task::spawn_local(Box::pin(mirror.run(action.priority, copy)));
    }
    if copies.is_empty() { body } else { Body::Copied(Box::new(CopiedBody { body, copies, ended: false })) }
}

/// The head of a copy. Its host says that it is one, unless the policy does not want that.
fn head(original: &RequestHead, policy: &MirrorPolicy) -> RequestHead {
    let mut head = original.clone();
    head.headers.remove(&EXPECT);
    if policy.mark_host {
        head.authority = head.authority.map(|host| marked(&host));
    }
    head
}

/// `a.example:80` becomes `a.example-shadow:80`.
fn marked(host: &Authority) -> Authority {
    let text = host.as_str();
    if text.starts_with('[') {
        // An address cannot have a suffix.
        return host.clone();
    }
    let name = host.host().len();
    let (name, port) = text.split_at_checked(name).unwrap_or((text, ""));
    format!("{name}-shadow{port}").parse().unwrap_or_else(|_| host.clone())
}

/// A copy on its way.
struct Mirror {
    worker: Rc<Worker>,
    cluster: Arc<Cluster>,
    head: RequestHead,
    limit: Duration,
}

impl Mirror {
    async fn run(self, priority: crate::route::action::Priority, body: Body) {
        let Some(_permit) = self.cluster.try_acquire(Resource::Requests, priority) else { return };
        let Some(endpoint) = self.worker.pick(&self.cluster, LbContext::default(), Instant::now()) else {
            return;
        };
        let _active = endpoint.begin();
        let exchange = Exchange {
            worker: &self.worker,
            cluster: &self.cluster,
            priority,
            fresh: false,
            upgrade: None,
            interim: &InterimSink::None,
            time: None,
            ends_connect: false,
            origin: None,
        };
        let work = async {
            let Ok(mut response) = exchange.send(&endpoint, &self.head, body).await else { return };
            // Read to its end, so that the connection can be used again.
            while let Some(Ok(_)) = poll_fn(|cx| response.body.poll_next(cx)).await {}
        };
        // Nobody is told how a copy ended.
        let _ = tokio::time::timeout(self.limit, work).await;
    }
}

/// What a copy has not read yet.
#[derive(Debug, Default)]
pub struct Queue(RefCell<State>);

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Piece>,
    bytes: usize,
    end: Option<Result<(), ()>>,
    reader: Option<Waker>,
    gone: bool,
}

#[derive(Debug)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Piece {
    fn size(&self) -> usize {
        match self {
            Self::Data(data) => data.len() + PIECE,
            Self::Trailers(_) => PIECE,
        }
    }
}

impl Queue {
    fn push(&self, piece: Piece) {
        let mut state = self.0.borrow_mut();
        if state.gone || state.end.is_some() {
            return;
        }
        state.bytes += piece.size();
        if state.bytes > MAX_BEHIND {
            state.frames.clear();
            state.end = Some(Err(()));
        } else {
            state.frames.push_back(piece);
        }
        state.wake();
    }

    fn end(&self, end: Result<(), ()>) {
        let mut state = self.0.borrow_mut();
        state.end.get_or_insert(end);
        state.wake();
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// The body of a copy.
#[derive(Debug)]
pub struct CopyBody {
    queue: Rc<Queue>,
    length: Option<u64>,
}

impl CopyBody {
    /// Whether nothing more will come.
    #[must_use]
    pub fn is_end(&self) -> bool {
        let state = self.queue.0.borrow();
        state.frames.is_empty() && state.end == Some(Ok(()))
    }

    /// Bytes of the whole body, when that is known.
    #[must_use]
    pub const fn exact_len(&self) -> Option<u64> {
        self.length
    }

    /// See [`Body::poll_next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        let mut state = self.queue.0.borrow_mut();
        match state.frames.pop_front() {
            Some(Piece::Data(data)) => {
                state.bytes -= data.len() + PIECE;
                self.length = self.length.map(|left| left.saturating_sub(data.len() as u64));
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Piece::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            None => match state.end {
                Some(Ok(())) => Poll::Ready(None),
                Some(Err(())) => Poll::Ready(Some(Err(Reason::DownstreamGone))),
                None => {
                    state.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            },
        }
    }
}

impl Drop for CopyBody {
    fn drop(&mut self) {
        let mut state = self.queue.0.borrow_mut();
        state.gone = true;
        state.frames.clear();
    }
}

/// The body of a request that has copies.
#[derive(Debug)]
pub struct CopiedBody {
    body: Body,
    copies: SmallVec<[Rc<Queue>; 1]>,
    ended: bool,
}

impl CopiedBody {
    /// The body inside.
    #[must_use]
    pub const fn inner(&self) -> &Body {
        &self.body
    }

    fn end(&mut self, end: Result<(), ()>) {
        self.ended = true;
        for copy in &self.copies {
            copy.end(end);
        }
    }

    /// See [`Body::poll_next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        let next = ready!(self.body.poll_next(cx));
        match &next {
            Some(Ok(frame)) => {
                for copy in &self.copies {
                    match (frame.data_ref(), frame.trailers_ref()) {
                        (Some(data), _) => copy.push(Piece::Data(data.clone())),
                        (_, Some(trailers)) => copy.push(Piece::Trailers(trailers.clone())),
                        (None, None) => {}
                    }
                }
                // Whoever has the last piece need not ask for more.
                if self.body.is_end() {
                    self.end(Ok(()));
                }
            }
            Some(Err(_)) => self.end(Err(())),
            None => self.end(Ok(())),
        }
        Poll::Ready(next)
    }
}

impl Drop for CopiedBody {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Err(()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(body: Body) -> (Body, Body) {
        let queue = Rc::new(Queue::default());
        let copy = CopyBody { queue: Rc::clone(&queue), length: body.exact_len() };
        let copied = CopiedBody { body, copies: [queue].into_iter().collect(), ended: false };
        (Body::Copied(Box::new(copied)), Body::Copy(Box::new(copy)))
    }

    async fn next(body: &mut Body) -> Option<Result<Bytes, Reason>> {
        let frame = poll_fn(|cx| body.poll_next(cx)).await?;
        Some(frame.map(|frame| frame.into_data().unwrap()))
    }

    #[tokio::test]
    async fn the_copy_has_what_the_original_had() {
        let (mut original, mut copy) = pair(Body::Full(Bytes::from_static(b"hello")));
        assert_eq!(copy.exact_len(), Some(5));
        assert_eq!(next(&mut original).await, Some(Ok(Bytes::from_static(b"hello"))));
        assert_eq!(next(&mut copy).await, Some(Ok(Bytes::from_static(b"hello"))));
        assert!(copy.is_end());
        assert_eq!(next(&mut copy).await, None);
    }

    #[tokio::test]
    async fn a_copy_that_falls_behind_is_given_up_and_the_original_is_not() {
        let big = Bytes::from(vec![0; MAX_BEHIND + 1]);
        let (mut original, mut copy) = pair(Body::Full(big.clone()));
        assert_eq!(next(&mut original).await, Some(Ok(big)));
        assert_eq!(next(&mut copy).await, Some(Err(Reason::DownstreamGone)));
    }

    #[tokio::test]
    async fn a_copy_ends_with_its_original_and_the_other_way_round_not() {
        let (original, mut copy) = pair(Body::Full(Bytes::from_static(b"x")));
        drop(original);
        assert_eq!(next(&mut copy).await, Some(Err(Reason::DownstreamGone)));
        let (mut original, copy) = pair(Body::Full(Bytes::from_static(b"x")));
        drop(copy);
        assert_eq!(next(&mut original).await, Some(Ok(Bytes::from_static(b"x"))));
    }

    #[test]
    fn the_host_of_a_copy() {
        let marked = |host: &str| marked(&host.parse().unwrap()).to_string();
        assert_eq!(marked("a.example"), "a.example-shadow");
        assert_eq!(marked("a.example:8080"), "a.example-shadow:8080");
        assert_eq!(marked("[::1]:80"), "[::1]:80");
    }
}
