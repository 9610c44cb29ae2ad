//! A compiled route configuration: which virtual host a request belongs to, and which of its routes it takes.
//!
//! Both searches give Envoy's answer. Virtual hosts: exact domain, then the longest suffix wildcard (`*.example`), then the
//! longest prefix wildcard (`shop.*`), then `*`. Routes: the first that matches, in the order of the file. An index over
//! exact paths and prefixes leaves only the routes to look at that can match; it does not change which one is first.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt};
use http::HeaderMap;
use http::header::HeaderName;
use http::uri::Scheme;
use smallvec::SmallVec;

use super::action::{Route, port_start};
use super::matcher::{PathMatch, Subject};
use crate::config::names::ClusterId;
use crate::http::head::RequestHead;
use crate::policy::overrides::Overrides;

/// Up to this many routes are tried one after the other: cheaper than the index.
const LINEAR: usize = 12;

/// A compiled `envoy.config.route.v3.RouteConfiguration`.
#[derive(Default)]
pub struct RouteTable {
    /// `name`.
    pub name: Arc<str>,
    /// The virtual hosts in the order of the file.
    pub hosts: Box<[VirtualHost]>,
    /// Rules of the whole table.
    pub rules: TableRules,
    /// Every cluster that a route names, once, with the path of the first field that does. Names that
    /// `cluster_header` brings are not known here.
    pub clusters: Box<[ClusterUse]>,
    domains: Domains,
}

/// Rules of a route configuration.
#[derive(Debug, Default, Clone)]
pub struct TableRules {
    /// `ignore_port_in_host_matching`.
    pub ignore_port: bool,
    /// `vhost_header`: this header instead of Host chooses the virtual host.
    pub vhost_header: Option<HeaderName>,
    /// `ignore_path_parameters_in_path_matching`: paths are compared up to the first `;`.
    pub ignore_path_parameters: bool,
    /// `internal_only_headers`: removed from external requests by the listener.
    pub internal_only_headers: Box<[HeaderName]>,
    /// `validate_clusters`; None: true for an inline table, false for RDS.
    pub validate_clusters: Option<bool>,
}

/// A cluster that a table names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterUse {
    /// The cluster.
    pub id: ClusterId,
    /// Path of the field.
    pub path: Box<str>,
}

/// A compiled `VirtualHost`.
pub struct VirtualHost {
    /// `name`.
    pub name: Arc<str>,
    /// `domains`, lower-case.
    pub domains: Box<[Box<str>]>,
    /// `require_tls`.
    pub require_tls: RequireTls,
    /// `routes`, in the order of the file.
    pub routes: Box<[Route]>,
    index: Option<RouteIndex>,
}

/// `VirtualHost.TlsRequirementType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RequireTls {
    /// NONE.
    #[default]
    None,
    /// EXTERNAL_ONLY: requests that do not come from the mesh.
    External,
    /// ALL.
    All,
}

/// What is looked up.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The request. Its scheme decides whether it came over TLS.
    pub head: &'a RequestHead,
    /// It comes from the mesh or this machine (`x-envoy-internal: true` in Envoy).
    pub internal: bool,
    /// A random number for `runtime_fraction`.
    pub random: u64,
}

/// The answer of [`RouteTable::find`].
#[derive(Debug, Clone, Copy)]
pub enum Found<'t> {
    /// This route of this virtual host.
    Route(&'t VirtualHost, &'t Route),
    /// The virtual host wants TLS: answer 301 with [`tls_location`](super::action::tls_location).
    TlsRequired(&'t VirtualHost),
    /// The virtual host has no route for the request.
    NoRoute(&'t VirtualHost),
    /// No virtual host has the domain.
    NoVirtualHost,
}

impl<'t> Found<'t> {
    /// The virtual host.
    #[must_use]
    pub const fn virtual_host(&self) -> Option<&'t VirtualHost> {
        match *self {
            Self::Route(host, _) | Self::TlsRequired(host) | Self::NoRoute(host) => Some(host),
            Self::NoVirtualHost => None,
        }
    }

    /// What the route says about filters.
    #[must_use]
    pub const fn overrides(&self) -> Option<&Overrides> {
        match self {
            Self::Route(_, route) => Some(&route.overrides),
            Self::TlsRequired(_) | Self::NoRoute(_) | Self::NoVirtualHost => None,
        }
    }
}

