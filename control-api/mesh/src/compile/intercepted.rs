//! Listeners of a sidecar whose traffic rules of the network namespace lead to it (decision 0016).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use remora_xds::pb::envoy::config::core::v3::{Address, TrafficDirection};
use remora_xds::pb::envoy::config::listener::v3::{
    AdditionalAddress, FilterChain, FilterChainMatch, Listener,
};

use super::http::{self, ClusterSpecifier, RouteSpecifier, Side};
use super::route::Routes;
use super::{OutboundTraffic, Scope, cluster, everything, names, outbound, parts};
use crate::document::{AppProtocol, Document, INBOUND_PORT, MtlsMode, ServicePort, ServiceSpec};
use crate::mesh::target;
use crate::name::Key;
use crate::resource::Resource;

/// Where rules lead what the program sends (Istio's port).
pub(crate) const OUTBOUND_PORT: u16 = 15_001;
/// How long a connection to nobody's address may carry nothing (Istio has no limit; TCP proxies of Envoy have an hour).
const IDLE: std::time::Duration = std::time::Duration::from_secs(3600);

/// What leads to the pods of a Service's port by their own addresses: compiled when somebody first asks, and then shared.
#[derive(Debug, Clone, Default)]
pub struct Pods(OnceLock<[Option<Arc<Resource>>; 2]>);

/// It follows from what else there is of the port.
impl PartialEq for Pods {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Pods {
    /// The listener and its cluster. Nothing when the port has no pods.
    pub(super) fn of(
        &self,
        scope: Scope<'_>,
        service: &Document<ServiceSpec>,
        port: &ServicePort,
    ) -> impl Iterator<Item = &Arc<Resource>> {
        let made = self.0.get_or_init(|| {
            let listener = pods(scope, service, port);
            let cluster = listener.is_some().then(|| cluster::pod(scope, service, port));
            [listener, cluster]
        });
        made.iter().flatten()
    }
}

/// Gives a listener its addresses. None when there are none.
pub(super) fn at(listener: &mut Listener, addresses: impl IntoIterator<Item = SocketAddr>) -> Option<()> {
    let mut addresses = addresses.into_iter().map(parts::address);
    listener.address = Some(addresses.next()?);
    let more =
        |address: Address| AdditionalAddress { address: Some(address), ..AdditionalAddress::default() };
    listener.additional_addresses = addresses.map(more).collect();
    Some(())
}

/// The listener for calls to a Service's port by its own addresses.
pub(super) fn vip(
    scope: Scope<'_>,
    (service, port): (&Document<ServiceSpec>, &ServicePort),
    routes: &Routes,
) -> Option<Arc<Resource>> {
    let vips = service.spec.vips();
    if vips.is_empty() {
        return None;
    }
    let mut made = outbound::without_address(scope, (service, port), routes);
    made.listener.bind_to_port = parts::flag(false);
    at(&mut made.listener, vips.into_iter().map(|ip| SocketAddr::new(ip, port.port)))?;
    Some(Resource::listener(&made.listener, made.documents))
}

/// The listener for calls to the pods of a Service's port by their own addresses.
fn pods(scope: Scope<'_>, service: &Document<ServiceSpec>, port: &ServicePort) -> Option<Arc<Resource>> {
    let (namespace, name) = names::of(service);
    // Each of them has a sidecar.
    let direct = scope.mesh.demanded(service, port.port) == MtlsMode::Disabled;
    // Also those that are not ready: whoever calls one by its address would reach it in plaintext.
    let instances = scope.mesh.behind(service).into_iter();
    let called: BTreeSet<_> = instances
        .filter_map(|instance| {
            let workload = &instance.workload;
            // All of them have one port in the cluster.
            let reachable = direct || workload.spec.inbound_port == INBOUND_PORT;
            let number = target(port, workload).filter(|_| reachable)?;
            Some(workload.spec.all_addresses().into_iter().map(move |ip| SocketAddr::new(ip, number)))
        })
        .flatten()
        .collect();
    let cluster = names::pod(namespace, name, port.port);
    let filter = if port.speaks() == AppProtocol::Tcp {
        let idle = scope.mesh.policy(service).and_then(|policy| policy.spec.timeouts.idle);
        let proxy = http::Tcp { name: &cluster, idle: idle.map(|idle| idle.0), tries: 1, by_address: false };
        http::tcp_proxy(proxy, ClusterSpecifier::Cluster(cluster.clone()))
    } else {
        let routes = RouteSpecifier::RouteConfig(everything::to("pods", cluster.clone()));
        http::connection_manager(&cluster, Side::Outbound, routes, Vec::new())
    };
    let mut listener = Listener {
        name: names::pods(namespace, name, port.port),
        filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
        per_connection_buffer_limit_bytes: parts::number(64 * 1024),
        traffic_direction: TrafficDirection::Outbound.into(),
        bind_to_port: parts::flag(false),
        ..Listener::default()
    };
    at(&mut listener, called)?;
    Some(Resource::listener(&listener, cluster::documents(scope, service)))
}

/// Loopback, also of IPv6 for a node that has it.
pub(super) fn loopback(addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    let ipv6 = addresses.iter().any(IpAddr::is_ipv6);
    [IpAddr::V4(Ipv4Addr::LOCALHOST)].into_iter().chain(ipv6.then_some(IpAddr::V6(Ipv6Addr::LOCALHOST)))
}

/// Every address, also of IPv6 for a node that has it.
pub(super) fn every(listener: &mut Listener, addresses: &[IpAddr], port: u16) {
    let ipv6 = addresses.iter().any(IpAddr::is_ipv6);
    let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED)]
        .into_iter()
        .chain(ipv6.then_some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)));
    // At least one.
    let _ = at(listener, all.map(|ip| SocketAddr::new(ip, port)));
}

/// What takes every connection that the program makes, and passes on what is nobody's; with its clusters. `about`: the workload.
pub(super) fn catch_all(scope: Scope<'_>, about: &Key, addresses: &[IpAddr]) -> [Arc<Resource>; 3] {
    let to = |name: &str| {
        let proxy = http::Tcp { name, idle: Some(IDLE), tries: 1, by_address: false };
        vec![http::tcp_proxy(proxy, ClusterSpecifier::Cluster(name.into()))]
    };
    let others = match scope.profile.outbound_traffic {
        OutboundTraffic::AllowAny => names::PASSTHROUGH,
        OutboundTraffic::RegistryOnly => names::BLACK_HOLE,
    };
    let mut listener = Listener {
        name: names::VIRTUAL_OUTBOUND.into(),
        use_original_dst: parts::flag(true),
        filter_chains: vec![
            // Who calls this port itself would be led in a circle.
            FilterChain {
                name: "virtualOutbound-blackhole".into(),
                filter_chain_match: Some(FilterChainMatch {
                    destination_port: parts::number(OUTBOUND_PORT.into()),
                    ..FilterChainMatch::default()
                }),
                filters: to(names::BLACK_HOLE),
                ..FilterChain::default()
            },
            FilterChain {
                name: "virtualOutbound-catchall-tcp".into(),
                filters: to(others),
                ..FilterChain::default()
            },
        ],
        per_connection_buffer_limit_bytes: parts::number(64 * 1024),
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Listener::default()
    };
    // At least one.
    let _ = at(&mut listener, loopback(addresses).map(|ip| SocketAddr::new(ip, OUTBOUND_PORT)));
    [
        Resource::listener(&listener, vec![about.clone()]),
        cluster::passthrough(about.clone()),
        cluster::black_hole(about.clone()),
    ]
}
