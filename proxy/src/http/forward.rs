//! Forwarding: what the route changes, then the tries, within the request's deadline.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Version, header};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::attempt::Wanted;
use super::body::Body;
use super::context::{Deadline, RequestCtx, Retried};
use super::guard::{GuardedBody, Idle, TimeLimits, Trailers};
use super::headers;
use super::local_reply;
use super::mirror;
use super::response::Response;
use super::tries::Tries;
use super::values::Values;
use crate::config::spec::HttpSpec;
use crate::error::Reason;
use crate::resilience::retry::RetryState;
use crate::resilience::timeout::{Circumstances, Limit, Limits, TimeLeft};
use crate::route::Route;
use crate::route::action::{NamedCluster, RouteAction, Target};
use crate::route::hash_policy::{self, Hashed};
use crate::upstream::cluster::Cluster;

static SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
static ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
static ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
static ALTERNATIVE: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-timeout-alt-response");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// How long a tunnel may stay quiet whose route says nothing: as the TCP proxy. A listener's `stream_idle_timeout` is for requests.
const TUNNEL_IDLE: Duration = Duration::from_secs(3600);

/// Forwards a request as `route` says.
///
/// # Errors
/// Why there is no answer from an endpoint.
pub async fn forward(
    ctx: &mut RequestCtx,
    route: &Route,
    action: &RouteAction,
    http: &HttpSpec,
    body: Body,
) -> Result<Response, Reason> {
    pass_upgrade(ctx, action, http)?;
    let random = ctx.split();
    let target = route.target(action, random, &ctx.head.headers);
    let Some(cluster) = find_cluster(ctx, &target) else {
        ctx.reason = Some(Reason::NoCluster);
        let text = bytes::Bytes::from_static(Reason::NoCluster.explain().trim_ascii().as_bytes());
        return Ok(local_reply::reply_with(Reason::NoCluster, action.cluster_not_found, text, ctx.is_grpc()));
    };
    ctx.cluster = Some(Arc::clone(&cluster));
    let limits = time_limits(ctx, action, http);
    ctx.shows_attempts = action.attempt_count_in_response;
    ctx.timeout_alternative = ctx.origin.internal && ctx.head.headers.contains_key(&ALTERNATIVE);
    let (hash, cookies) = hash(ctx, action);
    let wanted = Wanted { hash, subset: target.subset };
    ctx.note_forwarded(!target.request_headers.is_empty());
    rewrite(ctx, route, action, &target, http)?;
    let state = RetryState::new(action.retry.as_deref(), &ctx.head, ctx.origin.internal);
    headers::remove_steering(&mut ctx.head.headers);
    let body = mirror::start(ctx, action, limits.request, body);
    let mut deadline = std::mem::take(&mut ctx.deadline);
    // The route's limit and the cluster's (`HttpProtocolOptions.max_stream_duration`): the earlier one ends the stream.
    for limit in [limits.stream, cluster.spec().http.max_stream_duration].into_iter().flatten() {
        deadline.limit(ctx.start + limit, Reason::MaxDuration);
    }
    let progress = Rc::clone(&ctx.progress);
    let time = TimeLeft::new(limits, ctx.start, deadline.at());
    let mut pause = pause(ctx, action).map(Idle::new);
    // The whole of a tunnel has no time limit.
    let tunnel = ctx.upgrade.is_some();
    let mut read = progress.bytes.get();
    let answer = {
        let cluster = Arc::clone(&cluster);
        let mut tries = Tries::new(action, cluster, state, &time, wanted);
        let mut work = pin!(tries.run(ctx, body));
        poll_fn(|cx| {
            start(&time, !tunnel && progress.done.get(), &mut deadline);
            if let Poll::Ready(answer) = work.as_mut().poll(cx) {
                return Poll::Ready(answer);
            }
            start(&time, !tunnel && progress.done.get(), &mut deadline);
            if let Some(pause) = &mut pause {
                if read != progress.bytes.get() {
                    read = progress.bytes.get();
                    pause.moved();
                }
                if pause.poll(cx).is_ready() {
                    return Poll::Ready(Err(Reason::idle(progress.done.get())));
                }
            }
            deadline.poll(cx).map(|reason| {
                progress.over.set(Some(reason));
                Err(reason)
            })
        })
        .await
    };
    // Whatever ended it: time, a limit, nobody left to ask.
    if answer.is_err() && ctx.retried == Retried::Yes {
        ctx.retried = Retried::InVain;
    }
    let mut response = answer?;
    if response.upgraded.is_some() {
        ctx.tunnel_idle = action.timeouts.idle.or(Some(TUNNEL_IDLE));
        ctx.deadline = Deadline::of_stream(time.stream());
    } else {
        let from_request = limits.request.filter(|_| !time.runs()).map(|limit| (Rc::clone(&progress), limit));
        let idle = idle_after_head(action).map(|(limit, reason)| (Idle::new(limit), reason));
        let request = (!progress.done.get()).then(|| (Rc::clone(&progress), progress.bytes.get()));
        guard(ctx, &mut response, TimeLimits { deadline, idle, from_request, request });
    }
    // The last good answer is not one of now.
    if ctx.reason.is_none() {
        finish(ctx, &mut response, http);
    }
    for cookie in cookies {
        response.head.headers.append(header::SET_COOKIE, cookie);
    }
    let mut values = Values::of_response(ctx, response.head.status);
    target
        .response_headers
        .apply(&mut response.head.headers, &mut |template, headers| values.render(template, headers));
    Ok(response)
}

