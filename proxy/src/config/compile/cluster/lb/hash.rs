//! RING_HASH and MAGLEV.

use remora_xds::diag::At;
use remora_xds::pb;

use super::super::common::refuse;
use crate::balance::consistent::{ConsistentHash, HashTable};
use crate::balance::maglev::{DEFAULT_TABLE, MAX_TABLE};
use crate::balance::ring::{HashFunction, RingSpec};
use crate::balance::{LbPolicy, LbSpec};
use crate::config::compile::Scope;
use pb::envoy::config::cluster::v3::cluster::common_lb_config::ConsistentHashingLbConfig;
use pb::envoy::config::cluster::v3::cluster::ring_hash_lb_config::HashFunction as PbFunction;
use pb::envoy::config::cluster::v3::cluster::{MaglevLbConfig, RingHashLbConfig};
use pb::envoy::extensions::load_balancing_policies as ext;
use pb::google::protobuf::{UInt32Value, UInt64Value};

const fn policy(table: HashTable) -> LbPolicy {
    LbPolicy::ConsistentHash(ConsistentHash { table, use_hostname: false, balance_factor: None })
}

/// `ring_hash_lb_config`.
pub(super) fn ring(pb: Option<&RingHashLbConfig>, at: &At<'_>, scope: &mut Scope<'_>) -> LbPolicy {
    let RingHashLbConfig { minimum_ring_size, hash_function, maximum_ring_size } =
        pb.copied().unwrap_or_default();
    let function = match PbFunction::try_from(hash_function) {
        Ok(PbFunction::XxHash) => HashFunction::Xx,
        Ok(PbFunction::MurmurHash2) => HashFunction::Murmur2,
        Err(_) => {
            let message = format!("{hash_function} is not a hash function");
            scope.errors.report(&at.field("hash_function"), message);
            HashFunction::Xx
        }
    };
    policy(HashTable::Ring(ring_spec(function, (minimum_ring_size, maximum_ring_size), at, scope)))
}

fn ring_spec(
    function: HashFunction,
    (min, max): (Option<UInt64Value>, Option<UInt64Value>),
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> RingSpec {
    let min = min.map_or(1024, |v| v.value);
    let max = max.map_or(RingSpec::LIMIT, |v| v.value);
    for (name, value) in [("minimum_ring_size", min), ("maximum_ring_size", max)] {
        if !(1..=RingSpec::LIMIT).contains(&value) {
            scope.errors.report(&at.field(name), format!("must be from 1 to {}", RingSpec::LIMIT));
        }
    }
    if min > max {
        let message = format!("is {min}, more than maximum_ring_size, which is {max}");
        scope.errors.report(&at.field("minimum_ring_size"), message);
    }
    RingSpec { min, max, function }
}

/// `maglev_lb_config`.
pub(super) fn maglev(pb: Option<&MaglevLbConfig>, at: &At<'_>, scope: &mut Scope<'_>) -> LbPolicy {
    let MaglevLbConfig { table_size } = pb.copied().unwrap_or_default();
    policy(HashTable::Maglev(table_size_of(table_size, at, scope)))
}

fn table_size_of(pb: Option<UInt64Value>, at: &At<'_>, scope: &mut Scope<'_>) -> u64 {
    let size = pb.map_or(DEFAULT_TABLE, |v| v.value);
    if size > MAX_TABLE || !is_prime(size) {
        scope
            .errors
            .report(&at.field("table_size"), format!("must be a prime number of at most {MAX_TABLE}"))
            .fix("65537 is the default");
    }
    size
}

fn is_prime(n: u64) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

/// `common_lb_config.consistent_hashing_lb_config`.
pub(super) fn common(pb: &ConsistentHashingLbConfig, lb: &mut LbSpec, at: &At<'_>, scope: &mut Scope<'_>) {
    let ConsistentHashingLbConfig { use_hostname_for_hashing, hash_balance_factor } = *pb;
    let LbPolicy::ConsistentHash(policy) = &mut lb.policy else {
        scope.errors.report(at, "has no effect with this policy").fix("RING_HASH and MAGLEV look at it");
        return;
    };
    policy.use_hostname |= use_hostname_for_hashing;
    if let Some(factor) = balance_factor(hash_balance_factor, at, scope) {
        policy.balance_factor = Some(factor);
    }
}

fn balance_factor(pb: Option<UInt32Value>, at: &At<'_>, scope: &mut Scope<'_>) -> Option<u32> {
    let factor = pb?.value;
    if factor < 100 {
        scope.errors.report(&at.field("hash_balance_factor"), "must be 100 or more");
    }
    Some(factor)
}

/// The policy `envoy.load_balancing_policies.ring_hash`.
pub(super) fn ring_policy(
    pb: ext::ring_hash::v3::RingHash,
    lb: &mut LbSpec,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) {
    use ext::ring_hash::v3::ring_hash::HashFunction as Function;
    #[expect(deprecated, reason = "what files still say")]
    let ext::ring_hash::v3::RingHash {
        hash_function,
        minimum_ring_size,
        maximum_ring_size,
        use_hostname_for_hashing,
        hash_balance_factor,
        consistent_hashing_lb_config,
        locality_weighted_lb_config,
    } = pb;
    let function = match Function::try_from(hash_function) {
        Ok(Function::MurmurHash2) => HashFunction::Murmur2,
        _ => HashFunction::Xx,
    };
    let table = HashTable::Ring(ring_spec(function, (minimum_ring_size, maximum_ring_size), at, scope));
    let factor = balance_factor(hash_balance_factor, at, scope);
    let spec = ConsistentHash { table, use_hostname: use_hostname_for_hashing, balance_factor: factor };
    lb.policy = LbPolicy::ConsistentHash(with_config(spec, consistent_hashing_lb_config.as_ref(), at, scope));
    lb.locality_weighted |= locality_weighted_lb_config.is_some();
}

/// The policy `envoy.load_balancing_policies.maglev`.
pub(super) fn maglev_policy(
    pb: ext::maglev::v3::Maglev,
    lb: &mut LbSpec,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) {
    let ext::maglev::v3::Maglev { table_size, consistent_hashing_lb_config, locality_weighted_lb_config } =
        pb;
    let table = HashTable::Maglev(table_size_of(table_size, at, scope));
    let spec = ConsistentHash { table, use_hostname: false, balance_factor: None };
    lb.policy = LbPolicy::ConsistentHash(with_config(spec, consistent_hashing_lb_config.as_ref(), at, scope));
    lb.locality_weighted |= locality_weighted_lb_config.is_some();
}

/// `consistent_hashing_lb_config` of a policy.
fn with_config(
    spec: ConsistentHash,
    pb: Option<&ext::common::v3::ConsistentHashingLbConfig>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> ConsistentHash {
    let Some(pb) = pb else { return spec };
    let at = at.field("consistent_hashing_lb_config");
    let ext::common::v3::ConsistentHashingLbConfig {
        use_hostname_for_hashing,
        hash_balance_factor,
        hash_policy,
    } = pb;
    refuse!(scope, at, [hash_policy]);
    let factor = balance_factor(*hash_balance_factor, &at, scope);
    ConsistentHash {
        use_hostname: spec.use_hostname || *use_hostname_for_hashing,
        balance_factor: factor.or(spec.balance_factor),
        ..spec
    }
}
