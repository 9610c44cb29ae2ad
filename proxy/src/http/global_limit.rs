//! `envoy.filters.http.ratelimit`: asks a rate limit service about a request, and does what it says.

use std::rc::Rc;
use std::sync::Arc;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use super::ask;
use super::context::RequestCtx;
use super::filters::Answering;
use super::local_reply;
use super::traffic::{describe, draw, limited, refuse};
use crate::error::Reason;
use crate::policy::authz::grpc;
use crate::policy::overrides::Override;
use crate::policy::rbac::Verdict;
use crate::route::matcher::Fraction;
use crate::route::{Action, Found};
use crate::telemetry::metrics::Decision;
use crate::traffic::limit::global::{GlobalLimit, GlobalRoute, PATH, Quota, Said, answer, question};

const RATELIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");

/// What a service wants in the answer.
#[derive(Debug, Default)]
pub struct Told {
    headers: Vec<(HeaderName, HeaderValue)>,
    quota: Option<Quota>,
}

impl Told {
    /// Changes the answer.
    pub fn apply(self, headers: &mut HeaderMap) {
        for (name, value) in self.headers {
            headers.append(name, value);
        }
        if let Some(quota) = self.quota {
            quota.show(headers);
        }
    }
}

/// Asks about a request.
///
/// # Errors
/// There are too many, or nobody knows and the filter refuses then.
pub async fn check(
    ctx: &mut RequestCtx,
    name: &Arc<str>,
    filter: &GlobalLimit,
    said: Option<&Override>,
    found: &Found<'_>,
) -> Result<(), Reason> {
    let nothing = GlobalRoute::default();
    let route = match said {
        Some(Override::Disabled) => return Ok(()),
        Some(Override::GlobalLimit(route)) => route,
        _ => &nothing,
    };
    let is_kind = filter.internal.is_none_or(|internal| internal == ctx.origin.internal);
    if !is_kind || !sampled(ctx, filter.enabled) {
        return Ok(());
    }
    // What a route that forwards says, as in Envoy.
    let Found::Route(_, found) = found else { return Ok(()) };
    let Action::Forward(_) = &found.action else { return Ok(()) };
    let rules = if route.rules.is_empty() { &filter.rules } else { &route.rules };
    let descriptors = describe(ctx, found, rules, (filter.stage, route.host_rules));
    if descriptors.is_empty() {
        return Ok(());
    }
    let domain = route.domain.as_deref().unwrap_or(&filter.domain);
    let mut head = grpc::head(&filter.service, PATH, filter.timeout);
    ask::add_headers(ctx, &mut head, &filter.service.metadata);
    let asked = ask::rpc(ctx, filter.cluster, &head, question(domain, &descriptors));
    let outcome = match tokio::time::timeout(filter.timeout, asked).await {
        Ok(Ok(body)) => answer(&body).map_err(|invalid| invalid.id()),
        Ok(Err(why)) => Err(why),
        Err(_) => Err("timeout"),
    };
    match outcome {
        Ok(said) => obey(ctx, name, filter, said),
        Err(why) => failed(ctx, name, filter, why),
    }
}

fn sampled(ctx: &RequestCtx, part: Option<Fraction>) -> bool {
    part.is_none_or(|part| part.contains(draw(ctx)))
}

fn count(ctx: &RequestCtx, name: &Arc<str>, filter: &GlobalLimit, decision: Decision) {
    let downstream = Rc::clone(&ctx.downstream);
    let GlobalLimit { stat_prefix, id, .. } = filter;
    let allowed = matches!(decision, Decision::Allowed | Decision::FailedOpen);
    let verdict = Verdict { allowed, policy: Some(name), stat_prefix, id: *id };
    downstream.worker.metrics.decided(&downstream, &verdict, decision);
}

fn obey(ctx: &mut RequestCtx, name: &Arc<str>, filter: &GlobalLimit, said: Said) -> Result<(), Reason> {
    let Said { over, response, request, body, quota } = said;
    let told = Told { headers: response, quota: quota.filter(|_| filter.show) };
    if over && sampled(ctx, filter.enforced) {
        count(ctx, name, filter, Decision::Denied);
        ctx.answering.push(Answering::Told(Box::new(told)));
        let mark = filter.mark.then(|| (RATELIMITED, HeaderValue::from_static("true")));
        return Err(limited(
            ctx,
            name,
            (Reason::RateLimited, "request_rate_limited"),
            &filter.refusal,
            (body, mark),
        ));
    }
    count(ctx, name, filter, if over { Decision::ShadowDenied } else { Decision::Allowed });
    if !request.is_empty() {
        ctx.note_stage(name);
        for (name, value) in request {
            ctx.head.headers.append(name, value);
        }
    }
    ctx.answering.push(Answering::Told(Box::new(told)));
    Ok(())
}

fn failed(ctx: &mut RequestCtx, name: &Arc<str>, filter: &GlobalLimit, why: &str) -> Result<(), Reason> {
    let Some(status) = filter.deny_on_error else {
        count(ctx, name, filter, Decision::Failed);
        count(ctx, name, filter, Decision::FailedOpen);
        return Ok(());
    };
    count(ctx, name, filter, Decision::Failed);
    let reason = Reason::RateLimitError;
    let response = local_reply::reply_with(reason, status, bytes::Bytes::new(), ctx.is_grpc());
    super::filters::refusal(ctx).rule = Some(format!("{name}: {why}"));
    Err(refuse(ctx, reason, "rate_limiter_error", response))
}
