//! `envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit` and `rate_limits` of routes.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use remora_xds::pb::envoy::config::route::v3::RateLimit;
use remora_xds::pb::envoy::config::route::v3::rate_limit::action as pb;
use remora_xds::pb::envoy::config::route::v3::rate_limit::action::ActionSpecifier;
use remora_xds::pb::envoy::config::route::v3::rate_limit::{Action as ActionPb, HitsAddend};
use remora_xds::pb::envoy::extensions::common::ratelimit::v3::{
    LocalRateLimitDescriptor, VhRateLimitsOptions, XRateLimitHeadersRfcVersion,
};
use remora_xds::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use remora_xds::pb::envoy::r#type::v3::TokenBucket;

use super::refusal_status;
use crate::config::compile::Scope;
use crate::config::compile::common::{
    enumeration, header_key, header_matches, positive_duration, runtime_fraction, unsupported,
};
use crate::config::compile::fields::{boolean, number, refuse};
use crate::config::compile::route::{additions, query_match};
use crate::route::matcher::Fraction;
use crate::traffic::limit::bucket::{BucketSpec, MAX_FILL};
use crate::traffic::limit::descriptor::{Action, Rule};
use crate::traffic::limit::{HostRules, LimitsSpec, LocalLimit, Refusal, Take};

/// Envoy's shortest `fill_interval` here.
const SHORTEST_FILL: Duration = Duration::from_millis(50);
/// Buckets of descriptors with an empty value, when nothing is said.
const DYNAMIC: u32 = 20;
/// And at most.
const MAX_DYNAMIC: u32 = 100_000;

