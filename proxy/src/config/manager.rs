//! All resources that are in force, where they came from, and the snapshot made of them.
//!
//! Runs on the control runtime. Compiling is pure and lives in [`super::compile`]; this part keeps what was accepted,
//! gives it its running state (an edited cluster keeps pools, breakers and endpoints) and drops nothing on a mistake:
//! a bad file is refused whole and the last good state serves on.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use foldhash::HashMap;
use remora_xds::diag::{At, ConfigError, Errors, SourceMap};
use remora_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use remora_xds::pb::envoy::config::cluster::v3::Cluster as PbCluster;
use remora_xds::pb::envoy::config::core::v3::ConfigSource as PbConfigSource;
use remora_xds::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use remora_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use remora_xds::pb::envoy::config::listener::v3::Listener as PbListener;
use remora_xds::pb::envoy::config::route::v3::RouteConfiguration;
use remora_xds::pb::envoy::service::discovery::v3::DiscoveryResponse;
use remora_xds::pb::google::protobuf::Any;
use remora_xds::{Schema, any};

use super::compile::Scope;
use super::compile::cluster::{compile_cluster, compile_load_assignment};
use super::compile::listener::compile_listener;
use super::compile::route::compile_route_table;
use super::names::Names;
use super::snapshot::Snapshot;
use super::spec::{ConfigSource, HttpSpec, ListenerSpec, NetworkFilter, RouteSource};
use crate::route::RouteTable;
use crate::telemetry::metrics::{Registry, ResourceKind};
use crate::upstream::cluster::{Cluster, ClusterSpec, Discovery, EdsSource};
use crate::upstream::dns::{DnsSpec, DnsUpdate};
use crate::upstream::endpoint::Assignment;

/// Where a resource came from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Static,
    File(PathBuf),
}

/// A resource in force.
#[derive(Debug)]
struct Held<T> {
    origin: Origin,
    /// Of its bytes: an equal resource changes nothing, not even a pointer.
    hash: u64,
    value: Arc<T>,
}

type Set<T> = BTreeMap<Arc<str>, Held<T>>;

/// See the module.
#[derive(Debug, Default)]
pub struct Manager {
    names: Names,
    listeners: Set<ListenerSpec>,
    clusters: Set<Cluster>,
    route_tables: Set<RouteTable>,
    assignments: Set<Assignment>,
    /// Files of `lds_config` and `cds_config`.
    roots: BTreeSet<PathBuf>,
    seen: BTreeMap<PathBuf, u64>,
    resources: BTreeMap<(String, String), Any>,
    version: u64,
}

/// A batch of resources that compiled.
#[derive(Default)]
struct Batch {
    listeners: Vec<(u64, ListenerSpec)>,
    clusters: Vec<(u64, ClusterSpec)>,
    route_tables: Vec<(u64, RouteTable)>,
    assignments: Vec<(u64, Arc<str>, Assignment)>,
    raw: Vec<(String, String, Any)>,
}

