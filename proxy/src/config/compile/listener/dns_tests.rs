use std::net::SocketAddr;

use remora_xds::diag::{Errors, SourceMap};
use remora_xds::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use remora_xds::pb::envoy::config::core::v3::{
    Address, DnsResolverOptions, SocketAddress, TypedExtensionConfig,
};
use remora_xds::pb::envoy::config::listener::v3::{AdditionalAddress, FilterChain, ListenerFilter};
use remora_xds::pb::envoy::data::dns::v3::dns_table::AddressList;
use remora_xds::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use remora_xds::pb::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use remora_xds::pb::google::protobuf::{Any, Duration as DurationPb};

use super::*;
use crate::config::compile::listener::compile_listener;
use crate::config::names::Names;
use crate::config::spec::ListenerSpec;
use crate::dns::wire;

fn any<M: prost::Message + prost::Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn socket(ip: &str, port: u32, protocol: Protocol) -> Option<Address> {
    let socket = SocketAddress {
        protocol: protocol.into(),
        address: ip.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(port)),
        ..SocketAddress::default()
    };
    Some(Address { address: Some(AddressKind::SocketAddress(socket)) })
}

fn domain(name: &str, addresses: &[&str]) -> DnsVirtualDomain {
    let list = AddressList { address: addresses.iter().map(|ip| (*ip).to_owned()).collect() };
    let endpoint_config = Some(EndpointConfig::AddressList(list));
    DnsVirtualDomain { name: name.into(), endpoint: Some(DnsEndpoint { endpoint_config }), answer_ttl: None }
}

fn with(table: DnsTable) -> DnsFilterConfig {
    DnsFilterConfig {
        stat_prefix: "dns".into(),
        server_config: Some(ServerContextConfig { config_source: Some(ConfigSource::InlineDnsTable(table)) }),
        client_config: Some(ClientContextConfig { max_pending_lookups: 8, ..ClientContextConfig::default() }),
        ..DnsFilterConfig::default()
    }
}

fn table(domains: Vec<DnsVirtualDomain>) -> DnsTable {
    DnsTable { virtual_domains: domains, ..DnsTable::default() }
}

fn filter<M: prost::Message + prost::Name>(message: &M) -> ListenerFilter {
    ListenerFilter {
        name: "f".into(),
        config_type: Some(ConfigType::TypedConfig(any(message))),
        ..ListenerFilter::default()
    }
}

fn listener(config: &DnsFilterConfig) -> Listener {
    Listener {
        name: "dns".into(),
        address: socket("127.0.0.1", 15_053, Protocol::Udp),
        listener_filters: vec![filter(config)],
        ..Listener::default()
    }
}

fn run(pb: &Listener) -> Result<ListenerSpec, Vec<String>> {
    let mut errors = Errors::new("test", SourceMap::default());
    let mut names = Names::default();
    let made = compile_listener(pb, &At::root(), &mut Scope { errors: &mut errors, names: &mut names });
    made.ok_or_else(|| errors.into_list().iter().map(ToString::to_string).collect())
}

fn compiled(config: &DnsFilterConfig) -> DnsFilterSpec {
    let spec = run(&listener(config)).unwrap();
    assert!(spec.chains.is_empty());
    DnsFilterSpec::clone(&spec.dns.unwrap())
}

fn refused(config: &DnsFilterConfig, path: &str) {
    let errors = run(&listener(config)).unwrap_err();
    assert!(errors.iter().any(|error| error.contains(path)), "{path} is not in {errors:?}");
}

#[test]
fn a_table_has_both_families_and_envoys_defaults() {
    let mut short = domain("api.shop", &["10.0.0.2"]);
    short.answer_ttl = Some(DurationPb { seconds: 30, nanos: 0 });
    let spec = compiled(&with(table(vec![domain("*.shop", &["10.0.0.1", "fd00::1"]), short])));
    let find = |name| spec.table.find(&wire::labels(name).unwrap()).unwrap();
    let wild = find("x.shop");
    assert_eq!((wild.v4.len(), wild.v6.len(), wild.ttl), (1, 1, Duration::from_secs(300)));
    assert_eq!(find("API.shop").ttl, Duration::from_secs(30));
    let forward = spec.forward.clone().unwrap();
    assert_eq!((forward.timeout, forward.retries, forward.max_pending), (Duration::from_millis(500), 0, 8));
    assert!(forward.servers.servers.is_empty(), "those of resolv.conf");
}

