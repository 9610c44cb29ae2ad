//! Small stable numbers for names that the request path looks up: a route refers to its cluster, a connection to
//! its filter chain, by an index into the snapshot. A name keeps its number for the life of the process.

use foldhash::HashMap;
use std::marker::PhantomData;
use std::sync::{Arc, Weak};

use tokio::time::Instant;

use super::secrets::Secrets;
use crate::resilience::circuit::registry::Circuits;
use crate::resilience::concurrency::Controller;
use crate::resilience::concurrency::gradient::ConcurrencySpec;
use crate::resilience::overload::Overload;
use crate::traffic::limit::quota::MeterStore;
use crate::traffic::limit::{Limits, LimitsSpec};

/// The number of a name of kind `K`.
pub struct Id<K>(u32, PhantomData<fn() -> K>);

impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Id<K> {}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<K> Eq for Id<K> {}
impl<K> std::hash::Hash for Id<K> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}
impl<K> std::fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "#{}", self.0)
    }
}
impl<K> Id<K> {
    /// The index into the snapshot's list of this kind.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
    /// The id at `index`; for tests.
    #[must_use]
    pub const fn from_index(index: u32) -> Self {
        Self(index, PhantomData)
    }
}

/// Kind of [`ClusterId`].
#[derive(Debug)]
pub enum ClusterKind {}
/// Kind of [`RouteTableId`].
#[derive(Debug)]
pub enum RouteTableKind {}
/// Kind of [`ChainId`].
#[derive(Debug)]
pub enum ChainKind {}
/// Kind of [`PolicyId`].
#[derive(Debug)]
pub enum PolicyKind {}
/// Number of a cluster name.
pub type ClusterId = Id<ClusterKind>;
/// Number of a route configuration name.
pub type RouteTableId = Id<RouteTableKind>;
/// Number of a filter chain (listener name and chain name or position).
pub type ChainId = Id<ChainKind>;
/// Number of a policy in metrics (prefix of its statistics, and its name).
pub type PolicyId = Id<PolicyKind>;

/// The numbers of one kind.
#[derive(Debug)]
pub struct Interner<K> {
    ids: HashMap<Arc<str>, Id<K>>,
    names: Vec<Arc<str>>,
}

impl<K> Default for Interner<K> {
    fn default() -> Self {
        Self { ids: HashMap::default(), names: Vec::new() }
    }
}

impl<K> Interner<K> {
    /// The number of `name`, given out now if it is new.
    pub fn intern(&mut self, name: &str) -> Id<K> {
        self.get(name).unwrap_or_else(|| self.add(name.into()))
    }
    /// The same, and keeps `name` itself if it is new.
    pub fn intern_shared(&mut self, name: &Arc<str>) -> Id<K> {
        self.get(name).unwrap_or_else(|| self.add(Arc::clone(name)))
    }
    /// `name` as it is kept here, if it is: one copy serves everybody.
    #[must_use]
    pub fn shared(&self, name: &str) -> Option<Arc<str>> {
        self.get(name).and_then(|id| self.name(id)).cloned()
    }
    fn add(&mut self, name: Arc<str>) -> Id<K> {
        let id = Id(u32::try_from(self.names.len()).unwrap_or(u32::MAX), PhantomData);
        self.names.push(Arc::clone(&name));
        self.ids.insert(name, id);
        id
    }
    /// The number of `name` if it has one.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Id<K>> {
        self.ids.get(name).copied()
    }
    /// The name behind `id`.
    #[must_use]
    pub fn name(&self, id: Id<K>) -> Option<&Arc<str>> {
        self.names.get(id.index())
    }
    /// How many names have a number.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }
    /// Whether no name has a number.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// What the compiler hands out by name: numbers, and the secrets that contexts share.
#[derive(Debug, Default)]
pub struct Names {
    /// Clusters.
    pub clusters: Interner<ClusterKind>,
    /// Route configurations.
    pub route_tables: Interner<RouteTableKind>,
    /// Filter chains.
    pub chains: Interner<ChainKind>,
    /// Certificates and trust.
    pub secrets: Secrets,
    /// Circuit breakers.
    pub circuits: Circuits,
    /// Policies: `prefix/name`.
    pub policies: Interner<PolicyKind>,
    /// Buckets of rate limits.
    pub limits: Store<Limits>,
    /// Limits of adaptive concurrency.
    pub controllers: Store<Controller>,
    /// Buckets of rate limits that a quota service leases.
    pub meters: MeterStore,
    /// What the process gives up for memory and files.
    pub overload: Arc<Overload>,
    /// `node.cluster`.
    pub node_cluster: Arc<str>,
}

impl Names {
    /// Paths are those of this resource from now on.
    pub fn enter(&mut self, kind: &str, name: &str) {
        self.limits.owner = format!("{kind} {name}");
        self.controllers.owner.clone_from(&self.limits.owner);
    }
}

/// State of a filter, made of its settings alone.
pub trait Kept {
    /// The settings.
    type Spec: PartialEq;
    /// With nothing behind it yet.
    fn begin(spec: Self::Spec, now: Instant) -> Self;
    /// What it was made of.
    fn spec(&self) -> &Self::Spec;
}

impl Kept for Limits {
    type Spec = LimitsSpec;
    fn begin(spec: LimitsSpec, now: Instant) -> Self {
        Self::new(spec, now)
    }
    fn spec(&self) -> &LimitsSpec {
        self.spec()
    }
}

impl Kept for Controller {
    type Spec = ConcurrencySpec;
    fn begin(spec: ConcurrencySpec, now: Instant) -> Self {
        Self::new(spec, now)
    }
    fn spec(&self) -> &ConcurrencySpec {
        self.spec()
    }
}

/// States of filters by resource and path. They outlive an edit that leaves their settings as they are.
#[derive(Debug)]
pub struct Store<T> {
    owner: String,
    by_path: HashMap<String, Weak<T>>,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self { owner: String::new(), by_path: HashMap::default() }
    }
}

impl<T: Kept> Store<T> {
    /// The state of the filter at `path`: a new one, unless there is one with the same settings.
    pub fn of(&mut self, path: String, spec: T::Spec) -> Arc<T> {
        let key = format!("{} {path}", self.owner);
        if let Some(known) = self.by_path.get(&key).and_then(Weak::upgrade).filter(|old| *old.spec() == spec)
        {
            return known;
        }
        self.by_path.retain(|_, state| state.strong_count() > 0);
        let state = Arc::new(T::begin(spec, Instant::now()));
        self.by_path.insert(key, Arc::downgrade(&state));
        state
    }
}
