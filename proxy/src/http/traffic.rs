//! What the filters of [`crate::traffic`] do with one request: faults, limits, cross-origin rules, bodies read ahead.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use tokio::time::Instant;

use super::ahead::AheadBody;
use super::body::Body;
use super::context::RequestCtx;
use super::filters::{self, Answering, findings};
use super::head::ResponseHead;
use super::local_reply;
use super::response::Response;
use super::values::Values;
use crate::config::names::ClusterId;
use crate::error::{GrpcCode, Reason};
use crate::policy::overrides::Override;
use crate::policy::rbac::Verdict;
use crate::resilience::concurrency::Place;
use crate::route::action::NamedCluster;
use crate::route::header::HeaderMutations;
use crate::route::{Action, Found, Route};
use crate::telemetry::flags::ResponseFlags;
use crate::telemetry::metrics::Decision;
use crate::traffic::concurrency::{ConcurrencyFilter, priority};
use crate::traffic::cors::Cors;
use crate::traffic::fault::{Aborted, FaultFilter};
use crate::traffic::limit::descriptor::{Asker, Descriptor, Rule};
use crate::traffic::limit::{HostRules, LocalLimit, Refusal, Shown};
use crate::upstream::outcome::{Ended, Outcome, grpc_status};

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
/// Answers that go on for as long as the client likes.
const EVENTS: &[u8] = b"text/event-stream";

/// The request is refused with `response`.
pub(super) fn refuse(ctx: &mut RequestCtx, reason: Reason, details: &str, response: Response) -> Reason {
    filters::refusal(ctx).details = Some(details.into());
    findings(ctx).reply = Some(Box::new(response));
    reason
}

pub(super) fn draw(ctx: &RequestCtx) -> u64 {
    ctx.downstream.worker.with_rng(|rng| rng.u64(..))
}

/// The cluster that the route will take for this request.
fn cluster_of(ctx: &mut RequestCtx, route: &Route) -> Option<ClusterId> {
    let Action::Forward(action) = &route.action else { return None };
    let random = ctx.split();
    match route.target(action, random, &ctx.head.headers).cluster.resolve(&ctx.head) {
        NamedCluster::Id(id) => Some(id),
        NamedCluster::Name(_) | NamedCluster::Missing => None,
    }
}

/// `envoy.filters.http.fault`. Delays, then perhaps aborts.
///
/// # Errors
/// It aborts the request, or the time of the request is up.
pub async fn fault(
    ctx: &mut RequestCtx,
    filter: &FaultFilter,
    said: Option<&Override>,
    found: &Found<'_>,
) -> Result<(), Reason> {
    let filter = match said {
        Some(Override::Fault(filter)) => filter,
        Some(Override::Disabled) => return Ok(()),
        _ => filter,
    };
    let cluster = match (filter.upstream_cluster, found) {
        (Some(_), Found::Route(_, route)) => cluster_of(ctx, route),
        _ => None,
    };
    if !filter.applies(&ctx.head, || cluster) {
        return Ok(());
    }
    let mut active = None;
    if let Some(rate) = filter.rate(&ctx.head.headers, draw(ctx)) {
        active = filter.begin();
        if active.is_some() {
            ctx.answering.push(Answering::Throttle(rate));
        }
    }
    if let Some(delay) = filter.delay(&ctx.head.headers, draw(ctx)) {
        active = active.or_else(|| filter.begin());
        if active.is_some() {
            ctx.flags = ctx.flags.with(ResponseFlags::DELAY_INJECTED);
            tokio::time::sleep(delay).await;
        }
    }
    if let Some(aborted) = filter.abort(&ctx.head.headers, draw(ctx)) {
        active = active.or_else(|| filter.begin());
        if active.is_some() {
            findings(ctx).faults.extend(active);
            return Err(abort(ctx, aborted));
        }
    }
    if active.is_some() {
        findings(ctx).faults.extend(active);
    }
    Ok(())
}

fn abort(ctx: &mut RequestCtx, aborted: Aborted) -> Reason {
    let reason = Reason::FaultInjected;
    let text = Bytes::from_static(local_reply::text(reason).as_bytes());
    let (status, code) = match aborted {
        Aborted::Status(status) => (status, None),
        // As in Envoy, to a client that does not speak gRPC too.
        Aborted::Grpc(code) => (StatusCode::OK, Some(code)),
    };
    let mut response = local_reply::reply_with(reason, status, text, ctx.is_grpc());
    if let Some(code) = code.filter(|_| ctx.is_grpc()) {
        response.head.headers.insert("grpc-status", HeaderValue::from(code));
    }
    refuse(ctx, reason, "fault_filter_abort", response)
}

