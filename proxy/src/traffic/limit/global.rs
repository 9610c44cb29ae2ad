//! `envoy.extensions.filters.http.ratelimit.v3.RateLimit`: what a rate limit service is asked, and what its answer means
//! (`envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit`). Pure; [`crate::http::global_limit`] asks.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use remora_xds::pb::envoy::config::core::v3::HeaderValue as HeaderPb;
use remora_xds::pb::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use remora_xds::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use remora_xds::pb::envoy::service::ratelimit::v3 as pb;
use remora_xds::pb::envoy::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;
use remora_xds::pb::envoy::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus};
use remora_xds::wire::Wire as _;

use super::descriptor::{Descriptor, Rule};
use super::{HostRules, Refusal};
use crate::config::names::{ClusterId, PolicyId};
use crate::policy::authz::answer::{Invalid, is_changeable};
use crate::policy::authz::grpc::{self, GrpcService};
use crate::route::matcher::Fraction;

/// Envoy's limit of a question.
pub const TIMEOUT: Duration = Duration::from_millis(20);
/// The RPC.
pub const PATH: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// The most headers of one answer.
const MAX_HEADERS: usize = 128;

/// A compiled `RateLimit` filter.
#[derive(Debug)]
pub struct GlobalLimit {
    /// `domain`.
    pub domain: Box<str>,
    /// `stage`.
    pub stage: u32,
    /// `request_type`; None is both kinds.
    pub internal: Option<bool>,
    /// `timeout`, default [`TIMEOUT`].
    pub timeout: Duration,
    /// Where the service is.
    pub cluster: ClusterId,
    /// How it is asked.
    pub service: GrpcService,
    /// `failure_mode_deny`: with this status (`status_on_error`, default 500).
    pub deny_on_error: Option<StatusCode>,
    /// `filter_enabled`; None is every request.
    pub enabled: Option<Fraction>,
    /// `filter_enforced`; None is every request.
    pub enforced: Option<Fraction>,
    /// How a request is refused.
    pub refusal: Refusal,
    /// `enable_x_ratelimit_headers`.
    pub show: bool,
    /// `disable_x_envoy_ratelimited_header` is not set.
    pub mark: bool,
    /// `rate_limits`: instead of the route's.
    pub rules: Box<[Rule]>,
    /// `stat_prefix`.
    pub stat_prefix: Arc<str>,
    /// The number under which decisions are counted.
    pub id: PolicyId,
}

/// A compiled `RateLimitPerRoute`.
#[derive(Debug, Default)]
pub struct GlobalRoute {
    /// `vh_rate_limits`.
    pub host_rules: HostRules,
    /// `domain`, when it is another.
    pub domain: Option<Box<str>>,
    /// `rate_limits`: instead of those of the route and the filter.
    pub rules: Box<[Rule]>,
}

/// What the service says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// There are too many requests.
    pub over: bool,
    /// Headers of the answer.
    pub response: Vec<(HeaderName, HeaderValue)>,
    /// Headers of the request, when it goes on.
    pub request: Vec<(HeaderName, HeaderValue)>,
    /// Body of the refusal.
    pub body: Bytes,
    /// `x-ratelimit-limit`, `-remaining` and `-reset`.
    pub quota: Option<Quota>,
}

/// The limit that is nearest (draft-polli-ratelimit-headers-03).
#[derive(Debug, PartialEq, Eq)]
pub struct Quota {
    /// `x-ratelimit-limit`: it, and the policies of all.
    pub limit: String,
    /// `x-ratelimit-remaining`.
    pub remaining: u32,
    /// `x-ratelimit-reset`, seconds.
    pub reset: i64,
}

/// The question as one message of gRPC.
#[must_use]
pub fn question(domain: &str, descriptors: &[Descriptor]) -> Bytes {
    let descriptor = |one: &Descriptor| RateLimitDescriptor {
        entries: one
            .entries
            .iter()
            .map(|(key, value)| Entry { key: key.to_string(), value: value.to_string() })
            .collect(),
        hits_addend: (one.hits != 1)
            .then_some(remora_xds::pb::google::protobuf::UInt64Value { value: one.hits }),
        ..RateLimitDescriptor::default()
    };
    grpc::frame(&pb::RateLimitRequest {
        domain: domain.to_owned(),
        descriptors: descriptors.iter().map(descriptor).collect(),
        hits_addend: 0,
    })
}

