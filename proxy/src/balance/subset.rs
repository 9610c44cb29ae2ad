//! Subsets (`lb_subset_config`): a request that says `metadata_match` goes to endpoints whose metadata under `envoy.lb` matches.
//!
//! A subset is looked up by the keys and values that the request says, all of them. Each has an index of its own, with priorities and
//! panic mode of its own, built when the endpoints or their health change.

use std::sync::Arc;

use foldhash::HashMap;
use serde_json::Value;
use smallvec::SmallVec;

use super::context::LbContext;
use super::hash::{combine, xx};
use super::{Balancer, Rules, WorkerCursor};
use crate::upstream::endpoint::Endpoint;

/// Fields under `envoy.lb`, in the order of their names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LbMetadata {
    fields: Box<[Field]>,
    /// Of all fields.
    hash: u64,
}

impl From<Vec<Field>> for LbMetadata {
    /// Of fields in the order of their names.
    fn from(fields: Vec<Field>) -> Self {
        Self { hash: fold(fields.iter()), fields: fields.into() }
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Field {
    key: Box<str>,
    value: Value,
    hash: u64,
}

impl Field {
    fn new(key: &str, value: Value) -> Self {
        let hash = xx(format!("{key}\0{value}").as_bytes());
        Self { key: key.into(), value, hash }
    }
}

impl LbMetadata {
    /// The metadata with these fields.
    #[must_use]
    pub fn new<'k>(fields: impl IntoIterator<Item = (&'k str, Value)>) -> Self {
        let mut fields: Vec<Field> = fields.into_iter().map(|(key, value)| Field::new(key, value)).collect();
        fields.sort_by(|a, b| a.key.cmp(&b.key));
        fields.into()
    }

    /// Whether there is no field.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// The text under `key`.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.field(key)?.value.as_str()
    }

    /// These fields and those of `parent` that are not among them.
    #[must_use]
    pub fn over(&self, parent: &Self) -> Self {
        let inherited = parent.fields.iter().filter(|field| self.field(&field.key).is_none());
        let mut fields: Vec<Field> = self.fields.iter().chain(inherited).cloned().collect();
        fields.sort_by(|a, b| a.key.cmp(&b.key));
        fields.into()
    }

    fn field(&self, key: &str) -> Option<&Field> {
        let at = self.fields.binary_search_by(|field| (*field.key).cmp(key)).ok()?;
        self.fields.get(at)
    }

    /// Whether every field of `wanted` is here; with `list_as_any` one value of a list is enough.
    fn has_all(&self, wanted: &Self, list_as_any: bool) -> bool {
        wanted.fields.iter().all(|field| {
            self.field(&field.key).is_some_and(|own| match &own.value {
                Value::Array(values) if list_as_any => values.contains(&field.value),
                value => *value == field.value,
            })
        })
    }
}

/// `LbSubsetConfig`.
#[derive(Debug, Clone, PartialEq)]
pub struct SubsetSpec {
    /// `subset_selectors`.
    pub selectors: Box<[Selector]>,
    /// `fallback_policy`, for a request that no subset is for.
    pub fallback: Fallback,
    /// `default_subset`.
    pub default: LbMetadata,
    /// `panic_mode_any`: when the fallback finds nobody, anybody.
    pub panic_mode_any: bool,
    /// `list_as_any`: an endpoint with a list of values belongs to the subset of each.
    pub list_as_any: bool,
}

/// `LbSubsetSelector`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    /// `keys`, sorted: endpoints with the same values under all of them are a subset.
    pub keys: Box<[Box<str>]>,
    /// `fallback_policy`, for a request with these keys; None leaves it to the cluster's.
    pub fallback: Option<SelectorFallback>,
    /// `single_host_per_subset`: of several endpoints with the same values the first.
    pub single_host: bool,
}

/// `LbSubsetFallbackPolicy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fallback {
    /// NO_FALLBACK: nobody.
    #[default]
    Nobody,
    /// ANY_ENDPOINT.
    Anybody,
    /// DEFAULT_SUBSET.
    Default,
}

