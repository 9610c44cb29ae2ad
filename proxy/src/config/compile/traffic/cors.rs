//! `CorsPolicy`, of routes and virtual hosts.

use http::HeaderValue;
use remora_xds::diag::At;
use remora_xds::pb::envoy::config::route::v3 as route;
use remora_xds::pb::envoy::config::route::v3::cors_policy::EnabledSpecifier;
use remora_xds::pb::envoy::extensions::filters::http::cors::v3 as pb;

use crate::config::compile::Scope;
use crate::config::compile::common::{runtime_fraction, string_match};
use crate::traffic::cors::CorsPolicy;

/// The policy of `typed_per_filter_config`.
pub(super) fn policy(pb: &pb::CorsPolicy, at: &At<'_>, scope: &mut Scope<'_>) -> CorsPolicy {
    let pb::CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        filter_enabled,
        shadow_enabled: _, // Only counts, and every request is counted by its answer.
        allow_private_network_access,
        forward_not_matching_preflights,
    } = pb;
    let origins_at = at.field("allow_origin_string_match");
    let origins = allow_origin_string_match.iter().enumerate();
    let enabled_at = at.field("filter_enabled");
    CorsPolicy {
        origins: origins.filter_map(|(i, pb)| string_match(pb, &origins_at.index(i), scope)).collect(),
        methods: value(allow_methods, &at.field("allow_methods"), scope),
        headers: value(allow_headers, &at.field("allow_headers"), scope),
        expose: value(expose_headers, &at.field("expose_headers"), scope),
        max_age: value(max_age, &at.field("max_age"), scope),
        credentials: allow_credentials.as_ref().map(|v| v.value),
        private_network: allow_private_network_access.as_ref().map(|v| v.value),
        forward_unmatched: forward_not_matching_preflights.as_ref().map(|v| v.value),
        enabled: filter_enabled.as_ref().and_then(|pb| runtime_fraction(pb, &enabled_at, scope)),
    }
}

/// The policy of the field `cors`, which is older.
pub fn legacy(pb: &route::CorsPolicy, at: &At<'_>, scope: &mut Scope<'_>) -> CorsPolicy {
    let route::CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
        enabled_specifier,
    } = pb.clone();
    let filter_enabled = enabled_specifier.map(|EnabledSpecifier::FilterEnabled(enabled)| enabled);
    let same = pb::CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        filter_enabled,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
    };
    policy(&same, at, scope)
}

fn value(text: &str, at: &At<'_>, scope: &mut Scope<'_>) -> Option<HeaderValue> {
    if text.is_empty() {
        return None;
    }
    let value = HeaderValue::from_str(text).ok();
    if value.is_none() {
        scope.errors.report(at, "is not the value of a header");
    }
    value
}
