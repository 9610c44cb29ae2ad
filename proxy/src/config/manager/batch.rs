//! Resources that were compiled together.

use std::collections::BTreeSet;
use std::sync::Arc;

use remora_xds::diag::{At, Errors};
use remora_xds::pb::envoy::config::cluster::v3::Cluster as PbCluster;
use remora_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use remora_xds::pb::envoy::config::listener::v3::Listener as PbListener;
use remora_xds::pb::envoy::config::route::v3::RouteConfiguration;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use remora_xds::pb::google::protobuf::Any;
use remora_xds::{Kind, Named, any};

use super::dump::Together;
use super::{hash_of, http_specs, tcp_specs};
use crate::config::compile::Scope;
use crate::config::compile::cluster::{compile_cluster, compile_load_assignment};
use crate::config::compile::listener::compile_listener;
use crate::config::compile::route::compile_route_table;
use crate::config::compile::tls::{compile_secret, files_of_secret};
use crate::config::names::Names;
use crate::config::secrets::Compiled;
use crate::config::spec::{ConfigSource, HttpSpec, ListenerSpec, RouteSource};
use crate::route::RouteTable;
use crate::upstream::cluster::{ClusterSpec, Discovery, EdsSource};
use crate::upstream::endpoint::Assignment;

/// What compiled, each with the hash of its bytes.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) listeners: Vec<(u64, ListenerSpec)>,
    pub(super) clusters: Vec<(u64, ClusterSpec)>,
    pub(super) route_tables: Vec<(u64, RouteTable)>,
    pub(super) assignments: Vec<(u64, Arc<str>, Assignment)>,
    pub(super) secrets: Vec<Compiled>,
    pub(super) raw: Vec<(Kind, Arc<str>)>,
    /// The bytes of `raw`.
    pub(super) bytes: Together,
}

impl Batch {
    /// A resource of any kind. One whose bytes are broken was reported before.
    pub(super) fn any(&mut self, resource: &Any, at: &At<'_>, scope: &mut Scope<'_>) {
        match Kind::from_type_url(&resource.type_url) {
            Some(Kind::Cluster) => {
                if let Ok(pb) = any::unpack::<PbCluster>(resource) {
                    self.cluster(&pb, resource, at, scope);
                }
            }
            Some(Kind::Listener) => {
                if let Ok(pb) = any::unpack::<PbListener>(resource) {
                    self.listener(&pb, resource, at, scope);
                }
            }
            Some(Kind::RouteConfiguration) => {
                if let Ok(pb) = any::unpack::<RouteConfiguration>(resource) {
                    scope.names.enter("RouteConfiguration", &pb.name);
                    let table = compile_route_table(&pb, at, scope);
                    self.keep(Kind::RouteConfiguration, &table.name, resource);
                    self.route_tables.push((hash_of(&resource.value), table));
                }
            }
            Some(Kind::ClusterLoadAssignment) => {
                if let Ok(pb) = any::unpack::<ClusterLoadAssignment>(resource) {
                    let assignment = compile_load_assignment(&pb, at, scope);
                    let known = scope.names.clusters.shared(&pb.cluster_name);
                    let name = known.unwrap_or_else(|| pb.cluster_name.as_str().into());
                    self.keep(Kind::ClusterLoadAssignment, &name, resource);
                    self.assignments.push((hash_of(&resource.value), name, assignment));
                }
            }
            Some(Kind::Secret) => {
                if let Ok(pb) = any::unpack::<Secret>(resource) {
                    self.secret(&pb, resource, at, scope);
                }
            }
            None => {
                let text = format!("{} is no resource that can stand here", resource.type_url);
                scope
                    .errors
                    .report(at, text)
                    .fix("use Listener, Cluster, RouteConfiguration, ClusterLoadAssignment or Secret");
            }
        }
    }

    pub(super) fn cluster(&mut self, pb: &PbCluster, raw: &Any, at: &At<'_>, scope: &mut Scope<'_>) {
        if let Some(spec) = compile_cluster(pb, at, scope) {
            self.keep(PbCluster::KIND, &spec.name, raw);
            self.clusters.push((hash_of(&raw.value), spec));
        }
    }

    pub(super) fn listener(&mut self, pb: &PbListener, raw: &Any, at: &At<'_>, scope: &mut Scope<'_>) {
        scope.names.enter("Listener", &pb.name);
        if let Some(spec) = compile_listener(pb, at, scope) {
            self.keep(PbListener::KIND, &spec.name, raw);
            self.listeners.push((hash_of(&raw.value), spec));
        }
    }

