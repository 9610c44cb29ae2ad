//! `envoy.filters.http.ext_authz`: asks the service about a request, over the pools of this worker, and does what it says.

use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderValue, Method};

use super::ahead::AheadBody;
use super::ask::{self, Unread};
use super::body::Body;
use super::context::RequestCtx;
use super::filters::{self, Answering, findings};
use super::headers;
use super::response::Response;
use super::traffic::tell_to_go_on;
use crate::error::Reason;
use crate::policy::authz::answer::{Answer, Changes, Denial, Invalid};
use crate::policy::authz::{
    AuthzFilter, Buffer, CheckSettings, Condition, FAILURE_MODE_ALLOWED, MAX_ANSWER, Piece, Question,
    Service, grpc, web,
};
use crate::policy::overrides::Override;
use crate::policy::rbac::Verdict;
use crate::route::matcher::Fraction;
use crate::telemetry::metrics::Decision;

/// Asks about a request. True: the route has to be chosen again.
///
/// # Errors
/// Why the request may not go on.
pub async fn check(
    ctx: &mut RequestCtx,
    body: &mut Body,
    name: &Arc<str>,
    filter: &AuthzFilter,
    said: Option<&Override>,
) -> Result<bool, Reason> {
    let settings = match said {
        Some(Override::Disabled) => return Ok(false),
        Some(Override::Authz(settings)) => Some(&**settings),
        // What is about another kind of filter is refused where the filters are known.
        _ => None,
    };
    let decided = |ctx: &RequestCtx, decision| count(ctx, name, filter, decision);
    if !is_asked(ctx, filter) {
        decided(ctx, Decision::Disabled);
        return if filter.deny_disabled { Err(fail(ctx, name, filter, "disabled", None)) } else { Ok(false) };
    }
    let buffer = settings.and_then(|settings| settings.buffer).unwrap_or(filter.buffer);
    let piece = match buffer {
        Some(buffer) => read_ahead(ctx, name, body, buffer).await?,
        None => None,
    };
    let asked = Asked { filter, settings, buffer, piece: piece.as_ref(), length: body.exact_len() };
    let answer = tokio::time::timeout(filter.timeout, asked.ask(ctx)).await;
    let (why, denial) = match answer.unwrap_or(Err("timeout")) {
        Ok(Answer::Allowed(changes)) => match apply(ctx, name, *changes) {
            Ok(changed) => {
                decided(ctx, Decision::Allowed);
                return Ok(changed && filter.clear_route_cache);
            }
            Err(invalid) => (invalid.id(), None),
        },
        Ok(Answer::Denied(denial)) => {
            decided(ctx, Decision::Denied);
            refuse(ctx, name, "ext_authz_denied".into(), denial);
            return Err(Reason::ExtAuthzDenied);
        }
        Ok(Answer::Failed(denial)) => ("error_response", Some(denial)),
        Err(why) => (why, None),
    };
    decided(ctx, Decision::Failed);
    if !filter.on_failure.allow {
        return Err(fail(ctx, name, filter, why, denial));
    }
    decided(ctx, Decision::FailedOpen);
    if filter.on_failure.mark {
        ctx.note_stage(name);
        ctx.head.headers.insert(&FAILURE_MODE_ALLOWED, HeaderValue::from_static("true"));
    }
    Ok(false)
}

/// Whether the service is asked about this request (`filter_enabled`, `filter_enabled_metadata`).
fn is_asked(ctx: &RequestCtx, filter: &AuthzFilter) -> bool {
    let sampled = |part: Fraction| part.contains(ctx.downstream.worker.with_rng(|rng| rng.u64(..)));
    let told = |condition: &Condition| match &ctx.policy {
        Some(policy) => condition.holds(&policy.claims, &policy.verdicts),
        None => condition.holds(&[], &[]),
    };
    filter.enabled.is_none_or(sampled) && filter.condition.as_ref().is_none_or(told)
}

fn count(ctx: &RequestCtx, name: &Arc<str>, filter: &AuthzFilter, decision: Decision) {
    let AuthzFilter { stat_prefix, id, .. } = filter;
    let verdict = Verdict {
        allowed: !matches!(decision, Decision::Denied | Decision::Failed),
        policy: Some(name),
        stat_prefix,
        id: *id,
    };
    ctx.downstream.worker.metrics.decided(&ctx.downstream, &verdict, decision);
}

/// The request is refused because nobody could say anything about it; `why` is for operators.
fn fail(
    ctx: &mut RequestCtx,
    name: &str,
    filter: &AuthzFilter,
    why: &str,
    denial: Option<Box<Denial>>,
) -> Reason {
    let mut denial = denial.unwrap_or_default();
    denial.status = denial.status.or(Some(filter.on_failure.status));
    refuse(ctx, name, format!("ext_authz_error{{{why}}}"), denial);
    Reason::ExtAuthzError
}

