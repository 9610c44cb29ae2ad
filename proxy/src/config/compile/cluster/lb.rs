//! Load balancing: `lb_policy`, `load_balancing_policy`, `common_lb_config` and `lb_subset_config`.

mod extension;
mod hash;
mod peak_ewma;
mod slow_start;
mod subset;

use remora_xds::diag::At;
use remora_xds::pb;

use super::common::{percent, refuse};
use crate::balance::zone::ZoneAware;
use crate::balance::{Choices, LbPolicy, LbSpec};
use crate::config::compile::Scope;
use pb::envoy::config::cluster::v3::Cluster;
use pb::envoy::config::cluster::v3::cluster::{
    self, CommonLbConfig, LbConfig, LbPolicy as PbPolicy, LeastRequestLbConfig, RoundRobinLbConfig,
};
use pb::envoy::config::core::v3::RuntimeDouble;

/// `LbSpec`, and whether connections are closed when endpoints change.
pub(super) fn compile(pb: &Cluster, at: &At<'_>, scope: &mut Scope<'_>) -> (LbSpec, bool) {
    let mut lb = LbSpec::default();
    let mut close = false;
    if let Some(subsets) = &pb.lb_subset_config {
        lb.subsets = Some(subset::compile(subsets, &at.field("lb_subset_config"), scope).into());
    }
    if let Some(policy) = &pb.load_balancing_policy {
        extension::compile(policy, &mut lb, &at.field("load_balancing_policy"), (scope, 0));
    } else {
        by_name(pb, &mut lb, at, scope);
    }
    if let Some(common) = &pb.common_lb_config {
        close = common_lb(common, &mut lb, &at.field("common_lb_config"), scope);
    }
    (lb, close)
}

/// `lb_policy` and the message that belongs to it.
fn by_name(pb: &Cluster, lb: &mut LbSpec, at: &At<'_>, scope: &mut Scope<'_>) {
    let policy_at = at.field("lb_policy");
    let mut config = pb.lb_config.as_ref();
    match PbPolicy::try_from(pb.lb_policy) {
        Ok(PbPolicy::RoundRobin) => {
            if let Some(LbConfig::RoundRobinLbConfig(RoundRobinLbConfig { slow_start_config })) = config {
                let at = at.field("round_robin_lb_config");
                lb.slow_start = slow_start::of_cluster(slow_start_config.as_ref(), &at, scope);
                config = None;
            }
        }
        Ok(PbPolicy::LeastRequest) => {
            let own = match config {
                Some(LbConfig::LeastRequestLbConfig(own)) => Some(own),
                _ => None,
            };
            config = config.filter(|_| own.is_none());
            least_request(own, lb, &at.field("least_request_lb_config"), scope);
        }
        Ok(PbPolicy::Random) => lb.policy = LbPolicy::Random,
        Ok(PbPolicy::RingHash) => {
            let own = match config {
                Some(LbConfig::RingHashLbConfig(own)) => Some(own),
                _ => None,
            };
            config = config.filter(|_| own.is_none());
            lb.policy = hash::ring(own, &at.field("ring_hash_lb_config"), scope);
        }
        Ok(PbPolicy::Maglev) => {
            let own = match config {
                Some(LbConfig::MaglevLbConfig(own)) => Some(own),
                _ => None,
            };
            config = config.filter(|_| own.is_none());
            lb.policy = hash::maglev(own, &at.field("maglev_lb_config"), scope);
        }
        Ok(PbPolicy::ClusterProvided) => {
            if pb.cluster_discovery_type != Some(original_dst()) {
                scope.errors.report(&policy_at, "CLUSTER_PROVIDED is for clusters of type ORIGINAL_DST");
            }
            config = config.filter(|config| !matches!(config, LbConfig::OriginalDstLbConfig(_)));
        }
        Ok(PbPolicy::LoadBalancingPolicyConfig) => {
            scope.errors.report(&policy_at, "LOAD_BALANCING_POLICY_CONFIG needs load_balancing_policy");
            config = None;
        }
        Err(_) => {
            scope.errors.report(&policy_at, format!("{} is not a policy", pb.lb_policy));
            config = None;
        }
    }
    if let Some(config) = config {
        scope.errors.report(&at.field(config_name(config)), "has no effect with this lb_policy");
    }
}