impl RouteTable {
    /// A table of `hosts`. When two of them have the same domain, the first counts: the compiler refuses that.
    #[must_use]
    pub fn new(
        name: Arc<str>,
        hosts: Vec<VirtualHost>,
        rules: TableRules,
        clusters: Vec<ClusterUse>,
    ) -> Self {
        let domains = Domains::new(&hosts);
        Self { name, hosts: hosts.into(), rules, clusters: clusters.into(), domains }
    }

    /// The route of a request.
    #[must_use]
    pub fn find(&self, query: &Query<'_>) -> Found<'_> {
        let Some(host) = self.virtual_host(query.head) else { return Found::NoVirtualHost };
        let plaintext = query.head.scheme != Scheme::HTTPS;
        let tls = match host.require_tls {
            RequireTls::None => false,
            RequireTls::External => !query.internal,
            RequireTls::All => true,
        };
        if tls && plaintext {
            return Found::TlsRequired(host);
        }
        let subject = Subject::new(query.head, self.rules.ignore_path_parameters, query.random);
        match host.find(&subject) {
            Some(route) => Found::Route(host, route),
            None => Found::NoRoute(host),
        }
    }

    /// The virtual host of a request.
    #[must_use]
    pub fn virtual_host(&self, head: &RequestHead) -> Option<&VirtualHost> {
        let host = self.host_of(head).unwrap_or_default();
        let host = match port_start(host) {
            Some(colon) if self.rules.ignore_port => &host[..colon],
            _ => host,
        };
        let index = if host.bytes().any(|b| b.is_ascii_uppercase()) {
            self.domains.find(&host.to_ascii_lowercase())
        } else {
            self.domains.find(host)
        };
        self.hosts.get(index?)
    }

    fn host_of<'h>(&self, head: &'h RequestHead) -> Option<&'h str> {
        match &self.rules.vhost_header {
            Some(name) => first(&head.headers, name),
            None => head.authority.as_ref().map(|a| a.as_str()),
        }
    }
}

fn first<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

impl fmt::Debug for RouteTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteTable")
            .field("name", &self.name)
            .field("rules", &self.rules)
            .field("clusters", &self.clusters)
            .field("hosts", &self.hosts)
            .finish()
    }
}

impl VirtualHost {
    /// A virtual host; `domains` in lower case.
    #[must_use]
    pub fn new(name: Arc<str>, domains: Vec<Box<str>>, require_tls: RequireTls, routes: Vec<Route>) -> Self {
        let index = (routes.len() > LINEAR).then(|| RouteIndex::new(&routes));
        Self { name, domains: domains.into(), require_tls, routes: routes.into(), index }
    }

    /// The first route that matches.
    #[must_use]
    pub fn find(&self, subject: &Subject<'_>) -> Option<&Route> {
        match &self.index {
            Some(index) => index.find(&self.routes, subject),
            None => self.routes.iter().find(|r| r.matcher.is_match(subject)),
        }
    }
}

impl fmt::Debug for VirtualHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualHost")
            .field("name", &self.name)
            .field("domains", &self.domains)
            .field("require_tls", &self.require_tls)
            .field("routes", &self.routes)
            .finish()
    }
}

/// Domain -> index of its virtual host.
#[derive(Default)]
struct Domains {
    exact: HashMap<Box<str>, usize>,
    /// `*suffix`, longest first.
    suffixes: Wildcards,
    /// `prefix*`, longest first.
    prefixes: Wildcards,
    any: Option<usize>,
}

/// Wildcards by the length of their fixed part.
type Wildcards = Box<[(usize, HashMap<Box<str>, usize>)]>;

impl Domains {
    fn new(hosts: &[VirtualHost]) -> Self {
        let mut exact = HashMap::new();
        let (mut suffixes, mut prefixes) = (Vec::new(), Vec::new());
        let mut any = None;
        for (index, host) in hosts.iter().enumerate() {
            for domain in &host.domains {
                if &**domain == "*" {
                    any.get_or_insert(index);
                } else if let Some(suffix) = domain.strip_prefix('*') {
                    suffixes.push((suffix, index));
                } else if let Some(prefix) = domain.strip_suffix('*') {
                    prefixes.push((prefix, index));
                } else {
                    exact.entry(domain.clone()).or_insert(index);
                }
            }
        }
        Self { exact, suffixes: wildcards(suffixes), prefixes: wildcards(prefixes), any }
    }

