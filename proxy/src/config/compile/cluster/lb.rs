//! Load balancing: `lb_policy`, `load_balancing_policy` and `common_lb_config`.

use remora_xds::diag::At;
use remora_xds::pb;

mod peak_ewma;

use super::common::{is, percent, refuse, type_name, unpack};
use crate::balance::{Choices, LbPolicy, LbSpec};
use crate::config::compile::Scope;
use ext::cluster_provided::v3::ClusterProvided;
use ext::common::v3::{LocalityLbConfig, locality_lb_config};
use ext::least_request::v3::{LeastRequest, least_request::SelectionMethod};
use ext::random::v3::Random;
use ext::round_robin::v3::RoundRobin;
use ext::wrr_locality::v3::WrrLocality;
use pb::envoy::config::cluster::v3::cluster::{
    self, CommonLbConfig, LbConfig, LbPolicy as PbPolicy, LeastRequestLbConfig, RoundRobinLbConfig,
};
use pb::envoy::config::cluster::v3::{Cluster, LoadBalancingPolicy};
use pb::envoy::config::core::v3::RuntimeDouble;
use pb::envoy::extensions::load_balancing_policies as ext;

/// `LbSpec`, or None when the cluster provides its own (CLUSTER_PROVIDED).
pub(super) fn compile(pb: &Cluster, at: &At<'_>, scope: &mut Scope<'_>) -> (LbSpec, bool) {
    let mut lb = LbSpec::default();
    let mut close = false;
    if let Some(common) = &pb.common_lb_config {
        close = common_lb(common, &mut lb, &at.field("common_lb_config"), scope);
    }
    if let Some(policy) = &pb.load_balancing_policy {
        extension(policy, &mut lb, &at.field("load_balancing_policy"), (scope, 0));
        return (lb, close);
    }
    let policy_at = at.field("lb_policy");
    let mut matched = pb.lb_config.is_none();
    match PbPolicy::try_from(pb.lb_policy) {
        Ok(PbPolicy::RoundRobin) => {
            if let Some(LbConfig::RoundRobinLbConfig(RoundRobinLbConfig { slow_start_config })) =
                &pb.lb_config
            {
                refuse!(scope, at.field("round_robin_lb_config"), [slow_start_config]);
                matched = true;
            }
        }
        Ok(PbPolicy::LeastRequest) => {
            let config = match &pb.lb_config {
                Some(LbConfig::LeastRequestLbConfig(config)) => Some(config),
                _ => None,
            };
            matched |= config.is_some();
            let LeastRequestLbConfig { choice_count, active_request_bias, slow_start_config } =
                config.cloned().unwrap_or_default();
            let at = at.field("least_request_lb_config");
            refuse!(scope, at, [slow_start_config]);
            let choices = choices(choice_count.map(|c| c.value), &at, scope);
            lb.policy = LbPolicy::LeastRequest { choices, bias: bias(active_request_bias, &at, scope) };
        }
        Ok(PbPolicy::Random) => lb.policy = LbPolicy::Random,
        Ok(PbPolicy::ClusterProvided) => {
            if pb.cluster_discovery_type != Some(original_dst()) {
                scope.errors.report(&policy_at, "CLUSTER_PROVIDED is for clusters of type ORIGINAL_DST");
            }
            matched |= matches!(pb.lb_config, Some(LbConfig::OriginalDstLbConfig(_)));
        }
        Ok(other) => {
            scope.errors.report(&policy_at, format!("{} is not supported", other.as_str_name()));
            matched = true;
        }
        Err(_) => {
            scope.errors.report(&policy_at, format!("{} is not a policy", pb.lb_policy));
            matched = true;
        }
    }
    if let (false, Some(config)) = (matched, &pb.lb_config) {
        scope.errors.report(&at.field(config_name(config)), "has no effect with this lb_policy");
    }
    (lb, close)
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
    refuse!(scope, at, [ignore_new_hosts_until_first_hc, consistent_hashing_lb_config, override_host_status]);
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
            refuse!(scope, at, [min_cluster_size]);
            if routing_enabled.is_none_or(|p| p.value > 0.0) {
                scope
                    .errors
                    .report(&at.field("routing_enabled"), "zone-aware routing is not supported")
                    .fix("leave zone_aware_lb_config out, or set routing_enabled to 0");
            }
            lb.fail_on_panic = *fail_traffic_on_panic;
        }
    }
    *close_connections_on_host_set_change
}

