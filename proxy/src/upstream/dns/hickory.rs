//! The resolver of the real world: hickory, with /etc/hosts, /etc/resolv.conf and its search list.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use foldhash::{HashMap, HashMapExt};
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ProtocolConfig, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;
use hickory_resolver::{TokioResolver, system_conf};
use tokio::time::Instant;

use super::{Answer, Lookup, LookupError, LookupFamily, LookupResult, Query, Resolver, ServerSpec};

/// Resolves as the system's configuration says, or with the servers that a cluster names.
#[derive(Debug, Default)]
pub struct SystemResolver {
    cache: Mutex<Cache>,
}

/// Resolvers that are ready, by whom they ask. Built again when the system's files change.
#[derive(Default)]
struct Cache {
    resolvers: HashMap<Arc<ServerSpec>, TokioResolver>,
    files: [Option<SystemTime>; 2],
    checked: Option<Instant>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("resolvers", &self.resolvers.len()).finish_non_exhaustive()
    }
}

/// How often /etc/hosts and /etc/resolv.conf are looked at.
const CHECK_FILES: Duration = Duration::from_secs(5);

/// How long a name server has for its answer, before it is asked once more.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

impl SystemResolver {
    fn resolver(&self, servers: &Arc<ServerSpec>) -> Result<TokioResolver, LookupError> {
        // Poisoning means that a lookup of this process panicked here; the cache holds nothing half-done.
        let mut cache = self.cache.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        if cache.checked.is_none_or(|at| now.duration_since(at) >= CHECK_FILES) {
            let modified = |path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
            let files = [modified("/etc/hosts"), modified("/etc/resolv.conf")];
            if files != cache.files {
                cache.resolvers = HashMap::new();
            }
            (cache.files, cache.checked) = (files, Some(now));
        }
        if let Some(known) = cache.resolvers.get(servers) {
            return Ok(known.clone());
        }
        let resolver = build(servers).map_err(|e| LookupError::Failed(e.to_string()))?;
        cache.resolvers.insert(Arc::clone(servers), resolver.clone());
        Ok(resolver)
    }
}

impl Resolver for SystemResolver {
    fn lookup(&self, query: Query) -> Lookup {
        if let Some(answer) = local(&query) {
            return Box::pin(std::future::ready(Ok(answer)));
        }
        let resolver = self.resolver(&query.servers);
        Box::pin(async move { lookup(&resolver?, &query).await })
    }
}

fn build(spec: &ServerSpec) -> Result<TokioResolver, NetError> {
    // Without a usable resolv.conf the server is on this host, as with libc.
    let (system, mut options) = system_conf::read_system_conf().unwrap_or_else(|_| {
        let local = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
        (ResolverConfig::from_name_servers(vec![local]), ResolverOpts::default())
    });
    let (mut domain, mut search, mut servers) = system.into_parts();
    if !spec.servers.is_empty() {
        let server = |server: &SocketAddr| {
            let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
            connections.iter_mut().for_each(|c| c.port = server.port());
            NameServerConfig::new(server.ip(), true, connections)
        };
        servers = spec.servers.iter().map(server).collect();
    }
    if spec.tcp {
        for server in &mut servers {
            server.connections.retain(|c| !matches!(c.protocol, ProtocolConfig::Udp));
        }
    }
    if spec.no_search {
        (domain, search) = (None, Vec::new());
    }
    // The scheduler decides when to ask; a cache below it would hide changes.
    options.cache_size = 0;
    // One repeat, soon enough for `super::FAILURE_MAX`.
    options.timeout = options.timeout.min(ANSWER_TIMEOUT);
    options.attempts = 1;
    let config = ResolverConfig::from_parts(domain, search, servers);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options).build()
}

/// `localhost` never goes to a name server (RFC 6761 §6.3). AUTO takes IPv4, where local servers listen more often.
fn local(query: &Query) -> Option<Answer> {
    let host = query.host.strip_suffix('.').unwrap_or(&query.host);
    let last = host.rsplit('.').next().unwrap_or(host);
    if !last.eq_ignore_ascii_case("localhost") {
        return None;
    }
    let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
    let addresses = match query.family {
        LookupFamily::Auto | LookupFamily::V4Only | LookupFamily::V4Preferred => vec![v4],
        LookupFamily::V6Only => vec![v6],
        LookupFamily::All => vec![v4, v6],
    };
    Some(Answer { addresses, ttl: super::TTL_CEILING })
}

async fn lookup(resolver: &TokioResolver, query: &Query) -> LookupResult {
    let one = |kind| one(resolver, &query.host, kind);
    match query.family {
        LookupFamily::V4Only => one(RecordType::A).await,
        LookupFamily::V6Only => one(RecordType::AAAA).await,
        LookupFamily::Auto => or_else(one(RecordType::AAAA).await, one(RecordType::A)).await,
        LookupFamily::V4Preferred => or_else(one(RecordType::A).await, one(RecordType::AAAA)).await,
        LookupFamily::All => {
            let (v4, v6) = tokio::join!(one(RecordType::A), one(RecordType::AAAA));
            both(v4, v6)
        }
    }
}

async fn or_else(first: LookupResult, second: impl Future<Output = LookupResult>) -> LookupResult {
    let Err(error) = first else { return first };
    // When both fail, the failure that may pass says more than "no such address".
    second.await.map_err(|other| {
        if matches!(other, LookupError::NotFound | LookupError::Empty) { error } else { other }
    })
}

fn both(v4: LookupResult, v6: LookupResult) -> LookupResult {
    match (v4, v6) {
        (Ok(mut a), Ok(b)) => {
            a.addresses.extend(b.addresses);
            a.ttl = a.ttl.min(b.ttl);
            Ok(a)
        }
        (Ok(a), Err(_)) | (Err(_), Ok(a)) => Ok(a),
        (Err(LookupError::NotFound | LookupError::Empty), Err(error)) | (Err(error), Err(_)) => Err(error),
    }
}

async fn one(resolver: &TokioResolver, host: &str, kind: RecordType) -> LookupResult {
    let lookup = resolver.lookup(host, kind).await.map_err(|e| failure(&e))?;
    let records = || lookup.answers().iter().filter(|r| r.data.ip_addr().is_some());
    let ttl = records().map(|r| r.ttl).min().ok_or(LookupError::Empty)?;
    let addresses = records().filter_map(|r| r.data.ip_addr()).collect();
    Ok(Answer { addresses, ttl: Duration::from_secs(ttl.into()) })
}

fn failure(error: &NetError) -> LookupError {
    match error {
        NetError::Timeout => LookupError::Timeout,
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => LookupError::NotFound,
            ResponseCode::NoError => LookupError::Empty,
            code => LookupError::Failed(code.to_string()),
        },
        other => LookupError::Failed(other.to_string()),
    }
}
