//! `lb_subset_config`.

use remora_xds::diag::At;
use remora_xds::pb::envoy::config::cluster::v3::cluster::LbSubsetConfig;
use remora_xds::pb::envoy::config::cluster::v3::cluster::lb_subset_config::lb_subset_selector::LbSubsetSelectorFallbackPolicy as PbSelectorFallback;
use remora_xds::pb::envoy::config::cluster::v3::cluster::lb_subset_config::{
    LbSubsetFallbackPolicy as PbFallback, LbSubsetSelector,
};

use super::super::common::{json, refuse};
use crate::balance::subset::{Fallback, LbMetadata, Selector, SelectorFallback, SubsetSpec};
use crate::config::compile::Scope;

/// Reads the configuration of subsets.
pub(super) fn compile(pb: &LbSubsetConfig, at: &At<'_>, scope: &mut Scope<'_>) -> SubsetSpec {
    let LbSubsetConfig {
        fallback_policy,
        default_subset,
        subset_selectors,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        metadata_fallback_policy,
    } = pb;
    refuse!(scope, at, [locality_weight_aware, scale_locality_weight, metadata_fallback_policy]);
    let fallback = match PbFallback::try_from(*fallback_policy) {
        Ok(PbFallback::NoFallback) => Fallback::Nobody,
        Ok(PbFallback::AnyEndpoint) => Fallback::Anybody,
        Ok(PbFallback::DefaultSubset) => Fallback::Default,
        Err(_) => {
            let message = format!("{fallback_policy} is not a fallback policy");
            scope.errors.report(&at.field("fallback_policy"), message);
            Fallback::Nobody
        }
    };
    let list = at.field("subset_selectors");
    let selectors: Vec<Selector> =
        subset_selectors.iter().enumerate().map(|(i, pb)| selector(pb, &list.index(i), scope)).collect();
    if *panic_mode_any && fallback == Fallback::Nobody {
        scope.errors.report(&at.field("panic_mode_any"), "has no effect without a fallback_policy");
    }
    let fields = default_subset.iter().flat_map(|pb| &pb.fields);
    SubsetSpec {
        selectors: selectors.into(),
        fallback,
        default: LbMetadata::new(fields.map(|(key, value)| (key.as_str(), json(value)))),
        panic_mode_any: *panic_mode_any,
        list_as_any: *list_as_any,
    }
}

fn selector(pb: &LbSubsetSelector, at: &At<'_>, scope: &mut Scope<'_>) -> Selector {
    let LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset } = pb;
    let keys = sorted(keys);
    if keys.is_empty() {
        scope.errors.report(&at.field("keys"), "must not be empty");
    }
    if *single_host_per_subset && keys.len() != 1 {
        scope.errors.report(&at.field("single_host_per_subset"), "needs exactly one key");
    }
    let fewer = sorted(fallback_keys_subset);
    let keys_at = at.field("fallback_keys_subset");
    let fallback = match PbSelectorFallback::try_from(*fallback_policy) {
        Ok(PbSelectorFallback::NotDefined) => None,
        Ok(PbSelectorFallback::NoFallback) => Some(SelectorFallback::As(Fallback::Nobody)),
        Ok(PbSelectorFallback::AnyEndpoint) => Some(SelectorFallback::As(Fallback::Anybody)),
        Ok(PbSelectorFallback::DefaultSubset) => Some(SelectorFallback::As(Fallback::Default)),
        Ok(PbSelectorFallback::KeysSubset) => {
            if fewer.is_empty() || fewer.len() >= keys.len() || !fewer.iter().all(|key| keys.contains(key)) {
                scope.errors.report(&keys_at, "must be some of the keys, and not all");
            }
            Some(SelectorFallback::Keys(fewer.clone()))
        }
        Err(_) => {
            let message = format!("{fallback_policy} is not a fallback policy");
            scope.errors.report(&at.field("fallback_policy"), message);
            None
        }
    };
    if !fewer.is_empty() && !matches!(fallback, Some(SelectorFallback::Keys(_))) {
        scope.errors.report(&keys_at, "has no effect without fallback_policy KEYS_SUBSET");
    }
    Selector { keys, fallback, single_host: *single_host_per_subset }
}

fn sorted(keys: &[String]) -> Box<[Box<str>]> {
    let mut keys: Vec<Box<str>> = keys.iter().map(|key| key.as_str().into()).collect();
    keys.sort();
    keys.dedup();
    keys.into()
}