/// The first policy of the list that we know, as Envoy and gRPC choose (gRFC A52).
fn extension(pb: &LoadBalancingPolicy, lb: &mut LbSpec, at: &At<'_>, (scope, depth): (&mut Scope<'_>, u32)) {
    let list = at.field("policies");
    let mut names = Vec::new();
    for (i, policy) in pb.policies.iter().enumerate() {
        let Some(any) = policy.typed_extension_config.as_ref().and_then(|c| c.typed_config.as_ref()) else {
            scope.errors.report(&list.index(i).field("typed_extension_config"), "needs a typed_config");
            return;
        };
        let at = list.index(i);
        let at = at.field("typed_extension_config");
        let at = at.field("typed_config");
        if policy.typed_extension_config.as_ref().is_some_and(|c| c.name == peak_ewma::NAME) {
            lb.policy = LbPolicy::PeakEwma(peak_ewma::compile(any, &at, scope));
            return;
        }
        if is::<RoundRobin>(any) {
            let Some(RoundRobin { slow_start_config, locality_lb_config }) = unpack(any, &at, scope) else {
                return;
            };
            refuse!(scope, at, [slow_start_config]);
            lb.policy = LbPolicy::RoundRobin;
            return locality_lb(locality_lb_config.as_ref(), lb, &at, scope);
        }
        if is::<Random>(any) {
            let Some(Random { locality_lb_config }) = unpack(any, &at, scope) else { return };
            lb.policy = LbPolicy::Random;
            return locality_lb(locality_lb_config.as_ref(), lb, &at, scope);
        }
        if is::<LeastRequest>(any) {
            let Some(config) = unpack(any, &at, scope) else { return };
            return least_request(config, lb, &at, scope);
        }
        if is::<WrrLocality>(any) && depth == 0 {
            let Some(WrrLocality { endpoint_picking_policy }) = unpack(any, &at, scope) else { return };
            let at = at.field("endpoint_picking_policy");
            match &endpoint_picking_policy {
                Some(inner) => extension(inner, lb, &at, (scope, depth + 1)),
                None => drop(scope.errors.report(&at, "is required").fix("name a policy")),
            }
            lb.locality_weighted = true;
            return;
        }
        if is::<ClusterProvided>(any) {
            return;
        }
        names.push(type_name(any).to_owned());
    }
    scope.errors.report(&list, format!("none of these policies is supported: {}", names.join(", ")));
}

fn least_request(pb: LeastRequest, lb: &mut LbSpec, at: &At<'_>, scope: &mut Scope<'_>) {
    #[expect(deprecated, reason = "read as the newer selection_method says it")]
    let LeastRequest {
        choice_count,
        active_request_bias,
        slow_start_config,
        locality_lb_config,
        enable_full_scan,
        selection_method,
    } = pb;
    refuse!(scope, at, [slow_start_config]);
    let choices = choices(choice_count.map(|c| c.value), at, scope);
    let full =
        enable_full_scan.is_some_and(|b| b.value) || selection_method == SelectionMethod::FullScan as i32;
    let choices = if full { Choices::All } else { choices };
    lb.policy = LbPolicy::LeastRequest { choices, bias: bias(active_request_bias, at, scope) };
    locality_lb(locality_lb_config.as_ref(), lb, at, scope);
}

fn locality_lb(pb: Option<&LocalityLbConfig>, lb: &mut LbSpec, at: &At<'_>, scope: &mut Scope<'_>) {
    match pb.and_then(|c| c.locality_config_specifier.as_ref()) {
        None => {}
        Some(locality_lb_config::LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => {
            lb.locality_weighted = true;
        }
        Some(locality_lb_config::LocalityConfigSpecifier::ZoneAwareLbConfig(_)) => {
            let at = at.field("locality_lb_config");
            scope.errors.report(&at.field("zone_aware_lb_config"), "is not supported");
        }
    }
}
