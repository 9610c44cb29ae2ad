//! The filters of the listener, in the order of `http_filters`. They run before anything is sent anywhere.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderValue;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::authz;
use super::body::Body;
use super::compress;
use super::context::RequestCtx;
use super::downstream::Downstream;
use super::global_limit::{self, Told};
use super::head::RequestHead;
use super::local_reply;
use super::quota;
use super::response::Response;
use super::session::{self, SessionFilter};
use super::throttle::ThrottledBody;
use super::traffic;
use crate::balance::context::OverrideHost;
use crate::config::spec::HttpFilter;
use crate::error::Reason;
use crate::policy::authz::answer::{Denial, HeaderChange};
use crate::policy::jwt::JwtFilter;
use crate::policy::jwt::provider::Now;
use crate::policy::jwt::requirement::Requirement;
use crate::policy::overrides::{Override, Overrides};
use crate::policy::rbac::{self, Engine, RbacFilter, Verdict};
use crate::policy::view::{Claims, RequestView, View};
use crate::resilience::concurrency::Place;
use crate::route::Found;
use crate::telemetry::metrics::Decision;
use crate::traffic::compress::Compressor;
use crate::traffic::cors::CorsPolicy;
use crate::traffic::fault::ActiveFault;
use crate::traffic::limit::Shown;

/// What filters found out about a request, besides whether it may go on.
#[derive(Debug, Default)]
pub struct Findings {
    /// Why the request was refused; for its operator alone.
    pub refusal: Option<Box<Refusal>>,
    /// What `shadow_rules` would have said.
    pub shadow: Option<String>,
    /// The refusal as a filter wrote it, whole.
    pub reply: Option<Box<Response>>,
    /// The filters by which the request counts as one with a fault.
    pub faults: SmallVec<[ActiveFault; 1]>,
    /// The refusal in the words of an external service.
    pub denial: Option<Box<Denial>>,
    /// `WWW-Authenticate` of the refusal.
    pub challenge: Option<HeaderValue>,
    /// Payloads of verified tokens.
    pub claims: Vec<Claims>,
    /// Verdicts of RBAC that filters behind go by.
    pub verdicts: Vec<Claims>,
    /// Names of the providers whose tokens were verified.
    pub providers: Vec<Arc<str>>,
    /// An authorizer changed the request: what it took away or added may tell who asks.
    pub rewritten: bool,
    /// The endpoint of its session.
    pub host: Option<OverrideHost>,
}

impl Findings {
    /// Whether filters know who asks, though the request that is forwarded need not say it any more.
    #[must_use]
    pub const fn is_personal(&self) -> bool {
        self.rewritten || !self.providers.is_empty()
    }
}

/// What is known of a refusal besides its reason.
#[derive(Debug, Default)]
pub struct Refusal {
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Option<String>,
    /// What said no, or what was asked for; None: the policy that the details name.
    pub rule: Option<String>,
    /// The virtual host that was found.
    pub virtual_host: Option<Arc<str>>,
    /// The route that was found.
    pub route: Option<Arc<str>>,
}

/// What a filter does with the answer, whoever makes it. It was decided when the filter saw the request, with what the route says.
#[derive(Debug)]
pub enum Answering {
    /// Changes that an external service wants.
    Changes(Vec<HeaderChange>),
    /// The address of the endpoint, for a client that does not know it.
    Session {
        /// Where it goes.
        filter: Arc<SessionFilter>,
        /// What the client knew.
        known: Option<SocketAddr>,
    },
    /// An origin may read it.
    Share(Arc<CorsPolicy>, HeaderValue),
    /// It shows a rate limit.
    Limit(Shown),
    /// A rate limit service wants something in it.
    Told(Box<Told>),
    /// It is compressed, by one of these.
    Compress(SmallVec<[Arc<Compressor>; 1]>, HeaderValue),
    /// Its body comes with that many bytes a second.
    Throttle(u64),
    /// The request was on its way until now.
    Arrived(Place),
}

/// Does with the head of an answer what filters that saw the request want: the last one of them first, as in Envoy.
pub fn answer(ctx: &mut RequestCtx, response: &mut Response) {
    while let Some(step) = ctx.answering.pop() {
        match step {
            Answering::Changes(changes) => {
                for change in &changes {
                    change.apply(&mut response.head.headers);
                }
            }
            Answering::Session { filter, known } => {
                session::answer(ctx, &filter, known, &mut response.head.headers);
            }
            Answering::Share(policy, origin) => policy.share(Some(origin), &mut response.head.headers),
            Answering::Limit(shown) => traffic::show(shown, response),
            Answering::Told(told) => told.apply(&mut response.head.headers),
            Answering::Compress(offered, accept) => compress::compress(&offered, &accept, response),
            Answering::Throttle(rate) => {
                let body = std::mem::take(&mut response.body);
                let throttled = ThrottledBody::new(body, rate, Instant::now());
                response.body = Body::Throttled(Box::new(throttled));
            }
            Answering::Arrived(place) => traffic::arrived(ctx, place, &response.head),
        }
    }
}

