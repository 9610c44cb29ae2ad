//! Picks the filter chain of a connection (Envoy `FilterChainMatch`).
//!
//! Nine criteria in Envoy's order, each a level of a tree. At every level the most specific entry that the connection
//! satisfies is followed, and only that one: a dead end further down does not come back to a less specific entry.

use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};

use foldhash::{HashMap, HashMapExt};
use ipnet::IpNet;

/// `transport_protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// `raw_buffer`: no TLS was detected, or not looked for.
    RawBuffer,
    /// `tls`.
    Tls,
}

/// `source_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SourceType {
    /// ANY.
    #[default]
    Any,
    /// SAME_IP_OR_LOOPBACK.
    Local,
    /// EXTERNAL.
    External,
}

/// The match of one chain. What is empty or None asks for nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChainMatch {
    /// `destination_port`.
    pub destination_port: Option<u16>,
    /// `prefix_ranges`.
    pub destination: Vec<IpNet>,
    /// `server_names` in lower case: a name, or `*.` and a suffix.
    pub server_names: Vec<String>,
    /// `transport_protocol`.
    pub transport: Option<Transport>,
    /// `application_protocols`.
    pub application_protocols: Vec<String>,
    /// `direct_source_prefix_ranges`.
    pub direct_source: Vec<IpNet>,
    /// `source_type`.
    pub source_type: SourceType,
    /// `source_prefix_ranges`.
    pub source: Vec<IpNet>,
    /// `source_ports`.
    pub source_ports: Vec<u16>,
}

/// What is known of a connection when its chain is picked.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionFacts<'a> {
    /// Original destination, else the local address.
    pub destination: SocketAddr,
    /// The client: by the PROXY protocol when there is one, else the peer of the socket.
    pub source: SocketAddr,
    /// The peer of the socket.
    pub direct_source: SocketAddr,
    /// TLS or not.
    pub transport: Transport,
    /// Server name of the ClientHello in lower case.
    pub server_name: Option<&'a str>,
    /// ALPN of the ClientHello, or the one of `http/1.0`, `http/1.1` and `h2c` that `http_inspector` found.
    pub application_protocols: &'a [&'a [u8]],
}

/// Why the matches of a listener cannot be compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainMatchError {
    /// Two chains ask for the same: (first, second) of the list.
    Overlap(usize, usize),
    /// The lists of this chain multiply to more than a million combinations.
    TooMany(usize),
}

const MAX_COMBINATIONS: usize = 1 << 20;

type SourcePorts = HashMap<u16, u32>;
type Sources = ByPrefix<SourcePorts>;
type SourceTypes = [Option<Box<Sources>>; 3];
type DirectSources = ByPrefix<SourceTypes>;
type Protocols = HashMap<Box<[u8]>, DirectSources>;
type Transports = HashMap<Option<Transport>, Protocols>;
type ServerNames = HashMap<Box<str>, Transports>;
type Destinations = ByPrefix<ServerNames>;

/// Compiled filter chain matches of one listener.
#[derive(Debug, Default)]
pub struct ChainMatcher {
    /// 0 stands for no destination port asked for.
    ports: HashMap<u16, Destinations>,
    /// The chain of a connection that is not in there.
    default: Option<usize>,
}

impl ChainMatcher {
    /// Compiles the matches of a listener; `default` is the index of its default chain.
    ///
    /// # Errors
    /// Two matches overlap, or one is too large.
    pub fn new(matches: &[ChainMatch], default: Option<usize>) -> Result<Self, ChainMatchError> {
        if let [only] = matches
            && *only == ChainMatch::default()
        {
            // It takes every connection. The tables would say so in eight kilobytes, for each listener of a mesh.
            return Ok(Self { default: Some(0), ..Self::default() });
        }
        let mut matcher = Self { default, ..Self::default() };
        let mut combinations = 0_usize;
        for (index, chain) in matches.iter().enumerate() {
            combinations = combinations.saturating_add(chain.combinations());
            if combinations > MAX_COMBINATIONS {
                return Err(ChainMatchError::TooMany(index));
            }
            matcher.add(index, chain)?;
        }
        Ok(matcher)
    }

    /// The index of the chain for a connection. None: there is none, and the connection is closed.
    #[must_use]
    pub fn find(&self, facts: &ConnectionFacts<'_>) -> Option<usize> {
        let port = facts.destination.port();
        // As in Envoy: when a chain asks for this port, chains without a port are out.
        let destinations = self.ports.get(&port).filter(|_| port != 0).or_else(|| self.ports.get(&0));
        let found = destinations.and_then(|d| by_destination(d, facts));
        found.map(|chain| chain as usize).or(self.default)
    }