    fn find(&self, host: &str) -> Option<usize> {
        if let Some(index) = self.exact.get(host) {
            return Some(*index);
        }
        // A wildcard stands for at least one character. Names are ASCII, but a header may hold anything.
        let by_suffix = self.suffixes.iter().filter(|(len, _)| *len < host.len());
        for (len, map) in by_suffix {
            if let Some(index) = host.get(host.len() - len..).and_then(|tail| map.get(tail)) {
                return Some(*index);
            }
        }
        for (len, map) in self.prefixes.iter().filter(|(len, _)| *len < host.len()) {
            if let Some(index) = host.get(..*len).and_then(|head| map.get(head)) {
                return Some(*index);
            }
        }
        self.any
    }
}

fn wildcards(mut list: Vec<(&str, usize)>) -> Wildcards {
    list.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
    let mut out: Vec<(usize, HashMap<Box<str>, usize>)> = Vec::new();
    for (text, index) in list {
        if out.last().is_none_or(|(len, _)| *len != text.len()) {
            out.push((text.len(), HashMap::new()));
        }
        if let Some((_, map)) = out.last_mut() {
            map.entry(text.into()).or_insert(index);
        }
    }
    out.into()
}

/// Positions of routes, ascending.
type Positions = SmallVec<[u32; 2]>;

/// Routes by their prefix, all of one length.
type ByPrefix = HashMap<Box<[u8]>, Positions>;

/// Which routes of a virtual host can match a path.
struct RouteIndex {
    /// Case-sensitive exact paths.
    exact: HashMap<Box<str>, Positions>,
    /// Case-sensitive prefixes by length, shortest first.
    prefixes: Box<[(usize, ByPrefix)]>,
    /// All others.
    rest: Positions,
}

impl RouteIndex {
    fn new(routes: &[Route]) -> Self {
        let mut exact: HashMap<Box<str>, Positions> = HashMap::new();
        let mut by_len: BTreeMap<usize, ByPrefix> = BTreeMap::new();
        let mut rest = Positions::new();
        for (position, route) in (0u32..).zip(routes) {
            match &route.matcher.path {
                PathMatch::Exact { text, ignore_case: false } => {
                    exact.entry(text.clone()).or_default().push(position);
                }
                PathMatch::Prefix { text, ignore_case: false }
                | PathMatch::SeparatedPrefix { text, ignore_case: false } => {
                    let map = by_len.entry(text.len()).or_default();
                    map.entry(text.as_bytes().into()).or_default().push(position);
                }
                _ => rest.push(position),
            }
        }
        Self { exact, prefixes: by_len.into_iter().collect(), rest }
    }

    /// Merges the lists of candidates by position, so that the order of the file stands.
    fn find<'r>(&self, routes: &'r [Route], subject: &Subject<'_>) -> Option<&'r Route> {
        let mut lists: SmallVec<[&[u32]; 12]> = SmallVec::new();
        lists.extend(self.exact.get(subject.path).map(|l| &**l));
        for (len, map) in &self.prefixes {
            let Some(head) = subject.path.as_bytes().get(..*len) else { break };
            lists.extend(map.get(head).map(|l| &**l));
        }
        if !self.rest.is_empty() {
            lists.push(&self.rest);
        }
        let matches = |position| routes.get(position as usize).is_some_and(|r| r.matcher.is_match(subject));
        routes.get(first_in_order(&mut lists, matches)? as usize)
    }
}

/// The first position in `lists`, each of them ascending, for which `test` is true. A position may be in several lists.
pub(crate) fn first_in_order(lists: &mut [&[u32]], test: impl Fn(u32) -> bool) -> Option<u32> {
    let mut tried = None;
    loop {
        let next = lists.iter_mut().min_by_key(|l| l.first().copied().unwrap_or(u32::MAX))?;
        let (position, others) = next.split_first()?;
        *next = others;
        if tried.replace(*position) != Some(*position) && test(*position) {
            return Some(*position);
        }
    }
}

#[cfg(test)]
mod tests;
