//! In front of the program: one listener, mTLS, one filter chain for each of its ports, found by the server name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use remora_xds::pb::envoy::config::core::v3::TrafficDirection;
use remora_xds::pb::envoy::config::listener::v3::listener_filter_chain_match_predicate::{MatchSet, Rule};
use remora_xds::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener, ListenerFilterChainMatchPredicate,
};
use remora_xds::pb::envoy::r#type::v3::Int32Range;
use remora_xds::pb::google::protobuf::Duration as PbDuration;

use super::authorization::{self, Subject};
use super::http::{self, RouteSpecifier, Side};
use super::route::behind;
use super::{
    Listening, Scope, cluster, everything, fault, intercepted, jwt, key_of, limit, names, parts, tls,
};
use crate::document::{AppProtocol, Document, MtlsMode, ServiceSpec};
use crate::kinds::Kind;
use crate::mesh::{Instance, Mesh, target};
use crate::name::{Key, Name};
use crate::resource::Resource;

/// How long a client in plaintext may leave the first word to the program before it is taken for one that does: what TLS
/// clients say comes with the connection. On ports that take no plaintext a sidecar waits on.
const SERVER_FIRST: Option<PbDuration> = Some(PbDuration { seconds: 0, nanos: 200_000_000 });

/// A port of the program as some Services call it: what it speaks to them, and their names.
struct Port<'a> {
    speaks: AppProtocol,
    service: &'a Document<ServiceSpec>,
    /// Services and ports of theirs that lead here.
    calls: Vec<(&'a Document<ServiceSpec>, u16)>,
    server_names: Vec<String>,
}

/// Services, and ports of theirs, that lead to a number, whatever is spoken: it is one program that hears them all.
fn calls_of<'a>(ports: &Ports<'a>, number: u16) -> Vec<(&'a Document<ServiceSpec>, u16)> {
    let same = ports.range((number, "")..).take_while(|((other, _), _)| *other == number);
    same.flat_map(|(_, port)| port.calls.iter().copied()).collect()
}

/// Ports by number and by what is spoken: a program may speak several protocols on one.
type Ports<'a> = BTreeMap<(u16, &'static str), Port<'a>>;

/// What a program hears. gRPC is HTTP/2.
const fn spoken(speaks: AppProtocol) -> &'static str {
    match speaks {
        AppProtocol::Http => "http",
        AppProtocol::Http2 | AppProtocol::Grpc => "http2",
        AppProtocol::Tcp => "tcp",
    }
}

/// What is behind `inbound|8080||` in the name of a port's cluster: its protocol, when it is not the only one of its number.
fn suffix(ports: &Ports<'_>, (number, spoken): (u16, &'static str)) -> &'static str {
    let alone = ports.range((number, "")..).take_while(|((other, _), _)| *other == number).count() == 1;
    if alone { "" } else { spoken }
}

/// The Services of all ports that speak HTTP, which carries tokens and can be asked about.
fn believers<'a>(ports: &Ports<'a>) -> Vec<&'a Document<ServiceSpec>> {
    let http = ports.iter().filter(|(_, port)| port.speaks != AppProtocol::Tcp);
    http.flat_map(|(key, _)| calls_of(ports, key.0)).map(|(service, _)| service).collect()
}

/// What a sidecar gets for what it hears.
pub(super) struct Inbound {
    /// None when no Service leads to the workload.
    pub(super) listener: Option<Arc<Resource>>,
    /// Of the program, and of servers with key sets.
    pub(super) clusters: Vec<Arc<Resource>>,
    /// Ports of Services that are asked about requests.
    pub(super) asked: BTreeSet<(Name, u16)>,
}

