//! How a cluster chooses an endpoint.

use std::time::Duration;

use remora_xds::pb::envoy::config::cluster::v3::cluster::common_lb_config::ConsistentHashingLbConfig;
use remora_xds::pb::envoy::config::cluster::v3::cluster::ring_hash_lb_config::HashFunction;
use remora_xds::pb::envoy::config::cluster::v3::cluster::{
    CommonLbConfig, LbConfig, LbPolicy as PbPolicy, LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig,
    RoundRobinLbConfig, SlowStartConfig,
};
use remora_xds::pb::envoy::config::cluster::v3::load_balancing_policy::Policy;
use remora_xds::pb::envoy::config::cluster::v3::{Cluster, LoadBalancingPolicy};
use remora_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use remora_xds::pb::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use remora_xds::pb::envoy::r#type::v3::Percent;
use remora_xds::pb::google::protobuf::UInt64Value;
use remora_xds::pb::google::protobuf::value::Kind;
use remora_xds::typed_struct::TypedStruct;

use super::parts;
use crate::document::{LbPolicy, LoadBalancing, SlowStart};

/// The policy that Envoy does not have. Clients that do not know it take the next one (gRFC A52).
const PEAK_EWMA: &str = "remora.load_balancing_policies.peak_ewma";
const LEAST_REQUEST: &str = "envoy.load_balancing_policies.least_request";

/// Most points of a ring.
pub(crate) const MAX_RING: u64 = 8 * 1024 * 1024;

/// Longest that a slow answer is remembered, and shortest.
pub(crate) const DECAY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(3600);

/// Balances `cluster` as documents say.
pub(super) fn of(cluster: &mut Cluster, said: &LoadBalancing, http: bool) {
    let bounded = said.bounded_load.map(|percent| ConsistentHashingLbConfig {
        hash_balance_factor: parts::number(percent),
        ..ConsistentHashingLbConfig::default()
    });
    cluster.common_lb_config = Some(CommonLbConfig {
        healthy_panic_threshold: Some(Percent { value: f64::from(said.panic_threshold.unwrap_or(50)) }),
        consistent_hashing_lb_config: bounded,
        ..CommonLbConfig::default()
    });
    let usual = if http { LbPolicy::PeakEwma } else { LbPolicy::LeastRequest };
    let choices = said.choice_count.unwrap_or(2);
    let slow_start_config = said.slow_start.map(slow_start);
    let (policy, config) = match said.policy.unwrap_or(usual) {
        LbPolicy::Random => (PbPolicy::Random, None),
        LbPolicy::RoundRobin => (
            PbPolicy::RoundRobin,
            Some(LbConfig::RoundRobinLbConfig(RoundRobinLbConfig { slow_start_config })),
        ),
        LbPolicy::LeastRequest => {
            let choice_count = parts::number(choices);
            let config = LeastRequestLbConfig { choice_count, slow_start_config, ..Default::default() };
            (PbPolicy::LeastRequest, Some(LbConfig::LeastRequestLbConfig(config)))
        }
        LbPolicy::PeakEwma => {
            cluster.load_balancing_policy = Some(peak_ewma(said.decay.map(|decay| decay.0), choices));
            (PbPolicy::LeastRequest, None)
        }
        LbPolicy::RingHash => {
            let config = RingHashLbConfig {
                minimum_ring_size: size(said.minimum_ring_size.unwrap_or(1024)),
                maximum_ring_size: size(MAX_RING),
                hash_function: HashFunction::XxHash.into(),
            };
            (PbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(config)))
        }
        LbPolicy::Maglev => {
            let config = MaglevLbConfig { table_size: size(said.table_size.unwrap_or(65_537)) };
            (PbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(config)))
        }
    };
    cluster.lb_policy = policy.into();
    cluster.lb_config = config;
}

#[expect(clippy::unnecessary_wraps, reason = "every field that takes it is optional")]
const fn size(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn slow_start(said: SlowStart) -> SlowStartConfig {
    SlowStartConfig {
        slow_start_window: Some(parts::duration(said.window.0)),
        min_weight_percent: Some(Percent { value: f64::from(said.min_weight_percent.unwrap_or(10)) }),
        ..SlowStartConfig::default()
    }
}

/// Peak EWMA, and least request for who does not know it.
fn peak_ewma(decay: Option<Duration>, choices: u32) -> LoadBalancingPolicy {
    let seconds = decay.unwrap_or(Duration::from_secs(10)).as_secs_f64();
    let settings = TypedStruct {
        type_url: format!("{}{PEAK_EWMA}", remora_xds::any::TYPE_PREFIX),
        value: Some(parts::object([("decay", Kind::StringValue(format!("{seconds}s")))])),
    };
    let least_request = LeastRequest { choice_count: parts::number(choices), ..LeastRequest::default() };
    let policies = [(PEAK_EWMA, parts::pack(&settings)), (LEAST_REQUEST, parts::pack(&least_request))];
    let policies = policies.map(|(name, config)| Policy {
        typed_extension_config: Some(TypedExtensionConfig { name: name.into(), typed_config: Some(config) }),
    });
    LoadBalancingPolicy { policies: policies.into() }
}
