//! Resources of a control plane: each is taken or refused for itself, and the last good one stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost::Message as _;
use remora_xds::client::{Batch as Update, Incoming, Names as Wanted, Refused, Versions};
use remora_xds::diag::{At, ConfigError, Errors, SourceMap};
use remora_xds::{Kind, Schema};
use tokio::time::Instant;

use super::batch::Batch;
use super::warming::Warming;
use super::{Changes, Dumped, Held, Manager, Origin, hash_of, http_specs};
use crate::config::compile::Scope;
use crate::config::source::ads::AdsSpec;
use crate::config::spec::ConfigSource;
use crate::upstream::cluster::{Cluster, Discovery, EdsSource};

/// What the manager knows of its control plane.
#[derive(Debug, Default)]
pub(super) struct Dynamic {
    /// Kinds of which all resources are wanted.
    pub(super) roots: Vec<Kind>,
    /// Roots that were answered, now or in an earlier life.
    answered: BTreeSet<Kind>,
    /// What was taken, in force or waiting, with its version.
    versions: BTreeMap<Kind, Versions>,
    /// What a server that had just started did not have, and that was kept.
    kept: BTreeMap<Kind, BTreeSet<Arc<str>>>,
    pub(super) warming: Warming,
    /// Kept while resources come; 2 MB.
    schema: Option<Schema>,
}

impl Dynamic {
    /// Whether nothing is waited for.
    pub(super) fn is_warm(&self) -> bool {
        self.roots.iter().all(|kind| self.answered.contains(kind))
            && self.warming.tables.is_empty()
            && self.warming.listeners.is_empty()
    }
}

/// What became of a response.
#[derive(Debug, Default)]
pub struct Applied {
    /// Names and versions of what was taken.
    pub accepted: Vec<(Arc<str>, Arc<str>)>,
    /// Names of what is gone.
    pub removed: Vec<Arc<str>>,
    /// What was not taken, and why.
    pub refused: Vec<Refused>,
    /// What it touched.
    pub changes: Changes,
}

/// Every resource has its name in field 1.
#[derive(Clone, PartialEq, prost::Message)]
struct NameOnly {
    #[prost(string, tag = "1")]
    name: String,
}

impl Manager {
    /// The control plane of the bootstrap.
    #[must_use]
    pub const fn ads(&self) -> Option<&AdsSpec> {
        self.ads.as_ref()
    }

    /// Kinds of which all resources are wanted from the control plane.
    #[must_use]
    pub fn ads_roots(&self) -> &[Kind] {
        &self.dynamic.roots
    }

    /// Versions of what came from the control plane.
    #[must_use]
    pub fn ads_versions(&self) -> Vec<(Kind, Versions)> {
        self.dynamic.versions.iter().map(|(kind, versions)| (*kind, versions.clone())).collect()
    }

    /// The names that are wanted from the control plane: routes of listeners and endpoints of clusters.
    #[must_use]
    pub fn ads_wanted(&self) -> Wanted {
        let eds = |held: &Held<Cluster>| match &held.value.spec().discovery {
            Discovery::Eds(eds) if eds.source == EdsSource::Ads => Some(Arc::clone(&eds.service_name)),
            _ => None,
        };
        let waiting = self.dynamic.warming.listeners.values().map(|w| &w.held.value);
        let listeners = self.listeners.values().map(|held| &held.value).chain(waiting);
        let rds = listeners.flat_map(|listener| http_specs(listener)).filter_map(|http| match &http.rds {
            Some(rds) if rds.source == ConfigSource::Ads => Some(Arc::clone(&rds.name)),
            _ => None,
        });
        Wanted::from([
            (Kind::ClusterLoadAssignment, self.clusters.values().filter_map(eds).collect()),
            (Kind::RouteConfiguration, rds.collect()),
        ])
    }

