//! How a cluster chooses an endpoint.

use std::time::Duration;

use remora_xds::pb::envoy::config::cluster::v3::cluster::{
    CommonLbConfig, LbConfig, LbPolicy as PbPolicy, LeastRequestLbConfig,
};
use remora_xds::pb::envoy::config::cluster::v3::load_balancing_policy::Policy;
use remora_xds::pb::envoy::config::cluster::v3::{Cluster, LoadBalancingPolicy};
use remora_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use remora_xds::pb::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use remora_xds::pb::envoy::r#type::v3::Percent;
use remora_xds::pb::google::protobuf::value::Kind;
use remora_xds::typed_struct::TypedStruct;

use super::parts;
use crate::document::{LbPolicy, LoadBalancing};

/// The policy that Envoy does not have. Clients that do not know it take the next one (gRFC A52).
const PEAK_EWMA: &str = "remora.load_balancing_policies.peak_ewma";
const LEAST_REQUEST: &str = "envoy.load_balancing_policies.least_request";

/// Longest that a slow answer is remembered, and shortest.
pub(crate) const DECAY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(3600);

/// Balances `cluster` as documents say.
pub(super) fn of(cluster: &mut Cluster, said: &LoadBalancing, http: bool) {
    cluster.common_lb_config = Some(CommonLbConfig {
        healthy_panic_threshold: Some(Percent { value: f64::from(said.panic_threshold.unwrap_or(50)) }),
        ..CommonLbConfig::default()
    });
    let usual = if http { LbPolicy::PeakEwma } else { LbPolicy::LeastRequest };
    let choices = said.choice_count.unwrap_or(2);
    let policy = match said.policy.unwrap_or(usual) {
        LbPolicy::RoundRobin => PbPolicy::RoundRobin,
        LbPolicy::Random => PbPolicy::Random,
        LbPolicy::LeastRequest => {
            let config = LeastRequestLbConfig {
                choice_count: parts::number(choices),
                ..LeastRequestLbConfig::default()
            };
            cluster.lb_config = Some(LbConfig::LeastRequestLbConfig(config));
            PbPolicy::LeastRequest
        }
        LbPolicy::PeakEwma => {
            cluster.load_balancing_policy = Some(peak_ewma(said.decay.map(|decay| decay.0), choices));
            PbPolicy::LeastRequest
        }
    };
    cluster.lb_policy = policy.into();
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
