//! A request that lasts is judged again when the configuration changes: a stream that was let in must not outlive its right.
//!
//! Until then that costs nothing but a waker: the request is judged as its context has it, without what its route changed. Each filter sees
//! it as it saw it first, without what later ones changed.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use tokio::time::Instant;

use super::context::RequestCtx;
use super::filters;
use super::head::RequestHead;
use crate::config::spec::{HttpFilter, RouteSource};
use crate::error::Reason;
use crate::policy::jwt::JwtFilter;
use crate::policy::jwt::provider::Now;
use crate::policy::overrides::Overrides;
use crate::policy::view::{RequestView, View};
use crate::route::{Found, Query};

/// Ready when the request would be refused now.
pub fn poll_refused(ctx: &RequestCtx, cx: &Context<'_>) -> Poll<Reason> {
    while ctx.changes.poll_changed(cx) {
        if let Err(reason) = judge(ctx) {
            return Poll::Ready(reason);
        }
    }
    Poll::Pending
}

fn judge(ctx: &RequestCtx) -> Result<(), Reason> {
    let downstream = &ctx.downstream;
    let snapshot = downstream.worker.snapshot();
    let Some(http) = downstream.http_of(&snapshot) else { return Ok(()) };
    let table = match &http.routes {
        RouteSource::Inline(table) => Some(table),
        RouteSource::Rds(id) => snapshot.route_table(*id),
    };
    let find = |head: &_| {
        let query = Query { head, internal: ctx.origin.internal, random: ctx.random };
        table.map_or(Found::NoVirtualHost, |table| table.find(&query))
    };
    let last = ctx.judged_head();
    let mut stages = ctx.stages();
    let mut head = stages.first().map_or(&last, |stage| &stage.head);
    let mut found = find(head);
    for filter in &http.filters {
        judge_by(ctx, filter, found.overrides(), head)?;
        if let [stage, rest @ ..] = stages
            && filter.name() == Some(&stage.until)
        {
            stages = rest;
            head = rest.first().map_or(&last, |stage| &stage.head);
            if stage.rerouted {
                found = find(head);
            }
        }
    }
    Ok(())
}

/// Judges by one of the filters, with what the route says about it; `head` is what it saw when the request came.
fn judge_by(
    ctx: &RequestCtx,
    filter: &HttpFilter,
    route: Option<&Overrides>,
    head: &RequestHead,
) -> Result<(), Reason> {
    match filter {
        HttpFilter::Jwt(name, filter) => still_known(ctx, (name, filter), route, head),
        HttpFilter::Rbac(name, filter) => {
            let downstream = &ctx.downstream;
            let claims = ctx.policy.as_ref().map_or(&[][..], |policy| &policy.claims);
            let view = View {
                connection: downstream.view(ctx.origin.client),
                request: Some(RequestView::from(head)),
                claims,
            };
            filters::still_allowed(downstream, (name, filter), route, &view).map_err(|policy| {
                ctx.revoked.get_or_init(|| policy);
                Reason::RbacDenied
            })
        }
        // What limits traffic gives no right, and takes none away.
        _ => Ok(()),
    }
}

/// What was verified when the request came need not be there any more: it is enough that its provider still is. A token that nobody
/// asked for then is looked at now.
fn still_known(
    ctx: &RequestCtx,
    (name, filter): (&str, &JwtFilter),
    route: Option<&Overrides>,
    head: &RequestHead,
) -> Result<(), Reason> {
    if filter.lets_pass(head) {
        return Ok(());
    }
    let worker = &ctx.downstream.worker;
    let said = route.and_then(|route| route.of(name));
    let Some(requirement) = filters::required(filter, said, head, ctx.random)? else { return Ok(()) };
    let known = ctx.policy.as_ref().map_or(&[][..], |policy| &policy.providers);
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let now = Now { unix, instant: Instant::now(), signatures: &worker.signatures };
    requirement.check_again(filter, head, now, known)
}

/// Does `work` as long as the request may go on.
///
/// # Errors
/// Why it may not any more.
pub async fn while_allowed<F: Future>(ctx: &mut RequestCtx, work: F) -> Result<F::Output, Reason> {
    let mut work = pin!(work);
    let mut deadline = std::mem::take(&mut ctx.deadline);
    poll_fn(|cx| {
        if let Poll::Ready(output) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        match poll_refused(ctx, cx) {
            Poll::Ready(reason) => Poll::Ready(Err(reason)),
            Poll::Pending => deadline.poll(cx).map(Err),
        }
    })
    .await
}
