//! `RouteAction`.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::uri::PathAndQuery;
use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3::RoutingPriority;
use remora_xds::pb::envoy::config::route::v3 as pb;
use remora_xds::pb::envoy::config::route::v3::route_action::{
    ClusterNotFoundResponseCode, ClusterSpecifier as ClusterPb, HostRewriteSpecifier, MaxStreamDuration,
    UpgradeConfig,
};
use remora_xds::pb::envoy::config::route::v3::weighted_cluster::{
    ClusterWeight, RandomValueSpecifier, cluster_weight,
};
use remora_xds::pb::google::protobuf;

use super::headers::Levels;
use super::retry::{compile_hedge_policy, compile_retry_policy};
use super::{HostContext, TableContext, non_empty};
use crate::balance::subset::LbMetadata;
use crate::config::compile::Scope;
use crate::config::compile::cluster::lb_metadata;
use crate::config::compile::common::{
    duration, enumeration, has_control, header_key, header_name, substitution, unsupported, value_template,
};
use crate::config::compile::traffic::compile_rules;
use crate::resilience::retry::RetryPolicy;
use crate::resilience::timeout::{GrpcHeader, Limit, TimeoutPolicy};
use crate::route::action::{ClusterRef, ClusterSpecifier, Priority, RouteAction, UpgradeOverride};
use crate::route::header::ValueTemplate;
use crate::route::rewrite::{HostRewrite, PathRewrite, parse_authority};
use crate::route::split::{WeightedCluster, WeightedClusters};
use crate::traffic::limit::RouteRules;

/// What an action takes from its route and virtual host.
pub(super) struct Parents<'a> {
    pub(super) route: &'a Levels,
    pub(super) host: &'a HostContext,
    pub(super) buffer_limit: Option<u64>,
    /// `metadata_match` of the route.
    pub(super) subset: Option<&'a Arc<LbMetadata>>,
}

impl TableContext {
    pub(super) fn forward(
        &mut self,
        pb: &pb::RouteAction,
        parents: &Parents<'_>,
        at: &At<'_>,
        scope: &mut Scope<'_>,
    ) -> Option<RouteAction> {
        refuse_unsupported(pb, at, scope);
        let subset = lb_metadata(pb.metadata_match.as_ref()).map(Arc::new);
        let parents = &Parents { subset: subset.as_ref(), ..*parents };
        let clusters = self.cluster_specifier(pb.cluster_specifier.as_ref(), parents, at, scope);
        let timeouts = timeouts(pb, at, scope);
        let code_at = at.field("cluster_not_found_response_code");
        let cluster_not_found = enumeration(pb.cluster_not_found_response_code, &code_at, scope)?;
        let priority = enumeration(pb.priority, &at.field("priority"), scope)?;
        let upgrades_at = at.field("upgrade_configs");
        let upgrades = pb.upgrade_configs.iter().enumerate();
        Some(RouteAction {
            cluster_not_found: match cluster_not_found {
                ClusterNotFoundResponseCode::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
                ClusterNotFoundResponseCode::NotFound => StatusCode::NOT_FOUND,
                ClusterNotFoundResponseCode::InternalServerError => StatusCode::INTERNAL_SERVER_ERROR,
            },
            retry: retry(pb.retry_policy.as_ref(), &timeouts, parents.host, at, scope),
            hedge: match &pb.hedge_policy {
                Some(policy) => compile_hedge_policy(policy, &at.field("hedge_policy"), scope),
                None => parents.host.hedge,
            },
            timeouts,
            path_rewrite: path_rewrite(pb, at, scope),
            host_rewrite: host_rewrite(pb.host_rewrite_specifier.as_ref(), at, scope),
            append_x_forwarded_host: pb.append_x_forwarded_host,
            priority: match priority {
                RoutingPriority::Default => Priority::Default,
                RoutingPriority::High => Priority::High,
            },
            circuit: None,
            upgrades: upgrades.filter_map(|(i, u)| upgrade(u, &upgrades_at.index(i), scope)).collect(),
            buffer_limit: parents.buffer_limit,
            hash_policy: super::hash::policies(&pb.hash_policy, &at.field("hash_policy"), scope),
            subset: subset.clone(),
            attempt_count_in_request: parents.host.attempt_count_in_request,
            attempt_count_in_response: parents.host.attempt_count_in_response,
            is_timeout_retry_header: parents.host.is_timeout_retry_header,
            limits: limits(pb, parents.host, at, scope),
            mirrors: self.mirrors(&pb.request_mirror_policies, &parents.host.mirrors, at, scope),
            clusters: clusters?,
        })
    }

