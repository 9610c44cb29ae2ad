//! Filter chains: their matches, TLS contexts and terminal filters.

use std::collections::HashSet;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::FixedState;
use prost::Message as _;
use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3::TransportSocket;
use remora_xds::pb::envoy::config::core::v3::transport_socket::ConfigType as SocketConfig;
use remora_xds::pb::envoy::config::listener::v3::filter::ConfigType;
use remora_xds::pb::envoy::config::listener::v3::filter_chain_match::ConnectionSourceType;
use remora_xds::pb::envoy::config::listener::v3::{
    Filter, FilterChain as FilterChainPb, FilterChainMatch, Listener,
};
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use remora_xds::pb::envoy::extensions::filters::network::rbac::v3::Rbac;
use remora_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use remora_xds::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use remora_xds::pb::google::protobuf::Any;

use crate::config::compile::Scope;
use crate::config::compile::common::unsupported;
use crate::config::compile::fields::{cidr, holds, number, refuse, timeout, unpack};
use crate::config::compile::policy::compile_network_rbac;
use crate::config::compile::tls::compile_downstream_tls;
use crate::config::spec::{Direction, FilterChain, NetworkFilter};
use crate::listener::chain_match::{ChainMatch, ChainMatchError, ChainMatcher, SourceType, Transport};
use crate::policy::rbac::RbacFilter;
use crate::tls::server::ServerTls;

/// An idle handshake must end.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);

/// The chains of a listener.
#[derive(Default)]
pub(super) struct Chains {
    pub(super) matcher: ChainMatcher,
    pub(super) list: Vec<Arc<FilterChain>>,
    /// A match looks at what only the ClientHello tells. Envoy then adds the TLS inspector by itself.
    pub(super) needs_tls_inspector: bool,
}

pub(super) fn compile(
    pb: &Listener,
    listener: &str,
    direction: Direction,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Chains> {
    let before = scope.errors.len();
    let list_at = at.field("filter_chains");
    if pb.filter_chains.is_empty() && pb.default_filter_chain.is_none() {
        scope
            .errors
            .report(&list_at, "a listener needs a filter chain")
            .fix("add one, or default_filter_chain");
    }
    let mut names = ChainNames { listener, used: HashSet::new() };
    let mut list = Vec::new();
    let mut matches = Vec::new();
    for (i, pb) in pb.filter_chains.iter().enumerate() {
        let at = list_at.index(i);
        let names = names.next(pb, &i.to_string());
        list.extend(chain(pb, names, direction, &at, scope));
        let at = at.field("filter_chain_match");
        matches.push(
            pb.filter_chain_match.as_ref().map_or_else(ChainMatch::default, |m| chain_match(m, &at, scope)),
        );
    }
    let default = pb.default_filter_chain.as_ref().map(|pb| {
        let at = at.field("default_filter_chain");
        if pb.filter_chain_match.is_some() {
            let at = at.field("filter_chain_match");
            scope.errors.report(&at, "the default chain is not matched").fix("remove it");
        }
        let names = names.next(pb, "default");
        list.extend(chain(pb, names, direction, &at, scope));
        pb.filter_chain_match.is_none().then_some(matches.len())
    });
    if scope.errors.len() > before {
        return None;
    }
    let needs_tls_inspector = matches.iter().any(needs_tls);
    match ChainMatcher::new(&matches, default.flatten()) {
        Ok(matcher) => Some(Chains { matcher, list, needs_tls_inspector }),
        Err(ChainMatchError::Overlap(first, second)) => {
            let (at, field) = (list_at.index(second), "filter_chain_match");
            let message = format!("asks for the same as filter_chains[{first}]");
            scope
                .errors
                .report(&at.field(field), message)
                .fix("let every chain ask for something of its own");
            None
        }
        Err(ChainMatchError::TooMany(chain)) => {
            let (at, field) = (list_at.index(chain), "filter_chain_match");
            let error = scope.errors.report(&at.field(field), "has too many combinations of its lists");
            error.fix("ask for less at once, or use wider prefixes");
            None
        }
    }
}

/// As Envoy decides it: TLS is asked for, or something that without TLS nobody could say.
fn needs_tls(m: &ChainMatch) -> bool {
    match m.transport {
        Some(Transport::Tls) => true,
        Some(Transport::RawBuffer) => false,
        None => !m.server_names.is_empty() || !m.application_protocols.is_empty(),
    }
}

/// Gives chains names that are theirs alone.
struct ChainNames<'a> {
    listener: &'a str,
    used: HashSet<String>,
}