pub(super) const fn original_dst() -> cluster::ClusterDiscoveryType {
    cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::OriginalDst as i32)
}

const fn config_name(config: &LbConfig) -> &'static str {
    match config {
        LbConfig::RingHashLbConfig(_) => "ring_hash_lb_config",
        LbConfig::MaglevLbConfig(_) => "maglev_lb_config",
        LbConfig::OriginalDstLbConfig(_) => "original_dst_lb_config",
        LbConfig::LeastRequestLbConfig(_) => "least_request_lb_config",
        LbConfig::RoundRobinLbConfig(_) => "round_robin_lb_config",
    }
}

fn least_request(pb: Option<&LeastRequestLbConfig>, lb: &mut LbSpec, at: &At<'_>, scope: &mut Scope<'_>) {
    let LeastRequestLbConfig { choice_count, active_request_bias, slow_start_config } =
        pb.cloned().unwrap_or_default();
    lb.slow_start = slow_start::of_cluster(slow_start_config.as_ref(), at, scope);
    let choices = choices(choice_count.map(|c| c.value), at, scope);
    lb.policy = LbPolicy::LeastRequest { choices, bias: bias(active_request_bias, at, scope) };
}

fn choices(count: Option<u32>, at: &At<'_>, scope: &mut Scope<'_>) -> Choices {
    let count = count.unwrap_or(2);
    if !(2..=1000).contains(&count) {
        scope.errors.report(&at.field("choice_count"), "must be from 2 to 1000");
    }
    Choices::Random(count)
}

fn bias(pb: Option<RuntimeDouble>, at: &At<'_>, scope: &mut Scope<'_>) -> f64 {
    let Some(RuntimeDouble { default_value, runtime_key: _ }) = pb else { return 1.0 };
    if !(default_value >= 0.0 && default_value.is_finite()) {
        let at = at.field("active_request_bias");
        scope.errors.report(&at.field("default_value"), "must be 0 or more");
    }
    default_value
}

fn zone_aware(enabled: f64, min: Option<u64>, lb: &mut LbSpec, (at, scope): (&At<'_>, &mut Scope<'_>)) {
    if matches!(lb.policy, LbPolicy::ConsistentHash(_)) {
        scope.errors.report(at, "has no effect with consistent hashing").fix("remove it");
    }
    // Envoy looks at no zones then either.
    lb.zone = (enabled > 0.0).then(|| ZoneAware { enabled, min_endpoints: min.unwrap_or(6) });
}

/// Answers `close_connections_on_host_set_change`.
fn common_lb(pb: &CommonLbConfig, lb: &mut LbSpec, at: &At<'_>, scope: &mut Scope<'_>) -> bool {
    use cluster::common_lb_config::{LocalityConfigSpecifier, ZoneAwareLbConfig};
    let CommonLbConfig {
        healthy_panic_threshold,
        // Updates of endpoints are merged as they come: an applied one costs no connection.
        update_merge_window: _,
        ignore_new_hosts_until_first_hc,
        close_connections_on_host_set_change,
        consistent_hashing_lb_config,
        override_host_status,
        locality_config_specifier,
    } = pb;
    refuse!(scope, at, [ignore_new_hosts_until_first_hc, override_host_status]);
    if let Some(config) = consistent_hashing_lb_config {
        hash::common(config, lb, &at.field("consistent_hashing_lb_config"), scope);
    }
    let panic = percent(*healthy_panic_threshold, 50.0, &at.field("healthy_panic_threshold"), scope);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
    let panic = panic.round() as u32;
    lb.panic_threshold = panic;
    match locality_config_specifier {
        None => {}
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => lb.locality_weighted = true,
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zone)) => {
            let at = at.field("zone_aware_lb_config");
            let ZoneAwareLbConfig { routing_enabled, min_cluster_size, fail_traffic_on_panic } = zone;
            let enabled = percent(*routing_enabled, 100.0, &at.field("routing_enabled"), scope);
            lb.fail_on_panic = *fail_traffic_on_panic;
            zone_aware(enabled, min_cluster_size.map(|v| v.value), lb, (&at, scope));
        }
    }
    *close_connections_on_host_set_change
}