/// Runs `filters` with what the route says about them. Some: a filter wants the route to be chosen again, for the filters that are
/// left.
///
/// # Errors
/// Why one of them refuses the request.
pub async fn run<'f>(
    ctx: &mut RequestCtx,
    body: &mut Body,
    filters: &'f [HttpFilter],
    found: &Found<'_>,
) -> Result<Option<&'f [HttpFilter]>, Reason> {
    let route = found.overrides();
    for (i, filter) in filters.iter().enumerate() {
        match filter {
            HttpFilter::Rbac(name, filter) => {
                if let Some(filter) = effective(name, filter, route) {
                    access(ctx, filter, &filters[i + 1..])?;
                }
            }
            HttpFilter::Jwt(name, filter) => {
                if i > 0 || !ctx.stages().is_empty() {
                    // Those before it see the token, which it takes away.
                    ctx.note_stage(name);
                }
                tokens(ctx, filter, route.and_then(|route| route.of(name))).await?;
            }
            // Nothing will come of a request without a route, and nobody is asked about it, as in Envoy.
            HttpFilter::Authz(name, filter) if !matches!(found, Found::NoRoute(_) | Found::NoVirtualHost) => {
                let said = route.and_then(|route| route.of(name));
                if Box::pin(authz::check(ctx, body, name, filter, said)).await? {
                    return Ok(Some(&filters[i + 1..]));
                }
            }
            HttpFilter::Session(name, filter) => match route.and_then(|route| route.of(name)) {
                Some(Override::Disabled) => {}
                Some(Override::Session(own)) => session::begin(ctx, own),
                _ => session::begin(ctx, filter),
            },
            HttpFilter::Cors(name) => traffic::cors(ctx, route.and_then(|route| route.of(name)), found)?,
            HttpFilter::Compressor(name, filter) => {
                compress::offer(ctx, name, filter, route.and_then(|route| route.of(name)));
            }
            HttpFilter::LocalLimit(name, filter) => {
                let said = route.and_then(|route| route.of(name));
                traffic::local_limit(ctx, name, filter, said, found)?;
            }
            HttpFilter::GlobalLimit(name, filter) => {
                let said = route.and_then(|route| route.of(name));
                Box::pin(global_limit::check(ctx, name, filter, said, found)).await?;
            }
            HttpFilter::Concurrency(name, filter) => {
                let said = route.and_then(|route| route.of(name));
                traffic::concurrency(ctx, name, filter, said, found)?;
            }
            HttpFilter::Quota(name, filter) => {
                quota::check(ctx, name, filter, route.and_then(|route| route.of(name)))?;
            }
            HttpFilter::Fault(name, filter) => {
                let said = route.and_then(|route| route.of(name));
                Box::pin(traffic::fault(ctx, filter, said, found)).await?;
            }
            HttpFilter::Buffer(name, limit) => {
                let said = route.and_then(|route| route.of(name));
                Box::pin(traffic::buffer(ctx, body, name, *limit, said)).await?;
            }
            HttpFilter::Authz(..) | HttpFilter::Router => {}
        }
    }
    Ok(None)
}

/// The rules that hold for a route.
fn effective<'f>(name: &str, filter: &'f RbacFilter, route: Option<&'f Overrides>) -> Option<&'f RbacFilter> {
    match route.and_then(|route| route.of(name)) {
        Some(Override::Rbac(filter)) => Some(filter),
        Some(Override::Disabled) => None,
        // What is about another kind of filter is refused where the filters are known.
        _ => Some(filter),
    }
}

/// Judges a request that was let in once more. Only a refusal counts: the request was counted when it came.
///
/// # Errors
/// It would be refused now: the text for `%RESPONSE_CODE_DETAILS%`.
pub fn still_allowed(
    downstream: &Downstream,
    (name, filter): (&str, &RbacFilter),
    route: Option<&Overrides>,
    view: &View<'_>,
) -> Result<(), String> {
    let rules = effective(name, filter, route).and_then(|filter| filter.rules.as_ref());
    if let Some(verdict) = rules.map(|rules| rules.judge(view)).filter(|verdict| !verdict.allowed) {
        downstream.worker.metrics.decided(downstream, &verdict, Decision::Denied);
        return Err(rbac::details(verdict.policy));
    }
    Ok(())
}