    fn cluster_specifier(
        &mut self,
        pb: Option<&ClusterPb>,
        parents: &Parents<'_>,
        at: &At<'_>,
        scope: &mut Scope<'_>,
    ) -> Option<ClusterSpecifier> {
        match pb {
            Some(ClusterPb::Cluster(name)) => {
                let at = at.field("cluster");
                if name.is_empty() {
                    scope.errors.report(&at, "must not be empty");
                    return None;
                }
                Some(ClusterSpecifier::One(ClusterRef::Id(self.cluster(name, &at, scope))))
            }
            Some(ClusterPb::ClusterHeader(name)) => {
                let key = header_key(name, &at.field("cluster_header"), scope)?;
                Some(ClusterSpecifier::One(ClusterRef::Header(key)))
            }
            Some(ClusterPb::WeightedClusters(weighted)) => self
                .weighted(weighted, parents, &at.field("weighted_clusters"), scope)
                .map(ClusterSpecifier::Weighted),
            Some(ClusterPb::ClusterSpecifierPlugin(_)) => {
                unsupported(true, &at.field("cluster_specifier_plugin"), scope);
                None
            }
            Some(ClusterPb::InlineClusterSpecifierPlugin(_)) => {
                unsupported(true, &at.field("inline_cluster_specifier_plugin"), scope);
                None
            }
            None => {
                scope.errors.report(at, "needs cluster, weighted_clusters or cluster_header");
                None
            }
        }
    }

    fn weighted(
        &mut self,
        pb: &pb::WeightedCluster,
        parents: &Parents<'_>,
        at: &At<'_>,
        scope: &mut Scope<'_>,
    ) -> Option<WeightedClusters> {
        #[expect(deprecated, reason = "old files have total_weight")]
        let pb::WeightedCluster { clusters, total_weight, runtime_key_prefix: _, random_value_specifier } =
            pb;
        let clusters_at = at.field("clusters");
        let mut total: u32 = 0;
        let mut out = Vec::with_capacity(clusters.len());
        let before = scope.errors.len();
        for (i, cluster) in clusters.iter().enumerate() {
            let at = clusters_at.index(i);
            let weight = cluster.weight.as_ref().map_or(0, |w| w.value);
            match total.checked_add(weight) {
                Some(sum) => total = sum,
                None => {
                    scope.errors.report(&at.field("weight"), "the weights sum up to more than 4294967295");
                }
            }
            out.extend(self.cluster_weight(cluster, total, parents, &at, scope));
        }
        if total == 0 {
            scope.errors.report(&clusters_at, "the weights must sum up to more than zero");
        }
        if let Some(said) = total_weight.as_ref().filter(|t| t.value != 0 && t.value != total) {
            let message = format!("is {}, but the weights sum up to {total}", said.value);
            scope.errors.report(&at.field("total_weight"), message).fix("remove it");
        }
        let random_header = match random_value_specifier {
            Some(RandomValueSpecifier::HeaderName(name)) if !name.is_empty() => {
                header_name(name, &at.field("header_name"), scope)
            }
            Some(RandomValueSpecifier::UseHashPolicy(on)) => {
                unsupported(on.value, &at.field("use_hash_policy"), scope);
                None
            }
            _ => None,
        };
        if scope.errors.len() > before {
            return None;
        }
        WeightedClusters::new(out, random_header)
    }

