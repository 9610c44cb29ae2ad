//! STRICT_DNS and LOGICAL_DNS: names become endpoints.
//!
//! [`Scheduler`] is a pure state machine: which names are due, what their answers change. [`Driver`] is the one task of a process
//! that runs it, whatever the number of names; it asks a [`Resolver`] and sends [`DnsUpdate`]s. A name that several clusters use is
//! asked for once. The last good answer stays whatever goes wrong: NXDOMAIN, an empty answer, SERVFAIL and silence
//! empty no cluster (features.md I2, pain 22).

mod driver;
mod hickory;
mod schedule;

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub use driver::{DnsHandle, Driver};
pub use hickory::SystemResolver;
pub use schedule::{Clusters, Scheduler};

use super::endpoint::{Assignment, AssignmentPolicy, EndpointSpec};

/// The DNS half of a STRICT_DNS or LOGICAL_DNS cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct DnsSpec {
    /// Which of the two.
    pub kind: DnsKind,
    /// The names of the load assignment; exactly one for LOGICAL_DNS.
    pub targets: Vec<DnsTarget>,
    /// `policy` of the load assignment.
    pub policy: AssignmentPolicy,
    /// `dns_lookup_family`.
    pub family: LookupFamily,
    /// `typed_dns_resolver_config`.
    pub servers: Arc<ServerSpec>,
    /// When to ask again.
    pub refresh: RefreshSpec,
}

/// STRICT_DNS or LOGICAL_DNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsKind {
    /// Every address is an endpoint.
    Strict,
    /// One endpoint; new connections go to the first address. Open connections stay when it changes.
    Logical,
}

/// A name in a load assignment.
#[derive(Debug, Clone, PartialEq)]
pub struct DnsTarget {
    /// The name, or an IP address that is taken as it is.
    pub host: Arc<str>,
    /// The endpoint without its address (the port is right).
    pub template: EndpointSpec,
}

/// `dns_lookup_family`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum LookupFamily {
    /// AUTO: IPv6, and IPv4 when there is none. `localhost` is 127.0.0.1.
    #[default]
    Auto,
    /// V4_ONLY.
    V4Only,
    /// V6_ONLY.
    V6Only,
    /// V4_PREFERRED: IPv4, and IPv6 when there is none.
    V4Preferred,
    /// ALL: both.
    All,
}

/// Whom to ask (`CaresDnsResolverConfig`). The default is what the system's configuration says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ServerSpec {
    /// `resolvers`; none means those of /etc/resolv.conf.
    pub servers: Vec<SocketAddr>,
    /// `use_tcp_for_dns_lookups`.
    pub tcp: bool,
    /// `no_default_search_domain`.
    pub no_search: bool,
}

/// When to ask again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshSpec {
    /// `dns_refresh_rate`, default 5 s.
    pub rate: Duration,
    /// `respect_dns_ttl`: after the answer's TTL instead, but not sooner than `min_rate` and not later than five minutes.
    pub respect_ttl: bool,
    /// `dns_min_refresh_rate`, default 1 s.
    pub min_rate: Duration,
    /// `dns_failure_refresh_rate` (base, maximum), doubled with every failure. Default: from 500 ms up to 2.5 s or `rate`.
    pub failure: Option<(Duration, Duration)>,
    /// `dns_jitter`: up to this much is added to a refresh. Default here: a tenth of it (Envoy: none).
    pub jitter: Option<Duration>,
}

impl Default for RefreshSpec {
    fn default() -> Self {
        Self {
            rate: Duration::from_secs(5),
            respect_ttl: false,
            min_rate: Duration::from_secs(1),
            failure: None,
            jitter: None,
        }
    }
}

/// With [`FAILURE_MAX`] the default of `dns_failure_refresh_rate`. A lookup that nobody answers takes 4 s, a repeat goes out after
/// half of that: within 5 s of a name server's return its answer is there.
const FAILURE_BASE: Duration = Duration::from_millis(500);
const FAILURE_MAX: Duration = Duration::from_millis(2500);
/// A TTL is not believed beyond this.
const TTL_CEILING: Duration = Duration::from_secs(300);

impl RefreshSpec {
    /// How long after a good answer to ask again.
    #[must_use]
    pub fn after_answer(&self, ttl: Duration, rng: &mut fastrand::Rng) -> Duration {
        let base = if self.respect_ttl { ttl.min(TTL_CEILING).max(self.min_rate) } else { self.rate };
        base + self.jitter.unwrap_or(base / 10).mul_f64(rng.f64())
    }

    /// How long after the `failures`-th failure in a row to ask again: between half of the back-off and all of it.
    #[must_use]
    pub fn after_failure(&self, failures: u32, rng: &mut fastrand::Rng) -> Duration {
        let (base, max) =
            self.failure.unwrap_or_else(|| (FAILURE_BASE.min(self.rate), FAILURE_MAX.min(self.rate)));
        let doubled = base.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(max);
        doubled.mul_f64(0.5 + rng.f64() / 2.0)
    }
}

/// One question to the resolver.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Query {
    /// The name.
    pub host: Arc<str>,
    /// The addresses wanted.
    pub family: LookupFamily,
    /// Whom to ask.
    pub servers: Arc<ServerSpec>,
}

/// A good answer: at least one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// In the order of the answer.
    pub addresses: Vec<IpAddr>,
    /// The smallest of its records' TTLs.
    pub ttl: Duration,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// NXDOMAIN.
    #[error("no such name")]
    NotFound,
    /// The name has no address of the wanted family.
    #[error("no address of this family")]
    Empty,
    /// Nobody answered in time.
    #[error("no answer in time")]
    Timeout,
    /// SERVFAIL, REFUSED, a malformed answer, …
    #[error("{0}")]
    Failed(String),
}

/// What a lookup ends with.
pub type LookupResult = Result<Answer, LookupError>;
/// A lookup under way.
pub type Lookup = Pin<Box<dyn Future<Output = LookupResult> + Send>>;

/// The seam to DNS.
pub trait Resolver: Send + Sync + 'static {
    /// Starts a lookup. It should end by itself; the driver gives up on it after ten seconds.
    fn lookup(&self, query: Query) -> Lookup;
}

impl<R: Resolver> Resolver for Arc<R> {
    fn lookup(&self, query: Query) -> Lookup {
        (**self).lookup(query)
    }
}

/// New endpoints of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct DnsUpdate {
    /// Name of the cluster.
    pub cluster: Arc<str>,
    /// All its endpoints.
    pub assignment: Assignment,
    /// Whether every name of the cluster has been asked for once, so that the cluster is complete.
    pub complete: bool,
    /// Names whose last lookup failed, with the reason. Their last good addresses are in the assignment.
    pub failing: Vec<(Arc<str>, LookupError)>,
}