/// The answer in `body`, the data of an RPC that ended with OK.
///
/// # Errors
/// Why it is none.
pub fn answer(body: &[u8]) -> Result<Said, Invalid> {
    let message = grpc::unframe(body)?;
    let pb::RateLimitResponse {
        overall_code,
        statuses,
        response_headers_to_add,
        request_headers_to_add,
        raw_body,
        dynamic_metadata: _,
        quota: _,
    } = pb::RateLimitResponse::from_bytes(message).map_err(|_| Invalid::Malformed)?;
    let over = match Code::try_from(overall_code) {
        Ok(Code::Ok) => false,
        Ok(Code::OverLimit) => true,
        Ok(Code::Unknown) | Err(_) => return Err(Invalid::Malformed),
    };
    Ok(Said {
        over,
        response: headers(response_headers_to_add)?,
        request: headers(request_headers_to_add)?,
        body: raw_body.into(),
        quota: quota(&statuses),
    })
}

fn headers(list: Vec<HeaderPb>) -> Result<Vec<(HeaderName, HeaderValue)>, Invalid> {
    if list.len() > MAX_HEADERS {
        return Err(Invalid::TooMany);
    }
    let one = |header: HeaderPb| {
        let value = if header.raw_value.is_empty() { header.value.into_bytes() } else { header.raw_value };
        let name = header.key.parse().ok().filter(is_changeable).ok_or(Invalid::Forbidden)?;
        Ok((name, HeaderValue::try_from(value).map_err(|_| Invalid::Forbidden)?))
    };
    list.into_iter().map(one).collect()
}

fn quota(statuses: &[DescriptorStatus]) -> Option<Quota> {
    let limited = || statuses.iter().filter_map(|status| Some((status, status.current_limit.as_ref()?)));
    let (nearest, limit) = limited().min_by_key(|(status, _)| status.limit_remaining)?;
    let mut text = limit.requests_per_unit.to_string();
    for (_, limit) in limited() {
        let _ = write!(text, ", {};w={}", limit.requests_per_unit, window(limit.unit));
        if !limit.name.is_empty() {
            let _ = write!(text, ";name=\"{}\"", limit.name);
        }
    }
    Some(Quota {
        limit: text,
        remaining: nearest.limit_remaining,
        reset: nearest.duration_until_reset.as_ref().map_or(0, |reset| reset.seconds),
    })
}

/// Seconds of a unit.
fn window(unit: i32) -> u32 {
    match Unit::try_from(unit).unwrap_or(Unit::Unknown) {
        Unit::Unknown => 0,
        Unit::Second => 1,
        Unit::Minute => 60,
        Unit::Hour => 3600,
        Unit::Day => 86_400,
        Unit::Week => 604_800,
        Unit::Month => 2_592_000,
        Unit::Year => 31_536_000,
    }
}

impl Quota {
    /// Shows it.
    pub fn show(&self, headers: &mut HeaderMap) {
        if let Ok(limit) = HeaderValue::from_str(&self.limit) {
            headers.insert("x-ratelimit-limit", limit);
        }
        headers.insert("x-ratelimit-remaining", HeaderValue::from(self.remaining));
        headers.insert("x-ratelimit-reset", HeaderValue::from(self.reset));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use remora_xds::pb::envoy::service::ratelimit::v3::rate_limit_response::RateLimit;

    fn status(remaining: u32, limit: u32, unit: Unit, name: &str) -> DescriptorStatus {
        DescriptorStatus {
            code: Code::Ok as i32,
            current_limit: Some(RateLimit { name: name.into(), requests_per_unit: limit, unit: unit as i32 }),
            limit_remaining: remaining,
            duration_until_reset: Some(remora_xds::pb::google::protobuf::Duration { seconds: 7, nanos: 0 }),
            quota: None,
        }
    }

    #[test]
    fn the_nearest_limit_is_shown_with_the_policies_of_all() {
        let response = pb::RateLimitResponse {
            overall_code: Code::OverLimit as i32,
            statuses: vec![status(5, 10, Unit::Minute, "ten"), status(0, 3, Unit::Hour, "")],
            ..Default::default()
        };
        let said = answer(&grpc::frame(&response)).unwrap();
        assert!(said.over);
        let quota = said.quota.unwrap();
        assert_eq!(quota.limit, "3, 10;w=60;name=\"ten\", 3;w=3600");
        assert_eq!((quota.remaining, quota.reset), (0, 7));
    }

    #[test]
    fn what_is_no_answer() {
        assert_eq!(answer(b""), Err(Invalid::Malformed));
        let unknown = pb::RateLimitResponse::default();
        assert_eq!(answer(&grpc::frame(&unknown)), Err(Invalid::Malformed));
        let mut forbidden = pb::RateLimitResponse { overall_code: 1, ..Default::default() };
        let header = |key: &str| HeaderPb { key: key.into(), value: "x".into(), ..Default::default() };
        forbidden.request_headers_to_add = vec![header("host")];
        assert_eq!(answer(&grpc::frame(&forbidden)), Err(Invalid::Forbidden));
        forbidden.request_headers_to_add = vec![header("x-a"); MAX_HEADERS + 1];
        assert_eq!(answer(&grpc::frame(&forbidden)), Err(Invalid::TooMany));
    }
}
