//! A request's way through the proxy, one line a stage.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header;
use http::{HeaderValue, Method, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::body::Body;
use super::context::RequestCtx;
use super::filters;
use super::forward;
use super::head::ResponseHead;
use super::headers;
use super::local_reply;
use super::response::Response;
use super::tries;
use super::values::Values;
use crate::config::spec::{HttpFilter, HttpSpec, RouteSource};
use crate::error::Reason;
use crate::policy::authz::answer::Denial;
use crate::resilience::circuit::{Fallback, Refusal};
use crate::resilience::overload::{Action as Sacrifice, Overload};
use crate::route::action::{DirectResponse, Redirect, tls_location};
use crate::route::{Action, Found, Query, Route};

/// A circuit breaker refused the request.
static OVERLOADED: header::HeaderName = header::HeaderName::from_static("x-envoy-overloaded");

/// The longest `grpc-message` that a service's refusal becomes.
const MAX_GRPC_MESSAGE: usize = 4096;

/// Answers a request: by an upstream, or by the proxy itself.
pub async fn handle(ctx: &mut RequestCtx, body: Body) -> Response {
    let mut response = match run(ctx, body).await {
        Ok(response) => response,
        Err(reason) => {
            ctx.reason = Some(reason);
            failure(ctx, reason)
        }
    };
    filters::answer(ctx, &mut response);
    tries::mark(ctx, &mut response.head.headers);
    finish_head(ctx, &mut response.head);
    ctx.note_response(&response.head);
    response
}

fn failure(ctx: &mut RequestCtx, reason: Reason) -> Response {
    if ctx.timeout_alternative
        && matches!(reason, Reason::UpstreamTimeout | Reason::PerTryTimeout | Reason::PerTryIdle)
    {
        return local_reply::reply_with(reason, StatusCode::NO_CONTENT, Bytes::new(), false);
    }
    if let Some(reply) = ctx.policy.as_mut().and_then(|policy| policy.reply.take()) {
        return *reply;
    }
    let denial = ctx.policy.as_ref().and_then(|policy| policy.denial.as_deref());
    if let Some(denial) = denial {
        return denied(reason, denial, ctx.is_grpc());
    }
    let mut response = local_reply::reply(reason, ctx.is_grpc());
    if let Some(challenge) = ctx.policy.as_ref().and_then(|policy| policy.challenge.clone()) {
        response.head.headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
    if let Some(refusal) = ctx.circuit.as_ref().filter(|_| reason == Reason::CircuitOpen) {
        return refused_by_circuit(refusal, response, ctx.is_grpc());
    }
    if reason == Reason::UpstreamOverflow && !ctx.http.suppress_envoy_headers {
        response.head.headers.insert(OVERLOADED.clone(), HeaderValue::from_static("true"));
    }
    response
}

/// The refusal of a circuit breaker: when to come again, or the answer that stands in for it.
fn refused_by_circuit(refusal: &Refusal, mut response: Response, grpc: bool) -> Response {
    if let Some(Fallback::Answer(fixed)) = refusal.circuit.spec.fallback.as_ref().filter(|_| !grpc) {
        response = local_reply::reply_with(Reason::CircuitOpen, fixed.status, fixed.body.clone(), false);
        for (name, value) in &fixed.headers {
            response.head.headers.insert(name, value.clone());
        }
    } else if let Some(wait) = refusal.retry_after {
        // Whole seconds, and not too early (RFC 9110 §10.2.3).
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        response.head.headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// A refusal in the words of an external service.
fn denied(reason: Reason, denial: &Denial, grpc: bool) -> Response {
    let status = denial.status.unwrap_or_else(|| reason.status());
    // Of gRPC the body is a header.
    let most = if grpc { MAX_GRPC_MESSAGE } else { usize::MAX };
    let body = denial.body.slice(..denial.body.len().min(most));
    let mut response = local_reply::reply_with(reason, status, body, grpc);
    denial.apply(&mut response.head.headers);
    response
}

/// The listener's rules for a response head, whoever made it.
pub fn finish_head(ctx: &RequestCtx, head: &mut ResponseHead) {
    if head.status == StatusCode::NO_CONTENT || head.status.is_informational() {
        // RFC 9110 §8.6: a Content-Length here would be read as a body by some.
        head.headers.remove(header::CONTENT_LENGTH);
    }
    headers::finish_response(head, &ctx.http, &ctx.downstream.worker.date());
    if ctx.http.echo_request_id
        && let Some(id) = ctx.head.headers.get(&headers::X_REQUEST_ID)
    {
        head.headers.insert(headers::X_REQUEST_ID.clone(), id.clone());
    }
}

async fn run(ctx: &mut RequestCtx, mut body: Body) -> Result<Response, Reason> {
    let (snapshot, http) = (Rc::clone(&ctx.snapshot), ctx.http.clone());
    ctx.origin = ctx
        .downstream
        .worker
        .with_rng(|rng| headers::prepare_request(&mut ctx.head, &ctx.downstream, &http, rng));
    if !(snapshot.overload.is_calm() && ctx.downstream.worker.lag.is_calm()) {
        shed(ctx, &snapshot.overload)?;
    }
    if ctx.redirect_to_canonical {
        return redirect(
            ctx,
            StatusCode::TEMPORARY_REDIRECT,
            HeaderValue::from_str(ctx.head.path.as_str()).ok(),
        );
    }
    if ctx.head.authority.is_none() && ctx.head.method == Method::CONNECT {
        return Err(Reason::MissingHost);
    }
    let table = match &http.routes {
        RouteSource::Inline(table) => Some(table),
        RouteSource::Rds(id) => snapshot.route_table(*id),
    };
    let mut headers = std::mem::take(&mut ctx.head.headers);
    ctx.show_upgrade(&mut headers);
    ctx.head.headers = headers;
    ctx.random = ctx.downstream.worker.with_rng(|rng| rng.u64(..));
    let mut left = &http.filters[..];
    let found = loop {
        let query = Query { head: &ctx.head, internal: ctx.origin.internal, random: ctx.random };
        let found = table.map_or(Found::NoVirtualHost, |table| table.find(&query));
        let end = match &found {
            Found::Route(_, route) if left.iter().any(HttpFilter::may_wait) => {
                forward::stream_end(ctx, route)
            }
            _ => None,
        };
        let filtered = match end {
            None => filters::run(ctx, &mut body, left, &found).await,
            // They may wait for the rest of the request, for a service, or on purpose.
            Some(end) => Box::pin(timeout_at(end, filters::run(ctx, &mut body, left, &found)))
                .await
                .unwrap_or(Err(Reason::MaxDuration)),
        };
        match filtered {
            Ok(Some(rest)) => {
                left = rest;
                ctx.note_rerouted();
            }
            Ok(None) => break found,
            Err(reason) => return Err(refused(ctx, &found, reason)),
        }
    };
    if ctx.upgrade.is_some() {
        // What is said to the endpoint depends on its protocol.
        ctx.note_judged_headers();
        ctx.head.headers.remove(header::UPGRADE);
        ctx.head.headers.remove(header::CONNECTION);
    }
    match found {
        Found::Route(_, route) => {
            take(ctx, route, &http, body).await.map_err(|reason| refused(ctx, &found, reason))
        }
        Found::TlsRequired(_) => redirect(ctx, StatusCode::MOVED_PERMANENTLY, tls_location(&ctx.head)),
        Found::NoRoute(_) | Found::NoVirtualHost => Err(refused(ctx, &found, Reason::NoRoute)),
    }
}

/// What the process gives up for memory, or this worker for time: the connection after this request, or the request.
#[cold]
fn shed(ctx: &mut RequestCtx, overload: &Overload) -> Result<(), Reason> {
    let worker = Rc::clone(&ctx.downstream.worker);
    let random = || worker.with_rng(|rng| rng.u8(..));
    if overload.takes(Sacrifice::DisableKeepalive, random()) {
        ctx.downstream.drain.wind_down(Instant::now());
    }
    let details = if overload.takes(Sacrifice::RefuseRequests, random()) {
        "overload"
    } else if worker.lag.refuses(random()) {
        "worker_lag"
    } else {
        return Ok(());
    };
    filters::refusal(ctx).details = Some(details.into());
    Err(Reason::Overloaded)
}

/// Remembers where a request had come to when it was refused.
#[cold]
fn refused(ctx: &mut RequestCtx, found: &Found<'_>, reason: Reason) -> Reason {
    let refusal = filters::refusal(ctx);
    refusal.virtual_host = found.virtual_host().map(|host| Arc::clone(&host.name));
    if let Found::Route(_, route) = found {
        refusal.route.clone_from(&route.name);
    }
    reason
}

/// Does what the route says.
async fn take(ctx: &mut RequestCtx, route: &Route, http: &HttpSpec, body: Body) -> Result<Response, Reason> {
    ctx.route_name.clone_from(&route.name);
    let mut response = match &route.action {
        Action::Forward(action) => return forward::forward(ctx, route, action, http, body).await,
        Action::Redirect(action) => own_redirect(ctx, route, action)?,
        Action::Direct(action) => direct(ctx, action),
    };
    let mut values = Values::of_response(ctx, response.head.status);
    route
        .response_headers
        .apply(&mut response.head.headers, &mut |template, headers| values.render(template, headers));
    Ok(response)
}

fn own_redirect(ctx: &RequestCtx, route: &Route, action: &Redirect) -> Result<Response, Reason> {
    let mut values = Values::new(ctx);
    let location = action
        .location(&ctx.head, &route.matcher.path, &mut |template, headers| values.render(template, headers))
        .map_err(|_| Reason::BadPath)?;
    redirect(ctx, action.status, Some(location))
}

fn redirect(ctx: &RequestCtx, status: StatusCode, location: Option<HeaderValue>) -> Result<Response, Reason> {
    let mut response = if ctx.is_grpc() {
        local_reply::reply_with(Reason::DirectResponse, status, Bytes::new(), true)
    } else {
        Response { head: ResponseHead::new(status), body: Body::Empty, upgraded: None }
    };
    response.head.headers.insert(header::LOCATION, location.ok_or(Reason::BadPath)?);
    Ok(response)
}

fn direct(ctx: &mut RequestCtx, action: &DirectResponse) -> Response {
    ctx.reason = Some(Reason::DirectResponse);
    local_reply::reply_with(Reason::DirectResponse, action.status, action.body.clone(), ctx.is_grpc())
}
