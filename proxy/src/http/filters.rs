//! The filters of the listener, in the order of `http_filters`. They run before anything is sent anywhere.

use http::HeaderValue;

use super::context::RequestCtx;
use super::downstream::Downstream;
use super::recheck::Recheck;
use crate::config::spec::HttpFilter;
use crate::error::Reason;
use crate::policy::overrides::{Override, Overrides};
use crate::policy::rbac::{self, RbacFilter};
use crate::policy::view::{Claims, RequestView, View};
use crate::telemetry::metrics::Decision;

/// What filters found out about a request, besides whether it may go on.
#[derive(Debug, Default)]
pub struct Findings {
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Option<String>,
    /// What `shadow_rules` would have said.
    pub shadow: Option<String>,
    /// `WWW-Authenticate` of the refusal.
    pub challenge: Option<HeaderValue>,
    /// Payloads of verified tokens.
    pub claims: Vec<Claims>,
}

/// Runs `filters` with what the route says about them.
///
/// # Errors
/// Why one of them refuses the request.
pub fn run(ctx: &mut RequestCtx, filters: &[HttpFilter], route: Option<&Overrides>) -> Result<(), Reason> {
    let mut judged = false;
    for filter in filters {
        match filter {
            HttpFilter::Rbac(name, filter) => {
                judged = true;
                if let Some(filter) = effective(name, filter, route) {
                    access(ctx, filter)?;
                }
            }
            HttpFilter::Router => {}
        }
    }
    if judged {
        ctx.recheck = Some(Box::new(Recheck::new(ctx)));
    }
    Ok(())
}

/// The rules that hold for a route.
fn effective<'f>(name: &str, filter: &'f RbacFilter, route: Option<&'f Overrides>) -> Option<&'f RbacFilter> {
    match route.and_then(|route| route.of(name)) {
        None => Some(filter),
        Some(Override::Rbac(filter)) => Some(filter),
        Some(Override::Disabled) => None,
    }
}

/// Judges a request that was let in once more. Only a refusal counts: the request was counted when it came.
///
/// # Errors
/// It would be refused now.
pub fn still_allowed(
    downstream: &Downstream,
    filters: &[HttpFilter],
    route: Option<&Overrides>,
    view: &View<'_>,
) -> Result<(), Reason> {
    for filter in filters {
        let HttpFilter::Rbac(name, filter) = filter else { continue };
        let rules = effective(name, filter, route).and_then(|filter| filter.rules.as_ref());
        if let Some(verdict) = rules.map(|rules| rules.judge(view)).filter(|verdict| !verdict.allowed) {
            downstream.worker.metrics.decided(downstream, &verdict, Decision::Denied);
            return Err(Reason::RbacDenied);
        }
    }
    Ok(())
}

/// `envoy.filters.http.rbac`.
fn access(ctx: &mut RequestCtx, filter: &RbacFilter) -> Result<(), Reason> {
    let downstream = std::rc::Rc::clone(&ctx.downstream);
    let claims = ctx.policy.as_ref().map_or(&[][..], |policy| &policy.claims);
    let request = Some(RequestView::from(&ctx.head));
    let view = View { connection: downstream.view(ctx.origin.client), request, claims };
    let shadow = filter.shadow.as_ref().map(|rules| rules.judge(&view));
    let verdict = filter.rules.as_ref().map(|rules| rules.judge(&view));
    let metrics = &downstream.worker.metrics;
    if let Some(shadow) = &shadow {
        metrics.decided(&downstream, shadow, Decision::shadow(shadow.allowed));
    }
    if let Some(verdict) = &verdict {
        metrics.decided(&downstream, verdict, Decision::enforced(verdict.allowed));
    }
    if let Some(shadow) = shadow.filter(|shadow| !shadow.allowed) {
        findings(ctx).shadow = Some(rbac::details(shadow.policy));
    }
    let Some(verdict) = verdict else { return Ok(()) };
    if verdict.allowed {
        return Ok(());
    }
    findings(ctx).details = Some(rbac::details(verdict.policy));
    Err(Reason::RbacDenied)
}

fn findings(ctx: &mut RequestCtx) -> &mut Findings {
    ctx.policy.get_or_insert_default()
}
