//! `envoy.extensions.filters.http.rate_limit_quota.v3.RateLimitQuotaFilterConfig`: one header's exact values lead to buckets.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use foldhash::HashMap;
use http::{HeaderName, StatusCode};
use remora_xds::diag::At;
use remora_xds::pb::envoy::extensions::filters::http::rate_limit_quota::v3 as pb;
use remora_xds::pb::envoy::extensions::filters::http::rate_limit_quota::v3::RateLimitQuotaBucketSettings;
use remora_xds::pb::envoy::extensions::filters::http::rate_limit_quota::v3::rate_limit_quota_bucket_settings as settings;
use remora_xds::pb::envoy::r#type::matcher::v3::HttpRequestHeaderMatchInput;
use remora_xds::pb::envoy::r#type::v3::RateLimitStrategy;
use remora_xds::pb::envoy::r#type::v3::rate_limit_strategy::{BlanketRule, Strategy as StrategyPb};
use remora_xds::pb::google::protobuf::Any;
use remora_xds::pb::google::rpc::Status;
use remora_xds::pb::xds::core::v3::TypedExtensionConfig;
use remora_xds::pb::xds::r#type::matcher::v3::Matcher as MatcherPb;
use remora_xds::pb::xds::r#type::matcher::v3::matcher::matcher_tree::TreeType;
use remora_xds::pb::xds::r#type::matcher::v3::matcher::on_match::OnMatch as OnMatchKind;
use remora_xds::pb::xds::r#type::matcher::v3::matcher::{MatcherTree, MatcherType, OnMatch};
use settings::bucket_id_builder::value_builder::ValueSpecifier;
use settings::expired_assignment_behavior::ExpiredAssignmentBehavior;
use settings::no_assignment_behavior::NoAssignmentBehavior;
use tokio::time::Instant;

use super::limit::bucket;
use super::refusal_status;
use crate::config::compile::Scope;
use crate::config::compile::common::{
    enumeration, header_name, positive_duration, runtime_fraction, unsupported,
};
use crate::config::compile::fields::{holds, refuse, unpack};
use crate::config::compile::policy::asked_by_grpc;
use crate::config::compile::route::additions;
use crate::error::GrpcCode;
use crate::traffic::limit::Refusal;
use crate::traffic::limit::quota::{Expired, Lead, Matcher, MeterKey, QuotaBucket, QuotaFilter, Strategy};

/// Envoy's shortest `reporting_interval`.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// Whose buckets they are.
struct Owner {
    cluster: Arc<str>,
    authority: Arc<str>,
    domain: Arc<str>,
}