impl Manager {
    /// The static part of a bootstrap.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn new(bootstrap: &Bootstrap, source: &str, map: SourceMap) -> Result<Self, Vec<ConfigError>> {
        let mut manager = Self::default();
        let mut errors = Errors::new(source, map);
        let mut batch = Batch::default();
        let root = At::root();
        let statics = root.field("static_resources");
        let fallback = Default::default();
        let resources = bootstrap.static_resources.as_ref().unwrap_or(&fallback);
        let mut scope = Scope { errors: &mut errors, names: &mut manager.names };
        // Clusters first: routes of listeners may ask whether they exist.
        let clusters = statics.field("clusters");
        for (i, cluster) in resources.clusters.iter().enumerate() {
            batch.cluster(cluster, &clusters.index(i), &mut scope);
        }
        let listeners = statics.field("listeners");
        for (i, listener) in resources.listeners.iter().enumerate() {
            batch.listener(listener, &listeners.index(i), &mut scope);
        }
        if let Some(dynamic) = &bootstrap.dynamic_resources {
            let at = root.field("dynamic_resources");
            for (name, source) in [("lds_config", &dynamic.lds_config), ("cds_config", &dynamic.cds_config)] {
                manager.roots.extend(root_file(source.as_ref(), &at.field(name), scope.errors));
            }
        }
        batch.check_unique(&mut errors, &statics);
        batch.refuse_ads(&mut errors, &root);
        if manager.roots.is_empty() {
            batch.check_clusters(&manager.names, &mut errors, &statics);
        }
        if !errors.is_empty() {
            return Err(errors.into_list());
        }
        manager.install(batch, &Origin::Static);
        Ok(manager)
    }

    /// Files whose contents are wanted now: those of the bootstrap, and those that accepted resources name.
    #[must_use]
    pub fn files(&self) -> BTreeSet<PathBuf> {
        let mut files = self.roots.clone();
        for held in self.listeners.values() {
            files.extend(http_specs(&held.value).filter_map(|http| {
                match http.rds.as_ref().map(|rds| &rds.source) {
                    Some(ConfigSource::Path { path, .. }) => Some(path.to_path_buf()),
                    _ => None,
                }
            }));
        }
        for held in self.clusters.values() {
            if let Discovery::Eds(eds) = &held.value.spec().discovery
                && let EdsSource::File { path, .. } = &eds.source
            {
                files.insert(PathBuf::from(&**path));
            }
        }
        files
    }

    /// Directories to watch besides those of the files (`watched_directory`).
    #[must_use]
    pub fn directories(&self) -> BTreeSet<PathBuf> {
        let mut directories = BTreeSet::new();
        for held in self.listeners.values() {
            directories.extend(http_specs(&held.value).filter_map(|http| {
                match http.rds.as_ref().map(|rds| &rds.source) {
                    Some(ConfigSource::Path { watched: Some(watched), .. }) => Some(watched.to_path_buf()),
                    _ => None,
                }
            }));
        }
        for held in self.clusters.values() {
            if let Discovery::Eds(eds) = &held.value.spec().discovery
                && let EdsSource::File { watched_directory: Some(watched), .. } = &eds.source
            {
                directories.insert(PathBuf::from(&**watched));
            }
        }
        directories
    }

    /// Takes over the contents of a watched file. False: nothing changed.
    ///
    /// # Errors
    /// Every mistake in it; nothing of it is taken over.
    pub fn apply_file(&mut self, path: &Path, text: &str) -> Result<bool, Vec<ConfigError>> {
        let hash = hash_of(&text);
        if self.seen.get(path) == Some(&hash) {
            return Ok(false);
        }
        self.seen.insert(path.to_path_buf(), hash);
        let source = path.display().to_string();
        let schema = Schema::load();
        let parsed = schema.parse::<DiscoveryResponse>(text, &source)?;
        drop(schema);
        let mut errors = Errors::new(source, parsed.map);
        let mut batch = Batch::default();
        let root = At::root();
        let list = root.field("resources");
        let mut scope = Scope { errors: &mut errors, names: &mut self.names };
        for (i, resource) in parsed.message.resources.iter().enumerate() {
            batch.any(resource, &list.index(i), &mut scope);
        }
        batch.check_unique(&mut errors, &list);
        batch.refuse_ads(&mut errors, &list);
        if !errors.is_empty() {
            return Err(errors.into_list());
        }
        let origin = Origin::File(path.to_path_buf());
        self.remove_missing(&batch, &origin);
        self.install(batch, &origin);
        Ok(true)
    }

    /// Takes over what DNS answered for a cluster. False: the cluster is gone.
    pub fn apply_dns(&mut self, update: &DnsUpdate) -> bool {
        let Some(held) = self.clusters.get_mut(&update.cluster) else { return false };
        held.value = Arc::new(held.value.with_assignment(&update.assignment));
        true
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

    /// What a file is expected to hold, by who names it.
    #[must_use]
    pub fn kind_of(&self, path: &Path) -> ResourceKind {
        let names_it = |http: &Arc<HttpSpec>| {
            http.rds.as_ref().is_some_and(
                |rds| matches!(&rds.source, ConfigSource::Path { path: named, .. } if **named == *path),
            )
        };
        if self.listeners.values().any(|held| http_specs(&held.value).any(names_it)) {
            ResourceKind::Route
        } else if self.roots.contains(path) {
            ResourceKind::Cluster
        } else {
            ResourceKind::Endpoint
        }
    }

    /// Clusters whose endpoints are names.
    #[must_use]
    pub fn dns(&self) -> Vec<(Arc<str>, Arc<DnsSpec>)> {
        let named = |(name, held): (&Arc<str>, &Held<Cluster>)| match &held.value.spec().discovery {
            Discovery::Dns(spec) => Some((Arc::clone(name), Arc::clone(spec))),
            _ => None,
        };
        self.clusters.iter().filter_map(named).collect()
    }

    /// Whether every cluster knows its endpoints and every route configuration is there.
    #[must_use]
    pub fn is_warm(&self) -> bool {
        let routes = |http: &HttpSpec| match (&http.routes, &http.rds) {
            (RouteSource::Rds(_), Some(rds)) => self.route_tables.contains_key(&rds.name),
            _ => true,
        };
        self.clusters.values().all(|held| held.value.is_warm())
            && self.listeners.values().all(|held| http_specs(&held.value).all(|http| routes(http)))
    }

    /// The resources in force, for `/config_dump`: (type URL, name, resource).
    pub fn resources(&self) -> impl Iterator<Item = (&str, &str, &Any)> {
        self.resources.iter().map(|((kind, name), any)| (kind.as_str(), name.as_str(), any))
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
        let mut clusters = vec![None; self.names.clusters.len()];
        let mut cluster_ids = HashMap::default();
        for (name, held) in &self.clusters {
            if let Some(id) = self.names.clusters.get(name) {
                clusters[id.index()] = Some(Arc::clone(&held.value));
                cluster_ids.insert(Arc::clone(name), id);
            }
        }
        Snapshot {
            version: self.version,
            listeners,
            chains,
            route_tables,
            clusters: Arc::new(clusters),
            cluster_ids: Arc::new(cluster_ids),
        }
    }

    /// LDS and CDS are state of the world: what a file no longer has is gone. Route tables and assignments stay for as
    /// long as something may refer to them.
    fn remove_missing(&mut self, batch: &Batch, origin: &Origin) {
        let listeners: BTreeSet<_> = batch.listeners.iter().map(|(_, l)| &*l.name).collect();
        self.listeners.retain(|name, held| held.origin != *origin || listeners.contains(&**name));
        let clusters: BTreeSet<_> = batch.clusters.iter().map(|(_, c)| &*c.name).collect();
        self.clusters.retain(|name, held| held.origin != *origin || clusters.contains(&**name));
    }

    fn install(&mut self, batch: Batch, origin: &Origin) {
        for (kind, name, any) in batch.raw {
            self.resources.insert((kind, name), any);
        }
        for (hash, name, assignment) in batch.assignments {
            put(&mut self.assignments, &name, origin, hash, || assignment);
        }
        for (hash, spec) in batch.clusters {
            let spec = Arc::new(spec);
            let name = Arc::clone(&spec.name);
            self.names.clusters.intern(&name);
            let old = self.clusters.get(&name).map(|held| Arc::clone(&held.value));
            put(&mut self.clusters, &name, origin, hash, || match old {
                Some(old) => old.with_spec(spec),
                None => Cluster::new(spec),
            });
        }
        for (hash, table) in batch.route_tables {
            self.names.route_tables.intern(&table.name);
            let name = Arc::clone(&table.name);
            put(&mut self.route_tables, &name, origin, hash, || table);
        }
        for (hash, spec) in batch.listeners {
            let name = Arc::clone(&spec.name);
            put(&mut self.listeners, &name, origin, hash, || spec);
        }
        self.attach_assignments();
    }

    /// Gives EDS clusters their endpoints. A cluster that has the same ones already keeps its pointer.
    fn attach_assignments(&mut self) {
        for held in self.clusters.values_mut() {
            let Discovery::Eds(eds) = &held.value.spec().discovery else { continue };
            let Some(assignment) = self.assignments.get(&eds.service_name) else { continue };
            let next = held.value.with_assignment(&assignment.value);
            if !(held.value.is_warm() && same_endpoints(&held.value, &next)) {
                held.value = Arc::new(next);
            }
        }
    }
}

