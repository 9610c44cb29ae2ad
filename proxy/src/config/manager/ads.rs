//! Resources of a control plane: each is taken or refused for itself, and the last good one stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use remora_xds::client::{Batch as Update, Incoming, Refused, Versions};
use remora_xds::diag::{At, ConfigError, Errors, SourceMap};
use remora_xds::{Kind, Schema, Seen};
use tokio::time::Instant;

use super::batch::Batch;
use super::undo::Undo;
use super::warming::Warming;
use super::{Changes, Dumped, Held, Manager, Origin, hash_of};
use crate::config::compile::Scope;
use crate::config::source::ads::AdsSpec;
use crate::config::spec::ConfigSource;
use crate::upstream::endpoint::Assignment;

/// What the manager knows of its control plane.
#[derive(Debug, Default)]
pub(super) struct Dynamic {
    /// Kinds of which all resources are wanted.
    pub(super) roots: Vec<Kind>,
    /// Roots that were answered, now or in an earlier life.
    answered: BTreeSet<Kind>,
    /// What was taken, in force or waiting, with its version.
    pub(super) versions: BTreeMap<Kind, Versions>,
    /// What a server that had just started did not have, and that was kept.
    kept: BTreeMap<Kind, BTreeSet<Arc<str>>>,
    pub(super) warming: Warming,
    pub(super) undo: Undo,
    /// Kept while resources come, and when it goes: it is 3 MB, and loaded within 4 ms.
    schema: Option<(Schema, Instant)>,
    /// When what came is packed, though more comes all the time.
    pack_at: Option<Instant>,
}

impl Dynamic {
    /// Whether nothing is waited for.
    pub(super) fn is_warm(&self) -> bool {
        self.roots.iter().all(|kind| self.answered.contains(kind))
            && self.warming.tables.is_empty()
            && self.warming.listeners.is_empty()
    }
}

/// How long the schema is kept after the last response: others follow the first one soon, and the next after that may come tomorrow.
const KEEP_SCHEMA: Duration = Duration::from_secs(5);