/// The route's timeout runs from the end of the request (Envoy `RouteAction.timeout`).
fn start(time: &TimeLeft, received: bool, deadline: &mut Deadline) {
    if received
        && !time.runs()
        && let Some(at) = time.start(Instant::now())
    {
        deadline.limit(at, Reason::UpstreamTimeout);
    }
}

/// How long nothing may move before the head of the answer.
fn pause(ctx: &RequestCtx, action: &RouteAction) -> Option<Duration> {
    match action.timeouts.idle {
        Limit::After(limit) if ctx.upgrade.is_none() => Some(limit),
        _ => None,
    }
}

/// How long nothing may move after the head: by the route, or by the policy for the try that is answered.
fn idle_after_head(action: &RouteAction) -> Option<(Duration, Reason)> {
    let per_try = action.retry.as_ref().and_then(|retry| retry.per_try_idle_timeout);
    let per_try = per_try.map(|limit| (limit, Reason::PerTryIdle));
    match action.timeouts.idle {
        Limit::After(limit) if per_try.is_none_or(|(shorter, _)| limit <= shorter) => {
            Some((limit, Reason::StreamIdle))
        }
        _ => per_try,
    }
}

/// Time limits go on while the body comes; the status of a gRPC answer is behind it.
fn guard(ctx: &mut RequestCtx, response: &mut Response, limits: TimeLimits) {
    let trailers = ctx.is_grpc().then(|| Rc::clone(&ctx.trailers));
    if response.body.is_end() || !(limits.is_some() || trailers.is_some()) {
        return;
    }
    let body = std::mem::take(&mut response.body);
    let unsettled = ctx.unsettled.take();
    let guarded = GuardedBody::new(body, limits, trailers.map(|cell| Trailers { cell, unsettled }));
    response.body = Body::Guarded(Box::new(guarded));
}

/// Passes an `Upgrade` on when listener or route allow it; otherwise it is ignored, as RFC 9110 §7.8 lets us (features.md B8).
fn pass_upgrade(ctx: &mut RequestCtx, action: &RouteAction, http: &HttpSpec) -> Result<(), Reason> {
    // What ends here is a CONNECT, and a connection of its own: a stream of HTTP/2 is none.
    let ends = ctx.head.method == Method::CONNECT && ctx.head.version != Version::HTTP_2;
    let allowed = |token: &str| match action.upgrade(token) {
        Some(rule) => rule.enabled && (ends || !rule.terminate_connect),
        None => http.upgrades.iter().any(|u| u.eq_ignore_ascii_case(token)),
    };
    if let Some(upgrade) = &ctx.upgrade
        && !upgrade.to_str().is_ok_and(allowed)
    {
        ctx.upgrade = None;
    }
    if ctx.head.method == Method::CONNECT && !allowed("connect") {
        Err(Reason::UpgradeRefused)
    } else {
        Ok(())
    }
}

/// The hash of the request before it is changed, and the cookies that were made for it.
fn hash(ctx: &RequestCtx, action: &RouteAction) -> (Option<u64>, SmallVec<[HeaderValue; 1]>) {
    if action.hash_policy.is_empty() {
        return (None, SmallVec::new());
    }
    let downstream = &ctx.downstream;
    let connection = (downstream.remote, downstream.local);
    let request = Hashed { head: &ctx.head, client: ctx.origin.client, connection };
    hash_policy::hash(&action.hash_policy, &request)
}

fn find_cluster(ctx: &mut RequestCtx, target: &Target<'_>) -> Option<Arc<Cluster>> {
    let cluster = match target.cluster.resolve(&ctx.head) {
        NamedCluster::Id(id) => {
            ctx.cluster_id = Some(id);
            ctx.snapshot.cluster(id)
        }
        NamedCluster::Name(name) => ctx.snapshot.cluster_by_name(name),
        NamedCluster::Missing => None,
    };
    cluster.cloned()
}

