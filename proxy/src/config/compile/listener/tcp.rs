//! `TcpProxy`.

use std::sync::Arc;
use std::time::Duration;

use remora_xds::diag::At;
use remora_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use remora_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::weighted_cluster::ClusterWeight;
use remora_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, WeightedCluster,
};
use remora_xds::pb::envoy::r#type::v3::HashPolicy;
use remora_xds::pb::envoy::r#type::v3::hash_policy::{PolicySpecifier, SourceIp};

use crate::config::compile::Scope;
use crate::config::compile::access_log::compile_access_logs;
use crate::config::compile::cluster::lb_metadata;
use crate::config::compile::fields::{number, refuse, timeout};
use crate::config::names::ClusterId;
use crate::config::spec::{Direction, TcpSpec};

pub(super) fn compile(
    pb: &TcpProxy,
    direction: Direction,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<TcpSpec> {
    #[expect(deprecated, reason = "deprecated fields are refused with the rest")]
    let TcpProxy {
        stat_prefix,
        on_demand,
        metadata_match,
        idle_timeout,
        downstream_idle_timeout,
        upstream_idle_timeout,
        access_log,
        max_connect_attempts,
        backoff_options,
        hash_policy,
        tunneling_config,
        max_downstream_connection_duration,
        max_downstream_connection_duration_jitter_percentage,
        access_log_flush_interval,
        flush_access_log_on_connected,
        access_log_options,
        proxy_protocol_tlvs,
        proxy_protocol_tlv_merge_policy,
        upstream_connect_mode,
        max_early_data_bytes,
        check_drain_close,
        cluster_specifier,
    } = pb;
    refuse!(
        scope, at;
        on_demand,
        downstream_idle_timeout,
        upstream_idle_timeout,
        backoff_options,
        tunneling_config,
        max_downstream_connection_duration_jitter_percentage,
        access_log_flush_interval,
        flush_access_log_on_connected,
        access_log_options,
        proxy_protocol_tlvs,
        proxy_protocol_tlv_merge_policy,
        upstream_connect_mode,
        max_early_data_bytes,
        check_drain_close,
    );
    if stat_prefix.is_empty() {
        scope.errors.report(&at.field("stat_prefix"), "is missing").fix("give it a name for metrics");
    }
    let hour = Some(Duration::from_secs(3600));
    let idle_timeout = timeout(idle_timeout.as_ref(), hour, &at.field("idle_timeout"), scope);
    let duration_at = at.field("max_downstream_connection_duration");
    let max_duration = timeout(max_downstream_connection_duration.as_ref(), None, &duration_at, scope);
    let attempts_at = at.field("max_connect_attempts");
    let attempts = number(max_connect_attempts.as_ref(), 1..=u32::MAX, &attempts_at, scope);
    Some(TcpSpec {
        stat_prefix: stat_prefix.as_str().into(),
        direction,
        clusters: clusters(cluster_specifier.as_ref(), at, scope)?,
        idle_timeout,
        max_duration,
        max_connect_attempts: attempts.unwrap_or(1),
        hash_source_ip: hash_source_ip(hash_policy, &at.field("hash_policy"), scope),
        subset: lb_metadata(metadata_match.as_ref()).map(Arc::new),
        access_log: compile_access_logs(access_log, &at.field("access_log"), scope),
    })
}

/// `hash_policy`: of a connection there is only its source to hash.
fn hash_source_ip(list: &[HashPolicy], at: &At<'_>, scope: &mut Scope<'_>) -> bool {
    for (i, HashPolicy { policy_specifier }) in list.iter().enumerate() {
        match policy_specifier {
            Some(PolicySpecifier::SourceIp(SourceIp {})) => {}
            Some(PolicySpecifier::FilterState(_)) => {
                scope.errors.report(&at.index(i).field("filter_state"), "is not supported");
            }
            None => {
                scope.errors.report(&at.index(i), "needs source_ip");
            }
        }
    }
    if list.len() > 1 {
        scope.errors.report(at, "must not have more than one policy");
    }
    !list.is_empty()
}

fn clusters(
    specifier: Option<&ClusterSpecifier>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Vec<(ClusterId, u32)>> {
    match specifier {
        Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => {
            Some(vec![(scope.names.clusters.intern(name), 1)])
        }
        Some(ClusterSpecifier::WeightedClusters(WeightedCluster { clusters })) if !clusters.is_empty() => {
            let at = at.field("weighted_clusters");
            weighted(clusters, &at.field("clusters"), scope)
        }
        _ => {
            scope
                .errors
                .report(&at.field("cluster"), "is missing")
                .fix("name a cluster, or weighted_clusters");
            None
        }
    }
}

fn weighted(list: &[ClusterWeight], at: &At<'_>, scope: &mut Scope<'_>) -> Option<Vec<(ClusterId, u32)>> {
    let mut sum = 0_u32;
    let mut clusters = Vec::with_capacity(list.len());
    for (i, entry) in list.iter().enumerate() {
        let at = at.index(i);
        let ClusterWeight { name, weight, metadata_match } = entry;
        refuse!(scope, &at; metadata_match);
        if name.is_empty() {
            scope.errors.report(&at.field("name"), "is missing");
        }
        if *weight == 0 {
            scope
                .errors
                .report(&at.field("weight"), "must be 1 or more")
                .fix("remove the entry to send it nothing");
        }
        let Some(next) = sum.checked_add(*weight) else {
            scope.errors.report(&at.field("weight"), "the weights add up to more than 4294967295");
            return None;
        };
        sum = next;
        clusters.push((scope.names.clusters.intern(name), sum));
    }
    Some(clusters)
}
