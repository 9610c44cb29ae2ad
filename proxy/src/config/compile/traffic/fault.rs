//! `envoy.extensions.filters.http.fault.v3.HTTPFault`.

use std::time::Duration;

use http::StatusCode;
use remora_xds::diag::At;
use remora_xds::pb::envoy::extensions::filters::common::fault::v3::fault_delay::{
    FaultDelaySecifier, HeaderDelay,
};
use remora_xds::pb::envoy::extensions::filters::common::fault::v3::fault_rate_limit::{
    FixedLimit, HeaderLimit, LimitType,
};
use remora_xds::pb::envoy::extensions::filters::common::fault::v3::{FaultDelay, FaultRateLimit};
use remora_xds::pb::envoy::extensions::filters::http::fault::v3::fault_abort::{ErrorType, HeaderAbort};
use remora_xds::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault};
use remora_xds::pb::envoy::r#type::v3::FractionalPercent;

use crate::config::compile::Scope;
use crate::config::compile::common::{fraction, header_matches, positive_duration};
use crate::config::compile::fields::refuse;
use crate::route::matcher::Fraction;
use crate::traffic::fault::{Aborted, Fault, FaultFilter};

pub(super) fn fault(pb: &HttpFault, at: &At<'_>, scope: &mut Scope<'_>) -> FaultFilter {
    // There is no runtime: names of its keys say nothing.
    let HttpFault {
        delay,
        abort,
        upstream_cluster,
        headers,
        downstream_nodes,
        max_active_faults,
        response_rate_limit,
        delay_percent_runtime: _,
        abort_percent_runtime: _,
        delay_duration_runtime: _,
        abort_http_status_runtime: _,
        max_active_faults_runtime: _,
        response_rate_limit_percent_runtime: _,
        abort_grpc_status_runtime: _,
        disable_downstream_cluster_stats: _, // There are none.
        filter_metadata,
    } = pb;
    refuse!(scope, at; filter_metadata);
    let (delay_at, abort_at) = (at.field("delay"), at.field("abort"));
    let rate_at = at.field("response_rate_limit");
    FaultFilter {
        delay: delay.as_ref().and_then(|pb| self::delay(pb, &delay_at, scope)),
        abort: abort.as_ref().and_then(|pb| self::abort(pb, &abort_at, scope)),
        rate: response_rate_limit.as_ref().and_then(|pb| rate(pb, &rate_at, scope)),
        upstream_cluster: (!upstream_cluster.is_empty())
            .then(|| scope.names.clusters.intern(upstream_cluster)),
        downstream_nodes: downstream_nodes.iter().map(|node| node.as_str().into()).collect(),
        headers: header_matches(headers, &at.field("headers"), scope),
        max_active: max_active_faults.as_ref().map(|most| most.value),
        active: Default::default(),
    }
}

/// As in Envoy a fault without a percentage never happens.
fn share(pb: Option<&FractionalPercent>, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Fraction> {
    fraction(&pb.cloned().unwrap_or_default(), &at.field("percentage"), scope)
}

fn delay(pb: &FaultDelay, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Fault<Duration>> {
    let FaultDelay { percentage, fault_delay_secifier } = pb;
    let share = share(percentage.as_ref(), at, scope)?;
    let fixed = match fault_delay_secifier {
        Some(FaultDelaySecifier::FixedDelay(delay)) => {
            Some(positive_duration(Some(delay), &at.field("fixed_delay"), scope)?)
        }
        Some(FaultDelaySecifier::HeaderDelay(HeaderDelay {})) => None,
        None => {
            scope.errors.report(at, "needs fixed_delay or header_delay");
            return None;
        }
    };
    Some(Fault { share, fixed })
}

fn abort(pb: &FaultAbort, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Fault<Aborted>> {
    let FaultAbort { percentage, error_type, response_body } = pb;
    refuse!(scope, at; response_body);
    let share = share(percentage.as_ref(), at, scope)?;
    let fixed = match error_type {
        Some(ErrorType::HttpStatus(code)) => {
            let status = u16::try_from(*code).ok().filter(|code| (200..600).contains(code));
            let status = status.and_then(|code| StatusCode::from_u16(code).ok());
            if status.is_none() {
                scope.errors.report(&at.field("http_status"), "must be from 200 to 599");
            }
            Some(Aborted::Status(status?))
        }
        Some(ErrorType::GrpcStatus(code)) => Some(Aborted::Grpc(*code)),
        Some(ErrorType::HeaderAbort(HeaderAbort {})) => None,
        None => {
            scope.errors.report(at, "needs http_status, grpc_status or header_abort");
            return None;
        }
    };
    Some(Fault { share, fixed })
}

fn rate(pb: &FaultRateLimit, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Fault<u64>> {
    let FaultRateLimit { percentage, limit_type } = pb;
    let share = share(percentage.as_ref(), at, scope)?;
    let fixed = match limit_type {
        Some(LimitType::FixedLimit(FixedLimit { limit_kbps })) => {
            if *limit_kbps == 0 {
                scope.errors.report(&at.field("fixed_limit").field("limit_kbps"), "must be at least 1");
                return None;
            }
            Some(*limit_kbps)
        }
        Some(LimitType::HeaderLimit(HeaderLimit {})) => None,
        None => {
            scope.errors.report(at, "needs fixed_limit or header_limit");
            return None;
        }
    };
    Some(Fault { share, fixed })
}
