//! `load_balancing_policy`.

use remora_xds::diag::At;
use remora_xds::pb;

use super::super::common::{is, percent, refuse, type_name, unpack};
use super::{bias, choices, hash, peak_ewma, slow_start, subset, zone_aware};
use crate::balance::{Choices, LbPolicy, LbSpec};
use crate::config::compile::Scope;
use ext::cluster_provided::v3::ClusterProvided;
use ext::common::v3::locality_lb_config::ZoneAwareLbConfig;
use ext::common::v3::{LocalityLbConfig, locality_lb_config};
use ext::least_request::v3::{LeastRequest, least_request::SelectionMethod};
use ext::maglev::v3::Maglev;
use ext::random::v3::Random;
use ext::ring_hash::v3::RingHash;
use ext::round_robin::v3::RoundRobin;
use ext::subset::v3::Subset;
use ext::wrr_locality::v3::WrrLocality;
use pb::envoy::config::cluster::v3::LoadBalancingPolicy;
use pb::envoy::config::cluster::v3::cluster::LbSubsetConfig;
use pb::envoy::extensions::load_balancing_policies as ext;
use pb::google::protobuf::Any;

/// The first policy of the list that we know, as Envoy and gRPC choose (gRFC A52).
pub(super) fn compile(
    pb: &LoadBalancingPolicy,
    lb: &mut LbSpec,
    at: &At<'_>,
    (scope, depth): (&mut Scope<'_>, u32),
) {
    let list = at.field("policies");
    let mut names = Vec::new();
    for (i, policy) in pb.policies.iter().enumerate() {
        let at = list.index(i);
        let at = at.field("typed_extension_config");
        let config = policy.typed_extension_config.as_ref();
        let Some((name, any)) = config.and_then(|c| Some((&c.name, c.typed_config.as_ref()?))) else {
            scope.errors.report(&at, "needs a typed_config");
            return;
        };
        let at = at.field("typed_config");
        if name == peak_ewma::NAME {
            lb.policy = LbPolicy::PeakEwma(peak_ewma::compile(any, &at, scope));
            return;
        }
        if one(any, lb, &at, (scope, depth)) {
            return;
        }
        names.push(type_name(any).to_owned());
    }
    scope.errors.report(&list, format!("none of these policies is supported: {}", names.join(", ")));
}

/// Whether the policy in `any` is one that we know. Mistakes in it are reported.
fn one(any: &Any, lb: &mut LbSpec, at: &At<'_>, (scope, depth): (&mut Scope<'_>, u32)) -> bool {
    if is::<RoundRobin>(any) {
        if let Some(RoundRobin { slow_start_config, locality_lb_config }) = unpack(any, at, scope) {
            lb.policy = LbPolicy::RoundRobin;
            lb.slow_start = slow_start::of_policy(slow_start_config.as_ref(), at, scope);
            locality_lb(locality_lb_config.as_ref(), lb, at, scope);
        }
    } else if is::<Random>(any) {
        if let Some(Random { locality_lb_config }) = unpack(any, at, scope) {
            lb.policy = LbPolicy::Random;
            locality_lb(locality_lb_config.as_ref(), lb, at, scope);
        }
    } else if is::<LeastRequest>(any) {
        if let Some(config) = unpack(any, at, scope) {
            least_request(config, lb, at, scope);
        }
    } else if is::<RingHash>(any) {
        if let Some(config) = unpack(any, at, scope) {
            hash::ring_policy(config, lb, at, scope);
        }
    } else if is::<Maglev>(any) {
        if let Some(config) = unpack(any, at, scope) {
            hash::maglev_policy(config, lb, at, scope);
        }
    } else if is::<Subset>(any) && depth == 0 {
        subset_policy(any, lb, at, (scope, depth));
    } else if is::<WrrLocality>(any) && depth == 0 {
        if let Some(WrrLocality { endpoint_picking_policy }) = unpack(any, at, scope) {
            let at = at.field("endpoint_picking_policy");
            match &endpoint_picking_policy {
                Some(inner) => compile(inner, lb, &at, (scope, depth + 1)),
                None => drop(scope.errors.report(&at, "is required").fix("name a policy")),
            }
            lb.locality_weighted = true;
        }
    } else {
        return is::<ClusterProvided>(any);
    }
    true
}

/// `envoy.load_balancing_policies.subset`: what a cluster says in `lb_subset_config`, under the same field numbers, around another policy.
fn subset_policy(any: &Any, lb: &mut LbSpec, at: &At<'_>, (scope, depth): (&mut Scope<'_>, u32)) {
    let (Some(config), Some(own)) =
        (unpack::<LbSubsetConfig>(any, at, scope), unpack::<Subset>(any, at, scope))
    else {
        return;
    };
    let Subset { allow_redundant_keys, subset_lb_policy, .. } = own;
    refuse!(scope, at, [allow_redundant_keys]);
    if lb.subsets.is_some() {
        scope.errors.report(at, "the cluster has lb_subset_config already").fix("remove one of the two");
    }
    lb.subsets = Some(subset::compile(&config, at, scope).into());
    let at = at.field("subset_lb_policy");
    match &subset_lb_policy {
        Some(inner) => compile(inner, lb, &at, (scope, depth + 1)),
        None => drop(scope.errors.report(&at, "is required").fix("name a policy")),
    }
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
    lb.slow_start = slow_start::of_policy(slow_start_config.as_ref(), at, scope);
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
        Some(locality_lb_config::LocalityConfigSpecifier::ZoneAwareLbConfig(zone)) => {
            let at = at.field("locality_lb_config");
            let at = at.field("zone_aware_lb_config");
            #[expect(deprecated, reason = "refused by name")]
            let ZoneAwareLbConfig {
                routing_enabled,
                min_cluster_size,
                fail_traffic_on_panic,
                force_locality_direct_routing,
                force_local_zone,
                locality_basis,
            } = zone;
            refuse!(scope, at, [force_locality_direct_routing, force_local_zone, locality_basis]);
            let enabled = percent(*routing_enabled, 100.0, &at.field("routing_enabled"), scope);
            lb.fail_on_panic = *fail_traffic_on_panic;
            zone_aware(enabled, min_cluster_size.map(|v| v.value), lb, (&at, scope));
        }
    }
}
