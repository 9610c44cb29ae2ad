//! All resources that are in force, where they came from, and the snapshot made of them.
//!
//! Runs on the control runtime. Compiling is pure and lives in [`super::compile`]; this part keeps what was accepted,
//! gives it its running state (an edited cluster keeps pools, breakers and endpoints) and drops nothing on a mistake:
//! a bad file is refused whole and the last good state serves on.

mod ads;
mod batch;
mod clusters;
mod dump;
mod secrets;
mod strays;
#[cfg(test)]
mod tests;
mod undo;
mod wants;
mod warming;
mod zones;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use foldhash::HashMap;
use remora_xds::diag::{At, ConfigError, Errors, SourceMap};
use remora_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use remora_xds::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use remora_xds::pb::envoy::service::discovery::v3::DiscoveryResponse;
use remora_xds::{Kind, Schema, any};
use smallvec::SmallVec;
use tokio::time::Instant;

use self::ads::Dynamic;
use self::batch::Batch;
use self::zones::Zones;
use super::compile::Scope;
use super::compile::listener::stray_override;
use super::compile::overload::compile_overload;
use super::names::{ClusterId, Names};
use super::snapshot::Snapshot;
use super::source::ads::{AdsSpec, compile_ads_config};
use super::spec::{HttpSpec, ListenerSpec, NetworkFilter, RouteSource, TcpSpec};
use crate::resilience::overload::Overload;
use crate::route::RouteTable;
use crate::telemetry::metrics::{Registry, ResourceKind};
use crate::upstream::cluster::Cluster;
use crate::upstream::endpoint::Assignment;

pub use self::ads::Applied;
pub use self::dump::{Dump, Dumped, Together, Unpacker};
pub use self::secrets::{OWN, ROOTS};

/// Where a resource came from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Static,
    File(PathBuf),
    Ads,
}

/// What a change touched, and so what has to follow it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Anything that the snapshot shows.
    pub snapshot: bool,
    /// Listeners: sockets follow.
    pub listeners: bool,
    /// Clusters: DNS and files follow.
    pub clusters: bool,
}

impl Changes {
    /// Both.
    pub fn add(&mut self, other: Self) {
        self.snapshot |= other.snapshot;
        self.listeners |= other.listeners;
        self.clusters |= other.clusters;
    }
}

/// A resource in force.
#[derive(Debug)]
struct Held<T> {
    origin: Origin,
    /// Of its bytes: an equal resource changes nothing, not even a pointer.
    hash: u64,
    value: Arc<T>,
}

impl<T> Clone for Held<T> {
    fn clone(&self) -> Self {
        Self { origin: self.origin.clone(), hash: self.hash, value: Arc::clone(&self.value) }
    }
}

type Set<T> = BTreeMap<Arc<str>, Held<T>>;

/// See the module.
#[derive(Debug, Default)]
pub struct Manager {
    names: Names,
    listeners: Set<ListenerSpec>,
    /// Listeners by address, as snapshots share them; None after one changed.
    listener_at: Option<Arc<HashMap<SocketAddr, Arc<ListenerSpec>>>>,
    clusters: Set<Cluster>,
    route_tables: Set<RouteTable>,
    /// Who has which load assignment; the endpoints are in the clusters that use it.
    assignments: Set<()>,
    /// Endpoints of load assignments that no cluster uses.
    parked: BTreeMap<Arc<str>, Assignment>,
    /// Clusters by the ClusterLoadAssignment that they take their endpoints from.
    eds_users: BTreeMap<Arc<str>, SmallVec<[Arc<str>; 1]>>,
    /// The clusters in force by number, as snapshots share them.
    cluster_list: Arc<Vec<Option<Arc<Cluster>>>>,
    /// Their numbers by name; None after a name came or went.
    cluster_ids: Option<Arc<HashMap<Arc<str>, ClusterId>>>,
    /// Files of `lds_config` and `cds_config`.
    roots: BTreeSet<PathBuf>,
    seen: BTreeMap<PathBuf, u64>,
    dump: Arc<Dump>,
    ads: Option<AdsSpec>,
    dynamic: Dynamic,
    /// Counts what the identity agent has given.
    own_secrets: u64,
    /// Where this proxy is, and the others like it.
    zones: Zones,
    /// Revocation lists have come.
    revoked: bool,
    version: u64,
}

