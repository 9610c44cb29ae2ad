//! The configuration that a proxy is given.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::anyhow;
use remora_xds::pb::envoy::config::cluster::v3::Cluster;
use remora_xds::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
};
use remora_xds::pb::envoy::config::core::v3::address::Address as AddressKind;
use remora_xds::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use remora_xds::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use remora_xds::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, SocketAddress,
};
use remora_xds::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use remora_xds::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use remora_xds::pb::envoy::config::listener::v3::Listener;
use remora_xds::pb::envoy::config::route::v3::route::Action;
use remora_xds::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use remora_xds::pb::envoy::config::route::v3::route_match::PathSpecifier;
use remora_xds::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
};
use remora_xds::pb::google::protobuf::Duration;
use remora_xds::{Resource, Schema};

/// How much of it there is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) clusters: usize,
    pub(crate) endpoints: usize,
    /// Port of all endpoints.
    pub(crate) port: u16,
}

pub(crate) fn cluster_name(cluster: usize) -> String {
    format!("outbound|8080||service-{cluster:04}.default.svc.cluster.local")
}

/// The authority of requests that are routed to a cluster.
pub(crate) fn authority(cluster: usize) -> String {
    format!("service-{cluster:04}.default.svc.cluster.local")
}

/// The address of an endpoint; in each `life`, counted from 1, it has another one.
pub(crate) fn address(cluster: usize, endpoint: usize, life: usize) -> Ipv4Addr {
    let byte = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
    let (net, host) = if life == 0 { (1, 1 + endpoint) } else { (101, life) };
    Ipv4Addr::new(127, byte(net + cluster / 250), byte(cluster % 250), byte(host))
}

impl Size {
    pub(crate) fn all(self, listen: u16) -> anyhow::Result<Vec<Arc<Resource>>> {
        let clusters = (0..self.clusters).map(|n| Resource::new(&cluster(n)));
        let assignments = (0..self.clusters).map(|n| self.assignment(n, 0));
        let rest = [Resource::new(&listener(listen)?), Resource::new(&self.routes())];
        Ok(clusters.chain(assignments).chain(rest).map(Arc::new).collect())
    }

    /// The endpoints of a cluster when `lives` of them have been replaced, one after the other.
    pub(crate) fn assignment(self, cluster: usize, lives: usize) -> Resource {
        let newest =
            |endpoint: usize| (0..=lives).rev().find(|life| *life == 0 || life % self.endpoints == endpoint);
        let lb_endpoints = (0..self.endpoints)
            .map(|n| lb_endpoint((address(cluster, n, newest(n).unwrap_or(0)), self.port).into()));
        Resource::new(&ClusterLoadAssignment {
            cluster_name: cluster_name(cluster),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: lb_endpoints.collect(),
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        })
    }

    /// The address that comes with the change number `life`, counted from 1.
    pub(crate) fn fresh(self, cluster: usize, life: usize) -> Ipv4Addr {
        address(cluster, life % self.endpoints, life)
    }

    fn routes(self) -> RouteConfiguration {
        let host = |number| VirtualHost {
            name: authority(number),
            domains: vec![authority(number)],
            routes: vec![Route {
                r#match: Some(RouteMatch {
                    path_specifier: Some(PathSpecifier::Prefix("/".into())),
                    ..RouteMatch::default()
                }),
                action: Some(Action::Route(RouteAction {
                    cluster_specifier: Some(ClusterSpecifier::Cluster(cluster_name(number))),
                    ..RouteAction::default()
                })),
                ..Route::default()
            }],
            ..VirtualHost::default()
        };
        RouteConfiguration {
            name: "routes".into(),
            virtual_hosts: (0..self.clusters).map(host).collect(),
            ..RouteConfiguration::default()
        }
    }
}

fn cluster(number: usize) -> Cluster {
    Cluster {
        name: cluster_name(number),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ConfigSource {
                resource_api_version: ApiVersion::V3.into(),
                config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
                ..ConfigSource::default()
            }),
            ..EdsClusterConfig::default()
        }),
        connect_timeout: Some(Duration { seconds: 1, nanos: 0 }),
        ..Cluster::default()
    }
}

fn lb_endpoint(at: SocketAddr) -> LbEndpoint {
    let address = AddressKind::SocketAddress(SocketAddress {
        address: at.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(at.port().into())),
        ..SocketAddress::default()
    });
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(Address { address: Some(address) }),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    }
}

fn listener(port: u16) -> anyhow::Result<Listener> {
    let text =
        include_str!("../../../configs/envoy/ads-listener.yaml").replace("@LISTEN@", &port.to_string());
    let parsed = Schema::load().parse(&text, "ads-listener.yaml");
    let parsed =
        parsed.map_err(|errors| anyhow!("{}", errors.iter().map(ToString::to_string).collect::<String>()))?;
    Ok(parsed.message)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SIZE: Size = Size { clusters: 3, endpoints: 4, port: 80 };

    #[test]
    fn each_change_replaces_one_endpoint_by_one_that_was_never_there() {
        let addresses = |lives: usize| -> BTreeSet<Ipv4Addr> {
            let newest = |endpoint: usize| {
                (0..=lives).rev().find(|life| *life == 0 || life % SIZE.endpoints == endpoint)
            };
            (0..SIZE.endpoints).map(|n| address(2, n, newest(n).unwrap())).collect()
        };
        let mut seen = addresses(0);
        for life in 1..100 {
            let (old, new) = (addresses(life - 1), addresses(life));
            let fresh: Vec<_> = new.difference(&old).copied().collect();
            assert_eq!(fresh, [SIZE.fresh(2, life)], "{life}");
            assert!(seen.insert(fresh[0]), "{life}");
            assert_ne!(SIZE.assignment(2, life).version(), SIZE.assignment(2, life - 1).version());
        }
    }

    #[test]
    fn everything_is_right() {
        let schema = Schema::load();
        for resource in SIZE.all(1).unwrap() {
            assert!(schema.check_any(resource.any(), resource.name()).is_ok(), "{}", resource.name());
        }
    }
}