fn refuse(ctx: &mut RequestCtx, name: &str, details: String, denial: Box<Denial>) {
    let refusal = filters::refusal(ctx);
    refusal.details = Some(details);
    refusal.rule = Some(name.to_owned());
    ctx.policy.get_or_insert_default().denial = Some(denial);
}

/// Reads the beginning of the body, which goes on with it.
async fn read_ahead(
    ctx: &mut RequestCtx,
    name: &Arc<str>,
    body: &mut Body,
    buffer: Buffer,
) -> Result<Option<Piece>, Reason> {
    if body.is_end() {
        return Ok(None);
    }
    tell_to_go_on(ctx, name).await;
    let ahead = AheadBody::read(std::mem::take(body), buffer.limit).await?;
    let (bytes, partial) = ahead.first(buffer.limit);
    *body = Body::Ahead(Box::new(ahead));
    if partial && !buffer.partial {
        return Err(Reason::BodyTooLarge);
    }
    Ok(Some(Piece { bytes, partial }))
}

/// Makes the changes. True: something that routes look at may be another now.
///
/// # Errors
/// Nothing was changed, because one of them cannot be made.
fn apply(ctx: &mut RequestCtx, name: &Arc<str>, changes: Changes) -> Result<bool, Invalid> {
    let path = changes.path(&ctx.head.path)?;
    if changes.is_request_changed() {
        ctx.note_stage(name);
        findings(ctx).rewritten = true;
    }
    changes.apply(&mut ctx.head.headers);
    if let Some(path) = path
        && ctx.head.method != Method::CONNECT
    {
        ctx.head.path = path;
    }
    let changed = changes.is_request_changed();
    if !changes.response.is_empty() {
        ctx.answering.push(Answering::Changes(changes.response));
    }
    Ok(changed)
}

/// A question on its way.
struct Asked<'a> {
    filter: &'a AuthzFilter,
    settings: Option<&'a CheckSettings>,
    buffer: Option<Buffer>,
    piece: Option<&'a Piece>,
    length: Option<u64>,
}

impl Asked<'_> {
    /// # Errors
    /// Why there is no answer, in a word.
    async fn ask(&self, ctx: &RequestCtx) -> Result<Answer, &'static str> {
        let filter = self.filter;
        let own = headers::own_identity(&ctx.downstream);
        let question = self.question(ctx, own.as_deref());
        let (mut head, body) = match &filter.service {
            Service::Grpc(service) => {
                let message = grpc::question(&question, &filter.told, self.buffer);
                (grpc::head(service, grpc::CHECK, filter.timeout), message)
            }
            Service::Web(service) => match web::head(service, filter.timeout, &question, &filter.told) {
                Some(head) => (head, self.piece.map(|piece| piece.bytes.clone()).unwrap_or_default()),
                // Not a failure, which could be let pass: a client chooses what it asks for.
                None => return Ok(Answer::Denied(Box::default())),
            },
        };
        ask::add_headers(ctx, &mut head, filter.service.added());
        let response =
            ask::exchange(ctx, filter.cluster, &head, body).await.map_err(|failed| failed.reason.id())?;
        let limit = filter.max_denied_body;
        let answer = match &filter.service {
            Service::Grpc(_) => {
                ask::data(response).await.and_then(|body| grpc::answer(&body, limit).map_err(Unread::Invalid))
            }
            Service::Web(service) => web_answer(service, response, limit).await,
        };
        answer.map_err(Unread::id)
    }

    fn question<'q>(&'q self, ctx: &'q RequestCtx, own: Option<&'q str>) -> Question<'q> {
        let downstream = &ctx.downstream;
        Question {
            head: &ctx.head,
            connection: downstream.view(ctx.origin.client),
            peer: downstream.remote,
            own,
            server_name: downstream.tls.as_ref().map(|tls| tls.sni.as_deref().unwrap_or_default()),
            time: SystemTime::now().checked_sub(ctx.start.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH),
            body: self.piece,
            length: self.length,
            context: self.settings.map(|settings| &settings.context),
            claims: ctx.policy.as_ref().map_or(&[], |policy| &policy.claims),
        }
    }
}

async fn web_answer(service: &web::WebService, response: Response, limit: usize) -> Result<Answer, Unread> {
    let Response { head, body, .. } = response;
    // What comes with an answer that allows is read, so that the connection can be used again.
    let most = if web::is_denial(head.status) { limit } else { MAX_ANSWER };
    let (body, ..) = ask::collect(body, most).await.map_err(Unread::Broken)?;
    Ok(web::answer(service, &head, body, limit)?)
}