/// How long what came may lie unpacked.
const PACK_WITHIN: Duration = Duration::from_secs(60);

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

    /// Whether a listener in force is the control plane's.
    #[must_use]
    pub fn is_from_control_plane(&self, listener: &str) -> bool {
        self.listeners.get(listener).is_some_and(|held| held.origin == Origin::Ads)
    }

    /// The schema that the bootstrap was read with: with a control plane, resources come soon.
    pub fn lend_schema(&mut self, schema: Schema, now: Instant) {
        self.dynamic.schema = self.ads.is_some().then(|| (schema, now + KEEP_SCHEMA));
    }

    /// When [`Self::tidy`] has something to do.
    #[must_use]
    pub fn tidy_at(&self) -> Option<Instant> {
        let schema = self.dynamic.schema.as_ref().map(|(_, until)| *until);
        schema.into_iter().chain(self.dynamic.pack_at).min()
    }

    /// Drops what is kept while resources come, when none came for long enough. True: what came is to be packed, now or because it came long ago.
    pub fn tidy(&mut self, now: Instant) -> bool {
        let is_quiet = self.dynamic.schema.take_if(|(_, until)| *until <= now).is_some();
        let packs = is_quiet || self.dynamic.pack_at.is_some_and(|at| at <= now);
        if packs {
            self.dynamic.pack_at = None;
        }
        packs
    }

    /// Takes over a response of the control plane: good resources come into force, or wait for what they refer to; bad ones are
    /// refused by name, and what was in force before stays.
    pub fn apply_ads(&mut self, update: &Update, now: Instant) -> Applied {
        let kind = update.kind;
        let mut applied = Applied::default();
        let mut good = Batch::default();
        let schema = self.dynamic.schema.take().map_or_else(Schema::load, |(schema, _)| schema);
        let named: Vec<_> = update.resources.iter().map(name_of).collect();
        // One that cannot be read may be any of those that are missing: none of them is gone then.
        let legible = named.iter().all(Option::is_some)
            && update.resources.iter().all(|incoming| incoming.any.type_url == kind.type_url());
        let place = |(i, name): (usize, Option<Arc<str>>)| name.unwrap_or_else(|| format!("#{i}").into());
        let names = named.into_iter().enumerate().map(place);
        // Load assignments have the names of clusters.
        let names: Vec<_> = names.map(|name| self.names.clusters.shared(&name).unwrap_or(name)).collect();
        let twice = twice(&names);
        let routes = if kind == Kind::RouteConfiguration { self.wanted_routes() } else { BTreeSet::new() };
        let mut seen = Seen::default();
        for (incoming, name) in update.resources.iter().zip(&names) {
            if !self.is_asked_for(kind, name, &routes) {
                // A push may cross the end of a subscription (xDS protocol, "Client Behavior"); it is no mistake.
                continue;
            }
            let done = if twice.contains(name) {
                Err("stands in the response twice".to_owned())
            } else {
                self.compile_one((&schema, &mut seen), incoming, kind, name, &mut good)
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
        self.dynamic.schema = Some((schema, now + KEEP_SCHEMA));
        self.dynamic.pack_at.get_or_insert(now + PACK_WITHIN);
        applied.removed =
            if update.complete && !legible { Vec::new() } else { self.removals(update, &names) };
        self.dynamic.answered.insert(kind);
        self.install_ads(good, &mut applied, kind, now);
        applied.changes.snapshot |= kind == Kind::ClusterLoadAssignment && self.know_empty(&update.removed);
        if applied.changes.listeners || applied.changes.clusters {
            self.forget_unwanted();
        }
        applied.changes.add(self.promote(now));
        applied
    }

    /// Whether the client asked for a resource: all clusters and listeners, and what these name. `routes` are those that it asked for.
    fn is_asked_for(&self, kind: Kind, name: &str, routes: &BTreeSet<Arc<str>>) -> bool {
        match kind {
            Kind::ClusterLoadAssignment => self.eds_users.contains_key(name),
            Kind::RouteConfiguration => routes.contains(name),
            Kind::Secret => self.names.secrets.wanted(&Some(ConfigSource::Ads)).contains(name),
            Kind::Cluster | Kind::Listener => true,
        }
    }

    /// Endpoints that the server does not have and that never came: the cluster is known to have none, and nobody waits for them.
    fn know_empty(&mut self, absent: &[Arc<str>]) -> bool {
        let news =
            |name: &&Arc<str>| self.eds_users.contains_key(*name) && !self.assignments.contains_key(*name);
        let news: Vec<_> = absent.iter().filter(news).cloned().collect();
        for name in &news {
            self.put_assignment(0, name, Assignment::default(), &Origin::Ads);
        }
        !news.is_empty()
    }

    /// Compiles one resource into `good`, unless it is what is in force.
    fn compile_one<'u>(
        &mut self,
        (schema, seen): (&Schema, &mut Seen<'u>),
        incoming: &'u Incoming,
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
            // A cluster on its way out is no longer shown, and comes back as if it were new.
            Some((_, hash)) if hash == hash_of(&incoming.any.value) && !self.is_leaving(kind, name) => {
                self.dump.set_version(kind, name, &incoming.version);
                return Ok(());
            }
            _ => {}
        }
        schema.check_next(&incoming.any, name, seen).map_err(|errors| text_of(&errors))?;
        let mut errors = Errors::new(&**name, SourceMap::default());
        let mut one = Batch::default();
        let root = At::root();
        let mut scope = Scope { errors: &mut errors, names: &mut self.names };
        one.any(&incoming.any, &root, &mut scope);
        let known = |cluster: &str| self.clusters.contains_key(cluster);
        // Those that are asked by filters may come later, as in Envoy: the listener waits for them.
        one.check_routed_clusters(&self.names, known, &mut errors, &root);
        if let Some((_, inner)) = one.raw.first()
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
        let misplaced = one.secrets.iter();
        let mut misplaced = misplaced.filter_map(|secret| {
            self.names.secrets.conflict(&Some(ConfigSource::Ads), &secret.name, &secret.material)
        });
        if let Some(detail) = misplaced.next() {
            return Err(detail);
        }
        drop(misplaced);
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
            Kind::Cluster => {
                let waiting = warming.clusters.get(name).map(of);
                waiting.or_else(|| self.clusters.get(name).map(of))
            }
            Kind::ClusterLoadAssignment => self.assignments.get(name).map(of),
            Kind::Listener => {
                let waiting = warming.listeners.get(name).map(|w| of(&w.held));
                waiting.or_else(|| self.listeners.get(name).map(of))
            }
            Kind::RouteConfiguration => {
                let waiting = warming.tables.get(name).map(|w| of(&w.held));
                waiting.or_else(|| self.route_tables.get(name).map(of))
            }
            Kind::Secret => Some((&Origin::Ads, self.names.secrets.hash(&Some(ConfigSource::Ads), name)?)),
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

    fn install_ads(&mut self, mut good: Batch, applied: &mut Applied, kind: Kind, now: Instant) {
        self.dynamic.undo.clear();
        for (_, spec) in &good.listeners {
            self.keep_for_undo(&spec.name);
        }
        let versions = self.dynamic.versions.entry(kind).or_default();
        versions.extend(applied.accepted.iter().cloned());
        for name in &applied.removed {
            versions.remove(name);
        }
        for (name, _) in applied.accepted.iter().filter(|_| kind == Kind::Cluster) {
            self.dynamic.warming.leaving.remove(name);
        }
        for (name, detail) in self.put_secrets(&mut good, &Origin::Ads) {
            tracing::error!(name = &*name, detail, "a secret is not used");
        }
        for ((kind, name), stored) in good.raw.into_iter().zip(good.bytes.stored()) {
            let version = self.dynamic.versions.get(&kind).and_then(|v| v.get(&name)).cloned();
            self.dump.put(kind, name, Dumped { stored, version });
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
                self.listener_at = None;
                if let Some(held) = self.listeners.remove(name) {
                    self.dynamic.warming.depart(&held.value, None, now);
                }
                self.dynamic.warming.listeners.remove(name);
                self.dump.remove(kind, name);
                changes.add(Changes { snapshot: true, listeners: true, clusters: false });
            }
        }
    }

    /// Routes and endpoints of the control plane that nothing refers to any more.
    pub(super) fn forget_unwanted(&mut self) {
        self.names.secrets.forget_unused();
        let mut wanted = self.ads_wanted();
        // Connections of listeners that are gone still need their routes.
        wanted.entry(Kind::RouteConfiguration).or_default().extend(self.dynamic.warming.departed_routes());
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

/// The name of a resource, when it has one that can be read.
fn name_of(incoming: &Incoming) -> Option<Arc<str>> {
    if let Some(name) = &incoming.name {
        return Some(Arc::clone(name));
    }
    let NameOnly { name } = NameOnly::decode(incoming.any.value.as_slice()).ok()?;
    (!name.is_empty()).then(|| name.into())
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