/// Compiles the filter `name`, or what a route says instead. None when it has mistakes, which are in `scope.errors`.
pub(super) fn local(
    name: &str,
    pb: &LocalRateLimit,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<LocalLimit> {
    let before = scope.errors.len();
    let LocalRateLimit {
        stat_prefix,
        status,
        token_bucket,
        filter_enabled,
        filter_enforced,
        request_headers_to_add_when_not_enforced,
        response_headers_to_add,
        descriptors,
        stage,
        local_rate_limit_per_downstream_connection,
        local_cluster_rate_limit,
        enable_x_ratelimit_headers,
        vh_rate_limits,
        always_consume_default_token_bucket,
        rate_limited_as_resource_exhausted,
        rate_limits,
        max_dynamic_descriptors,
        enable_retry_after_header,
    } = pb;
    refuse!(scope, at; local_cluster_rate_limit, enable_retry_after_header);
    if stat_prefix.is_empty() {
        scope.errors.report(&at.field("stat_prefix"), "must not be empty");
    }
    let spec = LimitsSpec {
        default: token_bucket.as_ref().and_then(|pb| bucket(pb, &at.field("token_bucket"), scope)),
        descriptors: self::descriptors(descriptors, &at.field("descriptors"), scope),
        max_dynamic: dynamic(max_dynamic_descriptors.as_ref(), at, scope),
    };
    let show: XRateLimitHeadersRfcVersion =
        enumeration(*enable_x_ratelimit_headers, &at.field("enable_x_ratelimit_headers"), scope)?;
    let host_rules = enumeration(*vh_rate_limits, &at.field("vh_rate_limits"), scope)?;
    let filter = LocalLimit {
        enabled: share(filter_enabled.as_ref(), &at.field("filter_enabled"), scope),
        enforced: share(filter_enforced.as_ref(), &at.field("filter_enforced"), scope),
        limits: scope.names.limits.of(format!("{at}"), spec),
        per_connection: *local_rate_limit_per_downstream_connection,
        stage: *stage,
        rules: rules(rate_limits, &at.field("rate_limits"), scope),
        host_rules: match host_rules {
            VhRateLimitsOptions::Override => HostRules::WithoutOwn,
            VhRateLimitsOptions::Include => HostRules::Always,
            VhRateLimitsOptions::Ignore => HostRules::Never,
        },
        take: Take {
            always_default: boolean(always_consume_default_token_bucket.as_ref(), true),
            show: show == XRateLimitHeadersRfcVersion::DraftVersion03,
        },
        refusal: Refusal {
            status: refusal_status(
                status.as_ref(),
                StatusCode::TOO_MANY_REQUESTS,
                &at.field("status"),
                scope,
            ),
            headers: additions(response_headers_to_add, &at.field("response_headers_to_add"), scope),
            resource_exhausted: *rate_limited_as_resource_exhausted,
        },
        request_headers: additions(
            request_headers_to_add_when_not_enforced,
            &at.field("request_headers_to_add_when_not_enforced"),
            scope,
        ),
        stat_prefix: stat_prefix.as_str().into(),
        id: scope.names.policies.intern(&format!("{stat_prefix}\n{name}")),
    };
    (scope.errors.len() == before).then_some(filter)
}

fn dynamic(
    pb: Option<&remora_xds::pb::google::protobuf::UInt32Value>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> usize {
    let most = number(pb, 1..=MAX_DYNAMIC, &at.field("max_dynamic_descriptors"), scope);
    usize::try_from(most.unwrap_or(DYNAMIC)).unwrap_or(1)
}

/// As in Envoy nothing said is none of the requests.
fn share(pb: Option<&RuntimeFractionalPercent>, at: &At<'_>, scope: &mut Scope<'_>) -> Fraction {
    let none = Fraction { numerator: 0, denominator: 100 };
    pb.and_then(|pb| runtime_fraction(pb, at, scope)).unwrap_or(none)
}

pub(super) fn bucket(pb: &TokenBucket, at: &At<'_>, scope: &mut Scope<'_>) -> Option<BucketSpec> {
    let TokenBucket { max_tokens, tokens_per_fill, fill_interval } = pb;
    let at_interval = at.field("fill_interval");
    if fill_interval.is_none() {
        scope.errors.report(&at_interval, "is required");
    }
    let interval = positive_duration(fill_interval.as_ref(), &at_interval, scope)?;
    if interval < SHORTEST_FILL {
        scope.errors.report(&at_interval, "must be at least 50ms");
    }
    if *max_tokens == 0 {
        scope.errors.report(&at.field("max_tokens"), "must be at least 1");
    }
    let per_fill = number(tokens_per_fill.as_ref(), 1..=u32::MAX, &at.field("tokens_per_fill"), scope);
    let spec = BucketSpec { max: *max_tokens, per_fill: per_fill.unwrap_or(1), interval };
    if !spec.is_countable() {
        let message = format!("takes more than {} days to be full", MAX_FILL.as_secs() / 86_400);
        scope.errors.report(at, message).fix("lower max_tokens, or fill it faster");
    }
    Some(spec)
}

type Described = (Vec<(Arc<str>, Arc<str>)>, BucketSpec);

fn descriptors(list: &[LocalRateLimitDescriptor], at: &At<'_>, scope: &mut Scope<'_>) -> Vec<Described> {
    let mut out: Vec<Described> = Vec::with_capacity(list.len());
    for (i, pb) in list.iter().enumerate() {
        let at = at.index(i);
        let LocalRateLimitDescriptor { entries, token_bucket, shadow_mode } = pb;
        refuse!(scope, &at; shadow_mode);
        if entries.is_empty() {
            scope.errors.report(&at.field("entries"), "needs an entry");
        }
        if entries.iter().any(|entry| entry.key.is_empty()) {
            scope.errors.report(&at.field("entries"), "an entry needs a key");
        }
        let entries: Vec<(Arc<str>, Arc<str>)> =
            entries.iter().map(|e| (e.key.as_str().into(), e.value.as_str().into())).collect();
        if out.iter().any(|(other, _)| *other == entries) {
            scope.errors.report(&at, "stands here twice");
        }
        let Some(pb) = token_bucket else {
            scope.errors.report(&at.field("token_bucket"), "is required");
            continue;
        };
        if let Some(spec) = bucket(pb, &at.field("token_bucket"), scope) {
            out.push((entries, spec));
        }
    }
    out
}

/// Compiles `rate_limits` of a route or virtual host.
pub fn route_rules(list: &[RateLimit], at: &At<'_>, scope: &mut Scope<'_>) -> Box<[Rule]> {
    for (i, _) in list.iter().enumerate().filter(|(_, pb)| pb.hits_addend.is_some()) {
        // Envoy reads it in rate_limits of filters only.
        let at = at.index(i);
        let at = at.field("hits_addend");
        scope.errors.report(&at, "has no effect on a route").fix("set rate_limits of the filter");
    }
    rules(list, at, scope)
}

/// Compiles `rate_limits`.
pub(super) fn rules(list: &[RateLimit], at: &At<'_>, scope: &mut Scope<'_>) -> Box<[Rule]> {
    list.iter().enumerate().filter_map(|(i, pb)| rule(pb, &at.index(i), scope)).collect()
}

fn rule(pb: &RateLimit, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Rule> {
    let RateLimit {
        stage,
        disable_key: _, // There is no runtime.
        actions,
        limit,
        hits_addend,
        apply_on_stream_done,
        x_ratelimit_option,
    } = pb;
    refuse!(scope, at; limit, apply_on_stream_done, x_ratelimit_option);
    if actions.is_empty() {
        scope.errors.report(&at.field("actions"), "needs an action");
    }
    let hits = match hits_addend {
        None => 1,
        Some(HitsAddend { number, format, is_negative_hits }) => {
            let at = at.field("hits_addend");
            refuse!(scope, &at; format, is_negative_hits);
            number.as_ref().map_or(1, |number| number.value)
        }
    };
    let stage = number(stage.as_ref(), 0..=10, &at.field("stage"), scope).unwrap_or(0);
    let actions_at = at.field("actions");
    let actions: Option<Box<[Action]>> =
        actions.iter().enumerate().map(|(i, pb)| action(pb, &actions_at.index(i), scope)).collect();
    Some(Rule { stage, actions: actions?, hits })
}

#[expect(deprecated, reason = "every kind is named, so that a new one is decided")]
fn action(pb: &ActionPb, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Action> {
    let text = |text: &str, default: &str| -> Arc<str> {
        if text.is_empty() { default.into() } else { text.into() }
    };
    let refused = |field: &str, scope: &mut Scope<'_>| {
        unsupported(true, &at.field(field), scope);
        None
    };
    match pb.action_specifier.as_ref() {
        Some(ActionSpecifier::SourceCluster(pb::SourceCluster {})) => {
            Some(Action::Fixed("source_cluster".into(), Arc::clone(&scope.names.node_cluster)))
        }
        Some(ActionSpecifier::DestinationCluster(pb::DestinationCluster {})) => Some(Action::Destination),
        Some(ActionSpecifier::RemoteAddress(pb::RemoteAddress {})) => Some(Action::Address),
        Some(ActionSpecifier::MaskedRemoteAddress(pb)) => {
            let at = at.field("masked_remote_address");
            let pb::MaskedRemoteAddress { v4_prefix_mask_len, v6_prefix_mask_len } = pb;
            let v4 = number(v4_prefix_mask_len.as_ref(), 0..=32, &at.field("v4_prefix_mask_len"), scope);
            let v6 = number(v6_prefix_mask_len.as_ref(), 0..=128, &at.field("v6_prefix_mask_len"), scope);
            let length = |said: Option<u32>, all: u8| said.and_then(|n| u8::try_from(n).ok()).unwrap_or(all);
            Some(Action::Network { v4: length(v4, 32), v6: length(v6, 128) })
        }
        Some(ActionSpecifier::GenericKey(pb)) => {
            let at = at.field("generic_key");
            let pb::GenericKey { descriptor_value, default_value, descriptor_key } = pb;
            refuse!(scope, &at; default_value);
            let value = required(descriptor_value, &at.field("descriptor_value"), scope)?;
            Some(Action::Fixed(text(descriptor_key, "generic_key"), value))
        }
        Some(ActionSpecifier::RequestHeaders(pb)) => {
            let at = at.field("request_headers");
            let pb::RequestHeaders { header_name: name, descriptor_key, skip_if_absent } = pb;
            let name = header_key(name, &at.field("header_name"), scope)?;
            let key = required(descriptor_key, &at.field("descriptor_key"), scope)?;
            Some(Action::Header { name, key, optional: *skip_if_absent })
        }
        Some(ActionSpecifier::QueryParameters(pb)) => {
            let at = at.field("query_parameters");
            let pb::QueryParameters { query_parameter_name, descriptor_key, skip_if_absent } = pb;
            let name = required(query_parameter_name, &at.field("query_parameter_name"), scope)?;
            let key = required(descriptor_key, &at.field("descriptor_key"), scope)?;
            Some(Action::Query { name: (*name).into(), key, optional: *skip_if_absent })
        }
        Some(ActionSpecifier::HeaderValueMatch(pb)) => {
            header_value(pb, &at.field("header_value_match"), scope)
        }
        Some(ActionSpecifier::QueryParameterValueMatch(pb)) => {
            query_value(pb, &at.field("query_parameter_value_match"), scope)
        }
        Some(ActionSpecifier::Metadata(_)) => refused("metadata", scope),
        Some(ActionSpecifier::DynamicMetadata(_)) => refused("dynamic_metadata", scope),
        Some(ActionSpecifier::RemoteAddressMatch(_)) => refused("remote_address_match", scope),
        Some(ActionSpecifier::Extension(_)) => refused("extension", scope),
        None => {
            scope.errors.report(at, "says nothing");
            None
        }
    }
}

fn header_value(pb: &pb::HeaderValueMatch, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Action> {
    let pb::HeaderValueMatch { descriptor_value, default_value, descriptor_key, expect_match, headers } = pb;
    refuse!(scope, at; default_value);
    let value = required(descriptor_value, &at.field("descriptor_value"), scope)?;
    let headers_at = at.field("headers");
    if headers.is_empty() {
        scope.errors.report(&headers_at, "needs a header");
    }
    let key = if descriptor_key.is_empty() { "header_match" } else { descriptor_key };
    let headers = header_matches(headers, &headers_at, scope);
    Some(Action::HeaderMatch {
        entry: (key.into(), value),
        headers,
        expect: boolean(expect_match.as_ref(), true),
    })
}

fn query_value(pb: &pb::QueryParameterValueMatch, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Action> {
    let pb::QueryParameterValueMatch {
        descriptor_value,
        default_value,
        descriptor_key,
        expect_match,
        query_parameters,
    } = pb;
    refuse!(scope, at; default_value);
    let value = required(descriptor_value, &at.field("descriptor_value"), scope)?;
    let list_at = at.field("query_parameters");
    if query_parameters.is_empty() {
        scope.errors.report(&list_at, "needs a parameter");
    }
    let key = if descriptor_key.is_empty() { "query_match" } else { descriptor_key };
    let query = query_parameters.iter().enumerate();
    let query = query.filter_map(|(i, pb)| query_match(pb, &list_at.index(i), scope)).collect();
    Some(Action::QueryMatch {
        entry: (key.into(), value),
        query,
        expect: boolean(expect_match.as_ref(), true),
    })
}

fn required(text: &str, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Arc<str>> {
    if text.is_empty() {
        scope.errors.report(at, "must not be empty");
        return None;
    }
    Some(text.into())
}
