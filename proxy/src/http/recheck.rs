//! A request that lasts is judged again when the configuration changes: a stream that was let in must not outlive its right.

use std::cell::OnceCell;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use super::context::RequestCtx;
use super::downstream::Downstream;
use super::filters;
use super::head::RequestHead;
use crate::config::spec::RouteSource;
use crate::error::Reason;
use crate::policy::view::{Claims, RequestView, View};
use crate::route::{Found, Query};
use crate::worker::changes::Follower;

/// What the rules looked at, kept as it was before routes changed it.
#[derive(Debug)]
pub struct Recheck {
    follower: Follower,
    downstream: Rc<Downstream>,
    head: RequestHead,
    claims: Vec<Claims>,
    client: SocketAddr,
    internal: bool,
    /// Where the policy that refuses is named, for the record of the request.
    details: Rc<OnceCell<String>>,
}

impl Recheck {
    /// For a request that was let in.
    #[must_use]
    pub fn new(ctx: &RequestCtx) -> Self {
        Self {
            follower: ctx.downstream.worker.changes.follow(),
            downstream: Rc::clone(&ctx.downstream),
            head: ctx.head.clone(),
            claims: ctx.policy.as_ref().map(|policy| policy.claims.clone()).unwrap_or_default(),
            client: ctx.origin.client,
            internal: ctx.origin.internal,
            details: Rc::default(),
        }
    }

    /// Will name the policy that refused.
    #[must_use]
    pub fn details(&self) -> Rc<OnceCell<String>> {
        Rc::clone(&self.details)
    }

    /// Ready when the request would be refused now.
    pub fn poll(&mut self, cx: &Context<'_>) -> Poll<Reason> {
        while self.follower.poll_changed(cx) {
            if let Err(reason) = self.judge() {
                return Poll::Ready(reason);
            }
        }
        Poll::Pending
    }

    fn judge(&self) -> Result<(), Reason> {
        let downstream = &self.downstream;
        let snapshot = downstream.worker.snapshot();
        let Some(http) = downstream.http_of(&snapshot) else { return Ok(()) };
        let table = match &http.routes {
            RouteSource::Inline(table) => Some(table),
            RouteSource::Rds(id) => snapshot.route_table(*id),
        };
        let random = downstream.worker.with_rng(|rng| rng.u64(..));
        let query = Query { head: &self.head, internal: self.internal, random };
        let found = table.map_or(Found::NoVirtualHost, |table| table.find(&query));
        let view = View {
            connection: downstream.view(self.client),
            request: Some(RequestView::from(&self.head)),
            claims: &self.claims,
        };
        filters::still_allowed(downstream, &http.filters, found.overrides(), &view).map_err(|policy| {
            self.details.get_or_init(|| policy);
            Reason::RbacDenied
        })
    }
}

/// Does `work` as long as the request may go on.
///
/// # Errors
/// Why it may not any more.
pub async fn while_allowed<F: Future>(recheck: Option<Box<Recheck>>, work: F) -> Result<F::Output, Reason> {
    let (mut recheck, mut work) = (recheck, pin!(work));
    poll_fn(|cx| {
        if let Some(recheck) = &mut recheck
            && let Poll::Ready(reason) = recheck.poll(cx)
        {
            return Poll::Ready(Err(reason));
        }
        Poll::Ready(Ok(ready!(work.as_mut().poll(cx))))
    })
    .await
}
