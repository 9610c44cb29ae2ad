//! The listener that answers a program's DNS questions, where rules lead them to its sidecar (decision 0021).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use remora_xds::pb::envoy::config::core::v3::address::Address as AddressKind;
use remora_xds::pb::envoy::config::core::v3::socket_address::Protocol;
use remora_xds::pb::envoy::config::core::v3::{Address, TrafficDirection};
use remora_xds::pb::envoy::config::listener::v3::listener_filter::ConfigType;
use remora_xds::pb::envoy::config::listener::v3::{AdditionalAddress, Listener, ListenerFilter};
use remora_xds::pb::envoy::data::dns::v3::DnsTable;
use remora_xds::pb::envoy::data::dns::v3::dns_table::dns_endpoint::EndpointConfig;
use remora_xds::pb::envoy::data::dns::v3::dns_table::{AddressList, DnsEndpoint, DnsVirtualDomain};
use remora_xds::pb::envoy::extensions::filters::udp::dns_filter::v3::DnsFilterConfig;
use remora_xds::pb::envoy::extensions::filters::udp::dns_filter::v3::dns_filter_config::server_context_config::ConfigSource;
use remora_xds::pb::envoy::extensions::filters::udp::dns_filter::v3::dns_filter_config::{
    ClientContextConfig, ServerContextConfig,
};

use super::{Outbound, intercepted, names, parts};
use crate::name::Key;
use crate::resource::Resource;

/// Where rules lead DNS (Istio's port).
const PORT: u16 = 15_053;
/// As soon as Envoy allows: an address of a Service that is created anew is to be seen soon.
const TTL: u64 = 30;
/// How long a name server has. libc waits for 5 s in all; two tries of one server fit.
const TIMEOUT: Duration = Duration::from_secs(2);
const RETRIES: u32 = 1;
/// Questions of one program under way at the same time.
const MAX_PENDING: u64 = 1024;

/// The listener, on loopback, with the Services that are called and have addresses of their own. `about`: the workload.
pub(super) fn listener<'a>(
    about: &Key,
    addresses: &[IpAddr],
    called: impl IntoIterator<Item = Outbound<'a>>,
) -> Arc<Resource> {
    let mut table = BTreeMap::<String, BTreeSet<IpAddr>>::new();
    for Outbound { service, .. } in called {
        let vips = service.spec.vips();
        if !vips.is_empty() {
            let (namespace, name) = names::of(service);
            table.insert(names::host(namespace, name), vips);
        }
    }
    let table = DnsTable {
        external_retry_count: RETRIES,
        virtual_domains: table.into_iter().map(|(name, vips)| domain(name, &vips)).collect(),
        ..DnsTable::default()
    };
    let filter = DnsFilterConfig {
        stat_prefix: "dns".into(),
        server_config: Some(ServerContextConfig { config_source: Some(ConfigSource::InlineDnsTable(table)) }),
        client_config: Some(ClientContextConfig {
            resolver_timeout: Some(parts::duration(TIMEOUT)),
            max_pending_lookups: MAX_PENDING,
            ..ClientContextConfig::default()
        }),
        case_insensitive: true,
        ..DnsFilterConfig::default()
    };
    let mut at = intercepted::loopback(addresses).map(|ip| udp(SocketAddr::new(ip, PORT)));
    let more = |address| AdditionalAddress { address: Some(address), ..AdditionalAddress::default() };
    let listener = Listener {
        name: names::DNS.into(),
        address: at.next(),
        additional_addresses: at.map(more).collect(),
        listener_filters: vec![ListenerFilter {
            name: "envoy.filters.udp.dns_filter".into(),
            config_type: Some(ConfigType::TypedConfig(parts::pack(&filter))),
            ..ListenerFilter::default()
        }],
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Listener::default()
    };
    Resource::listener(&listener, vec![about.clone()])
}

fn domain(name: String, vips: &BTreeSet<IpAddr>) -> DnsVirtualDomain {
    let list = AddressList { address: vips.iter().map(ToString::to_string).collect() };
    DnsVirtualDomain {
        name,
        endpoint: Some(DnsEndpoint { endpoint_config: Some(EndpointConfig::AddressList(list)) }),
        answer_ttl: parts::seconds(TTL),
    }
}

fn udp(at: SocketAddr) -> Address {
    let mut address = parts::address(at);
    if let Some(AddressKind::SocketAddress(socket)) = &mut address.address {
        socket.protocol = Protocol::Udp.into();
    }
    address
}