fn of_origin<T>(set: &Set<T>, origin: &Origin) -> u64 {
    set.values().filter(|held| held.origin == *origin).count() as u64
}

fn same_endpoints(a: &Cluster, b: &Cluster) -> bool {
    let (a, b) = (a.endpoints().endpoints(), b.endpoints().endpoints());
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
}

fn put<T>(set: &mut Set<T>, name: &Arc<str>, origin: &Origin, hash: u64, make: impl FnOnce() -> T) {
    match set.get_mut(name) {
        Some(held) if held.hash == hash => held.origin = origin.clone(),
        _ => {
            set.insert(Arc::clone(name), Held { origin: origin.clone(), hash, value: Arc::new(make()) });
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

fn root_file(source: Option<&PbConfigSource>, at: &At<'_>, errors: &mut Errors) -> Option<PathBuf> {
    match source?.config_source_specifier.as_ref() {
        Some(ConfigSourceSpecifier::PathConfigSource(path)) => Some(PathBuf::from(&path.path)),
        _ => {
            errors
                .report(at, "only path_config_source is supported here")
                .fix("name a file with path_config_source.path");
            None
        }
    }
}

impl Batch {
    fn any(&mut self, resource: &Any, at: &At<'_>, scope: &mut Scope<'_>) {
        if any::is::<PbCluster>(resource) {
            if let Ok(pb) = any::unpack(resource) {
                self.cluster(&pb, at, scope);
            }
        } else if any::is::<PbListener>(resource) {
            if let Ok(pb) = any::unpack(resource) {
                self.listener(&pb, at, scope);
            }
        } else if any::is::<RouteConfiguration>(resource) {
            if let Ok(pb) = any::unpack::<RouteConfiguration>(resource) {
                let table = compile_route_table(&pb, at, scope);
                self.keep(&pb, &pb.name);
                self.route_tables.push((hash_of(&resource.value), table));
            }
        } else if any::is::<ClusterLoadAssignment>(resource) {
            if let Ok(pb) = any::unpack::<ClusterLoadAssignment>(resource) {
                let assignment = compile_load_assignment(&pb, at, scope);
                self.keep(&pb, &pb.cluster_name);
                self.assignments.push((
                    hash_of(&resource.value),
                    pb.cluster_name.as_str().into(),
                    assignment,
                ));
            }
        } else {
            let text = format!("{} is no resource that a file may hold", resource.type_url);
            scope
                .errors
                .report(at, text)
                .fix("use Listener, Cluster, RouteConfiguration or ClusterLoadAssignment");
        }
    }

    fn cluster(&mut self, pb: &PbCluster, at: &At<'_>, scope: &mut Scope<'_>) {
        if let Some(spec) = compile_cluster(pb, at, scope) {
            self.keep(pb, &pb.name);
            self.clusters.push((hash_of(&any::pack(pb).value), spec));
        }
    }

    fn listener(&mut self, pb: &PbListener, at: &At<'_>, scope: &mut Scope<'_>) {
        if let Some(spec) = compile_listener(pb, at, scope) {
            self.keep(pb, &spec.name);
            self.listeners.push((hash_of(&any::pack(pb).value), spec));
        }
    }

    fn keep<M: prost::Message + prost::Name>(&mut self, message: &M, name: &str) {
        self.raw.push((any::type_url::<M>(), name.to_owned(), any::pack(message)));
    }

    fn check_unique(&self, errors: &mut Errors, at: &At<'_>) {
        let mut seen = BTreeSet::new();
        for (kind, name, _) in &self.raw {
            if !seen.insert((kind, name)) {
                errors
                    .report(at, format!("{name:?} stands here twice"))
                    .fix("give each resource a name of its own");
            }
        }
    }

    /// There is no ADS stream to subscribe on: a listener or cluster would wait for ever.
    fn refuse_ads(&self, errors: &mut Errors, at: &At<'_>) {
        let by_ads =
            |http: &Arc<HttpSpec>| http.rds.as_ref().is_some_and(|rds| rds.source == ConfigSource::Ads);
        let listeners =
            self.listeners.iter().filter(|(_, l)| http_specs(l).any(by_ads)).map(|(_, l)| &l.name);
        let eds =
            |c: &ClusterSpec| matches!(&c.discovery, Discovery::Eds(eds) if eds.source == EdsSource::Ads);
        let clusters = self.clusters.iter().filter(|(_, c)| eds(c)).map(|(_, c)| &c.name);
        for name in listeners.chain(clusters) {
            let text = format!("{name:?} takes its configuration from ADS, which is not supported yet");
            errors.report(at, text).fix("use path_config_source");
        }
    }

    /// Inline routes must name clusters that exist (Envoy `validate_clusters`).
    fn check_clusters(&self, names: &Names, errors: &mut Errors, at: &At<'_>) {
        let known: BTreeSet<_> = self.clusters.iter().map(|(_, c)| &*c.name).collect();
        for (_, listener) in &self.listeners {
            for http in http_specs(listener) {
                let RouteSource::Inline(table) = &http.routes else { continue };
                if table.rules.validate_clusters == Some(false) {
                    continue;
                }
                for used in &table.clusters {
                    let name = names.clusters.name(used.id).map_or("", |n| n);
                    if !known.contains(name) {
                        let text = format!(
                            "listener {:?} routes to cluster {name:?}, which does not exist ({})",
                            listener.name, used.path
                        );
                        errors.report(at, text).fix("define the cluster, or set validate_clusters: false");
                    }
                }
            }
        }
    }
}