impl Manager {
    /// The static part of a bootstrap. With `agent`, the secrets [`OWN`] and [`ROOTS`] will come from the identity agent.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn new(
        bootstrap: &Bootstrap,
        source: &str,
        map: SourceMap,
        agent: bool,
    ) -> Result<Self, Vec<ConfigError>> {
        let mut manager = Self::default();
        let node = bootstrap.node.as_ref().map_or("", |node| node.cluster.as_str());
        manager.names.node_cluster = node.into();
        if agent {
            manager.names.secrets.await_certificate(OWN);
            manager.names.secrets.await_trust(ROOTS);
        }
        manager.zones = Zones::of(bootstrap);
        let mut errors = Errors::new(source, map);
        crate::bootstrap::check(bootstrap, &mut errors);
        let mut batch = Batch::default();
        let root = At::root();
        let statics = root.field("static_resources");
        let fallback = Default::default();
        let resources = bootstrap.static_resources.as_ref().unwrap_or(&fallback);
        let mut scope = Scope { errors: &mut errors, names: &mut manager.names };
        let overload = bootstrap.overload_manager.as_ref();
        let overload = compile_overload(overload, &root.field("overload_manager"), &mut scope);
        scope.names.overload = Arc::new(Overload::new(overload));
        // Secrets first: contexts name them. Then clusters: routes of listeners may ask whether they exist.
        let secrets = statics.field("secrets");
        for (i, secret) in resources.secrets.iter().enumerate() {
            batch.secret(secret, &any::pack(secret), &secrets.index(i), &mut scope);
        }
        manager.put_static_secrets(&mut batch, &secrets, &mut errors);
        let mut scope = Scope { errors: &mut errors, names: &mut manager.names };
        let clusters = statics.field("clusters");
        for (i, cluster) in resources.clusters.iter().enumerate() {
            batch.cluster(cluster, &any::pack(cluster), &clusters.index(i), &mut scope);
        }
        let listeners = statics.field("listeners");
        for (i, listener) in resources.listeners.iter().enumerate() {
            batch.listener(listener, &any::pack(listener), &listeners.index(i), &mut scope);
        }
        manager.read_dynamic(bootstrap, &batch, &mut errors);
        batch.check_unique(&mut errors, &statics);
        if manager.ads.is_none() {
            batch.refuse_ads(&mut errors, &root);
        }
        if manager.roots.is_empty() && manager.dynamic.roots.is_empty() {
            batch.check_clusters(&manager.names, |_| false, &mut errors, &statics);
        }
        if !errors.is_empty() {
            return Err(errors.into_list());
        }
        manager.install(batch, &Origin::Static);
        Ok(manager)
    }

    /// `dynamic_resources`: files and the ADS stream.
    fn read_dynamic(&mut self, bootstrap: &Bootstrap, batch: &Batch, errors: &mut Errors) {
        let Some(dynamic) = &bootstrap.dynamic_resources else { return };
        let at = At::root();
        let at = at.field("dynamic_resources");
        if let Some(config) = &dynamic.ads_config {
            let statics: Vec<_> = batch.clusters.iter().map(|(_, cluster)| &*cluster.name).collect();
            self.ads = compile_ads_config(config, bootstrap.node.as_ref(), &statics, &at, errors);
        }
        let sources = [
            ("cds_config", Kind::Cluster, &dynamic.cds_config),
            ("lds_config", Kind::Listener, &dynamic.lds_config),
        ];
        for (name, kind, source) in sources {
            let at = at.field(name);
            match source.as_ref().map(|source| &source.config_source_specifier) {
                None => {}
                Some(Some(ConfigSourceSpecifier::PathConfigSource(path))) => {
                    self.roots.insert(PathBuf::from(&path.path));
                }
                Some(Some(ConfigSourceSpecifier::Ads(_))) if dynamic.ads_config.is_some() => {
                    self.dynamic.roots.push(kind);
                }
                Some(Some(ConfigSourceSpecifier::Ads(_))) => {
                    errors
                        .report(&at.field("ads"), "there is no dynamic_resources.ads_config")
                        .fix("say there which cluster is the control plane");
                }
                Some(_) => {
                    errors
                        .report(&at, "is no source that is supported here")
                        .fix("use ads: {} or path_config_source");
                }
            }
        }
    }

    /// Takes over the contents of a watched file. False: nothing changed.
    ///
    /// # Errors
    /// Every mistake in it; nothing of it is taken over.
    pub fn apply_file(&mut self, path: &Path, text: &str) -> Result<bool, Vec<ConfigError>> {
        let hash = hash_of(&text);
        // What was in it when nobody wanted it is not here.
        let known = self.seen.insert(path.to_path_buf(), hash) == Some(hash);
        if known && !self.names.secrets.lacks(path) {
            return Ok(false);
        }
        let source = path.display().to_string();
        let schema = Schema::load();
        let parsed = schema.parse::<DiscoveryResponse>(text, &source)?;
        drop(schema);
        let mut errors = Errors::new(source, parsed.map);
        let mut batch = Batch::default();
        let root = At::root();
        let list = root.field("resources");
        let mut scope = Scope { errors: &mut errors, names: &mut self.names };
        for (i, resource) in parsed.message.resources.into_iter().enumerate() {
            batch.any(&resource, &list.index(i), &mut scope);
        }
        batch.check_unique(&mut errors, &list);
        if self.ads.is_none() {
            batch.refuse_ads(&mut errors, &list);
        }
        if !errors.is_empty() {
            return Err(errors.into_list());
        }
        let origin = Origin::File(path.to_path_buf());
        let refused = self.conflicts(&batch, &origin);
        if !refused.is_empty() {
            return Err(secrets::refused_in(path, refused));
        }
        // None is refused any more.
        self.put_secrets(&mut batch, &origin);
        self.remove_missing(&batch, &origin);
        self.install(batch, &origin);
        self.names.secrets.forget_unused();
        Ok(!(known && self.names.secrets.lacks(path)))
    }

    /// Counts the resources that `path` has brought into force.
    pub fn count_accepted(&self, path: &Path, registry: &Registry) {
        let origin = Origin::File(path.to_path_buf());
        let counts = [
            (ResourceKind::Listener, of_origin(&self.listeners, &origin)),
            (ResourceKind::Cluster, of_origin(&self.clusters, &origin)),
            (ResourceKind::Route, of_origin(&self.route_tables, &origin)),
            (ResourceKind::Endpoint, of_origin(&self.assignments, &origin)),
        ];
        for (kind, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            registry.control.config_accepted(kind, count);
        }
    }

    /// Whether every cluster knows its endpoints and every route configuration is there.
    #[must_use]
    pub fn is_warm(&self) -> bool {
        let routes = |http: &HttpSpec| match (&http.routes, &http.rds) {
            (RouteSource::Rds(_), Some(rds)) => self.route_tables.contains_key(&rds.name),
            _ => true,
        };
        self.dynamic.is_warm()
            && self.clusters.values().all(|held| held.value.is_warm())
            && self.listeners.values().all(|held| {
                secrets::has_secrets(&held.value) && http_specs(&held.value).all(|http| routes(http))
            })
    }

    /// The resources in force, for `/config_dump`: always the newest.
    #[must_use]
    pub const fn dump(&self) -> &Arc<Dump> {
        &self.dump
    }

    /// Everything in force, as one immutable snapshot with the next version number.
    pub fn snapshot(&mut self) -> Snapshot {
        self.version += 1;
        let mut chains = vec![None; self.names.chains.len()];
        let listeners: Vec<_> = self.listeners.values().map(|held| Arc::clone(&held.value)).collect();
        for chain in listeners.iter().flat_map(|l| &l.chains) {
            chains[chain.id.index()] = Some(Arc::clone(chain));
        }
        let mut route_tables = vec![None; self.names.route_tables.len()];
        for (name, held) in &self.route_tables {
            if let Some(id) = self.names.route_tables.get(name) {
                route_tables[id.index()] = Some(Arc::clone(&held.value));
            }
        }
        let listener_at =
            Arc::clone(self.listener_at.get_or_insert_with(|| Arc::new(by_address(&listeners))));
        let Self { names, clusters, cluster_ids, .. } = self;
        let ids = cluster_ids.get_or_insert_with(|| {
            let id = |name: &Arc<str>| Some((Arc::clone(name), names.clusters.get(name)?));
            Arc::new(clusters.keys().filter_map(id).collect())
        });
        let cluster_ids = Arc::clone(ids);
        Snapshot {
            version: self.version,
            listeners,
            listener_at,
            chains,
            route_tables,
            clusters: Arc::clone(&self.cluster_list),
            cluster_ids,
            circuits: self.names.circuits.clone(),
            overload: Arc::clone(&self.names.overload),
        }
    }

    /// LDS and CDS are state of the world: what a file no longer has is gone. Route tables and assignments stay for as
    /// long as something may refer to them.
    fn remove_missing(&mut self, batch: &Batch, origin: &Origin) {
        let listeners: BTreeSet<_> = batch.listeners.iter().map(|(_, l)| &*l.name).collect();
        self.listener_at = None;
        let dump = &self.dump;
        self.listeners.retain(|name, held| {
            let stays = held.origin != *origin || listeners.contains(&**name);
            if !stays {
                dump.remove(Kind::Listener, name);
            }
            stays
        });
        let clusters: BTreeSet<_> = batch.clusters.iter().map(|(_, c)| &*c.name).collect();
        let gone = |(name, held): (&Arc<str>, &Held<Cluster>)| {
            (held.origin == *origin && !clusters.contains(&**name)).then(|| Arc::clone(name))
        };
        let gone: Vec<_> = self.clusters.iter().filter_map(gone).collect();
        for name in gone {
            self.remove_cluster(&name);
        }
    }

    /// Brings all of `batch` into force at once.
    fn install(&mut self, batch: Batch, origin: &Origin) {
        for ((kind, name), stored) in batch.raw.into_iter().zip(batch.bytes.stored()) {
            self.dump.put(kind, name, Dumped { stored, version: None });
        }
        for (hash, name, assignment) in batch.assignments {
            self.put_assignment(hash, &name, assignment, origin);
        }
        for (hash, spec) in batch.clusters {
            self.put_cluster(hash, spec, origin);
        }
        for (hash, table) in batch.route_tables {
            self.put_table(Held { origin: origin.clone(), hash, value: Arc::new(table) });
        }
        for (hash, spec) in batch.listeners {
            self.put_listener(Held { origin: origin.clone(), hash, value: Arc::new(spec) }, Instant::now());
        }
    }

    fn put_listener(&mut self, held: Held<ListenerSpec>, now: Instant) {
        let name = Arc::clone(&held.value.name);
        if let Some(old) = self.listeners.get(&name).filter(|old| old.hash != held.hash) {
            self.dynamic.warming.depart(&old.value, Some(&held.value), now);
        }
        let new = Arc::clone(&held.value);
        self.listener_at = None;
        put(&mut self.listeners, &name, held);
        self.warn_of_strays(&new);
    }

    fn put_table(&mut self, held: Held<RouteTable>) {
        let name = Arc::clone(&held.value.name);
        self.names.route_tables.intern(&name);
        // Most tables say nothing about filters: nobody has to be looked for among all listeners.
        let about_filters = stray_override(&held.value, &[]).is_some();
        put(&mut self.route_tables, &name, held);
        if !about_filters {
            return;
        }
        let takes = |listener: &ListenerSpec| wants::rds_of(listener).any(|rds| rds.name == name);
        for held in self.listeners.values().filter(|held| takes(&held.value)) {
            self.warn_of_strays(&held.value);
        }
    }
}

