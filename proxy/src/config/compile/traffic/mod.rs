//! Filters of [`crate::traffic`] and what routes say about them.

mod compress;
mod concurrency;
mod cors;
mod fault;
mod global;
mod limit;
mod quota;

use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3::RuntimeFeatureFlag;
use remora_xds::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::AdaptiveConcurrency;
use remora_xds::pb::envoy::extensions::filters::http::buffer::v3::buffer_per_route::Override as BufferSaid;
use remora_xds::pb::envoy::extensions::filters::http::buffer::v3::{Buffer, BufferPerRoute};
use remora_xds::pb::envoy::extensions::filters::http::compressor::v3::{Compressor, CompressorPerRoute};
use remora_xds::pb::envoy::extensions::filters::http::cors::v3::{Cors, CorsPolicy};
use remora_xds::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use remora_xds::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use remora_xds::pb::envoy::extensions::filters::http::rate_limit_quota::v3::RateLimitQuotaFilterConfig;
use remora_xds::pb::envoy::extensions::filters::http::ratelimit::v3::{RateLimit, RateLimitPerRoute};
use remora_xds::pb::envoy::r#type::v3::HttpStatus;
use remora_xds::pb::google::protobuf::Any;
use std::sync::Arc;

pub use cors::legacy as compile_legacy_cors;
pub use limit::route_rules as compile_rules;

use super::Scope;
use super::fields::{boolean, holds, number, unpack};
use crate::config::spec::HttpFilter;
use crate::policy::overrides::Override;

/// The most that `envoy.filters.http.buffer` holds of a body, bytes.
const MAX_BODY: u32 = 64 * 1024 * 1024;

/// A filter of [`crate::traffic`]; None when `any` is none. With mistakes (reported) it is left out of the list, which is not used then.
pub fn traffic_filter(
    name: &Arc<str>,
    any: &Any,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Option<HttpFilter>> {
    let name = Arc::clone(name);
    if holds::<HttpFault>(any) {
        let pb = unpack::<HttpFault>(any, at, scope);
        return Some(pb.map(|pb| HttpFilter::Fault(name, Box::new(fault::fault(&pb, at, scope)))));
    }
    if holds::<Cors>(any) {
        let pb = unpack::<Cors>(any, at, scope);
        return Some(pb.map(|Cors {}| HttpFilter::Cors(name)));
    }
    if holds::<Buffer>(any) {
        let pb = unpack::<Buffer>(any, at, scope);
        return Some(pb.and_then(|pb| buffer(&pb, at, scope)).map(|limit| HttpFilter::Buffer(name, limit)));
    }
    if holds::<LocalRateLimit>(any) {
        let pb = unpack::<LocalRateLimit>(any, at, scope);
        let filter = pb.and_then(|pb| limit::local(&name, &pb, at, scope));
        return Some(filter.map(|filter| HttpFilter::LocalLimit(name, Arc::new(filter))));
    }
    if holds::<Compressor>(any) {
        let pb = unpack::<Compressor>(any, at, scope);
        let filter = pb.and_then(|pb| compress::compressor(&pb, at, scope));
        return Some(filter.map(|filter| HttpFilter::Compressor(name, Arc::new(filter))));
    }
    if holds::<AdaptiveConcurrency>(any) {
        let pb = unpack::<AdaptiveConcurrency>(any, at, scope);
        let filter = pb.and_then(|pb| concurrency::concurrency(&pb, at, scope));
        return Some(filter.map(|filter| HttpFilter::Concurrency(name, Box::new(filter))));
    }
    if holds::<RateLimit>(any) {
        let pb = unpack::<RateLimit>(any, at, scope);
        let filter = pb.and_then(|pb| global::global(&name, &pb, at, scope));
        return Some(filter.map(|filter| HttpFilter::GlobalLimit(name, Box::new(filter))));
    }
    if holds::<RateLimitQuotaFilterConfig>(any) {
        let pb = unpack::<RateLimitQuotaFilterConfig>(any, at, scope);
        let filter = pb.and_then(|pb| quota::quota(&name, &pb, at, scope));
        return Some(filter.map(|filter| HttpFilter::Quota(name, Box::new(filter))));
    }
    None
}

/// What a route says about such a filter; None when `any` is about none.
pub fn traffic_override(
    name: &str,
    any: &Any,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Option<Override>> {
    if holds::<HttpFault>(any) {
        let pb = unpack::<HttpFault>(any, at, scope);
        return Some(pb.map(|pb| Override::Fault(Arc::new(fault::fault(&pb, at, scope)))));
    }
    if holds::<CorsPolicy>(any) {
        let pb = unpack::<CorsPolicy>(any, at, scope);
        return Some(pb.map(|pb| Override::Cors(Arc::new(cors::policy(&pb, at, scope)))));
    }
    if holds::<BufferPerRoute>(any) {
        let pb = unpack::<BufferPerRoute>(any, at, scope);
        return Some(pb.and_then(|pb| match pb.r#override {
            Some(BufferSaid::Disabled(true)) => Some(Override::Disabled),
            Some(BufferSaid::Buffer(pb)) => buffer(&pb, &at.field("buffer"), scope).map(Override::Buffer),
            Some(BufferSaid::Disabled(false)) | None => {
                scope.errors.report(at, "says nothing").fix("set buffer, or disabled: true");
                None
            }
        }));
    }
    if holds::<LocalRateLimit>(any) {
        let pb = unpack::<LocalRateLimit>(any, at, scope);
        let filter = pb.and_then(|pb| limit::local(name, &pb, at, scope));
        return Some(filter.map(|filter| Override::LocalLimit(Arc::new(filter))));
    }
    if holds::<CompressorPerRoute>(any) {
        let pb = unpack::<CompressorPerRoute>(any, at, scope);
        return Some(pb.and_then(|pb| compress::compressor_route(&pb, at, scope)));
    }
    if holds::<RateLimitPerRoute>(any) {
        let pb = unpack::<RateLimitPerRoute>(any, at, scope);
        let said = pb.and_then(|pb| global::global_route(&pb, at, scope));
        return Some(said.map(|said| Override::GlobalLimit(Arc::new(said))));
    }
    None
}

fn buffer(pb: &Buffer, at: &At<'_>, scope: &mut Scope<'_>) -> Option<usize> {
    let at = at.field("max_request_bytes");
    if pb.max_request_bytes.is_none() {
        scope.errors.report(&at, "is required");
    }
    let most = number(pb.max_request_bytes.as_ref(), 1..=MAX_BODY, &at, scope)?;
    usize::try_from(most).ok()
}

/// Whether something is on. There is no runtime that could say otherwise.
fn flag(pb: Option<&RuntimeFeatureFlag>) -> bool {
    pb.is_none_or(|pb| boolean(pb.default_value.as_ref(), true))
}

/// The status of a refusal. As in Envoy one below 400 counts as none.
fn refusal_status(
    pb: Option<&HttpStatus>,
    default: http::StatusCode,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> http::StatusCode {
    let Some(pb) = pb else { return default };
    let status = u16::try_from(pb.code).ok().and_then(|code| http::StatusCode::from_u16(code).ok());
    match status {
        Some(status) if status.as_u16() >= 400 => status,
        Some(_) => default,
        None => {
            scope.errors.report(&at.field("code"), format!("{} is no status of an answer", pb.code));
            default
        }
    }
}

#[cfg(test)]
mod tests;