/// `envoy.filters.http.cors`.
///
/// # Errors
/// The request is a preflight, and answered here.
pub fn cors(ctx: &mut RequestCtx, said: Option<&Override>, found: &Found<'_>) -> Result<(), Reason> {
    let (Some(Override::Cors(policy)), Found::Route(_, route)) = (said, found) else { return Ok(()) };
    // As in Envoy it is for what is forwarded.
    let Action::Forward(_) = &route.action else { return Ok(()) };
    let headers = match policy.judge(&ctx.head, draw(ctx)) {
        Cors::Pass => return Ok(()),
        Cors::Share(origin) => {
            ctx.answering.push(Answering::Share(Arc::clone(policy), origin));
            return Ok(());
        }
        Cors::Preflight(headers) => headers,
    };
    let mut head = ResponseHead::new(StatusCode::OK);
    head.headers = headers;
    let response = Response { head, body: Body::Empty, upgraded: None };
    Err(refuse(ctx, Reason::DirectResponse, "cors_response", response))
}

/// `envoy.filters.http.buffer`: the whole body is read before the request goes on.
///
/// # Errors
/// It is larger than `limit`, or cannot be read.
pub async fn buffer(
    ctx: &mut RequestCtx,
    body: &mut Body,
    name: &Arc<str>,
    limit: usize,
    said: Option<&Override>,
) -> Result<(), Reason> {
    let limit = match said {
        Some(Override::Buffer(limit)) => *limit,
        Some(Override::Disabled) => return Ok(()),
        _ => limit,
    };
    // What an upgrade sends is no body of a request.
    if body.is_end() || ctx.upgrade.is_some() {
        return Ok(());
    }
    if body.exact_len().is_some_and(|length| length > limit as u64) {
        return Err(Reason::BodyTooLarge);
    }
    tell_to_go_on(ctx, name).await;
    let ahead = AheadBody::read(std::mem::take(body), limit).await?;
    if ahead.is_over(limit) {
        return Err(Reason::BodyTooLarge);
    }
    if let Some(length) = ahead.plain_len()
        && !ctx.head.headers.contains_key(header::CONTENT_LENGTH)
    {
        ctx.note_stage(name);
        ctx.head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    *body = Body::Ahead(Box::new(ahead));
    Ok(())
}

/// A client that waits for 100 Continue gets it: the body is read before anybody else could say so.
pub async fn tell_to_go_on(ctx: &mut RequestCtx, name: &Arc<str>) {
    let expects = ctx.head.headers.get(header::EXPECT);
    if expects.is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        ctx.note_stage(name);
        ctx.head.headers.remove(header::EXPECT);
        ctx.interim.send(ResponseHead::new(StatusCode::CONTINUE)).await;
    }
}

/// `envoy.filters.http.local_ratelimit`.
///
/// # Errors
/// There are too many requests.
pub fn local_limit(
    ctx: &mut RequestCtx,
    name: &Arc<str>,
    filter: &Arc<LocalLimit>,
    said: Option<&Override>,
    found: &Found<'_>,
) -> Result<(), Reason> {
    let filter = match said {
        Some(Override::LocalLimit(filter)) => filter,
        Some(Override::Disabled) => return Ok(()),
        _ => filter,
    };
    if !filter.enabled.contains(draw(ctx)) {
        return Ok(());
    }
    let descriptors = match found {
        Found::Route(_, route) if filter.limits.asks_descriptors() => {
            describe(ctx, route, &filter.rules, (filter.stage, filter.host_rules))
        }
        _ => Vec::new(),
    };
    let downstream = Rc::clone(&ctx.downstream);
    let now = Instant::now();
    let outcome = if filter.per_connection {
        downstream.own_limits(&filter.limits, now).take(&descriptors, &filter.take, now)
    } else {
        filter.limits.take(&descriptors, &filter.take, now)
    };
    let enforced = outcome.allowed || filter.enforced.contains(draw(ctx));
    let LocalLimit { stat_prefix, id, .. } = &**filter;
    let verdict = Verdict { allowed: outcome.allowed, policy: Some(name), stat_prefix, id: *id };
    let decision = if enforced { Decision::enforced(outcome.allowed) } else { Decision::ShadowDenied };
    downstream.worker.metrics.decided(&downstream, &verdict, decision);
    if let Some(shown) = outcome.shown {
        ctx.answering.push(Answering::Limit(shown));
    }
    if outcome.allowed {
        return Ok(());
    }
    if !enforced {
        mark(ctx, name, &filter.request_headers);
        return Ok(());
    }
    let reason = Reason::LocalRateLimited;
    let text = Bytes::from_static(local_reply::text(reason).as_bytes());
    Err(limited(ctx, name, (reason, "local_rate_limited"), &filter.refusal, (text, None)))
}

