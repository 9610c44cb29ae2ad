//! Consistent hashing, subsets, slow start.

use super::*;
use crate::balance::LbPolicy as Policy;
use crate::balance::consistent::{ConsistentHash, HashTable};
use crate::balance::ring::{HashFunction, RingSpec};
use crate::balance::slow_start::SlowStart;
use crate::balance::subset::{Fallback, LbMetadata, SelectorFallback};
use pb::envoy::config::cluster::v3::cluster::lb_subset_config::LbSubsetSelector;
use pb::envoy::config::cluster::v3::cluster::{
    LbSubsetConfig, MaglevLbConfig, RingHashLbConfig, RoundRobinLbConfig, SlowStartConfig,
};
use pb::envoy::config::core::v3::RuntimeDouble;
use pb::envoy::extensions::load_balancing_policies as ext;
use pb::envoy::r#type::v3::Percent;
use pb::google::protobuf::UInt64Value;

fn big(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn with(policy: LbPolicy, config: Option<LbConfig>) -> Cluster {
    Cluster { lb_policy: policy as i32, lb_config: config, ..statics(vec![]) }
}

fn hash_of(pb: &Cluster) -> ConsistentHash {
    let Policy::ConsistentHash(hash) = compile(pb).unwrap().lb.policy else { panic!("a hash") };
    hash
}

fn ring(min: u64, max: u64, function: i32) -> Cluster {
    let (minimum_ring_size, maximum_ring_size) = (big(min), big(max));
    let config = RingHashLbConfig { minimum_ring_size, hash_function: function, maximum_ring_size };
    with(LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(config)))
}

fn maglev(size: u64) -> Cluster {
    let config = MaglevLbConfig { table_size: big(size) };
    with(LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(config)))
}

#[test]
fn rings_and_tables() {
    let plain = ConsistentHash {
        table: HashTable::Ring(RingSpec::default()),
        use_hostname: false,
        balance_factor: None,
    };
    assert_eq!(hash_of(&with(LbPolicy::RingHash, None)), plain);
    let table = HashTable::Ring(RingSpec { min: 10, max: 20, function: HashFunction::Murmur2 });
    assert_eq!(hash_of(&ring(10, 20, 1)), ConsistentHash { table, ..plain });
    let maglev_default = HashTable::Maglev(65_537);
    assert_eq!(hash_of(&with(LbPolicy::Maglev, None)).table, maglev_default);
    assert_eq!(hash_of(&maglev(7)).table, HashTable::Maglev(7));
    let config = common_lb_config::ConsistentHashingLbConfig {
        use_hostname_for_hashing: true,
        hash_balance_factor: number(150),
    };
    let common = CommonLbConfig { consistent_hashing_lb_config: Some(config), ..Default::default() };
    let bounded = Cluster { common_lb_config: Some(common.clone()), ..maglev(7) };
    let want = ConsistentHash { table: HashTable::Maglev(7), use_hostname: true, balance_factor: Some(150) };
    assert_eq!(hash_of(&bounded), want);
    let nothing = Cluster { common_lb_config: Some(common), ..statics(vec![]) };
    assert_eq!(
        errors(&nothing),
        ["common_lb_config.consistent_hashing_lb_config: has no effect with this policy"]
    );
}

#[test]
fn bad_tables_are_refused() {
    for wrong in [ring(0, 5, 0), ring(10, 5, 0), ring(1, 9_000_000, 0), ring(1, 2, 7)] {
        assert_eq!(errors(&wrong).len(), 1, "{wrong:?}");
    }
    for wrong in [0, 1, 4, 65_536, 5_000_077] {
        assert_eq!(errors(&maglev(wrong)).len(), 1, "{wrong}");
    }
    let misplaced = Cluster { lb_policy: LbPolicy::Random as i32, ..maglev(7) };
    assert_eq!(errors(&misplaced), ["maglev_lb_config: has no effect with this lb_policy"]);
}