    fn cluster_weight(
        &mut self,
        pb: &ClusterWeight,
        until: u32,
        parents: &Parents<'_>,
        at: &At<'_>,
        scope: &mut Scope<'_>,
    ) -> Option<WeightedCluster> {
        let ClusterWeight {
            name,
            cluster_header,
            weight,
            metadata_match,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            typed_per_filter_config,
            host_rewrite_specifier,
        } = pb;
        let subset = lb_metadata(metadata_match.as_ref());
        let subset = match (subset, parents.subset) {
            (Some(own), Some(route)) => Some(Arc::new(own.over(route))),
            (Some(own), None) => Some(Arc::new(own)),
            (None, route) => route.cloned(),
        };
        super::no_per_filter_config(typed_per_filter_config, at, scope);
        if weight.is_none() {
            scope.errors.report(&at.field("weight"), "is required");
        }
        let levels = Levels::compile(
            (request_headers_to_add, request_headers_to_remove),
            (response_headers_to_add, response_headers_to_remove),
            at,
            scope,
        );
        let cluster = match (non_empty(name), non_empty(cluster_header)) {
            (Some(name), None) => ClusterRef::Id(self.cluster(name, &at.field("name"), scope)),
            (None, Some(header)) => {
                ClusterRef::Header(header_key(header, &at.field("cluster_header"), scope)?)
            }
            _ => {
                scope.errors.report(at, "needs one of name and cluster_header");
                return None;
            }
        };
        let host_rewrite = match host_rewrite_specifier {
            Some(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(host)) => {
                authority(host, &at.field("host_rewrite_literal"), scope)
            }
            None => None,
        };
        let (request_headers, response_headers) = self.merge(Some(&levels), parents.route, parents.host);
        Some(WeightedCluster { cluster, until, request_headers, response_headers, host_rewrite, subset })
    }
}

/// Fields that nothing here implements. Those that are not named are compiled by [`TableContext::forward`].
#[expect(deprecated, reason = "the fields are read so that they can be refused")]
fn refuse_unsupported(pb: &pb::RouteAction, at: &At<'_>, scope: &mut Scope<'_>) {
    let pb::RouteAction {
        cluster_not_found_response_code: _,
        metadata_match: _,
        prefix_rewrite: _,
        regex_rewrite: _,
        path_rewrite_policy,
        path_rewrite: _,
        append_x_forwarded_host: _,
        timeout: _,
        idle_timeout: _,
        flush_timeout,
        early_data_policy,
        retry_policy: _,
        retry_policy_typed_config,
        request_mirror_policies: _,
        priority: _,
        rate_limits: _,
        include_vh_rate_limits: _,
        hash_policy: _,
        cors: _,
        max_grpc_timeout: _,
        grpc_timeout_offset: _,
        upgrade_configs: _,
        internal_redirect_policy,
        internal_redirect_action,
        max_internal_redirects,
        hedge_policy: _,
        max_stream_duration: _,
        cluster_specifier: _,
        host_rewrite_specifier: _,
    } = pb;
    let set = [
        ("path_rewrite_policy", path_rewrite_policy.is_some()),
        ("flush_timeout", flush_timeout.is_some()),
        ("early_data_policy", early_data_policy.is_some()),
        ("retry_policy_typed_config", retry_policy_typed_config.is_some()),
        ("internal_redirect_policy", internal_redirect_policy.is_some()),
        ("internal_redirect_action", *internal_redirect_action != 0),
        ("max_internal_redirects", max_internal_redirects.is_some()),
    ];
    for (field, set) in set {
        unsupported(set, &at.field(field), scope);
    }
}

#[expect(deprecated, reason = "old files say here what vh_rate_limits of the filter says")]
fn limits(pb: &pb::RouteAction, host: &HostContext, at: &At<'_>, scope: &mut Scope<'_>) -> RouteRules {
    RouteRules {
        own: compile_rules(&pb.rate_limits, &at.field("rate_limits"), scope).into(),
        host: Arc::clone(&host.limits),
        include_host: pb.include_vh_rate_limits.as_ref().is_some_and(|v| v.value),
    }
}