/// Compiles the filter `name`. None when it has mistakes, which are in `scope.errors`.
pub(super) fn quota(
    name: &str,
    pb: &pb::RateLimitQuotaFilterConfig,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<QuotaFilter> {
    let before = scope.errors.len();
    let pb::RateLimitQuotaFilterConfig {
        rlqs_server,
        domain,
        bucket_matchers,
        filter_enabled,
        filter_enforced,
        request_headers_to_add_when_not_enforced,
    } = pb;
    if domain.is_empty() {
        scope.errors.report(&at.field("domain"), "must not be empty");
    }
    let at_server = at.field("rlqs_server");
    let Some(server) = rlqs_server else {
        scope.errors.report(&at_server, "is required");
        return None;
    };
    let (cluster, service) = asked_by_grpc(server, &at_server, scope)?;
    if !service.metadata.is_empty() {
        let at = at_server.field("initial_metadata");
        scope.errors.report(&at, "is not supported for a stream").fix("remove it");
    }
    let owner = Owner {
        cluster: scope.names.clusters.name(cluster).map(Arc::clone).unwrap_or_default(),
        authority: service.authority.as_str().into(),
        domain: domain.as_str().into(),
    };
    let at_matcher = at.field("bucket_matchers");
    let matcher = match bucket_matchers {
        Some(pb) => matcher(pb, &owner, &at_matcher, scope),
        None => {
            scope.errors.report(&at_matcher, "is required");
            None
        }
    };
    let headers_at = at.field("request_headers_to_add_when_not_enforced");
    let (enabled_at, enforced_at) = (at.field("filter_enabled"), at.field("filter_enforced"));
    let filter = QuotaFilter {
        cluster,
        matcher: matcher?,
        enabled: filter_enabled.as_ref().and_then(|pb| runtime_fraction(pb, &enabled_at, scope)),
        enforced: filter_enforced.as_ref().and_then(|pb| runtime_fraction(pb, &enforced_at, scope)),
        request_headers: additions(request_headers_to_add_when_not_enforced, &headers_at, scope),
        stat_prefix: domain.as_str().into(),
        id: scope.names.policies.intern(&format!("{domain}\n{name}")),
    };
    (scope.errors.len() == before).then_some(filter)
}

fn matcher(pb: &MatcherPb, owner: &Owner, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Matcher> {
    let MatcherPb { on_no_match, matcher_type } = pb;
    let tree = match matcher_type {
        Some(MatcherType::MatcherTree(pb)) => Some(tree(pb, owner, &at.field("matcher_tree"), scope)?),
        Some(MatcherType::MatcherList(_)) => {
            unsupported(true, &at.field("matcher_list"), scope);
            None
        }
        None => None,
    };
    let at_none = at.field("on_no_match");
    let otherwise = on_no_match.as_ref().and_then(|pb| on_match(pb, owner, &at_none, scope));
    if tree.is_none() && on_no_match.is_none() {
        scope.errors.report(at, "leads to no bucket").fix("set on_no_match or matcher_tree");
    }
    Some(Matcher { tree, otherwise })
}

type Tree = (HeaderName, HashMap<Box<str>, QuotaBucket>);

fn tree(pb: &MatcherTree, owner: &Owner, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Tree> {
    let MatcherTree { input, tree_type } = pb;
    let at_extension = at.field("input");
    let at_input = at_extension.field("typed_config");
    let any = extension(input.as_ref(), &at_extension, scope);
    let name = any.and_then(|any| {
        if !holds::<HttpRequestHeaderMatchInput>(any) {
            let message = format!("`{}` is not supported", any.type_url);
            scope.errors.report(&at_input, message).fix("use HttpRequestHeaderMatchInput");
            return None;
        }
        let HttpRequestHeaderMatchInput { header_name: name } = unpack(any, &at_input, scope)?;
        header_name(&name, &at_input.field("header_name"), scope)
    });
    let Some(TreeType::ExactMatchMap(map)) = tree_type else {
        scope.errors.report(at, "has no exact_match_map").fix("list the values of the header there");
        return None;
    };
    let at = at.field("exact_match_map");
    let at = at.field("map");
    // In one order, so that mistakes are told in one order.
    let mut entries: Vec<_> = map.map.iter().collect();
    entries.sort_by_key(|(value, _)| *value);
    let mut out = HashMap::default();
    for (value, pb) in entries {
        if let Some(bucket) = on_match(pb, owner, &at.field(value), scope) {
            out.insert(value.as_str().into(), bucket);
        }
    }
    Some((name?, out))
}

fn extension<'p>(
    pb: Option<&'p TypedExtensionConfig>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<&'p Any> {
    let any = pb.and_then(|TypedExtensionConfig { name: _, typed_config }| typed_config.as_ref());
    if any.is_none() {
        scope.errors.report(&at.field("typed_config"), "is required");
    }
    any
}

fn on_match(pb: &OnMatch, owner: &Owner, at: &At<'_>, scope: &mut Scope<'_>) -> Option<QuotaBucket> {
    let OnMatch { keep_matching, on_match } = pb;
    refuse!(scope, at; keep_matching);
    let Some(OnMatchKind::Action(action)) = on_match else {
        unsupported(on_match.is_some(), &at.field("matcher"), scope);
        if on_match.is_none() {
            scope.errors.report(&at.field("action"), "is required");
        }
        return None;
    };
    let at = at.field("action");
    let any = extension(Some(action), &at, scope)?;
    let at = at.field("typed_config");
    if !holds::<RateLimitQuotaBucketSettings>(any) {
        let message = format!("`{}` is not supported", any.type_url);
        scope.errors.report(&at, message).fix("use RateLimitQuotaBucketSettings");
        return None;
    }
    let pb = unpack::<RateLimitQuotaBucketSettings>(any, &at, scope)?;
    bucket_settings(&pb, owner, &at, scope)
}

fn bucket_settings(
    pb: &RateLimitQuotaBucketSettings,
    owner: &Owner,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<QuotaBucket> {
    let RateLimitQuotaBucketSettings {
        bucket_id_builder,
        reporting_interval,
        deny_response_settings,
        no_assignment_behavior,
        expired_assignment_behavior,
    } = pb;
    let at_interval = at.field("reporting_interval");
    if reporting_interval.is_none() {
        scope.errors.report(&at_interval, "is required");
    }
    let interval = positive_duration(reporting_interval.as_ref(), &at_interval, scope);
    if interval.is_some_and(|interval| interval <= SHORTEST_INTERVAL) {
        scope.errors.report(&at_interval, "must be more than 100ms");
    }
    let at_unassigned = at.field("no_assignment_behavior");
    let at_fallback = at_unassigned.field("fallback_rate_limit");
    let unassigned = match no_assignment_behavior.as_ref().and_then(|pb| pb.no_assignment_behavior) {
        Some(NoAssignmentBehavior::FallbackRateLimit(pb)) => strategy(&pb, &at_fallback, scope),
        None => Some(Strategy::AllowAll),
    };
    let at_expired = at.field("expired_assignment_behavior");
    let expired =
        expired_assignment_behavior.as_ref().and_then(|pb| expired_behavior(pb, &at_expired, scope));
    let bucket = bucket_id(bucket_id_builder.as_ref(), &at.field("bucket_id_builder"), scope);
    let deny = deny_response_settings.clone().unwrap_or_default();
    let (refusal, grpc_refusal) = refusals(&deny, &at.field("deny_response_settings"), scope);
    let lead = Lead { interval: interval?, unassigned: unassigned?, expired };
    let Owner { cluster, authority, domain } = owner;
    let key = MeterKey {
        cluster: Arc::clone(cluster),
        authority: Arc::clone(authority),
        domain: Arc::clone(domain),
        bucket: bucket?,
    };
    Some(QuotaBucket {
        meter: scope.names.meters.of(key, &lead, Instant::now()),
        lead: Arc::new(lead),
        refusal,
        body: deny.http_body.map(|body| Bytes::from(body.value)).unwrap_or_default(),
        grpc_refusal,
        grpc_message: deny.grpc_status.map(|status| Bytes::from(status.message)).unwrap_or_default(),
    })
}

fn bucket_id(
    pb: Option<&settings::BucketIdBuilder>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<std::collections::BTreeMap<String, String>> {
    let Some(settings::BucketIdBuilder { bucket_id_builder }) =
        pb.filter(|pb| !pb.bucket_id_builder.is_empty())
    else {
        scope.errors.report(at, "is required").fix("a limit of this proxy alone is a local_ratelimit");
        return None;
    };
    let at = at.field("bucket_id_builder");
    let mut entries: Vec<_> = bucket_id_builder.iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    let pair = |(key, pb): (&String, &settings::bucket_id_builder::ValueBuilder)| {
        let at = at.field(key);
        match &pb.value_specifier {
            Some(ValueSpecifier::StringValue(value)) if !value.is_empty() => {
                Some((key.clone(), value.clone()))
            }
            Some(ValueSpecifier::CustomValue(_)) => {
                unsupported(true, &at.field("custom_value"), scope);
                None
            }
            Some(ValueSpecifier::StringValue(_)) | None => {
                scope.errors.report(&at.field("string_value"), "must not be empty");
                None
            }
        }
    };
    let pairs: Vec<_> = entries.into_iter().map(pair).collect();
    pairs.into_iter().collect()
}

fn expired_behavior(
    pb: &settings::ExpiredAssignmentBehavior,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Expired> {
    let settings::ExpiredAssignmentBehavior {
        expired_assignment_behavior_timeout,
        expired_assignment_behavior,
    } = pb;
    let at_lasts = at.field("expired_assignment_behavior_timeout");
    let lasts = positive_duration(expired_assignment_behavior_timeout.as_ref(), &at_lasts, scope);
    let strategy = match expired_assignment_behavior {
        Some(ExpiredAssignmentBehavior::ReuseLastAssignment(_)) => None,
        Some(ExpiredAssignmentBehavior::FallbackRateLimit(pb)) => {
            Some(strategy(pb, &at.field("fallback_rate_limit"), scope)?)
        }
        None => {
            scope.errors.report(at, "says nothing").fix("set fallback_rate_limit or reuse_last_assignment");
            return None;
        }
    };
    // As in Envoy without a time the bucket is abandoned at once.
    Some(Expired { strategy, lasts: lasts.unwrap_or_default() })
}

fn strategy(pb: &RateLimitStrategy, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Strategy> {
    match &pb.strategy {
        Some(StrategyPb::BlanketRule(rule)) => match enumeration(*rule, &at.field("blanket_rule"), scope)? {
            BlanketRule::AllowAll => Some(Strategy::AllowAll),
            BlanketRule::DenyAll => Some(Strategy::DenyAll),
        },
        Some(StrategyPb::TokenBucket(pb)) => {
            bucket(pb, &at.field("token_bucket"), scope).map(Strategy::Tokens)
        }
        Some(StrategyPb::RequestsPerTimeUnit(pb)) => {
            let strategy = Strategy::per_unit(pb);
            if strategy.is_none() {
                let at = at.field("requests_per_time_unit");
                scope.errors.report(&at, "cannot be counted").fix("SECOND, MINUTE, HOUR or DAY, below 2^32");
            }
            strategy
        }
        None => {
            scope.errors.report(at, "says nothing");
            None
        }
    }
}

/// How clients of HTTP and of gRPC are refused.
fn refusals(pb: &settings::DenyResponseSettings, at: &At<'_>, scope: &mut Scope<'_>) -> (Refusal, Refusal) {
    let settings::DenyResponseSettings { http_status, http_body: _, grpc_status, response_headers_to_add } =
        pb;
    let headers = additions(response_headers_to_add, &at.field("response_headers_to_add"), scope);
    let too_many = StatusCode::TOO_MANY_REQUESTS;
    let status = refusal_status(http_status.as_ref(), too_many, &at.field("http_status"), scope);
    let at = at.field("grpc_status");
    let mut resource_exhausted = false;
    if let Some(Status { code, message: _, details }) = grpc_status {
        refuse!(scope, &at; details);
        resource_exhausted = *code == GrpcCode::ResourceExhausted as i32;
        if !resource_exhausted && *code != GrpcCode::Unavailable as i32 {
            let error = scope.errors.report(&at.field("code"), format!("{code} is not supported"));
            error.fix("8 (RESOURCE_EXHAUSTED) or 14 (UNAVAILABLE)");
        }
    }
    let http = Refusal { status, headers: headers.clone(), resource_exhausted: false };
    (http, Refusal { status: too_many, headers, resource_exhausted })
}
