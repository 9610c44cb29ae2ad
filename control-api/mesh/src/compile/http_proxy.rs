//! The HTTP proxy of a sidecar (`httpProxy` of a Workload): programs whose traffic is not intercepted call Services by name, those of HTTP with
//! absolute URLs (RFC 9112 section 3.2.2), others by CONNECT.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use remora_xds::any;
use remora_xds::pb::envoy::config::core::v3::data_source::Specifier;
use remora_xds::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use remora_xds::pb::envoy::config::core::v3::{
    DataSource, HeaderValue, HeaderValueOption, TrafficDirection,
};
use remora_xds::pb::envoy::config::listener::v3::{FilterChain, Listener};
use remora_xds::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use remora_xds::pb::envoy::config::route::v3::route::Action;
use remora_xds::pb::envoy::config::route::v3::route_action::upgrade_config::ConnectConfig;
use remora_xds::pb::envoy::config::route::v3::route_action::{ClusterSpecifier, UpgradeConfig};
use remora_xds::pb::envoy::config::route::v3::route_match::{ConnectMatcher, PathSpecifier};
use remora_xds::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use remora_xds::pb::envoy::config::route::v3::{
    DirectResponseAction, HeaderMatcher, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
    WeightedCluster,
};
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::Rds;
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, PathWithEscapedSlashesAction, UpgradeConfig as ListenerUpgrade,
};
use remora_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use remora_xds::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};

use super::http::{self, RouteSpecifier, Side};
use super::route::Routes;
use super::service::Callers;
use super::{
    Listening, Outbound, OutboundTraffic, Scope, cluster, key_of, names, parts, retry, session, tcp,
};
use crate::document::{AppProtocol, TrafficPolicySpec};
use crate::kinds::Kind;
use crate::name::Key;
use crate::resource::Resource;

/// Where a program finds Services whose port is in no URL.
const HTTP_PORT: u16 = 80;

/// IPv4 addresses but 0.0.0.0/8 and 127.0.0.0/8: through those the proxy would call itself, and so on.
const IPV4: &str = r"([1-9][0-9]?|1[013-9][0-9]|12[0-689]|2[0-9][0-9])(\.[0-9]{1,3}){3}";
/// IPv6 addresses whose first group has four digits, so that it is none of loopback, none that stands for an IPv4 address, and not the unspecified one.
const IPV6: &str = r"\[[1-9a-fA-F][0-9a-fA-F]{3}:[0-9a-fA-F:]+\]";

/// What is answered to whoever asks in a way that leads nowhere.
const NOT_BY_CONNECT: (u32, &str) =
    (405, "this port speaks HTTP: ask the proxy for an http:// URL, without CONNECT\n");
const ONLY_BY_CONNECT: (u32, &str) =
    (405, "this port does not speak HTTP: ask the proxy for it with CONNECT\n");
const BY_SERVER_NAME: (u32, &str) = (
    501,
    "connections to this port are led by their TLS server name (TLSRoute), which the HTTP proxy does not look at\n",
);
const NOBODY: (u32, &str) = (403, "no Service that this workload calls (REGISTRY_ONLY)\n");
const UNKNOWN_NAME: (u32, &str) = (
    502,
    "no Service that this workload calls; others are reached here by IP address only, names are for no_proxy\n",
);

/// The proxy of one workload in the making.
pub(super) struct HttpProxy<'a> {
    scope: Scope<'a>,
    /// The workload.
    about: Key,
    documents: BTreeSet<Key>,
    hosts: Vec<VirtualHost>,
    /// Domains that some host has: of two Services with one address the first has it.
    taken: BTreeSet<String>,
}

impl<'a> HttpProxy<'a> {
    /// One that knows nobody.
    pub(super) fn new(scope: Scope<'a>, about: Key) -> Self {
        Self { scope, about, documents: BTreeSet::new(), hosts: Vec::new(), taken: BTreeSet::new() }
    }

    /// Makes a Service's port known, by what its callers get.
    pub(super) fn add(&mut self, to: &Outbound<'_>, callers: &Callers, attached: &Routes) {
        let (namespace, name) = names::of(to.service);
        let domains = self.domains(to);
        if domains.is_empty() {
            return;
        }
        let routes = match &callers.routes {
            Some(table) if to.port.speaks() != AppProtocol::Tcp => {
                self.documents.extend(table.documents.iter().cloned());
                let mut routes = vec![answer(connect(), NOT_BY_CONNECT)];
                routes.extend(of_service(table));
                routes
            }
            _ => {
                let mesh = self.scope.mesh;
                let policy = mesh.policy(to.service);
                self.documents.insert(key_of(to.service));
                self.documents.extend(policy.map(|policy| Key::new(Kind::TrafficPolicy, policy.name())));
                self.documents.extend(attached.tcp_keys());
                let own = names::cluster(namespace, name, to.port.port);
                match tcp::split(mesh, attached, own) {
                    Some(shares) => {
                        let tunnel = tunnel(connect(), shares, policy.map(|policy| &policy.spec));
                        vec![tunnel, answer(anything(), ONLY_BY_CONNECT)]
                    }
                    None => vec![answer(connect(), BY_SERVER_NAME), answer(anything(), ONLY_BY_CONNECT)],
                }
            }
        };
        let name = names::outbound(namespace, name, to.port.port);
        self.hosts.push(VirtualHost { name, domains, routes, ..VirtualHost::default() });
    }