/// Zero means no limit.
fn limit(value: Option<&protobuf::Duration>, at: &At<'_>, scope: &mut Scope<'_>) -> Limit {
    match duration(value, at, scope) {
        None => Limit::Inherit,
        Some(Duration::ZERO) => Limit::Off,
        Some(d) => Limit::After(d),
    }
}

/// `max` of zero accepts every timeout.
fn grpc_header(max: Option<Duration>, offset: Option<Duration>) -> Option<GrpcHeader> {
    let max = max?;
    Some(GrpcHeader { max: (!max.is_zero()).then_some(max), offset: offset.unwrap_or_default() })
}

#[expect(deprecated, reason = "Istio's files have the old gRPC timeouts")]
fn timeouts(pb: &pb::RouteAction, at: &At<'_>, scope: &mut Scope<'_>) -> TimeoutPolicy {
    let said = duration(pb.timeout.as_ref(), &at.field("timeout"), scope);
    let max_grpc = duration(pb.max_grpc_timeout.as_ref(), &at.field("max_grpc_timeout"), scope);
    let offset_at = at.field("grpc_timeout_offset");
    let offset = duration(pb.grpc_timeout_offset.as_ref(), &offset_at, scope);
    if offset.is_some() && max_grpc.is_none() {
        scope.errors.report(&offset_at, "has no effect without max_grpc_timeout");
    }
    let mut policy = TimeoutPolicy {
        request: Some(said.unwrap_or(TimeoutPolicy::DEFAULT_REQUEST)).filter(|t| !t.is_zero()),
        grpc_request: grpc_header(max_grpc, offset),
        idle: limit(pb.idle_timeout.as_ref(), &at.field("idle_timeout"), scope),
        ..TimeoutPolicy::default()
    };
    if let Some(stream) = &pb.max_stream_duration {
        // With it Envoy uses neither timeout nor max_grpc_timeout, and says nothing when they are there.
        for (field, value) in [("timeout", said), ("max_grpc_timeout", max_grpc)] {
            if value.is_some_and(|t| !t.is_zero()) {
                let message = format!("{field} has no effect beside max_stream_duration");
                scope.errors.report(&at.field(field), message).fix("remove one of the two");
            }
        }
        policy.request = None;
        policy.grpc_request = None;
        stream_duration(stream, &mut policy, &at.field("max_stream_duration"), scope);
    }
    policy
}

fn stream_duration(pb: &MaxStreamDuration, policy: &mut TimeoutPolicy, at: &At<'_>, scope: &mut Scope<'_>) {
    let MaxStreamDuration { max_stream_duration, grpc_timeout_header_max, grpc_timeout_header_offset } = pb;
    policy.stream = limit(max_stream_duration.as_ref(), &at.field("max_stream_duration"), scope);
    let max = duration(grpc_timeout_header_max.as_ref(), &at.field("grpc_timeout_header_max"), scope);
    let offset_at = at.field("grpc_timeout_header_offset");
    let offset = duration(grpc_timeout_header_offset.as_ref(), &offset_at, scope);
    if offset.is_some() && max.is_none() {
        scope.errors.report(&offset_at, "has no effect without grpc_timeout_header_max");
    }
    policy.grpc_stream = grpc_header(max, offset);
}

