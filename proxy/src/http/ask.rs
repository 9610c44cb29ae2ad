//! Asking a service about a request, over the pools of this worker: one question, one answer.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use tokio::time::Instant;

use super::attempt::Exchange;
use super::body::Body;
use super::context::RequestCtx;
use super::h1::client::{Failed, Sent};
use super::head::RequestHead;
use super::interim::InterimSink;
use super::response::Response;
use super::values::Values;
use crate::balance::context::LbContext;
use crate::config::names::ClusterId;
use crate::error::Reason;
use crate::policy::authz::MAX_ANSWER;
use crate::policy::authz::answer::Invalid;
use crate::resilience::breaker::{Resource, RoutingPriority};
use crate::route::header::ValueTemplate;
use crate::upstream::cluster::Cluster;

/// One RPC: the data of its answer.
///
/// # Errors
/// Why there is none, in a word.
pub async fn rpc(
    ctx: &RequestCtx,
    cluster: ClusterId,
    head: &RequestHead,
    message: Bytes,
) -> Result<Bytes, &'static str> {
    let response = exchange(ctx, cluster, head, message).await.map_err(|failed| failed.reason.id())?;
    data(response).await.map_err(Unread::id)
}

/// What the file adds.
pub fn add_headers(ctx: &RequestCtx, head: &mut RequestHead, added: &[(HeaderName, ValueTemplate)]) {
    for (name, value) in added {
        let value = match value {
            ValueTemplate::Static(value) => Some(value.clone()),
            ValueTemplate::Dynamic(text) => Values::new(ctx).render(text, &ctx.head.headers),
        };
        if let Some(value) = value {
            head.headers.insert(name, value);
        }
    }
}

/// Sends a question to the service in `cluster`; once more when nothing of it can have been processed.
///
/// # Errors
/// Why there is no answer.
pub async fn exchange(
    ctx: &RequestCtx,
    cluster: ClusterId,
    head: &RequestHead,
    body: Bytes,
) -> Result<Response, Failed> {
    let nothing = |reason| Failed::new(reason, Sent::Nothing);
    let worker = &*ctx.downstream.worker;
    let priority = RoutingPriority::Default;
    let cluster: &Arc<Cluster> = ctx.snapshot.cluster(cluster).ok_or_else(|| nothing(Reason::NoCluster))?;
    let permit = cluster.try_acquire(Resource::Requests, priority);
    let _permit = permit.ok_or_else(|| nothing(Reason::UpstreamOverflow))?;
    let mut fresh = false;
    loop {
        let endpoint = worker
            .pick(cluster, LbContext::default(), Instant::now())
            .ok_or_else(|| nothing(Reason::NoHealthyUpstream))?;
        let _active = endpoint.begin();
        let exchange = Exchange {
            worker,
            cluster,
            priority,
            fresh,
            upgrade: None,
            interim: &InterimSink::None,
            time: None,
            ends_connect: false,
            origin: None,
        };
        let body = if body.is_empty() { Body::Empty } else { Body::Full(body.clone()) };
        match exchange.send(&endpoint, head, body).await {
            Err(failed) if !fresh && is_stale(failed, &head.method) => fresh = true,
            Ok(response) if response.upgraded.is_some() => return Err(nothing(Reason::UpstreamProtocol)),
            outcome => return outcome,
        }
    }
}

/// Nothing was processed, or it does not matter how often it is: the rule by which requests are sent again, too.
fn is_stale(failed: Failed, method: &Method) -> bool {
    match failed.reason {
        Reason::UpstreamRefused => true,
        Reason::ReusedConnectionClosed => failed.sent == Sent::Nothing || method.is_idempotent(),
        _ => false,
    }
}

/// Why an answer was not read.
#[derive(Debug)]
pub enum Unread {
    /// It broke off.
    Broken(Reason),
    /// It says nothing that can be believed.
    Invalid(Invalid),
}

impl Unread {
    /// In a word.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::Broken(reason) => reason.id(),
            Self::Invalid(invalid) => invalid.id(),
        }
    }
}

impl From<Invalid> for Unread {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}

/// The body of an answer up to `limit` bytes, with its trailers; and whether that is all of it.
///
/// # Errors
/// Why it cannot be read.
pub async fn collect(mut body: Body, limit: usize) -> Result<(Bytes, HeaderMap, bool), Reason> {
    let (mut out, mut trailers) = (BytesMut::new(), HeaderMap::new());
    while let Some(frame) = poll_fn(|cx| body.poll_next(cx)).await {
        match frame?.into_data() {
            Ok(data) if out.len() + data.len() > limit => {
                out.extend_from_slice(&data[..limit - out.len()]);
                return Ok((out.freeze(), trailers, false));
            }
            Ok(data) => out.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    Ok((out.freeze(), trailers, true))
}

/// The data of an RPC that ended with OK.
///
/// # Errors
/// It did not.
pub async fn data(response: Response) -> Result<Bytes, Unread> {
    if response.head.status != StatusCode::OK {
        return Err(Invalid::HttpStatus.into());
    }
    let (body, trailers, whole) = collect(response.body, MAX_ANSWER).await.map_err(Unread::Broken)?;
    if !whole {
        return Err(Invalid::TooLarge.into());
    }
    let status = trailers.get("grpc-status").or_else(|| response.head.headers.get("grpc-status"));
    if status.is_none_or(|status| status != "0") {
        return Err(Invalid::GrpcStatus.into());
    }
    Ok(body)
}