/// Empty when nobody hands connections over.
fn by_address(listeners: &[Arc<ListenerSpec>]) -> HashMap<SocketAddr, Arc<ListenerSpec>> {
    let mut found = HashMap::default();
    if listeners.iter().any(|listener| listener.use_original_dst) {
        // To a name server nobody is handed over.
        for listener in listeners.iter().filter(|listener| listener.dns.is_none()) {
            for address in std::iter::once(&listener.address).chain(&listener.additional) {
                found.entry(*address).or_insert_with(|| Arc::clone(listener));
            }
        }
    }
    found
}

fn of_origin<T>(set: &Set<T>, origin: &Origin) -> u64 {
    set.values().filter(|held| held.origin == *origin).count() as u64
}

/// An equal resource keeps its pointer.
fn put<T>(set: &mut Set<T>, name: &Arc<str>, new: Held<T>) {
    match set.get_mut(name) {
        Some(old) if old.hash == new.hash => old.origin = new.origin,
        _ => {
            set.insert(Arc::clone(name), new);
        }
    }
}

fn hash_of<T: Hash>(value: &T) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn http_specs(listener: &ListenerSpec) -> impl Iterator<Item = &Arc<HttpSpec>> {
    listener.chains.iter().filter_map(|chain| match &chain.filter {
        NetworkFilter::Http(http) => Some(http),
        NetworkFilter::Tcp(_) => None,
    })
}

fn tcp_specs(listener: &ListenerSpec) -> impl Iterator<Item = &TcpSpec> {
    listener.chains.iter().filter_map(|chain| match &chain.filter {
        NetworkFilter::Tcp(tcp) => Some(&**tcp),
        NetworkFilter::Http(_) => None,
    })
}
