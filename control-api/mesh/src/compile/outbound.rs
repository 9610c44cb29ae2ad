//! Behind the program: for every Service that it calls, a listener on loopback. No interception, no privileges.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use remora_xds::pb::envoy::config::core::v3::TrafficDirection;
use remora_xds::pb::envoy::config::listener::v3::{FilterChain, Listener};
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::Rds;

use super::http::{self, RouteSpecifier, Side};
use super::{Listening, Scope, key_of, names, parts};
use crate::document::{AppProtocol, Document, ServicePort, ServiceSpec};
use crate::files::FileKind;
use crate::resource::Resource;

/// The listener for calls to a Service's port.
pub(super) fn listener(
    scope: Scope<'_>,
    service: &Document<ServiceSpec>,
    port: &ServicePort,
    local_port: u16,
) -> Arc<Resource> {
    let (namespace, service_name) = names::of(service);
    let name = names::outbound(namespace, service_name, port.port);
    let filter = if port.speaks() == AppProtocol::Tcp {
        http::tcp_proxy(&name, names::cluster(namespace, service_name, port.port))
    } else {
        let rds = Rds {
            config_source: Some(parts::source(&scope.profile.delivery, FileKind::Routes)),
            route_config_name: name.clone(),
        };
        http::connection_manager(&name, Side::Outbound, RouteSpecifier::Rds(rds))
    };
    let number = if scope.profile.listening == Listening::Ephemeral { 0 } else { local_port };
    let listener = Listener {
        name,
        address: Some(parts::address(SocketAddr::from((Ipv4Addr::LOCALHOST, number)))),
        filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
        per_connection_buffer_limit_bytes: parts::number(64 * 1024),
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Listener::default()
    };
    Resource::listener(&listener, vec![key_of(service)])
}