    /// What a Service's port is called in URLs: every name that gRPC libraries and cluster DNS know, the short one in its own namespace, and its
    /// addresses.
    fn domains(&mut self, to: &Outbound<'_>) -> Vec<String> {
        let ((namespace, name), port) = (names::of(to.service), to.port.port);
        let short = (*namespace == *self.about.name.namespace).then(|| name.to_owned());
        let vips = to.service.spec.vips().into_iter().map(|ip| match ip {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        });
        let hosts = short.into_iter().chain(names::aliases(namespace, name)).chain(vips);
        let all = hosts.flat_map(|host| {
            let with_port = format!("{host}:{port}");
            [with_port].into_iter().chain((port == HTTP_PORT).then_some(host))
        });
        all.filter(|domain| self.taken.insert(domain.clone())).collect()
    }

    /// The listener on `number` of loopback, its routes, and the cluster of everybody else.
    pub(super) fn resources(mut self, number: u16) -> Vec<Arc<Resource>> {
        let others = self.scope.profile.outbound_traffic;
        let routes = match others {
            OutboundTraffic::AllowAny => to_addresses(),
            OutboundTraffic::RegistryOnly => vec![answer(connect(), NOBODY), answer(anything(), NOBODY)],
        };
        self.hosts.push(VirtualHost {
            name: "others".into(),
            domains: vec!["*".into()],
            routes,
            ..VirtualHost::default()
        });
        let number = if self.scope.profile.listening == Listening::Ephemeral { 0 } else { number };
        let table = RouteConfiguration {
            name: names::HTTP_PROXY.into(),
            virtual_hosts: self.hosts,
            // What the program and its proxy say to each other (RFC 9110 sections 11.7.1 and 11.7.2).
            request_headers_to_remove: vec!["proxy-authorization".into()],
            response_headers_to_remove: vec!["proxy-authenticate".into()],
            ..RouteConfiguration::default()
        };
        self.documents.remove(&self.about);
        let documents = std::iter::once(self.about.clone()).chain(self.documents).collect();
        let mut all = vec![listener(number, self.about.clone()), Resource::routes(&table, documents)];
        if others == OutboundTraffic::AllowAny {
            all.push(cluster::by_authority(self.about));
        }
        all
    }
}

fn listener(number: u16, about: Key) -> Arc<Resource> {
    let rds = Rds { config_source: Some(parts::ads()), route_config_name: names::HTTP_PROXY.into() };
    let mut manager = http::manager(names::HTTP_PROXY, Side::Outbound, RouteSpecifier::Rds(rds), Vec::new());
    // A CONNECT is a connection of its own.
    manager.codec_type = CodecType::Http1.into();
    // A name with a dot at its end is absolute, as all of ours are.
    manager.strip_trailing_host_dot = true;
    // Paths are those of whom the program calls, strangers too, to whom `//` is not `/`. Sidecars of Services normalise them before they judge.
    manager.normalize_path = parts::flag(false);
    manager.merge_slashes = false;
    manager.path_with_escaped_slashes_action = PathWithEscapedSlashesAction::KeepUnchanged.into();
    manager
        .upgrade_configs
        .push(ListenerUpgrade { upgrade_type: "CONNECT".into(), ..ListenerUpgrade::default() });
    let listener = Listener {
        name: names::HTTP_PROXY.into(),
        address: Some(parts::address(SocketAddr::from((Ipv4Addr::LOCALHOST, number)))),
        filter_chains: vec![FilterChain {
            filters: vec![http::of_manager(&manager)],
            ..FilterChain::default()
        }],
        per_connection_buffer_limit_bytes: parts::number(64 * 1024),
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Listener::default()
    };
    Resource::listener(&listener, vec![about])
}

/// The routes of a Service's port. What they say to filters is left out: the filters are those of one Service's listener.
fn of_service(table: &Resource) -> Vec<Route> {
    let table: RouteConfiguration = any::unpack(&table.body).unwrap_or_default();
    let mut routes: Vec<_> = table.virtual_hosts.into_iter().flat_map(|host| host.routes).collect();
    for route in &mut routes {
        route.typed_per_filter_config.clear();
    }
    routes
}