    fn add(&mut self, index: usize, chain: &ChainMatch) -> Result<(), ChainMatchError> {
        let number = u32::try_from(index).unwrap_or(u32::MAX);
        let destinations = self.ports.entry(chain.destination_port.unwrap_or(0)).or_default();
        let names = or_empty(&chain.server_names);
        for destination in or_any(&chain.destination) {
            for name in &names {
                let transports = destinations.entry(destination).entry(name_key(name)).or_default();
                let protocols = transports.entry(chain.transport).or_default();
                for protocol in or_empty(&chain.application_protocols) {
                    let direct = protocols.entry(protocol.as_bytes().into()).or_default();
                    for source in or_any(&chain.direct_source) {
                        let types = direct.entry(source);
                        let sources = types[chain.source_type as usize].get_or_insert_default();
                        add_sources(sources, chain, number)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn add_sources(sources: &mut Sources, chain: &ChainMatch, number: u32) -> Result<(), ChainMatchError> {
    let ports = if chain.source_ports.is_empty() { &[0][..] } else { &chain.source_ports };
    for source in or_any(&chain.source) {
        let by_port = sources.entry(source);
        for port in ports {
            let first = *by_port.entry(*port).or_insert(number);
            if first != number {
                return Err(ChainMatchError::Overlap(first as usize, number as usize));
            }
        }
    }
    Ok(())
}

fn by_destination(destinations: &Destinations, facts: &ConnectionFacts<'_>) -> Option<u32> {
    let names = destinations.find(facts.destination.ip())?;
    let transports = by_name(names, facts.server_name.unwrap_or_default())?;
    let protocols = transports.get(&Some(facts.transport)).or_else(|| transports.get(&None))?;
    let mut offered = facts.application_protocols.iter();
    let direct = offered.find_map(|p| protocols.get(*p)).or_else(|| protocols.get(&b""[..]))?;
    let types = direct.find(facts.direct_source.ip())?;
    let kind = if is_local(facts) { SourceType::Local } else { SourceType::External };
    let sources = types[kind as usize].as_ref().or(types[SourceType::Any as usize].as_ref())?;
    let ports = sources.find(facts.source.ip())?;
    ports.get(&facts.source.port()).or_else(|| ports.get(&0)).copied()
}

/// `www.example.com`, then `.example.com`, then `.com`, then chains that ask for no name.
fn by_name<'a>(names: &'a ServerNames, name: &str) -> Option<&'a Transports> {
    if let Some(exact) = names.get(name) {
        return Some(exact);
    }
    let dots = memchr::memchr_iter(b'.', name.as_bytes()).filter(|at| *at > 0 && at + 1 < name.len());
    for at in dots {
        if let Some(wildcard) = names.get(&name[at..]) {
            return Some(wildcard);
        }
    }
    names.get("")
}

/// `*.example.com` is kept as `.example.com`, which no server name is.
fn name_key(name: &str) -> Box<str> {
    name.strip_prefix('*').unwrap_or(name).into()
}

fn is_local(facts: &ConnectionFacts<'_>) -> bool {
    let source = facts.source.ip().to_canonical();
    source.is_loopback() || source == facts.destination.ip().to_canonical()
}

impl ChainMatch {
    fn combinations(&self) -> usize {
        let lists = [
            or_any(&self.destination).len(),
            self.server_names.len(),
            self.application_protocols.len(),
            or_any(&self.direct_source).len(),
            or_any(&self.source).len(),
            self.source_ports.len(),
        ];
        lists.iter().fold(1, |product: usize, n| product.saturating_mul((*n).max(1)))
    }
}

fn or_empty(list: &[String]) -> Vec<&str> {
    if list.is_empty() { vec![""] } else { list.iter().map(String::as_str).collect() }
}

/// No prefix asked for is every address of both families.
fn or_any(list: &[IpNet]) -> Vec<IpNet> {
    if !list.is_empty() {
        return list.iter().map(IpNet::trunc).collect();
    }
    vec![IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())]
}

/// Longest-prefix match: one table per prefix length that occurs, longest first.
#[derive(Debug)]
struct ByPrefix<T> {
    v4: Vec<(u8, HashMap<u32, T>)>,
    v6: Vec<(u8, HashMap<u128, T>)>,
}

impl<T> Default for ByPrefix<T> {
    fn default() -> Self {
        Self { v4: Vec::new(), v6: Vec::new() }
    }
}

impl<T: Default> ByPrefix<T> {
    fn entry(&mut self, net: IpNet) -> &mut T {
        match net {
            IpNet::V4(net) => slot(&mut self.v4, net.prefix_len(), net.network().to_bits()),
            IpNet::V6(net) => slot(&mut self.v6, net.prefix_len(), net.network().to_bits()),
        }
    }

    fn find(&self, address: IpAddr) -> Option<&T> {
        match address.to_canonical() {
            IpAddr::V4(ip) => self.v4.iter().find_map(|(length, table)| {
                table.get(&(ip.to_bits() & u32::MAX.checked_shl(32 - u32::from(*length)).unwrap_or(0)))
            }),
            IpAddr::V6(ip) => self.v6.iter().find_map(|(length, table)| {
                table.get(&(ip.to_bits() & u128::MAX.checked_shl(128 - u32::from(*length)).unwrap_or(0)))
            }),
        }
    }
}

fn slot<K: Eq + Hash, T: Default>(tables: &mut Vec<(u8, HashMap<K, T>)>, length: u8, key: K) -> &mut T {
    let at = match tables.binary_search_by(|(have, _)| length.cmp(have)) {
        Ok(at) => at,
        Err(at) => {
            tables.insert(at, (length, HashMap::new()));
            at
        }
    };
    tables[at].1.entry(key).or_default()
}

#[cfg(test)]
#[path = "chain_match_tests.rs"]
mod tests;
