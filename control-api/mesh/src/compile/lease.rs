//! Limits of a RateLimitPolicy that all sidecars keep together (`scope: Mesh`) -> filters that take from a share which the control plane
//! leases (docs/decisions/0013).

use std::time::Duration;

use remora_xds::pb::envoy::config::core::v3::GrpcService;
use remora_xds::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use remora_xds::pb::envoy::extensions::filters::http::rate_limit_quota::v3 as pb;
use remora_xds::pb::envoy::extensions::filters::http::rate_limit_quota::v3::rate_limit_quota_bucket_settings as settings;
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use remora_xds::pb::envoy::r#type::v3::rate_limit_strategy::Strategy;
use remora_xds::pb::envoy::r#type::v3::{RateLimitStrategy, TokenBucket};
use remora_xds::pb::google::rpc::Status;
use remora_xds::pb::xds::core::v3::TypedExtensionConfig;
use remora_xds::pb::xds::r#type::matcher::v3::Matcher;
use remora_xds::pb::xds::r#type::matcher::v3::matcher::OnMatch;
use remora_xds::pb::xds::r#type::matcher::v3::matcher::on_match::OnMatch as OnMatchKind;
use settings::bucket_id_builder::ValueBuilder;
use settings::bucket_id_builder::value_builder::ValueSpecifier;
use settings::expired_assignment_behavior::ExpiredAssignmentBehavior;
use settings::no_assignment_behavior::NoAssignmentBehavior;

use super::http::http_filter;
use super::{limit, names, parts};
use crate::document::{Document, Limit, LimitScope, RateLimitPolicySpec};
use crate::mesh::Mesh;

/// Between reports. The control plane's shares are for twice as long.
const REPORTED: Duration = Duration::from_secs(1);
/// How long a sidecar goes by its static share when the control plane says nothing, until it counts as one that never had another. It is the
/// same share.
const ALONE: Duration = Duration::from_secs(60);
/// Key of a bucket's id.
const KEY: &str = "limit";
/// `RESOURCE_EXHAUSTED`.
const RESOURCE_EXHAUSTED: i32 = 8;

/// A limit that sidecars keep together, as they and the control plane name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The policy: `NAMESPACE/NAME`.
    pub domain: String,
    /// Key and value that are the bucket's id.
    pub bucket: (String, String),
    /// So many requests
    pub requests: u32,
    /// in this time.
    pub per: Duration,
}

/// Those of a policy.
fn of(policy: &Document<RateLimitPolicySpec>) -> impl Iterator<Item = (Lease, &Limit)> {
    let domain = policy.name().to_string();
    let limits = policy.spec.limits.iter().enumerate();
    limits.filter(|(_, limit)| limit.scope == LimitScope::Mesh).map(move |(i, limit)| {
        let bucket = (KEY.to_owned(), limit::label(i, limit));
        (Lease { domain: domain.clone(), bucket, requests: limit.requests, per: limit.per.0 }, limit)
    })
}

/// All limits that sidecars keep together.
pub fn leases(mesh: &Mesh) -> impl Iterator<Item = Lease> {
    mesh.tables.rate_limits.values().flat_map(|policy| of(policy)).map(|(lease, _)| lease)
}

/// The filters of a policy, one for each limit.
pub(super) fn filters(mesh: &Mesh, policy: &Document<RateLimitPolicySpec>) -> Vec<HttpFilter> {
    let each = of(policy).map(|(lease, _)| {
        let alone = alone(&lease, mesh.sidecars(policy));
        filter(lease, alone, policy.spec.dry_run)
    });
    each.collect()
}

/// What a sidecar takes by itself: all of them together take the limit.
fn alone(lease: &Lease, sidecars: u32) -> RateLimitStrategy {
    RateLimitStrategy {
        strategy: Some(Strategy::TokenBucket(TokenBucket {
            max_tokens: (lease.requests / sidecars).max(1),
            tokens_per_fill: parts::number(lease.requests),
            fill_interval: Some(parts::duration(lease.per.saturating_mul(sidecars))),
        })),
    }
}

fn filter(lease: Lease, alone: RateLimitStrategy, dry_run: bool) -> HttpFilter {
    let Lease { domain, bucket: (key, label), .. } = lease;
    let name = format!("{domain}:mesh:{label}");
    let value = ValueBuilder { value_specifier: Some(ValueSpecifier::StringValue(label)) };
    let bucket = pb::RateLimitQuotaBucketSettings {
        bucket_id_builder: Some(settings::BucketIdBuilder { bucket_id_builder: [(key, value)].into() }),
        reporting_interval: Some(parts::duration(REPORTED)),
        deny_response_settings: Some(settings::DenyResponseSettings {
            grpc_status: Some(Status { code: RESOURCE_EXHAUSTED, ..Status::default() }),
            ..settings::DenyResponseSettings::default()
        }),
        no_assignment_behavior: Some(settings::NoAssignmentBehavior {
            no_assignment_behavior: Some(NoAssignmentBehavior::FallbackRateLimit(alone)),
        }),
        expired_assignment_behavior: Some(settings::ExpiredAssignmentBehavior {
            expired_assignment_behavior_timeout: Some(parts::duration(ALONE)),
            expired_assignment_behavior: Some(ExpiredAssignmentBehavior::FallbackRateLimit(alone)),
        }),
    };
    let action = TypedExtensionConfig { name: name.clone(), typed_config: Some(parts::pack(&bucket)) };
    let all = OnMatch { on_match: Some(OnMatchKind::Action(action)), ..OnMatch::default() };
    let server = EnvoyGrpc { cluster_name: names::CONTROL_PLANE.into(), ..EnvoyGrpc::default() };
    let config = pb::RateLimitQuotaFilterConfig {
        rlqs_server: Some(GrpcService {
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(server)),
            ..GrpcService::default()
        }),
        domain,
        bucket_matchers: Some(Matcher { on_no_match: Some(Box::new(all)), ..Matcher::default() }),
        filter_enabled: limit::share(true),
        filter_enforced: limit::share(!dry_run),
        request_headers_to_add_when_not_enforced: Vec::new(),
    };
    http_filter(&name, parts::pack(&config))
}
