//! A request that lasts is judged again when the configuration changes: a stream that was let in must not outlive its right.
//!
//! Until then that costs nothing but a waker: the request is judged as its context has it, without what its route changed.

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
    let random = downstream.worker.with_rng(|rng| rng.u64(..));
    let head = ctx.judged_head();
    let query = Query { head: &head, internal: ctx.origin.internal, random };
    let found = table.map_or(Found::NoVirtualHost, |table| table.find(&query));
    for filter in &http.filters {
        if let HttpFilter::Jwt(name, filter) = filter {
            still_known(ctx, (name, filter), found.overrides(), &head)?;
        }
    }
    let claims = ctx.policy.as_ref().map_or(&[][..], |policy| &policy.claims);
    let view = View {
        connection: downstream.view(ctx.origin.client),
        request: Some(RequestView::from(&head)),
        claims,
    };
    filters::still_allowed(downstream, &http.filters, found.overrides(), &view).map_err(|policy| {
        ctx.revoked.get_or_init(|| policy);
        Reason::RbacDenied
    })
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
    let random = worker.with_rng(|rng| rng.u64(..));
    let said = route.and_then(|route| route.of(name));
    let Some(requirement) = filters::required(filter, said, head, random)? else { return Ok(()) };
    let known = ctx.policy.as_ref().map_or(&[][..], |policy| &policy.providers);
    if requirement.is_met_by(filter, known) {
        return Ok(());
    }
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let now = Now { unix, instant: Instant::now(), signatures: &worker.signatures };
    requirement.check(filter, head, now).map(drop)
}

/// Does `work` as long as the request may go on.
///
/// # Errors
/// Why it may not any more.
pub async fn while_allowed<F: Future>(ctx: &RequestCtx, work: F) -> Result<F::Output, Reason> {
    let mut work = pin!(work);
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending => poll_refused(ctx, cx).map(Err),
    })
    .await
}