/// How connections reach the sidecar.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reached<'a> {
    /// They are made to it.
    Directly,
    /// Rules lead to it what is for the program, at these addresses of the node.
    ByRules(&'a [IpAddr]),
    /// The same by TPROXY: nothing of them is changed on the way, and the program sees who called.
    Unchanged(&'a [IpAddr]),
}

/// The inbound side of a workload.
pub(super) fn compile(scope: Scope<'_>, instance: &Instance, reached: Reached<'_>) -> Inbound {
    let by_rules = !matches!(reached, Reached::Directly);
    let ports = ports(scope.mesh, instance, by_rules);
    let named = |key: &(u16, &'static str)| (key.0, suffix(&ports, *key));
    let local = |(key, port): (&(u16, &'static str), &Port<'_>)| {
        cluster::local(named(key), port.speaks, port.service)
    };
    let mut clusters: Vec<_> = ports.iter().map(local).collect();
    clusters.extend(jwt::clusters(scope.mesh, &believers(&ports)));
    let mut asked = authorization::asked(scope.mesh, &believers(&ports));
    asked.extend(limit::asked(scope.mesh, &believers(&ports)));
    let made = |key: &(u16, &'static str), port: &Port<'_>| {
        filters(scope, named(key), port, &calls_of(&ports, key.0))
    };
    let strict = ports.iter().filter(|(_, port)| !port.server_names.is_empty());
    let mut chains: Vec<_> = strict.map(|(key, port)| chain(scope, made(key, port), port)).collect();
    let mut plain = Plain::default();
    if by_rules {
        plain = plain_by_number(scope, &ports, &made, &mut chains);
    } else if let Some((key, port)) = plaintext(scope.mesh, &ports) {
        chains.push(plaintext_chain(made(key, port)));
        plain.hears_both(port.speaks);
    }
    if chains.is_empty() && !by_rules {
        return Inbound { listener: None, clusters, asked };
    }
    let mut inspector = parts::tls_inspector();
    inspector.filter_disabled = without(&plain.only);
    let mut listener = Listener {
        filter_chains: chains,
        listener_filters: vec![inspector],
        // Under TLS and in HTTP the client begins.
        listener_filters_timeout: if plain.server_first { SERVER_FIRST } else { parts::seconds(10) },
        continue_on_listener_filters_timeout: plain.both,
        per_connection_buffer_limit_bytes: parts::number(64 * 1024),
        traffic_direction: TrafficDirection::Inbound.into(),
        ..Listener::default()
    };
    listen(scope, instance, reached, &mut listener);
    let documents = documents(scope, instance);
    Inbound { listener: Some(Resource::listener(&listener, documents)), clusters, asked }
}

/// Gives the listener its name and its addresses.
fn listen(scope: Scope<'_>, instance: &Instance, reached: Reached<'_>, listener: &mut Listener) {
    let spec = &instance.workload.spec;
    match reached {
        Reached::Directly => {
            let port = if scope.profile.listening == Listening::Ephemeral { 0 } else { spec.inbound_port };
            listener.name = names::INBOUND.into();
            let all = spec.all_addresses().into_iter();
            // At least one.
            let _ = intercepted::at(listener, all.map(|ip| SocketAddr::new(ip, port)));
        }
        Reached::ByRules(addresses) | Reached::Unchanged(addresses) => {
            if matches!(reached, Reached::Unchanged(_)) {
                listener.transparent = parts::flag(true);
                listener.listener_filters.insert(0, parts::original_src());
            }
            listener.name = names::VIRTUAL_INBOUND.into();
            listener.listener_filters.insert(0, parts::original_dst());
            intercepted::every(listener, addresses, spec.inbound_port);
        }
    }
    if listener.filter_chains.is_empty() {
        // No Service leads here: whatever comes is refused. A listener has one chain at least.
        listener.filter_chains.push(FilterChain {
            name: "nobody".into(),
            filter_chain_match: Some(FilterChainMatch {
                server_names: vec!["nobody.invalid".into()],
                ..FilterChainMatch::default()
            }),
            filters: vec![http::tcp_proxy(
                http::Tcp { name: "nobody", idle: None, tries: 1, by_address: false },
                http::ClusterSpecifier::Cluster(names::BLACK_HOLE.into()),
            )],
            ..FilterChain::default()
        });
    }
}

/// What the inbound listener is made of.
fn documents(scope: Scope<'_>, instance: &Instance) -> Vec<Key> {
    let mut documents = vec![Key::new(Kind::Workload, instance.workload.name())];
    for service in scope.mesh.services_of(instance) {
        documents.push(key_of(service));
        let authentication = scope.mesh.authentication(service);
        documents.extend(authentication.map(|policy| Key::new(Kind::AuthenticationPolicy, policy.name())));
        let policies = authorization::of(scope.mesh, service);
        let policies = policies.map(|policy| Key::new(Kind::AuthorizationPolicy, policy.name()));
        let limits = scope.mesh.rate_limits(service).map(|p| Key::new(Kind::RateLimitPolicy, p.name()));
        let faults = scope.mesh.faults(service).map(|p| Key::new(Kind::FaultPolicy, p.name()));
        let keys: Vec<_> = policies.chain(limits).chain(faults).collect();
        documents.extend(behind(scope.mesh, &keys));
        documents.extend(keys);
    }
    documents
}

/// How plaintext is heard.
#[derive(Debug, Default)]
struct Plain {
    /// Some port hears both, so that first bytes are looked at; a client without any is taken for one in plaintext.
    both: bool,
    /// On such a port the program may speak first.
    server_first: bool,
    /// Ports on which there is nothing else.
    only: Vec<u16>,
}

impl Plain {
    /// There is a port that hears both, and speaks this in plaintext.
    fn hears_both(&mut self, speaks: AppProtocol) {
        self.both = true;
        self.server_first |= speaks == AppProtocol::Tcp;
    }
}

/// Chains for the numbers on which plaintext is allowed: every Service that leads there lets it. Connections to such a number find no other
/// chains, so that those over mTLS are there once more.
fn plain_by_number(
    scope: Scope<'_>,
    ports: &Ports<'_>,
    made: &dyn Fn(&(u16, &'static str), &Port<'_>) -> Made,
    chains: &mut Vec<FilterChain>,
) -> Plain {
    let mut plain = Plain::default();
    let numbers: BTreeSet<u16> = ports.keys().map(|(number, _)| *number).collect();
    for number in numbers {
        let allows = |(service, port): &(&Document<ServiceSpec>, u16)| {
            scope.mesh.demanded(service, *port) != MtlsMode::Strict
        };
        if !calls_of(ports, number).iter().all(allows) {
            continue;
        }
        let here: Vec<_> =
            ports.range((number, "")..).take_while(|((other, _), _)| *other == number).collect();
        let over_tls = here.iter().filter(|(_, port)| !port.server_names.is_empty());
        let before = chains.len();
        chains.extend(over_tls.map(|(key, port)| {
            let mut chain = chain(scope, made(key, port), port);
            chain.name.push_str("_direct");
            at_port(chain, number)
        }));
        let only = chains.len() == before;
        if only {
            plain.only.push(number);
        }
        // Where several protocols are spoken, what understands least lets all of them through: TCP is the last.
        if let Some((key, port)) = here.last() {
            if !only {
                plain.hears_both(port.speaks);
            }
            let mut chain = at_port(plaintext_chain(made(key, port)), number);
            if port.speaks == AppProtocol::Tcp
                && let Some(found) = &mut chain.filter_chain_match
            {
                // The program's own TLS is what it is for the others: bytes.
                found.transport_protocol.clear();
            }
            chains.push(chain);
        }
    }
    plain
}

fn at_port(mut chain: FilterChain, number: u16) -> FilterChain {
    chain.filter_chain_match.get_or_insert_default().destination_port = parts::number(number.into());
    chain
}

/// Where a listener filter does not look.
fn without(ports: &[u16]) -> Option<ListenerFilterChainMatchPredicate> {
    let one = |port: &u16| {
        let start = i32::from(*port);
        let range = Int32Range { start, end: start + 1 };
        ListenerFilterChainMatchPredicate { rule: Some(Rule::DestinationPortRange(range)) }
    };
    match ports {
        [] => None,
        [port] => Some(one(port)),
        _ => {
            let rules = ports.iter().map(one).collect();
            Some(ListenerFilterChainMatchPredicate { rule: Some(Rule::OrMatch(MatchSet { rules })) })
        }
    }
}

/// The ports that Services lead to; `all`: also those whose callers go to the program itself (mTLS is Disabled), without server names.
fn ports<'a>(mesh: &'a Mesh, instance: &Instance, all: bool) -> Ports<'a> {
    let mut ports = Ports::new();
    for service in mesh.services_of(instance) {
        let (namespace, name) = names::of(service);
        // A gRPC library names the Service in SNI, and cannot name a port: it means the one that speaks gRPC.
        let mut plain = Some(names::aliases(namespace, name));
        for port in &service.spec.ports {
            let enforced = mesh.demanded(service, port.port) != MtlsMode::Disabled;
            if !enforced && !all {
                continue;
            }
            let Some(number) = target(port, &instance.workload) else { continue };
            let known = ports.entry((number, spoken(port.speaks()))).or_insert_with(|| Port {
                speaks: port.speaks(),
                service,
                calls: Vec::new(),
                server_names: Vec::new(),
            });
            known.calls.push((service, port.port));
            if !enforced {
                continue;
            }
            known.server_names.push(names::sni(namespace, name, port.port));
            if matches!(port.speaks(), AppProtocol::Grpc | AppProtocol::Http2) {
                known.server_names.extend(plain.take().into_iter().flatten());
            }
        }
    }
    ports
}

/// The ports that take plaintext: every Service that leads there lets them.
fn permissive<'p, 'a>(
    mesh: &'p Mesh,
    ports: &'p Ports<'a>,
) -> impl Iterator<Item = (&'p (u16, &'static str), &'p Port<'a>)> {
    ports.iter().filter(move |((number, _), _)| {
        calls_of(ports, *number)
            .iter()
            .all(|(service, port)| mesh.demanded(service, *port) == MtlsMode::Permissive)
    })
}

/// The port that plaintext is for. It names nobody, so that there can be one only.
fn plaintext<'p, 'a>(
    mesh: &'p Mesh,
    ports: &'p Ports<'a>,
) -> Option<(&'p (u16, &'static str), &'p Port<'a>)> {
    let mut permissive = permissive(mesh, ports);
    permissive.next().filter(|_| permissive.next().is_none())
}

/// How many ports of a workload plaintext would be for: [`plaintext`] is lost with more than one.
pub(crate) fn permissive_ports(mesh: &Mesh, instance: &Instance) -> usize {
    permissive(mesh, &ports(mesh, instance, false)).count()
}

/// Name, filters, and what is offered by ALPN.
type Made = (String, Vec<Filter>, &'static [&'static str]);