/// When the stream of a request that goes to `route` ends at the latest, as far as its listener and route say so.
pub(super) fn stream_end(ctx: &RequestCtx, route: &Route) -> Option<Instant> {
    let crate::route::Action::Forward(action) = &route.action else { return None };
    if !action.timeouts.limits_stream(ctx.http.max_stream_duration) {
        return None;
    }
    ctx.start.checked_add(time_limits(ctx, action, &ctx.http).stream?)
}

fn time_limits(ctx: &RequestCtx, action: &RouteAction, http: &HttpSpec) -> Limits {
    let with = Circumstances {
        grpc: ctx.is_grpc(),
        internal: ctx.origin.internal,
        respect_expected: http.respect_expected_timeout,
        per_try: action.retry.as_ref().and_then(|r| r.per_try_timeout),
        hedge: action.hedge,
        tunnel: ctx.may_tunnel(),
        listener_stream: http.max_stream_duration,
        waits: ctx.origin.waits,
    };
    action.timeouts.limits(&ctx.head.headers, &with)
}

fn rewrite(
    ctx: &mut RequestCtx,
    route: &Route,
    action: &RouteAction,
    target: &Target<'_>,
    http: &HttpSpec,
) -> Result<(), Reason> {
    if !target.request_headers.is_empty() {
        let mut headers = std::mem::take(&mut ctx.head.headers);
        let mut values = Values::new(ctx);
        target.request_headers.apply(&mut headers, &mut |template, headers| values.render(template, headers));
        ctx.head.headers = headers;
    }
    let path = match &action.path_rewrite {
        None => None,
        Some(rewrite) => {
            let mut values = Values::new(ctx);
            let render = &mut |template: &str, headers: &_| values.render(template, headers);
            rewrite
                .apply(&ctx.head.path, &route.matcher.path, &ctx.head.headers, render)
                .map_err(|_| Reason::BadPath)?
        }
    };
    let host = {
        let mut values = Values::new(ctx);
        let render = &mut |template: &str, headers: &_| values.render(template, headers);
        match target.host {
            Some(host) => Some(host.clone()),
            None => action.host_rewrite.apply(&ctx.head, None, render).map_err(|_| Reason::BadHost)?,
        }
    };
    if action.path_rewrite.is_some() {
        ctx.note_original_path();
        if !http.suppress_envoy_headers
            && let Ok(original) = HeaderValue::from_str(ctx.original_path().as_str())
        {
            ctx.head.headers.insert(ORIGINAL_PATH.clone(), original);
        }
    }
    if let Some(path) = path {
        ctx.head.path = path;
    }
    if let Some(host) = host {
        set_host(ctx, action, host);
        if target.host.is_some() {
            // As in Envoy, for a weighted cluster's own host.
            ctx.head.headers.remove(&ORIGINAL_HOST);
        }
    }
    Ok(())
}

/// Replaces the host, telling the upstream the old one when the route wants that.
pub(super) fn set_host(ctx: &mut RequestCtx, action: &RouteAction, host: http::uri::Authority) {
    ctx.note_judged_host();
    let old = ctx.head.authority.replace(host);
    let Some(old) = old.and_then(|old| HeaderValue::from_str(old.as_str()).ok()) else { return };
    if action.append_x_forwarded_host {
        append_host(&mut ctx.head.headers, &old);
    }
    if !ctx.http.suppress_envoy_headers {
        ctx.head.headers.insert(ORIGINAL_HOST.clone(), old);
    }
}

/// Appends to `x-forwarded-host`, unless the host is the last one there.
fn append_host(headers: &mut http::HeaderMap, host: &HeaderValue) {
    headers::join_lines(headers, &X_FORWARDED_HOST);
    let list = headers.get(&X_FORWARDED_HOST).map(HeaderValue::as_bytes).unwrap_or_default();
    let last = list.rsplit(|b| *b == b',').next().unwrap_or_default().trim_ascii();
    if last != host.as_bytes() {
        headers::append_list(headers, &X_FORWARDED_HOST, b",", host.as_bytes());
    }
}

fn finish(ctx: &mut RequestCtx, response: &mut Response, http: &HttpSpec) {
    let taken = ctx.start.elapsed();
    ctx.answered = Some(taken);
    let headers = &mut response.head.headers;
    // An answer that overtook its request tells nothing about the endpoint's speed.
    if !http.suppress_envoy_headers && ctx.upgrade.is_none() && ctx.progress.done.get() {
        let millis = u64::try_from(taken.as_millis()).unwrap_or(u64::MAX);
        headers.insert(SERVICE_TIME.clone(), HeaderValue::from(millis));
    }
}