/// `LbSubsetSelectorFallbackPolicy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SelectorFallback {
    /// As a cluster's.
    As(Fallback),
    /// KEYS_SUBSET: look again with these of the request's keys only, sorted (`fallback_keys_subset`).
    Keys(Box<[Box<str>]>),
}

/// The index of a cluster with subsets.
#[derive(Debug)]
pub(crate) struct Subsets {
    spec: Arc<SubsetSpec>,
    /// By the hash of their fields.
    parts: HashMap<u64, SmallVec<[Part; 1]>>,
    /// `default_subset`.
    default: Part,
}

/// One subset.
#[derive(Debug)]
struct Part {
    fields: LbMetadata,
    endpoints: Arc<[Arc<Endpoint>]>,
    balancer: Balancer,
}

impl Part {
    fn pick(
        &self,
        cursor: &mut WorkerCursor,
        rng: &mut fastrand::Rng,
        context: &LbContext<'_>,
    ) -> Option<&Arc<Endpoint>> {
        self.balancer.pick(&self.endpoints, cursor, rng, context)
    }
}

/// The whole set, for those who may have anybody.
pub(crate) type Whole<'e> = (&'e [Arc<Endpoint>], &'e Balancer);

impl Subsets {
    /// The subsets of `endpoints`. Rotations begin at `slot`.
    pub(crate) fn build(
        spec: &Arc<SubsetSpec>,
        rules: Rules<'_>,
        endpoints: &[Arc<Endpoint>],
        mut slot: u32,
    ) -> Self {
        let mut part = |fields: LbMetadata, members: Vec<Arc<Endpoint>>| {
            let endpoints: Arc<[Arc<Endpoint>]> = members.into();
            let balancer = Balancer::build_from(rules, &endpoints, slot);
            slot = balancer.slots();
            Part { fields, endpoints, balancer }
        };
        let no_fields = LbMetadata::default();
        let default = endpoints.iter().filter(|endpoint| {
            endpoint.spec.metadata.as_deref().unwrap_or(&no_fields).has_all(&spec.default, spec.list_as_any)
        });
        let default = part(spec.default.clone(), default.cloned().collect());
        let mut parts: HashMap<u64, SmallVec<[Part; 1]>> = HashMap::default();
        for (fields, members) in groups(spec, endpoints) {
            parts.entry(fields.hash).or_default().push(part(fields, members));
        }
        Self { spec: Arc::clone(spec), parts, default }
    }

    /// An endpoint of the subset that the request asks for, or of its fallback.
    pub(crate) fn pick<'e>(
        &'e self,
        whole: Whole<'e>,
        cursor: &mut WorkerCursor,
        rng: &mut fastrand::Rng,
        context: &LbContext<'_>,
    ) -> Option<&'e Arc<Endpoint>> {
        let mut fallback = None;
        if let Some(wanted) = context.subset.filter(|wanted| !wanted.is_empty()) {
            match self.find(wanted) {
                Found::Subset(part) => return part.pick(cursor, rng, context),
                Found::Fallback(said) => fallback = said,
            }
        }
        let whole_pick = |cursor: &mut WorkerCursor, rng: &mut fastrand::Rng| {
            let (endpoints, balancer) = whole;
            balancer.pick(endpoints, cursor, rng, context)
        };
        match fallback.unwrap_or(self.spec.fallback) {
            Fallback::Nobody => None,
            Fallback::Anybody => whole_pick(cursor, rng),
            Fallback::Default => {
                let any = self.spec.panic_mode_any && fallback.is_none();
                let picked = self.default.pick(cursor, rng, context);
                if picked.is_none() && any { whole_pick(cursor, rng) } else { picked }
            }
        }
    }

    /// The subset with that hash whose fields are the `same`.
    fn part(&self, hash: u64, same: impl Fn(&LbMetadata) -> bool) -> Option<&Part> {
        self.parts.get(&hash)?.iter().find(|part| same(&part.fields))
    }

    /// The subset for `wanted`, or what its selector says when there is none. A fallback to fewer keys is followed: each has fewer
    /// keys than the one before, so that it ends.
    fn find(&self, wanted: &LbMetadata) -> Found<'_> {
        if let Some(part) = self.part(wanted.hash, |own| own == wanted) {
            return Found::Subset(part);
        }
        let mut fields: SmallVec<[&Field; 8]> = wanted.fields.iter().collect();
        loop {
            let keys = || fields.iter().map(|field| &field.key);
            let selector = self.spec.selectors.iter().find(|selector| selector.keys.iter().eq(keys()));
            match selector.and_then(|selector| selector.fallback.as_ref()) {
                None => return Found::Fallback(None),
                Some(SelectorFallback::As(fallback)) => return Found::Fallback(Some(*fallback)),
                Some(SelectorFallback::Keys(keep)) => {
                    let before = fields.len();
                    fields.retain(|field| keep.contains(&field.key));
                    if fields.len() == before {
                        return Found::Fallback(None);
                    }
                    let same = |own: &LbMetadata| own.fields.iter().eq(fields.iter().copied());
                    if let Some(part) = self.part(fold(fields.iter().copied()), same) {
                        return Found::Subset(part);
                    }
                }
            }
        }
    }
}