    pub(super) fn secret(&mut self, pb: &Secret, raw: &Any, at: &At<'_>, scope: &mut Scope<'_>) {
        let files = files_of_secret(pb);
        if let Some(material) = compile_secret(pb, at, scope) {
            let name: Arc<str> = pb.name.as_str().into();
            self.keep(Kind::Secret, &name, raw);
            self.secrets.push(Compiled { hash: hash_of(&raw.value), name, material, files });
        }
    }

    fn keep(&mut self, kind: Kind, name: &Arc<str>, raw: &Any) {
        self.raw.push((kind, Arc::clone(name)));
        self.bytes.add(&raw.value);
    }

    /// Adds what another batch has.
    pub(super) fn append(&mut self, mut other: Self) {
        self.listeners.append(&mut other.listeners);
        self.clusters.append(&mut other.clusters);
        self.route_tables.append(&mut other.route_tables);
        self.assignments.append(&mut other.assignments);
        self.secrets.append(&mut other.secrets);
        self.raw.append(&mut other.raw);
        self.bytes.append(&other.bytes);
    }

    pub(super) fn check_unique(&self, errors: &mut Errors, at: &At<'_>) {
        let mut seen = BTreeSet::new();
        for (kind, name) in &self.raw {
            if !seen.insert((kind, name)) {
                errors
                    .report(at, format!("{name:?} stands here twice"))
                    .fix("give each resource a name of its own");
            }
        }
    }

    /// There is no ADS stream to subscribe on: a listener or cluster would wait for ever.
    pub(super) fn refuse_ads(&self, errors: &mut Errors, at: &At<'_>) {
        let by_ads =
            |http: &Arc<HttpSpec>| http.rds.as_ref().is_some_and(|rds| rds.source == ConfigSource::Ads);
        let listeners =
            self.listeners.iter().filter(|(_, l)| http_specs(l).any(by_ads)).map(|(_, l)| &l.name);
        let eds =
            |c: &ClusterSpec| matches!(&c.discovery, Discovery::Eds(eds) if eds.source == EdsSource::Ads);
        let clusters = self.clusters.iter().filter(|(_, c)| eds(c)).map(|(_, c)| &c.name);
        for name in listeners.chain(clusters) {
            let text = format!(
                "{name:?} takes its configuration from ADS, and there is no dynamic_resources.ads_config"
            );
            errors.report(at, text).fix("add ads_config, or use path_config_source");
        }
    }

    /// What stands alone must name clusters that exist: no other ones will come.
    pub(super) fn check_clusters(
        &self,
        names: &Names,
        known: impl Fn(&str) -> bool,
        errors: &mut Errors,
        at: &At<'_>,
    ) {
        self.check_routed_clusters(names, &known, errors, at);
        let own: BTreeSet<_> = self.clusters.iter().map(|(_, c)| &*c.name).collect();
        for (_, listener) in &self.listeners {
            let asked = http_specs(listener).flat_map(|http| http.authz_clusters());
            let asked = asked.map(|id| (id, "asks", "ext_authz"));
            let connected = tcp_specs(listener).flat_map(|tcp| &tcp.clusters);
            let connected = connected.map(|(id, _)| (*id, "connects to", "tcp_proxy"));
            for (id, does, filter) in asked.chain(connected) {
                let name = names.clusters.name(id).map_or("", |n| n);
                if !own.contains(name) && !known(name) {
                    let text = format!(
                        "listener {:?} {does} cluster {name:?} ({filter}), which does not exist",
                        listener.name
                    );
                    errors.report(at, text).fix("define the cluster");
                }
            }
        }
    }

    /// Inline routes must name clusters that exist (Envoy `validate_clusters`): in this batch, or `known` otherwise.
    pub(super) fn check_routed_clusters(
        &self,
        names: &Names,
        known: impl Fn(&str) -> bool,
        errors: &mut Errors,
        at: &At<'_>,
    ) {
        let own: BTreeSet<_> = self.clusters.iter().map(|(_, c)| &*c.name).collect();
        for (_, listener) in &self.listeners {
            for http in http_specs(listener) {
                let RouteSource::Inline(table) = &http.routes else { continue };
                if table.rules.validate_clusters == Some(false) {
                    continue;
                }
                for used in &table.clusters {
                    let name = names.clusters.name(used.id).map_or("", |n| n);
                    if !own.contains(name) && !known(name) {
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