fn extension(config: Any) -> Cluster {
    let typed_extension_config =
        Some(core::TypedExtensionConfig { name: "p".into(), typed_config: Some(config) });
    let policies = vec![load_balancing_policy::Policy { typed_extension_config }];
    Cluster { load_balancing_policy: Some(LoadBalancingPolicy { policies }), ..statics(vec![]) }
}

#[test]
fn lb_policy_may_point_at_the_policies() {
    let lb_policy = LbPolicy::LoadBalancingPolicyConfig as i32;
    let random = extension(any(&ext::random::v3::Random::default()));
    let policy = compile(&Cluster { lb_policy, ..random }).unwrap().lb.policy;
    assert_eq!(policy, Policy::Random);
    let nothing = Cluster { lb_policy, ..statics(vec![]) };
    assert_eq!(errors(&nothing), ["lb_policy: LOAD_BALANCING_POLICY_CONFIG needs load_balancing_policy"]);
}

#[test]
fn policies_say_the_same() {
    let config = ext::common::v3::ConsistentHashingLbConfig {
        use_hostname_for_hashing: true,
        hash_balance_factor: number(120),
        ..Default::default()
    };
    let table = ext::maglev::v3::Maglev {
        table_size: big(31),
        consistent_hashing_lb_config: Some(config),
        locality_weighted_lb_config: Some(Default::default()),
    };
    let spec = compile(&extension(any(&table))).unwrap();
    assert!(spec.lb.locality_weighted && spec.lb.is_bounded());
    let ring = ext::ring_hash::v3::RingHash {
        hash_function: ext::ring_hash::v3::ring_hash::HashFunction::MurmurHash2 as i32,
        minimum_ring_size: big(100),
        ..Default::default()
    };
    let want = RingSpec { min: 100, function: HashFunction::Murmur2, ..RingSpec::default() };
    assert_eq!(hash_of(&extension(any(&ring))).table, HashTable::Ring(want));
    let slow = ext::common::v3::SlowStartConfig { slow_start_window: seconds(9), ..Default::default() };
    let turn = ext::round_robin::v3::RoundRobin { slow_start_config: Some(slow), ..Default::default() };
    let window = Duration::from_secs(9);
    let want = Some(SlowStart { window, aggression: 1.0, min: 0.1 });
    assert_eq!(compile(&extension(any(&turn))).unwrap().lb.slow_start, want);
}

#[test]
fn slow_start() {
    let of = |slow: SlowStartConfig| {
        let config = RoundRobinLbConfig { slow_start_config: Some(slow) };
        with(LbPolicy::RoundRobin, Some(LbConfig::RoundRobinLbConfig(config)))
    };
    let double = |default_value| Some(RuntimeDouble { default_value, runtime_key: "k".into() });
    let slow = SlowStartConfig {
        slow_start_window: seconds(30),
        aggression: double(2.0),
        min_weight_percent: Some(Percent { value: 25.0 }),
    };
    let spec = compile(&of(slow.clone())).unwrap();
    let window = Duration::from_secs(30);
    assert_eq!(spec.lb.slow_start, Some(SlowStart { window, aggression: 2.0, min: 0.25 }));
    for wrong in [
        SlowStartConfig { slow_start_window: None, ..slow.clone() },
        SlowStartConfig { slow_start_window: seconds(0), ..slow.clone() },
        SlowStartConfig { aggression: double(0.0), ..slow.clone() },
        SlowStartConfig { min_weight_percent: Some(Percent { value: 101.0 }), ..slow },
    ] {
        assert_eq!(errors(&of(wrong)).len(), 1);
    }
}

