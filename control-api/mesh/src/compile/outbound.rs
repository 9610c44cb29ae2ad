//! Behind the program: for every Service that it calls, a listener, on loopback where nothing is intercepted.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use remora_xds::pb::envoy::config::core::v3::TrafficDirection;
use remora_xds::pb::envoy::config::listener::v3::{FilterChain, Listener};
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::Rds;

use super::http::{self, RouteSpecifier, Side};
use super::route::{Routes, behind, filters};
use super::{Listening, Scope, key_of, names, parts, retry, tcp};
use crate::document::{AppProtocol, Document, ServicePort, ServiceSpec};
use crate::kinds::Kind;
use crate::name::Key;
use crate::resource::Resource;

/// The listener for calls to a Service's port, on loopback.
pub(super) fn listener(
    scope: Scope<'_>,
    to: (&Document<ServiceSpec>, &ServicePort),
    local_port: u16,
    routes: &Routes,
) -> Arc<Resource> {
    let number = if scope.profile.listening == Listening::Ephemeral { 0 } else { local_port };
    let mut made = without_address(scope, to, routes);
    made.listener.address = Some(parts::address(SocketAddr::from((Ipv4Addr::LOCALHOST, number))));
    Resource::listener(&made.listener, made.documents)
}

/// A listener, and what it was made of.
pub(super) struct Made {
    pub(super) listener: Listener,
    pub(super) documents: Vec<Key>,
}

/// The listener for calls to a Service's port, wherever they come in.
pub(super) fn without_address(
    scope: Scope<'_>,
    (service, port): (&Document<ServiceSpec>, &ServicePort),
    routes: &Routes,
) -> Made {
    let (namespace, service_name) = names::of(service);
    let name = names::outbound(namespace, service_name, port.port);
    let mut documents = vec![key_of(service)];
    let policy = scope.mesh.policy(service);
    documents.extend(policy.map(|policy| Key::new(Kind::TrafficPolicy, policy.name())));
    let balancing = policy.map(|policy| &policy.spec.load_balancing);
    let (chains, by_name) = if port.speaks() == AppProtocol::Tcp {
        let keys = routes.tcp_keys();
        let behind = behind(scope.mesh, &keys);
        documents.extend(keys);
        documents.extend(behind.into_iter().filter(|key| *key != key_of(service)));
        let own = names::cluster(namespace, service_name, port.port);
        let idle = policy.and_then(|policy| policy.spec.timeouts.idle).map(|idle| idle.0);
        let tries = retry::connects(policy.map(|policy| &policy.spec.retries));
        let by_address = balancing.is_some_and(|said| said.hash_on.iter().any(|on| on.source_ip));
        let proxy = http::Tcp { name: &name, idle, tries, by_address };
        (tcp::chains(scope.mesh, routes, proxy, own), !routes.tls.is_empty())
    } else {
        let rds = Rds { config_source: Some(parts::ads()), route_config_name: name.clone() };
        let filters = filters(routes, balancing.and_then(|said| said.session.as_ref()));
        if !filters.is_empty() {
            documents.extend(routes.http_keys());
        }
        let filter = http::connection_manager(&name, Side::Outbound, RouteSpecifier::Rds(rds), filters);
        (vec![FilterChain { filters: vec![filter], ..FilterChain::default() }], false)
    };
    let mut listener = Listener {
        name,
        filter_chains: chains,
        per_connection_buffer_limit_bytes: parts::number(64 * 1024),
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Listener::default()
    };
    if by_name {
        // Where the routes are of TLS, the client begins.
        listener.listener_filters = vec![parts::tls_inspector()];
        listener.listener_filters_timeout = parts::seconds(10);
    }
    Made { listener, documents }
}