/// `envoy.filters.http.rbac`, before the filters `behind`.
fn access(ctx: &mut RequestCtx, filter: &RbacFilter, behind: &[HttpFilter]) -> Result<(), Reason> {
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
    if let Some(shadow) = shadow {
        // What decides whether a filter behind does anything is no dry run.
        let awaited = leave(ctx, behind, Engine::Shadow, &shadow);
        if !shadow.allowed && !awaited {
            findings(ctx).shadow = Some(rbac::details(shadow.policy));
        }
    }
    let Some(verdict) = verdict else { return Ok(()) };
    if verdict.allowed {
        leave(ctx, behind, Engine::Enforced, &verdict);
        return Ok(());
    }
    let refusal = refusal(ctx);
    refusal.details = Some(rbac::details(verdict.policy));
    refusal.rule = filter.rules.as_ref().map(|rules| rules.blame(verdict.policy));
    Err(Reason::RbacDenied)
}

/// Leaves a verdict for those of the filters `behind` that go by it. Whether there is one.
fn leave(ctx: &mut RequestCtx, behind: &[HttpFilter], engine: Engine, verdict: &Verdict<'_>) -> bool {
    let mut awaited = false;
    for key in behind.iter().filter_map(HttpFilter::awaits) {
        let Some(field) = verdict.field(engine, key) else { continue };
        awaited = true;
        if let Some(value) = verdict.value(field) {
            let verdicts = &mut findings(ctx).verdicts;
            // Of two filters with one prefix the last one's holds.
            verdicts.retain(|other| other.key != *key);
            verdicts.push(Claims { key: Arc::clone(key), payload: Arc::new(value.into()) });
        }
    }
    awaited
}

/// What `filter` asks of a request, with what its route says about that.
///
/// # Errors
/// The route names a requirement that is not there.
pub fn required<'f>(
    filter: &'f JwtFilter,
    said: Option<&Override>,
    head: &RequestHead,
    random: u64,
) -> Result<Option<&'f Requirement>, Reason> {
    match said {
        Some(Override::Disabled) => Ok(None),
        Some(Override::Jwt(name)) => filter.named.get(&**name).map(Some).ok_or(Reason::JwtNoRequirement),
        _ => Ok(filter.requirement(head, random)),
    }
}

/// `envoy.filters.http.jwt_authn`.
async fn tokens(ctx: &mut RequestCtx, filter: &JwtFilter, said: Option<&Override>) -> Result<(), Reason> {
    filter.sanitize(&mut ctx.head.headers);
    if filter.lets_pass(&ctx.head) {
        return Ok(());
    }
    let requirement = required(filter, said, &ctx.head, ctx.random).inspect_err(|_| {
        if let Some(Override::Jwt(name)) = said {
            refusal(ctx).rule = Some(name.to_string());
        }
    })?;
    let Some(requirement) = requirement else { return Ok(()) };
    filter.keys_ready().await;
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let worker = std::rc::Rc::clone(&ctx.downstream.worker);
    let now = Now { unix, instant: Instant::now(), signatures: &worker.signatures };
    match requirement.check(filter, &ctx.head, now) {
        Ok(verified) => {
            for token in verified {
                findings(ctx).providers.push(Arc::clone(&token.provider.name));
                if let Some(claims) = token.apply(&mut ctx.head) {
                    findings(ctx).claims.push(claims);
                }
            }
            Ok(())
        }
        Err(reason) => {
            findings(ctx).challenge = challenge(&ctx.head, reason);
            let text = local_reply::text(reason).replace(' ', "_");
            let refusal = refusal(ctx);
            refusal.details = Some(format!("jwt_authn_access_denied{{{text}}}"));
            refusal.rule = Some(requirement.names(filter));
            Err(reason)
        }
    }
}

/// `WWW-Authenticate` (RFC 6750 §3): the realm is what was asked for, as in Envoy.
fn challenge(head: &RequestHead, reason: Reason) -> Option<HeaderValue> {
    let host = head.authority.as_ref().map_or("", |a| a.as_str());
    let path = head.path.as_str();
    // What is canonical is ASCII; a quote would end the realm.
    let path = path.get(..256).unwrap_or(path).replace('"', "%22");
    let error = if reason == Reason::JwtMissing { "" } else { ", error=\"invalid_token\"" };
    HeaderValue::try_from(format!("Bearer realm=\"{}://{host}{path}\"{error}", head.scheme)).ok()
}

/// Where filters keep what they found.
pub(super) fn findings(ctx: &mut RequestCtx) -> &mut Findings {
    ctx.policy.get_or_insert_default()
}

/// Where a refusal is described.
pub fn refusal(ctx: &mut RequestCtx) -> &mut Refusal {
    findings(ctx).refusal.get_or_insert_default()
}
