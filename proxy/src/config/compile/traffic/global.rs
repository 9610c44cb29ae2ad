//! `envoy.extensions.filters.http.ratelimit.v3.RateLimit` and `RateLimitPerRoute`.

use http::StatusCode;
use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3::ApiVersion;
use remora_xds::pb::envoy::config::ratelimit::v3::RateLimitServiceConfig;
use remora_xds::pb::envoy::extensions::filters::http::ratelimit::v3 as pb;
use remora_xds::pb::envoy::extensions::filters::http::ratelimit::v3::rate_limit::XRateLimitHeadersRfcVersion;
use remora_xds::pb::envoy::extensions::filters::http::ratelimit::v3::rate_limit_per_route::VhRateLimitsOptions;

use super::limit::rules;
use super::refusal_status;
use crate::config::compile::Scope;
use crate::config::compile::common::{enumeration, positive_duration, runtime_fraction};
use crate::config::compile::fields::refuse;
use crate::config::compile::policy::asked_by_grpc;
use crate::config::compile::route::additions;
use crate::config::names::ClusterId;
use crate::policy::authz::grpc::GrpcService;
use crate::traffic::limit::global::{GlobalLimit, GlobalRoute, TIMEOUT};
use crate::traffic::limit::{HostRules, Refusal};

/// Compiles the filter `name`. None when it has mistakes, which are in `scope.errors`.
pub(super) fn global(
    name: &str,
    pb: &pb::RateLimit,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<GlobalLimit> {
    let before = scope.errors.len();
    let pb::RateLimit {
        domain,
        stage,
        request_type,
        timeout,
        failure_mode_deny,
        rate_limited_as_resource_exhausted,
        rate_limit_service,
        enable_x_ratelimit_headers,
        disable_x_envoy_ratelimited_header,
        rate_limited_status,
        response_headers_to_add,
        status_on_error,
        stat_prefix,
        filter_enabled,
        filter_enforced,
        failure_mode_deny_percent,
        rate_limits,
        enable_retry_after_header,
        metadata_namespace,
    } = pb;
    refuse!(scope, at; failure_mode_deny_percent, enable_retry_after_header, metadata_namespace);
    if domain.is_empty() {
        scope.errors.report(&at.field("domain"), "must not be empty");
    }
    if *stage > 10 {
        scope.errors.report(&at.field("stage"), format!("{stage} is not between 0 and 10"));
    }
    let internal = match request_type.as_str() {
        "" | "both" => None,
        "internal" => Some(true),
        "external" => Some(false),
        other => {
            let message = format!("{other:?} is none of internal, external and both");
            scope.errors.report(&at.field("request_type"), message);
            None
        }
    };
    let show: XRateLimitHeadersRfcVersion =
        enumeration(*enable_x_ratelimit_headers, &at.field("enable_x_ratelimit_headers"), scope)?;
    let (enabled_at, enforced_at) = (at.field("filter_enabled"), at.field("filter_enforced"));
    let error_at = at.field("status_on_error");
    let on_error =
        refusal_status(status_on_error.as_ref(), StatusCode::INTERNAL_SERVER_ERROR, &error_at, scope);
    let refusal = Refusal {
        status: refusal_status(
            rate_limited_status.as_ref(),
            StatusCode::TOO_MANY_REQUESTS,
            &at.field("rate_limited_status"),
            scope,
        ),
        headers: additions(response_headers_to_add, &at.field("response_headers_to_add"), scope),
        resource_exhausted: *rate_limited_as_resource_exhausted,
    };
    let limit = positive_duration(timeout.as_ref(), &at.field("timeout"), scope);
    let (cluster, service) = service(rate_limit_service.as_ref(), &at.field("rate_limit_service"), scope)?;
    let filter = GlobalLimit {
        domain: domain.as_str().into(),
        stage: *stage,
        internal,
        timeout: limit.unwrap_or(TIMEOUT),
        cluster,
        service,
        deny_on_error: failure_mode_deny.then_some(on_error),
        enabled: filter_enabled.as_ref().and_then(|pb| runtime_fraction(pb, &enabled_at, scope)),
        enforced: filter_enforced.as_ref().and_then(|pb| runtime_fraction(pb, &enforced_at, scope)),
        refusal,
        show: matches!(show, XRateLimitHeadersRfcVersion::DraftVersion03),
        mark: !*disable_x_envoy_ratelimited_header,
        rules: rules(rate_limits, &at.field("rate_limits"), scope),
        stat_prefix: stat_prefix.as_str().into(),
        id: scope.names.policies.intern(&format!("{stat_prefix}\n{name}")),
    };
    (scope.errors.len() == before).then_some(filter)
}

fn service(
    pb: Option<&RateLimitServiceConfig>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<(ClusterId, GrpcService)> {
    let Some(RateLimitServiceConfig { grpc_service, transport_api_version }) = pb else {
        scope.errors.report(at, "is required");
        return None;
    };
    if ApiVersion::try_from(*transport_api_version) != Ok(ApiVersion::V3) {
        scope.errors.report(&at.field("transport_api_version"), "must be V3");
    }
    let at = at.field("grpc_service");
    let Some(pb) = grpc_service else {
        scope.errors.report(&at, "is required");
        return None;
    };
    asked_by_grpc(pb, &at, scope)
}

/// `RateLimitPerRoute`.
pub(super) fn global_route(
    pb: &pb::RateLimitPerRoute,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<GlobalRoute> {
    let pb::RateLimitPerRoute { vh_rate_limits, override_option, rate_limits, domain } = pb;
    refuse!(scope, at; override_option);
    let host_rules = enumeration(*vh_rate_limits, &at.field("vh_rate_limits"), scope)?;
    Some(GlobalRoute {
        host_rules: match host_rules {
            VhRateLimitsOptions::Override => HostRules::WithoutOwn,
            VhRateLimitsOptions::Include => HostRules::Always,
            VhRateLimitsOptions::Ignore => HostRules::Never,
        },
        domain: (!domain.is_empty()).then(|| domain.as_str().into()),
        rules: rules(rate_limits, &at.field("rate_limits"), scope),
    })
}
