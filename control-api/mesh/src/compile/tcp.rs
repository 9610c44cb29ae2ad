//! TCPRoutes and TLSRoutes of a Service's port -> filter chains.

use std::collections::BTreeSet;

use remora_xds::pb::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch};
use remora_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::weighted_cluster::ClusterWeight;
use remora_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, WeightedCluster,
};

use super::http::Tcp;
use super::route::Routes;
use super::{http, names};
use crate::document::{BackendRef, TcpRule};
use crate::kinds::Kind;
use crate::mesh::Mesh;
use crate::name::{Key, Name};

/// A rule that holds, with the server names that it holds for.
struct Rule<'a> {
    route: Key,
    /// None: all of them.
    names: Option<Vec<String>>,
    backends: &'a [BackendRef],
}

/// The rules that hold, the oldest route first. A server name belongs to the first that has it.
fn rules(routes: &Routes) -> Vec<Rule<'_>> {
    if routes.tls.is_empty() {
        let oldest = routes.tcp.iter().min_by(|a, b| a.age().cmp(&b.age()));
        return oldest
            .map(|document| Rule {
                route: Key::new(Kind::TcpRoute, document.name()),
                names: None,
                backends: first(&document.spec.rules),
            })
            .into_iter()
            .collect();
    }
    let mut documents: Vec<_> = routes.tls.iter().collect();
    documents.sort_by(|a, b| a.age().cmp(&b.age()));
    let mut taken: BTreeSet<&str> = BTreeSet::new();
    let mut rules = Vec::new();
    for document in documents {
        let hostnames = &document.spec.hostnames;
        let free: Vec<_> = hostnames.iter().filter(|name| taken.insert(name)).cloned().collect();
        // The empty name stands for a route without names.
        if (hostnames.is_empty() && !taken.insert("")) || (!hostnames.is_empty() && free.is_empty()) {
            continue;
        }
        rules.push(Rule {
            route: Key::new(Kind::TlsRoute, document.name()),
            names: (!hostnames.is_empty()).then_some(free),
            backends: first(&document.spec.rules),
        });
    }
    rules
}

fn first(rules: &[TcpRule]) -> &[BackendRef] {
    rules.first().map_or(&[], |rule| &rule.backend_refs)
}

/// The ports that routes lead to: `own` when there are none.
pub(super) fn backends(mesh: &Mesh, routes: &Routes, own: (Name, u16)) -> BTreeSet<(Name, u16)> {
    let rules = rules(routes);
    if rules.is_empty() {
        return BTreeSet::from([own]);
    }
    let used = rules.iter().flat_map(|rule| rule.backends.iter().map(move |backend| (rule, backend)));
    used.filter(|(_, backend)| backend.weight > 0)
        .filter_map(|(rule, backend)| mesh.backend(&rule.route, backend.to()))
        .collect()
}

/// Whether some connections lead nowhere.
pub(super) fn refuses(mesh: &Mesh, routes: &Routes) -> bool {
    rules(routes).iter().any(|rule| {
        let mut used = rule.backends.iter().filter(|backend| backend.weight > 0).peekable();
        used.peek().is_none() || used.any(|backend| mesh.backend(&rule.route, backend.to()).is_none())
    })
}

/// The chains of the listener for calls to a port: connections go to `own` when there are no routes.
pub(super) fn chains(mesh: &Mesh, routes: &Routes, proxy: Tcp<'_>, own: String) -> Vec<FilterChain> {
    let rules = rules(routes);
    if rules.is_empty() {
        let filter = http::tcp_proxy(proxy, ClusterSpecifier::Cluster(own));
        return vec![FilterChain { filters: vec![filter], ..FilterChain::default() }];
    }
    let chain = |rule: Rule<'_>| FilterChain {
        name: format!("{}.{}", rule.route.name.namespace, rule.route.name.name),
        filter_chain_match: rule
            .names
            .as_ref()
            .map(|names| FilterChainMatch { server_names: names.clone(), ..FilterChainMatch::default() }),
        filters: vec![forward(mesh, &rule, proxy)],
        ..FilterChain::default()
    };
    rules.into_iter().map(chain).collect()
}

/// Clusters of connections that say nothing about themselves, with their weights: `own` when there are no routes. None: they are led by what TLS says.
pub(super) fn split(mesh: &Mesh, routes: &Routes, own: String) -> Option<Vec<(String, u32)>> {
    if !routes.tls.is_empty() {
        return None;
    }
    Some(rules(routes).first().map_or_else(|| vec![(own, 1)], |rule| shares(mesh, rule)))
}

/// Clusters of the backends of a rule, with their weights. The share of those that do not exist is closed.
fn shares(mesh: &Mesh, rule: &Rule<'_>) -> Vec<(String, u32)> {
    let target = |backend: &BackendRef| {
        let found = mesh.backend(&rule.route, backend.to());
        found.map_or_else(
            || names::BLACK_HOLE.to_owned(),
            |(name, port)| names::cluster(&name.namespace, &name.name, port),
        )
    };
    let used = rule.backends.iter().filter(|backend| backend.weight > 0);
    let mut shares: Vec<_> = used.map(|backend| (target(backend), backend.weight)).collect();
    if shares.is_empty() {
        shares.push((names::BLACK_HOLE.into(), 1));
    }
    shares
}

/// To the backends of a rule, by weight.
fn forward(mesh: &Mesh, rule: &Rule<'_>, proxy: Tcp<'_>) -> Filter {
    let mut shares = shares(mesh, rule);
    let specifier = if let [(only, _)] = &mut shares[..] {
        ClusterSpecifier::Cluster(std::mem::take(only))
    } else {
        let weighted = shares.into_iter();
        let clusters =
            weighted.map(|(name, weight)| ClusterWeight { name, weight, ..ClusterWeight::default() });
        ClusterSpecifier::WeightedClusters(WeightedCluster { clusters: clusters.collect() })
    };
    http::tcp_proxy(proxy, specifier)
}
