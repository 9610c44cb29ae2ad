//! What discovery says of endpoints.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::balance::subset::LbMetadata;

/// `envoy.config.core.v3.Locality`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    /// Region, such as `eu-west-1`.
    pub region: Arc<str>,
    /// Zone in the region.
    pub zone: Arc<str>,
    /// Part of the zone.
    pub sub_zone: Arc<str>,
}

/// One `LocalityLbEndpoints`, without its endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct LocalityGroup {
    /// `locality`.
    pub locality: Locality,
    /// `priority`, 0 is the highest.
    pub priority: u32,
    /// `load_balancing_weight`; without one the locality gets no load under locality-weighted balancing.
    pub weight: Option<u32>,
}

/// `filter_metadata` of a cluster: filter names and values, sorted. It has one or two, and a map would take a kilobyte for each cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata(pub Box<[(Box<str>, serde_json::Value)]>);

impl Metadata {
    /// The value under `namespace` at `path`.
    #[must_use]
    pub fn get(&self, namespace: &str, path: &[&str]) -> Option<&serde_json::Value> {
        let (_, value) = self.0.iter().find(|(name, _)| **name == *namespace)?;
        path.iter().try_fold(value, |value, key| value.get(key))
    }
}

/// `envoy.config.core.v3.HealthStatus`, as discovery said it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum HealthStatus {
    /// UNKNOWN or HEALTHY.
    #[default]
    Healthy,
    /// DEGRADED: used when healthy endpoints do not suffice.
    Degraded,
    /// DRAINING: finishes what it has; gets new requests only in panic mode.
    Draining,
    /// UNHEALTHY or TIMEOUT.
    Unhealthy,
}

/// `Endpoint.HealthCheckConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointCheck {
    /// `address`: another address to be asked.
    pub address: Option<IpAddr>,
    /// `port_value`, or the port of `address`.
    pub port: Option<u16>,
    /// `hostname`: what the check asks for.
    pub hostname: Option<Arc<str>>,
    /// `disable_active_health_check`.
    pub disabled: bool,
}

/// One `LbEndpoint` with an address.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointSpec {
    /// Where to connect.
    pub address: SocketAddr,
    /// `endpoint.hostname`, or the name that was resolved: host rewriting and SNI use it.
    pub hostname: Option<Arc<str>>,
    /// `load_balancing_weight`, at least 1.
    pub weight: u32,
    /// Locality and priority.
    pub group: Arc<LocalityGroup>,
    /// What metrics say of it: `workload` under `istio` in its `metadata`, or else `endpoint.observability_name`. The text is
    /// `workload;namespace;canonical service;canonical revision;cluster`; what is empty or left out is as usual for the cluster.
    pub labels: Option<Arc<str>>,
    /// `metadata` under `envoy.lb`: subsets and `hash_key`.
    pub metadata: Option<Arc<LbMetadata>>,
    /// `health_status`.
    pub health: HealthStatus,
    /// `health_check_config`.
    pub check: Option<Arc<EndpointCheck>>,
    /// LOGICAL_DNS: one endpoint that stays the same whatever address its name has at the moment.
    pub logical: bool,
}

impl EndpointSpec {
    /// A healthy endpoint of weight 1 at `address`, priority 0, without locality.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            hostname: None,
            weight: 1,
            group: Arc::default(),
            labels: None,
            metadata: None,
            health: HealthStatus::Healthy,
            check: None,
            logical: false,
        }
    }

    /// Health checks leave it out.
    #[must_use]
    pub fn is_unchecked(&self) -> bool {
        self.check.as_ref().is_some_and(|check| check.disabled)
    }

    /// The same endpoint at another address.
    #[must_use]
    pub fn at(&self, ip: IpAddr) -> Self {
        Self { address: SocketAddr::new(ip, self.address.port()), ..self.clone() }
    }

    /// What makes it the same endpoint in two lists. The host name is part of it because an address that now belongs
    /// to another host must not get the old one's connections (features.md, pain 21).
    pub(super) fn identity(&self) -> (Option<SocketAddr>, u16, Option<&str>) {
        let address = if self.logical { None } else { Some(self.address) };
        (address, self.address.port(), self.hostname.as_deref())
    }
}

/// `ClusterLoadAssignment`, compiled.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Assignment {
    /// All endpoints of all localities.
    pub endpoints: Vec<EndpointSpec>,
    /// `policy`.
    pub policy: AssignmentPolicy,
}

/// `ClusterLoadAssignment.Policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AssignmentPolicy {
    /// `overprovisioning_factor` in percent, default 140.
    pub overprovisioning: u32,
    /// `weighted_priority_health`: count weights, not endpoints, to tell the health of a priority.
    pub weighted_health: bool,
}

impl Default for AssignmentPolicy {
    fn default() -> Self {
        Self { overprovisioning: 140, weighted_health: false }
    }
}

impl From<Vec<EndpointSpec>> for Assignment {
    fn from(endpoints: Vec<EndpointSpec>) -> Self {
        Self { endpoints, policy: AssignmentPolicy::default() }
    }
}