/// Everybody else, by address; without a port it is that of HTTP.
fn to_addresses() -> Vec<Route> {
    let whole = format!("({IPV4}|{IPV6}):[0-9]{{1,5}}");
    let host = format!("{IPV4}|{IPV6}");
    let to = vec![(names::HTTP_PASSTHROUGH.to_owned(), 1)];
    let forward = RouteAction {
        cluster_specifier: Some(clusters(to.clone())),
        timeout: parts::seconds(0),
        max_stream_duration: Some(parts::by_the_caller()),
        ..RouteAction::default()
    };
    let by_url = |regex: &str, address: &str| Route {
        r#match: Some(RouteMatch { headers: vec![authority(regex)], ..anything() }),
        action: Some(Action::Route(forward.clone())),
        request_headers_to_add: vec![destination(address)],
        ..Route::default()
    };
    let by_connect = RouteMatch { headers: vec![authority(&whole)], ..connect() };
    vec![
        Route {
            request_headers_to_add: vec![destination("%REQ(:AUTHORITY)%")],
            ..tunnel(by_connect, to, None)
        },
        by_url(&whole, "%REQ(:AUTHORITY)%"),
        by_url(&host, "%REQ(:AUTHORITY)%:80"),
        answer(connect(), UNKNOWN_NAME),
        answer(anything(), UNKNOWN_NAME),
    ]
}

/// A CONNECT whose bytes go to clusters, by weight, and as `policy` has it for connections.
fn tunnel(matched: RouteMatch, to: Vec<(String, u32)>, policy: Option<&TrafficPolicySpec>) -> Route {
    let ends = UpgradeConfig {
        upgrade_type: "CONNECT".into(),
        connect_config: Some(ConnectConfig::default()),
        ..UpgradeConfig::default()
    };
    let action = RouteAction {
        cluster_specifier: Some(clusters(to)),
        timeout: parts::seconds(0),
        upgrade_configs: vec![ends],
        idle_timeout: policy.and_then(|said| said.timeouts.idle).map(|idle| parts::duration(idle.0)),
        retry_policy: Some(retry::of_connections(policy.map(|said| &said.retries))),
        hash_policy: policy
            .map_or_else(Vec::new, |said| session::of_connections(&said.load_balancing.hash_on)),
        ..RouteAction::default()
    };
    Route { r#match: Some(matched), action: Some(Action::Route(action)), ..Route::default() }
}

fn clusters(mut to: Vec<(String, u32)>) -> ClusterSpecifier {
    if let [(only, _)] = &mut to[..] {
        return ClusterSpecifier::Cluster(std::mem::take(only));
    }
    let weighted = to.into_iter().map(|(name, weight)| ClusterWeight {
        name,
        weight: parts::number(weight),
        ..ClusterWeight::default()
    });
    ClusterSpecifier::WeightedClusters(WeightedCluster {
        clusters: weighted.collect(),
        ..WeightedCluster::default()
    })
}

/// Where an ORIGINAL_DST cluster finds its destination.
fn destination(address: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: "x-envoy-original-dst-host".into(),
            value: address.into(),
            ..HeaderValue::default()
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    }
}

fn authority(regex: &str) -> HeaderMatcher {
    let regex = RegexMatcher { regex: regex.into(), ..RegexMatcher::default() };
    let matcher =
        StringMatcher { match_pattern: Some(MatchPattern::SafeRegex(regex)), ..StringMatcher::default() };
    HeaderMatcher {
        name: ":authority".into(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(matcher)),
        ..HeaderMatcher::default()
    }
}

fn connect() -> RouteMatch {
    RouteMatch {
        path_specifier: Some(PathSpecifier::ConnectMatcher(ConnectMatcher {})),
        ..RouteMatch::default()
    }
}

fn anything() -> RouteMatch {
    RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".into())), ..RouteMatch::default() }
}

fn answer(matched: RouteMatch, (status, text): (u32, &str)) -> Route {
    let body =
        DataSource { specifier: Some(Specifier::InlineString(text.to_owned())), ..DataSource::default() };
    let action = DirectResponseAction { status, body: Some(body), ..DirectResponseAction::default() };
    Route { r#match: Some(matched), action: Some(Action::DirectResponse(action)), ..Route::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_of_the_machine_itself_is_called() {
        let regex = regex::Regex::new(&format!("^(?:{IPV4}|{IPV6})$")).unwrap();
        for other in [
            "9.9.9.9",
            "10.0.0.1",
            "100.64.0.1",
            "126.1.2.3",
            "128.0.0.1",
            "192.0.2.7",
            "[fd00:96::7]",
            "[2001:db8::1]",
        ] {
            assert!(regex.is_match(other), "{other}");
        }
        let own = [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[0:0:0:0:0:0:0:1]",
            "[0000::1]",
        ];
        for bad in own.into_iter().chain(["localhost", "web", "010.0.0.1", "fd00:96::7", "[64:ff9b::1]"]) {
            assert!(!regex.is_match(bad), "{bad}");
        }
    }
}
