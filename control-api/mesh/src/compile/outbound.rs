//! Behind the program: for every Service that it calls, a listener on loopback. No interception, no privileges.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use remora_xds::pb::envoy::config::cluster::v3::Cluster;
use remora_xds::pb::envoy::config::core::v3::TrafficDirection;
use remora_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use remora_xds::pb::envoy::config::listener::v3::{FilterChain, Listener};
use remora_xds::pb::envoy::config::route::v3::RouteConfiguration;
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::Rds;

use super::http::{self, RouteSpecifier, Side};
use super::{Listening, Mesh, Outbound, cluster, egress, names, parts, route};
use crate::document::{AppProtocol, Document, ServicePort, ServiceSpec};
use crate::files::FileKind;

/// What the outbound side needs.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) listeners: Vec<Listener>,
    pub(super) routes: Vec<RouteConfiguration>,
    pub(super) clusters: Vec<Cluster>,
    pub(super) endpoints: Vec<ClusterLoadAssignment>,
}

pub(super) fn compile(mesh: &Mesh<'_>) -> Parts {
    let mut parts = Parts::default();
    let mut used: BTreeMap<String, (&Document<ServiceSpec>, &ServicePort)> = BTreeMap::new();
    for outbound in egress(mesh.documents, mesh.workload) {
        let (namespace, name) = names::of(outbound.service);
        let table = if outbound.port.speaks() == AppProtocol::Tcp {
            None
        } else {
            Some(route::table(mesh, outbound.service, outbound.port))
        };
        let routed = table.as_ref().map(|t| t.backends.clone()).unwrap_or_default();
        for (service, port) in std::iter::once((outbound.service, outbound.port)).chain(routed) {
            let (namespace, name) = names::of(service);
            used.insert(names::cluster(namespace, name, port.port), (service, port));
        }
        parts.listeners.push(listener(
            mesh,
            &outbound,
            &names::outbound(namespace, name, outbound.port.port),
        ));
        parts.routes.extend(table.map(|t| t.routes));
    }
    for (service, port) in used.into_values() {
        parts.clusters.push(cluster::outbound(mesh, service, port));
        parts.endpoints.push(cluster::endpoints(mesh, service, port));
    }
    parts
}

fn listener(mesh: &Mesh<'_>, outbound: &Outbound<'_>, name: &str) -> Listener {
    let (namespace, service) = names::of(outbound.service);
    let filter = if outbound.port.speaks() == AppProtocol::Tcp {
        http::tcp_proxy(name, names::cluster(namespace, service, outbound.port.port))
    } else {
        let rds = Rds {
            config_source: Some(parts::source(&mesh.sidecar.delivery, FileKind::Routes)),
            route_config_name: name.into(),
        };
        http::connection_manager(name, Side::Outbound, RouteSpecifier::Rds(rds))
    };
    let port = if mesh.sidecar.listening == Listening::Ephemeral { 0 } else { outbound.local_port };
    Listener {
        name: name.into(),
        address: Some(parts::address(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))),
        filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
        per_connection_buffer_limit_bytes: parts::number(64 * 1024),
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Listener::default()
    }
}