#[test]
fn subsets() {
    let selector = |keys: &[&str], fallback_policy, fewer: &[&str]| LbSubsetSelector {
        keys: keys.iter().map(|k| (*k).to_owned()).collect(),
        fallback_policy,
        fallback_keys_subset: fewer.iter().map(|k| (*k).to_owned()).collect(),
        ..Default::default()
    };
    let of = |config| Cluster { lb_subset_config: Some(config), ..statics(vec![]) };
    let good = LbSubsetConfig {
        fallback_policy: 2,
        default_subset: metadata("x", "stage", "prod").and_then(|m| m.filter_metadata.get("x").cloned()),
        subset_selectors: vec![selector(&["b", "a", "a"], 4, &["b"]), selector(&["c"], 0, &[])],
        panic_mode_any: true,
        list_as_any: true,
        ..Default::default()
    };
    let spec = compile(&of(good.clone())).unwrap().lb.subsets.unwrap();
    assert_eq!(spec.fallback, Fallback::Default);
    assert_eq!(spec.default, LbMetadata::new([("stage", "prod".into())]));
    assert_eq!(*spec.selectors[0].keys, ["a".into(), "b".into()]);
    assert_eq!(spec.selectors[0].fallback, Some(SelectorFallback::Keys(["b".into()].into())));
    assert_eq!(spec.selectors[1].fallback, None);
    let refused = LbSubsetConfig { scale_locality_weight: true, locality_weight_aware: true, ..good.clone() };
    assert_eq!(errors(&of(refused)).len(), 2);
    let single = LbSubsetSelector { single_host_per_subset: true, ..selector(&["a", "b"], 0, &[]) };
    for wrong in [
        selector(&[], 0, &[]),
        single,
        selector(&["a"], 4, &["a"]),
        selector(&["a", "b"], 4, &["c"]),
        selector(&["a"], 9, &[]),
        selector(&["a", "b"], 1, &["a"]),
    ] {
        let config = LbSubsetConfig { subset_selectors: vec![wrong], ..good.clone() };
        assert_eq!(errors(&of(config.clone())).len(), 1, "{config:?}");
    }
    let idle = LbSubsetConfig { fallback_policy: 0, ..good };
    assert_eq!(errors(&of(idle)).len(), 1);
}

#[test]
fn subsets_around_a_policy() {
    use ext::subset::v3::{Subset, subset::LbSubsetSelector as Selector};
    let inner = core::TypedExtensionConfig {
        name: "p".into(),
        typed_config: Some(any(&ext::random::v3::Random::default())),
    };
    let inner = load_balancing_policy::Policy { typed_extension_config: Some(inner) };
    let selector = Selector {
        keys: vec!["a".into(), "b".into()],
        fallback_policy: 4,
        fallback_keys_subset: vec!["b".into()],
        ..Default::default()
    };
    let policy = Subset {
        fallback_policy: 1,
        subset_selectors: vec![selector],
        list_as_any: true,
        subset_lb_policy: Some(LoadBalancingPolicy { policies: vec![inner] }),
        ..Default::default()
    };
    let lb = compile(&extension(any(&policy))).unwrap().lb;
    let spec = lb.subsets.unwrap();
    assert_eq!((lb.policy, spec.fallback, spec.list_as_any), (Policy::Random, Fallback::Anybody, true));
    assert_eq!(spec.selectors[0].fallback, Some(SelectorFallback::Keys(["b".into()].into())));
    let alone = Subset { subset_lb_policy: None, ..policy.clone() };
    assert_eq!(errors(&extension(any(&alone))).len(), 1);
    let redundant = Subset { allow_redundant_keys: true, ..policy.clone() };
    assert_eq!(errors(&extension(any(&redundant))).len(), 1);
    let twice = Cluster { lb_subset_config: Some(LbSubsetConfig::default()), ..extension(any(&policy)) };
    assert_eq!(errors(&twice).len(), 1);
}

#[test]
fn metadata_of_endpoints_is_kept() {
    let mut keyed = lb_endpoint("10.0.0.1", 80);
    keyed.metadata = metadata("envoy.lb", "hash_key", "one");
    let endpoints = compile_eds(&assignment(vec![keyed, lb_endpoint("10.0.0.2", 80)])).unwrap().endpoints;
    assert_eq!(endpoints[0].metadata.as_deref().and_then(|m| m.text("hash_key")), Some("one"));
    assert_eq!(endpoints[1].metadata, None);
}
