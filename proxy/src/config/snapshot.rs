//! What a request sees: one immutable, indexed set of configuration and endpoints.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use foldhash::HashMap;

use super::names::{ChainId, ClusterId, RouteTableId};
use super::spec::{FilterChain, ListenerSpec};
use crate::resilience::circuit::registry::Circuits;
use crate::resilience::overload::Overload;
use crate::route::RouteTable;
use crate::upstream::cluster::Cluster;

/// See the module. Lists are indexed by the number of a name; a missing entry means that the resource is not there (any more).
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts up with every change.
    pub version: u64,
    /// All listeners, by name.
    pub listeners: Vec<Arc<ListenerSpec>>,
    /// The same by address, as far as somebody hands connections over.
    pub(super) listener_at: Arc<HashMap<SocketAddr, Arc<ListenerSpec>>>,
    pub(super) chains: Vec<Option<Arc<FilterChain>>>,
    pub(super) route_tables: Vec<Option<Arc<RouteTable>>>,
    pub(super) clusters: Arc<Vec<Option<Arc<Cluster>>>>,
    pub(super) cluster_ids: Arc<HashMap<Arc<str>, ClusterId>>,
    /// Circuit breakers.
    pub circuits: Circuits,
    /// What the process gives up for memory and files: one for its life.
    pub overload: Arc<Overload>,
}

impl Snapshot {
    /// Whether policy says the same in both: no filter chain and no route configuration differs.
    #[must_use]
    pub fn same_rules(&self, other: &Self) -> bool {
        fn same<T>(one: &[Option<Arc<T>>], other: &[Option<Arc<T>>]) -> bool {
            let pointer = |entry: &Option<Arc<T>>| entry.as_ref().map(Arc::as_ptr);
            one.iter().map(pointer).eq(other.iter().map(pointer))
        }
        same(&self.chains, &other.chains) && same(&self.route_tables, &other.route_tables)
    }

    /// The newest version of a listener.
    #[must_use]
    pub fn listener(&self, name: &str) -> Option<&Arc<ListenerSpec>> {
        let found = self.listeners.binary_search_by(|listener| (*listener.name).cmp(name)).ok()?;
        self.listeners.get(found)
    }

    /// The listener that a connection to `address` is handed over to (`use_original_dst`): the one at this address, or else at its
    /// port on every address. Of several at one address the first by name has it.
    #[must_use]
    pub fn listener_at(&self, address: SocketAddr) -> Option<&Arc<ListenerSpec>> {
        let every: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let wildcard = SocketAddr::new(every, address.port());
        self.listener_at.get(&address).or_else(|| self.listener_at.get(&wildcard))
    }

    /// The newest version of a filter chain.
    #[must_use]
    pub fn chain(&self, id: ChainId) -> Option<&Arc<FilterChain>> {
        self.chains.get(id.index())?.as_ref()
    }

    /// A route configuration that came by RDS.
    #[must_use]
    pub fn route_table(&self, id: RouteTableId) -> Option<&Arc<RouteTable>> {
        self.route_tables.get(id.index())?.as_ref()
    }

    /// A cluster by its number.
    #[must_use]
    pub fn cluster(&self, id: ClusterId) -> Option<&Arc<Cluster>> {
        self.clusters.get(id.index())?.as_ref()
    }

    /// A cluster that a request names.
    #[must_use]
    pub fn cluster_by_name(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.cluster(*self.cluster_ids.get(name)?)
    }

    /// All clusters.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.iter().flatten()
    }

    /// All route configurations that came by RDS.
    pub fn route_tables(&self) -> impl Iterator<Item = &Arc<RouteTable>> {
        self.route_tables.iter().flatten()
    }
}