/// Over mTLS, found by the server name.
fn chain(scope: Scope<'_>, (name, filters, alpn): Made, port: &Port<'_>) -> FilterChain {
    FilterChain {
        name,
        filter_chain_match: Some(FilterChainMatch {
            server_names: port.server_names.clone(),
            ..FilterChainMatch::default()
        }),
        filters,
        transport_socket: Some(tls::downstream(scope.profile, alpn)),
        transport_socket_connect_timeout: parts::seconds(10),
        ..FilterChain::default()
    }
}

/// In plaintext.
fn plaintext_chain((name, filters, _): Made) -> FilterChain {
    FilterChain {
        name: format!("{name}_plaintext"),
        filter_chain_match: Some(FilterChainMatch {
            transport_protocol: "raw_buffer".into(),
            ..FilterChainMatch::default()
        }),
        filters,
        ..FilterChain::default()
    }
}

/// What a port's chains do. `calls` are all that lead to its number.
fn filters(
    scope: Scope<'_>,
    (number, suffix): (u16, &str),
    port: &Port<'_>,
    calls: &[(&Document<ServiceSpec>, u16)],
) -> Made {
    let cluster = names::local(number, suffix);
    let stat =
        if suffix.is_empty() { format!("inbound_{number}") } else { format!("inbound_{number}_{suffix}") };
    let http = port.speaks != AppProtocol::Tcp;
    let trust_domain = &scope.profile.trust_domain;
    let mut rules =
        authorization::rules(Subject { mesh: scope.mesh, trust_domain, http }, &port.calls, calls);
    let services: Vec<_> = calls.iter().map(|(service, _)| *service).collect();
    let tokens = jwt::filter(scope.mesh, &services);
    if !http {
        if tokens.is_some() {
            // The program believes that its tokens were looked at: nobody gets around that who is not allowed by name.
            rules.close();
        }
        let proxy = http::Tcp { name: &stat, idle: None, tries: 1, by_address: false };
        let mut filters = rules.network(&stat);
        filters.push(http::tcp_proxy(proxy, http::ClusterSpecifier::Cluster(cluster)));
        return (stat, filters, &[]);
    }
    let routes = RouteSpecifier::RouteConfig(everything::to("inbound", cluster));
    let limits = limit::filters(scope.mesh, &services);
    let faults = fault::filters(scope.mesh, &services);
    let filters = tokens.into_iter().chain(rules.http()).chain(limits).chain(faults).collect();
    let filter = http::connection_manager(&stat, Side::Inbound, routes, filters);
    (stat, vec![filter], &["h2", "http/1.1"])
}