/// What a request on `route` counts as for a filter of `stage`: by `rules`, or else by those of the route.
pub(super) fn describe(
    ctx: &mut RequestCtx,
    route: &Route,
    rules: &[Rule],
    (stage, host_rules): (u32, HostRules),
) -> Vec<Descriptor> {
    let cluster = cluster_of(ctx, route).and_then(|id| ctx.snapshot.cluster(id));
    let name = cluster.map(|cluster| Arc::clone(&cluster.spec().name));
    let asker = Asker { head: &ctx.head, client: ctx.origin.client.ip(), cluster: name.as_deref() };
    if !rules.is_empty() {
        return rules.iter().filter_map(|rule| rule.describe(&asker)).collect();
    }
    let Action::Forward(action) = &route.action else { return Vec::new() };
    let rules = action.limits.of(host_rules).filter(|rule| rule.stage == stage);
    rules.filter_map(|rule| rule.describe(&asker)).collect()
}

/// The request goes on though there are too many, with headers that say so.
pub(super) fn mark(ctx: &mut RequestCtx, name: &Arc<str>, added: &HeaderMutations) {
    if added.is_empty() {
        return;
    }
    ctx.note_stage(name);
    let mut headers = std::mem::take(&mut ctx.head.headers);
    let mut values = Values::new(ctx);
    added.apply(&mut headers, &mut |template, headers| values.render(template, headers));
    ctx.head.headers = headers;
}

/// The answer to one request too many, with what the service says about it.
pub(super) fn limited(
    ctx: &mut RequestCtx,
    name: &Arc<str>,
    (reason, details): (Reason, &str),
    refusal: &Refusal,
    (body, mark): (Bytes, Option<(HeaderName, HeaderValue)>),
) -> Reason {
    let mut response = local_reply::reply_with(reason, refusal.status, body, ctx.is_grpc());
    if refusal.resource_exhausted && ctx.is_grpc() {
        let code = HeaderValue::from(GrpcCode::ResourceExhausted as u16);
        response.head.headers.insert("grpc-status", code);
    }
    response.head.headers.extend(mark);
    let mut values = Values::of_response(ctx, refusal.status);
    refusal
        .headers
        .apply(&mut response.head.headers, &mut |template, headers| values.render(template, headers));
    filters::refusal(ctx).rule = Some(name.to_string());
    refuse(ctx, reason, details, response)
}

/// `envoy.filters.http.adaptive_concurrency`: the request has a place until the head of its answer comes.
///
/// # Errors
/// As many are on their way as the upstream can take.
pub fn concurrency(
    ctx: &mut RequestCtx,
    name: &Arc<str>,
    filter: &ConcurrencyFilter,
    said: Option<&Override>,
    found: &Found<'_>,
) -> Result<(), Reason> {
    // What is answered here is no load for anybody.
    let Found::Route(_, Route { action: Action::Forward(action), .. }) = found else { return Ok(()) };
    if !filter.enabled || matches!(said, Some(Override::Disabled)) {
        return Ok(());
    }
    let priority = priority(&ctx.head.headers, action.priority);
    if let Some(place) = filter.controller.try_acquire(priority, Instant::now()) {
        ctx.answering.push(Answering::Arrived(place));
        return Ok(());
    }
    let reason = Reason::ConcurrencyLimit;
    let text = Bytes::from_static(local_reply::text(reason).as_bytes());
    let response = local_reply::reply_with(reason, filter.status, text, ctx.is_grpc());
    filters::refusal(ctx).rule = Some(name.to_string());
    Err(refuse(ctx, reason, "reached_concurrency_limit", response))
}

/// The head of the answer came, whoever made it: the place is free. How long it took is a sample, unless it says nothing about how busy
/// the upstream is: quick failures would make it look faster than it is, and streams have their head at once.
pub fn arrived(ctx: &RequestCtx, place: Place, head: &ResponseHead) {
    let kind = head.headers.get(header::CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    let events = kind.get(..EVENTS.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(EVENTS));
    // Whoever answers before it has the whole request talks with the client.
    let stream = events || ctx.upgrade.is_some() || !ctx.progress.done.get();
    if !stream && tells_of_load(ctx, head) {
        place.answered(Instant::now());
    }
}

fn tells_of_load(ctx: &RequestCtx, head: &ResponseHead) -> bool {
    match (ctx.reason, ctx.answered) {
        (None, Some(took)) => {
            let grpc = if ctx.is_grpc() { grpc_status(&head.headers) } else { None };
            let outcome = Outcome::new(Ended::Answered { status: head.status, grpc }, took);
            outcome.is_good() && head.status != StatusCode::TOO_MANY_REQUESTS
        }
        // It would have taken longer.
        (Some(reason), _) => {
            matches!(reason, Reason::UpstreamTimeout | Reason::PerTryTimeout | Reason::PerTryIdle)
        }
        (None, None) => false,
    }
}

/// Shows the state of a limit (draft-polli-ratelimit-headers-03).
pub fn show(shown: Shown, response: &mut Response) {
    let headers = &mut response.head.headers;
    headers.insert(LIMIT, HeaderValue::from(shown.limit));
    headers.insert(REMAINING, HeaderValue::from(shown.remaining));
    headers.insert(RESET, HeaderValue::from(shown.reset));
}