/// What a chain is called.
struct ChainName {
    /// For people: `listener/name`, or `listener/index`.
    shown: Arc<str>,
    /// By which open connections find the newest version of their chain. One without a name is known by what it matches: by its index, a
    /// connection would go on as another chain when one before it is removed.
    identity: String,
}

impl ChainNames<'_> {
    fn next(&mut self, pb: &FilterChainPb, position: &str) -> ChainName {
        let name = if pb.name.is_empty() { position } else { &pb.name };
        let mut full = format!("{}/{name}", self.listener);
        while !self.used.insert(full.clone()) {
            full.push_str(&format!("/{position}"));
        }
        let identity = match &pb.filter_chain_match {
            Some(matched) if pb.name.is_empty() => {
                format!(
                    "{}/match {:016x}",
                    self.listener,
                    FixedState::default().hash_one(matched.encode_to_vec())
                )
            }
            _ if pb.name.is_empty() && position != "default" => format!("{}/*", self.listener),
            _ => full.clone(),
        };
        ChainName { shown: full.into(), identity }
    }
}

fn chain(
    pb: &FilterChainPb,
    names: ChainName,
    direction: Direction,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Arc<FilterChain>> {
    #[expect(deprecated, reason = "use_proxy_proto is refused with the rest")]
    let FilterChainPb {
        filter_chain_match: _,
        filters,
        use_proxy_proto,
        metadata: _, // has no effect of its own
        transport_socket,
        transport_socket_connect_timeout,
        name,
    } = pb;
    refuse!(scope, at; use_proxy_proto);
    let at_timeout = at.field("transport_socket_connect_timeout");
    // Envoy takes zero for unset; unset is our limit.
    let tls_timeout = timeout(transport_socket_connect_timeout.as_ref(), None, &at_timeout, scope);
    let tls = transport_socket.as_ref().map(|socket| tls(socket, &at.field("transport_socket"), scope));
    let (policies, filter) = network_filters(filters, direction, &at.field("filters"), scope).unzip();
    Some(Arc::new(FilterChain {
        id: scope.names.chains.intern(&names.identity),
        name: if name.is_empty() { names.shown } else { name.as_str().into() },
        tls: tls.flatten(),
        tls_timeout: tls_timeout.unwrap_or(TLS_TIMEOUT),
        policies: policies.unwrap_or_default(),
        filter: filter?,
    }))
}

/// The TLS context of a chain; None for plaintext and (reported) for mistakes.
fn tls(socket: &TransportSocket, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Arc<ServerTls>> {
    let TransportSocket { name, config_type } = socket;
    let Some(SocketConfig::TypedConfig(any)) = config_type else {
        scope.errors.report(at, format!("`{name}` has no typed_config")).fix("add a DownstreamTlsContext");
        return None;
    };
    let at = at.field("typed_config");
    if holds::<DownstreamTlsContext>(any) {
        let context = unpack(any, &at, scope)?;
        return compile_downstream_tls(&context, &at, scope);
    }
    if !holds::<RawBuffer>(any) {
        let message = format!("the transport socket `{}` is not supported", any.type_url);
        scope.errors.report(&at, message).fix("use DownstreamTlsContext or RawBuffer");
    }
    None
}

/// The filters of a chain: those that judge the connection, and the one that serves it.
fn network_filters(
    filters: &[Filter],
    direction: Direction,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<(Vec<RbacFilter>, NetworkFilter)> {
    let Some((last, before)) = filters.split_last() else {
        scope
            .errors
            .report(at, "a chain has a network filter that serves the connection")
            .fix("add http_connection_manager or tcp_proxy");
        return None;
    };
    let mut policies = Vec::with_capacity(before.len());
    for (i, filter) in before.iter().enumerate() {
        let at = at.index(i);
        let Some(any) = typed_config(filter, &at, scope) else { continue };
        let at = at.field("typed_config");
        if holds::<Rbac>(any) {
            policies.extend(unpack(any, &at, scope).map(|pb| compile_network_rbac(&pb, &at, scope)));
        } else {
            let message = format!("before the last filter `{}` is not supported", any.type_url);
            scope
                .errors
                .report(&at, message)
                .fix("use envoy.filters.network.rbac, and http_connection_manager or tcp_proxy at the end");
        }
    }
    Some((policies, terminal_filter(last, direction, &at.index(before.len()), scope)?))
}

fn typed_config<'f>(filter: &'f Filter, at: &At<'_>, scope: &mut Scope<'_>) -> Option<&'f Any> {
    let Filter { name, config_type } = filter;
    match config_type {
        Some(ConfigType::TypedConfig(any)) => Some(any),
        Some(ConfigType::ConfigDiscovery(_)) => {
            unsupported(true, &at.field("config_discovery"), scope);
            None
        }
        None => {
            let message = format!("`{name}` has no typed_config");
            scope.errors.report(at, message).fix("add typed_config with the filter's @type");
            None
        }
    }
}

fn terminal_filter(
    filter: &Filter,
    direction: Direction,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<NetworkFilter> {
    let any = typed_config(filter, at, scope)?;
    let at = at.field("typed_config");
    if holds::<HttpConnectionManager>(any) {
        let pb = unpack(any, &at, scope)?;
        super::hcm::compile(&pb, direction, &at, scope).map(|spec| NetworkFilter::Http(Arc::new(spec)))
    } else if holds::<TcpProxy>(any) {
        let pb = unpack(any, &at, scope)?;
        super::tcp::compile(&pb, direction, &at, scope).map(|spec| NetworkFilter::Tcp(Arc::new(spec)))
    } else {
        let message = format!("the network filter `{}` is not supported", any.type_url);
        scope.errors.report(&at, message).fix("use http_connection_manager or tcp_proxy");
        None
    }
}

fn chain_match(pb: &FilterChainMatch, at: &At<'_>, scope: &mut Scope<'_>) -> ChainMatch {
    let FilterChainMatch {
        destination_port,
        prefix_ranges,
        address_suffix,
        suffix_len,
        direct_source_prefix_ranges,
        source_type,
        source_prefix_ranges,
        source_ports,
        server_names,
        transport_protocol,
        application_protocols,
    } = pb;
    refuse!(scope, at; address_suffix, suffix_len);
    let mut prefixes = |list: &[_], field| {
        let at = at.field(field);
        list.iter().enumerate().filter_map(|(i, range)| cidr(range, &at.index(i), scope)).collect()
    };
    let destination = prefixes(prefix_ranges, "prefix_ranges");
    let direct_source = prefixes(direct_source_prefix_ranges, "direct_source_prefix_ranges");
    let source = prefixes(source_prefix_ranges, "source_prefix_ranges");
    let port = number(destination_port.as_ref(), 1..=65535, &at.field("destination_port"), scope);
    ChainMatch {
        destination_port: port.and_then(|port| u16::try_from(port).ok()),
        destination,
        server_names: server_name_list(server_names, &at.field("server_names"), scope),
        transport: transport(transport_protocol, &at.field("transport_protocol"), scope),
        application_protocols: application_protocols.clone(),
        direct_source,
        source_type: source_kind(*source_type, &at.field("source_type"), scope),
        source,
        source_ports: ports(source_ports, &at.field("source_ports"), scope),
    }
}

fn server_name_list(names: &[String], at: &At<'_>, scope: &mut Scope<'_>) -> Vec<String> {
    for (i, name) in names.iter().enumerate() {
        let rest = name.strip_prefix("*.").unwrap_or(name);
        if rest.is_empty() || rest.contains('*') || rest.starts_with('.') {
            scope
                .errors
                .report(&at.index(i), format!("`{name}` is neither a name nor `*.` with a suffix"))
                .fix("write it like www.example.com or *.example.com; leave server_names out to take every name");
        }
    }
    names.iter().map(|name| name.to_ascii_lowercase()).collect()
}

fn transport(name: &str, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Transport> {
    match name {
        "" => None,
        "tls" => Some(Transport::Tls),
        "raw_buffer" => Some(Transport::RawBuffer),
        other => {
            let message = format!("no connection has the transport protocol `{other}`");
            scope.errors.report(at, message).fix("use tls or raw_buffer");
            None
        }
    }
}

fn source_kind(value: i32, at: &At<'_>, scope: &mut Scope<'_>) -> SourceType {
    match ConnectionSourceType::try_from(value) {
        Ok(ConnectionSourceType::Any) => SourceType::Any,
        Ok(ConnectionSourceType::SameIpOrLoopback) => SourceType::Local,
        Ok(ConnectionSourceType::External) => SourceType::External,
        Err(_) => {
            scope.errors.report(at, format!("{value} is no source type"));
            SourceType::Any
        }
    }
}

fn ports(list: &[u32], at: &At<'_>, scope: &mut Scope<'_>) -> Vec<u16> {
    let mut ports = Vec::with_capacity(list.len());
    for (i, port) in list.iter().enumerate() {
        match u16::try_from(*port) {
            Ok(port) if port > 0 => ports.push(port),
            _ => {
                scope.errors.report(&at.index(i), format!("{port} is not a port"));
            }
        }
    }
    ports
}
