//! `envoy.filters.http.rate_limit_quota`: takes from the share of the bucket that a request belongs to.

use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;

use super::context::RequestCtx;
use super::traffic::{draw, limited, mark};
use crate::error::Reason;
use crate::policy::overrides::Override;
use crate::policy::rbac::Verdict;
use crate::route::matcher::Fraction;
use crate::telemetry::metrics::Decision;
use crate::traffic::limit::quota::QuotaFilter;

/// Counts a request, and lets it go on if the share has a token for it.
///
/// # Errors
/// It has none.
pub fn check(
    ctx: &mut RequestCtx,
    name: &Arc<str>,
    filter: &QuotaFilter,
    said: Option<&Override>,
) -> Result<(), Reason> {
    if matches!(said, Some(Override::Disabled)) || !sampled(ctx, filter.enabled) {
        return Ok(());
    }
    let Some(bucket) = filter.matcher.find(&ctx.head.headers) else { return Ok(()) };
    let allowed = bucket.meter.take(Instant::now());
    let enforced = allowed || sampled(ctx, filter.enforced);
    let downstream = Rc::clone(&ctx.downstream);
    let QuotaFilter { stat_prefix, id, .. } = filter;
    let verdict = Verdict { allowed, policy: Some(name), stat_prefix, id: *id };
    let decision = if enforced { Decision::enforced(allowed) } else { Decision::ShadowDenied };
    downstream.worker.metrics.decided(&downstream, &verdict, decision);
    if allowed {
        return Ok(());
    }
    if !enforced {
        mark(ctx, name, &filter.request_headers);
        return Ok(());
    }
    let (refusal, body) = match ctx.is_grpc() {
        true => (&bucket.grpc_refusal, &bucket.grpc_message),
        false => (&bucket.refusal, &bucket.body),
    };
    let reason = Reason::QuotaExceeded;
    Err(limited(ctx, name, (reason, "rate_limit_quota_exceeded"), refusal, (body.clone(), None)))
}

fn sampled(ctx: &RequestCtx, part: Option<Fraction>) -> bool {
    part.is_none_or(|part| part.contains(draw(ctx)))
}