/// The route's policy, or else its virtual host's. A try that may last longer than the whole request is a mistake in
/// the route's own policy; one that comes from the virtual host, for all its routes, is cut to the route's timeout.
fn retry(
    pb: Option<&pb::RetryPolicy>,
    timeouts: &TimeoutPolicy,
    host: &HostContext,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Arc<RetryPolicy>> {
    let Some(pb) = pb else { return host.retry.clone() };
    let own = at.field("retry_policy");
    let policy = compile_retry_policy(pb, &own, scope);
    if let (Some(per_try), Some(request)) = (policy.per_try_timeout, timeouts.request)
        && per_try > request
    {
        let message = format!(
            "{per_try:?} is longer than the route's timeout of {request:?} ({})",
            at.field("timeout")
        );
        let fix = "raise the route's timeout (0s is none) or shorten per_try_timeout";
        scope.errors.report(&own.field("per_try_timeout"), message).fix(fix);
    }
    Some(Arc::new(policy))
}

fn path_rewrite(pb: &pb::RouteAction, at: &At<'_>, scope: &mut Scope<'_>) -> Option<PathRewrite> {
    let set = [!pb.prefix_rewrite.is_empty(), pb.regex_rewrite.is_some(), !pb.path_rewrite.is_empty()];
    if set.iter().filter(|s| **s).count() > 1 {
        scope.errors.report(at, "only one of prefix_rewrite, regex_rewrite and path_rewrite may be set");
        return None;
    }
    if let Some(regex) = &pb.regex_rewrite {
        return substitution(regex, &at.field("regex_rewrite"), scope).map(PathRewrite::Regex);
    }
    if let Some(prefix) = non_empty(&pb.prefix_rewrite) {
        return path_text(prefix, &at.field("prefix_rewrite"), scope).map(PathRewrite::Prefix);
    }
    let whole = non_empty(&pb.path_rewrite)?;
    value_template(whole, &at.field("path_rewrite"), scope).map(PathRewrite::Whole)
}

/// A text that may stand in a path.
pub(super) fn path_text(text: &str, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Box<str>> {
    let bad = has_control(text) || text.contains('#') || PathAndQuery::try_from(format!("/{text}")).is_err();
    if bad {
        scope.errors.report(at, "is not a path");
        return None;
    }
    Some(text.into())
}

fn host_rewrite(pb: Option<&HostRewriteSpecifier>, at: &At<'_>, scope: &mut Scope<'_>) -> HostRewrite {
    let rewrite = match pb {
        None => return HostRewrite::Keep,
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            authority(host, &at.field("host_rewrite_literal"), scope).map(HostRewrite::Literal)
        }
        Some(HostRewriteSpecifier::AutoHostRewrite(on)) => {
            Some(if on.value { HostRewrite::Auto } else { HostRewrite::Keep })
        }
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => {
            header_name(name, &at.field("host_rewrite_header"), scope).map(HostRewrite::Header)
        }
        Some(HostRewriteSpecifier::HostRewritePathRegex(regex)) => {
            substitution(regex, &at.field("host_rewrite_path_regex"), scope).map(HostRewrite::PathRegex)
        }
        Some(HostRewriteSpecifier::HostRewrite(text)) => {
            let at = at.field("host_rewrite");
            match value_template(text, &at, scope) {
                Some(ValueTemplate::Static(_)) => authority(text, &at, scope).map(HostRewrite::Literal),
                other => other.map(HostRewrite::Template),
            }
        }
    };
    rewrite.unwrap_or_default()
}

/// A host with an optional port.
pub(super) fn authority(text: &str, at: &At<'_>, scope: &mut Scope<'_>) -> Option<http::uri::Authority> {
    let host = parse_authority(text);
    if host.is_none() {
        scope.errors.report(at, format!("{text:?} is not a host with an optional port"));
    }
    host
}

fn upgrade(pb: &UpgradeConfig, at: &At<'_>, scope: &mut Scope<'_>) -> Option<UpgradeOverride> {
    let UpgradeConfig { upgrade_type, enabled, connect_config } = pb;
    if upgrade_type.is_empty() {
        scope.errors.report(&at.field("upgrade_type"), "must not be empty");
        return None;
    }
    let token: Arc<str> = upgrade_type.to_ascii_lowercase().into();
    if let Some(connect) = connect_config {
        let at = at.field("connect_config");
        unsupported(connect.proxy_protocol_config.is_some(), &at.field("proxy_protocol_config"), scope);
        unsupported(connect.allow_post, &at.field("allow_post"), scope);
        if &*token != "connect" {
            scope.errors.report(&at, "is for upgrade_type CONNECT only");
        }
    }
    Some(UpgradeOverride {
        token,
        enabled: enabled.as_ref().is_none_or(|e| e.value),
        terminate_connect: connect_config.is_some(),
    })
}