    /// Takes over a response of the control plane: good resources come into force, or wait for what they refer to; bad ones are
    /// refused by name, and what was in force before stays.
    pub fn apply_ads(&mut self, update: &Update, now: Instant) -> Applied {
        let kind = update.kind;
        let mut applied = Applied::default();
        let mut good = Batch::default();
        let schema = self.dynamic.schema.take().unwrap_or_else(Schema::load);
        let names = update.resources.iter().enumerate().map(|(i, r)| name_of(r, i));
        // Load assignments have the names of clusters.
        let names: Vec<_> = names.map(|name| self.names.clusters.shared(&name).unwrap_or(name)).collect();
        let twice = twice(&names);
        for (incoming, name) in update.resources.iter().zip(&names) {
            let done = if twice.contains(name) {
                Err("stands in the response twice".to_owned())
            } else {
                self.compile_one(&schema, incoming, kind, name, &mut good)
            };
            match done {
                Ok(()) => applied.accepted.push((Arc::clone(name), Arc::clone(&incoming.version))),
                Err(detail) => {
                    if applied.refused.last().is_none_or(|last| last.name != *name) {
                        applied.refused.push(Refused { name: Arc::clone(name), detail });
                    }
                }
            }
        }
        self.dynamic.schema = Some(schema);
        applied.removed = self.removals(update, &names);
        self.dynamic.answered.insert(kind);
        self.install_ads(good, &mut applied, kind, now);
        applied.changes.add(self.promote(now));
        if applied.changes.listeners || applied.changes.clusters {
            self.forget_unwanted();
        }
        applied
    }

    /// Compiles one resource into `good`, unless it is what is in force.
    fn compile_one(
        &mut self,
        schema: &Schema,
        incoming: &Incoming,
        kind: Kind,
        name: &Arc<str>,
        good: &mut Batch,
    ) -> Result<(), String> {
        if incoming.any.type_url != kind.type_url() {
            return Err(format!("is a {}", incoming.any.type_url));
        }
        match self.in_force(kind, name) {
            Some((origin, _)) if *origin != Origin::Ads => {
                return Err("has the name of a resource of the bootstrap".to_owned());
            }
            Some((_, hash)) if hash == hash_of(&incoming.any.value) => return Ok(()),
            _ => {}
        }
        schema.check_any(&incoming.any, name).map_err(|errors| text_of(&errors))?;
        let mut errors = Errors::new(&**name, SourceMap::default());
        let mut one = Batch::default();
        let root = At::root();
        let mut scope = Scope { errors: &mut errors, names: &mut self.names };
        one.any(&incoming.any, &root, &mut scope);
        let known = |cluster: &str| self.clusters.contains_key(cluster);
        one.check_clusters(&self.names, known, &mut errors, &root);
        if let Some((_, inner, _)) = one.raw.first()
            && inner != name
        {
            errors.report(&root, format!("is called {inner:?} inside"));
        }
        if !errors.is_empty() {
            return Err(text_of(&errors.into_list()));
        }
        if one.raw.is_empty() {
            return Err(format!("is no {kind}"));
        }
        good.append(one);
        Ok(())
    }

    /// Origin and hash of what has this name, or waits to have it.
    fn in_force(&self, kind: Kind, name: &Arc<str>) -> Option<(&Origin, u64)> {
        fn of<T>(held: &Held<T>) -> (&Origin, u64) {
            (&held.origin, held.hash)
        }
        let warming = &self.dynamic.warming;
        match kind {
            Kind::Cluster => self.clusters.get(name).map(of),
            Kind::ClusterLoadAssignment => self.assignments.get(name).map(of),
            Kind::Listener => {
                let waiting = warming.listeners.get(name).map(|w| of(&w.held));
                waiting.or_else(|| self.listeners.get(name).map(of))
            }
            Kind::RouteConfiguration => {
                let waiting = warming.tables.get(name).map(|w| of(&w.held));
                waiting.or_else(|| self.route_tables.get(name).map(of))
            }
            Kind::Secret => None,
        }
    }

    /// Names that the response takes away. Routes and endpoints live as long as what refers to them.
    fn removals(&mut self, update: &Update, names: &[Arc<str>]) -> Vec<Arc<str>> {
        let kind = update.kind;
        if !kind.is_complete() {
            return Vec::new();
        }
        let sent: BTreeSet<_> = names.iter().collect();
        let nothing = Versions::new();
        let has = self.dynamic.versions.get(&kind).unwrap_or(&nothing);
        let mut gone: BTreeSet<Arc<str>> = if update.complete {
            has.keys().filter(|name| !sent.contains(name)).cloned().collect()
        } else {
            update.removed.iter().filter(|name| has.contains_key(*name)).cloned().collect()
        };
        let kept = self.dynamic.kept.entry(kind).or_default();
        if names.is_empty()
            && !gone.is_empty()
            && gone.len() == has.len()
            && (update.first || !kept.is_empty())
        {
            tracing::warn!(
                %kind,
                resources = gone.len(),
                "the control plane came back with nothing; the last good configuration is kept until it has something"
            );
            *kept = gone;
            return Vec::new();
        }
        if !names.is_empty() {
            gone.extend(std::mem::take(kept).into_iter().filter(|name| !sent.contains(name)));
        }
        gone.into_iter().collect()
    }