enum Found<'s> {
    Subset(&'s Part),
    Fallback(Option<Fallback>),
}

fn fold<'f>(fields: impl Iterator<Item = &'f Field>) -> u64 {
    fields.fold(0, |hash, field| combine(Some(hash), field.hash))
}

/// The members of every subset, in the order of the endpoints.
fn groups(spec: &SubsetSpec, endpoints: &[Arc<Endpoint>]) -> Vec<(LbMetadata, Vec<Arc<Endpoint>>)> {
    let mut groups: Vec<(LbMetadata, Vec<Arc<Endpoint>>)> = Vec::new();
    let mut index: HashMap<u64, SmallVec<[usize; 1]>> = HashMap::default();
    for (endpoint, metadata) in endpoints.iter().filter_map(|e| Some((e, e.spec.metadata.as_ref()?))) {
        for selector in &spec.selectors {
            for fields in values(metadata, selector, spec.list_as_any) {
                let same = index.entry(fields.hash).or_default();
                let at = match same.iter().find(|at| groups[**at].0 == fields) {
                    Some(at) => *at,
                    None => {
                        same.push(groups.len());
                        groups.push((fields, Vec::new()));
                        groups.len() - 1
                    }
                };
                let members = &mut groups[at].1;
                // Two selectors of the same keys make one subset.
                let again = members.last().is_some_and(|last| Arc::ptr_eq(last, endpoint));
                let full = selector.single_host && !members.is_empty();
                if !again && !full {
                    members.push(Arc::clone(endpoint));
                }
            }
        }
    }
    groups
}

/// More combinations of values than this of one endpoint and selector are left out.
const MAX_COMBINATIONS: usize = 1024;

/// The values of an endpoint under the keys of a selector; none when it lacks one of them. Lists under `list_as_any` have one for each of
/// their values.
fn values(metadata: &LbMetadata, selector: &Selector, list_as_any: bool) -> Vec<LbMetadata> {
    let mut all: Vec<Vec<Field>> = vec![Vec::new()];
    for key in &selector.keys {
        let Some(own) = metadata.field(key) else { return Vec::new() };
        let choices: Vec<Field> = match &own.value {
            Value::Array(values) if list_as_any => {
                values.iter().map(|value| Field::new(key, value.clone())).collect()
            }
            _ => vec![own.clone()],
        };
        let extended = all
            .iter()
            .flat_map(|fields| choices.iter().map(|choice| fields.iter().chain([choice]).cloned().collect()));
        all = extended.take(MAX_COMBINATIONS).collect();
    }
    all.into_iter().map(LbMetadata::from).collect()
}

#[cfg(test)]
#[path = "tests/subset.rs"]
mod tests;