#[test]
fn name_servers_are_named_or_none_are_asked() {
    let cares = CaresDnsResolverConfig {
        resolvers: socket("192.0.2.1", 0, Protocol::Tcp).into_iter().collect(),
        dns_resolver_options: Some(DnsResolverOptions {
            use_tcp_for_dns_lookups: true,
            no_default_search_domain: true,
        }),
        ..CaresDnsResolverConfig::default()
    };
    let mut config = with(DnsTable { external_retry_count: 2, ..DnsTable::default() });
    let client = config.client_config.as_mut().unwrap();
    client.resolver_timeout = Some(DurationPb { seconds: 2, nanos: 0 });
    client.typed_dns_resolver_config =
        Some(TypedExtensionConfig { name: "cares".into(), typed_config: Some(any(&cares)) });
    let forward = compiled(&config).forward.unwrap();
    assert_eq!(forward.servers.servers, ["192.0.2.1:53".parse::<SocketAddr>().unwrap()]);
    assert!(forward.servers.tcp);
    assert_eq!((forward.timeout, forward.retries), (Duration::from_secs(2), 2));
    config.client_config = None;
    assert_eq!(compiled(&config).forward, None);
}

#[test]
fn what_is_not_supported_is_named() {
    let path = "server_config.inline_dns_table.virtual_domains[0]";
    let one = |domain| with(table(vec![domain]));
    refused(&one(domain("a..b", &[])), &format!("{path}.name"));
    refused(&one(domain("a.b", &["10.0.0"])), &format!("{path}.endpoint.address_list.address[0]"));
    let mut cluster = domain("a.b", &[]);
    cluster.endpoint = Some(DnsEndpoint { endpoint_config: Some(EndpointConfig::ClusterName("c".into())) });
    refused(&one(cluster.clone()), &format!("{path}.endpoint.cluster_name"));
    cluster.endpoint = None;
    refused(&one(cluster), &format!("{path}.endpoint"));
    let twice = with(table(vec![domain("a.b", &[]), domain("A.B.", &[])]));
    refused(&twice, "virtual_domains[1].name");
    let mut none = with(DnsTable::default());
    none.client_config = Some(ClientContextConfig::default());
    refused(&none, "client_config.max_pending_lookups");
}

#[test]
fn a_udp_listener_has_this_filter_and_no_chains() {
    let good = listener(&with(DnsTable::default()));
    let errors = |pb: &Listener, path: &str| {
        let errors = run(pb).unwrap_err();
        assert!(errors.iter().any(|error| error.contains(path)), "{path} is not in {errors:?}");
    };
    errors(&Listener { filter_chains: vec![FilterChain::default()], ..good.clone() }, "filter_chains");
    errors(&Listener { listener_filters: vec![], ..good.clone() }, "listener_filters");
    let tls = vec![filter(&TlsInspector::default())];
    errors(&Listener { listener_filters: tls, ..good.clone() }, "listener_filters[0].typed_config");
    let other = AdditionalAddress { address: socket("::1", 15_053, Protocol::Tcp), ..Default::default() };
    errors(&Listener { additional_addresses: vec![other], ..good.clone() }, "protocol");
    let both = AdditionalAddress { address: socket("::1", 15_053, Protocol::Udp), ..Default::default() };
    let spec = run(&Listener { additional_addresses: vec![both], ..good.clone() }).unwrap();
    assert_eq!(spec.additional, ["[::1]:15053".parse::<SocketAddr>().unwrap()]);
    // And one for connections has not.
    let tcp = Listener { address: socket("127.0.0.1", 80, Protocol::Tcp), ..good };
    errors(&tcp, "listener_filters[0].typed_config");
}