    fn install_ads(&mut self, good: Batch, applied: &mut Applied, kind: Kind, now: Instant) {
        let versions = self.dynamic.versions.entry(kind).or_default();
        versions.extend(applied.accepted.iter().cloned());
        for name in &applied.removed {
            versions.remove(name);
        }
        for (name, _) in applied.accepted.iter().filter(|_| kind == Kind::Cluster) {
            self.dynamic.warming.leaving.remove(name);
        }
        for (kind, name, bytes) in good.raw {
            let version = self.dynamic.versions.get(&kind).and_then(|v| v.get(&name)).cloned();
            self.dump.put(kind, name, Dumped { bytes, version });
        }
        let changes = &mut applied.changes;
        let clusters = Changes { snapshot: true, clusters: true, listeners: false };
        for (hash, name, assignment) in good.assignments {
            self.put_assignment(hash, &name, assignment, &Origin::Ads);
            changes.snapshot = true;
        }
        for (hash, spec) in good.clusters {
            self.put_cluster(hash, spec, &Origin::Ads);
            changes.add(clusters);
        }
        for (hash, table) in good.route_tables {
            changes.add(self.arrive_table(Held { origin: Origin::Ads, hash, value: Arc::new(table) }, now));
        }
        for (hash, spec) in good.listeners {
            changes.add(self.arrive_listener(Held { origin: Origin::Ads, hash, value: Arc::new(spec) }, now));
            // It may wait for routes, which then have to be subscribed to.
            changes.listeners = true;
        }
        for name in &applied.removed {
            if kind == Kind::Cluster {
                self.retire_cluster(name, now);
                changes.add(clusters);
            } else {
                self.listeners.remove(name);
                self.dynamic.warming.listeners.remove(name);
                self.dump.remove(kind, name);
                changes.add(Changes { snapshot: true, listeners: true, clusters: false });
            }
        }
    }

    /// Routes and endpoints of the control plane that nothing refers to any more.
    fn forget_unwanted(&mut self) {
        let wanted = self.ads_wanted();
        let is_wanted =
            |kind: Kind, name: &Arc<str>| wanted.get(&kind).is_some_and(|names| names.contains(name));
        for (kind, versions) in &mut self.dynamic.versions {
            if kind.is_complete() {
                continue;
            }
            versions.retain(|name, _| {
                let stays = is_wanted(*kind, name);
                if !stays {
                    self.dump.remove(*kind, name);
                    if *kind == Kind::ClusterLoadAssignment {
                        self.assignments.remove(name);
                        self.parked.remove(name);
                    }
                }
                stays
            });
        }
        let stays = |name: &Arc<str>, origin: &Origin| {
            *origin != Origin::Ads || is_wanted(Kind::RouteConfiguration, name)
        };
        self.route_tables.retain(|name, held| stays(name, &held.origin));
        self.dynamic.warming.tables.retain(|name, waiting| stays(name, &waiting.held.origin));
    }
}

/// The name of a resource, or its place in the response when it has none that can be read.
fn name_of(incoming: &Incoming, place: usize) -> Arc<str> {
    if let Some(name) = &incoming.name {
        return Arc::clone(name);
    }
    match NameOnly::decode(incoming.any.value.as_slice()) {
        Ok(NameOnly { name }) if !name.is_empty() => name.into(),
        _ => format!("#{place}").into(),
    }
}

fn twice(names: &[Arc<str>]) -> BTreeSet<Arc<str>> {
    let mut seen = BTreeSet::new();
    names.iter().filter(|name| !seen.insert(*name)).cloned().collect()
}

/// All mistakes in one line.
fn text_of(errors: &[ConfigError]) -> String {
    let text = |error: &ConfigError| {
        let fix = error.fix.as_ref().map(|fix| format!(" ({fix})")).unwrap_or_default();
        let path = if error.path.is_empty() { String::new() } else { format!("{}: ", error.path) };
        format!("{path}{}{fix}", error.message)
    };
    errors.iter().map(text).collect::<Vec<_>>().join("; ")
}
